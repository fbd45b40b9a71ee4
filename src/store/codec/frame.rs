//! The LZ4 frame around one block, as Longhorn writes it, and every frame that Longhorn reads.
//!
//! Written, in this order: magic `04 22 4d 18`, FLG `64` (version 1, independent pieces, content checksum), BD `70`
//! (pieces of up to 4 MiB), HC `b9`; for each piece of up to 4 MiB its length as a little-endian `u32` (highest bit
//! set: stored, not compressed) and its bytes; a length of 0; the xxh32 of the content.
//!
//! The frame is written around lz4's block functions, not with a frame encoder: those copy each piece through buffers
//! of their own and reach half the speed. Frames of other writers are read too: all piece sizes, linked pieces, piece
//! checksums, content size, no content checksum, skippable frames before it, and the legacy frame.
//! What may go wrong: anything in bytes that come from a store. No input panics; each error says what was seen.

use std::cell::RefCell;

use lz4_flex::block::{self, CompressTable};
use xxhash_rust::xxh32::xxh32;

use super::CodecError;

pub(super) const MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
pub(super) const MAGIC_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const HEADER: [u8; 7] = [0x04, 0x22, 0x4d, 0x18, 0x64, 0x70, 0xb9];
/// BD `70` allows pieces of this many bytes.
const PIECE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A legacy frame's pieces have this many bytes, but for the last.
const LEGACY_PIECE_BYTES: usize = 8 * 1024 * 1024;
/// Linked pieces refer to this many bytes before them.
const WINDOW_BYTES: usize = 64 * 1024;
/// The highest bit of a piece's length: its bytes are stored as they are.
const STORED: u32 = 1 << 31;

// FLG.
const VERSION_MASK: u8 = 0b1100_0000;
const VERSION_1: u8 = 0b0100_0000;
const INDEPENDENT: u8 = 0b0010_0000;
const PIECE_CHECKSUMS: u8 = 0b0001_0000;
const CONTENT_SIZE: u8 = 0b0000_1000;
const CONTENT_CHECKSUM: u8 = 0b0000_0100;
const DICTIONARY: u8 = 0b0000_0001;

/// Bytes an encoded block of n bytes may need on the way. It is never longer than `stored_len(n)` when finished.
pub const fn max_encoded_len(n: usize) -> usize {
    // The block function wants room for its own worst case (1.1 n + 20) behind the pieces that are finished.
    stored_len(n) + block::get_maximum_output_size(if n < PIECE_BYTES_MAX { n } else { PIECE_BYTES_MAX })
        - (if n < PIECE_BYTES_MAX { n } else { PIECE_BYTES_MAX })
}

/// Bytes of the frame around an incompressible block of n bytes: 7 + 4 for each piece + n + 4 + 4.
pub const fn stored_len(n: usize) -> usize {
    HEADER.len() + 4 * n.div_ceil(PIECE_BYTES_MAX) + n + 8
}

/// Writes the frame of `content` to the start of `out` and returns its length. `out` holds `max_encoded_len` bytes.
pub fn encode_into(content: &[u8], out: &mut [u8]) -> usize {
    thread_local! {
        /// 16 KiB of hash table, made once for each compute thread.
        static TABLE: RefCell<CompressTable> = RefCell::new(CompressTable::large());
    }
    assert!(out.len() >= max_encoded_len(content.len()), "the caller sized `out` by max_encoded_len");
    out[..HEADER.len()].copy_from_slice(&HEADER);
    let mut at = HEADER.len();
    for piece in content.chunks(PIECE_BYTES_MAX) {
        at += TABLE.with_borrow_mut(|table| encode_piece(piece, &mut out[at..], table));
    }
    out[at..at + 4].fill(0);
    out[at + 4..at + 8].copy_from_slice(&xxh32(content, 0).to_le_bytes());
    at + 8
}

fn encode_piece(piece: &[u8], out: &mut [u8], table: &mut CompressTable) -> usize {
    let (length, body) = out.split_at_mut(4);
    let compressed = block::compress_into_with_table(piece, body, table).expect("room for the worst case was asserted");
    // As pierrec/lz4 does: what does not get shorter is stored.
    let (written, flag) = if compressed < piece.len() {
        (compressed, 0)
    } else {
        body[..piece.len()].copy_from_slice(piece);
        (piece.len(), STORED)
    };
    length.copy_from_slice(&(written as u32 | flag).to_le_bytes());
    4 + written
}

/// Reads a frame that must hold exactly `out.len()` bytes and end where `object` ends.
pub fn decode(object: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
    let mut input = Input { bytes: object, at: 0 };
    loop {
        let magic: [u8; 4] = input.array("the frame's magic")?;
        match magic {
            MAGIC => return decode_frame(&mut input, out),
            MAGIC_LEGACY => return decode_legacy(&mut input, out),
            // `50` to `5f 2a 4d 18`: a skippable frame, its length, bytes that are nobody's business.
            [low, 0x2a, 0x4d, 0x18] if low & 0xf0 == 0x50 => {
                let length = u32::from_le_bytes(input.array("a skippable frame's length")?);
                input.take(length as usize, "a skippable frame")?;
            }
            _ => return Err(CodecError::not("LZ4", object)),
        }
    }
}

/// What the descriptor of a frame says.
struct Descriptor {
    flags: u8,
    piece_bytes_max: usize,
}

