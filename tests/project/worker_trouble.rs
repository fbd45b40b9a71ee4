//! Everything the cluster may say of a worker, enumerated: which reason it becomes, and that each message names the object,
//! what was seen and the cure.

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Event, Pod},
};
use serde_json::{Value, json};
use tidemark::{
    controller::runner::trouble::{Found, Seen, Stage, cure, judge, needs_events},
    model::{FailureReason, Retry},
};

const NOW: &str = "2026-11-25T03:00:00Z";

fn job(more: Value) -> Job {
    let mut job = json!({"metadata": {"name": "tm-x-1", "uid": "u", "creationTimestamp": "2026-11-25T02:59:50Z"}});
    merge(&mut job, more);
    serde_json::from_value(job).expect("a Job")
}

fn pod(status: Value) -> Pod {
    let pod = json!({"metadata": {"name": "tm-x-1-abcde", "uid": "p"}, "spec": {"nodeName": "n1", "containers": []}, "status": status});
    serde_json::from_value(pod).expect("a Pod")
}

fn event(kind: &str, name: &str, reason: &str, minute: u32, message: &str) -> Event {
    let event = json!({"metadata": {"name": format!("{reason}{minute}")}, "involvedObject": {"kind": kind, "name": name},
        "reason": reason, "message": message, "type": "Warning", "lastTimestamp": format!("2026-11-25T02:{minute:02}:00Z")});
    serde_json::from_value(event).expect("an Event")
}

fn merge(into: &mut Value, more: Value) {
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        match into.get_mut(&key).filter(|old| old.is_object() && value.is_object()) {
            Some(old) => merge(old, value),
            None => into[key] = value,
        }
    }
}

fn judged<'a>(job: &'a Job, pods: &'a [Pod], events: &'a [Event]) -> Found<'a> {
    judge(Seen { job, pods, events, now: NOW.parse().expect("a time") })
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({"phase": "Pending", "containerStatuses": [container(json!({"waiting": {"reason": reason, "message": message}}))]})
}

fn ended(exit_code: i32, reason: &str, more: Value) -> Value {
    let terminated = json!({"terminated": {"exitCode": exit_code, "reason": reason, "message": "said"}});
    let mut status = json!({"phase": "Failed", "containerStatuses": [container(terminated)]});
    merge(&mut status, more);
    status
}

