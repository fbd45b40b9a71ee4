//! Sweeping: blocks that no record names are deleted, under a deletion lock, after every record was read to its end.
//!
//! ```text
//! deletion lock ▶ LIST backups/, tidemark/, blocks/ ▶ every record ▶ the dead cleared, and again from the start
//!   ▶ per batch: lease, LIST backups/ unchanged, DELETE ▶ volume.cfg ▶ lock given back
//! ```
//! (store-protocol P5.) `plan` is a value that can be printed and `apply` carries it out; `blocks` holds the listing in
//! scratch. One record that cannot be read, one config in progress that is not a dead one of ours: no block goes. What a
//! crash leaves behind, the next sweep collects.

mod apply;
mod blocks;
mod plan;

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::plan::{Plan, Summary};
use self::plan::{Planner, cancelled, names};
use super::{
    client::Client,
    deletion::{self, Deletion},
    error::{ErrorKind, StoreError},
    guard::Timing,
    janitor::Living,
    layout::VolumeLayout,
    objects::Entry,
    remove::{Doomed, Removed},
    scratch::Scratch,
    tombstone,
};
use crate::model::{VolumeName, limits};

/// How often a sweep starts again because it cleared something. Twice is enough for everything there is; more means that
/// somebody writes while we delete.
const ROUNDS_MAX: u32 = 4;

/// One volume to be swept, and what the caller knows of it.
#[derive(Clone)]
pub struct Sweep {
    pub client: Client,
    pub volume: VolumeName,
    pub living: Living,
    pub scratch: Scratch,
    pub timing: Timing,
    /// Ends it in order, between two batches.
    pub cancel: CancellationToken,
}

