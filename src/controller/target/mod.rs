//! ClusterBackupTarget: a bucket is looked at, and its conditions say what was seen and what would cure it. This is the one
//! room of the controller that talks to the store; others order errands here.
//!
//! * `probe`, `standing`  is the bucket there, and what that means; `resolve` spec and Secret as one
//! * `session`     what a worker holds: the target's key, or a session for its volume
//! * `catalogue`   what it holds, counted; `discovery` Backups for records that have none
//! * `references`  who keeps a target from being deleted
//! * `errands`     work that outlives a reconcile: `lookup` of one record, its `soundness`, `removal` of one backup's data
//! * `breaker`, `ground`  whether data may be removed now
//!
//! observe (the Secret from the cache, a probe of the bucket when one is due) → decide (`standing`, pure) → status. A
//! probe is due at first, after each change of spec or Secret, and every `checkInterval`; a failed one again after 15 s.
//! While the bucket answers it is looked through as often, or less often if that takes long.

pub mod breaker;
pub mod catalogue;
pub mod discovery;
pub mod errands;
pub mod ground;
pub mod lookup;
pub mod probe;
pub mod references;
pub mod removal;
pub mod resolve;
pub mod session;
pub mod soundness;
pub mod standing;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::controller::Action,
};
use serde_json::json;
use tokio::time::Instant;

use self::{
    catalogue::{Books, Look},
    errands::{Desk, Lies},
    probe::{ProbeFailed, within_deadline},
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
        Cause, Claim, ClusterBackupTarget, ClusterBackupTargetStatus, ConditionType, GROUP, Truth, VERSION,
        common::count,
        conditions::{conditions, find},
        target::Capabilities,
    },
    metrics::{Kind, StatusWrite},
    telemetry,
};

/// A probe that failed is repeated after this long, or `checkInterval` if that is shorter.
const RECHECK_INTERVAL: Duration = Duration::from_secs(15);
/// How often the number of references is brought up to date.
const COUNT_INTERVAL: Duration = Duration::from_secs(30);
/// How often a target that is being deleted is looked at: those that refer to it go.
const LEAVING_INTERVAL: Duration = Duration::from_secs(2);
/// After its finalizers were changed: time for the cache to see it.
const HELD_PAUSE: Duration = Duration::from_millis(200);

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
    pub looks: Arc<Desk<Look>>,
    pub books: Books,
}

impl Targets {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, checks: Checks::default(), looks: Arc::default(), books: Books::default() }
    }

    /// Forgets every target that is no more.
    fn forget(&self) {
        let lives: HashSet<String> = self.context.targets.state().iter().filter_map(|t| t.uid()).collect();
        self.checks.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| lives.contains(uid));
        self.looks.retain(&lives);
        self.books.retain(|uid| lives.contains(uid));
    }
}

/// All that a target's next status rests on.
struct Facts {
    check: Check,
    look: Lies<Look>,
    references: i64,
    rivals: Rivals,
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
    let context = &targets.context;
    let references = references::count(&target.uid().unwrap_or_default(), None, context);
    if references::hold(target, references, context).await? {
        return Ok(Action::requeue(HELD_PAUSE));
    }
    let before = target.status.clone().unwrap_or_default();
    if target.metadata.deletion_timestamp.is_some() {
        targets.forget();
        let status = leaving_status(target, references);
        if status != before {
            write(target, context, &status, &before).await?;
        }
        return Ok(Action::requeue(LEAVING_INTERVAL));
    }
    let check = check(target, targets).await;
    let uid = target.uid().unwrap_or_default();
    let interval = interval(target, &check.looked);
    if let Looked::Probed(resolved, probed) = &check.looked
        && catalogue::is_due(&targets.looks.look(&uid), interval)
    {
        let seen = catalogue::Seen { resolved, clock_skew: probed.clock_skew };
        catalogue::order(context, &targets.looks, &targets.books, target, &seen);
    }
    let due = interval.saturating_sub(check.at.elapsed());
    let facts = Facts { check, look: targets.looks.look(&uid), references, rivals: defaults(target, context) };
    let status = next_status(target, context, &facts);
    if status != before {
        write(target, context, &status, &before).await?;
    } else {
        context.metrics.status_written(StatusWrite::Identical);
    }
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
                Ok(probed) => match sessions(&resolved).await {
                    Ok(()) => Looked::Probed(resolved, probed),
                    Err(failed) => Looked::Unprobed(resolved, failed),
                },
                Err(failed) => Looked::Unprobed(resolved, failed),
            }
        }
    };
    let check = Check { at: Instant::now(), time: whole_seconds(telemetry::now()), looked };
    targets.checks.0.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, check.clone());
    check
}

