//! Deleting Backups on a real API server and a real S3 server: data goes only where that was asked for, and only while
//! everything it belongs to is there to stay; whatever else happens, the object goes and the bucket stays.

use crate::support::{
    Fault, Kind, Rule, eventually,
    operator::{NAMESPACE, Operator},
};
use crate::world::{
    BUCKET, PATIENCE, World,
    bucket::{age, import, namespace, own_cluster, record, until, until_target},
    hold_downloads_after, restored,
};
use kube::{Api, ResourceExt, api::DeleteParams};
use serde_json::json;
use tidemark::api::{Backup, BackupState, BackupStatus, ClusterBackupTarget};

/// Records and blocks that are there, by volume.
fn stored(world: &World, volume: &str) -> (usize, usize) {
    let objects = world.s3.objects(BUCKET);
    let count =
        |part: &str| objects.iter().filter(|o| o.key.contains(&format!("/{volume}/")) && o.key.contains(part)).count();
    (count("/backup_backup-"), count("/blocks/"))
}

/// A Completed import, held by the operator until it may go.
async fn held(world: &World, operator: &Operator, namespace: &str, name: &str, record: &(String, String)) {
    import(world, namespace, name, record, json!({"deletionPolicy": "Delete"})).await;
    until(world, operator, (namespace, name), |s| s.state == Some(BackupState::Completed)).await;
    let api: Api<Backup> = Api::namespaced(world.client.clone(), namespace);
    eventually("the finalizer stands", PATIENCE, || async {
        let found = api.get(name).await.map_err(|e| e.to_string())?;
        if found.finalizers().is_empty() { Err(format!("{found:#?}")) } else { Ok(()) }
    })
    .await;
}

async fn delete(world: &World, namespace: &str, name: &str) {
    let api: Api<Backup> = Api::namespaced(world.client.clone(), namespace);
    api.delete(name, &DeleteParams::default()).await.expect("the API server takes it");
}

async fn gone(world: &World, operator: &Operator, namespace: &str, name: &str) {
    let api: Api<Backup> = Api::namespaced(world.client.clone(), namespace);
    eventually(&format!("{namespace}/{name} goes"), PATIENCE, || async {
        match api.get_opt(name).await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:#?}\n{}", operator.tail())),
        }
    })
    .await;
}

async fn events(world: &World, namespace: &str, name: &str) -> String {
    let selector = format!("involvedObject.name={name}");
    let path = "jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}";
    world.plane.kubectl(&["get", "events", "-n", namespace, "--field-selector", &selector, "-o", path]).await
}

async fn has_event(world: &World, namespace: &str, name: &str, what: &str) {
    eventually(what, PATIENCE, || async {
        let seen = events(world, namespace, name).await;
        if seen.contains(what) { Ok(()) } else { Err(seen) }
    })
    .await;
}

fn message(status: &BackupStatus) -> &str {
    status.conditions.iter().find(|c| c.type_ == "Ready").map_or("", |c| &c.message)
}

