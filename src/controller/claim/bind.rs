//! What is done when the volume is written: `bind(&Wish, &Observed) -> Decision`, pure and total.
//!
//! ```text
//!  kept → a second volume of the same handle → the first claim goes → the first volume goes
//!       → the user's claim → its uid on the volume → bound → released to the user
//! ```
//!
//! With the user's claim it is handed over: from then on it is finished whatever becomes of the Restore. A volume that is
//! `Released` by its phase would be deleted at the moment its policy allows it, so its own policy comes back only when its
//! phase is `Bound` and the claim's is.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;

use super::{
    Seen, Step, Wish,
    objects::{self, POLICY, claimed_by, is_going, is_its, is_ours, own_policy, policy},
    observe::Observed,
    volume_name,
};
use crate::{
    controller::snapshot::{Object, Refusal},
    model::FailureReason,
};

#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    pub step: Step,
    pub standing: Standing,
    pub hands: Hands,
}

/// Whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hands {
    Ours,
    /// The user's claim is there.
    Users,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    Binding(String),
    /// Bound, and the user's alone.
    Bound,
    Refused(Refusal),
}

/// What is to be done now.
pub fn bind(wish: &Wish, o: &Observed) -> Decision {
    let name = format!("PersistentVolumeClaim {}/{}", wish.namespace, wish.name);
    let its = o.claim.as_ref().filter(|claim| is_its(claim, wish));
    // A claim that was there before is handed nothing until the volume names it.
    let is_named = |claim: &&PersistentVolumeClaim| {
        wish.populates.is_none() || o.made.as_ref().and_then(claimed_by) == claim.metadata.uid.as_deref()
    };
    let hands = if its.is_some_and(|claim| is_named(&claim)) { Hands::Users } else { Hands::Ours };
    let found = match (&o.claim, its) {
        (_, Some(claim)) if hands == Hands::Users => admit(claim, o.made.as_ref(), &wish.owner, &name),
        (_, Some(claim)) => hand_over(wish, o, Some(claim), &name),
        (None, None) if wish.populates.is_some() => Err(format!("{name} was deleted while it was being populated")),
        (Some(_), None) => Err(format!("{name} was made by somebody else while it was being restored: delete it")),
        (None, None) => hand_over(wish, o, None, &name),
    };
    match found {
        Ok((step, standing)) => Decision { step, standing, hands },
        Err(seen) => {
            let message = format!("{seen}; then set a new spec.retryRequest, and all is fetched again");
            let refusal = Refusal::new(FailureReason::TargetRefused, message);
            Decision { step: Step::Nothing, standing: Standing::Refused(refusal), hands }
        }
    }
}

type Found = Result<(Step, Standing), String>;

fn binding(step: Step, text: impl Into<String>) -> Found {
    Ok((step, Standing::Binding(text.into())))
}

const SECOND: &str = "the volume is being given to its claim";

/// No claim of the user is there yet, or one that waits to be populated.
fn hand_over(wish: &Wish, o: &Observed, waits: Option<&PersistentVolumeClaim>, name: &str) -> Found {
    let own = volume_name(&wish.owner);
    if o.made.as_ref().is_some_and(|made| claimed_by(made) != Some(&wish.owner)) {
        return Err(format!("{name} was deleted while it was being bound"));
    }
    if let Some(made) = o.made.as_ref().filter(|made| is_going(&made.metadata)) {
        return Err(format!("PersistentVolume {} is being deleted by somebody", made.name_any()));
    }
    let is_kept =
        |v: &&PersistentVolume| policy(v) == Some("Retain") && is_ours(&v.metadata, &wish.owner) && is_noted(v);
    if let Some(volume) = o.written.iter().find(|v| !is_kept(v)) {
        return binding(Step::keep(volume), SECOND);
    }
    match (&o.made, o.written.first()) {
        (None, None) => return Err(format!("PersistentVolume {own}, which was restored for {name}, is gone")),
        (None, Some(written)) => {
            let volume = objects::volume(wish, written, o.class.as_ref())
                .ok_or_else(|| format!("PersistentVolume {} is not of CSI", written.name_any()))?;
            return binding(Step::CreateVolume(Box::new(volume)), SECOND);
        }
        (Some(_), _) => {}
    }
    if let Some(prime) = o.prime.as_ref().filter(|prime| is_ours(&prime.metadata, &wish.owner)) {
        return match is_going(&prime.metadata) {
            true => binding(Step::Nothing, "the worker's Pod lets go of the volume"),
            false => binding(Step::DeletePrime(Object::of(prime)), SECOND),
        };
    }
    if let Some(written) = o.written.first() {
        return match is_going(&written.metadata) {
            true => binding(Step::Nothing, "the worker's node lets go of the volume"),
            false => binding(Step::ForgetVolume(Seen::of(written)), SECOND),
        };
    }
    if let (Some(claim), Some(made)) = (waits, &o.made) {
        let claim = claim.uid().unwrap_or_default();
        return binding(Step::Admit { volume: Object::of(made), placeholder: wish.owner.clone(), claim }, SECOND);
    }
    match &o.refusal {
        Some(answer) => binding(Step::Nothing, format!("{name} cannot be made: {answer}")),
        None => binding(Step::CreateClaim(Box::new(objects::claim(wish))), SECOND),
    }
}

fn is_noted(volume: &PersistentVolume) -> bool {
    volume.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(POLICY))
}

/// The user's claim is there.
pub(super) fn admit(claim: &PersistentVolumeClaim, made: Option<&PersistentVolume>, owner: &str, name: &str) -> Found {
    let volume = volume_name(owner);
    let Some(made) = made else {
        return Err(format!("{name} waits for PersistentVolume {volume}, which is gone: delete it"));
    };
    // A claim that was there before gets the name from the volume controller.
    if claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).is_some_and(|name| name != volume) {
        return Err(format!("{name} does not name PersistentVolume {volume}: delete it"));
    }
    let uid = claim.uid().unwrap_or_default();
    match claimed_by(made) {
        Some(by) if by == uid => {}
        Some(by) if by == owner => {
            let step = Step::Admit { volume: Object::of(made), placeholder: owner.to_owned(), claim: uid };
            return binding(step, SECOND);
        }
        Some(_) | None => {
            return Err(format!("PersistentVolume {volume} waits for an earlier {name}: delete it"));
        }
    }
    if !is_ours(&made.metadata, owner) {
        return Ok((Step::Nothing, Standing::Bound));
    }
    let phases =
        [made.status.as_ref().and_then(|s| s.phase.as_deref()), claim.status.as_ref().and_then(|s| s.phase.as_deref())];
    match phases == [Some("Bound"); 2] {
        true => {
            let policy = own_policy(made).map(str::to_owned);
            binding(Step::Release { volume: Seen::of(made), policy }, SECOND)
        }
        false => binding(Step::Nothing, format!("{name} waits for the volume controller to bind it")),
    }
}
