//! Sweeping: blocks that no record names are deleted, under a deletion lock, after every record was read.
//!
//! (store-protocol P5) `plan` is a value that can be printed; `apply` carries it out in batches, and looks before each
//! whether the records are still the very same objects.

/// One volume to be swept, and what the caller knows.
#[derive(Clone)]
pub struct Sweep {
    pub client: Client,
    pub volume: VolumeName,
    pub living: Living,
    pub scratch: Scratch,
    pub timing: Timing,
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
pub enum SweepPhase { #[default] Locking, Listing, Reading, Removing, Deleting, Ended }

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Swept {
    /// Markers, journals, late records and the like that went.
    pub cleared: u64,
    pub blocks_listed: u64,
    pub blocks_deleted: u64,
    pub bytes_deleted: u64,
    /// Named by no record, but too young: the next sweep.
    pub blocks_young: u64,
    /// Named by a record and not listed: a finding for `verify`.
    pub blocks_missing: u64,
}

impl Sweep {
    /// The plan alone: nothing is written, no lock is taken. `now`: the store's clock.
    pub async fn dry_run(&self, now: Timestamp, progress: &watch::Sender<SweepProgress>) -> Result<Plan, StoreError>;
    /// Takes the deletion lock, clears the dead, deletes what no record names.
    pub async fn run(&self, progress: &watch::Sender<SweepProgress>) -> Result<Swept, StoreError>;
}
