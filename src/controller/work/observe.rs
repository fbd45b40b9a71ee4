//! What a decision about one object rests on: values only, gathered before anything is decided.
//!
//! Order: the object as the cache (or our own last write) has it; the place where its worker works, resolved without
//! touching a device; its target and the target's Secret, from the caches; its slot in the queue; and what there is of
//! its worker, with the newest report that can be believed.

use std::{
    path::{Component, Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::{
    filling::Filled,
    queue::{Slot, Urgency},
    retry::{Policy, Progressed},
    volume::{Exposed, VolumeSeen},
};
use crate::{
    api::{
        Cause, Course, InvalidField, Reason,
        backup::{HeardBy, RetryPolicy},
        backup_status::ObservedSource,
        common::{ChosenTarget, DurationText, Transfer, parse_bytes_per_second},
    },
    controller::{
        runner::{Host, trouble::Trouble},
        target::resolve::Resolved,
    },
    model::{AttemptId, BackupName, FailureReason, Report, VerifyDepth, VolumeName, limits},
};

/// Keeps a deleted object until its worker is gone.
pub const FINALIZER: &str = "tidemark.dev/cleanup";

/// Everything `decide` may look at.
#[derive(Debug, Clone)]
pub struct Observed {
    pub wish: Wish,
    /// What status says of the course so far.
    pub status: Course,
    pub place: PlaceSeen,
    pub volume: VolumeSeen,
    pub target: TargetSeen,
    pub slot: Slot,
    /// The worker of the attempt that status names.
    pub worker: WorkerSeen,
    /// What the cluster says of that worker.
    pub trouble: Option<Trouble>,
    /// The Pod it runs in, if it is one.
    pub host: Option<Host>,
    /// Other keys are in the Secret than the running worker was given.
    pub keys: Keys,
    /// Did status show that this attempt moved a block?
    pub shown: Progressed,
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
    pub retry: Policy,
    pub deadlines: Deadlines,
    pub concurrency: Option<u32>,
    pub bytes_per_second: Option<u64>,
    pub urgency: Urgency,
    /// The finalizer stands even without a worker: something is to go with the object that its kind looks after.
    pub holds: bool,
    /// When something is due that no worker does.
    pub look_again: Option<Timestamp>,
    /// What is looked at again after completion.
    pub verify: VerifyDepth,
    pub afterwards: Afterwards,
}

/// What there is to do when the worker has done all of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    Nothing,
    /// The volume that was written becomes a claim's.
    BindVolume,
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
    /// For the snapshot to be ready, of an attempt that needs one.
    pub snapshot: Duration,
    pub start: Duration,
    pub stall: Duration,
    pub total: Duration,
}

/// What stands in the way, found before any worker started.
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

/// What is needed before a worker can start.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen<T> {
    /// It may come: the text says what is missing.
    Waiting(Refusal),
    /// It will not come by waiting.
    Refused(Refusal),
    Usable(Box<T>),
}

pub type PlaceSeen = Seen<Place>;
pub type TargetSeen = Seen<Target>;

/// Where a worker works.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Name of the volume in the store.
    pub volume: VolumeName,
    pub device: HostDevice,
    /// What a Restore reads; none for a Backup.
    pub record: Option<Record>,
    /// What was seen of a claim or snapshot.
    pub facts: Option<Box<ObservedSource>>,
    /// The point in time and the claim it is exposed as.
    pub exposed: Option<Box<Exposed>>,
    /// The claim that is filled, if it is one.
    pub filled: Option<Box<Filled>>,
}

/// A device or file of a node, by its words alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    pub path: PathBuf,
    pub root: PathBuf,
    pub node: String,
}

/// The record of a completed Backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The Backup's own name and uid.
    pub name: String,
    pub uid: String,
    /// Its name in the store.
    pub backup: BackupName,
    pub url: Option<String>,
    pub snapshot_time: Option<Time>,
    pub bytes: Option<i64>,
}

/// What there is of the target.
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

/// The verbs and limits of a spec, as users write them; `rate_field` is where the rate stands.
pub struct Words<'a> {
    pub retry: &'a RetryPolicy,
    /// Absent: no snapshot is ever waited for.
    pub snapshot: Option<&'a DurationText>,
    pub start: &'a DurationText,
    pub stall: &'a DurationText,
    pub total: &'a DurationText,
    pub transfer: &'a Transfer,
    pub rate_field: &'static str,
    pub cancel: bool,
    pub retry_request: &'a str,
    pub urgency: Urgency,
}

