//! What is done to expose a point in time: `expose(&Wish, &Observed, &ExposureSettings) -> Decision`, pure and total.
//!
//! ```text
//!  claim bound → snapshot taken → ready → exposed snapshot → content → ready → claim → bound, or waiting for the worker
//! ```
//!
//! Waiting is said with its reason and has no end here: whoever asks has a deadline. What waiting cannot cure is refused.
//! Everything that a driver or another controller says is checked in both directions before it is used.

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{
            NodeSelector, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec,
            TypedLocalObjectReference, VolumeResourceRequirements,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use kube::ResourceExt;

use super::{
    Object, Refusal, Source, Step, Wish,
    drivers::{ExposureSettings, Filesystem},
    exposed_name,
    objects::{
        API_GROUP, ContentSource, DEFAULT_CLASS, DeletionPolicy, MANAGED_BY, MODE_CHANGE, SECRETS, SnapshotReference,
        SnapshotSource, VolumeSnapshot, VolumeSnapshotContent, VolumeSnapshotContentSpec, VolumeSnapshotSpec, is_ours,
        labels,
    },
    observe::Observed,
    taken_name,
};
use crate::{
    api::{Cause, common::parse_bytes},
    model::FailureReason,
};

/// One step, and how it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    pub step: Step,
    pub standing: Standing,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// The source is not there yet, or not bound.
    WaitingForSource(String),
    TakingSnapshot(String),
    ExposingSnapshot {
        taken: Box<Taken>,
        waiting: String,
    },
    Exposed {
        taken: Box<Taken>,
        device: Box<Device>,
    },
    Refused(Refusal),
}

/// The point in time.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub handle: String,
    pub driver: String,
    pub created: Timestamp,
    /// What a restored volume must hold at least, and what is read.
    pub bytes: u64,
    pub ours: bool,
}

/// What a worker is given.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    pub claim: String,
    pub nodes: Option<NodeSelector>,
}

fn waiting_for_source(text: String) -> Decision {
    Decision { step: Step::Nothing, standing: Standing::WaitingForSource(text) }
}

/// What is to be done now.
pub fn expose(wish: &Wish, o: &Observed, settings: &ExposureSettings) -> Decision {
    match decide(wish, o, settings) {
        Ok(decision) => decision,
        Err(refusal) => Decision { step: Step::Nothing, standing: Standing::Refused(refusal) },
    }
}

fn decide(wish: &Wish, o: &Observed, settings: &ExposureSettings) -> Result<Decision, Refusal> {
    let Some(snapshot) = &o.snapshot else { return without_snapshot(wish, o, settings) };
    let name = format!("VolumeSnapshot {}/{}", wish.namespace, snapshot.name_any());
    if wish.taken.is_some() && wish.taken != snapshot.uid() {
        return Err(lost(&name, "another snapshot of that name is there"));
    }
    if let Source::Claim { .. } = wish.source
        && !is_ours(&snapshot.metadata, &wish.owner)
    {
        let message = format!("{name} is there and is not ours: delete or rename it, the name is reserved");
        return Err(Refusal::new(Cause::SourceNotSupported, message));
    }
    if snapshot.metadata.deletion_timestamp.is_some() {
        return Err(lost(&name, "it is being deleted"));
    }
    let taking = |text: String| Ok(Decision { step: Step::Nothing, standing: Standing::TakingSnapshot(text) });
    let said = snapshot.error().map(|e| format!("; its driver says: {e}")).unwrap_or_default();
    if !snapshot.is_ready() {
        return taking(format!("{name} is not ready yet{said}"));
    }
    // The name of a content may be written by anybody; the content's own word is the driver's.
    let content = match &o.content {
        None => return taking(format!("{name} names a content that is not there (yet)")),
        Some(content) if !content.is_of(snapshot) => {
            return taking(format!("{name} names VolumeSnapshotContent {}, which is not its own", content.name_any()));
        }
        Some(content) => content,
    };
    let taken = taken(wish, o, snapshot, content)?;
    let is_marked = is_ours(&content.metadata, &wish.owner) && content.spec.deletion_policy == DeletionPolicy::Delete;
    if is_marked || !taken.ours {
        refuse_directories(o, content, settings)?;
        return exposing(wish, o, settings, Box::new(taken));
    }
    let waiting = "the snapshot is marked as ours".to_owned();
    let standing = Standing::ExposingSnapshot { taken: Box::new(taken), waiting };
    Ok(Decision { step: Step::OwnContent(Object::of(content)), standing })
}

