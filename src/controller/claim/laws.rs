//! The laws of filling a claim, over every small world: a cluster of a few objects that does what volume controller and
//! driver do, a crash after each step, and whatever a person may want then. The real API server's part is in
//! `tests/operator/claim.rs`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{
            CSIPersistentVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeClaim,
            PersistentVolumeClaimStatus, PersistentVolumeSpec, PersistentVolumeStatus,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::ResourceExt;
use serde_json::json;

use super::{
    Step, Wish,
    bind::{self, Hands, bind},
    objects::{self, POLICY, is_going, is_ours, labels},
    observe::Observed,
    prepare::{self, prepare},
    prime_name,
    remove::{Removal, remove},
    volume_name,
};
use crate::{api::common::VolumeMode, controller::snapshot::drivers::ExposureSettings};

const OWNER: &str = "0b5c1d9e-0000-4000-8000-000000000001";

/// A cluster of one prime claim, one user's claim, and the volumes of one handle.
#[derive(Debug, Clone)]
struct Cluster {
    prime: Option<PersistentVolumeClaim>,
    claim: Option<PersistentVolumeClaim>,
    volumes: BTreeMap<String, PersistentVolume>,
    /// Does the driver hold what was written?
    held: bool,
    /// Nothing of this kind goes at once: nodes and finalizers keep it a while.
    lingers: bool,
    class: StorageClass,
    count: u32,
}

fn wish(mode: VolumeMode) -> Wish {
    let form = json!({"storageClassName": "fast", "volumeMode": mode.as_str(), "accessModes": ["ReadWriteOnce"],
        "size": "1Gi", "fsType": "xfs"});
    Wish {
        owner: OWNER.into(),
        namespace: "shop".into(),
        name: "pg".into(),
        form: serde_json::from_value(form).expect("valid"),
        labels: [("app".to_owned(), "pg".to_owned())].into(),
        populates: None,
        operator_namespace: "tidemark".into(),
    }
}

impl Cluster {
    fn new(policy: &str) -> Self {
        let class = StorageClass {
            metadata: ObjectMeta { name: Some("fast".into()), ..ObjectMeta::default() },
            provisioner: "csi.example.com".into(),
            reclaim_policy: Some(policy.into()),
            ..StorageClass::default()
        };
        Self { prime: None, claim: None, volumes: BTreeMap::new(), held: false, lingers: false, class, count: 0 }
    }

    fn slow(policy: &str) -> Self {
        Self { lingers: true, ..Self::new(policy) }
    }

    /// The user's claim is there before, and asks to be filled.
    fn asked(mut self, wish: &Wish) -> Self {
        let mut claim = objects::claim(wish);
        claim.metadata.labels = None;
        claim.metadata.uid = wish.populates.clone();
        let spec = claim.spec.get_or_insert_default();
        spec.volume_name = None;
        let source = json!({"apiGroup": "tidemark.dev", "kind": "Backup", "name": "b"});
        spec.data_source_ref = Some(serde_json::from_value(source).expect("valid"));
        self.claim = Some(claim);
        self
    }

    /// Time passes.
    fn tick(&mut self) {
        self.volumes.retain(|_, volume| !is_going(&volume.metadata));
        if self.prime.as_ref().is_some_and(|prime| is_going(&prime.metadata)) {
            self.prime = None;
        }
        self.control();
    }

    fn observed(&self) -> Observed {
        let own = volume_name(OWNER);
        Observed {
            prime: self.prime.clone(),
            written: self.volumes.values().filter(|v| v.name_any() != own).cloned().collect(),
            made: self.volumes.get(&own).cloned(),
            claim: self.claim.clone(),
            class: Some(self.class.clone()),
            refusal: None,
        }
    }

