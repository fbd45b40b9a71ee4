//! How an object stands, in one value. Stage, reason, conditions, the event and the time of the next look come from here
//! alone: whoever wants to know what a user sees reads this file, and the `words` of its kind.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    observe::{Heard, Place, Refusal},
    queue::Limit,
    verifying::claim,
};
use crate::{
    api::{Cause, Claim, ConditionType, Reason, Stage, Truth, common::ChosenTarget},
    controller::snapshot::expose::Taken,
    model::{AttemptId, Failure, FailureReason, Report, Verdict, Verification, job::S3Location},
};

/// How an object stands.
///
/// ```text
/// Waiting → Queued → Beginning → StartingWorker → Working → Completed, or Binding → Bound
///    └────────┴─────────┴────────────┴──────────────┴→ Failed → (Queued …) or Cancelling → Cancelled
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// As it was written; only the generation and the echo of verbs may change.
    Unchanged {
        again: Option<Duration>,
    },
    /// As it was written, but that its point in time is given up: a retry would come too late.
    Released {
        again: Option<Duration>,
    },
    /// For what is to appear: a target, a Backup.
    Waiting {
        missing: Refusal,
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
    /// The point in time is on its way to a device.
    ExposingVolume {
        missing: Refusal,
        taken: Option<Box<Taken>>,
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
    },
    /// The worker has done its work, and the volume is on its way to its claim.
    Binding {
        waiting: String,
        heard: Option<Box<Heard>>,
        again: Duration,
    },
    /// Completed: the volume is written and its claim is bound.
    Bound,
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
    pub location: S3Location,
    pub place: Place,
}

/// What a kind says in its own words.
#[derive(Debug)]
pub struct Words {
    pub planning: &'static str,
    pub not_heard: &'static str,
    pub reading_back: &'static str,
    pub completed: &'static str,
    pub cancelled: &'static str,
    pub deleting: &'static str,
    /// What to do when no repetition helps.
    pub anew: &'static str,
}

/// What a worker does, as far as we heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    Planning,
    Uploading,
    Restoring,
    Throttled,
    NotHeard,
    WritingRecord,
    Flushing,
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

impl Standing {
    /// Stage and reason; none: as they were written.
    pub fn state(&self) -> Option<(Stage, Reason)> {
        use {Cause as C, Stage as S};
        let (state, reason) = match self {
            Standing::Unchanged { .. } | Standing::Released { .. } | Standing::Verified { .. } => return None,
            Standing::Waiting { missing } => (S::Pending, missing.reason),
            Standing::Queued { .. } => (S::Pending, C::Queued.into()),
            Standing::WaitingForOldWorker => (S::Starting, C::WaitingForOldWorker.into()),
            Standing::Beginning { .. } | Standing::StartingWorker { .. } => (S::Starting, C::StartingWorker.into()),
            Standing::ExposingVolume { missing, .. } => (S::Starting, missing.reason),
            Standing::Working { activity, .. } => match activity {
                Activity::Planning => (S::InProgress, C::Planning.into()),
                Activity::Uploading => (S::InProgress, C::Uploading.into()),
                Activity::Restoring => (S::InProgress, C::Restoring.into()),
                Activity::Throttled => (S::InProgress, FailureReason::Throttled.into()),
                Activity::NotHeard => (S::InProgress, FailureReason::WorkerNotHeard.into()),
                Activity::WritingRecord => (S::Closing, C::WritingRecord.into()),
                Activity::Flushing => (S::Closing, C::Flushing.into()),
                Activity::ReadingBack => (S::Closing, C::ReadingBack.into()),
            },
            Standing::Completed { .. } | Standing::Bound => (S::Completed, C::Completed.into()),
            Standing::Binding { .. } => (S::Closing, C::BindingVolume.into()),
            Standing::Failed { failure, .. } => (S::Error, failure.reason),
            Standing::Cancelling => return None,
            Standing::Cancelled { .. } => (S::Cancelled, C::CancelledByUser.into()),
            Standing::Deleting => (S::Deleting, C::Cancelling.into()),
        };
        Some((state, reason))
    }

