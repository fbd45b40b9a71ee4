//! The operator on a real API server, with a real S3 server and worker processes: what a user sees of a Backup in good
//! times, of verbs, of queues, and of what CEL cannot see.

use std::time::{Duration, Instant};

use crate::support::{
    Fault, Kind, Rule, environment, eventually,
    operator::{NAMESPACE, Operator},
};
use crate::world::{BUCKET, PATIENCE, World, acknowledged, hold_after};
use kube::Api;
use serde_json::json;
use tidemark::api::{BackupState, BackupStatus, ClusterBackupTarget};

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
    world.plane.kubectl(&["delete", "backups.tidemark.dev", "--all", "-n", NAMESPACE, "--timeout=120s"]).await;
    assert_eq!(world.s3.block_objects(BUCKET).len(), 5, "deleting objects is not deleting data");
    world.end(&[&operator]).await;
}

#[tokio::test]
async fn law_9_many_backups_queue_within_the_limits_and_all_complete() {
    // Ten times as many as run at once: `make soak` makes a hundred.
    let many = environment("TIDEMARK_SOAK").map_or(40, |_| 100);
    let world = World::new().await;
    world
        .target("s3-primary", json!({"limits": {"maxConcurrentBackups": 6, "maxConcurrentBackupsPerNamespace": 6}}))
        .await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &["--max-concurrent-backups", "4"]);
    let mut most = 0;
    let mut manifests = String::new();
    for n in 0..many {
        let image = format!("v{n}.img");
        world.image(&image, 1, 100 + n as u64);
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
        if states.iter().filter(|s| **s == BackupState::Completed).count() == many {
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

#[tokio::test]
async fn law_8_a_verification_after_completion_is_a_condition_and_never_takes_completed_back() {
    let world = World::new().await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.image("a.img", 5, 60);
    let verified = |s: &BackupStatus| s.conditions.iter().find(|c| c.type_ == "Verified").cloned();
    let has_verdict = |s: &BackupStatus| verified(s).is_some_and(|c| c.reason != "Verifying");
    world.backup("intact", "a.img", json!({"verify": "Full"})).await;
    let status = world.until(&operator, "intact", "verified", has_verdict).await;
    let condition = verified(&status).expect("a verdict");
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("True", "VerificationPassed"), "{status:#?}");
    assert!(condition.message.contains("all of their 5 objects were read"), "{condition:#?}");
    assert_eq!(status.state, Some(BackupState::Completed));
    // An unasked backup has no such condition.
    world.backup("unasked", "a.img", json!({})).await;
    assert_eq!(verified(&world.completed(&operator, "unasked").await), None);
    // One bit of a block that the next backup reuses by its listing.
    let object = world.s3.block_objects(BUCKET).swap_remove(2).key;
    let path = world.s3.bucket(BUCKET).join(&object);
    let mut bytes = std::fs::read(&path).expect("the object");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    world.backup("damaged", "a.img", json!({"verify": "Full"})).await;
    let status = world.until(&operator, "damaged", "verified", has_verdict).await;
    let condition = verified(&status).expect("a verdict");
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "DamageFound"), "{status:#?}");
    let name = object.rsplit('/').next().expect("a file");
    assert!(condition.message.contains(name) && condition.message.contains("mode Full"), "{condition:#?}");
    assert_eq!((status.state, status.progress.map(|p| p.percent)), (Some(BackupState::Completed), Some(100)));
    eventually("the worker's things are gone", PATIENCE, || async {
        let events =
            world.plane.kubectl(&["get", "events", "-n", NAMESPACE, "-o", "jsonpath={.items[*].reason}"]).await;
        let finalizers = world.backups().get("damaged").await.map_err(|e| e.to_string())?.metadata.finalizers;
        let is_settled = finalizers.iter().flatten().count() == 0 && world.home.workers().is_empty();
        if is_settled && events.contains("DamageFound") { Ok(()) } else { Err(format!("{finalizers:?} {events}")) }
    })
    .await;
    // What a user may not change afterwards.
    let patch = kube::api::Patch::Merge(json!({"spec": {"verify": "None"}}));
    let refused =
        world.backups().patch("intact", &Default::default(), &patch).await.expect_err("immutable").to_string();
    assert!(refused.contains("verify is immutable"), "{refused}");
    world.end(&[&operator]).await;
}
