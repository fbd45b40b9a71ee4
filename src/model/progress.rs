//! The counters of an attempt, by its task: those that do not apply to a task are not there. Every one only grows within
//! an attempt, but `in_flight_blocks` (a gauge) and `total_blocks` (a backup's only falls, as zero blocks are recognised;
//! a restore's is the record's own count).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::restore::{RestorePhase, RestoreProgress};

/// Where an attempt is. A backup goes through the first four; a restore plans, restores, flushes and reads back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub enum Phase {
    /// Guard, listing, resume: nothing counted yet.
    #[default]
    Planning,
    Uploading,
    WritingRecord,
    ReadingBack,
    /// Blocks are fetched, compared with their checksums and written.
    Restoring,
    /// Every block was written; the device puts them on stable storage.
    Flushing,
    Ended,
}

impl From<RestorePhase> for Phase {
    fn from(phase: RestorePhase) -> Self {
        match phase {
            RestorePhase::Planning => Phase::Planning,
            RestorePhase::Writing => Phase::Restoring,
            RestorePhase::Syncing => Phase::Flushing,
            RestorePhase::ReadingBack => Phase::ReadingBack,
            RestorePhase::Ended => Phase::Ended,
        }
    }
}

/// What an attempt counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Counters {
    #[serde(rename = "progress")]
    Backup(Progress),
    #[serde(rename = "restored")]
    Restore(RestoreProgress),
}

/// What the store has acknowledged, in blocks and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Progress {
    /// Blocks the record will name, as known now: candidates less the zero blocks recognised so far. It never grows.
    pub total_blocks: u64,
    /// `uploaded + reused + resumed`.
    pub acknowledged_blocks: u64,
    /// Blocks this attempt sent, and offsets that hold the same bytes as one it sent.
    pub uploaded_blocks: u64,
    /// Blocks a listing begun after this attempt's guard stood showed in the store.
    pub reused_blocks: u64,
    /// Blocks an earlier attempt's journal names and that listing confirms: not read again.
    pub resumed_blocks: u64,
    /// Blocks given up after all their retries.
    pub failed_blocks: u64,
    pub in_flight_blocks: u64,
    /// Blocks of zeros that were read: not stored, not named, not counted.
    pub zero_blocks: u64,
    /// Uncompressed bytes of the acknowledged blocks.
    pub acknowledged_bytes: u64,
    /// Bytes of the objects this attempt stored.
    pub stored_bytes: u64,
    /// Bytes read from the source.
    pub read_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_acknowledged_time: Option<Timestamp>,
}

impl Default for Counters {
    fn default() -> Self {
        Counters::Backup(Progress::default())
    }
}

impl Counters {
    /// Blocks that count: acknowledged by the store, or on the device.
    pub fn done_blocks(&self) -> u64 {
        match self {
            Counters::Backup(p) => p.acknowledged_blocks,
            Counters::Restore(p) => p.restored_blocks(),
        }
    }

    pub fn total_blocks(&self) -> u64 {
        match self {
            Counters::Backup(p) => p.total_blocks,
            Counters::Restore(p) => p.total_blocks,
        }
    }

    /// Uncompressed bytes of the blocks that count.
    pub fn done_bytes(&self) -> u64 {
        match self {
            Counters::Backup(p) => p.acknowledged_bytes,
            Counters::Restore(p) => p.restored_bytes,
        }
    }

    /// Blocks this attempt moved itself: what makes it worth having been tried.
    pub fn moved_blocks(&self) -> u64 {
        match self {
            Counters::Backup(p) => p.uploaded_blocks,
            Counters::Restore(p) => p.written_blocks,
        }
    }

    /// A backup's counters; of another task all are zero.
    pub fn backup(&self) -> Progress {
        match self {
            Counters::Backup(progress) => *progress,
            Counters::Restore(_) => Progress::default(),
        }
    }

    /// A restore's counters; of another task all are zero.
    pub fn restore(&self) -> RestoreProgress {
        match self {
            Counters::Backup(_) => RestoreProgress::default(),
            Counters::Restore(progress) => *progress,
        }
    }
}

/// Requests this attempt made, by kind, each counted when it ended; a retry counts in its kind and in `retried`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Requests {
    pub put: u64,
    pub head: u64,
    pub get: u64,
    pub list: u64,
    pub delete: u64,
    pub retried: u64,
    pub throttled: u64,
    /// Those of them that got no answer, an error, or were given up.
    #[serde(skip_serializing_if = "FailedRequests::is_none")]
    pub failed: FailedRequests,
}

/// Requests without the answer they asked for, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FailedRequests {
    pub put: u64,
    pub head: u64,
    pub get: u64,
    pub list: u64,
    pub delete: u64,
}

impl FailedRequests {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl Requests {
    /// All requests that ended, retries included.
    pub fn sum(&self) -> u64 {
        self.put + self.head + self.get + self.list + self.delete
    }
}

/// Has the whole Backup come true?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    Open,
    Completed,
}

/// The percentage that may be shown: floored, at most 99 while anything is open, exactly 100 when completed (law 3).
pub fn percent(acknowledged: u64, total: u64, completion: Completion) -> u8 {
    match completion {
        Completion::Completed => 100,
        Completion::Open if total == 0 => 0,
        Completion::Open => {
            let floored = u128::from(acknowledged) * 100 / u128::from(total);
            floored.min(99) as u8
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law_3_percent_is_100_exactly_when_completed() {
        for total in 0..=40 {
            let mut last = 0;
            for acknowledged in 0..=total {
                let shown = percent(acknowledged, total, Completion::Open);
                assert!(shown <= 99 && shown >= last, "{acknowledged} of {total}: {shown}");
                assert!(
                    u64::from(shown) * total <= acknowledged * 100,
                    "{acknowledged} of {total}: {shown} is too much"
                );
                last = shown;
            }
            assert_eq!(percent(total, total, Completion::Completed), 100);
        }
        assert_eq!(percent(u64::MAX - 1, u64::MAX, Completion::Open), 99);
    }
}
