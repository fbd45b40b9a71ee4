//! Condition types and reasons as closed lists, and the arithmetic of `lastTransitionTime`.
//!
//! `Standing` says what is true now (`Claim`s); `conditions` compares it with what was written before: the time moves
//! only when the status flips, so a pass that finds nothing new writes nothing new. Claims come out in the order they
//! went in. Nothing here reads a clock: `now` is an argument.

use std::fmt;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::model::FailureReason;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $word:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$word_doc])* $word),+ }

        impl $name {
            /// The whole list, in order.
            pub const ALL: &'static [$name] = &[$($name::$word),+];

            /// The word in status.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$word => stringify!($word)),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// The `type` of a condition.
    ConditionType {
        /// The summary: the object has done, or can do, what it is for.
        Ready,
        /// Present only while True: work is going on or will go on by itself.
        Reconciling,
        /// Present only while True: it will not get on without a person.
        Stalled,
        // Backup.
        /// A snapshot exists that this Backup reads from (or none is needed).
        SnapshotReady,
        /// The store acknowledged every block the record names.
        DataAcknowledged,
        /// The record was acknowledged, read back and found equal.
        RecordCommitted,
        /// What the store holds of it was looked at after completion: True intact, False damaged, Unknown not done.
        Verified,
        // Restore.
        /// The volume to be filled is there (or none has to be made).
        VolumeReady,
        /// Every block of the backup is on the volume, and its checksum held.
        DataRestored,
        /// The volume put everything on stable storage.
        DataFlushed,
        /// The claim is bound to the filled volume. Only for a claim.
        VolumeBound,
        // ClusterBackupTarget.
        /// The last probe reached the bucket.
        Reachable,
        /// The secret is there, complete, and the store accepted it.
        CredentialsValid,
        /// A worker's key opens one volume's prefix only.
        CredentialsScoped,
        /// The store's clock and ours differ by less than a minute.
        ClockInStep,
        /// What is deleted in the bucket goes: it keeps no versions, and nothing is locked.
        DeletionsFree,
        /// The last look through the bucket counted everything and found every record readable.
        Catalogued,
    }
}

words! {
    /// Why, where no failure of the model says it.
    Cause {
        // Pending.
        WaitingForSource,
        WaitingForTarget,
        WaitingForBackup,
        QuotaExceeded,
        Queued,
        // Snapshotting.
        TakingSnapshot,
        ExposingSnapshot,
        StartingWorker,
        WaitingForOldWorker,
        // Preparing.
        MakingVolume,
        // InProgress.
        Planning,
        Uploading,
        Restoring,
        // Flushing.
        Flushing,
        BindingVolume,
        // Committing.
        WritingRecord,
        ReadingBack,
        // Completed.
        Completed,
        Imported,
        // Error: the source or target is refused before any worker starts.
        SourceNotSupported,
        TargetNotAllowed,
        NamespaceNotAllowed,
        HostDeviceNotAllowed,
        HostDeviceNotSupported,
        // Error: a Restore is refused before any worker starts.
        TargetNotSupported,
        BackupNotCompleted,
        BackupDeleted,
        InvalidSpec,
        ImportNotAllowed,
        // Error: what comes next (Reconciling and Stalled).
        WaitingForRetry,
        RetriesExhausted,
        NotRetryable,
        // Cancelled.
        Cancelling,
        CancelledByUser,
        // Deleting.
        RemovingData,
        WaitingForAcknowledgement,
        TargetUnreachable,
        // SnapshotReady, DataAcknowledged, RecordCommitted.
        SnapshotTaken,
        SnapshotReleased,
        NotNeeded,
        NotYet,
        BlocksOutstanding,
        AllBlocksAcknowledged,
        RecordOutstanding,
        RecordReadBack,
        // Verified.
        Verifying,
        VerificationPassed,
        DamageFound,
        VerificationNotDone,
        // DataRestored, DataFlushed, VolumeReady, VolumeBound.
        AllBlocksRestored,
        BlocksLost,
        FlushOutstanding,
        Flushed,
        VolumeMade,
        ClaimBound,
        // ClusterBackupTarget.
        Available,
        Probing,
        Answered,
        Accepted,
        SecretMissing,
        SecretInvalid,
        SpecOverridesSecret,
        StaticKey,
        SessionPerVolume,
        InStep,
        NotVersioned,
        BucketVersioned,
        ObjectsLocked,
        NotKnown,
        SeveralDefaults,
        StillReferenced,
        LimitInvalid,
        Counted,
        NotCountedYet,
        RecordsDamaged,
    }
}