    fn stamped(&mut self, meta: &mut ObjectMeta) {
        self.count += 1;
        meta.uid.get_or_insert(format!("uid-{}", self.count));
        meta.resource_version = Some(self.count.to_string());
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut PersistentVolume)) {
        let mut volume = self.volumes.remove(name).expect("it was seen");
        change(&mut volume);
        self.stamped(&mut volume.metadata);
        self.volumes.insert(name.to_owned(), volume);
    }

    fn apply(&mut self, step: &Step) {
        let policy = |volume: &mut PersistentVolume, policy: Option<String>| {
            volume.spec.get_or_insert_default().persistent_volume_reclaim_policy = policy;
        };
        match step {
            Step::Nothing => {}
            Step::CreatePrime(claim) => {
                let mut claim = claim.as_ref().clone();
                self.stamped(&mut claim.metadata);
                self.prime = Some(claim);
            }
            Step::CreateClaim(claim) => {
                let mut claim = claim.as_ref().clone();
                self.stamped(&mut claim.metadata);
                self.claim = Some(claim);
            }
            Step::CreateVolume(volume) => {
                let mut volume = volume.as_ref().clone();
                self.stamped(&mut volume.metadata);
                self.volumes.insert(volume.name_any(), volume);
            }
            Step::Keep { volume, was } | Step::Doom { volume, was } => {
                let wanted = if matches!(step, Step::Keep { .. }) { "Retain" } else { "Delete" };
                self.change(&volume.object.name, |v| {
                    v.metadata.labels.get_or_insert_default().extend(labels(OWNER));
                    let annotations = v.metadata.annotations.get_or_insert_default();
                    annotations.extend(was.clone().map(|was| (POLICY.to_owned(), was)));
                    policy(v, Some(wanted.to_owned()));
                });
            }
            Step::DeletePrime(_) => {
                let prime = self.prime.as_mut().expect("it was seen");
                prime.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
            }
            Step::ForgetVolume(seen) => self.change(&seen.object.name, |volume| {
                assert_eq!(objects::policy(volume), Some("Retain"), "{volume:#?}");
                volume.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
            }),
            Step::Admit { volume, placeholder, claim } => self.change(&volume.name, |v| {
                let reference = v.spec.get_or_insert_default().claim_ref.get_or_insert_default();
                assert_eq!(reference.uid.as_ref(), Some(placeholder));
                reference.uid = Some(claim.clone());
            }),
            Step::Release { volume, policy: wanted } => self.change(&volume.object.name, |v| {
                v.metadata.labels.get_or_insert_default().retain(|key, _| !labels(OWNER).contains_key(key));
                v.metadata.annotations.get_or_insert_default().remove(POLICY);
                policy(v, wanted.clone());
            }),
        }
        self.control();
        if !self.lingers {
            self.tick();
        }
        let doomed = self.volumes.values().filter(|v| objects::policy(v) == Some("Delete")).count();
        assert!(doomed <= 1, "two volumes of one handle may be deleted by the driver: {self:#?}");
        assert!(self.held || self.volumes.is_empty(), "a volume of nothing: {self:#?}");
    }

    /// Provisioner, volume controller and driver, until nothing moves.
    fn control(&mut self) {
        if let Some(prime) = self.prime.clone().filter(|c| c.spec.as_ref().is_some_and(|s| s.volume_name.is_none())) {
            self.provide(prime);
        }
        let uids: Vec<_> = [&self.prime, &self.claim].into_iter().flatten().filter_map(ResourceExt::uid).collect();
        for volume in self.volumes.values_mut() {
            let is_bound = objects::claimed_by(volume).is_some_and(|by| uids.iter().any(|uid| uid == by));
            let phase = if is_bound { "Bound" } else { "Released" };
            volume.status = Some(PersistentVolumeStatus { phase: Some(phase.into()), ..Default::default() });
        }
        if let Some(claim) = &mut self.claim {
            let uid = claim.uid();
            let is_its = self.volumes.values().any(|v| objects::claimed_by(v) == uid.as_deref());
            let phase = if is_its { "Bound" } else { "Pending" };
            if is_its {
                claim.spec.get_or_insert_default().volume_name = Some(volume_name(OWNER));
            }
            claim.status = Some(PersistentVolumeClaimStatus { phase: Some(phase.into()), ..Default::default() });
        }
        let is_released = |v: &PersistentVolume| v.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Released");
        let goes = |v: &PersistentVolume| is_released(v) && objects::policy(v) == Some("Delete");
        if self.volumes.values().any(goes) {
            self.volumes.retain(|_, v| !goes(v));
            self.held = false;
        }
    }

    fn provide(&mut self, mut prime: PersistentVolumeClaim) {
        let name = format!("pvc-{}", prime.uid().expect("stamped"));
        let mut volume = PersistentVolume {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                annotations: Some([("pv.kubernetes.io/provisioned-by".into(), "csi.example.com".into())].into()),
                ..ObjectMeta::default()
            },
            spec: Some(PersistentVolumeSpec {
                csi: Some(CSIPersistentVolumeSource {
                    driver: "csi.example.com".into(),
                    volume_handle: "vol-1".into(),
                    ..CSIPersistentVolumeSource::default()
                }),
                claim_ref: Some(ObjectReference { uid: prime.uid(), ..ObjectReference::default() }),
                persistent_volume_reclaim_policy: self.class.reclaim_policy.clone(),
                storage_class_name: Some("fast".into()),
                ..PersistentVolumeSpec::default()
            }),
            status: None,
        };
        self.stamped(&mut volume.metadata);
        self.volumes.insert(name.clone(), volume);
        self.held = true;
        prime.spec.get_or_insert_default().volume_name = Some(name);
        prime.status = Some(PersistentVolumeClaimStatus { phase: Some("Bound".into()), ..Default::default() });
        self.prime = Some(prime);
    }

    /// Up to so many steps towards the bound claim. Is it bound?
    fn fill(&mut self, wish: &Wish, steps: usize) -> bool {
        let (mut done, mut is_written) = (0, false);
        for _ in 0..100 {
            let o = self.observed();
            let step = if is_written {
                let decision = bind(wish, &o);
                match decision.standing {
                    bind::Standing::Bound => return true,
                    bind::Standing::Binding(_) => decision.step,
                    bind::Standing::Refused(refusal) => panic!("{refusal:?}: {self:#?}"),
                }
            } else {
                let decision = prepare(wish, &o, &ExposureSettings::default());
                match decision.standing {
                    prepare::Standing::Ready(name) => {
                        assert_eq!(name, prime_name(OWNER));
                        is_written = true;
                        continue;
                    }
                    prepare::Standing::Making(_) => decision.step,
                    prepare::Standing::Refused(refusal) => panic!("{refusal:?}: {self:#?}"),
                }
            };
            if done == steps {
                return false;
            }
            match step {
                Step::Nothing => self.tick(),
                step => {
                    done += 1;
                    self.apply(&step);
                }
            }
        }
        panic!("it does not end: {self:#?}")
    }

    /// All is written; from here on until it is bound.
    fn bind(&mut self, wish: &Wish) {
        for _ in 0..100 {
            let decision = bind(wish, &self.observed());
            match decision.standing {
                bind::Standing::Bound => return,
                bind::Standing::Binding(_) if decision.step == Step::Nothing => self.tick(),
                bind::Standing::Binding(_) => self.apply(&decision.step),
                bind::Standing::Refused(refusal) => panic!("{refusal:?}: {self:#?}"),
            }
        }
        panic!("it does not end: {self:#?}");
    }

    /// Up to so many steps towards nothing. Is it done?
    fn clear(&mut self, steps: usize) -> bool {
        for _ in 0..steps {
            match remove(&self.observed(), OWNER) {
                Removal::Step(step) => self.apply(&step),
                Removal::Done => return true,
                Removal::Waiting(_) => self.tick(),
            }
        }
        remove(&self.observed(), OWNER) == Removal::Done
    }

    fn is_the_users(&self, policy: &str) -> bool {
        let own = self.volumes.get(&volume_name(OWNER));
        own.is_some_and(|v| {
            objects::policy(v) == Some(policy)
                && !is_ours(&v.metadata, OWNER)
                && v.annotations().keys().eq(["pv.kubernetes.io/provisioned-by"])
                && objects::claimed_by(v) == self.claim.as_ref().and_then(|c| c.metadata.uid.as_deref())
        }) && self.volumes.len() == 1
            && self.prime.is_none()
            && self.held
    }
}

