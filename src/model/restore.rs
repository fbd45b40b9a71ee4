//! The counters of a restore, by the same laws as those of a backup: a block counts when its checksum held and it lies
//! in the target, and 100 % is said only of a restore that was flushed and read back.

use serde::{Deserialize, Serialize};

use super::progress::{Completion, percent};

/// Where a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub enum RestorePhase {
    /// The record, the target, the lock: nothing is written yet.
    #[default]
    Planning,
    Writing,
    /// Everything is written; it goes to stable storage.
    Syncing,
    /// A sample is read from the target and compared.
    ReadingBack,
    Ended,
}

/// What the target holds. Counters only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RestoreProgress {
    pub phase: RestorePhase,
    /// Blocks the record names.
    pub total_blocks: u64,
    /// Blocks that were fetched, compared with their names, and written.
    pub written_blocks: u64,
    /// Blocks that the target held already, by their checksums.
    pub reused_blocks: u64,
    /// Bytes of the volume in both.
    pub restored_bytes: u64,
    /// Bytes of objects fetched.
    pub fetched_bytes: u64,
    /// Blocks given up; only above zero when asked to keep going. They are in no other counter.
    pub failed_blocks: u64,
    /// Blocks read back from the target after the flush.
    pub read_back_blocks: u64,
}

impl RestoreProgress {
    /// Blocks that lie in the target, compared with their checksums.
    pub fn restored_blocks(&self) -> u64 {
        self.written_blocks + self.reused_blocks
    }

    /// Floored; 99 at most unless `completion` says that the restore returned well.
    pub fn percent(&self, completion: Completion) -> u8 {
        percent(self.restored_blocks(), self.total_blocks, completion)
    }
}
