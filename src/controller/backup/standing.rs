//! How a Backup stands, in one value. State, reason, conditions, the event and the time of the next look come from here
//! alone: whoever wants to know what a user sees reads this file.

use std::time::Duration;

use jiff::Timestamp;

use super::{observe::Heard, queue::Limit, verifying::claim};
use crate::{
    api::{BackupState, Cause, Claim, ConditionType, Reason, Truth, common::ChosenTarget},
    model::{AttemptId, BackupName, Failure, FailureReason, Verdict, Verification, VolumeName},
};

/// How a Backup stands.
///
/// ```text
/// WaitingForTarget → Queued → Beginning → StartingWorker → Working → Completed
///        └──────────────┴─────────┴────────────┴──────────────┴→ Failed → (Queued …) or Cancelling → Cancelled
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// As it was written; only the generation and the echo of verbs may change.
    Unchanged {
        again: Option<Duration>,
    },
    WaitingForTarget {
        missing: String,
    },
    /// Without a limit the first turn is not over.
    Queued {
        limit: Option<Limit>,
        chosen: Box<Chosen>,
    },
    /// The worker of the attempt before has not ended yet.
    WaitingForOldWorker,
    /// A new attempt: it stands in status before anything is started for it.
    Beginning {
        number: i32,
        id: AttemptId,
        chosen: Box<Chosen>,
    },
    StartingWorker {
        problem: Option<String>,
    },
    Working {
        heard: Option<Box<Heard>>,
        activity: Activity,
    },
    Completed {
        heard: Box<Heard>,
        backup: BackupName,
    },
    /// Completed before; now the verification that followed has its verdict.
    Verified {
        verification: Verification,
    },
    Failed {
        failure: Box<Failed>,
        heard: Option<Box<Heard>>,
    },
    Cancelling,
    Cancelled {
        heard: Option<Box<Heard>>,
    },
    /// The object is being deleted and its worker has not ended yet.
    Deleting,
}

/// What is resolved once and used from then on.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    pub target: ChosenTarget,
    pub volume: VolumeName,
    pub path: String,
    pub node: String,
}

/// What a worker does, as far as we heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    Planning,
    Uploading,
    Throttled,
    NotHeard,
    WritingRecord,
    ReadingBack,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Failed {
    pub reason: Reason,
    pub message: String,
    pub object: Option<String>,
    pub time: Timestamp,
    pub next: WhatNext,
    pub consecutive: i32,
}

/// What follows a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhatNext {
    At(Timestamp),
    /// The retries, or the time for them, are used up.
    Exhausted,
    /// No repetition cures it.
    Never,
}

impl Failed {
    pub fn of(failure: Failure, next: WhatNext, consecutive: u32) -> Self {
        let Failure { reason, message, object, time } = failure;
        let consecutive = i32::try_from(consecutive).unwrap_or(i32::MAX);
        Self { reason: reason.into(), message, object, time, next, consecutive }
    }
}

/// What is told once, when it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub severity: Severity,
    pub reason: String,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Normal,
    Warning,
}

/// The three conditions of a Backup's own domain.
struct Domain {
    data: Truth,
    record: Truth,
}

impl Standing {
    /// State and reason; none: as they were written.
    pub fn state(&self) -> Option<(BackupState, Reason)> {
        use {BackupState as S, Cause as C};
        let (state, reason) = match self {
            Standing::Unchanged { .. } | Standing::Verified { .. } => return None,
            Standing::WaitingForTarget { .. } => (S::Pending, C::WaitingForTarget.into()),
            Standing::Queued { .. } => (S::Pending, C::Queued.into()),
            Standing::WaitingForOldWorker => (S::Snapshotting, C::WaitingForOldWorker.into()),
            Standing::Beginning { .. } | Standing::StartingWorker { .. } => (S::Snapshotting, C::StartingWorker.into()),
            Standing::Working { activity, .. } => match activity {
                Activity::Planning => (S::InProgress, C::Planning.into()),
                Activity::Uploading => (S::InProgress, C::Uploading.into()),
                Activity::Throttled => (S::InProgress, FailureReason::Throttled.into()),
                Activity::NotHeard => (S::InProgress, FailureReason::WorkerNotHeard.into()),
                Activity::WritingRecord => (S::Committing, C::WritingRecord.into()),
                Activity::ReadingBack => (S::Committing, C::ReadingBack.into()),
            },
            Standing::Completed { .. } => (S::Completed, C::Completed.into()),
            Standing::Failed { failure, .. } => (S::Error, failure.reason),
            Standing::Cancelling => return None,
            Standing::Cancelled { .. } => (S::Cancelled, C::CancelledByUser.into()),
            Standing::Deleting => (S::Deleting, C::Cancelling.into()),
        };
        Some((state, reason))
    }

