//! The rounds: Backups are counted for the metrics, memories of those that are no more are dropped, and workers that
//! belong to nobody are ended and removed. Nothing a user sees depends on it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use kube::ResourceExt;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::{context::Context, error_chain, run::caches_filled, runner::Worker, time::until};
use crate::{
    api::{Backup, BackupState},
    telemetry::now,
};

/// How often Backups are counted.
const CENSUS_INTERVAL: Duration = Duration::from_secs(2);
/// Workers are gone through every so many counts: half a minute.
const COLLECT_EVERY: u32 = 15;

/// Counts Backups for the metrics, forgets those that are no more, and removes workers that belong to nobody.
pub async fn census(context: &Context, stop: &CancellationToken) {
    caches_filled(context).await;
    let mut tick = interval(CENSUS_INTERVAL);
    let mut round = 0_u32;
    loop {
        tokio::select! { _ = tick.tick() => {}, () = stop.cancelled() => return }
        let backups = context.backups.state();
        count(context, &backups);
        let lives: HashSet<String> = backups.iter().filter_map(|b| b.uid()).collect();
        let next = context.queue().retain(&lives);
        context.poke(&next);
        context.memory().forget(&lives);
        context.lookups.retain(&lives);
        context.removals.retain(&lives);
        if round.is_multiple_of(COLLECT_EVERY) {
            collect(context, &lives, &backups).await;
        }
        round = round.wrapping_add(1);
    }
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

/// Ends and removes workers whose Backup is no more, or that an older attempt left behind.
async fn collect(context: &Context, lives: &HashSet<String>, backups: &[Arc<Backup>]) {
    let attempts = match context.runner.list().await {
        Ok(attempts) => attempts,
        Err(error) => return tracing::warn!(error = %error_chain(&error), "Workers could not be listed"),
    };
    for attempt in attempts {
        let current = backups
            .iter()
            .find(|b| b.uid().as_deref() == Some(attempt.backup_uid()))
            .and_then(|b| b.status.as_ref()?.attempt.as_ref().map(|a| a.number));
        let is_old = current.is_some_and(|number| i64::from(attempt.number()) < i64::from(number));
        if lives.contains(attempt.backup_uid()) && !is_old {
            continue;
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
