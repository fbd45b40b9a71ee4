//! Restores on a real API server, with a real S3 server and worker processes: what a user sees of one in good times, when
//! things break, of damage, and of what is refused. At the end of each world no status write was refused by a rule.

use std::path::Path;

use crate::support::{
    Fault, Image, Kind, Rule, eventually,
    image::difference,
    operator::{NAMESPACE, Operator},
};
use crate::world::{self, BUCKET, PATIENCE, World, hold_downloads_after, hold_downloads_again_after, metric, restored};
use kube::{Api, api::Patch, api::PatchParams};
use serde_json::json;
use tidemark::api::{ClusterBackupTarget, Restore, RestoreState, RestoreStatus};

fn truth<'a>(status: &'a RestoreStatus, kind: &str) -> Option<&'a str> {
    status.conditions.iter().find(|c| c.type_ == kind).map(|c| c.status.as_str())
}

fn is_failed(status: &RestoreStatus) -> bool {
    status.state == Some(RestoreState::Error)
}

/// Files of the operator's volumes that a restore left under another name than it was asked for.
fn parts(volumes: &Path) -> Vec<String> {
    let names = std::fs::read_dir(volumes).expect("ours").flatten();
    names.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.ends_with(".part")).collect()
}

#[tokio::test]
async fn law_4_a_restore_gives_the_volume_back_and_its_conditions_say_so() {
    let world = World::new().await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    let volumes = world.home.volumes();
    let image = world.image("a.img", 5, 1);
    // Not aligned, and with a hole: seven more blocks that no object holds.
    std::fs::File::options()
        .write(true)
        .open(image.path())
        .and_then(|f| f.set_len(24 * 1024 * 1024 + 777))
        .expect("ours");
    // First the Restore, then its Backup: it waits.
    world.restore("back", "first", "out.img", json!({})).await;
    let waits =
        world.until_restore(&operator, "back", "waiting", |s| s.reason.as_deref() == Some("WaitingForBackup")).await;
    assert_eq!(waits.state, Some(RestoreState::Pending), "{waits:#?}");
    world.backup("first", "a.img", json!({})).await;
    let backup = world.completed(&operator, "first").await;
    let status = world.restored(&operator, "back").await;
    let progress = status.progress.clone().expect("progress");
    let seen = (progress.total_blocks, progress.restored_blocks, progress.zero_blocks, progress.percent);
    assert_eq!(seen, (Some(5), 5, 8, 100), "{status:#?}");
    for kind in ["Ready", "VolumeReady", "DataRestored", "DataFlushed"] {
        assert_eq!(truth(&status, kind), Some("True"), "{kind}: {status:#?}");
    }
    for kind in ["Reconciling", "Stalled", "VolumeBound"] {
        assert_eq!(truth(&status, kind), None, "{kind}: {status:#?}");
    }
    let chosen = status.backup.clone().expect("which Backup it was");
    assert_eq!((Some(&chosen.url), chosen.name.as_str()), (backup.store.as_ref().map(|s| &s.url), "first"));
    assert_eq!(status.volume.as_ref().and_then(|v| v.bytes), Some(24 * 1024 * 1024 + 777), "{status:#?}");
    assert_eq!(difference(image.path(), &volumes.join("out.img")), None);
    assert_eq!(parts(&volumes), Vec::<String>::new());

    // The same path again is refused; in place it is brought up to date, whatever is there.
    world.restore("again", "first", "out.img", json!({})).await;
    let refused = world.until_restore(&operator, "again", "refused", is_failed).await;
    assert_eq!((refused.reason.as_deref(), truth(&refused, "Stalled")), (Some("TargetRefused"), Some("True")));
    let message = &refused.failure.as_ref().expect("it says why").message;
    assert!(message.contains("out.img") && message.contains("overwrite: Replace"), "{message}");
    let device = |file: &str| json!({"path": volumes.join(file), "nodeName": "local", "overwrite": "Replace"});
    let old = Image::random(&volumes.join("old.img"), 1, 9);
    Image::open(&volumes.join("out.img")).write_at(3 * 1024 * 1024, b"not as it was");
    for (name, file, reused) in [("smaller", "old.img", 0), ("in-place", "out.img", 4)] {
        world.restore(name, "first", file, json!({"hostDevice": device(file)})).await;
        let status = world.restored(&operator, name).await;
        assert_eq!(status.progress.map(|p| (p.restored_blocks, p.reused_blocks)), Some((5, reused)), "{name}");
        assert_eq!(difference(image.path(), &volumes.join(file)), None, "{name}");
    }
    drop(old);
    world.restore("gone", "first", "gone.img", json!({"hostDevice": device("gone.img")})).await;
    let gone = world.until_restore(&operator, "gone", "refused", is_failed).await;
    assert_eq!(gone.reason.as_deref(), Some("TargetRefused"), "{gone:#?}");

    let described = world.plane.kubectl(&["describe", "tmr", "back", "-n", NAMESPACE]).await;
    for words in ["Every block's checksum held", "5 blocks, 5 fetched, 0 found on the device", "Attempt 1"] {
        assert!(described.contains(words), "{words}: {described}");
    }
    eventually("the metrics know it", PATIENCE, || async {
        let completed = metric(&operator, "tidemark_restores{state=\"Completed\"}").await;
        let blocks = metric(&operator, "tidemark_restore_blocks_total{outcome=\"Reused\"}").await;
        if (completed, blocks) == (Some(3.0), Some(4.0)) { Ok(()) } else { Err(format!("{completed:?} {blocks:?}")) }
    })
    .await;
    world.plane.kubectl(&["delete", "restores.tidemark.dev", "--all", "-n", NAMESPACE, "--timeout=120s"]).await;
    assert_eq!(difference(image.path(), &volumes.join("out.img")), None, "deleting a Restore deletes no data");
    world.end(&[&operator]).await;
}

