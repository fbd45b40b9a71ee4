//! Faults over the wire, healed and resumed; and the real binary, killed at many points.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tidemark::{
    model::{FailureReason, job::Limits},
    restore::{Overwrite, RestoreJob},
};
use tokio_util::sync::CancellationToken;

use super::{World, random, run, to_the_end};
use crate::support::{ACCESS_KEYS, Fault, Kind, Process, Rule, Wire, busy, image::difference};

const BLOCKS: u64 = 12;

/// A fault, the reason a restore must give for it, and the longest it may take to do so.
type Case = (&'static str, Rule, FailureReason, Duration);

/// `stall` is 3 s in all of them.
fn lasting() -> Vec<Case> {
    let get = |fault| Rule::new(fault).on(Kind::Get).key("/blocks/").after(4);
    let seconds = Duration::from_secs;
    vec![
        ("refused", get(Fault::refuse("AccessDenied")), FailureReason::AccessDenied, seconds(5)),
        (
            "bucket gone",
            get(Fault::Answer { status: 404, code: "NoSuchBucket" }),
            FailureReason::BucketMissing,
            seconds(5),
        ),
        ("500", get(Fault::internal_error()), FailureReason::DownloadStalled, seconds(8)),
        ("throttled", get(Fault::slow_down()), FailureReason::DownloadStalled, seconds(8)),
        ("reset", get(Fault::ResetBefore), FailureReason::DownloadStalled, seconds(8)),
        ("reply lost", get(Fault::ReplyLost), FailureReason::DownloadStalled, seconds(8)),
        ("silent", get(Fault::HangForever), FailureReason::DownloadStalled, seconds(8)),
        ("cut short", get(Fault::BodyCut), FailureReason::DownloadStalled, seconds(8)),
        ("slower than the deadline", get(Fault::DelayReply(seconds(60))), FailureReason::DownloadStalled, seconds(8)),
        ("truncated for good", get(Fault::TruncatedBody), FailureReason::BlockDamaged, seconds(5)),
    ]
}

#[tokio::test]
async fn law_5_and_law_6_a_restore_fails_in_time_and_goes_on_where_it_was_when_healed() {
    let world = World::new("wire", &random(BLOCKS)).await;
    for (what, rule, reason, patience) in lasting() {
        world.server.fault(rule);
        let began = Instant::now();
        let first = to_the_end(world.job_at(&world.server.endpoint(), 3)).await;
        let (took, restored) = (began.elapsed(), first.last().restored_blocks());
        let error = first.error();
        assert_eq!(error.reason(), reason, "{what}: {error}");
        assert!(took <= patience + busy(), "{what}: {took:?}");
        assert!(restored <= 4 && error.object().is_some(), "{what}: {restored}, {error}");
        assert!(error.to_string().contains("do not use it"), "{what}: {error}");

        world.server.heal();
        world.server.forget_requests();
        let second = to_the_end(world.reuse()).await;
        let reused = second.summary().reused_blocks;
        assert!(reused >= restored, "{what}: {restored} were counted, {reused} were there");
        assert_eq!(world.asked().len() as u64, BLOCKS - reused, "{what}: nothing equal is fetched again");
        world.assert_equal(what);
        std::fs::remove_file(world.out()).expect("removed");
    }
}

#[tokio::test]
async fn passing_faults_are_healed_within_a_restore() {
    let world = World::new("wire-passing", &random(BLOCKS)).await;
    for (what, rule) in [
        ("reset", Rule::new(Fault::ResetBefore).on(Kind::Get).after(1).times(3)),
        ("500", Rule::new(Fault::internal_error()).after(2).times(5)),
        ("throttled", Rule::new(Fault::slow_down()).on(Kind::Get).after(1).times(4)),
        ("reply lost", Rule::new(Fault::ReplyLost).times(6)),
        ("cut", Rule::new(Fault::BodyCut).on(Kind::Get).times(4)),
        ("half a block", Rule::new(Fault::TruncatedBody).on(Kind::Get).key("/blocks/").times(1)),
        ("slow", Rule::new(Fault::Delay(Duration::from_millis(100)))),
    ] {
        world.server.fault(rule);
        let ran = to_the_end(RestoreJob { overwrite: Overwrite::Replace, ..world.job() }).await;
        assert_eq!(ran.outcome.as_ref().map(|s| s.blocks).map_err(ToString::to_string), Ok(BLOCKS), "{what}");
        world.assert_equal(what);
        world.server.heal();
    }
}

#[tokio::test]
async fn law_5_total_packet_loss_shows_within_the_stall_deadline_and_law_6_nothing_is_fetched_again() {
    let world = World::new("wire-cut", &random(BLOCKS)).await;
    let wire = Wire::new(world.server.address());
    wire.slow(4 << 20);
    // Two at once: eight would share the slow wire so evenly that none arrives before the stall deadline.
    let limits = Limits { concurrency: Some(2), max_bytes_per_second: None };
    let job = RestoreJob { limits, ..world.job_at(&wire.endpoint(), 4) };
    let mut cut_at = None;
    let first = run(job, CancellationToken::new(), |p| {
        if p.written_blocks >= 3 && cut_at.is_none() {
            wire.cut();
            cut_at = Some(Instant::now());
        }
    });
    let first = first.await;
    let (took, restored) = (cut_at.expect("the wire was cut").elapsed(), first.last().restored_blocks());
    let error = first.error();
    assert_eq!((error.reason(), error.exit_code()), (FailureReason::DownloadStalled, 68), "{error}");
    assert!(took <= Duration::from_secs(9) + busy(), "a stall of 4 s and 5 s: {took:?}");
    wire.heal();
    world.server.forget_requests();
    let second = to_the_end(RestoreJob { overwrite: Overwrite::Reuse, ..world.job_at(&wire.endpoint(), 20) }).await;
    let reused = second.summary().reused_blocks;
    assert!(reused >= restored && reused >= 3, "{restored} were counted, {reused} were there");
    assert_eq!(world.asked().len() as u64, BLOCKS - reused);
    world.assert_equal("after the cut");
}

#[tokio::test]
async fn law_5_a_bandwidth_limit_of_downloads_holds_and_is_no_stall() {
    let world = World::new("wire-limit", &random(2)).await;
    // The second block has to wait for eight seconds, longer than the stall deadline.
    let limits = Limits { concurrency: None, max_bytes_per_second: Some(256 << 10) };
    let began = Instant::now();
    let ran = to_the_end(RestoreJob { limits, ..world.job_at(&world.server.endpoint(), 6) }).await;
    let bytes = ran.summary().fetched_bytes;
    // The first leaves at once, so it is the others that wait.
    let least = Duration::from_secs_f64((bytes - (2 << 20)) as f64 / f64::from(256 << 10));
    assert!(began.elapsed() >= least.mul_f64(0.95), "{bytes} bytes in {:?}, at least {least:?}", began.elapsed());
}

#[tokio::test]
async fn law_9_no_more_downloads_at_once_than_were_asked_for() {
    let world = World::new("wire-bound", &random(BLOCKS)).await;
    world.server.fault(Rule::new(Fault::Hold).on(Kind::Get).key("/blocks/"));
    let limits = Limits { concurrency: Some(3), max_bytes_per_second: None };
    let running = tokio::spawn(to_the_end(RestoreJob { limits, ..world.job() }));
    while world.asked().len() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Were a fourth allowed it would be here within this time.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.asked().len(), 3);
    world.server.heal();
    running.await.expect("no panic").summary();
}

