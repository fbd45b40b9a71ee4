//! What a verification finds, as values: what it is, on which object, what was seen, which backups suffer, and the cure.
//!
//! Findings are counted without limit and listed up to one. A block's finding is counted once for each place (offset of a
//! record) that cannot be restored, and listed once with its first places.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::model::{BackupName, limits};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident: $severity:ident, $cure:literal;)+) => {
        /// A closed list, worst first.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        pub enum FindingKind { $($(#[$doc])* $kind),+ }

        impl FindingKind {
            pub const ALL: &'static [FindingKind] = &[$(FindingKind::$kind),+];

            pub const fn as_str(self) -> &'static str {
                match self { $(FindingKind::$kind => stringify!($kind)),+ }
            }

            pub const fn severity(self) -> Severity {
                match self { $(FindingKind::$kind => Severity::$severity),+ }
            }

            /// What a person does about it.
            pub const fn cure(self) -> &'static str {
                match self { $(FindingKind::$kind => $cure),+ }
            }
        }
    };
}

kinds! {
    /// A backup that is named somewhere is not there.
    RecordMissing: Damage, "nothing brings it back but a copy of the object; take a new backup";
    /// The record is no record, or cannot be read to its end.
    RecordUnreadable: Damage, "put a copy of the object back, or take a new backup and then delete the object: while it is there no deletion frees blocks of this volume";
    /// It can be read, and what it says cannot be.
    RecordInconsistent: Damage, "put a copy of the object back, or take a new backup and then delete the object";
    BlockMissing: Damage, "`tidemark heal` with a source that still has these bytes, or a new backup while the volume has them";
    BlockSizeImplausible: Damage, "`tidemark heal` with a source that still has these bytes, or a new backup while the volume has them";
    /// It was read, and is not the block it is named after.
    BlockCorrupt: Damage, "`tidemark heal` with a source that still has these bytes, or a backup with mode Full while the volume has them";
    /// In an archive class.
    BlockUnreadable: Damage, "bring the object back from the archive class, and take lifecycle rules off this prefix";
    VolumeConfigMissing: Obstacle, "put a copy of the object back: without it no backup begins and Longhorn restores nothing; `tidemark restore` does not need it";
    VolumeConfigDamaged: Obstacle, "put a copy of the object back: as it is no backup begins or Longhorn restores wrongly; `tidemark restore` does not need it";
    LockUnreadable: Obstacle, "delete the object if no backup, restore or deletion of this volume is running: until then no backup begins";
    MarkerDamaged: Obstacle, "delete the object if no backup of this volume is running: until then no deletion frees blocks of this volume";
    /// An attempt has a journal and no marker that protects its blocks.
    MarkerMissing: Notice, "none needed: an attempt that runs ends by itself, and the next one sends what is missing";
    JournalDamaged: Notice, "none needed: the next attempt reads these blocks again";
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Severity {
    /// A backup cannot be restored whole.
    Damage,
    /// Every backup can be restored, but the next one, a deletion or Longhorn is held up.
    Obstacle,
    /// It costs nothing but work.
    Notice,
}

impl Severity {
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Damage => "Damage",
            Severity::Obstacle => "Obstacle",
            Severity::Notice => "Notice",
        }
    }
}

/// One object that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub kind: FindingKind,
    pub object: String,
    pub seen: String,
    /// What needs it: at most `limits::FINDING_PLACES_MAX` of `places_count`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<Place>,
    pub places_count: u64,
}

/// A block of a backup.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    pub backup: BackupName,
    /// Bytes from the start of the volume.
    pub offset: u64,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: {}", self.kind.as_str(), self.object, self.seen)?;
        for (i, place) in self.places.iter().enumerate() {
            let joint = if i == 0 { "; needed by" } else { "," };
            write!(f, "{joint} {} at offset {}", place.backup, place.offset)?;
        }
        match self.places_count.saturating_sub(self.places.len() as u64) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// What was found so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    counts: BTreeMap<FindingKind, u64>,
    listed: BTreeMap<(FindingKind, String), Finding>,
}

