//! A record of four million blocks (8 TiB of 2 MiB), generated as it is asked for: verification and usage within 128 MiB.
//!
//! `make soak` runs it, for it takes a minute or two: `tools/soak.sh soak_four_million`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tidemark::{
    model::{BlockName, BlockSize, VolumeName},
    store::{
        client::Client,
        error::{ErrorKind, StoreError},
        layout::VolumeLayout,
        objects::{Answer, Body, Entry, Fetched, Meta, Objects, Page, PutCondition, Range, Stored},
        record::{PARAMETER_BLOCK_SIZE, RecordHead, VolumeConfig, label},
        scratch::Scratch,
        usage,
        verify::{self, Depth, FindingKind, Order},
    },
};

const BLOCKS: u64 = 4 * 1024 * 1024;
/// Every so many blocks one is missing from the listing.
const MISSING: u64 = 1_000_003;
const STORED: u64 = 1_000_000;
const ENTRY: u64 = 109;

/// A store that holds one volume with one record and no bytes: answers are made when they are asked for.
struct Generated {
    layout: VolumeLayout,
    record: String,
    head: Vec<u8>,
    config: Vec<u8>,
}

const TAIL: &[u8] = b"],\"SingleFile\":{\"FilePath\":\"\"}}";

/// Ascending and uniform, as hashes are when they are sorted.
fn name(i: u64) -> BlockName {
    let mut name = [0; 32];
    name[..8].copy_from_slice(&(i * (u64::MAX / BLOCKS)).to_be_bytes());
    name[8..16].copy_from_slice(&i.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
    BlockName(name)
}

/// One entry of the record, padded to a fixed length: JSON does not mind blanks.
fn entry(i: u64) -> String {
    let comma = if i + 1 == BLOCKS { " " } else { "," };
    format!("{{\"Offset\":{:<14},\"BlockChecksum\":\"{}\"}}{comma}", i << 21, name(i))
}

fn volume() -> VolumeName {
    "pvc-large".parse().expect("valid")
}

impl Generated {
    fn new() -> Self {
        let layout = VolumeLayout::new(&volume());
        let bytes = BLOCKS << 21;
        let head = RecordHead {
            name: "backup-large".into(),
            volume_name: volume().to_string(),
            created_time: "2026-11-25T00:00:00Z".into(),
            size: i64::try_from(bytes).expect("fits"),
            compression_method: "lz4".into(),
            labels: Some([(label::VOLUME_BYTES.to_owned(), bytes.to_string())].into()),
            parameters: Some([(PARAMETER_BLOCK_SIZE.to_owned(), "2097152".to_owned())].into()),
            ..RecordHead::default()
        };
        let mut text = serde_json::to_string(&head).expect("a head");
        text.pop();
        let head = format!("{text},\"Blocks\":[").into_bytes();
        let config = VolumeConfig { last_backup_name: "backup-large".into(), ..config(bytes) }.encode();
        let record = layout.backup(&"backup-large".parse().expect("valid"));
        assert_eq!(entry(0).len() as u64, ENTRY);
        assert_eq!(entry(BLOCKS - 1).len() as u64, ENTRY);
        Self { layout, record, head, config }
    }

    fn record_bytes(&self) -> u64 {
        self.head.len() as u64 + BLOCKS * ENTRY + TAIL.len() as u64
    }

    fn part(&self, from: u64, to: u64) -> Bytes {
        let start = self.head.len() as u64;
        let mut out = Vec::with_capacity((to - from) as usize + 2 * ENTRY as usize);
        let clip = |bytes: &[u8], at: u64, out: &mut Vec<u8>| {
            let (a, b) =
                (from.saturating_sub(at).min(bytes.len() as u64), to.saturating_sub(at).min(bytes.len() as u64));
            out.extend_from_slice(&bytes[a as usize..b as usize]);
        };
        clip(&self.head, 0, &mut out);
        let (first, last) = (from.saturating_sub(start) / ENTRY, to.saturating_sub(start).div_ceil(ENTRY).min(BLOCKS));
        (first..last).for_each(|i| clip(entry(i).as_bytes(), start + i * ENTRY, &mut out));
        clip(TAIL, start + BLOCKS * ENTRY, &mut out);
        out.into()
    }

    fn entry_of(&self, key: String, size: u64) -> Entry {
        Entry { key, meta: meta(size), is_archived: false }
    }
}

fn config(bytes: u64) -> VolumeConfig {
    let now = tidemark::telemetry::now();
    VolumeConfig::new(&volume(), BlockSize::Mi2.round_up(bytes), Default::default(), now)
}

fn meta(size: u64) -> Meta {
    Meta { size, etag: Some("e".into()), modified: None }
}

impl Objects for Generated {
    fn put<'a>(&'a self, key: &'a str, _: Body, _: PutCondition) -> Answer<'a, Stored> {
        Box::pin(async move { Err(StoreError::new(ErrorKind::Unavailable, "PUT", key, "nothing is written here")) })
    }

    fn get<'a>(&'a self, key: &'a str, range: Range) -> Answer<'a, Option<Fetched>> {
        Box::pin(async move {
            if key == self.layout.config() {
                let bytes = Bytes::from(self.config.clone());
                return Ok(Some(Fetched { meta: meta(bytes.len() as u64), bytes }));
            }
            if key != self.record {
                return Ok(None);
            }
            let to = range.len.map_or(self.record_bytes(), |len| (range.offset + len).min(self.record_bytes()));
            Ok(Some(Fetched { bytes: self.part(range.offset, to), meta: meta(self.record_bytes()) }))
        })
    }

    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Meta>> {
        Box::pin(async move { Ok((key == self.record).then(|| meta(self.record_bytes()))) })
    }

    fn list<'a>(&'a self, _: &'a str, token: Option<String>) -> Answer<'a, Page> {
        Box::pin(async move {
            let Some(token) = token else {
                let entries = vec![self.entry_of(self.record.clone(), self.record_bytes())];
                return Ok(Page { entries, next: Some("0".into()) });
            };
            let from: u64 = token.parse().expect("our own token");
            let to = (from + 1000).min(BLOCKS);
            let there = (from..to).filter(|i| i % MISSING != 1);
            let mut entries: Vec<Entry> = there.map(|i| self.entry_of(self.layout.block(&name(i)), STORED)).collect();
            if to == BLOCKS {
                entries.push(self.entry_of(self.layout.config(), self.config.len() as u64));
            }
            Ok(Page { entries, next: (to < BLOCKS).then(|| to.to_string()) })
        })
    }

    fn delete<'a>(&'a self, _: &'a [String]) -> Answer<'a, Vec<StoreError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
}

/// The most memory this process ever had, in MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") / 1024
}

