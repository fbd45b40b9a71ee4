//! What is done until nothing is left: `remove(&Remains, owner, extent) -> Removal`, pure.
//!
//! ```text
//!  volumes set to go with their claim → claim → volumes gone → exposed snapshot → exposed content
//!                                                           → (everything) content set to go → the snapshot we took → its content
//! ```
//!
//! Each thing goes when nothing needs it any more: the driver may refuse to delete a snapshot of which a volume was made, and
//! a content without its snapshot is not collected by anybody. Only what carries our labels is touched; a user's snapshot
//! never is. The worker's Pod must be gone before: a claim in use is not deleted.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::{
    Object, Step,
    expose::is_owned,
    objects::{DeletionPolicy, is_ours},
    observe::Remains,
    taken_name,
};

/// How much is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The exposed volume: it costs money, and the next attempt makes another from the same point in time.
    Exposure,
    /// And the snapshot, if we took it.
    Everything,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Removal {
    /// This is to be done.
    Step(Step),
    /// It was asked for; the words say what is waited for.
    Waiting(String),
    /// Nothing is left.
    Done,
}

/// What is to be removed next.
pub fn remove(remains: &Remains, owner: &str, extent: Extent) -> Removal {
    let exposed = &remains.exposed;
    if let Some(volume) = exposed.volumes.iter().find(|v| !is_owned(v, owner)) {
        return Removal::Step(Step::OwnVolume(Object::of(volume)));
    }
    if let Some(claim) = exposed.claim.as_ref().filter(|c| is_ours(&c.metadata, owner)) {
        let name = format!("PersistentVolumeClaim {}", claim.name_any());
        return going(&claim.metadata, name, Step::DeleteClaim(Object::of(claim)));
    }
    if let Some(volume) = exposed.volumes.first() {
        return Removal::Waiting(format!("PersistentVolume {} is being deleted by its driver", volume.name_any()));
    }
    if let Some(snapshot) = exposed.snapshot.as_ref().filter(|s| is_ours(&s.metadata, owner)) {
        let step =
            Step::DeleteSnapshot { namespace: snapshot.namespace().unwrap_or_default(), object: Object::of(snapshot) };
        return going(&snapshot.metadata, format!("VolumeSnapshot {}", snapshot.name_any()), step);
    }
    if let Some(content) = exposed.content.as_ref().filter(|c| is_ours(&c.metadata, owner)) {
        let name = format!("VolumeSnapshotContent {}", content.name_any());
        return going(&content.metadata, name, Step::DeleteContent(Object::of(content)));
    }
    match extent {
        Extent::Exposure => Removal::Done,
        Extent::Everything => release(remains, owner),
    }
}

fn release(remains: &Remains, owner: &str) -> Removal {
    let taken = remains.taken.as_ref().filter(|s| is_ours(&s.metadata, owner));
    // Of our snapshot, whether or not we came to mark it and whether or not it is still there; but a snapshot of that name
    // that is not ours keeps its own.
    let is_orphan = |c: &super::objects::VolumeSnapshotContent| {
        remains.taken.is_none() && c.spec.volume_snapshot_ref.name == taken_name(owner)
    };
    let is_its = |c: &&super::objects::VolumeSnapshotContent| {
        is_ours(&c.metadata, owner) || taken.is_some_and(|snapshot| c.is_of(snapshot)) || is_orphan(c)
    };
    let contents: Vec<_> = remains.contents.iter().filter(is_its).collect();
    let kept = |c: &&&super::objects::VolumeSnapshotContent| {
        c.spec.deletion_policy != DeletionPolicy::Delete || !is_ours(&c.metadata, owner)
    };
    if let Some(content) = contents.iter().find(kept) {
        return Removal::Step(Step::OwnContent(Object::of(*content)));
    }
    if let Some(snapshot) = taken {
        let step =
            Step::DeleteSnapshot { namespace: snapshot.namespace().unwrap_or_default(), object: Object::of(snapshot) };
        return going(&snapshot.metadata, format!("VolumeSnapshot {}", snapshot.name_any()), step);
    }
    match contents.first() {
        None => Removal::Done,
        // Its snapshot went before it was marked, and nobody else deletes it now.
        Some(content) => {
            let name = format!("VolumeSnapshotContent {}", content.name_any());
            going(&content.metadata, name, Step::DeleteContent(Object::of(*content)))
        }
    }
}

fn going(meta: &ObjectMeta, name: String, step: Step) -> Removal {
    match meta.deletion_timestamp {
        None => Removal::Step(step),
        Some(_) => Removal::Waiting(format!("{name} is being deleted")),
    }
}
