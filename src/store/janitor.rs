//! What the dead leave behind, and when it may be cleared: markers, journals, tombstones, expired locks, objects that were
//! not finished (in a directory), records that arrived after their Backup was deleted, and second records of one Backup.
//!
//! `look` lists, `plan` is pure, `apply` deletes: markers before journals, so that a journal never goes while its marker
//! still asks others to keep away. No lock is needed: whoever is cleared wrongly finds its marker gone before it seals
//! (store-protocol P3), and no block is touched here.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{
    client::Client,
    error::{ErrorKind, StoreError},
    layout::{VolumeLayout, name_of_unfinished},
    objects::Entry,
    record::{RecordHead, label},
    survey,
    tombstone::Tombstones,
};
use crate::model::{AttemptId, BackupName, limits};

/// What the caller knows of the living, beyond what the store shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Living {
    /// Attempts that run, or may still run, somewhere.
    pub attempts: BTreeSet<AttemptId>,
    /// Backups that may be tried again: their markers and journals are kept for `MARKER_TTL`.
    pub wanted: Wanted,
    pub recorded: Recorded,
}

/// Which record of a Backup is the one it was completed with. Of two the bucket does not say: an attempt that slept may
/// write its own when its successor's is there, and the older one may have been adopted because the newer is damaged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recorded {
    /// By the Backup's uid. Of one that is not here both stay.
    pub own: BTreeMap<String, BackupName>,
    /// Those of this volume that anybody refers to.
    pub referred: BTreeSet<BackupName>,
}

/// Backups with retries left, by uid.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Wanted {
    /// Not known: any of them.
    #[default]
    All,
    Only(BTreeSet<String>),
}

impl Wanted {
    fn has(&self, backup_uid: &str) -> bool {
        match self {
            Wanted::All => true,
            Wanted::Only(uids) => uids.contains(backup_uid),
        }
    }
}

/// All of a volume but its blocks and `volume.cfg`, as listed.
#[derive(Debug, Clone)]
pub struct Belongings {
    pub layout: VolumeLayout,
    pub backups: Vec<Entry>,
    /// The heads of those configs that were read and could be, by key.
    pub heads: BTreeMap<String, RecordHead>,
    /// Keys of records that name a block which is not there; only a sweep looks.
    pub incomplete: BTreeSet<String>,
    pub tidemark: Vec<Entry>,
    pub locks: Vec<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Remnant {
    /// A record of a deleted Backup that arrived after its tombstone.
    LateRecord,
    /// A record of a Backup that was completed with another one.
    SecondRecord,
    Marker,
    Journal,
    Tombstone,
    Lock,
    /// A temporary file of a directory: its writer died.
    Unfinished,
}

impl Remnant {
    fn is_record(self) -> bool {
        matches!(self, Remnant::LateRecord | Remnant::SecondRecord)
    }
}

/// Something that goes.
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

/// In the order in which it is done: records and markers before journals before the rest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Clearing {
    pub clear: Vec<Clear>,
    pub keep: Vec<Keep>,
}

