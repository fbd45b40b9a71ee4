//! Blocks, read: GET, decode, compare with the name. Each block once, however many places name it.
//!
//! One coordinator owns everything: requests under way, objects that wait, batches on compute threads. Their sum never
//! exceeds `limits::buffers`, so memory is bounded by construction (law 9). A batch fills the hash's lanes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{Check, Depth, FindingKind, sample::Choice};
use crate::{
    model::{BlockName, BlockSize, Compression, limits},
    store::{
        client::Client,
        codec,
        error::{ErrorKind, StoreError},
        inventory::ListedBlock,
        objects::Range,
    },
};

/// Most compute threads: more than this and memory, not cores, is the limit.
const THREADS_MAX: usize = 10;
/// Between two reports of progress.
const TELL: Duration = Duration::from_millis(100);

/// An object, fetched.
struct Arrived {
    block: ListedBlock,
    object: Bytes,
}

/// Why a block is bad.
type Bad = (FindingKind, String);

/// What became of one block.
struct Judged {
    index: u32,
    bytes: u64,
    bad: Option<Bad>,
}

/// A batch that was judged, and the buffers it used.
struct Batch {
    judged: Vec<Judged>,
    buffers: Vec<Vec<u8>>,
}

/// Reads under way. Dropping it ends its requests; a batch that computes ends by itself.
struct Reading {
    requests: JoinSet<Result<Result<Arrived, Judged>, StoreError>>,
    waiting: Vec<Arrived>,
    computing: JoinSet<Batch>,
    /// Objects in the hands of compute threads.
    computed: usize,
    spare: Vec<Vec<u8>>,
}

impl Check<'_> {
    /// Reads so many blocks of a group, chosen as the depth says.
    pub(super) async fn read_group(&mut self, group: usize, wanted: u64) -> Result<(), StoreError> {
        let (block_size, is_plain) = (self.groups[group].block_size, self.groups[group].is_plain);
        let seed = match self.order.depth {
            Depth::Sample { seed, .. } => seed.wrapping_add(group as u64),
            Depth::Listing | Depth::Full => 0,
        };
        let named = self.groups[group].named.clone();
        let mut choice = Choice::new(seed, wanted, named.count());
        let mut indexes = named.iter().filter(move |_| choice.next()).peekable();
        let method = if is_plain { Compression::None } else { Compression::Lz4 };
        let buffers = limits::buffers(block_size);
        let threads = std::thread::available_parallelism().map_or(2, usize::from).min(THREADS_MAX).min(buffers);
        let batch = codec::lanes().min(buffers.div_ceil(threads));
        let concurrency = self.order.concurrency.clamp(1, limits::CONCURRENCY_MAX) as usize;
        let mut reading = Reading::default();
        let mut told = Instant::now();
        loop {
            while reading.requests.len() < concurrency && reading.in_memory() < buffers {
                let Some(index) = indexes.next() else { break };
                let block = self.inventory.get(index)?;
                reading.requests.spawn(fetch(self.client.clone(), self.layout.block(&block.name), block));
            }
            reading.compute(batch, threads, (block_size, method));
            for judged in reading.next().await? {
                self.judged(group, judged);
            }
            if told.elapsed() >= TELL {
                told = Instant::now();
                self.report();
            }
            if reading.in_memory() == 0 && indexes.peek().is_none() {
                return Ok(());
            }
        }
    }

    fn judged(&mut self, group: usize, judged: Judged) {
        self.done.blocks_read += 1;
        self.done.bytes_read += judged.bytes;
        let Some(bad) = judged.bad else { return };
        let group = &mut self.groups[group];
        group.bad.insert(judged.index);
        if group.seen.len() < limits::FINDINGS_LISTED_MAX {
            group.seen.insert(judged.index, bad);
        }
    }
}

impl Default for Reading {
    fn default() -> Self {
        let (requests, computing) = (JoinSet::new(), JoinSet::new());
        Self { requests, waiting: Vec::new(), computing, computed: 0, spare: Vec::new() }
    }
}

