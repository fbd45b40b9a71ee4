//! What Prometheus may know. Every label is a closed list: never a name, a path or a message, so that the number of
//! series does not grow with the number of Backups.
//!
//! Counters of blocks, bytes and requests grow by what an accepted report says more than the last accepted one of the
//! same attempt. They begin at zero with each operator, so they are rates, not an account: the account is in status.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::model::{Counters, FailureReason, Requests};

macro_rules! words {
    ($value:ident { $($word:ident),* $(,)? }) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelValue)]
        pub enum $value { $($word),* }
        impl $value {
            pub const ALL: &[$value] = &[$($value::$word),*];
        }
    };
}

macro_rules! label {
    ($set:ident { $field:ident: $value:ident $words:tt }) => {
        words!($value $words);
        #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $set { $field: $value }
    };
}

label!(BlockLabels { outcome: BlockOutcome { Uploaded, Reused, Resumed, Failed, Zero } });
label!(RestoreBlockLabels { outcome: RestoreBlockOutcome { Restored, Reused, Damaged } });
label!(ByteLabels { kind: Bytes { Acknowledged, Stored, Read, Restored, Fetched } });
words!(RequestKind { Put, Head, Get, List, Delete });
words!(RequestOutcome { Answered, Failed });
label!(WriteLabels { outcome: StatusWrite { Written, Identical, Conflict, Refused, Failed } });
label!(DropLabels { cause: ReportDropped { WrongKey, Malformed, OtherAttempt, OtherPod, Repeated, Lower } });
label!(CarrierLabels { carrier: Carrier { Http, Log, LastWord } });
label!(KindLabels { kind: Kind { Backup, Restore, ClusterBackupTarget } });

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    kind: RequestKind,
    outcome: RequestOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    /// `Completed` or the reason of a failure.
    outcome: &'static str,
}

type Histograms = Family<KindLabels, Histogram, fn() -> Histogram>;
type FloatGauge = Gauge<f64, AtomicU64>;

/// All series of the operator, and the registry that prints them.
pub struct Metrics {
    registry: Mutex<Registry>,
    backups: Family<StateLabels, Gauge<i64, AtomicI64>>,
    restores: Family<StateLabels, Gauge<i64, AtomicI64>>,
    blocks: Family<BlockLabels, Counter>,
    restore_blocks: Family<RestoreBlockLabels, Counter>,
    bytes: Family<ByteLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    retries: Counter,
    throttles: Counter,
    acknowledgement_age: FloatGauge,
    status_writes: Family<WriteLabels, Counter>,
    status_writes_refused: Counter,
    reports: Family<CarrierLabels, Counter>,
    reports_dropped: Family<DropLabels, Counter>,
    attempts: Family<EndLabels, Counter>,
    reconcile_seconds: Histograms,
    reconcile_errors: Family<KindLabels, Counter>,
    leading: Gauge<i64, AtomicI64>,
}

