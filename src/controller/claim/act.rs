//! Carries out one step. Creating what is there already is done; deleting what is gone is done; an object that is another
//! than the one decided about (its uid says so) is left alone, and where more than that matters, one that changed.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, Preconditions},
};
use serde_json::{Value, json};

use super::{
    Seen, Step,
    objects::{POLICY, labels},
};
use crate::controller::{calls, context::ApiError};

/// Does one step for this owner.
pub async fn act(client: &Client, owner: &str, operator_namespace: &str, step: &Step) -> Result<(), ApiError> {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let primes: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), operator_namespace);
    match step {
        Step::Nothing => Ok(()),
        Step::CreatePrime(claim) => calls::create(&primes, claim.as_ref()).await,
        Step::CreateVolume(volume) => calls::create(&volumes, volume.as_ref()).await,
        Step::CreateClaim(claim) => {
            let claims = Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
            calls::create(&claims, claim.as_ref()).await
        }
        Step::Keep { volume, was } => own(&volumes, owner, (volume, was.as_deref()), "Retain").await,
        Step::Doom { volume, was } => own(&volumes, owner, (volume, was.as_deref()), "Delete").await,
        Step::DeletePrime(object) => {
            let only = Preconditions { uid: Some(object.uid.clone()), resource_version: None };
            calls::delete(&primes, &object.name, only).await
        }
        Step::ForgetVolume(seen) => {
            let only =
                Preconditions { uid: Some(seen.object.uid.clone()), resource_version: Some(seen.version.clone()) };
            calls::delete(&volumes, &seen.object.name, only).await
        }
        Step::Admit { volume, placeholder, claim } => {
            let uid = "/spec/claimRef/uid";
            let patch = json!([
                {"op": "test", "path": "/metadata/uid", "value": volume.uid},
                {"op": "test", "path": uid, "value": placeholder},
                {"op": "replace", "path": uid, "value": claim},
            ]);
            let patch = Patch::Json::<()>(serde_json::from_value(patch).expect("it is written as one"));
            match calls::patch(&volumes, &volume.name, &patch).await {
                // A test did not hold.
                Err(ApiError::Api(kube::Error::Api(answer))) if answer.code == 422 => Ok(()),
                other => other,
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
            calls::patch(&volumes, &volume.object.name, &Patch::Merge(&patch)).await
        }
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
    calls::patch(api, &volume.object.name, &Patch::Merge(&patch)).await
}
