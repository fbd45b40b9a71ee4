//! What is done about an object: `decide(&Observed, now) -> Decision`, pure and total.
//!
//! The state in status is where the decision begins; there is no other memory. A step is one act that may be repeated;
//! what it changed is seen on the next pass. Status is written before the step is done, so that an attempt stands in
//! status before its worker exists, and a failure is shown before anything is cleaned up.
//!
//! Three rules hold everything else:
//! 1. Completed and Cancelled are history: nothing changes them. A verification after completion is told beside it.
//! 2. A new attempt begins only when the worker of the old one has ended.
//! 3. What a worker said last counts, whether it still runs or not: the outcome of a report is final.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    binding,
    failing::{
        attempt_deadline, attempt_start, crash, failed, no_session, not_created, refused, said_failure, start_deadline,
        troubled,
    },
    observe::{Afterwards, Finalizer, Heard, Keys, Life, Observed, Place, Refusal, Seen, Target, WorkerSeen},
    queue::{Limit, Slot},
    standing::{Activity, Chosen, Standing},
    verifying::verifying,
    volume::{Left, VolumeSeen},
};
use crate::{
    api::{Cause, Stage, backup::QueueLimit},
    controller::{
        snapshot::expose,
        time::{later, until},
    },
    model::{Failure, FailureReason, Phase},
};

/// One act, idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Nothing,
    AddFinalizer,
    AskForSlot,
    /// One step of the volume on its way to a device.
    ExposeVolume,
    StartWorker,
    OfferCredentials,
    StopWorker,
    /// Removes what is left of an ended worker.
    RemoveWorker,
    /// One step of the written volume on its way to the user's claim.
    BindVolume,
    /// One step until nothing of the volume is left.
    RemoveVolume,
    RemoveFinalizer,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    pub step: Step,
    pub standing: Standing,
}

fn decided(step: Step, standing: Standing) -> Decision {
    Decision { step, standing }
}

/// After this long without a report the reason says so.
pub const QUIET: Duration = Duration::from_secs(10);
/// A worker knows its own deadline; this much later it is ended for it.
pub const DEADLINE_GRACE: Duration = Duration::from_secs(60);
/// Between two steps of a volume: time for others to do theirs.
const VOLUME_PAUSE: Duration = Duration::from_millis(200);
const VOLUME_WAIT: Duration = Duration::from_secs(1);
/// A worker that said its last word has this long to end by itself.
pub const LEAVE_GRACE: Duration = Duration::from_secs(30);
/// What is due is looked at not before this, in case it cannot be done at once, and a timer is not set for longer than that.
const LOOK_AGAIN_MIN: Duration = Duration::from_secs(1);
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(6 * 3600);

/// What is to be done now, and how the object stands.
pub fn decide(o: &Observed, now: Timestamp) -> Decision {
    if o.wish.life == Life::Deleting {
        return deleting(o);
    }
    match o.status.state {
        Some(Stage::Completed) => verifying(o, now).unwrap_or_else(|| history(o, now)),
        Some(Stage::Cancelled | Stage::Deleting) => history(o, now),
        _ if o.wish.cancel => cancelling(o, now),
        None | Some(Stage::Pending) => pending(o, now),
        Some(Stage::Error) => resting(o, now),
        Some(Stage::Starting | Stage::InProgress | Stage::Closing) => {
            match o.status.reason.as_deref() == Some(Cause::WaitingForOldWorker.as_str()) {
                true => pending(o, now),
                false if binding::is_binding(&o.status) => binding::binding(o, now),
                false => running(o, now),
            }
        }
    }
}

