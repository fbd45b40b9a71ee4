//! A record's blocks as a stream: ranged GETs of the record, one entry after the other, nothing kept.
//!
//! A record of 8 TiB is 450 MB of JSON. Longhorn and we write it compactly and `Blocks` almost last, so entries are cut
//! out by their braces (an entry holds no other brace) and parsed one by one. Every part must come from one and the
//! same object; entries must be aligned and ascend. Where the record carries its own checksum (ours do), the last entry
//! is followed by an end only if every byte of the record fits it.

use std::collections::VecDeque;

use aws_lc_rs::digest::{Context, SHA256};

use super::{
    client::Client,
    error::{ErrorKind, StoreError},
    objects::{Meta, Range},
    record::{BlockEntry, RecordHead, label},
};
use crate::model::BlockSize;

/// Bytes of one ranged GET: 40,000 entries.
const PART_BYTES: u64 = 4 * 1024 * 1024;
/// `Blocks` begins within this many bytes: labels are the only thing before it that may be long.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const BLOCKS: &[u8] = b"\"Blocks\":[";

/// An open record, read part by part.
pub struct Entries {
    client: Client,
    key: String,
    block_bytes: u64,
    part_bytes: u64,
    /// Absent before the first part.
    meta: Option<Meta>,
    offset: u64,
    /// Bytes of an entry that was cut by the end of a part.
    rest: Vec<u8>,
    parsed: VecDeque<BlockEntry>,
    is_at_end: bool,
    /// The least offset the next entry may have.
    floor: u64,
    checksum: Option<Checksum>,
}

/// The record's own checksum, and that of the bytes so far.
struct Checksum {
    expected: Vec<u8>,
    context: Context,
}

impl Checksum {
    /// Begins with the bytes read so far, which hold the whole head. A record of Longhorn's has none.
    fn begin(read: &[u8]) -> Option<Self> {
        let name = format!("\"{}\":\"", label::RECORD_SHA256);
        let digits = read.windows(name.len()).position(|w| w == name.as_bytes())? + name.len();
        let blank = RecordHead::CHECKSUM_BLANK;
        let expected = read.get(digits..digits + blank.len())?.to_vec();
        let mut context = Context::new(&SHA256);
        context.update(&read[..digits]);
        context.update(&blank);
        context.update(&read[digits + blank.len()..]);
        Some(Self { expected, context })
    }

    fn fits(self) -> Result<(), String> {
        let seen = hex::encode(self.context.finish().as_ref());
        match seen.as_bytes() == self.expected {
            true => Ok(()),
            false => {
                let expected = String::from_utf8_lossy(&self.expected).into_owned();
                Err(format!(
                    "its bytes have the checksum {seen}, it says {expected}: they were changed since it was written"
                ))
            }
        }
    }
}

impl Entries {
    /// Finds where the blocks begin.
    pub async fn open(client: Client, key: &str, block_size: BlockSize) -> Result<Self, StoreError> {
        Self::open_with(client, key, block_size, PART_BYTES).await
    }

    async fn open_with(client: Client, key: &str, block_size: BlockSize, part_bytes: u64) -> Result<Self, StoreError> {
        let mut entries = Self {
            client,
            key: key.to_owned(),
            block_bytes: block_size.bytes(),
            part_bytes,
            meta: None,
            offset: 0,
            rest: Vec::new(),
            parsed: VecDeque::new(),
            is_at_end: false,
            floor: 0,
            checksum: None,
        };
        loop {
            let is_last = !entries.read_part().await?;
            if let Some(at) = entries.rest.windows(BLOCKS.len()).position(|w| w == BLOCKS) {
                entries.checksum = Checksum::begin(&entries.rest);
                entries.rest.drain(..at + BLOCKS.len());
                break;
            }
            // A record without the word has no blocks: the volume was empty. One that has it in another spelling was
            // not written by a program we know.
            if is_last && !entries.rest.windows(8).any(|w| w == b"\"Blocks\"") {
                let parsed = serde_json::from_slice::<serde::de::IgnoredAny>(&entries.rest);
                parsed.map_err(|error| entries.damaged(format!("it is no backup config: {error}")))?;
                entries.checksum = Checksum::begin(&entries.rest);
                entries.rest.clear();
                entries.is_at_end = true;
                break;
            }
            if is_last || entries.rest.len() > HEAD_BYTES_MAX {
                return Err(entries.damaged("its list of blocks is not where Longhorn writes it"));
            }
        }
        Ok(entries)
    }

