//! The laws over every small world of a Restore. The worlds are `work::worlds`'.

use std::{sync::Arc, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::live_restores;
use crate::{
    api::{
        Backup, Restore, RestoreState, RestoreStatus,
        conditions::{ConditionType, is_true},
        course::ObservedFailure,
        restore_status::RestoreProgress,
    },
    controller::{
        claim::{
            self,
            bind::{self, Hands},
            prepare,
            remove::Removal,
        },
        snapshot::{Object, Refusal},
        time::later,
        work::{
            decide::{Step, decide},
            observe::{Heard, Observed, Wish, WorkerSeen},
            status::next_status,
            volume::VolumeSeen,
            worlds::{Settable, Worlds, attempt, heard, observed, start},
        },
    },
    model::{self, Counters, DamageReason, Damaged, FailureReason, Outcome, Phase, Report},
};

impl Settable for Restore {
    fn set_status(&mut self, status: RestoreStatus) {
        self.status = Some(status);
    }
}

/// Every status a Restore can have been left with.
fn statuses() -> Vec<RestoreStatus> {
    use RestoreState::*;
    let with = |state, reason: &str| RestoreStatus {
        observed_generation: 2,
        state: Some(state),
        reason: Some(reason.into()),
        start_time: Some(Time(start())),
        ..RestoreStatus::default()
    };
    let running = |state, reason: &str, restored: Option<i64>| RestoreStatus {
        attempt: Some(attempt()),
        progress: restored.map(|n| RestoreProgress {
            total_blocks: Some(4),
            restored_blocks: n,
            percent: if state == Completed { 100 } else { i32::try_from(n * 25).unwrap_or(0).min(99) },
            ..RestoreProgress::default()
        }),
        ..with(state, reason)
    };
    let failed = |retry: Option<jiff::Timestamp>| RestoreStatus {
        failure: Some(ObservedFailure {
            reason: "StoreUnavailable".into(),
            time: Some(Time(start())),
            ..Default::default()
        }),
        next_retry_time: retry.map(Time),
        consecutive_failures: Some(1),
        ..running(Error, "StoreUnavailable", Some(2))
    };
    vec![
        RestoreStatus::default(),
        with(Pending, "WaitingForBackup"),
        with(Pending, "Queued"),
        running(Preparing, "WaitingForOldWorker", Some(2)),
        running(Preparing, "StartingWorker", None),
        running(InProgress, "Planning", None),
        running(InProgress, "Restoring", Some(2)),
        running(Flushing, "Flushing", Some(4)),
        running(Flushing, "BindingVolume", Some(4)),
        running(Completed, "Completed", Some(4)),
        running(Cancelled, "CancelledByUser", Some(2)),
        failed(None),
        failed(Some(start())),
        failed(Some(later(start(), Duration::from_secs(900)))),
    ]
}

fn restore(status: RestoreStatus) -> Restore {
    restore_to(json!({"hostDevice": {"path": "/dev/a", "nodeName": "n"}}), status)
}

fn restore_to(target: Value, status: RestoreStatus) -> Restore {
    let mut spec = json!({"backupRef": {"name": "b"}});
    spec.as_object_mut().expect("an object").extend(target.as_object().cloned().expect("an object"));
    let mut restore = Restore::new("r", serde_json::from_value(spec).expect("valid"));
    restore.status = Some(status);
    restore
}

/// A Restore that fills a claim.
fn filling(status: RestoreStatus) -> Restore {
    restore_to(json!({"persistentVolumeClaim": {"name": "pg"}}), status)
}

fn bound(standing: bind::Standing, hands: Hands) -> VolumeSeen {
    VolumeSeen::Binding(Box::new(bind::Decision { step: claim::Step::Nothing, standing, hands }))
}

/// How far the volume of a claim can be.
fn volumes() -> Vec<VolumeSeen> {
    let object = Object { name: "v".into(), uid: "u".into() };
    let going = claim::Step::DeletePrime(object);
    let making = prepare::Standing::Making("m".into());
    let binding = || bind::Standing::Binding("m".into());
    vec![
        VolumeSeen::Idle,
        VolumeSeen::Making(Box::new(prepare::Decision { step: claim::Step::Nothing, standing: making })),
        bound(binding(), Hands::Ours),
        bound(binding(), Hands::Users),
        VolumeSeen::Binding(Box::new(bind::Decision { step: going.clone(), standing: binding(), hands: Hands::Ours })),
        bound(bind::Standing::Bound, Hands::Users),
        bound(bind::Standing::Refused(Refusal::new(FailureReason::TargetRefused, "m")), Hands::Ours),
        VolumeSeen::Clearing(Removal::Step(going)),
        VolumeSeen::Clearing(Removal::Waiting("m".into())),
        VolumeSeen::Clearing(Removal::Done),
    ]
}

fn report(phase: Phase, restored: u64, damaged: u64, outcome: Option<Outcome>) -> Heard {
    let counted = model::RestoreProgress {
        total_blocks: 4,
        written_blocks: restored,
        failed_blocks: damaged,
        ..model::RestoreProgress::default()
    };
    let heard = heard(phase, Counters::Restore(counted), outcome);
    let hole = |n| Damaged { offset: n, object: "k".into(), reason: DamageReason::Missing };
    Heard { report: Report { damaged: (0..damaged).map(hole).collect(), ..heard.report }, ..heard }
}

fn worlds() -> Worlds<Restore> {
    Worlds {
        objects: statuses().into_iter().map(restore).collect(),
        reports: vec![
            report(Phase::Planning, 2, 0, None),
            report(Phase::Restoring, 3, 1, None),
            report(Phase::Flushing, 4, 0, None),
            report(Phase::ReadingBack, 4, 0, None),
            report(Phase::Ended, 4, 0, Some(Outcome::Restored)),
            report(Phase::Ended, 3, 1, Some(Outcome::Failed)),
            report(Phase::Ended, 2, 0, Some(Outcome::Cancelled)),
        ],
        volumes: vec![VolumeSeen::Idle],
    }
}

/// The same of claims, as far as it differs: from the worker's start on, and with its last good word.
fn claims() -> Worlds<Restore> {
    let differs = |status: &RestoreStatus| {
        let words = ["StartingWorker", "Flushing", "BindingVolume", "Completed", "CancelledByUser", "StoreUnavailable"];
        status.reason.as_deref().is_some_and(|reason| words.contains(&reason))
    };
    Worlds {
        objects: statuses().into_iter().filter(differs).map(filling).collect(),
        reports: vec![report(Phase::Ended, 4, 0, Some(Outcome::Restored))],
        volumes: volumes(),
    }
}

#[test]
fn law_3_and_law_8_hold_in_every_small_world_of_a_restore() {
    worlds().hold_laws_3_and_8();
    claims().hold_laws_3_and_8();
}

#[test]
fn law_4_a_restore_is_completed_only_on_the_word_of_a_worker_that_flushed() {
    worlds().hold_law_4();
    claims().hold_law_4();
    worlds().visit(|object, o, now| {
        let next = next_status(object, o, &decide(o, now).standing, now);
        let was_completed = o.status.state == Some(crate::api::Stage::Completed);
        let ready = is_true(&next.conditions, ConditionType::Ready);
        let both = [ConditionType::DataRestored, ConditionType::DataFlushed].map(|c| is_true(&next.conditions, c));
        assert!(was_completed || !ready || both == [true, true], "{o:#?}\n{next:#?}");
        let completed = next.state == Some(RestoreState::Completed);
        let lost = next.progress.as_ref().map_or(0, |p| p.damaged_blocks);
        assert!(!completed || lost == 0, "holes are no completed restore: {o:#?}\n{next:#?}");
    });
}

#[test]
fn law_5_no_open_restore_is_left_without_a_next_look() {
    worlds().hold_law_5();
    claims().hold_law_5();
}

#[test]
fn a_second_pass_over_an_unchanged_restore_writes_nothing() {
    worlds().settle();
    claims().settle();
}

/// Before the user's claim is there a cancel removes everything; from then on it is finished.
#[test]
fn law_10_what_is_in_the_users_hands_is_not_taken_back() {
    let object = filling(statuses().into_iter().nth(8).expect("binding"));
    let wait = || bind::Standing::Binding("m".into());
    let cancelled = |volume| {
        let o = Observed { volume, ..observed(&object) };
        Observed { wish: Wish { cancel: true, ..o.wish.clone() }, ..o }
    };
    let state = |o: &Observed| next_status(&object, o, &decide(o, start()).standing, start()).state;
    assert_eq!(state(&cancelled(bound(wait(), Hands::Ours))), Some(RestoreState::Cancelled));
    assert_eq!(state(&cancelled(bound(wait(), Hands::Users))), Some(RestoreState::Flushing));
    let done = cancelled(bound(bind::Standing::Bound, Hands::Users));
    let next = next_status(&object, &done, &decide(&done, start()).standing, start());
    assert_eq!(next.state, Some(RestoreState::Completed), "{next:#?}");
    assert_eq!(next.progress.as_ref().map(|p| (p.percent, p.restored_blocks)), Some((100, 4)), "{next:#?}");
    for kind in [ConditionType::VolumeReady, ConditionType::DataFlushed, ConditionType::VolumeBound] {
        assert!(is_true(&next.conditions, kind), "{next:#?}");
    }
}

/// The worker's word stands in status before anything of the worker goes.
#[test]
fn law_4_a_worker_is_removed_only_when_status_says_that_the_volume_is_written() {
    let ended = |heard| WorkerSeen::Ended { heard, exit_code: Some(0), last_lines: String::new() };
    let restored = report(Phase::Ended, 4, 0, Some(Outcome::Restored));
    let object = filling(statuses().into_iter().nth(7).expect("flushing"));
    let o = Observed { worker: ended(Some(restored)), ..observed(&object) };
    let decision = decide(&o, start());
    assert_eq!(decision.step, Step::Nothing, "{decision:#?}");
    let written = next_status(&object, &o, &decision.standing, start());
    assert_eq!(written.reason.as_deref(), Some("BindingVolume"), "{written:#?}");
    assert_eq!(written.progress.as_ref().map(|p| (p.percent, p.restored_blocks)), Some((99, 4)), "{written:#?}");
    let after = filling(written);
    // Whoever comes next needs no word of the worker.
    let o = Observed { worker: ended(None), ..observed(&after) };
    assert_eq!(decide(&o, start()).step, Step::RemoveWorker);
    let o = Observed { worker: WorkerSeen::Absent, volume: bound(bind::Standing::Bound, Hands::Users), ..o };
    let next = next_status(&after, &o, &decide(&o, start()).standing, start());
    assert_eq!(next.state, Some(RestoreState::Completed), "{next:#?}");
}

#[test]
fn damage_is_listed_and_a_new_attempt_finds_its_own() {
    let o = |object: &Restore, worker| Observed { worker, ..observed(object) };
    let object = restore(statuses().into_iter().nth(6).expect("restoring"));
    let ended = report(Phase::Ended, 3, 1, Some(Outcome::Failed));
    let seen = o(&object, WorkerSeen::Ended { heard: Some(ended), exit_code: Some(65), last_lines: String::new() });
    let next = next_status(&object, &seen, &decide(&seen, start()).standing, start());
    assert_eq!((next.state, next.damaged.len()), (Some(RestoreState::Error), 1), "{next:#?}");
    let due = restore(RestoreStatus { next_retry_time: Some(Time(start())), ..next });
    let seen = o(&due, WorkerSeen::Absent);
    let next = next_status(&due, &seen, &decide(&seen, start()).standing, start());
    assert_eq!((next.state, next.damaged.len()), (Some(RestoreState::Preparing), 0), "{next:#?}");
    assert_eq!(next.progress, None, "a new attempt has proved nothing yet");
}

#[test]
fn law_7_a_restore_keeps_its_backups_data_until_it_is_over() {
    let backup = |uid: &str| -> Backup {
        let backup = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Backup",
            "metadata": {"name": "b", "namespace": "shop", "uid": uid},
            "spec": {"source": {"persistentVolumeClaim": {"name": "pg"}}}});
        serde_json::from_value(backup).expect("valid")
    };
    let restore = |namespace: &str, request: &str, status: Value| -> Arc<Restore> {
        let restore = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Restore",
            "metadata": {"name": "r", "namespace": namespace},
            "spec": {"backupRef": {"name": "b"}, "persistentVolumeClaim": {"name": "pg"}, "retryRequest": request},
            "status": status});
        Arc::new(serde_json::from_value(restore).expect("valid"))
    };
    let state = |state: &str| json!({"observedGeneration": 1, "state": state});
    let due = json!({"observedGeneration": 1, "state": "Error", "nextRetryTime": "2026-10-01T10:00:00Z"});
    let other = json!({"observedGeneration": 1, "state": "InProgress",
        "backup": {"name": "b", "uid": "u0", "volume": "v0", "backup": "b0"}});
    for (restore, lives) in [
        (restore("shop", "", json!({"observedGeneration": -1})), true),
        (restore("shop", "", state("Pending")), true),
        (restore("shop", "", state("InProgress")), true),
        (restore("shop", "", due), true),
        (restore("shop", "again", state("Error")), true),
        (restore("shop", "", state("Error")), false),
        (restore("shop", "", state("Completed")), false),
        (restore("shop", "", state("Cancelled")), false),
        (restore("shop", "", other), false),
        (restore("erp", "", state("InProgress")), false),
    ] {
        let live = live_restores(&backup("u1"), std::slice::from_ref(&restore));
        assert_eq!(live, if lives { vec!["r".to_owned()] } else { vec![] }, "{restore:#?}");
    }
}
