//! A Backup that is being deleted: its worker ends, its data goes if that was asked for and everything allows it, the
//! object goes. Pure; what it rests on was gathered by `observe`.
//!
//! ```text
//! worker ends ─→ Retain, or nothing in the bucket ───────────────────────────────────────────→ object goes
//!        └─ Delete ─→ ground shaken · used by another · not the owner's ──── data retained ──→ object goes
//!               └─→ read by a Restore · target away · many at once ── wait ──→ data removed ─→ object goes
//! ```
//!
//! Every wait ends by itself, or when a person sets `deletionPolicy: Retain`: nothing is stuck.

use std::time::Duration;

use super::{
    Decision, Observed, Step, decided,
    standing::{Departing, Standing},
};
use crate::controller::{
    target::{
        breaker::{Opened, how_to_acknowledge},
        errands::{Lies, backoff},
        removal::RemovalEnd,
    },
    work::{
        observe::Seen,
        standing::{Note, Severity},
    },
};

/// What is known for the removal of the data. Gathered only for a Backup that is deleted, wants its data deleted and has
/// any.
#[derive(Debug, Clone, PartialEq)]
pub struct Leaving {
    /// What is gone or going beneath it, in words; read live.
    pub shaken: Option<String>,
    /// Another Backup, by its name, that refers to the same record and is not being deleted.
    pub sharer: Option<String>,
    /// Names of Restores that read from it.
    pub readers: Vec<String>,
    pub admission: Admission,
    pub removal: Lies<RemovalEnd>,
}

/// What the breaker said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    Unasked,
    Granted,
    /// Until the annotation has its word.
    Waiting(Opened),
}

pub fn leaving(o: &Observed, leaving: &Leaving) -> Decision {
    match &leaving.removal {
        Lies::Done { outcome: RemovalEnd::Done(what), .. } => {
            return gone(Severity::Normal, "DataRemoved", what.clone());
        }
        Lies::Done { outcome: RemovalEnd::NotOwned, .. } => {
            return retained("its record was made by another owner, and only its owner may delete it");
        }
        // What has begun is let finish, whatever has changed since: half a removal helps nobody.
        Lies::UnderWay => return removing(&leaving.removal),
        Lies::Nothing | Lies::Done { .. } => {}
    }
    if let Some(shaken) = &leaving.shaken {
        return retained(shaken);
    }
    if let Some(sharer) = &leaving.sharer {
        return retained(&format!("{sharer} refers to the same backup in the bucket"));
    }
    match &o.target {
        Seen::Refused(refusal) => return retained(&refusal.message),
        Seen::Waiting(missing) => {
            return departing(Step::Nothing, Departing::TargetUnreachable { why: missing.message.clone() });
        }
        Seen::Usable(_) => {}
    }
    if !leaving.readers.is_empty() {
        let why = format!("waiting for Restore {}, which reads from it", leaving.readers.join(", "));
        return departing(Step::Nothing, Departing::RemovingData { why });
    }
    match leaving.admission {
        Admission::Unasked => decided(Step::AskToRemove, Standing::Unchanged { again: Some(Duration::from_secs(1)) }),
        Admission::Waiting(opened) => {
            let target = o.status.target.as_ref().map_or("", |t| &t.name);
            let how = how_to_acknowledge(target, &o.wish.namespace, opened);
            departing(Step::Nothing, Departing::WaitingForAcknowledgement { how })
        }
        Admission::Granted => removing(&leaving.removal),
    }
}

fn removing(removal: &Lies<RemovalEnd>) -> Decision {
    let plain = || Departing::RemovingData { why: "the record, and the blocks that no other backup names".into() };
    match removal {
        Lies::Nothing => departing(Step::RemoveData, plain()),
        Lies::UnderWay => departing(Step::Nothing, plain()),
        Lies::Done { outcome, ago, tries } => {
            let step = if *ago >= backoff(*tries) { Step::RemoveData } else { Step::Nothing };
            let what = match outcome {
                RemovalEnd::Held(why) => Departing::RemovingData { why: format!("waiting for the volume: {why}") },
                RemovalEnd::Failed(problem) => Departing::TargetUnreachable { why: problem.message.clone() },
                RemovalEnd::Done(_) | RemovalEnd::NotOwned => plain(),
            };
            departing(step, what)
        }
    }
}

fn departing(step: Step, what: Departing) -> Decision {
    decided(step, Standing::Deleting(what))
}

/// The data stays, the object goes, and an Event says why.
fn retained(why: &str) -> Decision {
    gone(
        Severity::Warning,
        "DataRetained",
        format!("deletionPolicy is Delete, but the data in the bucket stays: {why}"),
    )
}

