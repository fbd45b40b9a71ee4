//! How much the operator takes when there is much: 10,000 finished Backups, 500 that wait and 50 that run. Memory, requests
//! to the API server and processor time are measured and printed; what must not grow with the number of finished ones is
//! held. docs/operator.md has the numbers. By hand: tools/soak.sh soak_ten_thousand

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tidemark::api::Backup;

use crate::{
    support::{
        eventually,
        node::{Node, Plays},
        operator::{NAMESPACE, Operator},
        storage::{DRIVER, Storage},
    },
    world::{World, merge, metric},
};

const FINISHED: usize = 10_000;
const WAITING: usize = 500;
const RUNNING: usize = 50;
const MIB: u64 = 1 << 20;
/// Every worker and every Backup together on a small machine.
const LONG: Duration = Duration::from_secs(900);

/// What one operator took until now.
#[derive(Debug, Clone, Copy)]
struct Taken {
    resident: u64,
    peak: u64,
    /// Seconds of processor time.
    processor: f64,
    requests: u64,
    at: Instant,
}

impl Taken {
    fn of(world: &World, operator: &Operator, user: &str) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{}/status", operator.pid())).expect("it runs");
        let kib = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).expect("Linux says so");
            line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number")
        };
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", operator.pid())).expect("it runs");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
        Self {
            resident: kib("VmRSS:") * 1024,
            peak: kib("VmHWM:") * 1024,
            processor: (ticks(11) + ticks(12)) / 100.0,
            requests: world.plane.requests_of(user).values().sum(),
            at: Instant::now(),
        }
    }

    fn print(&self, what: &str) {
        println!(
            "{what}: {} MiB (peak {}), {:.1} CPU s, {} requests",
            self.resident / MIB,
            self.peak / MIB,
            self.processor,
            self.requests
        );
    }
}

/// Finished Backups as one that was really made, under other names.
async fn multiply(world: &World, one: &Backup) {
    let began = Instant::now();
    let (spec, status) =
        (serde_json::to_value(&one.spec).expect("JSON"), serde_json::to_value(&one.status).expect("JSON"));
    let made = stream::iter(1..FINISHED).map(|n| {
        let (spec, mut status) = (spec.clone(), status.clone());
        async move {
            let namespace = format!("team-{}", n % 20);
            let name = format!("nightly-{n}");
            let api: Api<Backup> = Api::namespaced(world.client.clone(), &namespace);
            let object = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Backup",
                "metadata": {"name": name, "namespace": namespace}, "spec": spec});
            let object: Backup = serde_json::from_value(object).expect("a Backup");
            api.create(&PostParams::default(), &object).await.expect("created");
            status["store"]["backup"] = json!(format!("backup-{n}"));
            let patch = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Backup", "metadata": {"name": name}, "status": status});
            let params = PatchParams::apply("tidemark-operator").force();
            api.patch_status(&name, &params, &Patch::Apply(&patch)).await.expect("written");
        }
    });
    made.buffer_unordered(24).for_each(async |()| {}).await;
    println!("{FINISHED} finished Backups were made in {:.0?}", began.elapsed());
}

async fn until_metric(operator: &Operator, name: &str, wanted: impl Fn(f64) -> bool) {
    eventually(name, LONG, || async {
        match metric(operator, name).await {
            Some(value) if wanted(value) => Ok(()),
            seen => Err(format!("{seen:?}\n{}", operator.tail())),
        }
    })
    .await;
}