/// Parses what the kinds share. A field may not parse although the API server took it (an older CRD, an object from
/// before a rule): then the first such field comes back too, and its default stands in for it.
pub fn wish(meta: &ObjectMeta, words: &Words<'_>) -> (Wish, Option<InvalidField>) {
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
        limit: u32::try_from(words.retry.limit).unwrap_or(0),
        backoff: duration(&words.retry.backoff, "spec.retry.backoff", 30),
        max_backoff: duration(&words.retry.max_backoff, "spec.retry.maxBackoff", 15 * 60),
    };
    let deadlines = Deadlines {
        snapshot: words.snapshot.map_or(Duration::ZERO, |text| duration(text, "spec.deadlines.snapshot", 10 * 60)),
        start: duration(words.start, "spec.deadlines.start", 30 * 60),
        stall: duration(words.stall, "spec.deadlines.stall", limits::STALL_DEFAULT.as_secs()),
        total: duration(words.total, "spec.deadlines.total", limits::TOTAL_DEFAULT.as_secs()),
    };
    let rate = words.transfer.max_bytes_per_second.as_ref();
    let bytes_per_second = rate.and_then(|quantity| {
        parse_bytes_per_second(quantity, words.rate_field).map_err(|e| problem.get_or_insert(e)).ok()
    });
    let wish = Wish {
        uid: meta.uid.clone().unwrap_or_default(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        generation: meta.generation.unwrap_or(0),
        created: meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
        life: if meta.deletion_timestamp.is_some() { Life::Deleting } else { Life::Wanted },
        finalizer: if has_finalizer { Finalizer::Present } else { Finalizer::Absent },
        cancel: words.cancel,
        retry_request: Some(words.retry_request.to_owned()).filter(|r| !r.is_empty()),
        retry,
        deadlines,
        concurrency: words.transfer.concurrency.and_then(|c| u32::try_from(c).ok()),
        bytes_per_second,
        urgency: words.urgency,
        holds: false,
        look_again: None,
        verify: VerifyDepth::None,
        afterwards: Afterwards::Nothing,
    };
    (wish, problem)
}

/// Which devices may be touched from which namespace.
pub struct Territory<'a> {
    /// The operator's own, the only one with host devices.
    pub namespace: &'a str,
    pub roots: &'a [PathBuf],
}

impl Territory<'_> {
    /// Resolves a host device by its words alone: the worker opens the path beneath its root and refuses a symlink that
    /// leaves it, so nothing is checked here that could change before it is used. `field` is where it stands.
    pub fn host_device(
        &self,
        namespace: &str,
        field: &str,
        path: &str,
        node_name: &str,
    ) -> Result<HostDevice, Refusal> {
        if namespace != self.namespace {
            let message = format!(
                "{field} is served only in the operator's own namespace {}, not in {namespace}: create the object there",
                self.namespace
            );
            return Err(Refusal::new(Cause::HostDeviceNotAllowed, message));
        }
        let plain_path = Path::new(path);
        let is_plain = plain_path.is_absolute()
            && plain_path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        // The innermost root: roots may lie in one another.
        let roots = self.roots.iter();
        let root = roots
            .filter(|root| is_plain && plain_path != *root && plain_path.starts_with(root))
            .max_by_key(|r| r.as_os_str().len());
        let Some(root) = root else {
            let named = match self.roots {
                [] => "the operator was started without --host-device-root: an administrator must add one".to_owned(),
                roots => format!("write a path below one of {}", display(roots)),
            };
            let message = format!("{field}.path {path:?} is not below a root of the operator: {named}");
            return Err(Refusal::new(Cause::HostDeviceNotAllowed, message));
        };
        Ok(HostDevice {
            // Normalised by components: no `.` and no doubled slashes.
            path: plain_path.components().collect(),
            root: root.clone(),
            node: if node_name.is_empty() { "local".to_owned() } else { node_name.to_owned() },
        })
    }
}

fn display(roots: &[PathBuf]) -> String {
    roots.iter().map(|r| r.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Whether it was worth an attempt: blocks this attempt moved itself.
pub fn has_progressed(report: Option<&Report>) -> Progressed {
    match report {
        Some(report) if report.counters.moved_blocks() > 0 => Progressed::Yes,
        _ => Progressed::No,
    }
}

/// The reason in words, back as the model's: only those of failures are.
pub fn failure_reason(word: &str) -> Option<FailureReason> {
    serde_json::from_value(serde_json::Value::String(word.to_owned())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law_11_a_host_device_is_touched_only_from_the_operators_namespace_and_below_a_root() {
        let roots = [PathBuf::from("/dev/vg0"), PathBuf::from("/srv/images")];
        let all = Territory { namespace: "tidemark", roots: &roots };
        let seen = all.host_device("tidemark", "f", "/srv/images/./a//b.img", "n1").expect("allowed");
        assert_eq!((seen.path.to_str(), seen.root.to_str()), (Some("/srv/images/a/b.img"), Some("/srv/images")));
        for (path, namespace, roots, cure) in [
            ("/srv/images/a", "shop", &roots[..], "own namespace tidemark"),
            ("/srv/images/../../etc/shadow", "tidemark", &roots[..], "below one of /dev/vg0, /srv/images"),
            ("/srv/imagesx/a", "tidemark", &roots[..], "below one of"),
            ("/srv/images", "tidemark", &roots[..], "below one of"),
            ("/srv/images/a", "tidemark", &[][..], "without --host-device-root"),
        ] {
            let territory = Territory { namespace: "tidemark", roots };
            let refusal = territory.host_device(namespace, "spec.hostDevice", path, "n1").expect_err(path);
            assert_eq!(refusal.reason, Cause::HostDeviceNotAllowed.into());
            let names_field = refusal.message.starts_with("spec.hostDevice");
            assert!(names_field && refusal.message.contains(cure), "{path}: {}", refusal.message);
        }
    }

    #[test]
    fn failure_reasons_survive_status() {
        for reason in [FailureReason::UploadFailed, FailureReason::AccessDenied, FailureReason::WorkerNotHeard] {
            assert_eq!(failure_reason(reason.as_str()), Some(reason));
        }
        assert_eq!(failure_reason("NamespaceNotAllowed"), None);
    }
}
