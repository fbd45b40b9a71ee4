//! Requests at once, compute threads, and the first failure.
//!
//! One feeder walks the record and starts GETs; each holds a buffer's permit until its block is written, so at most
//! `limits::buffers` objects are in memory. Compute threads take what has arrived, up to a batch that fills the hash's
//! lanes, decode, compare names, write. The first failure stops the feeder and the requests; what is being written
//! ends. Order of writing is free: every block has its own place.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    Damage, HOLES_LISTED_MAX, Hole, Left, Plan, RestoreError, RestoreJob, RestorePhase, RestoreProgress, Target,
    is_damage, zero_name,
};
use crate::{
    model::{BlockName, limits},
    store::{codec, entries::Entries, error::StoreError, objects::Range, record::BlockEntry},
};

/// Most compute threads: more than this and memory, not cores, is the limit.
const THREADS_MAX: usize = 10;

/// What comes from and goes to whoever asked for the restore.
pub(super) struct Outside {
    pub(super) progress: watch::Sender<RestoreProgress>,
    pub(super) cancel: CancellationToken,
}

/// An object on its way to its place.
struct Arrived {
    entry: BlockEntry,
    key: String,
    object: Bytes,
    _buffer: OwnedSemaphorePermit,
}

struct Shared {
    plan: Plan,
    target: Target,
    damage: Damage,
    progress: watch::Sender<RestoreProgress>,
    /// Set with the first failure.
    stop: CancellationToken,
    state: Mutex<State>,
    arrived: Mutex<mpsc::Receiver<Arrived>>,
}

#[derive(Default)]
struct State {
    failure: Option<Failed>,
    holes: Vec<Hole>,
    holes_count: u64,
}

enum Failed {
    Store(StoreError),
    Block(Hole),
    Write(String),
    Cancelled,
}

pub(super) async fn run(
    job: &RestoreJob,
    plan: Plan,
    entries: Entries,
    target: Target,
    outside: Outside,
) -> Result<(), RestoreError> {
    let buffers = limits::buffers(plan.block_size);
    let (arrive, arrived) = mpsc::channel(buffers);
    let shared = Arc::new(Shared {
        plan,
        target,
        damage: job.damage,
        progress: outside.progress,
        stop: CancellationToken::new(),
        state: Mutex::default(),
        arrived: Mutex::new(arrived),
    });
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(THREADS_MAX).min(buffers);
    let batch = codec::lanes().min(buffers.div_ceil(threads));
    let mut compute = JoinSet::new();
    for _ in 0..threads {
        let shared = shared.clone();
        compute.spawn_blocking(move || shared.compute(batch));
    }
    let feeder = Feeder { job, shared: &shared, arrive, buffers: Arc::new(Semaphore::new(buffers)) };
    tokio::select! {
        biased;
        () = outside.cancel.cancelled() => shared.fail(Failed::Cancelled),
        () = feeder.feed(entries) => {}
    }
    // The feeder is gone, and with it the channel's sender: the threads end when they have written what arrived.
    while let Some(ended) = compute.join_next().await {
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    }
    shared.finish().await
}

struct Feeder<'a> {
    job: &'a RestoreJob,
    shared: &'a Arc<Shared>,
    arrive: mpsc::Sender<Arrived>,
    buffers: Arc<Semaphore>,
}

