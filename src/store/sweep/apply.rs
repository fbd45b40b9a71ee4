//! A plan carried out: batches of blocks, and before each one the proof that nothing has changed since it was made.

use tokio::sync::watch;

use super::{
    super::{
        deletion::Deletion,
        error::{ErrorKind, StoreError},
        objects::{Body, Entry, PutCondition},
        record::VolumeConfig,
    },
    Sweep, SweepPhase, SweepProgress, Swept,
    blocks::scratch_failed,
    plan::{Plan, newest},
};
use crate::model::limits;

/// P5.4 and P5.5. `expected`: what `backups/` must still be.
pub(super) async fn apply(
    sweep: &Sweep,
    deletion: &Deletion,
    plan: &Plan,
    expected: &[Entry],
    progress: &watch::Sender<SweepProgress>,
) -> Result<Swept, StoreError> {
    if let Some(refusal) = plan.refusals.first() {
        return Err(refusal.clone());
    }
    let summary = plan.summary();
    let mut swept = Swept {
        blocks_listed: summary.blocks_listed,
        blocks_young: summary.blocks_young,
        blocks_missing: summary.blocks_missing,
        ..Swept::default()
    };
    progress.send_modify(|p| (p.phase, p.blocks_total) = (SweepPhase::Deleting, summary.blocks_to_delete));
    let mut candidates = plan.listed.candidates();
    loop {
        let mut batch = Vec::new();
        for placed in candidates.by_ref().take(limits::LIST_PAGE as usize) {
            let placed = placed.map_err(scratch_failed)?;
            batch.push((deletion.layout().block(&placed.name), u64::from(placed.stored)));
        }
        if batch.is_empty() {
            break;
        }
        sweep.check_cancelled()?;
        deletion.check_lease_for_batch()?;
        check_unchanged(deletion, expected).await?;
        let keys: Vec<String> = batch.iter().map(|(key, _)| key.clone()).collect();
        let stay = deletion.delete(&keys).await?;
        swept.count(&batch, &stay);
        progress.send_modify(|p| (p.blocks_deleted, p.bytes_deleted) = (swept.blocks_deleted, swept.bytes_deleted));
    }
    delete_unfinished(deletion, plan, &mut swept).await?;
    let config = plan.config.as_ref().map(|config| {
        let left = swept.blocks_listed - swept.blocks_deleted;
        VolumeConfig { block_count: i64::try_from(left).unwrap_or(i64::MAX), ..without_gone(plan, config) }
    });
    if let Err(error) = write_config(deletion, plan, config).await {
        // What is advisory is not worth an error: Longhorn compares with an older base, and the next sweep mends it.
        swept.config_not_written = Some(error.to_string());
    }
    Ok(swept)
}

/// No record can name a temporary file, so nothing need be looked at again; what stays is tried with the next sweep.
async fn delete_unfinished(deletion: &Deletion, plan: &Plan, swept: &mut Swept) -> Result<(), StoreError> {
    let unfinished = &plan.listed.unfinished;
    if unfinished.is_empty() {
        return Ok(());
    }
    deletion.check_lease()?;
    let keys: Vec<String> = unfinished.iter().map(|(key, _)| key.clone()).collect();
    let stay = deletion.delete(&keys).await?;
    for (key, bytes) in unfinished.iter().filter(|(key, _)| stay.iter().all(|error| error.key != *key)) {
        tracing::info!(%key, bytes, "Temporary file of a dead writer deleted");
        swept.unfinished_deleted += 1;
        swept.unfinished_bytes += bytes;
    }
    Ok(())
}

/// Before a record goes, `volume.cfg` stops naming it: Longhorn fails to back up a volume whose last record is not there.
pub(super) async fn forget(deletion: &Deletion, plan: &Plan) -> Result<(), StoreError> {
    write_config(deletion, plan, plan.config.as_ref().map(|config| without_gone(plan, config))).await
}

/// The records are the very same objects, or somebody who does not honour our lock is at work: then nothing more is
/// deleted, for what a new record names is not known.
async fn check_unchanged(deletion: &Deletion, expected: &[Entry]) -> Result<(), StoreError> {
    let prefix = deletion.layout().backups();
    let found = deletion.client().list(&prefix).await?;
    if found == expected {
        return Ok(());
    }
    let differs = found.iter().find(|e| !expected.contains(e)).or_else(|| expected.iter().find(|e| !found.contains(e)));
    let key = differs.map_or(prefix.as_str(), |e| e.key.as_str());
    let seen = "it came, went or changed while we held the deletion lock: another program does not honour it. Nothing more \
                is deleted; run the sweep again";
    Err(StoreError::new(ErrorKind::GuardLost, "LIST", key, seen))
}

/// The config with `LastBackup…` of a record that stays: the one it names, else the newest.
fn without_gone(plan: &Plan, config: &VolumeConfig) -> VolumeConfig {
    let mut config = config.clone();
    if !plan.records.values().any(|head| head.name == config.last_backup_name) {
        let last = newest(&plan.records).cloned().unwrap_or_default();
        config.last_backup_name = last.name;
        config.last_backup_at = last.snapshot_created_at;
        config.labels = last.labels.or(config.labels);
    }
    config
}

/// Writes it if it differs from what the plan saw. Backups, which write it too, are kept away by our lock.
async fn write_config(deletion: &Deletion, plan: &Plan, config: Option<VolumeConfig>) -> Result<(), StoreError> {
    let Some(config) = config.filter(|config| plan.config.as_ref() != Some(config)) else { return Ok(()) };
    deletion.check_lease()?;
    let body = Body::Bytes(config.encode().into());
    deletion.client().put(&deletion.layout().config(), body, PutCondition::Always).await.map(|_| ())
}