fn deleting(o: &Observed) -> Decision {
    let unchanged = || Standing::Unchanged { again: None };
    match &o.worker {
        WorkerSeen::Alive { .. } => decided(Step::StopWorker, Standing::Deleting),
        WorkerSeen::Ended { .. } => decided(Step::RemoveWorker, Standing::Unchanged { again: Some(Duration::ZERO) }),
        WorkerSeen::Absent => volume_goes(o).unwrap_or_else(|| match (o.wish.finalizer, o.wish.holds) {
            (Finalizer::Present, false) => decided(Step::RemoveFinalizer, unchanged()),
            // What is to go with it is looked after by upkeep, which sees on the next pass that the worker is gone.
            (Finalizer::Present, true) => {
                decided(Step::Nothing, Standing::Unchanged { again: Some(Duration::from_secs(1)) })
            }
            (Finalizer::Absent, _) => decided(Step::Nothing, unchanged()),
        }),
    }
}

/// What is left of a volume goes before our finalizer does; none: nothing is left, or nothing was looked for.
fn volume_goes(o: &Observed) -> Option<Decision> {
    let again = |wait| Standing::Unchanged { again: Some(wait) };
    match o.volume.left() {
        Left::Something => Some(decided(Step::RemoveVolume, again(VOLUME_PAUSE))),
        Left::Going => Some(decided(Step::Nothing, again(VOLUME_WAIT))),
        Left::Nothing => None,
    }
}

/// Nothing changes but what is left of the worker.
fn history(o: &Observed, now: Timestamp) -> Decision {
    let look = |again| Standing::Unchanged { again };
    match &o.worker {
        WorkerSeen::Alive { .. } => {
            let said = o.status.completion_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
            let step = if now > later(said, LEAVE_GRACE) { Step::StopWorker } else { Step::Nothing };
            decided(step, look(Some(Duration::from_secs(1))))
        }
        WorkerSeen::Ended { .. } => decided(Step::RemoveWorker, look(Some(Duration::ZERO))),
        WorkerSeen::Absent => volume_goes(o).unwrap_or_else(|| {
            let again = o.wish.look_again.map(|at| until(at, now).clamp(LOOK_AGAIN_MIN, LOOK_AGAIN_MAX));
            decided(idle_finalizer(o), look(again))
        }),
    }
}

/// What is done about the finalizer while no worker is there and none will come by itself.
fn idle_finalizer(o: &Observed) -> Step {
    match (o.wish.finalizer, o.wish.holds) {
        (Finalizer::Absent, true) => Step::AddFinalizer,
        (Finalizer::Present, false) => Step::RemoveFinalizer,
        (Finalizer::Absent, false) | (Finalizer::Present, true) => Step::Nothing,
    }
}

fn cancelling(o: &Observed, now: Timestamp) -> Decision {
    match o.wish.afterwards {
        // What is in the user's hands is finished.
        Afterwards::BindVolume if binding::is_handed_over(o) => return binding::binding(o, now),
        Afterwards::BindVolume => {}
        Afterwards::Nothing => {
            if let Some(completed) = completed(o) {
                return completed;
            }
        }
    }
    match &o.worker {
        WorkerSeen::Alive { .. } => decided(Step::StopWorker, Standing::Cancelling),
        WorkerSeen::Absent | WorkerSeen::Ended { .. } => {
            decided(Step::Nothing, Standing::Cancelled { heard: o.worker.heard().cloned().map(Box::new) })
        }
    }
}

