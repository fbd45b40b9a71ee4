//! From a written volume to the user's bound claim, and back to nothing: each step on a real API server, with volume
//! controller, provisioner and driver played by the test (`support::storage`). A crash after each step, and then a person goes
//! on, cancels, or takes the claim's name.

use std::time::Duration;

use crate::support::{
    Lent, eventually,
    storage::{DRIVER, Storage},
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::json;
use tidemark::controller::{
    claim::{
        Step, Wish,
        act::act,
        bind::{self, Hands, bind},
        objects::is_ours,
        observe::{observe, owners, remains},
        prepare::{self, prepare},
        remove::{Removal, remove},
        volume_name,
    },
    snapshot::drivers::ExposureSettings,
};

const OPERATOR: &str = "tidemark";
const PATIENCE: Duration = Duration::from_secs(120);
const CLASSES: [&str; 4] = ["delete", "retain", "delete-late", "retain-late"];

struct World {
    client: Client,
    storage: Storage,
    _plane: Lent,
}

/// How far it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reached {
    /// Somewhere: nothing of it is the user's.
    Ours,
    HandedOver,
    Bound,
}

impl World {
    async fn new() -> Self {
        let plane = Lent::borrow().await;
        let storage = Storage::start(&plane).await;
        let mut manifests = String::new();
        for namespace in ["shop", OPERATOR] {
            manifests += &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n---\n");
        }
        for class in CLASSES {
            let policy = if class.starts_with("delete") { "Delete" } else { "Retain" };
            let mode = if class.ends_with("late") { "WaitForFirstConsumer" } else { "Immediate" };
            manifests += &format!(
                "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {class}}}\nprovisioner: {DRIVER}\nreclaimPolicy: {policy}\nvolumeBindingMode: {mode}\n---\n"
            );
        }
        plane.apply(manifests.trim_end_matches("---\n")).await;
        Self { client: plane.client().await, storage, _plane: plane }
    }

    /// Up to so many steps towards the user's bound claim; `write` stands for the worker.
    async fn fill(&self, wish: &Wish, steps: usize) -> Reached {
        let end = std::time::Instant::now() + PATIENCE;
        let (mut done, mut is_written) = (0, false);
        loop {
            assert!(std::time::Instant::now() < end, "not bound in time: {:#?}", self.seen(wish).await);
            let o = observe(&self.client, wish).await.expect("observed");
            let (step, hands) = if is_written {
                let decision = bind(wish, &o);
                match decision.standing {
                    bind::Standing::Bound => return Reached::Bound,
                    bind::Standing::Binding(_) => (decision.step, decision.hands),
                    bind::Standing::Refused(refusal) => panic!("{refusal:?}"),
                }
            } else {
                let decision = prepare(wish, &o, &ExposureSettings::default());
                match decision.standing {
                    prepare::Standing::Ready(claim) => {
                        self.write(&claim).await;
                        is_written = true;
                        continue;
                    }
                    prepare::Standing::Making(_) => (decision.step, Hands::Ours),
                    prepare::Standing::Refused(refusal) => panic!("{refusal:?}"),
                }
            };
            if done == steps {
                return if hands == Hands::Users { Reached::HandedOver } else { Reached::Ours };
            }
            done += usize::from(step != Step::Nothing);
            act(&self.client, &wish.owner, OPERATOR, &step).await.expect("acted");
            if step == Step::Nothing {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// The worker's Pod is scheduled, and its volume is there only then.
    async fn write(&self, claim: &str) {
        self.storage.schedule(claim);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), OPERATOR);
        eventually("bound", PATIENCE, || async {
            let claim = claims.get(claim).await.expect("there");
            let phase = claim.status.as_ref().and_then(|s| s.phase.clone());
            if phase.as_deref() == Some("Bound") { Ok(()) } else { Err(format!("{claim:#?}")) }
        })
        .await;
    }

    async fn clear(&self, owner: &str) {
        eventually("cleared", PATIENCE, || async {
            match remove(&remains(&self.client, owner, OPERATOR).await.expect("read"), owner) {
                Removal::Done => Ok(()),
                Removal::Waiting(what) => Err(what),
                Removal::Step(step) => {
                    act(&self.client, owner, OPERATOR, &step).await.expect("acted");
                    Err(format!("{step:?}"))
                }
            }
        })
        .await;
    }

    async fn seen(&self, wish: &Wish) -> (Vec<PersistentVolume>, Vec<PersistentVolumeClaim>) {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let claims: Api<PersistentVolumeClaim> = Api::all(self.client.clone());
        let mut seen = claims.list(&ListParams::default()).await.expect("listed").items;
        seen.retain(|claim| claim.name_any().contains(&wish.owner) || claim.name_any() == wish.name);
        (volumes.list(&ListParams::default()).await.expect("listed").items, seen)
    }

    /// The user has it, as its class would have given it, and nothing else is there.
    async fn is_the_users(&self, wish: &Wish) {
        let (volumes, claims) = self.seen(wish).await;
        let [volume] = volumes.as_slice() else { panic!("{volumes:#?}") };
        let [claim] = claims.as_slice() else { panic!("{claims:#?}") };
        let spec = volume.spec.clone().expect("it has one");
        let policy = if wish.form.storage_class_name.starts_with("delete") { "Delete" } else { "Retain" };
        assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some(policy), "{volume:#?}");
        assert_eq!(spec.volume_mode.as_deref(), Some(wish.form.volume_mode.as_str()), "{volume:#?}");
        assert!(
            !is_ours(&volume.metadata, &wish.owner) && volume.name_any() == volume_name(&wish.owner),
            "{volume:#?}"
        );
        assert_eq!(spec.claim_ref.and_then(|c| c.uid), claim.uid(), "{claim:#?}");
        assert_eq!(claim.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Bound"), "{claim:#?}");
        let handle = spec.csi.expect("CSI").volume_handle;
        let held = self.storage.held().volumes;
        assert_eq!(held.keys().collect::<Vec<_>>(), [&handle], "what the driver holds");
    }

    async fn nothing_is_left(&self, wish: &Wish) {
        let seen = self.seen(wish).await;
        let held = self.storage.held().volumes;
        assert!(seen.0.is_empty() && seen.1.is_empty() && held.is_empty(), "{seen:#?} {held:?}");
        assert_eq!(owners(&self.client, OPERATOR).await.expect("listed"), Vec::<String>::new());
    }

    /// The user deletes the claim; a volume that is kept for him goes with the test.
    async fn forget(&self, wish: &Wish) {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &wish.namespace);
        claims.delete(&wish.name, &DeleteParams::default()).await.expect("deleted");
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let name = volume_name(&wish.owner);
        if wish.form.storage_class_name.starts_with("retain") {
            eventually("the claim gone", PATIENCE, || async {
                match claims.get_opt(&wish.name).await.expect("read") {
                    None => Ok(()),
                    Some(claim) => Err(format!("{claim:#?}")),
                }
            })
            .await;
            let patch = kube::api::Patch::Merge(json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}));
            volumes.patch(&name, &Default::default(), &patch).await.expect("the user may");
        }
        eventually("the volume gone", PATIENCE, || async {
            match volumes.get_opt(&name).await.expect("read") {
                None => Ok(()),
                Some(volume) => Err(format!("{volume:#?}")),
            }
        })
        .await;
    }
}

