//! Carries out one step. No opinions: every step may be repeated at any time, and what it changed is seen on the next
//! pass.

use std::time::Duration;

use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    Kind,
    decide::Step,
    failing::attempt_deadline,
    filling::{self, Filled},
    observe::{FINALIZER, Observed, Place, Seen, Target},
    queue::{Entry, claim_held, device_held, volume_held},
    volume::{DEVICE, Exposed, VolumeSeen},
};
use crate::{
    api::common::parse_bytes,
    controller::{
        FIELD_MANAGER, claim,
        context::{ApiError, Context, bounded},
        runner::{Access, AttemptRef, Claim, RunnerError, Volume},
        snapshot::{self, observe::ObserveError, remove::Removal},
        target::session,
    },
    model::{
        AttemptId, JobSpec, ReportKey, StoreLocation,
        job::{self, JOB_VERSION},
        limits,
    },
    telemetry::now,
};

#[derive(Debug, thiserror::Error)]
pub enum ActError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Runner(#[from] RunnerError),
    #[error(transparent)]
    Volume(#[from] ObserveError),
    #[error("No random numbers: {0}")]
    Random(getrandom::Error),
}

/// Does one step for an object.
pub async fn act<K: Kind>(context: &Context, object: &K, o: &Observed, step: Step) -> Result<(), ActError> {
    let attempt = current(o);
    match (step, attempt) {
        (Step::Nothing, _) => Ok(()),
        (Step::AddFinalizer, _) => Ok(set_finalizer(context, object, Wanted::Present).await?),
        (Step::RemoveFinalizer, _) => Ok(set_finalizer(context, object, Wanted::Absent).await?),
        (Step::AskForSlot, _) => {
            if let Some(entry) = entry(o) {
                context.queue().ask(entry, Instant::now());
            }
            Ok(())
        }
        (Step::ExposeVolume | Step::BindVolume | Step::RemoveVolume, _) => change(context, o).await,
        (Step::StartWorker, Some(attempt)) => start(context, object, o, &attempt).await,
        (Step::OfferCredentials, Some(attempt)) => {
            let Seen::Usable(target) = &o.target else { return Ok(()) };
            let known = session::given_to(context, &attempt);
            let Some(wanted) = known.or_else(|| wanted(o, &attempt)) else { return Ok(()) };
            let Some((keys, offer)) = session::keys(context, &target.resolved, &wanted).await else { return Ok(()) };
            context.runner.offer_credentials(&attempt, &keys).await?;
            context.memory().offered.insert(attempt, offer);
            Ok(())
        }
        (Step::StopWorker, Some(attempt)) => Ok(context.runner.stop(&attempt).await?),
        (Step::RemoveWorker, Some(attempt)) => {
            context.runner.remove(&attempt).await?;
            let mut memory = context.memory();
            memory.ears.remove(&attempt);
            memory.offered.remove(&attempt);
            memory.withheld.remove(&attempt);
            Ok(())
        }
        // Without an attempt there is no worker to do anything about.
        (Step::StartWorker | Step::OfferCredentials | Step::StopWorker | Step::RemoveWorker, None) => Ok(()),
    }
}

/// One change of snapshots, contents, claims or volumes: the one that was decided for what is there.
async fn change(context: &Context, o: &Observed) -> Result<(), ActError> {
    let (client, owner, namespace) = (&context.client, o.wish.uid.as_str(), context.namespace.as_str());
    match &o.volume {
        VolumeSeen::Exposing(decision) => Ok(snapshot::act::act(client, owner, namespace, &decision.step).await?),
        VolumeSeen::Removing { removal: Removal::Step(step), .. } => {
            Ok(snapshot::act::act(client, owner, namespace, step).await?)
        }
        VolumeSeen::Making(decision) => Ok(claim::act::act(client, owner, namespace, &decision.step).await?),
        VolumeSeen::Binding(decision) => Ok(claim::act::act(client, owner, namespace, &decision.step).await?),
        VolumeSeen::Clearing(claim::remove::Removal::Step(step)) => {
            Ok(claim::act::act(client, owner, namespace, step).await?)
        }
        VolumeSeen::Idle | VolumeSeen::Removing { .. } | VolumeSeen::Clearing(_) => Ok(()),
    }
}

/// The attempt that status names.
pub fn current(o: &Observed) -> Option<AttemptRef> {
    let number = u32::try_from(o.status.attempt.as_ref()?.number).ok()?;
    AttemptRef::new(&o.wish.uid, number).ok()
}

/// This object's entry in the queue.
pub fn entry(o: &Observed) -> Option<Entry> {
    let (Seen::Usable(place), Seen::Usable(target)) = (&o.place, &o.target) else { return None };
    let failed = o.status.failure.as_ref().and_then(|f| f.time.as_ref());
    let since = o.status.queue.as_ref().map(|q| &q.since).or(failed).map_or(o.wish.created, |t| t.0);
    Some(Entry {
        uid: o.wish.uid.clone(),
        namespace: o.wish.namespace.clone(),
        target: target.chosen.name.clone(),
        urgency: o.wish.urgency,
        holds: match (&place.record, &place.filled) {
            (None, _) => volume_held(&target.chosen.name, place.volume.as_str()),
            (Some(_), Some(claim)) => claim_held(&claim.namespace, &claim.name),
            (Some(_), None) => device_held(&place.device.node, &place.device.path.display().to_string()),
        },
        since,
        target_limits: target.resolved.limits,
    })
}

pub enum Wanted {
    Present,
    Absent,
}

/// Sets our finalizer, with the resourceVersion it was decided on: a conflict means deciding again.
pub async fn set_finalizer<K: Kind>(context: &Context, object: &K, wanted: Wanted) -> Result<(), ApiError> {
    let mut finalizers = object.meta().finalizers.clone().unwrap_or_default();
    finalizers.retain(|f| f != FINALIZER);
    if matches!(wanted, Wanted::Present) {
        finalizers.push(FINALIZER.to_owned());
    }
    let patch = json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": finalizers}});
    let api: Api<K> = Api::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match bounded(api.patch(&object.name_any(), &params, &Patch::Merge(&patch))).await {
        Ok(written) => {
            K::objects(context).wrote(object, written);
            Ok(())
        }
        // Changed meanwhile, or gone: the next pass sees it.
        Err(ApiError::Api(kube::Error::Api(answer))) if answer.is_conflict() || answer.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

async fn start<K: Kind>(context: &Context, object: &K, o: &Observed, attempt: &AttemptRef) -> Result<(), ActError> {
    let (Seen::Usable(place), Seen::Usable(target)) = (&o.place, &o.target) else { return Ok(()) };
    let Some(id) = o.status.attempt.as_ref().and_then(|a| a.id.parse().ok()) else { return Ok(()) };
    let parts = Parts { place, target, id, attempt };
    let Some(task) = object.task(o, &parts, &context.cluster) else { return Ok(()) };
    let job = job(context, o, parts, task)?;
    let Some(wanted) = wanted(o, attempt) else { return Ok(()) };
    // Why there is none is seen on the next pass.
    let Some((keys, offer)) = session::keys(context, &target.resolved, &wanted).await else { return Ok(()) };
    let volume = match (&place.exposed, &place.filled) {
        (Some(exposed), _) => exposed_volume(exposed),
        (None, Some(filled)) => filled_volume(filled),
        (None, None) => Volume::default(),
    };
    context.runner.start(&job, &keys, &volume).await?;
    context.memory().offered.insert(attempt.clone(), offer);
    Ok(())
}

/// For whom keys are wanted: a place with a record is a restore's.
fn wanted(o: &Observed, attempt: &AttemptRef) -> Option<session::Wanted> {
    let Seen::Usable(place) = &o.place else { return None };
    let id = o.status.attempt.as_ref()?.id.parse().ok()?;
    let work = if place.record.is_some() { session::Work::Restore } else { session::Work::Backup };
    Some(session::Wanted { attempt: attempt.clone(), id, volume: place.volume.clone(), work })
}

fn filled_volume(filled: &Filled) -> Volume {
    let claim = |name: &String| Claim { name: name.clone(), device: filling::DEVICE.into(), access: Access::ReadWrite };
    Volume { claim: filled.prime.as_ref().map(claim), nodes: None, bytes: parse_bytes(&filled.form.size.0) }
}

fn exposed_volume(exposed: &Exposed) -> Volume {
    Volume {
        claim: Some(Claim { name: exposed.device.claim.clone(), device: DEVICE.into(), access: Access::ReadOnly }),
        nodes: exposed.device.nodes.clone(),
        bytes: Some(exposed.taken.bytes),
    }
}

/// What a job is made of, besides what was wished for.
pub struct Parts<'a> {
    pub place: &'a Place,
    pub target: &'a Target,
    pub id: AttemptId,
    pub attempt: &'a AttemptRef,
}

/// Everything a worker may know.
fn job(context: &Context, o: &Observed, parts: Parts<'_>, task: job::Task) -> Result<JobSpec, ActError> {
    let Parts { place, target, id, attempt } = parts;
    let (mut key, mut pod) = ([0; 32], [0; 8]);
    getrandom::fill(&mut key).map_err(ActError::Random)?;
    getrandom::fill(&mut pod).map_err(ActError::Random)?;
    let found = context.capabilities(&target.chosen.name);
    let (conditional_writes, batch_delete) = (found.conditional_writes, found.batch_delete);
    let location = job::S3Location { conditional_writes, batch_delete, ..target.resolved.location.clone() };
    let bytes_per_second = bytes_per_second(o.wish.bytes_per_second, target);
    Ok(JobSpec {
        v: JOB_VERSION,
        uid: o.wish.uid.clone(),
        attempt: id,
        attempt_number: attempt.number(),
        store: StoreLocation::S3(location),
        volume: place.volume.clone(),
        task,
        limits: job::Limits { concurrency: o.wish.concurrency, max_bytes_per_second: bytes_per_second },
        deadlines: job::Deadlines {
            stall_seconds: stall(o, target, bytes_per_second).as_secs(),
            total: attempt_deadline(o, now()),
        },
        report_key: ReportKey::new(key),
        pod: format!("process-{}", hex::encode(pod)),
    })
}

/// The object's own limit and its share of the target's. The share is the limit divided by the workers that may run at
/// once: so all of them together never exceed it, at the price that one alone does not use all of it.
fn bytes_per_second(wanted: Option<u64>, target: &Target) -> Option<u64> {
    let slots = u64::try_from(target.resolved.limits.total).unwrap_or(u64::MAX).max(1);
    let share = target.resolved.bytes_per_second.map(|limit| (limit / slots).max(1));
    match (wanted, share) {
        (Some(wanted), Some(share)) => Some(wanted.min(share)),
        (one, other) => one.or(other),
    }
}

/// A limited rate makes a block slow: three rounds of all blocks in flight must fit into the stall deadline.
fn stall(o: &Observed, target: &Target, bytes_per_second: Option<u64>) -> Duration {
    let Some(rate) = bytes_per_second else { return o.wish.deadlines.stall };
    let concurrency = u64::from(o.wish.concurrency.unwrap_or(limits::CONCURRENCY_START));
    let rounds = 3 * concurrency * target.resolved.block_size.bytes() / rate.max(1);
    o.wish.deadlines.stall.max(Duration::from_secs(rounds))
}
