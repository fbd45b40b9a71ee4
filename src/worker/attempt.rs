//! One attempt, top down: from a `JobSpec` to a sealed record, or to a failure that says what happened.
//!
//! ```text
//! source ▶ survey ▶ plan ▶ lock ▶ marker ▶ listing ▶ volume.cfg ▶ predecessors ▶ resume ▶ blocks ▶ seal ▶ tidy up
//! ```
//! Reading and hashing begin before the lock has settled when there is nothing to resume; nothing is sent before the
//! guard stands.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    compute::{Threads, Work},
    pipeline::{Pipeline, PipelineError, Plan},
    resume,
    source::{Source, SourceError},
    tell::{Ended, Teller},
    verification,
};
use crate::{
    model::{
        BackupName, BlockSize, Compression, Counters, FailureReason, JobSpec, Outcome, Phase, Progress, Report,
        RestoreProgress, Task, Verdict, Verification, VerifyDepth,
        job::{BackupTask, Mode},
        limits,
        report::{Plan as ReportedPlan, REPORT_VERSION},
    },
    store::{
        self, adopt,
        client::Client,
        error::{ErrorKind, StoreError},
        guard::{self, Guard, Holder, Timing},
        journal::{self, AttemptFile, Identity, Journal, Predecessors, SourceIdentity},
        layout::VolumeLayout,
        ledger::Ledger,
        listing::Listing,
        objects::Objects,
        record::{self, RecordHead, VolumeConfig, label, rfc3339},
        scratch::Scratch,
        seal,
        survey::{self, Survey},
    },
    telemetry,
};

/// Everything one attempt needs.
pub struct Attempt {
    pub job: JobSpec,
    pub objects: Arc<dyn Objects>,
    pub scratch_dir: PathBuf,
    pub timing: Timing,
    pub cancel: CancellationToken,
}

/// Why an attempt ended without a record.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error("Scratch: {0}; name a directory with room by --scratch-dir")]
    Scratch(#[from] std::io::Error),
}

impl AttemptError {
    fn reason(&self) -> FailureReason {
        match self {
            AttemptError::Store(error) | AttemptError::Pipeline(PipelineError::Store(error)) => error.reason(),
            AttemptError::Source(error) => error.reason,
            AttemptError::Pipeline(PipelineError::Source { reason, .. }) => *reason,
            AttemptError::Pipeline(PipelineError::Cancelled) => FailureReason::Cancelled,
            AttemptError::Pipeline(PipelineError::Bug(_)) => FailureReason::Bug,
            AttemptError::Scratch(_) | AttemptError::Pipeline(PipelineError::Scratch(_)) => {
                FailureReason::ScratchFailed
            }
        }
    }

    /// The store said nothing, or nothing that we understood.
    fn is_unanswered(&self) -> bool {
        match self {
            AttemptError::Store(error) | AttemptError::Pipeline(PipelineError::Store(error)) => {
                error.kind == ErrorKind::Unavailable
            }
            AttemptError::Source(_) | AttemptError::Pipeline(_) | AttemptError::Scratch(_) => false,
        }
    }

    fn object(&self) -> Option<String> {
        match self {
            AttemptError::Store(error) | AttemptError::Pipeline(PipelineError::Store(error)) => Some(error.key.clone()),
            AttemptError::Source(error) => Some(error.path.display().to_string()),
            AttemptError::Pipeline(PipelineError::Source { ordinal, .. }) => Some(format!("block {ordinal}")),
            AttemptError::Scratch(_) | AttemptError::Pipeline(_) => None,
        }
    }
}

/// Runs the attempt. Every change is told through `reports`; the last one, which is returned too, has an outcome.
pub async fn run(attempt: Attempt, reports: watch::Sender<Report>) -> Report {
    let job = &attempt.job;
    let total = job.deadlines.total.duration_since(telemetry::now());
    let total = Duration::try_from(total).unwrap_or(Duration::ZERO);
    let stall = Duration::from_secs(job.deadlines.stall_seconds);
    let client = Client::new(Arc::clone(&attempt.objects), stall, total);
    let tell = Teller::new(reports, client.clone());
    let Task::Backup(task) = &job.task else { return tell.end(Err(Ended::wrong_task(&job.task))) };
    let worker = Worker { attempt: &attempt, task, client, tell: &tell, scratch: Scratch::new(&attempt.scratch_dir) };
    let ended = tokio::select! {
        biased;
        ended = worker.run() => ended,
        // The pipeline ends itself in order; everything before and after it may simply stop.
        () = cancelled(&attempt.cancel) => Err(AttemptError::Pipeline(PipelineError::Cancelled)),
    };
    let told =
        |ended: Result<_, AttemptError>| ended.map_err(|error| Ended::of(error.reason(), &error, error.object()));
    if let (Ok(Outcome::Completed { backup, .. }), true) = (&ended, task.verify != VerifyDepth::None) {
        let backup = backup.clone();
        // Complete it is, whatever the verification shows: that is told first.
        tell.change(|report| report.verification = Some(Verification::new(Verdict::Running, "Verification runs")));
        tell.end(told(ended));
        let verification = verification::run(&attempt, &worker.client, &worker.scratch, (task.verify, &backup)).await;
        return tell.verified(verification);
    }
    tell.end(told(ended))
}

