//! The plan of a sweep: everything that is there, what of it is named, and what may go. A value: making it writes nothing.
//!
//! Order matters: `backups/` is listed first and every record of it is read, and that listing is compared again before
//! each deletion. A record that cannot be read, a config in progress that is not ours or not dead: then the plan names its
//! reasons and no block.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::{
    super::{
        client::Client,
        error::{ErrorKind, StoreError},
        janitor::{self, Belongings, Clear, Clearing, Keep, Remnant, own_marker},
        layout::{VolumeLayout, backup_of_key},
        objects::Entry,
        record::{RecordHead, VolumeConfig, label},
        record_reader::RecordReader,
        remove::Doomed,
        survey,
        tombstone::Tombstones,
    },
    Sweep, SweepPhase, SweepProgress,
    blocks::{Listed, Sum, scratch_failed},
};
use crate::model::{BackupName, FailureReason, VolumeName};

/// What was looked at, and what may go.
#[derive(Debug)]
pub struct Plan {
    pub volume: VolumeName,
    /// The store's time when it was made.
    pub at: Timestamp,
    /// Records that stay, by key.
    pub(super) records: BTreeMap<String, RecordHead>,
    /// Configs that are to go because somebody asked: records, and markers of the same Backup.
    pub(super) doomed: Vec<Doom>,
    /// What the dead left.
    pub clearing: Clearing,
    /// Why no block may be deleted; empty if they may.
    pub refusals: Vec<StoreError>,
    pub(super) backups: Vec<Entry>,
    pub(super) tidemark: Vec<Entry>,
    /// `volume.cfg`, if there is one.
    pub(super) config: Option<VolumeConfig>,
    pub(super) listed: Listed,
    pub(super) sum: Sum,
    missing: u64,
    missing_first: Option<String>,
}

/// A config that is to go.
#[derive(Debug, Clone)]
pub(super) struct Doom {
    pub(super) key: String,
    pub(super) is_marker: bool,
}

/// The plan in numbers and reasons, to be printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    pub volume: VolumeName,
    pub at: Timestamp,
    pub records: u64,
    /// Records that are to go.
    pub records_doomed: Vec<String>,
    pub blocks_listed: u64,
    pub blocks_named: u64,
    /// Named by no record, but too young: a later sweep.
    pub blocks_young: u64,
    /// Named by a record and not there: a finding for `verify`.
    pub blocks_missing: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_missing_first: Option<String>,
    /// Objects below `blocks/` that are no blocks.
    pub strays: u64,
    /// Temporary files of blocks whose writers died long ago: they go too.
    pub unfinished: u64,
    pub blocks_to_delete: u64,
    pub bytes_to_delete: u64,
    pub clear: Vec<Clear>,
    pub keep: Vec<Keep>,
    /// Why no block would be deleted.
    pub refusals: Vec<String>,
}

impl Plan {
    /// May blocks be deleted?
    pub fn is_refused(&self) -> bool {
        !self.refusals.is_empty()
    }

