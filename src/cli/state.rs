//! What a `backup` that was killed leaves on this machine, so that the same command continues it.
//!
//! One small file per target and volume, below `$XDG_STATE_HOME/tidemark` or `~/.local/state/tidemark`: the backup's
//! uid, under which the store keeps the journal, and the image it was made from. It is written before anything is sent
//! and removed when the backup is complete. Losing it costs reading, never sending: the next backup finds its blocks.
//!
//! The file is locked while a backup runs, so that two of one volume on one machine do not take each other's uid.
//! A file is continued only while it is the very same (device, inode, size, times). A device is never: nothing proves
//! that it was not written to meanwhile.

use std::{
    fs::{DirBuilder, File, Metadata, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{CliError, environment};
use crate::model::{FailureReason, StoreLocation, VolumeName};

/// A backup that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Begun {
    pub(super) backup_uid: String,
    pub(super) attempts: u32,
    pub(super) snapshot: String,
    pub(super) snapshot_created: Timestamp,
    image: ImageIdentity,
}

/// What proves that an image is still the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImageIdentity {
    path: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    modified_ns: i128,
    changed_ns: i128,
}

/// The locked file. Dropping it unlocks.
pub(super) struct State {
    file: Option<File>,
    path: PathBuf,
    found: Option<Begun>,
}

/// What there is to continue.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Earlier {
    None,
    Same(Begun),
    /// Of another state of the image: its blocks are still of use, its uid is not.
    Other(Timestamp),
}

impl State {
    /// Opens and locks the file of this target and volume.
    pub(super) fn open(location: &StoreLocation, volume: &VolumeName) -> Result<Self, CliError> {
        let Some(folder) = folder() else {
            tracing::warn!("Neither XDG_STATE_HOME nor HOME is set: a killed backup will be read again from the start");
            return Ok(Self { file: None, path: PathBuf::new(), found: None });
        };
        let path = folder.join(file_name(location, volume));
        Self::open_at(path, volume)
    }

    fn open_at(path: PathBuf, volume: &VolumeName) -> Result<Self, CliError> {
        let failed = |error: io::Error| {
            let message = format!("State file {}: {error}; make it writable or set XDG_STATE_HOME", path.display());
            CliError::cured(FailureReason::ScratchFailed, message)
        };
        let folder = path.parent().expect("a file in a folder");
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let mut file = loop {
            let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = opened.map_err(failed)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(held(volume, &path)),
                Err(error) => return Err(failed(error.into())),
            }
            // Whoever held it may have finished and removed it meanwhile: then this is a file without a name.
            if std::fs::metadata(&path).is_ok_and(|named| file.metadata().is_ok_and(|own| own.ino() == named.ino())) {
                break file;
            }
        };
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        // A file cut by a crash is no state: that only costs reading.
        let found = serde_json::from_str(&text).ok();
        Ok(Self { file: Some(file), path, found })
    }

    /// What may be continued for this image.
    pub(super) fn earlier(&self, image: &Path) -> Earlier {
        match &self.found {
            None => Earlier::None,
            Some(begun) if ImageIdentity::of(image).as_ref() == Some(&begun.image) => Earlier::Same(begun.clone()),
            Some(begun) => Earlier::Other(begun.snapshot_created),
        }
    }

    /// Remembers a backup before anything of it is sent. A device is not remembered.
    pub(super) fn remember(&mut self, mut begun: BegunFor<'_>) -> io::Result<()> {
        let (Some(file), Some(image)) = (&mut self.file, ImageIdentity::of(begun.image)) else { return Ok(()) };
        begun.attempts = begun.attempts.max(1);
        let begun = Begun {
            backup_uid: begun.backup_uid.to_owned(),
            attempts: begun.attempts,
            snapshot: begun.snapshot.to_owned(),
            snapshot_created: begun.snapshot_created,
            image,
        };
        let text = serde_json::to_string(&begun).expect("a state has string keys only");
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }

    /// The backup is complete: the next one begins anew.
    pub(super) fn forget(self) {
        if self.file.is_some()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "State file of a complete backup stays behind");
        }
    }
}

