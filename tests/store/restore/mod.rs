//! Restores by their laws: what is counted, when it is complete, what a second run fetches, who may hold the volume.
//!
//! * this file  laws on whole and damaged repositories, and the lock
//! * `wire`     a real S3 server that refuses, breaks, throttles, stalls and cuts; the binary killed at many points
//! * `devices`  real loop devices
//! * `large`    a record of four million blocks
//!
//! Every restore here is watched: counters only grow, 100 % is said only of one that returned well.

mod devices;
mod large;
mod wire;

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::support::{
    self, Block, Fault, Image, Kind, Rule, S3Server, TempDir,
    image::{BLOCK, difference},
    job,
};
use tidemark::{
    model::{AttemptId, FailureReason, RestorePhase, RestoreProgress, progress::Completion},
    restore::{self, Damage, Left, Locking, Overwrite, RestoreError, RestoreJob, RestoreSummary},
    store::{client::Client, guard::Timing, layout::VolumeLayout, objects::Objects, record::RecordId},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A volume in a bucket of a real S3 server, the image it was made of, and a place for restores.
struct World {
    server: S3Server,
    objects: Arc<dyn Objects>,
    folder: TempDir,
    image: Image,
    record: RecordId,
}

/// How a restore ended and everything it said on the way.
struct Ran {
    outcome: Result<RestoreSummary, RestoreError>,
    seen: Vec<RestoreProgress>,
}

impl Ran {
    fn last(&self) -> RestoreProgress {
        *self.seen.last().expect("a restore says something")
    }

    fn error(self) -> RestoreError {
        match self.outcome {
            Err(error) => error,
            Ok(summary) => panic!("it was restored: {summary:?}"),
        }
    }

    fn summary(&self) -> &RestoreSummary {
        self.outcome.as_ref().expect("restored")
    }
}

impl World {
    async fn new(purpose: &str, blocks: &[Block]) -> Self {
        let folder = support::scratch(purpose);
        let image = Image::of(&folder.path().join("image"), blocks);
        let server = S3Server::start();
        let objects = job::s3(&server);
        let mut world = Self { server, objects, folder, image, record: record("backup-none") };
        world.back_up(1).await;
        world
    }

    /// Backs up the image as it is now, and forgets the requests.
    async fn back_up(&mut self, number: u64) {
        let job = job::job(self.image.path(), &format!("uid-{number}"), number);
        let ran = job::run(job, self.objects.clone()).await;
        assert!(ran.completed(), "{:?}", ran.last);
        self.record = record(&ran.record());
        self.server.forget_requests();
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// A restore over the wire at this endpoint; `stall` in seconds.
    fn job_at(&self, endpoint: &str, stall: u64) -> RestoreJob {
        let client = Client::new(job::s3_at(endpoint), Duration::from_secs(stall), Duration::from_secs(300));
        let attempt = AttemptId::new(77, [7; 10]);
        let locking = Locking::Shared { attempt: attempt.clone(), timing: job::quick() };
        RestoreJob { locking, ..RestoreJob::new(client, self.record.clone(), self.out(), attempt) }
    }

    fn job(&self) -> RestoreJob {
        self.job_at(&self.server.endpoint(), 20)
    }

    fn reuse(&self) -> RestoreJob {
        RestoreJob { overwrite: Overwrite::Reuse, ..self.job() }
    }

    /// Keys of the blocks that were asked for, in order.
    fn asked(&self) -> Vec<String> {
        let is_block = |key: &str| key.contains("/blocks/");
        self.server.requests().into_iter().filter(|r| r.kind == Kind::Get && is_block(&r.key)).map(|r| r.key).collect()
    }

    fn block_file(&self, index: usize) -> PathBuf {
        let mut name = None;
        self.image.for_each_block(|i, bytes| {
            if i == index {
                name = Some(tidemark::model::BlockName::of(bytes));
            }
        });
        let key = self.layout().block(&name.expect("this block holds data"));
        self.server.bucket("backups").join("some/prefix").join(key)
    }

    fn layout(&self) -> VolumeLayout {
        VolumeLayout::new(&self.record.volume)
    }

    fn assert_equal(&self, what: &str) {
        assert_eq!(difference(self.image.path(), &self.out()), None, "{what}");
    }
}

fn record(backup: &str) -> RecordId {
    RecordId { volume: "pvc-test".parse().expect("valid"), backup: backup.parse().expect("valid") }
}

fn random(blocks: u64) -> Vec<Block> {
    (1..=blocks).map(Block::Random).collect()
}

/// Runs a restore to its end; `watch` sees each progress as it is made. The laws are checked on the way.
async fn run(job: RestoreJob, cancel: CancellationToken, mut watch: impl FnMut(&RestoreProgress)) -> Ran {
    let (progress, mut newest) = watch::channel(RestoreProgress::default());
    let mut running = tokio::spawn(restore::run(job, progress, cancel));
    let mut seen: Vec<RestoreProgress> = Vec::new();
    let outcome = loop {
        tokio::select! {
            biased;
            changed = newest.changed(), if newest.has_changed().is_ok() => if changed.is_ok() {
                let p = *newest.borrow_and_update();
                check_counters(seen.last(), &p);
                watch(&p);
                seen.push(p);
            },
            ended = &mut running => break ended.expect("a restore does not panic"),
        }
    };
    let last = *newest.borrow();
    check_counters(seen.last(), &last);
    seen.push(last);
    Ran { outcome, seen }
}

fn check_counters(before: Option<&RestoreProgress>, now: &RestoreProgress) {
    assert!(now.percent(Completion::Open) <= 99, "{now:?}");
    assert!(now.restored_blocks() + now.failed_blocks <= now.total_blocks, "{now:?}");
    let Some(before) = before else { return };
    let counters = |p: &RestoreProgress| {
        [p.written_blocks, p.reused_blocks, p.restored_bytes, p.fetched_bytes, p.failed_blocks, p.read_back_blocks]
    };
    let falls = counters(before).iter().zip(counters(now)).any(|(before, now)| *before > now);
    assert!(!falls && before.phase <= now.phase, "{before:?} then {now:?}");
}

async fn to_the_end(job: RestoreJob) -> Ran {
    run(job, CancellationToken::new(), |_| {}).await
}

fn phases_of(ran: &Ran) -> Vec<RestorePhase> {
    let mut phases: Vec<RestorePhase> = ran.seen.iter().map(|p| p.phase).collect();
    phases.dedup();
    phases
}

#[tokio::test]
async fn law_4_a_restore_is_complete_only_after_the_flush_and_the_last_look() {
    let world = World::new("restore-phases", &[Block::Text(1), Block::Hole, Block::Random(2), Block::Text(1)]).await;
    let ran = to_the_end(world.job()).await;
    let summary = ran.summary();
    assert_eq!((summary.blocks, summary.reused_blocks, summary.read_back_blocks), (3, 0, 3), "{summary:?}");
    // A watch keeps its newest value only: on a busy machine a phase of a millisecond is over before anybody looks, and is
    // seen another time. Never in another order.
    let mut phases = phases_of(&ran);
    use RestorePhase::{Ended, ReadingBack, Syncing, Writing};
    for _ in 0..20 {
        if phases.ends_with(&[Writing, Syncing, ReadingBack, Ended]) {
            break;
        }
        assert!(phases.is_sorted() && phases.ends_with(&[Ended]), "{phases:?}");
        phases = phases_of(&to_the_end(RestoreJob { overwrite: Overwrite::Replace, ..world.job() }).await);
    }
    assert!(phases.ends_with(&[Writing, Syncing, ReadingBack, Ended]), "{phases:?}");
    world.assert_equal("restored");
    let allocated = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(world.out()).expect("made")) * 512;
    assert!(allocated < 4 * BLOCK as u64, "the hole stayed one: {allocated} bytes are allocated");
    let puts = world.server.requests().into_iter().filter(|r| r.kind == Kind::PutOther).map(|r| r.key);
    assert!(puts.into_iter().all(|key| key.contains("/locks/")), "in the store only a lock is written");
    assert!(world.server.objects("backups").iter().all(|o| !o.key.contains("/locks/")), "and given back");
}

/// Somebody writes to the target while it is restored: what was counted is no longer true, and must not be Completed.
#[tokio::test]
async fn law_4_a_target_that_does_not_keep_what_was_written_is_not_complete() {
    let world = World::new("restore-lies", &random(6)).await;
    world.server.fault(Rule::new(Fault::Hold).on(Kind::Get).key("/blocks/").after(5));
    let out = world.out();
    let mut is_spoilt = false;
    let ran = run(world.job(), CancellationToken::new(), |p| {
        if p.written_blocks == 5 && !is_spoilt {
            is_spoilt = true;
            for block in 0..6 {
                Image::open(&out).write_at(block * BLOCK as u64 + 4096, b"not what was restored");
            }
            world.server.heal();
        }
    });
    let error = ran.await.error();
    assert_eq!(error.reason(), FailureReason::TargetWriteFailed, "{error}");
    assert!(error.to_string().contains("reads back with the checksum"), "{error}");
}

/// Longhorn's library reports 100 % beside the error of the last of 16 to 19 blocks, and a caller that looks at the
/// percentage first succeeds with a hole (reference H9).
#[tokio::test]
async fn law_1_a_lost_block_is_never_counted_as_restored() {
    for total in 16..=19 {
        let world = World::new("restore-h9", &random(total)).await;
        let file = world.block_file(total as usize - 1);
        let mut flipped = std::fs::read(&file).expect("read");
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        for is_missing in [true, false] {
            if is_missing {
                std::fs::remove_file(&file).expect("removed");
            } else {
                std::fs::write(&file, &flipped).expect("written");
            }
            let stopped = to_the_end(RestoreJob { overwrite: Overwrite::Replace, ..world.job() }).await;
            assert!(stopped.last().restored_blocks() < total, "{:?}", stopped.last());
            let error = stopped.error();
            assert_eq!((error.reason(), error.exit_code()), (FailureReason::BlockDamaged, 65), "{error}");
            let offset = (total - 1) * BLOCK as u64;
            assert!(error.to_string().contains(&format!("offset {offset}")), "{error}");

            let job = RestoreJob { damage: Damage::KeepGoing, overwrite: Overwrite::Replace, ..world.job() };
            let kept = to_the_end(job).await;
            let last = kept.last();
            assert_eq!((last.restored_blocks(), last.failed_blocks), (total - 1, 1), "{last:?}");
            assert!(last.percent(Completion::Open) < 100);
            let error = kept.error();
            assert!(matches!(&error, RestoreError::Holes { count: 1, .. }) && error.exit_code() == 65, "{error}");
        }
    }
}

#[tokio::test]
async fn a_wrong_answer_is_asked_for_once_more_before_it_is_called_damage() {
    let world = World::new("restore-second", &random(5)).await;
    world.server.fault(Rule::new(Fault::TruncatedBody).on(Kind::Get).key("/blocks/").times(2));
    let one_at_a_time = |job: RestoreJob| {
        let limits = tidemark::model::job::Limits { concurrency: Some(1), ..job.limits.clone() };
        RestoreJob { limits, ..job }
    };
    let ran = to_the_end(one_at_a_time(world.job())).await;
    ran.summary();
    world.assert_equal("after two wrong answers");
    assert_eq!(world.asked().len(), 7);

    world.server.forget_requests();
    let name = world.block_file(2).file_name().expect("a name").to_string_lossy().into_owned();
    world.server.fault(Rule::new(Fault::TruncatedBody).on(Kind::Get).key(&name));
    let job = RestoreJob { overwrite: Overwrite::Replace, ..one_at_a_time(world.job()) };
    let error = to_the_end(job).await.error();
    assert!(error.to_string().contains(&name), "{error}");
    assert_eq!(
        world.asked().iter().filter(|key| key.contains(&name)).count(),
        2,
        "asked for twice, then called damaged"
    );
}

#[tokio::test]
async fn law_6_a_second_restore_fetches_only_what_the_target_does_not_hold() {
    let blocks = [1, 2, 3, 4, 5, 6, 7, 8].map(Block::Random);
    let mut world = World::new("restore-reuse", &[&blocks[..], &[Block::Hole, Block::Zero]].concat()).await;
    world.server.fault(Rule::new(Fault::Hold).on(Kind::Get).key("/blocks/").after(5));
    let cancel = CancellationToken::new();
    let first = run(world.job(), cancel.clone(), |p| {
        if p.written_blocks == 5 {
            cancel.cancel();
        }
    });
    let first = first.await;
    assert_eq!(first.last().restored_blocks(), 5);
    assert!(matches!(first.error(), RestoreError::Cancelled(Left::Partial { restored: 5, total: 8 })));

    world.server.heal();
    world.server.forget_requests();
    let resumed = to_the_end(world.reuse()).await;
    assert_eq!((resumed.summary().reused_blocks, world.asked().len()), (5, 3), "interrupted, then resumed");
    world.assert_equal("resumed");

    // The volume goes on: one block changes, one is freed, one is new. The old restore is brought up to date.
    world.image.write(2, Block::Random(102));
    world.image.write(5, Block::Zero);
    world.image.write(8, Block::Text(108));
    world.back_up(2).await;
    let updated = to_the_end(world.reuse()).await;
    assert_eq!((updated.summary().reused_blocks, world.asked().len()), (6, 2), "incremental");
    world.assert_equal("updated");

    // Rot, junk where the volume has nothing, another length: repaired, by what differs only.
    let out = Image::open(&world.out());
    out.write_at(BLOCK as u64 + 77, b"rot");
    out.write_at(9 * BLOCK as u64 + 1234, b"junk");
    std::fs::File::options().write(true).open(world.out()).expect("open").set_len(20 * BLOCK as u64).expect("longer");
    world.server.forget_requests();
    let repaired = to_the_end(world.reuse()).await;
    assert_eq!((repaired.summary().reused_blocks, world.asked().len()), (7, 1), "repaired");
    world.assert_equal("repaired");

    world.server.forget_requests();
    let again = to_the_end(world.reuse()).await;
    assert_eq!((again.summary().reused_blocks, world.asked().len()), (8, 0), "nothing to do");
    std::fs::File::options().write(true).open(world.out()).expect("open").set_len(3 * BLOCK as u64).expect("shorter");
    let shorter = to_the_end(world.reuse()).await;
    assert_eq!((shorter.summary().reused_blocks, world.asked().len()), (3, 5), "a file that was cut");
    world.assert_equal("cut, then made whole");
}

#[tokio::test]
async fn a_second_restore_into_the_same_file_is_refused() {
    let world = World::new("restore-two", &random(3)).await;
    world.server.fault(Rule::new(Fault::Hold).on(Kind::Get).key("/blocks/"));
    let (first, second) = (world.job(), world.reuse());
    let running = tokio::spawn(to_the_end(first));
    while world.asked().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let error = to_the_end(second).await.error();
    assert!(error.to_string().contains("another program holds it"), "{error}");
    assert_eq!((error.reason(), error.left()), (FailureReason::TargetRefused, Some(Left::Untouched)));
    world.server.heal();
    running.await.expect("no panic").summary();
    world.assert_equal("the first goes on");
}

/// Writes a lock of another as Longhorn would, now.
fn put_lock(world: &World, kind: i64) -> String {
    let key = format!("{}lock-0011223344556677.lck", world.layout().locks());
    let path = world.server.bucket("backups").join("some/prefix").join(&key);
    std::fs::create_dir_all(path.parent().expect("keys have folders")).expect("made");
    let body = format!(r#"{{"Name":"lock-0011223344556677","Type":{kind},"Acquired":true}}"#);
    std::fs::write(path, body).expect("written");
    key
}

#[tokio::test]
async fn law_7_a_restore_is_refused_while_a_deletion_holds_the_volume() {
    let world = World::new("restore-locked", &random(2)).await;
    let key = put_lock(&world, 2);
    let ran = to_the_end(world.job()).await;
    let error = ran.error();
    assert_eq!((error.reason(), error.exit_code()), (FailureReason::LockHeld, 69), "{error}");
    assert!(error.to_string().contains(&key) && error.to_string().contains("ends by itself within"), "{error}");
    assert_eq!((error.left(), world.out().exists()), (Some(Left::Untouched), false));
    let locks: Vec<_> = world.server.objects("backups").into_iter().filter(|o| o.key.contains("/locks/")).collect();
    assert_eq!(locks.len(), 1, "our own lock is gone again: {locks:?}");

    put_lock(&world, 1);
    to_the_end(world.job()).await.summary();
    world.assert_equal("shared with backups and restores");
}

#[tokio::test]
async fn law_7_a_restore_ends_when_its_lock_is_lost() {
    let world = World::new("restore-lost", &random(4)).await;
    let mut job = world.job();
    let quick = Duration::from_millis;
    let timing = Timing { settle: quick(5), refresh: quick(50), lease: quick(600), ..Timing::default() };
    job.locking = Locking::Shared { attempt: AttemptId::new(78, [8; 10]), timing };
    world.server.fault(Rule::new(Fault::Hold).on(Kind::Get).key("/blocks/").after(2));
    // Two PUTs take the lock; every later one refreshes it.
    world.server.fault(Rule::new(Fault::internal_error()).on(Kind::PutOther).key("/locks/").after(2));
    let error = to_the_end(job).await.error();
    assert_eq!((error.reason(), error.exit_code()), (FailureReason::GuardLost, 69), "{error}");
    assert!(error.to_string().contains("lock"), "{error}");
}

#[tokio::test]
async fn credentials_that_may_only_read_restore_without_a_lock_when_told_to() {
    let world = World::new("restore-reader", &random(3)).await;
    world.server.fault(Rule::new(Fault::refuse("AccessDenied")).on(Kind::PutOther).on(Kind::Delete));
    let ran = to_the_end(world.job()).await;
    let error = ran.error();
    assert_eq!((error.reason(), error.exit_code()), (FailureReason::AccessDenied, 65), "{error}");
    for words in ["/locks/", "--no-lock", "was not touched"] {
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    assert!(!world.out().exists());
    world.server.forget_requests();
    to_the_end(RestoreJob { locking: Locking::Without, ..world.job() }).await.summary();
    world.assert_equal("without a lock");
    let is_write = |kind: Kind| !matches!(kind, Kind::Get | Kind::Head | Kind::List);
    assert!(world.server.requests().iter().all(|r| !is_write(r.kind)), "nothing was written");
}

#[tokio::test]
async fn every_hole_is_told_however_many_there_are() {
    let world = World::new("restore-holes", &random(6)).await;
    for index in [1, 3, 4] {
        std::fs::remove_file(world.block_file(index)).expect("removed");
    }
    let told: Arc<std::sync::Mutex<Vec<u64>>> = Arc::default();
    let keep = told.clone();
    let on_hole: restore::OnHole = Arc::new(move |hole| keep.lock().expect("no panic").push(hole.offset));
    let job = RestoreJob { damage: Damage::KeepGoing, on_hole: Some(on_hole), ..world.job() };
    let error = to_the_end(job).await.error();
    let RestoreError::Holes { count: 3, first } = &error else { panic!("{error}") };
    let mut told = told.lock().expect("no panic").clone();
    told.sort_unstable();
    assert_eq!(told, first.iter().map(|hole| hole.offset).collect::<Vec<_>>());
    assert_eq!(told, [1, 3, 4].map(|index| index * BLOCK as u64));
}
