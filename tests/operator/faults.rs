//! The operator when things break: itself, its workers, the API server, its leadership, the keys, and reports that lie.
//! In each test the sampler of `world` watches that status never says more than the bucket holds.

use std::time::Duration;

use crate::support::{
    ACCESS_KEYS, Fault, Kind, Rule, environment, eventually,
    operator::{NAMESPACE, Operator},
};
use crate::world::{PATIENCE, World, acknowledged, hold_after, hold_again_after, metric};
use rustix::process::Signal;
use serde_json::json;
use tidemark::api::BackupState;

#[tokio::test]
async fn law_6_an_operator_restarted_in_mid_backup_finds_its_worker_again() {
    let world = World::new().await;
    let mut first = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.image("a.img", 24, 2);
    hold_after(&world.s3, 4);
    world.backup("restarted", "a.img", json!({})).await;
    world.until(&first, "restarted", "at 4 blocks", |s| acknowledged(s) == 4).await;
    let worker = world.home.workers();
    assert_eq!(worker.len(), 1, "{}", first.tail());
    // Once killed, once asked to end: the worker does not notice either.
    first.kill();
    let mut second = Operator::start_in(&world.plane, world.home.clone(), &[]);
    hold_again_after(&world.s3, 4);
    world.until(&second, "restarted", "further", |s| acknowledged(s) >= 8).await;
    assert!(second.terminate().success(), "{}", second.tail());
    assert_eq!(world.home.workers(), worker, "the same process still runs");
    world.s3.heal();
    let third = Operator::start_in(&world.plane, world.home.clone(), &[]);
    let status = world.completed(&third, "restarted").await;
    assert_eq!(status.attempt.as_ref().map(|a| a.number), Some(1), "one attempt did it all: {status:#?}");
    assert!(world.s3.blocks_sent_again().is_empty(), "{:?}", world.s3.blocks_sent_again());
    world.end(&[&third]).await;
}

#[tokio::test]
async fn law_6_a_worker_killed_in_mid_upload_is_followed_by_one_that_sends_nothing_twice() {
    let world = World::new().await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.image("a.img", 16, 3);
    hold_after(&world.s3, 5);
    world.backup("killed", "a.img", json!({})).await;
    let before = world.until(&operator, "killed", "at 5 blocks", |s| acknowledged(s) == 5).await;
    assert_eq!(world.home.kill_workers(), 1);
    let error = world.until(&operator, "killed", "in Error", |s| s.state == Some(BackupState::Error)).await;
    assert_eq!(
        error.failure.as_ref().map(|f| (f.reason.as_str(), f.retryable)),
        Some(("WorkerCrashed", true)),
        "{error:#?}"
    );
    assert!(acknowledged(&error) >= acknowledged(&before), "{error:#?}");
    world.s3.heal();
    let status = world.completed(&operator, "killed").await;
    assert_eq!(status.attempt.as_ref().map(|a| a.number), Some(2), "{status:#?}");
    let progress = status.progress.expect("progress");
    assert!(progress.resumed_blocks + progress.reused_blocks >= acknowledged(&before), "{progress:#?}");
    world.end(&[&operator]).await;
}

#[tokio::test]
async fn law_8_of_two_operators_one_acts_and_the_other_takes_over() {
    let world = World::new().await;
    let mut one = Operator::start_in(&world.plane, world.home.clone(), &["--identity", "one"]);
    let two = Operator::start_in(&world.plane, world.home.clone(), &["--identity", "two"]);
    world.image("a.img", 12, 4);
    hold_after(&world.s3, 3);
    world.backup("shared", "a.img", json!({})).await;
    world.until(&one, "shared", "at 3 blocks", |s| acknowledged(s) == 3).await;
    let holder = world
        .plane
        .kubectl(&["get", "lease", "tidemark-operator", "-n", NAMESPACE, "-o", "jsonpath={.spec.holderIdentity}"])
        .await;
    assert!(["one", "two"].contains(&holder.as_str()), "{holder}");
    assert_eq!(world.home.workers().len(), 1, "one worker, however many operators");
    let (leads, waits) = (metric(&one, "tidemark_leader").await, metric(&two, "tidemark_leader").await);
    assert_eq!(leads.unwrap_or(0.0) + waits.unwrap_or(0.0), 1.0, "{leads:?} {waits:?}");
    one.kill();
    world.s3.heal();
    let status = world.completed(&two, "shared").await;
    assert_eq!(status.attempt.map(|a| a.number), Some(1));
    world.end(&[&two]).await;
}

