//! Objects of other writers are read, ours are Longhorn's to the byte where that is defined, and damaged ones are
//! refused with what was seen. The files in `data/codec` were made by pierrec/lz4 4.1.22 (Longhorn's library), the lz4
//! command line 1.9 and Go's compress/gzip, from the same 200,000 bytes of text that `text()` makes again.

use proptest::prelude::*;
use tidemark::{
    model::{BlockSize, Compression, block::is_plausible},
    store::codec::{self, CodecError, decode, encode},
};

const BLOCK: usize = BlockSize::Mi2.len();

fn text() -> Vec<u8> {
    let mut text = String::new();
    for i in 0u64.. {
        if text.len() >= 200_000 {
            break;
        }
        text.push_str(&format!("block {} of the tide\n", i * i % 97));
    }
    text.truncate(200_000);
    text.into_bytes()
}

fn foreign(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/codec").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn encoded(method: Compression, block: &[u8]) -> Vec<u8> {
    let mut object = Vec::new();
    encode(method, block, &mut object);
    object
}

/// Decodes into a buffer that was full of something else.
fn decoded(method: Compression, object: &[u8], bytes: usize) -> Result<Vec<u8>, CodecError> {
    let mut out = vec![0xa5; bytes];
    decode(method, object, &mut out).map(|()| out)
}

/// Bytes that no compressor shortens.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let words = std::iter::from_fn(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes())
    });
    let mut noise: Vec<u8> = words.take(bytes.div_ceil(8)).flatten().collect();
    noise.truncate(bytes);
    noise
}

const FOREIGN: [&str; 11] = [
    "pierrec-default.lz4",
    "pierrec-64k.lz4",
    "pierrec-64k-checksums-size.lz4",
    "pierrec-256k-nochecksum.lz4",
    "pierrec-hc-1m.lz4",
    "pierrec-legacy.lz4",
    "cli-64k-linked.lz4",
    "cli-256k-linked-checksums-size.lz4",
    "cli-hc-nocrc.lz4",
    "cli-legacy.lz4",
    "go.gz",
];

#[test]
fn every_frame_longhorn_reads_is_read() {
    for name in FOREIGN {
        for method in [Compression::Lz4, Compression::Gzip] {
            let seen = decoded(method, &foreign(name), 200_000);
            assert!(seen == Ok(text()), "{name} under {method}: {:?}", seen.map(|bytes| bytes.len()));
        }
    }
}