/// The pipeline needs a moment to journal after a cancellation.
async fn cancelled(cancel: &CancellationToken) {
    cancel.cancelled().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
}

/// The first report of an attempt.
pub fn first_report(job: &JobSpec) -> Report {
    Report {
        v: REPORT_VERSION,
        attempt: job.attempt.clone(),
        pod: job.pod.clone(),
        sequence: 0,
        time: telemetry::now(),
        phase: Phase::Planning,
        counters: match job.task {
            Task::Backup(_) => Counters::Backup(Progress::default()),
            Task::Restore(_) => Counters::Restore(RestoreProgress::default()),
        },
        requests: crate::model::Requests::default(),
        plan: None,
        damaged: Vec::new(),
        failure: None,
        outcome: None,
        verification: None,
    }
}

struct Worker<'a> {
    attempt: &'a Attempt,
    task: &'a BackupTask,
    client: Client,
    tell: &'a Teller,
    scratch: Scratch,
}

/// What is fixed once source and store were looked at.
struct Settled {
    layout: VolumeLayout,
    source: Arc<Source>,
    survey: Survey,
    block_size: BlockSize,
    compression: Compression,
    identity: Identity,
    predecessors: Predecessors,
    record: BackupName,
}

impl Worker<'_> {
    async fn run(&self) -> Result<Outcome, AttemptError> {
        let settled = self.settle().await?;
        let ledger = self.plan(&settled)?;
        let early = settled.predecessors.attempts.is_empty();
        let threads = if early { Some(self.start(&settled, &ledger)?) } else { None };
        let job = &self.attempt.job;
        let holder = Holder {
            layout: settled.layout.clone(),
            volume: job.volume.clone(),
            backup_uid: job.uid.clone(),
            attempt: job.attempt.clone(),
            timing: self.attempt.timing,
        };
        let locked = guard::lock(&self.client, holder).await?;
        let file = AttemptFile { identity: settled.identity.clone(), record: settled.record.clone() };
        let file = Bytes::from(serde_json::to_vec(&file).expect("an attempt has string keys only"));
        let guard = match locked.stand(file, settled.compression).await {
            Ok(guard) => guard,
            Err((locked, error)) => {
                locked.release().await;
                return Err(error.into());
            }
        };
        let backed_up = self.under_guard(&guard, &settled, ledger, threads).await;
        match backed_up {
            Ok((sealed, new_blocks, adopted)) => {
                let backup = sealed.record.clone();
                // Law 4: true from here on. What follows tidies up, and a store that has gone silent must not keep the
                // news back: the janitor and Longhorn's clock deal with what stays.
                let tidied = async {
                    let journals = self.journal_keys(&settled).await;
                    sealed.finish(guard, new_blocks, journals).await;
                };
                let patience = Duration::from_secs(self.attempt.job.deadlines.stall_seconds);
                if tokio::time::timeout(patience, tidied).await.is_err() {
                    tracing::warn!(%backup, "Store went silent after the record: marker, journal or lock may stay behind");
                }
                Ok(Outcome::Completed { backup, adopted })
            }
            Err(error) => {
                // A process that was stopped wakes up to a request without an answer: what went wrong is the guard.
                let lost = guard.check_lease().err().filter(|_| error.is_unanswered());
                let error = lost.map_or(error, AttemptError::from);
                let _ = tokio::time::timeout(limits::ORDERLY_END, guard.release()).await;
                Err(error)
            }
        }
    }

    /// Source and store, looked at without a guard.
    async fn settle(&self) -> Result<Settled, AttemptError> {
        let (job, task) = (&self.attempt.job, self.task);
        let source = Arc::new(Source::open(&task.source)?);
        let layout = VolumeLayout::new(&job.volume);
        let predecessors = journal::predecessors(&self.client, &layout, &job.uid, &job.attempt).await?;
        let survey = survey::survey(&self.client, &layout, &predecessors.tombstones).await?;
        survey.check_owner(&job.volume, &task.owner)?;
        let (block_size, compression) = (survey.block_size(task.block_size), survey.compression(task.compression));
        let identity = Identity {
            format: 1,
            backup_uid: job.uid.clone(),
            volume: job.volume.clone(),
            volume_bytes: source.bytes(),
            block_size,
            compression,
            mode: task.mode,
            // A snapshot is exposed as another device in each attempt, and is the same point in time.
            source: match &task.source.point {
                Some(point) => SourceIdentity::Snapshot {
                    handle: format!("{}/{}", point.driver, point.handle),
                    creation_time: point.created.to_string(),
                },
                None => source.identity().clone(),
            },
        };
        let record = BackupName::of_attempt(&job.uid, &job.attempt);
        Ok(Settled { layout, source, survey, block_size, compression, identity, predecessors, record })
    }

    fn plan(&self, settled: &Settled) -> Result<Ledger, AttemptError> {
        let candidates = settled.source.plan(settled.block_size)?;
        let volume_bytes = settled.source.bytes();
        let ledger = Ledger::new(candidates, settled.block_size.count(volume_bytes), &self.scratch)?;
        self.tell.change(|report| {
            let planned = Progress { total_blocks: ledger.counts().total, ..report.backup() };
            report.counters = Counters::Backup(planned);
            report.plan = Some(ReportedPlan {
                volume_bytes,
                block_size: settled.block_size,
                compression: settled.compression,
                parent: settled.survey.parent.as_ref().map(|p| p.name.clone()),
            });
        });
        Ok(ledger)
    }

    fn start(&self, settled: &Settled, ledger: &Ledger) -> std::io::Result<Threads> {
        Threads::start(Work {
            source: Arc::clone(&settled.source),
            plan: ledger.open().clone(),
            block_size: settled.block_size,
            compression: settled.compression,
        })
    }

    async fn under_guard(
        &self,
        guard: &Guard,
        settled: &Settled,
        mut ledger: Ledger,
        threads: Option<Threads>,
    ) -> Result<(seal::Sealed, u64, bool), AttemptError> {
        let listing = Listing::read(guard, &self.scratch, settled.block_size, settled.compression).await?;
        let config = self.volume_config(settled);
        survey::ensure_config(guard, &settled.survey, &listing, &config).await?;
        if let Some((sealed, blocks)) = adopt::settle(guard, &settled.predecessors, &listing).await? {
            self.tell.change(|report| {
                report.counters = Counters::Backup(Progress {
                    total_blocks: blocks,
                    acknowledged_blocks: blocks,
                    resumed_blocks: blocks,
                    ..report.backup()
                });
            });
            return Ok((sealed, 0, true));
        }
        let past = resume::Past {
            client: &self.client,
            layout: &settled.layout,
            predecessors: &settled.predecessors,
            identity: &settled.identity,
        };
        let resumed = resume::resume(&past, &listing, &mut ledger).await?;
        tracing::info!(?resumed, listed = listing.count(), "Plan made");
        self.tell.phase(Phase::Uploading);
        let threads = match threads {
            Some(threads) => threads,
            None => self.start(settled, &ledger)?,
        };
        let (ledger, progress) = self.upload(self.pipeline_plan(guard, &listing, settled), ledger, threads).await?;
        // The record needs its room: see `limits::SCRATCH_BYTES_PER_BLOCK`.
        drop(listing);
        settled.source.check_unchanged()?;
        let complete = ledger.complete().map_err(|_| PipelineError::Bug("The pipeline ended with open blocks"))?;
        let new_blocks = progress.uploaded_blocks;
        let facts = self.facts(settled, &config, &complete, &progress);
        let sealed = seal::seal(guard, &complete, facts, &self.scratch, |step| {
            self.tell.phase(match step {
                seal::Step::WritingRecord => Phase::WritingRecord,
                seal::Step::ReadingBack => Phase::ReadingBack,
            });
        });
        Ok((sealed.await?, new_blocks, false))
    }

    fn pipeline_plan<'a>(&'a self, guard: &'a Guard, listing: &'a Listing, settled: &Settled) -> Plan<'a> {
        let job = &self.attempt.job;
        Plan {
            guard,
            listing,
            scratch: &self.scratch,
            mode: self.task.mode,
            block_size: settled.block_size,
            compression: settled.compression,
            concurrency: job.limits.concurrency,
            max_bytes_per_second: job.limits.max_bytes_per_second,
            cancel: self.attempt.cancel.clone(),
        }
    }

    async fn upload(
        &self,
        plan: Plan<'_>,
        ledger: Ledger,
        threads: Threads,
    ) -> Result<(Ledger, Progress), AttemptError> {
        let journal = Journal::new(self.attempt.job.attempt.clone());
        let pipeline = Pipeline::new(plan, ledger, journal, threads)?;
        let (ledger, progress, ended) = pipeline.run(|progress| self.tell.counters(Counters::Backup(progress))).await;
        ended?;
        Ok((ledger, progress))
    }

    fn volume_config(&self, settled: &Settled) -> VolumeConfig {
        let size = settled.block_size.round_up(settled.source.bytes());
        VolumeConfig::new(&self.attempt.job.volume, size, settled.compression, telemetry::now())
    }

    fn facts(
        &self,
        settled: &Settled,
        config: &VolumeConfig,
        complete: &store::ledger::Complete,
        progress: &Progress,
    ) -> seal::Facts {
        let (job, task) = (&self.attempt.job, self.task);
        let counts = complete.counts();
        let mode = if task.mode == Mode::Full { "full" } else { "incremental" };
        let is_incremental = settled.survey.parent.is_some() && task.mode == Mode::Incremental;
        let stored = i64::try_from(progress.stored_bytes).unwrap_or(i64::MAX);
        let own = [
            (label::BACKUP_UID, job.uid.clone()),
            (label::ATTEMPT, job.attempt.to_string()),
            (label::VOLUME_BYTES, settled.source.bytes().to_string()),
            (label::CLUSTER, task.owner.cluster.clone()),
            (label::NAMESPACE, task.owner.namespace.clone()),
            (label::BACKUP, task.owner.backup.clone()),
        ];
        let users = task.labels.iter().filter(|(key, _)| !key.starts_with("tidemark.dev/"));
        let labels = users.map(|(k, v)| (k.clone(), v.clone())).chain(own.map(|(k, v)| (k.to_owned(), v)));
        let parameters = [
            (record::PARAMETER_BLOCK_SIZE, settled.block_size.bytes().to_string()),
            (record::PARAMETER_MODE, mode.to_owned()),
        ];
        let (new, again) =
            if task.mode == Mode::Full && settled.survey.parent.is_some() { (0, stored) } else { (stored, 0) };
        let head = RecordHead {
            name: settled.record.to_string(),
            volume_name: job.volume.to_string(),
            snapshot_name: task.snapshot.name.clone(),
            snapshot_created_at: rfc3339(task.snapshot.created),
            created_time: rfc3339(telemetry::now()),
            size: i64::try_from(counts.acknowledged() * settled.block_size.bytes()).unwrap_or(i64::MAX),
            labels: Some(labels.collect()),
            parameters: Some(parameters.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
            is_incremental,
            compression_method: settled.compression.as_str().into(),
            newly_uploaded_data_size: new,
            re_uploaded_data_size: again,
            processing_blocks: (!is_incremental).then(std::collections::BTreeMap::new),
        };
        seal::Facts {
            record: settled.record.clone(),
            head,
            config: config.clone(),
            block_size: settled.block_size,
            compression: settled.compression,
        }
    }

    /// Every journal object of this Backup, to be removed after sealing.
    async fn journal_keys(&self, settled: &Settled) -> Vec<String> {
        let prefix = settled.layout.journals(&self.attempt.job.uid);
        match self.client.list(&prefix).await {
            // A tombstone that came while we wrote is not ours to remove: it is what keeps our record from being offered.
            Ok(entries) => {
                let tombstone = settled.layout.tombstone(&self.attempt.job.uid);
                entries.into_iter().map(|e| e.key).filter(|key| *key != tombstone).collect()
            }
            Err(error) => {
                tracing::warn!(%error, "Journal of a sealed backup stays behind");
                Vec::new()
            }
        }
    }
}

/// A job that cannot be done whatever the store says.
pub fn check(job: &JobSpec) -> Result<(), StoreError> {
    let refuse = |seen: String| {
        Err(StoreError::new(ErrorKind::Refused(FailureReason::BadJobSpec), "READ", "job specification", seen))
    };
    if job.v != crate::model::job::JOB_VERSION {
        return refuse(format!(
            "it has schema version {}, this program reads {}",
            job.v,
            crate::model::job::JOB_VERSION
        ));
    }
    if let Task::Backup(task) = &job.task
        && task.snapshot.name.is_empty()
    {
        return refuse("snapshot.name is empty: Longhorn would merge a full delta over this backup".into());
    }
    if job.deadlines.stall_seconds == 0 {
        return refuse("deadlines.stallSeconds is 0".into());
    }
    Ok(())
}
