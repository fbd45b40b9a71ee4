//! Opening a target: whatever can be refused is refused here, before the first byte and before the lock.
//!
//! `Checked` has changed nothing: a file that exists is open and held (`flock`), a device is claimed (`O_EXCL`), a file
//! that does not exist is not made yet. `take` makes it what the restore writes to.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FlockOperation, Mode, OFlags, ResolveFlags, flock, openat2};
use tokio::time::sleep;

use super::{
    Left, Overwrite, RestoreError, RestoreJob,
    target::{Kind, Target},
};
use crate::model::{FailureReason, NOT_PERMITTED, limits};

/// A target that may be written to and is untouched.
#[derive(Debug)]
pub(super) struct Checked {
    place: Place,
    overwrite: Overwrite,
    volume_bytes: u64,
    found: Found,
}

#[derive(Debug)]
enum Found {
    Nothing,
    File(File),
    Device(File),
}

/// Where the target is, and what it may not leave.
#[derive(Debug, Clone)]
struct Place {
    path: PathBuf,
    root: Option<PathBuf>,
}

impl Checked {
    pub(super) async fn check(job: &RestoreJob, volume_bytes: u64) -> Result<Self, RestoreError> {
        let place = Place { path: job.target.clone(), root: job.root.clone() };
        let found = place.find_free(job.overwrite, volume_bytes).await.map_err(|seen| refuse(&place.path, seen))?;
        Ok(Self { place, overwrite: job.overwrite, volume_bytes, found })
    }

    /// From here on the target is no longer what it was.
    pub(super) fn take(self) -> Result<Target, RestoreError> {
        let path = self.place.path.clone();
        self.make().map_err(|seen| refuse(&path, seen))
    }

    fn make(self) -> Result<Target, String> {
        let Self { place, overwrite, volume_bytes, found } = self;
        let is_reused = overwrite == Overwrite::Reuse;
        let (file, kind) = match found {
            Found::Nothing => (place.create(volume_bytes)?, Kind::NewFile),
            Found::File(file) if is_reused => (sized(file, volume_bytes)?, Kind::OldFile),
            Found::File(file) => {
                file.set_len(0).map_err(|error| format!("it cannot be emptied: {error}"))?;
                (sized(file, volume_bytes)?, Kind::NewFile)
            }
            Found::Device(file) => (file, Kind::Device),
        };
        Ok(Target::new(place.path, file, kind, volume_bytes).reused(is_reused && kind != Kind::NewFile))
    }
}

fn refuse(path: &Path, seen: String) -> RestoreError {
    RestoreError::Target { path: path.to_owned(), reason: FailureReason::TargetRefused, seen, left: Left::Untouched }
}

/// Why a target is not taken.
#[derive(Debug)]
enum Refused {
    /// Somebody else has it now.
    Held(String),
    Unfit(String),
}

impl From<String> for Refused {
    fn from(seen: String) -> Self {
        Self::Unfit(seen)
    }
}

impl Place {
    /// What is there, once nobody else holds it. An attempt that was just killed holds its target until the kernel has
    /// written what it had begun; so does any program that was being started at that moment, until its own `exec`.
    async fn find_free(&self, overwrite: Overwrite, volume_bytes: u64) -> Result<Found, String> {
        let mut waited = Duration::ZERO;
        loop {
            match self.find(overwrite, volume_bytes) {
                Ok(found) => return Ok(found),
                Err(Refused::Held(_)) if waited < limits::TARGET_HELD => {
                    sleep(limits::TARGET_HELD / 40).await;
                    waited += limits::TARGET_HELD / 40;
                }
                Err(Refused::Held(seen) | Refused::Unfit(seen)) => return Err(seen),
            }
        }
    }

    /// What is there, if this restore may have it.
    fn find(&self, overwrite: Overwrite, volume_bytes: u64) -> Result<Found, Refused> {
        // Looking at it this way does not open it: opening a tape or a pipe would do something.
        let looked = match self.open(OFlags::PATH, Mode::empty()) {
            Ok(looked) => looked,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(self.check_folder().map(|()| Found::Nothing)?);
            }
            Err(error) => return Err(explain(&error).into()),
        };
        let meta = looked.metadata().map_err(|error| error.to_string())?;
        let kind = meta.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Refused::Unfit("it is neither a regular file nor a block device".into()));
        }
        if overwrite == Overwrite::Refuse {
            let what =
                if kind.is_file() { "it exists" } else { "it is a block device, and what it holds would be lost" };
            let seen = format!("{what}; --force replaces what it holds, --reuse keeps what is right of it");
            return Err(Refused::Unfit(seen));
        }
        // O_EXCL without O_CREAT: the kernel refuses a device that is mounted or otherwise claimed.
        let opened = self.open(OFlags::RDWR | OFlags::EXCL, Mode::empty()).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => Refused::Held(explain(&error)),
            _ => Refused::Unfit(explain(&error)),
        })?;
        let now = opened.metadata().map_err(|error| error.to_string())?;
        if (now.dev(), now.ino(), now.rdev()) != (meta.dev(), meta.ino(), meta.rdev()) {
            return Err(Refused::Unfit("it was replaced while it was opened".into()));
        }
        match kind.is_file() {
            true => hold(opened).map(Found::File),
            false => Ok(Found::Device(check_device(opened, volume_bytes)?)),
        }
    }

    fn check_folder(&self) -> Result<(), String> {
        let folder = folder_of(&self.path);
        match folder.is_dir() {
            true => Ok(()),
            false => Err(format!("the folder {} is not there; make it first", folder.display())),
        }
    }

    /// A volume's bytes are nobody else's to read: mode 0600.
    fn create(&self, volume_bytes: u64) -> Result<File, String> {
        let made = self.open(OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR);
        let made = made.map_err(|error| format!("it cannot be made: {}", explain(&error)))?;
        match hold(made) {
            Ok(file) => sized(file, volume_bytes),
            Err(Refused::Held(seen) | Refused::Unfit(seen)) => Err(seen),
        }
    }

    fn open(&self, flags: OFlags, mode: Mode) -> io::Result<File> {
        // The kernel refuses O_NONBLOCK beside O_PATH.
        let more = if flags.contains(OFlags::PATH) { OFlags::CLOEXEC } else { OFlags::CLOEXEC | OFlags::NONBLOCK };
        let flags = flags | more;
        let Some(root) = &self.root else {
            return Ok(File::from(rustix::fs::open(&self.path, flags, mode)?));
        };
        let below = self.path.strip_prefix(root).unwrap_or(&self.path);
        let root: OwnedFd = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        Ok(File::from(openat2(&root, below, flags, mode, resolve)?))
    }
}

pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn explain(error: &io::Error) -> String {
    let cure = match error.kind() {
        io::ErrorKind::ResourceBusy => return "it is mounted or in use; unmount it first".into(),
        io::ErrorKind::PermissionDenied => NOT_PERMITTED,
        _ if error.raw_os_error() == Some(rustix::io::Errno::XDEV.raw_os_error()) => {
            "; it leaves the folder it must be in"
        }
        _ => "",
    };
    format!("{error}{cure}")
}

/// Two restores into one file would undo each other. The kernel forgets this lock with the process.
fn hold(file: File) -> Result<File, Refused> {
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Refused::Held("another program holds it, perhaps another restore; wait for it".into()))
        }
        // Some network file systems have no locks.
        Err(error) => {
            tracing::debug!(%error, "File cannot be locked");
            Ok(file)
        }
    }
}

fn sized(file: File, volume_bytes: u64) -> Result<File, String> {
    match file.set_len(volume_bytes) {
        Ok(()) => Ok(file),
        Err(error) => Err(format!("it cannot be given the volume's {volume_bytes} bytes: {error}")),
    }
}

fn check_device(mut file: File, volume_bytes: u64) -> Result<File, String> {
    let bytes = file.seek(SeekFrom::End(0)).map_err(|error| format!("its size cannot be read: {error}"))?;
    match bytes >= volume_bytes {
        true => Ok(file),
        false => Err(format!("the device has {bytes} bytes, the volume {volume_bytes}; use a larger device")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(work)
    }

    fn open(path: &Path, root: Option<&Path>, overwrite: Overwrite) -> Result<Target, String> {
        let place = Place { path: path.to_owned(), root: root.map(Path::to_owned) };
        let found = block_on(place.find_free(overwrite, 10))?;
        Checked { place, overwrite, volume_bytes: 10, found }.take().map_err(|error| error.to_string())
    }

    #[test]
    fn what_can_be_refused_is_refused_before_the_first_byte() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("old");
        std::fs::write(&file, "precious").expect("written");
        let cases = [
            (file.clone(), Overwrite::Refuse, "it exists; --force"),
            (folder.path().to_owned(), Overwrite::Replace, "neither a regular file nor a block device"),
            ("/dev/null".into(), Overwrite::Replace, "neither a regular file nor a block device"),
            (folder.path().join("no/such/out"), Overwrite::Refuse, "is not there; make it first"),
            (file.join("below"), Overwrite::Refuse, "Not a directory"),
        ];
        for (path, overwrite, expected) in cases {
            let error = open(&path, None, overwrite).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(std::fs::read(&file).expect("still there"), b"precious");
    }

    /// Found on a busy machine: the attempt before had ended, and its target was "held by another program".
    #[test]
    fn law_6_a_target_that_an_ended_attempt_still_holds_is_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("old");
        std::fs::write(&path, "precious").expect("written");
        let before = open(&path, None, Overwrite::Reuse).expect("opened");
        let error = open(&path, None, Overwrite::Reuse).expect_err("it is held for good");
        assert!(error.contains("another program holds it"), "{error}");
        let ending = std::thread::spawn(move || {
            std::thread::sleep(limits::TARGET_HELD / 4);
            drop(before);
        });
        open(&path, None, Overwrite::Reuse).expect("it was given up in time");
        ending.join().expect("ended");
    }

    #[test]
    fn a_replaced_file_keeps_nothing_of_the_old_and_a_reused_one_all_of_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("old");
        for (overwrite, expected) in [(Overwrite::Replace, [0; 10]), (Overwrite::Reuse, [7; 10])] {
            std::fs::write(&path, vec![7; 100]).expect("written");
            let target = open(&path, None, overwrite).expect("opened");
            assert_eq!(target.is_reused(), overwrite == Overwrite::Reuse);
            assert_eq!(std::fs::read(&path).expect("read"), expected);
        }
        let new = open(&folder.path().join("new"), None, Overwrite::Reuse).expect("made");
        assert!(!new.is_reused(), "nothing is read of a file that was just made");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(new.path()).expect("made").permissions());
        assert_eq!(mode & 0o777, 0o600, "a volume's bytes are nobody else's to read");
    }

    #[test]
    fn law_11_a_target_that_leaves_its_root_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
        std::fs::create_dir(&root).expect("made");
        std::fs::write(&outside, "precious").expect("written");
        std::os::unix::fs::symlink(&outside, root.join("link")).expect("linked");
        for path in [root.join("link"), root.join("../outside"), outside.clone()] {
            let error = open(&path, Some(&root), Overwrite::Replace).expect_err("it leaves the root");
            assert!(error.contains("leaves the folder"), "{}: {error}", path.display());
        }
        open(&root.join("new"), Some(&root), Overwrite::Refuse).expect("below the root");
        assert_eq!(std::fs::read(&outside).expect("still there"), b"precious");
    }
}
