//! A record's blocks as a stream: ranged GETs of the record, one entry after the other, nothing kept.
//!
//! A record of 8 TiB is 450 MB of JSON. Longhorn and we write it compactly and `Blocks` almost last, so entries are cut
//! out by their braces (an entry holds no other brace) and parsed one by one. Every part must come from one and the
//! same object; entries must be aligned and ascend. A part that makes no sense is asked for once more before the record
//! is called damaged: the wire may be to blame. Where the record carries its own checksum (ours do), its end is told only
//! if every byte of it fits.

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
    /// Of the bytes so far; only where the record carries one.
    checksum: Option<Checksum>,
    before: Before,
    /// The newest part was asked for twice.
    is_second: bool,
}

/// As it was before the newest part: where that begins, the bytes carried over to it, the floor, the checksum.
#[derive(Clone, Default)]
struct Before {
    offset: u64,
    rest: Vec<u8>,
    floor: u64,
    checksum: Option<Checksum>,
}

/// The record's own checksum, and that of the bytes so far.
#[derive(Clone)]
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
            before: Before::default(),
            is_second: false,
        };
        entries.find_blocks().await?;
        Ok(entries)
    }

    /// Reads from the start to the first block.
    async fn find_blocks(&mut self) -> Result<(), StoreError> {
        loop {
            let is_last = !self.read_part().await?;
            if let Some(at) = self.rest.windows(BLOCKS.len()).position(|w| w == BLOCKS) {
                self.checksum = Checksum::begin(&self.rest);
                self.rest.drain(..at + BLOCKS.len());
                return Ok(());
            }
            // A record without the word has no blocks: the volume was empty. One that has it in another spelling was
            // not written by a program we know.
            if is_last && !self.rest.windows(8).any(|w| w == b"\"Blocks\"") {
                self.check_json(&self.rest)?;
                self.checksum = Checksum::begin(&self.rest);
                self.check_checksum()?;
                self.rest.clear();
                self.is_at_end = true;
                return Ok(());
            }
            if is_last || self.rest.len() > HEAD_BYTES_MAX {
                return Err(self.damaged("its list of blocks is not where Longhorn writes it"));
            }
        }
    }

    /// To be called when every byte was read.
    fn check_checksum(&self) -> Result<(), StoreError> {
        let fits = self.checksum.clone().map_or(Ok(()), Checksum::fits);
        fits.map_err(|seen| self.damaged(seen))
    }

    fn check_json(&self, text: &[u8]) -> Result<(), StoreError> {
        let parsed = serde_json::from_slice::<serde::de::IgnoredAny>(text);
        parsed.map(|_| ()).map_err(|error| self.damaged(format!("it is no backup config: {error}")))
    }

    /// The next block, in offset order.
    pub async fn next(&mut self) -> Result<Option<BlockEntry>, StoreError> {
        loop {
            if let Some(entry) = self.parsed.pop_front() {
                return Ok(Some(entry));
            }
            if self.is_at_end {
                return Ok(None);
            }
            self.parse_more().await?;
        }
    }

    /// Parses what is there; if that is nothing, reads the next part.
    async fn parse_more(&mut self) -> Result<(), StoreError> {
        let parsed = match self.parse() {
            Ok(true) => self.check_tail().await,
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        match parsed {
            Err(error) if error.kind == ErrorKind::Damaged && !self.is_second => {
                tracing::warn!(%error, "Part of the record makes no sense, reading it again");
                return self.read_again().await;
            }
            parsed => parsed?,
        }
        if self.parsed.is_empty() && !self.is_at_end {
            let (rest, checksum) = (self.rest.clone(), self.checksum.clone());
            let before = Before { offset: self.offset, rest, floor: self.floor, checksum };
            if !self.read_part().await? {
                return Err(self.damaged("it ends within its list of blocks"));
            }
            (self.before, self.is_second) = (before, false);
        }
        Ok(())
    }

    /// The newest part once more. None of its blocks was handed out: it is parsed whole before the first one is.
    async fn read_again(&mut self) -> Result<(), StoreError> {
        self.is_second = true;
        self.parsed.clear();
        let Before { offset, rest, floor, checksum } = self.before.clone();
        (self.offset, self.rest, self.floor, self.checksum) = (offset, rest, floor, checksum);
        match self.offset {
            0 => self.find_blocks().await,
            _ => self.read_part().await.map(|_| ()),
        }
    }

    /// Behind the list of blocks the record must end as one does: a bracket that came from anywhere else would cut the
    /// volume off without a word.
    async fn check_tail(&mut self) -> Result<(), StoreError> {
        let left = self.meta.as_ref().map_or(0, |meta| meta.size.saturating_sub(self.offset));
        if left > HEAD_BYTES_MAX as u64 {
            return Err(self.damaged(format!("its list of blocks ends {left} bytes before the record does")));
        }
        while self.read_part().await? {}
        self.check_json(&[b"{\"Blocks\":[]", &self.rest[..]].concat())?;
        self.check_checksum()?;
        self.is_at_end = true;
        Ok(())
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

    /// Moves every whole entry of `rest` to `parsed`. `true`: the list ended.
    fn parse(&mut self) -> Result<bool, StoreError> {
        let (mut at, mut is_end) = (0, false);
        loop {
            match self.rest[at..].iter().position(|b| !matches!(b, b',' | b' ' | b'\n' | b'\r' | b'\t')) {
                None => break at = self.rest.len(),
                Some(skipped) => at += skipped,
            }
            match self.rest[at] {
                b']' => {
                    (at, is_end) = (at + 1, true);
                    break;
                }
                b'{' => {}
                other => return Err(self.damaged(format!("byte {other:#04x} stands between two of its blocks"))),
            }
            let Some(length) = self.rest[at..].iter().position(|&b| b == b'}') else { break };
            let text = &self.rest[at..=at + length];
            let entry = match parse_exact(text) {
                Some(entry) => entry,
                None => {
                    serde_json::from_slice(text).map_err(|error| self.damaged(format!("one of its blocks: {error}")))?
                }
            };
            self.check(&entry)?;
            self.parsed.push_back(entry);
            at += length + 1;
        }
        self.rest.drain(..at);
        Ok(is_end)
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

/// The very bytes that Longhorn and we write, without a JSON parser: four million times that is worth it. Anything else
/// is left to the parser.
fn parse_exact(text: &[u8]) -> Option<BlockEntry> {
    let rest = text.strip_prefix(b"{\"Offset\":")?;
    let comma = rest.iter().position(|b| *b == b',')?;
    let digits = std::str::from_utf8(&rest[..comma]).ok()?;
    let is_number = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    let name = rest[comma..].strip_prefix(b",\"BlockChecksum\":\"")?.strip_suffix(b"\"}")?;
    let block_checksum = std::str::from_utf8(name).ok()?.parse().ok()?;
    is_number.then_some(BlockEntry { offset: digits.parse().ok()?, block_checksum })
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        model::BlockName,
        store::{
            directory::Directory,
            objects::{Answer, Body, Fetched, Objects, Page, PutCondition, Stored},
        },
    };

    const RECORD: &str = include_str!("testdata/backup_backup-demo1.cfg");

    fn client(objects: Arc<dyn Objects>) -> Client {
        Client::new(objects, Duration::from_secs(5), Duration::from_secs(5))
    }

    async fn read(text: &str, part_bytes: u64) -> Result<Vec<BlockEntry>, StoreError> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("record"), text).expect("written");
        let objects = Directory::open(folder.path()).expect("a folder");
        let client = client(Arc::new(objects));
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

    /// Spoils one byte of the n-th answer of a real store.
    struct SpoilsOne {
        store: Directory,
        nth: usize,
        gets: std::sync::atomic::AtomicUsize,
    }

    impl Objects for SpoilsOne {
        fn get<'a>(&'a self, key: &'a str, range: Range) -> Answer<'a, Option<Fetched>> {
            let is_spoilt = self.gets.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == self.nth;
            Box::pin(async move {
                let mut fetched = self.store.get(key, range).await?;
                if let (true, Some(fetched)) = (is_spoilt, &mut fetched) {
                    let mut bytes = fetched.bytes.to_vec();
                    let middle = bytes.len() / 2;
                    bytes[middle] = b']';
                    fetched.bytes = bytes.into();
                }
                Ok(fetched)
            })
        }
        fn put<'a>(&'a self, key: &'a str, body: Body, condition: PutCondition) -> Answer<'a, Stored> {
            self.store.put(key, body, condition)
        }
        fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Meta>> {
            self.store.head(key)
        }
        fn list<'a>(&'a self, prefix: &'a str, token: Option<String>) -> Answer<'a, Page> {
            self.store.list(prefix, token)
        }
        fn delete<'a>(&'a self, keys: &'a [String]) -> Answer<'a, Vec<StoreError>> {
            self.store.delete(keys)
        }
    }

    #[tokio::test]
    async fn a_part_that_was_spoilt_on_the_wire_is_read_once_more() {
        let whole = crate::store::record::Record::parse(RECORD.as_bytes()).expect("Longhorn's own").blocks;
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("record"), RECORD).expect("written");
        // The head and the first blocks are in the first two parts.
        for nth in 2..RECORD.len() / 300 {
            let store = Directory::open(folder.path()).expect("a folder");
            let client = client(Arc::new(SpoilsOne { store, nth, gets: 0.into() }));
            let mut entries = Entries::open_with(client, "record", BlockSize::Mi2, 300).await.expect("opened");
            let mut all = Vec::new();
            while let Some(entry) = entries.next().await.expect("asked for again") {
                all.push(entry);
            }
            assert_eq!(all, whole, "part {nth} was spoilt");
        }
    }

    #[tokio::test]
    async fn law_7_a_record_that_is_cut_or_disordered_is_an_error() {
        let blocks = RECORD.find("\"Blocks\"").expect("it has blocks");
        let cuts = (blocks..RECORD.len()).step_by(13).chain(RECORD.len() - 20..RECORD.len());
        for cut in cuts {
            let seen = read(&RECORD[..cut], 64).await;
            assert!(seen.is_err(), "cut at {cut}: {seen:?}");
        }
        for (what, text) in [
            ("out of order", RECORD.replace("\"Offset\":2097152,", "\"Offset\":65011712,")),
            ("not aligned", RECORD.replace("\"Offset\":2097152,", "\"Offset\":2097153,")),
            ("between two", RECORD.replace("},{", "}x{")),
            ("no backup config", RECORD.replacen("},{", "}],{", 1)),
            ("no backup config", RECORD.replacen("},{", "}]}{", 1)),
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
                assert!(
                    error.contains("were changed since it was written") || error.contains("no backup config"),
                    "{what}: {error}"
                );
            }
        }
    }

    #[test]
    fn the_exact_form_is_read_as_the_parser_reads_it() {
        let name = BlockName([0xa5; 32]);
        for (text, is_exact) in [
            (format!("{{\"Offset\":0,\"BlockChecksum\":\"{name}\"}}"), true),
            (format!("{{\"Offset\":2097152,\"BlockChecksum\":\"{name}\"}}"), true),
            (format!("{{\"Offset\": 5,\"BlockChecksum\":\"{name}\"}}"), false),
            (format!("{{\"Offset\":007,\"BlockChecksum\":\"{name}\"}}"), false),
            (format!("{{\"Offset\":+7,\"BlockChecksum\":\"{name}\"}}"), false),
            (format!("{{\"Offset\":99999999999999999999,\"BlockChecksum\":\"{name}\"}}"), false),
            (format!("{{\"BlockChecksum\":\"{name}\",\"Offset\":7}}"), false),
            ("{\"Offset\":7,\"BlockChecksum\":\"a5\"}".to_owned(), false),
        ] {
            let exact = parse_exact(text.as_bytes());
            assert_eq!(exact.is_some(), is_exact, "{text}");
            let parsed = serde_json::from_str::<BlockEntry>(&text).ok();
            assert!(exact.is_none() || exact == parsed, "{text}: {exact:?} and {parsed:?}");
        }
    }

    #[tokio::test]
    async fn a_record_without_blocks_is_an_empty_volume() {
        assert_eq!(read("{\"Name\":\"b1\",\"SingleFile\":{\"FilePath\":\"\"}}", 8).await, Ok(vec![]));
    }
}
