//! Reads everything a decision about a claim to be filled rests on, live: "not there" in a cache proves nothing, and few
//! Restores begin or end at once.
//!
//! A volume is found by what it is bound to and by our label: the first while it has no label yet, the second when its claim
//! is gone.

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        core::v1::{PersistentVolume, PersistentVolumeClaim},
        storage::v1::StorageClass,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, PostParams},
};
use serde::de::DeserializeOwned;

use super::{
    Wish,
    objects::{self, OWNER, SELECTOR, claimed_by},
    prime_name, volume_name,
};
use crate::controller::{
    calls,
    context::{ApiError, bounded},
};

/// What is there now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observed {
    /// The claim in the operator's namespace.
    pub prime: Option<PersistentVolumeClaim>,
    /// What was made for it.
    pub written: Vec<PersistentVolume>,
    /// The volume of the user's claim.
    pub made: Option<PersistentVolume>,
    /// The claim of the user's name, whoever made it.
    pub claim: Option<PersistentVolumeClaim>,
    pub class: Option<StorageClass>,
    /// Why the API server would not take the user's claim, if it is not there yet and nothing stands before it.
    pub refusal: Option<String>,
}

/// Everything about filling it.
pub async fn observe(client: &Client, wish: &Wish) -> Result<Observed, ApiError> {
    let made: Option<PersistentVolume> = found(&Api::all(client.clone()), &volume_name(&wish.owner)).await?;
    let (prime, written) = prime(client, &wish.owner, &wish.operator_namespace).await?;
    let claims: Api<PersistentVolumeClaim> = namespaced(client, &wish.namespace);
    let claim = found(&claims, &wish.name).await?;
    // While a volume is made or given on, it was asked before.
    let refusal = if claim.is_none() && written.is_empty() { refusal(&claims, wish).await? } else { None };
    let class = found(&Api::all(client.clone()), &wish.form.storage_class_name).await?;
    Ok(Observed { prime, written, made, claim, class, refusal })
}

/// Everything that is left for this owner. Of the user's claim only the volume's own word is needed. All volumes are gone
/// through: one that was provided while its claim was being deleted has no other trace.
pub async fn remains(client: &Client, owner: &str, operator_namespace: &str) -> Result<Observed, ApiError> {
    let made: Option<PersistentVolume> = found(&Api::all(client.clone()), &volume_name(owner)).await?;
    let (prime, mut written) = prime(client, owner, operator_namespace).await?;
    for volume in calls::volumes_of(client, operator_namespace, &prime_name(owner)).await? {
        if written.iter().all(|known| known.name_any() != volume.name_any()) {
            written.push(volume);
        }
    }
    let wanted = made.as_ref().and_then(|v| v.spec.as_ref()?.claim_ref.as_ref());
    let claim = match wanted.and_then(|c| Some((c.namespace.as_deref()?, c.name.as_deref()?))) {
        Some((namespace, name)) => found(&namespaced(client, namespace), name).await?,
        None => None,
    };
    Ok(Observed { prime, written, made, claim, ..Observed::default() })
}

/// Uids of the owners of everything that is there: objects whose Restore is no more are found by this.
pub async fn owners(client: &Client, operator_namespace: &str) -> Result<Vec<String>, ApiError> {
    let wanted = ListParams::default().labels(SELECTOR);
    let claims: Api<PersistentVolumeClaim> = namespaced(client, operator_namespace);
    let claims = bounded(claims.list(&wanted)).await?.items.into_iter().map(|c| c.metadata);
    let volumes = bounded(Api::<PersistentVolume>::all(client.clone()).list(&wanted)).await?.items.into_iter();
    let metas = claims.chain(volumes.map(|v| v.metadata));
    let mut owners: Vec<String> = metas.filter_map(|meta| meta.labels?.remove(OWNER)).collect();
    owners.sort();
    owners.dedup();
    Ok(owners)
}

async fn prime(
    client: &Client,
    owner: &str,
    namespace: &str,
) -> Result<(Option<PersistentVolumeClaim>, Vec<PersistentVolume>), ApiError> {
    let prime: Option<PersistentVolumeClaim> = found(&namespaced(client, namespace), &prime_name(owner)).await?;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let marked = ListParams::default().labels(&format!("{SELECTOR},{OWNER}={owner}"));
    let mut written = bounded(volumes.list(&marked)).await?.items;
    written.retain(|volume| volume.name_any() != volume_name(owner));
    if let Some(name) = prime.as_ref().and_then(|c| c.spec.as_ref()?.volume_name.as_ref())
        && written.iter().all(|volume| volume.name_any() != *name)
    {
        let volume: Option<PersistentVolume> = found(&volumes, name).await?;
        written.extend(
            volume.filter(|volume| claimed_by(volume) == prime.as_ref().and_then(|c| c.metadata.uid.as_deref())),
        );
    }
    Ok((prime, written))
}

/// Asks without making it: a quota or a policy is to be known before a terabyte was fetched.
async fn refusal(claims: &Api<PersistentVolumeClaim>, wish: &Wish) -> Result<Option<String>, ApiError> {
    let only_asked = PostParams { dry_run: true, ..PostParams::default() };
    match bounded(claims.create(&only_asked, &objects::claim(wish))).await {
        Ok(_) => Ok(None),
        // Somebody made it in this moment: the next look sees it.
        Err(ApiError::Api(kube::Error::Api(answer))) if answer.is_already_exists() => Ok(None),
        Err(ApiError::Api(kube::Error::Api(answer))) if matches!(answer.code, 400 | 403 | 404 | 422) => {
            Ok(Some(answer.message.chars().take(600).collect()))
        }
        Err(error) => Err(error),
    }
}

fn namespaced<K>(client: &Client, namespace: &str) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    Api::namespaced(client.clone(), namespace)
}

async fn found<K>(api: &Api<K>, name: &str) -> Result<Option<K>, ApiError>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    bounded(api.get_opt(name)).await
}
