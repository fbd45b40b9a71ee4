//! Every small world: each state an object can be in, crossed with each wish, place, target, slot and worker; and the
//! laws of `decide` and `next_status` over all of them, the same for each kind. A world that breaks a law is printed
//! whole.

use std::{fmt::Debug, sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{
    Kind,
    binding::is_binding,
    decide::{Decision, Step, decide},
    observe::{
        Afterwards, Deadlines, Finalizer, Heard, HostDevice, Keys, Life, Observed, Place, Record, Refusal, Seen,
        Target, Wish, WorkerSeen,
    },
    queue::{Limit, Slot, TargetLimits, Urgency},
    retry::{Policy, Progressed},
    standing::Standing,
    status::{Worth, next_status, worth},
    volume::VolumeSeen,
};
use crate::{
    api::{Cause, Course, Stage, Status, TargetKind, backup_status::HeardBy, common::ChosenTarget, course::Attempt},
    controller::{target::resolve::Resolved, time::later},
    model::{
        AttemptId, BackupName, BlockSize, Counters, Failure, FailureReason, Outcome, Phase, Report, Requests,
        VerifyDepth, VolumeName,
        report::{Plan, REPORT_VERSION},
    },
};

pub fn start() -> Timestamp {
    Timestamp::from_second(1_790_000_000).expect("in range")
}

pub fn id(n: u64) -> AttemptId {
    AttemptId::new(n, [n as u8; 10])
}

pub fn attempt() -> Attempt {
    let start_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(start()));
    Attempt { number: 1, id: id(1).as_str().into(), start_time, ..Attempt::default() }
}

pub fn wish(urgency: Urgency) -> Wish {
    Wish {
        uid: "3f0c2d1e".into(),
        namespace: "tidemark".into(),
        name: "b".into(),
        generation: 3,
        created: start(),
        life: Life::Wanted,
        finalizer: Finalizer::Present,
        cancel: false,
        retry_request: None,
        retry: Policy { limit: 2, backoff: Duration::from_secs(30), max_backoff: Duration::from_secs(900) },
        deadlines: Deadlines {
            snapshot: Duration::from_secs(600),
            start: Duration::from_secs(1800),
            stall: Duration::from_secs(60),
            total: Duration::from_secs(7 * 86_400),
        },
        concurrency: None,
        bytes_per_second: None,
        urgency,
        holds: false,
        look_again: None,
        verify: VerifyDepth::None,
        afterwards: Afterwards::Nothing,
    }
}

pub fn place() -> Place {
    let record = Record {
        name: "b".into(),
        uid: "u".into(),
        backup: BackupName::of_marker(&id(1)),
        url: None,
        snapshot_time: None,
        bytes: None,
    };
    let device = HostDevice { path: "/dev/a".into(), root: "/dev".into(), node: "n".into() };
    Place {
        volume: VolumeName::of_host_device("n", "pg"),
        device,
        record: Some(record),
        facts: None,
        exposed: None,
        filled: None,
    }
}

pub fn target() -> Target {
    Target {
        chosen: ChosenTarget { kind: TargetKind::ClusterBackupTarget, name: "t".into(), uid: "u".into() },
        resolved: Resolved {
            location: Default::default(),
            credentials: Default::default(),
            sts: None,
            compression: Default::default(),
            block_size: BlockSize::Mi2,
            limits: TargetLimits { total: 1, per_namespace: 1 },
            bytes_per_second: None,
            notes: vec![],
        },
        shared_with_clusters: false,
    }
}

/// A report of an attempt at four blocks.
pub fn heard(phase: Phase, counters: Counters, outcome: Option<Outcome>) -> Heard {
    let failure = matches!(outcome, Some(Outcome::Failed))
        .then(|| Failure::new(FailureReason::StoreUnavailable, "m", Some("k".into()), start()));
    let plan = Plan {
        volume_bytes: 4 * BlockSize::Mi2.bytes(),
        block_size: BlockSize::Mi2,
        compression: Default::default(),
        parent: None,
    };
    Heard {
        report: Report {
            v: REPORT_VERSION,
            attempt: id(1),
            pod: "p".into(),
            sequence: 9,
            time: start(),
            phase,
            counters,
            requests: Requests::default(),
            plan: Some(plan),
            damaged: vec![],
            verification: None,
            failure,
            outcome,
        },
        by: HeardBy::Http,
        at: start(),
        throttled: false,
        bytes_per_second: Some(1),
    }
}

/// The world in which all goes well, for this object.
pub fn observed<K: Kind>(object: &K) -> Observed {
    Observed {
        wish: Wish { afterwards: object.wish().0.afterwards, ..wish(object.wish().0.urgency) },
        status: course(object),
        place: Seen::Usable(Box::new(place())),
        target: Seen::Usable(Box::new(target())),
        slot: Slot::Held,
        volume: VolumeSeen::Idle,
        worker: WorkerSeen::Absent,
        trouble: None,
        host: None,
        keys: Keys::Same,
        shown: match object.status().map_or(0, Status::moved_blocks) {
            0 => Progressed::No,
            _ => Progressed::Yes,
        },
        fresh_id: id(7),
    }
}

