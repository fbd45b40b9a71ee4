//! Keys of Longhorn's backupstore and of our journal, below a location's root.
//!
//! `backupstore/volumes/<h0h1>/<h2h3>/<volume>/…` with h = SHA-512 of the volume's name (longhorn backupstore
//! `util.go`, `getVolumePath`); blocks are sharded by their own name.

use crate::model::{AttemptId, BackupName, BlockName, VolumeName};

/// The fixed folder below every target.
pub const BASE: &str = "backupstore/";
/// Below it, every volume.
pub const VOLUMES: &str = "backupstore/volumes/";
/// Below a volume: beside the journals, where Longhorn never looks.
pub const UNFINISHED: &str = "tidemark/unfinished/";

/// The keys of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeLayout {
    root: String,
}

impl VolumeLayout {
    pub fn new(volume: &VolumeName) -> Self {
        let shard = volume.shard();
        Self { root: format!("{VOLUMES}{}/{}/{volume}/", &shard[..2], &shard[2..]) }
    }

    /// The volume's folder, with its slash.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The volume's name.
    pub fn volume(&self) -> &str {
        self.root.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
    }

    pub fn config(&self) -> String {
        format!("{}volume.cfg", self.root)
    }

    pub fn backups(&self) -> String {
        format!("{}backups/", self.root)
    }

    pub fn backup(&self, name: &BackupName) -> String {
        format!("{}backups/backup_{name}.cfg", self.root)
    }

    pub fn blocks(&self) -> String {
        format!("{}blocks/", self.root)
    }

    pub fn block(&self, name: &BlockName) -> String {
        let hex = name.to_string();
        format!("{}blocks/{}/{}/{hex}.blk", self.root, &hex[..2], &hex[2..4])
    }

    pub fn locks(&self) -> String {
        format!("{}locks/", self.root)
    }

    pub fn lock(&self, attempt: &AttemptId) -> String {
        format!("{}locks/lock-{}.lck", self.root, attempt.short())
    }

    /// Journals and tombstones of every Backup.
    pub fn tidemark(&self) -> String {
        format!("{}tidemark/", self.root)
    }

    /// Objects that do not have their names yet, in a store that would show half of them.
    pub fn unfinished(&self) -> String {
        format!("{}{UNFINISHED}", self.root)
    }

    /// Says that a Backup was deleted.
    pub fn tombstone(&self, backup_uid: &str) -> String {
        format!("{}deleted", self.journals(backup_uid))
    }

    /// Journals of all attempts of one Backup.
    pub fn journals(&self, backup_uid: &str) -> String {
        format!("{}tidemark/{backup_uid}/", self.root)
    }

    pub fn attempt(&self, backup_uid: &str, attempt: &AttemptId) -> String {
        format!("{}{attempt}/attempt.json", self.journals(backup_uid))
    }

    pub fn segment(&self, backup_uid: &str, attempt: &AttemptId, sequence: u32) -> String {
        format!("{}{attempt}/{sequence:08}.jnl", self.journals(backup_uid))
    }
}

/// The block a key of a `blocks/` listing names; `None` for anything else that lies there, a block in the wrong folder
/// included: nobody would look for it there.
pub fn block_of_key(key: &str) -> Option<BlockName> {
    let mut parts = key.strip_suffix(".blk")?.rsplit('/');
    let (hex, second, first) = (parts.next()?, parts.next()?, parts.next()?);
    (hex.get(..2) == Some(first) && hex.get(2..4) == Some(second)).then(|| hex.parse().ok())?
}

/// Where an object is written before it gets its name: apart within the volume, so that nobody who lists blocks, configs or
/// locks sees it; what belongs to no volume beside its name.
pub fn unfinished_of_key(key: &str, unique: u64) -> String {
    let below = key.strip_prefix(VOLUMES).unwrap_or_default();
    let root = below.match_indices('/').nth(2).map(|(at, _)| &key[..=VOLUMES.len() + at]);
    match (root, key.rsplit('/').next()) {
        (Some(root), Some(name)) => format!("{root}{UNFINISHED}{name}.tmp.{unique}"),
        _ => format!("{key}.tmp.{unique}"),
    }
}

