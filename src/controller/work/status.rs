//! What is written: the next status from the last one and a `Standing`, and the writing itself.
//!
//! Every write is a server-side apply of the whole status with the resourceVersion it was decided on: whoever decided on
//! something older gets a conflict and decides again. A write that would change nothing but times, rates and gauges is
//! not made; one that moves only counters waits for its turn in the write budget; a transition is written at once.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{
    Kind,
    observe::{Heard, Observed},
    queue::Limit,
    standing::{Failed, Standing, WhatNext},
    verifying::claim,
};
use crate::{
    api::{
        Cause, Course, GROUP, Stage, Status, VERSION,
        conditions::conditions,
        course::{Attempt, ObservedFailure, Queue, QueueLimit, RequestCounts},
    },
    controller::{
        FIELD_MANAGER,
        time::{later, whole_seconds},
    },
    model::progress::Completion,
};

/// The status to write for a standing of this object.
pub fn next_status<K: Kind>(object: &K, o: &Observed, standing: &Standing, now: Timestamp) -> K::Status {
    let now = whole_seconds(now);
    let mut course = next_course(o, standing, now);
    let claims = standing.claims(&K::WORDS, object.domain(standing));
    course.conditions = match claims {
        Some(claims) => conditions(&o.status.conditions, &claims, Some(o.wish.generation), now),
        None => {
            let mut same = o.status.conditions.clone();
            same.iter_mut().for_each(|c| c.observed_generation = Some(o.wish.generation));
            let beside = match standing {
                Standing::Verified { verification } => Some(claim(verification)),
                Standing::Released { .. } => object.released(),
                _ => None,
            };
            let beside = conditions(&o.status.conditions, beside.as_slice(), Some(o.wish.generation), now);
            same.retain(|c| beside.iter().all(|b| b.type_ != c.type_));
            same.extend(beside);
            same
        }
    };
    let mut next = object.status().cloned().unwrap_or_default();
    next.set_course(course);
    match standing {
        Standing::Queued { chosen, .. } => K::choose(&mut next, chosen, None),
        Standing::Beginning { chosen, id, .. } => {
            K::choose(&mut next, chosen, Some((&o.wish.uid, id)));
            next.clear_progress();
        }
        Standing::ExposingVolume { taken: Some(taken), .. } => K::taken(&mut next, taken),
        Standing::Bound => K::bound(&mut next),
        _ => {}
    }
    if let Some(heard) = standing.heard() {
        object.hear(&mut next, heard, completion(standing), now);
    }
    if let Standing::Failed { .. } = standing {
        // Nothing is under way any more.
        next.rest_gauges();
    }
    next
}

fn completion(standing: &Standing) -> Completion {
    match standing {
        Standing::Completed { .. } => Completion::Completed,
        _ => Completion::Open,
    }
}

fn next_course(o: &Observed, standing: &Standing, now: Timestamp) -> Course {
    let mut next = o.status.clone();
    next.observed_generation = o.wish.generation;
    if let Some((state, reason)) = standing.state() {
        next.state = Some(state);
        next.reason = Some(reason.as_str().to_owned());
        next.queue = None;
    }
    match standing {
        Standing::Cancelling => next.reason = Some(Cause::Cancelling.as_str().to_owned()),
        Standing::Unchanged { .. } | Standing::Released { .. } => {}
        _ => {
            next.start_time.get_or_insert(Time(now));
        }
    }
    // A request for one more attempt is answered by leaving Error, or by failing again without having left it. Out of
    // Error there is nothing to ask for. One that came while an attempt was failing stands, and is answered next.
    let is_answered = match standing {
        Standing::Unchanged { .. } | Standing::Released { .. } | Standing::Cancelling => {
            next.state != Some(Stage::Error)
        }
        Standing::Failed { .. } => o.status.state == Some(Stage::Error),
        _ => true,
    };
    if is_answered {
        next.observed_retry_request = o.wish.retry_request.clone().or(next.observed_retry_request);
    }
    if let Some(heard) = standing.heard() {
        hear(&mut next, heard);
    }
    apply(&mut next, o, standing, now);
    if let (Some(host), Some(attempt)) = (&o.host, &mut next.attempt) {
        attempt.pod_name = Some(host.pod_name.clone());
        attempt.node_name = host.node_name.clone();
    }
    next
}

