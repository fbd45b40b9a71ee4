//! How a Backup stands that no worker works for, in one value; state, reason, conditions, event and the time of the next
//! look come from it, and so does the status to write.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{Observed, SOON};
use crate::{
    api::{
        BackupState, BackupStatus, Cause, Claim, ConditionType, Reason, Truth,
        backup_status::{ObservedFailure, ObservedSnapshot, ObservedSource, StoredAs},
        common::{ChosenTarget, count},
        conditions::{conditions, find},
    },
    controller::{
        target::lookup::StoredRecord,
        time::{until, whole_seconds},
        work::standing::{Failed, Note, Severity, WhatNext},
    },
};

/// ```text
/// WaitingForTarget → LookingUp → Imported, or Failed (→ again by its policy or a person's word)
/// Deleting → Gone
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
    /// The record of an import is being looked up, or waited for.
    LookingUp {
        what: String,
    },
    /// The record was in the bucket already, and is this namespace's.
    Imported(Box<Imported>),
    Failed(Box<Failed>),
    /// The object is being deleted and something is still to be done before it goes.
    Deleting(Departing),
    /// Nothing keeps it any more; what became of its data is told.
    Gone {
        note: Note,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    pub record: StoredRecord,
    pub target: ChosenTarget,
    /// What Longhorn and `tidemark restore` take.
    pub url: Option<String>,
    /// That its record names.
    pub blocks: u64,
}

/// What a Backup that is being deleted waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Departing {
    RemovingData { why: String },
    WaitingForAcknowledgement { how: String },
    TargetUnreachable { why: String },
}

impl Standing {
    fn state(&self) -> Option<(BackupState, Reason)> {
        use {BackupState as S, Cause as C};
        Some(match self {
            Standing::Unchanged { .. } | Standing::Gone { .. } => return None,
            Standing::WaitingForTarget { .. } => (S::Pending, C::WaitingForTarget.into()),
            Standing::LookingUp { .. } => (S::Pending, C::WaitingForSource.into()),
            Standing::Imported(_) => (S::Completed, C::Imported.into()),
            Standing::Failed(failure) => (S::Error, failure.reason),
            Standing::Deleting(what) => match what {
                Departing::RemovingData { .. } => (S::Deleting, C::RemovingData.into()),
                Departing::WaitingForAcknowledgement { .. } => (S::Deleting, C::WaitingForAcknowledgement.into()),
                Departing::TargetUnreachable { .. } => (S::Deleting, C::TargetUnreachable.into()),
            },
        })
    }

    pub fn message(&self) -> String {
        match self {
            Standing::Unchanged { .. } => String::new(),
            Standing::WaitingForTarget { missing } => missing.clone(),
            Standing::LookingUp { what } => what.clone(),
            Standing::Imported(imported) => {
                let blocks = imported.blocks;
                format!("It was in the bucket already: its record was read whole, and all {blocks} blocks are listed")
            }
            Standing::Failed(failure) => failure.message.clone(),
            Standing::Deleting(Departing::RemovingData { why }) => {
                format!("Data is being removed from the bucket: {why}")
            }
            Standing::Deleting(Departing::WaitingForAcknowledgement { how }) => how.clone(),
            Standing::Deleting(Departing::TargetUnreachable { why }) => format!(
                "Data cannot be removed from the bucket: {why}. It is tried again; with deletionPolicy: Retain the object goes and the data stays"
            ),
            Standing::Gone { note } => note.text.clone(),
        }
    }

