//! Records: first their heads, then, streamed, each of their blocks beside the listing.
//!
//! A record is accused only after it was seen to be still there: blocks of a record that somebody deletes go with it.

use std::collections::HashMap;

use super::{Check, FindingKind, Findings, Group, Place};
use crate::{
    model::{BackupName, BlockSize, Compression, block},
    store::{
        error::{ErrorKind, StoreError},
        inventory::ListedSize,
        layout::backup_of_key,
        objects::Entry,
        record::{BlockEntry, RecordHead, RecordId, label},
        record_reader::RecordReader,
        scratch::Bitmap,
        survey,
    },
};

/// A complete record whose head is as it should be.
pub(super) struct Sound {
    name: BackupName,
    key: String,
    block_size: BlockSize,
    compression: Compression,
    group: usize,
    /// Where the volume ends, if anything says so.
    volume_bytes: Option<u64>,
    /// By `Size` of the head.
    blocks: i64,
}

/// Which walk over a record it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walk {
    /// Against the listing.
    Listed,
    /// Against what was read.
    Read,
}

impl Check<'_> {
    /// Looks at every config of the volume, or at the one that was ordered.
    pub(super) async fn heads(&mut self) -> Result<Vec<Sound>, StoreError> {
        let mut entries = std::mem::take(&mut self.inventory.configs);
        if let Some(wanted) = self.order.backup.clone() {
            let key = self.layout.backup(&wanted);
            entries.retain(|entry| entry.key == key);
            if entries.is_empty() {
                self.add(FindingKind::RecordMissing, &key, "it is not in the store; `tidemark ls` shows what is");
            }
        } else {
            self.check_last_backup(&entries).await?;
        }
        let mut sound = Vec::new();
        for entry in &entries {
            let Some(name) = backup_of_key(&entry.key) else {
                self.done.strays += 1;
                continue;
            };
            let is_marker = name.as_str().starts_with(BackupName::MARKER);
            let unreadable = if is_marker { FindingKind::MarkerDamaged } else { FindingKind::RecordUnreadable };
            match survey::read_head(self.client, &entry.key).await {
                Ok(Some(head)) => sound.extend(self.judge(name, entry, &head)),
                Ok(None) => self.done.deleted_meanwhile += 1,
                Err(error) if error.kind == ErrorKind::Damaged => match self.is_there(&entry.key).await? {
                    true => self.add(unreadable, &entry.key, &error.seen),
                    false => self.done.deleted_meanwhile += 1,
                },
                Err(error) => return Err(error),
            }
        }
        self.inventory.configs = entries;
        Ok(sound)
    }

    /// What a head says, compared with its key and with itself.
    fn judge(&mut self, name: BackupName, entry: &Entry, head: &RecordHead) -> Option<Sound> {
        let key = &entry.key;
        let is_marker = name.as_str().starts_with(BackupName::MARKER);
        let bad = if is_marker { FindingKind::MarkerDamaged } else { FindingKind::RecordInconsistent };
        let id = RecordId { volume: self.order.volume.clone(), backup: name };
        if let Err(seen) = head.check_is(&id) {
            self.add(bad, key, seen);
            return None;
        }
        if head.is_in_progress() {
            // Not a finding: it runs, or a retry or the janitor will come to it. A marker of ours says that it is one.
            self.done.in_progress += 1;
            if is_marker && head.label(label::MARKER).is_none() {
                self.add(bad, key, "it does not say that it is a marker of Tidemark");
            } else if !is_marker && head.size != 0 {
                self.add(bad, key, "it has no CreatedTime, as one in progress, yet a Size, as a complete one");
            } else if self.order.backup.is_some() {
                self.add(bad, key, "it marks a backup in progress, or one that never ended");
            }
            return None;
        }
        let read = (head.block_size(), head.compression());
        let (block_size, compression) = match read {
            (Ok(block_size), Ok(compression)) => (block_size, compression),
            (Err(seen), _) | (_, Err(seen)) => {
                self.add(bad, key, seen);
                return None;
            }
        };
        if is_marker {
            self.add(bad, key, "it is no marker but a complete record under a marker's name");
            return None;
        }
        let volume_bytes = head.volume_bytes().or_else(|| u64::try_from(self.config.as_ref()?.size).ok());
        Some(Sound {
            name: id.backup,
            key: key.clone(),
            block_size,
            compression,
            group: self.group(block_size, compression),
            volume_bytes,
            blocks: head.size / i64::try_from(block_size.bytes()).unwrap_or(i64::MAX),
        })
    }

    fn group(&mut self, block_size: BlockSize, compression: Compression) -> usize {
        let is_plain = compression == Compression::None;
        let found = self.groups.iter().position(|g| g.block_size == block_size && g.is_plain == is_plain);
        found.unwrap_or_else(|| {
            let none = Bitmap::new(self.inventory.blocks());
            let group = Group { block_size, is_plain, named: none.clone(), bad: none, seen: HashMap::new() };
            self.groups.push(group);
            self.groups.len() - 1
        })
    }

    /// Walks every record beside the listing. What comes back can be walked again.
    pub(super) async fn compare(&mut self, sound: Vec<Sound>) -> Result<Vec<Sound>, StoreError> {
        let mut walked = Vec::with_capacity(sound.len());
        for record in sound {
            if self.order.backup.is_some() {
                let blocks = record.volume_bytes.map_or(0, |bytes| record.block_size.count(bytes));
                self.done.bad = Bitmap::new(blocks.min(crate::model::limits::VOLUME_BLOCKS_MAX));
            }
            let found = self.walk(&record, Walk::Listed).await?;
            if self.take(&record, found).await? {
                self.done.records += 1;
                walked.push(record);
            }
            self.report();
        }
        Ok(walked)
    }

    /// Walks a record again, for the blocks that were read and found bad.
    pub(super) async fn recall(&mut self, record: &Sound) -> Result<(), StoreError> {
        let found = self.walk(record, Walk::Read).await?;
        if !self.take(record, found).await? {
            self.done.records -= 1;
        }
        Ok(())
    }

    /// Believes what was found of a record if it is still there. `false`: it was deleted meanwhile.
    async fn take(&mut self, record: &Sound, found: Findings) -> Result<bool, StoreError> {
        if found.is_empty() {
            return Ok(true);
        }
        let is_there = self.is_there(&record.key).await?;
        match is_there {
            true => self.done.findings.merge(found),
            false => self.done.deleted_meanwhile += 1,
        }
        Ok(is_there)
    }

    pub(super) async fn is_there(&mut self, key: &str) -> Result<bool, StoreError> {
        Ok(self.client.head(key).await?.is_some())
    }

    async fn walk(&mut self, record: &Sound, walk: Walk) -> Result<Findings, StoreError> {
        let mut found = Findings::default();
        match self.walk_entries(record, walk, &mut found).await {
            Ok(()) => Ok(found),
            Err(error) if error.kind == ErrorKind::Damaged => {
                // The walk before has told it.
                if walk == Walk::Listed {
                    found.add(FindingKind::RecordUnreadable, &record.key, &error.seen, None);
                }
                Ok(found)
            }
            Err(error) => Err(error),
        }
    }

    async fn walk_entries(&mut self, record: &Sound, walk: Walk, found: &mut Findings) -> Result<(), StoreError> {
        let mut entries = RecordReader::open(self.client.clone(), &record.key, record.block_size).await?;
        let mut count = 0;
        while let Some(entry) = entries.next().await? {
            count += 1;
            match walk {
                Walk::Listed => self.look(record, &entry, found)?,
                Walk::Read => self.remember(record, &entry, found)?,
            }
        }
        if walk == Walk::Read {
            return Ok(());
        }
        self.done.blocks_named += u64::try_from(count).unwrap_or(0);
        if count != record.blocks {
            let seen = format!("its Size stands for {} blocks, and it names {count}", record.blocks);
            found.add(FindingKind::RecordInconsistent, &record.key, seen, None);
        }
        Ok(())
    }

    /// One block of a record beside the listing.
    fn look(&mut self, record: &Sound, entry: &BlockEntry, found: &mut Findings) -> Result<(), StoreError> {
        if record.volume_bytes.is_some_and(|bytes| entry.offset >= bytes) {
            let bytes = record.volume_bytes.unwrap_or_default();
            let seen = format!("its block at offset {} lies outside the volume of {bytes} bytes", entry.offset);
            found.add(FindingKind::RecordInconsistent, &record.key, seen, None);
        }
        let listed = self.inventory.find(&entry.block_checksum)?;
        let (kind, seen) = match listed.map(|block| (block.index, block.size)) {
            None => (FindingKind::BlockMissing, "it is not in the store".to_owned()),
            Some((_, ListedSize::Archived)) => {
                (FindingKind::BlockUnreadable, "it is in an archive class and cannot be read".to_owned())
            }
            Some((index, ListedSize::Bytes(bytes))) => {
                if block::is_plausible(u64::from(bytes), record.block_size, record.compression) {
                    self.groups[record.group].named.insert(index);
                    return Ok(());
                }
                let (size, method) = (record.block_size.bytes(), record.compression);
                let seen = format!("it is {bytes} bytes, which cannot be a block of {size} bytes stored as {method}");
                (FindingKind::BlockSizeImplausible, seen)
            }
        };
        self.accuse(record, entry, (kind, &seen), found);
        Ok(())
    }

    /// One block of a record beside what was read.
    fn remember(&mut self, record: &Sound, entry: &BlockEntry, found: &mut Findings) -> Result<(), StoreError> {
        let Some(listed) = self.inventory.find(&entry.block_checksum)? else { return Ok(()) };
        let group = &self.groups[record.group];
        if !group.bad.contains(listed.index) {
            return Ok(());
        }
        let unlisted = (FindingKind::BlockCorrupt, "it was read and is not the block it is named after".to_owned());
        let (kind, seen) = group.seen.get(&listed.index).unwrap_or(&unlisted).clone();
        self.accuse(record, entry, (kind, &seen), found);
        Ok(())
    }

    fn accuse(&mut self, record: &Sound, entry: &BlockEntry, what: (FindingKind, &str), found: &mut Findings) {
        let place = Place { backup: record.name.clone(), offset: entry.offset };
        found.add(what.0, &self.layout.block(&entry.block_checksum), what.1, Some(place));
        let ordinal = entry.offset / record.block_size.bytes();
        let blocks = record.volume_bytes.map_or(0, |bytes| record.block_size.count(bytes));
        if let (true, Ok(ordinal)) = (self.order.backup.is_some() && ordinal < blocks, u32::try_from(ordinal)) {
            self.done.bad.insert(ordinal);
        }
    }
}
