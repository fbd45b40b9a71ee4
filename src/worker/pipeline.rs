//! The coordinator: where blocks become acknowledged. It owns the ledger and decides, one event at a time; the threads
//! read, hash and compress; the store's futures send. `apply` never awaits, so no event is ever half applied.
//!
//! A block goes one of these ways:
//! ```text
//! zeros ────────────────────────────────────────────▶ left out
//! listed, not mode Full ────────────────────────────▶ acknowledged (reused)
//! same bytes sent before in this attempt ───────────▶ acknowledged (uploaded)
//! same bytes on their way ──▶ waits for that answer ▶ acknowledged (uploaded)
//! otherwise: body buffer ▶ compress ▶ permit ▶ PUT ─▶ acknowledged (uploaded)
//! ```

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::compute::{CompressJob, Found, Raw, Threads};
use crate::{
    model::{BlockName, BlockSize, Compression, FailureReason, Progress, job::Mode, limits},
    store::{
        buffers::Pool,
        codec,
        concurrency::Concurrency,
        error::StoreError,
        guard::Guard,
        journal::{Entry, Journal},
        ledger::{How, Ledger, Receipt, Receipts},
        listing::Listing,
        pace::Pace,
        scratch::{Placed, Scratch},
    },
    telemetry,
};

/// Why the pipeline ended early.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("Source block {ordinal}: {seen}")]
    Source { reason: FailureReason, ordinal: u32, seen: String },
    #[error("Scratch: {0}; name a directory with room by --scratch-dir")]
    Scratch(#[from] std::io::Error),
    #[error("Cancelled")]
    Cancelled,
    #[error("{0}")]
    Bug(&'static str),
}

/// What is known before the first block.
pub struct Plan<'a> {
    pub guard: &'a Guard,
    pub listing: &'a Listing,
    pub scratch: &'a Scratch,
    pub mode: Mode,
    pub block_size: BlockSize,
    pub compression: Compression,
    pub concurrency: Option<u32>,
    pub max_bytes_per_second: Option<u64>,
    pub cancel: CancellationToken,
}

struct Sent {
    name: BlockName,
    answer: Result<Receipt, StoreError>,
}

/// The offsets that wait for one PUT.
struct Waiting {
    leader: u32,
    followers: Vec<Raw>,
}

struct Compressed {
    name: BlockName,
    object: Bytes,
}

/// One attempt's uploads.
pub struct Pipeline<'a> {
    plan: Plan<'a>,
    ledger: Ledger,
    journal: Journal,
    threads: Threads,
    bodies: Pool,
    receipts: Receipts,
    /// Blocks between their decision and their answer, with the offsets that wait for them. A waiting block keeps its
    /// buffer: so many duplicates stop the reader instead of filling memory.
    in_flight: HashMap<BlockName, Waiting>,
    to_compress: VecDeque<(Raw, BlockName)>,
    to_send: VecDeque<Compressed>,
    uploads: FuturesUnordered<BoxFuture<'a, Sent>>,
    writing: Option<BoxFuture<'a, Result<(), StoreError>>>,
    concurrency: Concurrency,
    pace: Pace,
    began: Instant,
    last_segment: Instant,
    progress: Progress,
}

enum Event {
    Found(Found),
    Sent(Sent),
    Written(Result<(), StoreError>),
    Lost(StoreError),
    Cancelled,
    Tick,
}

impl<'a> Pipeline<'a> {
    pub fn new(plan: Plan<'a>, ledger: Ledger, journal: Journal, threads: Threads) -> std::io::Result<Self> {
        let block_len = plan.block_size.len();
        let bodies = Pool::new(limits::buffers(plan.block_size), codec::max_encoded_len(plan.compression, block_len));
        let receipts = Receipts::create(plan.scratch, ledger.counts().total)?;
        let concurrency = Concurrency::new(plan.concurrency);
        let pace = Pace::new(plan.max_bytes_per_second);
        let now = Instant::now();
        Ok(Self {
            plan,
            ledger,
            journal,
            threads,
            bodies,
            receipts,
            in_flight: HashMap::new(),
            to_compress: VecDeque::new(),
            to_send: VecDeque::new(),
            uploads: FuturesUnordered::new(),
            writing: None,
            concurrency,
            pace,
            began: now,
            last_segment: now,
            progress: Progress::default(),
        })
    }

