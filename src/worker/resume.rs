//! What an earlier attempt's journal spares this one: reading what was read, sending what was sent.
//!
//! An entry is believed only if its journal speaks of the same identity of the source and the listing under *this*
//! attempt's guard shows the block with the very size it was stored with. Everything else is planned anew.

use std::io;

use crate::store::{
    client::Client,
    error::{ErrorKind, StoreError},
    journal::{self, Identity, Predecessors},
    layout::VolumeLayout,
    ledger::{How, Ledger},
    listing::Listing,
};

/// How much was spared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resumed {
    pub blocks: u64,
    pub zero_blocks: u64,
    /// Segments that were damaged or gone: their blocks are read again.
    pub segments_skipped: u64,
}

/// Where earlier attempts are looked for, and what must be equal.
pub struct Past<'a> {
    pub client: &'a Client,
    pub layout: &'a VolumeLayout,
    pub predecessors: &'a Predecessors,
    pub identity: &'a Identity,
}

/// Advances the ledger by what the journals name and the listing confirms.
pub async fn resume(past: &Past<'_>, listing: &Listing, ledger: &mut Ledger) -> Result<Resumed, StoreError> {
    let mut resumed = Resumed::default();
    if !past.identity.source.outlives_attempt() {
        return Ok(resumed);
    }
    for attempt in past.predecessors.attempts.iter().rev() {
        let file = journal::read_attempt(past.client, past.layout, &past.identity.backup_uid, attempt).await?;
        if file.is_none_or(|file| file.identity != *past.identity) {
            continue;
        }
        let folder = format!("{}{attempt}/", past.layout.journals(&past.identity.backup_uid));
        let keys = past.predecessors.keys.iter().filter(|k| k.starts_with(&folder) && k.ends_with(".jnl"));
        for key in keys {
            match journal::read_segment(past.client, attempt, key).await? {
                None => resumed.segments_skipped += 1,
                Some(entries) => apply(entries, listing, ledger, &mut resumed)
                    .map_err(|e| StoreError::new(ErrorKind::Damaged, "SCRATCH", key, e))?,
            }
        }
    }
    Ok(resumed)
}

fn apply(
    entries: Vec<journal::Entry>,
    listing: &Listing,
    ledger: &mut Ledger,
    resumed: &mut Resumed,
) -> io::Result<()> {
    for entry in entries {
        let Some(placed) = entry.placed else {
            resumed.zero_blocks += u64::from(ledger.skip_zero(entry.ordinal));
            continue;
        };
        if let Some(receipt) = listing.confirm_exact(&placed.name, placed.stored)? {
            resumed.blocks += u64::from(ledger.acknowledge(entry.ordinal, &receipt, How::Resumed)?);
        }
    }
    Ok(())
}
