//! A store of millions of blocks that holds none of them: listing and records are computed as they are asked for.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tidemark::{
    model::BlockName,
    store::{
        error::StoreError,
        layout::VolumeLayout,
        objects::{Answer, Body, Entry, Fetched, Meta, Objects, Page, PutCondition, Range, Stored},
        record::{BlockEntry, RecordHead},
    },
};

const BLOCK_BYTES: u64 = 2 << 20;
/// Bytes of every object: a block that could not be compressed.
pub const STORED: u32 = 2_097_171;
const TAIL: &[u8] = b"],\"SingleFile\":{\"FilePath\":\"\"}}";

/// A volume of which each record names `named` of `listed` blocks.
pub struct Endless {
    layout: VolumeLayout,
    listed: u64,
    named: u64,
    /// Per record: what stands before its blocks, and where the entries of each width begin.
    records: Vec<(String, Vec<u8>, Vec<Run>)>,
    modified: Timestamp,
}

/// Entries of equal width: offsets with the same number of digits.
#[derive(Clone, Copy)]
struct Run {
    start: u64,
    first: u64,
    width: u64,
}

impl Endless {
    pub fn new(layout: VolumeLayout, listed: u64, named: u64, records: u64, modified: Timestamp) -> Arc<Self> {
        let made = (0..records).map(|i| {
            let name = format!("backup-endless{i}");
            let head = RecordHead {
                name: name.clone(),
                volume_name: "pvc-test".into(),
                created_time: "2026-11-23T05:47:02Z".into(),
                compression_method: "lz4".into(),
                ..RecordHead::default()
            };
            let marker = String::from_utf8(head.encode_marker()).expect("JSON");
            let at = marker.find(",\"SingleFile\"").expect("it ends so");
            let before = format!("{},\"Blocks\":[", &marker[..at]).into_bytes();
            let runs = runs(before.len() as u64, named);
            (layout.backup(&name.parse().expect("a name")), before, runs)
        });
        let records = made.collect();
        Arc::new(Self { layout, listed, named, records, modified })
    }

    /// The `rank`-th key of the listing of blocks; `token` of a page is the rank it begins with.
    pub fn key(&self, rank: u64) -> String {
        self.layout.block(&self.name(rank))
    }

    /// What every record calls the `ordinal`-th block of the volume.
    pub fn named(&self, ordinal: u64) -> BlockName {
        self.name(ordinal.wrapping_mul(1_000_003) % self.named)
    }

    fn name(&self, rank: u64) -> BlockName {
        let mut name = [0x5a; 32];
        name[..8].copy_from_slice(&(rank * (u64::MAX / self.listed)).to_be_bytes());
        BlockName(name)
    }

    /// The `ordinal`-th entry of a record with its comma: names are spread over the listing.
    fn entry(&self, ordinal: u64) -> Vec<u8> {
        let entry = BlockEntry { offset: ordinal * BLOCK_BYTES, block_checksum: self.named(ordinal) };
        let mut text = serde_json::to_vec(&entry).expect("two fields");
        text.push(b',');
        text
    }

    fn size(&self, record: usize) -> u64 {
        let last = self.records[record].2.last().expect("a volume has blocks");
        // The last entry has no comma.
        last.start + (self.named - last.first) * last.width - 1 + TAIL.len() as u64
    }

    fn meta(&self, size: u64) -> Meta {
        Meta { size, etag: Some("\"endless\"".into()), modified: Some(self.modified) }
    }

    fn bytes(&self, record: usize, range: Range) -> Bytes {
        let (_, before, runs) = &self.records[record];
        let (size, end_of_entries) = (self.size(record), self.size(record) - TAIL.len() as u64);
        let end = (range.offset + range.len.unwrap_or(size)).min(size);
        let mut bytes = Vec::with_capacity(usize::try_from(end - range.offset).expect("a part"));
        let mut at = range.offset;
        while at < end {
            let (piece, begins) = if at < before.len() as u64 {
                (before.clone(), 0)
            } else if at >= end_of_entries {
                (TAIL.to_vec(), end_of_entries)
            } else {
                let run = runs.iter().rev().find(|run| run.start <= at).expect("runs begin behind the head");
                let ordinal = run.first + (at - run.start) / run.width;
                let mut entry = self.entry(ordinal);
                if ordinal + 1 == self.named {
                    entry.pop();
                }
                (entry, run.start + (ordinal - run.first) * run.width)
            };
            let from = usize::try_from(at - begins).expect("within a piece");
            let until = piece.len().min(usize::try_from(end - begins).expect("within a part"));
            bytes.extend_from_slice(&piece[from..until]);
            at = begins + until as u64;
        }
        Bytes::from(bytes)
    }

    fn backups(&self) -> Vec<Entry> {
        let entry = |(i, (key, ..)): (usize, &(String, Vec<u8>, Vec<Run>))| Entry {
            key: key.clone(),
            meta: self.meta(self.size(i)),
            is_archived: false,
        };
        self.records.iter().enumerate().map(entry).collect()
    }

    fn page(&self, prefix: &str, token: Option<String>) -> Page {
        if prefix == self.layout.backups() {
            return Page { entries: self.backups(), next: None };
        }
        if prefix != self.layout.blocks() {
            return Page::default();
        }
        let start: u64 = token.map_or(0, |token| token.parse().expect("ours"));
        let end = (start + 1000).min(self.listed);
        let entry = |rank| Entry {
            key: self.layout.block(&self.name(rank)),
            meta: self.meta(u64::from(STORED)),
            is_archived: false,
        };
        Page { entries: (start..end).map(entry).collect(), next: (end < self.listed).then(|| end.to_string()) }
    }
}

fn runs(start: u64, named: u64) -> Vec<Run> {
    let (mut runs, mut start, mut first) = (Vec::new(), start, 0);
    while first < named {
        let digits = (first * BLOCK_BYTES).to_string().len() as u64;
        let width = r#"{"Offset":,"BlockChecksum":""},"#.len() as u64 + 64 + digits;
        let next = 10_u64.pow(u32::try_from(digits).expect("few")).div_ceil(BLOCK_BYTES).min(named);
        runs.push(Run { start, first, width });
        start += (next - first) * width;
        first = next;
    }
    runs
}

impl Objects for Endless {
    fn put<'a>(&'a self, _: &'a str, _: Body, _: PutCondition) -> Answer<'a, Stored> {
        Box::pin(async { Ok(Stored::default()) })
    }
    fn get<'a>(&'a self, key: &'a str, range: Range) -> Answer<'a, Option<Fetched>> {
        Box::pin(async move {
            let record = self.records.iter().position(|(name, ..)| name == key);
            Ok(record.map(|i| Fetched { bytes: self.bytes(i, range), meta: self.meta(self.size(i)) }))
        })
    }
    fn head<'a>(&'a self, _: &'a str) -> Answer<'a, Option<Meta>> {
        Box::pin(async { Ok(None) })
    }
    fn list<'a>(&'a self, prefix: &'a str, token: Option<String>) -> Answer<'a, Page> {
        Box::pin(async move { Ok(self.page(prefix, token)) })
    }
    fn delete<'a>(&'a self, _: &'a [String]) -> Answer<'a, Vec<StoreError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}