fn container(state: Value) -> Value {
    json!({"name": "worker", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": state})
}

fn disrupted(reason: &str) -> Value {
    json!({"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "why"}]})
}

/// Pods, one by one.
#[test]
fn law_5_whatever_the_cluster_did_to_a_worker_is_told_apart() {
    use FailureReason::*;
    let unscheduled = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}]});
    let failed = |reason: &str| json!({"phase": "Failed", "reason": reason, "message": "The node was low on memory."});
    let cases: Vec<(Value, Stage, Option<FailureReason>)> = vec![
        (json!({}), Stage::Waiting, None),
        (json!({"phase": "Pending"}), Stage::Waiting, None),
        (unscheduled, Stage::Waiting, Some(Unschedulable)),
        (waiting("ContainerCreating", ""), Stage::Waiting, None),
        (waiting("ErrImagePull", "not found"), Stage::Waiting, Some(ImageMissing)),
        (waiting("ImagePullBackOff", "back-off"), Stage::Waiting, Some(ImageMissing)),
        (waiting("ErrImageNeverPull", "never"), Stage::Waiting, Some(ImageMissing)),
        (waiting("InvalidImageName", "bad"), Stage::Waiting, Some(ImageMissing)),
        (waiting("CreateContainerConfigError", "secret missing"), Stage::Waiting, Some(WorkerNotStarted)),
        (waiting("CreateContainerError", "runtime"), Stage::Waiting, Some(WorkerNotStarted)),
        (json!({"phase": "Running"}), Stage::Running, None),
        (json!({"phase": "Unknown"}), Stage::Running, None),
        (merged(json!({"phase": "Running"}), disrupted("DeletionByTaintManager")), Stage::Running, Some(NodeLost)),
        (ended(0, "Completed", json!({"phase": "Succeeded"})), Stage::Ended { exit_code: Some(0) }, None),
        (ended(67, "Error", json!({})), Stage::Ended { exit_code: Some(67) }, None),
        (ended(137, "Error", json!({})), Stage::Ended { exit_code: Some(137) }, Some(WorkerCrashed)),
        (ended(137, "ContainerStatusUnknown", json!({})), Stage::Ended { exit_code: Some(137) }, None),
        (ended(137, "OOMKilled", json!({})), Stage::Ended { exit_code: Some(137) }, Some(OutOfMemory)),
        (ended(128, "StartError", json!({})), Stage::Ended { exit_code: Some(128) }, Some(WorkerNotStarted)),
        (ended(137, "Error", disrupted("EvictionByEvictionAPI")), Stage::Ended { exit_code: Some(137) }, Some(Evicted)),
        (ended(75, "Error", disrupted("PreemptionByScheduler")), Stage::Ended { exit_code: Some(75) }, Some(Preempted)),
        (ended(75, "Error", disrupted("DeletionByTaintManager")), Stage::Ended { exit_code: Some(75) }, Some(NodeLost)),
        (ended(75, "Error", disrupted("DeletionByPodGC")), Stage::Ended { exit_code: Some(75) }, Some(NodeLost)),
        (ended(75, "Error", disrupted("TerminationByKubelet")), Stage::Ended { exit_code: Some(75) }, Some(Evicted)),
        (failed("Evicted"), Stage::Ended { exit_code: None }, Some(Evicted)),
        (failed("NodeShutdown"), Stage::Ended { exit_code: None }, Some(Evicted)),
        (failed("Preempting"), Stage::Ended { exit_code: None }, Some(Preempted)),
        (failed("NodeLost"), Stage::Ended { exit_code: None }, Some(NodeLost)),
        (failed("DeadlineExceeded"), Stage::Ended { exit_code: None }, Some(DeadlineExceeded)),
        (failed("OutOfmemory"), Stage::Ended { exit_code: None }, Some(Unschedulable)),
        (failed("NodeAffinity"), Stage::Ended { exit_code: None }, Some(Unschedulable)),
        (failed(""), Stage::Ended { exit_code: None }, None),
    ];
    for (status, stage, reason) in cases {
        let (job, pods) = (job(json!({})), [pod(status.clone())]);
        let found = judged(&job, &pods, &[]);
        let seen = found.trouble.as_ref().map(|t| t.reason);
        assert_eq!((found.stage, seen), (stage, reason), "{status}");
        if let Some(trouble) = found.trouble {
            let is_whole =
                trouble.message.starts_with("Pod tm-x-1-abcde") && trouble.message.ends_with(cure(trouble.reason));
            assert!(is_whole, "{}", trouble.message);
        }
    }
}

fn merged(mut a: Value, b: Value) -> Value {
    merge(&mut a, b);
    a
}

/// A volume that is not attached is told by Events only, and the newest word counts.
#[test]
fn a_volume_that_is_attached_after_all_is_no_trouble_any_more() {
    let (job, pods) = (job(json!({})), [pod(waiting("ContainerCreating", ""))]);
    let failed = |minute| event("Pod", "tm-x-1-abcde", "FailedAttachVolume", minute, "Multi-Attach error for volume");
    let attached = event("Pod", "tm-x-1-abcde", "SuccessfulAttachVolume", 30, "attached");
    let reason = |events: &[Event]| judged(&job, &pods, events).trouble.map(|t| t.reason);
    assert!(needs_events(&judged(&job, &pods, &[])));
    assert_eq!(reason(&[failed(20)]), Some(FailureReason::VolumeNotAttached));
    assert_eq!(reason(&[failed(20), attached.clone()]), None);
    assert_eq!(reason(&[failed(40), attached]), Some(FailureReason::VolumeNotAttached));
    for kind in ["FailedMount", "FailedMapVolume"] {
        assert_eq!(reason(&[event("Pod", "tm-x-1-abcde", kind, 1, "")]), Some(FailureReason::VolumeNotAttached));
    }
    assert_eq!(
        reason(&[event("Pod", "tm-x-1-abcde", "FailedCreatePodSandBox", 1, "cni")]),
        Some(FailureReason::WorkerNotStarted)
    );
    assert_eq!(reason(&[event("Pod", "another", "FailedMount", 1, "")]), None);
}