fn lost(name: &str, seen: &str) -> Refusal {
    let message = format!("{name}: {seen}; the point in time is lost: create a new Backup");
    Refusal::new(FailureReason::SnapshotLost, message)
}

/// The snapshot is to be taken, or was there and is gone.
fn without_snapshot(wish: &Wish, o: &Observed, settings: &ExposureSettings) -> Result<Decision, Refusal> {
    let namespace = &wish.namespace;
    let (claim_name, class) = match &wish.source {
        _ if wish.taken.is_some() => {
            return Err(lost(&format!("VolumeSnapshot {namespace}/{}", wish.snapshot_name()), "it is gone"));
        }
        Source::Snapshot { name } => {
            return Ok(waiting_for_source(format!("VolumeSnapshot {namespace}/{name} does not exist: create it")));
        }
        Source::Claim { name, class } => (name, class),
    };
    let name = format!("PersistentVolumeClaim {namespace}/{claim_name}");
    let Some(claim) = &o.claim else {
        return Ok(waiting_for_source(format!("{name} does not exist: create it")));
    };
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(Refusal::new(
            FailureReason::SourceNotFound,
            format!("{name} is being deleted: keep it, or take its last snapshot yourself"),
        ));
    }
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    let Some(volume) = o.volume.as_ref().filter(|_| phase == "Bound") else {
        return Ok(waiting_for_source(format!("{name} is {phase}, not Bound: it has nothing to back up yet")));
    };
    let Some(csi) = volume.spec.as_ref().and_then(|s| s.csi.as_ref()) else {
        let message = format!(
            "{name}: its volume {} is not a CSI volume, so it has no snapshots: move the data to one",
            volume.name_any()
        );
        return Err(Refusal::new(Cause::SourceNotSupported, message));
    };
    refuse_directory(&name, &csi.driver, volume_mode(claim), settings)?;
    let class = snapshot_class(o, &csi.driver, class.as_deref())?;
    let step = Step::CreateSnapshot(Box::new(VolumeSnapshot {
        metadata: ours(taken_name(&wish.owner), Some(namespace), &wish.owner),
        spec: VolumeSnapshotSpec {
            source: SnapshotSource {
                persistent_volume_claim_name: Some(claim_name.clone()),
                ..SnapshotSource::default()
            },
            volume_snapshot_class_name: Some(class),
        },
        status: None,
    }));
    Ok(Decision { step, standing: Standing::TakingSnapshot(format!("{name} is being snapshotted")) })
}

/// The class that is named, or the driver's default: never one of another driver.
fn snapshot_class(o: &Observed, driver: &str, wanted: Option<&str>) -> Result<String, Refusal> {
    let refused = |text: String| Err(Refusal::new(Cause::SourceNotSupported, text));
    let names = |class: &&super::objects::SnapshotClass| class.metadata.name.clone().unwrap_or_default();
    if let Some(wanted) = wanted {
        return match o.snapshot_classes.iter().find(|class| names(class) == wanted) {
            Some(class) if class.driver == driver => Ok(wanted.to_owned()),
            Some(class) => refused(format!(
                "VolumeSnapshotClass {wanted} is of driver {}, the volume of driver {driver}: name one of that driver",
                class.driver
            )),
            None => refused(format!("VolumeSnapshotClass {wanted} does not exist: name one of driver {driver}")),
        };
    }
    let is_default = |class: &&super::objects::SnapshotClass| {
        class.metadata.annotations.as_ref().and_then(|a| a.get(DEFAULT_CLASS)).is_some_and(|value| value == "true")
    };
    let of_driver: Vec<_> = o.snapshot_classes.iter().filter(|class| class.driver == driver).collect();
    let defaults: Vec<_> = of_driver.iter().filter(|class| is_default(class)).collect();
    match (defaults.as_slice(), of_driver.as_slice()) {
        ([one], _) => Ok(names(one)),
        // One class is no choice.
        ([], [one]) => Ok(names(one)),
        ([], []) => refused(format!("Driver {driver} has no VolumeSnapshotClass: an administrator must create one")),
        _ => refused(format!(
            "Driver {driver} has several VolumeSnapshotClasses and not exactly one default: name one in spec.source.persistentVolumeClaim.volumeSnapshotClassName"
        )),
    }
}

