//! The laws over every small world of a Backup. The worlds are `work::worlds`'.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::{
    api::{
        Backup, BackupState, BackupStatus,
        backup_status::{BackupProgress, ObservedFailure, StoredAs},
    },
    controller::{
        time::later,
        work::{
            decide::{Step, decide},
            observe::{Heard, Observed, WorkerSeen},
            standing::Standing,
            worlds::{Settable, Worlds, attempt, heard, id, observed, start},
        },
    },
    model::{BackupName, Counters, Outcome, Phase, Progress},
};

impl Settable for Backup {
    fn set_status(&mut self, status: BackupStatus) {
        self.status = Some(status);
    }
}

/// Every status a Backup can have been left with.
fn statuses() -> Vec<BackupStatus> {
    use BackupState::*;
    let with = |state, reason: &str| BackupStatus {
        observed_generation: 2,
        state: Some(state),
        reason: Some(reason.into()),
        start_time: Some(Time(start())),
        ..BackupStatus::default()
    };
    let running = |state, reason: &str, acknowledged: Option<i64>| BackupStatus {
        attempt: Some(attempt()),
        store: Some(StoredAs {
            volume: "host-0".into(),
            backup: Some("backup-0".into()),
            url: Some("s3://b@r/?backup=backup-0&volume=host-0".into()),
            ..StoredAs::default()
        }),
        progress: acknowledged.map(|n| BackupProgress {
            total_blocks: Some(4),
            acknowledged_blocks: n,
            uploaded_blocks: n,
            percent: if state == Completed { 100 } else { i32::try_from(n * 25).unwrap_or(0).min(99) },
            ..BackupProgress::default()
        }),
        ..with(state, reason)
    };
    let failed = |retry: Option<jiff::Timestamp>| BackupStatus {
        failure: Some(ObservedFailure {
            reason: "UploadFailed".into(),
            time: Some(Time(start())),
            ..Default::default()
        }),
        next_retry_time: retry.map(Time),
        consecutive_failures: Some(1),
        ..running(Error, "UploadFailed", Some(2))
    };
    vec![
        BackupStatus::default(),
        with(Pending, "WaitingForTarget"),
        with(Pending, "Queued"),
        running(Pending, "Queued", Some(2)),
        running(Snapshotting, "WaitingForOldWorker", Some(2)),
        running(Snapshotting, "StartingWorker", None),
        running(InProgress, "Planning", None),
        running(InProgress, "Uploading", Some(2)),
        running(Committing, "WritingRecord", Some(4)),
        running(Completed, "Completed", Some(4)),
        running(Cancelled, "CancelledByUser", Some(2)),
        failed(None),
        failed(Some(start())),
        failed(Some(later(start(), Duration::from_secs(900)))),
    ]
}

/// The status of a Completed Backup.
pub(super) fn completed() -> BackupStatus {
    let completed = statuses().into_iter().find(|s| s.state == Some(BackupState::Completed)).expect("one is");
    BackupStatus { completion_time: Some(Time(start())), ..completed }
}

fn backup(status: BackupStatus) -> Backup {
    let device = json!({"hostDevice": {"path": "/dev/a", "nodeName": "n", "name": "pg"}});
    let mut backup = Backup::new("b", serde_json::from_value(json!({"source": device})).expect("valid"));
    backup.status = Some(status);
    backup
}

fn report(phase: Phase, acknowledged: u64, outcome: Option<Outcome>) -> Heard {
    let progress = Progress {
        total_blocks: 4,
        acknowledged_blocks: acknowledged,
        uploaded_blocks: acknowledged,
        ..Progress::default()
    };
    heard(phase, Counters::Backup(progress), outcome)
}

fn worlds() -> Worlds<Backup> {
    let completed = Some(Outcome::Completed { backup: BackupName::of_marker(&id(1)), adopted: false });
    Worlds {
        objects: statuses().into_iter().map(backup).collect(),
        reports: vec![
            report(Phase::Planning, 2, None),
            report(Phase::Uploading, 3, None),
            report(Phase::WritingRecord, 4, None),
            report(Phase::Ended, 4, completed),
            report(Phase::Ended, 3, Some(Outcome::Failed)),
            report(Phase::Ended, 2, Some(Outcome::Cancelled)),
        ],
    }
}

#[test]
fn law_3_and_law_8_hold_in_every_small_world() {
    worlds().hold_laws_3_and_8();
}

#[test]
fn law_4_completed_only_on_the_word_of_a_worker_that_read_the_record_back() {
    worlds().hold_law_4();
}

#[test]
fn law_5_nothing_open_is_left_without_a_next_look_and_silence_has_an_end() {
    worlds().hold_law_5();
}

#[test]
fn law_6_an_error_with_retries_left_begins_again_when_its_time_comes() {
    let failed = backup(statuses().into_iter().nth(12).expect("failed, and due"));
    let o = observed(&failed);
    let decision = decide(&o, later(start(), Duration::from_secs(1)));
    assert!(matches!(decision.standing, Standing::Beginning { number: 2, .. }), "{decision:#?}");
    let alive = Observed { worker: WorkerSeen::Alive { heard: None, silent_for: Duration::ZERO }, ..o };
    let decision = decide(&alive, later(start(), Duration::from_secs(1)));
    assert_eq!((decision.step, decision.standing), (Step::StopWorker, Standing::WaitingForOldWorker));
}

#[test]
fn a_second_pass_over_an_unchanged_world_writes_nothing() {
    worlds().settle();
}
