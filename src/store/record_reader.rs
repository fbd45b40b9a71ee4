//! A record from its first byte to its last, never whole in memory: ranged GETs, one block after the other, and the last
//! block's successor, none, only with the proof that all of it was a record.
//!
//! A record of 8 TiB is 450 MB of JSON. Longhorn and we write it compactly and `Blocks` almost last, so its blocks are cut
//! out by their braces (an entry holds no other brace). What stands before and after them is kept (labels are the only
//! thing there that may be long) and parsed with `null` in their place: a record that was cut, joined or nested in an
//! odd way does not parse. Every part must come from one and the same object; entries must be aligned and ascend; where
//! the record carries its own checksum (ours do), every byte must fit it. A part that makes no sense is asked for once more
//! before the record is called damaged: the wire may be to blame.

use std::collections::VecDeque;

use aws_lc_rs::digest::{Context, SHA256};
use serde::Deserialize;

use super::{
    client::Client,
    error::{ErrorKind, StoreError},
    objects::{Entry, Meta, Range},
    record::{BlockEntry, Record, RecordHead, label},
};
use crate::model::BlockSize;

/// Bytes of one ranged GET: 40,000 entries.
const PART_BYTES: u64 = 4 * 1024 * 1024;
/// What stands before the blocks, and again what stands after them, is at most so long.
const AROUND_BYTES_MAX: usize = 64 * 1024;
const BLOCKS: &[u8] = b"\"Blocks\":[";
const EMPTY: &str = "it, or a part that was asked for, is empty";

/// A record that is being read.
pub struct RecordReader {
    client: Client,
    key: String,
    part_bytes: u64,
    /// Of the listing that named it, if one did.
    listed_size: Option<u64>,
    /// Of the first part; every other must be of the same object.
    meta: Option<Meta>,
    head: RecordHead,
    block_size: BlockSize,
    parsed: VecDeque<BlockEntry>,
    is_at_end: bool,
    here: Position,
    /// As it was before the newest part.
    before: Position,
    /// The newest part was asked for twice.
    is_second: bool,
}

/// How far a record was read and parsed.
#[derive(Clone, Default)]
struct Position {
    /// Bytes read.
    offset: u64,
    /// Everything before the blocks' bracket.
    around: Vec<u8>,
    /// Bytes read and not parsed.
    rest: Vec<u8>,
    last: Last,
    /// The least offset the next entry may have.
    floor: u64,
    /// Of the bytes read; only where the record carries one.
    checksum: Option<Checksum>,
}

/// What of the list of blocks was parsed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Last {
    #[default]
    Bracket,
    Block,
    Comma,
}

/// The record's own checksum, and that of the bytes so far.
#[derive(Clone)]
struct Checksum {
    expected: Vec<u8>,
    context: Context,
}

/// All of a record but its entries: `Blocks` was replaced by `null`, and a second one is a duplicate field.
#[derive(Deserialize)]
struct Around {
    #[serde(flatten)]
    head: RecordHead,
    #[serde(rename = "Blocks", default)]
    _blocks: Option<serde::de::IgnoredAny>,
}

impl RecordReader {
    /// Reads up to the first block of a record whose head was read before. `Damaged`: it is no record, or another one now.
    pub async fn open(client: Client, key: &str, block_size: BlockSize) -> Result<Self, StoreError> {
        let reader = Self::new(client, key, None, PART_BYTES).begin().await?;
        match reader.block_size == block_size {
            true => Ok(reader),
            false => Err(reader.damaged("it was replaced while it was read: its blocks have another size")),
        }
    }

    /// The same for one that was listed. `Damaged`: it is no record, or no longer the one that was listed.
    pub async fn open_listed(client: Client, listed: &Entry) -> Result<Self, StoreError> {
        let reader = Self::new(client, &listed.key, Some(listed.meta.size), PART_BYTES);
        match listed.is_archived {
            true => Err(reader.damaged("it lies in an archive class and cannot be read: restore it to a readable one")),
            false => reader.begin().await,
        }
    }

