//! What a cluster does for snapshots and volumes, played by the test on a real API server: snapshot-controller and
//! csi-snapshotter, external-provisioner, the volume controller and the protections' ends; and a driver that counts what it
//! holds. Stricter than the real thing where drivers differ: a snapshot of which a volume lives is not deleted, a mode
//! that differs is not provided without the annotation, a content is not collected before its snapshot.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tidemark::controller::snapshot::objects::{MODE_CHANGE, VolumeSnapshot, VolumeSnapshotContent};

use super::{ControlPlane, locked};

const READ: &str = "what was read has a uid";
const MANIFEST: &str = "a manifest of ours";
pub const DRIVER: &str = "csi.example.com";
const BOUND: &str = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection";
const BOUND_CONTENT: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
const BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";

/// What the driver holds: volumes with the snapshot they were made of, and snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    pub volumes: BTreeMap<String, Option<String>>,
    pub snapshots: Vec<String>,
}

/// Ends with the test.
pub struct Storage {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    client: Client,
    held: Mutex<Held>,
    counter: Mutex<u32>,
    /// What the driver says instead of making a snapshot.
    error: Mutex<Option<String>>,
    /// Claims that the scheduler has chosen a node for.
    scheduled: Mutex<Vec<String>>,
    /// Of every volume and snapshot.
    bytes: AtomicU64,
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Storage {
    pub async fn start(plane: &ControlPlane) -> Self {
        plane.apply(&crds()).await;
        plane.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]).await;
        let shared = Arc::new(Shared {
            client: plane.client().await,
            held: Mutex::default(),
            counter: Mutex::default(),
            error: Mutex::default(),
            scheduled: Mutex::default(),
            bytes: AtomicU64::new(1 << 30),
        });
        let playing = shared.clone();
        let task = tokio::spawn(async move {
            loop {
                if let Err(error) = playing.round().await {
                    eprintln!("storage: {error}");
                }
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
        });
        Self { shared, task }
    }

    pub fn held(&self) -> Held {
        locked(&self.shared.held).clone()
    }

    /// From now on the driver says this instead of making snapshots.
    pub fn fail(&self, message: Option<&str>) {
        *locked(&self.shared.error) = message.map(Into::into);
    }

    /// From now on volumes and snapshots have so many bytes.
    pub fn size(&self, bytes: u64) {
        self.shared.bytes.store(bytes, SeqCst);
    }

    /// A Pod with this claim was scheduled.
    pub fn schedule(&self, claim: &str) {
        locked(&self.shared.scheduled).push(claim.to_owned());
    }
}