/// Both policies and modes, a claim that we make and one that is populated, in a cluster where all goes at once and in one
/// where nothing does.
fn every_world(check: impl Fn(&Cluster, &str, &Wish)) {
    for policy in ["Delete", "Retain"] {
        for mode in [VolumeMode::Block, VolumeMode::Filesystem] {
            for cluster in [Cluster::new(policy), Cluster::slow(policy)] {
                check(&cluster, policy, &wish(mode));
                let wish = Wish { populates: Some("asked".into()), ..wish(mode) };
                check(&cluster.asked(&wish), policy, &wish);
            }
        }
    }
}

#[test]
fn law_4_a_filled_claim_gets_the_volume_as_it_was_wanted_and_nothing_else_stays() {
    every_world(|new, policy, wish| {
        let mut cluster = new.clone();
        assert!(cluster.fill(wish, usize::MAX));
        assert!(cluster.is_the_users(policy), "{cluster:#?}");
        assert!(cluster.clear(0), "nothing is to be removed: {cluster:#?}");
        let spec = cluster.volumes[&volume_name(OWNER)].spec.clone().expect("one");
        let csi = spec.csi.expect("CSI");
        let is_filesystem = wish.form.volume_mode == VolumeMode::Filesystem;
        assert_eq!((csi.volume_handle.as_str(), csi.fs_type.as_deref()), ("vol-1", is_filesystem.then_some("xfs")));
        assert_eq!(spec.volume_mode.as_deref(), Some(wish.form.volume_mode.as_str()));
        let claim = cluster.claim.expect("made");
        assert!(claim.metadata.owner_references.is_none(), "a Restore never owns what it fills");
        let is_made = wish.populates.is_none();
        assert_eq!(claim.labels().get("app").map(String::as_str), is_made.then_some("pg"), "and changes no other");
    });
}

