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
    observe::{Heard, Observed, TargetSeen},
    queue::Limit,
    standing::{Chosen, Failed, Standing, WhatNext},
    verifying::claim,
};
use crate::{
    api::{
        Backup, BackupState, BackupStatus, Cause, GROUP, VERSION,
        backup_status::{
            Attempt, BackupProgress, Change as Basis, ChangeSource, ObservedFailure, ObservedSource, Queue, QueueLimit,
            RequestCounts, StoredAs,
        },
        common::count,
        conditions::conditions,
        secret::backup_url,
    },
    controller::{
        FIELD_MANAGER,
        time::{later, whole_seconds},
    },
    model::{BackupName, progress::Completion},
};

/// The status to write for a standing.
pub fn next_status(o: &Observed, standing: &Standing, now: Timestamp) -> BackupStatus {
    let now = whole_seconds(now);
    let mut next = o.status.clone();
    next.observed_generation = o.wish.generation;
    if let Some((state, reason)) = standing.state() {
        next.state = Some(state);
        next.reason = Some(reason.as_str().to_owned());
        next.queue = None;
    }
    match standing {
        Standing::Cancelling => next.reason = Some(Cause::Cancelling.as_str().to_owned()),
        Standing::Unchanged { .. } => {}
        _ => {
            next.start_time.get_or_insert(Time(now));
        }
    }
    // A request for one more attempt is answered by leaving Error, or by failing again without having left it. Out of
    // Error there is nothing to ask for. One that came while an attempt was failing stands, and is answered next.
    let is_answered = match standing {
        Standing::Unchanged { .. } | Standing::Cancelling => next.state != Some(BackupState::Error),
        Standing::Failed { .. } => o.status.state == Some(BackupState::Error),
        _ => true,
    };
    if is_answered {
        next.observed_retry_request = o.wish.retry_request.clone().or(next.observed_retry_request);
    }
    apply(&mut next, o, standing, now);
    next.conditions = match standing.claims() {
        Some(claims) => conditions(&o.status.conditions, &claims, Some(o.wish.generation), now),
        None => {
            let mut same = o.status.conditions.clone();
            same.iter_mut().for_each(|c| c.observed_generation = Some(o.wish.generation));
            if let Standing::Verified { verification } = standing {
                let verdict = [claim(verification)];
                let verdict = conditions(&o.status.conditions, &verdict, Some(o.wish.generation), now);
                same.retain(|c| verdict.iter().all(|v| v.type_ != c.type_));
                same.extend(verdict);
            }
            same
        }
    };
    next
}

fn apply(next: &mut BackupStatus, o: &Observed, standing: &Standing, now: Timestamp) {
    match standing {
        Standing::Unchanged { .. } | Standing::StartingWorker { .. } | Standing::Cancelling | Standing::Deleting => {}
        // A condition, beside what is history.
        Standing::Verified { .. } => {}
        Standing::WaitingForTarget { .. } | Standing::WaitingForOldWorker => next.next_retry_time = None,
        Standing::Queued { limit, chosen } => {
            choose(next, o, chosen, None);
            next.next_retry_time = None;
            let since = o.status.queue.as_ref().map_or(Time(now), |q| q.since.clone());
            next.queue = limit.map(|limit| Queue { since, limit: queue_limit(limit) });
        }
        Standing::Beginning { number, id, chosen } => {
            choose(next, o, chosen, Some(BackupName::of_attempt(&o.wish.uid, id)));
            next.attempt = Some(Attempt {
                number: *number,
                id: id.as_str().to_owned(),
                node_name: Some(chosen.node.clone()),
                start_time: Some(Time(now)),
                ..Attempt::default()
            });
            (next.progress, next.requests, next.change, next.next_retry_time) = (None, None, None, None);
        }
        Standing::Working { heard, .. } | Standing::Cancelled { heard } => {
            if let Some(heard) = heard {
                hear(next, o, heard, Completion::Open, now);
            }
            next.next_retry_time = None;
        }
        Standing::Completed { heard, backup } => {
            hear(next, o, heard, Completion::Completed, now);
            // An attempt may have adopted the record of one before it.
            if let Some(store) = &mut next.store
                && let Some(was) = store.backup.replace(backup.to_string())
            {
                store.url = store.url.take().map(|url| url.replace(&was, backup.as_str()));
            }
            next.completion_time = Some(Time(now));
            next.consecutive_failures = None;
            next.next_retry_time = None;
        }
        Standing::Failed { failure, heard } => {
            if let Some(heard) = heard {
                hear(next, o, heard, Completion::Open, now);
            }
            fail(next, failure);
        }
    }
}

fn queue_limit(limit: Limit) -> QueueLimit {
    match limit {
        Limit::Operator => QueueLimit::Operator,
        Limit::Target => QueueLimit::Target,
        Limit::Namespace => QueueLimit::Namespace,
        Limit::Volume => QueueLimit::Volume,
    }
}

