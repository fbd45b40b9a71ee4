//! The volume of an object that reads a claim or a snapshot: where it stands, what is done next, and how it goes again.
//!
//! | the object | what is looked at |
//! |---|---|
//! | before its first attempt | claim and volume: the name in the store follows from them |
//! | an attempt begins, no worker yet | everything on the way to a device (`snapshot::expose`) |
//! | a worker is there | nothing: it has its device |
//! | ended, or waiting for a retry | what is left (`snapshot::remove`), until nothing is |
//!
//! The snapshot is kept while a retry of the same point in time is possible; the exposed volume, which costs money, is not.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;

use super::observe::{Finalizer, HostDevice, Life, Place, PlaceSeen, Refusal, Seen, Wish, WorkerSeen};
use crate::{
    api::{
        Cause, Course, Stage,
        backup_status::ObservedSource,
        common::{AccessMode, count},
    },
    controller::{
        claim::{self, bind, prepare},
        context::Context,
        snapshot::{
            self, Step,
            expose::{Decision, Device, Standing, Taken, expose},
            observe::{ObserveError, Observed, class_of, observe, remains},
            remove::{Extent, Removal, remove},
        },
        time::later,
    },
    model::VolumeName,
};

/// Where a worker's Pod has its device.
pub const DEVICE: &str = "/dev/source";

/// What an object wants of a volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub wish: snapshot::Wish,
    /// Its name in the store, once chosen.
    pub volume: Option<VolumeName>,
    /// How long a snapshot is kept after the last failure.
    pub keep: Duration,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq)]
pub enum VolumeSeen {
    /// Nothing is to be done about one now.
    Idle,
    Exposing(Box<Decision>),
    Removing {
        removal: Removal,
        /// The snapshot stays until then.
        kept_until: Option<Timestamp>,
    },
    /// A claim to be filled is on its way to a device,
    Making(Box<prepare::Decision>),
    /// the written volume to the user's claim,
    Binding(Box<bind::Decision>),
    /// and what is left of it away.
    Clearing(claim::remove::Removal),
}

/// What is left to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Nothing,
    /// It was asked to go.
    Going,
    Something,
}

impl VolumeSeen {
    pub fn left(&self) -> Left {
        use claim::remove::Removal as Clearing;
        match self {
            VolumeSeen::Removing { removal: Removal::Step(_), .. } | VolumeSeen::Clearing(Clearing::Step(_)) => {
                Left::Something
            }
            VolumeSeen::Removing { removal: Removal::Waiting(_), .. } | VolumeSeen::Clearing(Clearing::Waiting(_)) => {
                Left::Going
            }
            VolumeSeen::Removing { removal: Removal::Done, .. } | VolumeSeen::Clearing(Clearing::Done) => Left::Nothing,
            VolumeSeen::Idle | VolumeSeen::Exposing(_) | VolumeSeen::Making(_) | VolumeSeen::Binding(_) => {
                Left::Nothing
            }
        }
    }
}

/// What a worker is given.
#[derive(Debug, Clone, PartialEq)]
pub struct Exposed {
    pub taken: Taken,
    pub device: Device,
}

/// What the decision needs to know besides.
pub struct Situation<'a> {
    pub wish: &'a Wish,
    pub status: &'a Course,
    pub worker: &'a WorkerSeen,
    pub now: Timestamp,
}

/// Looks at what the situation asks for.
pub async fn look(
    context: &Context,
    wanted: &Wanted,
    at: &Situation<'_>,
) -> Result<(PlaceSeen, VolumeSeen), ObserveError> {
    let is_over = at.wish.life == Life::Deleting
        || matches!(at.status.state, Some(Stage::Completed | Stage::Cancelled | Stage::Deleting | Stage::Error));
    if is_over {
        let volume = match (at.worker, at.wish.finalizer) {
            (WorkerSeen::Absent, Finalizer::Present) => leftover(context, wanted, at).await?,
            _ => VolumeSeen::Idle,
        };
        return Ok((place(context, wanted).await?, volume));
    }
    if at.status.state == Some(Stage::Starting) && *at.worker == WorkerSeen::Absent && !at.wish.cancel {
        return exposing(context, wanted).await;
    }
    Ok((place(context, wanted).await?, VolumeSeen::Idle))
}

async fn leftover(context: &Context, wanted: &Wanted, at: &Situation<'_>) -> Result<VolumeSeen, ObserveError> {
    let wish = &wanted.wish;
    let is_open = at.wish.life == Life::Wanted && at.status.state == Some(Stage::Error);
    let failed = at.status.failure.as_ref().and_then(|f| f.time.as_ref()).map_or(at.now, |t| t.0);
    let kept_until = later(failed, wanted.keep);
    let is_kept = is_open && (at.status.next_retry_time.is_some() || at.now < kept_until);
    let extent = if is_kept { Extent::Exposure } else { Extent::Everything };
    let removal = match remains(&context.client, &wish.owner, &wish.namespace, &wish.operator_namespace).await {
        Ok(remains) => remove(&remains, &wish.owner, extent),
        // Without the API there is nothing of it.
        Err(ObserveError::NotInstalled) => Removal::Done,
        Err(error) => return Err(error),
    };
    Ok(VolumeSeen::Removing { removal, kept_until: is_kept.then_some(kept_until) })
}

