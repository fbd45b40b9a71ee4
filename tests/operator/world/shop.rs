//! What the tests with workers as Jobs share: a user's namespace with a bound claim, the operator with the chart's
//! permissions and no others, and everything else of a cluster, played (`support::node`, `support::storage`).
#![allow(dead_code, reason = "each test file uses its own part")]

use std::time::Duration;

use super::{BUCKET, PATIENCE, World, merge};
use crate::support::{
    Operator, eventually, job,
    node::{Node, Plays},
    operator::NAMESPACE,
    storage::{DRIVER, Storage},
};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Secret},
    rbac::v1::PolicyRule,
};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::json;
use tidemark::{
    api::{Backup, BackupState, BackupStatus, Restore, RestoreState, RestoreStatus},
    controller::snapshot::objects::{VolumeSnapshot, VolumeSnapshotContent},
};

pub const BLOCKS: usize = 6;
pub const BLOCK: u64 = 2 << 20;
pub const IMAGE: &str = "volume";

/// A namespace of a user with a bound claim, whose device is an image.
pub struct Shop {
    pub world: World,
    pub storage: Storage,
    pub node: Node,
    pub operator: Operator,
}

impl Shop {
    pub async fn new(plays: Plays) -> Self {
        let world = World::new().await;
        let storage = Storage::start(&world.plane).await;
        storage.size(BLOCKS as u64 * BLOCK);
        let node = Node::start(&world.plane, world.client.clone(), NAMESPACE, plays);
        node.uses(&storage);
        world
            .plane
            .apply(&format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---\napiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: fast}}\nprovisioner: {DRIVER}\nreclaimPolicy: Retain\n---\napiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: late}}\nprovisioner: {DRIVER}\nreclaimPolicy: Delete\nvolumeBindingMode: WaitForFirstConsumer\nmountOptions: [noatime]\n---\napiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotClass\nmetadata: {{name: keep}}\ndriver: {DRIVER}\ndeletionPolicy: Retain\n"
            ))
            .await;
        storage.claim("shop", "pg", "fast", "Block").await;
        drop(world.image(IMAGE, BLOCKS, 11));
        let operator = Operator::start_as(
            &world.plane,
            &restricted(&world).await,
            world.home.clone(),
            &["--workers=job", "--worker-image=tidemark:test"],
        );
        Self { world, storage, node, operator }
    }

    pub fn backups(&self) -> Api<Backup> {
        Api::namespaced(self.world.client.clone(), "shop")
    }

    /// A Backup of the claim; its device is the image.
    pub async fn backup(&self, name: &str, more: serde_json::Value) -> String {
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

    pub async fn until(&self, name: &str, what: &str, wanted: impl Fn(&BackupStatus) -> bool) -> BackupStatus {
        let told = super::until(self.backups(), &self.operator, (name, what), wanted);
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
    pub async fn ours(&self) -> Vec<String> {
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

    pub async fn nothing_is_left(&self) {
        self.nothing_is_left_but(&[]).await;
    }

    /// Nothing of ours, in the cluster or in the driver, but these volumes and what they stand for.
    pub async fn nothing_is_left_but(&self, kept: &[PersistentVolume]) {
        let kept_names: Vec<_> = kept.iter().map(|v| format!("Volume {}", v.name_any())).collect();
        let handle = |v: &PersistentVolume| v.spec.as_ref()?.csi.as_ref().map(|csi| csi.volume_handle.clone());
        let handles: Vec<_> = kept.iter().filter_map(handle).collect();
        eventually("nothing left", PATIENCE, || async {
            let (mut ours, held) = (self.ours().await, self.storage.held());
            ours.retain(|name| !kept_names.contains(name));
            let is_ours = |name: &&String| !name.starts_with("user-") && !handles.contains(name);
            let volumes: Vec<_> = held.volumes.keys().filter(is_ours).collect();
            let is_lost = handles.iter().any(|handle| !held.volumes.contains_key(handle));
            match ours.is_empty() && volumes.is_empty() && held.snapshots.is_empty() && !is_lost {
                true => Ok(()),
                false => Err(format!("{ours:?}, the driver: {held:?}, kept {handles:?}\n{}", self.operator.tail())),
            }
        })
        .await;
    }

    pub fn restores(&self) -> Api<Restore> {
        Api::namespaced(self.world.client.clone(), "shop")
    }

    pub fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.world.client.clone(), "shop")
    }

    /// A Restore into a new claim of the same name. Its uid.
    pub async fn restore(&self, name: &str, backup: &str, claim: serde_json::Value, more: serde_json::Value) -> String {
        let mut target = json!({"name": name});
        merge(&mut target, claim);
        let mut spec = json!({
            "backupRef": {"name": backup},
            "persistentVolumeClaim": target,
            "retry": {"limit": 6, "backoff": "1s", "maxBackoff": "2s"},
        });
        merge(&mut spec, more);
        let restore = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Restore",
            "metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        self.world.plane.apply(&restore.to_string()).await;
        self.restores().get(name).await.expect("applied").uid().expect("it has one")
    }

    pub async fn until_restore(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&RestoreStatus) -> bool,
    ) -> RestoreStatus {
        let told = super::until(self.restores(), &self.operator, (name, what), wanted);
        tokio::select! {
            status = told => status,
            () = self.complain() => unreachable!("it only panics"),
        }
    }

    /// Until it is Completed; the volume of its claim.
    pub async fn restored(&self, name: &str) -> PersistentVolume {
        self.until_restore(name, "Completed", |s| s.state == Some(RestoreState::Completed)).await;
        let claim = self.claims().get(name).await.expect("it was made");
        let volume = claim.spec.and_then(|s| s.volume_name).expect("it is bound");
        Api::<PersistentVolume>::all(self.world.client.clone()).get(&volume).await.expect("there")
    }

    pub async fn completed(&self, name: &str) -> BackupStatus {
        self.until(name, "Completed", |s| s.state == Some(BackupState::Completed)).await
    }

    /// Every verb that the chart grants was used here, but for those with an excuse.
    pub fn nothing_is_permitted_in_vain(&self) {
        let excused = [
            // Only an Event that is repeated within minutes is patched.
            ("patch", "events.k8s.io", "events"),
            // A Pod that starts at once leaves nothing to ask; another test asks.
            ("list", "", "events"),
            // Imports, expiry, the populator and the removal of data have tests of their own.
            ("create", "tidemark.dev", "backups"),
            ("create", "tidemark.dev", "restores"),
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

    pub async fn restores_equal(&self, status: &BackupStatus) {
        let store = status.store.as_ref().expect("chosen");
        let objects = job::s3_bucket(&self.world.s3, BUCKET);
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
pub async fn restricted(world: &World) -> std::path::PathBuf {
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
