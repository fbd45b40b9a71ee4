//! The tests' own storage and node, tested on a real API server: they bind, release and delete as the real volume controller
//! and provisioner do (`support::storage::binding` says where they differ). If one of these fails, believe no test of claims.
//!
//! One API server for all of it; what must not happen is given some rounds to happen.

use std::{path::Path, time::Duration};

use crate::support::{
    Lent, eventually,
    node::{NODE, Node, Plays},
    storage::{DRIVER, Storage, TOPOLOGY},
};
use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);
const BYTES: u64 = 3 << 20;
/// More steps than anything here takes.
const ROUNDS: u64 = 6;

struct Stage {
    _plane: Lent,
    client: Client,
    storage: Storage,
    node: Node,
}

impl Stage {
    async fn new() -> Self {
        let plane = Lent::borrow().await;
        let storage = Storage::start(&plane).await;
        let mut manifests = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n".to_owned();
        for (name, policy, mode) in [
            ("now", "Delete", "Immediate"),
            ("keep", "Retain", "Immediate"),
            ("late", "Delete", "WaitForFirstConsumer"),
        ] {
            manifests += &format!(
                "---\napiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {name}}}\nprovisioner: {DRIVER}\nreclaimPolicy: {policy}\nvolumeBindingMode: {mode}\n"
            );
        }
        plane.apply(&manifests).await;
        let client = plane.client().await;
        let node = Node::start(&plane, client.clone(), "shop", Plays::Everything);
        node.uses(&storage);
        Self { _plane: plane, client, storage, node }
    }

    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), "shop")
    }

    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "shop")
    }

    /// A new claim; its uid.
    async fn claim(&self, name: &str, class: &str, mode: &str, volume: Option<&str>) -> String {
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": mode, "storageClassName": class,
                "volumeName": volume, "resources": {"requests": {"storage": "3Mi"}}}});
        let claim = serde_json::from_value(claim).expect("a claim");
        self.claims().create(&PostParams::default(), &claim).await.expect("created").uid().expect("it has one")
    }

    /// A volume of that handle that is kept, for the claim of this name.
    async fn volume(&self, name: &str, handle: &str, (claim, uid): (&str, Option<&str>), mode: &str) {
        let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "3Mi"}, "volumeMode": mode,
                "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "now",
                "csi": {"driver": DRIVER, "volumeHandle": handle},
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "shop", "name": claim, "uid": uid}}});
        let volume = serde_json::from_value(volume).expect("a volume");
        self.volumes().create(&PostParams::default(), &volume).await.expect("created");
    }

    async fn patch_volume(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.volumes().patch(name, &PatchParams::default(), &patch).await.expect("patched");
    }

    /// A Pod of a user with this claim.
    async fn pod(&self, name: &str, claim: &str, usage: &str, node: Option<&str>) {
        let used = match usage {
            "volumeDevices" => json!([{"name": "data", "devicePath": "/dev/target"}]),
            _ => json!([{"name": "data", "mountPath": "/data"}]),
        };
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"nodeName": node,
            "containers": [{"name": "app", "image": "x", usage: used}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]}});
        let pod = serde_json::from_value(pod).expect("a Pod");
        self.pods().create(&PostParams::default(), &pod).await.expect("created");
    }

    async fn claim_is(&self, name: &str, phase: &str) -> PersistentVolumeClaim {
        eventually(&format!("claim {name} is {phase}"), PATIENCE, || async {
            let claim = self.claims().get(name).await.map_err(|e| e.to_string())?;
            let seen = claim.status.as_ref().and_then(|s| s.phase.clone());
            if seen.as_deref() == Some(phase) { Ok(claim) } else { Err(format!("{claim:#?}")) }
        })
        .await
    }

    async fn volume_is(&self, name: &str, phase: &str) -> PersistentVolume {
        eventually(&format!("volume {name} is {phase}"), PATIENCE, || async {
            let volume = self.volumes().get(name).await.map_err(|e| e.to_string())?;
            let seen = volume.status.as_ref().and_then(|s| s.phase.clone());
            if seen.as_deref() == Some(phase) { Ok(volume) } else { Err(format!("{volume:#?}")) }
        })
        .await
    }

    async fn pod_is(&self, name: &str, phase: &str) -> Pod {
        eventually(&format!("Pod {name} is {phase}"), PATIENCE, || async {
            let pod = self.pods().get(name).await.map_err(|e| e.to_string())?;
            let seen = pod.status.as_ref().and_then(|s| s.phase.clone());
            if seen.as_deref() == Some(phase) { Ok(pod) } else { Err(format!("{pod:#?}")) }
        })
        .await
    }

    async fn bound_volume(&self, claim: &str) -> PersistentVolume {
        let name = self.claim_is(claim, "Bound").await.spec.expect("a spec").volume_name.expect("bound");
        self.volume_is(&name, "Bound").await
    }

    async fn delete_claim(&self, name: &str) {
        self.claims().delete(name, &DeleteParams::default()).await.expect("deleted");
    }

    async fn claim_goes(&self, name: &str) {
        self.delete_claim(name).await;
        eventually(&format!("claim {name} is gone"), PATIENCE, || async {
            let left = self.claims().get_opt(name).await.map_err(|e| e.to_string())?;
            if left.is_none() { Ok(()) } else { Err(format!("{left:#?}")) }
        })
        .await;
    }

    async fn pod_goes(&self, name: &str) {
        self.pods().delete(name, &DeleteParams::default()).await.expect("deleted");
        eventually(&format!("Pod {name} is gone"), PATIENCE, || async {
            let left = self.pods().get_opt(name).await.map_err(|e| e.to_string())?;
            if left.is_none() { Ok(()) } else { Err(format!("{left:#?}")) }
        })
        .await;
    }

    /// What was said about this claim.
    async fn events(&self, claim: &str) -> Vec<String> {
        let uid = self.claims().get(claim).await.expect("it is there").uid();
        let events: Api<Event> = Api::namespaced(self.client.clone(), "shop");
        let events = events.list(&ListParams::default()).await.expect("listed").items;
        let of_it = events.into_iter().filter(|e| e.involved_object.uid == uid);
        of_it.map(|e| format!("{}: {}", e.reason.unwrap_or_default(), e.message.unwrap_or_default())).collect()
    }

    async fn left(&self, expected: &[&str]) {
        self.left_beside(&[], expected).await;
    }

    async fn left_beside(&self, kept: &[(&str, &str)], expected: &[&str]) {
        eventually("what is left", PATIENCE, || async {
            let left = self.storage.leftovers(kept).await;
            if left == expected { Ok(()) } else { Err(format!("{left:#?}, expected {expected:#?}")) }
        })
        .await;
    }
}