impl Findings {
    /// One more. The same kind on the same object is listed once.
    pub fn add(&mut self, kind: FindingKind, object: &str, seen: impl std::fmt::Display, place: Option<Place>) {
        *self.counts.entry(kind).or_default() += 1;
        let is_full = self.listed.len() >= limits::FINDINGS_LISTED_MAX;
        let key = (kind, object.to_owned());
        if is_full && !self.listed.contains_key(&key) {
            return;
        }
        let listed = self.listed.entry(key).or_insert_with(|| Finding {
            kind,
            object: object.to_owned(),
            seen: seen.to_string(),
            places: Vec::new(),
            places_count: 0,
        });
        listed.extend(place, 1);
    }

    /// Takes over what was found elsewhere.
    pub fn merge(&mut self, other: Findings) {
        for (kind, count) in other.counts {
            *self.counts.entry(kind).or_default() += count;
        }
        for (key, finding) in other.listed {
            let is_full = self.listed.len() >= limits::FINDINGS_LISTED_MAX;
            match self.listed.get_mut(&key) {
                Some(listed) => {
                    let more = finding.places_count;
                    let first = finding.places.into_iter();
                    let before = listed.places_count;
                    first.for_each(|place| listed.extend(Some(place), 0));
                    listed.places_count = before + more;
                }
                None if is_full => {}
                None => _ = self.listed.insert(key, finding),
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// How many of a kind.
    pub fn count(&self, kind: FindingKind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// How many of a severity.
    pub fn of_severity(&self, severity: Severity) -> u64 {
        self.counts.iter().filter(|(kind, _)| kind.severity() == severity).map(|(_, count)| count).sum()
    }

    /// Is there anything a person must see to?
    pub fn is_damaged(&self) -> bool {
        self.of_severity(Severity::Damage) + self.of_severity(Severity::Obstacle) > 0
    }

    /// Those that are listed, worst first.
    pub fn listed(&self) -> impl Iterator<Item = &Finding> {
        self.listed.values()
    }

    /// Counts by kind, worst first.
    pub fn counts(&self) -> impl Iterator<Item = (FindingKind, u64)> + '_ {
        self.counts.iter().map(|(kind, count)| (*kind, *count))
    }
}

impl Finding {
    fn extend(&mut self, place: Option<Place>, count: u64) {
        let Some(place) = place else { return };
        self.places_count += count;
        if self.places.len() < limits::FINDING_PLACES_MAX {
            self.places.push(place);
        }
    }
}

impl Serialize for Findings {
    /// The counts; the list is told one by one.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.counts.iter().map(|(kind, count)| (kind.as_str(), count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(offset: u64) -> Option<Place> {
        Some(Place { backup: "backup-1".parse().expect("valid"), offset })
    }

    #[test]
    fn law_9_findings_are_counted_without_limit_and_listed_up_to_one() {
        let mut found = Findings::default();
        let many = limits::FINDINGS_LISTED_MAX as u64 + 50;
        for i in 0..many {
            found.add(FindingKind::BlockMissing, &format!("block-{i:06}"), "it is gone", place(i));
            found.add(FindingKind::BlockMissing, "block-000000", "it is gone", place(many + i));
        }
        assert_eq!(found.count(FindingKind::BlockMissing), 2 * many);
        assert_eq!(found.listed().count(), limits::FINDINGS_LISTED_MAX);
        let first = found.listed().next().expect("listed");
        assert_eq!((first.places.len(), first.places_count), (limits::FINDING_PLACES_MAX, many + 1));
        assert!(first.to_string().contains(&format!("and {} more", many + 1 - limits::FINDING_PLACES_MAX as u64)));
        let mut twice = found.clone();
        twice.merge(found);
        assert_eq!(twice.count(FindingKind::BlockMissing), 4 * many);
        assert_eq!(twice.listed().count(), limits::FINDINGS_LISTED_MAX);
        assert_eq!(twice.listed().next().map(|f| f.places_count), Some(2 * many + 2));
    }

    #[test]
    fn every_kind_has_a_cure() {
        for kind in FindingKind::ALL {
            assert!(kind.cure().len() > 10 && !kind.cure().ends_with('.'), "{}", kind.as_str());
        }
    }
}
