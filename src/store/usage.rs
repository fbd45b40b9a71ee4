//! How much each backup of a volume takes, and what deleting it would free: one listing, and every record streamed.
//!
//! A block belongs to a backup alone if no other record names it. Memory: three bitmaps of the listing's length; the first
//! owner of each block is in scratch. While a record cannot be read nobody knows what is unreferenced, and nobody says.

use std::{fs::File, io, os::unix::fs::FileExt};

use serde::Serialize;

use super::{
    client::Client,
    error::{ErrorKind, StoreError},
    inventory::{Inventory, scratch_failed},
    layout::{VolumeLayout, backup_of_key},
    record::RecordId,
    record_reader::RecordReader,
    scratch::{Bitmap, Scratch},
    survey,
};
use crate::model::{BackupName, VolumeName};

/// What one volume takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    pub volume: VolumeName,
    /// Oldest first.
    pub backups: Vec<BackupUsage>,
    pub in_progress: u64,
    /// Records that cannot be read, with what was seen.
    pub unreadable: Vec<Unreadable>,
    pub block_objects: u64,
    pub stored_bytes: u64,
    /// Of blocks that no record names; absent while a record cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreferenced_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupUsage {
    pub backup: BackupName,
    pub snapshot_created_at: String,
    /// Bytes of the blocks it names, uncompressed.
    pub logical_bytes: u64,
    /// Bytes of their objects, each once.
    pub stored_bytes: u64,
    /// Of those that no other record names: what deleting this backup alone would free.
    pub unique_bytes: u64,
    /// Blocks it names that the store does not hold; `tidemark verify` names them.
    #[serde(skip_serializing_if = "is_zero")]
    pub missing_blocks: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    pub object: String,
    pub seen: String,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Which record named a block first, by index.
struct Owners(File);

impl Owners {
    fn set(&self, index: u32, owner: u32) -> io::Result<()> {
        self.0.write_all_at(&owner.to_le_bytes(), u64::from(index) * 4)
    }

    fn get(&self, index: u32) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.0.read_exact_at(&mut bytes, u64::from(index) * 4)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// What the records name so far.
struct Tally {
    inventory: Inventory,
    named: Bitmap,
    /// By more than one record.
    shared: Bitmap,
    owners: Owners,
}

/// Looks at one volume.
pub async fn usage(client: &Client, volume: &VolumeName, scratch: &Scratch) -> Result<Usage, StoreError> {
    let layout = VolumeLayout::new(volume);
    let inventory = Inventory::read(client, &layout, scratch).await?;
    let none = Bitmap::new(inventory.blocks());
    let mut usage = Usage {
        volume: volume.clone(),
        backups: Vec::new(),
        in_progress: 0,
        unreadable: Vec::new(),
        block_objects: inventory.blocks(),
        stored_bytes: inventory.block_bytes,
        unreferenced_bytes: None,
    };
    let keys: Vec<String> = inventory.configs.iter().map(|entry| entry.key.clone()).collect();
    let owners = Owners(scratch.file().map_err(scratch_failed)?);
    let mut tally = Tally { inventory, named: none.clone(), shared: none, owners };
    for key in keys {
        let Some(backup) = backup_of_key(&key) else { continue };
        let owner = u32::try_from(usage.backups.len()).unwrap_or(u32::MAX);
        match tally.record(client, &RecordId { volume: volume.clone(), backup }, (&key, owner)).await {
            Ok(Some(Counted::Complete(counted))) => usage.backups.push(counted),
            Ok(Some(Counted::InProgress)) => usage.in_progress += 1,
            // Deleted meanwhile.
            Ok(None) => {}
            Err(error) if error.kind == ErrorKind::Damaged => {
                usage.unreadable.push(Unreadable { object: key, seen: error.seen });
            }
            Err(error) => return Err(error),
        }
    }
    let unreferenced = tally.share_out(&mut usage.backups)?;
    usage.unreferenced_bytes = usage.unreadable.is_empty().then_some(unreferenced);
    usage.backups.sort_by(|a, b| a.snapshot_created_at.cmp(&b.snapshot_created_at));
    Ok(usage)
}

enum Counted {
    Complete(BackupUsage),
    InProgress,
}

impl Tally {
    async fn record(
        &mut self,
        client: &Client,
        id: &RecordId,
        (key, owner): (&str, u32),
    ) -> Result<Option<Counted>, StoreError> {
        let damaged = |seen: String| StoreError::new(ErrorKind::Damaged, "GET", key, seen);
        let Some(head) = survey::read_head(client, key).await? else { return Ok(None) };
        head.check_is(id).map_err(damaged)?;
        if head.is_in_progress() {
            return Ok(Some(Counted::InProgress));
        }
        let block_size = head.block_size().map_err(damaged)?;
        let mut counted = BackupUsage {
            backup: id.backup.clone(),
            snapshot_created_at: head.snapshot_created_at,
            logical_bytes: 0,
            stored_bytes: 0,
            unique_bytes: 0,
            missing_blocks: 0,
        };
        let mut own = Bitmap::new(self.inventory.blocks());
        let mut entries = RecordReader::open(client.clone(), key, block_size).await?;
        while let Some(entry) = entries.next().await? {
            counted.logical_bytes += block_size.bytes();
            let Some(block) = self.inventory.find(&entry.block_checksum)? else {
                counted.missing_blocks += 1;
                continue;
            };
            if !own.insert(block.index) {
                continue;
            }
            counted.stored_bytes += block.bytes();
            match self.named.insert(block.index) {
                true => self.owners.set(block.index, owner).map_err(scratch_failed)?,
                false => _ = self.shared.insert(block.index),
            }
        }
        Ok(Some(Counted::Complete(counted)))
    }

    /// Gives each block that one record alone names to it. The answer is what no record names.
    fn share_out(&self, backups: &mut [BackupUsage]) -> Result<u64, StoreError> {
        let mut unreferenced = 0;
        for index in 0..u32::try_from(self.inventory.blocks()).unwrap_or(u32::MAX) {
            let bytes = self.inventory.get(index)?.bytes();
            match (self.named.contains(index), self.shared.contains(index)) {
                (false, _) => unreferenced += bytes,
                (true, true) => {}
                (true, false) => {
                    let owner = self.owners.get(index).map_err(scratch_failed)? as usize;
                    // A record that turned out unreadable half-way owns nothing that is told.
                    if let Some(backup) = backups.get_mut(owner) {
                        backup.unique_bytes += bytes;
                    }
                }
            }
        }
        Ok(unreferenced)
    }
}