    /// What a person reads behind the reason.
    pub fn message(&self) -> String {
        match self {
            Standing::Unchanged { .. } => String::new(),
            Standing::WaitingForTarget { missing } => missing.clone(),
            Standing::Queued { limit: None, .. } => "Waiting for its turn".into(),
            Standing::Queued { limit: Some(limit), .. } => match limit {
                Limit::Operator => "Waiting for a slot: as many Backups run as the operator allows".into(),
                Limit::Target => "Waiting for a slot: as many Backups run as the target allows".into(),
                Limit::Namespace => {
                    "Waiting for a slot: as many Backups of this namespace run as the target allows".into()
                }
                Limit::Volume => "Waiting for another Backup of the same volume".into(),
            },
            Standing::WaitingForOldWorker => "Waiting for the worker of the attempt before to end".into(),
            Standing::Beginning { number, .. } => format!("Attempt {number} begins"),
            Standing::StartingWorker { problem: None } => "Waiting for the worker's first report".into(),
            Standing::StartingWorker { problem: Some(problem) } => format!("Worker is not started yet: {problem}"),
            Standing::Working { activity, .. } => match activity {
                Activity::Planning => "The worker takes its lock and lists the volume's blocks".into(),
                Activity::Uploading => "Blocks are being uploaded".into(),
                Activity::Throttled => "The store asks to slow down".into(),
                Activity::NotHeard => "No report from the worker for a while; it may still be uploading".into(),
                Activity::WritingRecord => "All blocks are acknowledged; the record is being written".into(),
                Activity::ReadingBack => "The record is being read back".into(),
            },
            Standing::Verified { verification } => verification.message.clone(),
            Standing::Completed { .. } => "Every block is acknowledged and the record was read back equal".into(),
            Standing::Failed { failure, .. } => failure.message.clone(),
            Standing::Cancelling => "The worker is being stopped".into(),
            Standing::Cancelled { .. } => {
                "Cancelled by spec.cancel; blocks that were sent stay in the bucket until they are swept".into()
            }
            Standing::Deleting => "The worker is being stopped; data in the bucket is retained".into(),
        }
    }

    /// The conditions; none: as they were written.
    pub fn claims(&self) -> Option<Vec<Claim>> {
        let reason = match self {
            Standing::Unchanged { .. } | Standing::Verified { .. } => return None,
            Standing::Cancelling => Cause::Cancelling.into(),
            _ => self.state()?.1,
        };
        let message = self.message();
        let ready = if matches!(self, Standing::Completed { .. }) { Truth::True } else { Truth::False };
        let mut claims = vec![Claim::new(ConditionType::Ready, ready, reason, message.clone())];
        match self {
            Standing::Completed { .. } => {}
            Standing::Cancelled { .. } => {
                claims.push(Claim::new(ConditionType::Stalled, Truth::True, Cause::CancelledByUser, message));
            }
            Standing::Failed { failure, .. } => claims.push(match failure.next {
                WhatNext::At(at) => {
                    let text = format!("The next attempt starts at {at}, or at once by a new spec.retryRequest");
                    Claim::new(ConditionType::Reconciling, Truth::True, Cause::WaitingForRetry, text)
                }
                WhatNext::Exhausted => {
                    let text = "The retries are used up: remove the cause, then set a new spec.retryRequest";
                    Claim::new(ConditionType::Stalled, Truth::True, Cause::RetriesExhausted, text)
                }
                WhatNext::Never => {
                    let text = "Not cured by repetition: remove the cause, then set a new spec.retryRequest or create a new Backup";
                    Claim::new(ConditionType::Stalled, Truth::True, Cause::NotRetryable, text)
                }
            }),
            _ => claims.push(Claim::new(ConditionType::Reconciling, Truth::True, reason, message)),
        }
        claims.extend(self.domain_claims());
        if let Standing::Completed { heard, .. } = self
            && heard.report.verification.is_some()
        {
            // A verdict that came with the news is told on the next pass, with an event of its own.
            claims.push(claim(&Verification::new(Verdict::Running, "The verification runs")));
        }
        Some(claims)
    }

    /// `SnapshotReady`, `DataAcknowledged`, `RecordCommitted`. A host device needs no snapshot of ours.
    fn domain_claims(&self) -> [Claim; 3] {
        use {Cause as C, ConditionType as T};
        let snapshot = match self {
            Standing::WaitingForTarget { .. } | Standing::Cancelled { .. } => {
                (Truth::False, C::NotYet, "Nothing is read")
            }
            _ => (Truth::True, C::NotNeeded, "A host device is read as it is"),
        };
        let domain = self.domain();
        let data = match domain.data {
            Truth::True => (C::AllBlocksAcknowledged, "The store acknowledged every block the record names"),
            Truth::False | Truth::Unknown => (C::BlocksOutstanding, "Not every block is acknowledged"),
        };
        let record = match domain.record {
            Truth::True => (C::RecordReadBack, "The record was acknowledged and read back equal"),
            Truth::False | Truth::Unknown => (C::RecordOutstanding, "The record is not written and read back"),
        };
        [
            Claim::new(T::SnapshotReady, snapshot.0, snapshot.1, snapshot.2),
            Claim::new(T::DataAcknowledged, domain.data, data.0, data.1),
            Claim::new(T::RecordCommitted, domain.record, record.0, record.1),
        ]
    }

