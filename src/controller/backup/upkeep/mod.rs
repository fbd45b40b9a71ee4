//! What a Backup needs no worker for: its import, its removal from the bucket, and the end of its time. It comes before
//! the attempts: [`pass`] does its own part, or leaves the Backup to them.
//!
//! * `gather`   the values these decisions rest on, and the steps that order errands
//! * `import`   a Backup whose data is in the bucket already
//! * `leaving`  a Backup that is being deleted, and its data
//! * `standing` what a user sees of it, and the status to write
//!
//! observe → decide → status → act, as everywhere: status is written before the step is done, and every step may be
//! repeated at any time.

pub mod gather;
pub mod import;
pub mod leaving;
pub mod standing;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Api, runtime::controller::Action};

use self::{
    import::{Import, importing},
    leaving::{Admission, Leaving, leaving},
    standing::{Standing, next_status},
};
use crate::{
    api::{Backup, BackupState, BackupStatus},
    controller::{
        context::{Context, bounded},
        work::{
            CONFLICT_PAUSE, Kind, ReconcileError,
            act::{Wanted, set_finalizer},
            observe::{Deadlines, Finalizer, TargetSeen, Wish},
            status::{Worth, Written, worth, write},
        },
    },
    metrics::StatusWrite,
    telemetry::now,
};

/// One act, idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// Has the record of an import looked up.
    LookUp,
    /// Has the record that was looked up verified.
    VerifyRecord,
    /// What was looked up and verified is used up.
    ForgetLookUp,
    /// Asks the breaker whether the data may be removed now.
    AskToRemove,
    RemoveData,
    RemoveFinalizer,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    pub step: Step,
    pub standing: Standing,
}

fn decided(step: Step, standing: Standing) -> Decision {
    Decision { step, standing }
}

/// Everything a decision may look at.
#[derive(Debug, Clone)]
pub struct Observed {
    pub wish: Wish,
    pub deadlines: Deadlines,
    pub status: BackupStatus,
    /// Uid of kube-system: who we are in records.
    pub cluster: String,
    pub target: TargetSeen,
    pub task: Task,
}

/// What is to be done that needs no worker.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    Import(Import),
    Leave(Leaving),
}

pub fn decide(o: &Observed, now: Timestamp) -> Decision {
    match &o.task {
        Task::Import(import) => importing(o, import, now),
        Task::Leave(leave) => leaving(o, leave),
    }
}

/// Is the data in the bucket to go with the object? From the first attempt on there may be some. While it is, the
/// finalizer stands.
pub fn holds(backup: &Backup) -> bool {
    let wants = backup.spec.deletion_policy == crate::api::backup::DeletionPolicy::Delete;
    let status = backup.status.as_ref();
    let has_data = status.is_some_and(|s| s.attempt.is_some() || s.store.as_ref().is_some_and(|s| s.backup.is_some()));
    wants && has_data
}

/// When a Completed Backup is to be deleted.
pub fn expiry(backup: &Backup) -> Option<Timestamp> {
    let status = backup.status.as_ref().filter(|s| s.state == Some(BackupState::Completed))?;
    let after = backup.spec.parse_expire_after().ok()??;
    Some(crate::controller::time::later(status.completion_time.as_ref()?.0, after))
}

/// Does what needs no worker. `None`: there is nothing of that kind, the attempts go on.
pub async fn pass(backup: &Arc<Backup>, context: &Context) -> Result<Option<Action>, ReconcileError> {
    if expiry(backup).is_some_and(|at| now() >= at) && backup.metadata.deletion_timestamp.is_none() {
        let (wish, _) = backup.wish();
        // The finalizer first: without it the object would go and the data stay.
        if !wish.holds || wish.finalizer == Finalizer::Present {
            gather::expire(context, backup).await?;
        }
        return Ok(None);
    }
    let Some(mut o) = gather::observe(backup, context).await? else { return Ok(None) };
    let mut decision = decide(&o, now());
    // The breaker answers at once: what a user is told should be the answer, not the question.
    if decision.step == Step::AskToRemove {
        let answer = gather::ask_to_remove(context, backup, &o).await?;
        if let Task::Leave(leave) = &mut o.task {
            leave.admission = answer;
        }
        decision = match answer {
            Admission::Unasked => decision,
            Admission::Granted | Admission::Waiting(_) => decide(&o, now()),
        };
    }
    let Decision { step, standing } = decision;
    let mut backup = backup.clone();
    match save(&backup, &o, &standing, context).await? {
        Saved::Now(now) => backup = now,
        Saved::Again => return Ok(Some(Action::requeue(CONFLICT_PAUSE))),
        Saved::Gone => return Ok(Some(Action::await_change())),
    }
    act(context, &backup, &o, step).await?;
    Ok(Some(match standing.again(now()) {
        Some(wait) => Action::requeue(wait),
        None => Action::await_change(),
    }))
}

enum Saved {
    /// The object as it is now.
    Now(Arc<Backup>),
    /// Somebody changed it since: decide again.
    Again,
    Gone,
}

/// Writes the status if it changed, and tells what is news.
async fn save(
    backup: &Arc<Backup>,
    o: &Observed,
    standing: &Standing,
    context: &Context,
) -> Result<Saved, ReconcileError> {
    let written = |outcome| context.metrics.status_written(outcome);
    let next = next_status(o, standing, now());
    let is_news = standing::is_news(&o.status, &next, standing);
    let tell = |backup: &Backup| {
        let Some(note) = standing.note().filter(|_| is_news) else { return };
        tracing::info!(backup = %o.wish.name, namespace = %o.wish.namespace, reason = note.reason, note = note.text, "Backup changed");
        context.publish(backup, note, "Upkeep".into());
    };
    if matches!(standing, Standing::Gone { .. }) || worth(&o.status, &next) == Worth::Nothing {
        tell(backup);
        return Ok(Saved::Now(backup.clone()));
    }
    let api: Api<Backup> = Api::namespaced(context.client.clone(), &o.wish.namespace);
    match bounded(write(&api, backup.as_ref(), &next)).await {
        Ok(Written::Done(object)) => {
            written(StatusWrite::Written);
            let now = context.backups.wrote(backup, *object);
            tell(&now);
            Ok(Saved::Now(now))
        }
        Ok(Written::Conflict) => {
            written(StatusWrite::Conflict);
            Ok(Saved::Again)
        }
        Ok(Written::Gone) => Ok(Saved::Gone),
        Ok(Written::Refused(message)) => {
            written(StatusWrite::Refused);
            Err(ReconcileError::Refused(message))
        }
        Err(error) => {
            written(StatusWrite::Failed);
            Err(error.into())
        }
    }
}

async fn act(context: &Context, backup: &Backup, o: &Observed, step: Step) -> Result<(), ReconcileError> {
    match step {
        // What the breaker said was taken into the decision.
        Step::Nothing | Step::AskToRemove => {}
        Step::LookUp => gather::look_up(context, backup, o),
        Step::VerifyRecord => gather::verify(context, backup, o),
        Step::ForgetLookUp => {
            context.lookups.clear(&o.wish.uid);
            context.soundness.clear(&o.wish.uid);
        }
        Step::RemoveData => gather::remove_data(context, backup, o).await?,
        Step::RemoveFinalizer => set_finalizer(context, backup, Wanted::Absent).await?,
    }
    Ok(())
}

/// Soon enough for a person who waits.
const SOON: Duration = Duration::from_secs(5);
