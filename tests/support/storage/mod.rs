//! What a cluster does for snapshots and volumes, played by the test on a real API server, and a driver that counts what it
//! holds. One round follows another: look at everything, then one step for each object; whoever was faster is met in the
//! next round, since every write names the version it is about.
//!
//! * `binding`      the volume controller, the protections of claims and volumes, the scheduler's choice of a node
//! * `provisioner`  external-provisioner: volumes, blank or from snapshots, and their end
//! * `snapshots`    snapshot-controller and csi-snapshotter
//! * `driver`       the storage system: what there is, and the files of blank volumes
//!
//! Where drivers differ it is stricter than the real thing: a snapshot of which a volume lives is not deleted, a mode that
//! differs is not provided without the annotation, a content is not collected before its snapshot.

mod binding;
mod driver;
mod provisioner;
mod snapshots;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod},
        storage::v1::StorageClass,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tidemark::controller::snapshot::objects::{VolumeSnapshot, VolumeSnapshotContent};

pub use self::{driver::Held, provisioner::TOPOLOGY};
use super::{Lent, eventually, locked};
use driver::Driver;

const READ: &str = "what was read has a uid";
const MANIFEST: &str = "a manifest of ours";
pub const DRIVER: &str = "csi.example.com";
/// Volumes of the users' claims that a test asks for begin so.
const USERS: &str = "user-";

