//! The laws of `decide` and `next_status`, over every small world: each state a Backup can be in, crossed with each wish,
//! target, place in the queue and worker. A world that breaks a law is printed whole.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    decide::{Decision, Step, decide},
    observe::{
        Deadlines, Finalizer, Heard, Keys, Life, Observed, Refusal, SourceSeen, Target, TargetSeen, Wish, WorkerSeen,
    },
    queue::{Limit, Slot, TargetLimits},
    retry::Policy,
    standing::Standing,
    status::{Worth, next_status, worth},
};
use crate::{
    api::{
        BackupState, BackupStatus, Cause, TargetKind,
        backup::BackupMode,
        backup_status::{Attempt, BackupProgress, HeardBy, ObservedFailure, StoredAs},
        common::ChosenTarget,
    },
    controller::{target::resolve::Resolved, time::later},
    model::{
        AttemptId, BackupName, BlockSize, Failure, FailureReason, Outcome, Phase, Progress, Report, Requests, Verdict,
        Verification, VerifyDepth, VolumeName,
        report::{Plan, REPORT_VERSION},
    },
};

fn start() -> Timestamp {
    Timestamp::from_second(1_790_000_000).expect("in range")
}

fn id(n: u64) -> AttemptId {
    AttemptId::new(n, [n as u8; 10])
}

fn wish() -> Wish {
    Wish {
        uid: "3f0c2d1e".into(),
        namespace: "tidemark".into(),
        name: "b".into(),
        generation: 3,
        created: start(),
        life: Life::Wanted,
        finalizer: Finalizer::Present,
        cancel: false,
        retry_request: None,
        mode: BackupMode::Incremental,
        verify: VerifyDepth::None,
        retry: Policy { limit: 2, backoff: Duration::from_secs(30), max_backoff: Duration::from_secs(900) },
        deadlines: Deadlines {
            start: Duration::from_secs(1800),
            stall: Duration::from_secs(60),
            total: Duration::from_secs(7 * 86_400),
        },
        concurrency: None,
        bytes_per_second: None,
        wants_data_deleted: false,
    }
}

fn source() -> SourceSeen {
    SourceSeen {
        volume: VolumeName::of_host_device("n", "pg"),
        path: "/dev/a".into(),
        root: "/dev".into(),
        node: "n".into(),
    }
}

fn target() -> TargetSeen {
    TargetSeen::Usable(Box::new(Target {
        chosen: ChosenTarget { kind: TargetKind::ClusterBackupTarget, name: "t".into(), uid: "u".into() },
        resolved: Resolved {
            location: Default::default(),
            credentials: Default::default(),
            compression: Default::default(),
            block_size: BlockSize::Mi2,
            limits: TargetLimits { total: 1, per_namespace: 1 },
            bytes_per_second: None,
            notes: vec![],
        },
        shared_with_clusters: false,
    }))
}