fn course<K: Kind>(object: &K) -> Course {
    object.status().map_or_else(|| K::Status::default().course(), Status::course)
}

fn workers(heard: &[Heard]) -> Vec<Arc<WorkerSeen>> {
    let alive = |h: &Option<Heard>, s| WorkerSeen::Alive { heard: h.clone(), silent_for: Duration::from_secs(s) };
    let ended = |h: &Option<Heard>, c| WorkerSeen::Ended { heard: h.clone(), exit_code: c, last_lines: "x".into() };
    let mut all = vec![WorkerSeen::Absent];
    for h in std::iter::once(None).chain(heard.iter().cloned().map(Some)) {
        all.extend([alive(&h, 0), alive(&h, 15), alive(&h, 61), ended(&h, None), ended(&h, Some(137))]);
    }
    all.into_iter().map(Arc::new).collect()
}

fn wishes(wish: &Wish) -> Vec<Wish> {
    let mut all = vec![];
    for life in [Life::Wanted, Life::Deleting] {
        for cancel in [false, true] {
            for finalizer in [Finalizer::Present, Finalizer::Absent] {
                for retry_request in [None, Some("again".to_owned())] {
                    all.push(Wish { life, cancel, finalizer, retry_request, ..wish.clone() });
                }
                if !cancel {
                    all.push(Wish { life, finalizer, holds: true, ..wish.clone() });
                }
            }
        }
    }
    all
}

/// All the worlds of a kind: objects in every state, every report of a worker, and how far a volume can be.
pub struct Worlds<K> {
    pub objects: Vec<K>,
    pub reports: Vec<Heard>,
    pub volumes: Vec<VolumeSeen>,
}

impl<K: Kind> Worlds<K> {
    /// Every world, at every interesting moment. How many there were.
    pub fn visit(&self, mut check: impl FnMut(&K, &Observed, Timestamp)) -> usize {
        let refusal = |cause| Refusal::new(cause, "m");
        let usable = || (Seen::Usable(Box::new(place())), Seen::Usable(Box::new(target())));
        let places = [
            usable(),
            (usable().0, Seen::Waiting(refusal(Cause::WaitingForTarget))),
            (usable().0, Seen::Refused(refusal(Cause::TargetNotAllowed))),
            (Seen::Waiting(refusal(Cause::WaitingForBackup)), usable().1),
            (Seen::Refused(refusal(Cause::SourceNotSupported)), usable().1),
        ];
        let moments = [60, 3600, 30 * 86_400].map(|s| later(start(), Duration::from_secs(s)));
        let workers = workers(&self.reports);
        let mut count = 0;
        for object in &self.objects {
            let well = observed(object);
            for wish in wishes(&well.wish) {
                for (i, worker) in workers.iter().enumerate() {
                    // A worker is that of an attempt.
                    if i > 0 && well.status.attempt.is_none() {
                        continue;
                    }
                    for (place, target) in &places {
                        let slots = [Slot::Gathering, Slot::Waiting(Limit::Target), Slot::Held];
                        for (slot, volume) in slots.iter().flat_map(|s| self.volumes.iter().map(move |v| (*s, v))) {
                            // A volume is looked at when no worker has it.
                            if i > 0 && *volume != VolumeSeen::Idle {
                                continue;
                            }
                            let (place, target, volume) = (place.clone(), target.clone(), volume.clone());
                            let (wish, worker) = (wish.clone(), (**worker).clone());
                            let o = Observed { wish, place, target, slot, worker, volume, ..well.clone() };
                            moments.iter().for_each(|now| check(object, &o, *now));
                            count += 1;
                        }
                    }
                }
            }
        }
        count
    }

