//! What the parts of one restore share: the counters, the holes, the first failure, and the work of the threads.
//!
//! A block of the record is an `Order` until it was counted, restored or lost. Orders hold a sender of the channel that
//! leads to the requests, so that channel ends exactly when no order is left anywhere.

use std::{
    collections::VecDeque,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc::UnboundedSender, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Damage, HOLES_LISTED_MAX, Hole, Left, OnHole, RestoreError, RestoreProgress, plan::Plan, readback::Sample,
    target::Target,
};
use crate::{
    model::{DamageReason, FailureReason, limits},
    store::{error::StoreError, lease::boottime, record::BlockEntry},
};

/// A partial batch is taken after this long.
const BATCH_WAIT: Duration = Duration::from_millis(5);

pub(super) struct Shared {
    pub(super) plan: Plan,
    pub(super) target: Target,
    pub(super) damage: Damage,
    pub(super) on_hole: Option<OnHole>,
    pub(super) progress: watch::Sender<RestoreProgress>,
    /// Set with the first failure.
    pub(super) stop: CancellationToken,
    pub(super) work: Work,
    pub(super) state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) failure: Option<Failed>,
    pub(super) holes: Vec<Hole>,
    pub(super) holes_count: u64,
    pub(super) sample: Sample,
}

pub(super) enum Failed {
    Store(StoreError),
    Block(Hole),
    Target(FailureReason, String),
    Cancelled,
    Bug(String),
}

/// One block of the record on its way.
pub(super) struct Order {
    pub(super) entry: BlockEntry,
    /// Where it goes to be fetched.
    pub(super) fetch: UnboundedSender<Order>,
    /// It was fetched before, and what came was wrong.
    pub(super) is_second: bool,
    /// One of `RESTORE_ORDERS_MAX`.
    pub(super) _room: OwnedSemaphorePermit,
}

impl Order {
    /// Sends it to be fetched. Nobody listens after a failure only.
    pub(super) fn send(self) {
        let fetch = self.fetch.clone();
        let _ = fetch.send(self);
    }
}

/// An object on its way to its place.
pub(super) struct Arrived {
    pub(super) order: Order,
    pub(super) key: String,
    pub(super) object: Bytes,
    pub(super) _buffer: OwnedSemaphorePermit,
}

/// A range to make zero.
pub(super) struct Gap {
    pub(super) from: u64,
    pub(super) to: u64,
    /// The record names it: a block of zeros.
    pub(super) block: Option<Order>,
    pub(super) _room: Option<OwnedSemaphorePermit>,
}

/// What one thread does next.
pub(super) enum Job {
    Place(Vec<Arrived>),
    Zero(Gap),
    Compare(Vec<Order>),
}

/// Bounded by the permits that everything in it holds.
#[derive(Default)]
pub(super) struct Work {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Boot time in ms at which each thread's read or write began; 0: none.
    busy_since: [AtomicU64; limits::RESTORE_THREADS_MAX],
}

#[derive(Default)]
struct Queue {
    arrived: VecDeque<Arrived>,
    gaps: VecDeque<Gap>,
    compare: VecDeque<Order>,
    is_closed: bool,
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn place(&self, arrived: Arrived) {
        self.lock().arrived.push_back(arrived);
        self.changed.notify_one();
    }

    pub(super) fn zero(&self, gap: Gap) {
        self.lock().gaps.push_back(gap);
        self.changed.notify_one();
    }

    pub(super) fn compare(&self, order: Order) {
        self.lock().compare.push_back(order);
        self.changed.notify_one();
    }

    /// Nothing more comes; what is there is still done.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// What was paid for by a download comes first. Blocks are taken in batches as wide as the processor hashes at once,
    /// and a partial batch after a short wait: one block alone costs four times as much. `None`: closed and empty.
    pub(super) fn next(&self, batch_max: usize) -> Option<Job> {
        let mut queue = self.lock();
        let mut has_waited = false;
        loop {
            let is_due = |n: usize| n >= batch_max || (n > 0 && (has_waited || queue.is_closed));
            if is_due(queue.arrived.len()) {
                let n = queue.arrived.len().min(batch_max);
                return Some(Job::Place(queue.arrived.drain(..n).collect()));
            }
            if is_due(queue.compare.len()) {
                let n = queue.compare.len().min(batch_max);
                return Some(Job::Compare(queue.compare.drain(..n).collect()));
            }
            if let Some(gap) = queue.gaps.pop_front() {
                return Some(Job::Zero(gap));
            }
            if queue.is_closed {
                return None;
            }
            if queue.arrived.is_empty() && queue.compare.is_empty() {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            } else {
                let (woken, waited) =
                    self.changed.wait_timeout(queue, BATCH_WAIT).unwrap_or_else(PoisonError::into_inner);
                (queue, has_waited) = (woken, waited.timed_out());
            }
        }
    }

