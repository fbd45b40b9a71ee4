//! What a restore writes to: a file, or a block device.
//!
//! A new file has the volume's exact size and reads as zeros where no block was written. An old file or a device may
//! hold anything, so what no block covers is made zero: by punching where the kernel promises zeros afterwards (on
//! devices only if they zero by themselves), else by reading, and writing zeros where there are none. Reading first
//! keeps thin devices thin. What lies behind the volume's end is left alone.

use std::{
    fs::File,
    io,
    num::NonZeroU64,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use rustix::fs::{Advice, FallocateFlags, OFlags, SeekFrom, fadvise, fallocate, fcntl_getfl, fcntl_setfl, seek};

use super::open::folder_of;
use crate::{model::limits, store::codec};

/// Bytes zeroed at once by hand.
const ZEROS: u64 = 1024 * 1024;
/// Devices punch, and O_DIRECT reads, in multiples of this: no logical block is larger.
pub(super) const ALIGNMENT: u64 = 4096;

#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    file: File,
    kind: Kind,
    volume_bytes: u64,
    is_reused: bool,
    /// Bytes written since the last flush.
    unflushed: AtomicU64,
    /// Reads bypass the page cache.
    is_direct: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Holes everywhere.
    NewFile,
    OldFile,
    Device,
}

/// The area of a file that may hold data, at or behind the place last asked for.
#[derive(Debug, Default)]
pub(super) struct DataCursor {
    start: u64,
    end: u64,
}

impl Target {
    pub(super) fn new(path: PathBuf, file: File, kind: Kind, volume_bytes: u64) -> Self {
        let (unflushed, is_direct) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { path, file, kind, volume_bytes, is_reused: false, unflushed, is_direct }
    }

    pub(super) fn reused(self, is_reused: bool) -> Self {
        Self { is_reused, ..self }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn volume_bytes(&self) -> u64 {
        self.volume_bytes
    }

    /// Is what it holds worth a look?
    pub(super) fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// May a range read as anything but zeros? Ranges must be asked for in ascending order.
    pub(super) fn may_hold_data(&self, cursor: &mut DataCursor, from: u64, to: u64) -> bool {
        match self.kind {
            Kind::NewFile => false,
            Kind::Device => true,
            Kind::OldFile => {
                if from >= cursor.end {
                    *cursor = self.next_data(from);
                }
                to > cursor.start
            }
        }
    }

    /// A file system that does not know its holes has one area of data; so has one that cannot say.
    fn next_data(&self, offset: u64) -> DataCursor {
        let start = match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return DataCursor { start: u64::MAX, end: u64::MAX },
            Err(_) => return DataCursor { start: offset, end: u64::MAX },
        };
        DataCursor { start, end: seek(&self.file, SeekFrom::Hole(start)).unwrap_or(u64::MAX) }
    }

    /// Bytes of the block at this offset that lie within the volume.
    pub(super) fn length(&self, offset: u64, block: usize) -> usize {
        usize::try_from(self.volume_bytes.saturating_sub(offset)).unwrap_or(usize::MAX).min(block)
    }

    /// Reads a block; what lies behind the volume's end is zeros.
    pub(super) fn read(&self, offset: u64, block: &mut [u8]) -> io::Result<()> {
        let length = self.length(offset, block.len());
        self.file.read_exact_at(&mut block[..length], offset)?;
        block[length..].fill(0);
        // Read once: it need not stay in memory. Only a hint.
        let _ = fadvise(&self.file, offset, NonZeroU64::new(length as u64), Advice::DontNeed);
        Ok(())
    }