fn apply(next: &mut Course, o: &Observed, standing: &Standing, now: Timestamp) {
    match standing {
        Standing::Unchanged { .. }
        | Standing::Released { .. }
        | Standing::ExposingVolume { .. }
        | Standing::StartingWorker { .. }
        | Standing::Cancelling
        | Standing::Deleting => {}
        // A condition, beside what is history.
        Standing::Verified { .. } => {}
        Standing::Waiting { .. }
        | Standing::WaitingForOldWorker
        | Standing::Working { .. }
        | Standing::Binding { .. }
        | Standing::Cancelled { .. } => next.next_retry_time = None,
        Standing::Queued { limit, .. } => {
            next.next_retry_time = None;
            let since = o.status.queue.as_ref().map_or(Time(now), |q| q.since.clone());
            next.queue = limit.map(|limit| Queue { since, limit: queue_limit(limit) });
        }
        Standing::Beginning { number, id, chosen } => {
            next.attempt = Some(Attempt {
                number: *number,
                id: id.as_str().to_owned(),
                node_name: Some(chosen.place.device.node.clone()).filter(|node| !node.is_empty()),
                start_time: Some(Time(now)),
                ..Attempt::default()
            });
            (next.requests, next.next_retry_time) = (None, None);
        }
        Standing::Completed { .. } | Standing::Bound => {
            next.completion_time = Some(Time(now));
            next.consecutive_failures = None;
            next.next_retry_time = None;
        }
        Standing::Failed { failure, .. } => fail(next, failure),
    }
}

/// What the last report says of the attempt itself.
fn hear(next: &mut Course, heard: &Heard) {
    if let Some(attempt) = &mut next.attempt {
        attempt.pod_uid = Some(heard.report.pod.clone());
        attempt.last_heard_time = Some(Time(whole_seconds(heard.at)));
        attempt.heard_by = Some(heard.by);
    }
    next.requests = Some(RequestCounts::from(&heard.report.requests));
}

fn queue_limit(limit: Limit) -> QueueLimit {
    match limit {
        Limit::Operator => QueueLimit::Operator,
        Limit::Target => QueueLimit::Target,
        Limit::Namespace => QueueLimit::Namespace,
        Limit::Volume => QueueLimit::Volume,
    }
}

/// At the rate of the last half minute; none without a rate, or beyond a year.
pub fn estimate(heard: &Heard, now: Timestamp) -> Option<Time> {
    let counters = &heard.report.counters;
    let block = heard.report.plan.as_ref()?.block_size.bytes();
    let outstanding = counters.total_blocks().saturating_sub(counters.done_blocks()).saturating_mul(block);
    let seconds = outstanding / heard.bytes_per_second.filter(|rate| *rate > 0)?;
    (seconds < 365 * 86_400).then(|| Time(later(now, std::time::Duration::from_secs(seconds))))
}

fn fail(next: &mut Course, failure: &Failed) {
    let at = match failure.next {
        WhatNext::At(at) => Some(Time(whole_seconds(at))),
        WhatNext::Exhausted | WhatNext::Never => None,
    };
    next.failure = Some(ObservedFailure {
        reason: failure.reason.as_str().to_owned(),
        message: failure.message.clone(),
        object: failure.object.clone(),
        time: Some(Time(whole_seconds(failure.time))),
        attempt: next.attempt.as_ref().map(|a| a.number),
        retryable: at.is_some(),
    });
    next.next_retry_time = at;
    next.consecutive_failures = Some(failure.consecutive);
}

/// What a write would be worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Worth {
    /// Nothing but times, rates and gauges.
    Nothing,
    /// Counters moved.
    Progress,
    Transition,
}

pub fn worth<S: Status>(before: &S, after: &S) -> Worth {
    if without_counters(before) != without_counters(after) {
        Worth::Transition
    } else if without_gauges(before) != without_gauges(after) {
        Worth::Progress
    } else {
        Worth::Nothing
    }
}

/// Without what changes by itself.
fn without_gauges<S: Status>(status: &S) -> S {
    let mut status = status.clone();
    let mut course = status.course();
    if let Some(attempt) = &mut course.attempt {
        (attempt.last_heard_time, attempt.heard_by) = (None, None);
    }
    status.set_course(course);
    status.rest_gauges();
    status
}

fn without_counters<S: Status>(status: &S) -> S {
    let mut status = without_gauges(status);
    let course = Course { requests: None, ..status.course() };
    status.set_course(course);
    status.clear_progress();
    status
}

/// What became of a write.
#[derive(Debug)]
pub enum Written<K> {
    Done(Box<K>),
    /// Decided on something older than what is there.
    Conflict,
    /// A rule of the CRD refused it: a bug of ours.
    Refused(String),
    /// The object is no more.
    Gone,
}

/// Applies a status with the resourceVersion it was decided on.
pub async fn write<K: Kind>(objects: &Api<K>, decided_on: &K, status: &K::Status) -> kube::Result<Written<K>> {
    let patch = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": K::kind(&()),
        "metadata": {"name": decided_on.name_any(), "resourceVersion": decided_on.resource_version()},
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match objects.patch_status(&decided_on.name_any(), &params, &Patch::Apply(&patch)).await {
        Ok(written) => Ok(Written::Done(Box::new(written))),
        Err(kube::Error::Api(answer)) if answer.is_conflict() => Ok(Written::Conflict),
        Err(kube::Error::Api(answer)) if answer.is_not_found() => Ok(Written::Gone),
        Err(kube::Error::Api(answer)) if answer.is_invalid() => Ok(Written::Refused(answer.message.clone())),
        Err(error) => Err(error),
    }
}