fn annotations(object: &impl ResourceExt) -> Vec<&str> {
    object.annotations().keys().map(String::as_str).collect()
}

fn handle(volume: &PersistentVolume) -> String {
    volume.spec.as_ref().and_then(|s| s.csi.as_ref()).expect("all are CSI").volume_handle.clone()
}

fn is_zero(file: &Path) -> bool {
    std::fs::read(file).expect("the volume's file").iter().all(|byte| *byte == 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_played_storage_binds_releases_and_deletes_as_the_real_one() {
    let stage = Stage::new().await;
    blank_volumes(&stage).await;
    a_late_volume_waits_for_its_pod_and_a_pod_keeps_its_claim(&stage).await;
    a_pod_waits_for_its_claim(&stage).await;
    a_volume_with_another_uid_is_released_until_it_has_the_claims(&stage).await;
    a_volume_without_uid_is_anybodys_of_that_name(&stage).await;
    what_does_not_fit_is_not_bound(&stage).await;
    a_volume_changes_its_mode_by_another_object(&stage).await;
    a_populated_volume_leaves_its_first_claim_lost(&stage).await;
    a_released_volume_to_delete_is_lost_whoever_made_it(&stage).await;
}

async fn blank_volumes(stage: &Stage) {
    let uid = stage.claim("block", "now", "Block", None).await;
    let (volume, claim) = (stage.bound_volume("block").await, stage.claim_is("block", "Bound").await);
    let mut spec = serde_json::to_value(&volume.spec).expect("JSON");
    spec["claimRef"]["resourceVersion"] = Value::Null;
    assert_eq!(
        spec,
        json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "3Mi"}, "volumeMode": "Block",
            "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "now",
            "csi": {"driver": DRIVER, "volumeHandle": handle(&volume), "volumeAttributes": spec["csi"]["volumeAttributes"]},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "shop", "name": "block", "uid": uid, "resourceVersion": null}})
    );
    assert_eq!(
        annotations(&claim),
        [
            "pv.kubernetes.io/bind-completed",
            "pv.kubernetes.io/bound-by-controller",
            "volume.beta.kubernetes.io/storage-provisioner",
            "volume.kubernetes.io/storage-provisioner"
        ]
    );
    assert_eq!(volume.annotations().get("pv.kubernetes.io/provisioned-by").map(String::as_str), Some(DRIVER));
    let capacity = claim.status.and_then(|s| s.capacity).and_then(|c| c.get("storage").cloned());
    assert_eq!(capacity.map(|q| q.0).as_deref(), Some("3Mi"));
    let file = stage.storage.volume_of("shop", "block").await;
    assert_eq!(std::fs::metadata(&file).expect("the volume's file").len(), BYTES);
    assert!(is_zero(&file), "blank");

    stage.storage.refuse_volumes(Some("the pool is full"));
    stage.claim("files", "keep", "Filesystem", None).await;
    stage.storage.rounds(ROUNDS).await;
    stage.claim_is("files", "Pending").await;
    assert_eq!(stage.events("files").await, ["ProvisioningFailed: the pool is full"]);
    stage.storage.refuse_volumes(None);
    let kept = stage.bound_volume("files").await;
    assert_eq!(kept.spec.as_ref().and_then(|s| s.csi.as_ref()?.fs_type.as_deref()), Some("ext4"));

    // Delete and Retain.
    stage.claim_goes("block").await;
    stage.claim_goes("files").await;
    stage.volume_is(&kept.name_any(), "Released").await;
    let (volume, data) =
        (format!("PersistentVolume {}", kept.name_any()), format!("volume {} of the driver", handle(&kept)));
    stage.left(&[&volume, &data]).await;
    assert!(!file.exists());
    // Its administrator changes his mind.
    stage.patch_volume(&kept.name_any(), json!({"persistentVolumeReclaimPolicy": "Delete"})).await;
    stage.left(&[]).await;
}

