//! What imports and deletions rest on, gathered: outcomes of errands from their desks, other Backups from the cache, the
//! ground from the API server. And the steps that order such errands.

use std::{sync::Arc, time::Duration};

use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Preconditions},
    runtime::reflector::ObjectRef,
};
use tokio::time::Instant;

use super::{
    Observed, Task,
    import::{Import, ImportRules},
    leaving::{Admission, Leaving},
};
use crate::{
    api::{Backup, BackupState, BackupStatus, Cause, common::ChosenTarget},
    controller::{
        context::{ApiError, Context, bounded},
        runner::{AttemptRef, Worker},
        snapshot::{
            self,
            observe::{ObserveError, remains},
            remove::{Extent, remove},
        },
        target::{
            breaker::{self, Answer, Asked, Asker, Verdict},
            errands::Lies,
            ground::{self, Ground},
            lookup::{self, Looked, Wanted},
            references,
            removal::{self, Doom, Removal},
            soundness,
        },
        work::{
            Kind, ReconcileError,
            observe::{Finalizer, Life, Refusal, Seen, Wish},
            target::target,
        },
    },
    telemetry::now,
};

/// While a deleted Backup waits, the ground is read again after this long. It is read anew before anything is removed.
const GROUND_AGE_MAX: Duration = Duration::from_secs(10);

/// Everything a decision rests on; none if there is nothing to be done without a worker.
pub async fn observe(backup: &Backup, context: &Context) -> Result<Option<Observed>, ReconcileError> {
    let (wish, _) = backup.wish();
    let status = backup.status.clone().unwrap_or_default();
    let task = match wish.life {
        Life::Deleting => leaving(backup, &wish, &status, context).await?.map(Task::Leave),
        Life::Wanted => import(backup, &wish, &status, context).map(Task::Import),
    };
    let Some(task) = task else { return Ok(None) };
    let target = target(backup.wanted_target(context), &wish.namespace, "Backup", context).await?;
    let (deadlines, cluster) = (wish.deadlines, context.cluster.clone());
    Ok(Some(Observed { wish, deadlines, status, cluster, target, task }))
}

/// What is to be imported, and what is known of it; none if it is history, or cancelled.
fn import(backup: &Backup, wish: &Wish, status: &BackupStatus, context: &Context) -> Option<Import> {
    let existing = backup.spec.source.existing.as_ref().filter(|_| !wish.cancel)?;
    if matches!(status.state, Some(BackupState::Completed | BackupState::Cancelled | BackupState::Deleting)) {
        return None;
    }
    let wanted = match (existing.parse(), backup.spec.check()) {
        (Ok((volume, backup)), Ok(())) => Ok(Wanted { volume, backup }),
        (Err(error), _) | (Ok(_), Err(error)) => Err(Refusal::new(Cause::InvalidSpec, error.to_string())),
    };
    let (seen, soundness) = (context.lookups.look(&wish.uid), context.soundness.look(&wish.uid));
    Some(Import { wanted, seen, soundness, rules: rules(backup, status, context) })
}

/// What the administrator says about imports from the target that is, or would be, chosen.
fn rules(backup: &Backup, status: &BackupStatus, context: &Context) -> ImportRules {
    let chosen = status.target.as_ref().map(|t| &t.name);
    let named = chosen.or(backup.spec.target_ref.as_ref().map(|r| &r.name));
    let found = match named {
        Some(name) => context.targets.get(&ObjectRef::new(name)),
        None => context.targets.state().into_iter().find(|t| t.spec.default),
    };
    let Some(found) = found else { return ImportRules::default() };
    let namespace = backup.namespace().unwrap_or_default();
    ImportRules {
        any_owner: found.spec.imports.any_owner_namespaces.contains(&namespace),
        shared_with_clusters: found.spec.shared_with_clusters,
    }
}

