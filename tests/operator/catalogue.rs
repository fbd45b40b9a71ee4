//! The catalogue on a real API server and a real S3 server: what a bucket holds is counted, what is in it already is
//! imported by its owner and by nobody else, and records without an object are discovered once.

use crate::support::{Fault, Kind, Rule, eventually, operator::Operator, s3_server::StoredObject};
use crate::world::{
    BUCKET, PATIENCE, World,
    bucket::{import, longhorn_record, namespace, overwrite, own_cluster, record, until, until_target},
};
use kube::{Api, ResourceExt};
use serde_json::json;
use tidemark::{
    api::{Backup, BackupState, BackupStatus, ClusterBackupTargetStatus},
    model::FailureReason,
    store::layout::VolumeLayout,
};

/// Records, markers and blocks.
fn kept(world: &World) -> Vec<StoredObject> {
    let is_kept = |o: &StoredObject| o.key.contains("/backups/") || o.key.contains("/blocks/");
    world.s3.objects(BUCKET).into_iter().filter(is_kept).collect()
}

fn ready(status: &BackupStatus) -> (&str, &str) {
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready").expect("always there");
    (ready.status.as_str(), ready.message.as_str())
}

fn catalogued(status: &ClusterBackupTargetStatus) -> (&str, &str) {
    let found = status.conditions.iter().find(|c| c.type_ == "Catalogued");
    found.map_or(("", ""), |c| (c.status.as_str(), c.reason.as_str()))
}

/// Who owns what in the bucket.
struct Records {
    own: (String, String),
    other_cluster: (String, String),
    longhorn: (String, String),
}

#[tokio::test]
async fn law_11_what_is_in_the_bucket_is_imported_by_its_owner_and_by_nobody_else() {
    let world = World::new().await;
    let cluster = own_cluster(&world).await;
    for name in ["shop", "erp"] {
        namespace(&world, name).await;
    }
    let own = record(&world, "own", &cluster, "shop").await;
    let other_cluster = record(&world, "other", "another-cluster", "shop").await;
    let records = Records { own, other_cluster, longhorn: longhorn_record(&world) };
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    the_owner_imports(&world, &operator, &records.own).await;
    let before = kept(&world);
    everybody_else_is_refused(&world, &operator, &records).await;
    // Nor does a worker of another namespace write to it, whatever it calls its volume.
    let said = overwrite(&world, "own", &cluster, "erp").await;
    assert!(said.as_ref().is_some_and(|f| f.reason == FailureReason::VolumeNameInUse), "{said:?}");
    assert_eq!(kept(&world), before);
    what_is_not_there_is_waited_for(&world, &operator).await;
    what_an_administrator_allowed_is_not_deletable(&world, &operator, &records).await;
    assert_eq!(kept(&world), before, "a foreign record was touched");
    world.end(&[&operator]).await;
}

async fn the_owner_imports(world: &World, operator: &Operator, own: &(String, String)) {
    import(world, "shop", "mine", own, json!({})).await;
    let status = until(world, operator, ("shop", "mine"), |s| s.state == Some(BackupState::Completed)).await;
    assert_eq!(status.reason.as_deref(), Some("Imported"), "{status:#?}");
    assert_eq!(ready(&status).0, "True");
    let snapshot = status.conditions.iter().find(|c| c.type_ == "SnapshotReady").expect("always there");
    assert_eq!((snapshot.status.as_str(), snapshot.reason.as_str()), ("True", "NotNeeded"));
    let store = status.store.as_ref().expect("where it is");
    assert_eq!((store.volume.as_str(), store.backup.as_deref()), (own.0.as_str(), Some(own.1.as_str())));
    assert!(store.url.as_ref().is_some_and(|url| url.contains(&own.1)) && status.attempt.is_none(), "{status:#?}");
    assert_eq!(status.source.as_ref().and_then(|s| s.bytes), Some(2 * 2 * 1024 * 1024));
    assert_eq!(status.progress, None, "nothing was uploaded, so nothing is counted");
}

