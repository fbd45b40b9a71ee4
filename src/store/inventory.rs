//! Everything below one volume's folder at one moment, by one LIST, without a guard: good for looking, never for receipts.
//!
//! Keys come in the order `backups/`, `blocks/`, `locks/`, `tidemark/`, `volume.cfg`, so records are seen before blocks: a
//! block that a listed record names was there when the record was, and is missing here only if it is gone. Blocks go to
//! a sorted table; the rest is small by nature.

use std::io;

use super::{
    client::Client,
    error::{ErrorKind, StoreError},
    layout::{VolumeLayout, block_of_key},
    objects::{Entry, Meta},
    scratch::{Placed, Scratch, SortedTable},
};
use crate::model::BlockName;

/// Stands for the size of an object in an archive class: it is there and cannot be read.
const ARCHIVED: u32 = u32::MAX;

/// One volume as listed.
#[derive(Debug)]
pub struct Inventory {
    pub config: Option<Meta>,
    /// Records and markers.
    pub configs: Vec<Entry>,
    pub locks: Vec<Entry>,
    /// `attempt.json` and segments of every attempt that left some.
    pub journals: Vec<Entry>,
    blocks: SortedTable,
    /// Bytes of all block objects.
    pub block_bytes: u64,
    /// Objects that are nothing of ours or Longhorn's: temporary files, strangers.
    pub strays: u64,
}

/// A block object as listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedBlock {
    /// Its place in the order of names.
    pub index: u32,
    pub name: BlockName,
    pub size: ListedSize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListedSize {
    Bytes(u32),
    /// In an archive class: listed, but not readable.
    Archived,
}

impl Inventory {
    /// Lists the volume's folder.
    pub async fn read(client: &Client, layout: &VolumeLayout, scratch: &Scratch) -> Result<Self, StoreError> {
        let mut inventory = Self {
            config: None,
            configs: Vec::new(),
            locks: Vec::new(),
            journals: Vec::new(),
            blocks: SortedTable::create(scratch).map_err(scratch_failed)?,
            block_bytes: 0,
            strays: 0,
        };
        client.walk(layout.root(), |entry| inventory.add(layout, entry)).await?;
        inventory.blocks.flush().map_err(scratch_failed)?;
        if inventory.blocks.count() > u64::from(u32::MAX) {
            let seen = format!("it holds {} blocks, more than can be numbered", inventory.blocks.count());
            return Err(StoreError::new(ErrorKind::Damaged, "LIST", layout.root(), seen));
        }
        Ok(inventory)
    }

    fn add(&mut self, layout: &VolumeLayout, entry: Entry) -> Result<(), StoreError> {
        let below = entry.key.strip_prefix(layout.root()).unwrap_or_default();
        let (folder, name) = below.split_once('/').unwrap_or(("", below));
        match folder {
            "backups" if name.ends_with(".cfg") => self.configs.push(entry),
            "blocks" => match block_of_key(&entry.key).filter(|block| layout.block(block) == entry.key) {
                Some(block) => return self.add_block(block, &entry).map_err(scratch_failed),
                None => self.strays += 1,
            },
            "locks" if name.ends_with(".lck") => self.locks.push(entry),
            "tidemark" => self.journals.push(entry),
            "" if name == "volume.cfg" => self.config = Some(entry.meta),
            _ => self.strays += 1,
        }
        Ok(())
    }

    fn add_block(&mut self, name: BlockName, entry: &Entry) -> io::Result<()> {
        self.block_bytes += entry.meta.size;
        let bytes = u32::try_from(entry.meta.size).unwrap_or(ARCHIVED - 1).min(ARCHIVED - 1);
        self.blocks.push(&Placed { name, stored: if entry.is_archived { ARCHIVED } else { bytes } })
    }

    /// Block objects.
    pub fn blocks(&self) -> u64 {
        self.blocks.count()
    }

    pub fn find(&self, name: &BlockName) -> Result<Option<ListedBlock>, StoreError> {
        let found = self.blocks.search(name).map_err(scratch_failed)?;
        Ok(found.map(|(index, placed)| listed(u32::try_from(index).unwrap_or(u32::MAX), placed)))
    }

    /// The block at an index below `blocks`.
    pub fn get(&self, index: u32) -> Result<ListedBlock, StoreError> {
        self.blocks.get(u64::from(index)).map(|placed| listed(index, placed)).map_err(scratch_failed)
    }
}

impl ListedBlock {
    /// Bytes of the object, if it can be read.
    pub fn bytes(&self) -> u64 {
        match self.size {
            ListedSize::Bytes(bytes) => u64::from(bytes),
            ListedSize::Archived => 0,
        }
    }
}

fn listed(index: u32, placed: Placed) -> ListedBlock {
    let size = if placed.stored == ARCHIVED { ListedSize::Archived } else { ListedSize::Bytes(placed.stored) };
    ListedBlock { index, name: placed.name, size }
}

pub(super) fn scratch_failed(error: io::Error) -> StoreError {
    StoreError::new(ErrorKind::Refused(crate::model::FailureReason::ScratchFailed), "SCRATCH", "listing", error)
}
