//! Volume images for tests: files with chosen blocks, or with a real filesystem. All content comes from seeds, so a
//! failing test can be run again byte for byte.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Longhorn's and our default.
pub const BLOCK: usize = 2 * 1024 * 1024;

/// The content of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// Not allocated: reads as zeros, and a file system says so.
    Hole,
    /// Written zeros.
    Zero,
    /// Incompressible bytes of this seed; the same seed gives the same block.
    Random(u64),
    /// Compressible words of this seed.
    Text(u64),
}

impl Block {
    pub fn bytes(self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        match self {
            Self::Hole | Self::Zero => {}
            Self::Random(seed) => fill_random(&mut bytes, seed),
            Self::Text(seed) => fill_text(&mut bytes, seed),
        }
        bytes
    }
}

/// A file that stands for a volume.
#[derive(Debug, Clone)]
pub struct Image {
    path: PathBuf,
    block: usize,
}

impl Image {
    /// A file of these blocks of 2 MiB.
    pub fn of(path: &Path, blocks: &[Block]) -> Self {
        Self::with_block_size(path, BLOCK, blocks)
    }

    pub fn with_block_size(path: &Path, block: usize, blocks: &[Block]) -> Self {
        let file = File::create(path).unwrap_or_else(|e| panic!("Image {} cannot be made: {e}", path.display()));
        file.set_len((block * blocks.len()) as u64).expect("the scratch directory has room for a sparse file");
        let image = Self { path: path.to_owned(), block };
        for (index, content) in blocks.iter().enumerate() {
            if *content != Block::Hole {
                image.write(index, *content);
            }
        }
        image
    }

    /// `blocks` random blocks, all different.
    pub fn random(path: &Path, blocks: usize, seed: u64) -> Self {
        let contents: Vec<Block> =
            (0..blocks as u64).map(|i| Block::Random(seed.wrapping_mul(1_000_003) + i)).collect();
        Self::of(path, &contents)
    }

    /// A real ext4 filesystem of `bytes` bytes that holds the files of `content`; `None` if mkfs.ext4 is missing.
    pub fn ext4(path: &Path, bytes: u64, content: &Path) -> Option<Self> {
        let program = ["/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"].iter().find(|p| Path::new(p).exists())?;
        let file = File::create(path).unwrap_or_else(|e| panic!("Image {} cannot be made: {e}", path.display()));
        file.set_len(bytes).expect("the scratch directory has room for a sparse file");
        let made =
            Command::new(program).args(["-q", "-F", "-E", "lazy_itable_init=1", "-d"]).arg(content).arg(path).output();
        let made = made.unwrap_or_else(|e| panic!("{program} did not run: {e}"));
        assert!(
            made.status.success(),
            "{program} failed on {}: {}",
            path.display(),
            String::from_utf8_lossy(&made.stderr)
        );
        Some(Self { path: path.to_owned(), block: BLOCK })
    }

    /// Opens what is there.
    pub fn open(path: &Path) -> Self {
        Self { path: path.to_owned(), block: BLOCK }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).expect("the image is there").len()
    }

    /// Has it an ext filesystem? Their superblock says 0xEF53 at byte 1080.
    pub fn has_ext4(&self) -> bool {
        let file = File::open(&self.path).expect("the image is there");
        let mut magic = [0; 2];
        file.read_exact_at(&mut magic, 1080).is_ok() && magic == [0x53, 0xEF]
    }

    /// Calls `each` with the index and the bytes of every block that is not all zeros.
    pub fn for_each_block(&self, mut each: impl FnMut(usize, &[u8])) {
        let file = File::open(&self.path).expect("the image is there");
        let zeros = vec![0; self.block];
        let mut bytes = vec![0; self.block];
        for index in 0..(self.bytes() as usize).div_ceil(self.block) {
            bytes.fill(0);
            let offset = (index * self.block) as u64;
            let length = self.block.min((self.bytes() - offset) as usize);
            file.read_exact_at(&mut bytes[..length], offset).expect("the image is as long as it was");
            if bytes != zeros {
                each(index, &bytes);
            }
        }
    }

    /// Overwrites one block.
    pub fn write(&self, index: usize, content: Block) {
        self.write_at((index * self.block) as u64, &content.bytes(self.block));
    }

    pub fn write_at(&self, offset: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(&self.path).expect("the image is there and ours");
        file.write_all_at(bytes, offset).expect("the scratch directory has room");
    }
}

