//! Carries out one step. Creating what is there already is done; deleting what is gone is done; an object that is another
//! than the one decided about (its uid says so) is left alone, and where more than that matters, one that changed.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    Seen, Step,
    objects::{POLICY, labels},
};
use crate::controller::{
    FIELD_MANAGER,
    context::{ApiError, bounded},
};

/// Does one step for this owner.
pub async fn act(client: &Client, owner: &str, operator_namespace: &str, step: &Step) -> Result<(), ApiError> {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let primes: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), operator_namespace);
    match step {
        Step::Nothing => Ok(()),
        Step::CreatePrime(claim) => create(&primes, claim.as_ref()).await,
        Step::CreateVolume(volume) => create(&volumes, volume.as_ref()).await,
        Step::CreateClaim(claim) => {
            let claims = Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
            create(&claims, claim.as_ref()).await
        }
        Step::Keep { volume, was } => own(&volumes, owner, (volume, was.as_deref()), "Retain").await,
        Step::Doom { volume, was } => own(&volumes, owner, (volume, was.as_deref()), "Delete").await,
        Step::DeletePrime(object) => {
            delete(&primes, &object.name, Preconditions { uid: Some(object.uid.clone()), resource_version: None }).await
        }
        Step::ForgetVolume(seen) => {
            let only =
                Preconditions { uid: Some(seen.object.uid.clone()), resource_version: Some(seen.version.clone()) };
            delete(&volumes, &seen.object.name, only).await
        }
        Step::Admit { volume, placeholder, claim } => {
            let uid = "/spec/claimRef/uid";
            let patch = json!([
                {"op": "test", "path": "/metadata/uid", "value": volume.uid},
                {"op": "test", "path": uid, "value": placeholder},
                {"op": "replace", "path": uid, "value": claim},
            ]);
            let patch = Patch::Json::<()>(serde_json::from_value(patch).expect("it is written as one"));
            match bounded(volumes.patch(&volume.name, &params(), &patch)).await {
                // A test did not hold.
                Err(ApiError::Api(kube::Error::Api(answer))) if answer.code == 422 => Ok(()),
                other => changed(other),
            }
        }
        Step::Release { volume, policy } => {
            let gone: serde_json::Map<String, Value> =
                labels(owner).into_keys().map(|key| (key, Value::Null)).collect();
            let patch = json!({
                "metadata": {"uid": volume.object.uid, "resourceVersion": volume.version, "labels": gone,
                    "annotations": {POLICY: null}},
                "spec": {"persistentVolumeReclaimPolicy": policy},
            });
            changed(bounded(volumes.patch(&volume.object.name, &params(), &Patch::Merge(&patch))).await)
        }
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

/// Whatever changed or went meanwhile is seen by the next look.
fn changed<T>(answer: Result<T, ApiError>) -> Result<(), ApiError> {
    match answer {
        Ok(_) => Ok(()),
        Err(ApiError::Api(kube::Error::Api(answer))) if answer.is_not_found() || answer.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

async fn create<K>(api: &Api<K>, object: &K) -> Result<(), ApiError>
where
    K: Resource + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    match bounded(api.create(&params, object)).await {
        Ok(_) => Ok(()),
        Err(ApiError::Api(kube::Error::Api(answer))) if answer.is_already_exists() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Our labels, a policy, and a note of the one it had, all at once.
async fn own(
    api: &Api<PersistentVolume>,
    owner: &str,
    (volume, was): (&Seen, Option<&str>),
    policy: &str,
) -> Result<(), ApiError> {
    let patch = json!({
        "metadata": {"uid": volume.object.uid, "resourceVersion": volume.version, "labels": labels(owner),
            "annotations": {POLICY: was}},
        "spec": {"persistentVolumeReclaimPolicy": policy},
    });
    changed(bounded(api.patch(&volume.object.name, &params(), &Patch::Merge(&patch))).await)
}

async fn delete<K>(api: &Api<K>, name: &str, only: Preconditions) -> Result<(), ApiError>
where
    K: DeserializeOwned + Clone + std::fmt::Debug,
{
    match bounded(api.delete(name, &DeleteParams::default().preconditions(only))).await {
        Ok(_) => Ok(()),
        Err(ApiError::Api(kube::Error::Api(answer))) if answer.is_not_found() || answer.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}
