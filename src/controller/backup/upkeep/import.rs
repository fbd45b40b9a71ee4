//! Importing: a Backup whose data is in the bucket already. Nothing is uploaded: its record is looked up, and if it is the
//! namespace's own it is read whole and compared with the blocks that are listed. Then the Backup is Completed.
//!
//! Whose a record is, it says itself: the operator wrote cluster and namespace into it, and a user's labels cannot. A
//! record by Longhorn names no owner. A refusal never says whose a record is: that is nobody else's business (law 11).

use std::time::Duration;

use jiff::Timestamp;

use super::{
    Decision, Observed, Step, decided,
    standing::{Imported, Standing},
};
use crate::{
    api::{BackupState, Cause, secret::backup_url},
    controller::{
        target::{
            errands::Lies,
            lookup::{Looked, Problem, StoredRecord, Wanted},
            soundness::Soundness,
        },
        time::{later, until},
        work::{
            observe::{Refusal, Seen, Target, failure_reason},
            retry::{self, Past, Progressed},
            standing::{Failed, WhatNext},
        },
    },
    model::Failure,
};

/// A record that is not there is asked for again after this long.
const AGAIN: Duration = Duration::from_secs(30);

/// What there is to be imported, and what the bucket said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Import {
    pub wanted: Result<Wanted, Refusal>,
    pub seen: Lies<Looked>,
    /// What its verification showed.
    pub soundness: Lies<Soundness>,
    pub rules: ImportRules,
}

/// Who may import what from a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImportRules {
    /// The target lists this Backup's namespace in `imports.anyOwnerNamespaces`.
    pub any_owner: bool,
    pub shared_with_clusters: bool,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Claimant<'a> {
    pub cluster: &'a str,
    pub namespace: &'a str,
}

/// What is done about a Backup that imports and is not Completed yet.
pub fn importing(o: &Observed, import: &Import, now: Timestamp) -> Decision {
    if o.status.state == Some(BackupState::Error) {
        let is_asked = o.wish.retry_request.is_some() && o.wish.retry_request != o.status.observed_retry_request;
        let due = o.status.next_retry_time.as_ref().map(|t| t.0);
        if !is_asked && due.is_none_or(|at| now < at) {
            return decided(Step::Nothing, Standing::Unchanged { again: due.map(|at| until(at, now)) });
        }
    }
    let wanted = match &import.wanted {
        Ok(wanted) => wanted,
        Err(refusal) => return refused(o, refusal.clone(), now),
    };
    let target = match &o.target {
        Seen::Usable(target) => target,
        Seen::Refused(refusal) => return refused(o, refusal.clone(), now),
        Seen::Waiting(Refusal { message, .. }) => {
            return match is_over(o, now) {
                true => refused(o, Refusal::new(Cause::WaitingForTarget, waited(o, message)), now),
                false => decided(Step::Nothing, Standing::WaitingForTarget { missing: message.clone() }),
            };
        }
    };
    let name = format!("Backup {} of volume {}", wanted.backup, wanted.volume);
    let looking = |step| decided(step, Standing::LookingUp { what: format!("Looking up {name} in the bucket") });
    let decision = match &import.seen {
        Lies::Nothing => return looking(Step::LookUp),
        Lies::UnderWay => return looking(Step::Nothing),
        Lies::Done { outcome: Looked::Missing, ago, .. } => {
            return missing(o, &format!("{name} is not in the bucket"), *ago, now);
        }
        Lies::Done { outcome: Looked::InProgress, ago, .. } => {
            return missing(o, &format!("{name} is still being made"), *ago, now);
        }
        Lies::Done { outcome: Looked::Failed(problem), .. } => failed(o, problem, now),
        Lies::Done { outcome: Looked::Found(record), .. } => {
            let claimant = Claimant { cluster: &o.cluster, namespace: &o.wish.namespace };
            match may_import(record, claimant, import.rules, &target.chosen.name) {
                Err(refusal) => refused(o, refusal, now),
                Ok(()) => match &import.soundness {
                    Lies::Nothing => return verifying(Step::VerifyRecord, &name),
                    Lies::UnderWay => return verifying(Step::Nothing, &name),
                    Lies::Done { outcome: Soundness::Sound { blocks }, .. } => {
                        decided(Step::Nothing, Standing::Imported(Box::new(imported(record, target, wanted, *blocks))))
                    }
                    // Somebody deletes or replaces it: from the start.
                    Lies::Done { outcome: Soundness::Changed, .. } => verifying(Step::Nothing, &name),
                    Lies::Done { outcome: Soundness::Failed(problem), .. } => failed(o, problem, now),
                },
            }
        }
    };
    // What was found is used up: whoever asks again looks again.
    Decision { step: Step::ForgetLookUp, ..decision }
}