    /// Names of the blocks that may go, in order; none if the plan is refused.
    pub fn blocks(&self) -> impl Iterator<Item = Result<crate::model::BlockName, StoreError>> + '_ {
        let candidates = (!self.is_refused()).then(|| self.listed.candidates());
        candidates.into_iter().flatten().map(|placed| placed.map(|p| p.name).map_err(scratch_failed))
    }

    pub fn summary(&self) -> Summary {
        let sum = if self.is_refused() { Sum::default() } else { self.sum };
        Summary {
            volume: self.volume.clone(),
            at: self.at,
            records: self.records.len() as u64,
            records_doomed: self.doomed.iter().filter(|d| !d.is_marker).map(|d| d.key.clone()).collect(),
            blocks_listed: self.listed.count(),
            blocks_named: self.listed.named(),
            blocks_young: self.listed.young(),
            blocks_missing: self.missing,
            block_missing_first: self.missing_first.clone(),
            strays: self.listed.strays,
            unfinished: self.listed.unfinished.len() as u64,
            blocks_to_delete: sum.blocks,
            bytes_to_delete: sum.bytes,
            clear: self.clearing.clear.clone(),
            keep: self.clearing.keep.clone(),
            refusals: self.refusals.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Makes plans for one sweep.
pub(super) struct Planner<'a> {
    pub(super) sweep: &'a Sweep,
    pub(super) layout: &'a VolumeLayout,
    /// What somebody asked to be gone.
    pub(super) doomed: Option<&'a Doomed>,
    pub(super) locks: &'a [Entry],
    pub(super) progress: &'a watch::Sender<SweepProgress>,
}

impl Planner<'_> {
    /// P5.1 to P5.3, at `now` by the store's clock.
    pub(super) async fn plan(&self, now: Timestamp) -> Result<Plan, StoreError> {
        let client = &self.sweep.client;
        self.progress.send_modify(|p| p.phase = SweepPhase::Listing);
        let backups = client.list(&self.layout.backups()).await?;
        let tidemark = client.list(&self.layout.tidemark()).await?;
        let heard = |count| {
            self.progress.send_modify(|p| p.blocks_listed = count);
            self.sweep.check_cancelled()
        };
        let listed = Listed::read(client, self.layout, &self.sweep.scratch, now, heard).await?;
        let total = backups.len() as u64;
        self.progress.send_modify(|p| {
            (p.phase, p.records_total, p.blocks_listed) = (SweepPhase::Reading, total, listed.count());
        });
        let mut read = Read {
            client,
            layout: self.layout,
            doomed: self.doomed,
            tombstones: Tombstones::of(self.layout, &tidemark),
            listed,
            heads: BTreeMap::new(),
            incomplete: BTreeSet::new(),
            gone: Vec::new(),
            refusals: Vec::new(),
            missing: 0,
            missing_first: None,
        };
        for entry in backups.iter().filter(|entry| entry.key.ends_with(".cfg")) {
            self.sweep.check_cancelled()?;
            read.config(entry).await?;
            self.progress.send_modify(|p| p.records_read += 1);
        }
        let config = self.config(&mut read, &backups).await?;
        let plan = self.conclude(read, backups, tidemark, now)?;
        Ok(Plan { config, ..plan })
    }

    /// `volume.cfg`, and what it says about the listing: a store that does not list a record that is there lists nothing
    /// that can be believed, and a volume without config and records may be a mount that went away.
    async fn config(&self, read: &mut Read<'_>, backups: &[Entry]) -> Result<Option<VolumeConfig>, StoreError> {
        let (client, key) = (&self.sweep.client, self.layout.config());
        let config = match survey::read_config(client, self.layout).await {
            Ok(config) => config,
            Err(error) if error.kind == ErrorKind::Damaged => {
                read.refusals.push(error);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let has_records = backups.iter().any(|entry| entry.key.ends_with(".cfg"));
        match &config {
            None if !has_records && read.listed.count() > 0 => {
                let seen = format!(
                    "it is missing, and so is every record, yet {} blocks are there: restore it, or remove the volume's \
                     folder by hand",
                    read.listed.count()
                );
                let missing = ErrorKind::Refused(FailureReason::VolumeConfigMissing);
                read.refusals.push(StoreError::new(missing, "GET", key, seen));
            }
            Some(VolumeConfig { last_backup_name, .. }) => {
                let last = last_backup_name.parse().ok().map(|name| self.layout.backup(&name));
                let unlisted = last.filter(|last| !backups.iter().any(|entry| entry.key == *last));
                if let Some(last) = unlisted
                    && client.head(&last).await?.is_some()
                {
                    let seen = format!("{last} is there and is not listed: this listing proves nothing");
                    return Err(StoreError::new(ErrorKind::Unavailable, "LIST", self.layout.backups(), seen));
                }
            }
            None => {}
        }
        Ok(config)
    }

    /// Below the folder of the Backup that somebody asked to be gone.
    pub(super) fn is_doomed_journal(&self, key: &str) -> bool {
        matches!(self.doomed, Some(Doomed::Backup(uid)) if key.starts_with(&self.layout.journals(uid)))
    }

    fn conclude(
        &self,
        read: Read<'_>,
        backups: Vec<Entry>,
        tidemark: Vec<Entry>,
        now: Timestamp,
    ) -> Result<Plan, StoreError> {
        let mut refusals = read.refusals;
        let is_gone = |key: &str| read.gone.iter().any(|doom| doom.key == key);
        let belongings = Belongings {
            layout: self.layout.clone(),
            backups,
            heads: read.heads,
            incomplete: read.incomplete,
            tidemark,
            locks: self.locks.to_vec(),
        };
        let mut clearing = janitor::plan(&belongings, &self.sweep.living, now);
        // What is doomed goes anyway, and by another hand.
        clearing.clear.retain(|clear| !clear.keys.iter().all(|key| is_gone(key) || self.is_doomed_journal(key)));
        clearing.keep.retain(|keep| !is_gone(&keep.key));
        let kept = clearing.keep.iter().filter(|keep| keep.what == Remnant::Marker);
        refusals.extend(kept.map(|keep| StoreError::new(ErrorKind::LockHeld, "SWEEP", &keep.key, &keep.why)));
        let sum = read.listed.sum()?;
        let Belongings { backups, heads, tidemark, .. } = belongings;
        let is_late = |key: &str| clearing.clear.iter().any(|c| c.keys.iter().any(|k| k == key));
        let stays = |key: &String, head: &RecordHead| !head.is_in_progress() && !is_gone(key) && !is_late(key);
        Ok(Plan {
            volume: self.sweep.volume.clone(),
            at: now,
            records: heads.into_iter().filter(|(key, head)| stays(key, head)).collect(),
            doomed: read.gone,
            clearing,
            refusals,
            backups,
            tidemark,
            config: None,
            listed: read.listed,
            sum,
            missing: read.missing,
            missing_first: read.missing_first,
        })
    }
}

/// What was read of `backups/`.
struct Read<'a> {
    client: &'a Client,
    layout: &'a VolumeLayout,
    doomed: Option<&'a Doomed>,
    tombstones: Tombstones,
    listed: Listed,
    heads: BTreeMap<String, RecordHead>,
    incomplete: BTreeSet<String>,
    gone: Vec<Doom>,
    refusals: Vec<StoreError>,
    missing: u64,
    missing_first: Option<String>,
}

impl Read<'_> {
    /// Reads one config to its end. What cannot be read refuses the plan; a store that fails ends it.
    async fn config(&mut self, entry: &Entry) -> Result<(), StoreError> {
        // A record that was named is doomed whatever it holds, were it unreadable.
        if let Some(Doomed::Record(name)) = self.doomed
            && entry.key == self.layout.backup(name)
        {
            self.gone.push(Doom { key: entry.key.clone(), is_marker: false });
            return Ok(());
        }
        match self.stream(entry).await {
            Ok(head) => {
                self.judge(entry, &head);
                self.heads.insert(entry.key.clone(), head);
                Ok(())
            }
            Err(error) if error.kind == ErrorKind::Damaged => {
                let cure = "while it is there no block can be deleted, for nobody knows which of them it needs: restore \
                            the object, or delete the backup by its name";
                self.refusals.push(StoreError { seen: format!("{}; {cure}", error.seen), ..error });
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn stream(&mut self, entry: &Entry) -> Result<RecordHead, StoreError> {
        let mut reader = RecordReader::open_listed(self.client.clone(), entry).await?;
        let counts = !self.is_doomed(reader.head()) && !self.tombstones.covers(reader.head());
        while let Some(block) = reader.next().await? {
            if counts && !self.listed.name(&block.block_checksum)? {
                self.missing += 1;
                self.incomplete.insert(entry.key.clone());
                self.missing_first.get_or_insert_with(|| self.layout.block(&block.block_checksum));
            }
        }
        let head = reader.head();
        let named = backup_of_key(&entry.key);
        if head.volume_name.is_empty() || named.is_some_and(|name| name.as_str() != head.name) {
            let seen = format!("it says that it is backup {:?} of volume {:?}", head.name, head.volume_name);
            return Err(StoreError::new(ErrorKind::Damaged, "GET", &entry.key, seen));
        }
        Ok(head.clone())
    }

    fn is_doomed(&self, head: &RecordHead) -> bool {
        matches!(self.doomed, Some(Doomed::Backup(uid)) if head.label(label::BACKUP_UID) == Some(uid))
    }

    fn judge(&mut self, entry: &Entry, head: &RecordHead) {
        let marker = own_marker(self.layout, &entry.key, head);
        if self.is_doomed(head) && (marker.is_some() || !head.is_in_progress()) {
            self.gone.push(Doom { key: entry.key.clone(), is_marker: marker.is_some() });
        } else if head.is_in_progress() && marker.is_none() {
            let seen = "another program's backup is in progress there, or died: no block can be deleted before it has \
                        ended or its owner has deleted it";
            self.refusals.push(StoreError::new(ErrorKind::LockHeld, "SWEEP", &entry.key, seen));
        }
    }
}

/// The newest record by the time of its snapshot, for `volume.cfg`.
pub(super) fn newest(records: &BTreeMap<String, RecordHead>) -> Option<&RecordHead> {
    records.values().max_by_key(|head| head.snapshot_created_at.parse::<Timestamp>().unwrap_or(Timestamp::MIN))
}

/// A person asked for a stop.
pub(super) fn cancelled(volume: &VolumeName) -> StoreError {
    let seen = "cancelled: nothing is half done, run it again";
    StoreError::new(ErrorKind::Refused(FailureReason::Cancelled), "SWEEP", volume, seen)
}

/// The names of records among doomed keys.
pub(super) fn names(doomed: &[Doom]) -> Vec<BackupName> {
    doomed.iter().filter(|doom| !doom.is_marker).filter_map(|doom| backup_of_key(&doom.key)).collect()
}
