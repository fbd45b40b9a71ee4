//! What a restore writes to: a new sparse file, or a block device.
//!
//! A file is made with the volume's exact size, so what no block covers reads as zeros. A device may hold anything, so
//! what no block covers is zeroed there (by discarding where the device promises zeros after it). Whatever can be
//! refused is refused before the first byte: an existing file, a device that is too small or in use.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, OFlags};

use super::{Left, Overwrite, RestoreError};

/// Zeros written at once where a device can neither discard nor zero by itself.
const ZEROS: usize = 1024 * 1024;

pub(super) struct Target {
    path: PathBuf,
    file: File,
    kind: Kind,
    volume_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Unmapped ranges are holes already.
    File,
    Device,
}

impl Target {
    /// Opens and checks it; a file is made and given its size.
    pub(super) fn open(path: &Path, volume_bytes: u64, overwrite: Overwrite) -> Result<Self, RestoreError> {
        let refuse = |seen: String| RestoreError::Target { path: path.to_owned(), seen, left: Left::Untouched };
        let existing = match std::fs::metadata(path) {
            Ok(meta) => Some(meta.file_type()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(refuse(error.to_string())),
        };
        if let (Some(_), Overwrite::Refuse) = (existing, overwrite) {
            return Err(refuse("it exists; --force replaces what it holds".into()));
        }
        let opened = match existing {
            Some(kind) if kind.is_block_device() => open_device(path, volume_bytes).map(|file| (file, Kind::Device)),
            Some(kind) if !kind.is_file() => Err("it is neither a regular file nor a block device".to_owned()),
            _ => make_file(path, volume_bytes).map(|file| (file, Kind::File)),
        };
        let (file, kind) = opened.map_err(refuse)?;
        Ok(Self { path: path.to_owned(), file, kind, volume_bytes })
    }

    /// Writes a block at its place, without what lies behind the volume's true end.
    pub(super) fn write(&self, offset: u64, block: &[u8]) -> io::Result<u64> {
        let length = (self.volume_bytes.saturating_sub(offset)).min(block.len() as u64);
        self.file.write_all_at(&block[..length as usize], offset)?;
        Ok(length)
    }

    /// Makes a range read as zeros.
    pub(super) fn zero(&self, from: u64, to: u64) -> io::Result<()> {
        let to = to.min(self.volume_bytes);
        if self.kind == Kind::File || from >= to {
            return Ok(());
        }
        for flags in [FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, FallocateFlags::ZERO_RANGE] {
            if rustix::fs::fallocate(&self.file, flags, from, to - from).is_ok() {
                return Ok(());
            }
        }
        let zeros = vec![0; ZEROS];
        let mut at = from;
        while at < to {
            let length = (to - at).min(ZEROS as u64);
            self.file.write_all_at(&zeros[..length as usize], at)?;
            at += length;
        }
        Ok(())
    }

    /// Everything on stable storage, and the name of a new file too.
    pub(super) fn finish(&self) -> io::Result<()> {
        self.file.sync_all()?;
        if self.kind == Kind::File {
            File::open(folder_of(&self.path))?.sync_all()?;
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn volume_bytes(&self) -> u64 {
        self.volume_bytes
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn make_file(path: &Path, volume_bytes: u64) -> Result<File, String> {
    let folder = folder_of(path);
    if !folder.is_dir() {
        return Err(format!("the folder {} is not there; make it first", folder.display()));
    }
    // A volume's bytes are nobody else's to read.
    let made = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = made.map_err(|error| error.to_string())?;
    match file.set_len(volume_bytes) {
        Ok(()) => Ok(file),
        Err(error) => Err(format!("it cannot be given the volume's {volume_bytes} bytes: {error}")),
    }
}

/// `O_EXCL` without `O_CREAT`: the kernel refuses a device that is mounted or otherwise claimed.
fn open_device(path: &Path, volume_bytes: u64) -> Result<File, String> {
    let flags = OFlags::EXCL.bits() as i32;
    let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    let mut file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => "it is mounted or in use; unmount it first".to_owned(),
        _ => error.to_string(),
    })?;
    let bytes = file.seek(SeekFrom::End(0)).map_err(|error| format!("its size cannot be read: {error}"))?;
    match bytes >= volume_bytes {
        true => Ok(file),
        false => Err(format!("the device has {bytes} bytes, the volume {volume_bytes}; use a larger device")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_behind_the_true_size_is_clipped() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out");
        let target = Target::open(&path, 10, Overwrite::Refuse).expect("new");
        assert_eq!(target.write(4, b"abcdefgh").expect("written"), 6);
        assert_eq!(target.write(64, b"abcdefgh").expect("nothing"), 0);
        target.finish().expect("synced");
        assert_eq!(std::fs::read(&path).expect("read"), b"\0\0\0\0abcdef");
    }

    #[test]
    fn what_can_be_refused_is_refused_before_the_first_byte() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("old");
        std::fs::write(&file, "precious").expect("written");
        let cases = [
            (file.clone(), Overwrite::Refuse, "it exists; --force"),
            (folder.path().to_owned(), Overwrite::Replace, "neither a regular file nor a block device"),
            (folder.path().join("no/such/out"), Overwrite::Refuse, "is not there; make it first"),
            (file.join("below"), Overwrite::Refuse, "Not a directory"),
        ];
        for (path, overwrite, expected) in cases {
            let error = Target::open(&path, 10, overwrite).err().expect(expected).to_string();
            assert!(error.contains(expected) && error.contains("was not touched"), "{error}");
        }
        assert_eq!(std::fs::read(&file).expect("still there"), b"precious");
    }

    #[test]
    fn a_replaced_file_keeps_nothing_of_the_old() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("old");
        std::fs::write(&path, vec![7; 100]).expect("written");
        let target = Target::open(&path, 50, Overwrite::Replace).expect("replaced");
        target.finish().expect("synced");
        assert_eq!(std::fs::read(&path).expect("read"), vec![0; 50]);
    }
}
