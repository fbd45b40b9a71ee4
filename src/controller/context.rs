//! What every reconcile may use: the API, the caches, the runner, and the leader's memory. A new leader gets a new one:
//! nothing in it is needed to be right, only to be quick.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use kube::{
    Client, Resource,
    runtime::{
        events::{Event, EventType, Recorder},
        reflector::{ObjectRef, Store},
    },
};
use tokio::{sync::mpsc, time::Instant};

use super::{
    error_chain,
    objects::Objects,
    restore::live_restores,
    runner::{AttemptRef, Runner},
    snapshot::drivers::ExposureSettings,
    target::{
        errands::{Desk, Errands},
        lookup::Looked,
        probe::Prober,
        removal::RemovalEnd,
        session::{Offer, Withheld},
        soundness::Soundness,
    },
    work::{
        hear::Ear,
        queue::Queue,
        standing::{Note, Severity},
    },
};
use crate::{
    api::{Backup, ClusterBackupTarget, Restore, target::Capabilities},
    metrics::Metrics,
};

/// Every request to the API server is given up after this: a connection that was silently dropped would hang for ever.
pub const API_DEADLINE: Duration = Duration::from_secs(10);
/// Fewest seconds between two looks at, and two progress writes of, one running object.
pub const POLL_INTERVAL_MIN: Duration = Duration::from_secs(2);
/// Progress writes per second of the whole operator, and so looks at workers.
pub const WRITES_PER_SECOND: u32 = 20;

/// Labels of a namespace are read again after this long: hundreds that wait ask for the same ones every few seconds.
pub const LABELS_AGE_MAX: Duration = Duration::from_secs(10);

pub struct Context {
    pub client: Client,
    pub runner: Arc<dyn Runner>,
    pub prober: Prober,
    pub metrics: Arc<Metrics>,
    pub recorder: Recorder,
    pub backups: Objects<Backup>,
    pub restores: Objects<Restore>,
    pub targets: Store<ClusterBackupTarget>,
    /// Of the operator's namespace.
    pub secrets: Store<Secret>,
    /// The operator's namespace.
    pub namespace: String,
    pub host_device_roots: Vec<PathBuf>,
    /// How claims and snapshots are exposed to worker Pods; none if workers are local processes.
    pub exposure: Option<ExposureSettings>,
    /// Uid of the namespace kube-system.
    pub cluster: String,
    pub queue: Mutex<Queue>,
    pub memory: Mutex<Memory>,
    /// Asks for a look at a target now.
    pub poke_targets: mpsc::Sender<ObjectRef<ClusterBackupTarget>>,
    /// Work for the store that outlives a reconcile, and what became of it.
    pub errands: Errands,
    pub lookups: Arc<Desk<Looked>>,
    pub soundness: Arc<Desk<Soundness>>,
    pub removals: Arc<Desk<RemovalEnd>>,
    /// Where errands keep tables that are too large for memory.
    pub scratch_dir: PathBuf,
}

/// What the leader remembers of each attempt.
#[derive(Default)]
pub struct Memory {
    pub ears: HashMap<AttemptRef, Ear>,
    /// Keys that a running worker was given.
    pub offered: HashMap<AttemptRef, Offer>,
    /// Attempts whose worker was given no session when it was last to have one.
    pub withheld: HashMap<AttemptRef, Withheld>,
    /// Uids of objects that were over when this term began, and of which nothing was left. Each is used once.
    pub settled: HashSet<String>,
    /// Labels of namespaces, and when they were read.
    pub labels: HashMap<String, (Instant, BTreeMap<String, String>)>,
    /// Uids of deleted Backups that the breaker let through.
    pub admitted: HashSet<String>,
    /// What was gone or going beneath the Backups of a namespace on a target, and when that was read.
    pub grounds: HashMap<(String, String), (Instant, Option<String>)>,
}

impl Memory {
    /// Forgets the attempts of objects that are no more.
    pub fn forget(&mut self, lives: &HashSet<String>) {
        self.ears.retain(|attempt, _| lives.contains(attempt.uid()));
        self.offered.retain(|attempt, _| lives.contains(attempt.uid()));
        self.withheld.retain(|attempt, _| lives.contains(attempt.uid()));
        self.admitted.retain(|uid| lives.contains(uid));
        self.settled.retain(|uid| lives.contains(uid));
        self.labels.retain(|_, (at, _)| at.elapsed() < LABELS_AGE_MAX);
        self.grounds.retain(|_, (at, _)| at.elapsed() < Duration::from_secs(60));
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("API server did not answer within {0:?}")]
    Silent(Duration),
}

/// Bounds a request to the API server.
pub async fn bounded<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match tokio::time::timeout(API_DEADLINE, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ApiError::Silent(API_DEADLINE)),
    }
}

impl Context {
    pub fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The interval for running workers: 2 s, or longer so that all of them together stay within the budget.
    pub fn poll_interval(&self) -> Duration {
        let running = u32::try_from(self.queue().running()).unwrap_or(u32::MAX);
        POLL_INTERVAL_MIN.max(Duration::from_secs(1) * running / WRITES_PER_SECOND)
    }

    /// Has its turn come to write progress, for one whose last write is that long ago?
    pub fn may_write_progress(&self, since_write: Option<Duration>) -> bool {
        // A tenth of grace: the look that was planned for the interval's end must not come a moment too early.
        let interval = self.poll_interval() * 9 / 10;
        since_write.is_none_or(|since| since >= interval)
    }

    /// What reads a Backup's data now, by name: it is not removed before they have ended.
    pub fn readers_of(&self, backup: &Backup) -> Vec<String> {
        let restores: Vec<_> = self.restores.state().into_iter().map(|r| self.restores.freshest(r)).collect();
        live_restores(backup, &restores)
    }

    /// Looks at these objects soon, whatever their kind.
    pub fn wake(&self, uids: &[String]) {
        if !uids.is_empty() {
            self.backups.wake(uids);
            self.restores.wake(uids);
        }
    }

    /// What the target's last probe found; nothing if it was not looked at.
    pub fn capabilities(&self, target: &str) -> Capabilities {
        let target = self.targets.get(&ObjectRef::new(target));
        target.and_then(|t| t.status.as_ref()?.capabilities.clone()).unwrap_or_default()
    }

    /// Publishes an event without waiting for it: an event that is lost loses nothing that status does not say.
    /// The action carries the attempt, so that the next failure for the same reason is a new event with its own text.
    pub fn publish<K: Resource<DynamicType = ()>>(&self, object: &K, note: Note, action: String) {
        self.publish_at(object.object_ref(&()), note, action);
    }

    /// The same, at an object that is only known by reference.
    pub fn publish_at(&self, reference: ObjectReference, note: Note, action: String) {
        let recorder = self.recorder.clone();
        let event = Event {
            type_: match note.severity {
                Severity::Normal => EventType::Normal,
                Severity::Warning => EventType::Warning,
            },
            reason: note.reason,
            // At most 1024 bytes are taken.
            note: Some(cut(note.text, 1000)),
            action,
            secondary: None,
        };
        tokio::spawn(async move {
            if let Err(error) = bounded(recorder.publish(&event, &reference)).await {
                tracing::debug!(error = %error_chain(&error), reason = event.reason, "Event was not published");
            }
        });
    }
}

fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}