/// 1 ms to 33 s, doubling.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("tidemark")),
            backups: Family::default(),
            restores: Family::default(),
            blocks: Family::default(),
            restore_blocks: Family::default(),
            bytes: Family::default(),
            requests: Family::default(),
            retries: Counter::default(),
            throttles: Counter::default(),
            acknowledgement_age: FloatGauge::default(),
            status_writes: Family::default(),
            status_writes_refused: Counter::default(),
            reports: Family::default(),
            reports_dropped: Family::default(),
            attempts: Family::default(),
            reconcile_seconds: Family::new_with_constructor(durations),
            reconcile_errors: Family::default(),
            leading: Gauge::default(),
        };
        metrics.register_progress();
        metrics.register_control();
        metrics.begin_at_zero();
        metrics
    }

    fn register_progress(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register("backups", "Backup objects by state", self.backups.clone());
        registry.register("restores", "Restore objects by state", self.restores.clone());
        registry.register("blocks", "Blocks of backups by what became of them", self.blocks.clone());
        registry.register("restore_blocks", "Blocks of restores by what became of them", self.restore_blocks.clone());
        registry.register("volume_bytes", "Bytes by what became of them", self.bytes.clone());
        registry.register("store_requests", "Requests to the object store by kind and outcome", self.requests.clone());
        registry.register("store_retries", "Requests that were repeated", self.retries.clone());
        registry.register("store_throttles", "Requests the store asked to slow down", self.throttles.clone());
        registry.register_with_unit(
            "oldest_acknowledgement",
            "Longest time since the last acknowledgement among uploading Backups, 0 if none uploads",
            Unit::Seconds,
            self.acknowledgement_age.clone(),
        );
        registry.register("attempts_ended", "Attempts that ended, by how", self.attempts.clone());
    }

    fn register_control(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register("status_writes", "Writes of status by outcome", self.status_writes.clone());
        registry.register(
            "status_writes_refused",
            "Writes of status that a rule of the CRD refused: each one is a bug",
            self.status_writes_refused.clone(),
        );
        registry.register("reports", "Worker reports accepted, by carrier", self.reports.clone());
        registry.register("reports_dropped", "Worker reports not believed, by cause", self.reports_dropped.clone());
        registry.register_with_unit(
            "reconcile",
            "Duration of one reconcile",
            Unit::Seconds,
            self.reconcile_seconds.clone(),
        );
        registry.register("reconcile_errors", "Reconciles that ended in an error", self.reconcile_errors.clone());
        registry.register("leader", "1 while this operator leads", self.leading.clone());
    }

    /// A series that appears only with its first event has no rate for it: all begin at zero.
    fn begin_at_zero(&self) {
        BlockOutcome::ALL.iter().for_each(|&outcome| drop(self.blocks.get_or_create(&BlockLabels { outcome })));
        RestoreBlockOutcome::ALL
            .iter()
            .for_each(|&outcome| drop(self.restore_blocks.get_or_create(&RestoreBlockLabels { outcome })));
        Bytes::ALL.iter().for_each(|&kind| drop(self.bytes.get_or_create(&ByteLabels { kind })));
        for (&kind, &outcome) in RequestKind::ALL.iter().flat_map(|k| RequestOutcome::ALL.iter().map(move |o| (k, o))) {
            drop(self.requests.get_or_create(&RequestLabels { kind, outcome }));
        }
        StatusWrite::ALL.iter().for_each(|&outcome| drop(self.status_writes.get_or_create(&WriteLabels { outcome })));
        ReportDropped::ALL.iter().for_each(|&cause| drop(self.reports_dropped.get_or_create(&DropLabels { cause })));
        Carrier::ALL.iter().for_each(|&carrier| drop(self.reports.get_or_create(&CarrierLabels { carrier })));
        Kind::ALL.iter().for_each(|&kind| drop(self.reconcile_errors.get_or_create(&KindLabels { kind })));
    }

    /// OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        encode(&mut text, &registry).expect("writing to a string does not fail");
        text
    }

    /// The census of Backups: every state that exists is named, so that one that emptied goes to zero.
    pub fn set_backups(&self, counts: impl IntoIterator<Item = (&'static str, usize)>) {
        set_counts(&self.backups, counts);
    }

    /// The census of Restores.
    pub fn set_restores(&self, counts: impl IntoIterator<Item = (&'static str, usize)>) {
        set_counts(&self.restores, counts);
    }

    pub fn set_acknowledgement_age(&self, oldest: Duration) {
        self.acknowledgement_age.set(oldest.as_secs_f64());
    }

    pub fn set_leading(&self, leading: bool) {
        self.leading.set(i64::from(leading));
    }

    pub fn status_written(&self, outcome: StatusWrite) {
        self.status_writes.get_or_create(&WriteLabels { outcome }).inc();
        if outcome == StatusWrite::Refused {
            self.status_writes_refused.inc();
        }
    }

    /// Refused status writes so far: tests require zero.
    pub fn status_writes_refused(&self) -> u64 {
        self.status_writes_refused.get()
    }

    pub fn report_dropped(&self, cause: ReportDropped) {
        self.reports_dropped.get_or_create(&DropLabels { cause }).inc();
    }

    pub fn reports_dropped(&self, cause: ReportDropped) -> u64 {
        self.reports_dropped.get_or_create(&DropLabels { cause }).get()
    }

    pub fn attempt_failed(&self, reason: FailureReason) {
        self.attempts.get_or_create(&EndLabels { outcome: reason.as_str() }).inc();
    }

    pub fn attempt_completed(&self) {
        self.attempts.get_or_create(&EndLabels { outcome: "Completed" }).inc();
    }

    pub fn reconciled(&self, kind: Kind, took: Duration, failed: bool) {
        self.reconcile_seconds.get_or_create(&KindLabels { kind }).observe(took.as_secs_f64());
        if failed {
            self.reconcile_errors.get_or_create(&KindLabels { kind }).inc();
        }
    }

    /// Adds what an accepted report says more than the one before it; the first of an attempt has nothing before it.
    pub fn report_accepted(&self, carrier: Carrier, before: (Counters, Requests), after: (Counters, Requests)) {
        self.reports.get_or_create(&CarrierLabels { carrier }).inc();
        let ((p, r), (q, s)) = (before, after);
        match q {
            Counters::Backup(_) => self.backed_up(&p, &q),
            Counters::Restore(_) => self.restored(&p, &q),
        }
        self.requests_ended(r, s);
        self.retries.inc_by(s.retried.saturating_sub(r.retried));
        self.throttles.inc_by(s.throttled.saturating_sub(r.throttled));
    }

    fn requests_ended(&self, before: Requests, after: Requests) {
        let by_kind = |r: Requests| {
            let f = r.failed;
            [
                (RequestKind::Put, r.put, f.put),
                (RequestKind::Head, r.head, f.head),
                (RequestKind::Get, r.get, f.get),
                (RequestKind::List, r.list, f.list),
                (RequestKind::Delete, r.delete, f.delete),
            ]
        };
        for ((kind, ended, failed), (_, ended_now, failed_now)) in by_kind(before).into_iter().zip(by_kind(after)) {
            let failed = failed_now.saturating_sub(failed);
            let answered = ended_now.saturating_sub(ended).saturating_sub(failed);
            for (outcome, count) in [(RequestOutcome::Answered, answered), (RequestOutcome::Failed, failed)] {
                self.requests.get_or_create(&RequestLabels { kind, outcome }).inc_by(count);
            }
        }
    }

    fn backed_up(&self, before: &Counters, after: &Counters) {
        use BlockOutcome::*;
        let (p, q) = (before.backup(), after.backup());
        let blocks = |outcome, from: u64, to: u64| {
            self.blocks.get_or_create(&BlockLabels { outcome }).inc_by(to.saturating_sub(from));
        };
        blocks(Uploaded, p.uploaded_blocks, q.uploaded_blocks);
        blocks(Reused, p.reused_blocks, q.reused_blocks);
        blocks(Resumed, p.resumed_blocks, q.resumed_blocks);
        blocks(Failed, p.failed_blocks, q.failed_blocks);
        blocks(Zero, p.zero_blocks, q.zero_blocks);
        self.moved(Bytes::Acknowledged, p.acknowledged_bytes, q.acknowledged_bytes);
        self.moved(Bytes::Stored, p.stored_bytes, q.stored_bytes);
        self.moved(Bytes::Read, p.read_bytes, q.read_bytes);
    }

    fn restored(&self, before: &Counters, after: &Counters) {
        use RestoreBlockOutcome::*;
        let (p, q) = (before.restore(), after.restore());
        let blocks = |outcome, from: u64, to: u64| {
            self.restore_blocks.get_or_create(&RestoreBlockLabels { outcome }).inc_by(to.saturating_sub(from));
        };
        blocks(Restored, p.written_blocks, q.written_blocks);
        blocks(Reused, p.reused_blocks, q.reused_blocks);
        blocks(Damaged, p.failed_blocks, q.failed_blocks);
        self.moved(Bytes::Restored, p.restored_bytes, q.restored_bytes);
        self.moved(Bytes::Fetched, p.fetched_bytes, q.fetched_bytes);
    }

    fn moved(&self, kind: Bytes, from: u64, to: u64) {
        self.bytes.get_or_create(&ByteLabels { kind }).inc_by(to.saturating_sub(from));
    }
}

fn set_counts(
    family: &Family<StateLabels, Gauge<i64, AtomicI64>>,
    counts: impl IntoIterator<Item = (&'static str, usize)>,
) {
    for (state, count) in counts {
        family.get_or_create(&StateLabels { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Progress, RestoreProgress, progress::FailedRequests};

    #[test]
    fn counters_grow_by_what_a_report_says_more() {
        let metrics = Metrics::new();
        let uploaded = |n| Counters::Backup(Progress { uploaded_blocks: n, ..Progress::default() });
        let first = (uploaded(3), Requests { put: 3, ..Requests::default() });
        let failed = FailedRequests { put: 1, ..FailedRequests::default() };
        let second = (uploaded(5), Requests { put: 6, retried: 1, failed, ..first.1 });
        let restored = RestoreProgress { written_blocks: 4, reused_blocks: 2, ..RestoreProgress::default() };
        metrics.report_accepted(Carrier::Http, Default::default(), (Counters::Restore(restored), Requests::default()));
        metrics.report_accepted(Carrier::Http, Default::default(), first);
        metrics.report_accepted(Carrier::Log, first, second);
        let text = metrics.encode();
        for line in [
            "tidemark_blocks_total{outcome=\"Uploaded\"} 5",
            "tidemark_restore_blocks_total{outcome=\"Restored\"} 4",
            "tidemark_restore_blocks_total{outcome=\"Reused\"} 2",
            "tidemark_store_requests_total{kind=\"Put\",outcome=\"Answered\"} 5",
            "tidemark_store_requests_total{kind=\"Put\",outcome=\"Failed\"} 1",
            "tidemark_store_retries_total 1",
            "tidemark_reports_total{carrier=\"Log\"} 1",
            "tidemark_status_writes_refused_total 0",
            "tidemark_reports_dropped_total{cause=\"WrongKey\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
