//! A record from its first byte to its last, never whole in memory: ranged GETs, one block after the other, and at the end
//! the proof that all of it was a record.
//!
//! A record of 8 TiB is 450 MB of JSON. Longhorn and we write it compactly, so its blocks are cut out by their braces (an
//! entry holds no other brace). What stands before and after them is kept (labels are the only thing there that may be
//! long) and parsed with `null` in their place: a record that was cut, joined or nested in an odd way does not parse.

use std::collections::VecDeque;

use serde::Deserialize;

use super::{
    client::Client,
    error::{ErrorKind, StoreError},
    objects::{Entry, Meta, Range},
    record::{BlockEntry, Record, RecordHead},
};
use crate::model::BlockSize;

/// Bytes of one ranged GET: 40,000 entries.
const PART_BYTES: u64 = 4 * 1024 * 1024;
/// What stands before the blocks, and again what stands after them, is at most so long.
const AROUND_BYTES_MAX: usize = 64 * 1024;
const BLOCKS: &[u8] = b"\"Blocks\":[";

/// A record that is being read.
pub struct RecordReader<'a> {
    client: &'a Client,
    key: &'a str,
    listed_size: u64,
    part_bytes: u64,
    /// Of the first part; every other must be of the same object.
    meta: Option<Meta>,
    offset: u64,
    /// Everything before the blocks' bracket.
    before: Vec<u8>,
    /// Bytes not parsed yet.
    rest: Vec<u8>,
    parsed: VecDeque<BlockEntry>,
    is_after_blocks: bool,
    head: RecordHead,
    block_size: BlockSize,
    /// The least offset the next entry may have.
    floor: u64,
}

/// All of a record but its entries: `Blocks` was replaced by `null`, and a second one is a duplicate field.
#[derive(Deserialize)]
struct Around {
    #[serde(flatten)]
    head: RecordHead,
    #[serde(rename = "Blocks", default)]
    _blocks: Option<serde::de::IgnoredAny>,
}

impl<'a> RecordReader<'a> {
    /// Reads up to the first block. `Damaged`: it is no record, or no longer the one that was listed.
    pub async fn open(client: &'a Client, listed: &'a Entry) -> Result<Self, StoreError> {
        Self::open_with(client, listed, PART_BYTES).await
    }

    async fn open_with(client: &'a Client, listed: &'a Entry, part_bytes: u64) -> Result<Self, StoreError> {
        let mut reader = Self {
            client,
            key: &listed.key,
            listed_size: listed.meta.size,
            part_bytes,
            meta: None,
            offset: 0,
            before: Vec::new(),
            rest: Vec::new(),
            parsed: VecDeque::new(),
            is_after_blocks: false,
            head: RecordHead::default(),
            block_size: BlockSize::Mi2,
            floor: 0,
        };
        if listed.is_archived {
            return Err(reader.damaged("it lies in an archive class and cannot be read: restore it to a readable one"));
        }
        if listed.meta.size == 0 {
            return Err(reader.damaged("it is empty"));
        }
        loop {
            let is_last = !reader.read_part().await?;
            if let Some(at) = reader.rest.windows(BLOCKS.len()).position(|w| w == BLOCKS) {
                reader.before = reader.rest.drain(..at + BLOCKS.len()).collect();
                reader.before.truncate(at + BLOCKS.len() - 1);
                break;
            }
            if is_last {
                reader.take_whole()?;
                return Ok(reader);
            }
            if reader.rest.len() > AROUND_BYTES_MAX {
                return Err(reader.damaged("its list of blocks is not where Longhorn writes it"));
            }
        }
        let around = [reader.before.as_slice(), b"null}"].concat();
        reader.head = reader.parse_around(&around)?;
        reader.block_size = reader.head.block_size().map_err(|seen| reader.damaged(seen))?;
        Ok(reader)
    }

    /// A small record in another spelling, or without blocks.
    fn take_whole(&mut self) -> Result<(), StoreError> {
        let record = Record::parse(&self.rest).map_err(|seen| self.damaged(seen))?;
        self.head = record.head;
        self.parsed = record.blocks.into();
        self.rest.clear();
        self.is_after_blocks = true;
        Ok(())
    }

