//! What one attempt is in the cluster: a Secret with its job, a Secret with its keys, a Job with one Pod.
//!
//! | object | name | what |
//! |---|---|---|
//! | Secret, immutable | `tm-<uid>-<attempt>` | `job.json`, report key included: a new leader reads the key from here |
//! | Secret | `tm-<uid>-<attempt>-keys` | the store's keys; they may change while the worker runs |
//! | Job | `tm-<uid>-<attempt>` | one Pod, once |
//!
//! Pure: words in, manifests out. The Pod fits pod security `baseline`, and `restricted` if it need not be root. It has no
//! way to Kubernetes: no token, no service links.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{Affinity, NodeAffinity, NodeSelector, NodeSelectorTerm, Secret},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::{Value, json};

use super::{
    Access, AttemptRef, Envelope, Volume,
    settings::{User, WorkerSettings},
};
use crate::{
    controller::time::until,
    model::{Credentials, JobSpec, limits},
};

/// Everything that is one worker's.
pub const WORKERS: &str = "app.kubernetes.io/managed-by=tidemark,app.kubernetes.io/component=worker";
/// Which attempt an object belongs to: `<uid>-<number>`.
pub const ATTEMPT_LABEL: &str = "tidemark.dev/attempt";
/// On the job's Secret: a Job was asked for. It is set before the Job is created, and so a Job is created once at most.
pub const ASKED: &str = "tidemark.dev/job-asked";
/// On the job's Secret: what the API server answered when it refused the Job.
pub const REFUSED: &str = "tidemark.dev/job-refused";
/// On the Job: the attempt's id, for the day its Secret is gone.
pub const ATTEMPT_ID: &str = "tidemark.dev/attempt-id";

pub const CONTAINER: &str = "worker";
/// Where a worker's reports are asked for.
pub const REPORT_PORT: u16 = 9180;
pub const JOB_FILE: &str = "job.json";

const JOB_MOUNT: &str = "/etc/tidemark/job";
const KEYS_MOUNT: &str = "/etc/tidemark/credentials";
const POD_MOUNT: &str = "/etc/tidemark/pod";
const SCRATCH_MOUNT: &str = "/scratch";
/// Who a worker is if it is not root: the image's own user.
const NON_ROOT: i64 = 65532;

pub fn job_name(attempt: &AttemptRef) -> String {
    format!("tm-{attempt}")
}

pub fn keys_name(attempt: &AttemptRef) -> String {
    format!("tm-{attempt}-keys")
}

/// The attempt an object was made for, by its label.
pub fn attempt_of(meta: &ObjectMeta) -> Option<AttemptRef> {
    meta.labels.as_ref()?.get(ATTEMPT_LABEL)?.parse().ok()
}

fn labels(attempt: &AttemptRef) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "tidemark".to_owned()),
        ("app.kubernetes.io/component", "worker".to_owned()),
        ("app.kubernetes.io/managed-by", "tidemark".to_owned()),
        ("tidemark.dev/owner-uid", attempt.uid().to_owned()),
        (ATTEMPT_LABEL, attempt.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// The Secret with the job.
pub fn job_secret(attempt: &AttemptRef, job: &JobSpec) -> Secret {
    let text = serde_json::to_string(job).expect("a job has no map with non-string keys");
    Secret {
        metadata: meta(job_name(attempt), attempt),
        immutable: Some(true),
        string_data: Some([(JOB_FILE.to_owned(), text)].into()),
        ..Secret::default()
    }
}

/// The Secret with the keys.
pub fn keys_secret(attempt: &AttemptRef, keys: &Credentials) -> Secret {
    let mut data = BTreeMap::from([
        ("AWS_ACCESS_KEY_ID".to_owned(), keys.access_key_id.clone()),
        ("AWS_SECRET_ACCESS_KEY".to_owned(), keys.secret_access_key.clone()),
    ]);
    data.extend(keys.session_token.iter().map(|token| ("AWS_SESSION_TOKEN".to_owned(), token.clone())));
    Secret { metadata: meta(keys_name(attempt), attempt), string_data: Some(data), ..Secret::default() }
}

fn meta(name: String, attempt: &AttemptRef) -> ObjectMeta {
    ObjectMeta { name: Some(name), labels: Some(labels(attempt)), ..ObjectMeta::default() }
}

/// The Job. `now` only measures how long it may live.
pub(super) fn job(
    attempt: &AttemptRef,
    spec: &Envelope,
    volume: &Volume,
    settings: &WorkerSettings,
    now: Timestamp,
) -> Job {
    let name = job_name(attempt);
    let lives = until(spec.deadlines.total, now) + limits::JOB_DEADLINE_GRACE;
    let mut pod_labels = settings.labels.clone();
    pod_labels.extend(labels(attempt));
    let manifest = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "labels": labels(attempt),
            "annotations": {ATTEMPT_ID: spec.attempt},
        },
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "activeDeadlineSeconds": lives.as_secs(),
            "ttlSecondsAfterFinished": limits::JOB_TTL.as_secs(),
            "template": {
                "metadata": {"labels": pod_labels, "annotations": pod_annotations(settings)},
                "spec": pod(&name, attempt, volume, settings),
            },
        },
    });
    serde_json::from_value(manifest).expect("the manifest is written with the fields of a Job")
}