/// Starts one as a user of its own, so that its requests can be counted, and waits until it looked at every Backup.
async fn start(world: &World, user: &str, flags: &[&str]) -> Operator {
    let kubeconfig = world.plane.kubeconfig_as(user, &["system:masters"]);
    let began = Instant::now();
    let operator = Operator::start_as(&world.plane, &kubeconfig, world.home.clone(), flags);
    until_metric(&operator, "tidemark_backups{state=\"Completed\"}", |n| n as usize >= FINISHED).await;
    println!("{user}: the caches were full after {:.1?}", began.elapsed());
    until_metric(&operator, "tidemark_reconcile_seconds_count{kind=\"Backup\"}", |n| n as usize >= FINISHED).await;
    println!("{user}: every Backup was looked at after {:.1?}", began.elapsed());
    let taken = Taken::of(world, &operator, user);
    taken.print(user);
    println!("{:#?}", world.plane.requests_of(user));
    assert!(taken.peak < 160 * MIB, "{taken:?}");
    // Not one request for each Backup that is over.
    assert!(taken.requests < 300, "{taken:?}");
    operator
}

/// So many Backups of one image, each a volume of its own, that send a block every four seconds.
async fn order(world: &World, many: usize, more: serde_json::Value) {
    let path = world.home.volumes().join("a.img");
    let ordered = stream::iter(0..many).map(|n| {
        let (path, more) = (path.clone(), more.clone());
        async move {
            let mut spec = json!({
                "source": {"hostDevice": {"path": path, "nodeName": "local", "name": format!("volume-{n}")}},
                "targetRef": {"name": "s3-primary"}, "upload": {"concurrency": 1, "maxBytesPerSecond": "512Ki"},
            });
            merge(&mut spec, more);
            let object = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Backup",
                "metadata": {"name": format!("now-{n}"), "namespace": NAMESPACE}, "spec": spec});
            let object: Backup = serde_json::from_value(object).expect("a Backup");
            world.backups().create(&PostParams::default(), &object).await.expect("created");
        }
    });
    ordered.buffer_unordered(8).for_each(async |()| {}).await;
}

/// Makes the world: one real Backup, and the others after its image.
async fn full_world() -> World {
    let world = World::new().await;
    // It lists every Backup ten times a second: here that would be the load.
    world.watch_no_more();
    let limits = json!({"limits": {"maxConcurrentBackups": 100, "maxConcurrentBackupsPerNamespace": 100}});
    world.target("s3-primary", limits).await;
    for n in 0..20 {
        world.plane.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: team-{n}}}}}")).await;
    }
    drop(world.image("a.img", 64, 1));
    let mut operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.backup("first", "a.img", json!({})).await;
    world.completed(&operator, "first").await;
    assert!(operator.terminate().success());
    let one = world.backups().get("first").await.expect("it is there");
    let bytes = serde_json::to_string(&one).expect("JSON").len();
    let managed = serde_json::to_string(&one.managed_fields()).expect("JSON").len();
    println!("one finished Backup: {bytes} bytes of JSON, {managed} of them managedFields");
    multiply(&world, &one).await;
    world
}

/// More than any channel of the operator holds.
#[tokio::test(flavor = "multi_thread")]
async fn law_9_an_operator_begins_however_many_objects_there_are() {
    const MANY: usize = 1100;
    let world = World::new().await;
    world.watch_no_more();
    drop(world.image("a.img", 2, 1));
    // They wait: no worker is started for them.
    order(&world, MANY, json!({"targetRef": {"name": "missing"}})).await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.backup("one-more", "a.img", json!({})).await;
    world.completed(&operator, "one-more").await;
    until_metric(&operator, "tidemark_backups{state=\"Pending\"}", |n| n as usize == MANY).await;
    world.end(&[&operator]).await;
}

