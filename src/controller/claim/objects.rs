//! What we make, and how ours are known.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{
            ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeSpec,
            VolumeResourceRequirements,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

use super::{Wish, prime_name, volume_name};
use crate::api::{
    GROUP,
    common::{AccessMode, VolumeMode},
};

/// Uid of the Restore that something was made for.
pub const OWNER: &str = "tidemark.dev/owner-uid";
/// Everything that was made for a restore, but for the user's claim.
pub const SELECTOR: &str = "app.kubernetes.io/managed-by=tidemark,app.kubernetes.io/component=restore";
/// On the user's claim: uid of the Restore that made it. The claim is the user's all the same.
pub const MADE_BY: &str = "tidemark.dev/restore-uid";
/// On a volume of ours: the policy it had, and gets back.
pub const POLICY: &str = "tidemark.dev/reclaim-policy";
/// On a claim: the node that was chosen for the Pod that uses it.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The volume controller's own note; it would undo a binding that it did not make.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

/// Where a class says what file system it makes.
const FS_TYPE: &str = "csi.storage.k8s.io/fstype";

/// Labels that we give to everything we make for an owner.
pub fn labels(owner: &str) -> BTreeMap<String, String> {
    [("app.kubernetes.io/managed-by", "tidemark"), ("app.kubernetes.io/component", "restore"), (OWNER, owner)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// Was it made for this owner, and is it still ours?
pub fn is_ours(meta: &ObjectMeta, owner: &str) -> bool {
    let labels = labels(owner);
    meta.labels.as_ref().is_some_and(|have| labels.iter().all(|(key, value)| have.get(key) == Some(value)))
}

/// Is this the claim that this Restore made for its user?
pub fn is_made(claim: &PersistentVolumeClaim, owner: &str) -> bool {
    claim.metadata.labels.as_ref().and_then(|labels| labels.get(MADE_BY)).is_some_and(|by| by == owner)
}

/// Does its `dataSourceRef` name a Backup of its own namespace?
pub fn is_populated(claim: &PersistentVolumeClaim) -> bool {
    let source = claim.spec.as_ref().and_then(|s| s.data_source_ref.as_ref());
    source.is_some_and(|s| s.api_group.as_deref() == Some(GROUP) && s.kind == "Backup" && s.namespace.is_none())
}

/// The Restore that populates a claim.
pub fn populating_name(claim: &str) -> String {
    format!("populate-{claim}")
}

/// The claim that this Restore populates, if that is what it was made for.
pub fn populated_by(restore: &ObjectMeta) -> Option<ObjectReference> {
    let owner = restore.owner_references.as_ref()?.iter().find(|o| o.kind == "PersistentVolumeClaim")?;
    let is_ours = restore.name.as_ref() == Some(&populating_name(&owner.uid));
    is_ours.then(|| ObjectReference {
        api_version: Some(owner.api_version.clone()),
        kind: Some(owner.kind.clone()),
        name: Some(owner.name.clone()),
        namespace: restore.namespace.clone(),
        uid: Some(owner.uid.clone()),
        ..ObjectReference::default()
    })
}

/// Is this the claim that is to get the volume?
pub fn is_its(claim: &PersistentVolumeClaim, wish: &Wish) -> bool {
    match &wish.populates {
        Some(uid) => claim.metadata.uid.as_ref() == Some(uid) && is_populated(claim),
        None => is_made(claim, &wish.owner),
    }
}

pub fn is_going(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

pub fn policy(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.persistent_volume_reclaim_policy.as_deref()
}

/// The policy a volume had before we touched it.
pub fn own_policy(volume: &PersistentVolume) -> Option<&str> {
    volume.metadata.annotations.as_ref().and_then(|a| a.get(POLICY)).map(String::as_str).or(policy(volume))
}

/// Uid of the claim a volume is for.
pub fn claimed_by(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.claim_ref.as_ref()?.uid.as_deref()
}

/// Written by the worker, as a raw device whatever the user wants; where the Pod will be that uses the user's claim.
pub fn prime(wish: &Wish, claim: Option<&PersistentVolumeClaim>) -> PersistentVolumeClaim {
    let node = claim.and_then(|c| c.metadata.annotations.as_ref()?.get(SELECTED_NODE));
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(prime_name(&wish.owner)),
            namespace: Some(wish.operator_namespace.clone()),
            labels: Some(labels(&wish.owner)),
            annotations: node.map(|node| [(SELECTED_NODE.to_owned(), node.clone())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec![AccessMode::ReadWriteOnce.as_str().to_owned()]),
            volume_mode: Some(VolumeMode::Block.as_str().to_owned()),
            storage_class_name: Some(wish.form.storage_class_name.clone()),
            resources: Some(requests(&wish.form.size)),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// What the user asked for, bound by name to the volume that was written.
pub fn claim(wish: &Wish) -> PersistentVolumeClaim {
    let form = &wish.form;
    let mut labels = wish.labels.clone();
    labels.insert(MADE_BY.to_owned(), wish.owner.clone());
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(wish.name.clone()),
            namespace: Some(wish.namespace.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(access_modes(wish)),
            volume_mode: Some(form.volume_mode.as_str().to_owned()),
            storage_class_name: Some(form.storage_class_name.clone()),
            resources: Some(requests(&form.size)),
            volume_name: Some(volume_name(&wish.owner)),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// The volume that was written, once more, as the user wants it: how file systems are mounted says its class. None: it is
/// no volume of CSI.
pub fn volume(wish: &Wish, written: &PersistentVolume, class: Option<&StorageClass>) -> Option<PersistentVolume> {
    let spec = written.spec.as_ref()?;
    let is_filesystem = wish.form.volume_mode == VolumeMode::Filesystem;
    let mut csi = spec.csi.clone()?;
    let class_says = || class?.parameters.as_ref()?.get(FS_TYPE).cloned();
    csi.fs_type = wish.form.fs_type.clone().or_else(class_says).filter(|_| is_filesystem);
    let mut marks = written.metadata.labels.clone().unwrap_or_default();
    marks.extend(labels(&wish.owner));
    let mut annotations = written.metadata.annotations.clone().unwrap_or_default();
    annotations.remove(BOUND_BY_CONTROLLER);
    Some(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(volume_name(&wish.owner)),
            labels: Some(marks),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: Some(access_modes(wish)),
            capacity: spec.capacity.clone(),
            csi: Some(csi),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                namespace: Some(wish.namespace.clone()),
                name: Some(wish.name.clone()),
                uid: Some(wish.owner.clone()),
                ..ObjectReference::default()
            }),
            mount_options: class.and_then(|class| class.mount_options.clone()).filter(|_| is_filesystem),
            node_affinity: spec.node_affinity.clone(),
            persistent_volume_reclaim_policy: Some("Retain".to_owned()),
            storage_class_name: spec.storage_class_name.clone(),
            volume_attributes_class_name: spec.volume_attributes_class_name.clone(),
            volume_mode: Some(wish.form.volume_mode.as_str().to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    })
}

fn access_modes(wish: &Wish) -> Vec<String> {
    wish.form.access_modes.iter().map(|mode| mode.as_str().to_owned()).collect()
}

fn requests(size: &Quantity) -> VolumeResourceRequirements {
    VolumeResourceRequirements {
        requests: Some([("storage".to_owned(), size.clone())].into()),
        ..VolumeResourceRequirements::default()
    }
}
