//! Earlier attempts of the same Backup: one that sealed its record before anybody heard of it is adopted, the others are
//! fenced by removing their markers (store-protocol P1.5).

use super::{
    error::{ErrorKind, StoreError},
    guard::Guard,
    inventory::scratch_failed,
    journal::Predecessors,
    listing::Listing,
    record::{RecordHead, RecordId},
    record_reader::RecordReader,
    seal::Sealed,
    survey,
};
use crate::model::BackupName;

/// The newest predecessor's record that is whole, and how many blocks it names; or none, and then every predecessor is
/// fenced.
pub async fn settle(
    guard: &Guard,
    predecessors: &Predecessors,
    listing: &Listing,
) -> Result<Option<(Sealed, u64)>, StoreError> {
    let holder = guard.holder();
    for attempt in predecessors.attempts.iter().rev() {
        let name = BackupName::of_attempt(&holder.backup_uid, attempt);
        if let Some((head, blocks)) = whole_record(guard, &name, listing).await? {
            tracing::info!(backup = %name, "Earlier attempt had sealed its record: adopted");
            return Ok(Some((Sealed::adopted(name, head), blocks)));
        }
    }
    let markers: Vec<_> =
        predecessors.attempts.iter().map(|a| holder.layout.backup(&BackupName::of_marker(a))).collect();
    guard.client().delete(&markers).await?;
    Ok(None)
}

/// A record that is complete, readable to its end, and whose every block the store shows now; with the number of them. One
/// that is damaged is no record: this attempt writes its own.
async fn whole_record(
    guard: &Guard,
    name: &BackupName,
    listing: &Listing,
) -> Result<Option<(RecordHead, u64)>, StoreError> {
    match read_whole(guard, name, listing).await {
        Err(error) if error.kind == ErrorKind::Damaged => {
            tracing::warn!(backup = %name, %error, "Earlier record is damaged: not adopted");
            Ok(None)
        }
        answer => answer,
    }
}

async fn read_whole(
    guard: &Guard,
    name: &BackupName,
    listing: &Listing,
) -> Result<Option<(RecordHead, u64)>, StoreError> {
    let key = guard.holder().layout.backup(name);
    let damaged = |seen: String| StoreError::new(ErrorKind::Damaged, "GET", &key, seen);
    let Some(head) = survey::read_head(guard.client(), &key).await? else { return Ok(None) };
    head.check_is(&RecordId { volume: guard.holder().volume.clone(), backup: name.clone() }).map_err(damaged)?;
    if head.is_in_progress() {
        return Ok(None);
    }
    let block_size = head.block_size().map_err(damaged)?;
    head.compression().map_err(damaged)?;
    let mut record = RecordReader::open(guard.client().clone(), &key, block_size).await?;
    let mut blocks = 0;
    while let Some(block) = record.next().await? {
        blocks += 1;
        if listing.confirm(&block.block_checksum).map_err(scratch_failed)?.is_none() {
            tracing::warn!(backup = %name, block = %block.block_checksum, "Earlier record misses a block: not adopted");
            return Ok(None);
        }
    }
    Ok(Some((head, blocks)))
}
