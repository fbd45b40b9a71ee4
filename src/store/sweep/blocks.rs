//! The blocks of a volume as one listing showed them, and which of them a record names: a table in scratch and two bitmaps
//! in memory, whatever the number of records.

use std::io;

use jiff::Timestamp;

use super::super::{
    client::Client,
    error::{ErrorKind, StoreError},
    janitor::is_past,
    layout::{VolumeLayout, block_of_key, is_unfinished_block},
    objects::Entry,
    scratch::{Bitmap, Placed, Scratch, SortedTable},
};
use crate::model::{BlockName, limits};

/// Entries read from scratch at a time while candidates are looked for: 144 KiB.
const CHUNK: u64 = 4096;

/// Every block that was listed, by its rank in the listing.
#[derive(Debug)]
pub(super) struct Listed {
    table: SortedTable,
    /// Too young to be anybody's leftover.
    young: Bitmap,
    named: Bitmap,
    /// Objects below `blocks/` that are no blocks: they are left alone.
    pub(super) strays: u64,
    /// Temporary files of writers that died: they go, a page of them with each sweep.
    pub(super) unfinished: Vec<(String, u64)>,
}

/// Blocks to delete, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sum {
    pub(super) blocks: u64,
    pub(super) bytes: u64,
}

impl Listed {
    /// Lists `blocks/` page by page; `seen` hears the count and may end it. Keys must ascend strictly, or the server
    /// repeated or lost a page.
    pub(super) async fn read(
        client: &Client,
        layout: &VolumeLayout,
        scratch: &Scratch,
        now: Timestamp,
        seen: impl Fn(u64) -> Result<(), StoreError>,
    ) -> Result<Self, StoreError> {
        let prefix = layout.blocks();
        let table = SortedTable::create(scratch).map_err(scratch_failed)?;
        let mut listed =
            Self { table, young: Bitmap::new(0), named: Bitmap::new(0), strays: 0, unfinished: Vec::new() };
        let (mut token, mut last) = (None, String::new());
        loop {
            seen(listed.count())?;
            let page = client.list_page(&prefix, token).await?;
            for entry in page.entries {
                if entry.key <= last {
                    let seen = format!("key {} does not ascend: a page was repeated or is out of order", entry.key);
                    return Err(StoreError::new(ErrorKind::Unavailable, "LIST", prefix, seen));
                }
                listed.add(&entry, now).map_err(scratch_failed)?;
                last = entry.key;
            }
            match page.next {
                Some(next) => token = Some(next),
                None => break,
            }
        }
        listed.table.flush().map_err(scratch_failed)?;
        listed.young.grow(listed.count());
        listed.named.grow(listed.count());
        Ok(listed)
    }

    fn add(&mut self, entry: &Entry, now: Timestamp) -> io::Result<()> {
        let Some(name) = block_of_key(&entry.key) else {
            let is_old = entry.meta.modified.is_some_and(|at| is_past(at, limits::UNFINISHED_TTL, now));
            if is_old && is_unfinished_block(&entry.key) && self.unfinished.len() < limits::LIST_PAGE as usize {
                self.unfinished.push((entry.key.clone(), entry.meta.size));
            } else {
                self.strays += 1;
            }
            return Ok(());
        };
        let rank = u32::try_from(self.count()).map_err(|_| io::Error::other("more blocks than a u32 counts"))?;
        self.table.push(&Placed { name, stored: u32::try_from(entry.meta.size).unwrap_or(u32::MAX) })?;
        // A block whose age is not told is young.
        if !entry.meta.modified.is_some_and(|modified| is_past(modified, limits::YOUNG, now)) {
            self.young.grow(u64::from(rank) + 1);
            self.young.insert(rank);
        }
        Ok(())
    }

    pub(super) fn count(&self) -> u64 {
        self.table.count()
    }

    pub(super) fn named(&self) -> u64 {
        self.named.count()
    }

    /// A record names this block. `false`: it was not listed.
    pub(super) fn name(&mut self, name: &BlockName) -> Result<bool, StoreError> {
        let Some(rank) = self.table.rank(name).map_err(scratch_failed)? else { return Ok(false) };
        self.named.insert(rank);
        Ok(true)
    }

    /// Named by nobody, but too young.
    pub(super) fn young(&self) -> u64 {
        self.young.iter().filter(|&rank| !self.named.contains(rank)).count() as u64
    }

    pub(super) fn candidates(&self) -> Candidates<'_> {
        Candidates { listed: self, next: 0, chunk: Vec::new().into_iter() }
    }

    pub(super) fn sum(&self) -> Result<Sum, StoreError> {
        let mut sum = Sum::default();
        for placed in self.candidates() {
            let placed = placed.map_err(scratch_failed)?;
            sum.blocks += 1;
            sum.bytes += u64::from(placed.stored);
        }
        Ok(sum)
    }
}

/// Blocks that no record names and that are old enough, in name order.
pub(super) struct Candidates<'a> {
    listed: &'a Listed,
    /// The rank behind the chunk.
    next: u64,
    chunk: std::vec::IntoIter<Placed>,
}

impl Iterator for Candidates<'_> {
    type Item = io::Result<Placed>;

    fn next(&mut self) -> Option<io::Result<Placed>> {
        loop {
            let Some(placed) = self.chunk.next() else {
                if self.next >= self.listed.count() {
                    return None;
                }
                let chunk = match self.listed.table.read(self.next, CHUNK) {
                    Ok(chunk) => chunk,
                    Err(error) => return Some(Err(error)),
                };
                self.next += chunk.len() as u64;
                self.chunk = chunk.into_iter();
                continue;
            };
            let rank = self.next - self.chunk.len() as u64 - 1;
            let rank = u32::try_from(rank).expect("ranks were counted as u32");
            if !self.listed.named.contains(rank) && !self.listed.young.contains(rank) {
                return Some(Ok(placed));
            }
        }
    }
}

pub(super) fn scratch_failed(error: io::Error) -> StoreError {
    StoreError::new(ErrorKind::Unavailable, "SCRATCH", "blocks", error)
}
