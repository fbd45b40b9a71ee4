//! The status of a `Backup`: what the operator observed, and the rules that hold laws 3 and 8.
//!
//! Types first, in the order of the fields; then how the model's counters become them. Numbers are copied, never
//! computed anew: the percentage is `model::progress::percent` and nothing else. A count too large for int64 stays at
//! its end instead of becoming negative.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::course::{Attempt, HeardBy, ObservedFailure, Queue, QueueLimit, RequestCounts};
use super::{
    backup::BackupMode,
    common::{AccessMode, ChosenTarget, count},
    course::{Course, Stage, State, Status, status_with_course},
};
use crate::model::{
    Phase, Progress,
    progress::{Completion, percent},
};

/// Where the backup is.
///
/// ```text
/// Pending → Snapshotting → InProgress → Committing → Completed
///    └────────────┴─────────────┴────────────┴→ Error (→ back by a retry) or Cancelled; any → Deleting
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum BackupState {
    Pending,
    Snapshotting,
    InProgress,
    Committing,
    Completed,
    Error,
    Cancelled,
    Deleting,
}

status_with_course! {
    /// What the operator observed; only the operator writes it.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
    #[serde(rename_all = "camelCase")]
    #[x_kube(
        validation = Rule::new("!has(oldSelf.state) || oldSelf.state != 'Completed' || (has(self.state) && self.state in ['Completed','Deleting'])").message("Completed is history"),
        validation = Rule::new("!has(oldSelf.state) || oldSelf.state != 'Cancelled' || (has(self.state) && self.state in ['Cancelled','Deleting'])").message("Cancelled is history"),
        validation = Rule::new("!has(oldSelf.attempt) || (has(self.attempt) && self.attempt.number >= oldSelf.attempt.number)").message("an earlier attempt changes nothing"),
        validation = Rule::new("!has(oldSelf.progress) || !has(oldSelf.attempt) || !has(self.attempt) || self.attempt.id != oldSelf.attempt.id || (has(self.progress) && self.progress.acknowledgedBlocks >= oldSelf.progress.acknowledgedBlocks)").message("progress never falls within an attempt"),
        validation = Rule::new("!has(self.progress) || ((self.progress.percent == 100) == (has(self.state) && self.state == 'Completed')) || (has(self.state) && self.state == 'Deleting')").message("percent is 100 exactly when Completed")
    )]
    pub struct BackupStatus {
        /// Where the backup is: Pending, Snapshotting, InProgress, Committing, Completed, Error, Cancelled or Deleting.
        state: BackupState,
        /// Ready, SnapshotReady, DataAcknowledged and RecordCommitted always; Reconciling and Stalled only while True;
        /// Verified once a completed Backup's spec.verify asked for it.
        conditions,
        /// The target that was chosen, once; used from then on.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub target: Option<ChosenTarget>,
        /// The volume that is backed up, as it was found.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub source: Option<ObservedSource>,
        /// The point in time that is read.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub snapshot: Option<ObservedSnapshot>,
        /// Where in the bucket it is.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub store: Option<StoredAs>,
        /// What the store has acknowledged in this attempt.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub progress: Option<BackupProgress>,
        /// What it builds on, and how the changed blocks were found.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub change: Option<Change>,
    }
}

impl State for BackupState {
    fn stage(self) -> Stage {
        match self {
            BackupState::Pending => Stage::Pending,
            BackupState::Snapshotting => Stage::Starting,
            BackupState::InProgress => Stage::InProgress,
            BackupState::Committing => Stage::Closing,
            BackupState::Completed => Stage::Completed,
            BackupState::Error => Stage::Error,
            BackupState::Cancelled => Stage::Cancelled,
            BackupState::Deleting => Stage::Deleting,
        }
    }

    fn of(stage: Stage) -> Option<Self> {
        Some(match stage {
            Stage::Pending => BackupState::Pending,
            Stage::Starting => BackupState::Snapshotting,
            Stage::InProgress => BackupState::InProgress,
            Stage::Closing => BackupState::Committing,
            Stage::Completed => BackupState::Completed,
            Stage::Error => BackupState::Error,
            Stage::Cancelled => BackupState::Cancelled,
            Stage::Deleting => BackupState::Deleting,
        })
    }
}

impl Status for BackupStatus {
    fn course(&self) -> Course {
        self.read_course()
    }

    fn set_course(&mut self, course: Course) {
        self.write_course(course);
    }

    fn done_blocks(&self) -> i64 {
        self.progress.as_ref().map_or(0, |p| p.acknowledged_blocks)
    }

    fn moved_blocks(&self) -> i64 {
        self.progress.as_ref().map_or(0, |p| p.uploaded_blocks)
    }

    fn percent(&self) -> Option<i32> {
        self.progress.as_ref().map(|p| p.percent)
    }

    fn rest_gauges(&mut self) {
        if let Some(progress) = &mut self.progress {
            (progress.in_flight_blocks, progress.bytes_per_second, progress.estimated_completion_time) =
                (0, None, None);
        }
    }

    fn clear_progress(&mut self) {
        self.progress = None;
    }
}