async fn a_late_volume_waits_for_its_pod_and_a_pod_keeps_its_claim(stage: &Stage) {
    stage.claim("late", "late", "Block", None).await;
    // The scheduler never sees a Pod that somebody put on a node.
    stage.pod("placed", "late", "volumeDevices", Some(NODE)).await;
    stage.storage.rounds(ROUNDS).await;
    stage.claim_is("late", "Pending").await;
    assert_eq!(stage.storage.held().volumes.len(), 0);
    stage.pod_goes("placed").await;

    stage.pod("app", "late", "volumeDevices", None).await;
    let volume = stage.bound_volume("late").await;
    let claim = stage.claim_is("late", "Bound").await;
    assert_eq!(claim.annotations().get("volume.kubernetes.io/selected-node").map(String::as_str), Some(NODE));
    let term = json!({"key": TOPOLOGY, "operator": "In", "values": [NODE]});
    assert_eq!(
        json!(volume.spec.and_then(|s| s.node_affinity)),
        json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [term]}]}})
    );
    let pod = stage.pod_is("app", "Running").await;
    assert_eq!(pod.spec.as_ref().and_then(|s| s.node_name.as_deref()), Some(NODE));
    let file = stage.storage.volume_of("shop", "late").await;
    assert_eq!(stage.node.devices_of(&pod).await, [("/dev/target".to_owned(), file.clone())].into());

    stage.delete_claim("late").await;
    stage.storage.rounds(ROUNDS).await;
    assert!(stage.claims().get("late").await.expect("in use").metadata.deletion_timestamp.is_some());
    // A Pod that has ended keeps it too, as long as it is there.
    let ended = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    stage.pods().patch_status("app", &PatchParams::default(), &ended).await.expect("patched");
    stage.storage.rounds(ROUNDS).await;
    assert!(file.exists() && stage.claims().get_opt("late").await.expect("read").is_some());
    stage.pod_goes("app").await;
    stage.left(&[]).await;
    assert!(!file.exists());
}

