//! One pass over the record: every block becomes an order, every gap between two a range to make zero.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc::UnboundedSender};

use super::{
    Hole,
    shared::{Failed, Gap, How, Order, Shared},
    target::DataCursor,
};
use crate::{
    model::{DamageReason, limits},
    store::{record::BlockEntry, record_reader::RecordReader},
};

pub(super) struct Walker {
    shared: Arc<Shared>,
    fetch: UnboundedSender<Order>,
    room: Arc<Semaphore>,
    cursor: DataCursor,
    /// Everything before it was ordered or is a gap that was seen to.
    done_to: u64,
    ordered: u64,
}

impl Walker {
    pub(super) fn new(shared: Arc<Shared>, fetch: UnboundedSender<Order>) -> Self {
        let room = Arc::new(Semaphore::new(limits::RESTORE_ORDERS_MAX));
        Self { shared, fetch, room, cursor: DataCursor::default(), done_to: 0, ordered: 0 }
    }

    /// Walks the record to its end or the first failure. How many blocks were ordered.
    pub(super) async fn walk(mut self, mut record: RecordReader) -> u64 {
        let shared = Arc::clone(&self.shared);
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => {}
            ended = self.order_all(&mut record) => if let Err(failure) = ended { shared.fail(failure) },
        }
        self.ordered
    }

    async fn order_all(&mut self, record: &mut RecordReader) -> Result<(), Failed> {
        let volume_bytes = self.shared.target.volume_bytes();
        while let Some(entry) = record.next().await.map_err(Failed::Store)? {
            if entry.offset >= volume_bytes {
                let seen = format!("it lies outside the volume of {volume_bytes} bytes");
                let key = self.shared.plan.record_key.clone();
                let reason = DamageReason::Unreadable;
                return Err(Failed::Block(Hole { offset: entry.offset, key, reason, seen }));
            }
            self.gap(entry.offset).await;
            self.order(entry).await;
        }
        self.gap(volume_bytes).await;
        Ok(())
    }

    /// Makes everything up to an offset zero that may not be.
    async fn gap(&mut self, to: u64) {
        while self.done_to < to {
            let (from, end) = (self.done_to, to.min(self.done_to + limits::RESTORE_ZERO_BYTES));
            if self.shared.target.may_hold_data(&mut self.cursor, from, end) {
                let room = self.take_room().await;
                self.shared.work.zero(Gap { from, to: end, block: None, _room: Some(room) });
            }
            self.done_to = end;
        }
    }

    async fn order(&mut self, entry: BlockEntry) {
        let (from, to) = (entry.offset, entry.offset + self.shared.plan.block_size.bytes());
        let may_hold_data = self.shared.target.may_hold_data(&mut self.cursor, from, to);
        let (is_zeros, is_reused) = (entry.block_checksum == self.shared.plan.zeros, self.shared.target.is_reused());
        self.ordered += 1;
        self.done_to = to;
        if is_zeros && !may_hold_data {
            return self.shared.count(&entry, if is_reused { How::Reused } else { How::Written });
        }
        let order = Order { entry, fetch: self.fetch.clone(), is_second: false, _room: self.take_room().await };
        if is_zeros {
            self.shared.work.zero(Gap { from, to, block: Some(order), _room: None });
        } else if may_hold_data && is_reused {
            self.shared.work.compare(order);
        } else {
            order.send();
        }
    }

    async fn take_room(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.room).acquire_owned().await.expect("this semaphore is never closed")
    }
}
