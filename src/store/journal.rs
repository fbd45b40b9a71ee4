//! The journal: which block of the source is called what, so that a later attempt need not read it again.
//!
//! It proves "offset → name" for one identity of the source, never "the block is there": that is for a listing under the
//! new attempt's guard. Segments are written once each and never touched again.
//!
//! ```text
//! segment = "TMJRNL01" | attempt (26 B) | sequence u32 | count u32 | count × (ordinal u32, stored u32, name 32 B) | SHA-256
//! ```
//! Integers are little-endian; entries ascend by ordinal; `stored` 0 marks a block of zeros.

use std::{collections::BTreeSet, time::Duration};

use aws_lc_rs::digest;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    client::Client,
    error::{ErrorKind, StoreError},
    layout::VolumeLayout,
    objects::Range,
    scratch::Placed,
    tombstone::Tombstones,
};
use crate::model::{
    AttemptId, BackupName, BlockName, BlockSize, Compression, FailureReason, VolumeName, job::Mode, limits,
};

/// What an attempt's journal is about. Two journals speak of the same data iff their identities are equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub format: u32,
    pub backup_uid: String,
    pub volume: VolumeName,
    pub volume_bytes: u64,
    pub block_size: BlockSize,
    pub compression: Compression,
    pub mode: Mode,
    pub source: SourceIdentity,
}

/// One point in time of a source. A bare device that may be written proves nothing across attempts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceIdentity {
    #[serde(rename_all = "camelCase")]
    File { device: u64, inode: u64, size: u64, modified_ns: i128, changed_ns: i128 },
    #[serde(rename_all = "camelCase")]
    Device { boot_id: String, disk_sequence: u64, size: u64, read_only: bool, sectors_written: u64 },
    #[serde(rename_all = "camelCase")]
    Snapshot { handle: String, creation_time: String },
}

impl SourceIdentity {
    /// May a later attempt believe a journal of this identity?
    pub fn outlives_attempt(&self) -> bool {
        match self {
            SourceIdentity::File { .. } | SourceIdentity::Snapshot { .. } => true,
            SourceIdentity::Device { read_only, .. } => *read_only,
        }
    }
}

/// `attempt.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttemptFile {
    pub identity: Identity,
    pub record: BackupName,
}

/// What one block of the source turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub ordinal: u32,
    /// Absent: zeros.
    pub placed: Option<Placed>,
}

const MAGIC: &[u8; 8] = b"TMJRNL01";
const HEADER: usize = 8 + 26 + 4 + 4;
const ENTRY: usize = 4 + 4 + 32;
const TRAILER: usize = 32;
/// A segment is never larger.
const SEGMENT_BYTES_MAX: u64 = (HEADER + 2 * limits::SEGMENT_ENTRIES * ENTRY + TRAILER) as u64;

/// Collects entries and says when a segment is due.
#[derive(Debug)]
pub struct Journal {
    attempt: AttemptId,
    sequence: u32,
    pending: Vec<Entry>,
}

impl Journal {
    pub fn new(attempt: AttemptId) -> Self {
        Self { attempt, sequence: 0, pending: Vec::new() }
    }

    pub fn push(&mut self, entry: Entry) {
        self.pending.push(entry);
    }

    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// By count, or when the longer of 5 s and 1 % of the attempt's age has passed since the last segment.
    pub fn is_due(&self, since_last: Duration, age: Duration) -> bool {
        let interval = limits::SEGMENT_INTERVAL_MIN.max(age / 100);
        self.pending.len() >= limits::SEGMENT_ENTRIES || (!self.pending.is_empty() && since_last >= interval)
    }

    /// The next segment: its sequence and bytes. `None` if nothing is pending.
    pub fn take(&mut self) -> Option<(u32, Bytes)> {
        if self.pending.is_empty() {
            return None;
        }
        let count = self.pending.len().min(2 * limits::SEGMENT_ENTRIES);
        let mut entries: Vec<Entry> = self.pending.drain(..count).collect();
        entries.sort_unstable_by_key(|e| e.ordinal);
        let sequence = self.sequence;
        self.sequence += 1;
        Some((sequence, encode(&self.attempt, sequence, &entries)))
    }
}

fn encode(attempt: &AttemptId, sequence: u32, entries: &[Entry]) -> Bytes {
    let mut out = Vec::with_capacity(HEADER + entries.len() * ENTRY + TRAILER);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(attempt.as_str().as_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&u32::try_from(entries.len()).unwrap_or(u32::MAX).to_le_bytes());
    for entry in entries {
        let placed = entry.placed.unwrap_or(Placed { name: BlockName([0; 32]), stored: 0 });
        out.extend_from_slice(&entry.ordinal.to_le_bytes());
        out.extend_from_slice(&placed.stored.to_le_bytes());
        out.extend_from_slice(&placed.name.0);
    }
    let sum = digest::digest(&digest::SHA256, &out);
    out.extend_from_slice(sum.as_ref());
    Bytes::from(out)
}

/// The entries of a segment; `None` if it is not what it should be. Then its blocks are read again: that is all.
pub fn decode(attempt: &AttemptId, bytes: &[u8]) -> Option<Vec<Entry>> {
    let (content, sum) = bytes.split_at_checked(bytes.len().checked_sub(TRAILER)?)?;
    if digest::digest(&digest::SHA256, content).as_ref() != sum {
        return None;
    }
    let (header, body) = content.split_at_checked(HEADER)?;
    let count = u32::from_le_bytes(header[HEADER - 4..].try_into().ok()?) as usize;
    if &header[..8] != MAGIC || &header[8..34] != attempt.as_str().as_bytes() || body.len() != count * ENTRY {
        return None;
    }
    let entry = |e: &[u8]| {
        let stored = u32::from_le_bytes(e[4..8].try_into().ok()?);
        let name = BlockName(e[8..ENTRY].try_into().ok()?);
        let ordinal = u32::from_le_bytes(e[..4].try_into().ok()?);
        Some(Entry { ordinal, placed: (stored > 0).then_some(Placed { name, stored }) })
    };
    body.chunks_exact(ENTRY).map(entry).collect()
}

