//! One protocol, two runners: what every runner promises, shown with real worker processes for both. Local processes are
//! started by the runner itself; Jobs are made on a real API server, and a played Job controller and kubelet run them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::support::{
    self, Image, Lent, TempDir, eventually,
    node::{Node, Plays},
};
use kube::Client;
use tidemark::{
    controller::runner::{
        AttemptRef, Runner, Volume, Worker, job::JobRunner, process::ProcessRunner, settings::WorkerSettings,
    },
    http::fetch_report,
    model::{Credentials, FailureReason, JobSpec, Outcome, Report, ReportKey, StoreLocation},
};

const PATIENCE: Duration = Duration::from_secs(120);

/// A runner, and how to do to its workers what it would not.
struct Machine {
    runner: Arc<dyn Runner>,
    /// Another operator's, on the same workers.
    again: Box<dyn Fn() -> Arc<dyn Runner>>,
    /// `kill -9` of all workers.
    kill: Box<dyn Fn()>,
    directory: TempDir,
    _plane: Option<(Lent, Arc<Node>)>,
}

impl Machine {
    fn of_processes() -> Self {
        let directory = support::scratch("runner");
        let state = directory.path().join("state");
        let open = move || {
            let environment = vec![("TIDEMARK_LOG".into(), "info".into())];
            Arc::new(ProcessRunner::open(&state, support::operator::program(), environment).expect("ours"))
                as Arc<dyn Runner>
        };
        let state = directory.path().join("state");
        let kill = move || {
            for entry in std::fs::read_dir(&state).into_iter().flatten().flatten() {
                let text = std::fs::read_to_string(entry.path().join("pid")).unwrap_or_default();
                let pid = text
                    .split_whitespace()
                    .next()
                    .and_then(|w| w.parse().ok())
                    .and_then(rustix::process::Pid::from_raw);
                if let Some(pid) = pid {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        };
        Self { runner: open(), again: Box::new(open), kill: Box::new(kill), directory, _plane: None }
    }

    async fn of_jobs() -> Self {
        let plane = Lent::borrow().await;
        let client = plane.client().await;
        let node = Arc::new(Node::start(&plane, client.clone(), "default", Plays::Everything));
        let open = move || Arc::new(open(client.clone())) as Arc<dyn Runner>;
        let killed = node.clone();
        Self {
            runner: open(),
            again: Box::new(open),
            kill: Box::new(move || {
                killed.kill_workers();
            }),
            directory: support::scratch("runner"),
            _plane: Some((plane, node)),
        }
    }

    fn image(&self, blocks: usize) -> PathBuf {
        let path = self.directory.path().join("image");
        drop(Image::random(&path, blocks, 7));
        path
    }

    fn job(&self, image: &Path, attempt: u64) -> JobSpec {
        let path = self.directory.path().join("bucket");
        std::fs::create_dir_all(&path).expect("ours");
        let uid = "3f0c2d1e-aaaa-bbbb-cccc-000000000001";
        JobSpec { store: StoreLocation::Directory { path }, ..support::job::job(image, uid, attempt) }
    }
}

fn open(client: Client) -> JobRunner {
    let settings = WorkerSettings { image: "tidemark:test".into(), ..WorkerSettings::default() };
    JobRunner::open(client, "default", settings)
}

fn attempt_of(job: &JobSpec) -> AttemptRef {
    AttemptRef::new(&job.uid, job.attempt_number).expect("fit")
}

fn keys(id: &str) -> Credentials {
    Credentials { access_key_id: id.into(), secret_access_key: "secret".into(), session_token: None }
}

async fn until(runner: &dyn Runner, attempt: &AttemptRef, what: &str, wanted: impl Fn(&Worker) -> bool) -> Worker {
    eventually(what, PATIENCE, || async {
        match runner.look(attempt).await {
            Ok(worker) if wanted(&worker) => Ok(worker),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

fn is_open(worker: &Worker) -> bool {
    matches!(worker, Worker::Alive { address: Some(_), .. })
}

fn is_ended(worker: &Worker) -> bool {
    matches!(worker, Worker::Ended { .. })
}

/// Its end is seen a moment before its exit code is written down.
fn is_explained(worker: &Worker) -> bool {
    matches!(worker, Worker::Ended { exit_code: Some(_), .. })
}

/// Start, hear, end, last word, remove.
async fn a_worker_is_heard_and_leaves_a_last_word(machine: Machine) {
    let (runner, image) = (machine.runner.as_ref(), machine.image(3));
    let job = machine.job(&image, 1);
    let attempt = attempt_of(&job);
    assert_eq!(runner.look(&attempt).await.expect("asked"), Worker::Absent);
    runner.start(&job, &keys("one"), &Volume::default()).await.expect("started");
    let Worker::Alive { run, address: Some(address), .. } = until(runner, &attempt, "open", is_open).await else {
        unreachable!("it was waited for")
    };
    let line =
        eventually("heard", PATIENCE, || async { fetch_report(address, &run.key).await.map_err(|e| e.to_string()) });
    let report = Report::decode(&line.await, &run.key).expect("its own");
    assert_eq!((&report.attempt, &report.pod), (&job.attempt, &run.pod), "bound to the Pod that was found");
    let Worker::Ended { run, exit_code, trouble } = until(runner, &attempt, "ended", is_explained).await else {
        unreachable!("it was waited for")
    };
    assert_eq!((exit_code, trouble), (Some(0), None));
    let line = runner.last_word(&attempt).await.expect("read").expect("a last word");
    let last = Report::decode(&line, &run.key).expect("its own");
    assert!(matches!(last.outcome, Some(Outcome::Completed { .. })), "{last:?}");
    assert_eq!(last.pod, run.pod);
    assert_eq!(runner.list().await.expect("listed"), std::slice::from_ref(&attempt));
    runner.remove(&attempt).await.expect("removed");
    runner.remove(&attempt).await.expect("and again");
    assert_eq!(runner.look(&attempt).await.expect("asked"), Worker::Absent);
    assert_eq!(runner.list().await.expect("listed"), []);
}

/// A long worker, started twice, found by another operator, stopped, and not started again.
async fn starting_twice_is_adopting_and_what_was_stopped_stays_so(machine: Machine) {
    let (runner, image) = (machine.runner.as_ref(), machine.image(8));
    let mut job = machine.job(&image, 1);
    job.limits.max_bytes_per_second = Some(64 * 1024);
    let attempt = attempt_of(&job);
    runner.start(&job, &keys("one"), &Volume::default()).await.expect("started");
    let other = JobSpec { report_key: ReportKey::new([9; 32]), ..job.clone() };
    runner.start(&other, &keys("one"), &Volume::default()).await.expect("adopted");
    let first = until(runner, &attempt, "open", is_open).await;
    let Worker::Alive { run, address, .. } = &first else { unreachable!("it was waited for") };
    assert_eq!(run.key, job.report_key, "the job it was given counts");

    let again = (machine.again)();
    again.start(&other, &keys("one"), &Volume::default()).await.expect("adopted");
    let Worker::Alive { run: found, address: at, .. } = until(again.as_ref(), &attempt, "found", is_open).await else {
        unreachable!("it was waited for")
    };
    assert_eq!((&found, &at), (run, address));

    runner.stop(&attempt).await.expect("asked to end");
    until(runner, &attempt, "ended", is_ended).await;
    runner.stop(&attempt).await.expect("and again");
    for runner in [runner, again.as_ref()] {
        runner.start(&job, &keys("one"), &Volume::default()).await.expect("nothing is left to do");
        assert!(is_ended(&runner.look(&attempt).await.expect("asked")), "a second run under the same attempt");
    }
    runner.remove(&attempt).await.expect("removed");
    assert_eq!(runner.list().await.expect("listed"), []);
}

/// `kill -9`: the exit code says so and the last word was said before.
async fn a_killed_worker_is_told_from_one_that_failed(machine: Machine) {
    let (runner, image) = (machine.runner.as_ref(), machine.image(8));
    let mut job = machine.job(&image, 1);
    job.limits.max_bytes_per_second = Some(64 * 1024);
    let attempt = attempt_of(&job);
    runner.start(&job, &keys("one"), &Volume::default()).await.expect("started");
    let Worker::Alive { run, address: Some(address), .. } = until(runner, &attempt, "open", is_open).await else {
        unreachable!("it was waited for")
    };
    eventually("heard", PATIENCE, || async { fetch_report(address, &run.key).await.map_err(|e| e.to_string()) }).await;
    (machine.kill)();
    let Worker::Ended { run, exit_code, trouble } = until(runner, &attempt, "ended", is_explained).await else {
        unreachable!("it was waited for")
    };
    assert_eq!(exit_code, Some(137));
    // A Pod says itself that it was no kill for memory; a process cannot tell.
    assert!(trouble.as_ref().is_none_or(|t| t.reason == FailureReason::WorkerCrashed), "{trouble:?}");
    let line = runner.last_word(&attempt).await.expect("read").expect("a last word");
    assert!(!Report::decode(&line, &run.key).expect("its own").is_final());
    // A failure of its own has its own code.
    let unreadable = JobSpec { v: 0, ..machine.job(&image, 2) };
    let second = attempt_of(&unreadable);
    runner.start(&unreadable, &keys("one"), &Volume::default()).await.expect("started");
    let ended = until(runner, &second, "ended", is_explained).await;
    assert!(matches!(ended, Worker::Ended { exit_code: Some(64), .. }), "{ended:?}");
    let mut left = runner.list().await.expect("listed");
    left.sort();
    assert_eq!(left, [attempt, second]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_process_is_heard_and_leaves_a_last_word() {
    a_worker_is_heard_and_leaves_a_last_word(Machine::of_processes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_job_is_heard_and_leaves_a_last_word() {
    a_worker_is_heard_and_leaves_a_last_word(Machine::of_jobs().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn law_8_a_worker_process_runs_once_however_often_it_is_started() {
    starting_twice_is_adopting_and_what_was_stopped_stays_so(Machine::of_processes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn law_8_a_workers_pod_is_made_once_however_often_it_is_started() {
    starting_twice_is_adopting_and_what_was_stopped_stays_so(Machine::of_jobs().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn law_5_a_killed_worker_process_is_told_from_one_that_failed() {
    a_killed_worker_is_told_from_one_that_failed(Machine::of_processes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn law_5_a_killed_workers_pod_is_told_from_one_that_failed() {
    a_killed_worker_is_told_from_one_that_failed(Machine::of_jobs().await).await;
}