/// Nothing to see where workers hold the key.
async fn sessions(resolved: &Resolved) -> Result<(), ProbeFailed> {
    let Some(sts) = &resolved.sts else { return Ok(()) };
    match tokio::time::timeout(probe::PROBE_DEADLINE, session::prove(resolved, sts)).await {
        Ok(answer) => answer,
        Err(_) => Err(probe::silent()),
    }
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

fn next_status(target: &ClusterBackupTarget, context: &Context, facts: &Facts) -> ClusterBackupTargetStatus {
    let Facts { check, look, references, rivals } = facts;
    let before = target.status.clone().unwrap_or_default();
    let capabilities = match &check.looked {
        Looked::Probed(_, probed) => Some(Capabilities {
            conditional_writes: probed.conditional_writes,
            batch_delete: probed.batch_delete,
            list_page_size: probed.list_page_size,
        }),
        Looked::Unresolved(_) | Looked::Unprobed(..) => before.capabilities.clone(),
    };
    let mut claims = claims(&check.looked, *rivals);
    let (mut volumes, mut backups, mut last) =
        (before.volumes, before.backups.clone(), before.last_catalogue_time.clone());
    let mut kept = Vec::new();
    match look {
        // While a look is under way, the last one's words stand.
        Lies::Nothing | Lies::UnderWay => match find(&before.conditions, ConditionType::Catalogued) {
            Some(was) => {
                kept.push(Condition { observed_generation: target.metadata.generation, ..was.clone() });
            }
            None => claims.push(Claim::new(
                ConditionType::Catalogued,
                Truth::Unknown,
                Cause::NotCountedYet,
                "The bucket was not looked through yet",
            )),
        },
        Lies::Done { outcome, .. } => {
            claims.push(catalogue::claim(&outcome.outcome));
            if let Ok(counts) = &outcome.outcome {
                volumes = Some(count(counts.volumes));
                backups = Some(counts.for_status());
                last = Some(Time(outcome.time));
            }
        }
    }
    let mut conditions =
        conditions(&before.conditions, &claims, target.metadata.generation, whole_seconds(telemetry::now()));
    conditions.extend(kept);
    ClusterBackupTargetStatus {
        observed_generation: target.metadata.generation.unwrap_or(0),
        cluster: Some(context.cluster.clone()),
        capabilities,
        last_check_time: Some(Time(check.time)),
        volumes,
        backups,
        last_catalogue_time: last,
        deletions: before.deletions.clone(),
        references: Some(*references),
        conditions,
    }
}

/// Of a target that is being deleted: who keeps it, and nothing else changes.
fn leaving_status(target: &ClusterBackupTarget, references: i64) -> ClusterBackupTargetStatus {
    let before = target.status.clone().unwrap_or_default();
    let claims = references::claims(&target.name_any(), references);
    let now = whole_seconds(telemetry::now());
    let mut written = conditions(&before.conditions, &claims, target.metadata.generation, now);
    let is_kept = |c: &&Condition| !["Ready", "Reconciling", "Stalled"].contains(&c.type_.as_str());
    written.extend(before.conditions.iter().filter(is_kept).cloned());
    ClusterBackupTargetStatus {
        observed_generation: target.metadata.generation.unwrap_or(0),
        references: Some(references),
        conditions: written,
        ..before
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
    for kind in [ConditionType::Ready, ConditionType::Catalogued] {
        let word =
            |s: &ClusterBackupTargetStatus| find(&s.conditions, kind).map(|c| (c.status.clone(), c.reason.clone()));
        if word(before) == word(status) {
            continue;
        }
        tracing::info!(target = %target.name_any(), condition = %kind, now = ?word(status), "Target changed");
        if let Some(note) = find(&status.conditions, kind).and_then(note) {
            context.publish(target, note, "Check".into());
        }
    }
    Ok(())
}