async fn a_pod_waits_for_its_claim(stage: &Stage) {
    stage.pod("app", "data", "volumeDevices", None).await;
    let says = async |what: &str| {
        eventually(what, PATIENCE, || async {
            let pod = stage.pods().get("app").await.map_err(|e| e.to_string())?;
            let conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
            let said = conditions.iter().any(|c| c.message.as_deref().is_some_and(|m| m.contains(what)));
            if said { Ok(()) } else { Err(format!("{conditions:#?}")) }
        })
        .await;
    };
    says("persistentvolumeclaim \"data\" not found").await;
    stage.claim("data", "now", "Filesystem", Some("nothing")).await;
    says("unbound immediate PersistentVolumeClaims").await;
    stage.claim_goes("data").await;
    // In the wrong mode it gets its node, and the kubelet does not start it.
    stage.claim("data", "now", "Filesystem", None).await;
    eventually("a node", PATIENCE, || async {
        let pod = stage.pods().get("app").await.map_err(|e| e.to_string())?;
        pod.spec.and_then(|s| s.node_name).ok_or_else(|| "none yet".to_owned())
    })
    .await;
    stage.storage.rounds(ROUNDS).await;
    stage.pod_is("app", "Pending").await;
    stage.pod_goes("app").await;
    stage.pod("app", "data", "volumeMounts", None).await;
    stage.pod_is("app", "Running").await;
    stage.pod_goes("app").await;
    stage.claim_goes("data").await;
    stage.left(&[]).await;
}

/// A volume with data in the driver and no object: what a handover starts from.
async fn bare_volume(stage: &Stage) -> String {
    stage.claim("seed", "now", "Block", None).await;
    let volume = stage.bound_volume("seed").await;
    stage.patch_volume(&volume.name_any(), json!({"persistentVolumeReclaimPolicy": "Retain"})).await;
    std::fs::write(stage.storage.volume_of("shop", "seed").await, vec![7; BYTES as usize]).expect("the volume's file");
    stage.claim_goes("seed").await;
    stage.volume_is(&volume.name_any(), "Released").await;
    stage.volumes().delete(&volume.name_any(), &DeleteParams::default()).await.expect("deleted");
    let data = format!("volume {} of the driver", handle(&volume));
    stage.left(&[&data]).await;
    handle(&volume)
}

/// The claim goes, and the volume with it.
async fn all_goes(stage: &Stage, claim: &str, volume: &str) {
    stage.patch_volume(volume, json!({"persistentVolumeReclaimPolicy": "Delete"})).await;
    stage.claim_goes(claim).await;
    stage.left(&[]).await;
}

async fn a_volume_with_another_uid_is_released_until_it_has_the_claims(stage: &Stage) {
    let handle = bare_volume(stage).await;
    stage.volume("given", &handle, ("theirs", Some("placeholder")), "Block").await;
    stage.volume_is("given", "Released").await;
    let uid = stage.claim("theirs", "now", "Block", Some("given")).await;
    stage.storage.rounds(ROUNDS).await;
    stage.claim_is("theirs", "Pending").await;
    stage.volume_is("given", "Released").await;
    assert_eq!(stage.events("theirs").await, ["FailedBinding: volume \"given\" already bound to a different claim."]);
    stage.patch_volume("given", json!({"claimRef": {"uid": uid}})).await;
    let volume = stage.bound_volume("theirs").await;
    assert_eq!((volume.name_any().as_str(), annotations(&volume)), ("given", vec![]));
    let claim = stage.claim_is("theirs", "Bound").await;
    assert_eq!(annotations(&claim), ["pv.kubernetes.io/bind-completed"], "the user named the volume");
    let data = std::fs::read(stage.storage.volume_of("shop", "theirs").await).expect("the volume's file");
    assert!(data.iter().all(|byte| *byte == 7), "the volume of before");
    all_goes(stage, "theirs", "given").await;
}

async fn a_volume_without_uid_is_anybodys_of_that_name(stage: &Stage) {
    let handle = bare_volume(stage).await;
    stage.volume("given", &handle, ("theirs", None), "Block").await;
    stage.volume_is("given", "Available").await;
    stage.claim("other", "now", "Block", Some("given")).await;
    stage.storage.rounds(ROUNDS).await;
    stage.claim_is("other", "Pending").await;
    // Whoever has the name, whether or not it names the volume.
    let uid = stage.claim("theirs", "now", "Block", None).await;
    let volume = stage.bound_volume("theirs").await;
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.clone()).expect("bound");
    assert_eq!((volume.name_any().as_str(), reference.uid), ("given", Some(uid)));
    stage.claim_goes("other").await;
    all_goes(stage, "theirs", "given").await;
}

