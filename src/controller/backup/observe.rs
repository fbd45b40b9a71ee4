//! What a decision about one Backup rests on: values only, gathered before anything is decided.
//!
//! Order: the Backup as the cache (or our own last write) has it; its source, resolved without touching a device; its
//! target and the target's Secret, from the caches; the place in the queue; and what there is of its worker, with the
//! newest report that can be believed. Nothing here changes anything but the memory of what was heard.

use std::{
    path::{Component, Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;

use super::{queue::Slot, retry::Policy};
use crate::controller::target::resolve::Resolved;
use crate::{
    api::{
        Backup, BackupStatus, Cause, InvalidField, Reason,
        backup::{BackupMode, BackupSpec, DeletionPolicy, HeardBy},
        common::{ChosenTarget, DurationText, parse_bytes_per_second},
    },
    model::{AttemptId, FailureReason, Report, VerifyDepth, VolumeName, limits},
};

/// Keeps a deleted Backup until its worker is gone.
pub const FINALIZER: &str = "tidemark.dev/cleanup";

/// Everything `decide` may look at.
#[derive(Debug, Clone)]
pub struct Observed {
    pub wish: Wish,
    pub status: BackupStatus,
    pub source: Result<SourceSeen, Refusal>,
    pub target: TargetSeen,
    pub slot: Slot,
    /// The worker of the attempt that status names.
    pub worker: WorkerSeen,
    /// Other keys are in the Secret than the running worker was given.
    pub keys: Keys,
    /// The id of an attempt, should one begin now.
    pub fresh_id: AttemptId,
}

/// What the user wants, parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub generation: i64,
    pub created: Timestamp,
    pub life: Life,
    pub finalizer: Finalizer,
    pub cancel: bool,
    pub retry_request: Option<String>,
    pub mode: BackupMode,
    pub verify: VerifyDepth,
    pub retry: Policy,
    pub deadlines: Deadlines,
    pub concurrency: Option<u32>,
    pub bytes_per_second: Option<u64>,
    /// Data is to be removed with the object. Not built: it is retained, and said so.
    pub wants_data_deleted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Wanted,
    Deleting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finalizer {
    Present,
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    pub start: Duration,
    pub stall: Duration,
    pub total: Duration,
}

/// A reason that no retry cures, found before any worker started.
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

/// A source that can be read by a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSeen {
    pub volume: VolumeName,
    pub path: PathBuf,
    pub root: PathBuf,
    pub node: String,
}

/// What there is of the target.
#[derive(Debug, Clone, PartialEq)]
pub enum TargetSeen {
    /// It may come: the text says what is missing.
    Waiting(String),
    /// It will not come by waiting.
    Refused(Refusal),
    Usable(Box<Target>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    pub chosen: ChosenTarget,
    pub resolved: Resolved,
    pub shared_with_clusters: bool,
}

/// What there is of the current attempt's worker.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerSeen {
    Absent,
    Alive {
        heard: Option<Heard>,
        /// Since the last report, or since we began to listen.
        silent_for: Duration,
    },
    Ended {
        heard: Option<Heard>,
        exit_code: Option<i32>,
        /// The end of its log.
        last_lines: String,
    },
}

impl WorkerSeen {
    pub fn is_alive(&self) -> bool {
        matches!(self, WorkerSeen::Alive { .. })
    }

    pub fn heard(&self) -> Option<&Heard> {
        match self {
            WorkerSeen::Absent => None,
            WorkerSeen::Alive { heard, .. } | WorkerSeen::Ended { heard, .. } => heard.as_ref(),
        }
    }
}

/// The newest report that was believed.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    pub report: Report,
    pub by: HeardBy,
    pub at: Timestamp,
    /// The store asked us to slow down since the report before.
    pub throttled: bool,
    pub bytes_per_second: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    Same,
    Changed,
}