fn gone(severity: Severity, reason: &str, text: String) -> Decision {
    let note = Note { severity, reason: reason.to_owned(), text };
    decided(Step::RemoveFinalizer, Standing::Gone { note })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{BackupState, Cause},
        controller::{
            backup::{
                laws::completed,
                upkeep::{Task, decide, standing::next_status},
            },
            target::{breaker::Whose, lookup::Problem},
            work::{
                observe::{Life, Refusal, Wish},
                queue::Urgency,
                worlds::{target, wish},
            },
        },
        model::FailureReason,
        telemetry,
    };

    fn all<T: Clone>(things: &[T]) -> impl Iterator<Item = T> + '_ {
        things.iter().cloned()
    }

    fn ends() -> Vec<Lies<RemovalEnd>> {
        let done = |outcome, seconds| Lies::Done { outcome, ago: Duration::from_secs(seconds), tries: 1 };
        let problem = Problem { reason: FailureReason::StoreUnavailable, message: "away".into(), object: None };
        vec![
            Lies::Nothing,
            Lies::UnderWay,
            done(RemovalEnd::Done("b".into()), 0),
            done(RemovalEnd::NotOwned, 0),
            done(RemovalEnd::Held("h".into()), 1),
            done(RemovalEnd::Held("h".into()), 100),
            done(RemovalEnd::Failed(problem.clone()), 1),
            done(RemovalEnd::Failed(problem), 100),
        ]
    }

    /// Every small world of a deleted Backup without a worker.
    fn worlds(mut check: impl FnMut(&Observed, &Leaving)) {
        let since = jiff::Timestamp::from_second(1_790_000_000).expect("in range");
        let opened = Opened { since, whose: Whose::Namespace };
        let targets = [
            Seen::Usable(Box::new(target())),
            Seen::Waiting(Refusal::new(Cause::WaitingForTarget, "no secret")),
            Seen::Refused(Refusal::new(Cause::TargetNotAllowed, "not allowed")),
        ];
        for shaken in all(&[None, Some("namespace shop is being deleted".to_owned())]) {
            for sharer in all(&[None, Some("Backup other".to_owned())]) {
                for readers in all(&[vec![], vec!["r".to_owned()]]) {
                    for admission in [Admission::Unasked, Admission::Granted, Admission::Waiting(opened)] {
                        for removal in ends() {
                            for target in all(&targets) {
                                let leaving = Leaving {
                                    shaken: shaken.clone(),
                                    sharer: sharer.clone(),
                                    readers: readers.clone(),
                                    admission,
                                    removal: removal.clone(),
                                };
                                let wish = Wish { life: Life::Deleting, holds: true, ..wish(Urgency::Backup) };
                                let o = Observed {
                                    deadlines: wish.deadlines,
                                    wish,
                                    status: completed(),
                                    cluster: "c1".into(),
                                    target,
                                    task: Task::Leave(leaving.clone()),
                                };
                                check(&o, &leaving);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn law_10_data_is_removed_only_on_firm_ground_unshared_unread_and_admitted() {
        let mut removals = 0;
        worlds(|o, leaving| {
            let decision = decide(o, telemetry::now());
            if decision.step != Step::RemoveData {
                return;
            }
            removals += 1;
            let is_usable = matches!(o.target, Seen::Usable(_));
            let is_firm = leaving.shaken.is_none() && leaving.sharer.is_none() && leaving.readers.is_empty();
            assert!(is_usable && is_firm && leaving.admission == Admission::Granted, "{o:#?}\n{decision:#?}");
        });
        assert_eq!(removals, 3, "not begun, held and failed long enough ago");
    }

    #[test]
    fn law_10_the_object_goes_only_when_the_data_did_or_an_event_says_that_it_stays() {
        worlds(|o, leaving| {
            let decision = decide(o, telemetry::now());
            let is_going = decision.step == Step::RemoveFinalizer;
            assert_eq!(is_going, matches!(decision.standing, Standing::Gone { .. }), "{o:#?}\n{decision:#?}");
            let Standing::Gone { note } = &decision.standing else { return };
            let is_done = matches!(leaving.removal, Lies::Done { outcome: RemovalEnd::Done(_), .. });
            assert_eq!(is_done, note.reason == "DataRemoved", "{o:#?}\n{decision:#?}");
            assert!(is_done || note.reason == "DataRetained" && note.severity == Severity::Warning, "{decision:#?}");
        });
    }

    #[test]
    fn nothing_is_stuck_every_wait_looks_again_and_says_what_it_waits_for() {
        worlds(|o, _| {
            let now = telemetry::now();
            let decision = decide(o, now);
            if decision.step == Step::RemoveFinalizer {
                return;
            }
            assert!(decision.standing.again(now).is_some(), "{o:#?}\n{decision:#?}");
            if let Standing::Deleting(_) = &decision.standing {
                let next = next_status(o, &decision.standing, now);
                assert_eq!(next.state, Some(BackupState::Deleting));
                let expected = ["RemovingData", "WaitingForAcknowledgement", "TargetUnreachable"];
                assert!(expected.contains(&next.reason.as_deref().unwrap_or("")), "{next:#?}");
                assert!(!decision.standing.message().is_empty(), "{decision:#?}");
            }
        });
    }
}
