//! Claims: how a Restore fills a new claim, and how nothing is left of what it needed for that.
//!
//! ```text
//!  the operator's namespace                cluster                               the user's namespace
//!  PVC tm-<uid>-x (Block) ◄─────► PV pvc-… ──┐
//!    ▲ the worker writes it                  ├─ the driver's volume
//!                                 PV tm-<uid> ┘ ◄────────────────────────► PVC, as the spec wants it
//! ```
//!
//! * `objects`  what we make, and how ours are known
//! * `observe`  reads all of it, live
//! * `prepare`  decides the next step towards a device that a worker can write: pure
//! * `bind`     decides the next step from the written volume to the user's bound claim: pure
//! * `remove`   decides the next step towards nothing: pure
//! * `act`      carries out one step; each may be repeated
//!
//! A volume's mode cannot be changed, so the written volume gets a second PersistentVolume of the same handle, for block and
//! file system alike. Until the user's claim is bound to it both have the policy `Retain`: whatever is lost by a crash, the
//! data is not. What the policy was before stands in an annotation, and comes back with the last step, which takes our
//! labels off too: **without our labels it is the user's, and nothing here touches it again**.
//!
//! The new PersistentVolume names the claim before that is there. Its `claimRef.uid` is the Restore's uid then, which no
//! claim has: so a claim that somebody else makes in that moment is not bound to it. It is put right, tested, when the claim
//! is there. Names follow from the Restore's uid, and labels say so: after a crash at any point the next look goes on.

pub mod act;
pub mod bind;
#[cfg(test)]
mod laws;
pub mod objects;
pub mod observe;
pub mod prepare;
pub mod remove;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::snapshot::Object;
use crate::api::restore_status::ChosenClaim;

/// The claim that is wanted, and for whom.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// Uid of the Restore.
    pub owner: String,
    /// Its namespace: claims are made there and nowhere else.
    pub namespace: String,
    /// Name of the claim.
    pub name: String,
    pub form: ChosenClaim,
    pub labels: BTreeMap<String, String>,
    /// Uid of the claim if it is there and asked to be filled; else we make it.
    pub populates: Option<String>,
    /// The operator's namespace, where the worker writes.
    pub operator_namespace: String,
}

/// The claim in the operator's namespace.
pub fn prime_name(owner: &str) -> String {
    format!("tm-{owner}-x")
}

/// The volume of the user's claim.
pub fn volume_name(owner: &str) -> String {
    format!("tm-{owner}")
}

/// One change in the cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Nothing,
    CreatePrime(Box<PersistentVolumeClaim>),
    /// What the volume holds outlives its claim; the policy it had is noted.
    Keep {
        volume: Seen,
        was: Option<String>,
    },
    CreateVolume(Box<PersistentVolume>),
    DeletePrime(Object),
    /// The object, and not what it stands for: only as it was seen, with the policy `Retain`.
    ForgetVolume(Seen),
    CreateClaim(Box<PersistentVolumeClaim>),
    /// The claim that the volume waited for is there.
    Admit {
        volume: Object,
        placeholder: String,
        claim: String,
    },
    /// The volume is the user's: its own policy, and none of our labels.
    Release {
        volume: Seen,
        policy: Option<String>,
    },
    /// What the driver holds goes with its claim.
    Doom {
        volume: Seen,
        was: Option<String>,
    },
}

/// One that was seen, and only if it did not change since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub object: Object,
    pub version: String,
}

impl Step {
    pub fn keep(volume: &PersistentVolume) -> Self {
        Step::Keep { volume: Seen::of(volume), was: objects::own_policy(volume).map(str::to_owned) }
    }

    pub fn doom(volume: &PersistentVolume) -> Self {
        Step::Doom { volume: Seen::of(volume), was: objects::own_policy(volume).map(str::to_owned) }
    }
}

impl Seen {
    pub fn of<K: kube::ResourceExt>(object: &K) -> Self {
        Self { object: Object::of(object), version: object.resource_version().unwrap_or_default() }
    }
}
