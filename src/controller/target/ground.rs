//! The ground a removal of data stands on, read live and never from a cache: the Backup's namespace, the CRDs, the target
//! and the operator's own namespace must all be there, and none on its way out. Whoever deletes one of these deletes
//! objects, not data (law 10).

use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Api;

use crate::{
    api::{ClusterBackupTarget, common::ChosenTarget},
    controller::context::{ApiError, Context, bounded},
};

/// CRDs whose deletion deletes Backups or their targets.
pub const CRDS: [&str; 2] = ["backups.tidemark.dev", "clusterbackuptargets.tidemark.dev"];

/// What stands beneath a Backup.
#[derive(Debug, Clone, PartialEq)]
pub enum Ground {
    /// All of it is there to stay. The target as it is now.
    Firm(Box<ClusterBackupTarget>),
    /// What is gone or going, in words.
    Shaken(String),
}

/// Reads it live. An error has proved nothing.
pub async fn read(context: &Context, namespace: &str, target: &ChosenTarget) -> Result<Ground, ApiError> {
    if let Some(shaken) = read_own(context).await? {
        return Ok(Ground::Shaken(shaken));
    }
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let found = bounded(namespaces.get_opt(namespace)).await?;
    if let Some(shaken) = shaken("namespace", namespace, found.as_ref().map(|n| &n.metadata)) {
        return Ok(Ground::Shaken(shaken));
    }
    let targets: Api<ClusterBackupTarget> = Api::all(context.client.clone());
    let found = bounded(targets.get_opt(&target.name)).await?;
    let what = "ClusterBackupTarget";
    if let Some(shaken) = shaken(what, &target.name, found.as_ref().map(|t| &t.metadata)) {
        return Ok(Ground::Shaken(shaken));
    }
    Ok(match found.filter(|t| t.metadata.uid.as_ref() == Some(&target.uid)) {
        Some(found) => Ground::Firm(Box::new(found)),
        None => Ground::Shaken(format!("{what} {} is another one of the same name", target.name)),
    })
}

/// What is the operator's own: its namespace and the CRDs. `None`: all of it is there to stay.
pub async fn read_own(context: &Context) -> Result<Option<String>, ApiError> {
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let own = bounded(namespaces.get_opt(&context.namespace)).await?;
    if let Some(shaken) = shaken("the operator's namespace", &context.namespace, own.as_ref().map(|n| &n.metadata)) {
        return Ok(Some(shaken));
    }
    let crds: Api<CustomResourceDefinition> = Api::all(context.client.clone());
    for name in CRDS {
        let found = bounded(crds.get_opt(name)).await?;
        if let Some(shaken) = shaken("CustomResourceDefinition", name, found.as_ref().map(|c| &c.metadata)) {
            return Ok(Some(shaken));
        }
    }
    Ok(None)
}

fn shaken(what: &str, name: &str, found: Option<&ObjectMeta>) -> Option<String> {
    match found {
        None => Some(format!("{what} {name} does not exist any more")),
        Some(meta) if meta.deletion_timestamp.is_some() => Some(format!("{what} {name} is being deleted")),
        Some(_) => None,
    }
}
