//! `Restore`: one completed Backup of this namespace becomes a volume again.
//!
//! The spec is immutable but for the verbs (`download`, `cancel`, `retryRequest`). A Restore never owns what it fills:
//! deleting it deletes no data. The status and its rules are in `restore_status`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::restore_status::{
    ChosenBackup, ChosenClaim, DamagedBlock, FilledVolume, RestoreProgress, RestoreState, RestoreStatus,
};
use super::{
    backup::RetryPolicy,
    common::{
        AccessMode, DevicePath, DurationText, Transfer, VolumeMode, stall_deadline, start_deadline, total_deadline,
    },
};

/// A Restore writes what one completed Backup of this namespace holds to a volume, and compares every block with its
/// checksum before it counts.
///
/// It never owns the volume: deleting a Restore deletes no data.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "tidemark.dev",
    version = "v1alpha1",
    kind = "Restore",
    namespaced,
    cel,
    status = "RestoreStatus",
    derive = "PartialEq",
    shortname = "tmr",
    category = "tidemark",
    selectable = ".status.state",
    selectable = ".spec.backupRef.name",
    selectable = ".spec.persistentVolumeClaim.name",
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name must be at most 63 characters"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state", description = "Where the restore is"),
    printcolumn(name = "%", type_ = "integer", json_path = ".status.progress.percent", description = "Restored blocks in percent, rounded down; 100 exactly when Completed"),
    printcolumn(name = "Restored", type_ = "integer", json_path = ".status.progress.restoredBlocks", description = "Blocks on the volume whose checksum held"),
    printcolumn(name = "Total", type_ = "integer", json_path = ".status.progress.totalBlocks", description = "Blocks the backup names"),
    printcolumn(name = "PVC", type_ = "string", json_path = ".spec.persistentVolumeClaim.name", description = "The claim that is filled"),
    printcolumn(name = "Backup", type_ = "string", json_path = ".spec.backupRef.name", description = "The Backup that is restored"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason", description = "Why it is in this state"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Since this object was made"),
    printcolumn(name = "Damaged", type_ = "integer", json_path = ".status.progress.damagedBlocks", priority = 1, description = "Blocks that could not be restored"),
    printcolumn(name = "Path", type_ = "string", json_path = ".status.volume.path", priority = 1, description = "The device or file that is written"),
    printcolumn(name = "Snapshot-Time", type_ = "date", json_path = ".status.backup.snapshotTime", priority = 1, description = "The recovery point"),
    printcolumn(name = "Target", type_ = "string", json_path = ".status.target.name", priority = 1, description = "The target it is read from"),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".status.attempt.number", priority = 1, description = "Number of the current attempt"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.attempt.nodeName", priority = 1, description = "Where its worker runs"),
    printcolumn(name = "Retry-At", type_ = "string", json_path = ".status.nextRetryTime", priority = 1, description = "When the next attempt starts by itself")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.persistentVolumeClaim) != has(self.hostDevice)").message("set exactly one of persistentVolumeClaim, hostDevice"),
    validation = Rule::new("self.backupRef == oldSelf.backupRef").message("backupRef is immutable: create a new Restore").field_path(".backupRef"),
    validation = Rule::new("has(self.persistentVolumeClaim) == has(oldSelf.persistentVolumeClaim) && (!has(self.persistentVolumeClaim) || self.persistentVolumeClaim == oldSelf.persistentVolumeClaim)").message("persistentVolumeClaim is immutable: create a new Restore").field_path(".persistentVolumeClaim"),
    validation = Rule::new("has(self.hostDevice) == has(oldSelf.hostDevice) && (!has(self.hostDevice) || self.hostDevice == oldSelf.hostDevice)").message("hostDevice is immutable: create a new Restore").field_path(".hostDevice"),
    validation = Rule::new("self.onDamage == oldSelf.onDamage").message("onDamage is immutable: create a new Restore").field_path(".onDamage"),
    validation = Rule::new("self.deadlines == oldSelf.deadlines").message("deadlines are immutable: create a new Restore").field_path(".deadlines"),
    validation = Rule::new("self.retry == oldSelf.retry").message("retry is immutable: create a new Restore, or ask for one more attempt with retryRequest").field_path(".retry"),
    validation = Rule::new("!oldSelf.cancel || self.cancel").message("cancel cannot be taken back: create a new Restore").field_path(".cancel")
)]
pub struct RestoreSpec {
    /// What is restored: a completed Backup of this namespace. Immutable.
    pub backup_ref: BackupRef,
    /// A claim that is made and filled; it must not exist yet. Set this or hostDevice. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimToFill>,
    /// A block device or image file of a node. Only in the operator's own namespace, below the roots it was started with.
    /// Set this or persistentVolumeClaim. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_device: Option<HostDeviceToFill>,
    /// A block that is missing or damaged in the bucket ends the restore (Stop), or is listed while the rest is restored
    /// (Continue); then it ends in Error all the same, with zeros where blocks are missing. Immutable.
    #[serde(default)]
    pub on_damage: OnDamage,
    /// How long each step may take before it is an Error. Immutable.
    #[serde(default)]
    pub deadlines: RestoreDeadlines,
    /// What happens by itself after an attempt failed. Immutable.
    #[serde(default)]
    pub retry: RetryPolicy,
    /// How fast blocks are fetched. May change at any time; the next attempt takes it at the latest.
    #[serde(default, skip_serializing_if = "Transfer::is_empty")]
    pub download: Transfer,
    /// Set to true to stop the restore for good. It cannot be taken back.
    #[serde(default)]
    pub cancel: bool,
    /// A new value asks for one more attempt; it is echoed in status.observedRetryRequest.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub retry_request: String,
}