fn verifying(step: Step, name: &str) -> Decision {
    let what = format!("{name} is in the bucket; its record is read and compared with the blocks that are listed");
    decided(step, Standing::LookingUp { what })
}

fn imported(record: &StoredRecord, target: &Target, wanted: &Wanted, blocks: u64) -> Imported {
    let url = backup_url(&target.resolved.location, &wanted.volume, &wanted.backup);
    Imported { record: record.clone(), target: target.chosen.clone(), url: Some(url), blocks }
}

/// It may still come: a replica that lags, a backup that is being made. After `deadlines.start` a person is asked.
fn missing(o: &Observed, what: &str, ago: Duration, now: Timestamp) -> Decision {
    if is_over(o, now) {
        let cure = "`tidemark ls` shows what is there; create a new Backup with its names";
        let refusal = Refusal::new(Cause::WaitingForSource, format!("{}: {cure}", waited(o, what)));
        return Decision { step: Step::ForgetLookUp, ..refused(o, refusal, now) };
    }
    let step = if ago >= AGAIN { Step::LookUp } else { Step::Nothing };
    decided(step, Standing::LookingUp { what: what.to_owned() })
}

/// Waiting is counted from the start of work, or from the last failure.
fn is_over(o: &Observed, now: Timestamp) -> bool {
    let started = o.status.start_time.as_ref().map_or(now, |t| t.0);
    let failed = o.status.failure.as_ref().and_then(|f| f.time.as_ref()).map_or(started, |t| t.0);
    now >= later(started.max(failed), o.deadlines.start)
}

fn waited(o: &Observed, what: &str) -> String {
    format!("{what} (waited for deadlines.start, {} s)", o.deadlines.start.as_secs())
}

/// Only a person can change that.
fn refused(o: &Observed, refusal: Refusal, now: Timestamp) -> Decision {
    let Refusal { reason, message } = refusal;
    let consecutive = o.status.consecutive_failures.unwrap_or(0);
    failure(Failed { reason, message, object: None, time: now, next: WhatNext::Never, consecutive })
}

/// The store failed: the policy says what follows. A look-up brings nothing, so each counts.
fn failed(o: &Observed, seen: &Problem, now: Timestamp) -> Decision {
    let seen = Failure::new(seen.reason, seen.message.clone(), seen.object.clone(), now);
    let past = Past {
        consecutive: o.status.consecutive_failures.and_then(|c| u32::try_from(c).ok()).unwrap_or(0),
        previous: o.status.failure.as_ref().and_then(|f| failure_reason(&f.reason)),
        progress: Progressed::No,
    };
    let (next, consecutive) = match retry::next(o.wish.retry, past, seen.reason) {
        retry::Next::Again { after, consecutive } => (WhatNext::At(later(now, after)), consecutive),
        retry::Next::Exhausted { consecutive } => (WhatNext::Exhausted, consecutive),
        retry::Next::Never { consecutive } => (WhatNext::Never, consecutive),
    };
    failure(Failed::of(seen, next, consecutive))
}

fn failure(failed: Failed) -> Decision {
    decided(Step::Nothing, Standing::Failed(Box::new(failed)))
}

