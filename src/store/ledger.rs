//! What the store has acknowledged: law 1 as types.
//!
//! Only the store can make a [`Receipt`], and only under a [`Guard`](super::guard::Guard); only a `Receipt` advances the
//! [`Ledger`]; only a ledger without open blocks yields the [`Complete`] that sealing the record demands. Forging one
//! is a compile error (`tests/project/compile_fail`).

use std::io;

use super::scratch::{Bitmap, NameTable, OrdinalTable, Placed, Scratch};
use crate::model::BlockName;

/// Proof that the store holds a block: it acknowledged the PUT, or a listing begun under this guard showed it.
#[derive(Debug, Clone, Copy)]
pub struct Receipt {
    placed: Placed,
}

impl Receipt {
    pub(super) fn new(name: BlockName, stored: u32) -> Self {
        Self { placed: Placed { name, stored } }
    }

    pub fn name(&self) -> BlockName {
        self.placed.name
    }

    /// Bytes of the stored object.
    pub fn stored(&self) -> u32 {
        self.placed.stored
    }
}

/// The receipts of one attempt by name, so that a block with the same bytes is not sent twice.
#[derive(Debug)]
pub struct Receipts(NameTable);

impl Receipts {
    /// For at most `capacity` different blocks.
    pub fn create(scratch: &Scratch, capacity: u64) -> io::Result<Self> {
        NameTable::create(scratch, capacity).map(Self)
    }

    pub fn keep(&mut self, receipt: &Receipt) -> io::Result<()> {
        self.0.insert(&receipt.placed)
    }

    pub fn find(&self, name: &BlockName) -> io::Result<Option<Receipt>> {
        Ok(self.0.find(name)?.map(|placed| Receipt { placed }))
    }
}

/// How a block came to be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// This attempt sent it.
    Uploaded,
    /// The store had it.
    Reused,
    /// An earlier attempt's journal names it and the store has it.
    Resumed,
}

/// Every block of one attempt: open, acknowledged, or recognised as zeros.
#[derive(Debug)]
pub struct Ledger {
    /// Neither acknowledged nor zero yet.
    open: Bitmap,
    acknowledged: Bitmap,
    table: OrdinalTable,
    counts: Counts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Candidates less zero blocks.
    pub total: u64,
    pub uploaded: u64,
    pub reused: u64,
    pub resumed: u64,
    pub zero: u64,
}

impl Counts {
    pub fn acknowledged(&self) -> u64 {
        self.uploaded + self.reused + self.resumed
    }
}

/// A ledger without open blocks. It cannot be made in any other way.
#[derive(Debug)]
pub struct Complete {
    ledger: Ledger,
}

impl Ledger {
    /// `candidates`: the blocks that may hold data, by ordinal.
    pub fn new(candidates: Bitmap, volume_blocks: u64, scratch: &Scratch) -> io::Result<Self> {
        let counts = Counts { total: candidates.count(), ..Counts::default() };
        Ok(Self {
            open: candidates,
            acknowledged: Bitmap::new(volume_blocks),
            table: OrdinalTable::create(scratch)?,
            counts,
        })
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    pub fn is_open(&self, ordinal: u32) -> bool {
        self.open.contains(ordinal)
    }

    /// Open blocks in ascending order.
    pub fn open(&self) -> &Bitmap {
        &self.open
    }

    /// Counts a receipt for a block, once. `false`: it was counted before, or the block was never a candidate.
    pub fn acknowledge(&mut self, ordinal: u32, receipt: &Receipt, how: How) -> io::Result<bool> {
        if !self.open.contains(ordinal) {
            return Ok(false);
        }
        self.table.set(ordinal, &receipt.placed)?;
        self.open.remove(ordinal);
        self.acknowledged.insert(ordinal);
        match how {
            How::Uploaded => self.counts.uploaded += 1,
            How::Reused => self.counts.reused += 1,
            How::Resumed => self.counts.resumed += 1,
        }
        Ok(true)
    }

    /// The block is all zeros: no record names it, so it is neither stored nor counted.
    pub fn skip_zero(&mut self, ordinal: u32) -> bool {
        let was_open = self.open.remove(ordinal);
        if was_open {
            self.counts.zero += 1;
            self.counts.total -= 1;
        }
        was_open
    }

    /// The proof that nothing is open, or the ledger back.
    pub fn complete(self) -> Result<Complete, Box<Ledger>> {
        if self.open.count() == 0 { Ok(Complete { ledger: self }) } else { Err(Box::new(self)) }
    }
}

impl Complete {
    pub fn counts(&self) -> Counts {
        self.ledger.counts
    }

    /// Every acknowledged block by ascending ordinal.
    pub fn blocks(&self) -> impl Iterator<Item = io::Result<(u32, Placed)>> + '_ {
        let table = &self.ledger.table;
        self.ledger.acknowledged.iter().map(move |ordinal| Ok((ordinal, table.get(ordinal)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(blocks: u32) -> Ledger {
        let mut candidates = Bitmap::new(u64::from(blocks));
        (0..blocks).for_each(|i| _ = candidates.insert(i));
        Ledger::new(candidates, u64::from(blocks), &Scratch::new(&std::env::temp_dir())).expect("scratch")
    }

    #[test]
    fn law_1_a_repeated_receipt_is_counted_once() {
        let mut ledger = ledger(2);
        let receipt = Receipt::new(BlockName([1; 32]), 9);
        assert!(ledger.acknowledge(0, &receipt, How::Uploaded).expect("scratch"));
        assert!(!ledger.acknowledge(0, &receipt, How::Reused).expect("scratch"));
        assert!(!ledger.acknowledge(7, &receipt, How::Uploaded).expect("no candidate"));
        assert_eq!(ledger.counts(), Counts { total: 2, uploaded: 1, ..Counts::default() });
    }

    #[test]
    fn law_1_zero_blocks_are_not_counted_and_law_4_open_blocks_forbid_sealing() {
        let mut ledger = ledger(3);
        let receipt = Receipt::new(BlockName([1; 32]), 9);
        assert!(ledger.skip_zero(1) && !ledger.skip_zero(1));
        assert!(ledger.acknowledge(2, &receipt, How::Reused).expect("scratch"));
        let mut ledger = *ledger.complete().expect_err("block 0 is open");
        assert!(!ledger.acknowledge(1, &receipt, How::Uploaded).expect("zero blocks stay zero"));
        assert!(ledger.acknowledge(0, &receipt, How::Resumed).expect("scratch"));
        let complete = ledger.complete().expect("nothing is open");
        assert_eq!(complete.counts(), Counts { total: 2, reused: 1, resumed: 1, zero: 1, uploaded: 0 });
        let blocks: Vec<_> = complete.blocks().map(|b| b.expect("scratch").0).collect();
        assert_eq!(blocks, [0, 2]);
    }
}
