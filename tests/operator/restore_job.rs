//! Restores into new claims by worker Pods: a real API server, a real store, real worker processes, and the chart's
//! permissions. What else a cluster does is played (`world::shop`). Each scenario ends with a list of what is left over.

use crate::support::{image::difference, node::Plays, operator::Operator, storage::DRIVER};
use crate::world::{
    hold_downloads_after, merge, restored,
    shop::{BLOCK, BLOCKS, IMAGE, Shop, restricted},
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tidemark::api::{RestoreState, RestoreStatus};

fn truth<'a>(status: &'a RestoreStatus, kind: &str) -> Option<&'a str> {
    status.conditions.iter().find(|c| c.type_ == kind).map(|c| c.status.as_str())
}

fn policy(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.persistent_volume_reclaim_policy.as_deref()
}

/// What is the user's alone: none of our marks, and its class's policy.
fn assert_is_the_users(volume: &PersistentVolume, wanted: &str) {
    let marks = volume.labels().keys().chain(volume.annotations().keys());
    let ours: Vec<_> = marks.filter(|key| key.contains("tidemark") || key.contains("managed-by")).collect();
    assert_eq!((policy(volume), ours), (Some(wanted), vec![]), "{volume:#?}");
}

async fn bound(shop: &Shop, name: &str) -> PersistentVolumeClaim {
    let claim = shop.claims().get(name).await.expect("made");
    let phase = claim.status.as_ref().and_then(|s| s.phase.clone());
    assert_eq!(phase.as_deref(), Some("Bound"), "{claim:#?}");
    assert_eq!(claim.metadata.owner_references, None, "a Restore never owns what it fills");
    claim
}

