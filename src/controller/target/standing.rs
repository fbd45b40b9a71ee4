//! How a target stands: pure, from what its words mean and what the bucket showed.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{
    probe::{Deletions, ProbeFailed, Probed},
    resolve::{Resolved, Unresolved},
};
use crate::{
    api::{Cause, Claim, ConditionType, Reason, Truth},
    controller::work::standing::{Note, Severity},
    model::FailureReason,
};

/// Clocks further apart than this make signatures fail and ages of locks wrong.
const SKEW_MAX: SignedDuration = SignedDuration::from_secs(60);

/// What one look at a target found.
#[derive(Debug, Clone, PartialEq)]
pub enum Looked {
    /// Spec and Secret do not make a target.
    Unresolved(Unresolved),
    Unprobed(Resolved, ProbeFailed),
    Probed(Resolved, Probed),
}

/// Is another target the default too?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rivals {
    None,
    Several,
}

/// The conditions of a target, in the order they are shown.
pub fn claims(looked: &Looked, rivals: Rivals) -> Vec<Claim> {
    use {Cause as C, ConditionType as T, Truth::*};
    let (ready, reachable, valid, clock) = match looked {
        Looked::Unresolved(problem) => {
            let (reason, about_keys) = match problem {
                Unresolved::SecretMissing { .. } => (C::SecretMissing, True),
                Unresolved::SecretInvalid { .. } => (C::SecretInvalid, True),
                Unresolved::Field(_) => (C::InvalidSpec, Unknown),
            };
            let text = problem.to_string();
            let valid = if about_keys == True { False } else { Unknown };
            (
                (False, Reason::from(reason), text.clone()),
                (Unknown, Reason::from(reason), "Not asked".into()),
                (valid, Reason::from(reason), text),
                (Unknown, Reason::from(reason), "Not asked".into()),
            )
        }
        Looked::Unprobed(_, failed) => unprobed(failed),
        Looked::Probed(_, probed) => {
            let skew = probed.clock_skew.abs();
            let clock = match skew <= SKEW_MAX {
                true => (True, Reason::from(C::InStep), format!("The clocks differ by {} s", skew.as_secs())),
                false => (
                    False,
                    Reason::from(FailureReason::ClockSkew),
                    format!("The store's clock and ours differ by {} s: set both by NTP", skew.as_secs()),
                ),
            };
            let ready = match clock.0 {
                True => (True, Reason::from(C::Available), "The bucket answered".to_owned()),
                False | Unknown => (False, clock.1, clock.2.clone()),
            };
            (
                ready,
                (True, C::Answered.into(), "The bucket answered".into()),
                (True, C::Accepted.into(), "The store accepted the key".into()),
                clock,
            )
        }
    };
    let mut ready = ready;
    if rivals == Rivals::Several {
        let text = "Another target has spec.default: true as well: leave it true on one only; until then none is used by default";
        ready = (False, C::SeveralDefaults.into(), text.into());
    }
    let valid = match looked {
        Looked::Probed(resolved, _) if !resolved.notes.is_empty() => {
            (valid.0, C::SpecOverridesSecret.into(), resolved.notes.join("; "))
        }
        _ => valid,
    };
    let mut claims = vec![Claim::new(T::Ready, ready.0, ready.1, ready.2.clone())];
    if ready.0 != True {
        // Only a person mends a spec, a secret or a refusal; an outage may pass.
        let passes = matches!(looked, Looked::Unprobed(_, failed) if is_passing(failed.reason));
        let kind = if passes { T::Reconciling } else { T::Stalled };
        claims.push(Claim::new(kind, True, ready.1, ready.2));
    }
    claims.extend([
        Claim::new(T::Reachable, reachable.0, reachable.1, reachable.2),
        Claim::new(T::CredentialsValid, valid.0, valid.1, valid.2),
        scoped(looked),
        Claim::new(T::ClockInStep, clock.0, clock.1, clock.2),
        deletions(looked),
    ]);
    claims
}