impl Shared {
    fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    fn inside<K>(&self, object: &impl ResourceExt) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default())
    }

    fn next(&self, kind: &str) -> String {
        let mut counter = locked(&self.counter);
        *counter += 1;
        format!("{kind}-{counter}")
    }

    async fn round(&self) -> kube::Result<()> {
        let every = ListParams::default();
        let snapshots = self.all::<VolumeSnapshot>().list(&every).await?.items;
        let contents = self.all::<VolumeSnapshotContent>().list(&every).await?.items;
        let claims = self.all::<PersistentVolumeClaim>().list(&every).await?.items;
        for snapshot in &snapshots {
            self.snapshot(snapshot, &contents, &claims).await?;
        }
        for content in contents.iter().filter(|c| c.metadata.deletion_timestamp.is_some()) {
            self.collect_content(content, &snapshots).await?;
        }
        for claim in &claims {
            self.claim(claim, &snapshots, &contents).await?;
        }
        let claims = self.all::<PersistentVolumeClaim>().list(&every).await?.items;
        for volume in self.all::<PersistentVolume>().list(&every).await? {
            self.volume(&volume, &claims).await?;
        }
        Ok(())
    }

    async fn snapshot(
        &self,
        snapshot: &VolumeSnapshot,
        contents: &[VolumeSnapshotContent],
        claims: &[PersistentVolumeClaim],
    ) -> kube::Result<()> {
        let content = contents.iter().find(|c| c.is_of(snapshot));
        if snapshot.metadata.deletion_timestamp.is_some() {
            return self.collect_snapshot(snapshot, content, claims).await;
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
                let at = |c: &&PersistentVolumeClaim| c.name_any() == *claim && c.namespace() == snapshot.namespace();
                match claims.iter().find(at).and_then(|c| c.spec.as_ref()?.volume_name.clone().map(|v| (c, v))) {
                    Some((claim, volume)) => self.take(snapshot, claim, &volume).await,
                    None => Ok(()),
                }
            }
            // Bound only to the content that points back, and whose handle the driver knows.
            (None, Some(content)) => {
                let is_named = snapshot.spec.source.volume_snapshot_content_name == Some(content.name_any());
                let is_known = content.handle().is_some_and(|h| locked(&self.held).snapshots.iter().any(|s| s == h));
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
        let mode = claim.spec.as_ref().and_then(|s| s.volume_mode.clone()).unwrap_or_else(|| "Filesystem".into());
        let content = json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {"name": format!("snapcontent-{}", snapshot.uid().expect(READ)), "finalizers": [BOUND_CONTENT]},
            "spec": {
                "deletionPolicy": class["deletionPolicy"], "driver": class["driver"], "sourceVolumeMode": mode,
                "source": {"volumeHandle": volume.spec.and_then(|s| s.csi).expect("ours are all CSI").volume_handle},
                "volumeSnapshotClassName": class["metadata"]["name"],
                "volumeSnapshotRef": {"name": snapshot.name_any(), "namespace": snapshot.namespace(), "uid": snapshot.uid()},
            },
        });
        let content: VolumeSnapshotContent = serde_json::from_value(content).expect(MANIFEST);
        let made = self.all().create(&PostParams::default(), &content).await?;
        let handle = self.next("snap");
        locked(&self.held).snapshots.push(handle.clone());
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
                && source_of(c).as_deref() == Some(&snapshot.name_any())
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

    async fn collect_content(&self, content: &VolumeSnapshotContent, snapshots: &[VolumeSnapshot]) -> kube::Result<()> {
        let is_bound = snapshots.iter().any(|s| content.is_of(s));
        if is_bound && !content.annotations().contains_key(BEING_DELETED) {
            // It hangs, as the real one does.
            return Ok(());
        }
        let policy = json!(content.spec.deletion_policy);
        if policy == "Delete" {
            let mut held = locked(&self.held);
            let handle = content.handle().unwrap_or_default().to_owned();
            if held.volumes.values().any(|source| source.as_ref() == Some(&handle)) {
                return Ok(());
            }
            held.snapshots.retain(|s| *s != handle);
        }
        finalizers(&self.all(), content, &[]).await
    }

    async fn claim(
        &self,
        claim: &PersistentVolumeClaim,
        snapshots: &[VolumeSnapshot],
        contents: &[VolumeSnapshotContent],
    ) -> kube::Result<()> {
        if claim.metadata.deletion_timestamp.is_some() {
            return finalizers(&self.inside(claim), claim, &[]).await;
        }
        let spec = claim.spec.clone().unwrap_or_default();
        let Some(source) = source_of(claim).filter(|_| spec.volume_name.is_none()) else { return Ok(()) };
        let class: StorageClass = self.all().get(spec.storage_class_name.as_deref().unwrap_or_default()).await?;
        let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
        if waits && !locked(&self.scheduled).contains(&claim.name_any()) {
            return Ok(());
        }
        let at = |s: &&VolumeSnapshot| s.name_any() == source && s.namespace() == claim.namespace() && s.is_ready();
        let Some(content) = snapshots.iter().find(at).and_then(|s| contents.iter().find(|c| c.is_of(s))) else {
            return Ok(());
        };
        let mode = spec.volume_mode.clone().unwrap_or_else(|| "Filesystem".into());
        let differs = content.spec.source_volume_mode.as_ref().is_some_and(|m| *m != mode);
        let may_differ = content.annotations().get(MODE_CHANGE).is_some_and(|v| v == "true");
        if content.spec.driver != class.provisioner || (differs && !may_differ) {
            return Ok(());
        }
        self.provide(claim, &class, content).await
    }

    async fn provide(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        content: &VolumeSnapshotContent,
    ) -> kube::Result<()> {
        let spec = claim.spec.clone().unwrap_or_default();
        let handle = self.next("vol");
        locked(&self.held).volumes.insert(handle.clone(), content.handle().map(Into::into));
        let name = format!("pvc-{}", claim.uid().expect(READ));
        let size = spec.resources.as_ref().and_then(|r| r.requests.as_ref()?.get("storage").cloned());
        let volume = json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
            "spec": {
                "accessModes": spec.access_modes, "capacity": {"storage": size}, "volumeMode": spec.volume_mode,
                "persistentVolumeReclaimPolicy": class.reclaim_policy, "storageClassName": class.name_any(),
                "csi": {"driver": class.provisioner, "volumeHandle": handle},
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": claim.name_any(),
                    "namespace": claim.namespace(), "uid": claim.uid()},
            },
        });
        self.all::<PersistentVolume>()
            .create(&PostParams::default(), &serde_json::from_value(volume).expect(MANIFEST))
            .await?;
        bind(&self.client, claim, &name).await
    }

    /// The volume controller: what happens to a volume whose claim is gone.
    async fn volume(&self, volume: &PersistentVolume, claims: &[PersistentVolumeClaim]) -> kube::Result<()> {
        let spec = volume.spec.clone().unwrap_or_default();
        let claimed = spec.claim_ref.as_ref().and_then(|c| c.uid.clone());
        if claims.iter().any(|c| c.uid() == claimed)
            || spec.persistent_volume_reclaim_policy.as_deref() != Some("Delete")
        {
            return Ok(());
        }
        let handle = spec.csi.map(|c| c.volume_handle).unwrap_or_default();
        locked(&self.held).volumes.remove(&handle);
        if volume.metadata.deletion_timestamp.is_none() {
            self.all::<PersistentVolume>().delete(&volume.name_any(), &DeleteParams::default()).await?;
        }
        finalizers(&self.all(), volume, &[]).await
    }

    async fn raw(&self, path: &str) -> kube::Result<Value> {
        self.client.request(http::Request::get(path).body(Vec::new()).expect("a path")).await
    }

    /// A volume that a claim of the user has.
    fn adopt(&self, handle: &str) {
        locked(&self.held).volumes.insert(handle.to_owned(), None);
    }
}

