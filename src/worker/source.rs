//! What is backed up: a regular file or a block device, opened once, identified, and planned by its holes.
//!
//! A path that comes from a resource is opened beneath its root: the kernel refuses `..`, absolute links and symlinks
//! that leave it, so there is no check-then-open (openat2, RESOLVE_BENEATH).

use std::{
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, ResolveFlags, SeekFrom, openat2, seek};

use crate::{
    model::{BlockSize, FailureReason, NOT_PERMITTED, job, limits},
    store::{journal::SourceIdentity, scratch::Bitmap},
};

/// Why a source cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("Source {}: {seen}", path.display())]
pub struct SourceError {
    pub reason: FailureReason,
    pub path: PathBuf,
    pub seen: String,
}

/// An open source of known length and identity.
#[derive(Debug)]
pub struct Source {
    file: File,
    path: PathBuf,
    bytes: u64,
    is_device: bool,
    identity: SourceIdentity,
}

impl Source {
    pub fn open(spec: &job::Source) -> Result<Self, SourceError> {
        let path = spec.path.clone();
        let file = open_beneath(spec).map_err(|error| refuse(&path, error))?;
        let fail = |error: io::Error| SourceError {
            reason: FailureReason::SourceReadFailed,
            path: path.clone(),
            seen: error.to_string(),
        };
        let kind = file.metadata().map_err(fail)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let seen = "it is neither a regular file nor a block device".to_owned();
            return Err(SourceError { reason: FailureReason::SourceRefused, path, seen });
        }
        let is_device = kind.is_block_device();
        let own = seek(&file, SeekFrom::End(0)).map_err(|e| fail(e.into()))?;
        let bytes = spec.bytes.unwrap_or(own);
        let refused = match (bytes, bytes > own) {
            (0, _) => Some("it is empty: there is nothing to back up".to_owned()),
            (_, true) => Some(format!("it is {own} bytes, {bytes} were asked for")),
            _ => None,
        };
        if let Some(seen) = refused {
            return Err(SourceError { reason: FailureReason::SourceRefused, path, seen });
        }
        let identity = identify(&file, is_device).map_err(fail)?;
        // Only a hint; a file system that does not know it reads as well.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
        Ok(Self { file, path, bytes, is_device, identity })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes to back up.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn identity(&self) -> &SourceIdentity {
        &self.identity
    }

    /// Is it still the very point in time that was opened?
    pub fn check_unchanged(&self) -> Result<(), SourceError> {
        let fail = |reason, seen| SourceError { reason, path: self.path.clone(), seen };
        let now =
            identify(&self.file, self.is_device).map_err(|e| fail(FailureReason::SourceReadFailed, e.to_string()))?;
        if now == self.identity {
            return Ok(());
        }
        let seen = format!(
            "it was written to while it was read, so no single point in time was backed up; \
             take a snapshot and back that up (was {:?}, is {now:?})",
            self.identity
        );
        Err(fail(FailureReason::SourceChanged, seen))
    }

    /// The blocks that may hold data: all but those that lie wholly in holes. Holes are never read.
    pub fn plan(&self, size: BlockSize) -> Result<Bitmap, SourceError> {
        let blocks = size.count(self.bytes);
        let too_large = blocks > limits::VOLUME_BLOCKS_MAX;
        if too_large {
            let seen = format!("it has {blocks} blocks of {size}, at most {} are supported", limits::VOLUME_BLOCKS_MAX);
            return Err(SourceError { reason: FailureReason::SourceRefused, path: self.path.clone(), seen });
        }
        let mut plan = Bitmap::new(blocks);
        let mut offset = 0;
        while let Some((start, end)) = self.next_data(offset).map_err(|error| refuse(&self.path, error))? {
            let first = start / size.bytes();
            (first..size.count(end)).for_each(|ordinal| _ = plan.insert(ordinal as u32));
            offset = end;
        }
        Ok(plan)
    }

    /// The next area with data at or after `offset`; a file system without SEEK_DATA has one area.
    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        if offset >= self.bytes {
            return Ok(None);
        }
        if self.is_device {
            return Ok(Some((offset, self.bytes)));
        }
        let start = match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => return Ok(Some((offset, self.bytes))),
            Err(error) => return Err(error.into()),
        };
        if start >= self.bytes {
            return Ok(None);
        }
        let end = seek(&self.file, SeekFrom::Hole(start))?;
        Ok(Some((start, end.min(self.bytes))))
    }

    /// Reads one block; what lies behind the source's end is zeros.
    pub fn read_block(&self, ordinal: u32, block: &mut [u8]) -> io::Result<()> {
        let offset = u64::from(ordinal) * block.len() as u64;
        let len = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX).min(block.len());
        self.file.read_exact_at(&mut block[..len], offset)?;
        block[len..].fill(0);
        let _ = rustix::fs::fadvise(
            &self.file,
            offset,
            std::num::NonZeroU64::new(len as u64),
            rustix::fs::Advice::DontNeed,
        );
        Ok(())
    }
}

