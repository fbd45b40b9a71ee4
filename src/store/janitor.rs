//! What the dead leave behind, and when it may be cleared: markers, journals, tombstones, expired locks, and records that
//! arrived after their Backup was deleted.
//!
//! `look` lists, `plan` is pure, `apply` deletes: markers before journals, so that a journal never goes while its marker
//! still asks others to keep away. No lock is needed: whoever is cleared wrongly finds its marker gone before it seals
//! (store-protocol P3), and no block is touched here.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::{client::Client, error::StoreError, layout::VolumeLayout, objects::Entry, record::RecordHead};
use crate::model::AttemptId;

/// What the caller knows of the living, beyond what the store shows.
#[derive(Debug, Clone, Default)]
pub struct Living {
    /// Attempts that run, or may still run, somewhere.
    pub attempts: BTreeSet<AttemptId>,
    /// Backups that may be tried again: their markers and journals are kept for `MARKER_TTL`.
    pub wanted: Wanted,
}

/// Backups with retries left, by uid.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Wanted {
    /// Not known: any of them.
    #[default]
    All,
    Only(BTreeSet<String>),
}

/// All of a volume but its blocks and `volume.cfg`.
#[derive(Debug, Clone, Default)]
pub struct Belongings {
    pub backups: Vec<Entry>,
    /// The heads of those configs that were read, by key.
    pub heads: BTreeMap<String, RecordHead>,
    pub tidemark: Vec<Entry>,
    pub locks: Vec<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Remnant {
    /// A record of a deleted Backup that arrived after its tombstone.
    LateRecord,
    Marker,
    Journal,
    Tombstone,
    Lock,
}

/// Something that goes, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Clear {
    pub what: Remnant,
    pub keys: Vec<String>,
    pub why: String,
}

/// Something that stays, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Keep {
    pub what: Remnant,
    pub key: String,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Clearing {
    pub clear: Vec<Clear>,
    pub keep: Vec<Keep>,
}

/// Three LISTs, a GET per marker, and, only if there are tombstones, one per record.
pub async fn look(client: &Client, layout: &VolumeLayout) -> Result<Belongings, StoreError>;

/// What may go at `now` (the store's clock).
pub fn plan(belongings: &Belongings, living: &Living, now: Timestamp) -> Clearing;

/// Deletes what the plan names, in its order; ends at the first key that stays.
pub async fn apply(client: &Client, clearing: &Clearing) -> Result<u64, StoreError>;
