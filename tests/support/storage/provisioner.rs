//! What external-provisioner does for our driver: a volume for a claim that names none (blank, or from a snapshot that is
//! ready), with everything that a volume of its making has; and the end of a released volume whose policy is Delete. It
//! asks for no claim then: phase, policy and driver are enough, whoever made the volume.

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};
use tidemark::controller::snapshot::objects::{MODE_CHANGE, VolumeSnapshotContent};

use super::{
    super::{locked, node::NODE},
    DRIVER, MANIFEST, READ, Seen, Shared,
    binding::{PROVISIONED_BY, SELECTED_NODE, phase, policy, requested},
    change, without_finalizer,
};

const PROVISIONERS: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
const SECRETS: [&str; 2] = [
    "volume.kubernetes.io/provisioner-deletion-secret-name",
    "volume.kubernetes.io/provisioner-deletion-secret-namespace",
];
const FS_TYPE: &str = "csi.storage.k8s.io/fstype";
const FS_TYPE_DEFAULT: &str = "ext4";
pub const TOPOLOGY: &str = "topology.csi.example.com/node";

/// What a claim is to be filled with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    Nothing,
    Snapshot(String),
    /// A populator's, or a driver's that we do not play: somebody else makes its volume.
    Other,
}

impl Source {
    pub(super) fn of(claim: &PersistentVolumeClaim) -> Self {
        let spec = claim.spec.as_ref();
        let source = spec.and_then(|s| s.data_source.as_ref()).map(|s| (s.kind.clone(), s.name.clone()));
        let reference = spec.and_then(|s| s.data_source_ref.as_ref()).map(|s| (s.kind.clone(), s.name.clone()));
        match source.or(reference) {
            None => Self::Nothing,
            Some((kind, name)) if kind == "VolumeSnapshot" => Self::Snapshot(name),
            Some(_) => Self::Other,
        }
    }
}

impl Shared {
    /// One step towards a volume for a claim that names none.
    pub(super) async fn provision(&self, claim: &PersistentVolumeClaim, seen: &Seen) -> kube::Result<()> {
        let Some(class) = seen.class_of(claim).filter(|c| c.provisioner == DRIVER) else { return Ok(()) };
        if !claim.annotations().contains_key(PROVISIONERS[0]) {
            let annotations: Value = PROVISIONERS.iter().map(|key| ((*key).to_owned(), json!(DRIVER))).collect();
            let patch = json!({"metadata": {"annotations": annotations}});
            return change(&self.inside(claim), claim, patch).await.map(drop);
        }
        let snapshot = match Source::of(claim) {
            Source::Other => return Ok(()),
            Source::Nothing => None,
            Source::Snapshot(name) => match ready_content(claim, &name, seen).and_then(|c| c.handle()) {
                Some(handle) => Some(handle),
                None => return Ok(()),
            },
        };
        let refusal = locked(&self.refusal).clone();
        if let Some(message) = refusal {
            return self.tell(claim, "ProvisioningFailed", &message).await;
        }
        let name = format!("pvc-{}", claim.uid().expect(READ));
        let handle = self.driver.create(&name, requested(claim), snapshot);
        let volume: PersistentVolume = serde_json::from_value(manifest(&name, &handle, claim, class)).expect(MANIFEST);
        self.all::<PersistentVolume>().create(&PostParams::default(), &volume).await.map(drop)
    }

    /// The scheduler has a node for a Pod with this claim.
    pub(super) async fn select_node(&self, claim: &PersistentVolumeClaim) -> kube::Result<()> {
        let patch = json!({"metadata": {"annotations": {SELECTED_NODE: NODE}}});
        change(&self.inside(claim), claim, patch).await.map(drop)
    }

