//! Law 9 at length: attempts on a volume of 400 thousand blocks (always) and of four million (8 TiB, `soak_…`), each in a
//! process of its own inside a memory cgroup that leaves no room for a table of its blocks.
//!
//! The store is computed (`endless`): an earlier record of every block, a listing of a quarter more, and the journal of
//! an attempt that was killed when all but a few blocks were acknowledged. The source is a loop device over a sparse file,
//! so every block is a candidate. Two attempts follow: one resumes, sends what is missing and seals; the next finds that
//! record and adopts it. Their scratch files are measured beside what a Pod is given for them. Without root or the memory
//! controller of cgroup v1 the limit is checked by what the process says of itself, and without loop devices the test
//! says so and checks nothing.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use crate::support::{
    self,
    confined::{Confined, anonymous_bytes, scratch_bytes},
    endless::{self, Endless},
    job, locked,
};
use bytes::Bytes;
use tidemark::{
    model::{
        AttemptId, BackupName, BlockName, BlockSize, Compression, Counters, JobSpec, Outcome, Progress, VolumeName,
        job::{Mode, PointInTime},
        limits,
    },
    store::{
        error::StoreError,
        journal::{AttemptFile, Entry as JournalEntry, Identity, Journal, SourceIdentity},
        layout::VolumeLayout,
        objects::{Answer, Body, Entry, Fetched, Meta, Objects, Page, PutCondition, Range, Stored},
        record::{BlockEntry, RecordHead, VolumeConfig},
        scratch::{NameTable, OrdinalTable, Placed, Scratch, SortedTable},
    },
};

const BLOCK: u64 = 2 << 20;
const UID: &str = "uid-scale";
/// Blocks that the killed attempt did not get to.
const OPEN: u64 = 6;

/// An object that was written: the record is its writer's scratch file, segments lie one behind the other in one of ours.
#[derive(Clone)]
enum Kept {
    Bytes(Bytes),
    File {
        file: Arc<File>,
        from: u64,
        len: u64,
    },
    /// A block: nobody reads it.
    Length(u64),
}

impl Kept {
    fn len(&self) -> u64 {
        match self {
            Kept::Bytes(bytes) => bytes.len() as u64,
            Kept::File { len, .. } | Kept::Length(len) => *len,
        }
    }
}

/// What was written to a computed store, beside what it computes. Nothing is ever deleted: so the journals of the attempt
/// that sealed are still there for the one after it.
struct Written {
    endless: Arc<Endless>,
    layout: VolumeLayout,
    objects: Mutex<BTreeMap<String, Kept>>,
    block_puts: AtomicU64,
    /// Of every object.
    modified: jiff::Timestamp,
}

impl Written {
    fn meta(&self, size: u64) -> Meta {
        Meta { size, etag: Some(format!("\"{size}\"")), modified: Some(self.modified) }
    }

    fn keep(&self, key: &str, kept: Kept) {
        locked(&self.objects).insert(key.to_owned(), kept);
    }

    fn accept(&self, key: &str, body: Body) {
        let is_block = key.starts_with(&self.layout.blocks());
        self.block_puts.fetch_add(u64::from(is_block), SeqCst);
        let kept = match body {
            body if is_block => Kept::Length(body.len()),
            Body::Bytes(bytes) => Kept::Bytes(bytes),
            Body::File { file, len } => Kept::File { file, from: 0, len },
        };
        self.keep(key, kept);
    }

    fn read(&self, key: &str, range: Range) -> Option<Fetched> {
        let kept = locked(&self.objects).get(key)?.clone();
        let (size, from) = (kept.len(), range.offset.min(kept.len()));
        let len = range.len.unwrap_or(size).min(size - from);
        let bytes = match kept {
            Kept::Bytes(bytes) => bytes.slice(from as usize..(from + len) as usize),
            Kept::File { file, from: start, .. } => {
                let mut bytes = vec![0; len as usize];
                file.read_exact_at(&mut bytes, start + from).expect("the scratch file");
                bytes.into()
            }
            Kept::Length(_) => Bytes::new(),
        };
        Some(Fetched { bytes, meta: self.meta(size) })
    }