    /// The conditions but those of the domain.
    fn claims(&self) -> Option<Vec<Claim>> {
        let (_, reason) = self.state()?;
        let claim = |kind, truth, reason: Reason, text: &str| Claim::new(kind, truth, reason, text);
        let message = self.message();
        let ready = if matches!(self, Standing::Imported(_)) { Truth::True } else { Truth::False };
        let mut claims = vec![claim(ConditionType::Ready, ready, reason, &message)];
        match self {
            Standing::Imported(_) => {}
            Standing::Failed(failure) => claims.push(match failure.next {
                WhatNext::At(at) => {
                    let text = format!("It is tried again at {at}, or at once by a new spec.retryRequest");
                    claim(ConditionType::Reconciling, Truth::True, Cause::WaitingForRetry.into(), &text)
                }
                WhatNext::Exhausted => {
                    let text = "The retries are used up: remove the cause, then set a new spec.retryRequest";
                    claim(ConditionType::Stalled, Truth::True, Cause::RetriesExhausted.into(), text)
                }
                WhatNext::Never => {
                    let text = "Not cured by repetition: remove the cause, then set a new spec.retryRequest or create a new Backup";
                    claim(ConditionType::Stalled, Truth::True, Cause::NotRetryable.into(), text)
                }
            }),
            _ => claims.push(claim(ConditionType::Reconciling, Truth::True, reason, &message)),
        }
        if !matches!(self, Standing::Deleting(_)) {
            claims.extend(self.domain());
        }
        Some(claims)
    }

    fn domain(&self) -> [Claim; 3] {
        use {Cause as C, ConditionType as T, Truth::*};
        match self {
            Standing::Imported(imported) => [
                Claim::new(T::SnapshotReady, True, C::NotNeeded, "Nothing is read: the backup was there already"),
                Claim::new(
                    T::DataAcknowledged,
                    True,
                    C::AllBlocksAcknowledged,
                    format!("All {} blocks that it names are listed with sizes that can be", imported.blocks),
                ),
                Claim::new(T::RecordCommitted, True, C::RecordReadBack, "The record was read whole and is consistent"),
            ],
            _ => [
                Claim::new(T::SnapshotReady, False, C::NotYet, "Nothing is read"),
                Claim::new(T::DataAcknowledged, False, C::BlocksOutstanding, "The record was not found yet"),
                Claim::new(T::RecordCommitted, False, C::RecordOutstanding, "The record was not found yet"),
            ],
        }
    }

    /// What is worth an event when this standing is new.
    pub fn note(&self) -> Option<Note> {
        let normal = |reason: &str, text| Some(Note { severity: Severity::Normal, reason: reason.into(), text });
        let warning = |reason: &str, text| Some(Note { severity: Severity::Warning, reason: reason.into(), text });
        match self {
            Standing::Unchanged { .. } | Standing::LookingUp { .. } => None,
            Standing::WaitingForTarget { missing } => warning("WaitingForTarget", missing.clone()),
            Standing::Imported(imported) => {
                let StoredRecord { volume, backup, .. } = &imported.record;
                normal("Imported", format!("Backup {backup} of volume {volume} was in the bucket already"))
            }
            Standing::Failed(failure) => warning(failure.reason.as_str(), failure.message.clone()),
            Standing::Deleting(Departing::RemovingData { .. }) => normal("RemovingData", self.message()),
            Standing::Deleting(Departing::WaitingForAcknowledgement { how }) => {
                warning("WaitingForAcknowledgement", how.clone())
            }
            Standing::Deleting(Departing::TargetUnreachable { .. }) => warning("TargetUnreachable", self.message()),
            Standing::Gone { note } => Some(note.clone()),
        }
    }

    /// When to look again, should nothing happen before. An errand that ends brings us here by itself.
    pub fn again(&self, now: Timestamp) -> Option<Duration> {
        match self {
            Standing::Unchanged { again } => *again,
            Standing::WaitingForTarget { .. } | Standing::LookingUp { .. } => Some(SOON),
            Standing::Imported(_) => Some(Duration::from_millis(200)),
            Standing::Failed(failure) => match failure.next {
                WhatNext::At(at) => Some(until(at, now)),
                WhatNext::Exhausted | WhatNext::Never => None,
            },
            Standing::Deleting(Departing::RemovingData { .. } | Departing::TargetUnreachable { .. }) => Some(SOON),
            Standing::Deleting(Departing::WaitingForAcknowledgement { .. }) => Some(2 * SOON),
            // Should its finalizer not have gone, for somebody changed the object meanwhile.
            Standing::Gone { .. } => Some(Duration::from_millis(500)),
        }
    }
}

