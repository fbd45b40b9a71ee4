//! When a failed request is sent again: a pure decision, so that it can be read and enumerated.

use std::time::Duration;

use super::error::ErrorKind;
use crate::model::{FailureReason, limits};

/// What is known of one request when it has just failed.
#[derive(Debug, Clone, Copy)]
pub struct Tried {
    /// How often this request was sent.
    pub times: u32,
    /// Refusals among them since the credentials last changed.
    pub refusals: u32,
    /// Since it was first sent.
    pub elapsed: Duration,
    /// Has the store accepted any request of this attempt?
    pub was_accepted: bool,
    /// Between 0 and 1: spreads retries of many workers.
    pub jitter: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// Send it again after this long.
    Again(Duration),
    GiveUp,
}

/// `patience` is the most time one request may take, retries included.
pub fn decide(kind: ErrorKind, tried: Tried, patience: Duration) -> Decision {
    if tried.elapsed >= patience {
        return Decision::GiveUp;
    }
    match kind {
        ErrorKind::Unavailable | ErrorKind::Expired => Decision::Again(backoff(tried, limits::RETRY_BACKOFF_MIN)),
        ErrorKind::Throttled => Decision::Again(backoff(tried, limits::RETRY_BACKOFF_MIN * 5)),
        // Some stores refuse a good key now and then (longhorn#9361, #11728); one that never accepted us means it.
        ErrorKind::Refused(FailureReason::AccessDenied)
            if tried.was_accepted && tried.refusals <= limits::REFUSAL_RETRIES =>
        {
            Decision::Again(limits::REFUSAL_BACKOFF)
        }
        ErrorKind::Refused(_) | ErrorKind::Precondition | ErrorKind::Stalled | ErrorKind::Deadline => Decision::GiveUp,
        ErrorKind::Damaged | ErrorKind::GuardLost | ErrorKind::LockHeld => Decision::GiveUp,
    }
}

/// Doubles from `first` to the maximum; the jitter takes up to half of it away.
fn backoff(tried: Tried, first: Duration) -> Duration {
    let doubled = first.saturating_mul(1 << tried.times.saturating_sub(1).min(16)).min(limits::RETRY_BACKOFF_MAX);
    doubled.mul_f64(1.0 - tried.jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(times: u32) -> Tried {
        Tried { times, refusals: times, elapsed: Duration::ZERO, was_accepted: true, jitter: 0.0 }
    }

    #[test]
    fn backoff_doubles_to_its_maximum() {
        let waits: Vec<_> = (1..=9)
            .map(|n| match decide(ErrorKind::Unavailable, tried(n), Duration::MAX) {
                Decision::Again(wait) => wait.as_millis(),
                Decision::GiveUp => 0,
            })
            .collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    }

    #[test]
    fn law_5_a_refusal_shows_within_five_seconds() {
        let refused = ErrorKind::Refused(FailureReason::AccessDenied);
        let first = Tried { was_accepted: false, ..tried(1) };
        assert_eq!(decide(refused, first, Duration::MAX), Decision::GiveUp, "never accepted: at once");
        let mut waited = Duration::ZERO;
        let mut times = 1;
        while let Decision::Again(wait) = decide(refused, tried(times), Duration::MAX) {
            waited += wait;
            times += 1;
        }
        assert!(times == 3 && waited <= Duration::from_secs(4), "{times} sends, {waited:?}");
        for reason in [FailureReason::BucketMissing, FailureReason::WrongRegion, FailureReason::ClockSkew] {
            assert_eq!(decide(ErrorKind::Refused(reason), tried(1), Duration::MAX), Decision::GiveUp);
        }
    }

    #[test]
    fn law_5_patience_ends_every_retry() {
        for kind in [ErrorKind::Unavailable, ErrorKind::Throttled, ErrorKind::Expired] {
            let late = Tried { elapsed: Duration::from_secs(120), ..tried(5) };
            assert_eq!(decide(kind, late, Duration::from_secs(120)), Decision::GiveUp);
        }
    }
}