    /// Everything that stands before the blocks; the rest may still be missing until `finish`.
    pub fn head(&self) -> &RecordHead {
        &self.head
    }

    /// The next block, in offset order.
    pub async fn next(&mut self) -> Result<Option<BlockEntry>, StoreError> {
        loop {
            if let Some(entry) = self.parsed.pop_front() {
                return Ok(Some(entry));
            }
            if self.is_after_blocks {
                return Ok(None);
            }
            self.parse()?;
            if self.parsed.is_empty() && !self.is_after_blocks && !self.read_part().await? {
                return Err(self.damaged("it ends within its list of blocks"));
            }
        }
    }

    /// After the last block: the record was whole. Its head, complete.
    pub async fn finish(mut self) -> Result<RecordHead, StoreError> {
        while self.read_part().await? {
            if self.rest.len() > AROUND_BYTES_MAX {
                return Err(self.damaged("more stands behind its blocks than Longhorn writes"));
            }
        }
        if self.before.is_empty() {
            return Ok(self.head);
        }
        let around = [self.before.as_slice(), b"null", self.rest.as_slice()].concat();
        let head = self.parse_around(&around)?;
        let is_same = (&head.labels, &head.created_time, &head.parameters)
            == (&self.head.labels, &self.head.created_time, &self.head.parameters);
        match is_same {
            true => Ok(head),
            false => Err(self.damaged("labels, time or parameters stand behind its blocks")),
        }
    }

    fn parse_around(&self, around: &[u8]) -> Result<RecordHead, StoreError> {
        let around: Result<Around, _> = serde_json::from_slice(around);
        around.map(|a| a.head).map_err(|error| self.damaged(format!("it is no backup config: {error}")))
    }

    /// Appends the next part to `rest`; `false` if there was none.
    async fn read_part(&mut self) -> Result<bool, StoreError> {
        if self.offset >= self.listed_size {
            return Ok(false);
        }
        let wanted = self.part_bytes.min(self.listed_size - self.offset);
        let fetched = self.client.get(self.key, Range::part(self.offset, wanted)).await?;
        let fetched = fetched.ok_or_else(|| self.damaged("it was there a moment ago and is gone"))?;
        let is_first = |meta: &Meta| meta.etag == fetched.meta.etag;
        if fetched.meta.size != self.listed_size || !self.meta.as_ref().is_none_or(is_first) {
            return Err(self.damaged("it was replaced while it was read"));
        }
        if fetched.bytes.is_empty() {
            return Err(self.damaged("it is empty where its size says it is not"));
        }
        self.offset += fetched.bytes.len() as u64;
        self.rest.extend_from_slice(&fetched.bytes);
        self.meta = Some(fetched.meta);
        Ok(true)
    }

    /// Moves every whole entry of `rest` to `parsed`.
    fn parse(&mut self) -> Result<(), StoreError> {
        let mut at = 0;
        let mut is_separated = self.floor == 0;
        while let Some(&byte) = self.rest.get(at) {
            match byte {
                b',' => {
                    is_separated = true;
                    at += 1;
                    continue;
                }
                b' ' | b'\n' | b'\r' | b'\t' => {
                    at += 1;
                    continue;
                }
                b']' => {
                    self.is_after_blocks = true;
                    at += 1;
                    break;
                }
                b'{' if is_separated => {}
                b'{' => return Err(self.damaged("no comma stands between two of its blocks")),
                other => return Err(self.damaged(format!("byte {other:#04x} stands between two of its blocks"))),
            }
            let Some(length) = self.rest[at..].iter().position(|&b| b == b'}') else { break };
            let entry = serde_json::from_slice(&self.rest[at..=at + length]);
            let entry: BlockEntry = entry.map_err(|error| self.damaged(format!("one of its blocks: {error}")))?;
            self.check(&entry)?;
            self.parsed.push_back(entry);
            is_separated = false;
            at += length + 1;
        }
        // A comma that was read belongs to the entry that is still to come.
        let is_cut = !self.is_after_blocks && is_separated && self.floor > 0;
        self.rest.drain(..at);
        if is_cut {
            self.rest.insert(0, b',');
        }
        Ok(())
    }