fn open_beneath(spec: &job::Source) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let Some(root) = &spec.root else {
        return Ok(File::from(rustix::fs::open(&spec.path, flags, Mode::empty())?));
    };
    let below = spec.path.strip_prefix(root).unwrap_or(&spec.path);
    let root: OwnedFd = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    Ok(File::from(openat2(&root, below, flags, Mode::empty(), resolve)?))
}

fn refuse(path: &Path, error: io::Error) -> SourceError {
    let (reason, cure) = match error.kind() {
        io::ErrorKind::NotFound => (FailureReason::SourceNotFound, ""),
        io::ErrorKind::PermissionDenied => (FailureReason::SourceRefused, NOT_PERMITTED),
        io::ErrorKind::CrossesDevices => (FailureReason::SourceRefused, "; it leaves its --host-device-root"),
        _ if error.raw_os_error() == Some(rustix::io::Errno::XDEV.raw_os_error()) => {
            (FailureReason::SourceRefused, "; it leaves its --host-device-root")
        }
        _ => (FailureReason::SourceReadFailed, ""),
    };
    SourceError { reason, path: path.to_owned(), seen: format!("{error}{cure}") }
}

fn identify(file: &File, is_device: bool) -> io::Result<SourceIdentity> {
    let meta = file.metadata()?;
    if !is_device {
        let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        return Ok(SourceIdentity::File {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
        });
    }
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let read = |name: &str| std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{name}"));
    let number = |text: &str| text.trim().parse::<u64>().unwrap_or_default();
    // Field 7 of `stat` (Documentation/block/stat.rst): sectors written since boot.
    let sectors_written = read("stat")?.split_whitespace().nth(6).map(number).unwrap_or_default();
    Ok(SourceIdentity::Device {
        boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        // Absent before Linux 5.15: then only the boot and the counter tell devices apart.
        disk_sequence: read("diskseq").map(|t| number(&t)).unwrap_or_default(),
        size: seek(file, SeekFrom::End(0))?,
        read_only: read("ro")?.trim() == "1",
        sectors_written,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn spec(path: &Path, root: Option<&Path>) -> job::Source {
        job::Source { path: path.to_owned(), root: root.map(Path::to_owned), bytes: None, point: None }
    }

    #[test]
    fn law_11_a_source_that_leaves_its_root_is_refused() {
        let folder = tempfile::tempdir().expect("temp");
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("in")).expect("made");
        std::fs::write(folder.path().join("secret"), b"s").expect("written");
        std::fs::write(root.join("in/ok"), b"x").expect("written");
        symlink(folder.path().join("secret"), root.join("absolute")).expect("linked");
        symlink("../../secret", root.join("in/up")).expect("linked");
        symlink("ok", root.join("in/fine")).expect("linked");
        for (path, is_allowed) in
            [("in/ok", true), ("in/fine", true), ("absolute", false), ("in/up", false), ("../secret", false)]
        {
            let opened = Source::open(&spec(&root.join(path), Some(&root)));
            assert_eq!(opened.is_ok(), is_allowed, "{path}: {opened:?}");
        }
    }

    #[test]
    fn holes_are_not_planned_and_a_change_is_seen() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("image");
        let file = File::create(&path).expect("made");
        file.set_len(64 << 20).expect("sparse");
        file.write_all_at(&[1; 10], (6 << 20) + 5).expect("written");
        file.write_all_at(&[2; 3 << 20], 31 << 20).expect("written");
        let source = Source::open(&spec(&path, None)).expect("opens");
        let plan: Vec<_> = source.plan(BlockSize::Mi2).expect("planned").iter().collect();
        assert_eq!(plan, [3, 15, 16]);
        source.check_unchanged().expect("untouched");
        file.write_all_at(&[9], 0).expect("written");
        file.sync_all().expect("synced");
        assert_eq!(source.check_unchanged().expect_err("changed").reason, FailureReason::SourceChanged);
    }

    #[test]
    fn the_last_block_is_padded_with_zeros() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("image");
        std::fs::write(&path, vec![7; (2 << 20) + 3]).expect("written");
        let source = Source::open(&spec(&path, None)).expect("opens");
        let mut block = vec![1; 2 << 20];
        source.read_block(1, &mut block).expect("read");
        assert_eq!((&block[..4], block[4..].iter().all(|b| *b == 0)), (&[7, 7, 7, 0][..], true));
    }

    #[test]
    fn what_cannot_be_backed_up_says_so() {
        let folder = tempfile::tempdir().expect("temp");
        let empty = folder.path().join("empty");
        File::create(&empty).expect("made");
        for (path, reason) in [
            (folder.path().join("gone"), FailureReason::SourceNotFound),
            (empty, FailureReason::SourceRefused),
            (folder.path().to_owned(), FailureReason::SourceRefused),
        ] {
            assert_eq!(Source::open(&spec(&path, None)).expect_err("refused").reason, reason, "{}", path.display());
        }
    }
}
