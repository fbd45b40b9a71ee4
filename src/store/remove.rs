//! Deleting a backup: tombstone, markers, journals, records, then the blocks that no other record names (store-protocol P4).
//!
//! Everything under one deletion lock and by one plan, so that each remaining record is read once. The backup is gone when
//! its records are; if its blocks cannot be collected now (another's marker stands, a record cannot be read) the next sweep
//! does it.

use serde::Serialize;
use tokio::sync::watch;

use super::{
    error::{ErrorKind, StoreError},
    sweep::{Sweep, SweepProgress, Swept},
};
use crate::model::{BackupName, FailureReason};

/// A Kubernetes uid has 36 characters.
const UID_LENGTH_MAX: usize = 64;

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
    check(doomed)?;
    sweep.remove(doomed, progress).await
}

/// A uid becomes part of a key, and may come from a label that anybody wrote.
fn check(doomed: &Doomed) -> Result<(), StoreError> {
    let Doomed::Backup(uid) = doomed else { return Ok(()) };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if (1..=UID_LENGTH_MAX).contains(&uid.len()) && uid.chars().all(is_plain) {
        return Ok(());
    }
    let seen = "a Backup's uid is letters, digits, '-' and '_': delete the record by its name instead";
    Err(StoreError::new(ErrorKind::Refused(FailureReason::BadJobSpec), "DELETE", uid, seen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law_11_a_uid_that_leaves_its_folder_is_refused() {
        for good in ["0f8fad5b-d9cb-469f-a165-70867728950e", "uid_1"] {
            assert_eq!(check(&Doomed::Backup(good.into())), Ok(()));
        }
        for bad in ["", "..", "../../other", "a/b", "a b", &"a".repeat(65)] {
            let error = check(&Doomed::Backup(bad.into())).expect_err(bad);
            assert_eq!(error.reason(), FailureReason::BadJobSpec, "{error}");
        }
    }
}
