//! The rounds: Backups and Restores are counted for the metrics, memories of those that are no more are dropped, and workers that
//! belong to nobody are ended and removed. Nothing a user sees depends on it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use kube::ResourceExt;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::{
    claim,
    context::Context,
    error_chain,
    runner::{AttemptRef, Worker},
    snapshot::{
        act::act,
        observe,
        remove::{Extent, Removal, remove},
    },
    time::until,
};
use crate::{
    api::{Backup, BackupState, Restore, RestoreState, Stage, Status},
    telemetry::now,
};

/// How often objects are counted.
const CENSUS_INTERVAL: Duration = Duration::from_secs(2);
/// Workers are gone through every so many counts: half a minute.
const COLLECT_EVERY: u32 = 15;

/// Counts objects for the metrics, forgets those that are no more, and removes workers that belong to nobody.
pub async fn census(context: &Context, stop: &CancellationToken) {
    let mut tick = interval(CENSUS_INTERVAL);
    let mut round = 0_u32;
    loop {
        tokio::select! { _ = tick.tick() => {}, () = stop.cancelled() => return }
        let (backups, restores) = (context.backups.state(), context.restores.state());
        count(context, &backups);
        count_restores(context, &restores);
        let lives: Lives =
            backups
                .iter()
                .filter_map(|b| Some((b.uid()?, b.status.as_ref().and_then(|s| s.attempt.as_ref()).map(|a| a.number))))
                .chain(restores.iter().filter_map(|r| {
                    Some((r.uid()?, r.status.as_ref().and_then(|s| s.attempt.as_ref()).map(|a| a.number)))
                }))
                .collect();
        let uids: HashSet<String> = lives.keys().cloned().collect();
        let next = context.queue().retain(&uids, tokio::time::Instant::now());
        context.wake(&next);
        context.memory().forget(&uids);
        context.backups.forget(&uids);
        context.restores.forget(&uids);
        context.lookups.retain(&uids);
        context.soundness.retain(&uids);
        context.removals.retain(&uids);
        if round.is_multiple_of(COLLECT_EVERY) {
            collect(context, &lives).await;
            collect_volumes(context, &uids).await;
            collect_claims(context, &uids).await;
        }
        round = round.wrapping_add(1);
    }
}

/// Objects that are over and of which nothing is left, neither worker nor volume, by uid. Asked in bulk when a term
/// begins: thousands of them are not to be asked one by one. None is called settled if it cannot be told.
pub async fn settled(context: &Context) -> HashSet<String> {
    let attempts = match context.runner.list().await {
        Ok(attempts) => attempts,
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "Workers could not be listed, each is asked for");
            return HashSet::new();
        }
    };
    let volumes = match context.exposure {
        None => Vec::new(),
        Some(_) => match observe::owners(&context.client, &context.namespace).await {
            Ok(owners) => owners,
            Err(observe::ObserveError::NotInstalled) => Vec::new(),
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "Snapshots could not be listed, each is asked for");
                return HashSet::new();
            }
        },
    };
    let claims = match context.exposure {
        None => Vec::new(),
        Some(_) => match claim::observe::owners(&context.client, &context.namespace).await {
            Ok(owners) => owners,
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "Claims could not be listed, each is asked for");
                return HashSet::new();
            }
        },
    };
    let of_volumes = volumes.iter().map(|(owner, _)| owner.as_str()).chain(claims.iter().map(String::as_str));
    let left: HashSet<&str> = attempts.iter().map(AttemptRef::uid).chain(of_volumes).collect();
    let is_over = |stage: Option<Stage>| matches!(stage, Some(Stage::Completed | Stage::Cancelled));
    let (backups, restores) = (context.backups.state(), context.restores.state());
    let backups = backups.iter().filter(|b| is_over(b.status.as_ref().and_then(|s| s.course().state)));
    let restores = restores.iter().filter(|r| is_over(r.status.as_ref().and_then(|s| s.course().state)));
    let uids = backups.filter_map(|b| b.uid()).chain(restores.filter_map(|r| r.uid()));
    uids.filter(|uid| !left.contains(uid.as_str())).collect()
}

