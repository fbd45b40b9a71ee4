//! What the store knows of a volume before an attempt begins: its config, and the record to build on.
//!
//! Reading needs no guard: nothing here is believed later without being looked at again. A config that is missing is
//! created only when the listings, made under the guard, show neither records nor blocks (law 7).

use bytes::Bytes;
use jiff::Timestamp;

use super::{
    client::Client,
    error::{ErrorKind, StoreError},
    guard::Guard,
    layout::{VolumeLayout, backup_of_key},
    listing::Listing,
    objects::{Body, PutCondition, Range},
    record::{RecordHead, VolumeConfig, label},
    tombstone::Tombstones,
};
use crate::model::{BackupName, BlockSize, Compression, FailureReason, VolumeName, job::Owner, limits};

/// The head of a record is found in its first bytes: Longhorn writes `Blocks` last but one.
const HEAD_BYTES: u64 = 64 * 1024;
/// And nearly always in the first of these: a dozen labels are 1 KiB. A catalogue reads thousands of them.
const HEAD_BYTES_FIRST: u64 = 8 * 1024;

/// `volume.cfg` and the record to build on.
#[derive(Debug, Clone)]
pub struct Survey {
    pub config: Option<VolumeConfig>,
    pub parent: Option<Parent>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    pub name: BackupName,
    pub block_size: BlockSize,
    pub head: RecordHead,
}

/// Reads both. The parent is the last record, or, if that is gone or was deleted, the newest that can be read.
pub async fn survey(client: &Client, layout: &VolumeLayout, tombstones: &Tombstones) -> Result<Survey, StoreError> {
    let Some(config) = read_config(client, layout).await? else {
        return Ok(Survey { config: None, parent: None });
    };
    let last = match config.last_backup_name.parse() {
        Ok(name) => read_parent(client, layout, name, tombstones).await?,
        Err(_) => None,
    };
    let parent = match last {
        Some(last) => Some(last),
        None => newest_record(client, layout, tombstones).await?,
    };
    Ok(Survey { config: Some(config), parent })
}

/// `volume.cfg`; `None` only if the store said that it is not there.
pub async fn read_config(client: &Client, layout: &VolumeLayout) -> Result<Option<VolumeConfig>, StoreError> {
    let key = layout.config();
    let Some(fetched) = client.get(&key, Range::whole(limits::SMALL_OBJECT_BYTES_MAX)).await? else {
        return Ok(None);
    };
    parse_config(layout, &fetched.bytes).map(Some).map_err(|seen| {
        // Without it nobody knows the method of the blocks that are there, so nothing is made up.
        let seen = format!("{seen}; put a copy of the object back, or move the volume's folder away");
        StoreError::new(ErrorKind::Damaged, "GET", &key, seen)
    })
}

fn parse_config(layout: &VolumeLayout, bytes: &[u8]) -> Result<VolumeConfig, String> {
    let config: VolumeConfig = serde_json::from_slice(bytes).map_err(|e| format!("it is no volume config: {e}"))?;
    config.compression()?;
    match config.name == layout.volume() {
        true => Ok(config),
        false => Err(format!("it calls itself {:?}: another object was put in its place", config.name)),
    }
}

/// A record that is gone, deleted, in progress or damaged is no parent.
async fn read_parent(
    client: &Client,
    layout: &VolumeLayout,
    name: BackupName,
    tombstones: &Tombstones,
) -> Result<Option<Parent>, StoreError> {
    let head = match read_head(client, &layout.backup(&name)).await {
        Ok(head) => head,
        Err(error) if error.kind == ErrorKind::Damaged => {
            tracing::warn!(%error, "The last record is damaged and not built upon");
            None
        }
        Err(error) => return Err(error),
    };
    let is_own = |head: &RecordHead| head.name == name.as_str();
    let head = head.filter(|head| !head.is_in_progress() && is_own(head) && !tombstones.covers(head));
    Ok(head.and_then(|head| Some(Parent { block_size: head.block_size().ok()?, name, head })))
}

async fn newest_record(
    client: &Client,
    layout: &VolumeLayout,
    tombstones: &Tombstones,
) -> Result<Option<Parent>, StoreError> {
    let mut newest: Option<Parent> = None;
    for entry in client.list(&layout.backups()).await? {
        let Some(name) = backup_of_key(&entry.key) else { continue };
        if let Some(parent) = read_parent(client, layout, name, tombstones).await? {
            let is_newer = newest.as_ref().is_none_or(|n| n.head.snapshot_created_at < parent.head.snapshot_created_at);
            newest = if is_newer { Some(parent) } else { newest };
        }
    }
    Ok(newest)
}

/// Everything of a record but its blocks, from its first bytes.
pub async fn read_head(client: &Client, key: &str) -> Result<Option<RecordHead>, StoreError> {
    let damaged = |e: &dyn std::fmt::Display| StoreError::new(ErrorKind::Damaged, "GET", key, e);
    for bytes in [HEAD_BYTES_FIRST, HEAD_BYTES] {
        let Some(fetched) = client.get(key, Range::part(0, bytes)).await? else {
            return Ok(None);
        };
        let blocks = b",\"Blocks\":[";
        let at = fetched.bytes.windows(blocks.len()).position(|w| w == blocks);
        let head = match at {
            Some(at) => [&fetched.bytes[..at], b"}"].concat(),
            None if fetched.meta.size <= bytes => fetched.bytes.to_vec(),
            None => continue,
        };
        return serde_json::from_slice(&head).map(Some).map_err(|e| damaged(&format!("it is no backup config: {e}")));
    }
    Err(damaged(&"its head is longer than 64 KiB"))
}

