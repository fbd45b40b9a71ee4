//! A claim's point in time as a device, and nothing left of it: on a real API server, with everything else of a cluster
//! played by the test (`support::storage`). Each scenario ends with a list of what is left over, in the cluster and in the
//! driver, and expects nothing.

use std::time::Duration;

use crate::support::{
    ControlPlane, Lent, eventually,
    storage::{DRIVER, Held, Storage},
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams},
};
use tidemark::{
    api::{Cause, Reason},
    controller::snapshot::{
        Source, Step, Wish,
        act::act,
        drivers::ExposureSettings,
        expose::{Decision, Standing, expose},
        exposed_name,
        objects::{DeletionPolicy, VolumeSnapshot, VolumeSnapshotContent},
        observe::{ObserveError, observe, owners, remains},
        remove::{Extent, Removal, remove},
    },
    model::FailureReason,
};

const OPERATOR: &str = "tidemark";
const PATIENCE: Duration = Duration::from_secs(120);

struct World {
    plane: Lent,
    client: Client,
    storage: Storage,
    settings: ExposureSettings,
}

/// Classes of storage and of snapshots whose policies are both Delete, or both Retain.
const CLASSES: [&str; 2] = ["delete", "retain"];

impl World {
    async fn new() -> Self {
        let plane = Lent::borrow().await;
        let storage = Storage::start(&plane).await;
        let mut manifests = String::new();
        for namespace in ["shop", "erp", OPERATOR] {
            manifests += &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n---\n");
        }
        for (class, policy) in CLASSES.iter().zip(["Delete", "Retain"]) {
            for (name, mode) in [((*class).to_owned(), "Immediate"), (format!("{class}-late"), "WaitForFirstConsumer")]
            {
                manifests += &format!(
                    "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {name}}}\nprovisioner: {DRIVER}\nreclaimPolicy: {policy}\nvolumeBindingMode: {mode}\n---\n"
                );
            }
            manifests += &format!(
                "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotClass\nmetadata: {{name: {class}}}\ndriver: {DRIVER}\ndeletionPolicy: {policy}\n---\n"
            );
        }
        plane.apply(manifests.trim_end_matches("---\n")).await;
        let client = plane.client().await;
        Self { plane, client, storage, settings: ExposureSettings::default() }
    }

    /// One pass: observe, decide, act.
    async fn pass(&self, wish: &Wish) -> Decision {
        let o = observe(&self.client, wish, |driver| self.settings.of(driver).storage_class).await.expect("observed");
        let decision = expose(wish, &o, &self.settings);
        act(&self.client, &wish.owner, OPERATOR, &decision.step).await.expect("acted");
        decision
    }

    /// Passes until it stands as wanted; the snapshot that was taken is remembered, as a status does.
    async fn until(&self, wish: &mut Wish, what: &str, wanted: impl Fn(&Decision) -> bool) -> Decision {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let decision = self.pass(wish).await;
            if let Standing::Exposed { taken, .. } | Standing::ExposingSnapshot { taken, .. } = &decision.standing
                && matches!(decision.step, Step::Nothing | Step::CreateSnapshot(_))
            {
                wish.taken = Some(taken.uid.clone());
            }
            if wanted(&decision) {
                return decision;
            }
            assert!(std::time::Instant::now() < end, "not {what} in time: {:#?}", decision.standing);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn exposed(&self, wish: &mut Wish) -> Decision {
        self.until(wish, "exposed", |d| matches!((&d.step, &d.standing), (Step::Nothing, Standing::Exposed { .. })))
            .await
    }

    async fn removed(&self, wish: &Wish, extent: Extent) {
        eventually("removed", PATIENCE, || async {
            let remains = remains(&self.client, &wish.owner, &wish.namespace, OPERATOR).await.expect("read");
            match remove(&remains, &wish.owner, extent) {
                Removal::Done => Ok(()),
                Removal::Waiting(what) => Err(what),
                Removal::Step(step) => {
                    act(&self.client, &wish.owner, OPERATOR, &step).await.expect("acted");
                    Err(format!("{step:?}"))
                }
            }
        })
        .await;
    }

    /// Everything there is besides the users' claims and volumes: names, and what the driver holds.
    async fn left_over(&self) -> (Vec<String>, Held) {
        fn names<K: ResourceExt>(kind: &str, list: Vec<K>) -> Vec<String> {
            list.iter().map(|o| format!("{kind} {}", o.name_any())).collect()
        }
        let every = ListParams::default();
        let snapshots: Api<VolumeSnapshot> = Api::all(self.client.clone());
        let contents: Api<VolumeSnapshotContent> = Api::all(self.client.clone());
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), OPERATOR);
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let mut left = names("VolumeSnapshot", snapshots.list(&every).await.expect("listed").items);
        left.extend(names("VolumeSnapshotContent", contents.list(&every).await.expect("listed").items));
        left.extend(names("PersistentVolumeClaim", claims.list(&every).await.expect("listed").items));
        left.extend(names("PersistentVolume", volumes.list(&every).await.expect("listed").items));
        left.retain(|name| !name.starts_with("PersistentVolume user-"));
        let mut held = self.storage.held();
        held.volumes.retain(|name, _| !name.starts_with("user-"));
        (left, held)
    }

    async fn nothing_is_left(&self) {
        let owners = owners(&self.client, OPERATOR).await.expect("listed");
        assert_eq!((self.left_over().await, owners), ((vec![], Held::default()), vec![]));
    }
}

