//! Tables that would not fit in memory at 8 TiB, as fixed-width arrays in unlinked files.
//!
//! Only bitmaps have the volume's length in memory (512 KiB at 8 TiB of 2 MiB blocks). The pages of these files are the
//! kernel's to drop. Nothing here outlives the process.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;

use crate::model::{BlockName, limits};

/// A directory for scratch files.
#[derive(Debug, Clone)]
pub struct Scratch {
    folder: PathBuf,
}

impl Scratch {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// A new file without a name.
    pub fn file(&self) -> io::Result<File> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(&self.folder, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => Ok(File::from(fd)),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => self.named_file(),
            Err(error) => Err(io::Error::new(
                io::Error::from(error).kind(),
                format!("Directory {}: {error}", self.folder.display()),
            )),
        }
    }

    /// For file systems without O_TMPFILE: made, then unlinked.
    fn named_file(&self) -> io::Result<File> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let path = self.folder.join(format!(".tidemark-{}", hex::encode(random)));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }
}

/// A set of ordinals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    count: u64,
}

impl Bitmap {
    pub fn new(len: u64) -> Self {
        Self { words: vec![0; usize::try_from(len.div_ceil(64)).unwrap_or(usize::MAX)], count: 0 }
    }

    /// Makes room for ordinals below `len`.
    pub fn grow(&mut self, len: u64) {
        let words = usize::try_from(len.div_ceil(64)).unwrap_or(usize::MAX);
        self.words.resize(self.words.len().max(words), 0);
    }

    /// Members.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn contains(&self, ordinal: u32) -> bool {
        self.words.get(ordinal as usize / 64).is_some_and(|word| word & (1 << (ordinal % 64)) != 0)
    }

    /// `true` if it was not a member before.
    pub fn insert(&mut self, ordinal: u32) -> bool {
        let word = &mut self.words[ordinal as usize / 64];
        let is_new = *word & (1 << (ordinal % 64)) == 0;
        *word |= 1 << (ordinal % 64);
        self.count += u64::from(is_new);
        is_new
    }

    /// `true` if it was a member before.
    pub fn remove(&mut self, ordinal: u32) -> bool {
        let was = self.contains(ordinal);
        if was {
            self.words[ordinal as usize / 64] &= !(1 << (ordinal % 64));
            self.count -= 1;
        }
        was
    }

    /// Members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(i, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(i as u32 * 64 + bit)
            })
        })
    }
}

/// What an acknowledged block is called and how large its object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    pub name: BlockName,
    /// Bytes of the stored object.
    pub stored: u32,
}

const PLACED: usize = limits::LISTED_BLOCK_BYTES as usize;

fn encode_placed(placed: &Placed) -> [u8; PLACED] {
    let mut out = [0; PLACED];
    out[..32].copy_from_slice(&placed.name.0);
    out[32..].copy_from_slice(&placed.stored.to_le_bytes());
    out
}

fn decode_placed(bytes: &[u8]) -> Placed {
    let (mut name, mut stored) = ([0; 32], [0; 4]);
    name.copy_from_slice(&bytes[..32]);
    stored.copy_from_slice(&bytes[32..PLACED]);
    Placed { name: BlockName(name), stored: u32::from_le_bytes(stored) }
}

/// `Placed` by ordinal: 36 bytes each, sparse.
#[derive(Debug)]
pub struct OrdinalTable(File);

impl OrdinalTable {
    pub fn create(scratch: &Scratch) -> io::Result<Self> {
        scratch.file().map(Self)
    }

    pub fn set(&self, ordinal: u32, placed: &Placed) -> io::Result<()> {
        self.0.write_all_at(&encode_placed(placed), u64::from(ordinal) * PLACED as u64)
    }

    /// What was set; the caller knows by its bitmap that something was.
    pub fn get(&self, ordinal: u32) -> io::Result<Placed> {
        let mut bytes = [0; PLACED];
        self.0.read_exact_at(&mut bytes, u64::from(ordinal) * PLACED as u64)?;
        Ok(decode_placed(&bytes))
    }
}

/// `Placed` by name, appended in ascending order, found by interpolation: names are uniform, so one or two reads do.
#[derive(Debug)]
pub struct SortedTable {
    file: File,
    pending: Vec<u8>,
    count: u64,
}

/// Entries of one read while searching: 64 × 36 = 2304 bytes.
const WINDOW: u64 = 64;