/// Ends with the test.
pub struct Storage {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

/// Which file is whose volume: what a node has to know.
#[derive(Clone)]
pub struct Volumes(Arc<Shared>);

struct Shared {
    client: Client,
    driver: Driver,
    /// What the driver says instead of making a snapshot.
    error: Mutex<Option<String>>,
    /// What it says instead of making a volume.
    refusal: Mutex<Option<String>>,
    /// Claims that the scheduler has chosen a node for.
    scheduled: Mutex<Vec<String>>,
    /// Of every volume of a user and every snapshot.
    bytes: AtomicU64,
    /// Events that were written: uid and message.
    said: Mutex<BTreeSet<(String, String)>>,
    rounds: AtomicU64,
}

/// Everything at about one moment: what decides about another kind is looked at after it.
struct Seen {
    classes: Vec<StorageClass>,
    snapshots: Vec<VolumeSnapshot>,
    contents: Vec<VolumeSnapshotContent>,
    claims: Vec<PersistentVolumeClaim>,
    pods: Vec<Pod>,
    volumes: Vec<PersistentVolume>,
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Storage {
    pub async fn start(plane: &Lent) -> Self {
        plane.apply(&snapshots::crds()).await;
        plane.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=120s"]).await;
        let shared = Arc::new(Shared {
            client: plane.client().await,
            driver: Driver::new(),
            error: Mutex::default(),
            refusal: Mutex::default(),
            scheduled: Mutex::default(),
            bytes: AtomicU64::new(1 << 30),
            said: Mutex::default(),
            rounds: AtomicU64::new(0),
        });
        let (playing, plane) = (shared.clone(), plane.clone());
        let task = tokio::spawn(async move {
            // It may write there for as long as it plays.
            let _plane = plane;
            loop {
                match playing.round().await {
                    Ok(()) => _ = playing.rounds.fetch_add(1, SeqCst),
                    Err(error) => eprintln!("storage: {error}"),
                }
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
        });
        Self { shared, task }
    }

    pub fn held(&self) -> Held {
        self.shared.driver.held()
    }

    /// Until everything was looked at this many times more: what has not happened then does not happen by itself.
    pub async fn rounds(&self, more: u64) {
        // The one that runs may have looked before.
        let wanted = self.shared.rounds.load(SeqCst) + more + 1;
        eventually("rounds of the storage", Duration::from_secs(120), || async {
            match self.shared.rounds.load(SeqCst) {
                done if done >= wanted => Ok(()),
                done => Err(format!("{done} of {wanted}")),
            }
        })
        .await;
    }

    /// From now on the driver says this instead of making snapshots.
    pub fn fail(&self, message: Option<&str>) {
        *locked(&self.shared.error) = message.map(Into::into);
    }

    /// From now on the driver says this instead of making volumes.
    pub fn refuse_volumes(&self, message: Option<&str>) {
        *locked(&self.shared.refusal) = message.map(Into::into);
    }

    /// From now on volumes of users and snapshots have so many bytes.
    pub fn size(&self, bytes: u64) {
        self.shared.bytes.store(bytes, SeqCst);
    }

    /// A Pod with this claim was scheduled.
    pub fn schedule(&self, claim: &str) {
        locked(&self.shared.scheduled).push(claim.to_owned());
    }

    pub fn volumes(&self) -> Volumes {
        Volumes(self.shared.clone())
    }

    /// The file that is this bound claim's volume.
    pub async fn volume_of(&self, namespace: &str, claim: &str) -> PathBuf {
        let file = self.volumes().file(namespace, claim).await.expect("the API server answers");
        file.unwrap_or_else(|| panic!("{namespace}/{claim} has no volume with a file; {:#?}", self.held()))
    }

    /// A bound claim of the user, with its volume.
    pub async fn claim(&self, namespace: &str, name: &str, class: &str, mode: &str) {
        let client = &self.shared.client;
        let handle = format!("{USERS}{namespace}-{name}");
        let size = self.shared.bytes.load(SeqCst).to_string();
        self.shared.driver.adopt(&handle);
        // It names its volume, so that nobody makes another.
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": namespace},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": mode, "storageClassName": class,
                "volumeName": handle, "resources": {"requests": {"storage": size}}},
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
        eventually("the user's claim is bound", Duration::from_secs(120), || async {
            let claim = api.get(name).await.map_err(|e| e.to_string())?;
            if is_bound(&claim) { Ok(()) } else { Err(format!("{:#?}", claim.status)) }
        })
        .await;
    }

    /// All there is of snapshots, claims and volumes, in the cluster and in the driver, but for what `claim` made and these
    /// claims (namespace and name) with their volumes. And every volume whose data are gone, or went twice.
    pub async fn leftovers(&self, kept: &[(&str, &str)]) -> Vec<String> {
        let seen = self.shared.look().await.expect("the API server answers");
        let Held { mut volumes, snapshots } = self.held();
        let mut left: Vec<String> = seen.snapshots.iter().map(|o| format!("VolumeSnapshot {}", o.name_any())).collect();
        left.extend(seen.contents.iter().map(|o| format!("VolumeSnapshotContent {}", o.name_any())));
        let mut kept_volumes = BTreeSet::new();
        for claim in &seen.claims {
            let (namespace, name) = (claim.namespace().unwrap_or_default(), claim.name_any());
            let volume = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
            if kept.contains(&(namespace.as_str(), name.as_str())) || volume.starts_with(USERS) {
                kept_volumes.insert(volume);
            } else {
                left.push(format!("PersistentVolumeClaim {namespace}/{name}"));
            }
        }
        for volume in &seen.volumes {
            let name = volume.name_any();
            let handle = handle_of(volume).unwrap_or_default();
            if !self.held().volumes.contains_key(&handle) {
                left.push(format!("PersistentVolume {name} of {handle}, which the driver deleted"));
            } else if kept_volumes.contains(&name) || name.starts_with(USERS) {
                volumes.remove(&handle);
            } else {
                left.push(format!("PersistentVolume {name}"));
            }
        }
        volumes.retain(|handle, _| !handle.starts_with(USERS));
        left.extend(volumes.into_keys().map(|handle| format!("volume {handle} of the driver")));
        left.extend(self.shared.driver.faults());
        left.extend(snapshots.into_iter().map(|handle| format!("snapshot {handle} of the driver")));
        left
    }
}

impl Volumes {
    /// The file of the volume that this claim is bound to.
    pub async fn file(&self, namespace: &str, claim: &str) -> kube::Result<Option<PathBuf>> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.0.client.clone(), namespace);
        let claim = claims.get_opt(claim).await?.filter(is_bound);
        let Some(volume) = claim.and_then(|c| c.spec?.volume_name) else { return Ok(None) };
        let volume = self.0.all::<PersistentVolume>().get_opt(&volume).await?;
        Ok(volume.as_ref().and_then(handle_of).and_then(|handle| self.0.driver.file(&handle)))
    }
}