fn wish(owner: &str, claim: &str, class: &str) -> Wish {
    Wish {
        owner: owner.into(),
        namespace: "shop".into(),
        source: Source::Claim { name: claim.into(), class: Some(class.into()) },
        operator_namespace: OPERATOR.into(),
        taken: None,
    }
}

fn reason(decision: &Decision) -> Option<(Reason, &str)> {
    match &decision.standing {
        Standing::Refused(refusal) => Some((refusal.reason, refusal.message.as_str())),
        _ => None,
    }
}

/// Policies of both classes, both modes of a volume, both modes of binding.
#[tokio::test(flavor = "multi_thread")]
async fn law_10_whatever_the_classes_say_nothing_of_an_exposed_snapshot_outlives_it() {
    let world = World::new().await;
    for (i, class) in CLASSES.iter().enumerate() {
        for late in [false, true] {
            for mode in ["Block", "Filesystem"] {
                let owner = format!("00000000-{i}-{late}-{}", mode.to_lowercase());
                let storage_class = if late { format!("{class}-late") } else { (*class).to_owned() };
                world.storage.claim("shop", &owner, &storage_class, mode).await;
                let mut wish = wish(&owner, &owner, class);
                let decision = world.exposed(&mut wish).await;
                let Standing::Exposed { taken, device } = decision.standing else { unreachable!("it was waited for") };
                assert_eq!((taken.bytes, taken.ours, taken.driver.as_str()), (1 << 30, true, DRIVER));
                assert!(device.nodes.is_some(), "the source's topology");
                if late {
                    // The worker's Pod is scheduled, and its volume is there only then.
                    world.storage.schedule(&device.claim);
                    eventually("bound", PATIENCE, || async {
                        match world.storage.held().volumes.values().flatten().count() {
                            0 => Err("not yet".to_owned()),
                            _ => Ok(()),
                        }
                    })
                    .await;
                }
                let claims: Api<PersistentVolumeClaim> = Api::namespaced(world.client.clone(), OPERATOR);
                let spec = claims.get(&device.claim).await.expect("there").spec.expect("a spec");
                assert_eq!(spec.volume_mode.as_deref(), Some("Block"), "whatever the source's mode");
                // Between attempts the volume goes and the point in time stays.
                world.removed(&wish, Extent::Exposure).await;
                assert_eq!(world.storage.held().snapshots.len(), 1);
                world.exposed(&mut wish).await;
                world.removed(&wish, Extent::Everything).await;
                world.nothing_is_left().await;
            }
        }
    }
}

