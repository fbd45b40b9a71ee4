//! Why a worker does not run, or runs no more: told from its Job, its Pods and their Events. Pure.
//!
//! ```text
//!  no Pod yet ──► Pending ──► Running ──► ended
//!  WorkerNotCreated  Unschedulable            OutOfMemory   the kernel
//!                    ImageMissing             Evicted       the node, or a drain
//!                    VolumeNotAttached        Preempted     the scheduler
//!                    WorkerNotStarted         NodeLost      the node is gone
//!                                             PodDeleted    somebody
//!                                             DeadlineExceeded  the Job's own clock
//! ```
//!
//! What a Pod says of itself comes first; Events only where nothing else tells (a volume that is not attached, a Pod that
//! never was, a Pod that is gone). A Pod that has not ended runs, whatever else is said of it: only its end, or its absence
//! from a Job that makes no other, is an end. An exit code without a trouble speaks for itself.

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ContainerStatus, Event, Pod, PodStatus},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt;

use super::manifest::CONTAINER;
use crate::{
    controller::time::until,
    model::{FailureReason, limits},
};

/// Exit code of a container whose process was ended by signal 9, whoever sent it.
const KILLED: i32 = 137;

/// What the cluster says of a worker: the reason, and in words the object, what was seen, and the cure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub reason: FailureReason,
    pub message: String,
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    pub job: &'a Job,
    /// Those the Job owns.
    pub pods: &'a [Pod],
    /// Of the Job and of its Pods.
    pub events: &'a [Event],
    pub now: Timestamp,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Found<'a> {
    pub pod: Option<&'a Pod>,
    pub stage: Stage,
    pub trouble: Option<Trouble>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing runs yet.
    Waiting,
    Running,
    Ended {
        exit_code: Option<i32>,
    },
}

/// What a person can do about it. Every reason the cluster gives has one.
pub fn cure(reason: FailureReason) -> &'static str {
    match reason {
        FailureReason::WorkerNotCreated => {
            "raise the quota or allow the Pod in the operator's namespace (pod security, policies)"
        }
        FailureReason::Unschedulable => {
            "add room or nodes, or change nodeSelector, affinity, tolerations or resources of the workers"
        }
        FailureReason::ImageMissing => "name an image its nodes can pull, with its pull secrets",
        FailureReason::VolumeNotAttached => "look at the volume's driver and at who else has the volume attached",
        FailureReason::WorkerNotStarted => "look at the Pod's Events and at its node's runtime",
        FailureReason::OutOfMemory => {
            "raise the workers' memory limit (the chart's worker.resources), then set a new spec.retryRequest if it has ended"
        }
        FailureReason::WorkerCrashed => "find out who kills processes on its node; it is tried again",
        FailureReason::Evicted => "give the node more room, or the workers a higher priority; it is tried again",
        FailureReason::Preempted => "give the workers a higher priority; it is tried again",
        FailureReason::NodeLost => "bring the node back or delete it; it is tried again on another",
        FailureReason::PodDeleted => "leave worker Pods alone, cancel the Backup instead; it is tried again",
        FailureReason::DeadlineExceeded => "give the Backup a longer deadlines.total",
        _ => "look at the Pod's Events",
    }
}

fn trouble(reason: FailureReason, object: &str, seen: &str) -> Trouble {
    let seen = match seen.trim().trim_end_matches('.') {
        "" => "no more is said",
        seen => seen,
    };
    Trouble { reason, message: format!("{object}: {seen}; {}", cure(reason)) }
}

/// Judges an attempt's Job.
pub fn judge(seen: Seen<'_>) -> Found<'_> {
    let running = seen.pods.iter().find(|pod| !has_ended(pod));
    let newest = || seen.pods.iter().max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0));
    match running.or_else(newest) {
        None => without_pod(seen),
        Some(pod) if has_ended(pod) => {
            let exit_code = terminated(pod).map(|end| end.exit_code);
            Found { pod: Some(pod), stage: Stage::Ended { exit_code }, trouble: end_trouble(pod, seen) }
        }
        Some(pod) if phase(pod) == "Pending" => {
            Found { pod: Some(pod), stage: Stage::Waiting, trouble: pending_trouble(pod, seen.events) }
        }
        Some(pod) => Found { pod: Some(pod), stage: Stage::Running, trouble: disrupted(pod) },
    }
}

/// Could Events say more? They are asked for only then: a Pod that says itself what is wrong is asked often.
pub fn needs_events(found: &Found<'_>) -> bool {
    found.pod.is_none() || (found.stage == Stage::Waiting && found.trouble.is_none())
}