/// Three LISTs and a GET per marker; only if there are tombstones, one per record, for one of them may have come late.
pub async fn look(client: &Client, layout: &VolumeLayout) -> Result<Belongings, StoreError> {
    let backups = client.list(&layout.backups()).await?;
    let tidemark = client.list(&layout.tidemark()).await?;
    let locks = client.list(&layout.locks()).await?;
    let has_tombstones = !Tombstones::of(layout, &tidemark).is_empty();
    let mut heads = BTreeMap::new();
    for entry in backups.iter().filter(|e| has_tombstones || e.key.contains("/backup_tidemark-")) {
        match survey::read_head(client, &entry.key).await {
            Ok(Some(head)) => _ = heads.insert(entry.key.clone(), head),
            // Gone since the listing, or damaged: nothing is known of it, so nothing follows from it.
            Ok(None) => {}
            Err(error) if error.kind == ErrorKind::Damaged => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Belongings { layout: layout.clone(), backups, heads, incomplete: BTreeSet::new(), tidemark, locks })
}

/// What an attempt left.
#[derive(Debug, Default)]
struct Left {
    marker: Option<String>,
    journal: Vec<String>,
    /// When its newest object was written; `MAX` if the store does not say.
    newest: Option<Timestamp>,
}

impl Left {
    fn see(&mut self, entry: &Entry) {
        let modified = entry.meta.modified.unwrap_or(Timestamp::MAX);
        self.newest = Some(self.newest.map_or(modified, |newest| newest.max(modified)));
    }
}

/// What may go at `now`, by the store's clock.
pub fn plan(belongings: &Belongings, living: &Living, now: Timestamp) -> Clearing {
    let tombstones = Tombstones::of(&belongings.layout, &belongings.tidemark);
    let mut clearing = Clearing::default();
    for entry in &belongings.backups {
        let Some(head) = belongings.heads.get(&entry.key) else { continue };
        if tombstones.covers(head) && !head.is_in_progress() {
            let why = "it arrived after its Backup was deleted".to_owned();
            clearing.clear.push(Clear { what: Remnant::LateRecord, keys: vec![entry.key.clone()], why });
        } else if is_second(belongings, &living.recorded, (entry, head), now) {
            let why = "its Backup was completed with another record".to_owned();
            clearing.clear.push(Clear { what: Remnant::SecondRecord, keys: vec![entry.key.clone()], why });
        }
    }
    let is_sealed = |uid: &str| {
        let is_record_of = |head: &RecordHead| !head.is_in_progress() && head.label(label::BACKUP_UID) == Some(uid);
        belongings.heads.values().any(is_record_of)
    };
    for ((uid, attempt), left) in attempts(belongings) {
        let newest = left.newest.unwrap_or(Timestamp::MAX);
        let fate = match living.attempts.contains(&attempt) {
            true => Err("its attempt is alive".to_owned()),
            false if tombstones.has(&uid) => Ok("its Backup was deleted"),
            false => judge(&uid, newest, now, is_sealed(&uid), &living.wanted),
        };
        let parts = [(Remnant::Marker, left.marker.into_iter().collect()), (Remnant::Journal, left.journal)];
        for (what, keys) in parts {
            let Some(first) = keys.first().cloned() else { continue };
            match &fate {
                Ok(why) => clearing.clear.push(Clear { what, keys, why: (*why).to_owned() }),
                Err(why) => clearing.keep.push(Keep { what, key: first, why: why.clone() }),
            }
        }
    }
    clear_tombstones(belongings, now, &mut clearing);
    clear_locks(belongings, living, now, &mut clearing);
    clear_unfinished(belongings, now, &mut clearing);
    clearing.clear.sort_by_key(|clear| clear.what);
    clearing
}

/// Is this a record of a Backup that has another one, whole and its own, and does nobody refer to this one?
fn is_second(
    belongings: &Belongings,
    recorded: &Recorded,
    (entry, head): (&Entry, &RecordHead),
    now: Timestamp,
) -> bool {
    let (Some(uid), Some(attempt)) = (head.label(label::BACKUP_UID), head.label(label::ATTEMPT)) else { return false };
    let (Some(own), Ok(attempt)) = (recorded.own.get(uid), attempt.parse()) else { return false };
    let (name, own_key) = (BackupName::of_attempt(uid, &attempt), belongings.layout.backup(own));
    let is_its_own = |head: &RecordHead| !head.is_in_progress() && head.label(label::BACKUP_UID) == Some(uid);
    let has_own = belongings.heads.get(&own_key).is_some_and(is_its_own) && !belongings.incomplete.contains(&own_key);
    let is_spare = name != *own && !recorded.referred.contains(&name) && entry.key == belongings.layout.backup(&name);
    let is_old = entry.meta.modified.is_some_and(|modified| is_past(modified, limits::YOUNG, now));
    !head.is_in_progress() && has_own && is_spare && is_old
}

/// `Ok`: it may go, and why. `Err`: it stays, and why.
fn judge(
    uid: &str,
    newest: Timestamp,
    now: Timestamp,
    is_sealed: bool,
    wanted: &Wanted,
) -> Result<&'static str, String> {
    if !is_past(newest, limits::YOUNG, now) {
        let until = minutes_left(newest, limits::YOUNG, now);
        return Err(format!("Backup {uid} may still be written by its attempt: it can be cleared in {until} min"));
    }
    if is_sealed {
        return Ok("its Backup has a record");
    }
    if wanted.has(uid) && !is_past(newest, limits::MARKER_TTL, now) {
        let until = minutes_left(newest, limits::MARKER_TTL, now);
        return Err(format!(
            "Backup {uid} is unfinished and may be continued: run it again, delete it, or wait {until} min"
        ));
    }
    Ok("its attempt is dead and nobody continues it")
}