/// A crash after each step, and then the Backup is deleted: whoever comes next finds everything.
#[tokio::test(flavor = "multi_thread")]
async fn law_6_a_crash_after_any_step_leaves_nothing_that_is_not_found_again() {
    let world = World::new().await;
    for class in CLASSES {
        for steps in 1.. {
            let owner = format!("00000000-{class}-{steps}");
            world.storage.claim("shop", &owner, class, "Block").await;
            let mut wish = wish(&owner, &owner, class);
            let (mut done, mut is_exposed) = (0, false);
            while done < steps && !is_exposed {
                let decision = world.pass(&wish).await;
                done += usize::from(decision.step != Step::Nothing);
                is_exposed = matches!((&decision.step, &decision.standing), (Step::Nothing, Standing::Exposed { .. }));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // The operator that comes next knows the Backup's uid at most.
            let found = owners(&world.client, OPERATOR).await.expect("listed");
            assert!(found.iter().any(|(uid, _)| *uid == owner), "after {done} steps: {found:?}");
            if steps % 2 == 0 {
                // It goes on, and is as good as the first.
                world.exposed(&mut wish).await;
            }
            world.removed(&wish, Extent::Everything).await;
            world.nothing_is_left().await;
            if is_exposed {
                assert!(steps > 5, "the last world had {done} steps");
                break;
            }
        }
    }
}

/// The backoff may be over before the removal is: what an earlier attempt exposed is then half there.
#[tokio::test(flavor = "multi_thread")]
async fn law_6_the_next_attempt_exposes_again_after_any_step_of_the_removal() {
    let world = World::new().await;
    for steps in 1.. {
        let owner = format!("00000000-half-{steps}");
        world.storage.claim("shop", &owner, "delete", "Block").await;
        let mut wish = wish(&owner, &owner, "delete");
        world.exposed(&mut wish).await;
        let (mut done, mut is_removed) = (0, false);
        while done < steps && !is_removed {
            let remains = remains(&world.client, &owner, "shop", OPERATOR).await.expect("read");
            match remove(&remains, &owner, Extent::Exposure) {
                Removal::Done => is_removed = true,
                Removal::Waiting(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                Removal::Step(step) => {
                    act(&world.client, &owner, OPERATOR, &step).await.expect("acted");
                    done += 1;
                }
            }
        }
        world.exposed(&mut wish).await;
        world.removed(&wish, Extent::Everything).await;
        world.nothing_is_left().await;
        if is_removed {
            assert!(steps > 3, "claim, snapshot and content were removed, and {done} steps done");
            break;
        }
    }
}

/// The snapshot-controller makes a content from what it saw a moment ago: our snapshot may be gone by then, and with a class
/// of policy Retain nobody else deletes it. One that points to a user's snapshot of the same name is the user's.
#[tokio::test(flavor = "multi_thread")]
async fn law_10_a_content_that_was_made_too_late_is_found_and_a_users_stays() {
    let world = World::new().await;
    world.storage.claim("shop", "pg", "retain", "Block").await;
    let mine = "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: tm-0b5c1d9e-0000-4000-8000-000000000002, namespace: shop}\nspec: {source: {persistentVolumeClaimName: pg}, volumeSnapshotClassName: retain}\n";
    world.plane.apply(mine).await;
    let (gone, theirs) = ("0b5c1d9e-0000-4000-8000-000000000001", "0b5c1d9e-0000-4000-8000-000000000002");
    for (name, owner) in [("late", gone), ("second", theirs), ("nightly", "nightly")] {
        world.plane.apply(&format!("apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotContent\nmetadata: {{name: {name}}}\nspec: {{deletionPolicy: Retain, driver: {DRIVER}, source: {{volumeHandle: v}}, volumeSnapshotRef: {{name: tm-{owner}, namespace: shop, uid: {owner}}}}}\n")).await;
    }
    let found = owners(&world.client, OPERATOR).await.expect("listed");
    assert!(found.contains(&(gone.to_owned(), "shop".to_owned())), "{found:?}");
    assert!(found.iter().all(|(owner, _)| owner != "nightly"), "what a user retained is nobody's: {found:?}");
    for owner in [gone, theirs] {
        world.removed(&wish(owner, "pg", "retain"), Extent::Everything).await;
    }
    let contents: Api<VolumeSnapshotContent> = Api::all(world.client.clone());
    let late = contents.get_opt("late").await.expect("read");
    assert!(late.is_none_or(|c| c.metadata.deletion_timestamp.is_some()), "nobody else deletes it");
    let second = contents.get("second").await.expect("there").spec.deletion_policy;
    assert_eq!(second, DeletionPolicy::Retain, "a user's snapshot keeps what it has");
}

/// The user's own snapshot, of their own namespace only, is read and left as it was.
#[tokio::test(flavor = "multi_thread")]
async fn law_11_a_users_snapshot_is_untouched_and_anothers_is_not_read() {
    let world = World::new().await;
    world.storage.claim("shop", "pg", "retain", "Block").await;
    let snapshot = "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: mine, namespace: shop}\nspec: {source: {persistentVolumeClaimName: pg}, volumeSnapshotClassName: delete}\n";
    world.plane.apply(snapshot).await;
    let mut given = Wish { source: Source::Snapshot { name: "mine".into() }, ..wish("u1", "pg", "delete") };
    world.exposed(&mut given).await;
    let snapshots: Api<VolumeSnapshot> = Api::namespaced(world.client.clone(), "shop");
    let before = snapshots.get("mine").await.expect("there");
    // A stranger writes a snapshot that names the content of another's: it is never ready, and if it says so, not believed.
    let content = before.content_name().expect("bound").to_owned();
    let forged = format!(
        "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {{name: forged, namespace: erp}}\nspec: {{source: {{volumeSnapshotContentName: {content}}}}}\n"
    );
    world.plane.apply(&forged).await;
    let said = serde_json::json!({"status": {"readyToUse": true, "boundVolumeSnapshotContentName": content, "restoreSize": "1Gi"}});
    let theirs: Api<VolumeSnapshot> = Api::namespaced(world.client.clone(), "erp");
    theirs.patch_status("forged", &Default::default(), &kube::api::Patch::Merge(said)).await.expect("said");
    let stranger =
        Wish { namespace: "erp".into(), source: Source::Snapshot { name: "forged".into() }, ..wish("u2", "", "") };
    let Decision { step, standing } = world.pass(&stranger).await;
    let Standing::TakingSnapshot(text) = standing else { panic!("{standing:?}") };
    assert_eq!((step, text.contains("not its own")), (Step::Nothing, true), "{text}");

    world.removed(&given, Extent::Everything).await;
    let after = snapshots.get("mine").await.expect("still there");
    assert_eq!((after.uid(), &after.spec, after.labels()), (before.uid(), &before.spec, before.labels()));
    assert_eq!(world.storage.held().snapshots.len(), 1, "the driver's too");
}

/// What waiting cures, and what it does not.
#[tokio::test(flavor = "multi_thread")]
async fn law_5_a_snapshot_that_cannot_be_had_says_why_and_what_to_do() {
    let world = World::new().await;
    let mut missing = wish("u1", "later", "delete");
    let decision = world.pass(&missing).await;
    assert!(
        matches!(&decision.standing, Standing::WaitingForSource(text) if text.contains("does not exist: create it")),
        "{decision:?}"
    );
    world.storage.fail(Some("quota of snapshots is used up"));
    world.storage.claim("shop", "later", "delete", "Block").await;
    let said =
        |d: &Decision| matches!(&d.standing, Standing::TakingSnapshot(text) if text.contains("quota of snapshots"));
    world.until(&mut missing, "told", said).await;
    world.storage.fail(None);
    world.exposed(&mut missing).await;

    let not_supported: Reason = Cause::SourceNotSupported.into();
    let wrong = world.pass(&wish("u2", "later", "absent")).await;
    assert_eq!(
        reason(&wrong),
        Some((not_supported, "VolumeSnapshotClass absent does not exist: name one of driver csi.example.com"))
    );
    let several =
        world.pass(&Wish { source: Source::Claim { name: "later".into(), class: None }, ..wish("u3", "", "") }).await;
    assert!(reason(&several).is_some_and(|(_, text)| text.contains("several VolumeSnapshotClasses")), "{several:?}");

    // The snapshot is deleted behind our back: its point in time is lost, and no other takes its place.
    world.removed(&missing, Extent::Exposure).await;
    let snapshots: Api<VolumeSnapshot> = Api::namespaced(world.client.clone(), "shop");
    snapshots.delete(&missing.snapshot_name(), &DeleteParams::default()).await.expect("deleted");
    let lost = world.until(&mut missing, "refused", |d| matches!(d.standing, Standing::Refused(_))).await;
    assert_eq!(reason(&lost).map(|r| r.0), Some(FailureReason::SnapshotLost.into()));
    world.removed(&missing, Extent::Everything).await;
    world.nothing_is_left().await;
}

/// A cluster without the snapshot API is told from one without this snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn law_7_a_missing_snapshot_api_is_no_missing_snapshot() {
    let plane = ControlPlane::start().await;
    let client = plane.client().await;
    let seen = observe(&client, &wish("u1", "pg", "delete"), |_| None).await;
    assert!(matches!(seen, Err(ObserveError::NotInstalled)), "{seen:?}");
    let seen = remains(&client, "u1", "shop", OPERATOR).await;
    assert!(matches!(seen, Err(ObserveError::NotInstalled)), "{seen:?}");
    assert_eq!(exposed_name("u1"), "tm-u1-x");
}