    fn domain(&self) -> Domain {
        let all = |heard: &Heard| heard.report.phase >= crate::model::Phase::WritingRecord && is_complete(heard);
        let truth = |is: bool| if is { Truth::True } else { Truth::False };
        match self {
            Standing::Completed { .. } => Domain { data: Truth::True, record: Truth::True },
            Standing::Working { heard: Some(heard), .. }
            | Standing::Failed { heard: Some(heard), .. }
            | Standing::Cancelled { heard: Some(heard) } => Domain { data: truth(all(heard)), record: Truth::False },
            _ => Domain { data: Truth::False, record: Truth::False },
        }
    }

    /// What is worth an event when this standing is new.
    pub fn note(&self) -> Option<Note> {
        let normal =
            |reason: &str, text: String| Some(Note { severity: Severity::Normal, reason: reason.into(), text });
        let warning =
            |reason: &str, text: String| Some(Note { severity: Severity::Warning, reason: reason.into(), text });
        match self {
            Standing::Unchanged { .. } | Standing::StartingWorker { .. } | Standing::Deleting => None,
            Standing::WaitingForTarget { missing } => warning("WaitingForTarget", missing.clone()),
            Standing::Queued { limit: None, .. } => None,
            Standing::Queued { limit: Some(_), .. } => normal("Queued", self.message()),
            Standing::WaitingForOldWorker => normal("WaitingForOldWorker", self.message()),
            Standing::Beginning { number, id, .. } => {
                normal("AttemptStarted", format!("Attempt {number} ({id}) begins"))
            }
            Standing::Working { activity: Activity::NotHeard, .. } => warning("WorkerNotHeard", self.message()),
            Standing::Working { activity: Activity::Throttled, .. } => warning("Throttled", self.message()),
            Standing::Working { activity: Activity::WritingRecord, heard: Some(heard) } => normal(
                "DataAcknowledged",
                format!("The store acknowledged all {} blocks", heard.report.progress.acknowledged_blocks),
            ),
            Standing::Working { .. } => None,
            Standing::Completed { backup, heard } => {
                let p = &heard.report.progress;
                normal(
                    "Completed",
                    format!(
                        "{backup} is complete: {} blocks, {} uploaded, {} reused, {} resumed",
                        p.acknowledged_blocks, p.uploaded_blocks, p.reused_blocks, p.resumed_blocks
                    ),
                )
            }
            Standing::Verified { verification } => match verification.verdict {
                Verdict::Running => None,
                Verdict::Passed => normal("VerificationPassed", self.message()),
                Verdict::Damaged => warning("DamageFound", self.message()),
                Verdict::NotDone => warning("VerificationNotDone", self.message()),
            },
            Standing::Failed { failure, .. } => warning(failure.reason.as_str(), failure.message.clone()),
            Standing::Cancelling => normal("Cancelling", self.message()),
            Standing::Cancelled { .. } => normal("Cancelled", self.message()),
        }
    }

    /// When to look again, should nothing happen before. `poll` is the interval for running workers.
    pub fn again(&self, now: Timestamp, poll: Duration) -> Option<Duration> {
        match self {
            Standing::Unchanged { again } => *again,
            Standing::WaitingForTarget { .. } => Some(Duration::from_secs(5)),
            Standing::Queued { limit: None, .. } => Some(super::queue::GATHERING),
            Standing::Queued { limit: Some(_), .. } => Some(Duration::from_secs(5)),
            Standing::Beginning { .. } => Some(Duration::ZERO),
            // Somebody is to appear or to go any moment.
            Standing::StartingWorker { problem: None } => Some(Duration::from_millis(250)),
            Standing::StartingWorker { problem: Some(_) } | Standing::WaitingForOldWorker => {
                Some(Duration::from_secs(1))
            }
            Standing::Cancelling | Standing::Deleting => Some(Duration::from_millis(500)),
            Standing::Working { .. } => Some(poll),
            Standing::Failed { failure, .. } => match failure.next {
                WhatNext::At(at) => Some(super::super::time::until(at, now).min(Duration::from_secs(1))),
                WhatNext::Exhausted | WhatNext::Never => Some(Duration::from_secs(1)),
            },
            // What is left of the worker is removed on the next pass.
            Standing::Completed { .. } | Standing::Verified { .. } | Standing::Cancelled { .. } => {
                Some(Duration::from_secs(1))
            }
        }
    }
}

/// Does the report say that nothing is outstanding?
fn is_complete(heard: &Heard) -> bool {
    heard.report.progress.acknowledged_blocks >= heard.report.progress.total_blocks
}
