//! The volume controller and the two protections, as kube-controller-manager 1.36 plays them: who is bound to whom, which
//! volume is released, and what may not go yet. What is decided is pure (`for_claim`, `for_volume`); the acts follow.
//!
//! ```text
//!  claimRef of a volume        and the claim of that name       the volume becomes
//!  none, or one without uid    -                                Available
//!  with uid                    missing, or another uid          Released; with policy Delete it and its data are deleted
//!  with uid                    is it, names no volume           as it was, until the claim is bound to it
//!  with uid                    is it, names this volume         Bound, Released or not before
//!  with uid                    is it, names another             Available again, or (provisioned, Delete) Released
//! ```
//!
//! Stricter than the real one: a volume and a claim that name each other are bound there whatever they are, and fail on the
//! node; here size, class, mode and access modes must fit. Sooner than the real one: a claim whose volume was changed is
//! looked at there within 15 s only, or when the claim itself changes.

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tidemark::api::common::parse_bytes;

use super::{Seen, Shared, change, change_status, claims_of, without_finalizer};

const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
pub(super) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
pub(super) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// What is done about a claim.
#[derive(Debug)]
enum ForClaim<'a> {
    Bind(&'a PersistentVolume),
    Provision,
    /// With what is said about it: reason and message of an Event.
    Pending(Option<(&'static str, String)>),
    /// It was bound, and its volume is gone or another's.
    Lost,
}

/// What is done about a volume.
#[derive(Debug, PartialEq, Eq)]
enum ForVolume {
    Phase(&'static str),
    Nothing,
    /// The controller bound it itself, and the claim has another.
    ForgetClaim,
    /// Somebody reserved it for a claim that has another: reserved it stays.
    ForgetUid,
}

fn for_claim<'a>(claim: &PersistentVolumeClaim, volumes: &'a [PersistentVolume], waits: bool) -> ForClaim<'a> {
    let wanted = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).filter(|name| !name.is_empty());
    let named = wanted.and_then(|name| volumes.iter().find(|v| v.name_any() == name));
    if claim.annotations().contains_key(BIND_COMPLETED) {
        return match named {
            Some(volume) if reference(volume).is_none_or(|r| r.uid == claim.uid()) => ForClaim::Bind(volume),
            _ => ForClaim::Lost,
        };
    }
    match (wanted, named) {
        (None, _) => match best_match(claim, volumes, waits) {
            Some(volume) => ForClaim::Bind(volume),
            None if waits && !claim.annotations().contains_key(SELECTED_NODE) => ForClaim::Pending(None),
            None => ForClaim::Provision,
        },
        // Nothing is provisioned for a claim that names a volume: it waits for that one.
        (Some(_), None) => ForClaim::Pending(None),
        (Some(name), Some(volume)) if reference(volume).is_some() && !is_bound_to(volume, claim) => {
            ForClaim::Pending(Some(("FailedBinding", format!("volume \"{name}\" already bound to a different claim."))))
        }
        (Some(name), Some(volume)) => match mismatch(volume, claim) {
            None => ForClaim::Bind(volume),
            Some(why) => {
                let said = format!("Cannot bind to requested volume \"{name}\": {why}");
                ForClaim::Pending(Some(("VolumeMismatch", said)))
            }
        },
    }
}

/// The claim is given only if its uid is the volume's.
fn for_volume(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> ForVolume {
    let is_reserved_only = |r: &ObjectReference| r.uid.as_deref().unwrap_or_default().is_empty();
    if reference(volume).is_none_or(is_reserved_only) {
        return ForVolume::Phase("Available");
    }
    let released = match phase(volume) {
        // A failure stays to be seen.
        "Failed" => ForVolume::Nothing,
        _ => ForVolume::Phase("Released"),
    };
    let Some(claim) = claim else { return released };
    let is_of_controller = volume.annotations().contains_key(BOUND_BY_CONTROLLER);
    let was_made_for_it = volume.annotations().contains_key(PROVISIONED_BY) && policy(volume) == "Delete";
    match claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).filter(|name| !name.is_empty()) {
        None => ForVolume::Nothing,
        Some(name) if name != volume.name_any() && was_made_for_it => released,
        Some(name) if name != volume.name_any() && is_of_controller => ForVolume::ForgetClaim,
        Some(name) if name != volume.name_any() => ForVolume::ForgetUid,
        Some(_) if !claim.annotations().contains_key(BIND_COMPLETED) && mismatch(volume, claim).is_some() => {
            ForVolume::Nothing
        }
        Some(_) => ForVolume::Phase("Bound"),
    }
}