/// What each attempt left, by Backup uid and attempt.
fn attempts(belongings: &Belongings) -> BTreeMap<(String, AttemptId), Left> {
    let layout = &belongings.layout;
    let mut attempts: BTreeMap<(String, AttemptId), Left> = BTreeMap::new();
    for entry in &belongings.tidemark {
        let Some((uid, rest)) = entry.key.strip_prefix(&layout.tidemark()).and_then(|k| k.split_once('/')) else {
            continue;
        };
        let Some(attempt) = rest.split_once('/').and_then(|(attempt, _)| attempt.parse().ok()) else { continue };
        let left = attempts.entry((uid.to_owned(), attempt)).or_default();
        left.journal.push(entry.key.clone());
        left.see(entry);
    }
    for entry in &belongings.backups {
        let Some((uid, attempt)) =
            belongings.heads.get(&entry.key).and_then(|head| own_marker(layout, &entry.key, head))
        else {
            continue;
        };
        let left = attempts.entry((uid, attempt)).or_default();
        left.marker = Some(entry.key.clone());
        left.see(entry);
    }
    for ((_, attempt), left) in &mut attempts {
        let lock = layout.lock(attempt);
        belongings.locks.iter().filter(|entry| entry.key == lock).for_each(|entry| left.see(entry));
    }
    attempts
}

/// The Backup and attempt of a marker of ours; `None` for any other config.
pub(super) fn own_marker(layout: &VolumeLayout, key: &str, head: &RecordHead) -> Option<(String, AttemptId)> {
    let is_marker = head.is_in_progress() && head.label(label::MARKER) == Some("true");
    let attempt: AttemptId = head.label(label::ATTEMPT)?.parse().ok()?;
    let uid = head.label(label::BACKUP_UID)?.to_owned();
    (is_marker && key == layout.backup(&BackupName::of_marker(&attempt))).then_some((uid, attempt))
}

/// A tombstone goes when it is old and nothing of its Backup is left that it might have to keep away.
fn clear_tombstones(belongings: &Belongings, now: Timestamp, clearing: &mut Clearing) {
    let layout = &belongings.layout;
    // A config that was not read might be one of them.
    let is_read = |entry: &Entry| !entry.key.ends_with(".cfg") || belongings.heads.contains_key(&entry.key);
    if !belongings.backups.iter().all(is_read) {
        return;
    }
    for entry in &belongings.tidemark {
        let Some(uid) = entry.key.strip_prefix(&layout.tidemark()).and_then(|k| k.strip_suffix("/deleted")) else {
            continue;
        };
        let folder = layout.journals(uid);
        let has_more = entry.key != layout.tombstone(uid)
            || belongings.tidemark.iter().any(|e| e.key != entry.key && e.key.starts_with(&folder))
            || belongings.heads.values().any(|head| head.label(label::BACKUP_UID) == Some(uid));
        let is_old = entry.meta.modified.is_some_and(|modified| is_past(modified, limits::TOMBSTONE_TTL, now));
        if is_old && !has_more {
            let why = "no request is delayed for so long".to_owned();
            clearing.clear.push(Clear { what: Remnant::Tombstone, keys: vec![entry.key.clone()], why });
        }
    }
}

