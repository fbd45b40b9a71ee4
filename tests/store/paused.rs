//! A worker that is stopped (SIGSTOP: a frozen node, a debugger, a suspended machine) for longer than its lock is
//! honoured, and wakes up when its successor has finished: it seals nothing, it touches no record, and no record ever
//! names a block that is missing. A restore that slept through its lock's end is not completed either.
//!
//! The worker is a process of its own: this program once more, with one of the tests below that are ignored. Always with
//! a lock that is honoured for seconds; by hand (`soak_…`) with Longhorn's own clock and a stop of five minutes.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::support::{
    self, Block, Fault, Image, Kind, Process, Rule, S3Server, TempDir, eventually, image::difference, job,
};
use rustix::process::Signal;
use tidemark::{
    model::{AttemptId, BackupName, FailureReason, Outcome, Report, RestoreProgress},
    restore::{self, Locking, RestoreJob},
    store::{client::Client, guard::Timing, layout::VolumeLayout, record::RecordId},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const VOLUME: &str = "pvc-test";
const UID: &str = "uid-paused";

/// A lock that is honoured for three seconds: a busy machine needs one at times to refresh it.
fn short() -> Timing {
    Timing {
        settle: Duration::from_millis(20),
        refresh: Duration::from_millis(200),
        lease: Duration::from_secs(3),
        lease_to_seal: Duration::from_millis(500),
    }
}

/// How long a worker is stopped, by whose clock it holds its lock, and by whose its successor does, which must keep it.
#[derive(Clone, Copy)]
struct Pause {
    timing: Timing,
    successor: Timing,
    stopped_for: Duration,
}

const SHORT: &str = "short";
const LONGHORNS: &str = "longhorns";

fn pause(clock: &str) -> Pause {
    match clock {
        SHORT => Pause { timing: short(), successor: job::quick(), stopped_for: Duration::from_secs(4) },
        _ => {
            let longhorns = Timing::default();
            Pause { timing: longhorns, successor: longhorns, stopped_for: Duration::from_secs(300) }
        }
    }
}

fn layout() -> VolumeLayout {
    VolumeLayout::new(&VOLUME.parse().expect("a volume name"))
}

/// Where a backup is stopped: the request that is held while it sleeps.
#[derive(Debug, Clone, Copy)]
enum Point {
    /// Three blocks are acknowledged, the others are on their way.
    Uploading,
    /// Every block is acknowledged; the last look before the record.
    Sealing,
    /// The record is on its way, and arrives when the successor has long finished.
    Record,
}

impl Point {
    fn rule(self) -> Rule {
        match self {
            Self::Uploading => Rule::new(Fault::Hold).on(Kind::PutBlock).after(3),
            // The first look is the survey's.
            Self::Sealing => Rule::new(Fault::Hold).on(Kind::Get).key("volume.cfg").nth(2),
            Self::Record => {
                let record = BackupName::of_attempt(UID, &job::job(Path::new("/"), UID, 1).attempt);
                Rule::new(Fault::Hold).on(Kind::PutOther).key(&layout().backup(&record)).times(1)
            }
        }
    }
}

struct World {
    server: S3Server,
    image: Image,
    folder: TempDir,
}

impl World {
    /// A volume that was backed up before, with other data.
    async fn new() -> Self {
        let (server, folder) = (S3Server::start(), support::scratch("paused"));
        let old = Image::of(&folder.path().join("old"), &(0..8).map(Block::Text).collect::<Vec<_>>());
        let objects = job::s3(&server);
        let first = job::run_by_clock(job::job(old.path(), "uid-old", 9), objects, job::quick()).await;
        assert!(matches!(first.outcome, Some(Outcome::Completed { .. })), "{first:?}");
        let image = Image::of(&folder.path().join("image"), &(20..28).map(Block::Text).collect::<Vec<_>>());
        Self { server, image, folder }
    }

    /// This program again, as a worker.
    fn start(&self, role: &str, clock: &str, backup: &str) -> Process {
        let mut command = Command::new(std::env::current_exe().expect("this test is a program"));
        command.args([&format!("paused::{role}"), "--exact", "--ignored", "--nocapture"]).stdin(Stdio::null());
        command.env("TIDEMARK_PAUSED", self.server.endpoint()).env("TIDEMARK_PAUSED_CLOCK", clock);
        command.env("TIDEMARK_PAUSED_FOLDER", self.folder.path()).env("TIDEMARK_PAUSED_BACKUP", backup);
        Process::start(role, command, &self.folder.path().join(format!("{role}.log")))
    }

    /// Stops it at the request that the server holds.
    async fn stop_at_the_held(&self, worker: &Process) {
        eventually("a request is held", Duration::from_secs(60), || async {
            let held = |r: &support::s3_server::LoggedRequest| r.fault == Some(Fault::Hold) && r.status.is_none();
            self.server.requests().iter().any(held).then_some(()).ok_or_else(|| worker.tail())
        })
        .await;
        worker.signal(Signal::STOP);
        // A busy machine delivers it to one thread while another still runs.
        eventually("every thread is stopped", Duration::from_secs(60), || async {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", worker.pid())).map_err(|e| e.to_string())?;
            let status = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("status"));
            let statuses: Vec<String> = tasks.flatten().filter_map(|task| status(task).ok()).collect();
            let is_stopped = statuses.iter().all(|s| s.contains("State:\tT")) && !statuses.is_empty();
            is_stopped.then_some(()).ok_or_else(|| statuses.concat())
        })
        .await;
    }

    /// Every record of the volume with its bytes.
    fn records(&self) -> Vec<(String, Vec<u8>)> {
        let folder = self.server.bucket("backups").join("some/prefix").join(layout().backups());
        let entries = std::fs::read_dir(folder).expect("the volume has records").flatten();
        let read =
            entries.map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).expect("read")));
        let mut records: Vec<_> = read.filter(|(name, _)| name.starts_with("backup_backup-")).collect();
        records.sort();
        records
    }
}