/// The volume that is backed up, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObservedSource {
    /// Name of the claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub persistent_volume_claim_name: Option<String>,
    /// Uid of the claim.
    #[serde(rename = "persistentVolumeClaimUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub persistent_volume_claim_uid: Option<String>,
    /// Name of its volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub persistent_volume_name: Option<String>,
    /// The CSI driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub driver: Option<String>,
    /// Filesystem or Block.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub volume_mode: Option<String>,
    /// Storage class of the volume; a Restore that names none takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
    /// Access modes of the claim; a Restore that names none takes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub access_modes: Vec<AccessMode>,
    /// The file system, as the driver knew it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub fs_type: Option<String>,
    /// Path of a hostDevice.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub path: Option<String>,
    /// Size of the volume in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
}

/// The point in time that is read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObservedSnapshot {
    /// Namespace of the VolumeSnapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
    /// Name of the VolumeSnapshot, or what stands for it.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Uid of the VolumeSnapshot: a later attempt reads this one or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub uid: Option<String>,
    /// The recovery point: the data is as it was then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<Time>,
    /// True: we took it and we remove it.
    #[serde(default)]
    pub ours: bool,
}

/// Where in the bucket it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoredAs {
    /// Name of the volume in the store.
    #[schemars(length(max = 40))]
    pub volume: String,
    /// Name of the backup in the store: the record of the attempt that is under way, or that completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub backup: Option<String>,
    /// Bytes of one block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<i64>,
    /// lz4, gzip or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub compression: Option<String>,
    /// What Longhorn and `tidemark restore` take: bucket, region, backup and volume in one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub url: Option<String>,
}

/// What the store has acknowledged in this attempt.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.totalBlocks) ? self.acknowledgedBlocks <= self.totalBlocks : self.acknowledgedBlocks == 0").message("acknowledgedBlocks must not be more than totalBlocks"))]
pub struct BackupProgress {
    /// Blocks the record will name; absent before the plan is made. It falls as blocks of zeros are recognised.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub total_blocks: Option<i64>,
    /// Blocks the store has acknowledged: uploaded, reused and resumed ones.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub acknowledged_blocks: i64,
    /// Blocks this attempt sent.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub uploaded_blocks: i64,
    /// Blocks a listing showed in the store.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub reused_blocks: i64,
    /// Blocks that an earlier attempt sent for the same snapshot and a listing confirmed: not read again.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub resumed_blocks: i64,
    /// Blocks given up after all their retries.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failed_blocks: i64,
    /// Blocks sent and not answered yet.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub in_flight_blocks: i64,
    /// Acknowledged blocks in percent, rounded down; 99 at most while anything is open, 100 exactly when Completed.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub percent: i32,
    /// Uncompressed bytes of the acknowledged blocks.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub acknowledged_bytes: i64,
    /// Bytes of the objects this attempt stored.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub stored_bytes: i64,
    /// Rate of acknowledgement, in uncompressed bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub bytes_per_second: Option<i64>,
    /// When it would be done at this rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_completion_time: Option<Time>,
    /// When the store last acknowledged a block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_acknowledged_time: Option<Time>,
}

/// What it builds on, and how the changed blocks were found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Incremental or Full, as it was really done.
    #[serde(default)]
    pub mode: BackupMode,
    /// The backup in the store it builds on; absent: none was usable.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub parent: Option<String>,
    /// How changed blocks were found; FullComparison: every block was read and compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<ChangeSource>,
    /// Why a faster way was not taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub fallback_reason: Option<String>,
}

/// How changed blocks were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum ChangeSource {
    #[default]
    FullComparison,
}

impl BackupProgress {
    /// What status says of a report's counters. The total is absent until the plan is made.
    pub fn of(progress: &Progress, phase: Phase, completion: Completion) -> Self {
        let planned = phase != Phase::Planning || progress.total_blocks > 0;
        Self {
            total_blocks: planned.then(|| count(progress.total_blocks)),
            acknowledged_blocks: count(progress.acknowledged_blocks),
            uploaded_blocks: count(progress.uploaded_blocks),
            reused_blocks: count(progress.reused_blocks),
            resumed_blocks: count(progress.resumed_blocks),
            failed_blocks: count(progress.failed_blocks),
            in_flight_blocks: count(progress.in_flight_blocks),
            percent: i32::from(percent(progress.acknowledged_blocks, progress.total_blocks, completion)),
            acknowledged_bytes: count(progress.acknowledged_bytes),
            stored_bytes: count(progress.stored_bytes),
            bytes_per_second: None,
            estimated_completion_time: None,
            last_acknowledged_time: progress.last_acknowledged_time.map(Time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law_3_status_shows_the_models_percentage_and_no_total_before_the_plan() {
        let counted = Progress { total_blocks: 3, acknowledged_blocks: 3, uploaded_blocks: 3, ..Progress::default() };
        let shown = BackupProgress::of(&counted, Phase::WritingRecord, Completion::Open);
        assert_eq!((shown.percent, shown.total_blocks), (99, Some(3)), "all acknowledged, nothing committed");
        assert_eq!(BackupProgress::of(&counted, Phase::Ended, Completion::Completed).percent, 100);
        let planning = BackupProgress::of(&Progress::default(), Phase::Planning, Completion::Open);
        assert_eq!(planning, BackupProgress::default());
        let empty = BackupProgress::of(&Progress::default(), Phase::Ended, Completion::Completed);
        assert_eq!((empty.percent, empty.total_blocks), (100, Some(0)), "a volume of zeros completes");
    }
}
