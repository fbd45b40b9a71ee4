//! A lock that is held: written, judged beside the others, refreshed, given back. Backups, restores (type 1) and deletions
//! (type 2) hold it in the same way; they differ in what they make of the others' locks.
//!
//! ```text
//! PUT (not acquired) → 2 s → LIST locks, GET each → PUT (acquired), refreshed from now on       held
//! lost: the lease ended before a refresh was acknowledged                                       never repaired
//! ```
//!
//! Two that begin at once both write before they list, so at least one of them sees the other.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    client::Client,
    error::{ErrorKind, StoreError},
    guard::Timing,
    lease::{Lease, boottime},
    lock::{self, Judgement, LockBody, OtherLock},
    objects::{Body, Entry, PutCondition, Range},
};
use crate::model::limits;

/// Which lock, of which type, and by which clock.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// The folder of the volume's locks, with its slash.
    pub(super) folder: String,
    /// `lock-<16 hex>`
    pub(super) name: String,
    pub(super) kind: i64,
    pub(super) timing: Timing,
    /// What the other locks mean for this one, at the server's time.
    pub(super) judge: fn(&[OtherLock], Timestamp) -> Judgement,
}

/// The lock is ours, for as long as its lease.
pub(super) struct Held {
    client: Client,
    wanted: Wanted,
    lease: Arc<Lease>,
    refresher: Refresher,
    seen: Seen,
}

/// What a look at the locks showed.
struct Seen {
    judgement: Judgement,
    entries: Vec<Entry>,
    clock: ServerClock,
}

/// The store's clock: what it said once, and what has passed since.
#[derive(Debug, Clone, Copy)]
struct ServerClock {
    said: Timestamp,
    at: Instant,
}

impl ServerClock {
    fn now(&self) -> Timestamp {
        lock::server_now(self.said, self.at.elapsed())
    }
}

/// Ends with its task when dropped.
struct Refresher {
    task: tokio::task::JoinHandle<()>,
    lost: watch::Receiver<Option<StoreError>>,
}

impl Drop for Refresher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Copy)]
enum Acquired {
    No,
    Yes,
}

impl Wanted {
    fn key(&self) -> String {
        format!("{}{}.lck", self.folder, self.name)
    }

    fn body(&self, acquired: Acquired) -> Body {
        let is_acquired = matches!(acquired, Acquired::Yes);
        let body = LockBody { name: self.name.clone(), kind: self.kind, acquired: is_acquired };
        Body::Bytes(Bytes::from(body.encode()))
    }

    async fn put(&self, client: &Client, acquired: Acquired) -> Result<(), StoreError> {
        client.put(&self.key(), self.body(acquired), PutCondition::Always).await.map(|_| ())
    }

    /// Looks at every lock of the volume. Ours was written, and answered at `replied`.
    async fn look(&self, client: &Client, replied: Instant) -> Result<Seen, StoreError> {
        let own = self.key();
        let (others, entries) = read_locks(client, &self.folder, Some(&own)).await?;
        let Some(said) = entries.iter().find(|e| e.key == own).and_then(|e| e.meta.modified) else {
            let seen = "our own lock, acknowledged before, is not listed: the listing cannot be trusted";
            return Err(StoreError::new(ErrorKind::Unavailable, "LIST", &self.folder, seen));
        };
        let clock = ServerClock { said, at: replied };
        Ok(Seen { judgement: (self.judge)(&others, clock.now()), entries, clock })
    }
}

/// Every lock of the volume but `own`, read; and all of them as listed.
pub(super) async fn read_locks(
    client: &Client,
    folder: &str,
    own: Option<&str>,
) -> Result<(Vec<OtherLock>, Vec<Entry>), StoreError> {
    let entries = client.list(folder).await?;
    let mut others = Vec::new();
    for entry in entries.iter().filter(|e| Some(e.key.as_str()) != own && e.key.ends_with(".lck")) {
        let body = match client.get(&entry.key, Range::whole(limits::SMALL_OBJECT_BYTES_MAX)).await {
            // Released between the listing and now.
            Ok(None) => continue,
            Ok(Some(fetched)) => serde_json::from_slice(&fetched.bytes).ok(),
            Err(_) => None,
        };
        others.push(OtherLock { key: entry.key.clone(), body, modified: entry.meta.modified });
    }
    Ok((others, entries))
}

