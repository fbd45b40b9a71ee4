//! What an attempt tells while it goes on, and how it ends: the one place where a report is changed.

use tokio::sync::watch;

use crate::{
    model::{Counters, Failure, FailureReason, Outcome, Phase, Report, Task, Verification},
    store::client::Client,
    telemetry,
};

/// The newest report, which the carriers watch; with each change go the requests made so far and the time.
pub(super) struct Teller {
    reports: watch::Sender<Report>,
    client: Client,
}

/// Why an attempt ended without what was asked for.
pub(super) struct Ended {
    reason: FailureReason,
    message: String,
    /// The key or path at which it happened.
    object: Option<String>,
}

impl Ended {
    pub(super) fn of(reason: FailureReason, message: &dyn std::fmt::Display, object: Option<String>) -> Self {
        Self { reason, message: message.to_string(), object }
    }

    /// A mistake of our own: each task has its attempt.
    pub(super) fn wrong_task(task: &Task) -> Self {
        Self::of(FailureReason::Bug, &format!("A {} was given to another task's attempt", task.as_str()), None)
    }
}

impl Teller {
    pub(super) fn new(reports: watch::Sender<Report>, client: Client) -> Self {
        Self { reports, client }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Report)) {
        let requests = self.client.requests();
        self.reports.send_modify(|report| {
            report.requests = requests;
            report.time = telemetry::now();
            change(report);
        });
    }

    pub(super) fn phase(&self, phase: Phase) {
        self.change(|report| report.phase = phase);
    }

    pub(super) fn counters(&self, counters: Counters) {
        self.change(|report| report.counters = counters);
    }

    /// The last report of an attempt whose outcome was told before.
    pub(super) fn verified(&self, verification: Verification) -> Report {
        self.change(|report| report.verification = Some(verification));
        self.reports.borrow().clone()
    }

    /// The last report, which has an outcome.
    pub(super) fn end(&self, ended: Result<Outcome, Ended>) -> Report {
        self.change(|report| {
            report.phase = Phase::Ended;
            if let Counters::Backup(progress) = &mut report.counters {
                progress.in_flight_blocks = 0;
            }
            match ended {
                Ok(outcome) => report.outcome = Some(outcome),
                Err(Ended { reason, message, object }) => {
                    tracing::error!(error = %message, %reason, "Attempt failed");
                    report.failure = Some(Failure::new(reason, message, object, report.time));
                    let is_cancelled = reason == FailureReason::Cancelled;
                    report.outcome = Some(if is_cancelled { Outcome::Cancelled } else { Outcome::Failed });
                }
            }
        });
        self.reports.borrow().clone()
    }
}
