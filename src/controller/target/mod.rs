//! ClusterBackupTarget: a bucket is looked at, and its conditions say what was seen and what would cure it.
//!
//! observe (the Secret from the cache, a probe of the bucket when one is due) → decide (`standing`, pure) → status. A
//! probe is due at first, after each change of spec or Secret, and every `checkInterval`; a failed one again after 15 s.
//! Between probes only the count of references moves. Nothing here changes the bucket but the probe's own object.

pub mod probe;
pub mod resolve;
pub mod standing;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::controller::Action,
};
use serde_json::json;
use tokio::time::Instant;

use self::{
    probe::within_deadline,
    resolve::{Resolved, resolve},
    standing::{Looked, Rivals, claims, note},
};
use super::{
    FIELD_MANAGER,
    context::{ApiError, Context, bounded},
    error_chain,
    time::whole_seconds,
};
use crate::{
    api::{
        ClusterBackupTarget, ClusterBackupTargetStatus, ConditionType, GROUP, VERSION,
        conditions::{conditions, find},
        target::{BackupCounts, Capabilities},
    },
    metrics::{Kind, StatusWrite},
    telemetry,
};

/// A probe that failed is repeated after this long, or `checkInterval` if that is shorter.
const RECHECK_INTERVAL: Duration = Duration::from_secs(15);
/// How often the number of references is brought up to date.
const COUNT_INTERVAL: Duration = Duration::from_secs(30);

/// When each target was probed last, by its uid, and what that showed.
#[derive(Default)]
pub struct Checks(Mutex<HashMap<String, Check>>);

#[derive(Clone)]
struct Check {
    at: Instant,
    time: jiff::Timestamp,
    looked: Looked,
}

/// The controller of targets: the context and its own memory.
pub struct Targets {
    pub context: Arc<Context>,
    pub checks: Checks,
}

/// One pass over one target.
pub async fn reconcile(target: Arc<ClusterBackupTarget>, targets: Arc<Targets>) -> Result<Action, ApiError> {
    let began = Instant::now();
    let outcome = pass(&target, &targets).await;
    targets.context.metrics.reconciled(Kind::ClusterBackupTarget, began.elapsed(), outcome.is_err());
    outcome
}

/// After an error: soon again, with the API server's recovery in mind.
pub fn after_error(target: Arc<ClusterBackupTarget>, error: &ApiError, _: Arc<Targets>) -> Action {
    tracing::warn!(target = %target.name_any(), error = %error_chain(error), "Target could not be reconciled");
    Action::requeue(Duration::from_secs(5))
}

async fn pass(target: &ClusterBackupTarget, targets: &Targets) -> Result<Action, ApiError> {
    if target.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let context = &targets.context;
    let check = check(target, targets).await;
    let status = next_status(target, context, &check);
    let before = target.status.clone().unwrap_or_default();
    if status != before {
        write(target, context, &status, &before, &check).await?;
    } else {
        context.metrics.status_written(StatusWrite::Identical);
    }
    let due = interval(target, &check.looked).saturating_sub(check.at.elapsed());
    Ok(Action::requeue(due.clamp(Duration::from_millis(100), COUNT_INTERVAL)))
}

/// The last probe, or a new one if it is due.
async fn check(target: &ClusterBackupTarget, targets: &Targets) -> Check {
    let context = &targets.context;
    let uid = target.uid().unwrap_or_default();
    let resolved = resolve_cached(target, context);
    let known = targets.checks.0.lock().unwrap_or_else(PoisonError::into_inner).get(&uid).cloned();
    if let Some(known) = known
        && is_about(&known.looked, &resolved)
        && known.at.elapsed() < interval(target, &known.looked)
    {
        return known;
    }
    let looked = match resolved {
        Err(problem) => Looked::Unresolved(problem),
        Ok(resolved) => {
            let credentials = resolved.credentials.clone();
            match within_deadline(&context.prober, resolved.location(), credentials).await {
                Ok(probed) => Looked::Probed(resolved, probed),
                Err(failed) => Looked::Unprobed(resolved, failed),
            }
        }
    };
    let check = Check { at: Instant::now(), time: whole_seconds(telemetry::now()), looked };
    targets.checks.0.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, check.clone());
    check
}

/// Spec and Secret as they are in the caches.
pub fn resolve_cached(target: &ClusterBackupTarget, context: &Context) -> Result<Resolved, resolve::Unresolved> {
    let name = &target.spec.credentials.secret_name;
    let secret = context.secrets.get(&kube::runtime::reflector::ObjectRef::new(name).within(&context.namespace));
    resolve(&target.spec, secret.as_deref(), &context.namespace)
}