impl Descriptor {
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn read(input: &mut Input<'_>, block_bytes: usize) -> Result<Self, CodecError> {
        let start = input.at;
        let [flags, bd] = input.array("the frame's descriptor")?;
        if flags & VERSION_MASK != VERSION_1 {
            return Err(CodecError::Unsupported(format!("LZ4 frame version {} (only 1 is known)", flags >> 6)));
        }
        let piece_bytes_max = match (bd >> 4) & 7 {
            code @ 4..=7 => 1usize << (8 + 2 * code),
            code => {
                return Err(CodecError::Unsupported(format!(
                    "LZ4 frame with piece size code {code} (4 to 7 are known)"
                )));
            }
        };
        let descriptor = Self { flags, piece_bytes_max };
        let mut content_bytes = None;
        if descriptor.has(CONTENT_SIZE) {
            content_bytes = Some(u64::from_le_bytes(input.array("the frame's content size")?));
        }
        if descriptor.has(DICTIONARY) {
            let id = u32::from_le_bytes(input.array("the frame's dictionary")?);
            return Err(CodecError::Unsupported(format!("LZ4 frame that needs dictionary {id}")));
        }
        let expected = (xxh32(&input.bytes[start..input.at], 0) >> 8) as u8;
        let [seen] = input.array("the frame's header checksum")?;
        CodecError::compare("header", u32::from(seen), u32::from(expected))?;
        match content_bytes {
            Some(n) if n != block_bytes as u64 => Err(CodecError::Length { seen: n, expected: block_bytes as u64 }),
            _ => Ok(descriptor),
        }
    }
}

fn decode_frame(input: &mut Input<'_>, out: &mut [u8]) -> Result<(), CodecError> {
    let descriptor = Descriptor::read(input, out.len())?;
    let mut filled = 0;
    loop {
        let word = u32::from_le_bytes(input.array("a piece's length")?);
        if word == 0 {
            break;
        }
        let (length, is_stored) = ((word & !STORED) as usize, word & STORED != 0);
        if length > descriptor.piece_bytes_max {
            let text = format!("piece of {length} bytes in a frame of pieces up to {}", descriptor.piece_bytes_max);
            return Err(CodecError::Corrupt(text));
        }
        let piece = input.take(length, "a piece")?;
        if descriptor.has(PIECE_CHECKSUMS) {
            let seen = u32::from_le_bytes(input.array("a piece's checksum")?);
            CodecError::compare("piece", seen, xxh32(piece, 0))?;
        }
        let window = if descriptor.has(INDEPENDENT) { 0 } else { filled.min(WINDOW_BYTES) };
        filled += match is_stored {
            true => copy_piece(piece, &mut out[filled..])?,
            false => decode_piece(piece, out, filled, Bounds { window, piece_bytes_max: descriptor.piece_bytes_max })?,
        };
    }
    require_full(filled, out.len())?;
    if descriptor.has(CONTENT_CHECKSUM) {
        let seen = u32::from_le_bytes(input.array("the content's checksum")?);
        CodecError::compare("content", xxh32(out, 0), seen)?;
    }
    input.finish()
}

/// A legacy frame has no end mark: its pieces go on to the end of the object.
fn decode_legacy(input: &mut Input<'_>, out: &mut [u8]) -> Result<(), CodecError> {
    let mut filled = 0;
    while input.at < input.bytes.len() {
        let length = u32::from_le_bytes(input.array("a piece's length")?);
        let piece = input.take(length as usize, "a piece")?;
        filled += decode_piece(piece, out, filled, Bounds { window: 0, piece_bytes_max: LEGACY_PIECE_BYTES })?;
    }
    require_full(filled, out.len())
}

/// How far a piece reaches: back into the content before it, and forward.
struct Bounds {
    window: usize,
    piece_bytes_max: usize,
}

fn decode_piece(piece: &[u8], out: &mut [u8], filled: usize, bounds: Bounds) -> Result<usize, CodecError> {
    let whole = out.len() as u64;
    let (before, rest) = out.split_at_mut(filled);
    let room = rest.len().min(bounds.piece_bytes_max);
    let target = &mut rest[..room];
    let decoded = match bounds.window {
        0 => block::decompress_into(piece, target),
        window => block::decompress_into_with_dict(piece, target, &before[filled - window..]),
    };
    decoded.map_err(|error| match error {
        block::DecompressError::OutputTooSmall { .. } if room < bounds.piece_bytes_max => {
            CodecError::LongerThan { expected: whole }
        }
        other => CodecError::Corrupt(format!("piece at content offset {filled}: {other}")),
    })
}

fn copy_piece(piece: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
    match out.get_mut(..piece.len()) {
        Some(target) => {
            target.copy_from_slice(piece);
            Ok(piece.len())
        }
        None => Err(CodecError::Corrupt(format!("stored piece of {} bytes, {} remain", piece.len(), out.len()))),
    }
}

fn require_full(filled: usize, expected: usize) -> Result<(), CodecError> {
    match filled == expected {
        true => Ok(()),
        false => Err(CodecError::Length { seen: filled as u64, expected: expected as u64 }),
    }
}

/// The bytes of an object, read once from front to back.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], CodecError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..n).ok_or(CodecError::Truncated { what, bytes: self.bytes.len() })?;
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], CodecError> {
        Ok(self.take(N, what)?.try_into().expect("take returned N bytes"))
    }

    fn finish(&self) -> Result<(), CodecError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            bytes => Err(CodecError::Trailing { bytes }),
        }
    }
}
