//! The status of a `Restore`: what the operator observed, and the rules that hold laws 3 and 8.
//!
//! A block counts when its checksum held and it is on the volume. `Completed` and 100 % come only after the volume was
//! flushed. Numbers are copied from the worker's report, as in `backup_status`.

use k8s_openapi::apimachinery::pkg::{
    api::resource::Quantity,
    apis::meta::v1::{Condition, Time},
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    common::{AccessMode, ChosenTarget, VolumeMode, count},
    course::{Attempt, Course, ObservedFailure, Queue, RequestCounts, Stage, State, Status, status_with_course},
};
use crate::model::{
    self, Damaged,
    progress::{Completion, percent},
    report::Plan,
};

/// Where the restore is.
///
/// ```text
/// Pending → Preparing → InProgress → Flushing → Completed
///    └──────────┴────────────┴───────────┴→ Error (→ back by a retry) or Cancelled
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum RestoreState {
    Pending,
    Preparing,
    InProgress,
    Flushing,
    Completed,
    Error,
    Cancelled,
}

status_with_course! {
    /// What the operator observed; only the operator writes it.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
    #[serde(rename_all = "camelCase")]
    #[x_kube(
        validation = Rule::new("!has(oldSelf.state) || oldSelf.state != 'Completed' || (has(self.state) && self.state == 'Completed')").message("Completed is history"),
        validation = Rule::new("!has(oldSelf.state) || oldSelf.state != 'Cancelled' || (has(self.state) && self.state == 'Cancelled')").message("Cancelled is history"),
        validation = Rule::new("!has(oldSelf.attempt) || (has(self.attempt) && self.attempt.number >= oldSelf.attempt.number)").message("an earlier attempt changes nothing"),
        validation = Rule::new("!has(oldSelf.progress) || !has(oldSelf.attempt) || !has(self.attempt) || self.attempt.id != oldSelf.attempt.id || (has(self.progress) && self.progress.restoredBlocks >= oldSelf.progress.restoredBlocks)").message("progress never falls within an attempt"),
        validation = Rule::new("!has(self.progress) || ((self.progress.percent == 100) == (has(self.state) && self.state == 'Completed'))").message("percent is 100 exactly when Completed"),
        validation = Rule::new("!has(self.state) || self.state != 'Completed' || !has(self.progress) || self.progress.damagedBlocks == 0").message("a restore with damaged blocks is not Completed")
    )]
    pub struct RestoreStatus {
        /// Where the restore is: Pending, Preparing, InProgress, Flushing, Completed, Error or Cancelled.
        state: RestoreState,
        /// Ready, VolumeReady, DataRestored and DataFlushed always, VolumeBound for a claim; Reconciling and Stalled only
        /// while True.
        conditions,
        /// The Backup that was found, once; its record is read from then on.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub backup: Option<ChosenBackup>,
        /// The target that holds it.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub target: Option<ChosenTarget>,
        /// The volume that is written.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub volume: Option<FilledVolume>,
        /// What is on the volume, by this attempt's knowledge.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub progress: Option<RestoreProgress>,
        /// The first ten blocks that could not be restored, by offset; `tidemark restore --keep-going` and `tidemark
        /// verify` list all.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schemars(length(max = 10))]
        pub damaged: Vec<DamagedBlock>,
    }
}

impl State for RestoreState {
    fn stage(self) -> Stage {
        match self {
            RestoreState::Pending => Stage::Pending,
            RestoreState::Preparing => Stage::Starting,
            RestoreState::InProgress => Stage::InProgress,
            RestoreState::Flushing => Stage::Closing,
            RestoreState::Completed => Stage::Completed,
            RestoreState::Error => Stage::Error,
            RestoreState::Cancelled => Stage::Cancelled,
        }
    }

    fn of(stage: Stage) -> Option<Self> {
        match stage {
            Stage::Pending => Some(RestoreState::Pending),
            Stage::Starting => Some(RestoreState::Preparing),
            Stage::InProgress => Some(RestoreState::InProgress),
            Stage::Closing => Some(RestoreState::Flushing),
            Stage::Completed => Some(RestoreState::Completed),
            Stage::Error => Some(RestoreState::Error),
            Stage::Cancelled => Some(RestoreState::Cancelled),
            // A Restore that is being deleted stays what it was until it is gone.
            Stage::Deleting => None,
        }
    }
}

impl Status for RestoreStatus {
    fn course(&self) -> Course {
        self.read_course()
    }

    fn set_course(&mut self, course: Course) {
        self.write_course(course);
    }

    fn done_blocks(&self) -> i64 {
        self.progress.as_ref().map_or(0, |p| p.restored_blocks)
    }

    fn moved_blocks(&self) -> i64 {
        self.progress.as_ref().map_or(0, |p| p.restored_blocks - p.reused_blocks)
    }

    fn percent(&self) -> Option<i32> {
        self.progress.as_ref().map(|p| p.percent)
    }

    fn rest_gauges(&mut self) {
        if let Some(progress) = &mut self.progress {
            (progress.bytes_per_second, progress.estimated_completion_time) = (None, None);
        }
    }

    fn clear_progress(&mut self) {
        self.progress = None;
    }
}