#[test]
fn law_6_a_crash_after_any_step_is_gone_on_from() {
    every_world(|new, policy, wish| {
        for steps in 0.. {
            let mut cluster = new.clone();
            let is_bound = cluster.fill(wish, steps);
            // Whoever comes next knows from status that all is written, or begins with the device again.
            if cluster.prime.is_some() || steps == 0 {
                assert!(cluster.clone().fill(wish, usize::MAX));
            }
            if steps > 0 {
                cluster.bind(wish);
            }
            assert!(steps == 0 || cluster.is_the_users(policy), "{cluster:#?}");
            if is_bound {
                assert!(steps > 6, "{steps} steps");
                break;
            }
        }
    });
}

#[test]
fn law_10_before_the_hand_over_everything_goes_and_after_it_nothing_does() {
    every_world(|new, policy, wish| {
        for steps in 0.. {
            let mut cluster = new.clone();
            let is_bound = cluster.fill(wish, steps);
            let hands = bind(wish, &cluster.observed()).hands;
            assert!(cluster.clear(100), "{cluster:#?}");
            match hands {
                Hands::Users => assert!(cluster.is_the_users(policy), "after {steps} steps: {cluster:#?}"),
                Hands::Ours => {
                    let is_empty = cluster.prime.is_none() && cluster.volumes.is_empty();
                    assert_eq!(cluster.claim.is_some(), wish.populates.is_some(), "no claim was made or lost");
                    assert!(is_empty && !cluster.held, "after {steps} steps: {cluster:#?}");
                }
            }
            if is_bound {
                break;
            }
        }
    });
}

/// A person may ask for one more attempt while what the last one left is still going.
#[test]
fn law_6_an_attempt_begins_anew_after_any_step_of_a_removal() {
    every_world(|new, policy, wish| {
        for steps in 0..6 {
            for removed in 0..6 {
                let mut cluster = new.clone();
                cluster.fill(wish, steps);
                if bind(wish, &cluster.observed()).hands == Hands::Users {
                    continue;
                }
                cluster.clear(removed);
                assert!(cluster.fill(wish, usize::MAX), "after {steps} and {removed}");
                assert!(cluster.is_the_users(policy), "after {steps} and {removed}: {cluster:#?}");
            }
        }
    });
}

/// A claim that somebody else makes in the meantime is not bound to the volume, and is left as it is.
#[test]
fn law_11_a_claim_of_somebody_else_gets_nothing() {
    every_world(|new, _, wish| {
        for steps in 1..6 {
            let mut cluster = new.clone();
            cluster.fill(wish, steps);
            let mut theirs = objects::claim(wish);
            theirs.metadata.labels = None;
            theirs.metadata.uid = Some("theirs".into());
            if wish.populates.is_some() {
                // One of the same name that asks for nothing.
                theirs.spec.get_or_insert_default().volume_name = None;
            }
            cluster.claim = Some(theirs.clone());
            let refused = bind(wish, &cluster.observed());
            assert!(
                matches!(&refused.standing, bind::Standing::Refused(r) if r.message.contains("shop/pg")),
                "{refused:?}"
            );
            assert_eq!(refused.hands, Hands::Ours);
            assert!(cluster.clear(100), "{cluster:#?}");
            assert!(cluster.volumes.is_empty() && !cluster.held, "{cluster:#?}");
            let left = cluster.claim.expect("it is theirs");
            assert_eq!((left.metadata, left.spec), (theirs.metadata, theirs.spec));
        }
    });
}
