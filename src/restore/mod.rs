//! Blocks down: one record of the repository becomes a file or a block device, exactly as it was.
//!
//! ```text
//! record → entries in offset order → GET (bounded) → decode, name, compare → write at its place → fsync
//! ```
//!
//! * `target`    the file or device: opened and checked before anything is fetched, then written at offsets
//! * `pipeline`  requests at once, compute threads, the first failure
//!
//! Nothing half-happens silently: a block that is missing, corrupt or another than its name says ends the restore (or,
//! if asked to keep going, is listed and the restore ends in an error all the same), and every error says what the
//! target holds now. The store is only read.

mod pipeline;
mod target;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::Duration};

use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    model::{BlockName, BlockSize, Compression, FailureReason, limits},
    store::{
        client::Client,
        entries::Entries,
        error::{ErrorKind, StoreError},
        layout::VolumeLayout,
        record::{RecordHead, RecordId},
        survey,
    },
};

use target::Target;

/// One restore, as asked for.
#[derive(Clone)]
pub struct RestoreJob {
    pub client: Client,
    pub record: RecordId,
    /// A file to make, or a block device.
    pub target: PathBuf,
    pub overwrite: Overwrite,
    pub damage: Damage,
    /// GETs at once.
    pub concurrency: u32,
}

/// What if the target exists? A block device always does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    Refuse,
    Replace,
}

/// What if a block cannot be restored?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// End at once.
    Stop,
    /// Restore what can be, leave zeros for the rest, list it, and end in an error.
    KeepGoing,
}

/// Where a restore is. Counters only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreProgress {
    pub phase: RestorePhase,
    /// Blocks the record names.
    pub total_blocks: u64,
    /// Blocks that were compared with their names and written.
    pub written_blocks: u64,
    pub written_bytes: u64,
    /// Bytes of objects fetched.
    pub fetched_bytes: u64,
    /// Blocks given up; only above zero when asked to keep going.
    pub failed_blocks: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum RestorePhase {
    #[default]
    Planning,
    Writing,
    Syncing,
    Ended,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSummary {
    pub volume: String,
    pub backup: String,
    pub snapshot_created_at: String,
    pub volume_bytes: u64,
    pub blocks: u64,
    pub fetched_bytes: u64,
}

/// A block that could not be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hole {
    pub offset: u64,
    pub key: String,
    /// What was seen.
    pub seen: String,
}

/// Holes listed by name; further ones are only counted.
pub const HOLES_LISTED_MAX: usize = 1000;

/// What the target holds after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Untouched,
    Partial { written: u64, total: u64 },
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("{error}. {left}")]
    Store { error: StoreError, left: Left },
    #[error("Record {key}: {seen}")]
    Record { key: String, seen: String },
    #[error("Block at offset {}, object {}: {}. {left}", hole.offset, hole.key, hole.seen)]
    Block { hole: Hole, left: Left },
    #[error("{count} blocks could not be restored. The target holds zeros in their place and everything else")]
    Holes { count: u64, first: Vec<Hole> },
    #[error("{}: {seen}. {left}", path.display())]
    Target { path: PathBuf, seen: String, left: Left },
    #[error("The restore was cancelled. {0}")]
    Cancelled(Left),
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Left::Untouched => f.write_str("The target was not touched"),
            Left::Partial { written, total } => {
                write!(f, "The target holds {written} of {total} blocks in no particular order: do not use it")
            }
        }
    }
}

impl RestoreError {
    /// Documented in docs/cli.md.
    pub fn exit_code(&self) -> u8 {
        match self {
            RestoreError::Store { error, .. } => error.reason().exit_code(),
            RestoreError::Record { .. } | RestoreError::Block { .. } | RestoreError::Holes { .. } => {
                FailureReason::RecordDamaged.exit_code()
            }
            RestoreError::Target { .. } => FailureReason::SourceRefused.exit_code(),
            RestoreError::Cancelled(_) => FailureReason::Cancelled.exit_code(),
        }
    }
}

/// What the record says, checked.
struct Plan {
    record_key: String,
    layout: VolumeLayout,
    head: RecordHead,
    block_size: BlockSize,
    compression: Compression,
    volume_bytes: u64,
    total_blocks: u64,
}

