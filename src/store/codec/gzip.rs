//! Gzip, the method of stores older than Longhorn 1.5.
//!
//! Written with the header of Go's `compress/gzip` at its default level: no name, time 0, XFL 0, system 255. Read by
//! the rules of RFC 1952, several members included, exactly to the end of the object.
//! What may go wrong: anything in bytes that come from a store, reported in the words of the inflater.

use std::io::{Cursor, Read, Write};

use flate2::{Compression, GzBuilder, bufread::MultiGzDecoder};

use super::CodecError;

pub(super) const MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Go's `DefaultCompression`.
const LEVEL: u32 = 6;
const SYSTEM_UNKNOWN: u8 = 255;

/// Bytes an encoded block of n bytes may need: 18 of header and trailer, and 5 for each stored run; runs are longer
/// than 1 KiB.
pub const fn max_encoded_len(n: usize) -> usize {
    n + n / 200 + 64
}

/// Writes the gzip of `content` to the start of `out` and returns its length. `out` holds `max_encoded_len` bytes.
pub fn encode_into(content: &[u8], out: &mut [u8]) -> usize {
    let target = Cursor::new(out);
    let mut writer = GzBuilder::new().operating_system(SYSTEM_UNKNOWN).write(target, Compression::new(LEVEL));
    writer.write_all(content).expect("the caller sized `out` by max_encoded_len");
    let target = writer.finish().expect("the caller sized `out` by max_encoded_len");
    usize::try_from(target.position()).expect("a position in a slice")
}

/// Reads gzip that must hold exactly `out.len()` bytes and end where `object` ends.
pub fn decode(object: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
    let corrupt = |error: std::io::Error| CodecError::Corrupt(format!("gzip of {} bytes: {error}", object.len()));
    let mut reader = MultiGzDecoder::new(object);
    let mut filled = 0;
    while filled < out.len() {
        match reader.read(&mut out[filled..]).map_err(corrupt)? {
            0 => return Err(CodecError::Length { seen: filled as u64, expected: out.len() as u64 }),
            n => filled += n,
        }
    }
    // Reading on makes the decoder check the trailer, and shows whatever follows it.
    match reader.read(&mut [0]).map_err(corrupt)? {
        0 => Ok(()),
        _ => Err(CodecError::LongerThan { expected: out.len() as u64 }),
    }
}