/// The last thing a worker said. It is told to wait for its end in a moment that the law does not depend on.
async fn last_words(mut worker: Process) -> String {
    let end = Instant::now() + Duration::from_secs(120);
    while worker.ended().is_none() {
        assert!(Instant::now() < end, "it does not end: {}", worker.tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let said = worker.output();
    let last = said.lines().find_map(|line| line.split_once("LAST ")).map(|(_, last)| last.to_owned());
    last.unwrap_or_else(|| panic!("no last words: {said}"))
}

async fn backup_sleeps(point: Point, clock: &str) {
    let (world, pause) = (World::new().await, pause(clock));
    world.server.fault(point.rule());
    let stopped = world.start("a_worker", clock, "");
    world.stop_at_the_held(&stopped).await;
    let asleep = Instant::now();
    // What is held is held for the successor too, but for the record, whose key is its own.
    if !matches!(point, Point::Record) {
        world.server.heal();
    }
    let objects = job::s3(&world.server);
    let successor = job::run_by_clock(job::job(world.image.path(), UID, 2), objects.clone(), pause.successor).await;
    let Some(Outcome::Completed { backup, .. }) = &successor.outcome else { panic!("{point:?}: {successor:?}") };
    assert_eq!(job::compare(&objects, VOLUME, &backup.to_string(), world.image.path()).await, None);
    let sealed = world.records();
    // It sleeps until nobody honours its lock any more: that is what is shown here.
    tokio::time::sleep(pause.stopped_for.saturating_sub(asleep.elapsed())).await;
    world.server.heal();
    stopped.signal(Signal::CONT);
    let last: Report = serde_json::from_str(&last_words(stopped).await).expect("a report");
    let reason = last.failure.as_ref().map(|failure| failure.reason);
    assert!(last.outcome.is_some() && !matches!(last.outcome, Some(Outcome::Completed { .. })), "{point:?}: {last:?}");
    assert_eq!(reason, Some(FailureReason::GuardLost), "{point:?}: {last:?}");
    let now = world.records();
    assert!(sealed.iter().all(|record| now.contains(record)), "{point:?}: a record was changed or is gone");
    // What was on its way before the stop may arrive: then it is whole, and nothing else was sealed.
    let late = if matches!(point, Point::Record) { 1 } else { 0 };
    assert!(now.len() <= sealed.len() + late, "{point:?}: {:?}", now.iter().map(|r| &r.0).collect::<Vec<_>>());
    for (name, _) in now.iter().filter(|r| !sealed.contains(r) || r.0.contains(&backup.to_string())) {
        let backup = name.trim_start_matches("backup_").trim_end_matches(".cfg");
        assert_eq!(job::compare(&objects, VOLUME, backup, world.image.path()).await, None, "{point:?}: {name}");
    }
    println!("{point:?}: asleep for {:.1?}, ended as {reason:?}, {} records", asleep.elapsed(), now.len());
}

/// Two blocks arrive, the others are held while it sleeps.
async fn restore_sleeps(clock: &str) {
    let (world, pause) = (World::new().await, pause(clock));
    let objects = job::s3(&world.server);
    let made = job::run_by_clock(job::job(world.image.path(), UID, 1), objects.clone(), job::quick()).await;
    let Some(Outcome::Completed { backup, .. }) = &made.outcome else { panic!("{made:?}") };
    world.server.fault(Rule::new(Fault::Hold).on(Kind::Get).key("/blocks/").after(2));
    let stopped = world.start("a_restore", clock, &backup.to_string());
    world.stop_at_the_held(&stopped).await;
    let asleep = Instant::now();
    world.server.heal();
    let other = world.folder.path().join("other");
    let restored = restore(objects, backup.clone(), &other, (2, pause.successor)).await;
    assert_eq!((restored, difference(world.image.path(), &other)), (Ok(()), None), "its successor");
    tokio::time::sleep(pause.stopped_for.saturating_sub(asleep.elapsed())).await;
    stopped.signal(Signal::CONT);
    let last = last_words(stopped).await;
    // By Longhorn's clock the download that it was waiting for has run out of time as well, and may be told first.
    let is_lost = last.contains("GuardLost") || clock == LONGHORNS;
    assert!(last.starts_with("Err") && is_lost, "a deletion may have run while it slept: {last}");
    println!("restore: asleep for {:.1?}, ended as {last}", asleep.elapsed());
}

async fn restore(
    objects: std::sync::Arc<dyn tidemark::store::objects::Objects>,
    backup: BackupName,
    out: &Path,
    (attempt, timing): (u64, Timing),
) -> Result<(), String> {
    let client = Client::new(objects, Duration::from_secs(60), Duration::from_secs(3600));
    let record = RecordId { volume: VOLUME.parse().expect("a volume name"), backup };
    let attempt = AttemptId::new(attempt, [attempt as u8; 10]);
    let job = RestoreJob::new(client, record, out.to_owned(), attempt.clone());
    let job = RestoreJob { locking: Locking::Shared { attempt, timing }, ..job };
    let progress = watch::Sender::new(RestoreProgress::default());
    restore::run(job, progress, CancellationToken::new()).await.map(|_| ()).map_err(|error| format!("{error:?}"))
}

#[tokio::test]
async fn law_8_a_worker_stopped_in_mid_upload_wakes_up_to_a_finished_successor_and_seals_nothing() {
    backup_sleeps(Point::Uploading, SHORT).await;
}

#[tokio::test]
async fn law_8_a_worker_stopped_before_its_record_writes_none_when_it_wakes_up() {
    backup_sleeps(Point::Sealing, SHORT).await;
}

#[tokio::test]
async fn law_4_a_record_that_arrives_after_its_successors_is_whole_and_is_not_told_as_completed() {
    backup_sleeps(Point::Record, SHORT).await;
}

#[tokio::test]
async fn law_7_a_restore_that_slept_through_the_end_of_its_lock_is_not_completed() {
    restore_sleeps(SHORT).await;
}

#[tokio::test]
#[ignore = "five minutes: make soak"]
async fn soak_five_minutes_asleep_while_the_successor_finishes() {
    let uploading = backup_sleeps(Point::Uploading, LONGHORNS);
    let (sealing, record) = (backup_sleeps(Point::Sealing, LONGHORNS), backup_sleeps(Point::Record, LONGHORNS));
    tokio::join!(uploading, sealing, record, restore_sleeps(LONGHORNS));
}

fn variable(name: &str) -> String {
    support::environment(name).expect("set by the tests above")
}

#[tokio::test]
#[ignore = "run by the tests above, in a process of its own"]
async fn a_worker() {
    let image = Path::new(&variable("TIDEMARK_PAUSED_FOLDER")).join("image");
    let timing = pause(&variable("TIDEMARK_PAUSED_CLOCK")).timing;
    let last = job::run_by_clock(job::job(&image, UID, 1), job::s3_at(&variable("TIDEMARK_PAUSED")), timing).await;
    println!("LAST {}", serde_json::to_string(&last).expect("JSON"));
}

#[tokio::test]
#[ignore = "run by the tests above, in a process of its own"]
async fn a_restore() {
    let timing = pause(&variable("TIDEMARK_PAUSED_CLOCK")).timing;
    let backup = variable("TIDEMARK_PAUSED_BACKUP").parse().expect("a backup's name");
    let out = Path::new(&variable("TIDEMARK_PAUSED_FOLDER")).join("out");
    let ended = restore(job::s3_at(&variable("TIDEMARK_PAUSED")), backup, &out, (1, timing)).await;
    println!("LAST {ended:?}");
}