impl Feeder<'_> {
    /// Walks the record until its end or the first failure.
    async fn feed(self, mut entries: Entries) {
        let slots = Arc::new(Semaphore::new(self.job.concurrency.clamp(1, limits::CONCURRENCY_MAX) as usize));
        let zeros = zero_name(self.shared.plan.block_size);
        let block_bytes = self.shared.plan.block_size.bytes();
        let mut requests = JoinSet::new();
        let mut done_to = 0;
        loop {
            let entry = tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => return,
                entry = entries.next() => entry,
            };
            let entry = match entry {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(error) => return self.shared.fail(Failed::Store(error)),
            };
            if entry.offset >= self.shared.target.volume_bytes() {
                let seen = format!("it lies outside the volume of {} bytes", self.shared.target.volume_bytes());
                let key = self.shared.plan.record_key.clone();
                return self.shared.fail(Failed::Block(Hole { offset: entry.offset, key, seen }));
            }
            let end = entry.offset + block_bytes;
            if entry.block_checksum == zeros {
                self.zero(done_to, end).await;
                self.shared.count(1, end.min(self.shared.target.volume_bytes()) - entry.offset, 0);
                done_to = end;
                continue;
            }
            self.zero(done_to, entry.offset).await;
            done_to = end;
            let Some((buffer, slot)) = self.permits(&slots).await else { return };
            requests.spawn(fetch(
                self.job.client.clone(),
                self.shared.clone(),
                self.arrive.clone(),
                Order { entry, buffer, slot },
            ));
            while requests.try_join_next().is_some() {}
        }
        self.zero(done_to, self.shared.target.volume_bytes()).await;
        loop {
            tokio::select! {
                biased;
                // Dropping the set ends the requests.
                () = self.shared.stop.cancelled() => return,
                ended = requests.join_next() => if ended.is_none() { return },
            }
        }
    }

    async fn permits(&self, slots: &Arc<Semaphore>) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let both = async {
            let buffer = self.buffers.clone().acquire_owned().await.ok()?;
            Some((buffer, slots.clone().acquire_owned().await.ok()?))
        };
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => None,
            both = both => both,
        }
    }

    /// Makes a gap read as zeros, without holding up the sockets.
    async fn zero(&self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let shared = self.shared.clone();
        let zeroed = tokio::task::spawn_blocking(move || shared.target.zero(from, to)).await;
        let failed = match zeroed {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("zeroing bytes {from} to {to}: {error}"),
            Err(panic) => format!("zeroing bytes {from} to {to}: {panic}"),
        };
        self.shared.fail(Failed::Write(failed));
    }
}

/// One block to fetch, with the permits it holds.
struct Order {
    entry: BlockEntry,
    buffer: OwnedSemaphorePermit,
    slot: OwnedSemaphorePermit,
}

async fn fetch(client: crate::store::client::Client, shared: Arc<Shared>, arrive: mpsc::Sender<Arrived>, order: Order) {
    let Order { entry, buffer, slot } = order;
    let key = shared.plan.layout.block(&entry.block_checksum);
    let block = shared.plan.block_size.bytes();
    // No plausible object is longer (model::block::is_plausible).
    let range = Range::whole(block + block / 256 + 64);
    let hole = |seen: &str| Hole { offset: entry.offset, key: key.clone(), seen: seen.to_owned() };
    let answer = client.get(&key, range).await;
    drop(slot);
    match answer {
        Ok(Some(fetched)) => {
            // The receiver is gone only after a failure.
            let _ = arrive.send(Arrived { entry, key, object: fetched.bytes, _buffer: buffer }).await;
        }
        Ok(None) => shared.give_up(hole("the object is not in the store")),
        Err(error) if is_damage(&error) => shared.give_up(hole(&error.seen)),
        Err(error) => shared.fail(Failed::Store(error)),
    }
}

impl Shared {
    /// A compute thread: until the channel ends, or a failure.
    fn compute(&self, batch_max: usize) {
        let mut buffers: Vec<Vec<u8>> = (0..batch_max).map(|_| vec![0; self.plan.block_size.len()]).collect();
        loop {
            let batch = self.take(batch_max);
            if batch.is_empty() {
                return;
            }
            // After a failure what arrived is only thrown away, so that nobody waits for a buffer.
            if !self.stop.is_cancelled() {
                self.write_batch(&batch, &mut buffers);
            }
        }
    }

    /// Waits for one, and takes what else is there.
    fn take(&self, batch_max: usize) -> Vec<Arrived> {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(first) = arrived.blocking_recv() else { return Vec::new() };
        let mut batch = vec![first];
        while batch.len() < batch_max {
            match arrived.try_recv() {
                Ok(next) => batch.push(next),
                Err(_) => break,
            }
        }
        batch
    }

