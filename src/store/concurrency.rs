//! How many uploads or downloads at once: grown while goodput grows, halved when the store says slow down. A pure state machine.

use std::time::Duration;

use crate::model::limits;

/// A step is judged over at least this long.
const STEP: Duration = Duration::from_secs(1);
/// Halved at most once in this long.
const HALVE_INTERVAL: Duration = Duration::from_secs(2);
/// Another request must bring at least this much more.
const GAIN: f64 = 1.05;

#[derive(Debug, Clone)]
pub struct Concurrency {
    limit: u32,
    ceiling: u32,
    is_fixed: bool,
    step_began: Duration,
    step_bytes: u64,
    best_rate: f64,
    throttles: u64,
    halved: Option<Duration>,
}

impl Concurrency {
    /// `wanted` fixes the ceiling; without it the limit adapts between 1 and 32.
    pub fn new(wanted: Option<u32>) -> Self {
        let ceiling = wanted.unwrap_or(limits::CONCURRENCY_MAX).clamp(1, limits::CONCURRENCY_MAX);
        Self {
            limit: ceiling.min(limits::CONCURRENCY_START),
            ceiling,
            is_fixed: wanted.is_some_and(|w| w <= limits::CONCURRENCY_START),
            step_began: Duration::ZERO,
            step_bytes: 0,
            best_rate: 0.0,
            throttles: 0,
            halved: None,
        }
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// A request that moved so many bytes was answered at `now`; the store has throttled us `throttles` times so far.
    pub fn acknowledged(&mut self, now: Duration, bytes: u64, throttles: u64) {
        self.step_bytes += bytes;
        if throttles > self.throttles {
            self.throttles = throttles;
            self.halve(now);
            return;
        }
        let elapsed = now.saturating_sub(self.step_began);
        if elapsed < STEP || self.is_fixed {
            return;
        }
        let rate = self.step_bytes as f64 / elapsed.as_secs_f64();
        if rate > self.best_rate * GAIN {
            self.best_rate = rate;
            self.limit = (self.limit + self.limit.div_ceil(4)).min(self.ceiling);
        }
        (self.step_began, self.step_bytes) = (now, 0);
    }

    fn halve(&mut self, now: Duration) {
        if self.halved.is_none_or(|at| now.saturating_sub(at) >= HALVE_INTERVAL) {
            self.limit = (self.limit / 2).max(1);
            self.halved = Some(now);
            (self.best_rate, self.step_began, self.step_bytes) = (0.0, now, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_while_goodput_grows_and_no_further() {
        let mut concurrency = Concurrency::new(None);
        let mut now = Duration::ZERO;
        // A wire of 16 uploads: beyond that, more of them bring nothing.
        for _ in 0..40 {
            now += STEP;
            let bytes = u64::from(concurrency.limit().min(16)) * 1_000_000;
            concurrency.acknowledged(now, bytes, 0);
        }
        // 8, 10, 13, 17, and one step more, for 17 was still better than 13.
        assert_eq!(concurrency.limit(), 22, "{concurrency:?}");
    }

    #[test]
    fn it_halves_on_throttling_at_most_once_an_interval_and_never_below_one() {
        let mut concurrency = Concurrency::new(Some(8));
        for i in 1..=10 {
            concurrency.acknowledged(Duration::from_millis(i), 1, i);
        }
        assert_eq!(concurrency.limit(), 4);
        for i in 1..=10 {
            concurrency.acknowledged(Duration::from_secs(10 * i), 1, 10 + i);
        }
        assert_eq!(concurrency.limit(), 1);
    }
}