fn wish(owner: &str, class: &str, mode: &str) -> Wish {
    let form = json!({"storageClassName": class, "volumeMode": mode, "accessModes": ["ReadWriteOnce"], "size": "1Gi"});
    Wish {
        owner: owner.into(),
        namespace: "shop".into(),
        name: format!("pg-{owner}"),
        form: serde_json::from_value(form).expect("valid"),
        labels: Default::default(),
        populates: None,
        operator_namespace: OPERATOR.into(),
    }
}

/// Policies, modes of binding and modes of a volume; a crash after each step, and the next operator knows the uid at most.
#[tokio::test(flavor = "multi_thread")]
async fn law_6_a_crash_after_any_step_of_filling_a_claim_is_gone_on_from_or_leaves_nothing() {
    let world = World::new().await;
    for (class, mode) in CLASSES.into_iter().zip(["Block", "Filesystem", "Filesystem", "Block"]) {
        for steps in 1.. {
            let wish = wish(&format!("00000000-{class}-{steps}"), class, mode);
            let reached = world.fill(&wish, steps).await;
            let found = owners(&world.client, OPERATOR).await.expect("listed");
            assert_eq!(found.contains(&wish.owner), reached != Reached::Bound, "after {steps} steps: {found:?}");
            // It was cancelled, or its Restore is gone; what is handed over is finished.
            world.clear(&wish.owner).await;
            match reached {
                Reached::Ours => world.nothing_is_left(&wish).await,
                Reached::HandedOver | Reached::Bound => {
                    world.is_the_users(&wish).await;
                    world.forget(&wish).await;
                }
            }
            if reached == Reached::Bound {
                assert!(steps > 7, "the last world had {steps} steps");
                break;
            }
        }
    }
}

/// The next operator goes on from what it sees: status says that all is written, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn law_4_whoever_goes_on_after_any_step_binds_the_same_volume() {
    let world = World::new().await;
    for steps in 2.. {
        let wish = wish(&format!("00000000-on-{steps}"), "delete", "Filesystem");
        let reached = world.fill(&wish, steps).await;
        let before = world.storage.held().volumes;
        eventually("bound", PATIENCE, || async {
            let decision = bind(&wish, &observe(&world.client, &wish).await.expect("observed"));
            match decision.standing {
                bind::Standing::Bound => Ok(()),
                bind::Standing::Binding(what) => {
                    act(&world.client, &wish.owner, OPERATOR, &decision.step).await.expect("acted");
                    Err(what)
                }
                bind::Standing::Refused(refusal) => panic!("{refusal:?}"),
            }
        })
        .await;
        world.is_the_users(&wish).await;
        assert_eq!(world.storage.held().volumes, before, "the same volume");
        world.forget(&wish).await;
        if reached == Reached::Bound {
            break;
        }
    }
}