#[tokio::test]
async fn law_5_an_api_server_that_is_away_costs_only_freshness() {
    let world = World::new().await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.image("a.img", 16, 5);
    hold_after(&world.s3, 3);
    world.backup("outage", "a.img", json!({})).await;
    world.until(&operator, "outage", "at 3 blocks", |s| acknowledged(s) == 3).await;
    world.plane.stop_api_server();
    // Twice the lease, and four times in `make soak`: this operator must stop acting, and find everything again.
    let away = environment("TIDEMARK_SOAK").map_or(30, |_| 60);
    tokio::time::sleep(Duration::from_secs(away)).await;
    world.s3.heal();
    world.plane.start_api_server().await;
    let status = world.completed(&operator, "outage").await;
    assert_eq!(status.attempt.map(|a| a.number), Some(1), "the worker never noticed");
    world.end(&[&operator]).await;
}

#[tokio::test]
async fn law_6_credentials_rotated_in_mid_upload_are_taken_up() {
    let world = World::new().await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.image("a.img", 16, 6);
    hold_after(&world.s3, 3);
    world.backup("rotated", "a.img", json!({})).await;
    world.until(&operator, "rotated", "at 3 blocks", |s| acknowledged(s) == 3).await;
    world.secret(1).await;
    let link = world.home.workers()[0].1.join("credentials/AWS_ACCESS_KEY_ID");
    eventually("the worker was given the new key", PATIENCE, || async {
        let key = std::fs::read_to_string(&link).map_err(|e| e.to_string())?;
        if key == ACCESS_KEYS[1].0 { Ok(()) } else { Err(key) }
    })
    .await;
    world.s3.revoke(ACCESS_KEYS[0].0);
    world.s3.heal();
    let status = world.completed(&operator, "rotated").await;
    assert_eq!(status.attempt.map(|a| a.number), Some(1), "no attempt was lost");
    world.end(&[&operator]).await;
}

#[tokio::test]
async fn law_6_a_worker_killed_in_any_phase_is_followed_by_one_that_completes() {
    let world = World::new().await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    let record = "/backups/backup_backup-";
    let phases = [
        ("planning", "Planning", Rule::new(Fault::Hold).on(Kind::List).key("/blocks/")),
        ("writing", "WritingRecord", Rule::new(Fault::Hold).on(Kind::PutOther).key(record)),
        ("reading", "ReadingBack", Rule::new(Fault::Hold).on(Kind::Get).key(record)),
    ];
    for (seed, (name, reason, hold)) in phases.into_iter().enumerate() {
        world.image(&format!("{name}.img"), 6, 20 + seed as u64);
        world.s3.fault(hold);
        world.backup(name, &format!("{name}.img"), json!({})).await;
        world.until(&operator, name, reason, |s| s.reason.as_deref() == Some(reason)).await;
        assert_eq!(world.home.kill_workers(), 1, "{reason}: {}", operator.tail());
        let error = world.until(&operator, name, "in Error", |s| s.failure.is_some()).await;
        assert!(error.failure.is_some_and(|f| f.reason == "WorkerCrashed"), "{reason}");
        world.s3.heal();
        let status = world.completed(&operator, name).await;
        assert_eq!(status.attempt.as_ref().map(|a| a.number), Some(2), "{reason}: {status:#?}");
        assert_eq!(status.progress.as_ref().map(|p| p.acknowledged_blocks), Some(6), "{reason}: {status:#?}");
    }
    world.end(&[&operator]).await;
}