impl Seen {
    fn class_of(&self, claim: &PersistentVolumeClaim) -> Option<&StorageClass> {
        let wanted = claim.spec.as_ref()?.storage_class_name.as_ref()?;
        self.classes.iter().find(|class| class.name_any() == *wanted)
    }
}

impl Shared {
    fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    fn inside<K>(&self, object: &impl ResourceExt) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default())
    }

    fn is_scheduled(&self, claim: &str) -> bool {
        locked(&self.scheduled).iter().any(|name| name == claim)
    }

    async fn look(&self) -> kube::Result<Seen> {
        let every = ListParams::default();
        Ok(Seen {
            classes: self.all().list(&every).await?.items,
            snapshots: self.all().list(&every).await?.items,
            contents: self.all().list(&every).await?.items,
            claims: self.all().list(&every).await?.items,
            pods: self.all().list(&every).await?.items,
            volumes: self.all().list(&every).await?.items,
        })
    }

    async fn round(&self) -> kube::Result<()> {
        let seen = self.look().await?;
        for snapshot in &seen.snapshots {
            overtaken(self.snapshot(snapshot, &seen).await)?;
        }
        for content in seen.contents.iter().filter(|c| c.metadata.deletion_timestamp.is_some()) {
            overtaken(self.collect_content(content, &seen.snapshots).await)?;
        }
        for claim in &seen.claims {
            overtaken(self.claim(claim, &seen).await)?;
        }
        for volume in &seen.volumes {
            overtaken(self.volume(volume, &seen.claims).await)?;
        }
        Ok(())
    }

    /// A warning about a claim, once.
    async fn tell(&self, claim: &PersistentVolumeClaim, reason: &str, message: &str) -> kube::Result<()> {
        let uid = claim.uid().expect(READ);
        if !locked(&self.said).insert((uid.clone(), message.to_owned())) {
            return Ok(());
        }
        let now = tidemark::telemetry::now().to_string()[..19].to_owned() + "Z";
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": reason, "message": message, "count": 1,
            "metadata": {"generateName": format!("{}.", claim.name_any()), "namespace": claim.namespace()},
            "involvedObject": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": claim.name_any(),
                "namespace": claim.namespace(), "uid": uid},
            "source": {"component": "storage"}, "firstTimestamp": now, "lastTimestamp": now,
        });
        let event: Event = serde_json::from_value(event).expect(MANIFEST);
        self.inside::<Event>(claim).create(&PostParams::default(), &event).await.map(drop)
    }
}

/// Somebody else was faster: the next round sees what is there now.
fn overtaken(done: kube::Result<()>) -> kube::Result<()> {
    match done {
        Err(kube::Error::Api(answer))
            if answer.is_conflict() || answer.is_not_found() || answer.is_already_exists() =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Both sides say so: the claim, and the controller that it is done.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
}

/// The claims that a Pod uses.
pub fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter_map(|v| Some(v.persistent_volume_claim.as_ref()?.claim_name.clone())).collect()
}

fn handle_of(volume: &PersistentVolume) -> Option<String> {
    Some(volume.spec.as_ref()?.csi.as_ref()?.volume_handle.clone())
}

/// Changes the object that was read, and no later one.
async fn change<K>(api: &Api<K>, object: &K, mut patch: Value) -> kube::Result<K>
where
    K: ResourceExt + Clone + DeserializeOwned + std::fmt::Debug,
{
    patch["metadata"]["resourceVersion"] = json!(object.resource_version());
    api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await
}

async fn change_status<K>(api: &Api<K>, object: &K, status: Value) -> kube::Result<K>
where
    K: ResourceExt + Clone + DeserializeOwned + std::fmt::Debug,
{
    let patch = json!({"metadata": {"resourceVersion": object.resource_version()}, "status": status});
    api.patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await
}

async fn without_finalizer<K>(api: &Api<K>, object: &K, finalizer: &str) -> kube::Result<()>
where
    K: ResourceExt + Clone + DeserializeOwned + std::fmt::Debug,
{
    let left: Vec<&String> = object.finalizers().iter().filter(|f| *f != finalizer).collect();
    change(api, object, json!({"metadata": {"finalizers": left}})).await.map(drop)
}