#[test]
fn a_skippable_frame_before_the_frame_is_skipped() {
    let mut object = vec![0x5e, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
    object.extend(foreign("pierrec-default.lz4"));
    assert_eq!(decoded(Compression::Lz4, &object, 200_000), Ok(text()));
}

#[test]
fn an_incompressible_block_is_longhorns_object_to_the_byte() {
    let block = noise(BLOCK);
    let object = encoded(Compression::Lz4, &block);
    assert_eq!(object.len(), 2_097_171, "reference 1.6: 19 bytes of framing");
    assert_eq!(hex::encode(&object[..11]), "04224d186470b900002080", "header, then 2 MiB with the stored bit");
    assert!(object[11..11 + BLOCK] == block, "the block as it is");
    assert_eq!(object[11 + BLOCK..15 + BLOCK], [0; 4], "end mark");
    let large = noise(BlockSize::Mi16.len());
    let object = encoded(Compression::Lz4, &large);
    assert_eq!(object.len(), 16 * 1024 * 1024 + 7 + 4 * 4 + 8, "four pieces of 4 MiB");
    assert!(decoded(Compression::Lz4, &object, large.len()) == Ok(large));
}

#[test]
fn zeros_are_as_short_as_longhorns() {
    let object = encoded(Compression::Lz4, &vec![0; BLOCK]);
    println!("2 MiB of zeros: {} bytes here, 8265 by pierrec/lz4", object.len());
    assert!((8200..=8265).contains(&object.len()), "{}", object.len());
    assert!(is_plausible(object.len() as u64, BlockSize::Mi2, Compression::Lz4));
}

#[test]
fn gzip_has_gos_header() {
    let object = encoded(Compression::Gzip, &text());
    assert_eq!(hex::encode(&object[..10]), "1f8b08000000000000ff");
    assert_eq!(object[..10], foreign("go.gz")[..10]);
}

#[test]
fn every_method_gives_back_what_it_took() {
    let mut half = noise(BLOCK);
    half[BLOCK / 2..].fill(b'x');
    for (what, block) in [("zeros", vec![0; BLOCK]), ("noise", noise(BLOCK)), ("half", half), ("empty", vec![])] {
        for method in [Compression::Lz4, Compression::Gzip, Compression::None] {
            let object = encoded(method, &block);
            assert!(decoded(method, &object, block.len()) == Ok(block.clone()), "{what} by {method}");
            if block.len() == BLOCK {
                let stored = object.len() as u64;
                assert!(is_plausible(stored, BlockSize::Mi2, method), "{what} by {method}: {stored} bytes");
            }
        }
    }
}

#[test]
fn lz4_and_gzip_stand_in_for_each_other_but_not_for_none() {
    let text = text();
    let (lz4, gzip) = (encoded(Compression::Lz4, &text), encoded(Compression::Gzip, &text));
    assert_eq!(decoded(Compression::Gzip, &lz4, text.len()), Ok(text.clone()));
    assert_eq!(decoded(Compression::Lz4, &gzip, text.len()), Ok(text.clone()));
    for object in [&lz4, &gzip] {
        let error = decoded(Compression::None, object, text.len()).expect_err("none is exactly the block");
        assert_eq!(error, CodecError::Length { seen: object.len() as u64, expected: 200_000 });
    }
    for method in [Compression::Lz4, Compression::Gzip] {
        let error = decoded(method, &text, text.len()).expect_err("raw bytes are no object of this method").to_string();
        assert!(error.contains("begins with 626c6f63"), "{error}");
    }
}

#[test]
fn an_object_that_is_not_one_block_is_refused_with_what_was_seen() {
    let text = text();
    for method in [Compression::Lz4, Compression::Gzip] {
        let object = encoded(method, &text);
        let mut longer = object.clone();
        longer.push(0);
        let cases = [
            ("trailing byte", decoded(method, &longer, text.len())),
            ("nothing", decoded(method, b"", text.len())),
            ("one byte short", decoded(method, &object, text.len() + 1)),
            ("one byte long", decoded(method, &object, text.len() - 1)),
        ];
        for (what, seen) in cases {
            let error = seen.expect_err(what);
            println!("{method}, {what}: {error}");
        }
    }
    let lz4 = encoded(Compression::Lz4, &text);
    let short = decoded(Compression::Lz4, &lz4, 200_001).expect_err("short");
    assert_eq!(short, CodecError::Length { seen: 200_000, expected: 200_001 });
    assert_eq!(decoded(Compression::Lz4, &lz4, 199_999), Err(CodecError::LongerThan { expected: 199_999 }));
    let sized = decoded(Compression::Lz4, &foreign("pierrec-64k-checksums-size.lz4"), 7).expect_err("says its size");
    assert_eq!(sized, CodecError::Length { seen: 200_000, expected: 7 });
}

#[test]
fn every_cut_is_an_error() {
    for name in FOREIGN {
        let object = foreign(name);
        // Every cut near both ends, where the framing is, and every seventh between.
        let near_an_end = |cut: usize| cut < 40 || cut + 40 > object.len();
        for cut in (0..object.len()).filter(|&cut| near_an_end(cut) || cut % 7 == 0) {
            let seen = decoded(Compression::Lz4, &object[..cut], 200_000);
            assert!(seen.is_err(), "{name} cut to {cut} of {} bytes", object.len());
        }
    }
}

#[test]
fn no_flipped_bit_gives_other_content() {
    let text = text();
    for name in ["pierrec-64k-checksums-size.lz4", "cli-64k-linked.lz4", "pierrec-default.lz4"] {
        let object = foreign(name);
        for at in (0..object.len()).step_by(3) {
            let mut damaged = object.clone();
            damaged[at] ^= 1 << (at % 8);
            if let Ok(seen) = decoded(Compression::Lz4, &damaged, text.len()) {
                assert!(seen == text, "{name} with a bit of byte {at} flipped gave other content");
            }
        }
    }
}

#[test]
fn zero_tests_see_every_byte() {
    for length in [0, 1, 255, 256, 257, 1000] {
        let mut bytes = vec![0; length];
        assert!(codec::is_zero(&bytes), "{length}");
        for at in 0..length {
            bytes[at] = 1;
            assert!(!codec::is_zero(&bytes), "byte {at} of {length}");
            bytes[at] = 0;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_survive_any_method(runs in prop::collection::vec((any::<u8>(), 1usize..4000, any::<bool>()), 0..40)) {
        let mut block = Vec::new();
        for (seed, length, is_run) in runs {
            let noise = noise(length + usize::from(seed));
            block.extend((0..length).map(|i| if is_run { seed } else { noise[i + usize::from(seed)] }));
        }
        for method in [Compression::Lz4, Compression::Gzip, Compression::None] {
            let object = encoded(method, &block);
            prop_assert!(object.len() <= codec::max_encoded_len(method, block.len()));
            if method == Compression::Lz4 {
                prop_assert!(object.len() <= codec::frame::stored_len(block.len()));
            }
            prop_assert!(decoded(method, &object, block.len()).as_ref() == Ok(&block));
        }
    }

    #[test]
    fn no_input_panics(object in prop::collection::vec(any::<u8>(), 0..400), start in 0usize..4) {
        let mut object = object;
        let magic: &[u8] = [&b""[..], &[0x04, 0x22, 0x4d, 0x18, 0x64, 0x70, 0xb9], &[0x1f, 0x8b, 8], &[0x02, 0x21, 0x4c, 0x18]][start];
        object.splice(0..0, magic.iter().copied());
        for method in [Compression::Lz4, Compression::Gzip, Compression::None] {
            let _either_is_fine = decoded(method, &object, 300);
        }
    }
}
