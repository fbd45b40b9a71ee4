//! Names of blocks: the first 32 bytes of SHA-512, several blocks at once in the lanes of vector registers.
//!
//! One SHA-512 has no parallelism inside, so one block at a time leaves three quarters of a vector register unused
//! (0.5 GiB/s per core). Four blocks of one length share the rounds in AVX2, eight in AVX-512. Blocks of unequal
//! lengths, a lonely block and other processors go through `sha2`, which is also what every path is checked against.
//!
//! In order: what callers use, the choice of a path, then one module per register width. Both widths expand the same
//! rounds (`sha512_rounds!`) over their own eleven operations, and share the loading and turning of message words.
//! What may go wrong: a processor without the instructions (asked once, at run time), or a mistake here, which would
//! name a block falsely. The tests compare each lane of each path with `sha2` around every border of the padding; on a
//! processor without AVX-512 that path is checked by interpreting it:
//! `RUSTFLAGS="-C target-feature=+avx512f,+avx2" cargo +nightly miri test --lib codec::hash`.
#![expect(unsafe_code, reason = "vector instructions: loads from slices, and calls after the processor was asked")]

use crate::model::BlockName;

/// Which instructions name the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Scalar,
}

/// The batch size that fills this processor's lanes.
pub fn lanes() -> usize {
    Path::best().lanes()
}

/// Names each block; `names[i]` is the name of `blocks[i]`.
///
/// Fastest with `lanes()` blocks of one length. Any number and any lengths are right.
pub fn name_blocks(blocks: &[&[u8]], names: &mut [BlockName]) {
    name_blocks_by(Path::best(), blocks, names);
}

fn name_blocks_by(path: Path, blocks: &[&[u8]], names: &mut [BlockName]) {
    assert_eq!(blocks.len(), names.len(), "one name for each block");
    let mut done = 0;
    while done < blocks.len() {
        let length = blocks[done].len();
        let run = blocks[done..].iter().take(path.lanes()).take_while(|b| b.len() == length).count();
        let (group, group_names) = (&blocks[done..done + run], &mut names[done..done + run]);
        path.name_group(group, group_names);
        done += run;
    }
}

impl Path {
    #[cfg(target_arch = "x86_64")]
    fn best() -> Self {
        if Path::Avx512.is_available() {
            Path::Avx512
        } else if Path::Avx2.is_available() {
            Path::Avx2
        } else {
            Path::Scalar
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn best() -> Self {
        Path::Scalar
    }

    fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => std::arch::is_x86_feature_detected!("avx512f") && Path::Avx2.is_available(),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => std::arch::is_x86_feature_detected!("avx2"),
            Path::Scalar => true,
        }
    }

    fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => 8,
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => 4,
            Path::Scalar => 1,
        }
    }

    /// Names at most `lanes()` blocks of one length.
    fn name_group(self, blocks: &[&[u8]], names: &mut [BlockName]) {
        assert!(self.is_available(), "{self:?} was chosen on a processor that lacks it");
        match (self, blocks.len()) {
            // One block alone: a vector of which one lane is used is slower than the scalar rounds.
            (_, 1) | (Path::Scalar, _) => {
                for (block, name) in blocks.iter().zip(names) {
                    *name = BlockName::of(block);
                }
            }
            // SAFETY: `is_available` was asserted above, so the processor has the instructions these functions enable.
            #[cfg(target_arch = "x86_64")]
            (Path::Avx2, _) | (Path::Avx512, 2..=4) => unsafe { avx2::name(blocks, names) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Path::Avx512, _) => unsafe { avx512::name(blocks, names) },
        }
    }
}

/// Bytes of one SHA-512 message block.
const CHUNK: usize = 128;

/// FIPS 180-4, 5.3.5: the first 64 bits of the fractional parts of the square roots of the first eight primes.
const START: [u64; 8] = [
    0x6a09e667f3bcc908,
    0xbb67ae8584caa73b,
    0x3c6ef372fe94f82b,
    0xa54ff53a5f1d36f1,
    0x510e527fade682d1,
    0x9b05688c2b3e6c1f,
    0x1f83d9abfb41bd6b,
    0x5be0cd19137e2179,
];