#[tokio::test]
async fn law_6_a_restore_goes_on_after_its_operator_and_its_worker_were_killed() {
    let world = World::new().await;
    let mut first = Operator::start_in(&world.plane, world.home.clone(), &[]);
    let volumes = world.home.volumes();
    let image = world.image("a.img", 24, 2);
    world.backup("a", "a.img", json!({})).await;
    world.completed(&first, "a").await;
    hold_downloads_after(&world.s3, 4);
    world.restore("back", "a", "out.img", json!({})).await;
    world.until_restore(&first, "back", "at 4 blocks", |s| restored(s) >= 4).await;
    let worker = world.home.workers();
    assert_eq!(worker.len(), 1, "{}", first.tail());
    first.kill();
    let second = Operator::start_in(&world.plane, world.home.clone(), &[]);
    hold_downloads_again_after(&world.s3, 4);
    let before = world.until_restore(&second, "back", "further", |s| restored(s) >= 8).await;
    assert_eq!(world.home.workers(), worker, "the same process still runs");
    assert_eq!(before.attempt.as_ref().map(|a| a.number), Some(1), "{before:#?}");
    assert!(!volumes.join("out.img").exists(), "half a volume bears no name");

    assert_eq!(world.home.kill_workers(), 1);
    let error = world.until_restore(&second, "back", "in Error", is_failed).await;
    let failure = error.failure.clone().expect("it says why");
    assert_eq!((failure.reason.as_str(), failure.retryable), ("WorkerCrashed", true), "{error:#?}");
    assert!(restored(&error) >= restored(&before), "{error:#?}");
    world.s3.heal();
    let status = world.restored(&second, "back").await;
    assert_eq!(status.attempt.as_ref().map(|a| a.number), Some(2), "{status:#?}");
    let progress = status.progress.expect("progress");
    assert!(progress.reused_blocks >= restored(&before), "what was there was not fetched again: {progress:#?}");
    assert_eq!(difference(image.path(), &volumes.join("out.img")), None);

    // Cancelled, and deleted, in mid-restore: the worker ends, and nothing bears the name.
    for (name, file) in [("cancelled", "c.img"), ("deleted", "d.img")] {
        hold_downloads_after(&world.s3, 2);
        world.restore(name, "a", file, json!({})).await;
        world.until_restore(&second, name, "at 2 blocks", |s| restored(s) >= 2).await;
        if name == "cancelled" {
            world.patch_restore(name, json!({"cancel": true})).await;
            let status =
                world.until_restore(&second, name, "Cancelled", |s| s.state == Some(RestoreState::Cancelled)).await;
            assert!(status.progress.as_ref().is_some_and(|p| p.percent < 100), "{status:#?}");
        } else {
            world.plane.kubectl(&["delete", "tmr", name, "-n", NAMESPACE, "--timeout=60s"]).await;
        }
        assert!(world.home.workers().is_empty(), "{:?}", world.home.workers());
        assert!(!volumes.join(file).exists(), "{name}");
        world.s3.heal();
    }

    // Refused by the store, without a retry by itself: a person asks.
    world.s3.fault(Rule::new(Fault::refuse("AccessDenied")).on(Kind::Get).key("/blocks/"));
    let never = json!({"retry": {"limit": 0, "backoff": "1s", "maxBackoff": "2s"}});
    world.restore("refused", "a", "r.img", never).await;
    let error = world.until_restore(&second, "refused", "in Error", is_failed).await;
    assert_eq!((error.reason.as_deref(), truth(&error, "Stalled")), (Some("AccessDenied"), Some("True")), "{error:#?}");
    world.s3.heal();
    world.patch_restore("refused", json!({"retryRequest": "now"})).await;
    let status = world.restored(&second, "refused").await;
    assert_eq!(status.observed_retry_request.as_deref(), Some("now"));
    assert_eq!(difference(image.path(), &volumes.join("r.img")), None);
    world.end(&[&second]).await;
}