impl SortedTable {
    pub fn create(scratch: &Scratch) -> io::Result<Self> {
        Ok(Self { file: scratch.file()?, pending: Vec::new(), count: 0 })
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// Adds an entry; its name must be greater than the last one's.
    pub fn push(&mut self, placed: &Placed) -> io::Result<()> {
        self.pending.extend_from_slice(&encode_placed(placed));
        self.count += 1;
        if self.pending.len() >= 1000 * PLACED { self.flush() } else { Ok(()) }
    }

    /// To be called after the last `push`.
    pub fn flush(&mut self) -> io::Result<()> {
        let start = self.count * PLACED as u64 - self.pending.len() as u64;
        self.file.write_all_at(&self.pending, start)?;
        self.pending.clear();
        Ok(())
    }

    pub fn find(&self, name: &BlockName) -> io::Result<Option<Placed>> {
        Ok(self.search(name)?.map(|(_, placed)| placed))
    }

    /// The place of a name among all, counted from 0.
    pub fn rank(&self, name: &BlockName) -> io::Result<Option<u32>> {
        Ok(self.search(name)?.and_then(|(rank, _)| u32::try_from(rank).ok()))
    }

    /// Up to `count` entries from `rank` on.
    pub fn read(&self, rank: u64, count: u64) -> io::Result<Vec<Placed>> {
        let count = count.min(self.count.saturating_sub(rank));
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(usize::MAX) * PLACED];
        self.file.read_exact_at(&mut bytes, rank * PLACED as u64)?;
        let entries: &[[u8; PLACED]] = bytes.as_chunks().0;
        Ok(entries.iter().map(|entry| decode_placed(entry)).collect())
    }

    /// The entry at a place below `count`.
    pub fn get(&self, rank: u64) -> io::Result<Placed> {
        let mut bytes = [0; PLACED];
        self.file.read_exact_at(&mut bytes, rank * PLACED as u64)?;
        Ok(decode_placed(&bytes))
    }

    /// An entry with its place.
    pub fn search(&self, name: &BlockName) -> io::Result<Option<(u64, Placed)>> {
        let (mut low, mut high) = (0, self.count);
        let (mut low_key, mut high_key) = (0_u64, u64::MAX);
        let key = prefix(name);
        let mut buffer = [0; WINDOW as usize * PLACED];
        for step in 0_u32.. {
            if low >= high {
                return Ok(None);
            }
            let guess =
                if step < 4 { interpolate(key, (low_key, high_key), (low, high)) } else { low + (high - low) / 2 };
            let start = guess.saturating_sub(WINDOW / 2).clamp(low, high - 1);
            let end = (start + WINDOW).min(high);
            let window = &mut buffer[..(end - start) as usize * PLACED];
            self.file.read_exact_at(window, start * PLACED as u64)?;
            let entries: &[[u8; PLACED]] = window.as_chunks().0;
            let (first, last) = (decode_placed(&entries[0]), decode_placed(&entries[entries.len() - 1]));
            if *name < first.name {
                (high, high_key) = (start, prefix(&first.name));
            } else if *name > last.name {
                (low, low_key) = (end, prefix(&last.name));
            } else {
                let found = entries.binary_search_by(|entry| entry[..32].cmp(&name.0));
                return Ok(found.ok().map(|i| (start + i as u64, decode_placed(&entries[i]))));
            }
        }
        Ok(None)
    }
}

fn prefix(name: &BlockName) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&name.0[..8]);
    u64::from_be_bytes(bytes)
}

fn interpolate(key: u64, keys: (u64, u64), positions: (u64, u64)) -> u64 {
    let span = u128::from(keys.1.saturating_sub(keys.0).max(1));
    let part = u128::from(key.saturating_sub(keys.0)).min(span);
    let width = u128::from(positions.1 - positions.0);
    positions.0 + (part * width / span) as u64
}

/// `Placed` by name in any order: an open-addressing table of twice its capacity, sparse until filled. Names are uniform,
/// so their order is the order of their slots, whatever the number of those.
#[derive(Debug)]
pub struct NameTable {
    file: File,
    slots: u64,
    count: u64,
    capacity: u64,
}

impl NameTable {
    /// For at most `capacity` names.
    pub fn create(scratch: &Scratch, capacity: u64) -> io::Result<Self> {
        let slots = (capacity * 2).max(64);
        let file = scratch.file()?;
        file.set_len(slots * PLACED as u64)?;
        Ok(Self { file, slots, count: 0, capacity })
    }

    fn slot(&self, name: &BlockName) -> io::Result<(u64, Option<Placed>)> {
        let mut slot = ((u128::from(prefix(name)) * u128::from(self.slots)) >> 64) as u64;
        loop {
            let mut bytes = [0; PLACED];
            self.file.read_exact_at(&mut bytes, slot * PLACED as u64)?;
            let found = decode_placed(&bytes);
            if found.stored == 0 {
                return Ok((slot, None));
            }
            if found.name == *name {
                return Ok((slot, Some(found)));
            }
            slot = (slot + 1) % self.slots;
        }
    }