fn volume_mode(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref()).unwrap_or("Filesystem")
}

fn refuse_directory(name: &str, driver: &str, mode: &str, settings: &ExposureSettings) -> Result<(), Refusal> {
    if mode == "Block" || settings.filesystem(driver) == Filesystem::OnDevice {
        return Ok(());
    }
    let message = format!(
        "{name}: filesystem volumes of driver {driver} are no block devices, so blocks cannot be read from their snapshots: use a claim with volumeMode: Block"
    );
    Err(Refusal::new(Cause::SourceNotSupported, message))
}

fn refuse_directories(
    o: &Observed,
    content: &VolumeSnapshotContent,
    settings: &ExposureSettings,
) -> Result<(), Refusal> {
    let mode = content.spec.source_volume_mode.as_deref().or(o.claim.as_ref().map(volume_mode)).unwrap_or("Filesystem");
    let name = format!("VolumeSnapshotContent {}", content.name_any());
    refuse_directory(&name, &content.spec.driver, mode, settings)
}

fn taken(
    wish: &Wish,
    o: &Observed,
    snapshot: &VolumeSnapshot,
    content: &VolumeSnapshotContent,
) -> Result<Taken, Refusal> {
    let name = format!("VolumeSnapshotContent {}", content.name_any());
    let missing = |what: &str| {
        Refusal::new(Cause::SourceNotSupported, format!("{name} is ready and has no {what}: its driver is at fault"))
    };
    let handle = content.handle().ok_or_else(|| missing("snapshotHandle"))?;
    let said = snapshot.status.as_ref().and_then(|s| s.creation_time.as_ref()).map(|t| t.0);
    let created = said.or(content.creation_time()).ok_or_else(|| missing("creationTime"))?;
    let capacity = || bytes(o.claim.as_ref()?.status.as_ref()?.capacity.as_ref()?.get("storage"));
    let bytes =
        snapshot.restore_bytes().or_else(capacity).ok_or_else(|| missing("restoreSize, and its claim is gone"))?;
    Ok(Taken {
        namespace: wish.namespace.clone(),
        name: snapshot.name_any(),
        uid: snapshot.uid().unwrap_or_default(),
        handle: handle.to_owned(),
        driver: content.spec.driver.clone(),
        created,
        bytes,
        ours: matches!(wish.source, Source::Claim { .. }),
    })
}

fn bytes(quantity: Option<&Quantity>) -> Option<u64> {
    parse_bytes(&quantity?.0)
}

