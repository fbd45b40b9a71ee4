//! `Backup`: one volume, at one point in time, to one target.
//!
//! The spec is immutable field by field but for the verbs (`upload`, `cancel`, `retryRequest`, `deletionPolicy`,
//! `expireAfter`). The rules on `status` are the API server's half of laws 3 and 8: a write that would take progress
//! back, or rewrite history, is refused whoever sends it.

use k8s_openapi::apimachinery::pkg::{
    api::resource::Quantity,
    apis::meta::v1::{Condition, Time},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{ChosenTarget, DurationText, TargetRef};

/// A Backup copies one volume, as it was at one point in time, to a target, block by block.
///
/// Its status never says more than the object store has confirmed.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "tidemark.dev",
    version = "v1alpha1",
    kind = "Backup",
    namespaced,
    cel,
    status = "BackupStatus",
    derive = "PartialEq",
    shortname = "tmb",
    category = "tidemark",
    selectable = ".status.state",
    selectable = ".spec.source.persistentVolumeClaim.name",
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name must be at most 63 characters"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state", description = "Where the backup is"),
    printcolumn(name = "%", type_ = "integer", json_path = ".status.progress.percent", description = "Acknowledged blocks in percent, rounded down; 100 exactly when Completed"),
    printcolumn(name = "Acked", type_ = "integer", json_path = ".status.progress.acknowledgedBlocks", description = "Blocks the store has acknowledged"),
    printcolumn(name = "Total", type_ = "integer", json_path = ".status.progress.totalBlocks", description = "Blocks the record will name"),
    printcolumn(name = "Last-Ack", type_ = "date", json_path = ".status.progress.lastAcknowledgedTime", description = "When the store last acknowledged a block"),
    printcolumn(name = "PVC", type_ = "string", json_path = ".spec.source.persistentVolumeClaim.name", description = "The claim that is backed up"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason", description = "Why it is in this state"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Since this object was made"),
    printcolumn(name = "Snapshot-Time", type_ = "date", json_path = ".status.snapshot.creationTime", priority = 1, description = "The recovery point"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode", priority = 1, description = "Incremental or Full"),
    printcolumn(name = "Target", type_ = "string", json_path = ".status.target.name", priority = 1, description = "The target that was chosen"),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".status.attempt.number", priority = 1, description = "Number of the current attempt"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.attempt.nodeName", priority = 1, description = "Where its worker runs"),
    printcolumn(name = "Stored", type_ = "integer", json_path = ".status.progress.storedBytes", priority = 1, description = "Bytes this attempt stored"),
    printcolumn(name = "Retry-At", type_ = "string", json_path = ".status.nextRetryTime", priority = 1, description = "When the next attempt starts by itself")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.source == oldSelf.source").message("source is immutable: create a new Backup").field_path(".source"),
    validation = Rule::new("self.mode == oldSelf.mode").message("mode is immutable: create a new Backup").field_path(".mode"),
    validation = Rule::new("has(self.targetRef) == has(oldSelf.targetRef) && (!has(self.targetRef) || self.targetRef == oldSelf.targetRef)").message("targetRef is immutable: create a new Backup"),
    validation = Rule::new("self.deadlines == oldSelf.deadlines").message("deadlines are immutable: create a new Backup").field_path(".deadlines"),
    validation = Rule::new("self.retry == oldSelf.retry").message("retry is immutable: create a new Backup, or ask for one more attempt with retryRequest").field_path(".retry"),
    validation = Rule::new("!oldSelf.cancel || self.cancel").message("cancel cannot be taken back: create a new Backup").field_path(".cancel")
)]
pub struct BackupSpec {
    /// What is backed up: exactly one of the four. Immutable.
    pub source: BackupSource,
    /// Where it goes. Absent: the default target, resolved once and written to status.target. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Incremental reuses the blocks that the store has. Full sends every block again, which heals a damaged store.
    /// Immutable.
    #[serde(default)]
    pub mode: BackupMode,
    /// How long each step may take before it is an Error. Immutable.
    #[serde(default)]
    pub deadlines: BackupDeadlines,
    /// What happens by itself after an attempt failed. Immutable.
    #[serde(default)]
    pub retry: RetryPolicy,
    /// How fast blocks are sent. May change at any time; the next attempt takes it at the latest.
    #[serde(default, skip_serializing_if = "Upload::is_empty")]
    pub upload: Upload,
    /// Set to true to stop the backup for good. It cannot be taken back.
    #[serde(default)]
    pub cancel: bool,
    /// A new value asks for one more attempt; it is echoed in status.observedRetryRequest.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub retry_request: String,
    /// What happens in the bucket when this object is deleted: Retain keeps the data, Delete removes it.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// This long after completion the object is deleted, and its data by deletionPolicy; e.g. 720h. Empty: never.
    #[serde(default)]
    #[schemars(length(max = 16), regex(pattern = r"^([0-9]{1,6}(h|m|s))*$"))]
    pub expire_after: String,
}

