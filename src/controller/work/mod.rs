//! What Backup and Restore share: an object whose wish is fulfilled by attempts of a worker. observe → decide → status →
//! act.
//!
//! * `observe`   the values a decision rests on
//! * `volume`    a claim or snapshot on its way to a device, and away again
//! * `filling`   a claim that is filled, on its way to a device, to its user, and away again
//! * `target`    which target an object uses, and whether it may
//! * `hear`      reports of workers, three carriers, one way of believing
//! * `queue`     who may start: one queue for all workers
//! * `retry`     what a failure leads to
//! * `decide`    pure and total: one step and a standing
//! * `failing`   what an attempt that failed leads to
//! * `binding`   from a written volume to a bound claim
//! * `standing`  what a user sees of it: stage, reason, conditions, event, next look
//! * `status`    the next status, what a write is worth, and the write
//! * `verifying` what is looked at again after completion
//! * `act`       one step, idempotent
//!
//! Status is written before the step is done. A conflict ends the pass: somebody knows better, decide again.
//! What is a kind's own is behind the trait `Kind`: where its worker works, what the worker is to do, its words, and the
//! fields of its status that nobody else has.

pub mod act;
pub mod binding;
pub mod decide;
pub mod failing;
pub mod filling;
pub mod hear;
pub mod observe;
pub mod queue;
pub mod retry;
pub mod standing;
pub mod status;
pub mod target;
pub mod verifying;
pub mod volume;
#[cfg(test)]
pub mod worlds;

use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt, core::object::HasStatus, runtime::controller::Action};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use self::{
    act::{ActError, Parts, act},
    decide::{Decision, decide},
    hear::{Ear, Listener},
    observe::{Heard, Keys, Observed, PlaceSeen, Refusal, Seen, Territory, Wish, WorkerSeen},
    queue::{Entry, TargetLimits},
    retry::Progressed,
    standing::{Chosen, Standing, Words},
    status::{Worth, Written, next_status, worth, write},
    target::{Wanted, target},
    volume::{Situation, VolumeSeen},
};
use super::{
    claim::objects::populated_by,
    context::{ApiError, Context, bounded},
    error_chain,
    objects::Objects,
    runner::{AttemptRef, Host, RunnerError, Worker, trouble::Trouble},
    snapshot::{expose::Taken, observe::ObserveError},
    target::session,
};
use crate::{
    api::{Cause, Claim, Course, InvalidField, Stage, Status},
    metrics::{self, StatusWrite},
    model::{AttemptId, Report, Task, progress::Completion},
    telemetry::now,
};