/// Was the last look at the same spec and Secret?
fn is_about(looked: &Looked, resolved: &Result<Resolved, resolve::Unresolved>) -> bool {
    match (looked, resolved) {
        (Looked::Unresolved(before), Err(now)) => before == now,
        (Looked::Unprobed(before, _) | Looked::Probed(before, _), Ok(now)) => before == now,
        _ => false,
    }
}

fn interval(target: &ClusterBackupTarget, looked: &Looked) -> Duration {
    let wanted = target.spec.check_interval.parse("spec.checkInterval").unwrap_or(Duration::from_secs(300));
    match looked {
        Looked::Probed(..) => wanted,
        Looked::Unresolved(_) | Looked::Unprobed(..) => wanted.min(RECHECK_INTERVAL),
    }
}

fn next_status(target: &ClusterBackupTarget, context: &Context, check: &Check) -> ClusterBackupTargetStatus {
    let before = target.status.clone().unwrap_or_default();
    let uid = target.uid().unwrap_or_default();
    let is_ours = |s: &crate::api::BackupStatus| s.target.as_ref().is_some_and(|t| t.uid == uid);
    let backups = context.backups.state();
    let references = backups.iter().filter(|b| b.status.as_ref().is_some_and(is_ours)).count();
    let capabilities = match &check.looked {
        Looked::Probed(_, probed) => Some(Capabilities {
            conditional_writes: probed.conditional_writes,
            batch_delete: probed.batch_delete,
            list_page_size: probed.list_page_size,
        }),
        Looked::Unresolved(_) | Looked::Unprobed(..) => before.capabilities.clone(),
    };
    let claims = claims(&check.looked, defaults(target, context));
    ClusterBackupTargetStatus {
        observed_generation: target.metadata.generation.unwrap_or(0),
        cluster: Some(context.cluster.clone()),
        capabilities,
        last_check_time: Some(Time(check.time)),
        // Volumes and records in the bucket are counted by the catalogue, which is not built yet.
        volumes: None,
        backups: None::<BackupCounts>,
        references: Some(i64::try_from(references).unwrap_or(i64::MAX)),
        conditions: conditions(
            &before.conditions,
            &claims,
            target.metadata.generation,
            whole_seconds(telemetry::now()),
        ),
    }
}

/// Two targets that both want to be the default: none is.
fn defaults(target: &ClusterBackupTarget, context: &Context) -> Rivals {
    let wants = |t: &ClusterBackupTarget| t.spec.default && t.metadata.deletion_timestamp.is_none();
    let others = context.targets.state().iter().filter(|t| wants(t) && t.uid() != target.uid()).count();
    if target.spec.default && others > 0 { Rivals::Several } else { Rivals::None }
}

async fn write(
    target: &ClusterBackupTarget,
    context: &Context,
    status: &ClusterBackupTargetStatus,
    before: &ClusterBackupTargetStatus,
    check: &Check,
) -> Result<(), ApiError> {
    let api: Api<ClusterBackupTarget> = Api::all(context.client.clone());
    let patch = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "ClusterBackupTarget",
        "metadata": {"name": target.name_any(), "resourceVersion": target.resource_version()},
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match bounded(api.patch_status(&target.name_any(), &params, &Patch::Apply(&patch))).await {
        Ok(_) => context.metrics.status_written(StatusWrite::Written),
        // Somebody changed it meanwhile: that change brings us here again.
        Err(ApiError::Api(kube::Error::Api(answer))) if answer.is_conflict() || answer.is_not_found() => {
            context.metrics.status_written(StatusWrite::Conflict);
            return Ok(());
        }
        Err(error) => {
            let is_refused = matches!(&error, ApiError::Api(kube::Error::Api(answer)) if answer.is_invalid());
            context.metrics.status_written(if is_refused { StatusWrite::Refused } else { StatusWrite::Failed });
            return Err(error);
        }
    }
    let reason = |s: &ClusterBackupTargetStatus| {
        find(&s.conditions, ConditionType::Ready).map(|c| (c.status.clone(), c.reason.clone()))
    };
    if reason(before) != reason(status) {
        tracing::info!(target = %target.name_any(), ready = ?reason(status), "Target changed");
        if let Some(note) = note(&claims(&check.looked, defaults(target, context))) {
            context.publish(target, note, "Check".into());
        }
    }
    Ok(())
}