/// Without a Pod the Job and Events speak.
#[test]
fn law_5_a_job_without_a_pod_says_why_and_a_pod_that_is_gone_has_ended() {
    let young = job(json!({}));
    assert_eq!(judged(&young, &[], &[]), Found { pod: None, stage: Stage::Waiting, trouble: None });
    let quota = event("Job", "tm-x-1", "FailedCreate", 59, "pods \"tm-x-1-\" is forbidden: exceeded quota: small");
    let found = judged(&young, &[], std::slice::from_ref(&quota));
    let trouble = found.trouble.expect("told");
    assert_eq!((found.stage, trouble.reason), (Stage::Waiting, FailureReason::WorkerNotCreated));
    assert!(trouble.message.contains("exceeded quota: small; raise the quota"), "{}", trouble.message);
    let old = job(json!({"metadata": {"creationTimestamp": "2026-11-25T02:58:00Z"}}));
    let trouble = judged(&old, &[], &[]).trouble.expect("told");
    assert!(trouble.message.contains("no Pod after 120 s"), "{}", trouble.message);

    let failed = |reason: &str| {
        job(
            json!({"status": {"failed": 1, "conditions": [{"type": "Failed", "status": "True", "reason": reason, "message": "m"}]}}),
        )
    };
    let over = failed("BackoffLimitExceeded");
    let of_pod = |reason| vec![event("Pod", "tm-x-1-abcde", reason, 1, "by the node")];
    let cases = [
        (&over, vec![], FailureReason::PodDeleted),
        (&over, of_pod("Evicted"), FailureReason::Evicted),
        (&over, of_pod("Preempted"), FailureReason::Preempted),
        (&over, of_pod("TaintManagerEviction"), FailureReason::NodeLost),
        (&over, vec![event("Pod", "tm-y-1-abcde", "Evicted", 1, "another's")], FailureReason::PodDeleted),
    ];
    for (job, events, reason) in cases {
        let found = judged(job, &[], &events);
        assert_eq!(found.stage, Stage::Ended { exit_code: None });
        assert_eq!(found.trouble.map(|t| t.reason), Some(reason), "{events:?}");
    }
    let late = failed("DeadlineExceeded");
    assert_eq!(judged(&late, &[], &[]).trouble.map(|t| t.reason), Some(FailureReason::DeadlineExceeded));
    let counted = job(json!({"status": {"failed": 1}}));
    assert_eq!(judged(&counted, &[], &[]).stage, Stage::Ended { exit_code: None });
    let deleting = job(json!({"metadata": {"deletionTimestamp": NOW}}));
    assert_eq!(judged(&deleting, &[], &[]).stage, Stage::Ended { exit_code: None });
}

/// A Pod that runs is never overlooked for one that ended: the next attempt would begin beside it.
#[test]
fn law_8_of_two_pods_the_one_that_runs_counts() {
    let job = job(json!({}));
    let pods = [pod(ended(1, "Error", json!({}))), pod(json!({"phase": "Running"}))];
    for pods in [vec![pods[0].clone(), pods[1].clone()], vec![pods[1].clone(), pods[0].clone()]] {
        assert_eq!(judged(&job, &pods, &[]).stage, Stage::Running);
    }
}

#[test]
fn what_is_nobodys_fault_uses_up_no_retry() {
    use FailureReason::*;
    for reason in [Evicted, Preempted, NodeLost, PodDeleted] {
        assert_eq!(reason.retry(), Retry::Free, "{reason}");
    }
    for reason in [WorkerNotCreated, Unschedulable, ImageMissing, VolumeNotAttached, WorkerNotStarted] {
        assert_eq!(reason.retry(), Retry::Yes, "{reason}");
    }
    assert_eq!(OutOfMemory.retry(), Retry::Once, "under the same limit it ends the same way");
}