/// Whose record it is decides; the target's administrator may say more.
pub fn may_import(
    record: &StoredRecord,
    claimant: Claimant<'_>,
    rules: ImportRules,
    target: &str,
) -> Result<(), Refusal> {
    let is_own_namespace = !record.namespace.is_empty() && record.namespace == claimant.namespace;
    let is_own_cluster = !record.cluster.is_empty() && record.cluster == claimant.cluster;
    if rules.any_owner
        || is_own_namespace && (is_own_cluster || rules.shared_with_clusters && !record.cluster.is_empty())
    {
        return Ok(());
    }
    let (name, namespace) = (target, claimant.namespace);
    let what = if record.cluster.is_empty() {
        format!(
            "Backup {} of volume {} does not say who made it, as those of Longhorn do not",
            record.backup, record.volume
        )
    } else if is_own_namespace {
        format!(
            "Backup {} of volume {} was made in another cluster: an administrator may set spec.sharedWithClusters on ClusterBackupTarget {name} if both are one, or",
            record.backup, record.volume
        )
    } else {
        format!("Backup {} of volume {} was not made from namespace {namespace}", record.backup, record.volume)
    };
    let message = format!(
        "{what}: an administrator must add {namespace} to spec.imports.anyOwnerNamespaces of ClusterBackupTarget {name} before it may be imported here"
    );
    Err(Refusal::new(Cause::ImportNotAllowed, message.replace(", or: an", ", or an")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        controller::{
            backup::upkeep::{Task, decide, standing::next_status},
            work::{
                queue::Urgency,
                worlds::{target, wish},
            },
        },
        model::FailureReason,
        telemetry,
    };

    /// Every owner a record can have, crossed with every rule a target can have.
    #[test]
    fn law_11_a_record_is_imported_by_its_owner_or_by_whom_the_administrator_named() {
        let claimant = Claimant { cluster: "c1", namespace: "shop" };
        for cluster in ["", "c1", "c2"] {
            for namespace in ["", "shop", "erp"] {
                for any_owner in [false, true] {
                    for shared_with_clusters in [false, true] {
                        let record = StoredRecord {
                            volume: "pvc-1".into(),
                            backup: "backup-1".into(),
                            cluster: cluster.into(),
                            namespace: namespace.into(),
                            ..StoredRecord::default()
                        };
                        let rules = ImportRules { any_owner, shared_with_clusters };
                        let judged = may_import(&record, claimant, rules, "s3-primary");
                        let expected = any_owner
                            || namespace == "shop" && (cluster == "c1" || cluster == "c2" && shared_with_clusters);
                        assert_eq!(judged.is_ok(), expected, "{cluster:?} {namespace:?} {rules:?}: {judged:?}");
                        let Err(refusal) = judged else { continue };
                        assert!(refusal.message.contains("an administrator"), "who must change what: {refusal:?}");
                        assert!(refusal.message.contains("spec.imports.anyOwnerNamespaces"), "{refusal:?}");
                        let tells = refusal.message.contains("erp") || refusal.message.contains("c2");
                        assert!(!tells, "whose it is: {refusal:?}");
                    }
                }
            }
        }
    }

    /// Every small world of an import.
    fn worlds(mut check: impl FnMut(&Observed, &Import)) {
        fn done<T>(outcome: T) -> Lies<T> {
            Lies::Done { outcome, ago: Duration::ZERO, tries: 1 }
        }
        let problem = |reason| Problem { reason, message: "seen: the cure".into(), object: Some("key".into()) };
        let record = |namespace: &str| StoredRecord {
            cluster: "c1".into(),
            namespace: namespace.into(),
            ..StoredRecord::default()
        };
        let found = |namespace| done(Looked::Found(Box::new(record(namespace))));
        let away = Looked::Failed(problem(FailureReason::StoreUnavailable));
        let seen = [Lies::Nothing, Lies::UnderWay, done(Looked::Missing), done(Looked::InProgress), done(away)];
        let failed = [FailureReason::RecordDamaged, FailureReason::BlockDamaged, FailureReason::StoreUnavailable];
        let mut shown: Vec<_> = failed.map(|reason| done(Soundness::Failed(problem(reason)))).into();
        let others = [Soundness::Sound { blocks: 3 }, Soundness::Changed].map(done);
        shown.extend([Lies::Nothing, Lies::UnderWay].into_iter().chain(others));
        let namespace = wish(Urgency::Backup).namespace;
        for seen in seen.into_iter().chain([found(&namespace), found("another")]) {
            for soundness in shown.clone() {
                let wanted =
                    Wanted { volume: "pvc-1".parse().expect("a name"), backup: "backup-1".parse().expect("a name") };
                let rules = ImportRules::default();
                let import = Import { wanted: Ok(wanted), seen: seen.clone(), soundness, rules };
                let wish = wish(Urgency::Backup);
                let o = Observed {
                    deadlines: wish.deadlines,
                    wish,
                    status: Default::default(),
                    cluster: "c1".into(),
                    target: Seen::Usable(Box::new(target())),
                    task: Task::Import(import.clone()),
                };
                check(&o, &import);
            }
        }
    }

    #[test]
    fn law_4_an_import_is_completed_only_when_its_record_was_verified() {
        let mut completed = 0;
        worlds(|o, import| {
            let decision = decide(o, telemetry::now());
            let next = next_status(o, &decision.standing, telemetry::now());
            if decision.step == Step::VerifyRecord {
                assert!(matches!(import.seen, Lies::Done { outcome: Looked::Found(_), .. }), "{import:#?}");
            }
            if next.state != Some(BackupState::Completed) {
                assert_eq!(next.store, None, "nothing is claimed: {import:#?}\n{next:#?}");
                return;
            }
            completed += 1;
            assert!(matches!(import.soundness, Lies::Done { outcome: Soundness::Sound { .. }, .. }), "{import:#?}");
        });
        assert_eq!(completed, 1);
    }

    #[test]
    fn law_11_what_is_another_namespaces_is_not_even_verified() {
        worlds(|o, import| {
            let Lies::Done { outcome: Looked::Found(record), .. } = &import.seen else { return };
            if record.namespace == o.wish.namespace {
                return;
            }
            let decision = decide(o, telemetry::now());
            assert_eq!(decision.step, Step::ForgetLookUp, "{decision:#?}");
            let is_refused =
                matches!(&decision.standing, Standing::Failed(f) if f.reason == Cause::ImportNotAllowed.into());
            assert!(is_refused, "{decision:#?}");
        });
    }
}
