//! What a Restore says in its own words: conditions of its domain, and texts.

use crate::{
    api::{Cause, Claim, ConditionType, Truth},
    controller::work::standing::{Standing, Words},
    model::{Phase, Report},
};

pub(super) const WORDS: Words = Words {
    planning: "The worker reads the backup's record and opens the device",
    not_heard: "No report from the worker for a while; it may still be restoring",
    reading_back: "A sample is being read back from the device",
    completed: "Every block's checksum held and the device put them on stable storage",
    cancelled: "Cancelled by spec.cancel; what is on the device is no whole volume: do not use it",
    deleting: "The worker is being stopped; what it wrote stays",
    anew: "create a new Restore",
};

/// `VolumeReady`, `DataRestored`, `DataFlushed`. There is no claim to be bound for a host device.
pub(super) fn domain(standing: &Standing) -> Vec<Claim> {
    use {Cause as C, ConditionType as T};
    let report = standing.heard().map(|heard| &heard.report);
    let volume = match standing {
        Standing::Waiting { .. } | Standing::Cancelled { .. } => (Truth::False, C::NotYet, "Nothing is written"),
        _ => (Truth::True, C::NotNeeded, "A host device is written as it is"),
    };
    let is_completed = matches!(standing, Standing::Completed { .. });
    let is_restored = standing.heard().is_some_and(|h| h.is_complete());
    let lost = report.map_or(0, |r| r.counters.restore().failed_blocks);
    let data = if is_completed || is_restored {
        (
            Truth::True,
            C::AllBlocksRestored,
            "Every block of the backup is on the device, and its checksum held".to_owned(),
        )
    } else if lost > 0 {
        let text = format!("{lost} blocks are missing or damaged in the bucket: status.damaged names the first");
        (Truth::False, C::BlocksLost, text)
    } else {
        (Truth::False, C::BlocksOutstanding, "Not every block is on the device".to_owned())
    };
    // The sample is read back after the flush.
    let is_flushed = is_completed || report.is_some_and(|r| r.phase == Phase::ReadingBack);
    let flushed = match is_flushed {
        true => (Truth::True, C::Flushed, "The device put everything on stable storage"),
        false => (Truth::False, C::FlushOutstanding, "The device was not flushed"),
    };
    vec![
        Claim::new(T::VolumeReady, volume.0, volume.1, volume.2),
        Claim::new(T::DataRestored, data.0, data.1, data.2),
        Claim::new(T::DataFlushed, flushed.0, flushed.1, flushed.2),
    ]
}

pub(super) fn brought(report: &Report) -> String {
    let p = report.counters.restore();
    format!(
        "The volume is restored: {} blocks, {} fetched, {} found on the device",
        p.restored_blocks(),
        p.written_blocks,
        p.reused_blocks
    )
}