    /// Keys written below a prefix, from `first` to before `end`.
    fn listed(&self, prefix: &str, (first, end): (&str, Option<&str>)) -> Vec<Entry> {
        let objects = locked(&self.objects);
        let within = objects.range(first.max(prefix).to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let within = within.filter(|(key, _)| end.is_none_or(|end| key.as_str() < end));
        within.map(|(key, kept)| Entry { key: key.clone(), meta: self.meta(kept.len()), is_archived: false }).collect()
    }
}

impl Objects for Written {
    fn put<'a>(&'a self, key: &'a str, body: Body, _: PutCondition) -> Answer<'a, Stored> {
        Box::pin(async move {
            self.accept(key, body);
            Ok(Stored::default())
        })
    }
    fn get<'a>(&'a self, key: &'a str, range: Range) -> Answer<'a, Option<Fetched>> {
        Box::pin(async move {
            match self.read(key, range) {
                Some(fetched) => Ok(Some(fetched)),
                None => self.endless.get(key, range).await,
            }
        })
    }
    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Meta>> {
        Box::pin(async move { Ok(self.read(key, Range::part(0, 0)).map(|fetched| fetched.meta)) })
    }
    fn list<'a>(&'a self, prefix: &'a str, token: Option<String>) -> Answer<'a, Page> {
        Box::pin(async move {
            let first = token.as_ref().map_or(String::new(), |t| self.endless.key(t.parse().expect("a rank")));
            let mut page = self.endless.list(prefix, token).await?;
            let end = page.next.as_ref().map(|t| self.endless.key(t.parse().expect("a rank")));
            page.entries.extend(self.listed(prefix, (&first, end.as_deref())));
            page.entries.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(page)
        })
    }
    fn delete<'a>(&'a self, _: &'a [String]) -> Answer<'a, Vec<StoreError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// A loop device that cannot be written, over a sparse file; `None` where there are none.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn over(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(file).output();
        match made {
            Ok(made) if made.status.success() => Some(Self(String::from_utf8_lossy(&made.stdout).trim().into())),
            other => {
                eprintln!("SKIPPED: loop devices need root ({other:?})");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // What stays is seen by `losetup --list`; a test that fails says more than this could.
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// Runs both attempts on so many blocks in a process that has `limit` bytes of memory, its code's pages included.
fn run_within(blocks: u64, limit: u64, patience: Duration) {
    // On a disk: pages of a file in memory could not be dropped.
    let folder = tempfile::Builder::new().prefix("tidemark-scale-").tempdir().expect("a scratch directory");
    let (image, scratch) = (folder.path().join("image"), folder.path().join("scratch"));
    std::fs::create_dir(&scratch).expect("a new folder");
    let sparse = File::create_new(&image).expect("a new file");
    sparse.set_len(blocks * BLOCK).expect("sparse");
    for ordinal in blocks - OPEN..blocks {
        sparse.write_all_at(&ordinal.to_le_bytes(), ordinal * BLOCK + 5).expect("written");
    }
    sparse.sync_all().expect("written");
    let Some(device) = LoopDevice::over(&image) else { return };
    let test = "scale::attempts_on_an_endless_store";
    let confined = Confined { test, limit: Some(limit), patience, folder: folder.path(), scratch: &scratch };
    let seen = confined.run(&[
        ("TIDEMARK_SCALE", folder.path().as_os_str()),
        ("TIDEMARK_SCALE_DEVICE", device.0.as_os_str()),
        ("TIDEMARK_SCALE_BLOCKS", blocks.to_string().as_ref()),
    ]);
    // Of the second attempt the record that the store got from the first is counted once more.
    let room = limits::scratch_bytes(Some(blocks * BLOCK));
    println!("{blocks} blocks: {} MiB of scratch at most, {} MiB are asked for", seen.scratch >> 20, room >> 20);
    assert!(seen.scratch > blocks * 64 && seen.scratch <= room, "{seen:?} of {room}");
}

/// A table of the blocks in memory would be 15 MB at least, the record 44 MB, the names' text 26 MB.
#[test]
fn law_9_attempts_on_400_thousand_blocks_fit_where_no_table_of_them_would() {
    run_within(400_000, 28 << 20, Duration::from_secs(600));
}

#[test]
#[ignore = "minutes, root: make soak"]
fn soak_attempts_on_four_million_blocks_fit_into_128_mib() {
    run_within(4 * 1024 * 1024, 128 << 20, Duration::from_secs(1800));
}

/// The fullest tables of the costliest volume: all of its blocks are new, and the store holds two and a half times as many.
fn check_scratch_of(blocks: u64) {
    let folder = tempfile::tempdir().expect("a scratch directory");
    let scratch = Scratch::new(folder.path());
    let placed = |rank: u64, of: u64| {
        let mut name = [0x5a; 32];
        name[..8].copy_from_slice(&(rank * (u64::MAX / of)).to_be_bytes());
        Placed { name: BlockName(name), stored: endless::STORED }
    };
    let (mut listing, listed) = (SortedTable::create(&scratch).expect("scratch"), blocks * 5 / 2);
    (0..listed).for_each(|rank| listing.push(&placed(rank, listed)).expect("there is room"));
    listing.flush().expect("there is room");
    let map = OrdinalTable::create(&scratch).expect("scratch");
    let mut names = NameTable::create(&scratch, blocks).expect("scratch");
    for ordinal in 0..blocks {
        let placed = placed(ordinal * 1_000_003 % blocks, blocks);
        map.set(ordinal as u32, &placed).expect("there is room");
        names.insert(&placed).expect("there is room");
    }
    let own = || scratch_bytes(std::process::id(), folder.path());
    let uploading = own();
    // As an attempt does before it writes the record.
    drop((names, listing));
    let mut record = BufWriter::new(scratch.file().expect("scratch"));
    let entries = (0..blocks).map(|ordinal| {
        let block_checksum = map.get(ordinal as u32)?.name;
        Ok::<_, std::io::Error>(BlockEntry { offset: ordinal * BLOCK, block_checksum })
    });
    RecordHead::default().write_to(entries, &mut record).expect("there is room");
    record.flush().expect("there is room");
    let (sealing, room) = (own(), limits::scratch_bytes(Some(blocks * BLOCK)));
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{blocks} blocks, all new: {} MiB of scratch uploading, {} MiB sealing, {} MiB are asked for",
        mib(uploading),
        mib(sealing),
        mib(room)
    );
    assert!(uploading.max(sealing) <= room - limits::SCRATCH_BYTES_BASE, "{uploading} and {sealing} of {room}");
}

/// One more than a power of two: a table that doubles would be four times as large as what it holds.
#[test]
fn law_9_the_tables_of_a_volume_fit_into_the_scratch_that_is_asked_for() {
    check_scratch_of((1 << 16) + 1);
}

#[test]
#[ignore = "a minute, 1 GB of disk: make soak"]
fn soak_the_tables_of_four_million_blocks_fit_into_their_scratch() {
    check_scratch_of(4 * 1024 * 1024);
}

#[test]
#[ignore = "run by the tests above, in a process of its own"]
fn attempts_on_an_endless_store() {
    let variable = |name| support::environment(name).expect("set by the tests above");
    let folder = PathBuf::from(variable("TIDEMARK_SCALE"));
    let blocks: u64 = variable("TIDEMARK_SCALE_BLOCKS").parse().expect("a number");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("this process may start two threads").block_on(async {
        let store = store(&folder, blocks);
        for (attempt, adopted) in [(2, false), (3, true)] {
            let began = Instant::now();
            let job = job_of(attempt, Path::new(&variable("TIDEMARK_SCALE_DEVICE")));
            let objects: Arc<dyn Objects> = store.clone();
            let last = job::run_by_clock(job, objects, job::quick()).await;
            let Some(Outcome::Completed { adopted: seen, .. }) = last.outcome else { panic!("{:?}", last.failure) };
            let Counters::Backup(progress) = last.counters else { panic!("{:?}", last.counters) };
            assert_eq!(seen, adopted, "attempt {attempt}");
            check(&progress, blocks, adopted);
            assert_eq!(store.block_puts.load(SeqCst), OPEN, "no acknowledged block is sent again");
            let anonymous = anonymous_bytes(std::process::id()) >> 20;
            println!("attempt {attempt}: {:.1?}, {anonymous} MiB anonymous at its end", began.elapsed());
        }
    });
}

fn check(progress: &Progress, blocks: u64, adopted: bool) {
    let resumed = if adopted { blocks } else { blocks - OPEN };
    assert_eq!((progress.total_blocks, progress.acknowledged_blocks), (blocks, blocks), "{progress:?}");
    assert_eq!(progress.resumed_blocks, resumed, "{progress:?}");
}

/// A snapshot: the same point in time whatever device shows it.
fn job_of(attempt: u64, device: &Path) -> JobSpec {
    let job = job::job(device, UID, attempt);
    job::with_task(job, |task| task.source.point = Some(point()))
}

fn point() -> PointInTime {
    let created = "2026-11-25T00:00:00Z".parse().expect("a time");
    PointInTime { driver: "csi.example".into(), handle: "snap-1".into(), created }
}

/// The volume, its parent record, and the journal of attempt 1, which named all but the last blocks.
fn store(folder: &Path, blocks: u64) -> Arc<Written> {
    let volume: VolumeName = job::job(folder, UID, 1).volume;
    let layout = VolumeLayout::new(&volume);
    let endless = Endless::new(layout.clone(), blocks + blocks / 4, blocks, 1, job::now());
    let (objects, block_puts) = (Mutex::default(), AtomicU64::new(0));
    let store = Arc::new(Written { endless, layout: layout.clone(), objects, block_puts, modified: job::now() });
    let small = |bytes: Vec<u8>| Kept::Bytes(Bytes::from(bytes));
    let mut config = VolumeConfig::new(&volume, blocks * BLOCK, Compression::Lz4, job::now());
    config.last_backup_name = "backup-endless0".into();
    store.keep(&layout.config(), small(config.encode()));
    let first = AttemptId::new(1, [1; 10]);
    let point = point();
    let source = SourceIdentity::Snapshot {
        handle: format!("{}/{}", point.driver, point.handle),
        creation_time: point.created.to_string(),
    };
    let identity = Identity {
        format: 1,
        backup_uid: UID.into(),
        volume,
        volume_bytes: blocks * BLOCK,
        block_size: BlockSize::Mi2,
        compression: Compression::Lz4,
        mode: Mode::Incremental,
        source,
    };
    let file = AttemptFile { identity, record: BackupName::of_attempt(UID, &first) };
    store.keep(&layout.attempt(UID, &first), small(serde_json::to_vec(&file).expect("JSON")));
    let (mut journal, mut from) = (Journal::new(first.clone()), 0);
    // In a file: they are the disk's to keep, not this process's.
    let segments = Arc::new(tempfile::tempfile_in(folder).expect("a scratch file"));
    for ordinal in 0..blocks - OPEN {
        let placed = Placed { name: store.endless.named(ordinal), stored: endless::STORED };
        journal.push(JournalEntry { ordinal: ordinal as u32, placed: Some(placed) });
        if journal.pending() == 4096 || ordinal + 1 == blocks - OPEN {
            let (sequence, bytes) = journal.take().expect("pending");
            segments.write_all_at(&bytes, from).expect("there is room");
            let segment = Kept::File { file: segments.clone(), from, len: bytes.len() as u64 };
            store.keep(&layout.segment(UID, &first, sequence), segment);
            from += bytes.len() as u64;
        }
    }
    store
}
