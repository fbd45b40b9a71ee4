//! The operator on a real API server, with a real S3 server and worker processes: what a user sees of a Backup in good
//! times and in bad, and that nothing he sees is ever more than what lies in the bucket.
//!
//! Each test has a control plane of its own, for each kills or stops something that others would miss. A sampler reads
//! status *first* and counts objects *after*, all through the test: acknowledged ≤ objects at every sample, and the
//! count never falls within an attempt. At its end no status write may have been refused by a rule of the CRD.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use support::{
    ACCESS_KEYS, ControlPlane, Fault, Image, Kind, Rule, S3Server, eventually,
    operator::{Home, NAMESPACE, Operator},
};
use tidemark::api::{Backup, BackupState, BackupStatus, ClusterBackupTarget};

const BUCKET: &str = "backups";
const PATIENCE: Duration = Duration::from_secs(120);

/// Everything a test needs, and a sampler that watches it.
struct World {
    plane: ControlPlane,
    s3: Arc<S3Server>,
    home: Arc<Home>,
    client: Client,
    sampler: Sampler,
}

struct Sampler {
    stop: Arc<AtomicBool>,
    samples: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Option<String>>,
}

impl World {
    async fn new() -> Self {
        let plane = ControlPlane::start().await;
        let s3 = Arc::new(S3Server::start());
        s3.create_bucket(BUCKET);
        let client = plane.client().await;
        plane.apply(&tidemark::api::crds_yaml()).await;
        plane.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]).await;
        plane.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}")).await;
        let sampler = Sampler::start(client.clone(), s3.clone());
        let world = Self { plane, s3, home: Home::new(), client, sampler };
        world.secret(0).await;
        world.target("s3-primary", json!({})).await;
        world
    }

    async fn secret(&self, key: usize) {
        let (id, secret) = ACCESS_KEYS[key];
        self.plane
            .apply(&format!(
                "apiVersion: v1\nkind: Secret\nmetadata: {{name: s3, namespace: {NAMESPACE}}}\nstringData: {{AWS_ACCESS_KEY_ID: {id}, AWS_SECRET_ACCESS_KEY: {secret}}}\n"
            ))
            .await;
    }

    async fn target(&self, name: &str, more: serde_json::Value) {
        let mut spec = json!({
            "s3": {"bucket": BUCKET, "region": "us-east-1", "endpoint": self.s3.endpoint()},
            "credentials": {"secretName": "s3"},
            "allowedNamespaces": {"from": "All"},
        });
        merge(&mut spec, more);
        let target = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "ClusterBackupTarget", "metadata": {"name": name}, "spec": spec});
        self.plane.apply(&target.to_string()).await;
    }

    /// An image of this many random blocks, and its path.
    fn image(&self, name: &str, blocks: usize, seed: u64) -> Image {
        Image::random(&self.home.volumes().join(name), blocks, seed)
    }

    /// A Backup of that image.
    async fn backup(&self, name: &str, image: &str, more: serde_json::Value) {
        let path = self.home.volumes().join(image);
        let mut spec = json!({
            "source": {"hostDevice": {"path": path, "nodeName": "local", "name": image}},
            "targetRef": {"kind": "ClusterBackupTarget", "name": "s3-primary"},
            "retry": {"limit": 6, "backoff": "1s", "maxBackoff": "2s"},
        });
        merge(&mut spec, more);
        let backup = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Backup", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec});
        self.plane.apply(&backup.to_string()).await;
    }

    fn backups(&self) -> Api<Backup> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn patch(&self, name: &str, spec: serde_json::Value) {
        let patch = json!({"spec": spec});
        let params = PatchParams::default();
        self.backups().patch(name, &params, &Patch::Merge(&patch)).await.expect("the API server takes the verb");
    }

    /// Waits until the status is as wanted.
    async fn until(
        &self,
        operator: &Operator,
        name: &str,
        what: &str,
        wanted: impl Fn(&BackupStatus) -> bool,
    ) -> BackupStatus {
        let backups = self.backups();
        let end = Instant::now() + PATIENCE;
        loop {
            let seen = backups.get(name).await.ok().and_then(|b| b.status);
            if let Some(status) = seen.as_ref().filter(|s| wanted(s)) {
                return status.clone();
            }
            if Instant::now() > end {
                panic!("{name}: not {what} in time. Seen: {seen:#?}\n{}", operator.tail());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn completed(&self, operator: &Operator, name: &str) -> BackupStatus {
        self.until(operator, name, "Completed", |s| s.state == Some(BackupState::Completed)).await
    }

    /// The laws held at every sample, no rule had to hold them for us, and a restart lost nothing.
    async fn end(self, operators: &[&Operator]) {
        for operator in operators {
            let refused = metric(operator, "tidemark_status_writes_refused_total").await;
            assert_eq!(refused, Some(0.0), "status writes refused\n{}", operator.tail());
        }
        self.sampler.stop.store(true, SeqCst);
        let broken = self.sampler.task.await.expect("the sampler does not panic");
        assert_eq!(broken, None);
        let samples = self.sampler.samples.load(SeqCst);
        assert!(samples > 0, "nothing was sampled");
        println!("{samples} samples: acknowledged was never more than what is in the bucket");
    }
}

fn merge(into: &mut serde_json::Value, more: serde_json::Value) {
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        into[key] = value;
    }
}

impl Sampler {
    fn start(client: Client, s3: Arc<S3Server>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let samples = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (stop.clone(), samples.clone());
        let task = tokio::spawn(async move {
            let backups: Api<Backup> = Api::all(client);
            let mut shown = std::collections::HashMap::<(String, String), i64>::new();
            while !stopped.load(SeqCst) {
                // Away while the API server is: then nobody can be told anything wrong either.
                if let Ok(Ok(list)) =
                    tokio::time::timeout(Duration::from_secs(2), backups.list(&Default::default())).await
                {
                    let objects = s3.block_objects(BUCKET);
                    counted.fetch_add(1, SeqCst);
                    for backup in list {
                        let Some(status) = backup.status else { continue };
                        let (Some(progress), Some(store)) = (&status.progress, &status.store) else { continue };
                        let of_volume =
                            objects.iter().filter(|o| o.key.contains(&format!("/{}/", store.volume))).count();
                        let acknowledged = progress.acknowledged_blocks;
                        if usize::try_from(acknowledged).unwrap_or(usize::MAX) > of_volume {
                            return Some(format!("{acknowledged} acknowledged, {of_volume} objects: {status:#?}"));
                        }
                        let attempt = status.attempt.as_ref().map(|a| a.id.clone()).unwrap_or_default();
                        let before = shown.entry((store.volume.clone(), attempt)).or_default();
                        if acknowledged < *before {
                            return Some(format!("{acknowledged} after {before}: {status:#?}"));
                        }
                        *before = acknowledged;
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            None
        });
        Self { stop, samples, task }
    }
}

/// One number of the operator's /metrics.
async fn metric(operator: &Operator, name: &str) -> Option<f64> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(operator.http()?).await.ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn acknowledged(status: &BackupStatus) -> i64 {
    status.progress.as_ref().map_or(0, |p| p.acknowledged_blocks)
}

/// The store takes this many blocks more and then lets every other wait until it is healed: an upload stands still at
/// exactly that block.
fn hold_after(s3: &S3Server, blocks: u64) {
    s3.fault(Rule::new(Fault::Hold).on(Kind::PutBlock).after(blocks));
}

#[tokio::test]
async fn law_4_a_backup_is_completed_and_its_conditions_say_so() {
    let world = World::new().await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.image("a.img", 5, 1);
    world.backup("first", "a.img", json!({})).await;
    let status = world.completed(&operator, "first").await;
    let progress = status.progress.clone().expect("progress");
    assert_eq!(
        (progress.total_blocks, progress.acknowledged_blocks, progress.percent),
        (Some(5), 5, 100),
        "{status:#?}"
    );
    let truth = |s: &BackupStatus, kind: &str| s.conditions.iter().find(|c| c.type_ == kind).map(|c| c.status.clone());
    for kind in ["Ready", "SnapshotReady", "DataAcknowledged", "RecordCommitted"] {
        assert_eq!(truth(&status, kind).as_deref(), Some("True"), "{kind}: {status:#?}");
    }
    assert_eq!((truth(&status, "Reconciling"), truth(&status, "Stalled")), (None, None));
    assert_eq!(world.s3.block_objects(BUCKET).len(), 5);
    // Nothing is left: no worker, no directory, no finalizer, and the object goes when it is deleted.
    eventually("the worker's things are gone", PATIENCE, || async {
        let finalizers = world.backups().get("first").await.map_err(|e| e.to_string())?.metadata.finalizers;
        let left = std::fs::read_dir(world.home.state())
            .expect("state")
            .flatten()
            .filter(|e| e.path().join("job.json").exists())
            .count();
        if finalizers.iter().flatten().count() == 0 && left == 0 {
            Ok(())
        } else {
            Err(format!("{finalizers:?} {left}"))
        }
    })
    .await;
    world.image("a.img", 5, 1);
    world.backup("second", "a.img", json!({})).await;
    let again = world.completed(&operator, "second").await;
    assert_eq!(
        again.progress.map(|p| (p.uploaded_blocks, p.reused_blocks)),
        Some((0, 5)),
        "an unchanged volume sends nothing"
    );
    let targets: Api<ClusterBackupTarget> = Api::all(world.client.clone());
    let target = targets.get("s3-primary").await.expect("it is there").status.expect("it was looked at");
    assert_eq!(
        target.conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.status.as_str()),
        Some("True"),
        "{target:#?}"
    );
    world.plane.kubectl(&["delete", "backups.tidemark.dev", "--all", "-n", NAMESPACE, "--timeout=30s"]).await;
    assert_eq!(world.s3.block_objects(BUCKET).len(), 5, "deleting objects is not deleting data");
    world.end(&[&operator]).await;
}

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
    world.s3.heal();
    hold_after(&world.s3, 4);
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
    // Longer than the lease: this operator must stop acting, and find everything again.
    tokio::time::sleep(Duration::from_secs(20)).await;
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
async fn law_9_a_hundred_backups_queue_within_the_limits_and_all_complete() {
    let world = World::new().await;
    world
        .target("s3-primary", json!({"limits": {"maxConcurrentBackups": 6, "maxConcurrentBackupsPerNamespace": 6}}))
        .await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &["--max-concurrent-backups", "4"]);
    let mut most = 0;
    let mut manifests = String::new();
    for n in 0..100 {
        let image = format!("v{n}.img");
        world.image(&image, 1, 100 + n);
        let path = world.home.volumes().join(&image);
        manifests += &format!(
            "---\napiVersion: tidemark.dev/v1alpha1\nkind: Backup\nmetadata: {{name: q{n:03}, namespace: {NAMESPACE}}}\nspec: {{source: {{hostDevice: {{path: {}, nodeName: local, name: v{n}}}}}, targetRef: {{name: s3-primary}}}}\n",
            path.display()
        );
    }
    world.plane.apply(&manifests).await;
    let end = Instant::now() + Duration::from_secs(540);
    loop {
        most = most.max(world.home.workers().len());
        let done = world.backups().list(&Default::default()).await.expect("listed");
        let states: Vec<_> = done.iter().filter_map(|b| b.status.as_ref()?.state).collect();
        assert!(!states.contains(&BackupState::Error), "{}", operator.tail());
        if states.iter().filter(|s| **s == BackupState::Completed).count() == 100 {
            break;
        }
        assert!(Instant::now() < end, "{states:?}\n{}", operator.tail());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!((2..=4).contains(&most), "{most} workers at once");
    world.end(&[&operator]).await;
}

#[tokio::test]
async fn what_cel_cannot_see_becomes_a_condition_that_names_the_object_and_the_cure() {
    let world = World::new().await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.image("a.img", 1, 7);
    world.backup("nowhere", "a.img", json!({"targetRef": {"kind": "ClusterBackupTarget", "name": "absent"}})).await;
    world.target("closed", json!({"allowedNamespaces": {"from": "Names", "names": ["shop"]}})).await;
    world.backup("closed", "a.img", json!({"targetRef": {"kind": "ClusterBackupTarget", "name": "closed"}})).await;
    world.backup("claim", "a.img", json!({"source": {"persistentVolumeClaim": {"name": "pg"}}})).await;
    world
        .target(
            "missing-bucket",
            json!({"s3": {"bucket": "nobody", "region": "us-east-1", "endpoint": world.s3.endpoint()}}),
        )
        .await;
    world.target("missing-secret", json!({"credentials": {"secretName": "none"}})).await;
    for (name, reason, cure) in [
        ("nowhere", "WaitingForTarget", "ClusterBackupTarget absent does not exist: create it"),
        ("closed", "TargetNotAllowed", "must add it to spec.allowedNamespaces"),
        ("claim", "SourceNotSupported", "use spec.source.hostDevice"),
    ] {
        let status = world.until(&operator, name, reason, |s| s.reason.as_deref() == Some(reason)).await;
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready").expect("always there");
        assert!(ready.message.contains(cure), "{ready:#?}");
    }
    let targets: Api<ClusterBackupTarget> = Api::all(world.client.clone());
    for (name, reason) in [("missing-bucket", "BucketMissing"), ("missing-secret", "SecretMissing")] {
        eventually(name, PATIENCE, || async {
            let status = targets.get(name).await.map_err(|e| e.to_string())?.status;
            let ready = status.as_ref().and_then(|s| s.conditions.iter().find(|c| c.type_ == "Ready"));
            if ready.is_some_and(|r| r.reason == reason) { Ok(()) } else { Err(format!("{ready:?}")) }
        })
        .await;
    }
    // The object that was waited for appears.
    world.target("absent", json!({})).await;
    world.completed(&operator, "nowhere").await;
    world.end(&[&operator]).await;
}

#[tokio::test]
async fn cancel_ends_the_worker_and_a_retry_request_is_one_more_attempt() {
    let world = World::new().await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.image("a.img", 12, 8);
    hold_after(&world.s3, 2);
    world.backup("cancelled", "a.img", json!({})).await;
    world.until(&operator, "cancelled", "at 2 blocks", |s| acknowledged(s) == 2).await;
    world.patch("cancelled", json!({"cancel": true})).await;
    let status = world.until(&operator, "cancelled", "Cancelled", |s| s.state == Some(BackupState::Cancelled)).await;
    assert!(status.progress.is_some_and(|p| p.percent < 100));
    assert!(world.home.workers().is_empty(), "{:?}", world.home.workers());
    world.s3.heal();

    world.s3.fault(Rule::new(Fault::refuse("AccessDenied")).on(Kind::PutBlock));
    world.image("b.img", 3, 9);
    world.backup("refused", "b.img", json!({"retry": {"limit": 0, "backoff": "1s", "maxBackoff": "2s"}})).await;
    let error = world.until(&operator, "refused", "in Error", |s| s.state == Some(BackupState::Error)).await;
    assert_eq!((error.reason.as_deref(), error.next_retry_time.is_some()), (Some("AccessDenied"), false), "{error:#?}");
    assert!(error.conditions.iter().any(|c| c.type_ == "Stalled" && c.status == "True"), "{error:#?}");
    world.s3.heal();
    world.patch("refused", json!({"retryRequest": "now"})).await;
    let status = world.completed(&operator, "refused").await;
    assert_eq!(status.attempt.map(|a| a.number), Some(2));
    assert_eq!(status.observed_retry_request.as_deref(), Some("now"));
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
    use rustix::process::{Pid, Signal, kill_process};
    let world = World::new().await;
    let asleep = Operator::start_in(&world.plane, world.home.clone(), &["--identity", "asleep"]);
    world.image("a.img", 12, 30);
    hold_after(&world.s3, 3);
    world.backup("deposed", "a.img", json!({})).await;
    world.until(&asleep, "deposed", "at 3 blocks", |s| acknowledged(s) == 3).await;
    let old = world.backups().get("deposed").await.expect("it is there");
    let pid = Pid::from_raw(asleep.pid().cast_signed()).expect("a pid is not 0");
    kill_process(pid, Signal::STOP).expect("our child");
    let awake = Operator::start_in(&world.plane, world.home.clone(), &["--identity", "awake"]);
    world.s3.heal();
    hold_after(&world.s3, 4);
    world.until(&awake, "deposed", "further", |s| acknowledged(s) >= 7).await;
    kill_process(pid, Signal::CONT).expect("our child");
    // The very packet it may have had on the way: a conflict, although it is forced.
    let stale = old.status.clone().expect("it had one");
    let late = tidemark::controller::backup::status::write(&world.backups(), &old, &stale).await;
    assert!(matches!(late, Ok(tidemark::controller::backup::status::Written::Conflict)), "{late:?}");
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
    use tidemark::model::{JobSpec, Outcome, Report, report::LOG_WORD};
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
    let mut lie: Report = {
        let word = std::fs::read_to_string(directory.join("last-word")).expect("a last word");
        Report::decode(&word, &second.report_key).expect("the second's own")
    };
    (lie.attempt, lie.pod, lie.sequence) = (first.attempt.clone(), first.pod.clone(), 1_000_000);
    lie.progress.total_blocks = 12;
    lie.progress.acknowledged_blocks = 12;
    let backup = tidemark::model::BackupName::of_attempt(&first.backup_uid, &first.attempt);
    lie.outcome = Some(Outcome::Completed { backup, adopted: false });
    let lines = [lie.encode(&first.report_key), lie.encode(&second.report_key)];
    world.home.kill_workers();
    std::fs::write(directory.join("last-word"), format!("{}\n", lines[0])).expect("ours");
    let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
    std::fs::write(directory.join("log"), format!("{log}{LOG_WORD} {}\n", lines[1])).expect("ours");
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

#[tokio::test]
async fn law_10_deleting_a_running_backup_ends_its_worker_and_keeps_the_data() {
    let world = World::new().await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.image("a.img", 8, 50);
    hold_after(&world.s3, 3);
    world.backup("deleted", "a.img", json!({"deletionPolicy": "Delete"})).await;
    world.until(&operator, "deleted", "at 3 blocks", |s| acknowledged(s) == 3).await;
    world.plane.kubectl(&["delete", "backups.tidemark.dev", "deleted", "-n", NAMESPACE, "--timeout=60s"]).await;
    assert!(world.home.workers().is_empty(), "{:?}", world.home.workers());
    assert!(world.s3.block_objects(BUCKET).len() >= 3, "data was removed");
    world.end(&[&operator]).await;
}
