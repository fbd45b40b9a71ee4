//! Tombstones: `V/tidemark/<UID>/deleted` says that a Backup was deleted, so that a record or marker of it which arrives
//! late (a paused process, a buffering proxy) is neither offered nor built upon, and goes with the next sweep.

use std::collections::BTreeSet;

use bytes::Bytes;
use jiff::Timestamp;

use super::{
    client::Client,
    error::StoreError,
    layout::VolumeLayout,
    objects::{Body, Entry, PutCondition},
    record::{RecordHead, label, rfc3339},
};

/// The Backups of a volume that were deleted, by uid.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tombstones(BTreeSet<String>);

impl Tombstones {
    /// One LIST of `V/tidemark/`.
    pub async fn read(client: &Client, layout: &VolumeLayout) -> Result<Self, StoreError> {
        Ok(Self::of(layout, &client.list(&layout.tidemark()).await?))
    }

    /// Those of a listing of `V/tidemark/`. The key alone counts: whatever was written there, somebody deleted.
    pub fn of(layout: &VolumeLayout, tidemark: &[Entry]) -> Self {
        let folder = layout.tidemark();
        let uid = |entry: &Entry| {
            let (uid, rest) = entry.key.strip_prefix(&folder)?.split_once('/')?;
            (rest == "deleted").then(|| uid.to_owned())
        };
        Self(tidemark.iter().filter_map(uid).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn has(&self, backup_uid: &str) -> bool {
        self.0.contains(backup_uid)
    }

    /// Is this a record or marker of a deleted Backup? Then it is as good as gone: it is not listed, restored, adopted or
    /// built upon.
    pub fn covers(&self, head: &RecordHead) -> bool {
        head.label(label::BACKUP_UID).is_some_and(|uid| self.has(uid))
    }

    pub fn insert(&mut self, backup_uid: &str) {
        self.0.insert(backup_uid.to_owned());
    }
}

/// Is this one record, or marker, of a Backup that was deleted? One HEAD, if it is ours.
pub async fn covers(client: &Client, layout: &VolumeLayout, head: &RecordHead) -> Result<bool, StoreError> {
    match head.label(label::BACKUP_UID) {
        None => Ok(false),
        Some(uid) => Ok(client.head(&layout.tombstone(uid)).await?.is_some()),
    }
}

/// Writes a tombstone. One that is there already is as good: whoever wrote it died before the end.
pub(super) async fn put(
    client: &Client,
    layout: &VolumeLayout,
    backup_uid: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let text = serde_json::json!({"backupUid": backup_uid, "deletedAt": rfc3339(now)}).to_string();
    client.put(&layout.tombstone(backup_uid), Body::Bytes(Bytes::from(text)), PutCondition::Always).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::objects::Meta;

    #[test]
    fn only_the_key_of_a_tombstone_makes_one() {
        let layout = VolumeLayout::new(&"pvc-demo".parse().expect("valid"));
        let entry = |key: String| Entry { key, meta: Meta { size: 1, etag: None, modified: None }, is_archived: false };
        let attempt = crate::model::AttemptId::new(1, [1; 10]);
        let listed = [
            entry(layout.tombstone("gone")),
            entry(layout.attempt("alive", &attempt)),
            entry(format!("{}alive/x/deleted", layout.tidemark())),
        ];
        let tombstones = Tombstones::of(&layout, &listed);
        assert!(tombstones.has("gone") && !tombstones.has("alive"), "{tombstones:?}");
        let labels = |uid: &str| Some([(label::BACKUP_UID.to_owned(), uid.to_owned())].into());
        assert!(tombstones.covers(&RecordHead { labels: labels("gone"), ..RecordHead::default() }));
        assert!(!tombstones.covers(&RecordHead { labels: labels("alive"), ..RecordHead::default() }));
        assert!(!tombstones.covers(&RecordHead::default()), "Longhorn's own");
    }
}