    fn new(client: Client, key: &str, listed_size: Option<u64>, part_bytes: u64) -> Self {
        Self {
            client,
            key: key.to_owned(),
            part_bytes,
            listed_size,
            meta: None,
            head: RecordHead::default(),
            block_size: BlockSize::Mi2,
            parsed: VecDeque::new(),
            is_at_end: false,
            here: Position::default(),
            before: Position::default(),
            is_second: false,
        }
    }

    async fn begin(mut self) -> Result<Self, StoreError> {
        match self.find_blocks().await {
            Err(error) if error.kind == ErrorKind::Damaged => self.read_again(&error).await?,
            found => found?,
        }
        Ok(self)
    }

    /// Reads from the start to the first block.
    async fn find_blocks(&mut self) -> Result<(), StoreError> {
        loop {
            let is_last = !self.read_part().await?;
            let here = &mut self.here;
            if let Some(at) = here.rest.windows(BLOCKS.len()).position(|w| w == BLOCKS) {
                here.checksum = Checksum::begin(&here.rest);
                here.around = here.rest.drain(..at + BLOCKS.len()).collect();
                here.around.truncate(at + BLOCKS.len() - 1);
                self.head = self.parse_around(b"null}")?;
                self.block_size = self.head.block_size().map_err(|seen| self.damaged(seen))?;
                return Ok(());
            }
            if is_last {
                return self.take_whole();
            }
            if here.rest.len() > AROUND_BYTES_MAX {
                return Err(self.damaged("its list of blocks is not where Longhorn writes it"));
            }
        }
    }

    /// A small record in another spelling, or without blocks.
    fn take_whole(&mut self) -> Result<(), StoreError> {
        let record = Record::parse(&self.here.rest).map_err(|seen| self.damaged(seen))?;
        self.here.checksum = Checksum::begin(&self.here.rest);
        self.check_checksum()?;
        self.block_size = record.head.block_size().map_err(|seen| self.damaged(seen))?;
        (self.head, self.parsed, self.is_at_end) = (record.head, record.blocks.into(), true);
        self.here.rest.clear();
        Ok(())
    }

    /// Everything that stands before the blocks; after the last of them, all of it.
    pub fn head(&self) -> &RecordHead {
        &self.head
    }

