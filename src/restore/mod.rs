//! Blocks down: one record of the repository becomes a file or a block device, exactly as it was.
//!
//! ```text
//! record → walk ─┬─ gap ────────────────────────────────────▶ made zero
//!                ├─ the target may hold it ─▶ read, compare ─▶ kept, or ▼
//!                └─ GET (bounded) → decode, name, compare ──▶ written at its place
//! then: flush → a sample is read back from the disk → Completed
//! ```
//!
//! * `job`, `error`  what is asked, what comes of it
//! * `plan`      the record's head; its blocks come from `store::record_reader`
//! * `open`, `target`  the file or device: checked before anything is fetched, then read and written at offsets
//! * `walk`, `fetch`, `compute`  orders, requests, threads; `shared` what they share
//! * `readback`  the last look
//!
//! There is one mechanism for resuming, for bringing an earlier state up to date and for repairs, and it trusts nothing
//! but checksums: `Overwrite::Reuse` reads what the target holds and fetches what differs. No journal can be wrong.
//!
//! Nothing half-happens silently: a block that is missing, corrupt or another than its name says is fetched once more,
//! then ends the restore (or, if asked to keep going, is listed and the restore ends in an error all the same), and
//! every error says what the target holds now. In the store only a lock is written, so that nothing is deleted
//! meanwhile.

mod compute;
mod error;
mod fetch;
mod job;
mod open;
mod plan;
mod readback;
mod shared;
mod target;
#[cfg(test)]
mod tests;
mod walk;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub use crate::model::{RestorePhase, RestoreProgress};
use crate::{
    model::{FailureReason, limits},
    store::{
        error::{ErrorKind, StoreError},
        guard::{self, Holder, Locked},
        record_reader::RecordReader,
    },
};
pub use error::{HOLES_LISTED_MAX, Hole, Left, RestoreError};
pub use job::{Damage, Locking, OnHole, OnPlan, Overwrite, RestoreJob, RestoreSummary};

use open::Checked;
use plan::Plan;
use shared::{Failed, Shared, State, Work};
use target::Target;

/// Restores a record. Returns well when the target is on stable storage and a sample of it was read back, else with what
/// it holds instead.
pub async fn run(
    job: RestoreJob,
    progress: watch::Sender<RestoreProgress>,
    cancel: CancellationToken,
) -> Result<RestoreSummary, RestoreError> {
    let restore = Restore { job, progress, cancel };
    let ended = restore.run().await;
    restore.phase(RestorePhase::Ended);
    ended
}

struct Restore {
    job: RestoreJob,
    progress: watch::Sender<RestoreProgress>,
    cancel: CancellationToken,
}

impl Restore {
    async fn run(&self) -> Result<RestoreSummary, RestoreError> {
        let plan = self.unless_cancelled(Plan::read(&self.job)).await?;
        let checked = self.unless_cancelled(Checked::check(&self.job, plan.volume_bytes)).await?;
        self.progress.send_modify(|p| p.total_blocks = plan.total_blocks);
        if let Some(told) = &self.job.on_plan {
            told(plan.facts());
        }
        let locked = self.lock(&plan).await?;
        let ended = self.under_lock(plan, checked, locked.as_ref()).await;
        if let Some(locked) = locked {
            // What stays behind ends by itself; a store that has gone silent must not keep the news back.
            let _ = timeout(limits::ORDERLY_END, locked.release()).await;
        }
        ended
    }

    fn phase(&self, phase: RestorePhase) {
        self.progress.send_modify(|p| p.phase = phase);
    }

