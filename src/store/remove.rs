//! Deleting a backup: tombstone, markers, journals, records, then the blocks that no other record names (store-protocol P4).

/// What is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doomed {
    /// Everything that carries this Backup uid; a tombstone keeps late arrivals away for 24 h.
    Backup(String),
    /// One record by its name, whoever wrote it (Longhorn's, the command line's): only because a person named it.
    Record(BackupName),
}

/// What went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Removed {
    pub records: Vec<BackupName>,
    /// Markers and journals among the keys that went.
    pub remnants: u64,
    pub swept: Swept,
    /// The backup is gone, but its blocks stay until the next sweep, and why.
    pub not_collected: Option<StoreError>,
}

/// `ErrorKind::LockHeld`: a backup or restore of the volume runs, or died less than 210 s ago: try again later.
/// Safe to repeat at any time; an interrupted one is finished by the next, or by a sweep.
pub async fn remove(sweep: &Sweep, doomed: &Doomed, progress: &watch::Sender<SweepProgress>) -> Result<Removed, StoreError>;