    /// The next block, in offset order. `None`: that was all of them, and the record was whole.
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
            Ok(true) => self.end().await,
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        match parsed {
            Err(error) if error.kind == ErrorKind::Damaged => return self.read_again(&error).await,
            parsed => parsed?,
        }
        if self.parsed.is_empty() && !self.is_at_end {
            let before = self.here.clone();
            if !self.read_part().await? {
                return Err(self.damaged("it ends within its list of blocks"));
            }
            (self.before, self.is_second) = (before, false);
        }
        Ok(())
    }

    /// The newest part once more. None of its blocks was handed out: it is parsed whole before the first one is.
    async fn read_again(&mut self, error: &StoreError) -> Result<(), StoreError> {
        if self.is_second {
            return Err(error.clone());
        }
        tracing::warn!(%error, "Part of the record makes no sense, reading it again");
        self.is_second = true;
        self.parsed.clear();
        self.here = self.before.clone();
        match self.here.offset {
            0 => self.find_blocks().await,
            _ => self.read_part().await.map(|_| ()),
        }
    }

    /// Behind the list of blocks the record must end as one does: a bracket that came from anywhere else would cut the
    /// volume off without a word.
    async fn end(&mut self) -> Result<(), StoreError> {
        let left = self.size().map_or(0, |size| size.saturating_sub(self.here.offset));
        if left > AROUND_BYTES_MAX as u64 {
            return Err(self.damaged(format!("its list of blocks ends {left} bytes before the record does")));
        }
        while self.read_part().await? {}
        let head = self.parse_around(&[b"null".as_slice(), &self.here.rest].concat())?;
        let is_same = (&head.labels, &head.created_time, &head.parameters)
            == (&self.head.labels, &self.head.created_time, &self.head.parameters);
        if !is_same {
            return Err(self.damaged("labels, time or parameters stand behind its blocks"));
        }
        self.check_checksum()?;
        (self.head, self.is_at_end) = (head, true);
        Ok(())
    }

    /// The record with this in the place of its blocks and what stands behind them.
    fn parse_around(&self, behind: &[u8]) -> Result<RecordHead, StoreError> {
        let around: Result<Around, _> = serde_json::from_slice(&[self.here.around.as_slice(), behind].concat());
        around.map(|a| a.head).map_err(|error| self.damaged(format!("it is no backup config: {error}")))
    }

    /// To be called when every byte was read.
    fn check_checksum(&self) -> Result<(), StoreError> {
        let fits = self.here.checksum.clone().map_or(Ok(()), Checksum::fits);
        fits.map_err(|seen| self.damaged(seen))
    }

    fn size(&self) -> Option<u64> {
        self.listed_size.or(self.meta.as_ref().map(|meta| meta.size))
    }

    /// Appends the next part to `rest`; `false` if there was none.
    async fn read_part(&mut self) -> Result<bool, StoreError> {
        let (size, offset) = (self.size(), self.here.offset);
        if size == Some(0) {
            return Err(self.damaged(EMPTY));
        }
        if size.is_some_and(|size| offset >= size) {
            return Ok(false);
        }
        let wanted = size.map_or(self.part_bytes, |size| self.part_bytes.min(size - offset));
        let fetched = self.client.get(&self.key, Range::part(offset, wanted)).await?;
        let fetched = fetched.ok_or_else(|| self.damaged("it was there a moment ago and is gone"))?;
        let is_other = self.meta.as_ref().is_some_and(|meta| meta.etag != fetched.meta.etag);
        if is_other || size.is_some_and(|size| size != fetched.meta.size) {
            return Err(self.damaged("it was replaced while it was read"));
        }
        if fetched.bytes.is_empty() {
            return Err(self.damaged(EMPTY));
        }
        self.here.offset += fetched.bytes.len() as u64;
        self.here.rest.extend_from_slice(&fetched.bytes);
        if let Some(checksum) = &mut self.here.checksum {
            checksum.context.update(&fetched.bytes);
        }
        self.meta = Some(fetched.meta);
        Ok(true)
    }

    /// Moves every whole entry of `rest` to `parsed`. `true`: the list ended.
    fn parse(&mut self) -> Result<bool, StoreError> {
        let rest = std::mem::take(&mut self.here.rest);
        let mut at = 0;
        let is_end = loop {
            let Some(&byte) = rest.get(at) else { break false };
            match (byte, self.here.last) {
                (b' ' | b'\n' | b'\r' | b'\t', _) => at += 1,
                (b',', Last::Block) => (self.here.last, at) = (Last::Comma, at + 1),
                (b']', Last::Bracket | Last::Block) => {
                    at += 1;
                    break true;
                }
                (b'{', Last::Bracket | Last::Comma) => {
                    let Some(length) = rest[at..].iter().position(|&b| b == b'}') else { break false };
                    self.take(&rest[at..=at + length])?;
                    (self.here.last, at) = (Last::Block, at + length + 1);
                }
                (b'{', Last::Block) => return Err(self.damaged("no comma stands between two of its blocks")),
                (other, _) => {
                    return Err(self.damaged(format!("byte {other:#04x} stands between two of its blocks")));
                }
            }
        };
        self.here.rest = rest;
        self.here.rest.drain(..at);
        Ok(is_end)
    }

    /// One entry, braces included.
    fn take(&mut self, text: &[u8]) -> Result<(), StoreError> {
        let entry = match parse_exact(text) {
            Some(entry) => entry,
            None => {
                serde_json::from_slice(text).map_err(|error| self.damaged(format!("one of its blocks: {error}")))?
            }
        };
        let size = self.block_size.bytes();
        if !entry.offset.is_multiple_of(size) {
            return Err(self.damaged(format!("block at offset {} is not aligned to {size}", entry.offset)));
        }
        if entry.offset < self.here.floor {
            return Err(self.damaged(format!("block at offset {} is out of order", entry.offset)));
        }
        self.here.floor = entry.offset.saturating_add(size);
        self.parsed.push_back(entry);
        Ok(())
    }

    fn damaged(&self, seen: impl std::fmt::Display) -> StoreError {
        StoreError::new(ErrorKind::Damaged, "GET", &self.key, seen)
    }
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
mod tests;