/// Told who must change what, and not told whose it is.
async fn everybody_else_is_refused(world: &World, operator: &Operator, records: &Records) {
    let Records { own, other_cluster, longhorn } = records;
    for (namespace, name, record, cure) in [
        ("erp", "theirs", own, "must add erp to spec.imports.anyOwnerNamespaces of ClusterBackupTarget s3-primary"),
        ("shop", "abroad", other_cluster, "may set spec.sharedWithClusters on ClusterBackupTarget s3-primary"),
        ("shop", "ownerless", longhorn, "must add shop to spec.imports.anyOwnerNamespaces"),
    ] {
        import(world, namespace, name, record, json!({"deletionPolicy": "Delete", "expireAfter": "1s"})).await;
        let status = until(world, operator, (namespace, name), |s| s.state == Some(BackupState::Error)).await;
        assert_eq!(status.reason.as_deref(), Some("ImportNotAllowed"), "{status:#?}");
        let said = ready(&status).1;
        assert!(said.contains(cure) && !said.contains("another-cluster"), "{said}");
        assert!(namespace != "erp" || !said.contains("shop"), "{said}");
        assert_eq!(status.store, None, "a refused record is nothing of this Backup's: {status:#?}");
        // Refused, it reaches nothing by being deleted either.
        world.plane.kubectl(&["delete", "backups.tidemark.dev", name, "-n", namespace, "--timeout=60s"]).await;
    }
}

async fn what_is_not_there_is_waited_for(world: &World, operator: &Operator) {
    let missing = ("pvc-nowhere".to_owned(), "backup-nowhere".to_owned());
    let deadlines = json!({"snapshot": "10m", "start": "3s", "stall": "5s", "total": "1h", "keepSnapshot": "1h"});
    import(world, "shop", "absent", &missing, json!({"deadlines": deadlines})).await;
    let status = until(world, operator, ("shop", "absent"), |s| s.state == Some(BackupState::Error)).await;
    assert!(ready(&status).1.contains("`tidemark ls` shows what is there"), "{status:#?}");
}

/// erp may import whatever is there, and shop what its namesake in another cluster made. None of it is theirs to delete.
async fn what_an_administrator_allowed_is_not_deletable(world: &World, operator: &Operator, records: &Records) {
    let Records { own, other_cluster, longhorn } = records;
    world.target("s3-primary", json!({"imports": {"anyOwnerNamespaces": ["erp"]}, "sharedWithClusters": true})).await;
    for (namespace, name, record) in
        [("erp", "theirs", own), ("shop", "abroad", other_cluster), ("erp", "ownerless", longhorn)]
    {
        import(world, namespace, name, record, json!({"deletionPolicy": "Delete"})).await;
        until(world, operator, (namespace, name), |s| s.state == Some(BackupState::Completed)).await;
        let api: Api<Backup> = Api::namespaced(world.client.clone(), namespace);
        eventually("the finalizer stands", PATIENCE, || async {
            let found = api.get(name).await.map_err(|e| e.to_string())?;
            if found.finalizers().is_empty() { Err(format!("{found:#?}")) } else { Ok(()) }
        })
        .await;
        world.plane.kubectl(&["delete", "backups.tidemark.dev", name, "-n", namespace, "--timeout=60s"]).await;
        let selector = format!("involvedObject.name={name},reason=DataRetained");
        eventually("an Event says that the data stays", PATIENCE, || async {
            let arguments = ["get", "events", "-n", namespace, "--field-selector", &selector, "-o", "name"];
            let seen = world.plane.kubectl(&arguments).await;
            if seen.is_empty() { Err(seen) } else { Ok(()) }
        })
        .await;
    }
}

