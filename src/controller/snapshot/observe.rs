//! Reads everything a decision about a snapshot rests on, live: few Backups begin or end at once, and "not there" in a cache
//! proves nothing. A 404 counts as "not there" only if it names the object: the API server answers 404 as well where the
//! snapshot API is not installed, and that is no absence of a snapshot.

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use serde::de::DeserializeOwned;

use super::{
    Source, Wish, exposed_name,
    objects::{API_GROUP, OWNER, SELECTOR, SnapshotClass, VolumeSnapshot, VolumeSnapshotContent},
    taken_name,
};
use crate::controller::{
    calls,
    context::{ApiError, bounded},
};

/// What is there now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observed {
    /// The claim the snapshot is of, and its volume.
    pub claim: Option<PersistentVolumeClaim>,
    pub volume: Option<PersistentVolume>,
    /// The snapshot that is read: the one we took, or the user's.
    pub snapshot: Option<VolumeSnapshot>,
    /// The content that snapshot names.
    pub content: Option<VolumeSnapshotContent>,
    /// Of the source's driver.
    pub snapshot_classes: Vec<SnapshotClass>,
    pub exposed: Exposed,
    /// The class the exposed claim has or is to have; absent: there is none of that name.
    pub storage_class: Option<StorageClass>,
}

/// Our objects in the operator's namespace, and what belongs to them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Exposed {
    pub snapshot: Option<VolumeSnapshot>,
    pub content: Option<VolumeSnapshotContent>,
    pub claim: Option<PersistentVolumeClaim>,
    /// Volumes that were made for the claim.
    pub volumes: Vec<PersistentVolume>,
}

/// What is to be removed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Remains {
    pub exposed: Exposed,
    /// The snapshot we took. A user's is never among these.
    pub taken: Option<VolumeSnapshot>,
    /// Contents of it.
    pub contents: Vec<VolumeSnapshotContent>,
}

#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(
        "The snapshot API {API_GROUP}/v1 is not installed: an administrator must install the CRDs and the snapshot-controller"
    )]
    NotInstalled,
}

/// Everything about exposing it. `storage_class` names the class if the administrator did.
pub async fn observe(
    client: &Client,
    wish: &Wish,
    storage_class: impl Fn(&str) -> Option<String>,
) -> Result<Observed, ObserveError> {
    let mut o = Observed { exposed: exposed(client, wish).await?, ..Observed::default() };
    let snapshots: Api<VolumeSnapshot> = Api::namespaced(client.clone(), &wish.namespace);
    o.snapshot = found(&snapshots, &wish.snapshot_name()).await?;
    if let Some(name) = o.snapshot.as_ref().and_then(VolumeSnapshot::content_name) {
        o.content = found(&Api::all(client.clone()), name).await?;
    }
    let of_snapshot = || o.snapshot.as_ref()?.spec.source.persistent_volume_claim_name.clone();
    let claim = match &wish.source {
        Source::Claim { name, .. } => Some(name.clone()),
        Source::Snapshot { .. } => of_snapshot(),
    };
    if let Some(name) = claim {
        o.claim = found(&Api::namespaced(client.clone(), &wish.namespace), &name).await?;
    }
    if let Some(name) = o.claim.as_ref().and_then(|c| c.spec.as_ref()?.volume_name.clone()) {
        o.volume = found(&Api::all(client.clone()), &name).await?;
    }
    if o.snapshot.is_none() {
        o.snapshot_classes = snapshot_classes(client).await?;
    }
    let driver = o.content.as_ref().map(|c| c.spec.driver.clone());
    let class = driver.as_deref().and_then(storage_class).or_else(|| class_of(&o));
    if let Some(name) = class {
        o.storage_class = found(&Api::all(client.clone()), &name).await?;
    }
    Ok(o)
}

/// The class of the source's volume, or of its claim.
pub fn class_of(o: &Observed) -> Option<String> {
    let volume = o.volume.as_ref().and_then(|v| v.spec.as_ref()?.storage_class_name.clone());
    let claim = || o.claim.as_ref().and_then(|c| c.spec.as_ref()?.storage_class_name.clone());
    volume.or_else(claim).filter(|name| !name.is_empty())
}

async fn exposed(client: &Client, wish: &Wish) -> Result<Exposed, ObserveError> {
    exposed_of(client, &wish.owner, &wish.operator_namespace).await
}

async fn exposed_of(client: &Client, owner: &str, namespace: &str) -> Result<Exposed, ObserveError> {
    let name = exposed_name(owner);
    let claim: Option<PersistentVolumeClaim> = found(&Api::namespaced(client.clone(), namespace), &name).await?;
    let mut volumes = Vec::new();
    if let Some(volume) = claim.as_ref().and_then(|c| c.spec.as_ref()?.volume_name.clone()) {
        volumes.extend(found(&Api::all(client.clone()), &volume).await?);
    }
    Ok(Exposed {
        snapshot: found(&Api::namespaced(client.clone(), namespace), &name).await?,
        content: found(&Api::all(client.clone()), &name).await?,
        claim,
        volumes,
    })
}

/// Everything that is left for this owner. Volumes are searched for by the claim they were made for: one that was provided
/// while its claim was being deleted has no other trace.
pub async fn remains(
    client: &Client,
    owner: &str,
    namespace: &str,
    operator_namespace: &str,
) -> Result<Remains, ObserveError> {
    let mut exposed = exposed_of(client, owner, operator_namespace).await?;
    exposed.volumes = calls::volumes_of(client, operator_namespace, &exposed_name(owner)).await?;
    let taken: Option<VolumeSnapshot> = found(&Api::namespaced(client.clone(), namespace), &taken_name(owner)).await?;
    let contents = contents_of(client, owner, namespace, taken.as_ref()).await?;
    Ok(Remains { exposed, taken, contents })
}