#[tokio::test]
async fn law_10_delete_removes_its_own_data_and_nothing_else_and_a_crash_changes_nothing() {
    let world = World::new().await;
    let mut first = Operator::start_in(&world.plane, world.home.clone(), &[]);
    // Three backups of one volume: 6 blocks, then two of them changed, then another two.
    let volume = "a.img";
    world.image(volume, 6, 1);
    world.backup("one", volume, json!({"deletionPolicy": "Delete"})).await;
    let one = world.completed(&first, "one").await;
    let stored_volume = one.store.as_ref().expect("stored").volume.clone();
    world.image(volume, 6, 2);
    world.backup("two", volume, json!({})).await;
    let two = world.completed(&first, "two").await;
    assert_eq!(stored(&world, &stored_volume), (2, 12));
    age(&world);

    // The bucket refuses to delete: it says so, goes on trying, and its conditions stay as they were.
    world.s3.fault(Rule::new(Fault::refuse("AccessDenied")).on(Kind::Delete).on(Kind::DeleteBatch));
    delete(&world, NAMESPACE, "one").await;
    let status = world.until(&first, "one", "refused", |s| s.reason.as_deref() == Some("TargetUnreachable")).await;
    assert_eq!(status.state, Some(BackupState::Deleting));
    assert!(message(&status).contains("with deletionPolicy: Retain the object goes"), "{status:#?}");
    let truth = |kind: &str| status.conditions.iter().find(|c| c.type_ == kind).map(|c| c.status.clone());
    assert_eq!((truth("Ready").as_deref(), truth("RecordCommitted").as_deref()), (Some("False"), Some("True")));
    assert_eq!(status.progress.as_ref().map(|p| p.percent), Some(100));
    // The operator dies in the middle of it; the next one finishes.
    first.kill();
    age(&world);
    world.s3.heal();
    let second = Operator::start_in(&world.plane, world.home.clone(), &[]);
    gone(&world, &second, NAMESPACE, "one").await;
    has_event(&world, NAMESPACE, "one", "DataRemoved").await;
    assert_eq!(stored(&world, &stored_volume), (1, 6), "the other backup's blocks stay");
    let kept = two.store.as_ref().and_then(|s| s.backup.clone()).expect("its record");
    let key = format!("/backup_{kept}.cfg");
    assert!(world.s3.objects(BUCKET).iter().any(|o| o.key.ends_with(&key)), "{kept}");

    // Retain, and a time that is over: the object goes by itself, the data stays.
    world.patch("two", json!({"expireAfter": "1s"})).await;
    gone(&world, &second, NAMESPACE, "two").await;
    assert_eq!(stored(&world, &stored_volume), (1, 6));
    // Delete, and a time that is over: the data goes too, but not while a Restore reads it.
    world.backup("three", volume, json!({"deletionPolicy": "Delete"})).await;
    world.completed(&second, "three").await;
    hold_downloads_after(&world.s3, 2);
    world.restore("reader", "three", "out.img", json!({})).await;
    world.until_restore(&second, "reader", "at 2 blocks", |s| restored(s) == 2).await;
    world.patch("three", json!({"expireAfter": "1s"})).await;
    let status = world.until(&second, "three", "Deleting", |s| s.state == Some(BackupState::Deleting)).await;
    assert!(message(&status).contains("waiting for Restore reader, which reads from it"), "{status:#?}");
    assert_eq!(stored(&world, &stored_volume), (2, 6));
    world.s3.heal();
    world.restored(&second, "reader").await;
    gone(&world, &second, NAMESPACE, "three").await;
    assert_eq!(stored(&world, &stored_volume), (1, 6), "what another record names stays");
    world.end(&[&second]).await;
}

#[tokio::test]
async fn law_10_losing_namespace_target_or_crd_never_empties_a_bucket_and_nothing_is_stuck() {
    let world = World::new().await;
    let cluster = own_cluster(&world).await;
    namespace(&world, "shop").await;
    namespace(&world, "doomed").await;
    let a = record(&world, "a", &cluster, "doomed").await;
    let b = record(&world, "b", &cluster, "shop").await;
    let c = record(&world, "c", &cluster, "shop").await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.target("second", json!({})).await;
    held(&world, &operator, "doomed", "a", &a).await;
    held(&world, &operator, "shop", "b", &b).await;

    // The namespace is on its way out; its controller would delete what is in it.
    world.plane.kubectl(&["delete", "namespace", "doomed", "--wait=false"]).await;
    delete(&world, "doomed", "a").await;
    gone(&world, &operator, "doomed", "a").await;
    assert_eq!(stored(&world, &a.0), (1, 2));

    // Two Backups refer to one record: the first to go leaves it to the other.
    held(&world, &operator, "shop", "b-again", &b).await;
    delete(&world, "shop", "b-again").await;
    gone(&world, &operator, "shop", "b-again").await;
    has_event(&world, "shop", "b-again", "Backup b refers to the same backup").await;
    assert_eq!(stored(&world, &b.0), (1, 2));

    // A target that is referred to waits, and says for how many and what to do.
    import(&world, "shop", "c", &c, json!({"targetRef": {"name": "second"}, "deletionPolicy": "Delete"})).await;
    until(&world, &operator, ("shop", "c"), |s| s.state == Some(BackupState::Completed)).await;
    let targets: Api<ClusterBackupTarget> = Api::all(world.client.clone());
    until_target(&world, &operator, "second", |s| s.references == Some(1)).await;
    eventually("the target is held", PATIENCE, || async {
        let found = targets.get("second").await.map_err(|e| e.to_string())?;
        if found.finalizers().is_empty() { Err(format!("{found:#?}")) } else { Ok(()) }
    })
    .await;
    targets.delete("second", &DeleteParams::default()).await.expect("the API server takes it");
    let waiting = until_target(&world, &operator, "second", |s| {
        s.conditions.iter().any(|c| c.type_ == "Ready" && c.reason == "StillReferenced")
    })
    .await;
    let ready = waiting.conditions.iter().find(|c| c.type_ == "Ready").expect("it waits");
    assert!(ready.message.starts_with("1 Backups refer to ClusterBackupTarget second"), "{ready:#?}");
    delete(&world, "shop", "c").await;
    gone(&world, &operator, "shop", "c").await;
    has_event(&world, "shop", "c", "ClusterBackupTarget second is being deleted").await;
    eventually("the target goes", PATIENCE, || async {
        match targets.get_opt("second").await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:#?}\n{}", operator.tail())),
        }
    })
    .await;
    assert_eq!(stored(&world, &c.0), (1, 2));

    // The CRD goes, and every Backup with it.
    world.plane.kubectl(&["delete", "crd", "backups.tidemark.dev", "--timeout=90s"]).await;
    world.plane.kubectl(&["delete", "crd", "clusterbackuptargets.tidemark.dev", "--timeout=90s"]).await;
    for record in [&a, &b, &c] {
        assert_eq!(stored(&world, &record.0), (1, 2), "{record:?}");
    }
    world.end(&[&operator]).await;
}