/// `tidemark restore` as a process, with nothing of this one's environment.
fn command(world: &World, more: &[&str]) -> Command {
    let url = format!("s3://backups@us-east-1/some/prefix/?backup={}&volume=pvc-test", world.record.backup);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.args(["restore", &url, "out", "--json"]).args(more).current_dir(world.folder.path()).env_clear();
    let (id, secret) = ACCESS_KEYS[0];
    command.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret);
    command.env("AWS_ENDPOINTS", world.server.endpoint()).stdin(Stdio::null());
    command
}

#[tokio::test]
async fn law_6_a_restore_killed_at_any_point_is_resumed_and_fetches_nothing_twice() {
    let world = World::new("wire-kill", &random(BLOCKS)).await;
    let log = world.folder.path().join("log");
    let mut restored = 0;
    // While the lock settles, before the first block, and after so many blocks more, each with others under way.
    for fetched in [None, Some(0), Some(1), Some(2), Some(1), Some(4)] {
        world.server.forget_requests();
        if let Some(fetched) = fetched {
            world.server.fault(Rule::new(Fault::Hold).on(Kind::Get).key("/blocks/").after(fetched));
        }
        let mut process = Process::start("restore", command(&world, &["--reuse"]), &log);
        let is_there = || match fetched {
            None => world.server.requests().iter().any(|r| r.key.contains("/locks/")),
            // All that were let through were answered and written, and another one waits.
            Some(fetched) => world.asked().len() as u64 > fetched && held_by_out(&world) >= restored + fetched,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_there() {
            assert!(Instant::now() < deadline && process.ended().is_none(), "{}", process.tail());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        process.kill();
        world.server.heal();
        let held = held_by_out(&world);
        let asked = world.asked().len() as u64;
        println!("killed after {fetched:?}: the target holds {held} of {BLOCKS}, {asked} were asked for");
        assert!(held >= restored && asked <= BLOCKS - restored, "nothing that was there is asked for");
        restored = held;
    }
    assert!(restored >= 8, "{restored}");
    world.server.forget_requests();
    let ended = command(&world, &["--reuse"]).output().expect("the binary starts");
    let stdout = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&ended.stderr));
    let result: serde_json::Value = serde_json::from_str(stdout.lines().last().expect("a result")).expect("JSON");
    assert_eq!((&result["percent"], &result["restored"]["reusedBlocks"]), (&100.into(), &restored.into()), "{result}");
    assert_eq!(world.asked().len() as u64, BLOCKS - restored, "what the target held is not fetched again");
    world.assert_equal("killed many times");
}

/// Blocks of the image that the target holds already.
fn held_by_out(world: &World) -> u64 {
    let Ok(out) = std::fs::File::open(world.out()) else { return 0 };
    let mut held = 0;
    world.image.for_each_block(|index, bytes| {
        let mut block = vec![0; bytes.len()];
        let offset = (index * bytes.len()) as u64;
        let is_read = std::os::unix::fs::FileExt::read_exact_at(&out, &mut block, offset).is_ok();
        held += u64::from(is_read && block == bytes);
    });
    held
}

#[test]
fn the_image_of_a_restore_is_compared_to_the_byte() {
    let folder = crate::support::scratch("wire-difference");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    std::fs::write(&a, [1, 2, 3]).expect("written");
    std::fs::write(&b, [1, 2, 4]).expect("written");
    assert!(difference(&a, &b).is_some_and(|seen| seen.contains("byte 2")), "these tests can fail");
}
