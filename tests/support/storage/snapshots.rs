//! What snapshot-controller and csi-snapshotter do, and the three kinds of their API. Stricter than the real ones where
//! drivers differ: a snapshot of which a volume lives is not deleted, a content is not collected before its snapshot.

use std::sync::atomic::Ordering::SeqCst;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tidemark::controller::snapshot::objects::{VolumeSnapshot, VolumeSnapshotContent};

use super::{
    super::locked,
    MANIFEST, READ, Seen, Shared, is_bound,
    provisioner::{Source, mode_of},
};

const BOUND: &str = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection";
const BOUND_CONTENT: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
const BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";

impl Shared {
    pub(super) async fn snapshot(&self, snapshot: &VolumeSnapshot, seen: &Seen) -> kube::Result<()> {
        let content = seen.contents.iter().find(|c| c.is_of(snapshot));
        if snapshot.metadata.deletion_timestamp.is_some() {
            return self.collect_snapshot(snapshot, content, &seen.claims).await;
        }
        if snapshot.is_ready() {
            return Ok(());
        }
        if snapshot.finalizers().is_empty() {
            // What it is protected by comes first; the next round sees whether it is still there.
            return finalizers(&self.inside(snapshot), snapshot, &[BOUND]).await;
        }
        match (&snapshot.spec.source.persistent_volume_claim_name, content) {
            (Some(_), Some(content)) => self.ready(snapshot, content).await,
            (Some(claim), None) => {
                let at = |c: &&PersistentVolumeClaim| {
                    c.name_any() == *claim && c.namespace() == snapshot.namespace() && is_bound(c)
                };
                match seen.claims.iter().find(at).and_then(|c| c.spec.as_ref()?.volume_name.clone().map(|v| (c, v))) {
                    Some((claim, volume)) => self.take(snapshot, claim, &volume).await,
                    None => Ok(()),
                }
            }
            // Bound only to the content that points back, and whose handle the driver knows.
            (None, Some(content)) => {
                let is_named = snapshot.spec.source.volume_snapshot_content_name == Some(content.name_any());
                let is_known = content.handle().is_some_and(|h| self.driver.has_snapshot(h));
                if is_named && is_known { self.ready(snapshot, content).await } else { Ok(()) }
            }
            (None, None) => Ok(()),
        }
    }

    /// Takes a snapshot, with the class's policy.
    async fn take(&self, snapshot: &VolumeSnapshot, claim: &PersistentVolumeClaim, volume: &str) -> kube::Result<()> {
        let error = locked(&self.error).clone();
        if let Some(message) = error {
            let status = json!({"status": {"readyToUse": false, "error": {"message": message}}});
            return status_of(&self.inside(snapshot), snapshot, status).await;
        }
        let volume = self.all::<PersistentVolume>().get(volume).await?;
        let class = snapshot.spec.volume_snapshot_class_name.clone().unwrap_or_default();
        let class: Value = self.raw(&format!("/apis/snapshot.storage.k8s.io/v1/volumesnapshotclasses/{class}")).await?;
        let content = json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {"name": format!("snapcontent-{}", snapshot.uid().expect(READ)), "finalizers": [BOUND_CONTENT]},
            "spec": {
                "deletionPolicy": class["deletionPolicy"], "driver": class["driver"], "sourceVolumeMode": mode_of(claim),
                "source": {"volumeHandle": volume.spec.and_then(|s| s.csi).expect("ours are all CSI").volume_handle},
                "volumeSnapshotClassName": class["metadata"]["name"],
                "volumeSnapshotRef": {"name": snapshot.name_any(), "namespace": snapshot.namespace(), "uid": snapshot.uid()},
            },
        });
        let content: VolumeSnapshotContent = serde_json::from_value(content).expect(MANIFEST);
        let made = self.all().create(&PostParams::default(), &content).await?;
        let handle = self.driver.take();
        let status = json!({"status": {"snapshotHandle": handle, "creationTime": 1_790_000_000_000_000_000_i64,
            "restoreSize": self.bytes.load(SeqCst), "readyToUse": true}});
        status_of(&self.all(), &made, status).await
    }

    async fn ready(&self, snapshot: &VolumeSnapshot, content: &VolumeSnapshotContent) -> kube::Result<()> {
        if content.finalizers().is_empty() {
            finalizers(&self.all(), content, &[BOUND_CONTENT]).await?;
        }
        let status = json!({"status": {"boundVolumeSnapshotContentName": content.name_any(), "readyToUse": true,
            "creationTime": "2026-09-21T13:46:40Z", "restoreSize": self.bytes.load(SeqCst).to_string(), "error": null}});
        status_of(&self.inside(snapshot), snapshot, status).await
    }

    async fn collect_snapshot(
        &self,
        snapshot: &VolumeSnapshot,
        content: Option<&VolumeSnapshotContent>,
        claims: &[PersistentVolumeClaim],
    ) -> kube::Result<()> {
        let is_source = |c: &PersistentVolumeClaim| {
            c.namespace() == snapshot.namespace()
                && Source::of(c) == Source::Snapshot(snapshot.name_any())
                && c.spec.as_ref().is_some_and(|s| s.volume_name.is_none())
                && c.metadata.deletion_timestamp.is_none()
        };
        if claims.iter().any(is_source) {
            return Ok(());
        }
        if let Some(content) = content {
            if !content.annotations().contains_key(BEING_DELETED) {
                let patch = json!({"metadata": {"annotations": {BEING_DELETED: "yes"}}});
                patch_of(&self.all::<VolumeSnapshotContent>(), &content.name_any(), patch).await?;
            }
            let policy = json!(content.spec.deletion_policy);
            if policy == "Delete" {
                if content.metadata.deletion_timestamp.is_none() {
                    self.all::<VolumeSnapshotContent>().delete(&content.name_any(), &DeleteParams::default()).await?;
                }
                return Ok(());
            }
        }
        finalizers(&self.inside(snapshot), snapshot, &[]).await
    }

    pub(super) async fn collect_content(
        &self,
        content: &VolumeSnapshotContent,
        snapshots: &[VolumeSnapshot],
    ) -> kube::Result<()> {
        let is_bound = snapshots.iter().any(|s| content.is_of(s));
        if is_bound && !content.annotations().contains_key(BEING_DELETED) {
            // It hangs, as the real one does.
            return Ok(());
        }
        let policy = json!(content.spec.deletion_policy);
        if policy == "Delete" {
            let handle = content.handle().unwrap_or_default();
            if !self.driver.delete_snapshot(handle) {
                return Ok(());
            }
        }
        finalizers(&self.all(), content, &[]).await
    }

    async fn raw(&self, path: &str) -> kube::Result<Value> {
        self.client.request(http::Request::get(path).body(Vec::new()).expect("a path")).await
    }
}