/// A volume made or reserved for this claim; else, where no scheduler chooses, the smallest that nobody has.
fn best_match<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [PersistentVolume],
    waits: bool,
) -> Option<&'a PersistentVolume> {
    let fitting = || volumes.iter().filter(move |v| mismatch(v, claim).is_none());
    let free = |v: &&PersistentVolume| reference(v).is_none() && phase(v) == "Available" && !waits;
    fitting().find(|v| is_bound_to(v, claim)).or_else(|| fitting().filter(free).min_by_key(|v| capacity(v)))
}

/// Reserved for a claim of that name, or bound to that claim.
fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = reference(volume) else { return false };
    let uid = reference.uid.as_ref().filter(|uid| !uid.is_empty());
    reference.name.as_ref() == Some(&claim.name_any())
        && reference.namespace == claim.namespace()
        && uid.is_none_or(|uid| claim.uid().as_ref() == Some(uid))
}

/// Why they do not fit.
fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    let (has, wants) = (volume.spec.clone().unwrap_or_default(), claim.spec.clone().unwrap_or_default());
    let mode = |mode: Option<String>| mode.unwrap_or_else(|| "Filesystem".into());
    let modes = has.access_modes.unwrap_or_default();
    if volume.metadata.deletion_timestamp.is_some() {
        Some(format!("the volume is marked for deletion \"{}\"", volume.name_any()))
    } else if capacity(volume) < requested(claim) {
        Some("requested PV is too small".into())
    } else if has.storage_class_name.unwrap_or_default() != wants.storage_class_name.unwrap_or_default() {
        Some("storageClassName does not match".into())
    } else if mode(has.volume_mode) != mode(wants.volume_mode) {
        Some("incompatible volumeMode".into())
    } else if !wants.access_modes.unwrap_or_default().iter().all(|m| modes.contains(m)) {
        Some("incompatible accessMode".into())
    } else {
        None
    }
}

