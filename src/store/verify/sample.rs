//! Which blocks a verification reads: all, or a sample that the same seed chooses again.
//!
//! The number is fixed first; then each candidate is taken with probability (still wanted) / (still to come), which
//! takes exactly that many without remembering any (Knuth, algorithm S).

use std::str::FromStr;

/// How many blocks are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    Blocks(u64),
    /// Of a million.
    Millionths(u32),
}

impl Share {
    /// The number of blocks among so many; never none while there are some.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Share::Blocks(blocks) => blocks.min(total),
            Share::Millionths(part) => {
                let blocks = (u128::from(total) * u128::from(part)).div_ceil(1_000_000);
                u64::try_from(blocks).unwrap_or(total).min(total)
            }
        }
    }
}

impl FromStr for Share {
    type Err = String;

    /// `5%`, `0.5%` or a number of blocks.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is neither a percentage such as 5% nor a number of blocks such as 300");
        let Some(percent) = text.strip_suffix('%') else {
            return text.parse().ok().filter(|blocks| *blocks > 0).map(Share::Blocks).ok_or_else(bad);
        };
        let percent: f64 = percent.trim().parse().map_err(|_| bad())?;
        let millionths = (percent * 10_000.0).round();
        let fits = (1.0..=1_000_000.0).contains(&millionths);
        if fits { Ok(Share::Millionths(millionths as u32)) } else { Err(bad()) }
    }
}

/// Chooses `wanted` of `left` candidates as they come.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    random: u64,
    wanted: u64,
    left: u64,
}

impl Choice {
    pub(super) fn new(seed: u64, wanted: u64, of: u64) -> Self {
        Self { random: seed, wanted: wanted.min(of), left: of }
    }

    /// Is the next candidate chosen?
    pub(super) fn next(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        let below = (u128::from(self.draw()) * u128::from(self.left)) >> 64;
        let is_chosen = below < u128::from(self.wanted);
        self.left -= 1;
        self.wanted -= u64::from(is_chosen);
        is_chosen
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(seed: u64, wanted: u64, of: u64) -> Vec<u64> {
        let mut choice = Choice::new(seed, wanted, of);
        (0..of).filter(|_| choice.next()).collect()
    }

    #[test]
    fn a_sample_has_its_size_and_the_same_seed_chooses_it_again() {
        for (wanted, of) in [(0, 10), (1, 1), (3, 10), (10, 10), (20, 10), (50, 1000)] {
            assert_eq!(chosen(7, wanted, of).len() as u64, wanted.min(of), "{wanted} of {of}");
        }
        assert_eq!(chosen(7, 50, 1000), chosen(7, 50, 1000));
        assert_ne!(chosen(7, 50, 1000), chosen(8, 50, 1000));
    }

    #[test]
    fn every_block_is_chosen_as_often_as_any_other() {
        let mut times = [0_u32; 20];
        for seed in 0..4000 {
            chosen(seed, 5, 20).into_iter().for_each(|i| times[i as usize] += 1);
        }
        // 1000 expected each, standard deviation 27: six of them either way.
        assert!(times.iter().all(|t| (830..=1170).contains(t)), "{times:?}");
    }

    #[test]
    fn shares_are_read_and_refused() {
        assert_eq!("5%".parse(), Ok(Share::Millionths(50_000)));
        assert_eq!("0.5 %".parse(), Ok(Share::Millionths(5_000)));
        assert_eq!("300".parse(), Ok(Share::Blocks(300)));
        for bad in ["", "%", "0", "0%", "101%", "-5%", "five", "NaN%"] {
            let error = bad.parse::<Share>().expect_err(bad);
            assert!(error.contains("such as 5%"), "{error}");
        }
        assert_eq!(Share::Millionths(50_000).of(10), 1, "5 % of ten blocks is one");
        assert_eq!(Share::Millionths(50_000).of(0), 0);
        assert_eq!(Share::Blocks(300).of(7), 7);
    }
}
