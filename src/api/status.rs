//! From the model's counters to what status says of them.
//!
//! Numbers are copied, never computed anew: the percentage is `model::progress::percent` and nothing else. A count too
//! large for int64 stays at its end instead of becoming negative.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    backup::{BackupProgress, ObservedFailure, RequestCounts},
    common::count,
};
use crate::model::{
    Failure, Phase, Progress, Requests, Retry,
    progress::{Completion, percent},
};

impl BackupProgress {
    /// What status says of a report's counters. The total is absent until the plan is made.
    pub fn of(progress: &Progress, phase: Phase, completion: Completion) -> Self {
        let planned = phase != Phase::Planning || progress.total_blocks > 0;
        Self {
            total_blocks: planned.then(|| count(progress.total_blocks)),
            acknowledged_blocks: count(progress.acknowledged_blocks),
            uploaded_blocks: count(progress.uploaded_blocks),
            reused_blocks: count(progress.reused_blocks),
            resumed_blocks: count(progress.resumed_blocks),
            failed_blocks: count(progress.failed_blocks),
            in_flight_blocks: count(progress.in_flight_blocks),
            percent: i32::from(percent(progress.acknowledged_blocks, progress.total_blocks, completion)),
            acknowledged_bytes: count(progress.acknowledged_bytes),
            stored_bytes: count(progress.stored_bytes),
            bytes_per_second: None,
            estimated_completion_time: None,
            last_acknowledged_time: progress.last_acknowledged_time.map(Time),
        }
    }
}

impl From<&Requests> for RequestCounts {
    fn from(requests: &Requests) -> Self {
        Self {
            put: count(requests.put),
            head: count(requests.head),
            get: count(requests.get),
            list: count(requests.list),
            delete: count(requests.delete),
            retried: count(requests.retried),
            throttled: count(requests.throttled),
        }
    }
}

impl ObservedFailure {
    /// What status says of a failure in that attempt (absent: before any).
    pub fn of(failure: &Failure, attempt: Option<u32>) -> Self {
        Self {
            reason: failure.reason.as_str().to_owned(),
            message: failure.message.clone(),
            object: failure.object.clone(),
            time: Some(Time(failure.time)),
            attempt: attempt.map(|number| i32::try_from(number).unwrap_or(i32::MAX)),
            retryable: failure.reason.retry() != Retry::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law_3_status_shows_the_models_percentage_and_no_total_before_the_plan() {
        let counted = Progress { total_blocks: 3, acknowledged_blocks: 3, uploaded_blocks: 3, ..Progress::default() };
        let shown = BackupProgress::of(&counted, Phase::WritingRecord, Completion::Open);
        assert_eq!((shown.percent, shown.total_blocks), (99, Some(3)), "all acknowledged, nothing committed");
        assert_eq!(BackupProgress::of(&counted, Phase::Ended, Completion::Completed).percent, 100);
        let planning = BackupProgress::of(&Progress::default(), Phase::Planning, Completion::Open);
        assert_eq!(planning, BackupProgress::default());
        let empty = BackupProgress::of(&Progress::default(), Phase::Ended, Completion::Completed);
        assert_eq!((empty.percent, empty.total_blocks), (100, Some(0)), "a volume of zeros completes");
    }

    #[test]
    fn a_count_beyond_int64_does_not_become_negative() {
        let huge = Requests { put: u64::MAX, ..Requests::default() };
        assert_eq!(RequestCounts::from(&huge).put, i64::MAX);
    }
}
