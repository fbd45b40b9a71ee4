//! The catalogue on a real API server and a real S3 server: what a bucket holds is counted, what is in it already is
//! imported by its owner and by nobody else, and records without an object are discovered once.

mod support;
mod world;

use kube::{Api, ResourceExt};
use serde_json::json;
use support::{Fault, Kind, Rule, eventually, operator::Operator};
use tidemark::{
    api::{Backup, BackupState, BackupStatus, ClusterBackupTargetStatus},
    store::layout::VolumeLayout,
};
use world::{
    BUCKET, PATIENCE, World,
    bucket::{import, longhorn_record, namespace, own_cluster, record, until, until_target},
};

fn ready(status: &BackupStatus) -> (&str, &str) {
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready").expect("always there");
    (ready.status.as_str(), ready.message.as_str())
}

fn catalogued(status: &ClusterBackupTargetStatus) -> (&str, &str) {
    let found = status.conditions.iter().find(|c| c.type_ == "Catalogued");
    found.map_or(("", ""), |c| (c.status.as_str(), c.reason.as_str()))
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
    let longhorn = longhorn_record(&world);
    let missing = ("pvc-nowhere".to_owned(), "backup-nowhere".to_owned());
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);

    import(&world, "shop", "mine", &own, json!({})).await;
    let status = until(&world, &operator, ("shop", "mine"), |s| s.state == Some(BackupState::Completed)).await;
    assert_eq!(status.reason.as_deref(), Some("Imported"), "{status:#?}");
    assert_eq!(ready(&status).0, "True");
    let snapshot = status.conditions.iter().find(|c| c.type_ == "SnapshotReady").expect("always there");
    assert_eq!((snapshot.status.as_str(), snapshot.reason.as_str()), ("True", "NotNeeded"));
    let store = status.store.as_ref().expect("where it is");
    assert_eq!((store.volume.as_str(), store.backup.as_deref()), (own.0.as_str(), Some(own.1.as_str())));
    assert!(store.url.as_ref().is_some_and(|url| url.contains(&own.1)) && status.attempt.is_none(), "{status:#?}");
    assert_eq!(status.source.as_ref().and_then(|s| s.bytes), Some(2 * 2 * 1024 * 1024));
    assert_eq!(status.progress, None, "nothing was uploaded, so nothing is counted");

    // Everybody else is refused, told who must change what, and not told whose it is.
    for (namespace, name, record, cure) in [
        ("erp", "theirs", &own, "must add erp to spec.imports.anyOwnerNamespaces of ClusterBackupTarget s3-primary"),
        ("shop", "abroad", &other_cluster, "may set spec.sharedWithClusters on ClusterBackupTarget s3-primary"),
        ("shop", "ownerless", &longhorn, "must add shop to spec.imports.anyOwnerNamespaces"),
    ] {
        import(&world, namespace, name, record, json!({"deletionPolicy": "Delete"})).await;
        let status = until(&world, &operator, (namespace, name), |s| s.state == Some(BackupState::Error)).await;
        assert_eq!(status.reason.as_deref(), Some("ImportNotAllowed"), "{status:#?}");
        let said = ready(&status).1;
        assert!(said.contains(cure) && !said.contains("another-cluster"), "{said}");
        assert!(namespace != "erp" || !said.contains("shop"), "{said}");
        assert_eq!(status.store, None, "a refused record is nothing of this Backup's: {status:#?}");
        // Refused, it reaches nothing by being deleted either.
        let arguments = ["delete", "backups.tidemark.dev", name, "-n", namespace, "--timeout=30s"];
        world.plane.kubectl(&arguments).await;
    }
    let deadlines =
        json!({"deadlines": {"snapshot": "10m", "start": "3s", "stall": "5s", "total": "1h", "keepSnapshot": "1h"}});
    import(&world, "shop", "absent", &missing, deadlines).await;
    let status = until(&world, &operator, ("shop", "absent"), |s| s.state == Some(BackupState::Error)).await;
    assert!(ready(&status).1.contains("`tidemark ls` shows what is there"), "{status:#?}");

    // The administrator says more: then erp may, and shop may what its other cluster made. None of it may be deleted.
    let objects = world.s3.objects(BUCKET).len();
    world.target("s3-primary", json!({"imports": {"anyOwnerNamespaces": ["erp"]}, "sharedWithClusters": true})).await;
    for (namespace, name, record) in
        [("erp", "theirs", &own), ("shop", "abroad", &other_cluster), ("erp", "ownerless", &longhorn)]
    {
        import(&world, namespace, name, record, json!({"deletionPolicy": "Delete"})).await;
        until(&world, &operator, (namespace, name), |s| s.state == Some(BackupState::Completed)).await;
        let api: Api<Backup> = Api::namespaced(world.client.clone(), namespace);
        eventually("the finalizer stands", PATIENCE, || async {
            let found = api.get(name).await.map_err(|e| e.to_string())?;
            if found.finalizers().is_empty() { Err(format!("{found:#?}")) } else { Ok(()) }
        })
        .await;
        world.plane.kubectl(&["delete", "backups.tidemark.dev", name, "-n", namespace, "--timeout=60s"]).await;
        let events =
            world.plane.kubectl(&["get", "events", "-n", namespace, "-o", "jsonpath={.items[*].reason}"]).await;
        assert!(events.contains("DataRetained"), "{events}");
    }
    let left = world.s3.objects(BUCKET);
    let probes = left.iter().filter(|o| o.key.contains("tidemark-probe")).count();
    assert_eq!(left.len() - probes, objects, "a foreign record was touched: {left:#?}");
    world.end(&[&operator]).await;
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
    let path = world.s3.bucket(BUCKET).join(marker);
    std::fs::write(path, br#"{"Name":"tidemark-0001","VolumeName":"pvc-own","CreatedTime":""}"#).expect("the server's");
    world.target("s3-primary", json!({"checkInterval": "10s", "imports": {"discover": "OwnCluster"}})).await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);

    let status = until_target(&world, &operator, "s3-primary", |s| s.backups.is_some()).await;
    let counts = status.backups.clone().expect("counted");
    assert_eq!((status.volumes, counts.total, counts.foreign, counts.in_progress), (Some(4), 4, 2, 1), "{status:#?}");
    assert!(status.last_catalogue_time.is_some() && catalogued(&status) == ("True", "Counted"), "{status:#?}");

    // The record of this cluster whose namespace is there got its Backup, and is Completed by itself.
    let shop: Api<Backup> = Api::namespaced(world.client.clone(), "shop");
    let only = |list: Vec<Backup>| {
        <[Backup; 1]>::try_from(list)
            .map_err(|l| format!("{:?}", l.iter().map(ResourceExt::name_any).collect::<Vec<_>>()))
    };
    let [found] = eventually("it is discovered", PATIENCE, || async {
        only(shop.list(&Default::default()).await.map_err(|e| e.to_string())?.items)
    })
    .await;
    let name = found.name_any();
    assert_eq!(found.spec.source.existing.as_ref().map(|e| e.backup.as_str()), Some(own.1.as_str()));
    assert_eq!(found.annotations().get("tidemark.dev/discovered").map(String::as_str), Some("s3-primary"));
    until(&world, &operator, ("shop", &name), |s| s.reason.as_deref() == Some("Imported")).await;
    let everywhere: Api<Backup> = Api::all(world.client.clone());
    assert_eq!(everywhere.list(&Default::default()).await.expect("listed").items.len(), 1);

    // A listing that fails changes no number and deletes nothing; a record that is damaged is told.
    world.s3.fault(Rule::new(Fault::internal_error()).on(Kind::List).key("backupstore/volumes/"));
    let failing = until_target(&world, &operator, "s3-primary", |s| catalogued(s).0 == "False").await;
    assert_eq!((failing.volumes, &failing.backups), (status.volumes, &status.backups), "{failing:#?}");
    assert_eq!(everywhere.list(&Default::default()).await.expect("listed").items.len(), 1);
    world.s3.heal();
    // Now the store says that there is nothing at all: numbers follow, objects stay.
    let volumes = world.s3.bucket(BUCKET).join("backupstore/volumes");
    let aside = world.s3.bucket(BUCKET).join("backupstore/aside");
    std::fs::rename(&volumes, &aside).expect("the server's directory");
    until_target(&world, &operator, "s3-primary", |s| s.volumes == Some(0)).await;
    let kept = shop.get(&name).await.expect("an empty listing deletes no object");
    assert!(kept.metadata.deletion_timestamp.is_none(), "{kept:#?}");
    std::fs::rename(&aside, &volumes).expect("the server's directory");

    // Deleted with Retain it does not come back; what had no namespace is discovered when it has one.
    world.plane.kubectl(&["delete", "backups.tidemark.dev", &name, "-n", "shop", "--timeout=30s"]).await;
    namespace(&world, "not-yet").await;
    let late: Api<Backup> = Api::namespaced(world.client.clone(), "not-yet");
    eventually("the other is discovered", PATIENCE, || async {
        only(late.list(&Default::default()).await.map_err(|e| e.to_string())?.items).map(|_| ())
    })
    .await;
    assert!(shop.list(&Default::default()).await.expect("listed").items.is_empty(), "it came back");
    world.end(&[&operator]).await;
}
