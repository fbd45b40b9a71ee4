//! What may go wrong with the store, by what the caller can do about it.
//!
//! "Not there" is never an error here: HEAD and GET answer `None`. A request that failed, or was answered in a way we
//! do not understand, has proved nothing (law 7).

use std::fmt;

use crate::model::FailureReason;

/// One failed request, with its object and what was seen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action} {key}: {seen}")]
pub struct StoreError {
    pub kind: ErrorKind,
    /// `PUT`, `GET`, …
    pub action: &'static str,
    pub key: String,
    /// What was seen, and the cure where a person must act.
    pub seen: String,
}

/// What the caller can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Try again: the connection failed, the server had an error, or the answer made no sense.
    Unavailable,
    /// Try again, slower.
    Throttled,
    /// The credentials ended; read them again, then try once more.
    Expired,
    /// A person must act. Some stores refuse at random, so a refusal is tried again where this attempt was accepted before.
    Refused(FailureReason),
    /// A conditional request found another object; after a retry it may be our own.
    Precondition,
    /// Nothing was acknowledged for the stall deadline while a request was outstanding.
    Stalled,
    /// The deadline of the whole attempt passed.
    Deadline,
    /// The object is not what its format says.
    Damaged,
    /// Our own lease ended, our marker is gone, or a deletion has begun: end the attempt.
    GuardLost,
    /// Another holds the volume: wait.
    LockHeld,
}

impl StoreError {
    pub fn new(kind: ErrorKind, action: &'static str, key: impl fmt::Display, seen: impl fmt::Display) -> Self {
        Self { kind, action, key: key.to_string(), seen: seen.to_string() }
    }

    /// The reason a person reads when this ends an attempt.
    pub fn reason(&self) -> FailureReason {
        match self.kind {
            ErrorKind::Unavailable if self.action == "PUT" => FailureReason::UploadFailed,
            ErrorKind::Unavailable | ErrorKind::Precondition => FailureReason::StoreUnavailable,
            ErrorKind::Throttled => FailureReason::Throttled,
            ErrorKind::Expired => FailureReason::SessionExpired,
            ErrorKind::Refused(reason) => reason,
            ErrorKind::Stalled => FailureReason::UploadStalled,
            ErrorKind::Deadline => FailureReason::DeadlineExceeded,
            ErrorKind::Damaged => FailureReason::RecordDamaged,
            ErrorKind::GuardLost => FailureReason::GuardLost,
            ErrorKind::LockHeld => FailureReason::LockHeld,
        }
    }
}

/// The innermost cause: `connection refused` beats `dispatch failure`.
pub(super) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
