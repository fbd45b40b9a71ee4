//! A record of four million blocks (8 TiB) that no disk holds: a store that makes it up as it is read, and a sparse
//! target. What is measured is the memory of a process of its own: what it says of itself (always), and within a cgroup
//! of 128 MiB with the target's pages (`soak_…`).

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tidemark::{
    model::{AttemptId, BlockName, Compression, RestoreProgress},
    restore::{self, Locking, Overwrite, RestoreJob},
    store::{
        client::Client,
        codec,
        error::{ErrorKind, StoreError},
        layout::VolumeLayout,
        objects::{Answer, Body, Fetched, Meta, Objects, Page, PutCondition, Range, Stored},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::record;
use crate::support::{
    self, Block,
    confined::{Confined, Seen},
    image::BLOCK,
};

const BLOCKS: u64 = 4 * 1024 * 1024;
/// Every so many blocks holds data; the others are Longhorn's blocks of zeros, which a record may name.
const DATA_EVERY: u64 = 65_536;
/// And a volume of nothing but data, so that the threads and their buffers are busy.
const FULL: u64 = 256;
/// An entry with its comma and blanks behind it, so that any range of the record can be made without the rest.
const ENTRY: u64 = 128;
const MEMORY_MAX: u64 = 128 << 20;

/// The store: one record, two kinds of block.
struct MadeUp {
    blocks: u64,
    data_every: u64,
    head: Vec<u8>,
    data: Bytes,
    data_name: Vec<u8>,
    zeros_name: Vec<u8>,
    gets: AtomicU64,
}

const TAIL: &[u8] = b"],\"SingleFile\":{\"FilePath\":\"\"}}";

impl MadeUp {
    fn new(blocks: u64, data_every: u64) -> Self {
        let block = Block::Text(1).bytes(BLOCK);
        let mut object = Vec::new();
        codec::encode(Compression::Lz4, &block, &mut object);
        let bytes = blocks * BLOCK as u64;
        let head = format!(
            "{{\"Name\":\"backup-large\",\"CreatedTime\":\"2026-11-23T05:47:02Z\",\"Size\":\"{bytes}\",\
             \"Labels\":{{\"tidemark.dev/volume-bytes\":\"{bytes}\"}},\"CompressionMethod\":\"lz4\",\"Blocks\":["
        );
        let name = |block: &[u8]| BlockName::of(block).to_string().into_bytes();
        let (data_name, zeros_name) = (name(&block), name(&vec![0; BLOCK]));
        let (head, data, gets) = (head.into(), object.into(), AtomicU64::new(0));
        Self { blocks, data_every, head, data, data_name, zeros_name, gets }
    }

    fn record_bytes(&self) -> u64 {
        self.head.len() as u64 + self.blocks * ENTRY + TAIL.len() as u64
    }

    fn record(&self, from: u64, len: u64) -> Bytes {
        let to = (from + len).min(self.record_bytes());
        let head = self.head.len() as u64;
        let mut out = Vec::with_capacity((to - from) as usize + 2 * ENTRY as usize);
        let first = from.saturating_sub(head) / ENTRY;
        let mut at = if from < head { 0 } else { head + first * ENTRY };
        let begins = at;
        if from < head {
            out.extend_from_slice(&self.head);
            at = head;
        }
        let mut index = first;
        while at < to && index < self.blocks {
            let end = out.len() + ENTRY as usize;
            out.extend_from_slice(b"{\"Offset\":");
            out.extend_from_slice((index * BLOCK as u64).to_string().as_bytes());
            out.extend_from_slice(b",\"BlockChecksum\":\"");
            out.extend_from_slice(if index % self.data_every == 7 % self.data_every {
                &self.data_name
            } else {
                &self.zeros_name
            });
            out.extend_from_slice(if index + 1 < self.blocks { b"\"}," } else { b"\"}" });
            out.resize(end, b' ');
            (at, index) = (at + ENTRY, index + 1);
        }
        if index == self.blocks {
            out.extend_from_slice(TAIL);
        }
        Bytes::from(out).slice((from - begins) as usize..(to - begins) as usize)
    }
}

impl Objects for MadeUp {
    fn get<'a>(&'a self, key: &'a str, range: Range) -> Answer<'a, Option<Fetched>> {
        let meta = |size| Meta { size, etag: Some("1".into()), modified: None };
        let answer = if key.contains("/backups/") {
            let bytes = self.record(range.offset, range.len.expect("a record is read in parts"));
            Fetched { bytes, meta: meta(self.record_bytes()) }
        } else {
            self.gets.fetch_add(1, SeqCst);
            assert!(key.as_bytes().ends_with(&[&self.data_name[..], b".blk"].concat()), "{key}");
            Fetched { bytes: self.data.clone(), meta: meta(self.data.len() as u64) }
        };
        Box::pin(std::future::ready(Ok(Some(answer))))
    }
    fn put<'a>(&'a self, key: &'a str, _: Body, _: PutCondition) -> Answer<'a, Stored> {
        Box::pin(std::future::ready(Err(StoreError::new(ErrorKind::Unavailable, "PUT", key, "only read"))))
    }
    fn head<'a>(&'a self, _: &'a str) -> Answer<'a, Option<Meta>> {
        Box::pin(std::future::ready(Ok(None)))
    }
    fn list<'a>(&'a self, _: &'a str, _: Option<String>) -> Answer<'a, Page> {
        Box::pin(std::future::ready(Ok(Page::default())))
    }
    fn delete<'a>(&'a self, _: &'a [String]) -> Answer<'a, Vec<StoreError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
}

#[test]
fn law_9_a_record_of_four_million_blocks_is_restored_in_bounded_memory() {
    let folder = support::scratch_with_room("restore-large", 1 << 30);
    // The target lies in memory itself, so no cgroup can tell what the restore takes: that is the test below.
    let seen = run(folder.path(), None, DATA_EVERY);
    assert!(seen.anonymous <= MEMORY_MAX, "{seen:?}");
}

/// The target's dirty pages are memory of the restore as well; on a disk they can be written and dropped.
#[test]
#[ignore = "minutes, 1.5 GB of disk, root for the cgroup: make soak"]
fn soak_a_restore_of_four_million_blocks_fits_into_128_mib() {
    let folder = tempfile::Builder::new().prefix("tidemark-restore-").tempdir().expect("a scratch directory");
    run(folder.path(), Some(MEMORY_MAX), DATA_EVERY / 8);
}

fn run(folder: &Path, limit: Option<u64>, data_every: u64) -> Seen {
    let (test, patience, scratch) =
        ("restore::large::four_million_blocks", Duration::from_secs(1200), folder.join("scratch"));
    std::fs::create_dir(&scratch).expect("a new folder");
    let confined = Confined { test, limit, patience, folder, scratch: &scratch };
    let data_every = data_every.to_string();
    let seen = confined.run(&[("TIDEMARK_LARGE", folder.as_os_str()), ("TIDEMARK_LARGE_EVERY", data_every.as_ref())]);
    assert_eq!(seen.scratch, 0, "a restore needs no scratch");
    seen
}

#[test]
#[ignore = "run by the tests above, in a process of its own"]
fn four_million_blocks() {
    let variable = |name| support::environment(name).expect("set by the tests above");
    let folder = PathBuf::from(variable("TIDEMARK_LARGE"));
    let data_every: u64 = variable("TIDEMARK_LARGE_EVERY").parse().expect("a number");
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().expect("this process may start two threads");
    runtime.block_on(async {
        for (blocks, data_every) in [(BLOCKS, data_every), (FULL, 1)] {
            let (store, data) = (Arc::new(MadeUp::new(blocks, data_every)), blocks / data_every);
            let out = folder.join(format!("out-{blocks}"));
            for (overwrite, reused, fetched) in [(Overwrite::Refuse, 0, data), (Overwrite::Reuse, blocks, 0)] {
                store.gets.store(0, SeqCst);
                let began = Instant::now();
                // Not watched: keeping every progress would be memory of the test's own.
                let progress = watch::Sender::new(RestoreProgress::default());
                let ran = restore::run(job(&store, &out, overwrite), progress, CancellationToken::new()).await;
                let summary = ran.expect("restored");
                assert_eq!((summary.blocks, summary.reused_blocks), (blocks, reused), "{summary:?}");
                assert_eq!(store.gets.load(SeqCst), fetched, "blocks fetched");
                println!("{overwrite:?}: {blocks} blocks in {:?}, {} allocated", began.elapsed(), allocated(&out));
            }
            assert_eq!(allocated(&out), data, "sparse but for the data");
        }
    });
}

fn job(store: &Arc<MadeUp>, out: &Path, overwrite: Overwrite) -> RestoreJob {
    let client = Client::new(store.clone(), Duration::from_secs(60), Duration::from_secs(3600));
    let record = record("backup-large");
    assert!(VolumeLayout::new(&record.volume).backups().contains("/backups/"));
    let job = RestoreJob::new(client, record, out.to_owned(), AttemptId::new(1, [1; 10]));
    RestoreJob { overwrite, locking: Locking::Without, ..job }
}

fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).expect("restored").blocks() * 512 / BLOCK as u64
}
