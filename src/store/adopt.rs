//! Earlier attempts of the same Backup: one that sealed its record before anybody heard of it is adopted, the others are
//! fenced by removing their markers (store-protocol P1.5).

use super::{
    error::{ErrorKind, StoreError},
    guard::Guard,
    journal::Predecessors,
    listing::Listing,
    objects::Range,
    record::Record,
    seal::Sealed,
};
use crate::model::{BackupName, limits};

/// The newest predecessor's record that is whole, or none; then every predecessor is fenced.
pub async fn settle(
    guard: &Guard,
    predecessors: &Predecessors,
    listing: &Listing,
) -> Result<Option<(Sealed, Record)>, StoreError> {
    let holder = guard.holder();
    for attempt in predecessors.attempts.iter().rev() {
        let name = BackupName::of_attempt(&holder.backup_uid, attempt);
        if let Some(record) = whole_record(guard, &name, listing).await? {
            tracing::info!(backup = %name, "Earlier attempt had sealed its record: adopted");
            return Ok(Some((Sealed::adopted(name, record.head.clone()), record)));
        }
    }
    let markers: Vec<_> =
        predecessors.attempts.iter().map(|a| holder.layout.backup(&BackupName::of_marker(a))).collect();
    guard.client().delete(&markers).await?;
    Ok(None)
}

/// A record that is complete, readable, and whose every block the store shows now.
async fn whole_record(guard: &Guard, name: &BackupName, listing: &Listing) -> Result<Option<Record>, StoreError> {
    let key = guard.holder().layout.backup(name);
    let Some(fetched) = guard.client().get(&key, Range::whole(limits::RECORD_BYTES_MAX)).await? else {
        return Ok(None);
    };
    let record = match Record::parse(&fetched.bytes) {
        Ok(record) if !record.head.is_in_progress() => record,
        Ok(_) => return Ok(None),
        Err(seen) => return Err(StoreError::new(ErrorKind::Damaged, "GET", key, seen)),
    };
    for block in &record.blocks {
        let found = listing.confirm(&block.block_checksum);
        let found = found.map_err(|e| StoreError::new(ErrorKind::Damaged, "SCRATCH", "listing", e))?;
        if found.is_none() {
            tracing::warn!(backup = %name, block = %block.block_checksum, "Earlier record misses a block: not adopted");
            return Ok(None);
        }
    }
    Ok(Some(record))
}