/// Without a device: enough to choose and to queue.
async fn place(context: &Context, wanted: &Wanted) -> Result<PlaceSeen, ObserveError> {
    if let Some(volume) = &wanted.volume {
        return Ok(Seen::Usable(Box::new(placed(volume.clone(), None, None))));
    }
    let (o, decision) = match decided(context, wanted).await? {
        Ok(seen) => seen,
        Err(refusal) => return Ok(Seen::Refused(refusal)),
    };
    Ok(match decision.standing {
        Standing::WaitingForSource(text) => Seen::Waiting(Refusal::new(Cause::WaitingForSource, text)),
        Standing::Refused(refusal) => Seen::Refused(Refusal { reason: refusal.reason, message: refusal.message }),
        Standing::TakingSnapshot(_) | Standing::ExposingSnapshot { .. } | Standing::Exposed { .. } => {
            Seen::Usable(Box::new(placed(name(context, &o), Some(facts(&o)), None)))
        }
    })
}

async fn exposing(context: &Context, wanted: &Wanted) -> Result<(PlaceSeen, VolumeSeen), ObserveError> {
    let (o, decision) = match decided(context, wanted).await? {
        Ok(seen) => seen,
        Err(refusal) => return Ok((Seen::Refused(refusal), VolumeSeen::Idle)),
    };
    let waiting = |cause, text: &str| Seen::Waiting(Refusal::new(cause, text));
    let seen = match &decision.standing {
        Standing::WaitingForSource(text) => waiting(Cause::WaitingForSource, text),
        Standing::TakingSnapshot(text) => waiting(Cause::TakingSnapshot, text),
        Standing::ExposingSnapshot { waiting: text, .. } => waiting(Cause::ExposingSnapshot, text),
        Standing::Refused(refusal) => {
            Seen::Refused(Refusal { reason: refusal.reason, message: refusal.message.clone() })
        }
        Standing::Exposed { .. } if decision.step != Step::Nothing => {
            waiting(Cause::ExposingSnapshot, "the exposed volume is marked as ours")
        }
        Standing::Exposed { taken, device } => {
            let exposed = Exposed { taken: taken.as_ref().clone(), device: device.as_ref().clone() };
            let volume = wanted.volume.clone().unwrap_or_else(|| name(context, &o));
            Seen::Usable(Box::new(placed(volume, Some(facts(&o)), Some(exposed))))
        }
    };
    Ok((seen, VolumeSeen::Exposing(Box::new(decision))))
}

/// The next step, or why there can be none.
async fn decided(context: &Context, wanted: &Wanted) -> Result<Result<(Observed, Decision), Refusal>, ObserveError> {
    let Some(settings) = &context.exposure else {
        let message = "claims and snapshots are read by worker Pods only: an administrator must start the operator with --workers=job";
        return Ok(Err(Refusal::new(Cause::SourceNotSupported, message)));
    };
    match observe(&context.client, &wanted.wish, |driver| settings.of(driver).storage_class).await {
        Ok(o) => {
            let decision = expose(&wanted.wish, &o, settings);
            Ok(Ok((o, decision)))
        }
        Err(error @ ObserveError::NotInstalled) => Ok(Err(Refusal::new(Cause::SourceNotSupported, error.to_string()))),
        Err(error) => Err(error),
    }
}

fn placed(volume: VolumeName, facts: Option<ObservedSource>, exposed: Option<Exposed>) -> Place {
    let device = HostDevice { path: DEVICE.into(), root: "/dev".into(), node: String::new() };
    Place { volume, device, record: None, facts: facts.map(Box::new), exposed: exposed.map(Box::new), filled: None }
}

/// A snapshot whose claim is gone has only the driver's name for its volume.
fn name(context: &Context, o: &Observed) -> VolumeName {
    if let Some(volume) = &o.volume {
        return VolumeName::of_persistent_volume(
            &volume.name_any(),
            &context.cluster,
            &volume.uid().unwrap_or_default(),
        );
    }
    let content = o.content.as_ref();
    let source = content.and_then(|c| c.spec.source.volume_handle.as_deref().or(c.handle())).unwrap_or_default();
    let driver = content.map_or("", |c| c.spec.driver.as_str());
    VolumeName::of_persistent_volume("snapshot", &context.cluster, &format!("{driver}/{source}"))
}

fn facts(o: &Observed) -> ObservedSource {
    let claim = o.claim.as_ref();
    let volume = o.volume.as_ref();
    let csi = volume.and_then(|v| v.spec.as_ref()?.csi.as_ref());
    let modes = claim.and_then(|c| c.spec.as_ref()?.access_modes.as_ref());
    ObservedSource {
        persistent_volume_claim_name: claim.map(ResourceExt::name_any),
        persistent_volume_claim_uid: claim.and_then(ResourceExt::uid),
        persistent_volume_name: volume.map(ResourceExt::name_any),
        driver: csi.map(|csi| csi.driver.clone()).or(o.content.as_ref().map(|c| c.spec.driver.clone())),
        volume_mode: claim.and_then(|c| c.spec.as_ref()?.volume_mode.clone()),
        storage_class_name: class_of(o),
        access_modes: modes.into_iter().flatten().filter_map(|mode| AccessMode::of(mode)).collect(),
        fs_type: csi.and_then(|csi| csi.fs_type.clone()).filter(|kind| !kind.is_empty()),
        bytes: o.snapshot.as_ref().and_then(snapshot::objects::VolumeSnapshot::restore_bytes).map(count),
        path: None,
    }
}