/// The contents of the snapshot that we took. The snapshot-controller makes one at its leisure: a snapshot that is deleted
/// before it was bound may get one all the same, unmarked and, with a class of policy Retain, for ever. Such a one is
/// known by the controller's name for it while the snapshot is there, and by what it points to afterwards.
async fn contents_of(
    client: &Client,
    owner: &str,
    namespace: &str,
    taken: Option<&VolumeSnapshot>,
) -> Result<Vec<VolumeSnapshotContent>, ObserveError> {
    let api: Api<VolumeSnapshotContent> = Api::all(client.clone());
    let Some(snapshot) = taken else {
        let mut contents = listed(api.list(&ListParams::default())).await?;
        contents.retain(|c| {
            let of = &c.spec.volume_snapshot_ref;
            let is_marked = c.labels().get(OWNER).is_some_and(|o| o == owner);
            c.name_any() != exposed_name(owner)
                && (is_marked || (of.name == taken_name(owner) && of.namespace == namespace))
        });
        return Ok(contents);
    };
    let mut contents = listed(api.list(&ListParams::default().labels(&format!("{SELECTOR},{OWNER}={owner}")))).await?;
    let bound = snapshot.content_name().map(str::to_owned);
    let name = bound.unwrap_or_else(|| format!("snapcontent-{}", snapshot.uid().unwrap_or_default()));
    if !contents.iter().any(|c| c.name_any() == name) {
        contents.extend(found(&api, &name).await?);
    }
    contents.retain(|c| c.name_any() != exposed_name(owner));
    Ok(contents)
}

/// Uids of the owners of everything that is there: objects whose Backup is no more are found by this.
pub async fn owners(client: &Client, operator_namespace: &str) -> Result<Vec<(String, String)>, ObserveError> {
    let wanted = ListParams::default().labels(SELECTOR);
    let snapshots: Api<VolumeSnapshot> = Api::all(client.clone());
    let contents: Api<VolumeSnapshotContent> = Api::all(client.clone());
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), operator_namespace);
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let mut owners = Vec::new();
    let mut note = |owner: Option<&str>, namespace: &str| {
        owners.extend(owner.map(|owner| (owner.to_owned(), namespace.to_owned())));
    };
    for snapshot in listed(snapshots.list(&wanted)).await? {
        note(marked(&snapshot), &snapshot.namespace().unwrap_or_default());
    }
    // Unmarked ones too: see `contents_of`.
    for content in listed(contents.list(&ListParams::default())).await? {
        let of = &content.spec.volume_snapshot_ref;
        note(marked(&content).or_else(|| owner_of_taken(&of.name)), &of.namespace);
    }
    for claim in listed(claims.list(&wanted)).await? {
        note(marked(&claim), operator_namespace);
    }
    for volume in listed(volumes.list(&wanted)).await? {
        note(marked(&volume), operator_namespace);
    }
    owners.sort();
    owners.dedup();
    Ok(owners)
}

fn marked(object: &impl ResourceExt) -> Option<&str> {
    object.labels().get(OWNER).map(String::as_str)
}

/// Whose snapshot has this name, if it is one of ours: `tm-` and a uid. A user's `tm-nightly` is nobody's.
fn owner_of_taken(name: &str) -> Option<&str> {
    let uid = name.strip_prefix(taken_name("").as_str())?;
    let is_right = |(i, b): (usize, u8)| if matches!(i, 8 | 13 | 18 | 23) { b == b'-' } else { b.is_ascii_hexdigit() };
    (uid.len() == 36 && uid.bytes().enumerate().all(is_right)).then_some(uid)
}

async fn snapshot_classes(client: &Client) -> Result<Vec<SnapshotClass>, ObserveError> {
    let kind = GroupVersionKind::gvk(API_GROUP, "v1", "VolumeSnapshotClass");
    let resource = ApiResource::from_gvk_with_plural(&kind, "volumesnapshotclasses");
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let classes = listed(api.list(&ListParams::default())).await?;
    let parse = |class: DynamicObject| serde_json::from_value(serde_json::to_value(class).ok()?).ok();
    Ok(classes.into_iter().filter_map(parse).collect())
}

async fn listed<K: Clone>(
    list: impl Future<Output = kube::Result<kube::api::ObjectList<K>>>,
) -> Result<Vec<K>, ObserveError> {
    match bounded(list).await {
        Ok(list) => Ok(list.items),
        Err(error) if is_api_missing(&error) => Err(ObserveError::NotInstalled),
        Err(error) => Err(error.into()),
    }
}

async fn found<K>(api: &Api<K>, name: &str) -> Result<Option<K>, ObserveError>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    match bounded(api.get(name)).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if is_api_missing(&error) => Err(ObserveError::NotInstalled),
        Err(ApiError::Api(kube::Error::Api(answer))) if answer.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The path is not served at all: a 404 that names no object.
pub(super) fn is_api_missing(error: &ApiError) -> bool {
    let ApiError::Api(kube::Error::Api(answer)) = error else { return false };
    answer.code == 404 && answer.details.as_ref().is_none_or(|d| d.kind.is_empty())
}