/// What an object was to be called that was being written to a directory, by us or Longhorn, when its writer died:
/// `<name>.tmp.<digits>`.
pub fn name_of_unfinished(key: &str) -> Option<&str> {
    let (name, unique) = key.rsplit_once(".tmp.")?;
    (!unique.is_empty() && unique.bytes().all(|b| b.is_ascii_digit())).then_some(name)
}

/// A block that was being written beside its name, as Longhorn does it, when its writer died.
pub fn is_unfinished_block(key: &str) -> bool {
    name_of_unfinished(key).is_some_and(|block| block_of_key(block).is_some())
}

/// The backup a key of a `backups/` listing names.
pub fn backup_of_key(key: &str) -> Option<BackupName> {
    let file = key.rsplit('/').next()?;
    file.strip_prefix("backup_")?.strip_suffix(".cfg")?.parse().ok()
}

/// The volume a key below `backupstore/volumes/` belongs to.
pub fn volume_of_key(key: &str) -> Option<VolumeName> {
    key.strip_prefix(VOLUMES)?.split('/').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_longhorns() {
        let layout = VolumeLayout::new(&"pvc-demo".parse().expect("valid"));
        let name = "8353b7391f5ff41abd1f752583ee19f1a61ab196d5ff174287fc22b0c5ef43d5".parse().expect("valid");
        let key = layout.block(&name);
        assert_eq!(
            key,
            "backupstore/volumes/05/86/pvc-demo/blocks/83/53/8353b7391f5ff41abd1f752583ee19f1a61ab196d5ff174287fc22b0c5ef43d5.blk"
        );
        assert_eq!(block_of_key(&key), Some(name));
        let record = layout.backup(&"backup-demo1".parse().expect("valid"));
        assert_eq!(record, "backupstore/volumes/05/86/pvc-demo/backups/backup_backup-demo1.cfg");
        assert_eq!(backup_of_key(&record).map(String::from), Some("backup-demo1".into()));
        assert_eq!(layout.tombstone("uid"), "backupstore/volumes/05/86/pvc-demo/tidemark/uid/deleted");
        assert_eq!(volume_of_key(&record).map(String::from), Some("pvc-demo".into()));
        let unfinished = [format!("{key}.tmp.123"), format!("{key}.tmp.123.tmp.4")];
        assert!(is_unfinished_block(&unfinished[0]));
        for other in [&key, &unfinished[1], "x/blocks/a.tmp.123", &format!("{key}.tmp."), &format!("{key}.tmp.x1")] {
            assert!(!is_unfinished_block(other), "{other}");
        }
        let apart = unfinished_of_key(&key, 7);
        let name = key.rsplit('/').next().expect("a name");
        assert_eq!(apart, format!("{}{name}.tmp.7", layout.unfinished()));
        assert_eq!(name_of_unfinished(&apart), apart.strip_suffix(".tmp.7"));
        assert!(!is_unfinished_block(&apart) && block_of_key(&apart).is_none(), "{apart}");
        assert_eq!(unfinished_of_key(&layout.config(), 7), format!("{}volume.cfg.tmp.7", layout.unfinished()));
        assert_eq!(unfinished_of_key("backupstore/probe-1", 7), "backupstore/probe-1.tmp.7", "of no volume");
        let misplaced = key.replace("/83/53/", "/83/54/");
        for stray in ["x/blocks/a.tmp.123", "x/blocks/00/11/short.blk", "backups/other.cfg", &misplaced] {
            assert!(block_of_key(stray).is_none() && backup_of_key(stray).is_none(), "{stray}");
        }
    }
}