    fn check(&mut self, entry: &BlockEntry) -> Result<(), StoreError> {
        let size = self.block_size.bytes();
        if !entry.offset.is_multiple_of(size) {
            return Err(self.damaged(format!("block at offset {} is not aligned to {size}", entry.offset)));
        }
        if entry.offset < self.floor {
            return Err(self.damaged(format!("block at offset {} is out of order", entry.offset)));
        }
        self.floor = entry.offset.saturating_add(size);
        Ok(())
    }

    fn damaged(&self, seen: impl std::fmt::Display) -> StoreError {
        StoreError::new(ErrorKind::Damaged, "GET", self.key, seen)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::store::{directory::Directory, objects::Objects};

    const RECORD: &str = include_str!("testdata/backup_backup-demo1.cfg");

    async fn read(text: &str, part_bytes: u64) -> Result<(RecordHead, Vec<BlockEntry>), StoreError> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("record"), text).expect("written");
        let objects = Arc::new(Directory::open(folder.path()).expect("a folder"));
        let listed = objects.list("record", None).await.expect("listed").entries.remove(0);
        let client = Client::new(objects, Duration::from_secs(5), Duration::from_secs(5));
        let mut reader = RecordReader::open_with(&client, &listed, part_bytes).await?;
        let mut all = Vec::new();
        while let Some(entry) = reader.next().await? {
            all.push(entry);
        }
        Ok((reader.finish().await?, all))
    }

    #[tokio::test]
    async fn a_record_is_read_the_same_in_parts_of_any_size() {
        let whole = Record::parse(RECORD.as_bytes()).expect("Longhorn's own");
        for part_bytes in [1, 2, 7, 109, 110, 500, 1 << 20] {
            let read = read(RECORD, part_bytes).await;
            assert_eq!(read, Ok((whole.head.clone(), whole.blocks.clone())), "parts of {part_bytes}");
        }
    }

    #[tokio::test]
    async fn other_spellings_of_small_records_are_read() {
        let spaced = RECORD.replace("\"Blocks\":[", "\"Blocks\" : [");
        assert_eq!(read(&spaced, 1 << 20).await.expect("JSON").1.len(), 11);
        for empty in [r#"{"Name":"b1"}"#, r#"{"Name":"b1","Blocks":null}"#, r#"{"Name":"b1","Blocks":[]}"#] {
            assert_eq!(read(empty, 3).await.expect(empty).1, [], "{empty}");
        }
    }

    #[tokio::test]
    async fn law_7_a_record_that_was_cut_anywhere_is_no_record() {
        for cut in 0..RECORD.len() - 1 {
            let seen = read(&RECORD[..cut], 64).await;
            assert!(seen.is_err_and(|e| e.kind == ErrorKind::Damaged), "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn law_7_a_record_that_was_joined_or_disordered_is_no_record() {
        let list = "\"Blocks\":[";
        let at = RECORD.find(list).expect("it has blocks");
        let (before, after) = RECORD.split_at(at);
        for (what, text) in [
            ("out of order", RECORD.replace("\"Offset\":2097152,", "\"Offset\":65011712,")),
            ("not aligned", RECORD.replace("\"Offset\":2097152,", "\"Offset\":2097153,")),
            ("between two", RECORD.replace("},{", "}x{")),
            ("no comma", RECORD.replace("},{", "}{")),
            ("trailing", format!("{RECORD}{RECORD}")),
            ("EOF", format!("{before}\"Odd\":{{{list}]}},{after}")),
            ("duplicate field", format!("{before}{list}],{after}")),
            ("short hash", RECORD.replace("8353b7391f5f", "")),
        ] {
            for part_bytes in [64, 1 << 20] {
                let error = read(&text, part_bytes).await.err().unwrap_or_else(|| panic!("{what} was taken"));
                assert!(what == "short hash" || error.to_string().contains(what), "{what}: {error}");
            }
        }
    }
}
