//! The operator with workers as Jobs, on a real API server with a real store and real worker processes: a claim's point in
//! time goes up, comes back equal, and nothing of it is left. The operator has the chart's permissions and no others.
//! Everything else of a cluster is played (`world::shop`).

use std::time::Duration;

use crate::support::{eventually, node::Plays, operator::NAMESPACE, storage::DRIVER};
use crate::world::{
    self, PATIENCE,
    shop::{IMAGE, Shop},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tidemark::api::{BackupState, BackupStatus, RestoreStatus};

#[tokio::test(flavor = "multi_thread")]
async fn law_4_a_claim_is_backed_up_by_a_pod_restores_equal_and_leaves_nothing() {
    let shop = Shop::new(Plays::Everything).await;
    shop.backup("pg-1", json!({})).await;
    let status = shop.until("pg-1", "Completed", |s| s.state == Some(BackupState::Completed)).await;
    let snapshot = status.snapshot.as_ref().expect("the point in time");
    assert_eq!((snapshot.namespace.as_deref(), snapshot.ours), (Some("shop"), true));
    let source = status.source.as_ref().expect("facts");
    assert_eq!((source.persistent_volume_claim_name.as_deref(), source.driver.as_deref()), (Some("pg"), Some(DRIVER)));
    let attempt = status.attempt.as_ref().expect("one");
    assert!(attempt.pod_name.as_deref().is_some_and(|name| name.starts_with("tm-")), "{attempt:?}");
    assert_eq!(attempt.node_name.as_deref(), Some("test-node"));
    shop.restores_equal(&status).await;
    shop.nothing_is_left().await;
    eventually("our finalizer gone", PATIENCE, || async {
        let backup = shop.backups().get("pg-1").await.expect("there");
        if backup.finalizers().is_empty() { Ok(()) } else { Err(format!("{:?}", backup.finalizers())) }
    })
    .await;
    let (operator, world) = (shop.operator, shop.world);
    world.end(&[&operator]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn law_6_a_killed_pod_is_followed_by_another_that_reads_the_same_point_in_time() {
    let shop = Shop::new(Plays::Everything).await;
    world::hold_after(&shop.world.s3, 3);
    shop.backup("pg-1", json!({})).await;
    let before = shop.until("pg-1", "uploading", |s| world::acknowledged(s) > 0).await;
    assert_eq!(shop.node.kill_workers(), 1);
    shop.until("pg-1", "failed", |s| s.failure.is_some()).await;
    shop.world.s3.heal();
    let status = shop.until("pg-1", "Completed", |s| s.state == Some(BackupState::Completed)).await;
    let uid = |s: &BackupStatus| s.snapshot.as_ref().and_then(|s| s.uid.clone());
    assert_eq!((status.attempt.as_ref().map(|a| a.number), uid(&status)), (Some(2), uid(&before)));
    assert_eq!(status.failure.as_ref().map(|f| f.reason.as_str()), Some("WorkerCrashed"));
    shop.restores_equal(&status).await;
    shop.nothing_is_left().await;
    let (operator, world) = (shop.operator, shop.world);
    world.end(&[&operator]).await;
}

/// Each is told in the status within 15 s of being visible in Pod, Job or Event.
#[tokio::test(flavor = "multi_thread")]
async fn law_5_what_keeps_a_pod_from_running_is_told_in_the_status() {
    let shop = Shop::new(Plays::NoKubelet).await;
    let pods: Api<Pod> = Api::namespaced(shop.world.client.clone(), NAMESPACE);
    shop.backup("pg-1", json!({})).await;
    let pod = eventually("a Pod", PATIENCE, || async {
        pods.list(&ListParams::default()).await.expect("listed").items.pop().ok_or_else(|| shop.operator.tail())
    })
    .await
    .name_any();
    let say = async |status: serde_json::Value| {
        let patch = Patch::Merge(json!({"status": status}));
        pods.patch_status(&pod, &PatchParams::default(), &patch).await.expect("said");
    };
    let ready_says =
        |s: &BackupStatus, word: &str| s.conditions.iter().any(|c| c.type_ == "Ready" && c.message.contains(word));
    say(
        json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient memory."}]}),
    )
    .await;
    let since = std::time::Instant::now();
    shop.until("pg-1", "told", |s| ready_says(s, "Unschedulable: ") && ready_says(s, "Insufficient memory")).await;
    say(json!({"conditions": [{"type": "PodScheduled", "status": "True"}], "containerStatuses": [{"name": "worker",
        "image": "x", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}]}))
    .await;
    shop.until("pg-1", "told", |s| ready_says(s, "ImageMissing: ")).await;
    say(json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."})).await;
    let status = shop.until("pg-1", "failed", |s| s.failure.as_ref().is_some_and(|f| f.reason == "Evicted")).await;
    assert!(since.elapsed() < 3 * Duration::from_secs(15), "{:?}", since.elapsed());
    assert_eq!(status.consecutive_failures, Some(0), "nobody's fault: {status:#?}");
    // Deleted in the middle of it all: nothing is left.
    shop.backups().delete("pg-1", &Default::default()).await.expect("deleted");
    shop.nothing_is_left().await;
    let (operator, world) = (shop.operator, shop.world);
    world.end(&[&operator]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn law_11_a_pod_reads_and_writes_no_host_device() {
    let shop = Shop::new(Plays::Everything).await;
    shop.world.backup("host", IMAGE, json!({})).await;
    let refused = shop.world.until(&shop.operator, "host", "refused", |s| s.state == Some(BackupState::Error)).await;
    assert_eq!(refused.reason.as_deref(), Some("HostDeviceNotSupported"));
    shop.world.restore("back", "host", "out.img", json!({})).await;
    let is_refused = |s: &RestoreStatus| s.reason.as_deref() == Some("HostDeviceNotSupported");
    shop.world.until_restore(&shop.operator, "back", "refused", is_refused).await;
}

/// Under the same limit a worker ends the same way: once more, and then a person is asked. The point in time is kept for
/// that person for a while, and its end is told.
#[tokio::test(flavor = "multi_thread")]
async fn law_6_out_of_memory_is_tried_once_more_and_the_snapshots_end_is_told() {
    let shop = Shop::new(Plays::NoKubelet).await;
    let pods: Api<Pod> = Api::namespaced(shop.world.client.clone(), NAMESPACE);
    shop.backup("pg-1", json!({"deadlines": {"keepSnapshot": "5s"}})).await;
    let mut killed = Vec::new();
    for attempt in 1..=2 {
        let pod = eventually("a Pod", PATIENCE, || async {
            let found = pods.list(&ListParams::default()).await.expect("listed").items;
            found.into_iter().find(|pod| !killed.contains(&pod.name_any())).ok_or_else(|| shop.operator.tail())
        })
        .await
        .name_any();
        let status = json!({"status": {"phase": "Failed", "containerStatuses": [{"name": "worker", "image": "x",
            "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}});
        pods.patch_status(&pod, &PatchParams::default(), &Patch::Merge(&status)).await.expect("said");
        killed.push(pod);
        let failed = |s: &BackupStatus| s.failure.as_ref().is_some_and(|f| f.attempt == Some(attempt));
        let status = shop.until("pg-1", "failed", failed).await;
        let failure = status.failure.as_ref().expect("it failed");
        assert_eq!((failure.reason.as_str(), failure.retryable), ("OutOfMemory", attempt == 1), "{status:#?}");
        assert!(failure.message.contains("raise the workers' memory limit"), "{failure:?}");
    }
    let condition = |s: &BackupStatus, wanted: &str| {
        let found = s.conditions.iter().find(|c| c.type_ == wanted);
        found.map(|c| (c.status.clone(), c.reason.clone()))
    };
    let said = |status: &str, reason: &str| Some((status.to_owned(), reason.to_owned()));
    let gone = said("False", "SnapshotReleased");
    let status = shop.until("pg-1", "released", |s| condition(s, "SnapshotReady") == gone).await;
    assert_eq!(condition(&status, "Stalled"), said("True", "RetriesExhausted"), "{status:#?}");
    shop.nothing_is_left().await;
    // Whoever asks now is told that no other point in time takes its place.
    let patch = Patch::Merge(json!({"spec": {"retryRequest": "now"}}));
    shop.backups().patch("pg-1", &PatchParams::default(), &patch).await.expect("a verb");
    let lost = |s: &BackupStatus| s.failure.as_ref().is_some_and(|f| f.reason == "SnapshotLost");
    let status = shop.until("pg-1", "lost", lost).await;
    assert_eq!(condition(&status, "SnapshotReady"), gone, "{status:#?}");
    let (operator, world) = (shop.operator, shop.world);
    world.end(&[&operator]).await;
}

/// The object is what leads to the rest. Where its data was to go too, it went before the volume of its snapshot did, and
/// that was left to the rounds.
#[tokio::test(flavor = "multi_thread")]
async fn law_10_a_backup_deleted_with_its_data_goes_after_all_that_was_made_for_it() {
    let shop = Shop::new(Plays::Everything).await;
    world::hold_after(&shop.world.s3, 3);
    shop.backup("pg-1", json!({"deletionPolicy": "Delete"})).await;
    shop.until("pg-1", "uploading", |s| world::acknowledged(s) > 0).await;
    // What goes beneath it keeps the data, so nothing waits for the bucket.
    let going = ["delete", "clusterbackuptarget", "s3-primary", "--wait=false"];
    shop.world.plane.kubectl(&going).await;
    shop.backups().delete("pg-1", &Default::default()).await.expect("deleted");
    shop.world.s3.heal();
    eventually("the object gone", PATIENCE, || async {
        match shop.backups().get_opt("pg-1").await.expect("asked") {
            None => Ok(()),
            Some(backup) => Err(format!("{:#?}\n{}", backup.status, shop.operator.tail())),
        }
    })
    .await;
    let left = shop.ours().await;
    assert!(left.is_empty(), "the object is gone, and there is still {left:?}\n{}", shop.operator.tail());
    let (operator, world) = (shop.operator, shop.world);
    world.end(&[&operator]).await;
}