/// Its head is whole in each case: whoever looked no further would call them Completed.
#[tokio::test]
async fn law_4_what_is_damaged_in_the_bucket_is_not_imported_until_it_is_whole() {
    let world = World::new().await;
    let cluster = own_cluster(&world).await;
    namespace(&world, "shop").await;
    let (whole, cut) = (record(&world, "whole", &cluster, "shop").await, record(&world, "cut", &cluster, "shop").await);
    let hole = record(&world, "hole", &cluster, "shop").await;
    let file = |key: &str| world.s3.bucket(BUCKET).join(key);
    let config = |of: &(String, String)| {
        let layout = VolumeLayout::new(&of.0.parse().expect("a name"));
        layout.backup(&of.1.parse().expect("a name"))
    };
    let block =
        world.s3.block_objects(BUCKET).into_iter().find(|o| o.key.contains("pvc-hole")).expect("it has two").key;
    let lost = std::fs::read(file(&block)).expect("there");
    std::fs::remove_file(file(&block)).expect("the server's directory");
    let record = std::fs::read(file(&config(&cut))).expect("there");
    std::fs::write(file(&config(&cut)), &record[..record.len() - 40]).expect("the server's directory");
    let before = kept(&world);
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    for (name, of, expected, object) in
        [("hole", &hole, "BlockDamaged", block.clone()), ("cut", &cut, "RecordDamaged", config(&cut))]
    {
        import(&world, "shop", name, of, json!({"deletionPolicy": "Delete"})).await;
        let status = until(&world, &operator, ("shop", name), |s| s.state == Some(BackupState::Error)).await;
        assert_eq!(status.reason.as_deref(), Some(expected), "{status:#?}");
        let failure = status.failure.as_ref().expect("what failed");
        assert_eq!((failure.object.as_deref(), failure.retryable), (Some(object.as_str()), false), "{status:#?}");
        assert!(failure.message.contains(&object) && failure.message.contains("Cure: "), "{status:#?}");
        assert_eq!((&status.store, status.completion_time.is_some()), (&None, false), "{status:#?}");
    }
    import(&world, "shop", "whole", &whole, json!({})).await;
    let status = until(&world, &operator, ("shop", "whole"), |s| s.state == Some(BackupState::Completed)).await;
    assert!(ready(&status).1.contains("all 2 blocks are listed"), "{status:#?}");
    // Deleted as it stands it takes nothing with it: nothing was claimed.
    world.plane.kubectl(&["delete", "backups.tidemark.dev", "cut", "-n", "shop", "--timeout=60s"]).await;
    assert_eq!(kept(&world), before, "a damaged backup was touched");
    // Discovery's Backups are imports like any other.
    world.target("s3-primary", json!({"checkInterval": "10s", "imports": {"discover": "OwnCluster"}})).await;
    let found = discovered(&world, &cut).await;
    let status = until(&world, &operator, ("shop", &found), |s| s.state == Some(BackupState::Error)).await;
    assert_eq!(status.reason.as_deref(), Some("RecordDamaged"), "{status:#?}");
    // What was lost is put back, and a person says so.
    std::fs::write(file(&block), lost).expect("the server's directory");
    let patch = r#"{"spec":{"retryRequest":"put-back"}}"#;
    world.plane.kubectl(&["patch", "backups.tidemark.dev", "hole", "-n", "shop", "--type=merge", "-p", patch]).await;
    until(&world, &operator, ("shop", "hole"), |s| s.reason.as_deref() == Some("Imported")).await;
    world.end(&[&operator]).await;
}

/// The Backup that discovery made for a record.
async fn discovered(world: &World, record: &(String, String)) -> String {
    let api: Api<Backup> = Api::namespaced(world.client.clone(), "shop");
    eventually("a discovered Backup", PATIENCE, || async {
        let found = api.list(&Default::default()).await.map_err(|e| e.to_string())?.items;
        let is_it = |b: &&Backup| {
            let existing = b.spec.source.existing.as_ref();
            b.annotations().contains_key("tidemark.dev/discovered") && existing.is_some_and(|e| e.backup == record.1)
        };
        found.iter().find(is_it).map(ResourceExt::name_any).ok_or_else(|| format!("{} others", found.len()))
    })
    .await
}

