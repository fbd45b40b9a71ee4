//! Carries out one step. Creating what is there already is done; deleting what is gone is done; an object that is another
//! than the one decided about (its uid says so) is left alone.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    Object, Step,
    objects::{VolumeSnapshot, VolumeSnapshotContent, labels},
    observe::{ObserveError, is_api_missing},
};
use crate::controller::calls;

/// Does one step for this owner.
pub async fn act(client: &Client, owner: &str, operator_namespace: &str, step: &Step) -> Result<(), ObserveError> {
    let all = || client.clone();
    match step {
        Step::Nothing => Ok(()),
        Step::CreateSnapshot(snapshot) => {
            let api = Api::namespaced(all(), &snapshot.namespace().unwrap_or_default());
            create(&api, snapshot.as_ref()).await
        }
        Step::CreateContent(content) => create(&Api::all(all()), content.as_ref()).await,
        Step::CreateClaim(claim) => create(&Api::namespaced(all(), operator_namespace), claim.as_ref()).await,
        Step::OwnContent(object) => {
            let api: Api<VolumeSnapshotContent> = Api::all(all());
            let spec = json!({"deletionPolicy": "Delete"});
            own(&api, owner, object, spec).await
        }
        Step::OwnVolume(object) => {
            let api: Api<PersistentVolume> = Api::all(all());
            let spec = json!({"persistentVolumeReclaimPolicy": "Delete"});
            own(&api, owner, object, spec).await
        }
        Step::DeleteClaim(object) => {
            let api: Api<PersistentVolumeClaim> = Api::namespaced(all(), operator_namespace);
            delete(&api, object).await
        }
        Step::DeleteSnapshot { namespace, object } => {
            let api: Api<VolumeSnapshot> = Api::namespaced(all(), namespace);
            delete(&api, object).await
        }
        Step::DeleteContent(object) => {
            let api: Api<VolumeSnapshotContent> = Api::all(all());
            delete(&api, object).await
        }
    }
}

async fn create<K>(api: &Api<K>, object: &K) -> Result<(), ObserveError>
where
    K: Resource + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    match calls::create(api, object).await {
        Err(error) if is_api_missing(&error) => Err(ObserveError::NotInstalled),
        other => Ok(other?),
    }
}

/// Our labels, and whatever lets it go with what it belongs to. The uid in the patch makes another object of that name a
/// conflict.
async fn own<K>(api: &Api<K>, owner: &str, object: &Object, spec: Value) -> Result<(), ObserveError>
where
    K: Resource + DeserializeOwned + Clone + std::fmt::Debug,
{
    let patch = json!({"metadata": {"uid": object.uid, "labels": labels(owner)}, "spec": spec});
    Ok(calls::patch(api, &object.name, &Patch::Merge(&patch)).await?)
}

async fn delete<K>(api: &Api<K>, object: &Object) -> Result<(), ObserveError>
where
    K: DeserializeOwned + Clone + std::fmt::Debug,
{
    let only = Preconditions { uid: Some(object.uid.clone()), resource_version: None };
    Ok(calls::delete(api, &object.name, only).await?)
}