/// Takes the lock, or says who holds the volume.
pub(super) async fn hold(client: &Client, wanted: Wanted) -> Result<Held, StoreError> {
    wanted.put(client, Acquired::No).await?;
    let replied = Instant::now();
    sleep(wanted.timing.settle).await;
    let seen = match wanted.look(client, replied).await {
        Ok(Seen { judgement: Judgement::Held { key, why }, .. }) => {
            remove(client, &wanted.key()).await;
            return Err(StoreError::new(ErrorKind::LockHeld, "LOCK", key, why));
        }
        Ok(seen) => seen,
        Err(error) => {
            remove(client, &wanted.key()).await;
            return Err(error);
        }
    };
    let sent = boottime();
    wanted.put(client, Acquired::Yes).await?;
    let lease = Arc::new(Lease::new(wanted.timing.lease, sent));
    let refresher = refresh(client.clone(), wanted.clone(), Arc::clone(&lease));
    Ok(Held { client: client.clone(), wanted, lease, refresher, seen })
}

/// Best effort: a lock that stays behind ends by itself after 150 s.
pub(super) async fn remove(client: &Client, key: &str) {
    if let Err(error) = client.delete(&[key.to_owned()]).await {
        tracing::warn!(%error, "Lock stays behind until it expires");
    }
}

fn refresh(client: Client, wanted: Wanted, lease: Arc<Lease>) -> Refresher {
    let (tell, lost) = watch::channel(None);
    let task = tokio::spawn(async move {
        let key = wanted.key();
        let mut wait = wanted.timing.refresh;
        loop {
            sleep(wait.min(lease.left(boottime()))).await;
            let sent = boottime();
            let answer = client.put_within(&key, wanted.body(Acquired::Yes), limits::LOCK_REFRESH_DEADLINE).await;
            // A lapse is never repaired: others may have acted on it, whatever this PUT did.
            let is_lapsed = lease.left(boottime()).is_zero();
            let seen = match answer {
                Ok(_) if !is_lapsed => {
                    lease.renew(sent);
                    wait = wanted.timing.refresh;
                    continue;
                }
                Ok(_) => "it was acknowledged too late".to_owned(),
                Err(error) => error.seen,
            };
            wait = Duration::from_secs(1);
            if is_lapsed {
                let seen = format!("the lock could not be refreshed in time ({seen}) and its lease has ended");
                tell.send_replace(Some(StoreError::new(ErrorKind::GuardLost, "PUT", &key, seen)));
                return;
            }
        }
    });
    Refresher { task, lost }
}

impl Held {
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// What the locks of others said when this one was taken.
    pub(super) fn judgement(&self) -> &Judgement {
        &self.seen.judgement
    }

    /// Every lock of the volume when this one was taken.
    pub(super) fn locks(&self) -> &[Entry] {
        &self.seen.entries
    }

    /// The store's time now, by the look at the locks.
    pub(super) fn server_now(&self) -> Timestamp {
        self.seen.clock.now()
    }

    /// The lease holds and the refresher has not given up.
    pub(super) fn check_lease(&self) -> Result<(), StoreError> {
        if let Some(error) = self.refresher.lost.borrow().clone() {
            return Err(error);
        }
        if self.lease_left().is_zero() {
            let seen = "its lease ended before it could be refreshed: this process was stopped or starved";
            return Err(StoreError::new(ErrorKind::GuardLost, "LOCK", self.wanted.key(), seen));
        }
        Ok(())
    }

    pub(super) fn lease_left(&self) -> Duration {
        self.lease.left(boottime())
    }

    /// Ends when the lock is lost.
    pub(super) async fn lost(&self) -> StoreError {
        let mut lost = self.refresher.lost.clone();
        let seen = lost.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        seen.unwrap_or_else(|| StoreError::new(ErrorKind::GuardLost, "LOCK", "", "the refresher ended"))
    }

    /// Writes the lock anew and looks at the others: whoever holds the volume now ends it for us.
    pub(super) async fn check_whole(&self) -> Result<(), StoreError> {
        let sent = boottime();
        self.wanted.put(&self.client, Acquired::Yes).await?;
        self.lease.renew(sent);
        match self.wanted.look(&self.client, Instant::now()).await?.judgement {
            Judgement::Free | Judgement::Suspect => Ok(()),
            Judgement::Held { key, why } => Err(StoreError::new(ErrorKind::GuardLost, "LOCK", key, why)),
        }
    }

    /// Gives the lock back.
    pub(super) async fn release(self) {
        let (client, key) = (self.client.clone(), self.wanted.key());
        drop(self);
        remove(&client, &key).await;
    }

    /// Stops refreshing and leaves the lock to expire: it tells the next one that something may still be under way.
    pub(super) fn leave(self) {
        drop(self);
    }
}