/// Parses a Backup. A field may not parse although the API server took it (an older CRD, an object from before a rule):
/// then the first such field comes back too, and its default stands in for it.
pub fn wish(backup: &Backup) -> (Wish, Option<InvalidField>) {
    let spec = &backup.spec;
    let meta = &backup.metadata;
    let has_finalizer = meta.finalizers.iter().flatten().any(|f| f == FINALIZER);
    let mut problem = None;
    let mut duration = |text: &DurationText, field, default: u64| match text.parse(field) {
        Ok(duration) => duration,
        Err(error) => {
            problem.get_or_insert(error);
            Duration::from_secs(default)
        }
    };
    let retry = Policy {
        limit: u32::try_from(spec.retry.limit).unwrap_or(0),
        backoff: duration(&spec.retry.backoff, "spec.retry.backoff", 30),
        max_backoff: duration(&spec.retry.max_backoff, "spec.retry.maxBackoff", 15 * 60),
    };
    let deadlines = Deadlines {
        start: duration(&spec.deadlines.start, "spec.deadlines.start", 30 * 60),
        stall: duration(&spec.deadlines.stall, "spec.deadlines.stall", limits::STALL_DEFAULT.as_secs()),
        total: duration(&spec.deadlines.total, "spec.deadlines.total", limits::TOTAL_DEFAULT.as_secs()),
    };
    let rate = spec.upload.max_bytes_per_second.as_ref();
    let bytes_per_second = rate.and_then(|quantity| {
        parse_bytes_per_second(quantity, "spec.upload.maxBytesPerSecond").map_err(|e| problem.get_or_insert(e)).ok()
    });
    let wish = Wish {
        uid: meta.uid.clone().unwrap_or_default(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        generation: meta.generation.unwrap_or(0),
        created: meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
        life: if meta.deletion_timestamp.is_some() { Life::Deleting } else { Life::Wanted },
        finalizer: if has_finalizer { Finalizer::Present } else { Finalizer::Absent },
        cancel: spec.cancel,
        retry_request: Some(spec.retry_request.clone()).filter(|r| !r.is_empty()),
        mode: spec.mode,
        verify: spec.verify.into(),
        retry,
        deadlines,
        concurrency: spec.upload.concurrency.and_then(|c| u32::try_from(c).ok()),
        bytes_per_second,
        wants_data_deleted: spec.deletion_policy == DeletionPolicy::Delete,
    };
    (wish, problem)
}

/// Resolves the source by its words alone: the worker opens the path beneath its root and refuses a symlink that leaves
/// it, so nothing is checked here that could change before it is used.
pub fn source(
    spec: &BackupSpec,
    namespace: &str,
    operator_namespace: &str,
    roots: &[PathBuf],
) -> Result<SourceSeen, Refusal> {
    let Some(device) = &spec.source.host_device else { return Err(unsupported(spec)) };
    if namespace != operator_namespace {
        let message = format!(
            "spec.source.hostDevice is served only in the operator's own namespace {operator_namespace}, not in {namespace}: create the Backup there"
        );
        return Err(Refusal::new(Cause::HostDeviceNotAllowed, message));
    }
    let path = Path::new(&device.path);
    let plain = path.is_absolute() && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    // The innermost root: roots may lie in one another.
    let root = roots
        .iter()
        .filter(|root| plain && path != *root && path.starts_with(root))
        .max_by_key(|r| r.as_os_str().len());
    let Some(root) = root else {
        let named = match roots {
            [] => "the operator was started without --host-device-root: an administrator must add one".to_owned(),
            roots => format!("write a path below one of {}", display(roots)),
        };
        let message =
            format!("spec.source.hostDevice.path {:?} is not below a root of the operator: {named}", device.path);
        return Err(Refusal::new(Cause::HostDeviceNotAllowed, message));
    };
    let node = if device.node_name.is_empty() { "local" } else { &device.node_name };
    Ok(SourceSeen {
        volume: VolumeName::of_host_device(node, &device.name),
        // Normalised by components: no `.` and no doubled slashes.
        path: path.components().collect(),
        root: root.clone(),
        node: node.to_owned(),
    })
}

fn display(roots: &[PathBuf]) -> String {
    roots.iter().map(|r| r.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn unsupported(spec: &BackupSpec) -> Refusal {
    let source = &spec.source;
    let field = if source.persistent_volume_claim.is_some() {
        "persistentVolumeClaim"
    } else if source.volume_snapshot.is_some() {
        "volumeSnapshot"
    } else {
        "existing"
    };
    let message = format!(
        "spec.source.{field} is not served by this version, which runs workers as local processes: use spec.source.hostDevice in the operator's namespace"
    );
    Refusal::new(Cause::SourceNotSupported, message)
}

/// Whether it was worth an attempt: blocks this attempt sent itself.
pub fn has_progressed(report: Option<&Report>) -> super::retry::Progressed {
    match report {
        Some(report) if report.progress.uploaded_blocks > 0 => super::retry::Progressed::Yes,
        _ => super::retry::Progressed::No,
    }
}

/// The reason in words, back as the model's: only those of failures are.
pub fn failure_reason(word: &str) -> Option<FailureReason> {
    serde_json::from_value(serde_json::Value::String(word.to_owned())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(source: serde_json::Value) -> BackupSpec {
        serde_json::from_value(json!({"source": source})).expect("valid")
    }

    fn device(path: &str) -> BackupSpec {
        spec(json!({"hostDevice": {"path": path, "nodeName": "n1", "name": "pg"}}))
    }

    #[test]
    fn law_11_a_host_device_is_read_only_in_the_operators_namespace_and_below_a_root() {
        let roots = [PathBuf::from("/dev/vg0"), PathBuf::from("/srv/images")];
        let seen = source(&device("/srv/images/./a//b.img"), "tidemark", "tidemark", &roots).expect("allowed");
        assert_eq!((seen.path.to_str(), seen.root.to_str()), (Some("/srv/images/a/b.img"), Some("/srv/images")));
        assert_eq!(seen.volume, VolumeName::of_host_device("n1", "pg"));
        for (path, namespace, roots, cure) in [
            ("/srv/images/a", "shop", &roots[..], "own namespace tidemark"),
            ("/srv/images/../../etc/shadow", "tidemark", &roots[..], "below one of /dev/vg0, /srv/images"),
            ("/srv/imagesx/a", "tidemark", &roots[..], "below one of"),
            ("/srv/images", "tidemark", &roots[..], "below one of"),
            ("/srv/images/a", "tidemark", &[][..], "without --host-device-root"),
        ] {
            let refusal = source(&device(path), namespace, "tidemark", roots).expect_err(path);
            assert_eq!(refusal.reason, Cause::HostDeviceNotAllowed.into());
            assert!(refusal.message.contains(cure), "{path}: {}", refusal.message);
        }
    }

    #[test]
    fn other_sources_are_refused_honestly() {
        let refusal =
            source(&spec(json!({"persistentVolumeClaim": {"name": "pg"}})), "a", "a", &[]).expect_err("not built");
        assert_eq!(refusal.reason, Cause::SourceNotSupported.into());
        assert!(
            refusal.message.contains("spec.source.persistentVolumeClaim")
                && refusal.message.contains("use spec.source.hostDevice")
        );
    }

    #[test]
    fn failure_reasons_survive_status() {
        for reason in [FailureReason::UploadFailed, FailureReason::AccessDenied, FailureReason::WorkerNotHeard] {
            assert_eq!(failure_reason(reason.as_str()), Some(reason));
        }
        assert_eq!(failure_reason("NamespaceNotAllowed"), None);
    }
}
