//! The threads: one reads, P hash and compress. They know blocks and buffers, never the store.
//!
//! ```text
//! reader ─raw─▶ hash queue ─▶ Found::Block ─▶ (coordinator) ─▶ compress queue ─▶ Found::Compressed
//!    └─ zeros ─▶ Found::Zero
//! ```
//! Compressing comes first, so that what was paid for moves on; blocks are hashed in batches as wide as the processor
//! hashes at once, and a partial batch after 5 ms.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::source::Source;
use crate::{
    model::{BlockName, BlockSize, Compression, limits},
    store::{
        buffers::{Buffer, Pool},
        codec,
        lease::boottime,
        scratch::Bitmap,
    },
};

/// Events on their way to the coordinator: more than the buffers, for zeros carry none.
const FOUND_MAX: usize = 1024;
/// A partial batch is hashed after this long.
const BATCH_WAIT: Duration = Duration::from_millis(5);

/// A block with its bytes and the buffer that pays for them.
#[derive(Debug)]
pub struct Raw {
    pub ordinal: u32,
    pub buffer: Buffer,
}

/// What the threads tell the coordinator.
#[derive(Debug)]
pub enum Found {
    Zero { ordinal: u32 },
    Block { raw: Raw, name: BlockName },
    Compressed { ordinal: u32, name: BlockName, object: Bytes },
    ReadFailed { ordinal: u32, seen: String },
    ReadingDone,
}

/// What to compress, into which body.
#[derive(Debug)]
pub struct CompressJob {
    pub raw: Raw,
    pub name: BlockName,
    pub body: Buffer,
}

/// The running threads. They end when it is dropped.
#[derive(Debug)]
pub struct Threads {
    shared: Arc<Shared>,
    raw: Pool,
    pub found: mpsc::Receiver<Found>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    read_bytes: AtomicU64,
    /// Boot time in ms at which the read under way began; 0: none.
    reading_since: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    compress: VecDeque<CompressJob>,
    hash: VecDeque<Raw>,
    is_reading_done: bool,
    is_closed: bool,
}

enum Job {
    Compress(CompressJob),
    Hash(Vec<Raw>),
}

/// What to read and how to treat it.
pub struct Work {
    pub source: Arc<Source>,
    pub plan: Bitmap,
    pub block_size: BlockSize,
    pub compression: Compression,
}

/// Hash and compress threads for this machine.
pub fn compute_threads(cores: usize) -> usize {
    if cores <= 4 { cores.max(1) } else { (cores - 2).min(10) }
}

impl Threads {
    pub fn start(work: Work) -> std::io::Result<Self> {
        let (tell, found) = mpsc::channel(FOUND_MAX);
        let raw = Pool::new(limits::buffers(work.block_size), work.block_size.len());
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            read_bytes: AtomicU64::new(0),
            reading_since: AtomicU64::new(0),
        });
        let cores = thread::available_parallelism().map_or(1, usize::from);
        for i in 0..compute_threads(cores) {
            let (shared, tell, method) = (Arc::clone(&shared), tell.clone(), work.compression);
            thread::Builder::new().name(format!("compute-{i}")).spawn(move || compute(&shared, &tell, method))?;
        }
        let threads = Self { shared: Arc::clone(&shared), raw: raw.clone(), found };
        thread::Builder::new().name("reader".into()).spawn(move || read(&shared, &tell, &raw, &work))?;
        Ok(threads)
    }

    pub fn compress(&self, job: CompressJob) {
        self.shared.lock().compress.push_back(job);
        self.shared.changed.notify_one();
    }

    /// Bytes read so far.
    pub fn read_bytes(&self) -> u64 {
        self.shared.read_bytes.load(Ordering::Relaxed)
    }

    /// How long the read under way has taken.
    pub fn reading_for(&self) -> Duration {
        match self.shared.reading_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => boottime().saturating_sub(Duration::from_millis(since)),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
        self.raw.close();
        self.found.close();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job, or `None` when everything is over.
    fn next(&self) -> Option<Job> {
        let lanes = codec::lanes();
        let mut queue = self.lock();
        let mut has_waited = false;
        loop {
            if queue.is_closed {
                return None;
            }
            if let Some(job) = queue.compress.pop_front() {
                return Some(Job::Compress(job));
            }
            let is_batch = queue.hash.len() >= lanes || has_waited || queue.is_reading_done;
            if is_batch && !queue.hash.is_empty() {
                let n = queue.hash.len().min(lanes);
                return Some(Job::Hash(queue.hash.drain(..n).collect()));
            }
            if queue.hash.is_empty() {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            } else {
                let (woken, waited) =
                    self.changed.wait_timeout(queue, BATCH_WAIT).unwrap_or_else(PoisonError::into_inner);
                (queue, has_waited) = (woken, waited.timed_out());
            }
        }
    }
}

fn compute(shared: &Shared, tell: &mpsc::Sender<Found>, method: Compression) {
    while let Some(job) = shared.next() {
        // A coordinator that is gone wants nothing any more.
        let is_heard = match job {
            Job::Compress(job) => tell.blocking_send(compress(job, method)).is_ok(),
            Job::Hash(batch) => hash(batch).into_iter().all(|found| tell.blocking_send(found).is_ok()),
        };
        if !is_heard {
            return;
        }
    }
}

fn compress(mut job: CompressJob, method: Compression) -> Found {
    let len = codec::encode_into(method, job.raw.buffer.bytes(), job.body.bytes_mut());
    Found::Compressed { ordinal: job.raw.ordinal, name: job.name, object: job.body.into_bytes(len) }
}

fn hash(batch: Vec<Raw>) -> Vec<Found> {
    let mut names = vec![BlockName([0; 32]); batch.len()];
    let blocks: Vec<&[u8]> = batch.iter().map(|raw| raw.buffer.bytes()).collect();
    codec::name_blocks(&blocks, &mut names);
    batch.into_iter().zip(names).map(|(raw, name)| Found::Block { raw, name }).collect()
}

fn read(shared: &Shared, tell: &mpsc::Sender<Found>, pool: &Pool, work: &Work) {
    for ordinal in work.plan.iter() {
        let Some(mut buffer) = pool.take() else { return };
        let since = u64::try_from(boottime().as_millis()).unwrap_or(u64::MAX).max(1);
        shared.reading_since.store(since, Ordering::Relaxed);
        let answer = work.source.read_block(ordinal, buffer.bytes_mut());
        shared.reading_since.store(0, Ordering::Relaxed);
        let found = match answer {
            Err(error) => Some(Found::ReadFailed { ordinal, seen: error.to_string() }),
            Ok(()) if codec::is_zero(buffer.bytes()) => Some(Found::Zero { ordinal }),
            Ok(()) => {
                shared.lock().hash.push_back(Raw { ordinal, buffer });
                shared.changed.notify_one();
                None
            }
        };
        shared.read_bytes.fetch_add(work.block_size.bytes(), Ordering::Relaxed);
        if found.is_some_and(|found| tell.blocking_send(found).is_err()) {
            return;
        }
    }
    shared.lock().is_reading_done = true;
    shared.changed.notify_all();
    // The coordinator may be gone already; then nobody waits for this.
    let _ = tell.blocking_send(Found::ReadingDone);
}
