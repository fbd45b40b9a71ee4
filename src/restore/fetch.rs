//! Requests at once: orders become GETs, by the limits of downloads, of buffers and of the wire.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc::UnboundedReceiver},
    task::JoinSet,
    time::{Instant, interval, sleep},
};

use super::{
    compute,
    shared::{Arrived, Failed, Order, Shared},
};
use crate::{
    model::{BlockSize, DamageReason, job::Limits, limits},
    store::{
        buffers::Pool,
        client::Client,
        concurrency::Concurrency,
        error::{ErrorKind, StoreError},
        guard::Locked,
        objects::Range,
        pace::Pace,
    },
};

/// How often the threads are looked at.
const TICK: Duration = Duration::from_secs(1);

pub(super) struct Fetcher {
    client: Client,
    shared: Arc<Shared>,
    orders: UnboundedReceiver<Order>,
    buffers: Arc<Semaphore>,
    /// As many as there are permits.
    pool: Pool,
    concurrency: Concurrency,
    pace: Pace,
    began: Instant,
    /// What the last object was long: an estimate of the next.
    object_bytes: u64,
    requests: JoinSet<Answer>,
}

/// A request that ended.
struct Answer {
    /// What was paid for in advance.
    estimated: u64,
    bytes: u64,
}

/// How fetching ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Every order was counted, or something failed.
    Done,
    /// A thread is stuck in the kernel: it must not be waited for.
    ThreadStuck,
}

impl Fetcher {
    pub(super) fn new(client: Client, shared: Arc<Shared>, orders: UnboundedReceiver<Order>, wanted: &Limits) -> Self {
        let block_size = shared.plan.block_size;
        Self {
            client,
            shared,
            orders,
            buffers: Arc::new(Semaphore::new(limits::buffers(block_size))),
            pool: Pool::new(limits::buffers(block_size), object_bytes_max(block_size) as usize),
            concurrency: Concurrency::new(wanted.concurrency),
            pace: Pace::new(wanted.max_bytes_per_second),
            began: Instant::now(),
            object_bytes: block_size.bytes(),
            requests: JoinSet::new(),
        }
    }

    /// Until no order is left anywhere, or the first failure. Dropping the requests ends them.
    pub(super) async fn fetch(mut self, lock: Option<&Locked>) -> Ended {
        let shared = Arc::clone(&self.shared);
        let mut tick = interval(TICK);
        let (mut next, mut is_last) = (None, false);
        loop {
            if is_last && next.is_none() && self.requests.is_empty() {
                return Ended::Done;
            }
            let has_slot = self.requests.len() < self.concurrency.limit() as usize;
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => return Ended::Done,
                lost = lost(lock) => {
                    shared.fail(Failed::Store(lost));
                    return Ended::Done;
                }
                Some(ended) = self.requests.join_next() => match ended {
                    Ok(answer) => self.heed(&answer),
                    Err(panic) => compute::panicked(&shared, &panic),
                },
                order = self.orders.recv(), if next.is_none() && !is_last => match order {
                    Some(order) => next = Some(order),
                    None => is_last = true,
                },
                buffer = Arc::clone(&self.buffers).acquire_owned(), if next.is_some() && has_slot => {
                    let buffer = buffer.expect("this semaphore is never closed");
                    if let Some(order) = next.take() {
                        self.request(order, buffer);
                    }
                }
                _ = tick.tick() => if compute::stalled(&shared) { return Ended::ThreadStuck },
            }
        }
    }

    fn request(&mut self, order: Order, buffer: OwnedSemaphorePermit) {
        let estimated = self.object_bytes;
        let wait = self.pace.reserve(self.began.elapsed(), estimated);
        let (client, shared, pool) = (self.client.clone(), Arc::clone(&self.shared), self.pool.clone());
        self.requests.spawn(async move {
            sleep(wait).await;
            Answer { estimated, bytes: get(&client, &shared, order, (buffer, pool)).await }
        });
    }

    fn heed(&mut self, answer: &Answer) {
        self.pace.correct(answer.estimated, answer.bytes);
        if answer.bytes > 0 {
            self.object_bytes = answer.bytes;
        }
        let throttles = self.client.requests().throttled;
        self.concurrency.acknowledged(self.began.elapsed(), answer.bytes, throttles);
    }
}

async fn lost(lock: Option<&Locked>) -> StoreError {
    match lock {
        Some(lock) => lock.lost().await,
        None => std::future::pending().await,
    }
}

/// No plausible object is longer (`model::block::is_plausible`).
fn object_bytes_max(size: BlockSize) -> u64 {
    size.bytes() + size.bytes() / 256 + 64
}

/// Fetches one block's object and hands it to the threads. The bytes that came.
async fn get(client: &Client, shared: &Shared, order: Order, memory: (OwnedSemaphorePermit, Pool)) -> u64 {
    let (buffer, pool) = memory;
    let key = shared.plan.layout.block(&order.entry.block_checksum);
    let range = Range::whole(object_bytes_max(shared.plan.block_size));
    match client.get_into(&key, range, &pool).await {
        Ok(Some(fetched)) => {
            let bytes = fetched.bytes.len() as u64;
            shared.work.place(Arrived { order, key, object: fetched.bytes, _buffer: buffer });
            return bytes;
        }
        Ok(None) => shared.suspect(order, &key, DamageReason::Missing, &"the object is not in the store"),
        Err(error) if error.kind == ErrorKind::Damaged => {
            shared.suspect(order, &key, DamageReason::Unreadable, &error.seen);
        }
        Err(error) => shared.fail(Failed::Store(error)),
    }
    0
}
