//! Listening to a worker: three carriers, one way of believing.
//!
//! [`accept`] is pure: a line is believed if its key, its attempt and its pod are the right ones, and if it is newer than
//! what was believed before. Everything else is counted by its cause and dropped, so lost, repeated, reordered, late and
//! forged lines cannot move status wrongly. A new leader remembers nothing: then what status shows of this attempt is the
//! floor under which nothing is believed.
//!
//! The order of asking: the worker's door; its log after ten silent seconds, and at most that often; when it ended, its
//! last word and its log.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use jiff::Timestamp;

use super::observe::Heard;
use crate::{
    api::backup::HeardBy,
    controller::{
        error_chain,
        runner::{AttemptRef, Run, Runner},
        time::until,
    },
    http::fetch_report,
    metrics::{Carrier, Metrics, ReportDropped},
    model::{AttemptId, Report, ReportKey, report::ReportError},
};

/// After this long without a report by HTTP the log is read, and again not before this long.
pub const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// The rate is that of the last half minute.
const RATE_WINDOW: Duration = Duration::from_secs(30);

/// What a line is compared with.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    pub attempt: &'a AttemptId,
    pub pod: &'a str,
    pub key: &'a ReportKey,
    /// The newest report believed so far.
    pub last: Option<&'a Report>,
    /// Blocks that count, as status shows them for this attempt.
    pub done: u64,
}

/// What became of a line.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    New(Box<Report>),
    /// The newest one once more.
    Known,
    Dropped(ReportDropped),
}

/// Is this line to be believed?
pub fn accept(line: &str, expected: Expected<'_>) -> Verdict {
    let report = match Report::decode(line, expected.key) {
        Ok(report) => report,
        Err(ReportError::WrongKey) => return Verdict::Dropped(ReportDropped::WrongKey),
        Err(ReportError::TooLong(_) | ReportError::Malformed(_) | ReportError::UnknownVersion(_)) => {
            return Verdict::Dropped(ReportDropped::Malformed);
        }
    };
    if report.attempt != *expected.attempt {
        return Verdict::Dropped(ReportDropped::OtherAttempt);
    }
    if report.pod != expected.pod {
        return Verdict::Dropped(ReportDropped::OtherPod);
    }
    if let Some(last) = expected.last {
        if report.sequence == last.sequence {
            return Verdict::Known;
        }
        if report.sequence < last.sequence {
            return Verdict::Dropped(ReportDropped::Repeated);
        }
    }
    let counters = &report.counters;
    let floor = expected.last.map_or(0, |l| l.counters.done_blocks()).max(expected.done);
    if counters.done_blocks() < floor {
        return Verdict::Dropped(ReportDropped::Lower);
    }
    if counters.done_blocks() > counters.total_blocks() {
        return Verdict::Dropped(ReportDropped::Malformed);
    }
    Verdict::New(Box::new(report))
}

/// The memory of one attempt's reports.
#[derive(Debug, Clone)]
pub struct Ear {
    listening_since: Timestamp,
    heard: Option<Heard>,
    log_read: Option<Timestamp>,
    /// Moments and bytes that counted in the last half minute.
    rates: VecDeque<(Timestamp, u64)>,
}

impl Ear {
    pub fn new(now: Timestamp) -> Self {
        Self { listening_since: now, heard: None, log_read: None, rates: VecDeque::new() }
    }

    pub fn heard(&self) -> Option<&Heard> {
        self.heard.as_ref()
    }

    pub fn silent_for(&self, now: Timestamp) -> Duration {
        until(now, self.heard.as_ref().map_or(self.listening_since, |h| h.at))
    }

    fn believe(&mut self, report: Report, by: HeardBy, now: Timestamp) {
        let throttled = match &self.heard {
            Some(before) => report.requests.throttled > before.report.requests.throttled,
            None => false,
        };
        self.rates.push_back((now, report.counters.done_bytes()));
        while self.rates.len() > 2 && self.rates.front().is_some_and(|(at, _)| until(now, *at) > RATE_WINDOW) {
            self.rates.pop_front();
        }
        let bytes_per_second = self.rates.front().and_then(|(at, bytes)| {
            let millis = u64::try_from(until(now, *at).as_millis()).ok().filter(|ms| *ms >= 1000)?;
            Some(report.counters.done_bytes().saturating_sub(*bytes).saturating_mul(1000) / millis)
        });
        self.heard = Some(Heard { report, by, at: now, throttled, bytes_per_second });
    }
}