/// Where it is. Counters only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SweepProgress {
    pub phase: SweepPhase,
    pub records_total: u64,
    pub records_read: u64,
    pub blocks_listed: u64,
    /// Blocks to delete; known after the plan.
    pub blocks_total: u64,
    pub blocks_deleted: u64,
    pub bytes_deleted: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum SweepPhase {
    #[default]
    Locking,
    Listing,
    Reading,
    /// Markers, journals and records go.
    Removing,
    /// Blocks go.
    Deleting,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Swept {
    /// Markers, journals, late records and the like that went.
    pub cleared: u64,
    pub blocks_listed: u64,
    pub blocks_deleted: u64,
    pub bytes_deleted: u64,
    /// Temporary files of blocks whose writers died long ago that went, and their bytes.
    pub unfinished_deleted: u64,
    pub unfinished_bytes: u64,
    /// Named by no record, but too young: the next sweep.
    pub blocks_young: u64,
    /// Named by a record and not listed: a finding for `verify`.
    pub blocks_missing: u64,
    /// The store did not delete them when asked.
    pub blocks_not_deleted: u64,
    /// The first of them, with their reasons.
    pub not_deleted: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_not_written: Option<String>,
}

impl Swept {
    /// Adds a batch of keys and their sizes, of which some stay.
    fn count(&mut self, batch: &[(String, u64)], stay: &[StoreError]) {
        let sent = batch.len() as u64;
        let stays = (stay.len() as u64).min(sent);
        self.blocks_deleted += sent - stays;
        self.blocks_not_deleted += stays;
        let is_gone = |key: &str| stay.iter().all(|error| error.key != key);
        self.bytes_deleted += batch.iter().filter(|(key, _)| is_gone(key)).map(|(_, bytes)| bytes).sum::<u64>();
        let room = limits::NOT_DELETED_TOLD - self.not_deleted.len();
        self.not_deleted.extend(stay.iter().take(room).map(ToString::to_string));
    }
}

impl Sweep {
    /// The plan alone: nothing is written and no lock is taken. `now`: the store's clock, as well as it is known.
    pub async fn dry_run(
        &self,
        doomed: Option<&Doomed>,
        now: Timestamp,
        progress: &watch::Sender<SweepProgress>,
    ) -> Result<Plan, StoreError> {
        let layout = VolumeLayout::new(&self.volume);
        let (held, locks) = deletion::look(&self.client, &layout, now).await?;
        let planner = Planner { sweep: self, layout: &layout, doomed, locks: &locks, progress };
        let mut plan = planner.plan(now).await?;
        plan.refusals.extend(held);
        Ok(plan)
    }

    /// Takes the deletion lock, clears what the dead left, deletes the blocks that no record names.
    pub async fn run(&self, progress: &watch::Sender<SweepProgress>) -> Result<Swept, StoreError> {
        let layout = VolumeLayout::new(&self.volume);
        let deletion = deletion::lock(&self.client, &layout, self.timing).await?;
        let swept = self.rounds(&deletion, progress).await;
        deletion.end().await;
        swept
    }

    /// P5.1 to P5.5, again from the start after something was cleared.
    async fn rounds(&self, deletion: &Deletion, progress: &watch::Sender<SweepProgress>) -> Result<Swept, StoreError> {
        let mut cleared = 0;
        let planner =
            Planner { sweep: self, layout: deletion.layout(), doomed: None, locks: deletion.locks(), progress };
        for _ in 0..ROUNDS_MAX {
            let plan = planner.plan(deletion.server_now()).await?;
            if let Some(refusal) = plan.refusals.first() {
                return Err(refusal.clone());
            }
            progress.send_modify(|p| p.phase = SweepPhase::Removing);
            if plan.clearing.has_configs() {
                apply::forget(deletion, &plan).await?;
            }
            for keys in plan.clearing.batches() {
                deletion.delete_all(&keys).await?;
                cleared += keys.len() as u64;
            }
            if !plan.clearing.has_configs() {
                let swept = apply::apply(self, deletion, &plan, &plan.backups, progress).await?;
                return Ok(Swept { cleared, ..swept });
            }
        }
        let seen = format!("configs to be cleared were found {ROUNDS_MAX} times: somebody writes while we delete");
        Err(StoreError::new(ErrorKind::GuardLost, "SWEEP", deletion.layout().backups(), seen))
    }

    /// P4: tombstone, markers, journals, records; then the blocks, by the plan that was made as if those were gone.
    pub(super) async fn remove(
        &self,
        doomed: &Doomed,
        progress: &watch::Sender<SweepProgress>,
    ) -> Result<Removed, StoreError> {
        let layout = VolumeLayout::new(&self.volume);
        let deletion = deletion::lock(&self.client, &layout, self.timing).await?;
        let removed = self.remove_under(&deletion, doomed, progress).await;
        deletion.end().await;
        removed
    }

    async fn remove_under(
        &self,
        deletion: &Deletion,
        doomed: &Doomed,
        progress: &watch::Sender<SweepProgress>,
    ) -> Result<Removed, StoreError> {
        let (client, layout) = (deletion.client(), deletion.layout());
        let planner = Planner { sweep: self, layout, doomed: Some(doomed), locks: deletion.locks(), progress };
        let plan = planner.plan(deletion.server_now()).await?;
        progress.send_modify(|p| p.phase = SweepPhase::Removing);
        let mut journals = Vec::new();
        if let Doomed::Backup(uid) = doomed {
            let tombstone = layout.tombstone(uid);
            if !plan.tidemark.iter().any(|entry| entry.key == tombstone) {
                tombstone::put(client, layout, uid, deletion.server_now()).await?;
            }
            let keys = plan.tidemark.iter().map(|entry| entry.key.clone());
            journals = keys.filter(|key| planner.is_doomed_journal(key) && *key != tombstone).collect();
        }
        let keys = |is_marker| plan.doomed.iter().filter(move |d| d.is_marker == is_marker).map(|d| d.key.clone());
        let (markers, records): (Vec<_>, Vec<_>) = (keys(true).collect(), keys(false).collect());
        if !records.is_empty() {
            apply::forget(deletion, &plan).await?;
        }
        for keys in [&markers, &journals, &records] {
            if !keys.is_empty() {
                deletion.delete_all(keys).await?;
            }
        }
        let is_left = |entry: &&Entry| !markers.contains(&entry.key) && !records.contains(&entry.key);
        let left: Vec<Entry> = plan.backups.iter().filter(is_left).cloned().collect();
        let (swept, not_collected) = match self.collect(deletion, &plan, &left, progress).await {
            Ok(swept) => (swept, None),
            Err(error) => (Swept::default(), Some(error)),
        };
        let remnants = (markers.len() + journals.len()) as u64;
        Ok(Removed { records: names(&plan.doomed), remnants, swept, not_collected })
    }

    /// The blocks of what was removed, by the plan that was made as if it were gone; where others are dead too, from the
    /// start.
    async fn collect(
        &self,
        deletion: &Deletion,
        plan: &Plan,
        left: &[Entry],
        progress: &watch::Sender<SweepProgress>,
    ) -> Result<Swept, StoreError> {
        if plan.is_refused() || !plan.clearing.has_configs() {
            return apply::apply(self, deletion, plan, left, progress).await;
        }
        self.rounds(deletion, progress).await
    }

    fn check_cancelled(&self) -> Result<(), StoreError> {
        if self.cancel.is_cancelled() { Err(cancelled(&self.volume)) } else { Ok(()) }
    }
}
