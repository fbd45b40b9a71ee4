//! Importing: a Backup whose data is in the bucket already. Nothing is uploaded; its record is looked up, and if it is the
//! namespace's own the Backup is Completed at once.
//!
//! Whose a record is, it says itself: the operator wrote cluster and namespace into it, and a user's labels cannot. A
//! record by Longhorn names no owner. A refusal never says whose a record is: that is nobody else's business (law 11).

use std::time::Duration;

use jiff::Timestamp;

use super::{
    decide::{Decision, Step, decided, failed, refused, waiting_deadline, waiting_for_target},
    observe::{Observed, Refusal, Target, TargetSeen},
    standing::Standing,
};
use crate::{
    api::Cause,
    controller::target::{
        errands::Lies,
        lookup::{Looked, StoredRecord, Wanted},
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
    let wanted = match &import.wanted {
        Ok(wanted) => wanted,
        Err(refusal) => return refused(o, refusal.reason, refusal.message.clone(), now),
    };
    let target = match &o.target {
        TargetSeen::Usable(target) => target,
        TargetSeen::Refused(refusal) => return refused(o, refusal.reason, refusal.message.clone(), now),
        TargetSeen::Waiting(missing) => return waiting_for_target(o, missing, now),
    };
    let looking = |step| {
        let what = format!("Looking up backup {} of volume {} in the bucket", wanted.backup, wanted.volume);
        decided(step, Standing::LookingUp { what })
    };
    let decision = match &import.seen {
        Lies::Nothing => return looking(Step::LookUp),
        Lies::UnderWay => return looking(Step::Nothing),
        Lies::Done { outcome: Looked::Missing, ago, .. } => {
            let what = format!("Backup {} of volume {} is not in the bucket", wanted.backup, wanted.volume);
            return missing(o, &what, *ago, now);
        }
        Lies::Done { outcome: Looked::InProgress, ago, .. } => {
            let what = format!("Backup {} of volume {} is still being made", wanted.backup, wanted.volume);
            return missing(o, &what, *ago, now);
        }
        Lies::Done { outcome: Looked::Failed(problem), .. } => {
            let failure = Failure::new(problem.reason, problem.message.clone(), problem.object.clone(), now);
            failed(o, failure, now)
        }
        Lies::Done { outcome: Looked::Found(record), .. } => {
            let claimant = Claimant { cluster: &o.cluster, namespace: &o.wish.namespace };
            match may_import(record, claimant, target) {
                Ok(()) => decided(Step::Nothing, imported(record, target)),
                Err(refusal) => refused(o, refusal.reason, refusal.message, now),
            }
        }
    };
    // What was found is used up: whoever asks again looks again.
    Decision { step: Step::ForgetLookUp, ..decision }
}

fn imported(record: &StoredRecord, target: &Target) -> Standing {
    Standing::Imported { record: Box::new(record.clone()), target: target.chosen.clone() }
}

/// It may still come: a replica that lags, a backup that is being made. After `deadlines.start` a person is asked.
fn missing(o: &Observed, what: &str, ago: Duration, now: Timestamp) -> Decision {
    let limit = o.wish.deadlines.start;
    if now >= waiting_deadline(o, limit, now) {
        let message = format!(
            "{what} (waited for deadlines.start, {} s): `tidemark ls` shows what is there; create a new Backup with its names",
            limit.as_secs()
        );
        return Decision { step: Step::ForgetLookUp, ..refused(o, Cause::WaitingForSource.into(), message, now) };
    }
    let step = if ago >= AGAIN { Step::LookUp } else { Step::Nothing };
    decided(step, Standing::LookingUp { what: what.to_owned() })
}

/// Whose record it is decides; the target's administrator may say more.
pub fn may_import(record: &StoredRecord, claimant: Claimant<'_>, target: &Target) -> Result<(), Refusal> {
    let rules = target.import_rules;
    let is_own_namespace = !record.namespace.is_empty() && record.namespace == claimant.namespace;
    let is_own_cluster = !record.cluster.is_empty() && record.cluster == claimant.cluster;
    if rules.any_owner
        || is_own_namespace && (is_own_cluster || rules.shared_with_clusters && !record.cluster.is_empty())
    {
        return Ok(());
    }
    let (name, namespace) = (&target.chosen.name, claimant.namespace);
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
    use crate::controller::backup::laws::target;

    fn usable(rules: ImportRules) -> Target {
        let TargetSeen::Usable(target) = target() else { panic!("it is usable") };
        Target { import_rules: rules, ..*target }
    }

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
                        let judged = may_import(&record, claimant, &usable(rules));
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