/// What the removal of this Backup's data rests on; none if none is to be removed, or its worker or its volume is still there.
async fn leaving(
    backup: &Backup,
    wish: &Wish,
    status: &BackupStatus,
    context: &Context,
) -> Result<Option<Leaving>, ReconcileError> {
    let Some(target) = status.target.as_ref().filter(|_| wish.holds && wish.finalizer == Finalizer::Present) else {
        return Ok(None);
    };
    if let Some(attempt) = &status.attempt {
        let number = u32::try_from(attempt.number).unwrap_or(0);
        let Ok(attempt) = AttemptRef::new(&wish.uid, number) else { return Ok(None) };
        if context.runner.look(&attempt).await? != Worker::Absent {
            return Ok(None);
        }
    }
    if has_volume(context, wish).await? {
        return Ok(None);
    }
    Ok(Some(Leaving {
        shaken: shaken(context, wish, target).await?,
        sharer: sharer(context, wish, status),
        readers: context.readers_of(backup),
        admission: admission(context, backup, target),
        removal: context.removals.look(&wish.uid),
    }))
}

/// Is anything left of what was made for its snapshot? It goes first: when the object is gone only the census looks for it.
async fn has_volume(context: &Context, wish: &Wish) -> Result<bool, ReconcileError> {
    if context.exposure.is_none() {
        return Ok(false);
    }
    match remains(&context.client, &wish.uid, &wish.namespace, &context.namespace).await {
        Ok(remains) => Ok(remove(&remains, &wish.uid, Extent::Everything) != snapshot::remove::Removal::Done),
        // Without the API there is nothing of it.
        Err(ObserveError::NotInstalled) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What is gone or going beneath it: read a moment ago, or now.
async fn shaken(context: &Context, wish: &Wish, target: &ChosenTarget) -> Result<Option<String>, ApiError> {
    let key = (wish.namespace.clone(), target.uid.clone());
    let known = context.memory().grounds.get(&key).filter(|(at, _)| at.elapsed() < GROUND_AGE_MAX).cloned();
    if let Some((_, shaken)) = known {
        return Ok(shaken);
    }
    let shaken = match ground::read(context, &wish.namespace, target).await? {
        Ground::Firm(_) => None,
        Ground::Shaken(what) => Some(what),
    };
    context.memory().grounds.insert(key, (Instant::now(), shaken.clone()));
    Ok(shaken)
}

/// Another Backup that would lose its data: it refers to the same record and is not being deleted. Of another namespace
/// nothing is told but that it is there.
fn sharer(context: &Context, wish: &Wish, status: &BackupStatus) -> Option<String> {
    let record = |s: &BackupStatus| {
        let store = s.store.as_ref()?;
        Some((s.target.as_ref()?.uid.clone(), store.volume.clone(), store.backup.clone()?))
    };
    let own = record(status)?;
    let backups = context.backups.state();
    let shares = |b: &&Arc<Backup>| {
        b.uid().as_deref() != Some(&wish.uid)
            && b.metadata.deletion_timestamp.is_none()
            && b.status.as_ref().and_then(record).is_some_and(|theirs| theirs == own)
    };
    let other = backups.iter().find(shares)?;
    Some(match other.namespace().unwrap_or_default() == wish.namespace {
        true => format!("Backup {}", other.name_any()),
        false => "A Backup of another namespace".to_owned(),
    })
}

/// What the breaker said, or would say by what the cache shows: while it waits, nobody asks the API server.
fn admission(context: &Context, backup: &Backup, target: &ChosenTarget) -> Admission {
    if context.memory().admitted.contains(&backup.uid().unwrap_or_default()) {
        return Admission::Granted;
    }
    let Some(cached) = context.targets.get(&ObjectRef::new(&target.name)) else { return Admission::Unasked };
    let namespace = backup.namespace().unwrap_or_default();
    let asked = Asked::of(asker(context, backup, &namespace, target), &cached);
    let counted = cached.status.as_ref().and_then(|s| s.deletions.clone()).unwrap_or_default();
    match breaker::judge(&counted, asked, now()) {
        Verdict::Wait(opened, None) => Admission::Waiting(opened),
        Verdict::Wait(_, Some(_)) | Verdict::Go(_) => Admission::Unasked,
    }
}

fn asker<'a>(context: &Context, backup: &Backup, namespace: &'a str, target: &ChosenTarget) -> Asker<'a> {
    let deleted_at = backup.metadata.deletion_timestamp.as_ref().map_or_else(now, |t| t.0);
    Asker { namespace, references: references::count(&target.uid, Some(namespace), context), deleted_at }
}

