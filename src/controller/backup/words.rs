//! What a Backup says in its own words: conditions of its domain, and texts.

use crate::{
    api::{Backup, Cause, Claim, ConditionType, Truth, conditions::find},
    controller::work::standing::{Standing, Words},
    model::{FailureReason, Phase, Report},
};

pub(super) const WORDS: Words = Words {
    planning: "The worker takes its lock and lists the volume's blocks",
    not_heard: "No report from the worker for a while; it may still be uploading",
    reading_back: "The record is being read back",
    completed: "Every block is acknowledged and the record was read back equal",
    cancelled: "Cancelled by spec.cancel; blocks that were sent stay in the bucket until they are swept",
    deleting: "The worker is being stopped; data in the bucket is retained",
    anew: "create a new Backup",
};

/// `SnapshotReady`, `DataAcknowledged`, `RecordCommitted`. A host device needs no snapshot of ours.
pub(super) fn domain(backup: &Backup, standing: &Standing) -> Vec<Claim> {
    use {Cause as C, ConditionType as T};
    let is_taken = backup.status.as_ref().is_some_and(|s| s.snapshot.is_some());
    let snapshot = match standing {
        Standing::Cancelled { .. } if is_taken => (Truth::False, C::SnapshotReleased, "Nothing reads it any more"),
        _ if is_gone(backup, standing) => (Truth::False, C::SnapshotReleased, RELEASED),
        _ if is_taken => (Truth::True, C::SnapshotTaken, "The point in time is taken"),
        Standing::ExposingVolume { taken: Some(_), .. } => {
            (Truth::True, C::SnapshotTaken, "The point in time is taken")
        }
        _ if backup.spec.source.host_device.is_none() => (Truth::False, C::NotYet, "No snapshot is ready"),
        Standing::Waiting { .. } | Standing::Cancelled { .. } => (Truth::False, C::NotYet, "Nothing is read"),
        _ => (Truth::True, C::NotNeeded, "A host device is read as it is"),
    };
    let is_acknowledged = match standing {
        Standing::Completed { .. } => true,
        _ => standing.heard().is_some_and(|h| h.report.phase >= Phase::WritingRecord && h.is_complete()),
    };
    let data = match is_acknowledged {
        true => (Truth::True, C::AllBlocksAcknowledged, "The store acknowledged every block the record names"),
        false => (Truth::False, C::BlocksOutstanding, "Not every block is acknowledged"),
    };
    let record = match standing {
        Standing::Completed { .. } => {
            (Truth::True, C::RecordReadBack, "The record was acknowledged and read back equal")
        }
        _ => (Truth::False, C::RecordOutstanding, "The record is not written and read back"),
    };
    vec![
        Claim::new(T::SnapshotReady, snapshot.0, snapshot.1, snapshot.2),
        Claim::new(T::DataAcknowledged, data.0, data.1, data.2),
        Claim::new(T::RecordCommitted, record.0, record.1, record.2),
    ]
}

const RELEASED: &str =
    "The snapshot is gone: no retry can read the same point in time, create a new Backup (deadlines.keepSnapshot)";

/// Once released it does not come back, and neither does one that an attempt did not find.
fn is_gone(backup: &Backup, standing: &Standing) -> bool {
    let written = backup.status.as_ref().and_then(|s| find(&s.conditions, ConditionType::SnapshotReady));
    let was_released = written.is_some_and(|c| c.reason == Cause::SnapshotReleased.as_str());
    let is_lost =
        matches!(standing, Standing::Failed { failure, .. } if failure.reason == FailureReason::SnapshotLost.into());
    was_released || is_lost
}

/// What is said when our snapshot is removed; the user's own stays.
pub(super) fn released(backup: &Backup) -> Option<Claim> {
    let snapshot = backup.status.as_ref()?.snapshot.as_ref()?;
    snapshot.ours.then(|| Claim::new(ConditionType::SnapshotReady, Truth::False, Cause::SnapshotReleased, RELEASED))
}

pub(super) fn brought(report: &Report) -> String {
    let p = report.backup();
    let name = match &report.outcome {
        Some(crate::model::Outcome::Completed { backup, .. }) => backup.as_str(),
        _ => "The backup",
    };
    format!(
        "{name} is complete: {} blocks, {} uploaded, {} reused, {} resumed",
        p.acknowledged_blocks, p.uploaded_blocks, p.reused_blocks, p.resumed_blocks
    )
}
