//! Bytes of a block ↔ bytes of its `.blk` object, and the block's name.
//!
//! * `hash`   the name: SHA-512 of several blocks at once
//! * `frame`  lz4, Longhorn's default
//! * `gzip`   the method of old stores
//!
//! Reading is as liberal as Longhorn: a record that says lz4 may name gzip objects and the other way round, for a
//! volume's method may have changed; `none` is exactly the block. A decoded block still has to be compared with its
//! name: nothing here proves that it is the right block.

pub mod frame;
pub mod gzip;
pub mod hash;

pub use hash::{lanes, name_blocks};

use crate::model::Compression;

/// Why an object does not hold its block. Nothing here is curable by asking again for the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("Object of {bytes} bytes begins with {seen}, expected {expected}")]
    NotThisFormat { expected: &'static str, seen: String, bytes: usize },
    #[error("Object of {bytes} bytes ends within {what}")]
    Truncated { what: &'static str, bytes: usize },
    #[error("Block is {seen} bytes, expected {expected}")]
    Length { seen: u64, expected: u64 },
    #[error("Block is longer than the expected {expected} bytes")]
    LongerThan { expected: u64 },
    #[error("Object goes on for {bytes} bytes after its end")]
    Trailing { bytes: usize },
    #[error("Checksum of the {what} is {seen:08x}, expected {expected:08x}")]
    Checksum { what: &'static str, seen: u32, expected: u32 },
    #[error("Object has a form that cannot be read: {0}")]
    Unsupported(String),
    #[error("Object is corrupt: {0}")]
    Corrupt(String),
}

impl CodecError {
    fn not(expected: &'static str, object: &[u8]) -> Self {
        let seen = match object {
            [] => "nothing".to_owned(),
            some => hex::encode(&some[..some.len().min(4)]),
        };
        CodecError::NotThisFormat { expected, seen, bytes: object.len() }
    }

    fn compare(what: &'static str, seen: u32, expected: u32) -> Result<(), Self> {
        match seen == expected {
            true => Ok(()),
            false => Err(CodecError::Checksum { what, seen, expected }),
        }
    }
}

/// Room that `encode_into` needs for a block of n bytes, whatever they are.
pub const fn max_encoded_len(method: Compression, n: usize) -> usize {
    match method {
        Compression::Lz4 => frame::max_encoded_len(n),
        Compression::Gzip => gzip::max_encoded_len(n),
        Compression::None => n,
    }
}

/// Encodes a block into the start of a buffer that is used again and again; returns the object's length.
pub fn encode_into(method: Compression, block: &[u8], out: &mut [u8]) -> usize {
    match method {
        Compression::Lz4 => frame::encode_into(block, out),
        Compression::Gzip => gzip::encode_into(block, out),
        Compression::None => {
            out[..block.len()].copy_from_slice(block);
            block.len()
        }
    }
}

/// Encodes a block into a vector, which becomes exactly the object.
pub fn encode(method: Compression, block: &[u8], out: &mut Vec<u8>) {
    out.resize(max_encoded_len(method, block.len()), 0);
    let length = encode_into(method, block, out);
    out.truncate(length);
}

/// Decodes an object into `out`, which has the block's size: no more and no fewer bytes are accepted.
pub fn decode(method: Compression, object: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
    match method {
        Compression::None if object.len() == out.len() => {
            out.copy_from_slice(object);
            Ok(())
        }
        Compression::None => Err(CodecError::Length { seen: object.len() as u64, expected: out.len() as u64 }),
        Compression::Lz4 if object.starts_with(&gzip::MAGIC) => gzip::decode(object, out),
        Compression::Lz4 => frame::decode(object, out),
        Compression::Gzip if object.starts_with(&gzip::MAGIC) => gzip::decode(object, out),
        Compression::Gzip => match frame::decode(object, out) {
            Err(CodecError::NotThisFormat { .. }) => Err(CodecError::not("gzip or LZ4", object)),
            other => other,
        },
    }
}

/// Is every byte zero? Blocks of zeros are neither stored nor named.
pub fn is_zero(bytes: &[u8]) -> bool {
    // 256 bytes at a time without a branch, which the compiler turns into the widest registers it may use.
    let (chunks, rest) = bytes.as_chunks::<256>();
    let is_zero_chunk = |chunk: &[u8; 256]| {
        let (words, _) = chunk.as_chunks::<8>();
        words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0
    };
    chunks.iter().all(is_zero_chunk) && rest.iter().all(|&byte| byte == 0)
}
