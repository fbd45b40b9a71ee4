//! Pods and their claims: the scheduler gives a Pod its node when it can have every claim, and the kubelet looks again,
//! whoever gave the Pod its node. A Pod of a user runs then, and does nothing.

use k8s_openapi::api::{
    core::v1::{PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    super::storage::{claims_of, is_bound},
    NODE, Shared,
};

impl Shared {
    /// The scheduler: a Pod gets its node when it can have every claim; until then it says why not.
    pub(super) async fn schedule(&self, pod: &Pod) -> kube::Result<()> {
        let mut hindrances = Vec::new();
        for name in claims_of(pod) {
            hindrances.extend(self.hindrance(&name).await?);
        }
        let Some(hindrance) = hindrances.into_iter().max_by_key(|text: &String| !text.is_empty()) else {
            let name = pod.name_any();
            let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                "target": {"apiVersion": "v1", "kind": "Node", "name": NODE}});
            let path = format!("/api/v1/namespaces/{}/pods/{name}/binding", self.namespace);
            let request = http::Request::post(path).body(binding.to_string().into_bytes()).expect("a path");
            return self.client.request::<Value>(request).await.map(drop);
        };
        let message = format!("0/1 nodes are available: {hindrance}.");
        let said =
            pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.message.as_ref() == Some(&message));
        if hindrance.is_empty() || said {
            return Ok(());
        }
        let condition =
            json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message});
        let patch = Patch::Merge(json!({"status": {"conditions": [condition]}}));
        self.api::<Pod>().patch_status(&pod.name_any(), &PatchParams::default(), &patch).await.map(drop)
    }

    /// Why a Pod cannot have this claim. Empty: its volume is being made, because there is such a Pod.
    async fn hindrance(&self, name: &str) -> kube::Result<Option<String>> {
        let Some(claim) = self.api::<PersistentVolumeClaim>().get_opt(name).await? else {
            return Ok(Some(format!("persistentvolumeclaim \"{name}\" not found")));
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return Ok(Some(format!("persistentvolumeclaim \"{name}\" is being deleted")));
        }
        if is_bound(&claim) {
            return Ok(None);
        }
        let spec = claim.spec.unwrap_or_default();
        let classes: Api<StorageClass> = Api::all(self.client.clone());
        let class = match &spec.storage_class_name {
            Some(class) => classes.get_opt(class).await?,
            None => None,
        };
        let waits = class.and_then(|c| c.volume_binding_mode).as_deref() == Some("WaitForFirstConsumer");
        match waits && spec.volume_name.is_none() {
            true => Ok(Some(String::new())),
            false => Ok(Some("pod has unbound immediate PersistentVolumeClaims".into())),
        }
    }

    /// A user's Pod: it runs when the kubelet finds all that it needs.
    pub(super) async fn pause(&self, pod: &Pod, phase: &str) -> kube::Result<()> {
        if phase == "Running" || !self.has_claims(pod).await? {
            return Ok(());
        }
        let container = json!({"name": pod.spec.as_ref().map(|s| &s.containers[0].name), "image": "x", "imageID": "",
            "ready": true, "restartCount": 0, "state": {"running": {}}});
        let patch = Patch::Merge(json!({"status": {"phase": "Running", "containerStatuses": [container]}}));
        self.api::<Pod>().patch_status(&pod.name_any(), &PatchParams::default(), &patch).await.map(drop)
    }

    /// The kubelet's own look, whoever gave the Pod its node: claims that are bound, and used in their mode.
    pub(super) async fn has_claims(&self, pod: &Pod) -> kube::Result<bool> {
        let spec = pod.spec.as_ref().expect("a Pod has a spec");
        for volume in spec.volumes.iter().flatten() {
            let Some(claim) = &volume.persistent_volume_claim else { continue };
            let Some(claim) = self.api::<PersistentVolumeClaim>().get_opt(&claim.claim_name).await? else {
                return Ok(false);
            };
            let is_block = claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref()) == Some("Block");
            let devices = spec.containers.iter().flat_map(|c| c.volume_devices.iter().flatten());
            let mounts = spec.containers.iter().flat_map(|c| c.volume_mounts.iter().flatten());
            let fits = match is_block {
                true => !{ mounts }.any(|m| m.name == volume.name),
                false => !{ devices }.any(|d| d.name == volume.name),
            };
            if !is_bound(&claim) || !fits {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
