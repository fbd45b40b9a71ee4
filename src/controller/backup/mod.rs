//! Backup: observe → decide → status → act.
//!
//! * `observe`   the values a decision rests on
//! * `hear`      reports of workers, three carriers, one way of believing
//! * `queue`     who may start
//! * `retry`     what a failure leads to
//! * `decide`    pure and total: one step and a standing
//! * `standing`  what a user sees of it: state, reason, conditions, event, next look
//! * `status`    the next status, what a write is worth, and the write
//! * `verifying` what is looked at again after completion
//! * `act`       one step, idempotent
//!
//! Status is written before the step is done. A conflict ends the pass: somebody knows better, decide again.

pub mod act;
pub mod decide;
pub mod hear;
#[cfg(test)]
mod laws;
pub mod observe;
pub mod queue;
pub mod retry;
pub mod standing;
pub mod status;
pub mod verifying;

use std::{sync::Arc, time::Duration};

use kube::{
    Api, ResourceExt,
    runtime::{controller::Action, reflector::ObjectRef},
};
use tokio::time::Instant;

use self::{
    act::{ActError, act},
    decide::{Decision, decide},
    hear::{Ear, Listener},
    observe::{Keys, Observed, Refusal, Target, TargetSeen, WorkerSeen, source, wish},
    standing::Standing,
    status::{Worth, Written, next_status, worth, write},
};
use super::{
    context::{ApiError, Context, LastWrite, bounded},
    error_chain,
    runner::{AttemptRef, RunnerError, Worker},
    target::resolve_cached,
};
use crate::{
    api::{
        Backup, BackupState, BackupStatus, Cause, ClusterBackupTarget, TargetKind, common::ChosenTarget,
        target::NamespacesFrom,
    },
    metrics::{Kind, StatusWrite},
    model::AttemptId,
    telemetry::now,
};

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Runner(#[from] RunnerError),
    #[error(transparent)]
    Act(#[from] ActError),
    #[error("A rule of the CRD refused the status: {0}")]
    Refused(String),
}

/// One pass over one Backup.
pub async fn reconcile(cached: Arc<Backup>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let began = Instant::now();
    let backup = context.freshest(cached);
    let outcome = pass(&backup, &context).await;
    context.metrics.reconciled(Kind::Backup, began.elapsed(), outcome.is_err());
    outcome
}

/// After an error: soon again. The API server's absence is the usual cause, and a look costs it nothing then.
pub fn after_error(backup: Arc<Backup>, error: &ReconcileError, _: Arc<Context>) -> Action {
    let (backup, namespace) = (backup.name_any(), backup.namespace().unwrap_or_default());
    match error {
        ReconcileError::Refused(_) => {
            tracing::error!(%backup, %namespace, error = %error_chain(error), "Status was refused");
            Action::requeue(Duration::from_secs(30))
        }
        _ => {
            tracing::warn!(%backup, %namespace, error = %error_chain(error), "Backup could not be reconciled");
            Action::requeue(Duration::from_secs(2))
        }
    }
}

/// A conflict is decided again after this long: time for the cache to see what we did not know.
const CONFLICT_PAUSE: Duration = Duration::from_millis(200);

async fn pass(backup: &Arc<Backup>, context: &Context) -> Result<Action, ReconcileError> {
    let mut o = observe(backup, context).await?;
    let mut decision = decide(&o, now());
    // Asking for a slot is answered at once: what a user is told should be the answer, not the question.
    if decision.step == decide::Step::AskForSlot {
        act(context, backup, &o, decision.step).await?;
        o.slot = context.queue().slot(&o.wish.uid);
        decision = decide(&o, now());
    }
    let Decision { step, standing } = decision;
    let time = now();
    let next = next_status(&o, &standing, time);
    let mut backup = backup.clone();
    match save(&backup, &o, &next, context).await? {
        Saved::Written(written) => {
            tell(&backup, &o, &standing, &next, context);
            backup = written;
        }
        Saved::Skipped => {}
        Saved::Again => return Ok(Action::requeue(CONFLICT_PAUSE)),
        Saved::Gone => return Ok(Action::await_change()),
    }
    give_back(&o, &next, context);
    act(context, &backup, &o, step).await?;
    Ok(match standing.again(time, jittered(context.poll_interval())) {
        Some(wait) => Action::requeue(wait),
        None => Action::await_change(),
    })
}

/// Everything the decision rests on.
async fn observe(backup: &Backup, context: &Context) -> Result<Observed, ReconcileError> {
    let (wish, problem) = wish(backup);
    let status = backup.status.clone().unwrap_or_default();
    let source = match problem {
        Some(problem) => Err(Refusal::new(Cause::InvalidSpec, problem.to_string())),
        None => source(&backup.spec, &wish.namespace, &context.namespace, &context.host_device_roots),
    };
    let target = target(backup, &status, context).await?;
    let worker = worker(&wish.uid, &status, context).await?;
    let slot = context.queue().slot(&wish.uid);
    let mut random = [0; 10];
    getrandom::fill(&mut random).map_err(ActError::Random)?;
    let fresh_id = AttemptId::new(u64::try_from(now().as_millisecond()).unwrap_or(0), random);
    let mut o = Observed { wish, status, source, target, slot, worker, keys: Keys::Same, fresh_id };
    if let (Some(attempt), TargetSeen::Usable(target)) = (act::current(&o), &o.target)
        && context.memory().offered.get(&attempt) != Some(&target.resolved.credentials)
    {
        o.keys = Keys::Changed;
    }
    Ok(o)
}

/// The target that was chosen, or is to be.
async fn target(backup: &Backup, status: &BackupStatus, context: &Context) -> Result<TargetSeen, ApiError> {
    let chosen = status.target.as_ref();
    let found = match (chosen.map(|c| &c.name), backup.spec.target_ref.as_ref().map(|r| &r.name)) {
        (Some(name), _) | (None, Some(name)) => match context.targets.get(&ObjectRef::new(name)) {
            Some(target) => target,
            None => {
                let missing =
                    format!("ClusterBackupTarget {name} does not exist: create it, or name another in a new Backup");
                return Ok(TargetSeen::Waiting(missing));
            }
        },
        (None, None) => match default_target(context) {
            Ok(target) => target,
            Err(missing) => return Ok(TargetSeen::Waiting(missing)),
        },
    };
    let name = found.name_any();
    let uid = found.uid().unwrap_or_default();
    if chosen.is_some_and(|c| c.uid != uid) {
        let missing = format!(
            "ClusterBackupTarget {name} is not the one this Backup chose, but another of the same name: create a new Backup"
        );
        return Ok(TargetSeen::Waiting(missing));
    }
    let namespace = backup.namespace().unwrap_or_default();
    let not_allowed = |message| Ok(TargetSeen::Refused(Refusal::new(Cause::TargetNotAllowed, message)));
    match may_use(&found, &namespace, context).await? {
        Allowed::Yes => {}
        Allowed::No => {
            return not_allowed(format!(
                "ClusterBackupTarget {name} does not allow namespace {namespace}: an administrator must add it to spec.allowedNamespaces"
            ));
        }
        Allowed::Unclear(problem) => return not_allowed(format!("ClusterBackupTarget {name}: {problem}")),
    }
    Ok(usable(&found, ChosenTarget { kind: TargetKind::ClusterBackupTarget, name, uid }, context))
}

fn default_target(context: &Context) -> Result<Arc<ClusterBackupTarget>, String> {
    let mut defaults = context.targets.state().into_iter().filter(|t| t.spec.default);
    match (defaults.next(), defaults.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err("No ClusterBackupTarget has spec.default: true: mark one, or name one in a new Backup".into()),
        (Some(_), Some(_)) => Err(
            "Several ClusterBackupTargets have spec.default: true: leave it true on one, or name one in a new Backup"
                .into(),
        ),
    }
}

/// Closed if it cannot be told: a selector that does not parse, or a namespace that cannot be read, allows nobody.
async fn may_use(target: &ClusterBackupTarget, namespace: &str, context: &Context) -> Result<Allowed, ApiError> {
    let mut labels = std::collections::BTreeMap::new();
    if target.spec.allowed_namespaces.from == NamespacesFrom::Selector {
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(context.client.clone());
        labels = bounded(namespaces.get(namespace)).await?.metadata.labels.unwrap_or_default();
    }
    Ok(match target.spec.allows(namespace, &labels) {
        Ok(true) => Allowed::Yes,
        Ok(false) => Allowed::No,
        Err(problem) => Allowed::Unclear(problem.to_string()),
    })
}

enum Allowed {
    Yes,
    No,
    Unclear(String),
}

/// A target is used once it was looked at, whatever that showed: a worker that is refused says so itself, with its object,
/// and one path of failures and retries is enough.
fn usable(target: &ClusterBackupTarget, chosen: ChosenTarget, context: &Context) -> TargetSeen {
    let resolved = match resolve_cached(target, context) {
        Ok(resolved) => resolved,
        Err(problem) => return TargetSeen::Waiting(format!("ClusterBackupTarget {}: {problem}", chosen.name)),
    };
    let is_looked_at = target.status.as_ref().is_some_and(|s| {
        s.last_check_time.is_some() && s.observed_generation == target.metadata.generation.unwrap_or(0)
    });
    if !is_looked_at {
        return TargetSeen::Waiting(format!("ClusterBackupTarget {} was not looked at yet", chosen.name));
    }
    TargetSeen::Usable(Box::new(Target { chosen, resolved, shared_with_clusters: target.spec.shared_with_clusters }))
}

/// What there is of the current attempt's worker, and what it said.
async fn worker(uid: &str, status: &BackupStatus, context: &Context) -> Result<WorkerSeen, RunnerError> {
    let Some(attempt) = &status.attempt else { return Ok(WorkerSeen::Absent) };
    let number = u32::try_from(attempt.number).unwrap_or(0);
    let (Ok(id), Ok(name)) = (attempt.id.parse::<AttemptId>(), AttemptRef::new(uid, number)) else {
        return Ok(WorkerSeen::Absent);
    };
    let found = context.runner.look(&name).await?;
    let time = now();
    let run = match &found {
        Worker::Absent => return Ok(WorkerSeen::Absent),
        Worker::Alive { run, .. } | Worker::Ended { run, .. } => run.clone(),
    };
    let mut ear = context.memory().ears.get(&name).cloned().unwrap_or_else(|| Ear::new(time));
    let acknowledged = status.progress.as_ref().map_or(0, |p| u64::try_from(p.acknowledged_blocks).unwrap_or(0));
    let listener = Listener {
        runner: context.runner.as_ref(),
        metrics: &context.metrics,
        attempt: &name,
        id: &id,
        run: &run,
        acknowledged,
    };
    let seen = match found {
        Worker::Absent => WorkerSeen::Absent,
        Worker::Alive { address, .. } => {
            listener.ask(&mut ear, address, time).await;
            WorkerSeen::Alive { heard: ear.heard().cloned(), silent_for: ear.silent_for(time) }
        }
        Worker::Ended { exit_code, .. } => {
            if !ear.heard().is_some_and(|h| h.report.is_final()) {
                listener.read_remains(&mut ear, time).await;
            }
            let is_final = ear.heard().is_some_and(|h| h.report.is_final());
            let last_lines = if is_final { String::new() } else { context.runner.last_lines(&name).await? };
            WorkerSeen::Ended { heard: ear.heard().cloned(), exit_code, last_lines }
        }
    };
    context.memory().ears.insert(name, ear);
    Ok(seen)
}

enum Saved {
    Written(Arc<Backup>),
    Skipped,
    /// Somebody changed it since: decide again.
    Again,
    Gone,
}

/// Writes the status if that is worth it.
async fn save(
    backup: &Arc<Backup>,
    o: &Observed,
    next: &BackupStatus,
    context: &Context,
) -> Result<Saved, ReconcileError> {
    let written = |outcome| context.metrics.status_written(outcome);
    match worth(&o.status, next) {
        Worth::Nothing => {
            written(StatusWrite::Identical);
            return Ok(Saved::Skipped);
        }
        Worth::Progress if !context.may_write_progress(&o.wish.uid) => return Ok(Saved::Skipped),
        Worth::Progress | Worth::Transition => {}
    }
    let api: Api<Backup> = Api::namespaced(context.client.clone(), &o.wish.namespace);
    match bounded(write(&api, backup, next)).await {
        Ok(Written::Done(object)) => {
            written(StatusWrite::Written);
            Ok(Saved::Written(context.wrote(backup, *object)))
        }
        Ok(Written::Conflict) => {
            written(StatusWrite::Conflict);
            Ok(Saved::Again)
        }
        Ok(Written::Gone) => Ok(Saved::Gone),
        Ok(Written::Refused(message)) => {
            written(StatusWrite::Refused);
            Err(ReconcileError::Refused(message))
        }
        Err(error) => {
            written(StatusWrite::Failed);
            Err(error.into())
        }
    }
}

/// A transition is logged, counted and published; whatever is no transition is not.
fn tell(backup: &Backup, o: &Observed, standing: &Standing, next: &BackupStatus, context: &Context) {
    let attempt = |s: &BackupStatus| s.attempt.as_ref().map_or(0, |a| a.number);
    if o.wish.wants_data_deleted && o.status.observed_generation != next.observed_generation {
        let text = "deletionPolicy: Delete is not built yet: deleting this object retains its data in the bucket";
        let note =
            standing::Note { severity: standing::Severity::Warning, reason: "DataRetained".into(), text: text.into() };
        context.publish(backup, note, "Delete".into());
    }
    let is_same = (o.status.state, &o.status.reason, attempt(&o.status)) == (next.state, &next.reason, attempt(next));
    let failed_again = matches!(standing, Standing::Failed { .. }) && o.status.failure != next.failure;
    let is_verdict = matches!(standing, Standing::Verified { .. });
    if is_same && !failed_again && !is_verdict {
        return;
    }
    let reason = next.reason.as_deref().unwrap_or("");
    tracing::info!(backup = %o.wish.name, namespace = %o.wish.namespace, attempt = attempt(next), state = ?next.state, reason, "Backup changed");
    match standing {
        Standing::Completed { .. } => context.metrics.attempt_completed(),
        Standing::Failed { failure, .. } => {
            if let crate::api::Reason::Failure(reason) = failure.reason {
                context.metrics.attempt_failed(reason);
            }
        }
        _ => {}
    }
    if let Some(note) = standing.note() {
        context.publish(backup, note, format!("Attempt{}", attempt(next)));
    }
}

/// A slot is held while an attempt is under way or its worker lives.
fn give_back(o: &Observed, next: &BackupStatus, context: &Context) {
    let holds = match next.state {
        Some(BackupState::Snapshotting | BackupState::InProgress | BackupState::Committing) => true,
        Some(BackupState::Pending) => next.reason.as_deref() == Some(Cause::Queued.as_str()),
        _ => false,
    };
    if !holds && !o.worker.is_alive() {
        let next = context.queue().leave(&o.wish.uid);
        context.poke(&next);
    }
}

/// Up to a tenth more, so that Backups that began together do not write together for ever.
fn jittered(interval: Duration) -> Duration {
    let mut byte = [0];
    // Without random numbers there is no jitter, which costs nothing but a little evenness.
    let share = if getrandom::fill(&mut byte).is_ok() { f64::from(byte[0]) / 2560.0 } else { 0.0 };
    interval.mul_f64(1.0 + share)
}

impl Context {
    /// Remembers what we wrote until the cache has it.
    fn wrote(&self, before: &Backup, after: Backup) -> Arc<Backup> {
        let object = Arc::new(after);
        let last = LastWrite { replaced: before.resource_version(), object: object.clone(), at: Instant::now() };
        self.memory().written.insert(object.uid().unwrap_or_default(), last);
        object
    }

    /// Did the target's last probe see that a second create is refused?
    fn conditional_writes(&self, target: &str) -> bool {
        let target = self.targets.get(&ObjectRef::new(target));
        let capabilities = target.and_then(|t| t.status.as_ref()?.capabilities.clone());
        capabilities.is_some_and(|c| c.conditional_writes)
    }
}
