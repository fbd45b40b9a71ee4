//! The objects of CSI snapshots, as far as we read or write them (group `snapshot.storage.k8s.io/v1`). We only create,
//! patch and delete: fields that we do not know are never lost.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::{
    api::resource::Quantity,
    apis::meta::v1::{ObjectMeta, Time},
};
use kube::CustomResource;
use serde::{Deserialize, Serialize};

use crate::api::common::parse_bytes;

pub const API_GROUP: &str = "snapshot.storage.k8s.io";
/// One class of each driver is its default.
pub const DEFAULT_CLASS: &str = "snapshot.storage.kubernetes.io/is-default-class";
/// A block volume may be made from the snapshot of a filesystem volume, and the other way round.
pub const MODE_CHANGE: &str = "snapshot.storage.kubernetes.io/allow-volume-mode-change";
/// Which node's snapshotter serves a content, with distributed snapshotting.
pub const MANAGED_BY: &str = "snapshot.storage.kubernetes.io/managed-by";
/// Where the driver finds the secret for deleting.
pub const SECRETS: [&str; 2] =
    ["snapshot.storage.kubernetes.io/deletion-secret-name", "snapshot.storage.kubernetes.io/deletion-secret-namespace"];

#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "snapshot.storage.k8s.io",
    version = "v1",
    kind = "VolumeSnapshot",
    namespaced,
    status = "VolumeSnapshotStatus",
    derive = "PartialEq",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotSpec {
    pub source: SnapshotSource,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_class_name: Option<String>,
}

/// Exactly one of the two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSource {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_content_name: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSnapshotStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound_volume_snapshot_content_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<SnapshotError>,
}

/// It may appear and go while the driver tries again: no end, only a word.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotError {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "snapshot.storage.k8s.io",
    version = "v1",
    kind = "VolumeSnapshotContent",
    status = "VolumeSnapshotContentStatus",
    derive = "PartialEq",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotContentSpec {
    pub deletion_policy: DeletionPolicy,
    pub driver: String,
    pub source: ContentSource,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_volume_mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_class_name: Option<String>,
    pub volume_snapshot_ref: SnapshotReference,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeletionPolicy {
    Delete,
    #[default]
    Retain,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContentSource {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_handle: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_handle: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotReference {
    pub name: String,
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSnapshotContentStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_handle: Option<String>,
    /// Nanoseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<SnapshotError>,
}

/// It has no `spec`: its fields stand beside `metadata`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotClass {
    pub metadata: ObjectMeta,
    pub driver: String,
    pub deletion_policy: DeletionPolicy,
}

impl VolumeSnapshot {
    /// Is it ready, by its own word?
    pub fn is_ready(&self) -> bool {
        self.status
            .as_ref()
            .is_some_and(|s| s.ready_to_use == Some(true) && s.bound_volume_snapshot_content_name.is_some())
    }

    pub fn content_name(&self) -> Option<&str> {
        self.status.as_ref()?.bound_volume_snapshot_content_name.as_deref()
    }

    pub fn restore_bytes(&self) -> Option<u64> {
        parse_bytes(&self.status.as_ref()?.restore_size.as_ref()?.0).filter(|bytes| *bytes > 0)
    }

    /// What its driver said last about a failure.
    pub fn error(&self) -> Option<&str> {
        self.status.as_ref()?.error.as_ref()?.message.as_deref()
    }
}

impl VolumeSnapshotContent {
    /// Does it point back to this snapshot? Both directions are to be checked: anybody may write a name into a snapshot.
    pub fn is_of(&self, snapshot: &VolumeSnapshot) -> bool {
        let back = &self.spec.volume_snapshot_ref;
        let meta = &snapshot.metadata;
        meta.uid.is_some()
            && back.uid == meta.uid
            && Some(&back.name) == meta.name.as_ref()
            && Some(&back.namespace) == meta.namespace.as_ref()
    }

    pub fn handle(&self) -> Option<&str> {
        let status = self.status.as_ref().and_then(|s| s.snapshot_handle.as_deref());
        status.or(self.spec.source.snapshot_handle.as_deref())
    }

    pub fn creation_time(&self) -> Option<Timestamp> {
        Timestamp::from_nanosecond(i128::from(self.status.as_ref()?.creation_time?)).ok()
    }
}

/// Labels that we give to everything we make for an owner.
pub fn labels(owner: &str) -> BTreeMap<String, String> {
    [("app.kubernetes.io/managed-by", "tidemark"), ("app.kubernetes.io/component", "snapshot"), (OWNER, owner)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// Uid of the Backup that something was made for.
pub const OWNER: &str = "tidemark.dev/owner-uid";
/// Everything that was made for a snapshot.
pub const SELECTOR: &str = "app.kubernetes.io/managed-by=tidemark,app.kubernetes.io/component=snapshot";

/// Was it made for this owner?
pub fn is_ours(meta: &ObjectMeta, owner: &str) -> bool {
    let labels = labels(owner);
    meta.labels.as_ref().is_some_and(|have| labels.iter().all(|(key, value)| have.get(key) == Some(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law_11_a_content_that_does_not_point_back_is_not_the_snapshots() {
        let mut snapshot = VolumeSnapshot::new("s", VolumeSnapshotSpec::default());
        snapshot.metadata.namespace = Some("shop".into());
        snapshot.metadata.uid = Some("u1".into());
        let content = |name: &str, namespace: &str, uid: Option<&str>| {
            let back = SnapshotReference { name: name.into(), namespace: namespace.into(), uid: uid.map(Into::into) };
            let spec = VolumeSnapshotContentSpec { volume_snapshot_ref: back, ..VolumeSnapshotContentSpec::default() };
            VolumeSnapshotContent::new("c", spec)
        };
        assert!(content("s", "shop", Some("u1")).is_of(&snapshot));
        for (name, namespace, uid) in
            [("t", "shop", Some("u1")), ("s", "erp", Some("u1")), ("s", "shop", Some("u2")), ("s", "shop", None)]
        {
            assert!(!content(name, namespace, uid).is_of(&snapshot));
        }
    }
}
