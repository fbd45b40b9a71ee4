//! The laws over every small world of a Backup. The worlds are `work::worlds`'.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::{
    api::{
        Backup, BackupState, BackupStatus, Cause, Status,
        backup_status::{BackupProgress, ObservedFailure, ObservedSnapshot, StoredAs},
        conditions::conditions,
    },
    controller::{
        runner::trouble::Trouble,
        snapshot::remove::Removal,
        time::later,
        work::{
            Kind,
            decide::{Step, decide},
            observe::{Heard, Observed, WorkerSeen},
            standing::Standing,
            status::{Worth, next_status, worth},
            volume::VolumeSeen,
            worlds::{Settable, Worlds, attempt, heard, id, observed, start},
        },
    },
    model::{BackupName, Counters, FailureReason, Outcome, Phase, Progress, Verdict, Verification, VerifyDepth},
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
        volumes: vec![VolumeSeen::Idle],
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
fn law_11_a_worker_that_is_refused_a_session_is_a_failure_and_one_that_waits_for_it_says_so() {
    let starting = statuses().into_iter().find(|s| s.reason.as_deref() == Some("StartingWorker")).expect("one");
    let now = later(start(), Duration::from_secs(1));
    let without = |reason| {
        let trouble = Trouble { reason, message: "AssumeRole at http://a: what was seen; the cure".into() };
        decide(&Observed { trouble: Some(trouble), ..observed(&backup(starting.clone())) }, now)
    };
    for reason in [FailureReason::SessionRefused, FailureReason::ClockSkew] {
        let decision = without(reason);
        assert_eq!(decision.step, Step::Nothing, "{decision:#?}");
        let Standing::Failed { failure, .. } = decision.standing else { panic!("{decision:#?}") };
        assert_eq!(failure.reason, reason.into());
        assert!(failure.message.contains("the cure"), "{failure:#?}");
    }
    for reason in [FailureReason::StoreUnavailable, FailureReason::Throttled] {
        let decision = without(reason);
        assert_eq!(decision.step, Step::StartWorker, "STS is asked again: {decision:#?}");
        let problem = Some(format!("{reason}: AssumeRole at http://a: what was seen; the cure"));
        assert_eq!(decision.standing, Standing::StartingWorker { problem });
    }
}

#[test]
fn a_second_pass_over_an_unchanged_world_writes_nothing() {
    worlds().settle();
}

/// A completed Backup whose verification was asked for, with a worker that said this of it.
fn verified_world(verify: VerifyDepth, worker: WorkerSeen) -> (Backup, Observed) {
    let object = backup(completed());
    let mut o = observed(&object);
    (o.wish.verify, o.worker) = (verify, worker);
    (object, o)
}

fn said(verdict: Verdict) -> Heard {
    let backup = BackupName::of_attempt("uid", &id(1));
    let mut heard = report(Phase::Ended, 4, Some(Outcome::Completed { backup, adopted: false }));
    heard.report.verification = Some(Verification::new(verdict, "what was seen"));
    heard
}

#[test]
fn law_8_a_verdict_is_told_beside_completed_and_changes_nothing_else() {
    let alive = |verdict| WorkerSeen::Alive { heard: Some(said(verdict)), silent_for: Duration::ZERO };
    let silent = WorkerSeen::Alive { heard: Some(said(Verdict::Running)), silent_for: Duration::from_secs(61) };
    let ended = |verdict| WorkerSeen::Ended { heard: Some(said(verdict)), exit_code: Some(0), last_lines: "".into() };
    let now = later(start(), Duration::from_secs(5));
    for (worker, expected) in [
        (alive(Verdict::Running), None),
        (alive(Verdict::Passed), Some(("True", "VerificationPassed"))),
        (alive(Verdict::Damaged), Some(("False", "DamageFound"))),
        (ended(Verdict::NotDone), Some(("Unknown", "VerificationNotDone"))),
        (ended(Verdict::Running), Some(("Unknown", "VerificationNotDone"))),
        (WorkerSeen::Absent, Some(("Unknown", "VerificationNotDone"))),
        (silent, Some(("Unknown", "VerificationNotDone"))),
    ] {
        let (object, o) = verified_world(VerifyDepth::Full, worker);
        let decision = decide(&o, now);
        let next = next_status(&object, &o, &decision.standing, now);
        let seen = next.conditions.iter().find(|c| c.type_ == "Verified");
        assert_eq!(seen.map(|c| (c.status.as_str(), c.reason.as_str())), expected, "{o:#?}");
        let same = BackupStatus { conditions: vec![], observed_generation: 0, ..next.clone() };
        assert_eq!(same, BackupStatus { conditions: vec![], observed_generation: 0, ..completed() }, "{next:#?}");
        // Written once: the next pass looks only after what is left of the worker.
        let again = Observed { status: next.course(), ..o };
        let settled = next_status(&backup(next.clone()), &again, &decide(&again, now).standing, now);
        assert_eq!(worth(&next, &settled), Worth::Nothing, "{settled:#?}");
        let note = decision.standing.note(&Backup::WORDS, Backup::brought);
        assert_eq!(note.is_some(), expected.is_some(), "{decision:#?}");
    }
}

