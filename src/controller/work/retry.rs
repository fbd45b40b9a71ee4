//! The retry policy: what a failed attempt leads to. Pure.
//!
//! | class | what follows |
//! |---|---|
//! | `Yes` | backoff, doubled with each attempt in a row that got no block further; after `limit` of them a person must ask |
//! | `Free` | the same, but the attempt is not counted |
//! | `Rarely` | one more try after the longest backoff; if that ends in a refusal too, a person must ask |
//! | `Once` | one more try after the backoff; if that ends the same way, however far it got, a person must ask |
//! | `Never` | a person must ask |
//!
//! An attempt that acknowledged something new sets the count back to zero: a store that is away every hour for ten
//! minutes does not use up a Backup's retries. `limit: 0` means never by itself.

use std::time::Duration;

use crate::model::{FailureReason, Retry};

/// `spec.retry`, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub limit: u32,
    pub backoff: Duration,
    pub max_backoff: Duration,
}

/// What came before the failure that is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Past {
    /// Attempts in a row that acknowledged nothing new, before this one.
    pub consecutive: u32,
    /// Why the attempt before failed.
    pub previous: Option<FailureReason>,
    /// Did the attempt that failed now acknowledge something new?
    pub progress: Progressed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progressed {
    Yes,
    No,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Again {
        after: Duration,
        consecutive: u32,
    },
    /// The limit is used up, or the one rare retry was.
    Exhausted {
        consecutive: u32,
    },
    /// No repetition cures this.
    Never {
        consecutive: u32,
    },
}

/// Judges a failure.
pub fn next(policy: Policy, past: Past, reason: FailureReason) -> Next {
    let class = reason.retry();
    let consecutive = match (past.progress, class) {
        (Progressed::Yes, _) => 0,
        (Progressed::No, Retry::Free) => past.consecutive,
        (Progressed::No, Retry::Yes | Retry::Rarely | Retry::Once | Retry::Never) => past.consecutive.saturating_add(1),
    };
    if policy.limit == 0 && class != Retry::Never {
        return Next::Exhausted { consecutive };
    }
    let was_rare = past.previous.is_some_and(|p| p.retry() == Retry::Rarely);
    match class {
        Retry::Never => Next::Never { consecutive },
        Retry::Once if past.previous == Some(reason) => Next::Exhausted { consecutive },
        Retry::Rarely if was_rare && past.progress == Progressed::No => Next::Exhausted { consecutive },
        Retry::Rarely => Next::Again { after: policy.max_backoff, consecutive },
        Retry::Yes | Retry::Once if consecutive > policy.limit => Next::Exhausted { consecutive },
        Retry::Yes | Retry::Once | Retry::Free => Next::Again { after: backoff(policy, consecutive), consecutive },
    }
}

/// `backoff`, doubled for each failure in a row after the first, at most `maxBackoff`.
fn backoff(policy: Policy, consecutive: u32) -> Duration {
    let doublings = consecutive.saturating_sub(1).min(31);
    policy.backoff.saturating_mul(1 << doublings).min(policy.max_backoff)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { limit: 6, backoff: Duration::from_secs(30), max_backoff: Duration::from_secs(900) };

    fn seconds(next: Next) -> Option<u64> {
        match next {
            Next::Again { after, .. } => Some(after.as_secs()),
            Next::Exhausted { .. } | Next::Never { .. } => None,
        }
    }

    fn no_progress(consecutive: u32, previous: Option<FailureReason>) -> Past {
        Past { consecutive, previous, progress: Progressed::No }
    }

    #[test]
    fn law_6_backoff_doubles_up_to_its_limit_and_then_a_person_must_ask() {
        let waits: Vec<_> =
            (0..8).map(|n| seconds(next(POLICY, no_progress(n, None), FailureReason::StoreUnavailable))).collect();
        assert_eq!(waits, [Some(30), Some(60), Some(120), Some(240), Some(480), Some(900), None, None]);
    }

    #[test]
    fn law_6_an_attempt_that_acknowledged_something_new_uses_up_nothing() {
        for consecutive in 0..20 {
            let past = Past { consecutive, previous: Some(FailureReason::UploadFailed), progress: Progressed::Yes };
            let after = next(POLICY, past, FailureReason::UploadFailed);
            assert_eq!(after, Next::Again { after: POLICY.backoff, consecutive: 0 }, "{past:?}");
        }
    }

    #[test]
    fn a_crash_is_not_counted_and_a_refusal_is_tried_once_more_after_the_longest_wait() {
        let crashed = next(POLICY, no_progress(6, None), FailureReason::WorkerCrashed);
        assert_eq!(crashed, Next::Again { after: POLICY.max_backoff, consecutive: 6 });
        let first = next(POLICY, no_progress(0, None), FailureReason::AccessDenied);
        assert_eq!(first, Next::Again { after: POLICY.max_backoff, consecutive: 1 });
        let second = next(POLICY, no_progress(1, Some(FailureReason::BucketMissing)), FailureReason::AccessDenied);
        assert_eq!(second, Next::Exhausted { consecutive: 2 });
    }

    #[test]
    fn out_of_memory_is_tried_once_more_and_then_a_person_must_raise_the_limit() {
        for progress in [Progressed::Yes, Progressed::No] {
            let past = |previous| Past { consecutive: 0, previous, progress };
            let oom = FailureReason::OutOfMemory;
            for before in [None, Some(FailureReason::UploadFailed)] {
                assert!(
                    matches!(next(POLICY, past(before), oom), Next::Again { after, .. } if after == POLICY.backoff)
                );
            }
            assert!(matches!(next(POLICY, past(Some(oom)), oom), Next::Exhausted { .. }), "{progress:?}");
            let other = next(POLICY, past(Some(oom)), FailureReason::UploadFailed);
            assert!(matches!(other, Next::Again { .. }), "{other:?}");
        }
    }

    #[test]
    fn limit_zero_never_retries_by_itself_and_never_means_never() {
        let zero = Policy { limit: 0, ..POLICY };
        for progress in [Progressed::Yes, Progressed::No] {
            let past = Past { consecutive: 0, previous: None, progress };
            for reason in [FailureReason::UploadFailed, FailureReason::WorkerCrashed, FailureReason::AccessDenied] {
                assert!(matches!(next(zero, past, reason), Next::Exhausted { .. }), "{reason} {past:?}");
            }
            assert!(matches!(next(POLICY, past, FailureReason::SourceReadFailed), Next::Never { .. }));
        }
    }
}