fn reference(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

pub(super) fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

pub(super) fn policy(volume: &PersistentVolume) -> &str {
    volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

fn capacity(volume: &PersistentVolume) -> u64 {
    let quantity = volume.spec.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage"));
    quantity.and_then(|q| parse_bytes(&q.0)).expect("every volume here has a size")
}

pub(super) fn requested(claim: &PersistentVolumeClaim) -> u64 {
    let quantity = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage"));
    quantity.and_then(|q| parse_bytes(&q.0)).expect("every claim here asks for a size")
}

impl Shared {
    pub(super) async fn claim(&self, claim: &PersistentVolumeClaim, seen: &Seen) -> kube::Result<()> {
        let users: Vec<&Pod> = seen.pods.iter().filter(|pod| uses(pod, claim)).collect();
        let has_node = |pod: &&&Pod| pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
        let is_protected = claim.finalizers().iter().any(|f| f == CLAIM_PROTECTION);
        if claim.metadata.deletion_timestamp.is_some() && is_protected && !users.iter().any(|pod| has_node(&pod)) {
            // A Pod on a node keeps it, ended or not, as long as the Pod is there.
            return without_finalizer(&self.inside(claim), claim, CLAIM_PROTECTION).await;
        }
        let waits = seen.class_of(claim).and_then(|c| c.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer");
        match for_claim(claim, &seen.volumes, waits) {
            ForClaim::Bind(volume) => self.bind(claim, volume).await,
            ForClaim::Provision => self.provision(claim, seen).await,
            ForClaim::Lost => self.claim_phase(claim, "Lost").await,
            ForClaim::Pending(said) => {
                if let Some((reason, message)) = said {
                    self.tell(claim, reason, &message).await?;
                }
                let is_wanted = users.iter().any(|pod| !has_node(&pod)) || self.is_scheduled(&claim.name_any());
                if waits && is_wanted && !claim.annotations().contains_key(SELECTED_NODE) {
                    return self.select_node(claim).await;
                }
                self.claim_phase(claim, "Pending").await
            }
        }
    }

    /// A claim without a volume.
    async fn claim_phase(&self, claim: &PersistentVolumeClaim, phase: &str) -> kube::Result<()> {
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase) {
            return Ok(());
        }
        let status = json!({"phase": phase, "capacity": null, "accessModes": null});
        change_status(&self.inside(claim), claim, status).await.map(drop)
    }

    /// The volume first, then the claim: each step is done if it is not done yet.
    async fn bind(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> kube::Result<()> {
        let mut patch = json!({});
        if reference(volume).is_none_or(|r| r.uid != claim.uid()) {
            patch["spec"]["claimRef"] = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "name": claim.name_any(), "namespace": claim.namespace(), "uid": claim.uid(),
                "resourceVersion": claim.resource_version()});
        }
        if !is_bound_to(volume, claim) {
            patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
        }
        let volume = changed(&self.all(), volume, patch).await?;
        self.volume_phase(&volume, "Bound").await?;

        let mut patch = json!({});
        if claim.spec.as_ref().and_then(|s| s.volume_name.as_ref()) != Some(&volume.name_any()) {
            patch["spec"]["volumeName"] = json!(volume.name_any());
            patch["metadata"]["annotations"][BOUND_BY_CONTROLLER] = json!("yes");
        }
        if !claim.annotations().contains_key(BIND_COMPLETED) {
            patch["metadata"]["annotations"][BIND_COMPLETED] = json!("yes");
        }
        let claim = changed(&self.inside(claim), claim, patch).await?;
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound") {
            return Ok(());
        }
        let spec = volume.spec.clone().unwrap_or_default();
        let status = json!({"phase": "Bound", "capacity": spec.capacity, "accessModes": spec.access_modes});
        change_status(&self.inside(&claim), &claim, status).await.map(drop)
    }

    pub(super) async fn volume(&self, volume: &PersistentVolume, claims: &[PersistentVolumeClaim]) -> kube::Result<()> {
        let is_protected = volume.finalizers().iter().any(|f| f == VOLUME_PROTECTION);
        if volume.metadata.deletion_timestamp.is_some() && is_protected && phase(volume) != "Bound" {
            return without_finalizer(&self.all(), volume, VOLUME_PROTECTION).await;
        }
        if phase(volume) == "Released" && policy(volume) == "Delete" {
            // It is lost even if its claimRef was put right a moment ago: nobody asks for that any more.
            return self.reclaim(volume).await;
        }
        let claim = self.claim_of(volume, claims).await?;
        match for_volume(volume, claim.as_ref()) {
            ForVolume::Phase(wanted) if wanted != phase(volume) => return self.volume_phase(volume, wanted).await,
            ForVolume::Phase(_) | ForVolume::Nothing => {}
            ForVolume::ForgetClaim => {
                let patch =
                    json!({"spec": {"claimRef": null}, "metadata": {"annotations": {BOUND_BY_CONTROLLER: null}}});
                return change(&self.all(), volume, patch).await.map(drop);
            }
            ForVolume::ForgetUid => {
                return change(&self.all(), volume, json!({"spec": {"claimRef": {"uid": null}}})).await.map(drop);
            }
        }
        self.reclaim(volume).await
    }

    async fn volume_phase(&self, volume: &PersistentVolume, wanted: &str) -> kube::Result<()> {
        if phase(volume) == wanted {
            return Ok(());
        }
        change_status(&self.all(), volume, json!({"phase": wanted})).await.map(drop)
    }

    /// The claim that a volume belongs to. Before a volume is given up, the server is asked once more: a list may be older.
    async fn claim_of(
        &self,
        volume: &PersistentVolume,
        claims: &[PersistentVolumeClaim],
    ) -> kube::Result<Option<PersistentVolumeClaim>> {
        let Some(reference) = reference(volume) else { return Ok(None) };
        let (name, namespace) =
            (reference.name.clone().unwrap_or_default(), reference.namespace.clone().unwrap_or_default());
        let is_it = |c: &PersistentVolumeClaim| {
            c.name_any() == name && c.namespace().as_ref() == Some(&namespace) && c.uid() == reference.uid
        };
        if let Some(claim) = claims.iter().find(|c| is_it(c)) {
            return Ok(Some(claim.clone()));
        }
        if matches!(phase(volume), "Released" | "Failed") {
            return Ok(None);
        }
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        Ok(api.get_opt(&name).await?.filter(is_it))
    }
}

/// The object as it is after the change, if there is anything to change.
async fn changed<K>(api: &Api<K>, object: &K, patch: Value) -> kube::Result<K>
where
    K: ResourceExt + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    match patch == json!({}) {
        true => Ok(object.clone()),
        false => change(api, object, patch).await,
    }
}

fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    pod.namespace() == claim.namespace() && claims_of(pod).contains(&claim.name_any())
}
