//! Importing: a Backup whose data is in the bucket already. Nothing is uploaded; its record is looked up, and if it is the
//! namespace's own the Backup is Completed at once.
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
            lookup::{Looked, StoredRecord, Wanted},
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
        Lies::Done { outcome: Looked::Failed(problem), .. } => {
            failed(o, Failure::new(problem.reason, problem.message.clone(), problem.object.clone(), now), now)
        }
        Lies::Done { outcome: Looked::Found(record), .. } => {
            let claimant = Claimant { cluster: &o.cluster, namespace: &o.wish.namespace };
            match may_import(record, claimant, import.rules, &target.chosen.name) {
                Ok(()) => decided(Step::Nothing, Standing::Imported(Box::new(imported(record, target, wanted)))),
                Err(refusal) => refused(o, refusal, now),
            }
        }
    };
    // What was found is used up: whoever asks again looks again.
    Decision { step: Step::ForgetLookUp, ..decision }
}

fn imported(record: &StoredRecord, target: &Target, wanted: &Wanted) -> Imported {
    let url = backup_url(&target.resolved.location, &wanted.volume, &wanted.backup);
    Imported { record: record.clone(), target: target.chosen.clone(), url: Some(url) }
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
fn failed(o: &Observed, seen: Failure, now: Timestamp) -> Decision {
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
}
