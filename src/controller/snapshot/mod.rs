//! Snapshots: how a claim's point in time becomes a device that a worker can read, and how nothing of it is left.
//!
//! ```text
//!  the user's namespace                cluster                           the operator's namespace
//!  PVC ◄─ VolumeSnapshot tm-<uid> ─► content ── handle ── content tm-<uid>-x ◄─ VolumeSnapshot tm-<uid>-x ◄─ PVC tm-<uid>-x
//!         (ours, or the user's)      (driver's)            (ours, Retain)                                    (Block) ─► PV
//! ```
//!
//! * `objects`  the objects of the snapshot API
//! * `drivers`  what is known of drivers, and what an administrator says of them
//! * `observe`  reads all of it, live
//! * `expose`   decides the next step towards a device: pure
//! * `remove`   decides the next step towards nothing: pure
//! * `act`      carries out one step; each may be repeated
//!
//! The same point in time is exposed by a second, static content of the same handle with `deletionPolicy: Retain`: exactly
//! one content may delete what the driver holds, and that is the one of the snapshot. Snapshots we took and volumes made
//! for us are set to be deleted whatever their classes say: they must not outlive us. Names follow from the Backup's uid, and
//! labels say so: after a crash at any point the next look finds everything and goes on.
//!
//! The order of going: claim → its volume → exposed snapshot → exposed content → the snapshot we took → its content.

pub mod act;
pub mod drivers;
pub mod expose;
pub mod objects;
pub mod observe;
pub mod remove;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use self::objects::{VolumeSnapshot, VolumeSnapshotContent};
use crate::api::Reason;

/// What is to be exposed, and for whom.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// Uid of the Backup.
    pub owner: String,
    /// Its namespace: sources lie there and nowhere else.
    pub namespace: String,
    pub source: Source,
    /// The operator's namespace, where the device is exposed.
    pub operator_namespace: String,
    /// Uid of the snapshot an earlier attempt used: no other point in time may take its place.
    pub taken: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// We take the snapshot.
    Claim { name: String, class: Option<String> },
    /// It is the user's, and stays untouched.
    Snapshot { name: String },
}

impl Wish {
    /// The snapshot that is read.
    pub fn snapshot_name(&self) -> String {
        match &self.source {
            Source::Claim { .. } => taken_name(&self.owner),
            Source::Snapshot { name } => name.clone(),
        }
    }
}

/// The snapshot we take in the user's namespace.
pub fn taken_name(owner: &str) -> String {
    format!("tm-{owner}")
}

/// Snapshot, content and claim in the operator's namespace; another name, for the namespaces may be the same.
pub fn exposed_name(owner: &str) -> String {
    format!("tm-{owner}-x")
}

/// One change in the cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Nothing,
    CreateSnapshot(Box<VolumeSnapshot>),
    CreateContent(Box<VolumeSnapshotContent>),
    CreateClaim(Box<PersistentVolumeClaim>),
    /// The driver's snapshot goes with its VolumeSnapshot, and is found again by its label.
    OwnContent(Object),
    /// The driver's volume goes with its claim, and is found again by its label.
    OwnVolume(Object),
    DeleteClaim(Object),
    DeleteSnapshot {
        namespace: String,
        object: Object,
    },
    DeleteContent(Object),
}

/// One that was seen, and no other of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub name: String,
    pub uid: String,
}

impl Object {
    pub fn of<K: kube::ResourceExt>(object: &K) -> Self {
        Self { name: object.name_any(), uid: object.uid().unwrap_or_default() }
    }
}

/// It will not come by waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    pub message: String,
}

impl Refusal {
    pub fn new(reason: impl Into<Reason>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}