/// Restores a record. Returns when the target is on stable storage, or with what it holds instead.
pub async fn run(
    job: RestoreJob,
    progress: watch::Sender<RestoreProgress>,
    cancel: CancellationToken,
) -> Result<RestoreSummary, RestoreError> {
    let untouched = |error| RestoreError::Store { error, left: Left::Untouched };
    let plan = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(RestoreError::Cancelled(Left::Untouched)),
        plan = read_plan(&job) => plan?,
    };
    let entries = Entries::open(job.client.clone(), &plan.record_key, plan.block_size).await.map_err(untouched)?;
    let target = Target::open(&job.target, plan.volume_bytes, job.overwrite)?;
    progress.send_modify(|p| {
        p.total_blocks = plan.total_blocks;
        p.phase = RestorePhase::Writing;
    });
    let summary = RestoreSummary {
        volume: job.record.volume.to_string(),
        backup: job.record.backup.to_string(),
        snapshot_created_at: plan.head.snapshot_created_at.clone(),
        volume_bytes: plan.volume_bytes,
        blocks: 0,
        fetched_bytes: 0,
    };
    let ended =
        pipeline::run(&job, plan, entries, target, pipeline::Outside { progress: progress.clone(), cancel }).await;
    let last = *progress.borrow();
    progress.send_modify(|p| p.phase = RestorePhase::Ended);
    ended?;
    Ok(RestoreSummary { blocks: last.written_blocks, fetched_bytes: last.fetched_bytes, ..summary })
}

async fn read_plan(job: &RestoreJob) -> Result<Plan, RestoreError> {
    let layout = VolumeLayout::new(&job.record.volume);
    let key = layout.backup(&job.record.backup);
    let refuse = |seen: String| RestoreError::Record { key: key.clone(), seen };
    let store = |error| RestoreError::Store { error, left: Left::Untouched };
    let head = survey::read_head(&job.client, &key).await.map_err(store)?;
    let head = head.ok_or_else(|| refuse("it is not there; `tidemark ls` shows the backups of a target".into()))?;
    head.check_is(&job.record).map_err(refuse)?;
    if head.is_in_progress() {
        return Err(refuse("it marks a backup in progress or one that never ended, and cannot be restored".into()));
    }
    let block_size = head.block_size().map_err(refuse)?;
    let compression = head.compression().map_err(refuse)?;
    let volume_bytes = match head.volume_bytes() {
        Some(bytes) => bytes,
        None => longhorns_size(job, &layout).await?,
    };
    if volume_bytes == 0 || block_size.count(volume_bytes) > limits::VOLUME_BLOCKS_MAX {
        return Err(refuse(format!("a volume of {volume_bytes} bytes cannot be")));
    }
    // `Size` is the number of blocks × the block size: good enough to show, not to rely on.
    let total_blocks = u64::try_from(head.size).unwrap_or(0) / block_size.bytes();
    Ok(Plan { record_key: key, layout, head, block_size, compression, volume_bytes, total_blocks })
}

/// Longhorn's records do not say how large the volume was; its config does.
async fn longhorns_size(job: &RestoreJob, layout: &VolumeLayout) -> Result<u64, RestoreError> {
    let config = survey::read_config(&job.client, layout).await;
    let config = config.map_err(|error| RestoreError::Store { error, left: Left::Untouched })?;
    config.and_then(|config| u64::try_from(config.size).ok()).ok_or_else(|| RestoreError::Record {
        key: layout.config(),
        seen: "it is not there, and the record does not say how large the volume was".into(),
    })
}

/// How long a restore waits for the store before it gives up, if nobody says otherwise.
pub const STALL: Duration = limits::STALL_DEFAULT;

/// The name of a block of zeros, which needs no request.
fn zero_name(size: BlockSize) -> BlockName {
    BlockName::of(&vec![0; size.len()])
}

/// Is this the object's own fault, so that other blocks may still be restored?
fn is_damage(error: &StoreError) -> bool {
    error.kind == ErrorKind::Damaged
}