/// Whom we listen to.
pub struct Listener<'a> {
    pub runner: &'a dyn Runner,
    pub metrics: &'a Metrics,
    pub attempt: &'a AttemptRef,
    pub id: &'a AttemptId,
    pub run: &'a Run,
    /// Blocks that count, as status shows them for this attempt.
    pub done: u64,
}

impl Listener<'_> {
    /// Asks a running worker.
    pub async fn ask(&self, ear: &mut Ear, address: Option<SocketAddr>, now: Timestamp) {
        if let Some(address) = address {
            match fetch_report(address, &self.run.key).await {
                Ok(line) => self.judge(ear, &line, HeardBy::Http, now),
                Err(error) => {
                    tracing::debug!(attempt = %self.attempt, error = %error_chain(&error), "Worker was not heard by HTTP");
                }
            }
        }
        let is_due = ear.log_read.is_none_or(|at| until(now, at) >= LOG_INTERVAL);
        if ear.silent_for(now) >= LOG_INTERVAL && is_due {
            ear.log_read = Some(now);
            self.read(ear, HeardBy::Log, now).await;
        }
    }

    /// Reads what an ended worker left.
    pub async fn read_remains(&self, ear: &mut Ear, now: Timestamp) {
        self.read(ear, HeardBy::LastWord, now).await;
        if !ear.heard.as_ref().is_some_and(|h| h.report.is_final()) {
            self.read(ear, HeardBy::Log, now).await;
        }
    }

    async fn read(&self, ear: &mut Ear, by: HeardBy, now: Timestamp) {
        let line = match by {
            HeardBy::Http => return,
            HeardBy::Log => self.runner.log_line(self.attempt).await,
            HeardBy::LastWord => self.runner.last_word(self.attempt).await,
        };
        match line {
            Ok(Some(line)) => self.judge(ear, &line, by, now),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(attempt = %self.attempt, error = %error_chain(&error), "Report could not be read");
            }
        }
    }

    fn judge(&self, ear: &mut Ear, line: &str, by: HeardBy, now: Timestamp) {
        let last = ear.heard.as_ref().map(|h| &h.report);
        let expected = Expected { attempt: self.id, pod: &self.run.pod, key: &self.run.key, last, done: self.done };
        match accept(line, expected) {
            Verdict::New(report) => {
                let carrier = match by {
                    HeardBy::Http => Carrier::Http,
                    HeardBy::Log => Carrier::Log,
                    HeardBy::LastWord => Carrier::LastWord,
                };
                // The first report an operator hears of an attempt is what the counters begin from.
                let after = (report.counters, report.requests);
                let before =
                    last.map_or(if self.done > 0 { after } else { Default::default() }, |l| (l.counters, l.requests));
                self.metrics.report_accepted(carrier, before, after);
                ear.believe(*report, by, now);
            }
            // An answer to our own nonce is a sign of life even if it says nothing new.
            Verdict::Known if by == HeardBy::Http => {
                if let Some(heard) = ear.heard.as_mut() {
                    heard.at = now;
                    heard.by = by;
                }
            }
            Verdict::Known => {}
            Verdict::Dropped(cause) => {
                self.metrics.report_dropped(cause);
                let attempt = self.attempt;
                match cause {
                    // A slower carrier brings an older line: that is how they work.
                    ReportDropped::Repeated => tracing::debug!(%attempt, ?by, "Report was heard before"),
                    ReportDropped::WrongKey
                    | ReportDropped::Malformed
                    | ReportDropped::OtherAttempt
                    | ReportDropped::OtherPod
                    | ReportDropped::Lower => tracing::warn!(%attempt, ?cause, ?by, "Report was not believed"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Counters, Phase, Progress, Requests, report::REPORT_VERSION};

    fn id(n: u64) -> AttemptId {
        AttemptId::new(n, [0; 10])
    }

    fn report(sequence: u64, acknowledged: u64) -> Report {
        Report {
            v: REPORT_VERSION,
            attempt: id(2),
            pod: "pod".into(),
            sequence,
            time: Timestamp::UNIX_EPOCH,
            phase: Phase::Uploading,
            counters: Counters::Backup(Progress {
                total_blocks: 10,
                acknowledged_blocks: acknowledged,
                ..Progress::default()
            }),
            requests: Requests::default(),
            plan: None,
            damaged: vec![],
            failure: None,
            outcome: None,
            verification: None,
        }
    }

    #[test]
    fn law_8_late_repeated_forged_and_strange_reports_change_nothing() {
        let key = ReportKey::new([1; 32]);
        let (attempt, last) = (id(2), report(5, 4));
        let expected = Expected { attempt: &attempt, pod: "pod", key: &key, last: Some(&last), done: 4 };
        let judge = |report: &Report| accept(&report.encode(&key), expected);
        assert_eq!(judge(&report(6, 4)), Verdict::New(Box::new(report(6, 4))));
        assert_eq!(judge(&report(5, 4)), Verdict::Known);
        assert_eq!(judge(&report(4, 4)), Verdict::Dropped(ReportDropped::Repeated));
        assert_eq!(judge(&Report { attempt: id(1), ..report(9, 9) }), Verdict::Dropped(ReportDropped::OtherAttempt));
        assert_eq!(judge(&Report { pod: "other".into(), ..report(9, 9) }), Verdict::Dropped(ReportDropped::OtherPod));
        assert_eq!(judge(&report(9, 3)), Verdict::Dropped(ReportDropped::Lower));
        assert_eq!(judge(&report(9, 11)), Verdict::Dropped(ReportDropped::Malformed));
        let forged = report(9, 9).encode(&ReportKey::new([2; 32]));
        assert_eq!(accept(&forged, expected), Verdict::Dropped(ReportDropped::WrongKey));
        assert_eq!(accept("nonsense", expected), Verdict::Dropped(ReportDropped::Malformed));
    }

    #[test]
    fn law_3_a_new_leader_believes_nothing_below_what_status_shows() {
        let key = ReportKey::new([1; 32]);
        let attempt = id(2);
        let expected = Expected { attempt: &attempt, pod: "pod", key: &key, last: None, done: 4 };
        assert_eq!(accept(&report(1, 3).encode(&key), expected), Verdict::Dropped(ReportDropped::Lower));
        assert!(matches!(accept(&report(1, 4).encode(&key), expected), Verdict::New(_)));
    }

    /// Every order of delivery of five reports, each delivered twice: what is believed only grows and ends at the newest.
    #[test]
    fn law_3_whatever_the_order_of_delivery_the_count_only_grows() {
        let key = ReportKey::new([1; 32]);
        let attempt = id(2);
        let lines: Vec<String> = (1..=5).map(|n| report(n, n).encode(&key)).collect();
        let mut orders = vec![vec![]];
        for _ in 0..5 {
            orders = orders
                .into_iter()
                .flat_map(|order: Vec<usize>| (0..5).map(move |i| [order.clone(), vec![i]].concat()))
                .collect();
        }
        for order in orders {
            let mut last: Option<Report> = None;
            for &i in &order {
                let expected = Expected { attempt: &attempt, pod: "pod", key: &key, last: last.as_ref(), done: 0 };
                if let Verdict::New(report) = accept(&lines[i], expected) {
                    let before = last.as_ref().map_or(0, |l| l.counters.done_blocks());
                    assert!(report.counters.done_blocks() > before, "{order:?}");
                    last = Some(*report);
                }
            }
            let newest = order.iter().max().map(|i| *i as u64 + 1);
            assert_eq!(last.map(|l| l.sequence), newest, "{order:?}");
        }
    }

    #[test]
    fn the_rate_is_that_of_the_last_half_minute() {
        let at = |s| Timestamp::from_second(s).expect("in range");
        let mut ear = Ear::new(at(0));
        for second in 0..60 {
            let mut r = report(second + 1, 1);
            let acknowledged_bytes = if second < 20 { second * 10 } else { 200 + (second - 20) * 1000 };
            r.counters = Counters::Backup(Progress { acknowledged_bytes, ..Progress::default() });
            ear.believe(r, HeardBy::Http, at(second as i64));
        }
        let rate = ear.heard().and_then(|h| h.bytes_per_second).expect("a rate");
        assert_eq!(rate, 1000);
    }
}