#[tokio::test]
async fn law_8_a_deposed_leader_writes_nothing_when_it_wakes_up() {
    let world = World::new().await;
    let asleep = Operator::start_in(&world.plane, world.home.clone(), &["--identity", "asleep"]);
    world.image("a.img", 12, 30);
    hold_after(&world.s3, 3);
    world.backup("deposed", "a.img", json!({})).await;
    world.until(&asleep, "deposed", "at 3 blocks", |s| acknowledged(s) == 3).await;
    let old = world.backups().get("deposed").await.expect("it is there");
    asleep.signal(Signal::STOP);
    let awake = Operator::start_in(&world.plane, world.home.clone(), &["--identity", "awake"]);
    hold_again_after(&world.s3, 4);
    world.until(&awake, "deposed", "further", |s| acknowledged(s) >= 7).await;
    asleep.signal(Signal::CONT);
    // The very packet it may have had on the way: a conflict, although it is forced.
    let stale = old.status.clone().expect("it had one");
    let late = tidemark::controller::work::status::write(&world.backups(), &old, &stale).await;
    assert!(matches!(late, Ok(tidemark::controller::work::status::Written::Conflict)), "{late:?}");
    eventually("the deposed leader says so", PATIENCE, || async {
        match metric(&asleep, "tidemark_leader").await {
            Some(0.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    world.s3.heal();
    let status = world.completed(&awake, "deposed").await;
    assert_eq!(status.attempt.map(|a| a.number), Some(1));
    world.end(&[&asleep, &awake]).await;
}

#[tokio::test]
async fn law_8_late_and_lying_reports_of_an_old_attempt_change_nothing() {
    use tidemark::model::{Counters, JobSpec, Outcome, Progress, Report, report::LOG_WORD};
    let world = World::new().await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.image("a.img", 12, 40);
    hold_after(&world.s3, 3);
    world.backup("lied", "a.img", json!({})).await;
    world.until(&operator, "lied", "at 3 blocks", |s| acknowledged(s) == 3).await;
    let job = |directory: &std::path::Path| -> JobSpec {
        let text = std::fs::read_to_string(directory.join("job.json")).expect("the job is there");
        serde_json::from_str(&text).expect("the job parses")
    };
    let first = job(&world.home.workers()[0].1);
    world.home.kill_workers();
    world
        .until(&operator, "lied", "in attempt 2", |s| {
            s.attempt.as_ref().is_some_and(|a| a.number == 2) && s.state == Some(BackupState::InProgress)
        })
        .await;
    let directory = world.home.workers()[0].1.clone();
    let second = job(&directory);
    // The first attempt's worker claims, with its own key and with the second's, that all is done.
    let mut lie = eventually("a last word of the second", PATIENCE, || async {
        let word = std::fs::read_to_string(directory.join("last-word")).map_err(|e| e.to_string())?;
        Report::decode(&word, &second.report_key).map_err(|e| format!("{e:?}"))
    })
    .await;
    (lie.attempt, lie.pod, lie.sequence) = (first.attempt.clone(), first.pod.clone(), 1_000_000);
    let done = Progress { total_blocks: 12, acknowledged_blocks: 12, ..lie.backup() };
    lie.counters = Counters::Backup(done);
    let backup = tidemark::model::BackupName::of_attempt(&first.uid, &first.attempt);
    lie.outcome = Some(Outcome::Completed { backup, adopted: false });
    let lines = [lie.encode(&first.report_key), lie.encode(&second.report_key)];
    // The operator sees the worker's end and the lies at once, however long the two lines take to write.
    operator.signal(Signal::STOP);
    world.home.kill_workers();
    std::fs::write(directory.join("last-word"), format!("{}\n", lines[0])).expect("ours");
    let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
    std::fs::write(directory.join("log"), format!("{log}{LOG_WORD} {}\n", lines[1])).expect("ours");
    operator.signal(Signal::CONT);
    let status =
        world.until(&operator, "lied", "in attempt 3", |s| s.attempt.as_ref().is_some_and(|a| a.number == 3)).await;
    assert_ne!(status.state, Some(BackupState::Completed), "{status:#?}");
    let mut dropped = 0.0;
    for cause in ["WrongKey", "OtherAttempt"] {
        let name = format!("tidemark_reports_dropped_total{{cause=\"{cause}\"}}");
        dropped += metric(&operator, &name).await.unwrap_or(0.0);
    }
    assert!(dropped >= 1.0, "{}", operator.tail());
    world.s3.heal();
    world.completed(&operator, "lied").await;
    world.end(&[&operator]).await;
}