#[tokio::test]
async fn law_7_damage_in_the_bucket_is_named_and_no_restore_with_holes_is_completed() {
    let world = World::new().await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    let volumes = world.home.volumes();
    let image = world.image("a.img", 8, 3);
    world.backup("a", "a.img", json!({})).await;
    world.completed(&operator, "a").await;
    world.watch_no_more();
    let objects = world.s3.block_objects(BUCKET);
    let file = |n: usize| world.s3.bucket(BUCKET).join(&objects[n].key);
    let whole = [std::fs::read(file(2)).expect("there"), std::fs::read(file(5)).expect("there")];
    std::fs::remove_file(file(2)).expect("ours");
    let mut flipped = whole[1].clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(file(5), flipped).expect("ours");

    world.restore("stops", "a", "s.img", json!({})).await;
    let status = world.until_restore(&operator, "stops", "in Error", is_failed).await;
    assert_eq!(status.reason.as_deref(), Some("BlockDamaged"), "{status:#?}");
    assert_eq!((status.damaged.len(), truth(&status, "Stalled")), (1, Some("True")), "{status:#?}");
    assert!(!volumes.join("s.img").exists(), "half a volume bears no name");

    world.restore("goes-on", "a", "g.img", json!({"onDamage": "Continue"})).await;
    let status = world.until_restore(&operator, "goes-on", "in Error", is_failed).await;
    assert_eq!(status.reason.as_deref(), Some("BlockDamaged"), "{status:#?}");
    let progress = status.progress.clone().expect("progress");
    assert_eq!((progress.restored_blocks, progress.damaged_blocks, progress.percent), (6, 2, 75), "{status:#?}");
    let mut named: Vec<_> =
        status.damaged.iter().map(|d| d.object.rsplit('/').next().unwrap_or("").to_owned()).collect();
    named.sort();
    let mut expected: Vec<_> =
        [2, 5].iter().map(|n| objects[*n].key.rsplit('/').next().unwrap_or("").to_owned()).collect();
    expected.sort();
    assert_eq!(named, expected, "{status:#?}");
    assert!(status.damaged.iter().any(|d| d.reason == "Missing"), "{status:#?}");
    let (left, right) =
        (std::fs::read(image.path()).expect("ours"), std::fs::read(volumes.join("g.img")).expect("there"));
    let block = 2 * 1024 * 1024;
    for (n, (left, right)) in left.chunks(block).zip(right.chunks(block)).enumerate() {
        let is_damaged = status.damaged.iter().any(|d| d.offset == i64::try_from(n * block).unwrap_or(0));
        assert!(if is_damaged { right.iter().all(|b| *b == 0) } else { left == right }, "block {n}");
    }

    // Healed, the same Restore fetches exactly what was missing.
    std::fs::write(file(2), &whole[0]).expect("ours");
    std::fs::write(file(5), &whole[1]).expect("ours");
    world.patch_restore("goes-on", json!({"retryRequest": "healed"})).await;
    let status = world.restored(&operator, "goes-on").await;
    assert_eq!(status.progress.map(|p| (p.restored_blocks, p.reused_blocks, p.damaged_blocks)), Some((8, 6, 0)));
    assert!(status.damaged.is_empty(), "{:#?}", status.damaged);
    assert_eq!(difference(image.path(), &volumes.join("g.img")), None);
    world.end(&[&operator]).await;
}