/// The point in time is there: its second life in our namespace.
fn exposing(wish: &Wish, o: &Observed, settings: &ExposureSettings, taken: Box<Taken>) -> Result<Decision, Refusal> {
    let Some(content) = &o.content else { return Err(lost(&taken.name, "its content is gone")) };
    let name = exposed_name(&wish.owner);
    let exposed = &o.exposed;
    let step = |step, waiting: &str| {
        Ok(Decision {
            step,
            standing: Standing::ExposingSnapshot { taken: taken.clone(), waiting: waiting.to_owned() },
        })
    };
    let is_going = |meta: &ObjectMeta| meta.deletion_timestamp.is_some();
    let metas = [exposed.snapshot.as_ref().map(|s| &s.metadata), exposed.content.as_ref().map(|c| &c.metadata)];
    let claim_meta = exposed.claim.as_ref().map(|c| &c.metadata);
    if metas.iter().chain([&claim_meta]).flatten().any(|meta| is_going(meta)) {
        return step(Step::Nothing, "what an earlier attempt exposed is still being removed");
    }
    if let Some(strange) = metas.iter().chain([&claim_meta]).flatten().find(|meta| !is_ours(meta, &wish.owner)) {
        let message = format!(
            "{} is there and is not ours: delete it, the name is reserved",
            strange.name.as_deref().unwrap_or("")
        );
        return Err(Refusal::new(Cause::SourceNotSupported, message));
    }
    // The claim first of all: a mistake in its class is found before anything is made.
    let class = storage_class(o, &taken.driver, settings)?;
    // An earlier attempt's, of whose removal only the first half was done: the new snapshot would be bound to it for ever.
    let is_of_it = |c: &&VolumeSnapshotContent| exposed.snapshot.as_ref().is_some_and(|s| c.is_of(s));
    if let Some(old) = exposed.content.as_ref().filter(|c| !is_of_it(c)) {
        return step(Step::DeleteContent(Object::of(old)), "what an earlier attempt exposed is still being removed");
    }
    let Some(snapshot) = &exposed.snapshot else {
        let made = exposed_snapshot(wish, content);
        return step(Step::CreateSnapshot(Box::new(made)), "its counterpart is made in the operator's namespace");
    };
    let Some(own) = &exposed.content else {
        let made = exposed_content(wish, content, snapshot, &taken);
        return step(Step::CreateContent(Box::new(made)), "its counterpart is made in the operator's namespace");
    };
    if own.handle() != Some(&taken.handle) {
        return Err(lost(&name, "it exposes another point in time"));
    }
    if !snapshot.is_ready() {
        let said = snapshot.error().map(|e| format!("; its driver says: {e}")).unwrap_or_default();
        return step(
            Step::Nothing,
            &format!("VolumeSnapshot {}/{name} is not ready yet{said}", wish.operator_namespace),
        );
    }
    let Some(claim) = &exposed.claim else {
        let made = exposed_claim(wish, o, class, settings, &taken);
        return step(Step::CreateClaim(Box::new(made)), "its volume is being made");
    };
    claimed(wish, o, class, claim, taken.clone())
}

/// A claim is there: bound, or waiting for what binds it.
fn claimed(
    wish: &Wish,
    o: &Observed,
    class: &StorageClass,
    claim: &PersistentVolumeClaim,
    taken: Box<Taken>,
) -> Result<Decision, Refusal> {
    let name = format!("PersistentVolumeClaim {}/{}", wish.operator_namespace, claim.name_any());
    let device = || Box::new(Device { claim: claim.name_any(), nodes: nodes(o.volume.as_ref()) });
    let exposed = |step, taken| Ok(Decision { step, standing: Standing::Exposed { taken, device: device() } });
    let waiting =
        |taken, waiting| Ok(Decision { step: Step::Nothing, standing: Standing::ExposingSnapshot { taken, waiting } });
    match claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending") {
        "Bound" => match o.exposed.volumes.first() {
            Some(volume) if is_owned(volume, &wish.owner) => exposed(Step::Nothing, taken),
            Some(volume) => exposed(Step::OwnVolume(Object::of(volume)), taken),
            None => waiting(taken, format!("{name} is Bound to a volume that is not there (yet)")),
        },
        "Lost" => Err(lost(&name, "its volume is gone")),
        // Such a claim binds when the worker's Pod is scheduled.
        _ if class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer") => exposed(Step::Nothing, taken),
        phase => waiting(
            taken,
            format!("{name} is {phase}: its driver makes a volume of {} bytes from the snapshot", taken_bytes(o)),
        ),
    }
}

