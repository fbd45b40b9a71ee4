//! Deleting a backup: tombstone, markers, journals, records, then the blocks that no other record names (store-protocol P4).
//!
//! Everything under one deletion lock and by one plan, so that each remaining record is read once. The backup is gone when
//! its records are; if its blocks cannot be collected now (another's marker stands, a record cannot be read) the next sweep
//! does it.

use serde::Serialize;
use tokio::sync::watch;

use super::{
    error::StoreError,
    sweep::{Sweep, SweepProgress, Swept},
};
use crate::model::BackupName;

/// What is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doomed {
    /// Everything that carries this Backup uid; a tombstone keeps late arrivals away for 24 h.
    Backup(String),
    /// One record by its name, whoever wrote it (Longhorn, an unreadable one): only because a person named it.
    Record(BackupName),
}

/// What went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    pub records: Vec<BackupName>,
    /// Markers and journal objects among what went.
    pub remnants: u64,
    pub swept: Swept,
    /// The backup is gone, but its blocks stay until the next sweep, and why.
    pub not_collected: Option<StoreError>,
}

/// What went, to be printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RemovedSummary {
    pub records: Vec<BackupName>,
    pub remnants: u64,
    pub swept: Swept,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_collected: Option<String>,
}

impl Removed {
    pub fn summary(&self) -> RemovedSummary {
        RemovedSummary {
            records: self.records.clone(),
            remnants: self.remnants,
            swept: self.swept.clone(),
            not_collected: self.not_collected.as_ref().map(ToString::to_string),
        }
    }
}

/// `LockHeld`: a backup or restore of the volume runs, or died less than 210 s ago: try again later. Safe to repeat at any
/// time; an interrupted one is finished by the next, or by a sweep. Whoever calls it has ended the Backup's own worker.
pub async fn remove(
    sweep: &Sweep,
    doomed: &Doomed,
    progress: &watch::Sender<SweepProgress>,
) -> Result<Removed, StoreError> {
    sweep.remove(doomed, progress).await
}