    /// The next block, in offset order.
    pub async fn next(&mut self) -> Result<Option<BlockEntry>, StoreError> {
        loop {
            if let Some(entry) = self.parsed.pop_front() {
                return Ok(Some(entry));
            }
            if self.is_at_end {
                self.finish().await?;
                return Ok(None);
            }
            self.parse()?;
            if self.parsed.is_empty() && !self.is_at_end && !self.read_part().await? {
                return Err(self.damaged("it ends within its list of blocks"));
            }
        }
    }

    /// What follows the last block, and the checksum of all.
    async fn finish(&mut self) -> Result<(), StoreError> {
        if self.checksum.is_none() {
            return Ok(());
        }
        while self.read_part().await? {
            self.rest.clear();
        }
        let checksum = self.checksum.take().map_or(Ok(()), Checksum::fits);
        checksum.map_err(|seen| self.damaged(seen))
    }

    /// Appends the next part to `rest`; `false` if there was none.
    async fn read_part(&mut self) -> Result<bool, StoreError> {
        if self.meta.as_ref().is_some_and(|meta| self.offset >= meta.size) {
            return Ok(false);
        }
        let wanted = match &self.meta {
            Some(meta) => self.part_bytes.min(meta.size - self.offset),
            None => self.part_bytes,
        };
        let fetched = self.client.get(&self.key, Range::part(self.offset, wanted)).await?;
        let fetched = fetched.ok_or_else(|| self.damaged("it was there a moment ago and is gone"))?;
        if self.meta.as_ref().is_some_and(|meta| meta.size != fetched.meta.size || meta.etag != fetched.meta.etag) {
            return Err(self.damaged("it was replaced while it was read"));
        }
        if fetched.bytes.is_empty() {
            return Err(self.damaged("it is empty where its size says it is not"));
        }
        self.offset += fetched.bytes.len() as u64;
        self.rest.extend_from_slice(&fetched.bytes);
        if let Some(checksum) = &mut self.checksum {
            checksum.context.update(&fetched.bytes);
        }
        self.meta = Some(fetched.meta);
        Ok(true)
    }

    /// Moves every whole entry of `rest` to `parsed`.
    fn parse(&mut self) -> Result<(), StoreError> {
        let mut at = 0;
        loop {
            match self.rest[at..].iter().position(|b| !matches!(b, b',' | b' ' | b'\n' | b'\r' | b'\t')) {
                None => break at = self.rest.len(),
                Some(skipped) => at += skipped,
            }
            match self.rest[at] {
                b']' => {
                    self.is_at_end = true;
                    break;
                }
                b'{' => {}
                other => return Err(self.damaged(format!("byte {other:#04x} stands between two of its blocks"))),
            }
            let Some(length) = self.rest[at..].iter().position(|&b| b == b'}') else { break };
            let entry = serde_json::from_slice(&self.rest[at..=at + length]);
            let entry: BlockEntry = entry.map_err(|error| self.damaged(format!("one of its blocks: {error}")))?;
            self.check(&entry)?;
            self.parsed.push_back(entry);
            at += length + 1;
        }
        self.rest.drain(..at);
        Ok(())
    }

    fn check(&mut self, entry: &BlockEntry) -> Result<(), StoreError> {
        if !entry.offset.is_multiple_of(self.block_bytes) {
            let seen = format!("block at offset {} is not aligned to {}", entry.offset, self.block_bytes);
            return Err(self.damaged(seen));
        }
        if entry.offset < self.floor {
            return Err(self.damaged(format!("block at offset {} is out of order", entry.offset)));
        }
        self.floor = entry.offset.saturating_add(self.block_bytes);
        Ok(())
    }

