//! The lease on a volume: how long other programs will honour our lock.
//!
//! Counted on CLOCK_BOOTTIME, which goes on while the machine sleeps or the process is stopped: a worker that wakes
//! after five minutes must know that its lock is long gone.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Time since boot, suspension included.
pub fn boottime() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Valid until the send time of the last acknowledged lock PUT plus its length.
#[derive(Debug)]
pub struct Lease {
    length: Duration,
    /// Milliseconds of boot time.
    sent: AtomicU64,
}

impl Lease {
    /// A lease whose lock was sent at `sent` (boot time) and acknowledged since.
    pub fn new(length: Duration, sent: Duration) -> Self {
        Self { length, sent: AtomicU64::new(millis(sent)) }
    }

    pub fn renew(&self, sent: Duration) {
        self.sent.fetch_max(millis(sent), Ordering::SeqCst);
    }

    /// What is left at `now` (boot time); zero when it has ended.
    pub fn left(&self, now: Duration) -> Duration {
        let ends = Duration::from_millis(self.sent.load(Ordering::SeqCst)) + self.length;
        ends.saturating_sub(now)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_the_send_time_and_never_goes_back() {
        let at = Duration::from_secs;
        let lease = Lease::new(at(120), at(1000));
        assert_eq!(lease.left(at(1100)), at(20));
        lease.renew(at(1045));
        lease.renew(at(1010));
        assert_eq!(lease.left(at(1100)), at(65));
        assert_eq!(lease.left(at(1165)), Duration::ZERO);
    }
}