/// What is remembered, but for what is read from the image itself.
pub(super) struct BegunFor<'a> {
    pub(super) backup_uid: &'a str,
    pub(super) attempts: u32,
    pub(super) snapshot: &'a str,
    pub(super) snapshot_created: Timestamp,
    pub(super) image: &'a Path,
}

fn held(volume: &VolumeName, path: &Path) -> CliError {
    let message = format!(
        "Another `tidemark backup` of volume {volume} to this target is running on this machine (it holds {}): wait for it",
        path.display()
    );
    let reason = FailureReason::LockHeld;
    CliError { code: reason.exit_code(), reason: Some(reason), message, object: Some(volume.to_string()), hint: None }
}

fn folder() -> Option<PathBuf> {
    let base = environment::read("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| Some(PathBuf::from(environment::read("HOME")?).join(".local/state")));
    Some(base?.join("tidemark"))
}

/// The volume's name, and a hash of where its target is.
fn file_name(location: &StoreLocation, volume: &VolumeName) -> String {
    let place = match location {
        StoreLocation::S3(s3) => {
            format!("s3 {} {} {}", s3.endpoint.as_deref().unwrap_or_default(), s3.bucket, s3.prefix)
        }
        StoreLocation::Directory { path } => format!("directory {}", path.display()),
    };
    format!("{volume}-{}.json", hex::encode(&Sha256::digest(place.as_bytes())[..8]))
}

impl ImageIdentity {
    fn of(path: &Path) -> Option<Self> {
        let path = path.canonicalize().ok()?;
        let meta = std::fs::metadata(&path).ok()?;
        if !meta.is_file() {
            return None;
        }
        let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        let modified_ns = ns(Metadata::mtime(&meta), meta.mtime_nsec());
        let changed_ns = ns(meta.ctime(), meta.ctime_nsec());
        Some(Self { path, device: meta.dev(), inode: meta.ino(), bytes: meta.len(), modified_ns, changed_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<State, CliError> {
        State::open_at(path.to_owned(), &"web-1".parse().expect("valid"))
    }

    fn remember(state: &mut State, image: &Path) {
        let created = Timestamp::UNIX_EPOCH;
        let begun = BegunFor { backup_uid: "uid-1", attempts: 1, snapshot: "snap", snapshot_created: created, image };
        state.remember(begun).expect("written");
    }

    #[test]
    fn a_killed_backup_is_found_until_it_is_complete() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, image) = (folder.path().join("state/web-1.json"), folder.path().join("image"));
        std::fs::write(&image, "one").expect("written");
        let mut state = open(&path).expect("free");
        assert_eq!(state.earlier(&image), Earlier::None);
        remember(&mut state, &image);
        drop(state);
        let state = open(&path).expect("free again");
        let Earlier::Same(begun) = state.earlier(&image) else { panic!("not found") };
        assert_eq!(begun.backup_uid, "uid-1");
        state.forget();
        assert_eq!(open(&path).expect("free").earlier(&image), Earlier::None);
    }

    #[test]
    fn another_state_of_the_image_is_another_backup() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, image) = (folder.path().join("web-1.json"), folder.path().join("image"));
        std::fs::write(&image, "one").expect("written");
        let mut state = open(&path).expect("free");
        remember(&mut state, &image);
        drop(state);
        std::fs::write(&image, "other").expect("written");
        assert_eq!(open(&path).expect("free").earlier(&image), Earlier::Other(Timestamp::UNIX_EPOCH));
    }

    #[test]
    fn a_second_backup_of_the_volume_waits_its_turn() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("web-1.json");
        let _first = open(&path).expect("free");
        let error = open(&path).err().expect("held");
        assert_eq!(error.code, 69);
        assert!(error.message.contains("Another `tidemark backup` of volume web-1"), "{}", error.message);
    }

    #[test]
    fn a_damaged_state_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("web-1.json");
        std::fs::write(&path, "{\"backupUid\":").expect("written");
        assert_eq!(open(&path).expect("free").earlier(folder.path()), Earlier::None);
    }
}
