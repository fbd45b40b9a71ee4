//! The fields of a Backup's status that are its own: target, source, store, progress, change.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::{
    api::{
        BackupStatus,
        backup::BackupMode,
        backup_status::{BackupProgress, Change, ChangeSource, ObservedSnapshot, ObservedSource, StoredAs},
        common::count,
        secret::backup_url,
    },
    controller::{
        snapshot::expose::Taken,
        time::whole_seconds,
        work::{observe::Heard, standing::Chosen, status::estimate},
    },
    model::{AttemptId, BackupName, Outcome, progress::Completion},
};

/// Resolved once, used from then on; the record's name is that of the attempt that begins.
pub(super) fn choose(next: &mut BackupStatus, chosen: &Chosen, begins: Option<(&str, &AttemptId)>) {
    let place = &chosen.place;
    next.target.get_or_insert_with(|| chosen.target.clone());
    next.source.get_or_insert_with(|| match &place.facts {
        Some(facts) => facts.as_ref().clone(),
        None => ObservedSource { path: Some(place.device.path.display().to_string()), ..ObservedSource::default() },
    });
    let store = next.store.get_or_insert_with(|| StoredAs { volume: place.volume.to_string(), ..StoredAs::default() });
    if let Some((uid, attempt)) = begins {
        let backup = BackupName::of_attempt(uid, attempt);
        store.url = Some(backup_url(&chosen.location, &place.volume, &backup));
        store.backup = Some(backup.to_string());
        next.change = None;
    }
}

/// The point in time, once: every later attempt reads the same one or none.
pub(super) fn taken(next: &mut BackupStatus, taken: &Taken) {
    next.snapshot.get_or_insert_with(|| ObservedSnapshot {
        namespace: Some(taken.namespace.clone()),
        name: taken.name.clone(),
        uid: Some(taken.uid.clone()),
        creation_time: Some(Time(whole_seconds(taken.created))),
        ours: taken.ours,
    });
}

pub(super) fn hear(
    next: &mut BackupStatus,
    mode: BackupMode,
    heard: &Heard,
    (completion, now): (Completion, Timestamp),
) {
    let report = &heard.report;
    if let Some(plan) = &report.plan {
        if let Some(store) = &mut next.store {
            store.block_size = Some(count(plan.block_size.bytes()));
            store.compression = Some(plan.compression.as_str().to_owned());
        }
        if let Some(source) = &mut next.source {
            source.bytes = Some(count(plan.volume_bytes));
        }
        next.change = Some(Change {
            mode,
            parent: plan.parent.as_ref().map(ToString::to_string),
            source: Some(ChangeSource::FullComparison),
            fallback_reason: None,
        });
    }
    if report.plan.is_some() || completion == Completion::Completed {
        next.progress = Some(progress(heard, completion, now));
    }
    // An attempt may have adopted the record of one before it.
    if let (Some(Outcome::Completed { backup, .. }), Some(store)) = (&report.outcome, &mut next.store)
        && let Some(was) = store.backup.replace(backup.to_string())
    {
        store.url = store.url.take().map(|url| url.replace(&was, backup.as_str()));
    }
}

fn progress(heard: &Heard, completion: Completion, now: Timestamp) -> BackupProgress {
    let p = &heard.report.backup();
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