/// What is backed up: exactly one field is set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.persistentVolumeClaim), has(self.volumeSnapshot), has(self.existing), has(self.hostDevice)].filter(x, x).size() == 1").message("set exactly one of persistentVolumeClaim, volumeSnapshot, existing, hostDevice"))]
pub struct BackupSource {
    /// A claim of this namespace; a snapshot of it is taken, read and removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimSource>,
    /// A VolumeSnapshot of this namespace that you made; it is read and left untouched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_snapshot: Option<VolumeSnapshotSource>,
    /// A backup that is in the bucket already; nothing is uploaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub existing: Option<ExistingSource>,
    /// A block device or image file of a node. Only in the operator's own namespace, below the roots it was started with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_device: Option<HostDeviceSource>,
}

/// A claim of this namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSource {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Class for the snapshot. Absent: the driver's default class.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub volume_snapshot_class_name: Option<String>,
}

/// A VolumeSnapshot of this namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotSource {
    /// Name of the VolumeSnapshot.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A record that is in the bucket already.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExistingSource {
    /// Name of the volume in the store.
    #[schemars(length(min = 2, max = 40), regex(pattern = r"^[a-z0-9][a-z0-9_.-]+$"))]
    pub volume: String,
    /// Name of the backup in the store.
    #[schemars(length(min = 2, max = 63), regex(pattern = r"^[a-z0-9][a-z0-9_.-]+$"))]
    pub backup: String,
}

/// A block device or image file of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostDeviceSource {
    /// Absolute path of the device or file, below a root the operator was started with.
    #[schemars(length(min = 2, max = 1024))]
    #[x_kube(
        validation = Rule::new("self.startsWith('/')").message("path must be absolute, e.g. /dev/vg0/snap"),
        validation = Rule::new("!self.split('/').exists(part, part == '..')").message("path must not contain '..': write where the device really is")
    )]
    pub path: String,
    /// The node that has it.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// What you call it: together with the node it names the volume in the store, so keep it the same for each backup.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub name: String,
}

/// Incremental or Full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum BackupMode {
    #[default]
    Incremental,
    Full,
}

/// How long each step may take before it is an Error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.stall) >= duration('5s') && duration(self.stall) < duration(self.total)").message("stall must be at least 5s and less than total"))]
pub struct BackupDeadlines {
    /// From asking for the snapshot until it is ready.
    #[serde(default = "snapshot_deadline")]
    pub snapshot: DurationText,
    /// Waiting for source and target; and again from the ready snapshot until the worker is heard.
    #[serde(default = "start_deadline")]
    pub start: DurationText,
    /// A request to the store is outstanding and nothing was acknowledged for this long.
    #[serde(default = "stall_deadline")]
    pub stall: DurationText,
    /// The whole Backup, retries included.
    #[serde(default = "total_deadline")]
    pub total: DurationText,
    /// How long the snapshot is kept after the last Error, so that a retry continues the same point in time.
    #[serde(default = "keep_snapshot_deadline")]
    pub keep_snapshot: DurationText,
}

impl Default for BackupDeadlines {
    fn default() -> Self {
        Self {
            snapshot: snapshot_deadline(),
            start: start_deadline(),
            stall: stall_deadline(),
            total: total_deadline(),
            keep_snapshot: keep_snapshot_deadline(),
        }
    }
}

fn snapshot_deadline() -> DurationText {
    DurationText::new("10m")
}

fn start_deadline() -> DurationText {
    DurationText::new("30m")
}

fn stall_deadline() -> DurationText {
    DurationText::new("60s")
}

fn total_deadline() -> DurationText {
    DurationText::new("168h")
}

fn keep_snapshot_deadline() -> DurationText {
    DurationText::new("24h")
}

/// What happens by itself after an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.backoff) <= duration(self.maxBackoff)").message("backoff must not be longer than maxBackoff"))]
pub struct RetryPolicy {
    /// Attempts in a row that acknowledged nothing new before it waits for you; 0: never by itself.
    #[schemars(range(min = 0, max = 100))]
    #[serde(default = "retry_limit")]
    pub limit: i32,
    /// Wait before the first retry; doubled each time.
    #[serde(default = "retry_backoff")]
    pub backoff: DurationText,
    /// The longest wait.
    #[serde(default = "retry_max_backoff")]
    pub max_backoff: DurationText,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { limit: retry_limit(), backoff: retry_backoff(), max_backoff: retry_max_backoff() }
    }
}

fn retry_limit() -> i32 {
    6
}

fn retry_backoff() -> DurationText {
    DurationText::new("30s")
}

fn retry_max_backoff() -> DurationText {
    DurationText::new("15m")
}

/// How fast blocks are sent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Upload {
    /// Blocks in flight at once, at most. Absent: begins with 8 and adapts, up to 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32))]
    pub concurrency: Option<i32>,
    /// Bytes per second, at most, such as 200Mi. Absent: no limit but the target's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 32))]
    #[x_kube(
        validation = Rule::new("type(self) == int || isQuantity(self)").message("not a quantity: write bytes per second as 200Mi or 50M"),
        validation = Rule::new("type(self) == int ? self >= 65536 : (!isQuantity(self) || quantity(self).compareTo(quantity('64Ki')) >= 0)").message("at least 64Ki bytes per second")
    )]
    pub max_bytes_per_second: Option<Quantity>,
}

impl Upload {
    pub fn is_empty(&self) -> bool {
        *self == Upload::default()
    }
}

/// Retain or Delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    #[default]
    Retain,
    Delete,
}

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
    /// Ready, SnapshotReady, DataAcknowledged and RecordCommitted always; Reconciling and Stalled only while True.
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