/// Does a deletion free what it deletes? No work waits for that: backups are as good on a bucket that keeps everything.
fn deletions(looked: &Looked) -> Claim {
    use {Cause as C, Truth::*};
    let (truth, cause, text) = match looked {
        Looked::Unresolved(_) => (Unknown, C::NotKnown, "Not asked".to_owned()),
        Looked::Unprobed(..) => (Unknown, C::NotKnown, "Not known: the last probe failed".to_owned()),
        Looked::Probed(_, probed) => match &probed.deletions {
            Deletions::Free => (True, C::NotVersioned, "The bucket keeps nothing of what is deleted".to_owned()),
            Deletions::Versioned(cure) => (False, C::BucketVersioned, cure.clone()),
            Deletions::Locked(cure) => (False, C::ObjectsLocked, cure.clone()),
            Deletions::NotKnown(seen) => {
                let allow =
                    "allow the key s3:GetBucketVersioning and s3:GetBucketObjectLockConfiguration to have it told";
                (
                    Unknown,
                    C::NotKnown,
                    format!("The store does not say whether the bucket keeps versions ({seen}): {allow}"),
                )
            }
        },
    };
    Claim::new(ConditionType::DeletionsFree, truth, cause, text)
}

/// Does what a worker holds open its own volume only? Of sessions that is said when one was tried.
fn scoped(looked: &Looked) -> Claim {
    let say = |truth, reason: Reason, text: String| Claim::new(ConditionType::CredentialsScoped, truth, reason, text);
    let by_session = match looked {
        Looked::Unresolved(_) => false,
        Looked::Unprobed(resolved, _) | Looked::Probed(resolved, _) => resolved.sts.is_some(),
    };
    match looked {
        Looked::Probed(..) if by_session => {
            let text = "Workers hold sessions of an hour for one volume's folder: one was tried, and opened no other";
            say(Truth::True, Cause::SessionPerVolume.into(), text.into())
        }
        Looked::Unprobed(_, failed) if by_session && failed.reason == FailureReason::SessionRefused => {
            say(Truth::False, failed.reason.into(), failed.message.clone())
        }
        Looked::Unprobed(_, failed) if by_session => {
            say(Truth::Unknown, failed.reason.into(), "Not known: the last probe failed".into())
        }
        _ => {
            let text = "Workers hold this target's key, which opens the whole bucket prefix: give it a bucket of its own, or mode: AssumeRole";
            say(Truth::False, Cause::StaticKey.into(), text.into())
        }
    }
}

type Said = (Truth, Reason, String);

/// What a failed probe says about each condition: a refusal is an answer, an outage is none.
fn unprobed(failed: &ProbeFailed) -> (Said, Said, Said, Said) {
    use Truth::*;
    let reason = Reason::from(failed.reason);
    let text = failed.message.clone();
    let unknown = || (Unknown, reason, "Not known: the last probe failed".to_owned());
    let answered = || (True, Reason::from(Cause::Answered), "The store answered".to_owned());
    let no = || (False, reason, text.clone());
    match failed.reason {
        FailureReason::AccessDenied | FailureReason::SessionRefused => (no(), answered(), no(), unknown()),
        FailureReason::ClockSkew => (no(), answered(), unknown(), no()),
        FailureReason::BucketMissing | FailureReason::WrongRegion => (no(), no(), unknown(), unknown()),
        _ => (no(), no(), unknown(), unknown()),
    }
}

fn is_passing(reason: FailureReason) -> bool {
    matches!(reason, FailureReason::StoreUnavailable | FailureReason::Throttled | FailureReason::UploadFailed)
}