/// Resolved once, used from then on.
fn choose(next: &mut BackupStatus, o: &Observed, chosen: &Chosen, backup: Option<BackupName>) {
    next.target.get_or_insert_with(|| chosen.target.clone());
    next.source.get_or_insert_with(|| ObservedSource { path: Some(chosen.path.clone()), ..ObservedSource::default() });
    let store = next.store.get_or_insert_with(|| StoredAs { volume: chosen.volume.to_string(), ..StoredAs::default() });
    if let (Some(backup), TargetSeen::Usable(target)) = (backup, &o.target) {
        // The volume is the one chosen first, whatever the source would be called today.
        let volume = store.volume.parse().unwrap_or_else(|_| chosen.volume.clone());
        store.url = Some(backup_url(&target.resolved.location, &volume, &backup));
        store.backup = Some(backup.to_string());
    }
}

fn hear(next: &mut BackupStatus, o: &Observed, heard: &Heard, completion: Completion, now: Timestamp) {
    let report = &heard.report;
    if let Some(attempt) = &mut next.attempt {
        attempt.pod_uid = Some(report.pod.clone());
        attempt.last_heard_time = Some(Time(whole_seconds(heard.at)));
        attempt.heard_by = Some(heard.by);
    }
    if let Some(plan) = &report.plan {
        if let Some(store) = &mut next.store {
            store.block_size = Some(count(plan.block_size.bytes()));
            store.compression = Some(plan.compression.as_str().to_owned());
        }
        if let Some(source) = &mut next.source {
            source.bytes = Some(count(plan.volume_bytes));
        }
        next.change = Some(Basis {
            mode: o.wish.mode,
            parent: plan.parent.as_ref().map(ToString::to_string),
            source: Some(ChangeSource::FullComparison),
            fallback_reason: None,
        });
    }
    if report.plan.is_some() || completion == Completion::Completed {
        next.progress = Some(progress(heard, completion, now));
    }
    next.requests = Some(RequestCounts::from(&report.requests));
}

fn progress(heard: &Heard, completion: Completion, now: Timestamp) -> BackupProgress {
    let p = &heard.report.progress;
    let is_open = completion == Completion::Open;
    BackupProgress {
        // Completed has a total even if it is none: a volume of holes.
        total_blocks: Some(count(p.total_blocks)),
        in_flight_blocks: if is_open { count(p.in_flight_blocks) } else { 0 },
        bytes_per_second: heard.bytes_per_second.filter(|_| is_open).map(count),
        estimated_completion_time: estimate(heard, now).filter(|_| is_open),
        last_acknowledged_time: p.last_acknowledged_time.map(|t| Time(whole_seconds(t))),
        ..BackupProgress::of(p, heard.report.phase, completion)
    }
}

/// At the rate of the last half minute; none without a rate, or beyond a year.
fn estimate(heard: &Heard, now: Timestamp) -> Option<Time> {
    let p = &heard.report.progress;
    let block = heard.report.plan.as_ref()?.block_size.bytes();
    let outstanding = p.total_blocks.saturating_sub(p.acknowledged_blocks).saturating_mul(block);
    let seconds = outstanding / heard.bytes_per_second.filter(|rate| *rate > 0)?;
    (seconds < 365 * 86_400).then(|| Time(later(now, std::time::Duration::from_secs(seconds))))
}

fn fail(next: &mut BackupStatus, failure: &Failed) {
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
    if let Some(progress) = &mut next.progress {
        // Nothing is under way any more.
        (progress.in_flight_blocks, progress.bytes_per_second, progress.estimated_completion_time) = (0, None, None);
    }
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

pub fn worth(before: &BackupStatus, after: &BackupStatus) -> Worth {
    if without_counters(before) != without_counters(after) {
        Worth::Transition
    } else if without_gauges(before) != without_gauges(after) {
        Worth::Progress
    } else {
        Worth::Nothing
    }
}

/// Without what changes by itself.
fn without_gauges(status: &BackupStatus) -> BackupStatus {
    let mut status = status.clone();
    if let Some(attempt) = &mut status.attempt {
        (attempt.last_heard_time, attempt.heard_by) = (None, None);
    }
    if let Some(progress) = &mut status.progress {
        progress.in_flight_blocks = 0;
        (progress.bytes_per_second, progress.estimated_completion_time) = (None, None);
    }
    status
}

fn without_counters(status: &BackupStatus) -> BackupStatus {
    BackupStatus { progress: None, requests: None, ..without_gauges(status) }
}

/// What became of a write.
#[derive(Debug)]
pub enum Written {
    Done(Box<Backup>),
    /// Decided on something older than what is there.
    Conflict,
    /// A rule of the CRD refused it: a bug of ours.
    Refused(String),
    /// The object is no more.
    Gone,
}

/// Applies a status with the resourceVersion it was decided on.
pub async fn write(backups: &Api<Backup>, decided_on: &Backup, status: &BackupStatus) -> kube::Result<Written> {
    let patch = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "Backup",
        "metadata": {"name": decided_on.name_any(), "resourceVersion": decided_on.resource_version()},
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match backups.patch_status(&decided_on.name_any(), &params, &Patch::Apply(&patch)).await {
        Ok(written) => Ok(Written::Done(Box::new(written))),
        Err(kube::Error::Api(answer)) if answer.is_conflict() => Ok(Written::Conflict),
        Err(kube::Error::Api(answer)) if answer.is_not_found() => Ok(Written::Gone),
        Err(kube::Error::Api(answer)) if answer.is_invalid() => Ok(Written::Refused(answer.message.clone())),
        Err(error) => Err(error),
    }
}
