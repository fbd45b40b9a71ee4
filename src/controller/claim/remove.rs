//! What is done until nothing is left: `remove(&Observed, owner) -> Removal`, pure.
//!
//! ```text
//!  handed over: its uid on the volume → bound → released to the user
//!  else: the second volume → volumes set to go with their claim → claim → volumes gone, with what the driver holds
//! ```
//!
//! Of two volumes with the same handle only one may be deleted by the driver, and one must: the second goes as an object while
//! the first stays, and with what it stands for when it is alone. Only what carries our labels is touched. The worker's Pod must be
//! gone before: a claim in use is not deleted.

use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt;

use super::{
    Seen, Step,
    bind::{Standing, admit},
    objects::{claimed_by, is_going, is_made, is_ours, policy},
    observe::Observed,
};
use crate::controller::snapshot::Object;

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
pub fn remove(o: &Observed, owner: &str) -> Removal {
    let made = o.made.as_ref().filter(|volume| is_ours(&volume.metadata, owner));
    let handed_over = made.and_then(|made| finish(o, made, owner));
    if let Some(removal) = handed_over {
        return removal;
    }
    // Unmarked ones are those of our claim.
    let written = &o.written;
    if let Some(made) = made {
        let name = format!("PersistentVolume {}", made.name_any());
        let keeps_data = |v: &PersistentVolume| !is_going(&v.metadata) || policy(v) == Some("Delete");
        if written.iter().any(keeps_data) {
            return match policy(made) {
                Some("Retain") => going(&made.metadata, name, Step::ForgetVolume(Seen::of(made))),
                Some(_) | None => Removal::Waiting(format!("{name} is being deleted by its driver")),
            };
        }
        // The first goes as an object, and leaves what it stood for to the second.
        if let Some(first) = written.first() {
            return Removal::Waiting(format!("PersistentVolume {} is being deleted", first.name_any()));
        }
        if policy(made) != Some("Delete") {
            return Removal::Step(Step::doom(made));
        }
    }
    let is_doomed = |v: &&PersistentVolume| policy(v) == Some("Delete") && is_ours(&v.metadata, owner);
    if let Some(volume) = written.iter().find(|v| !is_doomed(v)) {
        return Removal::Step(Step::doom(volume));
    }
    if let Some(prime) = o.prime.as_ref().filter(|c| is_ours(&c.metadata, owner)) {
        let name = format!("PersistentVolumeClaim {}", prime.name_any());
        return going(&prime.metadata, name, Step::DeletePrime(Object::of(prime)));
    }
    match made.or(written.first()) {
        Some(volume) => {
            Removal::Waiting(format!("PersistentVolume {} is being deleted by its driver", volume.name_any()))
        }
        None => Removal::Done,
    }
}

/// What is the user's is given to the user; none: it is not, and goes.
fn finish(o: &Observed, made: &PersistentVolume, owner: &str) -> Option<Removal> {
    let is_named = |claim: &PersistentVolumeClaim| claimed_by(made) == claim.metadata.uid.as_deref();
    let claim = o.claim.as_ref().filter(|claim| is_made(claim, owner) || is_named(claim))?;
    let name = format!("PersistentVolumeClaim {}/{}", claim.namespace().unwrap_or_default(), claim.name_any());
    match admit(claim, Some(made), owner, &name) {
        Ok((Step::Nothing, Standing::Binding(what))) => Some(Removal::Waiting(what)),
        Ok((Step::Nothing, _)) | Err(_) => None,
        Ok((step, _)) => Some(Removal::Step(step)),
    }
}

fn going(meta: &ObjectMeta, name: String, step: Step) -> Removal {
    match is_going(meta) {
        false => Removal::Step(step),
        true => Removal::Waiting(format!("{name} is being deleted")),
    }
}
