//! Blocks: size, compression, and the arithmetic of ordinals.

use serde::{Deserialize, Serialize};

/// Block sizes that Longhorn restores: 2 MiB (its default) and 16 MiB (since 1.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub enum BlockSize {
    #[default]
    #[serde(rename = "2Mi")]
    Mi2,
    #[serde(rename = "16Mi")]
    Mi16,
}

impl BlockSize {
    /// Bytes of one block.
    pub const fn bytes(self) -> u64 {
        match self {
            BlockSize::Mi2 => 2 * 1024 * 1024,
            BlockSize::Mi16 => 16 * 1024 * 1024,
        }
    }

    /// The same, as a length in memory.
    #[expect(clippy::len_without_is_empty, reason = "no block size is empty")]
    pub const fn len(self) -> usize {
        self.bytes() as usize
    }

    /// The block size of that many bytes, if it is one of ours.
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        [BlockSize::Mi2, BlockSize::Mi16].into_iter().find(|size| size.bytes() == bytes)
    }

    /// Blocks of a volume of that many bytes, the last one possibly partial.
    pub const fn count(self, volume_bytes: u64) -> u64 {
        volume_bytes.div_ceil(self.bytes())
    }

    /// The volume's size as Longhorn must read it: a multiple of the block size, or it refuses to restore.
    pub const fn round_up(self, volume_bytes: u64) -> u64 {
        self.count(volume_bytes) * self.bytes()
    }
}

impl std::str::FromStr for BlockSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "2Mi" => Ok(BlockSize::Mi2),
            "16Mi" => Ok(BlockSize::Mi16),
            _ => Err(format!("block size {text:?} is not one of 2Mi, 16Mi")),
        }
    }
}

impl std::fmt::Display for BlockSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            BlockSize::Mi2 => "2Mi",
            BlockSize::Mi16 => "16Mi",
        })
    }
}

/// How the bytes of a `.blk` object are compressed; fixed for a volume by its first backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    #[default]
    Lz4,
    Gzip,
    None,
}

impl Compression {
    pub const fn as_str(self) -> &'static str {
        match self {
            Compression::Lz4 => "lz4",
            Compression::Gzip => "gzip",
            Compression::None => "none",
        }
    }
}

impl std::str::FromStr for Compression {
    type Err = String;
    /// Longhorn's spelling; an empty one means gzip, as in stores older than 1.5.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "lz4" => Ok(Compression::Lz4),
            "gzip" | "" => Ok(Compression::Gzip),
            "none" => Ok(Compression::None),
            _ => Err(format!("compression method {text:?} is not one of lz4, gzip, none")),
        }
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Is `stored` a believable size of an object that holds one block?
///
/// `none`: exactly the block. Otherwise readers mix lz4 and gzip, so both bounds at once: n/1032 is deflate's best
/// ratio, n/256 + 64 more than the framing of either. It catches empty and stub objects, not half a frame.
pub fn is_plausible(stored: u64, size: BlockSize, method: Compression) -> bool {
    let n = size.bytes();
    match method {
        Compression::None => stored == n,
        Compression::Lz4 | Compression::Gzip => (n / 1032..=n + n / 256 + 64).contains(&stored),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plausible_sizes_take_longhorns_objects_and_refuse_stubs() {
        for stored in [8265, 2_097_171, 8273, 8785] {
            assert!(is_plausible(stored, BlockSize::Mi2, Compression::Lz4), "{stored} (reference 1.13)");
        }
        for stored in [0, 1, 100, 4 * 1024 * 1024] {
            assert!(!is_plausible(stored, BlockSize::Mi2, Compression::Lz4), "{stored}");
        }
        assert!(!is_plausible(2_097_151, BlockSize::Mi2, Compression::None));
    }

    #[test]
    fn sizes_round_up_to_whole_blocks() {
        let two = BlockSize::Mi2;
        assert_eq!([0, 1, two.bytes(), two.bytes() + 1].map(|n| two.count(n)), [0, 1, 1, 2]);
        assert_eq!(two.round_up(1), 2_097_152);
    }
}