    fn damaged(&self, seen: impl std::fmt::Display) -> StoreError {
        StoreError::new(ErrorKind::Damaged, "GET", &self.key, seen)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::store::directory::Directory;

    const RECORD: &str = include_str!("testdata/backup_backup-demo1.cfg");

    async fn read(text: &str, part_bytes: u64) -> Result<Vec<BlockEntry>, StoreError> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("record"), text).expect("written");
        let objects = Directory::open(folder.path()).expect("a folder");
        let client = Client::new(Arc::new(objects), Duration::from_secs(5), Duration::from_secs(5));
        let mut entries = Entries::open_with(client, "record", BlockSize::Mi2, part_bytes).await?;
        let mut all = Vec::new();
        while let Some(entry) = entries.next().await? {
            all.push(entry);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn a_record_is_read_the_same_in_parts_of_any_size() {
        let whole = crate::store::record::Record::parse(RECORD.as_bytes()).expect("Longhorn's own").blocks;
        for part_bytes in [1, 2, 7, 109, 110, 500, 1 << 20] {
            assert_eq!(read(RECORD, part_bytes).await, Ok(whole.clone()), "parts of {part_bytes}");
        }
    }

    #[tokio::test]
    async fn law_7_a_record_that_is_cut_or_disordered_is_an_error() {
        let blocks = RECORD.find("\"Blocks\"").expect("it has blocks");
        let end = RECORD.rfind(']').expect("it has an end");
        for cut in (blocks..end).step_by(13) {
            let seen = read(&RECORD[..cut], 64).await;
            assert!(seen.is_err(), "cut at {cut}: {seen:?}");
        }
        for (what, text) in [
            ("out of order", RECORD.replace("\"Offset\":2097152,", "\"Offset\":65011712,")),
            ("not aligned", RECORD.replace("\"Offset\":2097152,", "\"Offset\":2097153,")),
            ("between two", RECORD.replace("},{", "}x{")),
            ("not where", RECORD.replace("\"Blocks\":[", "\"Blocks\" : [")),
        ] {
            let error = read(&text, 64).await.expect_err(what).to_string();
            assert!(error.contains(what), "{what}: {error}");
        }
    }

    /// A record of ours: the checksum stands in a label.
    fn checked() -> String {
        let record = crate::store::record::Record::parse(RECORD.as_bytes()).expect("Longhorn's own");
        let write = |digits: &str| {
            let (mut head, mut out) = (record.head.clone(), Vec::new());
            head.set_checksum(digits);
            head.write_to(record.blocks.iter().copied().map(Ok), &mut out).expect("a Vec");
            out
        };
        let sum = aws_lc_rs::digest::digest(&SHA256, &write(&"0".repeat(64)));
        String::from_utf8(write(&hex::encode(sum.as_ref()))).expect("JSON")
    }

    #[tokio::test]
    async fn law_7_a_record_that_carries_its_checksum_is_believed_only_whole() {
        let (text, whole) = (checked(), read(RECORD, 64).await.expect("Longhorn's own"));
        for part_bytes in [7, 500, 1 << 20] {
            assert_eq!(read(&text, part_bytes).await, Ok(whole.clone()), "parts of {part_bytes}");
        }
        for (what, changed) in [
            ("a time", text.replace("\"CreatedTime\":\"2026", "\"CreatedTime\":\"2025")),
            ("a digit of a block", text.replacen("\"BlockChecksum\":\"0", "\"BlockChecksum\":\"1", 1)),
            ("what follows the blocks", text.replace("\"FilePath\":\"\"", "\"FilePath\":\"x\"")),
            ("its length", format!("{text} ")),
        ] {
            if changed != text {
                let error = read(&changed, 64).await.expect_err(what).to_string();
                assert!(error.contains("were changed since it was written"), "{what}: {error}");
            }
        }
    }

    #[tokio::test]
    async fn a_record_without_blocks_is_an_empty_volume() {
        assert_eq!(read("{\"Name\":\"b1\",\"SingleFile\":{\"FilePath\":\"\"}}", 8).await, Ok(vec![]));
    }
}
