//! The volume populator: claims whose `dataSourceRef` names a Backup, on a real API server with real workers; what else a
//! cluster does is played (`world::shop`).

use crate::support::{eventually, image::difference, node::Plays};
use crate::world::{
    PATIENCE, hold_downloads_after, restored,
    shop::{BLOCK, BLOCKS, IMAGE, Shop},
};
use k8s_openapi::api::{core::v1::PersistentVolume, events::v1::Event};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::json;
use tidemark::api::RestoreState;

/// A claim that asks for a Backup's data; the name of its Restore.
async fn ask(shop: &Shop, name: &str, class: &str, backup: &str) -> String {
    let size = (BLOCKS as u64 * BLOCK).to_string();
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "storageClassName": class,
            "dataSourceRef": {"apiGroup": "tidemark.dev", "kind": "Backup", "name": backup},
            "resources": {"requests": {"storage": size}}},
    });
    shop.world.plane.apply(&claim.to_string()).await;
    format!("populate-{}", shop.claims().get(name).await.expect("applied").uid().expect("it has one"))
}

async fn populated(shop: &Shop, name: &str, restore: &str) -> PersistentVolume {
    eventually("its Restore is made", PATIENCE, || async {
        match shop.restores().get_opt(restore).await.expect("read") {
            Some(restore) => {
                let owner = restore.owner_references().first().expect("the claim");
                assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("PersistentVolumeClaim", name));
                Ok(())
            }
            None => Err(shop.operator.tail()),
        }
    })
    .await;
    shop.until_restore(restore, "Completed", |s| s.state == Some(RestoreState::Completed)).await;
    let claim = shop.claims().get(name).await.expect("there");
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    assert_eq!((phase, claim.metadata.labels.as_ref()), (Some("Bound"), None), "{claim:#?}");
    let image = shop.world.home.volumes().join(IMAGE);
    assert_eq!(difference(&image, &shop.storage.volume_of("shop", name).await), None);
    let volume = claim.spec.and_then(|s| s.volume_name).expect("it is bound");
    Api::<PersistentVolume>::all(shop.world.client.clone()).get(&volume).await.expect("there")
}

#[tokio::test(flavor = "multi_thread")]
async fn law_4_a_claim_that_names_a_backup_is_populated_equal() {
    let shop = Shop::new(Plays::Everything).await;
    // First the claim, then the Backup.
    let at_once = ask(&shop, "at-once", "fast", "pg-1").await;
    let waits = shop.until_restore(&at_once, "waiting", |s| s.reason.as_deref() == Some("WaitingForBackup")).await;
    assert_eq!(waits.state, Some(RestoreState::Pending), "{waits:#?}");
    shop.backup("pg-1", json!({})).await;
    shop.completed("pg-1").await;
    let mut kept = vec![populated(&shop, "at-once", &at_once).await];
    // Who waits for the claim looks at the claim.
    eventually("Events at the claim", PATIENCE, || async {
        let events = Api::<Event>::namespaced(shop.world.client.clone(), "shop");
        let events = events.list(&ListParams::default()).await.expect("listed");
        let at_claim =
            events.into_iter().filter(|e| e.regarding.as_ref().is_some_and(|o| o.name.as_deref() == Some("at-once")));
        let told: Vec<_> = at_claim.filter_map(|e| e.reason).collect();
        match ["Populating", "WaitingForBackup", "Completed"].iter().all(|reason| told.iter().any(|t| t == reason)) {
            true => Ok(()),
            false => Err(format!("{told:?}")),
        }
    })
    .await;

    // Nobody uses it yet; then a Pod is scheduled, and the volume is where the Pod will be.
    let late = ask(&shop, "waits", "late", "pg-1").await;
    shop.storage.rounds(20).await;
    assert!(shop.restores().get_opt(&late).await.expect("read").is_none(), "no Pod uses it");
    shop.storage.schedule("waits");
    let volume = populated(&shop, "waits", &late).await;
    let spec = volume.spec.clone().expect("it has one");
    assert!(spec.node_affinity.is_some(), "made for a node: {volume:#?}");
    kept.push(volume);

    // The claim is deleted in the middle of it; the collector, which is not played, deletes the Restore.
    hold_downloads_after(&shop.world.s3, 2);
    let gone = ask(&shop, "gone", "fast", "pg-1").await;
    shop.until_restore(&gone, "at 2 blocks", |s| restored(s) >= 2).await;
    shop.claims().delete("gone", &DeleteParams::default()).await.expect("deleted");
    shop.restores().delete(&gone, &DeleteParams::default()).await.expect("deleted");
    shop.world.s3.heal();
    shop.nothing_is_left_but(&kept).await;
    let (operator, world) = (shop.operator, shop.world);
    world.end(&[&operator]).await;
}