/// An event is a change, never a heartbeat.
pub fn is_news(before: &BackupStatus, after: &BackupStatus, standing: &Standing) -> bool {
    let failed_again = matches!(standing, Standing::Failed(_)) && before.failure != after.failure;
    let is_gone = matches!(standing, Standing::Gone { .. });
    (before.state, &before.reason) != (after.state, &after.reason) || failed_again || is_gone
}

/// The status to write for a standing.
pub fn next_status(o: &Observed, standing: &Standing, now: Timestamp) -> BackupStatus {
    let now = whole_seconds(now);
    let mut next = o.status.clone();
    next.observed_generation = o.wish.generation;
    if let Some((state, reason)) = standing.state() {
        next.state = Some(state);
        next.reason = Some(reason.as_str().to_owned());
        next.queue = None;
        next.start_time.get_or_insert(Time(now));
    }
    // Asked for once more, it is answered by leaving Error, or by failing again.
    let is_resting = matches!(standing, Standing::Unchanged { .. }) && next.state == Some(BackupState::Error);
    if !is_resting {
        next.observed_retry_request = o.wish.retry_request.clone().or(next.observed_retry_request);
    }
    match standing {
        Standing::Unchanged { .. } | Standing::Gone { .. } => {}
        Standing::WaitingForTarget { .. } | Standing::LookingUp { .. } | Standing::Deleting(_) => {
            next.next_retry_time = None;
        }
        Standing::Imported(imported) => import(&mut next, imported, now),
        Standing::Failed(failure) => fail(&mut next, failure),
    }
    let generation = Some(o.wish.generation);
    next.conditions = match standing.claims() {
        Some(claims) => conditions(&o.status.conditions, &claims, generation, now),
        None => o.status.conditions.clone(),
    };
    if matches!(standing, Standing::Deleting(_)) {
        use ConditionType::{DataAcknowledged, RecordCommitted, SnapshotReady};
        // What was true of data and record stays so until the object is gone.
        let kept = [SnapshotReady, DataAcknowledged, RecordCommitted];
        next.conditions.extend(kept.into_iter().filter_map(|kind| find(&o.status.conditions, kind)).cloned());
    }
    let observed = |c: Condition| Condition { observed_generation: generation, ..c };
    next.conditions = std::mem::take(&mut next.conditions).into_iter().map(observed).collect();
    next
}

/// Nothing was uploaded, so nothing is counted: progress stays absent.
fn import(next: &mut BackupStatus, imported: &Imported, now: Timestamp) {
    let record = &imported.record;
    next.target = Some(imported.target.clone());
    next.source = Some(ObservedSource { bytes: record.volume_bytes.map(count), ..ObservedSource::default() });
    let name = if record.snapshot.is_empty() { &record.backup } else { &record.snapshot };
    next.snapshot = Some(ObservedSnapshot {
        name: name.chars().take(253).collect(),
        creation_time: record.snapshot_time.map(|t| Time(whole_seconds(t))),
        ..ObservedSnapshot::default()
    });
    next.store = Some(StoredAs {
        volume: record.volume.clone(),
        backup: Some(record.backup.clone()),
        block_size: record.block_size.map(count),
        compression: record.compression.clone(),
        url: imported.url.clone(),
    });
    // Its own completion, so that expireAfter means the same for it.
    next.completion_time = Some(Time(whole_seconds(record.completion_time.unwrap_or(now))));
    (next.consecutive_failures, next.next_retry_time) = (None, None);
}

fn fail(next: &mut BackupStatus, failure: &Failed) {
    let at = match failure.next {
        WhatNext::At(at) => Some(Time(whole_seconds(at))),
        WhatNext::Exhausted | WhatNext::Never => None,
    };
    next.failure = Some(ObservedFailure {
        reason: failure.reason.as_str().to_owned(),
        message: failure.message.clone(),
        object: failure.object.clone(),
        time: Some(Time(whole_seconds(failure.time))),
        attempt: None,
        retryable: at.is_some(),
    });
    next.next_retry_time = at;
    next.consecutive_failures = Some(failure.consecutive);
}