/// A mesh would take the Pod's port and its way to the store away from it: its own words win over the administrator's.
fn pod_annotations(settings: &WorkerSettings) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from(
        [("sidecar.istio.io/inject", "false"), ("linkerd.io/inject", "disabled")]
            .map(|(k, v)| (k.to_owned(), v.to_owned())),
    );
    annotations.extend(settings.annotations.clone());
    annotations
}

fn pod(name: &str, attempt: &AttemptRef, volume: &Volume, settings: &WorkerSettings) -> Value {
    let scratch = limits::scratch_bytes(volume.bytes).to_string();
    let mut volumes = vec![
        json!({"name": "job", "secret": {"secretName": name, "defaultMode": 0o440}}),
        json!({"name": "credentials", "secret": {"secretName": keys_name(attempt), "defaultMode": 0o440}}),
        json!({"name": "pod", "downwardAPI": {
            "defaultMode": 0o444,
            "items": [{"path": "uid", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.uid"}}],
        }}),
        json!({"name": "scratch", "emptyDir": {"sizeLimit": scratch}}),
    ];
    let mut container = container(settings);
    if let Some(claim) = &volume.claim {
        let read_only = claim.access == Access::ReadOnly;
        // Whatever the claim's access mode: read only takes the right to write from the device's cgroup.
        volumes
            .push(json!({"name": "volume", "persistentVolumeClaim": {"claimName": claim.name, "readOnly": read_only}}));
        container["volumeDevices"] = json!([{"name": "volume", "devicePath": claim.device}]);
    }
    let mut spec = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": limits::WORKER_GRACE.as_secs(),
        "securityContext": pod_security(settings.user),
        "tolerations": tolerations(settings),
        "containers": [container],
        "volumes": volumes,
    });
    let mut set = |key: &str, value: Value| {
        if !matches!(&value, Value::Null) && value != json!([]) && value != json!({}) {
            spec[key] = value;
        }
    };
    set("serviceAccountName", json!(settings.service_account_name));
    set("imagePullSecrets", json!(settings.image_pull_secrets));
    set("nodeSelector", json!(settings.node_selector));
    set("priorityClassName", json!(settings.priority_class_name));
    set("affinity", json!(affinity(settings.affinity.clone(), volume.nodes.as_ref())));
    spec
}

fn container(settings: &WorkerSettings) -> Value {
    json!({
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy.as_str(),
        "args": [
            "worker",
            "--job", format!("{JOB_MOUNT}/{JOB_FILE}"),
            "--credentials", KEYS_MOUNT,
            "--pod-uid-file", format!("{POD_MOUNT}/uid"),
            "--listen", format!("[::]:{REPORT_PORT}"),
            "--last-word", "/dev/termination-log",
            "--scratch-dir", SCRATCH_MOUNT,
        ],
        "ports": [{"name": "report", "containerPort": REPORT_PORT, "protocol": "TCP"}],
        "resources": settings.resources(),
        "securityContext": {
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {"name": "job", "mountPath": JOB_MOUNT, "readOnly": true},
            {"name": "credentials", "mountPath": KEYS_MOUNT, "readOnly": true},
            {"name": "pod", "mountPath": POD_MOUNT, "readOnly": true},
            {"name": "scratch", "mountPath": SCRATCH_MOUNT},
        ],
    })
}

fn pod_security(user: User) -> Value {
    let seccomp = json!({"type": "RuntimeDefault"});
    match user {
        User::Root => json!({"runAsUser": 0, "runAsGroup": 0, "seccompProfile": seccomp}),
        User::NonRoot => json!({
            "runAsNonRoot": true,
            "runAsUser": NON_ROOT,
            "runAsGroup": NON_ROOT,
            // So that it can read what is mounted for its group only.
            "fsGroup": NON_ROOT,
            "seccompProfile": seccomp,
        }),
    }
}