fn without_pod(seen: Seen<'_>) -> Found<'_> {
    let job = seen.job;
    let name = format!("Job {}", job.name_any());
    if job.metadata.deletion_timestamp.is_some() {
        let gone = trouble(FailureReason::PodDeleted, &name, "it is being deleted and has no Pod any more");
        return Found { pod: None, stage: Stage::Ended { exit_code: None }, trouble: Some(gone) };
    }
    if let Some(why) = is_finished(job) {
        return Found { pod: None, stage: Stage::Ended { exit_code: None }, trouble: Some(gone_trouble(seen, &why)) };
    }
    let refused = newest(seen.events, |e| reason(e) == "FailedCreate" && is_of(e, "Job", &job.name_any()));
    let age = job.metadata.creation_timestamp.as_ref().map_or_else(Default::default, |t| until(seen.now, t.0));
    let trouble = match refused {
        Some(event) => Some(trouble(FailureReason::WorkerNotCreated, &name, message(event))),
        None if age >= limits::POD_DEADLINE => {
            let seen =
                format!("no Pod after {} s and no Event that says why: is the Job controller alive?", age.as_secs());
            Some(trouble(FailureReason::WorkerNotCreated, &name, &seen))
        }
        None => None,
    };
    Found { pod: None, stage: Stage::Waiting, trouble }
}

/// Reason and message of the Job's end, if it makes no other Pod. A Pod that was counted as failed is the last one too.
fn is_finished(job: &Job) -> Option<(String, String)> {
    let status = job.status.as_ref()?;
    let ended = |c: &&k8s_openapi::api::batch::v1::JobCondition| {
        c.status == "True" && matches!(c.type_.as_str(), "Failed" | "Complete" | "FailureTarget" | "SuccessCriteriaMet")
    };
    let said = status.conditions.iter().flatten().find(ended);
    let said = said.map(|c| (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default()));
    let counted = status.failed.unwrap_or(0) + status.succeeded.unwrap_or(0) > 0;
    said.or_else(|| counted.then(Default::default))
}

/// The Pod is gone and cannot be asked: the Job's clock, and then Events, are all that is left.
fn gone_trouble(seen: Seen<'_>, (job_reason, job_message): &(String, String)) -> Trouble {
    let object = format!("Job {}", seen.job.name_any());
    if job_reason == "DeadlineExceeded" {
        return trouble(FailureReason::DeadlineExceeded, &object, job_message);
    }
    let told = |event: &Event| match reason(event) {
        "Evicted" => Some(FailureReason::Evicted),
        "Preempted" | "Preempting" => Some(FailureReason::Preempted),
        "TaintManagerEviction" | "NodeNotReady" => Some(FailureReason::NodeLost),
        _ => None,
    };
    let prefix = format!("{}-", seen.job.name_any());
    let of_pod = |e: &Event| e.involved_object.name.as_deref().is_some_and(|name| name.starts_with(&prefix));
    match newest(seen.events, |e| of_pod(e) && told(e).is_some()).and_then(|e| Some((told(e)?, e))) {
        Some((reason, event)) => {
            trouble(reason, &format!("Pod {}", event.involved_object.name.as_deref().unwrap_or("")), message(event))
        }
        None => trouble(FailureReason::PodDeleted, &object, &format!("its Pod is gone. {job_message}")),
    }
}

fn pending_trouble(pod: &Pod, events: &[Event]) -> Option<Trouble> {
    let name = format!("Pod {}", pod.name_any());
    let status = pod.status.as_ref();
    let condition = |kind: &str| status.and_then(|s| s.conditions.iter().flatten().find(|c| c.type_ == kind));
    if let Some(unscheduled) = condition("PodScheduled").filter(|c| c.status == "False") {
        return Some(trouble(FailureReason::Unschedulable, &name, unscheduled.message.as_deref().unwrap_or("")));
    }
    let waiting = container(status).and_then(|c| c.state.as_ref()?.waiting.as_ref());
    let why = waiting.and_then(|w| w.reason.as_deref()).unwrap_or("");
    let said = waiting.map(|w| format!("{why}: {}", w.message.as_deref().unwrap_or(""))).unwrap_or_default();
    match why {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => {
            return Some(trouble(FailureReason::ImageMissing, &name, &said));
        }
        "" | "ContainerCreating" | "PodInitializing" => {}
        _ => return Some(trouble(FailureReason::WorkerNotStarted, &name, &said)),
    }
    let newest = newest(events, |e| is_of(e, "Pod", &pod.name_any()) && of_start(reason(e)).is_some())?;
    match of_start(reason(newest)) {
        Some(Some(found)) => Some(trouble(found, &name, message(newest))),
        // The newest word is that it worked after all.
        Some(None) | None => disrupted(pod),
    }
}

/// What an Event of a Pod that is being started means: a trouble, or that one is over.
fn of_start(event_reason: &str) -> Option<Option<FailureReason>> {
    match event_reason {
        "FailedAttachVolume" | "FailedMount" | "FailedMapVolume" => Some(Some(FailureReason::VolumeNotAttached)),
        "FailedCreatePodSandBox" | "FailedPodSandBoxStatus" | "NetworkNotReady" => {
            Some(Some(FailureReason::WorkerNotStarted))
        }
        "SuccessfulAttachVolume" | "SuccessfulMountVolume" | "Pulling" | "Pulled" | "Created" => Some(None),
        _ => None,
    }
}

/// Of a Pod that ended.
fn end_trouble(pod: &Pod, seen: Seen<'_>) -> Option<Trouble> {
    let name = format!("Pod {}", pod.name_any());
    let status = pod.status.as_ref();
    let end = terminated(pod);
    let end_reason = end.and_then(|e| e.reason.as_deref()).unwrap_or("");
    if end_reason == "OOMKilled" {
        let limit = "its container was killed for memory (OOMKilled)";
        return Some(trouble(FailureReason::OutOfMemory, &name, limit));
    }
    let said = status.and_then(|s| s.message.as_deref()).unwrap_or("");
    let by_kubelet = match status.and_then(|s| s.reason.as_deref()).unwrap_or("") {
        "Evicted" | "Terminated" | "NodeShutdown" => Some(FailureReason::Evicted),
        "Preempting" => Some(FailureReason::Preempted),
        "NodeLost" => Some(FailureReason::NodeLost),
        "DeadlineExceeded" => Some(FailureReason::DeadlineExceeded),
        "NodeAffinity" | "UnexpectedAdmissionError" => Some(FailureReason::Unschedulable),
        refused if refused.starts_with("OutOf") => Some(FailureReason::Unschedulable),
        _ => None,
    };
    if let Some(found) = by_kubelet {
        return Some(trouble(found, &name, said));
    }
    if let Some(found) = disrupted(pod) {
        return Some(found);
    }
    if matches!(end_reason, "StartError" | "ContainerCannotRun") {
        let said = end.and_then(|e| e.message.as_deref()).unwrap_or("");
        return Some(trouble(FailureReason::WorkerNotStarted, &name, said));
    }
    if let Some((why, said)) = is_finished(seen.job).filter(|(why, _)| why == "DeadlineExceeded") {
        return Some(trouble(FailureReason::DeadlineExceeded, &name, &format!("{why}: {said}")));
    }
    let was_deleted = pod.metadata.deletion_timestamp.is_some() && seen.job.metadata.deletion_timestamp.is_none();
    if was_deleted {
        return Some(trouble(FailureReason::PodDeleted, &name, "it was deleted while its worker ran"));
    }
    // The kernel's kills for memory have a reason of their own: this one came from a person or a program.
    let was_killed = end.is_some_and(|e| e.exit_code == KILLED) && end_reason == "Error";
    (was_killed && seen.job.metadata.deletion_timestamp.is_none()).then(|| {
        let said = "its worker was killed with signal 9, and not for memory (reason Error, not OOMKilled)";
        trouble(FailureReason::WorkerCrashed, &name, said)
    })
}

/// What the cluster did to a Pod, in its own words (condition DisruptionTarget).
fn disrupted(pod: &Pod) -> Option<Trouble> {
    let conditions = pod.status.as_ref()?.conditions.iter().flatten();
    let told = conditions.into_iter().find(|c| c.type_ == "DisruptionTarget" && c.status == "True")?;
    let found = match told.reason.as_deref().unwrap_or("") {
        "PreemptionByScheduler" => FailureReason::Preempted,
        "DeletionByTaintManager" | "DeletionByPodGC" => FailureReason::NodeLost,
        // EvictionByEvictionAPI, TerminationByKubelet, and what later versions may add.
        _ => FailureReason::Evicted,
    };
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("no node");
    let said = told.message.as_deref().unwrap_or("");
    Some(trouble(found, &format!("Pod {} on {node}", pod.name_any()), said))
}

pub(super) fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub(super) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// How the worker's container ended.
pub(super) fn terminated(pod: &Pod) -> Option<&k8s_openapi::api::core::v1::ContainerStateTerminated> {
    container(pod.status.as_ref())?.state.as_ref()?.terminated.as_ref()
}

fn container(status: Option<&PodStatus>) -> Option<&ContainerStatus> {
    status?.container_statuses.iter().flatten().find(|c| c.name == CONTAINER)
}

/// Does the Job own this Pod?
pub(super) fn is_owned(pod: &ObjectMeta, job: &Job) -> bool {
    let uid = job.metadata.uid.as_deref().unwrap_or("");
    pod.owner_references.iter().flatten().any(|owner| owner.uid == uid)
}

fn reason(event: &Event) -> &str {
    event.reason.as_deref().unwrap_or("")
}

fn message(event: &Event) -> &str {
    event.message.as_deref().unwrap_or("")
}

fn is_of(event: &Event, kind: &str, name: &str) -> bool {
    let object = &event.involved_object;
    object.kind.as_deref() == Some(kind) && object.name.as_deref() == Some(name)
}

fn newest(events: &[Event], wanted: impl Fn(&Event) -> bool) -> Option<&Event> {
    events.iter().filter(|e| wanted(e)).max_by_key(|e| time(e))
}

/// An Event carries its time in one of four fields, by who wrote it.
fn time(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0);
    let last = event.last_timestamp.as_ref().map(|t| t.0);
    let once = event.event_time.as_ref().map(|t| t.0).or(event.first_timestamp.as_ref().map(|t| t.0));
    series.max(last).max(once)
}
