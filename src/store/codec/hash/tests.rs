//! Every lane of every path against `sha2`.

use super::*;

#[cfg(target_arch = "x86_64")]
const PATHS: [Path; 3] = [Path::Scalar, Path::Avx2, Path::Avx512];
#[cfg(not(target_arch = "x86_64"))]
const PATHS: [Path; 1] = [Path::Scalar];

fn available_paths() -> impl Iterator<Item = Path> {
    PATHS.into_iter().filter(|path| {
        let available = path.is_available();
        if !available {
            println!("{path:?} is not tested: this processor lacks it");
        }
        available
    })
}

/// Bytes that differ in every lane and at every place.
fn message(lane: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| ((i * 31 + lane * 101 + (i >> 8) * 7) % 251) as u8).collect()
}

fn assert_named_as_sha2(path: Path, messages: &[Vec<u8>]) {
    let blocks: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
    let mut names = vec![BlockName([0xee; 32]); blocks.len()];
    name_blocks_by(path, &blocks, &mut names);
    let expected: Vec<BlockName> = blocks.iter().map(|b| BlockName::of(b)).collect();
    let lengths: Vec<usize> = blocks.iter().map(|b| b.len()).collect();
    assert_eq!(names, expected, "{path:?}, lengths {lengths:?}");
}

#[test]
fn every_lane_of_every_path_names_a_block_as_sha2_does() {
    // Under an interpreter the borders only; on a processor everything up to three chunks.
    let lengths: Vec<usize> = if cfg!(miri) { vec![0, 111, 112, 128] } else { (0..=3 * CHUNK + 1).collect() };
    for path in available_paths() {
        for &length in &lengths {
            for count in 1..=9 {
                let messages: Vec<_> = (0..count).map(|lane| message(lane, length)).collect();
                assert_named_as_sha2(path, &messages);
            }
        }
    }
}

#[test]
fn blocks_of_unequal_lengths_keep_their_own_names() {
    for path in available_paths() {
        for lengths in [[5, 5, 7, 7, 7, 7, 7, 0, 0, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]] {
            let messages: Vec<_> = lengths.iter().enumerate().map(|(i, &l)| message(i, l * 50)).collect();
            assert_named_as_sha2(path, &messages);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "2 MiB are hours under an interpreter")]
fn whole_blocks_have_their_names_in_every_lane() {
    for path in available_paths() {
        let messages: Vec<_> = (0..path.lanes()).map(|lane| message(lane, 2 * 1024 * 1024)).collect();
        assert_named_as_sha2(path, &messages);
    }
    let mut names = [BlockName([0; 32])];
    name_blocks(&[&vec![0; 2 * 1024 * 1024]], &mut names);
    assert_eq!(names[0].to_string(), "731859029215873fdac1c9f2f8bd25a334abf0f3a9e1b057cf2cacc2826d86b0");
}
