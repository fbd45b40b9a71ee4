//! The deletion lock: Longhorn's type 2, held as a backup holds its own. While it stands no backup or restore begins, and
//! none had begun when it was taken.
//!
//! A DELETE that was sent and not answered may still arrive after the lock is gone, when somebody has already counted on
//! what it deletes. So a deletion that is not sure of every answer does not give its lock back: the lock expires, and
//! whoever finds it looks for every block once more before it seals (`Suspect`).

use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;

use super::{
    client::Client,
    error::{ErrorKind, StoreError},
    guard::Timing,
    hold::{self, Held, Wanted},
    layout::VolumeLayout,
    lock::{self, Judgement, TYPE_DELETE},
    objects::Entry,
};
use crate::model::{AttemptId, limits};

/// The volume is ours to delete from.
pub struct Deletion {
    held: Held,
    layout: VolumeLayout,
    is_sure: AtomicBool,
}

/// Takes the lock; `LockHeld` says who has the volume, and for how long.
pub async fn lock(client: &Client, layout: &VolumeLayout, timing: Timing) -> Result<Deletion, StoreError> {
    let mut random = [0; 10];
    getrandom::fill(&mut random).map_err(|e| StoreError::new(ErrorKind::Unavailable, "LOCK", layout.locks(), e))?;
    let wanted = Wanted {
        folder: layout.locks(),
        name: format!("lock-{}", AttemptId::new(0, random).short()),
        kind: TYPE_DELETE,
        timing,
        judge: lock::judge_for_deletion,
    };
    let held = hold::hold(client, wanted).await?;
    Ok(Deletion { held, layout: layout.clone(), is_sure: AtomicBool::new(true) })
}

/// What would refuse a deletion at `now`, and every lock there is, without writing anything.
pub async fn look(
    client: &Client,
    layout: &VolumeLayout,
    now: Timestamp,
) -> Result<(Option<StoreError>, Vec<Entry>), StoreError> {
    let (others, entries) = hold::read_locks(client, &layout.locks(), None).await?;
    let held = match lock::judge_for_deletion(&others, now) {
        Judgement::Free | Judgement::Suspect => None,
        Judgement::Held { key, why } => Some(StoreError::new(ErrorKind::LockHeld, "LOCK", key, why)),
    };
    Ok((held, entries))
}

impl Deletion {
    pub fn client(&self) -> &Client {
        self.held.client()
    }

    pub fn layout(&self) -> &VolumeLayout {
        &self.layout
    }

    /// Every lock of the volume when ours was taken, ours among them.
    pub fn locks(&self) -> &[Entry] {
        self.held.locks()
    }

    /// The store's time now.
    pub fn server_now(&self) -> Timestamp {
        self.held.server_now()
    }

    pub fn check_lease(&self) -> Result<(), StoreError> {
        self.held.check_lease()
    }

    /// There is enough of the lease left to send a batch and hear its answer.
    pub fn check_lease_for_batch(&self) -> Result<(), StoreError> {
        self.held.check_lease()?;
        let left = self.held.lease_left();
        if left < limits::LEASE_TO_DELETE {
            let seen = format!("only {left:?} of the lease are left, a batch needs {:?}", limits::LEASE_TO_DELETE);
            return Err(StoreError::new(ErrorKind::GuardLost, "LOCK", self.layout.locks(), seen));
        }
        Ok(())
    }

    /// Deletes under the lease and answers with what stays, key by key.
    pub async fn delete(&self, keys: &[String]) -> Result<Vec<StoreError>, StoreError> {
        self.check_lease()?;
        let failed = self.client().requests().failed.delete;
        let was_sure = self.is_sure.swap(false, Ordering::SeqCst);
        let stay = tokio::select! {
            biased;
            lost = self.held.lost() => return Err(lost),
            answer = self.client().delete_each(keys) => answer?,
        };
        // One that failed and was sent again may have left an earlier copy of itself under way.
        let is_answered = self.client().requests().failed.delete == failed;
        self.is_sure.store(was_sure && is_answered, Ordering::SeqCst);
        Ok(stay)
    }

    /// The same, where one that stays ends it.
    pub async fn delete_all(&self, keys: &[String]) -> Result<(), StoreError> {
        match self.delete(keys).await?.into_iter().next() {
            None => Ok(()),
            Some(stays) => Err(stays),
        }
    }

    /// Gives the lock back, or leaves it to warn the next one.
    pub async fn end(self) {
        match self.is_sure.load(Ordering::SeqCst) {
            true => self.held.release().await,
            false => {
                tracing::warn!(key = %self.layout.locks(), "A deletion was not answered: its lock stays until it expires");
                self.held.leave();
            }
        }
    }
}