/// A Backup of this namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupRef {
    /// Name of the Backup, which must be Completed.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// A claim that is made and filled.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimToFill {
    /// Name of the claim; it must not exist yet.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its storage class. Absent: as recorded with the backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// Filesystem or Block. Absent: as recorded with the backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_mode: Option<VolumeMode>,
    /// Its access modes, such as ReadWriteOnce. Empty: as recorded with the backup.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub access_modes: Vec<AccessMode>,
    /// Its size, such as 100Gi. Absent: as recorded; smaller than the volume is refused before anything is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 32))]
    #[x_kube(validation = Rule::new("isQuantity(string(self))").message("not a quantity: write bytes as 100Gi"))]
    pub size: Option<Quantity>,
    /// Labels of the claim.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    pub labels: BTreeMap<String, String>,
}

/// A block device or image file of a node that is written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostDeviceToFill {
    /// Absolute path of the device or file, below a root the operator was started with.
    pub path: DevicePath,
    /// The node that has it.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// Refuse: the path must not exist; a new sparse file appears there when it is whole, or never (with onDamage: Continue,
    /// when all that can be restored is there). Replace: the path
    /// must exist and is written in place: a block device at least as large as the volume, or a file, which gets the
    /// volume's size. What it holds is kept where its checksums are the backup's, and lost elsewhere.
    #[serde(default)]
    pub overwrite: Overwrite,
}

/// What if the path exists?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum Overwrite {
    #[default]
    Refuse,
    Replace,
}

/// What if a block cannot be restored?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum OnDamage {
    #[default]
    Stop,
    Continue,
}

/// How long each step may take before it is an Error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!self.stall.matches('^([0-9]{1,6}(h|m|s))+$') || !self.total.matches('^([0-9]{1,6}(h|m|s))+$') || (duration(self.stall) >= duration('5s') && duration(self.stall) < duration(self.total))").message("stall must be at least 5s and less than total"))]
pub struct RestoreDeadlines {
    /// Waiting for the Backup and the target; and again until the worker is heard.
    #[serde(default = "start_deadline")]
    pub start: DurationText,
    /// A request to the store is outstanding and nothing was answered for this long.
    #[serde(default = "stall_deadline")]
    pub stall: DurationText,
    /// The whole Restore, retries included.
    #[serde(default = "total_deadline")]
    pub total: DurationText,
}

impl Default for RestoreDeadlines {
    fn default() -> Self {
        Self { start: start_deadline(), stall: stall_deadline(), total: total_deadline() }
    }
}
