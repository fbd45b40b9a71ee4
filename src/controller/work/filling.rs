//! The claim of an object that fills one: where it stands, what is done next, and how what is left of it goes.
//!
//! | the object | what is looked at |
//! |---|---|
//! | before its first attempt | whether the claim can be made (`claim::prepare`), so that it is refused before anything is |
//! | an attempt begins, no worker yet | everything on the way to a device |
//! | a worker is there | nothing: it has its device |
//! | written, and the worker is gone | everything on the way to the user's bound claim (`claim::bind`) |
//! | ended | what is left (`claim::remove`), until nothing is |
//!
//! What was written stays while a retry will come by itself: the next attempt keeps what is right of it.

use super::{
    binding::is_binding,
    observe::{Finalizer, HostDevice, Life, Place, PlaceSeen, Refusal, Seen, WorkerSeen},
    volume::{Situation, VolumeSeen},
};
use crate::{
    api::{Cause, Stage, restore_status::ChosenClaim},
    controller::{
        claim::{
            self,
            bind::bind,
            observe::{observe, remains},
            prepare::{self, Standing, prepare},
            remove::remove,
        },
        context::{ApiError, Context},
        snapshot,
    },
};

/// Where a worker's Pod has its device.
pub const DEVICE: &str = "/dev/target";

/// What an object wants of a claim.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// By its words alone.
    pub place: PlaceSeen,
    /// Uid, namespace, claim and labels; the form once it is known.
    pub owner: String,
    pub claim: Target,
    pub form: Option<ChosenClaim>,
}

/// The claim by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub namespace: String,
    pub name: String,
    pub labels: std::collections::BTreeMap<String, String>,
    /// Its uid, if it is there and asked to be filled.
    pub populates: Option<String>,
}

/// The claim a place is.
#[derive(Debug, Clone, PartialEq)]
pub struct Filled {
    pub namespace: String,
    pub name: String,
    pub form: ChosenClaim,
    /// The claim that the worker is given, once it is there.
    pub prime: Option<String>,
}

/// Looks at what the situation asks for.
pub async fn look(context: &Context, wanted: &Wanted, at: &Situation<'_>) -> Result<(PlaceSeen, VolumeSeen), ApiError> {
    let state = at.status.state;
    let idle = || Ok((wanted.place.clone(), VolumeSeen::Idle));
    if *at.worker != WorkerSeen::Absent {
        return idle();
    }
    let will_retry = at.status.next_retry_time.is_some();
    let is_over = matches!(state, Some(Stage::Completed | Stage::Cancelled | Stage::Deleting))
        || (state == Some(Stage::Error) && !will_retry);
    if at.wish.life == Life::Deleting || is_over {
        return match at.wish.finalizer {
            Finalizer::Present => {
                let left = remains(&context.client, &wanted.owner, &context.namespace).await?;
                Ok((wanted.place.clone(), VolumeSeen::Clearing(remove(&left, &wanted.owner))))
            }
            Finalizer::Absent => idle(),
        };
    }
    let waits_for_worker = at.status.reason.as_deref() == Some(Cause::WaitingForOldWorker.as_str());
    match state {
        None | Some(Stage::Pending) => Ok((checked(context, wanted).await?, VolumeSeen::Idle)),
        Some(Stage::Starting) if !at.wish.cancel && !waits_for_worker => making(context, wanted).await,
        Some(Stage::Closing) if is_binding(at.status) => binding(context, wanted).await,
        Some(
            Stage::Starting
            | Stage::InProgress
            | Stage::Closing
            | Stage::Error
            | Stage::Completed
            | Stage::Cancelled
            | Stage::Deleting,
        ) => idle(),
    }
}

fn wish(context: &Context, wanted: &Wanted, form: &ChosenClaim) -> claim::Wish {
    claim::Wish {
        owner: wanted.owner.clone(),
        namespace: wanted.claim.namespace.clone(),
        name: wanted.claim.name.clone(),
        form: form.clone(),
        labels: wanted.claim.labels.clone(),
        populates: wanted.claim.populates.clone(),
        operator_namespace: context.namespace.clone(),
    }
}

fn filled(place: &PlaceSeen) -> Option<&Filled> {
    match place {
        Seen::Usable(place) => place.filled.as_deref(),
        Seen::Waiting(_) | Seen::Refused(_) => None,
    }
}

fn refused(refusal: snapshot::Refusal) -> PlaceSeen {
    Seen::Refused(Refusal { reason: refusal.reason, message: refusal.message })
}

/// Enough to choose and to queue, and nothing that is known to fail.
async fn checked(context: &Context, wanted: &Wanted) -> Result<PlaceSeen, ApiError> {
    let (Some(filled), Some(settings)) = (filled(&wanted.place), &context.exposure) else {
        return Ok(wanted.place.clone());
    };
    let wish = wish(context, wanted, &filled.form);
    let o = observe(&context.client, &wish).await?;
    Ok(prepare::refusal(&wish, &o, settings).map_or_else(|| wanted.place.clone(), refused))
}

async fn making(context: &Context, wanted: &Wanted) -> Result<(PlaceSeen, VolumeSeen), ApiError> {
    let (Seen::Usable(place), Some(settings)) = (&wanted.place, &context.exposure) else {
        return Ok((wanted.place.clone(), VolumeSeen::Idle));
    };
    let Some(filled) = &place.filled else { return Ok((wanted.place.clone(), VolumeSeen::Idle)) };
    let wish = wish(context, wanted, &filled.form);
    let decision = prepare(&wish, &observe(&context.client, &wish).await?, settings);
    let seen = match &decision.standing {
        Standing::Refused(refusal) => refused(refusal.clone()),
        Standing::Making(text) => Seen::Waiting(Refusal::new(Cause::MakingVolume, text.clone())),
        Standing::Ready(prime) => {
            let filled = Filled { prime: Some(prime.clone()), ..filled.as_ref().clone() };
            Seen::Usable(Box::new(Place { filled: Some(Box::new(filled)), ..place.as_ref().clone() }))
        }
    };
    Ok((seen, VolumeSeen::Making(Box::new(decision))))
}

async fn binding(context: &Context, wanted: &Wanted) -> Result<(PlaceSeen, VolumeSeen), ApiError> {
    let Some(form) = &wanted.form else { return Ok((wanted.place.clone(), VolumeSeen::Idle)) };
    let wish = wish(context, wanted, form);
    let decision = bind(&wish, &observe(&context.client, &wish).await?);
    Ok((wanted.place.clone(), VolumeSeen::Binding(Box::new(decision))))
}

/// What a worker's Pod is given.
pub fn device() -> HostDevice {
    HostDevice { path: DEVICE.into(), root: "/dev".into(), node: String::new() }
}
