//! What a Restore says in its own words: conditions of its domain, and texts.

use crate::{
    api::{Cause, Claim, ConditionType, Restore, Truth},
    controller::work::standing::{Standing, Words},
    model::{Phase, Report},
};

pub(super) const WORDS: Words = Words {
    planning: "The worker reads the backup's record and opens the device",
    not_heard: "No report from the worker for a while; it may still be restoring",
    reading_back: "A sample is being read back from the device",
    completed: "Every block's checksum held and the device put them on stable storage",
    cancelled: "Cancelled by spec.cancel; what was written is no whole volume: of a claim it is removed, of a device or file do not use it, and remove .tidemark-<uid>.part if a new file was to be made",
    deleting: "The worker is being stopped; what it wrote for a claim is removed, a device stays as it is, a new file as .tidemark-<uid>.part",
    anew: "create a new Restore",
};

/// `VolumeReady`, `DataRestored`, `DataFlushed`, and for a claim `VolumeBound`.
pub(super) fn domain(restore: &Restore, standing: &Standing) -> Vec<Claim> {
    use {Cause as C, ConditionType as T};
    let report = standing.heard().map(|heard| &heard.report);
    let is_claim = restore.spec.persistent_volume_claim.is_some();
    let is_written = matches!(standing, Standing::Completed { .. } | Standing::Binding { .. } | Standing::Bound);
    let volume = match standing {
        Standing::Working { .. } if is_claim => (Truth::True, C::VolumeMade, "A worker has the volume"),
        _ if is_claim && is_written => (Truth::True, C::VolumeMade, "The volume is made and written"),
        _ if is_claim => (Truth::False, C::NotYet, "No volume is made for the claim"),
        Standing::Waiting { .. } | Standing::Cancelled { .. } => (Truth::False, C::NotYet, "Nothing is written"),
        _ => (Truth::True, C::NotNeeded, "A host device is written as it is"),
    };
    let is_restored = standing.heard().is_some_and(|h| h.is_complete());
    let lost = report.map_or(0, |r| r.counters.restore().failed_blocks);
    let data = if is_written || is_restored {
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
    let is_flushed = is_written || report.is_some_and(|r| r.phase == Phase::ReadingBack);
    let flushed = match is_flushed {
        true => (Truth::True, C::Flushed, "The device put everything on stable storage"),
        false => (Truth::False, C::FlushOutstanding, "The device was not flushed"),
    };
    let bound = match standing {
        Standing::Bound => (Truth::True, C::ClaimBound, "The claim is bound to the volume, and both are the user's"),
        Standing::Binding { .. } => (Truth::False, C::BindingVolume, "The volume is being given to its claim"),
        _ => (Truth::False, C::NotYet, "The claim is made when the volume is written"),
    };
    let bound = Claim::new(T::VolumeBound, bound.0, bound.1, bound.2);
    let mut claims = vec![
        Claim::new(T::VolumeReady, volume.0, volume.1, volume.2),
        Claim::new(T::DataRestored, data.0, data.1, data.2),
        Claim::new(T::DataFlushed, flushed.0, flushed.1, flushed.2),
    ];
    claims.extend(is_claim.then_some(bound));
    claims
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
