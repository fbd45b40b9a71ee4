//! The guard: a lock that is refreshed, a lease that says how long others honour it, and a marker that keeps every honest
//! collector away from the volume's blocks. Receipts are made here and nowhere else.
//!
//! ```text
//! lock PUT (not acquired) → 2 s → LIST locks, GET each → lock PUT (acquired), refreshed from now on
//!   → attempt.json → marker PUT (once) → marker HEAD: its identity          the guard stands
//! lost: lease ended · marker changed or gone · a deletion acquired          never repaired within an attempt
//! ```
//!
//! (store-protocol P1 and P2.) From the marker's acknowledgement on, a collector that honours Longhorn's rules deletes no
//! block: it stops at any config in progress.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    client::Client,
    error::{ErrorKind, StoreError},
    layout::VolumeLayout,
    lease::{Lease, boottime},
    ledger::Receipt,
    lock::{self, Judgement, LockBody, OtherLock, TYPE_BACKUP},
    objects::{Body, Meta, PutCondition, Range},
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
    client: Client,
    holder: Holder,
    lease: Arc<Lease>,
    refresher: Refresher,
    is_suspect: bool,
}

/// The lock is ours and the marker stands.
pub struct Guard {
    locked: Locked,
    marker_key: String,
    marker: Meta,
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

/// P1.1 to P1.3: takes the volume's lock, or says who holds it.
pub async fn lock(client: &Client, holder: Holder) -> Result<Locked, StoreError> {
    let key = holder.layout.lock(&holder.attempt);
    put_lock(client, &holder, Acquired::No).await?;
    let replied = Instant::now();
    sleep(holder.timing.settle).await;
    let judgement = judge_locks(client, &holder, replied).await;
    let is_suspect = match judgement {
        Ok(Judgement::Free) => false,
        Ok(Judgement::Suspect) => true,
        Ok(Judgement::Held { key: other, why }) => {
            release_lock(client, &key).await;
            return Err(StoreError::new(ErrorKind::LockHeld, "LOCK", other, why));
        }
        Err(error) => {
            release_lock(client, &key).await;
            return Err(error);
        }
    };
    let sent = boottime();
    put_lock(client, &holder, Acquired::Yes).await?;
    let lease = Arc::new(Lease::new(holder.timing.lease, sent));
    let refresher = refresh(client.clone(), holder.clone(), Arc::clone(&lease));
    Ok(Locked { client: client.clone(), holder, lease, refresher, is_suspect })
}

#[derive(Clone, Copy)]
enum Acquired {
    No,
    Yes,
}

fn lock_body(holder: &Holder, acquired: Acquired) -> Bytes {
    let name = format!("lock-{}", holder.attempt.short());
    let body = LockBody { name, kind: TYPE_BACKUP, acquired: matches!(acquired, Acquired::Yes) };
    Bytes::from(body.encode())
}

async fn put_lock(client: &Client, holder: &Holder, acquired: Acquired) -> Result<(), StoreError> {
    let key = holder.layout.lock(&holder.attempt);
    client.put(&key, Body::Bytes(lock_body(holder, acquired)), PutCondition::Always).await.map(|_| ())
}

/// Takes away what a `lock` that was given up half-way may have left.
pub async fn abandon(client: &Client, holder: &Holder) {
    release_lock(client, &holder.layout.lock(&holder.attempt)).await;
}

/// Best effort: a lock that stays behind ends by itself after 150 s.
async fn release_lock(client: &Client, key: &str) {
    if let Err(error) = client.delete(&[key.to_owned()]).await {
        tracing::warn!(%error, "Lock stays behind until it expires");
    }
}

async fn judge_locks(client: &Client, holder: &Holder, replied: Instant) -> Result<Judgement, StoreError> {
    let prefix = holder.layout.locks();
    let own = holder.layout.lock(&holder.attempt);
    let entries = client.list(&prefix).await?;
    let own_modified = entries.iter().find(|e| e.key == own).and_then(|e| e.meta.modified);
    let Some(own_modified) = own_modified else {
        let seen = "our own lock, acknowledged before, is not listed: the listing cannot be trusted";
        return Err(StoreError::new(ErrorKind::Unavailable, "LIST", prefix, seen));
    };
    let server_now = lock::server_now(own_modified, replied.elapsed());
    let mut others = Vec::new();
    for entry in entries.into_iter().filter(|e| e.key != own && e.key.ends_with(".lck")) {
        let read = client.get(&entry.key, Range::whole(limits::SMALL_OBJECT_BYTES_MAX)).await;
        let body = match read {
            // Released between the listing and now.
            Ok(None) => continue,
            Ok(Some(fetched)) => serde_json::from_slice(&fetched.bytes).ok(),
            Err(_) => None,
        };
        others.push(OtherLock { key: entry.key, body, modified: entry.meta.modified });
    }
    Ok(lock::judge(&others, server_now))
}

fn refresh(client: Client, holder: Holder, lease: Arc<Lease>) -> Refresher {
    let (tell, lost) = watch::channel(None);
    let task = tokio::spawn(async move {
        let key = holder.layout.lock(&holder.attempt);
        let mut wait = holder.timing.refresh;
        loop {
            sleep(wait.min(lease.left(boottime()))).await;
            let sent = boottime();
            let put =
                client.put_within(&key, Body::Bytes(lock_body(&holder, Acquired::Yes)), limits::LOCK_REFRESH_DEADLINE);
            let answer = put.await;
            // A lapse is never repaired: others may have acted on it, whatever this PUT did.
            let is_lapsed = lease.left(boottime()).is_zero();
            let seen = match answer {
                Ok(_) if !is_lapsed => {
                    lease.renew(sent);
                    wait = holder.timing.refresh;
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
        self.client.create(&attempt_key, attempt_json).await?;
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
        self.client.create(key, Bytes::from(head.encode_marker())).await?;
        self.check_lease()?;
        let seen = "it was acknowledged and is not there";
        self.client.head(key).await?.ok_or_else(|| StoreError::new(ErrorKind::GuardLost, "HEAD", key, seen))
    }

    /// P2.3: the lease holds and the refresher has not given up.
    pub fn check_lease(&self) -> Result<(), StoreError> {
        if let Some(error) = self.refresher.lost.borrow().clone() {
            return Err(error);
        }
        if self.lease.left(boottime()).is_zero() {
            let seen = "its lease ended before it could be refreshed: this process was stopped or starved";
            let key = self.holder.layout.lock(&self.holder.attempt);
            return Err(StoreError::new(ErrorKind::GuardLost, "LOCK", key, seen));
        }
        Ok(())
    }

    /// Ends when the lock is lost.
    pub async fn lost(&self) -> StoreError {
        let mut lost = self.refresher.lost.clone();
        let seen = lost.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        seen.unwrap_or_else(|| StoreError::new(ErrorKind::GuardLost, "LOCK", "", "the refresher ended"))
    }

    /// Gives the lock back; the marker, if any, stays and protects what the journal names.
    pub async fn release(self) {
        let key = self.holder.layout.lock(&self.holder.attempt);
        let client = self.client.clone();
        drop(self);
        release_lock(&client, &key).await;
    }
}

impl Guard {
    pub fn holder(&self) -> &Holder {
        &self.locked.holder
    }

    pub fn client(&self) -> &Client {
        &self.locked.client
    }

    /// A deleter died before us: blocks may be missing that a listing showed.
    pub fn is_suspect(&self) -> bool {
        self.locked.is_suspect
    }

    pub fn check_lease(&self) -> Result<(), StoreError> {
        self.locked.check_lease()
    }

    pub fn lease_left(&self) -> Duration {
        self.locked.lease.left(boottime())
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
        let holder = self.holder();
        let sent = boottime();
        put_lock(self.client(), holder, Acquired::Yes).await?;
        self.locked.lease.renew(sent);
        match judge_locks(self.client(), holder, Instant::now()).await? {
            Judgement::Free | Judgement::Suspect => {}
            Judgement::Held { key, why } => return Err(StoreError::new(ErrorKind::GuardLost, "LOCK", key, why)),
        }
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