/// A kind whose wish is fulfilled by attempts of a worker.
pub trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + HasStatus<Status: Status>
    + Clone
    + fmt::Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    const METRIC: metrics::Kind;
    const WORDS: Words;

    fn objects(context: &Context) -> &Objects<Self>;

    /// What the user wants, parsed; and the first field that does not parse.
    fn wish(&self) -> (Wish, Option<InvalidField>);

    /// Where its worker is to work.
    fn place(&self, context: &Context, territory: &Territory<'_>) -> PlaceSeen;

    /// The claim or snapshot its worker reads, if it does.
    fn volume(&self, _: &Context) -> Option<volume::Wanted> {
        None
    }

    /// The claim its worker fills, if it does.
    fn filling(&self, _: &Context) -> Option<filling::Wanted> {
        None
    }

    /// Writes that the claim is filled and bound.
    fn bound(_: &mut Self::Status) {}

    /// Writes which point in time is read; only once.
    fn taken(_: &mut Self::Status, _: &Taken) {}

    /// Which target holds, or is to hold, its data.
    fn wanted_target(&self, context: &Context) -> Wanted;

    /// What the worker of this attempt is to do; none if its place does not say enough.
    fn task(&self, o: &Observed, parts: &Parts<'_>, cluster: &str) -> Option<Task>;

    /// Writes what was resolved; only once, but for what belongs to the attempt that begins (uid and id).
    fn choose(status: &mut Self::Status, chosen: &Chosen, begins: Option<(&str, &AttemptId)>);

    /// Writes what a report says to the kind's own fields.
    fn hear(&self, status: &mut Self::Status, heard: &Heard, completion: Completion, now: Timestamp);

    /// The conditions of the kind's own domain; none while they stay as they were written.
    fn domain(&self, standing: &Standing) -> Vec<Claim>;

    /// What is said once its point in time is given up; none: it has no such thing.
    fn released(&self) -> Option<Claim> {
        None
    }

    /// What the last report of a completed attempt brought, in words.
    fn brought(report: &Report) -> String;

    /// What needs no worker and comes before the attempts. `None`: there is nothing of that kind, the attempts go on.
    fn upkeep<'a>(_: &'a Arc<Self>, _: &'a Context) -> BoxFuture<'a, Result<Option<Action>, ReconcileError>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Runner(#[from] RunnerError),
    #[error(transparent)]
    Act(#[from] ActError),
    #[error(transparent)]
    Volume(#[from] ObserveError),
    #[error("A rule of the CRD refused the status: {0}")]
    Refused(String),
}

/// One pass over one object.
pub async fn reconcile<K: Kind>(cached: Arc<K>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let began = Instant::now();
    let object = K::objects(&context).freshest(cached);
    let outcome = match K::upkeep(&object, &context).await {
        Ok(Some(action)) => Ok(action),
        Ok(None) => pass(&object, &context).await,
        Err(error) => Err(error),
    };
    context.metrics.reconciled(K::METRIC, began.elapsed(), outcome.is_err());
    outcome
}

/// After an error: soon again. The API server's absence is the usual cause, and a look costs it nothing then.
pub fn after_error<K: Kind>(object: Arc<K>, error: &ReconcileError, _: Arc<Context>) -> Action {
    let (kind, name, namespace) = (K::kind(&()), object.name_any(), object.namespace().unwrap_or_default());
    match error {
        ReconcileError::Refused(_) => {
            tracing::error!(%kind, %name, %namespace, error = %error_chain(error), "Status was refused");
            Action::requeue(Duration::from_secs(30))
        }
        _ => {
            tracing::warn!(%kind, %name, %namespace, error = %error_chain(error), "Object could not be reconciled");
            Action::requeue(Duration::from_secs(2))
        }
    }
}

/// A conflict is decided again after this long: time for the cache to see what we did not know.
pub const CONFLICT_PAUSE: Duration = Duration::from_millis(200);

async fn pass<K: Kind>(object: &Arc<K>, context: &Context) -> Result<Action, ReconcileError> {
    let mut o = observe(object.as_ref(), context).await?;
    let mut decision = decide(&o, now());
    // Asking for a slot is answered at once: what a user is told should be the answer, not the question.
    if decision.step == decide::Step::AskForSlot {
        act(context, object.as_ref(), &o, decision.step).await?;
        o.slot = context.queue().slot(&o.wish.uid);
        decision = decide(&o, now());
    }
    let Decision { step, standing } = decision;
    let time = now();
    let next = next_status(object.as_ref(), &o, &standing, time);
    let course = next.course();
    let mut object = object.clone();
    match save(&object, &next, context).await? {
        Saved::Written(written) => {
            tell(object.as_ref(), &o, &standing, &course, context);
            object = written;
        }
        Saved::Skipped => {}
        Saved::Again => return Ok(Action::requeue(CONFLICT_PAUSE)),
        Saved::Gone => return Ok(Action::await_change()),
    }
    give_back(&o, &course, context);
    act(context, object.as_ref(), &o, step).await?;
    Ok(match standing.again(time, jittered(context.poll_interval())) {
        Some(wait) => Action::requeue(wait),
        None => Action::await_change(),
    })
}

/// Everything the decision rests on.
async fn observe<K: Kind>(object: &K, context: &Context) -> Result<Observed, ReconcileError> {
    let (wish, problem) = object.wish();
    let status = object.status().map(Status::course).unwrap_or_else(|| K::Status::default().course());
    let territory = Territory { namespace: &context.namespace, roots: &context.host_device_roots };
    let target = target(object.wanted_target(context), &wish.namespace, &K::kind(&()), context).await?;
    let done = object.status().map_or(0, Status::done_blocks);
    // It was over when this term began, and nothing was left of it: no need to ask.
    let is_settled = context.memory().settled.remove(&wish.uid);
    let Hearing { worker, trouble, host } = match is_settled {
        true => Hearing::NOTHING,
        false => worker(&wish.uid, &status, u64::try_from(done).unwrap_or(0), context).await?,
    };
    let situation = Situation { wish: &wish, status: &status, worker: &worker, now: now() };
    let (reads, fills) = match is_settled {
        true => (None, None),
        false => (object.volume(context), object.filling(context)),
    };
    let (place, volume) = match (problem, reads, fills) {
        (Some(problem), _, _) => {
            (Seen::Refused(Refusal::new(Cause::InvalidSpec, problem.to_string())), VolumeSeen::Idle)
        }
        (None, Some(wanted), _) => volume::look(context, &wanted, &situation).await?,
        (None, None, Some(wanted)) => filling::look(context, &wanted, &situation).await?,
        (None, None, None) => (object.place(context, &territory), VolumeSeen::Idle),
    };
    let slot = context.queue().slot(&wish.uid);
    let moved = object.status().map_or(0, Status::moved_blocks);
    let shown = if moved > 0 { Progressed::Yes } else { Progressed::No };
    let mut random = [0; 10];
    getrandom::fill(&mut random).map_err(ActError::Random)?;
    let fresh_id = AttemptId::new(u64::try_from(now().as_millisecond()).unwrap_or(0), random);
    let keys = Keys::Same;
    let mut o = Observed { wish, status, place, volume, target, slot, worker, trouble, host, keys, shown, fresh_id };
    if let (Some(attempt), Seen::Usable(target)) = (act::current(&o), &o.target)
        && session::is_due(context, &attempt, &target.resolved, now())
    {
        o.keys = Keys::Changed;
    }
    if let (Some(attempt), WorkerSeen::Absent) = (act::current(&o), &o.worker)
        && let Some(problem) = session::withheld(context, &attempt)
    {
        o.trouble = Some(Trouble { reason: problem.reason, message: problem.message });
    }
    Ok(o)
}

/// What there is of the current attempt's worker, and what the cluster says of it.
struct Hearing {
    worker: WorkerSeen,
    trouble: Option<Trouble>,
    host: Option<Host>,
}

impl Hearing {
    const NOTHING: Self = Self { worker: WorkerSeen::Absent, trouble: None, host: None };
}

/// What there is of the current attempt's worker, and what it said.
async fn worker(uid: &str, status: &Course, done: u64, context: &Context) -> Result<Hearing, RunnerError> {
    let Some(attempt) = &status.attempt else { return Ok(Hearing::NOTHING) };
    let number = u32::try_from(attempt.number).unwrap_or(0);
    let (Ok(id), Ok(name)) = (attempt.id.parse::<AttemptId>(), AttemptRef::new(uid, number)) else {
        return Ok(Hearing::NOTHING);
    };
    let found = context.runner.look(&name).await?;
    let time = now();
    let (run, trouble) = match &found {
        Worker::Absent => return Ok(Hearing::NOTHING),
        Worker::Alive { run, trouble, .. } | Worker::Ended { run, trouble, .. } => (run.clone(), trouble.clone()),
    };
    let mut ear = context.memory().ears.get(&name).cloned().unwrap_or_else(|| Ear::new(time));
    let listener = Listener {
        runner: context.runner.as_ref(),
        metrics: &context.metrics,
        attempt: &name,
        id: &id,
        run: &run,
        done,
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
    Ok(Hearing { worker: seen, trouble, host: run.host })
}

enum Saved<K> {
    Written(Arc<K>),
    Skipped,
    /// Somebody changed it since: decide again.
    Again,
    Gone,
}

/// Writes the status if that is worth it.
async fn save<K: Kind>(object: &Arc<K>, next: &K::Status, context: &Context) -> Result<Saved<K>, ReconcileError> {
    let written = |outcome| context.metrics.status_written(outcome);
    let uid = object.uid().unwrap_or_default();
    match worth(&object.status().cloned().unwrap_or_default(), next) {
        Worth::Nothing => {
            written(StatusWrite::Identical);
            return Ok(Saved::Skipped);
        }
        Worth::Progress if !context.may_write_progress(K::objects(context).since_write(&uid)) => {
            return Ok(Saved::Skipped);
        }
        Worth::Progress | Worth::Transition => {}
    }
    let api: Api<K> = Api::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    match bounded(write(&api, object.as_ref(), next)).await {
        Ok(Written::Done(new)) => {
            written(StatusWrite::Written);
            Ok(Saved::Written(K::objects(context).wrote(object, *new)))
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
fn tell<K: Kind>(object: &K, o: &Observed, standing: &Standing, next: &Course, context: &Context) {
    let attempt = |s: &Course| s.attempt.as_ref().map_or(0, |a| a.number);
    let is_same = (o.status.state, &o.status.reason, attempt(&o.status)) == (next.state, &next.reason, attempt(next));
    let failed_again = matches!(standing, Standing::Failed { .. }) && o.status.failure != next.failure;
    let is_verdict = matches!(standing, Standing::Verified { .. });
    if is_same && !failed_again && !is_verdict {
        return;
    }
    let (kind, reason) = (K::kind(&()), next.reason.as_deref().unwrap_or(""));
    tracing::info!(%kind, name = %o.wish.name, namespace = %o.wish.namespace, attempt = attempt(next), state = ?next.state, reason, "Object changed");
    match standing {
        Standing::Completed { .. } | Standing::Bound => context.metrics.attempt_completed(),
        Standing::Failed { failure, .. } => {
            if let crate::api::Reason::Failure(reason) = failure.reason {
                context.metrics.attempt_failed(reason);
            }
        }
        _ => {}
    }
    if let Some(note) = standing.note(&K::WORDS, K::brought) {
        let action = format!("Attempt{}", attempt(next));
        // Who waits for a claim to be populated looks at the claim.
        if let Some(claim) = populated_by(object.meta()) {
            context.publish_at(claim, note.clone(), action.clone());
        }
        context.publish(object, note, action);
    }
}

/// A slot is held while an attempt is under way or its worker lives.
fn give_back(o: &Observed, next: &Course, context: &Context) {
    let holds = match next.state {
        Some(Stage::Starting | Stage::InProgress | Stage::Closing) => true,
        Some(Stage::Pending) => next.reason.as_deref() == Some(Cause::Queued.as_str()),
        _ => false,
    };
    if !holds && !o.worker.is_alive() {
        let next = context.queue().leave(&o.wish.uid, Instant::now());
        context.wake(&next);
    }
}

/// Up to a tenth more, so that objects that began together do not write together for ever.
fn jittered(interval: Duration) -> Duration {
    let mut byte = [0];
    // Without random numbers there is no jitter, which costs nothing but a little evenness.
    let share = if getrandom::fill(&mut byte).is_ok() { f64::from(byte[0]) / 2560.0 } else { 0.0 };
    interval.mul_f64(1.0 + share)
}

/// An object that status shows as running holds a slot from the beginning, whatever the order of the first looks.
/// `target` and `holds` are read from status, for what they were resolved from may be gone.
pub fn running_entry<K: Kind>(object: &K, target: &str, holds: String) -> Option<Entry> {
    let course = object.status()?.course();
    matches!(course.state, Some(Stage::Starting | Stage::InProgress | Stage::Closing)).then_some(())?;
    Some(Entry {
        uid: object.uid()?,
        namespace: object.namespace()?,
        target: target.to_owned(),
        urgency: object.wish().0.urgency,
        holds,
        since: now(),
        // Limits are asked of those that wait; this one runs.
        target_limits: TargetLimits { total: 1, per_namespace: 1 },
    })
}