    /// Does something with the target, so that it is seen if it never ends.
    pub(super) fn timed<T>(&self, thread: usize, act: impl FnOnce() -> T) -> T {
        let since = u64::try_from(boottime().as_millis()).unwrap_or(u64::MAX).max(1);
        self.busy_since[thread].store(since, Ordering::Relaxed);
        let done = act();
        self.busy_since[thread].store(0, Ordering::Relaxed);
        done
    }

    /// How long the oldest read or write under way has taken.
    pub(super) fn busy_for(&self) -> Duration {
        let since = self.busy_since.iter().map(|since| since.load(Ordering::Relaxed)).filter(|since| *since > 0).min();
        since.map_or(Duration::ZERO, |since| boottime().saturating_sub(Duration::from_millis(since)))
    }
}

/// How a block came to lie in the target.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Written,
    Reused,
}

impl Shared {
    /// A block whose checksum held lies in the target.
    pub(super) fn count(&self, entry: &BlockEntry, how: How) {
        let bytes = self.target.length(entry.offset, self.plan.block_size.len()) as u64;
        self.state().sample.offer(entry);
        self.progress.send_modify(|p| {
            match how {
                How::Written => p.written_blocks += 1,
                How::Reused => p.reused_blocks += 1,
            }
            p.restored_bytes += bytes;
            p.total_blocks = p.total_blocks.max(p.restored_blocks() + p.failed_blocks);
        });
    }

    pub(super) fn count_fetched(&self, bytes: u64) {
        self.progress.send_modify(|p| p.fetched_bytes += bytes);
    }

    /// What came is not the block. A bad answer is not the store's damage: it is asked for once more.
    pub(super) fn suspect(&self, mut order: Order, key: &str, reason: DamageReason, seen: &dyn std::fmt::Display) {
        if !order.is_second {
            tracing::warn!(offset = order.entry.offset, key, %seen, "Block is not what it should be, fetching it again");
            order.is_second = true;
            return order.send();
        }
        let hole = Hole { offset: order.entry.offset, key: key.to_owned(), reason, seen: seen.to_string() };
        if self.damage == Damage::Stop {
            return self.fail(Failed::Block(hole));
        }
        let to = order.entry.offset + self.plan.block_size.bytes();
        self.work.zero(Gap { from: order.entry.offset, to, block: None, _room: None });
        if let Some(told) = &self.on_hole {
            told(&hole);
        }
        let mut state = self.state();
        state.holes_count += 1;
        if state.holes.len() < HOLES_LISTED_MAX {
            state.holes.push(hole);
        }
        self.progress.send_modify(|p| p.failed_blocks += 1);
    }

    /// The first failure is the one that is told.
    pub(super) fn fail(&self, failure: Failed) {
        self.state().failure.get_or_insert(failure);
        self.stop.cancel();
    }

    pub(super) fn fail_target(&self, what: &str, from: u64, error: &std::io::Error) {
        let seen = format!("{what} at offset {from}: {error}");
        self.fail(Failed::Target(FailureReason::TargetWriteFailed, seen));
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn left(&self) -> Left {
        let p = self.progress.borrow();
        Left::Partial { restored: p.restored_blocks(), total: p.total_blocks }
    }

    pub(super) fn explain(&self, failure: Failed) -> RestoreError {
        let left = self.left();
        match failure {
            Failed::Store(error) => RestoreError::Store { error, left },
            Failed::Block(hole) => RestoreError::Block { hole, left },
            Failed::Target(reason, seen) => {
                RestoreError::Target { path: self.target.path().to_owned(), reason, seen, left }
            }
            Failed::Cancelled => RestoreError::Cancelled(left),
            Failed::Bug(seen) => RestoreError::Bug { seen, left },
        }
    }
}