/// No attempt is under way: the first one, or the next, is to begin.
fn pending(o: &Observed, now: Timestamp) -> Decision {
    let (place, target) = match (&o.place, &o.target) {
        (Seen::Usable(place), Seen::Usable(target)) => (place, target),
        (Seen::Refused(refusal), _) | (Seen::Usable(_), Seen::Refused(refusal)) => {
            return refused(o, refusal.reason, refusal.message.clone(), now);
        }
        (Seen::Waiting(missing), _) | (Seen::Usable(_), Seen::Waiting(missing)) => return waiting(o, missing, now),
    };
    if now >= waiting_deadline(o, o.wish.deadlines.total, now) {
        let message = format!("No attempt could begin within deadlines.total ({} s)", o.wish.deadlines.total.as_secs());
        return failed(o, Failure::new(FailureReason::DeadlineExceeded, message, None, now), now);
    }
    match &o.worker {
        WorkerSeen::Alive { .. } => return decided(Step::StopWorker, Standing::WaitingForOldWorker),
        WorkerSeen::Ended { .. } => {
            return decided(Step::RemoveWorker, Standing::Unchanged { again: Some(Duration::ZERO) });
        }
        WorkerSeen::Absent => {}
    }
    let chosen = Box::new(chosen(place, target));
    match (o.slot, o.wish.finalizer) {
        (Slot::Gathering, _) => decided(Step::AskForSlot, Standing::Queued { limit: None, chosen }),
        (Slot::Waiting(limit), _) => {
            decided(Step::AskForSlot, Standing::Queued { limit: Some(shown_limit(o).unwrap_or(limit)), chosen })
        }
        (Slot::Held, Finalizer::Absent) => {
            decided(Step::AddFinalizer, Standing::Unchanged { again: Some(Duration::ZERO) })
        }
        (Slot::Held, Finalizer::Present) => {
            let number = o.status.attempt.as_ref().map_or(0, |a| a.number).saturating_add(1);
            decided(Step::Nothing, Standing::Beginning { number, id: o.fresh_id.clone(), chosen })
        }
    }
}

/// The limit is written once while a Backup waits: which one it is may change with every Backup that ends, and hundreds
/// of waiting ones would be rewritten each time.
fn shown_limit(o: &Observed) -> Option<Limit> {
    match o.status.queue.as_ref()?.limit {
        QueueLimit::Operator => Some(Limit::Operator),
        QueueLimit::Target => Some(Limit::Target),
        QueueLimit::Namespace => Some(Limit::Namespace),
        QueueLimit::Volume => Some(Limit::Volume),
        QueueLimit::Node | QueueLimit::Driver => None,
    }
}

fn chosen(place: &Place, target: &Target) -> Chosen {
    Chosen { target: target.chosen.clone(), location: target.resolved.location.clone(), place: place.clone() }
}

fn waiting(o: &Observed, missing: &Refusal, now: Timestamp) -> Decision {
    // Before the first attempt the wait has a deadline of its own; later the whole deadline is enough.
    let (limit, name) = match o.status.attempt {
        None => (o.wish.deadlines.start, "start"),
        Some(_) => (o.wish.deadlines.total, "total"),
    };
    if now >= waiting_deadline(o, limit, now) {
        let message = format!("{} (waited for deadlines.{name}, {} s)", missing.message, limit.as_secs());
        return refused(o, missing.reason, message, now);
    }
    decided(Step::Nothing, Standing::Waiting { missing: missing.clone() })
}

/// Waiting is counted from the start of work, or from the last failure.
fn waiting_deadline(o: &Observed, limit: Duration, now: Timestamp) -> Timestamp {
    let started = o.status.start_time.as_ref().map_or(now, |t| t.0);
    let failed = o.status.failure.as_ref().and_then(|f| f.time.as_ref()).map_or(started, |t| t.0);
    later(started.max(failed), limit)
}