/// FIPS 180-4, 4.2.3: the same of the cube roots of the first eighty primes.
#[rustfmt::skip]
const ROUND: [u64; 80] = [
    0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc, 0x3956c25bf348b538,
    0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118, 0xd807aa98a3030242, 0x12835b0145706fbe,
    0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2, 0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235,
    0xc19bf174cf692694, 0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
    0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5, 0x983e5152ee66dfab,
    0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4, 0xc6e00bf33da88fc2, 0xd5a79147930aa725,
    0x06ca6351e003826f, 0x142929670a0e6e70, 0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed,
    0x53380d139d95b3df, 0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
    0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30, 0xd192e819d6ef5218,
    0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8, 0x19a4c116b8d2d0c8, 0x1e376c085141ab53,
    0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8, 0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373,
    0x682e6ff3d6b2b8a3, 0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
    0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b, 0xca273eceea26619c,
    0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178, 0x06f067aa72176fba, 0x0a637dc5a2c898a6,
    0x113f9804bef90dae, 0x1b710b35131c471b, 0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc,
    0x431d67c49c100d4c, 0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817,
];

/// The padded end of a message: what is left after its last whole chunk, `80`, zeros, its length in bits.
struct Tail {
    bytes: [u8; 2 * CHUNK],
    chunks: usize,
}

impl Tail {
    fn of(message: &[u8]) -> Self {
        let rest = &message[message.len() / CHUNK * CHUNK..];
        let mut bytes = [0; 2 * CHUNK];
        bytes[..rest.len()].copy_from_slice(rest);
        bytes[rest.len()] = 0x80;
        // 1 byte of `80` and 16 of length must fit behind the rest.
        let chunks = if rest.len() + 17 <= CHUNK { 1 } else { 2 };
        let bits = (message.len() as u128) * 8;
        bytes[chunks * CHUNK - 16..chunks * CHUNK].copy_from_slice(&bits.to_be_bytes());
        Self { bytes, chunks }
    }
}

/// Everything of one register width that does not depend on it: `rounds` over one chunk of each lane, and `name`.
///
/// Expands where `Vector`, `LANES`, `splat`, `add`, `ch`, `maj`, `big0`, `big1`, `small0`, `small1`, `load` and
/// `store` of that width are defined.
#[cfg(target_arch = "x86_64")]
macro_rules! sha512_lanes {
    ($feature:literal) => {
        /// The eighty rounds: FIPS 180-4, 6.4.2, with a rolling window of sixteen message words.
        #[target_feature(enable = $feature)]
        fn rounds(state: &mut [Vector; 8], w: &mut [Vector; 16]) {
            let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
            macro_rules! round {
                ($t:expr, $i:literal, $schedule:literal) => {{
                    let t1 = add(add(add(h, big1(e)), ch(e, f, g)), add(w[$i], splat(ROUND[$t + $i])));
                    let t2 = add(big0(a), maj(a, b, c));
                    (h, g, f, e) = (g, f, e, add(d, t1));
                    (d, c, b, a) = (c, b, a, add(t1, t2));
                    // Word t+16, at its place in the window: the words of t+14 and t+9 are there already.
                    if $schedule {
                        let near = add(small1(w[($i + 14) % 16]), w[($i + 9) % 16]);
                        w[$i] = add(add(near, small0(w[($i + 1) % 16])), w[$i]);
                    }
                }};
            }
            macro_rules! sixteen {
                ($t:expr, $schedule:literal) => {{
                    round!($t, 0, $schedule);
                    round!($t, 1, $schedule);
                    round!($t, 2, $schedule);
                    round!($t, 3, $schedule);
                    round!($t, 4, $schedule);
                    round!($t, 5, $schedule);
                    round!($t, 6, $schedule);
                    round!($t, 7, $schedule);
                    round!($t, 8, $schedule);
                    round!($t, 9, $schedule);
                    round!($t, 10, $schedule);
                    round!($t, 11, $schedule);
                    round!($t, 12, $schedule);
                    round!($t, 13, $schedule);
                    round!($t, 14, $schedule);
                    round!($t, 15, $schedule);
                }};
            }
            for t in [0, 16, 32, 48] {
                sixteen!(t, true);
            }
            sixteen!(64, false);
            for (word, new) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
                *word = add(*word, new);
            }
        }

        /// Names 1 to `LANES` blocks of one length. Unused lanes repeat the first block, and cost nothing but time.
        #[target_feature(enable = $feature)]
        pub(super) fn name(blocks: &[&[u8]], names: &mut [BlockName]) {
            let length = blocks[0].len();
            assert!(blocks.len() <= LANES && blocks.iter().all(|b| b.len() == length), "lanes of one length");
            let lane: [&[u8]; LANES] = std::array::from_fn(|i| *blocks.get(i).unwrap_or(&blocks[0]));
            let mut state: [Vector; 8] = START.map(|word| splat(word));
            for at in (0..length / CHUNK).map(|i| i * CHUNK) {
                let mut w = load(std::array::from_fn(|i| chunk_at(lane[i], at)));
                rounds(&mut state, &mut w);
            }
            let tails: [Tail; LANES] = std::array::from_fn(|i| Tail::of(lane[i]));
            for at in (0..tails[0].chunks).map(|i| i * CHUNK) {
                let mut w = load(std::array::from_fn(|i| chunk_at(&tails[i].bytes, at)));
                rounds(&mut state, &mut w);
            }
            for word in 0..4 {
                let lanes = store(state[word]);
                for (name, value) in names.iter_mut().zip(lanes) {
                    name.0[8 * word..8 * word + 8].copy_from_slice(&value.to_be_bytes());
                }
            }
        }
    };
}