/// Binds a claim, as the volume controller does.
async fn bind(client: &Client, claim: &PersistentVolumeClaim, volume: &str) -> kube::Result<()> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
    patch_of(&api, &claim.name_any(), json!({"spec": {"volumeName": volume}})).await?;
    let size = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage").cloned());
    let status = json!({"status": {"phase": "Bound", "capacity": {"storage": size}}});
    api.patch_status(&claim.name_any(), &PatchParams::default(), &Patch::Merge(status)).await.map(drop)
}

impl Storage {
    /// A bound claim of the user, with its volume.
    pub async fn claim(&self, namespace: &str, name: &str, class: &str, mode: &str) {
        let client = &self.shared.client;
        let handle = format!("user-{namespace}-{name}");
        let size = self.shared.bytes.load(SeqCst).to_string();
        self.shared.adopt(&handle);
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": namespace},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": mode, "storageClassName": class,
                "resources": {"requests": {"storage": size}}},
        });
        let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
        let claim =
            api.create(&PostParams::default(), &serde_json::from_value(claim).expect(MANIFEST)).await.expect("a claim");
        let volume = json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": handle},
            "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}, "volumeMode": mode,
                "persistentVolumeReclaimPolicy": "Retain", "storageClassName": class,
                "csi": {"driver": DRIVER, "volumeHandle": handle},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "zone", "operator": "In", "values": ["a"]}]}]}},
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": name, "namespace": namespace, "uid": claim.uid()}},
        });
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        volumes
            .create(&PostParams::default(), &serde_json::from_value(volume).expect(MANIFEST))
            .await
            .expect("a volume");
        bind(client, &claim, &handle).await.expect("bound");
    }
}

fn source_of(claim: &PersistentVolumeClaim) -> Option<String> {
    let source = claim.spec.as_ref()?.data_source.as_ref()?;
    (source.kind == "VolumeSnapshot").then(|| source.name.clone())
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
fn crds() -> String {
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