    /// Our finalizer says that a volume is to go with its claim; a released one goes.
    pub(super) async fn reclaim(&self, volume: &PersistentVolume) -> kube::Result<()> {
        let csi = volume.spec.as_ref().and_then(|s| s.csi.as_ref());
        let Some(csi) = csi.filter(|csi| csi.driver == DRIVER) else { return Ok(()) };
        let is_marked = volume.finalizers().iter().any(|f| f == FINALIZER);
        let is_going = volume.metadata.deletion_timestamp.is_some();
        match policy(volume) {
            "Delete" => {}
            _ if is_marked => return without_finalizer(&self.all(), volume, FINALIZER).await,
            _ => return Ok(()),
        }
        match phase(volume) {
            "Bound" if !is_marked && !is_going => {
                let mut wanted = volume.finalizers().to_vec();
                wanted.push(FINALIZER.to_owned());
                let patch = json!({"metadata": {"finalizers": wanted}});
                change(&self.all(), volume, patch).await.map(drop)
            }
            "Released" if is_marked || !is_going => {
                self.driver.delete(&csi.volume_handle, &volume.uid().expect(READ));
                let volumes: Api<PersistentVolume> = self.all();
                if !is_going {
                    volumes.delete(&volume.name_any(), &DeleteParams::default()).await?;
                }
                match volumes.get_opt(&volume.name_any()).await? {
                    Some(left) => without_finalizer(&volumes, &left, FINALIZER).await,
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

/// The content of a snapshot that this claim may be made of. A mode that differs needs the administrator's word.
fn ready_content<'a>(
    claim: &PersistentVolumeClaim,
    snapshot: &str,
    seen: &'a Seen,
) -> Option<&'a VolumeSnapshotContent> {
    let snapshot = seen
        .snapshots
        .iter()
        .find(|s| s.name_any() == snapshot && s.namespace() == claim.namespace() && s.is_ready())?;
    let content = seen.contents.iter().find(|c| c.is_of(snapshot))?;
    let differs = content.spec.source_volume_mode.as_ref().is_some_and(|m| *m != mode_of(claim));
    let may_differ = content.annotations().get(MODE_CHANGE).is_some_and(|v| v == "true");
    (content.spec.driver == DRIVER && (!differs || may_differ)).then_some(content)
}

pub(super) fn mode_of(claim: &PersistentVolumeClaim) -> String {
    claim.spec.as_ref().and_then(|s| s.volume_mode.clone()).unwrap_or_else(|| "Filesystem".into())
}

fn manifest(name: &str, handle: &str, claim: &PersistentVolumeClaim, class: &StorageClass) -> Value {
    let spec = claim.spec.clone().unwrap_or_default();
    let is_delete = class.reclaim_policy.as_deref() == Some("Delete");
    let mut csi = json!({"driver": DRIVER, "volumeHandle": handle,
        "volumeAttributes": {"storage.kubernetes.io/csiProvisionerIdentity": format!("1-2-{DRIVER}")}});
    if mode_of(claim) == "Filesystem" {
        let wanted = class.parameters.as_ref().and_then(|p| p.get(FS_TYPE).cloned());
        csi["fsType"] = json!(wanted.unwrap_or_else(|| FS_TYPE_DEFAULT.into()));
    }
    let mut volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": name, "finalizers": is_delete.then_some([FINALIZER]),
            "annotations": {PROVISIONED_BY: DRIVER, SECRETS[0]: "", SECRETS[1]: ""},
        },
        "spec": {
            "accessModes": spec.access_modes, "capacity": {"storage": quantity(requested(claim))},
            "volumeMode": mode_of(claim), "persistentVolumeReclaimPolicy": class.reclaim_policy,
            "storageClassName": class.name_any(), "mountOptions": class.mount_options, "csi": csi,
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": claim.name_any(),
                "namespace": claim.namespace(), "uid": claim.uid(), "resourceVersion": claim.resource_version()},
        },
    });
    // A volume that waited for a node can be reached from there only.
    if let Some(node) = claim.annotations().get(SELECTED_NODE) {
        volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": TOPOLOGY, "operator": "In", "values": [node]}]}]}});
    }
    volume
}

/// Bytes as the provisioner writes them.
fn quantity(bytes: u64) -> String {
    let units = [(40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")];
    let unit = units.iter().find(|(shift, _)| bytes.trailing_zeros() >= *shift);
    unit.map_or_else(|| bytes.to_string(), |(shift, name)| format!("{}{name}", bytes >> shift))
}
