//! Calls on the API server about storage objects, which snapshots and claims share. Each may be repeated: what is there already
//! is made, what is gone is deleted, and an object that changed or was replaced meanwhile is left to the next look.

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    FIELD_MANAGER,
    context::{ApiError, bounded},
};

/// PersistentVolumes of one page.
const PAGE: u32 = 500;

pub(super) async fn create<K>(api: &Api<K>, object: &K) -> Result<(), ApiError>
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

/// `patch` names what it was decided about, by uid at least: another object of that name is a conflict.
pub(super) async fn patch<K, P>(api: &Api<K>, name: &str, patch: &Patch<P>) -> Result<(), ApiError>
where
    K: DeserializeOwned + Clone + std::fmt::Debug,
    P: Serialize + std::fmt::Debug,
{
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    unless_outdated(bounded(api.patch(name, &params, patch)).await)
}

pub(super) async fn delete<K>(api: &Api<K>, name: &str, only: Preconditions) -> Result<(), ApiError>
where
    K: DeserializeOwned + Clone + std::fmt::Debug,
{
    unless_outdated(bounded(api.delete(name, &DeleteParams::default().preconditions(only))).await)
}

fn unless_outdated<T>(answer: Result<T, ApiError>) -> Result<(), ApiError> {
    match answer {
        Ok(_) => Ok(()),
        Err(ApiError::Api(kube::Error::Api(answer))) if answer.is_not_found() || answer.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The volumes that were made for a claim of this name, of all that there are, page by page.
pub(super) async fn volumes_of(
    client: &Client,
    namespace: &str,
    claim: &str,
) -> Result<Vec<PersistentVolume>, ApiError> {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let (mut wanted, mut its) = (ListParams::default().limit(PAGE), Vec::new());
    loop {
        let page = bounded(volumes.list(&wanted)).await?;
        let next = page.metadata.continue_.clone().filter(|token| !token.is_empty());
        its.extend(page.items.into_iter().filter(|volume| {
            let claimed = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
            claimed.is_some_and(|c| c.namespace.as_deref() == Some(namespace) && c.name.as_deref() == Some(claim))
        }));
        match next {
            Some(token) => wanted.continue_token = Some(token),
            None => return Ok(its),
        }
    }
}