    fn write_batch(&self, batch: &[Arrived], buffers: &mut [Vec<u8>]) {
        let mut decoded: Vec<(&Arrived, &[u8])> = Vec::with_capacity(batch.len());
        for (arrived, buffer) in batch.iter().zip(buffers) {
            match codec::decode(self.plan.compression, &arrived.object, buffer) {
                Ok(()) => decoded.push((arrived, buffer)),
                Err(error) => self.give_up(hole(arrived, &error)),
            }
        }
        let blocks: Vec<&[u8]> = decoded.iter().map(|(_, block)| *block).collect();
        let mut names = vec![BlockName([0; 32]); blocks.len()];
        codec::name_blocks(&blocks, &mut names);
        for ((arrived, block), name) in decoded.into_iter().zip(names) {
            if name != arrived.entry.block_checksum {
                self.give_up(hole(
                    arrived,
                    &format!("its bytes have the checksum {name}, not the one they are stored under"),
                ));
                continue;
            }
            match self.target.write(arrived.entry.offset, block) {
                Ok(written) => self.count(1, written, arrived.object.len() as u64),
                Err(error) => {
                    let seen = format!("writing {} bytes at offset {}: {error}", block.len(), arrived.entry.offset);
                    return self.fail(Failed::Write(seen));
                }
            }
        }
    }

    fn count(&self, blocks: u64, written_bytes: u64, fetched_bytes: u64) {
        self.progress.send_modify(|p| {
            p.written_blocks += blocks;
            p.written_bytes += written_bytes;
            p.fetched_bytes += fetched_bytes;
            p.total_blocks = p.total_blocks.max(p.written_blocks + p.failed_blocks);
        });
    }

    /// A block that cannot be restored: the end, or a hole.
    fn give_up(&self, hole: Hole) {
        if self.damage == Damage::Stop {
            return self.fail(Failed::Block(hole));
        }
        let range = (hole.offset, hole.offset + self.plan.block_size.bytes());
        if let Err(error) = self.target.zero(range.0, range.1) {
            return self.fail(Failed::Write(format!("zeroing bytes {} to {}: {error}", range.0, range.1)));
        }
        let mut state = self.state();
        state.holes_count += 1;
        if state.holes.len() < HOLES_LISTED_MAX {
            state.holes.push(hole);
        }
        self.progress.send_modify(|p| p.failed_blocks += 1);
    }

    /// The first failure is the one that is told.
    fn fail(&self, failure: Failed) {
        self.state().failure.get_or_insert(failure);
        self.stop.cancel();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After everything was written or the first failure.
    async fn finish(self: Arc<Self>) -> Result<(), RestoreError> {
        let left = {
            let p = self.progress.borrow();
            Left::Partial { written: p.written_blocks, total: p.total_blocks }
        };
        if let Some(failure) = self.state().failure.take() {
            return Err(self.explain(failure, left));
        }
        self.progress.send_modify(|p| p.phase = RestorePhase::Syncing);
        let shared = self.clone();
        let synced = tokio::task::spawn_blocking(move || shared.target.finish()).await;
        let synced = synced.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        synced.map_err(|error| self.explain(Failed::Write(format!("fsync: {error}")), left))?;
        let state = &mut *self.state();
        match state.holes_count {
            0 => Ok(()),
            count => {
                state.holes.sort_by_key(|hole| hole.offset);
                Err(RestoreError::Holes { count, first: std::mem::take(&mut state.holes) })
            }
        }
    }

    fn explain(&self, failure: Failed, left: Left) -> RestoreError {
        match failure {
            Failed::Store(error) => RestoreError::Store { error, left },
            Failed::Block(hole) => RestoreError::Block { hole, left },
            Failed::Write(seen) => RestoreError::Target { path: self.target.path().to_owned(), seen, left },
            Failed::Cancelled => RestoreError::Cancelled(left),
        }
    }
}

fn hole(arrived: &Arrived, seen: &dyn std::fmt::Display) -> Hole {
    Hole { offset: arrived.entry.offset, key: arrived.key.clone(), seen: seen.to_string() }
}
