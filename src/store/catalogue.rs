//! What a target holds: its volumes, and what each record and marker says of itself in its first bytes.
//!
//! Folders are asked for, never keys: a target may hold millions of blocks. Three levels of folders, one LIST of
//! `backups/` for each volume, and one ranged GET for each record that was not read before. A [`Catalogue`] remembers
//! what it read by key, size, ETag and modification time, so a pass over an unchanged target reads no record at all.
//!
//! A listing that failed is an error and ends the pass: what it would have shown is unknown, not absent (law 7). A record
//! that was deleted between its listing and its reading is no row; one that is damaged is a row that says so.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{StreamExt, stream};
use sha2::{Digest, Sha256};

use super::{
    client::Client,
    error::{ErrorKind, StoreError},
    layout::{VOLUMES, VolumeLayout, backup_of_key},
    objects::{Entry, Meta},
    record::{RecordHead, RecordId, label},
    survey::read_head,
    tombstone::Tombstones,
};
use crate::model::VolumeName;

/// Requests at once.
const CONCURRENCY: usize = 16;

/// One record or marker, as far as it could be read.
#[derive(Debug, Clone)]
pub struct Row {
    pub id: RecordId,
    pub meta: Meta,
    pub head: Result<RecordHead, StoreError>,
}

/// One record or marker, in the few words a catalogue keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub state: RecordState,
    /// Who made it; absent: Longhorn, or a marker, which names no owner.
    pub owner: Option<RecordOwner>,
    /// Uid of the Backup it belongs to, if we wrote it.
    pub backup_uid: Option<Box<str>>,
    /// Name of that Backup object.
    pub backup_object: Option<Box<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordState {
    Complete,
    InProgress,
    /// What is wrong with it.
    Damaged(Box<str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordOwner {
    pub cluster: Box<str>,
    pub namespace: Box<str>,
}

/// One record of a volume, with its facts.
#[derive(Debug, Clone)]
pub struct Known {
    pub id: RecordId,
    pub facts: Arc<Facts>,
}

impl Facts {
    fn of(head: &Result<RecordHead, StoreError>) -> Self {
        let head = match head {
            Ok(head) => head,
            Err(error) => {
                let state = RecordState::Damaged(error.to_string().into());
                return Self { state, owner: None, backup_uid: None, backup_object: None };
            }
        };
        let text = |key: &str| head.label(key).filter(|t| !t.is_empty()).map(Box::from);
        let owner = match (text(label::CLUSTER), text(label::NAMESPACE)) {
            (Some(cluster), namespace) => Some(RecordOwner { cluster, namespace: namespace.unwrap_or_default() }),
            (None, _) => None,
        };
        let state = if head.is_in_progress() { RecordState::InProgress } else { RecordState::Complete };
        Self { state, owner, backup_uid: text(label::BACKUP_UID), backup_object: text(label::BACKUP) }
    }
}

/// Every volume of the target, in order. A folder whose name can be no volume's is passed over.
pub async fn volumes(client: &Client) -> Result<Vec<VolumeName>, StoreError> {
    let mut folders = vec![VOLUMES.to_owned()];
    for _ in ["first two digits", "next two", "volume"] {
        let below = stream::iter(folders).map(|folder| async move { client.folders(&folder).await });
        let mut next = Vec::new();
        let mut below = below.buffered(CONCURRENCY);
        while let Some(found) = below.next().await {
            next.extend(found?);
        }
        folders = next;
    }
    let name = |folder: &String| folder.trim_end_matches('/').rsplit('/').next().and_then(|name| name.parse().ok());
    let mut volumes: Vec<VolumeName> = folders.iter().filter_map(name).collect();
    volumes.sort();
    Ok(volumes)
}

/// Every record and marker of a volume with its whole head, oldest first. What was deleted and arrived late is as good as
/// gone.
pub async fn rows(client: &Client, volume: &VolumeName) -> Result<Vec<Row>, StoreError> {
    let layout = VolumeLayout::new(volume);
    let tombstones = Tombstones::read(client, &layout).await?;
    let entries = records(client, volume).await?;
    let read = stream::iter(entries).map(|(id, entry)| read(client, &layout, id, entry));
    let rows: Vec<Result<Option<Row>, StoreError>> = read.buffered(CONCURRENCY).collect().await;
    let mut rows: Vec<Row> = rows.into_iter().filter_map(Result::transpose).collect::<Result<_, _>>()?;
    rows.retain(|row| !row.head.as_ref().is_ok_and(|head| tombstones.covers(head)));
    rows.sort_by_key(|row| row.head.as_ref().map(time_of).unwrap_or_default().to_owned());
    Ok(rows)
}

/// When the data was as the record says, or failing that when the record was made.
pub fn time_of(head: &RecordHead) -> &str {
    if head.snapshot_created_at.is_empty() { &head.created_time } else { &head.snapshot_created_at }
}

async fn records(client: &Client, volume: &VolumeName) -> Result<Vec<(RecordId, Entry)>, StoreError> {
    let entries = client.list(&VolumeLayout::new(volume).backups()).await?;
    let id = |entry: Entry| {
        let backup = backup_of_key(&entry.key)?;
        Some((RecordId { volume: volume.clone(), backup }, entry))
    };
    Ok(entries.into_iter().filter_map(id).collect())
}

async fn read(client: &Client, layout: &VolumeLayout, id: RecordId, entry: Entry) -> Result<Option<Row>, StoreError> {
    let key = layout.backup(&id.backup);
    let head = if entry.is_archived {
        let seen = "it is in an archive storage class and cannot be read: restore the object in the bucket";
        Err(StoreError::new(ErrorKind::Damaged, "LIST", key, seen))
    } else {
        match read_head(client, &key).await {
            Ok(None) => return Ok(None),
            Ok(Some(head)) => Ok(head),
            Err(error) if error.kind == ErrorKind::Damaged => Err(error),
            Err(error) => return Err(error),
        }
    };
    Ok(Some(Row { id, meta: entry.meta, head }))
}

/// What was read of a target's records, by what does not change unless they do.
///
/// A pass is: each volume's [`Catalogue::volume`], then [`Catalogue::end_pass`], which forgets what the pass did not show.
/// Forgetting costs a GET should it come back; nothing else depends on it.
pub struct Catalogue {
    memory: Mutex<Memory>,
    remembered_max: usize,
}

/// 16 bytes of SHA-256: two records of one target in 2⁶⁴ share it.
type Fingerprint = [u8; 16];

#[derive(Default)]
struct Memory {
    known: HashMap<Fingerprint, Arc<Facts>>,
    shown: HashMap<Fingerprint, Arc<Facts>>,
}

impl Catalogue {
    /// Remembers at most so many records; those beyond are read again in each pass.
    pub fn new(remembered_max: usize) -> Self {
        Self { memory: Mutex::default(), remembered_max }
    }

    /// Every record and marker of a volume, read only if it was not read before.
    pub async fn volume(&self, client: &Client, volume: &VolumeName) -> Result<Vec<Known>, StoreError> {
        let layout = VolumeLayout::new(volume);
        let entries = records(client, volume).await?;
        let known = stream::iter(entries).map(|(id, entry)| self.known(client, &layout, id, entry));
        let known: Vec<Result<Option<Known>, StoreError>> = known.buffered(CONCURRENCY).collect().await;
        known.into_iter().filter_map(Result::transpose).collect()
    }

    async fn known(
        &self,
        client: &Client,
        layout: &VolumeLayout,
        id: RecordId,
        entry: Entry,
    ) -> Result<Option<Known>, StoreError> {
        let fingerprint = fingerprint(&entry);
        let remembered = fingerprint.and_then(|f| self.memory().recall(&f));
        if let Some(facts) = remembered {
            return Ok(Some(Known { id, facts }));
        }
        let Some(row) = read(client, layout, id, entry).await? else { return Ok(None) };
        let facts = Arc::new(Facts::of(&row.head));
        if let Some(fingerprint) = fingerprint {
            let mut memory = self.memory();
            if memory.shown.len() < self.remembered_max {
                memory.shown.insert(fingerprint, facts.clone());
            }
        }
        Ok(Some(Known { id: row.id, facts }))
    }

    /// The pass showed everything there is: what it did not show is forgotten.
    pub fn end_pass(&self) {
        let mut memory = self.memory();
        memory.known = std::mem::take(&mut memory.shown);
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn recall(&mut self, fingerprint: &Fingerprint) -> Option<Arc<Facts>> {
        if let Some(facts) = self.known.remove(fingerprint) {
            self.shown.insert(*fingerprint, facts);
        }
        self.shown.get(fingerprint).cloned()
    }
}

/// None for a server that names neither ETag nor time: then nothing tells an old object from a new one.
fn fingerprint(entry: &Entry) -> Option<Fingerprint> {
    let (etag, modified) = (entry.meta.etag.as_ref()?, entry.meta.modified?);
    let text = [entry.key.as_bytes(), b"\0", etag.as_bytes(), b"\0"];
    let mut digest = Sha256::new();
    text.iter().for_each(|part| digest.update(part));
    digest.update(entry.meta.size.to_be_bytes());
    digest.update(modified.as_nanosecond().to_be_bytes());
    let mut fingerprint = [0; 16];
    fingerprint.copy_from_slice(&digest.finalize()[..16]);
    Some(fingerprint)
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::*;
    use crate::store::{directory::Directory, objects::Objects};

    fn client(root: &Path) -> Client {
        let objects: Arc<dyn Objects> = Arc::new(Directory::open(root).expect("it was just made"));
        Client::new(objects, Duration::from_secs(5), Duration::from_secs(60))
    }

    fn write(root: &Path, volume: &str, name: &str, head: &RecordHead) {
        let layout = VolumeLayout::new(&volume.parse().expect("a volume name"));
        let path = root.join(layout.backup(&name.parse().expect("a backup name")));
        std::fs::create_dir_all(path.parent().expect("below backups/")).expect("our directory");
        std::fs::write(path, head.encode_marker()).expect("our directory");
    }

    fn head(cluster: Option<&str>, created: &str) -> RecordHead {
        let labels = cluster.map(|cluster| {
            let labels = [(label::CLUSTER, cluster), (label::NAMESPACE, "shop"), (label::BACKUP_UID, "u1")];
            labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        });
        RecordHead { name: "b".into(), created_time: created.into(), labels, ..RecordHead::default() }
    }

    async fn pass(catalogue: &Catalogue, client: &Client) -> Result<Vec<Known>, StoreError> {
        let mut all = Vec::new();
        for volume in volumes(client).await? {
            all.extend(catalogue.volume(client, &volume).await?);
        }
        catalogue.end_pass();
        Ok(all)
    }

    #[tokio::test]
    async fn an_unchanged_record_is_read_once_and_a_changed_one_again() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let (root, done) = (directory.path(), "2026-10-01T10:00:00Z");
        write(root, "pvc-1", "backup-1", &head(Some("c1"), done));
        write(root, "pvc-1", "tidemark-1", &head(None, ""));
        write(root, "pvc-2", "backup-2", &head(None, done));
        let (client, catalogue) = (client(root), Catalogue::new(100));
        let first = pass(&catalogue, &client).await.expect("a sound store");
        let states: Vec<_> = first.iter().map(|k| (k.id.backup.to_string(), k.facts.state.clone())).collect();
        let expected = [
            ("backup-1", RecordState::Complete),
            ("tidemark-1", RecordState::InProgress),
            ("backup-2", RecordState::Complete),
        ];
        assert_eq!(states, expected.map(|(name, state)| (name.to_owned(), state)));
        let owner = RecordOwner { cluster: "c1".into(), namespace: "shop".into() };
        assert_eq!((&first[0].facts.owner, &first[2].facts.owner), (&Some(owner), &None));
        assert_eq!(client.requests().get, 3);
        let second = pass(&catalogue, &client).await.expect("a sound store");
        assert_eq!((second.len(), client.requests().get), (3, 3), "nothing is read twice");
        write(root, "pvc-2", "backup-2", &head(Some("c2"), done));
        let third = pass(&catalogue, &client).await.expect("a sound store");
        assert_eq!((third[2].facts.owner.is_some(), client.requests().get), (true, 4), "another object: read again");
    }

    #[tokio::test]
    async fn law_9_what_is_remembered_has_a_limit_and_what_is_gone_is_forgotten() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let root = directory.path();
        for n in 0..5 {
            write(root, "pvc-1", &format!("backup-{n}"), &head(Some("c1"), "2026-10-01T10:00:00Z"));
        }
        let (client, catalogue) = (client(root), Catalogue::new(3));
        pass(&catalogue, &client).await.expect("a sound store");
        assert_eq!(catalogue.memory().known.len(), 3);
        assert_eq!(pass(&catalogue, &client).await.expect("a sound store").len(), 5, "the limit hides nothing");
        let layout = VolumeLayout::new(&"pvc-1".parse().expect("a volume name"));
        for n in 0..5 {
            std::fs::remove_file(root.join(layout.backup(&format!("backup-{n}").parse().expect("a name"))))
                .expect("ours");
        }
        assert_eq!(pass(&catalogue, &client).await.expect("a sound store").len(), 0);
        assert_eq!(catalogue.memory().known.len(), 0);
    }

    #[tokio::test]
    async fn law_7_a_damaged_record_is_shown_and_hides_no_other() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let root = directory.path();
        write(root, "pvc-1", "backup-1", &head(Some("c1"), "2026-10-01T10:00:00Z"));
        let layout = VolumeLayout::new(&"pvc-1".parse().expect("a volume name"));
        std::fs::write(root.join(layout.backup(&"backup-0".parse().expect("a name"))), b"{").expect("ours");
        let rows = pass(&Catalogue::new(10), &client(root)).await.expect("one bad record is no bad store");
        assert!(matches!(&rows[0].facts.state, RecordState::Damaged(seen) if seen.contains("backup_backup-0.cfg")));
        assert_eq!(rows[1].facts.state, RecordState::Complete);
    }
}