/// Ten claims that are backed up by ten Pods: what the operator asks for from their creation to the last one's end, and what
/// it asks for in a second while they run.
async fn ten_as_jobs(world: &World, operator: &Operator, user: &str) {
    const JOBS: usize = 10;
    let storage = Storage::start(&world.plane).await;
    storage.size(64 * 2 * MIB);
    let node = Node::start(&world.plane, world.client.clone(), NAMESPACE, Plays::Everything);
    world
        .plane
        .apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---\napiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: fast}}\nprovisioner: {DRIVER}\n---\napiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotClass\nmetadata: {{name: keep}}\ndriver: {DRIVER}\ndeletionPolicy: Delete\n"
        ))
        .await;
    let backups: Api<Backup> = Api::namespaced(world.client.clone(), "shop");
    for n in 0..JOBS {
        storage.claim("shop", &format!("pg-{n}"), "fast", "Block").await;
    }
    let before = Taken::of(world, operator, user);
    for n in 0..JOBS {
        let object = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Backup",
            "metadata": {"name": format!("pg-{n}"), "namespace": "shop"}, "spec": {
                "source": {"persistentVolumeClaim": {"name": format!("pg-{n}")}},
                "targetRef": {"name": "s3-primary"}, "upload": {"concurrency": 1, "maxBytesPerSecond": "1Mi"}}});
        let object: Backup = serde_json::from_value(object).expect("a Backup");
        let uid = backups.create(&PostParams::default(), &object).await.expect("created").uid().expect("it has one");
        node.device(&format!("tm-{uid}-x"), &world.home.volumes().join("a.img"));
    }
    until_metric(operator, "tidemark_backups{state=\"InProgress\"}", |n| n as usize == JOBS).await;
    let running = Taken::of(world, operator, user);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let later = Taken::of(world, operator, user);
    until_metric(operator, "tidemark_backups{state=\"Completed\"}", |n| n as usize >= FINISHED + JOBS).await;
    let after = Taken::of(world, operator, user);
    after.print("after ten Jobs");
    let seconds = (later.at - running.at).as_secs_f64();
    println!(
        "{JOBS} Jobs: {} requests until all ran, {:.1} a second while they ran, {} in all\n{:#?}",
        running.requests - before.requests,
        (later.requests - running.requests) as f64 / seconds,
        after.requests - before.requests,
        world.plane.requests_of(user)
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: tools/soak.sh soak_ten_thousand"]
async fn soak_ten_thousand_finished_backups_cost_memory_once_and_requests_never() {
    let world = full_world().await;
    let mut jobs = start(&world, "scale-jobs", &["--workers=job", "--worker-image=tidemark:test"]).await;
    ten_as_jobs(&world, &jobs, "scale-jobs").await;
    assert!(jobs.terminate().success(), "{}", jobs.tail());
    let running = RUNNING.to_string();
    let flags = ["--workers=process", "--max-concurrent-backups", &running];
    let operator = start(&world, "scale", &flags).await;

    let began = Instant::now();
    order(&world, RUNNING + WAITING, json!({})).await;
    println!("{} Backups were created in {:.1?}", RUNNING + WAITING, began.elapsed());
    let state = |state: &str| format!("tidemark_backups{{state=\"{state}\"}}");
    until_metric(&operator, &state("InProgress"), |n| n as usize >= RUNNING).await;
    until_metric(&operator, &state("Pending"), |n| n as usize >= WAITING - 20).await;
    println!("{RUNNING} run and the others wait after {:.1?}", began.elapsed());
    let before = (Taken::of(&world, &operator, "scale"), world.plane.requests_of("scale"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let after = (Taken::of(&world, &operator, "scale"), world.plane.requests_of("scale"));
    after.0.print("with all of them");
    let seconds = (after.0.at - before.0.at).as_secs_f64();
    for (what, count) in &after.1 {
        let more = count - before.1.get(what).copied().unwrap_or(0);
        if more > 0 {
            println!("{what:?}: {:.2} a second", more as f64 / seconds);
        }
    }
    let rate = (after.0.requests - before.0.requests) as f64 / seconds;
    let share = (after.0.processor - before.0.processor) / seconds;
    println!("{rate:.1} requests a second, {:.1} % of one processor", share * 100.0);
    assert!(rate < 40.0, "{rate} requests a second");
    assert!(after.0.peak < 160 * MIB, "{after:?}");
    let refused = metric(&operator, "tidemark_status_writes_refused_total").await;
    assert_eq!(refused, Some(0.0), "{}", operator.tail());
}