/// Failed, and waiting for a retry or for a person.
fn resting(o: &Observed, now: Timestamp) -> Decision {
    let is_asked = o.wish.retry_request.is_some() && o.wish.retry_request != o.status.observed_retry_request;
    let due = o.status.next_retry_time.as_ref().map(|t| t.0);
    if is_asked || due.is_some_and(|at| now >= at) {
        return pending(o, now);
    }
    let again = due.map(|at| until(at, now));
    let soon = |wait: Duration| Standing::Unchanged { again: Some(again.map_or(wait, |a| a.min(wait))) };
    match &o.worker {
        WorkerSeen::Alive { .. } => {
            // It said its last word, or it is not heard any more: either way its attempt is over.
            let failed = o.status.failure.as_ref().and_then(|f| f.time.as_ref()).map_or(now, |t| t.0);
            let has_ended = o.worker.heard().is_some_and(|h| h.report.is_final());
            let step = if has_ended && now < later(failed, LEAVE_GRACE) { Step::Nothing } else { Step::StopWorker };
            decided(step, soon(Duration::from_secs(1)))
        }
        WorkerSeen::Ended { .. } => decided(Step::RemoveWorker, soon(Duration::ZERO)),
        WorkerSeen::Absent => volume_goes(o).map(|gone| releasing(o, gone)).unwrap_or_else(|| match &o.volume {
            // The point in time is kept for the person who may still ask for a retry.
            VolumeSeen::Removing { kept_until: Some(end), .. } if again.is_none() => {
                decided(Step::Nothing, soon(until(*end, now).max(VOLUME_WAIT)))
            }
            _ if again.is_none() => decided(idle_finalizer(o), Standing::Unchanged { again: None }),
            _ => decided(Step::Nothing, Standing::Unchanged { again }),
        }),
    }
}

/// The point in time goes as well: that is told, for no retry can read it any more.
fn releasing(o: &Observed, decision: Decision) -> Decision {
    match (&o.volume, decision.standing) {
        (VolumeSeen::Removing { kept_until: None, .. }, Standing::Unchanged { again }) => {
            decided(decision.step, Standing::Released { again })
        }
        (_, standing) => decided(decision.step, standing),
    }
}

/// An attempt is under way.
fn running(o: &Observed, now: Timestamp) -> Decision {
    if let Some(ended) = completed(o).or_else(|| said_failure(o, now)) {
        return ended;
    }
    let was_heard = o.status.state != Some(Stage::Starting);
    match &o.worker {
        WorkerSeen::Absent if was_heard => {
            let message = "The worker and everything it was given are gone from this machine";
            failed(o, Failure::new(FailureReason::WorkerCrashed, message, None, now), now)
        }
        WorkerSeen::Absent => starting(o, now),
        WorkerSeen::Alive { heard: None, silent_for } if was_heard => silent(o, None, *silent_for, now),
        WorkerSeen::Alive { heard: None, .. } => match not_created(o, now).or_else(|| start_deadline(o, now)) {
            Some(failure) => stopped(failed(o, failure, now)),
            None => {
                let problem = o.trouble.as_ref().map(|t| format!("{}: {}", t.reason, t.message));
                decided(Step::Nothing, Standing::StartingWorker { problem })
            }
        },
        WorkerSeen::Alive { heard: Some(heard), silent_for } => alive(o, heard, *silent_for, now),
        WorkerSeen::Ended { exit_code, last_lines, .. } => {
            let failure = troubled(o, now).unwrap_or_else(|| crash(*exit_code, last_lines, now));
            failed(o, failure, now)
        }
    }
}

/// What was wished for is true (the record is in the bucket, the volume restored): nothing that happened besides matters.
fn completed(o: &Observed) -> Option<Decision> {
    let heard = o.worker.heard().filter(|heard| heard.report.is_fulfilled())?;
    Some(match o.wish.afterwards {
        Afterwards::Nothing => decided(Step::Nothing, Standing::Completed { heard: Box::new(heard.clone()) }),
        Afterwards::BindVolume => binding::begins(o, heard),
    })
}

