//! The volume populator: a claim whose `dataSourceRef` names a Backup of its namespace gets a Restore that fills it, named
//! `populate-<uid of the claim>` and owned by the claim. Everything else is that Restore's: progress, retries, cancel.
//!
//! Claims are watched and not kept. With `WaitForFirstConsumer` a claim waits until the scheduler chose a node for the Pod
//! that uses it. What cannot be made now is tried again; a Restore that a person deleted is not made again for the same
//! claim until the claim changes or the operator starts anew. Events of such a Restore are the claim's too: it is the claim
//! that people look at.

use std::{collections::HashMap, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::{core::v1::PersistentVolumeClaim, storage::v1::StorageClass};
use kube::{
    Api, ResourceExt,
    api::PostParams,
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::{
    FIELD_MANAGER,
    claim::objects::{SELECTED_NODE, is_populated, populating_name},
    context::{ApiError, Context, bounded},
    error_chain,
    feed::{WAITING_MAX, lighten},
    work::standing::{Note, Severity},
};
use crate::api::Restore;

/// What could not be made is tried again after this long.
const AGAIN: Duration = Duration::from_secs(5);

/// Makes a Restore for each claim that asks for one.
pub async fn populate(context: &Context, stop: &CancellationToken) {
    if context.exposure.is_none() {
        return;
    }
    let claims = watcher(Api::<PersistentVolumeClaim>::all(context.client.clone()), watcher::Config::default());
    let mut claims = std::pin::pin!(claims.default_backoff().modify(lighten).applied_objects());
    let mut waiting: HashMap<String, PersistentVolumeClaim> = HashMap::new();
    let mut tick = interval(AGAIN);
    loop {
        let looked_at = tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => waiting.drain().map(|(_, claim)| claim).collect(),
            seen = claims.next() => match seen {
                Some(Ok(claim)) => vec![claim],
                Some(Err(error)) => {
                    tracing::warn!(error = %error_chain(&error), "Claims are not watched, trying again");
                    vec![]
                }
                None => return,
            },
        };
        for claim in looked_at.into_iter().filter(asks) {
            if let Err(error) = serve(context, &claim).await {
                tracing::warn!(claim = %claim.name_any(), namespace = ?claim.namespace(), error = %error_chain(&error), "Claim is not populated yet");
                if waiting.len() < WAITING_MAX {
                    waiting.insert(claim.uid().unwrap_or_default(), claim);
                }
            }
        }
    }
}

/// Is it to be filled by us, and not yet?
fn asks(claim: &PersistentVolumeClaim) -> bool {
    let is_bound = claim.spec.as_ref().is_some_and(|s| s.volume_name.as_ref().is_some_and(|name| !name.is_empty()));
    is_populated(claim) && !is_bound && claim.metadata.deletion_timestamp.is_none()
}

async fn serve(context: &Context, claim: &PersistentVolumeClaim) -> Result<(), ApiError> {
    let name = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()).unwrap_or_default();
    // A claim without a class may get one yet; then it changes.
    if name.is_empty() {
        return Ok(());
    }
    let class = bounded(Api::<StorageClass>::all(context.client.clone()).get_opt(name)).await?;
    let waits = class.and_then(|c| c.volume_binding_mode).as_deref() == Some("WaitForFirstConsumer");
    if waits && !claim.annotations().contains_key(SELECTED_NODE) {
        return Ok(());
    }
    let Some(restore) = restore(claim) else { return Ok(()) };
    let api: Api<Restore> = Api::namespaced(context.client.clone(), &claim.namespace().unwrap_or_default());
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    match bounded(api.create(&params, &restore)).await {
        Ok(_) => {
            tracing::info!(restore = %restore.name_any(), namespace = ?claim.namespace(), "Claim is being populated");
            let text =
                format!("Restore {} fills this claim from Backup {}", restore.name_any(), restore.spec.backup_ref.name);
            let note = Note { severity: Severity::Normal, reason: "Populating".into(), text };
            context.publish(claim, note, "Populate".into());
            Ok(())
        }
        Err(ApiError::Api(kube::Error::Api(answer))) if answer.is_already_exists() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The Restore that fills it, as the claim says all of it.
fn restore(claim: &PersistentVolumeClaim) -> Option<Restore> {
    let spec = claim.spec.as_ref()?;
    let uid = claim.uid()?;
    let restore = json!({
        "apiVersion": "tidemark.dev/v1alpha1",
        "kind": "Restore",
        "metadata": {
            "name": populating_name(&uid),
            "namespace": claim.namespace(),
            "ownerReferences": [{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": claim.name_any(), "uid": uid}],
        },
        "spec": {
            "backupRef": {"name": spec.data_source_ref.as_ref()?.name},
            "persistentVolumeClaim": {
                "name": claim.name_any(),
                "storageClassName": spec.storage_class_name,
                "volumeMode": spec.volume_mode,
                "accessModes": spec.access_modes,
                "size": spec.resources.as_ref()?.requests.as_ref()?.get("storage"),
            },
        },
    });
    serde_json::from_value(restore).ok()
}
