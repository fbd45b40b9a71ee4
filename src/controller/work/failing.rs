//! What an attempt that failed leads to: why it failed, told from the worker's last word, from the cluster, from the
//! clock; and by the policy what follows. Pure.

use jiff::Timestamp;

use super::{
    decide::{Decision, Step},
    observe::{Observed, Seen, failure_reason, has_progressed},
    retry::{self, Past, Progressed},
    standing::{Failed, Standing, WhatNext},
};
use crate::{
    api::Reason,
    controller::{runner::trouble::Trouble, time::later},
    model::{Failure, FailureReason, Outcome, limits},
};

fn decided(step: Step, standing: Standing) -> Decision {
    Decision { step, standing }
}

/// The worker said why it gave up.
pub(super) fn said_failure(o: &Observed, now: Timestamp) -> Option<Decision> {
    let report = &o.worker.heard()?.report;
    let failure = match report.outcome.as_ref()? {
        Outcome::Completed { .. } | Outcome::Restored => return None,
        Outcome::Failed => report.failure.clone().unwrap_or_else(|| {
            Failure::new(FailureReason::Bug, "The worker failed without saying why", None, report.time)
        }),
        Outcome::Cancelled if o.trouble.is_some() => troubled(o, now)?,
        Outcome::Cancelled => {
            let message = "The worker was ended by somebody else than the operator";
            Failure::new(FailureReason::WorkerCrashed, message, None, report.time)
        }
    };
    Some(failed(o, failure, now))
}

pub(super) fn start_deadline(o: &Observed, now: Timestamp) -> Option<Failure> {
    let limit = o.wish.deadlines.start;
    (now >= later(attempt_start(o, now), limit)).then(|| {
        let waited = format!("was not heard within deadlines.start ({} s)", limit.as_secs());
        match (&o.trouble, &o.place) {
            (Some(trouble), _) => {
                Failure::new(trouble.reason, format!("{} (the worker {waited})", trouble.message), None, now)
            }
            (None, Seen::Waiting(missing)) => {
                let message = format!("{} (the worker {waited})", missing.message);
                Failure::new(FailureReason::WorkerNotStarted, message, None, now)
            }
            (None, _) => Failure::new(FailureReason::WorkerNotStarted, format!("The worker {waited}"), None, now),
        }
    })
}

/// A Job without a Pod is given up early: what refuses its Pod rarely changes its mind for the same one.
pub(super) fn not_created(o: &Observed, now: Timestamp) -> Option<Failure> {
    let is_late = now >= later(attempt_start(o, now), limits::POD_DEADLINE);
    let is_refused = o.trouble.as_ref().is_some_and(|t| t.reason == FailureReason::WorkerNotCreated);
    if is_late && is_refused { troubled(o, now) } else { None }
}

/// STS refused a session for the worker that was to start: a person must act, and waiting in this attempt helps nobody. An
/// STS that is away is waited for, as everything else is that a worker needs.
pub(super) fn no_session(o: &Observed, now: Timestamp) -> Option<Failure> {
    let is_refused = |t: &Trouble| matches!(t.reason, FailureReason::SessionRefused | FailureReason::ClockSkew);
    if o.trouble.as_ref().is_some_and(is_refused) { troubled(o, now) } else { None }
}

/// What the cluster did to the worker, as its failure.
pub(super) fn troubled(o: &Observed, now: Timestamp) -> Option<Failure> {
    let trouble = o.trouble.as_ref()?;
    Some(Failure::new(trouble.reason, trouble.message.clone(), None, now))
}

/// A worker that left no last word: its exit code is still a reason.
pub(super) fn crash(exit_code: Option<i32>, last_lines: &str, now: Timestamp) -> Failure {
    let (reason, what) = match exit_code {
        None => (FailureReason::WorkerCrashed, "The worker ended without a last word".to_owned()),
        Some(137) => {
            (FailureReason::WorkerCrashed, "The worker was killed (signal 9), by a person, or by the kernel for memory: its machine's kernel log tells".to_owned())
        }
        Some(64) => (FailureReason::BadJobSpec, "The worker refused its job (exit code 64)".to_owned()),
        Some(code) => {
            (FailureReason::WorkerCrashed, format!("The worker ended with exit code {code} and no last word"))
        }
    };
    let message =
        if last_lines.trim().is_empty() { what } else { format!("{what}; its log ends: {}", last_lines.trim()) };
    Failure::new(reason, message, None, now)
}

/// Refused before any worker started: only a person can change that.
pub(super) fn refused(o: &Observed, reason: Reason, message: String, now: Timestamp) -> Decision {
    let consecutive = o.status.consecutive_failures.unwrap_or(0);
    let failure = Failed { reason, message, object: None, time: now, next: WhatNext::Never, consecutive };
    decided(Step::Nothing, Standing::Failed { failure: Box::new(failure), heard: None })
}

/// An attempt failed: the policy says what follows.
pub(super) fn failed(o: &Observed, failure: Failure, now: Timestamp) -> Decision {
    let heard = o.worker.heard();
    let past = Past {
        consecutive: o.status.consecutive_failures.and_then(|c| u32::try_from(c).ok()).unwrap_or(0),
        previous: o.status.failure.as_ref().and_then(|f| failure_reason(&f.reason)),
        // What status says of this attempt counts too: an operator that was restarted may hear nothing of it any more.
        progress: if o.shown == Progressed::Yes { o.shown } else { has_progressed(heard.map(|h| &h.report)) },
    };
    let (next, consecutive) = match retry::next(o.wish.retry, past, failure.reason) {
        retry::Next::Again { after, consecutive } if later(now, after) < attempt_deadline(o, now) => {
            (WhatNext::At(later(now, after)), consecutive)
        }
        retry::Next::Again { consecutive, .. } | retry::Next::Exhausted { consecutive } => {
            (WhatNext::Exhausted, consecutive)
        }
        retry::Next::Never { consecutive } => (WhatNext::Never, consecutive),
    };
    let failure = Failed::of(failure, next, consecutive);
    let standing = Standing::Failed { failure: Box::new(failure), heard: heard.cloned().map(Box::new) };
    decided(Step::Nothing, standing)
}

pub(super) fn attempt_start(o: &Observed, now: Timestamp) -> Timestamp {
    o.status.attempt.as_ref().and_then(|a| a.start_time.as_ref()).map_or(now, |t| t.0)
}

/// When the current attempt must have ended: with the whole of `deadlines.total`, or, if a person asked for it after that, a whole
/// `deadlines.total` after its own start.
pub fn attempt_deadline(o: &Observed, now: Timestamp) -> Timestamp {
    let total = o.wish.deadlines.total;
    let whole = later(o.status.start_time.as_ref().map_or(now, |t| t.0), total);
    let began = attempt_start(o, now);
    if began >= whole { later(began, total) } else { whole }
}
