//! `Backup`: one volume, at one point in time, to one target.
//!
//! The spec is immutable field by field but for the verbs (`upload`, `cancel`, `retryRequest`, `deletionPolicy`,
//! `expireAfter`). The status and its rules are in `backup_status`.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::backup_status::{
    Attempt, BackupProgress, BackupState, BackupStatus, Change, ChangeSource, HeardBy, ObservedFailure,
    ObservedSnapshot, ObservedSource, Queue, QueueLimit, RequestCounts, StoredAs,
};
use super::common::{DevicePath, DurationText, TargetRef, Transfer, stall_deadline, start_deadline, total_deadline};

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
    validation = Rule::new("self.verify == oldSelf.verify").message("verify is immutable: create a new Backup, or run tidemark verify").field_path(".verify"),
    validation = Rule::new("has(self.targetRef) == has(oldSelf.targetRef) && (!has(self.targetRef) || self.targetRef == oldSelf.targetRef)").message("targetRef is immutable: create a new Backup").field_path(".targetRef"),
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
    /// What is verified after completion; the condition Verified says the result, and the Backup stays Completed whatever it
    /// is. Listing: every block is there with a size that can be. Sample: 300 blocks are read and compared too. Full: all
    /// of them. Immutable.
    #[serde(default)]
    pub verify: BackupVerify,
    /// How long each step may take before it is an Error. Immutable.
    #[serde(default)]
    pub deadlines: BackupDeadlines,
    /// What happens by itself after an attempt failed. Immutable.
    #[serde(default)]
    pub retry: RetryPolicy,
    /// How fast blocks are sent. May change at any time; the next attempt takes it at the latest.
    #[serde(default, skip_serializing_if = "Transfer::is_empty")]
    pub upload: Transfer,
    /// Set to true to stop the backup for good. It cannot be taken back.
    #[serde(default)]
    pub cancel: bool,
    /// A new value asks for one more attempt; it is echoed in status.observedRetryRequest.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub retry_request: String,
    /// What happens in the bucket when this object is deleted: Retain keeps the data. Delete removes it, but only if the
    /// record is this namespace's own, and namespace, target, CRD and operator are there to stay.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// This long after completion the object is deleted, and its data by deletionPolicy; e.g. 720h. Empty: never.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,6}(h|m|s))*$')").message("write a duration as 90s, 10m, 24h or 1h30m, or leave it empty"))]
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
    /// A backup that is in the bucket already; nothing is uploaded. It must have been made from this namespace of this
    /// cluster, unless the target's spec.imports or spec.sharedWithClusters says more.
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
    #[schemars(length(min = 2, max = 40))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9][a-z0-9_.-]+$')").message("volume must be the volume's name in the store, as `tidemark ls` shows it: lower-case letters, digits, '-', '_' or '.'"))]
    pub volume: String,
    /// Name of the backup in the store.
    #[schemars(length(min = 2, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9][a-z0-9_.-]+$')").message("backup must be the backup's name in the store, as `tidemark ls` shows it: lower-case letters, digits, '-', '_' or '.'"))]
    pub backup: String,
}

/// A block device or image file of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostDeviceSource {
    /// Absolute path of the device or file, below a root the operator was started with.
    pub path: DevicePath,
    /// The node that has it.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// What you call it: together with the node it names the volume in the store, so keep it the same for each backup.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')").message("name must be lower-case letters, digits, '-' or '.', beginning and ending with a letter or digit, e.g. pg-data"))]
    pub name: String,
}

/// Incremental or Full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum BackupMode {
    #[default]
    Incremental,
    Full,
}

/// None, Listing, Sample or Full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum BackupVerify {
    #[default]
    None,
    Listing,
    Sample,
    Full,
}

/// How long each step may take before it is an Error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!self.stall.matches('^([0-9]{1,6}(h|m|s))+$') || !self.total.matches('^([0-9]{1,6}(h|m|s))+$') || (duration(self.stall) >= duration('5s') && duration(self.stall) < duration(self.total))").message("stall must be at least 5s and less than total"))]
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

fn keep_snapshot_deadline() -> DurationText {
    DurationText::new("24h")
}

/// What happens by itself after an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!self.backoff.matches('^([0-9]{1,6}(h|m|s))+$') || !self.maxBackoff.matches('^([0-9]{1,6}(h|m|s))+$') || duration(self.backoff) <= duration(self.maxBackoff)").message("backoff must not be longer than maxBackoff"))]
pub struct RetryPolicy {
    /// Attempts in a row that got no block further before it waits for you; 0: never by itself.
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

/// Retain or Delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    #[default]
    Retain,
    Delete,
}