/// The Backup that is restored, and where its record is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChosenBackup {
    /// Name of the Backup.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Uid of the Backup: another object of the same name is another Backup.
    #[schemars(length(max = 128))]
    pub uid: String,
    /// Name of the volume in the store.
    #[schemars(length(max = 40))]
    pub volume: String,
    /// Name of the backup in the store.
    #[schemars(length(max = 63))]
    pub backup: String,
    /// What Longhorn and `tidemark restore` take: bucket, region, backup and volume in one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub url: Option<String>,
    /// The recovery point: the data is as it was then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_time: Option<Time>,
}

/// The volume that is written.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FilledVolume {
    /// Path of a hostDevice.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub path: Option<String>,
    /// Size of the volume in bytes, as it was backed up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// Bytes of one block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<i64>,
    /// What the claim is made like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<ChosenClaim>,
}

/// What a claim is made like: from the spec, and where that says nothing as recorded with the backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChosenClaim {
    /// Its storage class.
    #[schemars(length(max = 253))]
    pub storage_class_name: String,
    /// Filesystem or Block.
    pub volume_mode: VolumeMode,
    /// Its access modes.
    #[schemars(length(max = 4))]
    pub access_modes: Vec<AccessMode>,
    /// Its size.
    #[schemars(extend("maxLength" = 32))]
    pub size: Quantity,
    /// The file system, as its driver knew it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub fs_type: Option<String>,
}

/// What is on the volume.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.totalBlocks) ? self.restoredBlocks + self.damagedBlocks <= self.totalBlocks : self.restoredBlocks == 0").message("restoredBlocks and damagedBlocks must not be more than totalBlocks"),
    validation = Rule::new("self.reusedBlocks <= self.restoredBlocks").message("reusedBlocks must not be more than restoredBlocks")
)]
pub struct RestoreProgress {
    /// Blocks the backup names; absent before its record was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub total_blocks: Option<i64>,
    /// Blocks on the volume whose checksum held: fetched and written, or found there.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub restored_blocks: i64,
    /// Of these, blocks that were on the volume already, by their checksums: not fetched.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub reused_blocks: i64,
    /// Blocks of the volume that the backup does not name: they read as zeros.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub zero_blocks: i64,
    /// Blocks that are missing or damaged in the bucket.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub damaged_blocks: i64,
    /// Restored blocks in percent, rounded down; 99 at most while anything is open, 100 exactly when Completed.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub percent: i32,
    /// Bytes of the volume in the restored blocks.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub restored_bytes: i64,
    /// Bytes of the objects this attempt fetched.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub fetched_bytes: i64,
    /// Rate of restoring, in bytes of the volume per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub bytes_per_second: Option<i64>,
    /// When it will be done at this rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_completion_time: Option<Time>,
    /// When a block was last restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_restored_time: Option<Time>,
}

/// A block that could not be restored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DamagedBlock {
    /// Bytes from the start of the volume.
    #[schemars(range(min = 0))]
    pub offset: i64,
    /// Key of the object, below the target's prefix.
    #[schemars(length(max = 1024))]
    pub object: String,
    /// Missing, Unreadable or ChecksumMismatch.
    #[schemars(length(max = 64))]
    pub reason: String,
}

impl RestoreProgress {
    /// What status says of a report's counters.
    pub fn of(progress: &model::RestoreProgress, plan: Option<&Plan>, completion: Completion) -> Self {
        let blocks = plan.map_or(0, |plan| plan.block_size.count(plan.volume_bytes));
        Self {
            total_blocks: Some(count(progress.total_blocks)),
            restored_blocks: count(progress.restored_blocks()),
            reused_blocks: count(progress.reused_blocks),
            zero_blocks: count(blocks.saturating_sub(progress.total_blocks)),
            damaged_blocks: count(progress.failed_blocks),
            percent: i32::from(percent(progress.restored_blocks(), progress.total_blocks, completion)),
            restored_bytes: count(progress.restored_bytes),
            fetched_bytes: count(progress.fetched_bytes),
            bytes_per_second: None,
            estimated_completion_time: None,
            last_restored_time: None,
        }
    }
}

impl From<&Damaged> for DamagedBlock {
    fn from(damaged: &Damaged) -> Self {
        Self {
            offset: count(damaged.offset),
            object: damaged.object.clone(),
            reason: damaged.reason.as_str().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BlockSize;

    #[test]
    fn law_3_a_restore_shows_100_percent_only_when_completed() {
        let plan = Plan {
            volume_bytes: 10 * BlockSize::Mi2.bytes(),
            block_size: BlockSize::Mi2,
            compression: Default::default(),
            parent: None,
        };
        let counted = model::RestoreProgress {
            total_blocks: 3,
            written_blocks: 2,
            reused_blocks: 1,
            ..model::RestoreProgress::default()
        };
        let shown = RestoreProgress::of(&counted, Some(&plan), Completion::Open);
        assert_eq!((shown.percent, shown.restored_blocks, shown.zero_blocks), (99, 3, 7), "{shown:?}");
        assert_eq!(RestoreProgress::of(&counted, Some(&plan), Completion::Completed).percent, 100);
        let empty = RestoreProgress::of(&model::RestoreProgress::default(), Some(&plan), Completion::Completed);
        assert_eq!((empty.percent, empty.total_blocks, empty.zero_blocks), (100, Some(0), 10), "a volume of zeros");
    }
}
