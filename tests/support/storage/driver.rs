//! The storage system behind the driver: volumes and snapshots by handle. A blank volume is a sparse file as large as it
//! was asked for; of a user's volume and of one made from a snapshot only the names are kept (a test says which file is
//! their device).

use std::{collections::BTreeMap, path::PathBuf, sync::Mutex};

use tempfile::TempDir;

use super::super::{locked, scratch};

/// What the driver holds: volumes with the snapshot they were made of, and snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    pub volumes: BTreeMap<String, Option<String>>,
    pub snapshots: Vec<String>,
}

pub(super) struct Driver {
    directory: TempDir,
    held: Mutex<Held>,
    /// Whoever asks again for the volume of a name gets the same one.
    named: Mutex<BTreeMap<String, String>>,
    counter: Mutex<u32>,
    /// Volumes that are gone, with the uid of the object they went with.
    gone: Mutex<BTreeMap<String, String>>,
    faults: Mutex<Vec<String>>,
}

impl Driver {
    pub(super) fn new() -> Self {
        Self {
            directory: scratch("volumes"),
            held: Mutex::default(),
            named: Mutex::default(),
            counter: Mutex::default(),
            gone: Mutex::default(),
            faults: Mutex::default(),
        }
    }

    pub(super) fn held(&self) -> Held {
        locked(&self.held).clone()
    }

    /// A volume of this name: zeros, or what a snapshot has.
    pub(super) fn create(&self, name: &str, bytes: u64, snapshot: Option<&str>) -> String {
        if let Some(handle) = locked(&self.named).get(name) {
            return handle.clone();
        }
        let handle = self.next("vol");
        if snapshot.is_none() {
            let file = std::fs::File::create(self.path(&handle)).expect("the scratch directory is ours");
            file.set_len(bytes).expect("a file with a hole takes no room");
        }
        locked(&self.held).volumes.insert(handle.clone(), snapshot.map(Into::into));
        locked(&self.named).insert(name.to_owned(), handle.clone());
        handle
    }

    /// A volume that somebody else made.
    pub(super) fn adopt(&self, handle: &str) {
        locked(&self.held).volumes.insert(handle.to_owned(), None);
    }

    /// What was asked of it and never should be.
    pub(super) fn faults(&self) -> Vec<String> {
        locked(&self.faults).clone()
    }

    /// Whatever it held is lost, whoever else may name it. Asked again for the same object it does nothing.
    pub(super) fn delete(&self, handle: &str, object: &str) {
        let before = locked(&self.gone).insert(handle.to_owned(), object.to_owned());
        if before.is_some_and(|before| before != object) {
            locked(&self.faults).push(format!("volume {handle} was deleted with two objects"));
        }
        locked(&self.held).volumes.remove(handle);
        locked(&self.named).retain(|_, known| known != handle);
        match std::fs::remove_file(self.path(handle)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("volume {handle}: {error}"),
            // Deleting what is gone is done; a volume without a file had none.
            _ => {}
        }
    }

    pub(super) fn take(&self) -> String {
        let handle = self.next("snap");
        locked(&self.held).snapshots.push(handle.clone());
        handle
    }

    /// Whether it is gone: a snapshot of which a volume lives is kept.
    pub(super) fn delete_snapshot(&self, handle: &str) -> bool {
        let mut held = locked(&self.held);
        if held.volumes.values().any(|source| source.as_deref() == Some(handle)) {
            return false;
        }
        held.snapshots.retain(|known| known != handle);
        true
    }

    pub(super) fn has_snapshot(&self, handle: &str) -> bool {
        locked(&self.held).snapshots.iter().any(|known| known == handle)
    }

    /// The file of a volume that is there and has one.
    pub(super) fn file(&self, handle: &str) -> Option<PathBuf> {
        let is_held = locked(&self.held).volumes.contains_key(handle);
        Some(self.path(handle)).filter(|path| is_held && path.exists())
    }

    fn path(&self, handle: &str) -> PathBuf {
        self.directory.path().join(handle)
    }

    fn next(&self, kind: &str) -> String {
        let mut counter = locked(&self.counter);
        *counter += 1;
        format!("{kind}-{counter}")
    }
}