    pub fn find(&self, name: &BlockName) -> io::Result<Option<Placed>> {
        Ok(self.slot(name)?.1)
    }

    /// Adds a name; its `stored` must not be 0, which marks an empty slot.
    pub fn insert(&mut self, placed: &Placed) -> io::Result<()> {
        assert!(placed.stored > 0, "0 marks an empty slot");
        let (slot, found) = self.slot(&placed.name)?;
        if found.is_none() {
            assert!(self.count < self.capacity, "the table was made for {} names", self.capacity);
            self.file.write_all_at(&encode_placed(placed), slot * PLACED as u64)?;
            self.count += 1;
        }
        Ok(())
    }
}

/// A scratch file as a request body of exact length, read as the socket asks for it.
#[derive(Debug)]
pub struct FileBody {
    file: Arc<File>,
    offset: u64,
    len: u64,
}

const FILE_BODY_CHUNK: u64 = 256 * 1024;

impl FileBody {
    pub fn new(file: Arc<File>, len: u64) -> Self {
        Self { file, offset: 0, len }
    }
}

impl http_body::Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<http_body::Frame<Bytes>>>> {
        let n = (self.len - self.offset).min(FILE_BODY_CHUNK);
        if n == 0 {
            return Poll::Ready(None);
        }
        let mut bytes = vec![0; n as usize];
        let read = self.file.read_exact_at(&mut bytes, self.offset);
        self.offset += n;
        Poll::Ready(Some(read.map(|()| http_body::Frame::data(Bytes::from(bytes)))))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.len - self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> Scratch {
        Scratch::new(&std::env::temp_dir())
    }

    fn placed(i: u64) -> Placed {
        Placed { name: BlockName::of(&i.to_le_bytes()), stored: i as u32 + 1 }
    }

    #[test]
    fn a_sorted_table_finds_every_name_and_no_other() {
        for count in [0, 1, 2, 63, 64, 65, 5000] {
            let mut all: Vec<_> = (0..count).map(placed).collect();
            all.sort_by_key(|p| p.name);
            let mut table = SortedTable::create(&scratch()).expect("scratch");
            all.iter().for_each(|p| table.push(p).expect("written"));
            table.flush().expect("written");
            for (i, p) in all.iter().enumerate() {
                assert_eq!(table.find(&p.name).expect("read"), Some(*p), "{count} entries");
                assert_eq!(table.rank(&p.name).expect("read"), Some(i as u32), "{count} entries");
            }
            assert_eq!(table.read(0, u64::MAX).expect("read"), all);
            assert_eq!(table.read(60, 5).expect("read"), all.iter().skip(60).take(5).copied().collect::<Vec<_>>());
            for i in count..count + 500 {
                assert_eq!(table.find(&placed(i).name).expect("read"), None, "{count} entries");
            }
            assert_eq!(table.find(&BlockName([0; 32])).expect("read"), None);
            assert_eq!(table.find(&BlockName([255; 32])).expect("read"), None);
        }
    }

    #[test]
    fn a_sorted_table_of_names_that_are_not_uniform_is_searched_in_bounded_steps() {
        let mut table = SortedTable::create(&scratch()).expect("scratch");
        let name = |i: u32| {
            let mut name = [0; 32];
            name[8..12].copy_from_slice(&i.to_be_bytes());
            BlockName(name)
        };
        (0..10_000).for_each(|i| table.push(&Placed { name: name(i * 2), stored: 9 }).expect("written"));
        table.flush().expect("written");
        for i in 0..20_000 {
            assert_eq!(table.find(&name(i)).expect("read").is_some(), i % 2 == 0, "{i}");
        }
    }

    #[test]
    fn a_name_table_holds_what_was_put_in() {
        let mut table = NameTable::create(&scratch(), 1000).expect("scratch");
        for i in 0..1000 {
            assert_eq!(table.find(&placed(i).name).expect("read"), None);
            table.insert(&placed(i)).expect("written");
            table.insert(&placed(i)).expect("twice is once");
        }
        for i in 0..1000 {
            assert_eq!(table.find(&placed(i).name).expect("read"), Some(placed(i)));
        }
    }

    #[test]
    fn a_bitmap_counts_and_iterates() {
        let mut bitmap = Bitmap::new(200);
        for ordinal in [0, 63, 64, 130, 199] {
            assert!(bitmap.insert(ordinal) && !bitmap.insert(ordinal));
        }
        assert!(bitmap.remove(64) && !bitmap.remove(64));
        assert_eq!(bitmap.iter().collect::<Vec<_>>(), [0, 63, 130, 199]);
        assert_eq!(bitmap.count(), 4);
        bitmap.grow(1000);
        assert!(bitmap.insert(999) && bitmap.contains(0) && bitmap.count() == 5);
    }
}
