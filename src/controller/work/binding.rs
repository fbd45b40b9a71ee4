//! A claim is filled: from the worker's last good word to the user's bound claim, decided.
//!
//! It stands in status before the worker is removed, and from then on no word of the worker is needed any more: whatever is
//! left to do is seen in the cluster. With the user's claim it is handed over, and neither a cancel nor a crash takes it
//! back.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    decide::{DEADLINE_GRACE, Decision, LEAVE_GRACE, Step},
    failing::{attempt_deadline, failed, refused},
    observe::{Heard, Observed, WorkerSeen},
    standing::Standing,
    volume::VolumeSeen,
};
use crate::{
    api::{Cause, Course, Stage},
    controller::{
        claim::{
            self,
            bind::{self, Hands},
        },
        time::later,
    },
    model::{Failure, FailureReason},
};

/// Between two steps, and while others do theirs. (The volume controller looks at a claim again every 15 s.)
const PAUSE: Duration = Duration::from_millis(200);
const WAIT: Duration = Duration::from_secs(1);
const ENDS: &str = "the worker ends";

/// Does status say that the volume is written?
pub fn is_binding(status: &Course) -> bool {
    status.state == Some(Stage::Closing) && status.reason.as_deref() == Some(Cause::BindingVolume.as_str())
}

/// Is the user's claim there?
pub fn is_handed_over(o: &Observed) -> bool {
    is_binding(&o.status) && matches!(&o.volume, VolumeSeen::Binding(decision) if decision.hands == Hands::Users)
}

fn waiting(step: Step, text: &str, heard: Option<&Heard>) -> Decision {
    let heard = heard.cloned().map(Box::new);
    let again = if step == Step::Nothing { WAIT } else { PAUSE };
    Decision { step, standing: Standing::Binding { waiting: text.to_owned(), heard, again } }
}

/// The worker said that everything is on the volume.
pub fn begins(o: &Observed, heard: &Heard) -> Decision {
    waiting(lingers(o), ENDS, Some(heard))
}

/// A worker that does not end by itself is ended.
fn lingers(o: &Observed) -> Step {
    match &o.worker {
        WorkerSeen::Alive { silent_for, .. } if *silent_for >= LEAVE_GRACE => Step::StopWorker,
        WorkerSeen::Alive { .. } | WorkerSeen::Ended { .. } | WorkerSeen::Absent => Step::Nothing,
    }
}

/// What is to be done now.
pub fn binding(o: &Observed, now: Timestamp) -> Decision {
    match &o.worker {
        WorkerSeen::Alive { .. } => return waiting(lingers(o), ENDS, None),
        WorkerSeen::Ended { .. } => return waiting(Step::RemoveWorker, ENDS, None),
        WorkerSeen::Absent => {}
    }
    let VolumeSeen::Binding(decision) = &o.volume else {
        return waiting(Step::Nothing, "its volume is looked at", None);
    };
    match &decision.standing {
        bind::Standing::Bound => Decision { step: Step::Nothing, standing: Standing::Bound },
        bind::Standing::Refused(refusal) => refused(o, refusal.reason, refusal.message.clone(), now),
        bind::Standing::Binding(text)
            if decision.step == claim::Step::Nothing && now >= later(attempt_deadline(o, now), DEADLINE_GRACE) =>
        {
            let message = format!("{text} (deadlines.total, {} s, is over)", o.wish.deadlines.total.as_secs());
            failed(o, Failure::new(FailureReason::DeadlineExceeded, message, None, now), now)
        }
        bind::Standing::Binding(text) if decision.step == claim::Step::Nothing => waiting(Step::Nothing, text, None),
        bind::Standing::Binding(text) => waiting(Step::BindVolume, text, None),
    }
}
