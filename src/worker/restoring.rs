//! One attempt of a restore: from a `JobSpec` to a volume on stable storage, or to a failure that says what happened.
//!
//! ```text
//! landing ▶ record ▶ lock ▶ blocks ▶ flush ▶ a sample read back ▶ the new file gets its name
//! ```
//! The restoring itself is `restore`'s; here its counters become reports. What an earlier attempt left on the device is
//! read and kept where its checksums hold, so nothing has to be remembered between attempts.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::{
    attempt::Attempt,
    landing::Landing,
    tell::{Ended, Teller},
};
use crate::{
    model::{
        Counters, Damaged, FailureReason, Outcome, Report, RestoreProgress, Task,
        job::{OnDamage, RestoreTask},
        limits,
    },
    restore::{self, Damage, Hole, Locking, OnHole, OnPlan, Overwrite, RestoreError, RestoreJob},
    store::{client::Client, record::RecordId},
    telemetry,
};

/// Runs the attempt. Every change is told through `reports`; the last one, which is returned too, has an outcome.
pub async fn run(attempt: Attempt, reports: watch::Sender<Report>) -> Report {
    let job = &attempt.job;
    let total = Duration::try_from(job.deadlines.total.duration_since(telemetry::now())).unwrap_or(Duration::ZERO);
    let client = Client::new(Arc::clone(&attempt.objects), Duration::from_secs(job.deadlines.stall_seconds), total);
    let tell = Arc::new(Teller::new(reports, client.clone()));
    let Task::Restore(task) = &job.task else { return tell.end(Err(Ended::wrong_task(&job.task))) };
    let restoring = Restoring { attempt: &attempt, task, client, tell: Arc::clone(&tell), damaged: Arc::default() };
    let ended = restoring.run().await;
    tell.end(ended)
}

struct Restoring<'a> {
    attempt: &'a Attempt,
    task: &'a RestoreTask,
    client: Client,
    tell: Arc<Teller>,
    damaged: Arc<Mutex<Vec<Damaged>>>,
}

impl Restoring<'_> {
    async fn run(&self) -> Result<Outcome, Ended> {
        let refused = |seen: String| {
            let path = self.task.device.path.display().to_string();
            Ended::of(FailureReason::TargetRefused, &format!("{path}: {seen}"), Some(path))
        };
        let landing = Landing::open(&self.task.device, &self.attempt.job.uid).map_err(refused)?;
        let (progress, counted) = watch::channel(RestoreProgress::default());
        let restoring = restore::run(self.job(landing.target()), progress, self.attempt.cancel.clone());
        let ended = self.watch(restoring, counted).await;
        match ended {
            Ok(_) => landing.finish().map_err(refused).map(|()| Outcome::Restored),
            Err(error) => {
                self.list(&error);
                // Who asked to go on asked for what is left: it gets its name, and the restore ends in an error all the same.
                if let RestoreError::Holes { .. } = &error
                    && let Err(seen) = landing.finish()
                {
                    tracing::warn!(%seen, "What could be restored did not get its name");
                }
                Err(Ended::of(error.reason(), &error, error.object()))
            }
        }
    }

    fn job(&self, target: PathBuf) -> RestoreJob {
        let (job, task) = (&self.attempt.job, self.task);
        let record = RecordId { volume: job.volume.clone(), backup: task.backup.clone() };
        let (tell, damaged) = (Arc::clone(&self.tell), Arc::clone(&self.damaged));
        let on_plan: OnPlan = Arc::new(move |plan| tell.change(|report| report.plan = Some(plan)));
        let on_hole: OnHole = Arc::new(move |hole| note(&damaged, hole));
        RestoreJob {
            root: Some(task.device.root.clone()),
            // An earlier attempt's work is continued, and whatever else is right already is kept.
            overwrite: Overwrite::Reuse,
            damage: match task.on_damage {
                OnDamage::Stop => Damage::Stop,
                OnDamage::Continue => Damage::KeepGoing,
            },
            limits: job.limits.clone(),
            locking: Locking::Shared { attempt: job.attempt.clone(), timing: self.attempt.timing },
            on_hole: Some(on_hole),
            on_plan: Some(on_plan),
            ..RestoreJob::new(self.client.clone(), record, target, job.attempt.clone())
        }
    }

    /// Tells every change of the counters until the restore ends.
    async fn watch<T>(
        &self,
        restoring: impl Future<Output = Result<T, RestoreError>>,
        mut counted: watch::Receiver<RestoreProgress>,
    ) -> Result<T, RestoreError> {
        tokio::pin!(restoring);
        loop {
            tokio::select! {
                biased;
                ended = &mut restoring => {
                    self.count(*counted.borrow_and_update());
                    return ended;
                }
                changed = counted.changed() => {
                    let progress = *counted.borrow_and_update();
                    self.count(progress);
                    if changed.is_err() {
                        return restoring.await;
                    }
                }
            }
        }
    }

    fn count(&self, progress: RestoreProgress) {
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.tell.change(|report| {
            report.phase = progress.phase.into();
            report.counters = Counters::Restore(progress);
            report.damaged = damaged;
        });
    }

    /// The block that ended it, or the first of those that were given up.
    fn list(&self, error: &RestoreError) {
        match error {
            RestoreError::Block { hole, .. } => note(&self.damaged, hole),
            RestoreError::Holes { first, .. } => first.iter().for_each(|hole| note(&self.damaged, hole)),
            RestoreError::Store { .. }
            | RestoreError::Record { .. }
            | RestoreError::Target { .. }
            | RestoreError::Cancelled(_)
            | RestoreError::Bug { .. } => {}
        }
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.tell.change(|report| report.damaged = damaged);
    }
}

/// Keeps the first few by offset.
fn note(damaged: &Mutex<Vec<Damaged>>, hole: &Hole) {
    let mut damaged = damaged.lock().unwrap_or_else(PoisonError::into_inner);
    let new = Damaged { offset: hole.offset, object: hole.key.clone(), reason: hole.reason };
    if !damaged.contains(&new) {
        damaged.push(new);
        damaged.sort_by_key(|d| d.offset);
        damaged.truncate(limits::DAMAGED_LISTED_MAX);
    }
}
