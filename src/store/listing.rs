//! One listing of a volume's blocks instead of a HEAD per block.
//!
//! Begun after the guard stood, it makes receipts: a block it shows with a plausible size is in the store, and no honest
//! collector removes it while the marker stands. LIST order is name order, so entries are appended to a sorted table.

use super::{
    error::{ErrorKind, StoreError},
    guard::Guard,
    layout::block_of_key,
    ledger::Receipt,
    scratch::{Placed, Scratch, SortedTable},
};
use crate::model::{BlockName, BlockSize, Compression, block};

/// The blocks the store holds, as listed under a guard.
#[derive(Debug)]
pub struct Listing {
    table: SortedTable,
    block_size: BlockSize,
    compression: Compression,
    /// Objects below `blocks/` that are no block of ours: temporary files, strangers.
    pub strays: u64,
    /// Blocks of an implausible size or in an archive class: treated as absent.
    pub implausible: u64,
}

impl Listing {
    /// Lists `blocks/` page by page. Keys must ascend strictly, or the server repeated or lost a page.
    pub async fn read(
        guard: &Guard,
        scratch: &Scratch,
        block_size: BlockSize,
        compression: Compression,
    ) -> Result<Self, StoreError> {
        let prefix = guard.holder().layout.blocks();
        let wrap = |error: std::io::Error| StoreError::new(ErrorKind::Damaged, "SCRATCH", "listing", error);
        let table = SortedTable::create(scratch).map_err(wrap)?;
        let mut listing = Self { table, block_size, compression, strays: 0, implausible: 0 };
        let (mut token, mut last) = (None, String::new());
        loop {
            guard.check_lease()?;
            let page = guard.client().list_page(&prefix, token).await?;
            for entry in page.entries {
                if entry.key <= last {
                    let seen = format!("key {} does not ascend: a page was repeated or is out of order", entry.key);
                    return Err(StoreError::new(ErrorKind::Unavailable, "LIST", prefix, seen));
                }
                listing.add(&entry).map_err(wrap)?;
                last = entry.key;
            }
            match page.next {
                Some(next) => token = Some(next),
                None => break,
            }
        }
        listing.table.flush().map_err(wrap)?;
        Ok(listing)
    }

    fn add(&mut self, entry: &super::objects::Entry) -> std::io::Result<()> {
        let Some(name) = block_of_key(&entry.key) else {
            self.strays += 1;
            return Ok(());
        };
        let is_plausible = block::is_plausible(entry.meta.size, self.block_size, self.compression);
        match u32::try_from(entry.meta.size) {
            Ok(stored) if is_plausible && !entry.is_archived => self.table.push(&Placed { name, stored }),
            _ => {
                self.implausible += 1;
                Ok(())
            }
        }
    }

    /// Usable blocks.
    pub fn count(&self) -> u64 {
        self.table.count()
    }

    /// The receipt of a block the store had when this listing was made.
    pub fn confirm(&self, name: &BlockName) -> std::io::Result<Option<Receipt>> {
        Ok(self.table.find(name)?.map(|placed| Receipt::new(placed.name, placed.stored)))
    }

    /// The same, only if its object has the very size a journal recorded.
    pub fn confirm_exact(&self, name: &BlockName, stored: u32) -> std::io::Result<Option<Receipt>> {
        Ok(self.confirm(name)?.filter(|receipt| receipt.stored() == stored))
    }
}
