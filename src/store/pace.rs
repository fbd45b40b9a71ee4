//! The bandwidth limit: a bucket of bytes that fills at the given rate. Every send pays, retries of a body too.

use std::time::Duration;

/// When the next body may leave. A pure state machine over a monotonic clock.
#[derive(Debug, Clone)]
pub struct Pace {
    bytes_per_second: Option<u64>,
    /// The moment up to which bytes were paid for.
    paid_until: Duration,
}

impl Pace {
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.filter(|rate| *rate > 0), paid_until: Duration::ZERO }
    }

    /// How long a body of that many bytes must wait when it is ready at `now`; the wait is then paid for.
    pub fn reserve(&mut self, now: Duration, bytes: u64) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let start = self.paid_until.max(now);
        self.paid_until = start + Duration::from_secs_f64(bytes as f64 / rate as f64);
        start - now
    }

    /// A download that was paid for by an estimate turned out to be so long.
    pub fn correct(&mut self, estimated: u64, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let difference = Duration::from_secs_f64(estimated.abs_diff(bytes) as f64 / rate as f64);
        self.paid_until = match bytes > estimated {
            true => self.paid_until + difference,
            false => self.paid_until.saturating_sub(difference),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_on_average_and_idle_time_is_not_saved_up() {
        let mut pace = Pace::new(Some(1 << 20));
        let mut now = Duration::ZERO;
        for _ in 0..10 {
            now += pace.reserve(now, 2 << 20);
        }
        assert_eq!(now.as_secs(), 18, "the first of ten leaves at once, the others 2 s apart");
        let later = now + Duration::from_secs(100);
        assert_eq!(pace.reserve(later, 2 << 20), Duration::ZERO);
        assert_eq!(pace.reserve(later, 2 << 20).as_secs(), 2);
        assert_eq!(Pace::new(None).reserve(now, u64::MAX), Duration::ZERO);
    }

    #[test]
    fn an_estimate_is_corrected_in_both_directions() {
        let mut pace = Pace::new(Some(1 << 20));
        assert_eq!(pace.reserve(Duration::ZERO, 2 << 20), Duration::ZERO);
        pace.correct(2 << 20, 1 << 20);
        assert_eq!(pace.reserve(Duration::ZERO, 1 << 20).as_secs(), 1, "half as long as was thought");
        pace.correct(1 << 20, 4 << 20);
        assert_eq!(pace.reserve(Duration::ZERO, 0).as_secs(), 5, "1 MiB and 4 MiB");
    }
}