#[tokio::test]
async fn law_10_a_mass_deletion_waits_for_a_word_and_goes_on_at_it() {
    let world = World::new().await;
    let cluster = own_cluster(&world).await;
    namespace(&world, "shop").await;
    namespace(&world, "erp").await;
    let of_another = record(&world, "b", &cluster, "erp").await;
    let record = record(&world, "a", &cluster, "shop").await;
    age(&world);
    let limit = tidemark::model::limits::DELETIONS_PER_WINDOW;
    // The count of an hour ago's window would be too old; this one has just begun, and a restart does not forget it.
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    held(&world, &operator, "shop", "a", &record).await;
    held(&world, &operator, "erp", "b", &of_another).await;
    let own = json!({"namespace": "shop", "since": tidemark::telemetry::now().to_string(), "count": limit});
    let counted = json!({"status": {"deletions": {"namespaces": [own]}}});
    let text = counted.to_string();
    let patch = ["patch", "clusterbackuptarget", "s3-primary", "--subresource=status", "--type=merge", "-p", &text];
    world.plane.kubectl(&patch).await;
    delete(&world, "shop", "a").await;
    let status =
        until(&world, &operator, ("shop", "a"), |s| s.reason.as_deref() == Some("WaitingForAcknowledgement")).await;
    assert_eq!(status.state, Some(BackupState::Deleting));
    let target = until_target(&world, &operator, "s3-primary", |s| {
        s.deletions.as_ref().is_some_and(|d| d.namespaces.iter().any(|n| n.waiting_since.is_some()))
    })
    .await;
    let own = target.deletions.and_then(|d| d.namespaces.into_iter().find(|n| n.namespace == "shop"));
    let since = own.and_then(|own| own.waiting_since).expect("it waits").0;
    let command = format!(
        "kubectl annotate clusterbackuptarget s3-primary --overwrite tidemark.dev/acknowledge-deletions=shop/{since}"
    );
    assert!(message(&status).contains(&command), "{status:#?}");
    has_event(&world, "shop", "a", &command).await;
    has_event(&world, "default", "s3-primary", &command).await;
    // What another namespace deletes goes.
    delete(&world, "erp", "b").await;
    gone(&world, &operator, "erp", "b").await;
    assert_eq!((stored(&world, &of_another.0), stored(&world, &record.0)), ((0, 0), (1, 2)));
    // The wrong word, and time, let nothing through.
    world
        .plane
        .kubectl(&["annotate", "clusterbackuptarget", "s3-primary", "tidemark.dev/acknowledge-deletions=yes"])
        .await;
    assert_eq!(stored(&world, &record.0), (1, 2));
    let word = command.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>();
    world.plane.kubectl(&word.iter().map(String::as_str).collect::<Vec<_>>()).await;
    gone(&world, &operator, "shop", "a").await;
    assert_eq!(stored(&world, &record.0), (0, 0));
    world.end(&[&operator]).await;
}