/// The `reason` of a condition and of `status.reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    Cause(Cause),
    Failure(FailureReason),
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Cause(cause) => cause.as_str(),
            Reason::Failure(failure) => failure.as_str(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<Cause> for Reason {
    fn from(cause: Cause) -> Self {
        Reason::Cause(cause)
    }
}

impl From<FailureReason> for Reason {
    fn from(failure: FailureReason) -> Self {
        Reason::Failure(failure)
    }
}

words! {
    /// The `status` of a condition.
    Truth { True, False, Unknown }
}

/// What is true now about one condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub condition: ConditionType,
    pub truth: Truth,
    pub reason: Reason,
    /// What was seen on which object, and the cure if a person must act.
    pub message: String,
}

impl Claim {
    pub fn new(condition: ConditionType, truth: Truth, reason: impl Into<Reason>, message: impl Into<String>) -> Self {
        Self { condition, truth, reason: reason.into(), message: message.into() }
    }
}

/// Messages are cut here: a status is read by people, and rewritten often.
pub const MESSAGE_CHARS_MAX: usize = 1000;

/// The conditions to write: the claims, with the time of the last flip taken from what was written before.
///
/// A condition that was there and is not claimed any more is left out: that is how Reconciling and Stalled go.
pub fn conditions(previous: &[Condition], claims: &[Claim], generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    claims.iter().map(|claim| one(previous, claim, generation, now)).collect()
}

fn one(previous: &[Condition], claim: &Claim, generation: Option<i64>, now: Timestamp) -> Condition {
    let unflipped = find(previous, claim.condition).filter(|was| was.status == claim.truth.as_str());
    // A text has no more characters than bytes: nearly every message is short, and its characters are not counted.
    let is_short = claim.message.len() <= MESSAGE_CHARS_MAX;
    let end = if is_short { None } else { claim.message.char_indices().nth(MESSAGE_CHARS_MAX) };
    let message = match end {
        Some((end, _)) => format!("{}…", &claim.message[..end]),
        None => claim.message.clone(),
    };
    Condition {
        type_: claim.condition.as_str().to_owned(),
        status: claim.truth.as_str().to_owned(),
        reason: claim.reason.as_str().to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: unflipped.map_or(Time(now), |was| was.last_transition_time.clone()),
    }
}

/// The condition of that type, if it was written.
pub fn find(conditions: &[Condition], wanted: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == wanted.as_str())
}

/// Was this condition written as True?
pub fn is_true(conditions: &[Condition], wanted: ConditionType) -> bool {
    find(conditions, wanted).is_some_and(|condition| condition.status == Truth::True.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn the_transition_time_moves_only_when_the_status_flips() {
        use {Cause::*, ConditionType::*, Truth::*};
        let first = conditions(
            &[],
            &[Claim::new(Ready, False, Queued, "a"), Claim::new(Reconciling, True, Queued, "")],
            Some(1),
            at(10),
        );
        let same = conditions(&first, &[Claim::new(Ready, False, Uploading, "b")], Some(2), at(20));
        assert_eq!(same.len(), 1, "an unclaimed condition goes: {same:?}");
        assert_eq!(same[0].last_transition_time, Time(at(10)), "False stayed False: {same:?}");
        assert_eq!((same[0].reason.as_str(), same[0].observed_generation), ("Uploading", Some(2)));
        let flipped = conditions(&same, &[Claim::new(Ready, True, Completed, "")], Some(2), at(30));
        assert_eq!(flipped[0].last_transition_time, Time(at(30)), "{flipped:?}");
        assert!(is_true(&flipped, Ready) && !is_true(&flipped, Stalled));
    }

    #[test]
    fn the_same_claims_written_twice_are_the_same_bytes() {
        let claims = [Claim::new(ConditionType::Ready, Truth::False, FailureReason::AccessDenied, "é".repeat(3000))];
        let first = conditions(&[], &claims, Some(1), at(10));
        assert_eq!(conditions(&first, &claims, Some(1), at(99)), first);
        assert_eq!(first[0].message.chars().count(), MESSAGE_CHARS_MAX + 1, "cut, with an ellipsis");
    }

    #[test]
    fn every_reason_is_camel_case_as_metav1_demands() {
        let words = Cause::ALL.iter().map(|c| c.as_str()).chain(ConditionType::ALL.iter().map(|c| c.as_str()));
        for word in words {
            assert!(
                word.starts_with(|c: char| c.is_ascii_uppercase()) && word.bytes().all(|b| b.is_ascii_alphanumeric()),
                "{word}"
            );
        }
    }
}