#[tokio::test]
async fn law_7_a_bucket_is_counted_discovered_once_and_never_believed_to_be_empty() {
    let world = World::new().await;
    let cluster = own_cluster(&world).await;
    namespace(&world, "shop").await;
    let own = record(&world, "own", &cluster, "shop").await;
    record(&world, "later", &cluster, "not-yet").await;
    record(&world, "other", "another-cluster", "shop").await;
    longhorn_record(&world);
    // A marker whose attempt is not known to this operator.
    let marker =
        VolumeLayout::new(&"pvc-own".parse().expect("a name")).backup(&"tidemark-0001".parse().expect("a name"));
    let text = br#"{"Name":"tidemark-0001","VolumeName":"pvc-own","CreatedTime":""}"#;
    std::fs::write(world.s3.bucket(BUCKET).join(marker), text).expect("the server's directory");
    world.target("s3-primary", json!({"checkInterval": "10s", "imports": {"discover": "OwnCluster"}})).await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);

    let status = until_target(&world, &operator, "s3-primary", |s| s.backups.is_some()).await;
    let counts = status.backups.clone().expect("counted");
    let numbers = (status.volumes, counts.total, counts.foreign, counts.in_progress);
    assert_eq!(numbers, (Some(4), 4, 2, 1), "{status:#?}");
    assert!(status.last_catalogue_time.is_some() && catalogued(&status) == ("True", "Counted"), "{status:#?}");

    // The record of this cluster whose namespace is there got its Backup, and is Completed by itself.
    let found = only_in(&world, "shop").await;
    let name = found.name_any();
    assert_eq!(found.spec.source.existing.as_ref().map(|e| e.backup.as_str()), Some(own.1.as_str()));
    assert_eq!(found.annotations().get("tidemark.dev/discovered").map(String::as_str), Some("s3-primary"));
    until(&world, &operator, ("shop", &name), |s| s.reason.as_deref() == Some("Imported")).await;
    nothing_goes_because_of_a_listing(&world, &operator, &status).await;

    // Deleted with Retain it does not come back; what had no namespace is discovered when it has one.
    world.plane.kubectl(&["delete", "backups.tidemark.dev", &name, "-n", "shop", "--timeout=60s"]).await;
    namespace(&world, "not-yet").await;
    only_in(&world, "not-yet").await;
    let shop: Api<Backup> = Api::namespaced(world.client.clone(), "shop");
    assert!(shop.list(&Default::default()).await.expect("listed").items.is_empty(), "it came back");
    world.end(&[&operator]).await;
}

/// The one Backup of a namespace, once there is one.
async fn only_in(world: &World, namespace: &str) -> Backup {
    let api: Api<Backup> = Api::namespaced(world.client.clone(), namespace);
    eventually(&format!("one Backup in {namespace}"), PATIENCE, || async {
        let mut found = api.list(&Default::default()).await.map_err(|e| e.to_string())?.items;
        match (found.pop(), found.len()) {
            (Some(one), 0) => Ok(one),
            (_, others) => Err(format!("{others} others")),
        }
    })
    .await
}

/// A listing that fails changes no number and deletes nothing; one that is empty changes numbers only.
async fn nothing_goes_because_of_a_listing(world: &World, operator: &Operator, status: &ClusterBackupTargetStatus) {
    let everywhere: Api<Backup> = Api::all(world.client.clone());
    // Half a document would be half the volumes.
    world.s3.fault(Rule::new(Fault::TruncatedBody).on(Kind::List).key("backupstore/volumes/"));
    let failing = until_target(world, operator, "s3-primary", |s| catalogued(s).0 == "False").await;
    assert_eq!((failing.volumes, &failing.backups), (status.volumes, &status.backups), "{failing:#?}");
    assert_eq!(everywhere.list(&Default::default()).await.expect("listed").items.len(), 1);
    world.s3.heal();
    // Now the store says that there is nothing at all (longhorn#9530).
    let volumes = world.s3.bucket(BUCKET).join("backupstore/volumes");
    let aside = world.s3.bucket(BUCKET).join("backupstore/aside");
    std::fs::rename(&volumes, &aside).expect("the server's directory");
    until_target(world, operator, "s3-primary", |s| s.volumes == Some(0)).await;
    let left = everywhere.list(&Default::default()).await.expect("listed").items;
    assert!(left.len() == 1 && left[0].metadata.deletion_timestamp.is_none(), "{left:#?}");
    std::fs::rename(&aside, &volumes).expect("the server's directory");
}
