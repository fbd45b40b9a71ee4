//! The verification of a completed Backup: what its worker says of it becomes the condition `Verified`, once.
//!
//! Completed is history whatever it shows. While it is open the worker is heard as before; a worker that ends or falls
//! silent leaves "not done", which proves nothing.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    decide::{DEADLINE_GRACE, Decision, Step},
    failing::attempt_deadline,
    observe::{Keys, Observed, WorkerSeen},
    standing::Standing,
};
use crate::{
    api::{Cause, Claim, ConditionType, Truth, conditions::find},
    controller::time::later,
    model::{Verdict, Verification, VerifyDepth},
};

/// What is to be done while the verification is open; none: there is none, or its verdict is written.
pub fn verifying(o: &Observed, now: Timestamp) -> Option<Decision> {
    let written = find(&o.status.conditions, ConditionType::Verified);
    let is_closed = written.is_some_and(|condition| condition.reason != Cause::Verifying.as_str());
    if o.wish.verify == VerifyDepth::None || is_closed {
        return None;
    }
    let said = o.worker.heard().and_then(|heard| heard.report.verification.as_ref());
    if let Some(done) = said.filter(|verification| !verification.is_running()) {
        return Some(Decision { step: Step::Nothing, standing: Standing::Verified { verification: done.clone() } });
    }
    let not_done = |step, why: &str| {
        let message = format!("{why}: the verification was not done. `tidemark verify` does it at any time");
        let verification = Verification::new(Verdict::NotDone, &message);
        Decision { step, standing: Standing::Verified { verification } }
    };
    Some(match &o.worker {
        WorkerSeen::Absent | WorkerSeen::Ended { .. } => not_done(Step::Nothing, "The worker ended early"),
        WorkerSeen::Alive { silent_for, .. } if *silent_for >= o.wish.deadlines.stall => {
            not_done(Step::StopWorker, &format!("No report from the worker for {} s", silent_for.as_secs()))
        }
        WorkerSeen::Alive { .. } if now >= later(attempt_deadline(o, now), DEADLINE_GRACE) => {
            not_done(Step::StopWorker, "deadlines.total passed and the worker did not end")
        }
        WorkerSeen::Alive { .. } => {
            let step = match (o.wish.cancel, o.keys) {
                // Its last word will say that it was ended.
                (true, _) => Step::StopWorker,
                (false, Keys::Changed) => Step::OfferCredentials,
                (false, Keys::Same) => Step::Nothing,
            };
            Decision { step, standing: Standing::Unchanged { again: Some(Duration::from_secs(2)) } }
        }
    })
}

/// What a person reads of it.
pub fn claim(verification: &Verification) -> Claim {
    let (truth, cause) = match verification.verdict {
        Verdict::Running => (Truth::Unknown, Cause::Verifying),
        Verdict::Passed => (Truth::True, Cause::VerificationPassed),
        Verdict::Damaged => (Truth::False, Cause::DamageFound),
        Verdict::NotDone => (Truth::Unknown, Cause::VerificationNotDone),
    };
    Claim::new(ConditionType::Verified, truth, cause, verification.message.clone())
}
