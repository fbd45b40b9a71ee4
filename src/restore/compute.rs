//! The threads: they read, decode, name, compare and write. The only ones that touch the target.
//!
//! ```text
//! Compare  read ─ name ─ equal? ─▶ counted (reused) │ fetched
//! Place    decode ─ name ─ equal? ─▶ written ─▶ counted │ fetched once more ─▶ lost
//! Zero     made zero
//! ```

use super::shared::{Arrived, Failed, Gap, How, Job, Order, Shared};
use crate::{
    model::{BlockName, Compression, DamageReason, FailureReason, limits},
    store::codec,
};

/// Threads for this machine, and how many blocks each takes at once: all their buffers are `BUFFER_BYTES`.
pub(super) fn threads_and_batch(buffers: usize) -> (usize, usize) {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let threads = cores.min(limits::RESTORE_THREADS_MAX).min(buffers);
    (threads, codec::lanes().min(buffers / threads).max(1))
}

/// One thread, until there is nothing more to do.
pub(super) fn run(shared: &Shared, thread: usize, batch_max: usize) {
    let block = shared.plan.block_size.len();
    let worker = Worker { shared, thread };
    // Memory that is not touched yet costs nothing.
    let mut buffers: Vec<Vec<u8>> = (0..batch_max).map(|_| vec![0; block]).collect();
    while let Some(job) = shared.work.next(batch_max) {
        // After a failure what is there is only thrown away, so that nobody waits for it.
        if shared.stop.is_cancelled() {
            continue;
        }
        match job {
            Job::Place(batch) => worker.place(batch, &mut buffers),
            Job::Compare(batch) => worker.compare(batch, &mut buffers),
            Job::Zero(gap) => worker.zero(&gap),
        }
    }
}

struct Worker<'a> {
    shared: &'a Shared,
    thread: usize,
}

impl Worker<'_> {
    fn place(&self, batch: Vec<Arrived>, buffers: &mut [Vec<u8>]) {
        let shared = self.shared;
        let mut decoded: Vec<(Arrived, &[u8])> = Vec::with_capacity(batch.len());
        let mut objects = Vec::with_capacity(batch.len());
        for (arrived, buffer) in batch.into_iter().zip(buffers) {
            shared.count_fetched(arrived.object.len() as u64);
            match decode(shared.plan.compression, &arrived, buffer) {
                Ok(Decoded::IsObject) => objects.push(arrived),
                Ok(Decoded::InBuffer) => decoded.push((arrived, buffer)),
                Err(error) => shared.suspect(arrived.order, &arrived.key, DamageReason::Unreadable, &error),
            }
        }
        let mut names = vec![BlockName([0; 32]); decoded.len() + objects.len()];
        let blocks: Vec<&[u8]> =
            decoded.iter().map(|(_, block)| *block).chain(objects.iter().map(|arrived| &*arrived.object)).collect();
        codec::name_blocks(&blocks, &mut names);
        drop(blocks);
        let mut names = names.into_iter();
        for ((arrived, block), name) in decoded.into_iter().zip(names.by_ref()) {
            self.write(arrived, block, name);
        }
        for (arrived, name) in objects.into_iter().zip(names) {
            let object = arrived.object.clone();
            self.write(arrived, &object, name);
        }
    }

    fn write(&self, arrived: Arrived, block: &[u8], name: BlockName) {
        let (shared, entry) = (self.shared, arrived.order.entry);
        if name != entry.block_checksum {
            let seen = format!("its bytes have the checksum {name}, not the one they are stored under");
            return shared.suspect(arrived.order, &arrived.key, DamageReason::ChecksumMismatch, &seen);
        }
        if !codec::is_zero(&block[shared.target.length(entry.offset, block.len())..]) {
            let seen = format!("it goes on behind the volume's end at {}", shared.target.volume_bytes());
            return shared.suspect(arrived.order, &arrived.key, DamageReason::ChecksumMismatch, &seen);
        }
        match shared.work.timed(self.thread, || shared.target.write(entry.offset, block)) {
            Ok(()) => shared.count(&entry, How::Written),
            Err(error) => shared.fail_target("writing a block", entry.offset, &error),
        }
    }

    fn compare(&self, batch: Vec<Order>, buffers: &mut [Vec<u8>]) {
        let shared = self.shared;
        let mut read: Vec<(Order, &[u8])> = Vec::with_capacity(batch.len());
        for (order, buffer) in batch.into_iter().zip(buffers) {
            let offset = order.entry.offset;
            match shared.work.timed(self.thread, || shared.target.read(offset, buffer)) {
                Ok(()) if codec::is_zero(buffer) => order.send(),
                Ok(()) => read.push((order, buffer)),
                // A sector that cannot be read may well be written.
                Err(error) => {
                    tracing::warn!(offset, %error, "Target cannot be read there: the block is fetched");
                    order.send();
                }
            }
        }
        let blocks: Vec<&[u8]> = read.iter().map(|(_, block)| *block).collect();
        let mut names = vec![BlockName([0; 32]); blocks.len()];
        codec::name_blocks(&blocks, &mut names);
        for ((order, _), name) in read.into_iter().zip(names) {
            match name == order.entry.block_checksum {
                true => shared.count(&order.entry, How::Reused),
                false => order.send(),
            }
        }
    }

    fn zero(&self, gap: &Gap) {
        let shared = self.shared;
        match shared.work.timed(self.thread, || shared.target.zero(gap.from, gap.to)) {
            Ok(()) => gap.block.iter().for_each(|order| shared.count(&order.entry, How::Written)),
            Err(error) => shared.fail_target("making zero", gap.from, &error),
        }
    }
}

enum Decoded {
    /// The object is the block itself.
    IsObject,
    InBuffer,
}

fn decode(method: Compression, arrived: &Arrived, buffer: &mut [u8]) -> Result<Decoded, codec::CodecError> {
    if method == Compression::None && arrived.object.len() == buffer.len() {
        return Ok(Decoded::IsObject);
    }
    codec::decode(method, &arrived.object, buffer).map(|()| Decoded::InBuffer)
}

/// A thread panicked: its blocks are not restored, whatever the counters say.
pub(super) fn panicked(shared: &Shared, panic: &tokio::task::JoinError) {
    shared.fail(Failed::Bug(format!("a thread of the restore ended: {panic}")));
}

/// Nothing has moved in the target for longer than any disk needs.
pub(super) fn stalled(shared: &Shared) -> bool {
    let busy = shared.work.busy_for();
    let is_stalled = busy > limits::TARGET_DEADLINE;
    if is_stalled {
        let seen = format!("one read or write has taken {} s", busy.as_secs());
        shared.fail(Failed::Target(FailureReason::TargetStalled, seen));
    }
    is_stalled
}
