//! The small objects of a volume: `volume.cfg`, locks, journals and their markers.
//!
//! They come and go while we look: one that was listed and is gone is no finding.

use std::collections::{BTreeMap, BTreeSet};

use super::{Check, FindingKind};
use crate::{
    model::{AttemptId, BackupName, BlockSize, limits},
    store::{
        error::{ErrorKind, StoreError},
        journal::{self, AttemptFile},
        lock::LockBody,
        objects::{Entry, Range},
        record::VolumeConfig,
        survey,
    },
};

impl Check<'_> {
    /// `volume.cfg`, and whether it fits the volume.
    pub(super) async fn check_config(&mut self) -> Result<(), StoreError> {
        let key = self.layout.config();
        match survey::read_config(self.client, &self.layout).await {
            Ok(Some(config)) => {
                if let Err(seen) = fits(&config) {
                    self.add(FindingKind::VolumeConfigDamaged, &key, seen);
                }
                self.config = Some(config);
            }
            Ok(None) => {
                // A first backup writes it before its first block.
                let is_record = |e: &Entry| !e.key.contains(&format!("/backup_{}", BackupName::MARKER));
                let has_records = self.inventory.configs.iter().any(is_record);
                if has_records || self.inventory.blocks() > 0 {
                    self.add(
                        FindingKind::VolumeConfigMissing,
                        &key,
                        "it is not in the store, yet records or blocks are",
                    );
                }
            }
            Err(error) if error.kind == ErrorKind::Damaged => {
                self.add(FindingKind::VolumeConfigDamaged, &key, &error.seen);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The backup that `volume.cfg` names as the last must be there. It may be younger than the listing.
    pub(super) async fn check_last_backup(&mut self, listed: &[Entry]) -> Result<(), StoreError> {
        let Some(config) = &self.config else { return Ok(()) };
        let name = config.last_backup_name.clone();
        if name.is_empty() {
            return Ok(());
        }
        let Ok(last) = name.parse::<BackupName>() else {
            let seen = format!("it names {name:?} as the last backup, which is no backup's name");
            self.add(FindingKind::VolumeConfigDamaged, &self.layout.config(), seen);
            return Ok(());
        };
        let key = self.layout.backup(&last);
        if listed.iter().any(|entry| entry.key == key) || self.is_there(&key).await? {
            return Ok(());
        }
        // Whoever deletes a backup writes volume.cfg afterwards: it may name another one by now.
        let again = survey::read_config(self.client, &self.layout).await?;
        if again.is_some_and(|again| again.last_backup_name == name) {
            self.add(FindingKind::RecordMissing, &key, "volume.cfg names it as the last backup, and it is not there");
        }
        Ok(())
    }

    /// A lock that cannot be read is held (law 7), so it must be told.
    pub(super) async fn check_locks(&mut self) -> Result<(), StoreError> {
        for entry in std::mem::take(&mut self.inventory.locks) {
            let Some(bytes) = self.small(&entry.key).await? else { continue };
            let file = entry.key.rsplit('/').next().and_then(|f| f.strip_suffix(".lck")).unwrap_or_default();
            let seen = match serde_json::from_slice::<LockBody>(&bytes) {
                Ok(body) if body.name == file => continue,
                Ok(body) => format!("it calls itself {:?}: another object was put in its place", body.name),
                Err(error) => format!("it is no lock: {error}"),
            };
            self.add(FindingKind::LockUnreadable, &entry.key, seen);
        }
        Ok(())
    }

    /// Journals of attempts that have not completed: `attempt.json`, segments without a gap, and a marker.
    pub(super) async fn check_journals(&mut self) -> Result<(), StoreError> {
        let mut attempts: BTreeMap<(String, AttemptId), Vec<String>> = BTreeMap::new();
        let root = format!("{}tidemark/", self.layout.root());
        for entry in std::mem::take(&mut self.inventory.journals) {
            let mut parts = entry.key.strip_prefix(&root).unwrap_or_default().splitn(3, '/');
            let (uid, attempt) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            match (attempt.parse::<AttemptId>(), parts.next()) {
                (Ok(attempt), Some(_)) => attempts.entry((uid.to_owned(), attempt)).or_default().push(entry.key),
                // A tombstone, or a stranger.
                _ => self.done.strays += u64::from(attempt != "deleted"),
            }
        }
        let newest: BTreeSet<AttemptId> = attempts
            .keys()
            .fold(BTreeMap::new(), |mut newest: BTreeMap<&String, &AttemptId>, (uid, attempt)| {
                newest.insert(uid, attempt);
                newest
            })
            .into_values()
            .cloned()
            .collect();
        for ((uid, attempt), keys) in attempts {
            self.check_attempt(&attempt, &keys, &self.layout.attempt(&uid, &attempt)).await?;
            if newest.contains(&attempt) {
                self.check_marker(&attempt, &self.layout.attempt(&uid, &attempt)).await?;
            }
        }
        Ok(())
    }

    async fn check_attempt(&mut self, attempt: &AttemptId, keys: &[String], file: &str) -> Result<(), StoreError> {
        let mut expected = 0_u32;
        for key in keys {
            if key == file {
                let Some(bytes) = self.small(key).await? else { return Ok(()) };
                if let Err(error) = serde_json::from_slice::<AttemptFile>(&bytes) {
                    self.add(
                        FindingKind::JournalDamaged,
                        key,
                        format!("it does not say what its journal is about: {error}"),
                    );
                }
                continue;
            }
            let name = key.rsplit('/').next().and_then(|f| f.strip_suffix(".jnl")).unwrap_or_default();
            let Ok(sequence) = name.parse::<u32>() else {
                self.done.strays += 1;
                continue;
            };
            if sequence != expected {
                let seen = format!("segment {expected} before it is not in the store");
                self.add(FindingKind::JournalDamaged, key, seen);
            }
            expected = sequence.saturating_add(1);
            match journal::look_at_segment(self.client, attempt, key).await? {
                journal::Look::Sound { sequence: own } if own == sequence => {}
                journal::Look::Sound { sequence: own } => {
                    self.add(FindingKind::JournalDamaged, key, format!("it calls itself segment {own}"));
                }
                journal::Look::Damaged => {
                    self.add(
                        FindingKind::JournalDamaged,
                        key,
                        "it is no segment of this attempt, or its checksum does not fit",
                    );
                }
                // Its backup has completed meanwhile.
                journal::Look::Gone => return Ok(()),
            }
        }
        Ok(())
    }

    /// The newest attempt of a Backup has a marker as long as it has a journal.
    async fn check_marker(&mut self, attempt: &AttemptId, file: &str) -> Result<(), StoreError> {
        let key = self.layout.backup(&BackupName::of_marker(attempt));
        let is_listed = self.inventory.configs.iter().any(|entry| entry.key == key);
        // Completed meanwhile, or about to write its marker: then nothing is missing.
        if !is_listed && !self.is_there(&key).await? && self.is_there(file).await? && !self.is_there(&key).await? {
            self.add(
                FindingKind::MarkerMissing,
                &key,
                format!("{file} is there, and the marker of that attempt is not"),
            );
        }
        Ok(())
    }

    async fn small(&mut self, key: &str) -> Result<Option<bytes::Bytes>, StoreError> {
        match self.client.get(key, Range::whole(limits::SMALL_OBJECT_BYTES_MAX)).await {
            Ok(fetched) => Ok(fetched.map(|f| f.bytes)),
            // Too large to be one: whoever parses it will say that it is none.
            Err(error) if error.kind == ErrorKind::Damaged => Ok(Some(bytes::Bytes::new())),
            Err(error) => Err(error),
        }
    }
}

/// Does it speak of a size that can be?
fn fits(config: &VolumeConfig) -> Result<(), String> {
    let block = BlockSize::Mi2.bytes();
    match u64::try_from(config.size) {
        Ok(size) if size > 0 && size.is_multiple_of(block) => Ok(()),
        _ => Err(format!("its Size is {}, which is no multiple of {block}", config.size)),
    }
}
