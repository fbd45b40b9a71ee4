//! The operator with workers as Jobs, on a real API server with a real store and real worker processes: a claim's point in
//! time goes up, comes back equal, and nothing of it is left. The operator has the chart's permissions and no others.
//! Everything else of a cluster is played (`support::node`, `support::storage`).

use std::time::Duration;

use crate::support::{
    Operator, eventually, job,
    node::{Node, Plays},
    operator::NAMESPACE,
    storage::{DRIVER, Storage},
};
use crate::world::{self, PATIENCE, World, merge};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Secret},
    rbac::v1::PolicyRule,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tidemark::{
    api::{Backup, BackupState, BackupStatus},
    controller::snapshot::objects::{VolumeSnapshot, VolumeSnapshotContent},
};

const BLOCKS: usize = 6;
const BLOCK: u64 = 2 << 20;
const IMAGE: &str = "volume";

/// A namespace of a user with a bound claim, whose device is an image.
struct Shop {
    world: World,
    storage: Storage,
    node: Node,
    operator: Operator,
}

impl Shop {
    async fn new(plays: Plays) -> Self {
        let world = World::new().await;
        let storage = Storage::start(&world.plane).await;
        storage.size(BLOCKS as u64 * BLOCK);
        let node = Node::start(world.client.clone(), NAMESPACE, plays);
        world
            .plane
            .apply(&format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---\napiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: fast}}\nprovisioner: {DRIVER}\nreclaimPolicy: Retain\n---\napiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotClass\nmetadata: {{name: keep}}\ndriver: {DRIVER}\ndeletionPolicy: Retain\n"
            ))
            .await;
        storage.claim("shop", "pg", "fast", "Block").await;
        drop(world.image(IMAGE, BLOCKS, 11));
        let operator = Operator::start_as(
            &restricted(&world).await,
            world.home.clone(),
            &["--workers=job", "--worker-image=tidemark:test"],
        );
        Self { world, storage, node, operator }
    }

    fn backups(&self) -> Api<Backup> {
        Api::namespaced(self.world.client.clone(), "shop")
    }

    /// A Backup of the claim; its device is the image.
    async fn backup(&self, name: &str, more: serde_json::Value) -> String {
        let mut spec = json!({
            "source": {"persistentVolumeClaim": {"name": "pg"}},
            "targetRef": {"kind": "ClusterBackupTarget", "name": "s3-primary"},
            "retry": {"limit": 6, "backoff": "1s", "maxBackoff": "2s"},
        });
        merge(&mut spec, more);
        let backup = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Backup",
            "metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        self.world.plane.apply(&backup.to_string()).await;
        let uid = self.backups().get(name).await.expect("applied").uid().expect("it has one");
        self.node.device(&format!("tm-{uid}-x"), &self.world.home.volumes().join(IMAGE));
        uid
    }

    async fn until(&self, name: &str, what: &str, wanted: impl Fn(&BackupStatus) -> bool) -> BackupStatus {
        let told = eventually(what, PATIENCE, || async {
            let status = self.backups().get(name).await.map_err(|e| e.to_string())?.status.unwrap_or_default();
            if wanted(&status) { Ok(status) } else { Err(format!("{status:#?}")) }
        });
        tokio::select! {
            status = told => status,
            () = self.complain() => unreachable!("it only panics"),
        }
    }

    /// Ends the test early, with what the operator said, if it says that it may not do something.
    async fn complain(&self) {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let output = self.operator.output();
            let refused: Vec<_> = output.lines().filter(|line| line.contains("is forbidden: User")).take(3).collect();
            assert!(refused.is_empty(), "the chart's permissions do not suffice: {refused:#?}");
        }
    }

    /// Objects we made, of every kind.
    async fn ours(&self) -> Vec<String> {
        async fn names<K>(api: Api<K>, kind: &str) -> Vec<String>
        where
            K: Clone + serde::de::DeserializeOwned + std::fmt::Debug + ResourceExt,
        {
            let found = api.list(&ListParams::default()).await.expect("listed");
            found.iter().map(|o| format!("{kind} {}", o.name_any())).collect()
        }
        let client = || self.world.client.clone();
        let mut all = names(Api::<Job>::all(client()), "Job").await;
        all.extend(names(Api::<Pod>::all(client()), "Pod").await);
        all.extend(names(Api::<Secret>::all(client()), "Secret").await);
        all.extend(names(Api::<VolumeSnapshot>::all(client()), "VolumeSnapshot").await);
        all.extend(names(Api::<VolumeSnapshotContent>::all(client()), "VolumeSnapshotContent").await);
        all.extend(names(Api::<PersistentVolumeClaim>::namespaced(client(), NAMESPACE), "Claim").await);
        all.extend(names(Api::<PersistentVolume>::all(client()), "Volume").await);
        all.retain(|name| name != "Secret s3" && !name.starts_with("Volume user-"));
        all
    }

    async fn nothing_is_left(&self) {
        eventually("nothing left", PATIENCE, || async {
            let (ours, held) = (self.ours().await, self.storage.held());
            let volumes: Vec<_> = held.volumes.keys().filter(|name| !name.starts_with("user-")).collect();
            match ours.is_empty() && volumes.is_empty() && held.snapshots.is_empty() {
                true => Ok(()),
                false => {
                    Err(format!("{ours:?}, the driver: {volumes:?} {:?}\n{}", held.snapshots, self.operator.tail()))
                }
            }
        })
        .await;
    }

    /// Every verb that the chart grants was used here, but for those with an excuse.
    fn nothing_is_permitted_in_vain(&self) {
        let excused = [
            // A Restore by Pods is refused before it has anything to clean up.
            ("patch", "tidemark.dev", "restores"),
            ("patch", "tidemark.dev", "restores/status"),
            // Only an Event that is repeated within minutes is patched.
            ("patch", "events.k8s.io", "events"),
            // A Pod that starts at once leaves nothing to ask; another test asks.
            ("list", "", "events"),
            // Imports, expiry and the removal of data have tests of their own.
            ("create", "tidemark.dev", "backups"),
            ("delete", "tidemark.dev", "backups"),
            ("get", "tidemark.dev", "clusterbackuptargets"),
            ("patch", "tidemark.dev", "clusterbackuptargets"),
            ("get", "apiextensions.k8s.io", "customresourcedefinitions"),
            ("get", "", "configmaps"),
            ("create", "", "configmaps"),
            ("update", "", "configmaps"),
        ];
        let asked = self.world.plane.asked_for(&format!("system:serviceaccount:{NAMESPACE}:tidemark"));
        let mut in_vain = Vec::new();
        for file in ["cluster", "namespace"] {
            let rules: Vec<PolicyRule> = serde_saphyr::from_str(&rules(file)).expect("rules");
            for rule in rules {
                let (groups, resources) = (rule.api_groups.unwrap_or_default(), rule.resources.unwrap_or_default());
                for (group, resource) in groups.iter().flat_map(|g| resources.iter().map(move |r| (g, r))) {
                    let verbs = rule.verbs.iter().map(|verb| (verb.clone(), group.clone(), resource.clone()));
                    in_vain.extend(verbs.filter(|wanted| !asked.contains(wanted)));
                }
            }
        }
        in_vain
            .retain(|(verb, group, resource)| !excused.contains(&(verb.as_str(), group.as_str(), resource.as_str())));
        assert!(in_vain.is_empty(), "granted and never used: {in_vain:#?}");
    }

    async fn restores_equal(&self, status: &BackupStatus) {
        let store = status.store.as_ref().expect("chosen");
        let objects = job::s3_bucket(&self.world.s3, world::BUCKET);
        let backup = store.backup.as_deref().expect("a record");
        let image = self.world.home.volumes().join(IMAGE);
        assert_eq!(job::compare(&objects, &store.volume, backup, &image).await, None);
    }
}

