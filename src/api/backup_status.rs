//! The status of a `Backup`: what the operator observed, and the rules that hold laws 3 and 8.
//!
//! Types first, in the order of the fields; then how the model's counters become them. Numbers are copied, never
//! computed anew: the percentage is `model::progress::percent` and nothing else. A count too large for int64 stays at
//! its end instead of becoming negative.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    backup::BackupMode,
    common::{ChosenTarget, count},
};
use crate::model::{
    Failure, Phase, Progress, Requests, Retry,
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
    /// The generation of the spec this status is about; -1: not looked at yet.
    #[serde(default = "unobserved")]
    pub observed_generation: i64,
    /// The last spec.retryRequest that was acted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub observed_retry_request: Option<String>,
    /// Where the backup is: Pending, Snapshotting, InProgress, Committing, Completed, Error, Cancelled or Deleting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<BackupState>,
    /// Why it is in this state: the reason of the condition Ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
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
    /// When work on it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the record was read back equal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Present only while it waits for a slot; written once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<Queue>,
    /// The current attempt, or the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
    /// What the store has acknowledged in this attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<BackupProgress>,
    /// What it builds on, and how the changed blocks were found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// Requests to the store in this attempt, by kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<RequestCounts>,
    /// The last failure; it stays when a later attempt gets on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<ObservedFailure>,
    /// Attempts in a row that failed without a new acknowledged block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<i32>,
    /// When the next attempt starts by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_retry_time: Option<Time>,
    /// Ready, SnapshotReady, DataAcknowledged and RecordCommitted always; Reconciling and Stalled only while True; Verified
    /// once a completed Backup's spec.verify asked for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

impl Default for BackupStatus {
    fn default() -> Self {
        Self {
            observed_generation: unobserved(),
            observed_retry_request: None,
            state: None,
            reason: None,
            target: None,
            source: None,
            snapshot: None,
            store: None,
            start_time: None,
            completion_time: None,
            queue: None,
            attempt: None,
            progress: None,
            change: None,
            requests: None,
            failure: None,
            consecutive_failures: None,
            next_retry_time: None,
            conditions: Vec::new(),
        }
    }
}

/// kstatus: an object whose status says -1 was not looked at yet.
pub(super) fn unobserved() -> i64 {
    -1
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

/// Present only while it waits for a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Queue {
    /// Since when.
    pub since: Time,
    /// Which limit it waits for: Target, Namespace, Node, Operator, Driver or Volume.
    pub limit: QueueLimit,
}

/// The limit a queued backup waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum QueueLimit {
    Target,
    Namespace,
    Node,
    Operator,
    Driver,
    Volume,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Counts from 1 and never falls.
    #[schemars(range(min = 1))]
    pub number: i32,
    /// Its id: a ULID.
    #[schemars(length(max = 26))]
    pub id: String,
    /// Name of the worker's Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pod_name: Option<String>,
    /// Uid of the worker's Pod: reports of any other are not believed.
    #[serde(rename = "podUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub pod_uid: Option<String>,
    /// The node it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node_name: Option<String>,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the worker was last heard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heard_time: Option<Time>,
    /// What carried the last report: HTTP, Log or LastWord.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heard_by: Option<HeardBy>,
}

/// What carried a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum HeardBy {
    #[serde(rename = "HTTP")]
    Http,
    Log,
    LastWord,
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

/// Requests to the store in this attempt, by kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestCounts {
    /// PUT requests, of blocks and of everything else.
    pub put: i64,
    /// HEAD requests.
    pub head: i64,
    /// GET requests.
    pub get: i64,
    /// LIST requests.
    pub list: i64,
    /// DELETE requests.
    pub delete: i64,
    /// Requests of any kind that were a repetition.
    pub retried: i64,
    /// Answers that asked us to slow down.
    pub throttled: i64,
}

/// One failure.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObservedFailure {
    /// Why, in one word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What was tried, on which object, and what was seen.
    #[schemars(length(max = 1100))]
    pub message: String,
    /// The key or path at which it happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub object: Option<String>,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// In which attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    /// True: another attempt may cure it.
    #[serde(default)]
    pub retryable: bool,
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

impl From<&Requests> for RequestCounts {
    fn from(requests: &Requests) -> Self {
        Self {
            put: count(requests.put),
            head: count(requests.head),
            get: count(requests.get),
            list: count(requests.list),
            delete: count(requests.delete),
            retried: count(requests.retried),
            throttled: count(requests.throttled),
        }
    }
}

impl ObservedFailure {
    /// What status says of a failure in that attempt (absent: before any).
    pub fn of(failure: &Failure, attempt: Option<u32>) -> Self {
        Self {
            reason: failure.reason.as_str().to_owned(),
            message: failure.message.clone(),
            object: failure.object.clone(),
            time: Some(Time(failure.time)),
            attempt: attempt.map(|number| i32::try_from(number).unwrap_or(i32::MAX)),
            retryable: failure.reason.retry() != Retry::Never,
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

    #[test]
    fn a_count_beyond_int64_does_not_become_negative() {
        let huge = Requests { put: u64::MAX, ..Requests::default() };
        assert_eq!(RequestCounts::from(&huge).put, i64::MAX);
    }
}