async fn patch_of<K: Clone + DeserializeOwned + std::fmt::Debug>(
    api: &Api<K>,
    name: &str,
    patch: Value,
) -> kube::Result<()> {
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

async fn finalizers<K: ResourceExt + Clone + DeserializeOwned + std::fmt::Debug>(
    api: &Api<K>,
    object: &K,
    wanted: &[&str],
) -> kube::Result<()> {
    match patch_of(api, &object.name_any(), json!({"metadata": {"finalizers": wanted}})).await {
        // It went with its last one.
        Err(kube::Error::Api(answer)) if answer.is_not_found() => Ok(()),
        other => other,
    }
}

async fn status_of<K: ResourceExt + Clone + DeserializeOwned + std::fmt::Debug>(
    api: &Api<K>,
    object: &K,
    status: Value,
) -> kube::Result<()> {
    match api.patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(status)).await {
        Err(kube::Error::Api(answer)) if answer.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

/// The three kinds of the snapshot API, with the rules of theirs that we depend on.
pub(super) fn crds() -> String {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let source = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "x-kubernetes-validations": [
        {"rule": "self == oldSelf", "message": "source is immutable"}]});
    let one = "has(self.persistentVolumeClaimName) != has(self.volumeSnapshotContentName)";
    let kind = |kind: &str, plural: &str, scope: &str, schema: Value| {
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.snapshot.storage.k8s.io"),
                "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes-csi/external-snapshotter/pull/814"}},
            "spec": {
                "group": "snapshot.storage.k8s.io", "scope": scope,
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")},
                "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": schema}}],
            },
        })
    };
    let mut of_snapshot = source.clone();
    of_snapshot["properties"] =
        json!({"persistentVolumeClaimName": {"type": "string"}, "volumeSnapshotContentName": {"type": "string"}});
    of_snapshot["x-kubernetes-validations"]
        .as_array_mut()
        .expect(MANIFEST)
        .push(json!({"rule": one, "message": "exactly one source"}));
    let with = |spec: Value| json!({"type": "object", "properties": {"spec": spec, "status": open}});
    let snapshot = with(json!({"type": "object", "required": ["source"], "properties": {
        "source": of_snapshot, "volumeSnapshotClassName": {"type": "string", "minLength": 1}}}));
    let content =
        with(json!({"type": "object", "required": ["deletionPolicy", "driver", "source", "volumeSnapshotRef"],
        "properties": {"deletionPolicy": {"type": "string", "enum": ["Delete", "Retain"]}, "driver": {"type": "string"},
            "source": source, "sourceVolumeMode": {"type": "string"}, "volumeSnapshotClassName": {"type": "string"},
            "volumeSnapshotRef": open}}));
    let class = json!({"type": "object", "required": ["driver", "deletionPolicy"], "properties": {
        "driver": {"type": "string"}, "deletionPolicy": {"type": "string", "enum": ["Delete", "Retain"]}, "parameters": open}});
    let kinds = [
        kind("VolumeSnapshot", "volumesnapshots", "Namespaced", snapshot),
        kind("VolumeSnapshotContent", "volumesnapshotcontents", "Cluster", content),
        kind("VolumeSnapshotClass", "volumesnapshotclasses", "Cluster", class),
    ];
    kinds.map(|kind| kind.to_string()).join("\n---\n")
}
