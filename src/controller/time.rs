//! Arithmetic of moments and durations that cannot overflow: a deadline beyond the end of time is the end of time.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// That long after.
pub fn later(moment: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| moment.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

/// How long until then; zero if it is past.
pub fn until(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}

/// Whole seconds: what status shows has no more, so that it compares equal after a round trip.
pub fn whole_seconds(moment: Timestamp) -> Timestamp {
    Timestamp::from_second(moment.as_second()).unwrap_or(moment)
}