/// The chunk that begins there.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn chunk_at(message: &[u8], at: usize) -> &[u8; CHUNK] {
    message[at..at + CHUNK].try_into().expect("a slice of that length")
}

/// Four lanes of 64 bits. There is no rotation: two shifts and an exclusive or.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BlockName, CHUNK, ROUND, START, Tail, chunk_at};

    type Vector = __m256i;
    const LANES: usize = 4;

    sha512_lanes!("avx2");

    #[target_feature(enable = "avx2")]
    #[inline]
    fn splat(word: u64) -> Vector {
        _mm256_set1_epi64x(word as i64)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn add(x: Vector, y: Vector) -> Vector {
        _mm256_add_epi64(x, y)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn xor(x: Vector, y: Vector) -> Vector {
        _mm256_xor_si256(x, y)
    }

    /// x rotated right by R; L = 64 − R.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn rotate<const R: i32, const L: i32>(x: Vector) -> Vector {
        const { assert!(R + L == 64) };
        xor(_mm256_srli_epi64::<R>(x), _mm256_slli_epi64::<L>(x))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn ch(e: Vector, f: Vector, g: Vector) -> Vector {
        xor(g, _mm256_and_si256(e, xor(f, g)))
    }

    /// With `a ^ b` of this round as `b ^ c` of the next.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn maj(a: Vector, b: Vector, c: Vector) -> Vector {
        xor(b, _mm256_and_si256(xor(a, b), xor(b, c)))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn big0(a: Vector) -> Vector {
        xor(xor(rotate::<28, 36>(a), rotate::<34, 30>(a)), rotate::<39, 25>(a))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn big1(e: Vector) -> Vector {
        xor(xor(rotate::<14, 50>(e), rotate::<18, 46>(e)), rotate::<41, 23>(e))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn small0(w: Vector) -> Vector {
        // By eight bits is by one byte: one shuffle.
        #[rustfmt::skip]
        let by_8 = _mm256_setr_epi8(
            1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12, 13, 14, 15, 8,
            1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12, 13, 14, 15, 8,
        );
        xor(xor(rotate::<1, 63>(w), _mm256_shuffle_epi8(w, by_8)), _mm256_srli_epi64::<7>(w))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn small1(w: Vector) -> Vector {
        xor(xor(rotate::<19, 45>(w), rotate::<61, 3>(w)), _mm256_srli_epi64::<6>(w))
    }

    /// Sixteen big-endian words of each of four chunks, word i of all lanes in vector i.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn load(chunks: [&[u8; CHUNK]; LANES]) -> [Vector; 16] {
        #[rustfmt::skip]
        let big_endian = _mm256_setr_epi8(
            7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8,
            7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8,
        );
        let mut words = [_mm256_setzero_si256(); 16];
        for four in 0..4 {
            let row = |lane: usize| {
                let bytes = &chunks[lane][32 * four..32 * four + 32];
                // SAFETY: `bytes` is 32 bytes long, and an unaligned load reads just 32.
                let row = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
                _mm256_shuffle_epi8(row, big_endian)
            };
            let rows = [row(0), row(1), row(2), row(3)];
            // Rows a0 a1 a2 a3, b0 …; then a0 b0 a2 b2, a1 b1 a3 b3, and the same of c and d; then columns.
            let ab_even = _mm256_unpacklo_epi64(rows[0], rows[1]);
            let ab_odd = _mm256_unpackhi_epi64(rows[0], rows[1]);
            let cd_even = _mm256_unpacklo_epi64(rows[2], rows[3]);
            let cd_odd = _mm256_unpackhi_epi64(rows[2], rows[3]);
            words[4 * four] = _mm256_permute2x128_si256::<0x20>(ab_even, cd_even);
            words[4 * four + 1] = _mm256_permute2x128_si256::<0x20>(ab_odd, cd_odd);
            words[4 * four + 2] = _mm256_permute2x128_si256::<0x31>(ab_even, cd_even);
            words[4 * four + 3] = _mm256_permute2x128_si256::<0x31>(ab_odd, cd_odd);
        }
        words
    }

    fn store(vector: Vector) -> [u64; LANES] {
        // SAFETY: any 32 bytes are four words.
        unsafe { std::mem::transmute(vector) }
    }
}

/// Eight lanes of 64 bits, with rotation and any function of three bits as single instructions.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{BlockName, CHUNK, ROUND, START, Tail, avx2, chunk_at};

    type Vector = __m512i;
    const LANES: usize = 8;
    // Truth tables of x, y, z, bit 4x + 2y + z.
    const XOR3: i32 = 0b1001_0110;
    const X_CHOOSES_Y_ELSE_Z: i32 = 0b1100_1010;
    const MAJORITY: i32 = 0b1110_1000;

    sha512_lanes!("avx512f,avx2");

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn splat(word: u64) -> Vector {
        _mm512_set1_epi64(word as i64)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn add(x: Vector, y: Vector) -> Vector {
        _mm512_add_epi64(x, y)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    #[cfg(not(miri))]
    fn ternary<const TABLE: i32>(x: Vector, y: Vector, z: Vector) -> Vector {
        _mm512_ternarylogic_epi64::<TABLE>(x, y, z)
    }

    /// The interpreter that checks this path on any processor knows all its instructions but that one.
    #[target_feature(enable = "avx512f")]
    #[cfg(miri)]
    fn ternary<const TABLE: i32>(x: Vector, y: Vector, z: Vector) -> Vector {
        let ones = _mm512_set1_epi64(-1);
        let pick = |v: Vector, bit: i32| if bit == 1 { v } else { _mm512_xor_si512(v, ones) };
        (0..8).filter(|row| TABLE >> row & 1 == 1).fold(_mm512_setzero_si512(), |all, row| {
            let xy = _mm512_and_si512(pick(x, row >> 2 & 1), pick(y, row >> 1 & 1));
            _mm512_or_si512(all, _mm512_and_si512(xy, pick(z, row & 1)))
        })
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn xor3(x: Vector, y: Vector, z: Vector) -> Vector {
        ternary::<XOR3>(x, y, z)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn ch(e: Vector, f: Vector, g: Vector) -> Vector {
        ternary::<X_CHOOSES_Y_ELSE_Z>(e, f, g)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn maj(a: Vector, b: Vector, c: Vector) -> Vector {
        ternary::<MAJORITY>(a, b, c)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn big0(a: Vector) -> Vector {
        xor3(_mm512_ror_epi64::<28>(a), _mm512_ror_epi64::<34>(a), _mm512_ror_epi64::<39>(a))
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn big1(e: Vector) -> Vector {
        xor3(_mm512_ror_epi64::<14>(e), _mm512_ror_epi64::<18>(e), _mm512_ror_epi64::<41>(e))
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn small0(w: Vector) -> Vector {
        xor3(_mm512_ror_epi64::<1>(w), _mm512_ror_epi64::<8>(w), _mm512_srli_epi64::<7>(w))
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn small1(w: Vector) -> Vector {
        xor3(_mm512_ror_epi64::<19>(w), _mm512_ror_epi64::<61>(w), _mm512_srli_epi64::<6>(w))
    }

    /// The words of lanes 0 to 3 in the low halves, of 4 to 7 in the high ones.
    #[target_feature(enable = "avx512f,avx2")]
    #[inline]
    fn load(chunks: [&[u8; CHUNK]; LANES]) -> [Vector; 16] {
        let [c0, c1, c2, c3, c4, c5, c6, c7] = chunks;
        let (low, high) = (avx2::load([c0, c1, c2, c3]), avx2::load([c4, c5, c6, c7]));
        let mut words = [_mm512_setzero_si512(); 16];
        for (word, (low, high)) in words.iter_mut().zip(low.into_iter().zip(high)) {
            *word = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
        }
        words
    }

    fn store(vector: Vector) -> [u64; LANES] {
        // SAFETY: any 64 bytes are eight words.
        unsafe { std::mem::transmute(vector) }
    }
}

#[cfg(test)]
mod tests;