#[tokio::test]
#[ignore = "a minute or two: make soak"]
async fn soak_four_million_blocks_are_verified_and_counted_within_128_mib() {
    let client = Client::new(Arc::new(Generated::new()), Duration::from_secs(60), Duration::from_secs(3600));
    let scratch = Scratch::new(&std::env::temp_dir());
    let before = peak_mib();
    let order = Order { volume: volume(), backup: None, depth: Depth::Listing, concurrency: 8 };
    let began = std::time::Instant::now();
    let seen = verify::verify(&client, &order, &scratch, &mut |_| {}).await.expect("answers");
    let missing = (0..BLOCKS).filter(|i| i % MISSING == 1).count() as u64;
    assert_eq!((seen.records, seen.blocks_named), (1, BLOCKS), "{seen:?}");
    assert_eq!(seen.findings.count(FindingKind::BlockMissing), missing, "{seen:?}");
    let (verified, after) = (began.elapsed(), peak_mib());
    let usage = usage::usage(&client, &volume(), &scratch).await.expect("answers");
    assert_eq!(usage.backups[0].unique_bytes, (BLOCKS - missing) * STORED, "{usage:?}");
    let (both, last) = (began.elapsed(), peak_mib());
    println!(
        "{BLOCKS} blocks: verify {verified:?}, peak {before} → {after} MiB; usage {:?}, peak {last} MiB",
        both - verified
    );
    println!("requests: {:?}", client.requests());
    assert!(last <= 128, "{last} MiB");
}