fn starting(o: &Observed, now: Timestamp) -> Decision {
    if let Some(failure) = start_deadline(o, now) {
        return failed(o, failure, now);
    }
    if let VolumeSeen::Exposing(decision) = &o.volume
        && let Seen::Waiting(missing) = &o.place
    {
        return exposing(o, decision, missing, now);
    }
    if let (VolumeSeen::Making(_), Seen::Waiting(missing)) = (&o.volume, &o.place) {
        return decided(Step::ExposeVolume, Standing::ExposingVolume { missing: missing.clone(), taken: None });
    }
    if let Some(failure) = no_session(o, now) {
        return failed(o, failure, now);
    }
    match (&o.place, &o.target) {
        (Seen::Usable(_), Seen::Usable(_)) => {
            // There is no worker yet: what troubles it is that it gets no session.
            let problem = o.trouble.as_ref().map(|t| format!("{}: {}", t.reason, t.message));
            decided(Step::StartWorker, Standing::StartingWorker { problem })
        }
        (Seen::Refused(refusal), _) | (Seen::Usable(_), Seen::Refused(refusal)) => {
            refused(o, refusal.reason, refusal.message.clone(), now)
        }
        (Seen::Waiting(missing), _) | (Seen::Usable(_), Seen::Waiting(missing)) => {
            decided(Step::Nothing, Standing::StartingWorker { problem: Some(missing.message.clone()) })
        }
    }
}

/// The snapshot is taken and exposed step by step; waiting for it has an end of its own.
fn exposing(o: &Observed, decision: &expose::Decision, missing: &Refusal, now: Timestamp) -> Decision {
    let taken = match &decision.standing {
        // It is written to status with its marks, or not at all.
        expose::Standing::ExposingSnapshot { taken, .. } | expose::Standing::Exposed { taken, .. } => {
            Some(taken.clone())
        }
        _ => None,
    };
    let limit = o.wish.deadlines.snapshot;
    if taken.is_none() && now >= later(attempt_start(o, now), limit) {
        let message = format!("{} (waited for deadlines.snapshot, {} s)", missing.message, limit.as_secs());
        return failed(o, Failure::new(FailureReason::SnapshotNotReady, message, None, now), now);
    }
    decided(Step::ExposeVolume, Standing::ExposingVolume { missing: missing.clone(), taken })
}

fn alive(o: &Observed, heard: &Heard, silent_for: Duration, now: Timestamp) -> Decision {
    if now >= later(attempt_deadline(o, now), DEADLINE_GRACE) {
        let message =
            format!("deadlines.total ({} s) passed and the worker did not end", o.wish.deadlines.total.as_secs());
        return stopped(failed(o, Failure::new(FailureReason::DeadlineExceeded, message, None, now), now));
    }
    if silent_for >= QUIET {
        return silent(o, Some(heard), silent_for, now);
    }
    let activity = match heard.report.phase {
        Phase::Planning => Activity::Planning,
        Phase::Uploading if heard.throttled => Activity::Throttled,
        Phase::Uploading => Activity::Uploading,
        Phase::WritingRecord => Activity::WritingRecord,
        Phase::Restoring if heard.throttled => Activity::Throttled,
        Phase::Restoring => Activity::Restoring,
        Phase::Flushing => Activity::Flushing,
        Phase::ReadingBack | Phase::Ended => Activity::ReadingBack,
    };
    let step = if o.keys == Keys::Changed { Step::OfferCredentials } else { Step::Nothing };
    decided(step, Standing::Working { heard: Some(Box::new(heard.clone())), activity })
}

/// Silence is no failure while the worker may still be acknowledging; after `deadlines.stall` the attempt is ended and
/// the next one proves what was acknowledged.
fn silent(o: &Observed, heard: Option<&Heard>, silent_for: Duration, now: Timestamp) -> Decision {
    let limit = o.wish.deadlines.stall;
    if silent_for >= limit {
        let message = format!("No report from the worker by any carrier for {} s", silent_for.as_secs());
        return stopped(failed(o, Failure::new(FailureReason::WorkerNotHeard, message, None, now), now));
    }
    let standing = Standing::Working { heard: heard.cloned().map(Box::new), activity: Activity::NotHeard };
    let step = if o.keys == Keys::Changed { Step::OfferCredentials } else { Step::Nothing };
    decided(step, standing)
}

fn stopped(decision: Decision) -> Decision {
    Decision { step: Step::StopWorker, ..decision }
}