/// A node that is lost keeps its Pod for these 30 s instead of the usual 300: the next attempt waits for that.
fn tolerations(settings: &WorkerSettings) -> Vec<Value> {
    let lost = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(|key| {
        json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": limits::NODE_TOLERATION.as_secs()})
    });
    lost.into_iter().chain(settings.tolerations.iter().map(|t| json!(t))).collect()
}

/// The administrator's affinity and the volume's nodes: both must hold.
fn affinity(wanted: Option<Affinity>, nodes: Option<&NodeSelector>) -> Option<Affinity> {
    let Some(nodes) = nodes else { return wanted };
    let mut affinity = wanted.unwrap_or_default();
    let node = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
    node.required_during_scheduling_ignored_during_execution =
        Some(match node.required_during_scheduling_ignored_during_execution.take() {
            None => nodes.clone(),
            Some(wanted) => both(&wanted, nodes),
        });
    Some(affinity)
}

/// Terms are alternatives, so both selectors hold where one term of each does: every pair is one alternative.
fn both(one: &NodeSelector, other: &NodeSelector) -> NodeSelector {
    fn join<T: Clone>(a: &Option<Vec<T>>, b: &Option<Vec<T>>) -> Option<Vec<T>> {
        let all: Vec<T> = a.iter().chain(b).flatten().cloned().collect();
        (!all.is_empty()).then_some(all)
    }
    let pair = |a: &NodeSelectorTerm, b: &NodeSelectorTerm| NodeSelectorTerm {
        match_expressions: join(&a.match_expressions, &b.match_expressions),
        match_fields: join(&a.match_fields, &b.match_fields),
    };
    let terms = one.node_selector_terms.iter().flat_map(|a| other.node_selector_terms.iter().map(move |b| pair(a, b)));
    NodeSelector { node_selector_terms: terms.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::runner::Claim;
    use k8s_openapi::api::core::v1::NodeSelectorRequirement;

    fn term(key: &str) -> NodeSelectorTerm {
        let requirement = NodeSelectorRequirement { key: key.into(), operator: "Exists".into(), values: None };
        NodeSelectorTerm { match_expressions: Some(vec![requirement]), match_fields: None }
    }

    fn selector(keys: &[&str]) -> NodeSelector {
        NodeSelector { node_selector_terms: keys.iter().map(|key| term(key)).collect() }
    }

    #[test]
    fn the_volumes_nodes_and_the_administrators_must_both_hold() {
        let wanted = Affinity {
            node_affinity: Some(NodeAffinity {
                required_during_scheduling_ignored_during_execution: Some(selector(&["a", "b"])),
                ..NodeAffinity::default()
            }),
            ..Affinity::default()
        };
        let joined = affinity(Some(wanted), Some(&selector(&["x", "y"]))).expect("some");
        let terms = joined.node_affinity.and_then(|n| n.required_during_scheduling_ignored_during_execution);
        let keys = |t: &NodeSelectorTerm| {
            t.match_expressions.iter().flatten().map(|r| r.key.as_str()).collect::<Vec<_>>().join("+")
        };
        let keys: Vec<String> = terms.expect("required").node_selector_terms.iter().map(keys).collect();
        assert_eq!(keys, ["a+x", "a+y", "b+x", "b+y"]);
        assert_eq!(affinity(None, None), None);
    }

    #[test]
    fn law_11_a_worker_has_no_way_to_kubernetes_and_only_reads_its_source() {
        let attempt = AttemptRef::new("3f0c2d1e-aaaa-bbbb-cccc-000000000001", 2).expect("fit");
        let claim = Claim { name: "tm-x".into(), device: "/dev/source".into(), access: Access::ReadOnly };
        let volume = Volume { claim: Some(claim), bytes: Some(1 << 40), ..Volume::default() };
        for user in [User::Root, User::NonRoot] {
            let spec = pod("tm-x", &attempt, &volume, &WorkerSettings { user, ..WorkerSettings::default() });
            assert_eq!(spec["automountServiceAccountToken"], false);
            let security = &spec["containers"][0]["securityContext"];
            assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
            assert_eq!(
                (&security["allowPrivilegeEscalation"], &security["privileged"]),
                (&json!(false), &json!(false))
            );
            assert_eq!(spec["securityContext"]["runAsNonRoot"] == true, user == User::NonRoot);
            let source = json!({"claimName": "tm-x", "readOnly": true});
            assert_eq!(spec["volumes"][4]["persistentVolumeClaim"], source);
            assert!(spec.get("hostPath").is_none() && spec["containers"][0].get("env").is_none());
            // 512 Ki blocks of 1 TiB.
            assert_eq!(spec["volumes"][3]["emptyDir"]["sizeLimit"], (192_u64 << 20).to_string());
        }
    }
}