/// Rules of the chart.
fn rules(file: &str) -> String {
    let path = format!("{}/charts/tidemark/files/rbac/{file}.yaml", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).expect("the chart is there")
}

/// The operator's user in the cluster, with the rules of the chart.
async fn restricted(world: &World) -> std::path::PathBuf {
    let kind = |kind: &str, meta: &str, rest: &str| {
        format!("apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\nmetadata: {meta}\n{rest}\n---\n")
    };
    let subject = format!("subjects: [{{kind: ServiceAccount, name: tidemark, namespace: {NAMESPACE}}}]");
    let bound = |kind: &str| {
        format!("roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {kind}, name: tidemark}}\n{subject}")
    };
    let inside = format!("{{name: tidemark, namespace: {NAMESPACE}}}");
    let manifests = [
        kind("ClusterRole", "{name: tidemark}", &format!("rules:\n{}", rules("cluster"))),
        kind("ClusterRoleBinding", "{name: tidemark}", &bound("ClusterRole")),
        kind("Role", &inside, &format!("rules:\n{}", rules("namespace"))),
        kind("RoleBinding", &inside, &bound("Role")),
    ];
    world.plane.apply(manifests.concat().trim_end_matches("---\n")).await;
    let admin = std::fs::read_to_string(world.plane.kubeconfig()).expect("ours");
    let user = format!("user: {{as: 'system:serviceaccount:{NAMESPACE}:tidemark', client-certificate");
    let path = world.home.state().with_file_name("restricted.kubeconfig");
    std::fs::write(&path, admin.replace("user: {client-certificate", &user)).expect("ours");
    path
}

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
    shop.nothing_is_permitted_in_vain();
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
async fn law_11_a_pod_reads_no_host_device() {
    let shop = Shop::new(Plays::Everything).await;
    shop.world.backup("host", IMAGE, json!({})).await;
    let refused = shop.world.until(&shop.operator, "host", "refused", |s| s.state == Some(BackupState::Error)).await;
    assert_eq!(refused.reason.as_deref(), Some("HostDeviceNotSupported"));
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
