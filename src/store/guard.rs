//! The guard: a lock that is refreshed, a lease that says how long others honour it, and a marker that keeps every honest
//! collector away from the volume's blocks. Receipts are made here and nowhere else.
//!
//! ```text
//! lock held (`hold`) → attempt.json → marker PUT (once) → marker HEAD: its identity          the guard stands
//! lost: lease ended · marker changed or gone · a deletion acquired          never repaired within an attempt
//! ```
//!
//! (store-protocol P1 and P2.) From the marker's acknowledgement on, a collector that honours Longhorn's rules deletes no
//! block: it stops at any config in progress.

use std::time::Duration;

use bytes::Bytes;

use super::{
    client::Client,
    error::{ErrorKind, StoreError},
    hold::{self, Held, Wanted},
    layout::VolumeLayout,
    ledger::Receipt,
    lock::{self, Judgement, TYPE_BACKUP},
    objects::{Body, Meta, PutCondition},
    record::{RecordHead, label},
};
use crate::model::{AttemptId, BackupName, BlockName, Compression, limits};

/// Longhorn's clock. Tests of the order of requests shorten it; the product never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    pub settle: Duration,
    pub refresh: Duration,
    pub lease: Duration,
    pub lease_to_seal: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            settle: limits::LOCK_SETTLE,
            refresh: limits::LOCK_REFRESH,
            lease: limits::LEASE,
            lease_to_seal: limits::LEASE_TO_SEAL,
        }
    }
}

/// Whose guard it is, and on which volume.
#[derive(Debug, Clone)]
pub struct Holder {
    pub layout: VolumeLayout,
    pub volume: crate::model::VolumeName,
    pub backup_uid: String,
    pub attempt: AttemptId,
    pub timing: Timing,
}

/// The lock is ours; nothing may be sent yet.
pub struct Locked {
    holder: Holder,
    held: Held,
}

/// The lock is ours and the marker stands.
pub struct Guard {
    locked: Locked,
    marker_key: String,
    marker: Meta,
}

/// P1.1 to P1.3: takes the volume's lock, or says who holds it.
pub async fn lock(client: &Client, holder: Holder) -> Result<Locked, StoreError> {
    let wanted = Wanted {
        folder: holder.layout.locks(),
        name: format!("lock-{}", holder.attempt.short()),
        kind: TYPE_BACKUP,
        timing: holder.timing,
        judge: lock::judge,
    };
    let held = hold::hold(client, wanted).await?;
    Ok(Locked { holder, held })
}

/// Takes away what a `lock` that was given up half-way may have left.
pub async fn abandon(client: &Client, holder: &Holder) {
    hold::remove(client, &holder.layout.lock(&holder.attempt)).await;
}

impl Locked {
    /// P1.4: `attempt.json`, then the marker. From here the guard stands.
    pub async fn stand(
        self,
        attempt_json: Bytes,
        compression: Compression,
    ) -> Result<Guard, (Box<Locked>, StoreError)> {
        let marker_name = BackupName::of_marker(&self.holder.attempt);
        let marker_key = self.holder.layout.backup(&marker_name);
        match self.write_marker(attempt_json, &marker_name, &marker_key, compression).await {
            Ok(marker) => Ok(Guard { locked: self, marker_key, marker }),
            Err(error) => Err((Box::new(self), error)),
        }
    }

    async fn write_marker(
        &self,
        attempt_json: Bytes,
        name: &BackupName,
        key: &str,
        compression: Compression,
    ) -> Result<Meta, StoreError> {
        let holder = &self.holder;
        let attempt_key = holder.layout.attempt(&holder.backup_uid, &holder.attempt);
        self.held.client().create(&attempt_key, attempt_json).await?;
        let labels = [
            (label::MARKER, "true"),
            (label::BACKUP_UID, holder.backup_uid.as_str()),
            (label::ATTEMPT, holder.attempt.as_str()),
        ];
        let head = RecordHead {
            name: name.to_string(),
            volume_name: holder.volume.to_string(),
            labels: Some(labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()),
            compression_method: compression.as_str().into(),
            ..RecordHead::default()
        };
        self.held.client().create(key, Bytes::from(head.encode_marker())).await?;
        self.check_lease()?;
        let seen = "it was acknowledged and is not there";
        self.held.client().head(key).await?.ok_or_else(|| StoreError::new(ErrorKind::GuardLost, "HEAD", key, seen))
    }

    /// P2.3: the lease holds and the refresher has not given up.
    pub fn check_lease(&self) -> Result<(), StoreError> {
        self.held.check_lease()
    }

    /// Ends when the lock is lost.
    pub async fn lost(&self) -> StoreError {
        self.held.lost().await
    }

    /// Gives the lock back; the marker, if any, stays and protects what the journal names.
    pub async fn release(self) {
        self.held.release().await;
    }
}

impl Guard {
    pub fn holder(&self) -> &Holder {
        &self.locked.holder
    }

    pub fn client(&self) -> &Client {
        self.locked.held.client()
    }

    /// A deleter died before us: blocks may be missing that a listing showed.
    pub fn is_suspect(&self) -> bool {
        *self.locked.held.judgement() == Judgement::Suspect
    }

    pub fn check_lease(&self) -> Result<(), StoreError> {
        self.locked.check_lease()
    }

    pub fn lease_left(&self) -> Duration {
        self.locked.held.lease_left()
    }

    pub fn lease_to_seal(&self) -> Duration {
        self.locked.holder.timing.lease_to_seal
    }

    /// Ends when the guard is lost.
    pub async fn lost(&self) -> StoreError {
        self.locked.lost().await
    }

    /// P2.1: sends a block. The receipt exists only after a 2xx, and only while the lease holds.
    pub async fn put_block(&self, name: BlockName, object: Bytes) -> Result<Receipt, StoreError> {
        self.check_lease()?;
        let key = self.holder().layout.block(&name);
        let stored = u32::try_from(object.len()).expect("an object is at most a block and its frame");
        self.client().put(&key, Body::Bytes(object), PutCondition::Always).await?;
        self.check_lease()?;
        Ok(Receipt::new(name, stored))
    }

    /// P3.2: our lock fresh, no deletion acquired, our marker the very object we wrote.
    pub async fn check_whole(&self) -> Result<(), StoreError> {
        self.locked.held.check_whole().await?;
        self.check_marker().await?;
        self.check_lease()
    }

    /// The marker is the very object we wrote.
    pub async fn check_marker(&self) -> Result<(), StoreError> {
        let found = self.client().head(&self.marker_key).await?;
        if found.as_ref() == Some(&self.marker) {
            return Ok(());
        }
        let seen = match found {
            None => "our marker is gone: a successor took over or somebody deleted it",
            Some(_) => "our marker was replaced by another object",
        };
        Err(StoreError::new(ErrorKind::GuardLost, "HEAD", &self.marker_key, seen))
    }

    /// P3.8: marker, then journals, then lock. What fails is left to the janitor.
    pub async fn finish(self, journals: Vec<String>) {
        for keys in [vec![self.marker_key.clone()], journals] {
            if let Err(error) = self.client().delete(&keys).await {
                tracing::warn!(%error, "Leftovers of a sealed backup stay behind");
            }
        }
        self.locked.release().await;
    }

    /// Ends without a record: the marker stays.
    pub async fn release(self) {
        self.locked.release().await;
    }
}