fn report(phase: Phase, acknowledged: u64, outcome: Option<Outcome>) -> Heard {
    let failure = matches!(outcome, Some(Outcome::Failed))
        .then(|| Failure::new(FailureReason::UploadFailed, "m", Some("k".into()), start()));
    Heard {
        report: Report {
            v: REPORT_VERSION,
            attempt: id(1),
            pod: "p".into(),
            sequence: 9,
            time: start(),
            phase,
            progress: Progress {
                total_blocks: 4,
                acknowledged_blocks: acknowledged,
                uploaded_blocks: acknowledged,
                ..Progress::default()
            },
            requests: Requests::default(),
            plan: Some(Plan {
                volume_bytes: 4 * BlockSize::Mi2.bytes(),
                block_size: BlockSize::Mi2,
                compression: Default::default(),
                parent: None,
            }),
            failure,
            outcome,
            verification: None,
        },
        by: HeardBy::Http,
        at: start(),
        throttled: false,
        bytes_per_second: Some(1),
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
        attempt: Some(Attempt {
            number: 1,
            id: id(1).as_str().into(),
            start_time: Some(Time(start())),
            ..Attempt::default()
        }),
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
    let failed = |retry: Option<Timestamp>| BackupStatus {
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

fn workers() -> Vec<WorkerSeen> {
    let backup = BackupName::of_marker(&id(1));
    let completed = Some(Outcome::Completed { backup, adopted: false });
    let heard = [
        None,
        Some(report(Phase::Planning, 2, None)),
        Some(report(Phase::Uploading, 3, None)),
        Some(report(Phase::WritingRecord, 4, None)),
        Some(report(Phase::Ended, 4, completed)),
        Some(report(Phase::Ended, 3, Some(Outcome::Failed))),
        Some(report(Phase::Ended, 2, Some(Outcome::Cancelled))),
    ];
    let alive = |h: &Option<Heard>, s| WorkerSeen::Alive { heard: h.clone(), silent_for: Duration::from_secs(s) };
    let ended = |h: &Option<Heard>, c| WorkerSeen::Ended { heard: h.clone(), exit_code: c, last_lines: "x".into() };
    let mut all = vec![WorkerSeen::Absent];
    for h in &heard {
        all.extend([alive(h, 0), alive(h, 15), alive(h, 61), ended(h, None), ended(h, Some(137))]);
    }
    all
}

fn wishes() -> Vec<Wish> {
    let mut all = vec![];
    for life in [Life::Wanted, Life::Deleting] {
        for cancel in [false, true] {
            for finalizer in [Finalizer::Present, Finalizer::Absent] {
                for retry_request in [None, Some("again".to_owned())] {
                    all.push(Wish { life, cancel, finalizer, retry_request, ..wish() });
                }
                if life == Life::Wanted {
                    all.push(Wish { life, cancel, finalizer, verify: VerifyDepth::Full, ..wish() });
                }
            }
        }
    }
    all
}

/// Every world, at every interesting moment.
fn worlds(mut check: impl FnMut(&Observed, Timestamp)) -> usize {
    let refusal = |cause| Refusal::new(cause, "m");
    let places = [
        (Ok(source()), target()),
        (Ok(source()), TargetSeen::Waiting("m".into())),
        (Ok(source()), TargetSeen::Refused(refusal(Cause::TargetNotAllowed))),
        (Err(refusal(Cause::SourceNotSupported)), target()),
    ];
    let moments = [60, 3600, 30 * 86_400].map(|s| later(start(), Duration::from_secs(s)));
    let workers: Vec<Arc<WorkerSeen>> = workers().into_iter().map(Arc::new).collect();
    let mut count = 0;
    for status in statuses() {
        for wish in wishes() {
            for (i, worker) in workers.iter().enumerate() {
                // A worker is that of an attempt.
                if i > 0 && status.attempt.is_none() {
                    continue;
                }
                for (source, target) in &places {
                    {
                        for slot in [Slot::Gathering, Slot::Waiting(Limit::Target), Slot::Held] {
                            let o = Observed {
                                wish: wish.clone(),
                                status: status.clone(),
                                source: source.clone(),
                                target: target.clone(),
                                slot,
                                worker: (**worker).clone(),
                                keys: Keys::Same,
                                fresh_id: id(7),
                            };
                            moments.iter().for_each(|now| check(&o, *now));
                            count += 1;
                        }
                    }
                }
            }
        }
    }
    count
}

#[test]
fn law_3_and_law_8_hold_in_every_small_world() {
    let visited = worlds(|o, now| {
        let Decision { step, standing } = decide(o, now);
        let next = next_status(o, &standing, now);
        let world = || format!("{o:#?}\nat {now}\n{step:?} {standing:#?}\n{next:#?}");
        let was = o.status.state;
        if let Some(history @ (BackupState::Completed | BackupState::Cancelled)) = was {
            let stays = next.state == Some(history) || next.state == Some(BackupState::Deleting);
            assert!(stays && next.progress == o.status.progress && next.attempt == o.status.attempt, "{}", world());
            assert!(!matches!(step, Step::StartWorker | Step::AskForSlot | Step::AddFinalizer), "{}", world());
        }
        let number = |s: &BackupStatus| s.attempt.as_ref().map_or(0, |a| a.number);
        assert!(number(&next) >= number(&o.status), "{}", world());
        let is_new = number(&next) > number(&o.status);
        assert!(!is_new || o.worker == WorkerSeen::Absent, "a new attempt beside an old worker\n{}", world());
        if let Some(progress) = &next.progress {
            let is_completed = next.state == Some(BackupState::Completed);
            let is_deleting = next.state == Some(BackupState::Deleting);
            assert!((progress.percent == 100) == is_completed || is_deleting, "{}", world());
            assert!(progress.acknowledged_blocks <= progress.total_blocks.unwrap_or(0), "{}", world());
        }
        if let (false, Some(before)) = (is_new, &o.status.progress) {
            // A report below what status shows was dropped before; the worlds above have such reports only for others.
            let heard = o.worker.heard().map_or(4, |h| h.report.progress.acknowledged_blocks);
            let after = next.progress.as_ref().map_or(-1, |p| p.acknowledged_blocks);
            let is_believable = i64::try_from(heard).unwrap_or(0) >= before.acknowledged_blocks;
            assert!(!is_believable || after >= before.acknowledged_blocks, "{}", world());
        }
    });
    println!("{visited} worlds at three moments");
}

#[test]
fn law_4_completed_only_on_the_word_of_a_worker_that_read_the_record_back() {
    worlds(|o, now| {
        let decision = decide(o, now);
        let next = next_status(o, &decision.standing, now);
        let was = o.status.state == Some(BackupState::Completed);
        if next.state == Some(BackupState::Completed) && !was {
            let said = o.worker.heard().and_then(|h| h.report.outcome.clone());
            assert!(matches!(said, Some(Outcome::Completed { .. })), "{o:#?}\n{decision:#?}");
        }
    });
}

#[test]
fn law_5_nothing_open_is_left_without_a_next_look_and_silence_has_an_end() {
    worlds(|o, now| {
        let decision = decide(o, now);
        let next = next_status(o, &decision.standing, now);
        let is_over = matches!(next.state, Some(BackupState::Completed | BackupState::Cancelled))
            || next.state == Some(BackupState::Error) && next.next_retry_time.is_none();
        let is_leaving = o.wish.life == Life::Deleting && o.worker == WorkerSeen::Absent;
        let again = decision.standing.again(now, Duration::from_secs(2));
        let waits = decision.step == Step::RemoveFinalizer || again.is_some();
        assert!(waits || is_over || is_leaving, "no next look: {o:#?}\n{decision:#?}");
        let is_running = matches!(next.state, Some(BackupState::InProgress | BackupState::Committing));
        let silent = matches!(&o.worker, WorkerSeen::Alive { silent_for, .. } if *silent_for > Duration::from_secs(60));
        let is_asked_to_end = decision.step == Step::StopWorker;
        assert!(!(is_running && silent) || is_asked_to_end, "silence without end: {o:#?}\n{decision:#?}");
    });
}

#[test]
fn law_6_an_error_with_retries_left_begins_again_when_its_time_comes() {
    let status = statuses().into_iter().nth(12).expect("failed, and due");
    let o = Observed {
        wish: wish(),
        status,
        source: Ok(source()),
        target: target(),
        slot: Slot::Held,
        worker: WorkerSeen::Absent,
        keys: Keys::Same,
        fresh_id: id(7),
    };
    let decision = decide(&o, later(start(), Duration::from_secs(1)));
    assert!(matches!(decision.standing, Standing::Beginning { number: 2, .. }), "{decision:#?}");
    let alive = Observed { worker: WorkerSeen::Alive { heard: None, silent_for: Duration::ZERO }, ..o };
    let decision = decide(&alive, later(start(), Duration::from_secs(1)));
    assert_eq!((decision.step, decision.standing), (Step::StopWorker, Standing::WaitingForOldWorker));
}

#[test]
fn a_second_pass_over_an_unchanged_world_writes_nothing() {
    worlds(|o, now| {
        let first = decide(o, now);
        let written = next_status(o, &first.standing, now);
        let mut again = Observed { status: written.clone(), ..o.clone() };
        // Three passes settle every world: what is left is waiting.
        for _ in 0..3 {
            let decision = decide(&again, now);
            again.status = next_status(&again, &decision.standing, now);
        }
        let last = decide(&again, now);
        // An attempt that begins and fails at once in a world that never changes goes on for ever: that is its policy.
        let moves = |s: &Standing| matches!(s, Standing::Beginning { .. } | Standing::Failed { .. });
        let settled = next_status(&again, &last.standing, now);
        if !moves(&last.standing) && !moves(&first.standing) && settled.attempt == written.attempt {
            assert_eq!(worth(&again.status, &settled), Worth::Nothing, "{o:#?}\n{last:#?}\n{settled:#?}");
        }
    });
}

/// A completed Backup whose verification was asked for, with a worker that said this of it.
fn verified_world(verify: VerifyDepth, worker: WorkerSeen) -> Observed {
    let status = statuses().into_iter().nth(9).expect("completed");
    let wish = Wish { verify, ..wish() };
    let (source, target) = (Ok(source()), target());
    Observed { wish, status, source, target, slot: Slot::Held, worker, keys: Keys::Same, fresh_id: id(7) }
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
        let o = verified_world(VerifyDepth::Full, worker);
        let decision = decide(&o, now);
        let next = next_status(&o, &decision.standing, now);
        let seen = next.conditions.iter().find(|c| c.type_ == "Verified");
        assert_eq!(seen.map(|c| (c.status.as_str(), c.reason.as_str())), expected, "{o:#?}");
        let same = BackupStatus { conditions: vec![], observed_generation: 0, ..next.clone() };
        assert_eq!(same, BackupStatus { conditions: vec![], observed_generation: 0, ..o.status.clone() }, "{next:#?}");
        // Written once: the next pass looks only after what is left of the worker.
        let again = Observed { status: next.clone(), ..o };
        let settled = next_status(&again, &decide(&again, now).standing, now);
        assert_eq!(worth(&next, &settled), Worth::Nothing, "{settled:#?}");
        assert_eq!(decision.standing.note().is_some(), expected.is_some(), "{decision:#?}");
    }
}

#[test]
fn a_worker_that_verifies_is_left_alone_and_one_that_was_not_asked_to_is_not() {
    let hours_later = later(start(), Duration::from_secs(5 * 3600));
    let alive = WorkerSeen::Alive { heard: Some(said(Verdict::Running)), silent_for: Duration::ZERO };
    let verifying = decide(&verified_world(VerifyDepth::Full, alive.clone()), hours_later);
    assert_eq!(verifying.step, Step::Nothing, "{verifying:#?}");
    let unasked = decide(&verified_world(VerifyDepth::None, alive.clone()), hours_later);
    assert_eq!(unasked.step, Step::StopWorker, "{unasked:#?}");
    let mut cancelled = verified_world(VerifyDepth::Full, alive);
    cancelled.wish.cancel = true;
    assert_eq!(decide(&cancelled, hours_later).step, Step::StopWorker);
}