/// A claim of the user that is a file system, and a Backup of it.
async fn filesystem(shop: &Shop) {
    shop.storage.claim("shop", "files", "fast", "Filesystem").await;
    shop.backup("files-1", json!({"source": {"persistentVolumeClaim": {"name": "files"}}})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn law_4_a_new_claim_is_filled_equal_bound_and_the_users_alone() {
    let shop = Shop::new(Plays::Everything).await;
    shop.backup("pg-1", json!({})).await;
    filesystem(&shop).await;
    let source = shop.completed("pg-1").await.source.expect("facts");
    assert_eq!((source.storage_class_name.as_deref(), source.access_modes.len()), (Some("fast"), 1), "{source:#?}");
    shop.completed("files-1").await;
    let image = shop.world.home.volumes().join(IMAGE);

    // As recorded: a device, at once, which holds what somebody else left there.
    let uid = shop.restore("block", "pg-1", json!({"labels": {"app": "pg"}}), json!({})).await;
    drop(shop.world.image("block.img", BLOCKS, 99));
    shop.node.device(&format!("tm-{uid}-x"), &shop.world.home.volumes().join("block.img"));
    let volume = shop.restored("block").await;
    let status = shop.restores().get("block").await.expect("there").status.expect("told");
    for kind in ["Ready", "VolumeReady", "DataRestored", "DataFlushed", "VolumeBound"] {
        assert_eq!(truth(&status, kind), Some("True"), "{kind}: {status:#?}");
    }
    let progress = status.progress.clone().expect("counted");
    assert_eq!((progress.percent, progress.total_blocks), (100, Some(BLOCKS as i64)), "{status:#?}");
    assert_is_the_users(&volume, "Retain");
    let claim = bound(&shop, "block").await;
    assert_eq!(claim.labels().get("app").map(String::as_str), Some("pg"));
    let spec = claim.spec.expect("it has one");
    assert_eq!((spec.volume_mode.as_deref(), spec.storage_class_name.as_deref()), (Some("Block"), Some("fast")));
    assert_eq!(difference(&image, &shop.world.home.volumes().join("block.img")), None);

    // As wanted: a file system of another class, larger, whose volume is made when the worker's Pod is scheduled.
    let wanted = json!({"storageClassName": "late", "size": "16Mi"});
    shop.restore("files-back", "files-1", wanted, json!({})).await;
    let other = shop.restored("files-back").await;
    assert_is_the_users(&other, "Delete");
    let spec = other.spec.clone().expect("it has one");
    assert_eq!(spec.volume_mode.as_deref(), Some("Filesystem"));
    assert_eq!(spec.mount_options, Some(vec!["noatime".to_owned()]));
    let spec = bound(&shop, "files-back").await.spec.expect("it has one");
    assert_eq!(spec.volume_mode.as_deref(), Some("Filesystem"));
    let restored = std::fs::read(shop.storage.volume_of("shop", "files-back").await).expect("ours");
    assert!(restored[..BLOCKS * BLOCK as usize] == std::fs::read(&image).expect("ours"), "other bytes");

    // Neither the Restores nor their Backups take anything with them.
    let kept = [volume, other];
    shop.nothing_is_left_but(&kept).await;
    for name in ["block", "files-back"] {
        shop.world.plane.kubectl(&["delete", "tmr", name, "-n", "shop", "--timeout=120s"]).await;
        bound(&shop, name).await;
    }
    shop.nothing_is_left_but(&kept).await;
    let (operator, world) = (shop.operator, shop.world);
    world.end(&[&operator]).await;
}

/// Worker and operator are killed in mid-restore; what was written is kept, and the next attempt goes on from there.
#[tokio::test(flavor = "multi_thread")]
async fn law_6_a_claim_is_filled_after_its_worker_and_its_operator_were_killed() {
    let mut shop = Shop::new(Plays::Everything).await;
    shop.backup("pg-1", json!({})).await;
    shop.completed("pg-1").await;
    hold_downloads_after(&shop.world.s3, 3);
    shop.restore("back", "pg-1", json!({}), json!({})).await;
    let before = shop.until_restore("back", "at 3 blocks", |s| restored(s) >= 3).await;
    assert_eq!(truth(&before, "VolumeReady"), Some("True"), "{before:#?}");
    assert_eq!(shop.node.kill_workers(), 1);
    shop.until_restore("back", "failed", |s| s.failure.is_some()).await;
    shop.operator.kill();
    shop.world.s3.heal();
    let config = restricted(&shop.world).await;
    let (plane, home) = (&shop.world.plane, shop.world.home.clone());
    shop.operator = Operator::start_as(plane, &config, home, &["--workers=job", "--worker-image=tidemark:test"]);
    let volume = shop.restored("back").await;
    let status = shop.restores().get("back").await.expect("there").status.expect("told");
    assert_eq!(status.attempt.as_ref().map(|a| a.number), Some(2), "{status:#?}");
    let reused = status.progress.as_ref().map_or(0, |p| p.reused_blocks);
    assert!(reused >= restored(&before), "what was there was not fetched again: {status:#?}");
    let image = shop.world.home.volumes().join(IMAGE);
    assert_eq!(difference(&image, &shop.storage.volume_of("shop", "back").await), None);
    shop.nothing_is_left_but(std::slice::from_ref(&volume)).await;
    shop.nothing_is_permitted_in_vain();
    let (operator, world) = (shop.operator, shop.world);
    world.end(&[&operator]).await;
}

/// Cancelled, or deleted, in mid-restore: nothing is left, neither in the cluster nor in the driver.
#[tokio::test(flavor = "multi_thread")]
async fn law_10_a_restore_that_is_cancelled_or_deleted_leaves_no_volume() {
    let shop = Shop::new(Plays::Everything).await;
    shop.backup("pg-1", json!({})).await;
    shop.completed("pg-1").await;
    for (name, class) in [("cancelled", "fast"), ("deleted", "late")] {
        hold_downloads_after(&shop.world.s3, 2);
        shop.restore(name, "pg-1", json!({"storageClassName": class}), json!({})).await;
        shop.until_restore(name, "at 2 blocks", |s| restored(s) >= 2).await;
        if name == "cancelled" {
            let patch = Patch::Merge(json!({"spec": {"cancel": true}}));
            shop.restores().patch(name, &PatchParams::default(), &patch).await.expect("a verb");
            let told = shop.until_restore(name, "Cancelled", |s| s.state == Some(RestoreState::Cancelled)).await;
            assert_eq!(truth(&told, "VolumeReady"), Some("False"), "{told:#?}");
        } else {
            shop.restores().delete(name, &DeleteParams::default()).await.expect("deleted");
        }
        shop.nothing_is_left().await;
        assert!(shop.claims().get_opt(name).await.expect("read").is_none(), "{name}");
        shop.world.s3.heal();
    }
    let (operator, world) = (shop.operator, shop.world);
    world.end(&[&operator]).await;
}

/// Claim, Backup, what more the claim says, what more the spec says; the reason and the cure.
fn refusals() -> Vec<([&'static str; 2], [Value; 2], [&'static str; 2])> {
    let not_supported = |cure| ["TargetNotSupported", cure];
    let none = || json!({});
    let large = (BLOCKS as u64 * BLOCK - 1).to_string();
    let class = |name: &str| json!({"storageClassName": name});
    vec![
        (["pg", "pg-1"], [none(), none()], ["TargetRefused", "PersistentVolumeClaim shop/pg exists"]),
        (["a", "pg-1"], [class("gone"), none()], not_supported("StorageClass gone does not exist")),
        (["b", "pg-1"], [json!({"size": large}), none()], not_supported("12582912 bytes")),
        (["c", "files-1"], [class("nfs"), none()], not_supported("volumeMode: Block")),
        (["d", "files-1"], [json!({"accessModes": ["ReadWriteMany"]}), none()], not_supported("[ReadWriteOnce]")),
        (["e", "pg-1"], [json!({"volumeMode": "Filesystem"}), none()], not_supported("volumeMode: Block")),
        (["f", "pg-1"], [class("secretive"), none()], not_supported("node-stage-secret-name")),
        (["g", "pg-1"], [none(), json!({"onDamage": "Continue"})], not_supported("use Stop")),
        (["NotAName", "pg-1"], [none(), none()], ["TargetRefused", "cannot be made"]),
    ]
}

/// Each is refused before anything is made, with the object's name and the cure.
#[tokio::test(flavor = "multi_thread")]
async fn law_5_what_cannot_be_filled_is_refused_before_anything_is_made() {
    let shop = Shop::new(Plays::Everything).await;
    shop.backup("pg-1", json!({})).await;
    filesystem(&shop).await;
    shop.completed("pg-1").await;
    shop.completed("files-1").await;
    let class = |name: &str, rest: &str| {
        format!("apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {name}}}\n{rest}\n")
    };
    let secret = "parameters: {csi.storage.k8s.io/node-stage-secret-name: '${pvc.name}'}";
    shop.world.plane.apply(&class("nfs", "provisioner: nfs.csi.k8s.io")).await;
    shop.world.plane.apply(&class("secretive", &format!("provisioner: {DRIVER}\n{secret}"))).await;
    for ([name, backup], [claim, more], [reason, cure]) in refusals() {
        let mut target = json!({"name": name});
        merge(&mut target, claim);
        let mut spec = json!({"backupRef": {"name": backup}, "persistentVolumeClaim": target});
        merge(&mut spec, more);
        let object = format!("refused-{}", name.to_lowercase());
        let restore = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Restore",
            "metadata": {"name": object, "namespace": "shop"}, "spec": spec});
        shop.world.plane.apply(&restore.to_string()).await;
        let status = shop.until_restore(&object, "refused", |s| s.state == Some(RestoreState::Error)).await;
        let failure = status.failure.as_ref().expect("it says why");
        assert_eq!(failure.reason, reason, "{status:#?}");
        assert!(failure.message.contains(cure), "{object}: {}", failure.message);
        assert_eq!((truth(&status, "Stalled"), &status.attempt), (Some("True"), &None), "before any attempt");
    }
    shop.nothing_is_left().await;
    let all: Api<PersistentVolumeClaim> = Api::all(shop.world.client.clone());
    let all = all.list(&Default::default()).await.expect("listed");
    let mut names: Vec<_> = all.iter().map(ResourceExt::name_any).collect();
    names.sort();
    assert_eq!(names, ["files", "pg"], "nobody's claim was made or lost");
    let (operator, world) = (shop.operator, shop.world);
    world.end(&[&operator]).await;
}