/// A lock that was not refreshed for so long is nobody's, whatever it says, and warns of nothing that is still under way.
fn clear_locks(belongings: &Belongings, living: &Living, now: Timestamp, clearing: &mut Clearing) {
    let alive: BTreeSet<String> = living.attempts.iter().map(|attempt| belongings.layout.lock(attempt)).collect();
    for entry in belongings.locks.iter().filter(|entry| !alive.contains(&entry.key)) {
        if entry.meta.modified.is_some_and(|modified| is_past(modified, limits::YOUNG, now)) {
            let why = "its holder has been dead for long".to_owned();
            clearing.clear.push(Clear { what: Remnant::Lock, keys: vec![entry.key.clone()], why });
        }
    }
}

/// A temporary file of so long ago is a dead writer's, whatever it was to become.
fn clear_unfinished(belongings: &Belongings, now: Timestamp, clearing: &mut Clearing) {
    let folder = belongings.layout.unfinished();
    let is_old =
        |entry: &&Entry| entry.meta.modified.is_some_and(|modified| is_past(modified, limits::UNFINISHED_TTL, now));
    let ours =
        belongings.tidemark.iter().filter(|e| e.key.starts_with(&folder) && name_of_unfinished(&e.key).is_some());
    let keys: Vec<String> = ours.filter(is_old).map(|entry| entry.key.clone()).collect();
    if !keys.is_empty() {
        let why = "it never got its name: its writer died".to_owned();
        clearing.clear.push(Clear { what: Remnant::Unfinished, keys, why });
    }
}

/// Is `time` at least `age` ago? What was written in the future is not.
pub(super) fn is_past(time: Timestamp, age: std::time::Duration, now: Timestamp) -> bool {
    let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
    now.duration_since(time) >= age
}

fn minutes_left(time: Timestamp, age: std::time::Duration, now: Timestamp) -> i64 {
    let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
    age.saturating_sub(now.duration_since(time)).as_mins().saturating_add(1)
}

impl Clearing {
    /// Is there a record that only a sweep may delete?
    pub fn needs_sweep(&self) -> bool {
        self.clear.iter().any(|clear| clear.what.is_record())
    }

    /// Do markers or records go? Then what a plan saw is no longer so.
    pub fn has_configs(&self) -> bool {
        self.clear.iter().any(|clear| clear.what == Remnant::Marker || clear.what.is_record())
    }

    /// The keys that go, in the order in which they go, batch by batch.
    pub fn batches(&self) -> Vec<Vec<String>> {
        let of =
            |what| self.clear.iter().filter(move |c| c.what == what).flat_map(|c| c.keys.iter().cloned()).collect();
        use Remnant::*;
        let order = [LateRecord, SecondRecord, Marker, Journal, Tombstone, Lock, Unfinished];
        order.into_iter().map(of).filter(|keys: &Vec<String>| !keys.is_empty()).collect()
    }
}

/// Deletes what the plan names, in its order, and answers how many keys went; the first that stays is the error. Records
/// are left to a sweep, which takes the lock and makes `volume.cfg` forget them first.
pub async fn apply(client: &Client, clearing: &Clearing) -> Result<u64, StoreError> {
    let others = clearing.clear.iter().filter(|clear| !clear.what.is_record()).cloned();
    let clearing = Clearing { clear: others.collect(), keep: Vec::new() };
    let mut cleared = 0;
    for keys in clearing.batches() {
        client.delete(&keys).await?;
        cleared += keys.len() as u64;
    }
    Ok(cleared)
}

#[cfg(test)]
mod tests;