/// What is worth an event when a condition's word changed. What is not known yet is no news.
pub fn note(condition: &Condition) -> Option<Note> {
    let severity = if condition.status == Truth::True.as_str() { Severity::Normal } else { Severity::Warning };
    let is_known = condition.status != Truth::Unknown.as_str();
    is_known.then(|| Note { severity, reason: condition.reason.clone(), text: condition.message.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sts::Sts;

    fn failed(reason: FailureReason) -> Looked {
        let resolved = Resolved {
            location: Default::default(),
            credentials: Default::default(),
            sts: None,
            compression: Default::default(),
            block_size: Default::default(),
            limits: crate::controller::work::queue::TargetLimits { total: 1, per_namespace: 1 },
            bytes_per_second: None,
            notes: vec![],
        };
        Looked::Unprobed(resolved, ProbeFailed { reason, message: "what was seen: the cure".into() })
    }

    fn truth(claims: &[Claim], wanted: ConditionType) -> Option<(Truth, &'static str)> {
        claims.iter().find(|c| c.condition == wanted).map(|c| (c.truth, c.reason.as_str()))
    }

    #[test]
    fn a_wrong_key_stalls_and_an_outage_goes_on_trying() {
        use {ConditionType::*, Truth::*};
        let denied = claims(&failed(FailureReason::AccessDenied), Rivals::None);
        assert_eq!(truth(&denied, Stalled), Some((True, "AccessDenied")), "{denied:?}");
        assert_eq!(truth(&denied, CredentialsValid), Some((False, "AccessDenied")));
        assert_eq!(truth(&denied, Reachable), Some((True, "Answered")), "a refusal is an answer");
        let away = claims(&failed(FailureReason::StoreUnavailable), Rivals::None);
        assert_eq!(truth(&away, Reconciling), Some((True, "StoreUnavailable")), "{away:?}");
        assert_eq!(truth(&away, Stalled), None);
        assert_eq!(truth(&away, CredentialsValid), Some((Unknown, "StoreUnavailable")));
    }

    #[test]
    fn law_11_workers_are_scoped_only_once_a_session_was_tried() {
        use {ConditionType::*, Truth::*};
        let sts = Sts { location: Default::default(), endpoint: None, role_arn: None };
        let by_session = |resolved: Resolved| Resolved { sts: Some(sts.clone()), ..resolved };
        for (reason, scoped, ready) in [
            (FailureReason::SessionRefused, (False, "SessionRefused"), Stalled),
            (FailureReason::StoreUnavailable, (Unknown, "StoreUnavailable"), Reconciling),
        ] {
            let Looked::Unprobed(resolved, why) = failed(reason) else { unreachable!() };
            let seen = claims(&Looked::Unprobed(by_session(resolved), why), Rivals::None);
            assert_eq!(truth(&seen, CredentialsScoped), Some(scoped), "{seen:?}");
            assert_eq!(truth(&seen, ready), Some((True, reason.as_str())));
        }
        let Looked::Unprobed(resolved, _) = failed(FailureReason::Bug) else { unreachable!() };
        let probed = Probed {
            conditional_writes: true,
            batch_delete: true,
            list_page_size: 1000,
            clock_skew: SignedDuration::ZERO,
            deletions: Deletions::Free,
        };
        let seen = claims(&Looked::Probed(by_session(resolved), probed), Rivals::None);
        assert_eq!(truth(&seen, CredentialsScoped), Some((True, "SessionPerVolume")), "{seen:?}");
    }

    #[test]
    fn a_clock_that_is_off_and_a_second_default_are_not_ready() {
        use {ConditionType::*, Truth::*};
        let Looked::Unprobed(resolved, _) = failed(FailureReason::Bug) else { unreachable!() };
        let probed = |seconds| Probed {
            conditional_writes: true,
            batch_delete: true,
            list_page_size: 1000,
            clock_skew: SignedDuration::from_secs(seconds),
            deletions: Deletions::Free,
        };
        let off = claims(&Looked::Probed(resolved.clone(), probed(-61)), Rivals::None);
        assert_eq!(truth(&off, ClockInStep), Some((False, "ClockSkew")));
        assert_eq!(truth(&off, Ready), Some((False, "ClockSkew")));
        let well = claims(&Looked::Probed(resolved.clone(), probed(60)), Rivals::None);
        assert_eq!(truth(&well, Ready), Some((True, "Available")));
        assert_eq!(truth(&well, CredentialsScoped), Some((False, "StaticKey")), "the truth about a static key");
        assert_eq!((truth(&well, Reconciling), truth(&well, Stalled)), (None, None));
        assert_eq!(truth(&well, DeletionsFree), Some((True, "NotVersioned")));
        // What is kept of deletions is told, and keeps nobody from backing up.
        for (deletions, said) in [
            (Deletions::Versioned("the cure".into()), (False, "BucketVersioned")),
            (Deletions::Locked("the cure".into()), (False, "ObjectsLocked")),
            (Deletions::NotKnown("HTTP 403".into()), (Unknown, "NotKnown")),
        ] {
            let told = claims(&Looked::Probed(resolved.clone(), Probed { deletions, ..probed(0) }), Rivals::None);
            assert_eq!((truth(&told, DeletionsFree), truth(&told, Ready)), (Some(said), Some((True, "Available"))));
        }
        let twice = claims(&Looked::Probed(resolved, probed(0)), Rivals::Several);
        assert_eq!(truth(&twice, Ready), Some((False, "SeveralDefaults")));
    }
}