    /// History stays history, attempts only count up and never run beside each other, 100 % is Completed and nothing
    /// else, and the count never falls.
    pub fn hold_laws_3_and_8(&self) {
        let visited = self.visit(|object, o, now| {
            let Decision { step, standing } = decide(o, now);
            let next = next_status(object, o, &standing, now);
            let (was, course) = (object.status().cloned().unwrap_or_default(), next.course());
            let world = || print(o, now, (&step, &standing), &next);
            if let Some(history @ (Stage::Completed | Stage::Cancelled)) = o.status.state {
                let stays = course.state == Some(history) || course.state == Some(Stage::Deleting);
                let is_same = next.percent() == was.percent() && next.done_blocks() == was.done_blocks();
                assert!(stays && is_same && course.attempt == o.status.attempt, "{}", world());
                assert!(!matches!(step, Step::StartWorker | Step::AskForSlot), "{}", world());
                assert!(step != Step::AddFinalizer || o.wish.holds, "{}", world());
            }
            let number = |c: &Course| c.attempt.as_ref().map_or(0, |a| a.number);
            assert!(number(&course) >= number(&o.status), "{}", world());
            let is_new = number(&course) > number(&o.status);
            assert!(!is_new || o.worker == WorkerSeen::Absent, "a new attempt beside an old worker\n{}", world());
            if let Some(percent) = next.percent() {
                let is_completed = course.state == Some(Stage::Completed);
                assert!((percent == 100) == is_completed || course.state == Some(Stage::Deleting), "{}", world());
            }
            // A report below what status shows was dropped before; the worlds have such reports only for others.
            let heard = o.worker.heard().map_or(u64::MAX, |h| h.report.counters.done_blocks());
            let is_believable = i64::try_from(heard).unwrap_or(i64::MAX) >= was.done_blocks();
            assert!(is_new || !is_believable || next.done_blocks() >= was.done_blocks(), "{}", world());
        });
        println!("{visited} worlds at three moments");
    }

    /// Completed comes only from the last word of a worker.
    pub fn hold_law_4(&self) {
        self.visit(|object, o, now| {
            let decision = decide(o, now);
            let next = next_status(object, o, &decision.standing, now).course();
            let said = o.worker.heard().is_some_and(|h| h.report.is_fulfilled());
            if next.state == Some(Stage::Completed) && o.status.state != Some(Stage::Completed) {
                // Of a claim that is filled the word stands in status, and the cluster says the rest.
                let is_bound = is_binding(&o.status) && decision.standing == Standing::Bound;
                let is_filled = o.wish.afterwards == Afterwards::BindVolume;
                assert!(if is_filled { is_bound } else { said }, "{o:#?}\n{decision:#?}");
            }
            let begins = is_binding(&next) && !is_binding(&o.status);
            assert!(!begins || said, "{o:#?}\n{decision:#?}");
        });
    }

    /// Nothing open is left without a next look, and silence has an end.
    pub fn hold_law_5(&self) {
        self.visit(|object, o, now| {
            let decision = decide(o, now);
            let next = next_status(object, o, &decision.standing, now).course();
            let is_over = matches!(next.state, Some(Stage::Completed | Stage::Cancelled))
                || next.state == Some(Stage::Error) && next.next_retry_time.is_none();
            let is_leaving = o.wish.life == Life::Deleting && o.worker == WorkerSeen::Absent;
            let again = decision.standing.again(now, Duration::from_secs(2));
            let waits = decision.step == Step::RemoveFinalizer || again.is_some();
            assert!(waits || is_over || is_leaving, "no next look: {o:#?}\n{decision:#?}");
            let is_running = matches!(next.state, Some(Stage::InProgress | Stage::Closing));
            let is_silent =
                matches!(&o.worker, WorkerSeen::Alive { silent_for, .. } if *silent_for > Duration::from_secs(60));
            let is_asked_to_end = decision.step == Step::StopWorker;
            assert!(!(is_running && is_silent) || is_asked_to_end, "silence without end: {o:#?}\n{decision:#?}");
        });
    }

    /// A second pass over an unchanged world writes nothing.
    pub fn settle(&self)
    where
        K: Settable,
    {
        self.visit(|object, o, now| {
            let first = decide(o, now);
            let mut again = object.clone();
            again.set_status(next_status(object, o, &first.standing, now));
            let written = course(&again);
            let look = |object: &K| Observed { status: course(object), ..o.clone() };
            // Three passes settle every world: what is left is waiting. A pass that changes nothing is the last: all that
            // decides is in what it was given, so every later one would say the same.
            for _ in 0..3 {
                let seen = look(&again);
                let next = next_status(&again, &seen, &decide(&seen, now).standing, now);
                if again.status() == Some(&next) {
                    return;
                }
                again.set_status(next);
            }
            let last = decide(&look(&again), now);
            // An attempt that begins and fails at once in a world that never changes goes on for ever: its policy.
            let moves = |s: &Standing| matches!(s, Standing::Beginning { .. } | Standing::Failed { .. });
            let settled = next_status(&again, &look(&again), &last.standing, now);
            if !moves(&last.standing) && !moves(&first.standing) && settled.course().attempt == written.attempt {
                let status = again.status().cloned().unwrap_or_default();
                assert_eq!(worth(&status, &settled), Worth::Nothing, "{o:#?}\n{last:#?}\n{settled:#?}");
            }
        });
    }
}

/// An object whose status a test may set.
pub trait Settable: Kind {
    fn set_status(&mut self, status: Self::Status);
}

fn print(o: &Observed, now: Timestamp, decided: (&Step, &Standing), next: &impl Debug) -> String {
    format!("{o:#?}\nat {now}\n{decided:#?}\n{next:#?}")
}
