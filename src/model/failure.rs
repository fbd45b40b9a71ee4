//! Why an attempt ended without a record, what may be done about it, and the exit code that says so.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// After what was seen, the cure where a source or a target may not be opened. A Pod without root is given its device by the runtime, or not.
pub const NOT_PERMITTED: &str = "; run as a user that may (in a Pod: worker.user Root, or a runtime that gives devices to the \
                                 Pod's user: device_ownership_from_security_context)";

macro_rules! reasons {
    ($($reason:ident),+ $(,)?) => {
        /// A closed list: it is API (status, events, metric labels) and grows only by addition.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum FailureReason { $($reason),+ }

        impl FailureReason {
            /// The whole list, in order.
            pub const ALL: &'static [FailureReason] = &[$(FailureReason::$reason),+];

            /// The word in status, events and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(FailureReason::$reason => stringify!($reason)),+ }
            }
        }
    };
}

reasons! {
    // The store gave out; it may come back.
    UploadFailed,
    UploadStalled,
    StoreUnavailable,
    Throttled,
    // The store refuses us: a person must look, and the refusal is tried again only rarely.
    AccessDenied,
    BucketMissing,
    WrongRegion,
    ClockSkew,
    // A worker's session: it was not given, or it ended before the next one came.
    SessionRefused,
    SessionExpired,
    // The guard.
    LockHeld,
    GuardLost,
    Superseded,
    // The source.
    SourceReadFailed,
    SourceStalled,
    SourceChanged,
    SourceNotFound,
    SourceRefused,
    SnapshotLost,
    SnapshotNotReady,
    // The target of a restore, and what it fetches.
    TargetRefused,
    TargetWriteFailed,
    TargetStalled,
    DownloadStalled,
    BlockDamaged,
    // The volume in the store is not what we were told.
    VolumeNameInUse,
    BlockSizeMismatch,
    VolumeConfigMissing,
    RecordMismatch,
    RecordDamaged,
    // The worker.
    BadJobSpec,
    ScratchFailed,
    WorkerCrashed,
    WorkerNotHeard,
    WorkerNotStarted,
    OutOfMemory,
    // The cluster did not run the worker, or ended it.
    WorkerNotCreated,
    Unschedulable,
    ImageMissing,
    VolumeNotAttached,
    Evicted,
    Preempted,
    NodeLost,
    PodDeleted,
    DeadlineExceeded,
    Cancelled,
    Bug,
}

/// What a failure allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retry {
    /// By the retry policy; the attempt counts against `retry.limit` if it acknowledged nothing new.
    Yes,
    /// By the retry policy, and it does not count against the limit.
    Free,
    /// One more try after the longest backoff; then a person must ask.
    Rarely,
    /// One more try by the retry policy, however far it got; then a person must change something first.
    Once,
    /// Only when a person asks.
    Never,
}

impl FailureReason {
    pub const fn retry(self) -> Retry {
        use FailureReason::*;
        match self {
            UploadFailed | UploadStalled | StoreUnavailable | Throttled | LockHeld | GuardLost | ScratchFailed => {
                Retry::Yes
            }
            // The next attempt is given a session of its own.
            SessionExpired => Retry::Yes,
            WorkerNotHeard | WorkerNotStarted | RecordMismatch | DownloadStalled => Retry::Yes,
            // Under the same limit it ends the same way; once may have been a neighbour's doing.
            OutOfMemory => Retry::Once,
            WorkerNotCreated | Unschedulable | ImageMissing | VolumeNotAttached | SnapshotNotReady => Retry::Yes,
            WorkerCrashed | Superseded | Evicted | Preempted | NodeLost | PodDeleted => Retry::Free,
            AccessDenied | BucketMissing | WrongRegion | ClockSkew | SessionRefused => Retry::Rarely,
            SourceReadFailed | SourceStalled | SourceChanged | SourceNotFound | SourceRefused | SnapshotLost => {
                Retry::Never
            }
            TargetRefused | TargetWriteFailed | TargetStalled | BlockDamaged => Retry::Never,
            VolumeNameInUse | BlockSizeMismatch | VolumeConfigMissing | RecordDamaged => Retry::Never,
            BadJobSpec | DeadlineExceeded | Cancelled | Bug => Retry::Never,
        }
    }

    /// The worker's and the command line's exit code (documented in docs/cli.md; sysexits' range).
    pub const fn exit_code(self) -> u8 {
        use FailureReason::*;
        match self {
            BadJobSpec => 64,
            AccessDenied | BucketMissing | WrongRegion | ClockSkew | VolumeNameInUse | BlockSizeMismatch => 65,
            VolumeConfigMissing | RecordMismatch | RecordDamaged | BlockDamaged | SessionRefused => 65,
            SourceReadFailed | SourceStalled | SourceChanged | SourceNotFound | SourceRefused | SnapshotLost => 66,
            TargetRefused | TargetWriteFailed | TargetStalled | SnapshotNotReady => 66,
            UploadFailed | StoreUnavailable | Throttled | SessionExpired => 67,
            UploadStalled | DownloadStalled | DeadlineExceeded => 68,
            LockHeld | GuardLost | Superseded => 69,
            ScratchFailed | WorkerCrashed | WorkerNotHeard | WorkerNotStarted | OutOfMemory | Bug => 70,
            // Nobody exits with these: they are what the cluster says of a worker.
            WorkerNotCreated | Unschedulable | ImageMissing | VolumeNotAttached => 70,
            Evicted | Preempted | NodeLost | PodDeleted => 70,
            Cancelled => 75,
        }
    }
}

impl std::fmt::Display for FailureReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One failure, as a person will read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{reason}: {message}")]
pub struct Failure {
    pub reason: FailureReason,
    /// What was tried, on which object, and what was seen; at most 1000 bytes.
    pub message: String,
    /// The key or path at which it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    pub time: Timestamp,
}

impl Failure {
    /// Messages are cut here so that a report always fits its carrier: 1000 + 400 bytes, doubled by JSON escapes, are 2800.
    pub const MESSAGE_BYTES_MAX: usize = 1000;
    pub const OBJECT_BYTES_MAX: usize = 400;

    pub fn new(reason: FailureReason, message: impl Into<String>, object: Option<String>, time: Timestamp) -> Self {
        let message = printable(&message.into(), Self::MESSAGE_BYTES_MAX);
        let object = object.map(|o| printable(&o, Self::OBJECT_BYTES_MAX));
        Self { reason, message, object, time }
    }
}

/// One line of at most `bytes_max` bytes; control characters become blanks.
pub(super) fn printable(text: &str, bytes_max: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if out.len() + c.len_utf8() > bytes_max - '…'.len_utf8() {
            out.push('…');
            break;
        }
        out.push(c);
    }
    out
}