    /// What a person reads behind the reason.
    pub fn message(&self, words: &Words) -> String {
        match self {
            Standing::Unchanged { .. } | Standing::Released { .. } => String::new(),
            Standing::Waiting { missing } | Standing::ExposingVolume { missing, .. } => missing.message.clone(),
            Standing::Queued { limit: None, .. } => "Waiting for its turn".into(),
            Standing::Queued { limit: Some(limit), .. } => match limit {
                Limit::Operator => "Waiting for a slot: as many workers run as the operator allows".into(),
                Limit::Target => "Waiting for a slot: as many workers run as the target allows".into(),
                Limit::Namespace => {
                    "Waiting for a slot: as many workers of this namespace run as the target allows".into()
                }
                Limit::Volume => "Waiting for another worker on the same volume".into(),
            },
            Standing::WaitingForOldWorker => "Waiting for the worker of the attempt before to end".into(),
            Standing::Beginning { number, .. } => format!("Attempt {number} begins"),
            Standing::StartingWorker { problem: None } => "Waiting for the worker's first report".into(),
            Standing::StartingWorker { problem: Some(problem) } => format!("Worker is not started yet: {problem}"),
            Standing::Working { activity, .. } => match activity {
                Activity::Planning => words.planning.into(),
                Activity::Uploading => "Blocks are being uploaded".into(),
                Activity::Restoring => "Blocks are being fetched, compared with their checksums and written".into(),
                Activity::Throttled => "The store asks to slow down".into(),
                Activity::NotHeard => words.not_heard.into(),
                Activity::WritingRecord => "All blocks are acknowledged; the record is being written".into(),
                Activity::Flushing => "All blocks are written; the volume puts them on stable storage".into(),
                Activity::ReadingBack => words.reading_back.into(),
            },
            Standing::Verified { verification } => verification.message.clone(),
            Standing::Completed { .. } => words.completed.into(),
            Standing::Binding { waiting, .. } => format!("Every block is on the volume; {waiting}"),
            Standing::Bound => {
                "Every block's checksum held, the volume put them on stable storage, and its claim is bound".into()
            }
            Standing::Failed { failure, .. } => failure.message.clone(),
            Standing::Cancelling => "The worker is being stopped".into(),
            Standing::Cancelled { .. } => words.cancelled.into(),
            Standing::Deleting => words.deleting.into(),
        }
    }

    /// The conditions, those of the kind's own domain last; none: as they were written.
    pub fn claims(&self, words: &Words, domain: Vec<Claim>) -> Option<Vec<Claim>> {
        let reason = match self {
            Standing::Unchanged { .. } | Standing::Released { .. } | Standing::Verified { .. } => return None,
            Standing::Cancelling => Cause::Cancelling.into(),
            _ => self.state()?.1,
        };
        let message = self.message(words);
        let is_completed = matches!(self, Standing::Completed { .. } | Standing::Bound);
        let ready = if is_completed { Truth::True } else { Truth::False };
        let mut claims = vec![Claim::new(ConditionType::Ready, ready, reason, message.clone())];
        match self {
            Standing::Completed { .. } | Standing::Bound => {}
            Standing::Cancelled { .. } => {
                claims.push(Claim::new(ConditionType::Stalled, Truth::True, Cause::CancelledByUser, message));
            }
            Standing::Failed { failure, .. } => claims.push(match failure.next {
                WhatNext::At(at) => {
                    let text = format!("The next attempt starts at {at}, or at once by a new spec.retryRequest");
                    Claim::new(ConditionType::Reconciling, Truth::True, Cause::WaitingForRetry, text)
                }
                WhatNext::Exhausted => {
                    let text = "The retries are used up: remove the cause, then set a new spec.retryRequest".to_owned();
                    Claim::new(ConditionType::Stalled, Truth::True, Cause::RetriesExhausted, text)
                }
                WhatNext::Never => {
                    let text = format!(
                        "Not cured by repetition: remove the cause, then set a new spec.retryRequest or {}",
                        words.anew
                    );
                    Claim::new(ConditionType::Stalled, Truth::True, Cause::NotRetryable, text)
                }
            }),
            _ => claims.push(Claim::new(ConditionType::Reconciling, Truth::True, reason, message)),
        }
        claims.extend(domain);
        if let Standing::Completed { heard, .. } = self
            && heard.report.verification.is_some()
        {
            // A verdict that came with the news is told on the next pass, with an event of its own.
            claims.push(claim(&Verification::new(Verdict::Running, "The verification runs")));
        }
        Some(claims)
    }