impl Reading {
    fn in_memory(&self) -> usize {
        self.requests.len() + self.waiting.len() + self.computed
    }

    /// Hands out what waits: full batches, or whatever there is while no thread works.
    fn compute(&mut self, batch: usize, threads: usize, form: (BlockSize, Compression)) {
        while self.computing.len() < threads
            && (self.waiting.len() >= batch || (self.computing.is_empty() && !self.waiting.is_empty()))
        {
            let arrived: Vec<Arrived> = self.waiting.drain(..batch.min(self.waiting.len())).collect();
            self.computed += arrived.len();
            let mut buffers = Vec::with_capacity(arrived.len());
            buffers.extend((0..arrived.len()).map_while(|_| self.spare.pop()));
            self.computing.spawn_blocking(move || judge(&arrived, buffers, form));
        }
    }

    /// Waits for one thing to happen; what was judged by it.
    async fn next(&mut self) -> Result<Vec<Judged>, StoreError> {
        let panicked = "a task of ours does not panic and is not aborted";
        tokio::select! {
            Some(fetched) = self.requests.join_next() => match fetched.expect(panicked)? {
                Ok(arrived) => {
                    self.waiting.push(arrived);
                    Ok(Vec::new())
                }
                Err(judged) => Ok(vec![judged]),
            },
            Some(batch) = self.computing.join_next() => {
                let Batch { judged, buffers } = batch.expect(panicked);
                self.computed -= judged.len();
                self.spare.extend(buffers);
                Ok(judged)
            }
            else => Ok(Vec::new()),
        }
    }
}

/// The object, or what is wrong with it; `Err` if the store did not say.
async fn fetch(client: Client, key: String, block: ListedBlock) -> Result<Result<Arrived, Judged>, StoreError> {
    let bad = |kind, seen: String| Ok(Err(Judged { index: block.index, bytes: 0, bad: Some((kind, seen)) }));
    match client.get(&key, Range::whole(block.bytes())).await {
        Ok(Some(fetched)) => Ok(Ok(Arrived { block, object: fetched.bytes })),
        Ok(None) => bad(FindingKind::BlockMissing, "it was listed, and is not in the store any more".to_owned()),
        Err(error) if error.kind == ErrorKind::Damaged => bad(FindingKind::BlockUnreadable, error.seen),
        Err(error) => Err(error),
    }
}

/// Decodes a batch and compares each block with its name. Runs on a compute thread.
fn judge(batch: &[Arrived], mut buffers: Vec<Vec<u8>>, (block_size, method): (BlockSize, Compression)) -> Batch {
    buffers.resize_with(batch.len(), || vec![0; block_size.len()]);
    let decoded: Vec<Option<String>> = batch
        .iter()
        .zip(&mut buffers)
        .map(|(arrived, buffer)| codec::decode(method, &arrived.object, buffer).err().map(|error| error.to_string()))
        .collect();
    let whole = |i: &usize| decoded[*i].is_none();
    let blocks: Vec<&[u8]> = (0..batch.len()).filter(whole).map(|i| buffers[i].as_slice()).collect();
    let mut names = vec![BlockName([0; 32]); blocks.len()];
    codec::name_blocks(&blocks, &mut names);
    let mut names = names.into_iter();
    let judged = batch.iter().zip(decoded).map(|(arrived, failed)| {
        let seen = failed.or_else(|| {
            let name = names.next().expect("one name for each decoded block");
            (name != arrived.block.name)
                .then(|| format!("its bytes have the checksum {name}, not the one they are stored under"))
        });
        let bad = seen.map(|seen| (FindingKind::BlockCorrupt, seen));
        Judged { index: arrived.block.index, bytes: arrived.object.len() as u64, bad }
    });
    let judged = judged.collect();
    Batch { judged, buffers }
}
