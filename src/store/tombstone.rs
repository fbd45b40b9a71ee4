//! Tombstones: `V/tidemark/<UID>/deleted` says that a Backup was deleted, so that a record or marker of it which arrives
//! late (a paused process, a buffering proxy) is neither offered nor built upon, and goes with the next sweep.

use std::collections::BTreeSet;

use super::{client::Client, error::StoreError, layout::VolumeLayout, objects::Entry, record::RecordHead};

/// The Backups of a volume that were deleted, by uid.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tombstones(BTreeSet<String>);

impl Tombstones {
    /// One LIST of `V/tidemark/`.
    pub async fn read(client: &Client, layout: &VolumeLayout) -> Result<Self, StoreError>;
    /// Those of a listing of `V/tidemark/`.
    pub fn of(layout: &VolumeLayout, tidemark: &[Entry]) -> Self;
    pub fn has(&self, backup_uid: &str) -> bool;
    /// Is this a record or marker of a deleted Backup? Then it is as good as gone: not listed, restored, adopted or built upon.
    pub fn covers(&self, head: &RecordHead) -> bool;
}