#[tokio::test]
async fn law_11_a_restore_reads_and_writes_only_what_its_namespace_may() {
    let world = World::new().await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.image("a.img", 1, 4);
    world.backup("a", "a.img", json!({})).await;
    world.completed(&operator, "a").await;
    world.plane.apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}").await;
    let path = world.home.volumes().join("stolen.img");
    let shop: Api<Restore> = Api::namespaced(world.client.clone(), "shop");
    let device = json!({"path": path, "nodeName": "local"});
    let outside = json!({"path": "/etc/stolen.img", "nodeName": "local"});
    for (name, namespace, spec, reason, cure) in [
        (
            "device",
            "shop",
            json!({"hostDevice": device}),
            "HostDeviceNotAllowed",
            "only in the operator's own namespace",
        ),
        (
            "claim",
            "shop",
            json!({"persistentVolumeClaim": {"name": "pg"}}),
            "TargetNotSupported",
            "use spec.hostDevice",
        ),
        ("outside", NAMESPACE, json!({"hostDevice": outside}), "HostDeviceNotAllowed", "not below a root"),
    ] {
        let mut spec = spec;
        world::merge(&mut spec, json!({"backupRef": {"name": "a"}}));
        let restore = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Restore", "metadata": {"name": name, "namespace": namespace}, "spec": spec});
        world.plane.apply(&restore.to_string()).await;
        let restores = if namespace == "shop" { shop.clone() } else { world.restores() };
        eventually(name, PATIENCE, || async {
            let status = restores.get(name).await.map_err(|e| e.to_string())?.status.unwrap_or_default();
            let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
            match ready {
                Some(ready) if is_failed(&status) && ready.reason == reason && ready.message.contains(cure) => Ok(()),
                _ => Err(format!("{status:#?}")),
            }
        })
        .await;
    }
    // What the target allows no more is not read any more, by nobody's old Backup.
    let targets: Api<ClusterBackupTarget> = Api::all(world.client.clone());
    let closed = json!({"spec": {"allowedNamespaces": {"from": "Names", "names": ["shop"]}}});
    targets.patch("s3-primary", &PatchParams::default(), &Patch::Merge(&closed)).await.expect("an administrator may");
    world.restore("closed", "a", "closed.img", json!({})).await;
    let status = world.until_restore(&operator, "closed", "refused", is_failed).await;
    assert_eq!(status.reason.as_deref(), Some("TargetNotAllowed"), "{status:#?}");
    assert!(!path.exists() && !world.home.volumes().join("closed.img").exists());
    assert!(world.home.workers().is_empty(), "nobody was asked to do anything");
    world.end(&[&operator]).await;
}