    /// Writes a block at its place, without what lies behind the volume's end.
    pub(super) fn write(&self, offset: u64, block: &[u8]) -> io::Result<()> {
        let length = self.length(offset, block.len());
        self.file.write_all_at(&block[..length], offset)?;
        let before = self.unflushed.fetch_add(length as u64, Ordering::Relaxed);
        if before < limits::RESTORE_FLUSH_BYTES && before + length as u64 >= limits::RESTORE_FLUSH_BYTES {
            self.unflushed.store(0, Ordering::Relaxed);
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// Makes a range read as zeros.
    pub(super) fn zero(&self, from: u64, to: u64) -> io::Result<()> {
        let to = to.min(self.volume_bytes);
        if self.kind == Kind::NewFile || from >= to {
            return Ok(());
        }
        let whole = match self.kind {
            Kind::NewFile | Kind::OldFile => to,
            Kind::Device => to / ALIGNMENT * ALIGNMENT,
        };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let is_punched = whole > from && fallocate(&self.file, flags, from, whole - from).is_ok();
        self.zero_by_hand(if is_punched { whole } else { from }, to)
    }

    fn zero_by_hand(&self, from: u64, to: u64) -> io::Result<()> {
        let mut buffer = vec![0; usize::try_from((to - from).min(ZEROS)).unwrap_or_default()];
        let mut at = from;
        while at < to {
            let length = usize::try_from((to - at).min(ZEROS)).unwrap_or_default();
            let piece = &mut buffer[..length];
            self.file.read_exact_at(piece, at)?;
            if !codec::is_zero(piece) {
                piece.fill(0);
                self.file.write_all_at(piece, at)?;
            }
            at += length as u64;
        }
        Ok(())
    }

    /// Everything on stable storage, and the name of a file too.
    pub(super) fn finish(&self) -> io::Result<()> {
        self.file.sync_all()?;
        if self.kind != Kind::Device {
            File::open(folder_of(&self.path))?.sync_all()?;
        }
        Ok(())
    }

    /// From here on reads ask the disk, not the page cache, as far as the file system lets us.
    pub(super) fn bypass_cache(&self) {
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
        let direct = fcntl_getfl(&self.file).and_then(|flags| fcntl_setfl(&self.file, flags | OFlags::DIRECT));
        self.is_direct.store(direct.is_ok(), Ordering::Relaxed);
    }

    /// Reads a block as `read` does; the buffer is aligned. Reads the file system refuses to do directly are done with
    /// the page cache, which was emptied before.
    pub(super) fn read_back(&self, offset: u64, block: &mut [u8]) -> io::Result<()> {
        let length = self.length(offset, block.len());
        let whole = length.next_multiple_of(ALIGNMENT as usize).min(block.len());
        let mut done = 0;
        while done < length {
            match self.file.read_at(&mut block[done..whole], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if error.kind() == io::ErrorKind::InvalidInput && self.is_direct.swap(false, Ordering::Relaxed) =>
                {
                    let flags = fcntl_getfl(&self.file)?;
                    fcntl_setfl(&self.file, flags - OFlags::DIRECT)?;
                }
                Err(error) => return Err(error),
            }
        }
        block[length..].fill(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(bytes: &[u8], kind: Kind, volume_bytes: u64) -> (tempfile::TempDir, Target) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out");
        std::fs::write(&path, bytes).expect("written");
        let file = File::options().read(true).write(true).open(&path).expect("open");
        (folder, Target::new(path, file, kind, volume_bytes))
    }

    fn held(target: &Target) -> Vec<u8> {
        std::fs::read(target.path()).expect("read")
    }

    #[test]
    fn the_tail_behind_the_true_size_is_clipped() {
        let (_folder, target) = target(&[0; 10], Kind::NewFile, 10);
        target.write(4, b"abcdefgh").expect("written");
        target.write(64, b"abcdefgh").expect("nothing");
        target.finish().expect("synced");
        assert_eq!(held(&target), b"\0\0\0\0abcdef");
        let mut block = [9; 8];
        target.read(4, &mut block).expect("read");
        assert_eq!(&block, b"abcdef\0\0");
    }

    #[test]
    fn a_range_is_made_zero_to_the_byte_and_by_hand_only_where_it_is_not() {
        for kind in [Kind::OldFile, Kind::Device] {
            let (_folder, target) = target(&[7; 20_000], kind, 15_001);
            target.zero(100, 9_000).expect("punched");
            target.zero(14_000, 99_999).expect("to the volume's end");
            let mut expected = vec![7; 20_000];
            expected[100..9_000].fill(0);
            expected[14_000..15_001].fill(0);
            assert!(held(&target) == expected, "{kind:?}");
        }
        let (_folder, target) = target(&[7; 5_000], Kind::Device, 5_000);
        target.zero_by_hand(1_000, 3_000).expect("written");
        target.zero_by_hand(1_000, 3_000).expect("nothing to do");
        assert!(held(&target)[1_000..3_000].iter().all(|b| *b == 0) && held(&target)[3_000] == 7);
    }

    #[test]
    fn holes_of_a_file_are_known_without_reading() {
        let (_folder, target) = target(&[], Kind::OldFile, 1 << 30);
        target.file.set_len(1 << 30).expect("sparse");
        target.file.write_all_at(&[1; 4096], 512 << 20).expect("written");
        let mut cursor = DataCursor::default();
        let step = 64 << 20;
        let with_data: Vec<u64> =
            (0..16).filter(|i| target.may_hold_data(&mut cursor, i * step, (i + 1) * step)).collect();
        assert_eq!(with_data, [8]);
    }

    #[test]
    fn what_was_written_is_read_back_past_the_cache() {
        let bytes: Vec<u8> = (0..9_999_u32).map(|i| i as u8).collect();
        let (_folder, target) = target(&bytes, Kind::OldFile, 9_999);
        target.finish().expect("synced");
        target.bypass_cache();
        let mut memory = vec![1; 16_384 + 4096];
        let start = memory.as_ptr().align_offset(4096);
        let block = &mut memory[start..start + 16_384];
        target.read_back(0, block).expect("read");
        assert!(block[..9_999] == bytes && block[9_999..].iter().all(|b| *b == 0));
    }
}