    /// Runs until every block is acknowledged or something ends the attempt. The ledger comes back in either case.
    pub async fn run(mut self, mut tell: impl FnMut(Progress)) -> (Ledger, Progress, Result<(), PipelineError>) {
        let ended = self.upload(&mut tell).await;
        let ended = match ended {
            Ok(()) => self.flush_journal().await.map_err(PipelineError::from),
            Err(error) => {
                self.drain(&mut tell).await;
                Err(error)
            }
        };
        let progress = self.progress_now();
        tell(progress);
        (self.ledger, progress, ended)
    }

    async fn upload(&mut self, tell: &mut impl FnMut(Progress)) -> Result<(), PipelineError> {
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.pump();
            tell(self.progress_now());
            if self.ledger.open().count() == 0 {
                return Ok(());
            }
            let event = self.next(&mut tick).await;
            self.apply(event)?;
        }
    }

    /// Chooses the next event; it changes nothing, so it may be cancelled.
    async fn next(&mut self, tick: &mut tokio::time::Interval) -> Event {
        tokio::select! {
            biased;
            lost = self.plan.guard.lost() => Event::Lost(lost),
            () = self.plan.cancel.cancelled() => Event::Cancelled,
            Some(sent) = self.uploads.next(), if !self.uploads.is_empty() => Event::Sent(sent),
            written = async { match &mut self.writing { Some(w) => w.await, None => std::future::pending().await } } => Event::Written(written),
            Some(found) = self.threads.found.recv() => Event::Found(found),
            _ = tick.tick() => Event::Tick,
        }
    }

    fn apply(&mut self, event: Event) -> Result<(), PipelineError> {
        match event {
            Event::Found(found) => self.apply_found(found),
            Event::Sent(sent) => self.apply_sent(sent),
            Event::Written(answer) => {
                self.writing = None;
                self.last_segment = Instant::now();
                Ok(answer?)
            }
            Event::Lost(error) => Err(error.into()),
            Event::Cancelled => Err(PipelineError::Cancelled),
            Event::Tick => self.apply_tick(),
        }
    }

    fn apply_found(&mut self, found: Found) -> Result<(), PipelineError> {
        match found {
            Found::Zero { ordinal } => {
                if self.ledger.skip_zero(ordinal) {
                    self.journal.push(Entry { ordinal, placed: None });
                }
                Ok(())
            }
            Found::Block { raw, name } => self.place(raw, name),
            Found::Compressed { name, object, .. } => {
                self.to_send.push_back(Compressed { name, object });
                Ok(())
            }
            Found::ReadFailed { ordinal, seen } => {
                Err(PipelineError::Source { reason: FailureReason::SourceReadFailed, ordinal, seen })
            }
            Found::ReadingDone => Ok(()),
        }
    }

    /// Decides which way a block goes.
    fn place(&mut self, raw: Raw, name: BlockName) -> Result<(), PipelineError> {
        let ordinal = raw.ordinal;
        if !self.ledger.is_open(ordinal) {
            return Ok(());
        }
        if self.plan.mode == Mode::Incremental
            && let Some(receipt) = self.plan.listing.confirm(&name)?
        {
            return self.acknowledge(ordinal, &receipt, How::Reused);
        }
        if let Some(waiting) = self.in_flight.get_mut(&name) {
            waiting.followers.push(raw);
            return Ok(());
        }
        if let Some(receipt) = self.receipts.find(&name)? {
            return self.acknowledge(ordinal, &receipt, How::Uploaded);
        }
        self.in_flight.insert(name, Waiting { leader: ordinal, followers: Vec::new() });
        self.to_compress.push_back((raw, name));
        Ok(())
    }

    fn acknowledge(&mut self, ordinal: u32, receipt: &Receipt, how: How) -> Result<(), PipelineError> {
        if self.ledger.acknowledge(ordinal, receipt, how)? {
            let placed = Placed { name: receipt.name(), stored: receipt.stored() };
            self.journal.push(Entry { ordinal, placed: Some(placed) });
            self.progress.last_acknowledged_time = Some(telemetry::now());
        }
        Ok(())
    }

    fn apply_sent(&mut self, sent: Sent) -> Result<(), PipelineError> {
        let receipt = match sent.answer {
            Ok(receipt) => receipt,
            Err(error) => {
                let waiting = self.in_flight.remove(&sent.name);
                self.progress.failed_blocks += waiting.map_or(0, |w| 1 + w.followers.len() as u64);
                return Err(error.into());
            }
        };
        let stored = u64::from(receipt.stored());
        self.progress.stored_bytes += stored;
        let throttles = self.plan.guard.client().requests().throttled;
        self.concurrency.acknowledged(self.began.elapsed(), stored, throttles);
        self.receipts.keep(&receipt)?;
        let Some(waiting) = self.in_flight.remove(&sent.name) else { return Ok(()) };
        self.acknowledge(waiting.leader, &receipt, How::Uploaded)?;
        for raw in waiting.followers {
            self.acknowledge(raw.ordinal, &receipt, How::Uploaded)?;
        }
        Ok(())
    }

    fn apply_tick(&mut self) -> Result<(), PipelineError> {
        let reading_for = self.threads.reading_for();
        if reading_for > limits::SOURCE_DEADLINE {
            let seen = format!("one read has taken {} s", reading_for.as_secs());
            return Err(PipelineError::Source { reason: FailureReason::SourceStalled, ordinal: 0, seen });
        }
        Ok(())
    }

    /// Moves everything on that has what it needs: a body buffer, an upload slot, a due segment.
    fn pump(&mut self) {
        while let Some((raw, name)) = self.to_compress.pop_front() {
            let Some(body) = self.bodies.try_take() else {
                self.to_compress.push_front((raw, name));
                break;
            };
            self.threads.compress(CompressJob { raw, name, body });
        }
        while self.uploads.len() < self.concurrency.limit() as usize {
            let Some(compressed) = self.to_send.pop_front() else { break };
            self.send(compressed);
        }
        let since_last = self.last_segment.elapsed();
        if self.writing.is_none() && self.journal.is_due(since_last, self.began.elapsed()) {
            self.writing = self.write_segment();
        }
    }

    fn send(&mut self, compressed: Compressed) {
        let wait = self.pace.reserve(self.began.elapsed(), compressed.object.len() as u64);
        let guard = self.plan.guard;
        let upload = async move {
            sleep(wait).await;
            Sent { name: compressed.name, answer: guard.put_block(compressed.name, compressed.object).await }
        };
        self.uploads.push(upload.boxed());
    }

    fn write_segment(&mut self) -> Option<BoxFuture<'a, Result<(), StoreError>>> {
        let (sequence, bytes) = self.journal.take()?;
        let guard = self.plan.guard;
        let write = async move {
            let holder = guard.holder();
            let key = holder.layout.segment(&holder.backup_uid, &holder.attempt, sequence);
            guard.client().create(&key, bytes).await
        };
        Some(write.boxed())
    }

    /// Everything acknowledged is in the journal when this returns well.
    async fn flush_journal(&mut self) -> Result<(), StoreError> {
        if let Some(writing) = self.writing.take() {
            writing.await?;
        }
        while let Some(write) = self.write_segment() {
            write.await?;
        }
        Ok(())
    }

    /// The attempt has ended: what is still acknowledged counts, and is journalled if the store lets us.
    async fn drain(&mut self, tell: &mut impl FnMut(Progress)) {
        let until = Instant::now() + limits::ORDERLY_END;
        while let Ok(Some(sent)) = tokio::time::timeout_at(until, self.uploads.next()).await {
            // The first failure ended the attempt; the others say nothing new.
            let _ = self.apply_sent(sent);
            tell(self.progress_now());
        }
        self.uploads.clear();
        if !matches!(timeout(limits::ORDERLY_END, self.flush_journal()).await, Ok(Ok(()))) {
            tracing::info!(
                entries = self.journal.pending(),
                "Journal could not be flushed: these blocks will be read again, not sent again"
            );
        }
    }

    fn progress_now(&self) -> Progress {
        let counts = self.ledger.counts();
        Progress {
            total_blocks: counts.total,
            acknowledged_blocks: counts.acknowledged(),
            uploaded_blocks: counts.uploaded,
            reused_blocks: counts.reused,
            resumed_blocks: counts.resumed,
            zero_blocks: counts.zero,
            in_flight_blocks: self.uploads.len() as u64,
            acknowledged_bytes: counts.acknowledged() * self.plan.block_size.bytes(),
            read_bytes: self.threads.read_bytes(),
            ..self.progress
        }
    }
}