#[test]
fn a_worker_that_verifies_is_left_alone_and_one_that_was_not_asked_to_is_not() {
    let hours_later = later(start(), Duration::from_secs(5 * 3600));
    let alive = WorkerSeen::Alive { heard: Some(said(Verdict::Running)), silent_for: Duration::ZERO };
    let verifying = decide(&verified_world(VerifyDepth::Full, alive.clone()).1, hours_later);
    assert_eq!(verifying.step, Step::Nothing, "{verifying:#?}");
    let unasked = decide(&verified_world(VerifyDepth::None, alive.clone()).1, hours_later);
    assert_eq!(unasked.step, Step::StopWorker, "{unasked:#?}");
    let (_, mut cancelled) = verified_world(VerifyDepth::Full, alive);
    cancelled.wish.cancel = true;
    assert_eq!(decide(&cancelled, hours_later).step, Step::StopWorker);
}

/// The snapshot that a retry would read goes with `deadlines.keepSnapshot`: that is told once, and for good.
#[test]
fn law_6_a_point_in_time_that_was_given_up_is_not_called_ready() {
    let with_snapshot = |mut status: BackupStatus, ours| {
        status.snapshot = Some(ObservedSnapshot { ours, ..ObservedSnapshot::default() });
        let mut object = backup(status);
        object.spec.source = serde_json::from_value(json!({"persistentVolumeClaim": {"name": "pg"}})).expect("a claim");
        object
    };
    let ready = |status: &BackupStatus| {
        let seen = status.conditions.iter().find(|c| c.type_ == "SnapshotReady");
        seen.map(|c| (c.status.clone(), c.reason.clone()))
    };
    let said = |status: &str, reason: &str| Some((status.to_owned(), reason.to_owned()));
    let now = later(start(), Duration::from_secs(100_000));
    let failed = statuses().into_iter().nth(11).expect("failed, without another attempt");
    let object = with_snapshot(failed, true);
    let claims = object.domain(&Standing::Cancelling);
    let taken = BackupStatus {
        conditions: conditions(&[], &claims, Some(2), start()),
        ..object.status.clone().expect("it has one")
    };
    assert_eq!(ready(&taken), said("True", "SnapshotTaken"));
    let object = with_snapshot(taken, true);
    let removing = |kept_until| VolumeSeen::Removing { removal: Removal::Waiting("it goes".into()), kept_until };
    let kept = Observed { volume: removing(Some(later(now, Duration::from_secs(1)))), ..observed(&object) };
    let next = next_status(&object, &kept, &decide(&kept, now).standing, now);
    assert_eq!(ready(&next), said("True", "SnapshotTaken"), "{next:#?}");
    let released = Observed { volume: removing(None), ..observed(&object) };
    let decision = decide(&released, now);
    let next = next_status(&object, &released, &decision.standing, now);
    assert_eq!(ready(&next), said("False", "SnapshotReleased"), "{decision:#?}");
    // It is told once, and a retry does not bring it back.
    let mut after = object.clone();
    after.set_status(next.clone());
    let again = Observed { status: next.course(), ..released.clone() };
    assert_eq!(worth(&next, &next_status(&after, &again, &decision.standing, now)), Worth::Nothing);
    let claims = after.domain(&Standing::WaitingForOldWorker);
    assert!(claims.iter().any(|c| c.reason == Cause::SnapshotReleased.into()), "{claims:#?}");
    // A snapshot of the user's stays where it is.
    let theirs = with_snapshot(object.status.clone().expect("it has one"), false);
    let next = next_status(&theirs, &released, &decision.standing, now);
    assert_eq!(ready(&next), said("True", "SnapshotTaken"));
}