/// Asks the breaker by the live target. What it says stands until the Backup is gone or this operator leads no more.
pub async fn ask_to_remove(context: &Context, backup: &Backup, o: &Observed) -> Result<Admission, ApiError> {
    let Some(target) = &o.status.target else { return Ok(Admission::Unasked) };
    let Ground::Firm(live) = ground::read(context, &o.wish.namespace, target).await? else {
        context.memory().grounds.remove(&(o.wish.namespace.clone(), target.uid.clone()));
        return Ok(Admission::Unasked);
    };
    let asker = asker(context, backup, &o.wish.namespace, target);
    Ok(match breaker::ask(context, &live, asker).await? {
        Answer::Go => {
            context.memory().admitted.insert(o.wish.uid.clone());
            Admission::Granted
        }
        Answer::Wait(opened) => Admission::Waiting(opened),
        Answer::AskAgain => Admission::Unasked,
    })
}

/// Orders the removal, if the ground is firm at this very moment.
pub async fn remove_data(context: &Context, backup: &Backup, o: &Observed) -> Result<(), ApiError> {
    let (Some(chosen), Seen::Usable(target), Some(store)) = (&o.status.target, &o.target, &o.status.store) else {
        return Ok(());
    };
    if let Ground::Shaken(_) = ground::read(context, &o.wish.namespace, chosen).await? {
        // The next pass reads it again and says so.
        context.memory().grounds.remove(&(o.wish.namespace.clone(), chosen.uid.clone()));
        return Ok(());
    }
    let Ok(volume) = store.volume.parse() else { return Ok(()) };
    let is_import = backup.spec.source.existing.is_some();
    let imported = store.backup.as_ref().and_then(|name| name.parse().ok());
    let doom = match (is_import, imported) {
        (false, _) => Doom::Own,
        (true, Some(backup)) => {
            Doom::Imported { backup, cluster: context.cluster.clone(), namespace: o.wish.namespace.clone() }
        }
        (true, None) => return Ok(()),
    };
    removal::order(context, backup, &target.resolved, Removal { uid: o.wish.uid.clone(), volume, doom });
    Ok(())
}

/// Orders the look-up of an import's record.
pub fn look_up(context: &Context, backup: &Backup, o: &Observed) {
    let (Task::Import(import), Seen::Usable(target)) = (&o.task, &o.target) else { return };
    if let Ok(wanted) = &import.wanted {
        lookup::order(context, backup, &o.wish.uid, &target.resolved, wanted.clone());
    }
}

/// Orders the verification of the record that was looked up.
pub fn verify(context: &Context, backup: &Backup, o: &Observed) {
    let (Task::Import(import), Seen::Usable(target)) = (&o.task, &o.target) else { return };
    let Lies::Done { outcome: Looked::Found(record), .. } = &import.seen else { return };
    if let Ok(wanted) = &import.wanted {
        let what = (wanted.clone(), (**record).clone());
        soundness::order(context, backup, &o.wish.uid, &target.resolved, what);
    }
}

/// Deletes the object whose time is over, if it is still the very object that was looked at.
pub async fn expire(context: &Context, backup: &Backup) -> Result<(), ApiError> {
    let api: Api<Backup> = Api::namespaced(context.client.clone(), &backup.namespace().unwrap_or_default());
    let preconditions = Preconditions { uid: backup.uid(), resource_version: backup.resource_version() };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match bounded(api.delete(&backup.name_any(), &params)).await {
        Ok(_) => {
            tracing::info!(backup = %backup.name_any(), "Backup expired and is deleted");
            Ok(())
        }
        // Changed meanwhile, or gone: the next pass sees it.
        Err(ApiError::Api(kube::Error::Api(answer))) if answer.is_conflict() || answer.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}