impl Survey {
    /// The method new blocks must have: the volume's, once it has one.
    pub fn compression(&self, wanted: Compression) -> Compression {
        self.config.as_ref().and_then(|c| c.compression().ok()).unwrap_or(wanted)
    }

    /// The block size: that of the record to build on, once there is one.
    pub fn block_size(&self, wanted: BlockSize) -> BlockSize {
        self.parent.as_ref().map_or(wanted, |p| p.block_size)
    }

    /// Refuses a volume that another cluster or another PVC owns (decisions 9).
    pub fn check_owner(&self, volume: &VolumeName, owner: &Owner) -> Result<(), StoreError> {
        let Some(parent) = &self.parent else { return Ok(()) };
        let theirs = |key| parent.head.label(key).unwrap_or_default();
        let (cluster, namespace) = (theirs(label::CLUSTER), theirs(label::NAMESPACE));
        let is_ours = cluster.is_empty() || (cluster == owner.cluster && namespace == owner.namespace);
        if is_ours || owner.shared_with_clusters {
            return Ok(());
        }
        let seen = format!(
            "its backup {} belongs to cluster {cluster:?}, namespace {namespace:?}; this is cluster {:?}, namespace {:?}. \
             Use another prefix, or set sharedWithClusters on the target if both are the same volume",
            parent.name, owner.cluster, owner.namespace
        );
        Err(StoreError::new(ErrorKind::Refused(FailureReason::VolumeNameInUse), "OPEN", volume, seen))
    }
}

/// P1.6 and P1.8: makes sure that `volume.cfg` is there, with this method and at least this size.
pub async fn ensure_config(
    guard: &Guard,
    survey: &Survey,
    listing: &Listing,
    wanted: &VolumeConfig,
) -> Result<(), StoreError> {
    match &survey.config {
        Some(config) if config.size >= wanted.size => Ok(()),
        Some(_) => raise_size(guard, wanted).await,
        None => create_config(guard, listing, wanted).await,
    }
}

async fn create_config(guard: &Guard, listing: &Listing, wanted: &VolumeConfig) -> Result<(), StoreError> {
    let layout = &guard.holder().layout;
    let key = layout.config();
    let missing = |what: String| {
        let seen = format!(
            "it is missing, yet {what}: the volume is not new. Restore the object, or move the volume's folder away"
        );
        StoreError::new(ErrorKind::Refused(FailureReason::VolumeConfigMissing), "GET", &key, seen)
    };
    let records = guard.client().list(&layout.backups()).await?;
    let is_record = |key: &str| backup_of_key(key).is_some_and(|name| !name.as_str().starts_with("tidemark-"));
    if let Some(record) = records.iter().find(|e| is_record(&e.key)) {
        return Err(missing(format!("{} is there", record.key)));
    }
    let config = read_config(guard.client(), layout).await?;
    if config.is_none() && listing.count() > 0 {
        return Err(missing(format!("{} blocks are there", listing.count())));
    }
    if config.is_none() {
        let created = guard.client().put(&key, Body::Bytes(Bytes::from(wanted.encode())), PutCondition::IfAbsent).await;
        if let Err(error) = created
            && error.kind != ErrorKind::Precondition
        {
            return Err(error);
        }
    }
    check_config(guard, wanted).await
}

/// Read-modify-write: the size is only ever raised, and before the record that needs it (decisions, data path 10c).
async fn raise_size(guard: &Guard, wanted: &VolumeConfig) -> Result<(), StoreError> {
    let layout = &guard.holder().layout;
    let Some(mut config) = read_config(guard.client(), layout).await? else {
        let seen = "it was there a moment ago and is gone";
        return Err(StoreError::new(ErrorKind::GuardLost, "GET", layout.config(), seen));
    };
    config.size = config.size.max(wanted.size);
    let body = Body::Bytes(Bytes::from(config.encode()));
    guard.client().put(&layout.config(), body, PutCondition::Always).await.map(|_| ())
}

/// P3.2: `volume.cfg` has our method and at least our size.
pub async fn check_config(guard: &Guard, wanted: &VolumeConfig) -> Result<(), StoreError> {
    let layout = &guard.holder().layout;
    let found = read_config(guard.client(), layout).await?;
    let fits = found.as_ref().is_some_and(|f| f.compression() == wanted.compression() && f.size >= wanted.size);
    if fits {
        return Ok(());
    }
    let seen = match found {
        None => "it is gone".to_owned(),
        Some(f) => format!(
            "another backup made it with method {} and size {}, we need {} and at least {}",
            f.compression_method, f.size, wanted.compression_method, wanted.size
        ),
    };
    Err(StoreError::new(ErrorKind::GuardLost, "GET", layout.config(), seen))
}

/// P3.7: what `volume.cfg` says after a backup was sealed. `LastBackup…` only moves forward.
pub async fn record_backup(guard: &Guard, done: &RecordHead, new_blocks: u64) -> Result<(), StoreError> {
    let layout = &guard.holder().layout;
    let Some(mut config) = read_config(guard.client(), layout).await? else {
        return Err(StoreError::new(ErrorKind::Damaged, "GET", layout.config(), "it is gone"));
    };
    let at = |text: &str| text.parse::<Timestamp>().unwrap_or(Timestamp::MIN);
    if at(&done.snapshot_created_at) >= at(&config.last_backup_at) {
        config.last_backup_name.clone_from(&done.name);
        config.last_backup_at.clone_from(&done.snapshot_created_at);
        config.labels.clone_from(&done.labels);
    }
    config.block_count = config.block_count.saturating_add(i64::try_from(new_blocks).unwrap_or(i64::MAX));
    let body = Body::Bytes(Bytes::from(config.encode()));
    guard.client().put(&layout.config(), body, PutCondition::Always).await.map(|_| ())
}