/// Where two files first differ, in words; `None` if they are equal.
pub fn difference(left: &Path, right: &Path) -> Option<String> {
    let open = |path: &Path| File::open(path).unwrap_or_else(|e| panic!("{} cannot be opened: {e}", path.display()));
    let (mut a, mut b) = (open(left), open(right));
    let (length_a, length_b) = (length(&mut a), length(&mut b));
    if length_a != length_b {
        return Some(format!("{} has {length_a} bytes, {} has {length_b}", left.display(), right.display()));
    }
    let (mut buffer_a, mut buffer_b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    while offset < length_a {
        let step = (length_a - offset).min(1 << 20) as usize;
        a.read_exact(&mut buffer_a[..step]).expect("the file is as long as it was");
        b.read_exact(&mut buffer_b[..step]).expect("the file is as long as it was");
        // Compared as wholes first: byte by byte, without optimisation, took a fifth of all the time of the tests.
        if buffer_a[..step] != buffer_b[..step] {
            let at = buffer_a.iter().zip(&buffer_b).position(|(a, b)| a != b).expect("they differ");
            let place = offset + at as u64;
            return Some(format!(
                "{} and {} differ at byte {place}, block {}",
                left.display(),
                right.display(),
                place / BLOCK as u64
            ));
        }
        offset += step as u64;
    }
    None
}

/// Where a restored volume differs from an image of it. Longhorn restores to the volume's size of today: if the volume has
/// grown since, the rest must be zeros.
pub fn difference_after_growth(image: &Path, restored: &Path) -> Option<u64> {
    let open = |path: &Path| BufReader::with_capacity(1 << 20, File::open(path).expect("it is there"));
    let (mut image, mut restored) = (open(image).chain(std::io::repeat(0)), open(restored));
    let (mut expected, mut offset) = (vec![0; 1 << 20], 0);
    loop {
        let seen = restored.fill_buf().expect("it can be read");
        let length = seen.len();
        image.read_exact(&mut expected[..length]).expect("it never ends");
        if seen != &expected[..length] {
            return Some(offset);
        }
        if length == 0 {
            return (offset < image.into_inner().0.into_inner().metadata().expect("open").len()).then_some(offset);
        }
        restored.consume(length);
        offset += length as u64;
    }
}

fn length(file: &mut File) -> u64 {
    let length = file.seek(SeekFrom::End(0)).expect("a regular file can be sought");
    file.rewind().expect("a regular file can be sought");
    length
}

/// SplitMix64: fast, and every seed gives other bytes.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

pub fn fill_random(bytes: &mut [u8], seed: u64) {
    let mut random = Random::new(seed);
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
    }
}

/// Lines of words that compress to about a third.
pub fn fill_text(bytes: &mut [u8], seed: u64) {
    const WORDS: [&str; 16] = [
        "tide", "harbour", "anchor", "ledger", "moon", "river", "block", "volume", "chalk", "wharf", "signal", "north",
        "lantern", "current", "estuary", "mark",
    ];
    let mut random = Random::new(seed);
    let mut rest = &mut bytes[..];
    while !rest.is_empty() {
        let number = random.next();
        let line =
            format!("{} {} {:08x}\n", WORDS[(number & 15) as usize], WORDS[(number >> 4 & 15) as usize], number >> 32);
        let length = line.len().min(rest.len());
        let mut here = rest;
        here.write_all(&line.as_bytes()[..length]).expect("the slice is long enough");
        rest = here;
    }
}