/// What earlier attempts of the same Backup left.
#[derive(Debug, Clone, Default)]
pub struct Predecessors {
    pub attempts: Vec<AttemptId>,
    /// Every key below the Backup's journal folder.
    pub keys: Vec<String>,
    /// Backups of this volume that were deleted: their records are not built upon.
    pub tombstones: Tombstones,
}

/// P1.4: one LIST shows the Backup's journals, and every tombstone of the volume beside them. A Backup that was deleted is
/// not made again: what it wrote would be swept.
pub async fn predecessors(
    client: &Client,
    layout: &VolumeLayout,
    backup_uid: &str,
    own: &AttemptId,
) -> Result<Predecessors, StoreError> {
    let listed = client.list(&layout.tidemark()).await?;
    let tombstones = Tombstones::of(layout, &listed);
    if tombstones.has(backup_uid) {
        let seen = "this Backup was deleted from the store, and its tombstone is there: make a new Backup";
        let refused = ErrorKind::Refused(FailureReason::Cancelled);
        return Err(StoreError::new(refused, "LIST", layout.tombstone(backup_uid), seen));
    }
    let prefix = layout.journals(backup_uid);
    let keys: Vec<String> = listed.into_iter().map(|e| e.key).filter(|key| key.starts_with(&prefix)).collect();
    let of_key = |key: &String| key.strip_prefix(&prefix)?.split('/').next()?.parse::<AttemptId>().ok();
    let attempts: BTreeSet<AttemptId> = keys.iter().filter_map(of_key).filter(|a| a != own).collect();
    Ok(Predecessors { attempts: attempts.into_iter().collect(), keys, tombstones })
}

/// `attempt.json` of a predecessor; `None` if it is missing or no longer readable as one.
pub async fn read_attempt(
    client: &Client,
    layout: &VolumeLayout,
    backup_uid: &str,
    attempt: &AttemptId,
) -> Result<Option<AttemptFile>, StoreError> {
    let key = layout.attempt(backup_uid, attempt);
    let fetched = client.get(&key, Range::whole(limits::SMALL_OBJECT_BYTES_MAX)).await?;
    Ok(fetched.and_then(|f| serde_json::from_slice(&f.bytes).ok()))
}

/// Reads one segment's entries. A damaged or vanished one is empty and counted by the caller as skipped.
pub async fn read_segment(client: &Client, attempt: &AttemptId, key: &str) -> Result<Option<Vec<Entry>>, StoreError> {
    match client.get(key, Range::whole(SEGMENT_BYTES_MAX)).await {
        Ok(fetched) => Ok(fetched.and_then(|f| decode(attempt, &f.bytes))),
        Err(error) if error.kind == ErrorKind::Damaged => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a segment is, without believing a word of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Sound { sequence: u32 },
    Damaged,
    Gone,
}

/// Reads a segment for a verification.
pub async fn look_at_segment(client: &Client, attempt: &AttemptId, key: &str) -> Result<Look, StoreError> {
    match client.get(key, Range::whole(SEGMENT_BYTES_MAX)).await {
        Ok(None) => Ok(Look::Gone),
        Ok(Some(fetched)) => Ok(match (decode(attempt, &fetched.bytes), fetched.bytes.get(34..38)) {
            (Some(_), Some(sequence)) => {
                Look::Sound { sequence: u32::from_le_bytes(sequence.try_into().expect("four bytes")) }
            }
            _ => Look::Damaged,
        }),
        Err(error) if error.kind == ErrorKind::Damaged => Ok(Look::Damaged),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(n: u32) -> Vec<Entry> {
        let placed =
            |i: u32| (!i.is_multiple_of(3)).then(|| Placed { name: BlockName::of(&i.to_le_bytes()), stored: i });
        (0..n).map(|i| Entry { ordinal: i, placed: placed(i) }).collect()
    }

    #[test]
    fn a_segment_survives_and_any_damage_is_noticed() {
        let attempt = AttemptId::new(1, [1; 10]);
        let mut journal = Journal::new(attempt.clone());
        entries(50).into_iter().rev().for_each(|e| journal.push(e));
        let (sequence, bytes) = journal.take().expect("pending");
        assert_eq!((sequence, decode(&attempt, &bytes)), (0, Some(entries(50))));
        assert!(journal.take().is_none());
        for i in 0..bytes.len() {
            let mut bad = bytes.to_vec();
            bad[i] ^= 1;
            assert_eq!(decode(&attempt, &bad), None, "bit flipped in byte {i}");
            assert_eq!(decode(&attempt, &bytes[..i]), None, "cut at {i}");
        }
        assert_eq!(decode(&AttemptId::new(2, [1; 10]), &bytes), None, "another attempt's");
    }

    #[test]
    fn a_segment_is_due_by_count_or_by_time() {
        let second = Duration::from_secs;
        let mut journal = Journal::new(AttemptId::new(1, [1; 10]));
        assert!(!journal.is_due(second(1000), second(1000)), "nothing pending");
        journal.push(entries(1)[0]);
        assert!(!journal.is_due(second(4), second(10)) && journal.is_due(second(5), second(10)));
        assert!(!journal.is_due(second(50), second(36_000)), "1 % of ten hours is six minutes");
        entries(4096).into_iter().for_each(|e| journal.push(e));
        assert!(journal.is_due(second(0), second(0)));
    }
}