/// Removes what was made for snapshots whose Backup is no more, one step a round.
async fn collect_volumes(context: &Context, lives: &HashSet<String>) {
    if context.exposure.is_none() {
        return;
    }
    let owners = match observe::owners(&context.client, &context.namespace).await {
        Ok(owners) => owners,
        Err(observe::ObserveError::NotInstalled) => return,
        Err(error) => return tracing::warn!(error = %error_chain(&error), "Snapshots could not be listed"),
    };
    for (owner, namespace) in owners.iter().filter(|(owner, _)| !lives.contains(owner)) {
        let outcome = match observe::remains(&context.client, owner, namespace, &context.namespace).await {
            Ok(remains) => match remove(&remains, owner, Extent::Everything) {
                Removal::Step(step) => act(&context.client, owner, &context.namespace, &step).await,
                Removal::Waiting(_) | Removal::Done => Ok(()),
            },
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => tracing::info!(%owner, "Snapshot or volume that belongs to nobody was removed"),
            Err(error) => tracing::warn!(%owner, error = %error_chain(&error), "Snapshot could not be removed"),
        }
    }
}

/// Removes what was made for claims whose Restore is no more, and gives its user what was handed over; one step a round.
async fn collect_claims(context: &Context, lives: &HashSet<String>) {
    if context.exposure.is_none() {
        return;
    }
    let owners = match claim::observe::owners(&context.client, &context.namespace).await {
        Ok(owners) => owners,
        Err(error) => return tracing::warn!(error = %error_chain(&error), "Claims could not be listed"),
    };
    for owner in owners.iter().filter(|owner| !lives.contains(*owner)) {
        let outcome = match claim::observe::remains(&context.client, owner, &context.namespace).await {
            Ok(remains) => match claim::remove::remove(&remains, owner) {
                claim::remove::Removal::Step(step) => {
                    claim::act::act(&context.client, owner, &context.namespace, &step).await
                }
                claim::remove::Removal::Waiting(_) | claim::remove::Removal::Done => Ok(()),
            },
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => tracing::info!(%owner, "Claim or volume whose Restore is no more was tidied up"),
            Err(error) => tracing::warn!(%owner, error = %error_chain(&error), "Claim could not be tidied up"),
        }
    }
}

/// Every object that has workers, by uid, and the number of its current attempt.
type Lives = HashMap<String, Option<i32>>;

fn count_restores(context: &Context, restores: &[Arc<Restore>]) {
    use RestoreState::*;
    let states = [
        ("Pending", Pending),
        ("Preparing", Preparing),
        ("InProgress", InProgress),
        ("Flushing", Flushing),
        ("Completed", Completed),
        ("Error", Error),
        ("Cancelled", Cancelled),
    ];
    let state = |r: &Restore| r.status.as_ref().and_then(|s| s.state);
    let counts = states.map(|(word, wanted)| (word, restores.iter().filter(|r| state(r) == Some(wanted)).count()));
    context.metrics.set_restores(counts);
}

fn count(context: &Context, backups: &[Arc<Backup>]) {
    use BackupState::*;
    let states = [
        ("Pending", Pending),
        ("Snapshotting", Snapshotting),
        ("InProgress", InProgress),
        ("Committing", Committing),
        ("Completed", Completed),
        ("Error", Error),
        ("Cancelled", Cancelled),
        ("Deleting", Deleting),
    ];
    let state = |b: &Backup| b.status.as_ref().and_then(|s| s.state);
    let counts = states.map(|(word, wanted)| (word, backups.iter().filter(|b| state(b) == Some(wanted)).count()));
    context.metrics.set_backups(counts);
    let time = now();
    let age = |b: &Arc<Backup>| {
        let status = b.status.as_ref().filter(|s| s.state == Some(InProgress))?;
        let last = status.progress.as_ref().and_then(|p| p.last_acknowledged_time.as_ref());
        let since = last.or(status.attempt.as_ref().and_then(|a| a.start_time.as_ref()))?;
        Some(until(time, since.0))
    };
    context.metrics.set_acknowledgement_age(backups.iter().filter_map(age).max().unwrap_or_default());
}

/// Ends and removes workers whose object is no more, or that an older attempt left behind.
async fn collect(context: &Context, lives: &Lives) {
    let attempts = match context.runner.list().await {
        Ok(attempts) => attempts,
        Err(error) => return tracing::warn!(error = %error_chain(&error), "Workers could not be listed"),
    };
    for attempt in attempts {
        let is_old = |number: i32| i64::from(attempt.number()) < i64::from(number);
        match lives.get(attempt.uid()) {
            Some(Some(number)) if is_old(*number) => {}
            Some(_) => continue,
            None => {}
        }
        let outcome = match context.runner.look(&attempt).await {
            Ok(Worker::Alive { .. }) => context.runner.stop(&attempt).await,
            Ok(Worker::Absent | Worker::Ended { .. }) => context.runner.remove(&attempt).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => tracing::info!(%attempt, "Worker that belongs to nobody was ended or removed"),
            Err(error) => tracing::warn!(%attempt, error = %error_chain(&error), "Worker could not be removed"),
        }
    }
}