    /// The last report that this standing rests on.
    pub fn heard(&self) -> Option<&Heard> {
        match self {
            Standing::Completed { heard } => Some(heard),
            Standing::Working { heard, .. }
            | Standing::Binding { heard, .. }
            | Standing::Failed { heard, .. }
            | Standing::Cancelled { heard } => heard.as_deref(),
            _ => None,
        }
    }

    /// What is worth an event when this standing is new; `completed` says of a last report what it brought.
    pub fn note(&self, words: &Words, completed: fn(&Report) -> String) -> Option<Note> {
        let normal =
            |reason: &str, text: String| Some(Note { severity: Severity::Normal, reason: reason.into(), text });
        let warning =
            |reason: &str, text: String| Some(Note { severity: Severity::Warning, reason: reason.into(), text });
        match self {
            Standing::Unchanged { .. }
            | Standing::Released { .. }
            | Standing::ExposingVolume { .. }
            | Standing::StartingWorker { .. }
            | Standing::Deleting => None,
            Standing::Waiting { missing } => warning(missing.reason.as_str(), missing.message.clone()),
            Standing::Queued { limit: None, .. } => None,
            Standing::Queued { limit: Some(_), .. } => normal("Queued", self.message(words)),
            Standing::WaitingForOldWorker => normal("WaitingForOldWorker", self.message(words)),
            Standing::Beginning { number, id, .. } => {
                normal("AttemptStarted", format!("Attempt {number} ({id}) begins"))
            }
            Standing::Working { activity: Activity::NotHeard, .. } => warning("WorkerNotHeard", self.message(words)),
            Standing::Working { activity: Activity::Throttled, .. } => warning("Throttled", self.message(words)),
            Standing::Working { activity: Activity::WritingRecord, heard: Some(heard) } => normal(
                "DataAcknowledged",
                format!("The store acknowledged all {} blocks", heard.report.counters.done_blocks()),
            ),
            Standing::Working { activity: Activity::Flushing, heard: Some(heard) } => normal(
                "DataRestored",
                format!("{} blocks are written and their checksums held", heard.report.counters.done_blocks()),
            ),
            Standing::Working { .. } => None,
            Standing::Completed { heard } => normal("Completed", completed(&heard.report)),
            Standing::Binding { heard: Some(heard), .. } => normal("DataRestored", completed(&heard.report)),
            Standing::Binding { heard: None, .. } => None,
            Standing::Bound => normal("Completed", self.message(words)),
            Standing::Verified { verification } => match verification.verdict {
                Verdict::Running => None,
                Verdict::Passed => normal("VerificationPassed", self.message(words)),
                Verdict::Damaged => warning("DamageFound", self.message(words)),
                Verdict::NotDone => warning("VerificationNotDone", self.message(words)),
            },
            Standing::Failed { failure, .. } => warning(failure.reason.as_str(), failure.message.clone()),
            Standing::Cancelling => normal("Cancelling", self.message(words)),
            Standing::Cancelled { .. } => normal("Cancelled", self.message(words)),
        }
    }

    /// When to look again, should nothing happen before. `poll` is the interval for running workers.
    pub fn again(&self, now: Timestamp, poll: Duration) -> Option<Duration> {
        match self {
            Standing::Unchanged { again } | Standing::Released { again } => *again,
            Standing::Waiting { .. } => Some(Duration::from_secs(5)),
            Standing::Queued { limit: None, .. } => Some(super::queue::GATHERING),
            Standing::Queued { limit: Some(_), .. } => Some(Duration::from_secs(5)),
            Standing::Beginning { .. } => Some(Duration::ZERO),
            // Somebody is to appear or to go any moment.
            Standing::ExposingVolume { .. } => Some(Duration::from_millis(500)),
            Standing::Binding { again, .. } => Some(*again),
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
            Standing::Completed { .. } | Standing::Bound | Standing::Verified { .. } | Standing::Cancelled { .. } => {
                Some(Duration::from_secs(1))
            }
        }
    }
}

impl Heard {
    /// Does the report say that nothing is outstanding? Before a plan was made nobody knows.
    pub fn is_complete(&self) -> bool {
        let counters = &self.report.counters;
        self.report.plan.is_some() && counters.done_blocks() >= counters.total_blocks()
    }
}
