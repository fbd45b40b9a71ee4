//! The fields of a Restore's status that are its own: backup, target, volume, progress, damaged.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::{
    api::{
        RestoreStatus, Status,
        common::count,
        restore_status::{ChosenBackup, DamagedBlock, FilledVolume, RestoreProgress},
    },
    controller::{
        time::whole_seconds,
        work::{observe::Heard, standing::Chosen, status::estimate},
    },
    model::{AttemptId, limits, progress::Completion},
};

/// Resolved once, used from then on; what was damaged is another attempt's to find.
pub(super) fn choose(next: &mut RestoreStatus, chosen: &Chosen, begins: Option<(&str, &AttemptId)>) {
    let place = &chosen.place;
    next.target.get_or_insert_with(|| chosen.target.clone());
    if let Some(record) = &place.record {
        next.backup.get_or_insert_with(|| ChosenBackup {
            name: record.name.clone(),
            uid: record.uid.clone(),
            volume: place.volume.to_string(),
            backup: record.backup.to_string(),
            url: record.url.clone(),
            snapshot_time: record.snapshot_time.clone(),
        });
        next.volume.get_or_insert_with(|| FilledVolume {
            path: place.filled.is_none().then(|| place.device.path.display().to_string()),
            bytes: record.bytes,
            block_size: None,
            claim: place.filled.as_ref().map(|filled| filled.form.clone()),
        });
    }
    if begins.is_some() {
        next.damaged.clear();
    }
}

/// The claim is bound to the volume that was written.
pub(super) fn bound(next: &mut RestoreStatus) {
    next.rest_gauges();
    if let Some(progress) = &mut next.progress {
        progress.percent = 100;
    }
}

pub(super) fn hear(next: &mut RestoreStatus, heard: &Heard, completion: Completion, now: Timestamp) {
    let report = &heard.report;
    if let (Some(plan), Some(volume)) = (&report.plan, &mut next.volume) {
        volume.bytes = Some(count(plan.volume_bytes));
        volume.block_size = Some(count(plan.block_size.bytes()));
    }
    if report.plan.is_some() || completion == Completion::Completed {
        let before = next.progress.take();
        next.progress = Some(progress(heard, before, completion, now));
    }
    next.damaged = report.damaged.iter().take(limits::DAMAGED_LISTED_MAX).map(DamagedBlock::from).collect();
}

fn progress(heard: &Heard, before: Option<RestoreProgress>, completion: Completion, now: Timestamp) -> RestoreProgress {
    let is_open = completion == Completion::Open;
    let counted = RestoreProgress::of(&heard.report.counters.restore(), heard.report.plan.as_ref(), completion);
    // The report's own time: of the report that first said so many.
    let last_restored_time = match before {
        Some(before) if before.restored_blocks == counted.restored_blocks => before.last_restored_time,
        _ if counted.restored_blocks == 0 => None,
        _ => Some(Time(whole_seconds(heard.report.time))),
    };
    RestoreProgress {
        bytes_per_second: heard.bytes_per_second.filter(|_| is_open).map(count),
        estimated_completion_time: estimate(heard, now).filter(|_| is_open),
        last_restored_time,
        ..counted
    }
}