    async fn unless_cancelled<T>(
        &self,
        work: impl Future<Output = Result<T, RestoreError>>,
    ) -> Result<T, RestoreError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(RestoreError::Cancelled(Left::Untouched)),
            done = work => done,
        }
    }

    async fn lock(&self, plan: &Plan) -> Result<Option<Locked>, RestoreError> {
        let Locking::Shared { attempt, timing } = &self.job.locking else { return Ok(None) };
        let holder = Holder {
            layout: plan.layout.clone(),
            volume: self.job.record.volume.clone(),
            backup_uid: String::new(),
            attempt: attempt.clone(),
            timing: *timing,
        };
        let client = &self.job.client;
        let locked = self.unless_cancelled(async {
            let locked = guard::lock(client, holder.clone()).await;
            locked.map_err(|error| RestoreError::Store { error: explain_refusal(error), left: Left::Untouched })
        });
        let locked = locked.await;
        if matches!(locked, Err(RestoreError::Cancelled(_))) {
            let _ = timeout(limits::ORDERLY_END, guard::abandon(client, &holder)).await;
        }
        locked.map(Some)
    }

    async fn under_lock(
        &self,
        plan: Plan,
        checked: Checked,
        lock: Option<&Locked>,
    ) -> Result<RestoreSummary, RestoreError> {
        let untouched = |error| RestoreError::Store { error, left: Left::Untouched };
        let record = RecordReader::open(self.job.client.clone(), &plan.record_key, plan.block_size);
        let record = self.unless_cancelled(async { record.await.map_err(untouched) }).await?;
        let target = checked.take()?;
        self.phase(RestorePhase::Writing);
        let snapshot_created_at = plan.head.snapshot_created_at.clone();
        let volume_bytes = plan.volume_bytes;
        let shared = Arc::new(self.share(plan, target));
        self.write(&shared, record, lock).await?;
        self.finish(&shared).await?;
        let last = *self.progress.borrow();
        let state = &mut *shared.state();
        if state.holes_count > 0 {
            state.holes.sort_by_key(|hole| hole.offset);
            return Err(RestoreError::Holes { count: state.holes_count, first: std::mem::take(&mut state.holes) });
        }
        Ok(RestoreSummary {
            volume: self.job.record.volume.to_string(),
            backup: self.job.record.backup.to_string(),
            snapshot_created_at,
            volume_bytes,
            blocks: last.restored_blocks(),
            reused_blocks: last.reused_blocks,
            fetched_bytes: last.fetched_bytes,
            read_back_blocks: last.read_back_blocks,
        })
    }

    fn share(&self, plan: Plan, target: Target) -> Shared {
        Shared {
            plan,
            target,
            damage: self.job.damage,
            on_hole: self.job.on_hole.clone(),
            progress: self.progress.clone(),
            stop: CancellationToken::new(),
            work: Work::default(),
            state: std::sync::Mutex::new(State::default()),
        }
    }

    /// Until every block was counted, restored or lost.
    async fn write(
        &self,
        shared: &Arc<Shared>,
        record: RecordReader,
        lock: Option<&Locked>,
    ) -> Result<(), RestoreError> {
        let (threads, batch) = compute::threads_and_batch(limits::buffers(shared.plan.block_size));
        let mut compute = JoinSet::new();
        for thread in 0..threads {
            let shared = Arc::clone(shared);
            compute.spawn_blocking(move || compute::run(&shared, thread, batch));
        }
        let (send, orders) = mpsc::unbounded_channel();
        let walk = tokio::spawn(walk::Walker::new(Arc::clone(shared), send).walk(record));
        let fetcher = fetch::Fetcher::new(self.job.client.clone(), Arc::clone(shared), orders, &self.job.limits);
        let fetching = fetcher.fetch(lock);
        tokio::pin!(fetching);
        let ended = tokio::select! {
            biased;
            () = self.cancel.cancelled() => {
                shared.fail(Failed::Cancelled);
                fetching.await
            }
            ended = &mut fetching => ended,
        };
        shared.work.close();
        if ended == fetch::Ended::Done {
            join(shared, &mut compute).await;
        }
        let ordered = walk.await.unwrap_or_else(|panic| {
            compute::panicked(shared, &panic);
            0
        });
        self.check_all_counted(shared, ordered)
    }

    /// The counters are the proof, so they must add up: nothing that was ordered may be neither restored nor lost.
    fn check_all_counted(&self, shared: &Shared, ordered: u64) -> Result<(), RestoreError> {
        if let Some(failure) = shared.state().failure.take() {
            return Err(shared.explain(failure));
        }
        let p = *self.progress.borrow();
        let counted = p.restored_blocks() + p.failed_blocks;
        if counted != ordered {
            return Err(shared.explain(Failed::Bug(format!("{ordered} blocks were ordered, {counted} were counted"))));
        }
        let said = shared.plan.total_blocks;
        if ordered < said && self.job.damage == Damage::Stop {
            let seen = format!("it names {ordered} blocks, its Size says {said}: some of the volume would be missing");
            let error = StoreError::new(ErrorKind::Damaged, "GET", &shared.plan.record_key, seen);
            return Err(shared.explain(Failed::Store(error)));
        }
        if ordered != said {
            tracing::warn!(said, named = ordered, "Record's Size and its blocks do not agree");
        }
        self.progress.send_modify(|p| p.total_blocks = ordered);
        Ok(())
    }

    /// Stable storage, then the last look.
    async fn finish(&self, shared: &Arc<Shared>) -> Result<(), RestoreError> {
        self.phase(RestorePhase::Syncing);
        let synced = self.blocking(shared, |shared| {
            shared.target.finish().map_err(|error| {
                Failed::Target(FailureReason::TargetWriteFailed, format!("flushing it to the disk: {error}"))
            })
        });
        synced.await?;
        self.phase(RestorePhase::ReadingBack);
        self.blocking(shared, readback::read_back).await
    }

    /// Work on the target that may take long, but not for ever.
    async fn blocking(
        &self,
        shared: &Arc<Shared>,
        work: impl FnOnce(&Shared) -> Result<(), Failed> + Send + 'static,
    ) -> Result<(), RestoreError> {
        let its = Arc::clone(shared);
        let done = tokio::task::spawn_blocking(move || work(&its));
        let ended = tokio::select! {
            biased;
            () = self.cancel.cancelled() => {
                shared.stop.cancel();
                Err(Failed::Cancelled)
            }
            ended = timeout(limits::TARGET_DEADLINE, done) => match ended {
                Ok(Ok(ended)) => ended,
                Ok(Err(panic)) => Err(Failed::Bug(format!("the last look ended: {panic}"))),
                Err(_) => {
                    let seen = format!("flushing or reading it back has taken {} s", limits::TARGET_DEADLINE.as_secs());
                    Err(Failed::Target(FailureReason::TargetStalled, seen))
                }
            },
        };
        ended.map_err(|failure| shared.explain(failure))
    }
}