fn taken_bytes(o: &Observed) -> u64 {
    let asked =
        o.exposed.claim.as_ref().and_then(|c| c.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage"));
    bytes(asked).unwrap_or(0)
}

/// Will it go with its claim, and is it found again by its label?
pub(super) fn is_owned(volume: &PersistentVolume, owner: &str) -> bool {
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    policy == Some("Delete") && is_ours(&volume.metadata, owner)
}

/// Where the source's volume can be reached, so can its copy: the driver's topology is the same.
fn nodes(volume: Option<&PersistentVolume>) -> Option<NodeSelector> {
    volume?.spec.as_ref()?.node_affinity.as_ref()?.required.clone()
}

fn storage_class<'a>(o: &'a Observed, driver: &str, settings: &ExposureSettings) -> Result<&'a StorageClass, Refusal> {
    let set = "an administrator must set exposure.drivers[…].storageClass";
    let refused = |text: String| Err(Refusal::new(Cause::SourceNotSupported, text));
    match (&o.storage_class, settings.of(driver).storage_class) {
        (None, Some(wanted)) => {
            refused(format!("StorageClass {wanted}, set for driver {driver}, does not exist: {set}"))
        }
        (None, None) => {
            refused(format!("The StorageClass of the source's volume is gone or was none: {set} for driver {driver}"))
        }
        (Some(class), _) if class.provisioner != driver => refused(format!(
            "StorageClass {} is of {}, the snapshot of {driver}: {set} to one of that driver",
            class.name_any(),
            class.provisioner
        )),
        (Some(class), _) => Ok(class),
    }
}

fn ours(name: String, namespace: Option<&str>, owner: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: namespace.map(Into::into),
        labels: Some(labels(owner)),
        ..ObjectMeta::default()
    }
}

fn exposed_snapshot(wish: &Wish, content: &VolumeSnapshotContent) -> VolumeSnapshot {
    let name = exposed_name(&wish.owner);
    VolumeSnapshot {
        metadata: ours(name.clone(), Some(&wish.operator_namespace), &wish.owner),
        spec: VolumeSnapshotSpec {
            source: SnapshotSource { volume_snapshot_content_name: Some(name), ..SnapshotSource::default() },
            // The sidecars look up secrets by it.
            volume_snapshot_class_name: content.spec.volume_snapshot_class_name.clone(),
        },
        status: None,
    }
}

/// The same handle once more, and never the one that deletes it.
fn exposed_content(
    wish: &Wish,
    content: &VolumeSnapshotContent,
    snapshot: &VolumeSnapshot,
    taken: &Taken,
) -> VolumeSnapshotContent {
    let mut metadata = ours(exposed_name(&wish.owner), None, &wish.owner);
    let of =
        |key: &str, map: &std::collections::BTreeMap<String, String>| Some((key.to_owned(), map.get(key)?.clone()));
    metadata.labels.get_or_insert_default().extend(of(MANAGED_BY, content.labels()));
    let mut annotations: std::collections::BTreeMap<_, _> =
        SECRETS.iter().filter_map(|key| of(key, content.annotations())).collect();
    annotations.insert(MODE_CHANGE.to_owned(), "true".to_owned());
    metadata.annotations = Some(annotations);
    VolumeSnapshotContent {
        metadata,
        spec: VolumeSnapshotContentSpec {
            deletion_policy: DeletionPolicy::Retain,
            driver: taken.driver.clone(),
            source: ContentSource { snapshot_handle: Some(taken.handle.clone()), volume_handle: None },
            source_volume_mode: content.spec.source_volume_mode.clone(),
            volume_snapshot_class_name: content.spec.volume_snapshot_class_name.clone(),
            volume_snapshot_ref: SnapshotReference {
                name: snapshot.name_any(),
                namespace: wish.operator_namespace.clone(),
                uid: snapshot.uid(),
            },
        },
        status: None,
    }
}

fn exposed_claim(
    wish: &Wish,
    o: &Observed,
    class: &StorageClass,
    settings: &ExposureSettings,
    taken: &Taken,
) -> PersistentVolumeClaim {
    let name = exposed_name(&wish.owner);
    // Never smaller than the source: some drivers round, and what is read must fit.
    let capacity = bytes(o.volume.as_ref().and_then(|v| v.spec.as_ref()?.capacity.as_ref()?.get("storage")));
    let size = taken.bytes.max(capacity.unwrap_or(0));
    PersistentVolumeClaim {
        metadata: ours(name.clone(), Some(&wish.operator_namespace), &wish.owner),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec![settings.of(&taken.driver).access_mode.as_str().to_owned()]),
            volume_mode: Some("Block".to_owned()),
            storage_class_name: Some(class.name_any()),
            data_source: Some(TypedLocalObjectReference {
                api_group: Some(API_GROUP.to_owned()),
                kind: "VolumeSnapshot".to_owned(),
                name,
            }),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(size.to_string()))].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}