async fn what_does_not_fit_is_not_bound(stage: &Stage) {
    let handle = bare_volume(stage).await;
    stage.volume("given", &handle, ("theirs", None), "Filesystem").await;
    stage.claim("theirs", "now", "Block", Some("given")).await;
    stage.storage.rounds(ROUNDS).await;
    stage.claim_is("theirs", "Pending").await;
    let said = stage.events("theirs").await;
    assert_eq!(said, ["VolumeMismatch: Cannot bind to requested volume \"given\": incompatible volumeMode"]);
    stage.claim_goes("theirs").await;
    stage.claim("theirs", "keep", "Filesystem", Some("given")).await;
    stage.storage.rounds(ROUNDS).await;
    stage.claim_is("theirs", "Pending").await;
    stage.claim_goes("theirs").await;
    stage.claim("theirs", "now", "Filesystem", Some("given")).await;
    stage.bound_volume("theirs").await;
    all_goes(stage, "theirs", "given").await;
}

/// Two objects name one volume for a while; it is deleted with neither, since both are kept.
async fn a_volume_changes_its_mode_by_another_object(stage: &Stage) {
    stage.claim("prime", "now", "Block", None).await;
    let first = stage.bound_volume("prime").await;
    let file = stage.storage.volume_of("shop", "prime").await;
    stage.patch_volume(&first.name_any(), json!({"persistentVolumeReclaimPolicy": "Retain"})).await;
    stage.volume("second", &handle(&first), ("theirs", Some("placeholder")), "Filesystem").await;
    // Bound, it is not deleted before its claim.
    stage.volumes().delete(&first.name_any(), &DeleteParams::default()).await.expect("deleted");
    stage.storage.rounds(ROUNDS).await;
    stage.volume_is(&first.name_any(), "Bound").await;
    stage.claim_goes("prime").await;
    stage.volume_is("second", "Released").await;
    let uid = stage.claim("theirs", "now", "Filesystem", Some("second")).await;
    stage.patch_volume("second", json!({"claimRef": {"uid": uid}})).await;
    stage.bound_volume("theirs").await;
    assert_eq!(stage.storage.volume_of("shop", "theirs").await, file);
    stage.left_beside(&[("shop", "theirs")], &[]).await;
    all_goes(stage, "theirs", "second").await;
    assert!(!file.exists());
}

async fn a_populated_volume_leaves_its_first_claim_lost(stage: &Stage) {
    let source = json!({"apiGroup": "tidemark.dev", "kind": "Backup", "name": "b"});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "theirs"},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "storageClassName": "now",
            "dataSourceRef": source, "resources": {"requests": {"storage": "3Mi"}}}});
    let claim = serde_json::from_value(claim).expect("a claim");
    let uid = stage.claims().create(&PostParams::default(), &claim).await.expect("created").uid();
    stage.claim("prime", "now", "Block", None).await;
    let volume = stage.bound_volume("prime").await;
    stage.storage.rounds(ROUNDS).await;
    stage.claim_is("theirs", "Pending").await;
    stage.patch_volume(&volume.name_any(), json!({"claimRef": {"name": "theirs", "uid": uid}})).await;
    stage.claim_is("prime", "Lost").await;
    assert_eq!(stage.bound_volume("theirs").await.name_any(), volume.name_any());
    stage.claim_goes("prime").await;
    stage.claim_is("theirs", "Bound").await;
    all_goes(stage, "theirs", &volume.name_any()).await;
}

async fn a_released_volume_to_delete_is_lost_whoever_made_it(stage: &Stage) {
    let handle = bare_volume(stage).await;
    stage.volume("kept", &handle, ("theirs", Some("placeholder")), "Block").await;
    stage.volume("given", &handle, ("theirs", Some("placeholder")), "Block").await;
    stage.volume_is("given", "Released").await;
    stage.patch_volume("given", json!({"persistentVolumeReclaimPolicy": "Delete"})).await;
    let gone = format!("PersistentVolume kept of {handle}, which the driver deleted");
    stage.left(&[&gone]).await;
    stage.patch_volume("kept", json!({"persistentVolumeReclaimPolicy": "Delete"})).await;
    stage.left(&[&format!("volume {handle} was deleted with two objects")]).await;
}