/// Waits for the threads, but not for one that is stuck, and after a failure not for long: law 5.
async fn join(shared: &Shared, threads: &mut JoinSet<()>) {
    let mut waited = Duration::ZERO;
    loop {
        match timeout(limits::ORDERLY_END, threads.join_next()).await {
            Ok(None) => return,
            Ok(Some(ended)) => ended.unwrap_or_else(|panic| compute::panicked(shared, &panic)),
            Err(_) if shared.stop.is_cancelled() || compute::stalled(shared) => {
                tracing::warn!(?waited, "A thread still writes to the target");
                return;
            }
            Err(_) => waited += limits::ORDERLY_END,
        }
    }
}

/// A lock that may not be written has its own cure.
fn explain_refusal(error: StoreError) -> StoreError {
    match error.kind {
        ErrorKind::Refused(FailureReason::AccessDenied) => StoreError {
            seen: format!(
                "{}. The lock keeps blocks from being deleted while they are restored: allow these credentials to write \
                 and delete below locks/, or restore without it (--no-lock) if nothing deletes backups meanwhile",
                error.seen
            ),
            ..error
        },
        _ => error,
    }
}

/// How long a restore waits for the store before it gives up, if nobody says otherwise.
pub const STALL: Duration = limits::STALL_DEFAULT;
