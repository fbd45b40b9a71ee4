//! The breaker: many removals of data in a short time wait for a person.
//!
//! The count stands in the target's status and is raised, with the resourceVersion it was decided on, before a removal
//! begins: neither a restart nor a second leader forgets one. It may count a removal twice (a crash between the count
//! and the Backup's status), never not at all.
//!
//! ```text
//! counting ──(limit reached)──→ waiting since T ──(annotation acknowledge-deletions = T)──→ counting anew;
//!    └── window over: from zero        everything deleted until then goes, what is deleted later is counted
//! ```

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    api::{ClusterBackupTarget, GROUP, VERSION, target::Deletions},
    controller::{
        FIELD_MANAGER,
        context::{ApiError, Context, bounded},
        time::{later, whole_seconds},
        work::standing::{Note, Severity},
    },
    metrics::StatusWrite,
    model::limits,
    telemetry,
};

/// On a target: its value is the time in `status.deletions.waitingSince`, so that it lets through what waits now and
/// nothing else.
pub const ACKNOWLEDGE: &str = "tidemark.dev/acknowledge-deletions";

/// May the data of one Backup be removed now?
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Yes; if there is a new count, it is written first.
    Go(Option<Deletions>),
    /// Not before the annotation has this time; if there is a new count, the breaker has just opened.
    Wait(Timestamp, Option<Deletions>),
}

/// What the verdict rests on, besides the count.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The annotation's value.
    pub acknowledged: Option<&'a str>,
    /// When the Backup was deleted.
    pub deleted_at: Timestamp,
    /// Backups that chose this target.
    pub references: i64,
}

pub fn judge(counted: &Deletions, asked: Asked<'_>, now: Timestamp) -> Verdict {
    if counted.acknowledged_time.as_ref().is_some_and(|t| asked.deleted_at <= t.0) {
        return Verdict::Go(None);
    }
    if let Some(waiting) = &counted.waiting_since {
        let is_acknowledged = asked.acknowledged.and_then(|text| text.trim().parse().ok()) == Some(waiting.0);
        if !is_acknowledged {
            return Verdict::Wait(waiting.0, None);
        }
        let anew =
            Deletions { since: Some(Time(now)), count: 0, waiting_since: None, acknowledged_time: Some(Time(now)) };
        return Verdict::Go(Some(anew));
    }
    let is_over = counted.since.as_ref().is_none_or(|since| now >= later(since.0, limits::DELETION_WINDOW));
    let (since, count) = if is_over { (Some(Time(now)), 0) } else { (counted.since.clone(), counted.count) };
    let next = Deletions { since, count, ..counted.clone() };
    if count < limit(asked.references) {
        return Verdict::Go(Some(Deletions { count: count + 1, ..next }));
    }
    Verdict::Wait(now, Some(Deletions { waiting_since: Some(Time(now)), ..next }))
}

fn limit(references: i64) -> i64 {
    limits::DELETIONS_PER_WINDOW.max(references / limits::DELETIONS_SHARE)
}

/// How a person lets them go.
pub fn how_to_acknowledge(target: &str, since: Timestamp) -> String {
    format!(
        "More Backups of ClusterBackupTarget {target} were deleted in a short time than go by themselves, so their data waits. If that was meant: kubectl annotate clusterbackuptarget {target} --overwrite {ACKNOWLEDGE}={since}. If not: set deletionPolicy: Retain on them, and their data stays"
    )
}

/// The answer, after the count was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Go,
    Wait(Timestamp),
    /// Somebody else wrote meanwhile: ask again.
    AskAgain,
}

/// Judges by the live target and writes the count. `target` was read a moment ago.
pub async fn ask(context: &Context, target: &ClusterBackupTarget, deleted_at: Timestamp) -> Result<Answer, ApiError> {
    let status = target.status.clone().unwrap_or_default();
    let asked = Asked {
        acknowledged: target.annotations().get(ACKNOWLEDGE).map(String::as_str),
        deleted_at,
        references: status.references.unwrap_or(0),
    };
    let now = whole_seconds(telemetry::now());
    let (answer, counted) = match judge(&status.deletions.clone().unwrap_or_default(), asked, now) {
        Verdict::Go(counted) => (Answer::Go, counted),
        Verdict::Wait(since, counted) => (Answer::Wait(since), counted),
    };
    let Some(counted) = counted else { return Ok(answer) };
    let opened = counted.waiting_since.clone();
    let status = crate::api::ClusterBackupTargetStatus { deletions: Some(counted), ..status };
    let patch = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "ClusterBackupTarget",
        "metadata": {"name": target.name_any(), "resourceVersion": target.resource_version()},
        "status": status,
    });
    let api: Api<ClusterBackupTarget> = Api::all(context.client.clone());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match bounded(api.patch_status(&target.name_any(), &params, &Patch::Apply(&patch))).await {
        Ok(_) => context.metrics.status_written(StatusWrite::Written),
        Err(ApiError::Api(kube::Error::Api(answer))) if answer.is_conflict() || answer.is_not_found() => {
            context.metrics.status_written(StatusWrite::Conflict);
            return Ok(Answer::AskAgain);
        }
        Err(error) => {
            context.metrics.status_written(StatusWrite::Failed);
            return Err(error);
        }
    }
    if let Some(since) = opened {
        let text = how_to_acknowledge(&target.name_any(), since.0);
        tracing::warn!(target = %target.name_any(), "Many deletions wait for an acknowledgement");
        let note = Note { severity: Severity::Warning, reason: "WaitingForAcknowledgement".into(), text };
        context.publish(target, note, "Delete".into());
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).expect("in range")
    }

    fn asked(deleted: i64) -> Asked<'static> {
        Asked { acknowledged: None, deleted_at: at(deleted), references: 0 }
    }

    /// Asks for so many Backups, one a second, and says how many went.
    fn went(counted: &mut Deletions, many: i64, from: i64, asked: Asked<'_>) -> i64 {
        let mut went = 0;
        for n in 0..many {
            match judge(counted, Asked { deleted_at: at(from), ..asked }, at(from + n)) {
                Verdict::Go(next) => {
                    went += 1;
                    *counted = next.unwrap_or(counted.clone());
                }
                Verdict::Wait(_, next) => *counted = next.unwrap_or(counted.clone()),
            }
        }
        went
    }

    #[test]
    fn law_10_a_mass_deletion_stops_at_the_limit_and_waits_however_long_nobody_says_yes() {
        let mut counted = Deletions::default();
        assert_eq!(went(&mut counted, 300, 0, asked(0)), limits::DELETIONS_PER_WINDOW);
        let waiting = counted.waiting_since.clone().expect("the breaker is open");
        for hours in [1, 2, 24, 1000] {
            assert_eq!(went(&mut counted, 50, hours * 3600, asked(0)), 0, "time alone lets nothing through");
        }
        for wrong in ["true", "", "2026-01-01T00:00:00Z", "yes please"] {
            let asked = Asked { acknowledged: Some(wrong), ..asked(0) };
            assert!(matches!(judge(&counted, asked, at(9)), Verdict::Wait(t, None) if t == waiting.0), "{wrong}");
        }
    }

    #[test]
    fn law_10_an_acknowledgement_lets_go_what_waits_and_is_used_up() {
        let mut counted = Deletions::default();
        went(&mut counted, 300, 0, asked(0));
        let word = counted.waiting_since.clone().expect("open").0.to_string();
        let acknowledged = Asked { acknowledged: Some(&word), ..asked(0) };
        assert!(matches!(judge(&counted, acknowledged, at(500)), Verdict::Go(Some(_))));
        let Verdict::Go(Some(next)) = judge(&counted, acknowledged, at(500)) else { panic!("as before") };
        counted = next;
        for n in 0..280 {
            assert_eq!(judge(&counted, acknowledged, at(501 + n)), Verdict::Go(None), "everything deleted before");
        }
        // The annotation is still there; what is deleted now is counted anew.
        let later = Asked { acknowledged: Some(&word), ..asked(600) };
        assert_eq!(went(&mut counted, 100, 600, later), limits::DELETIONS_PER_WINDOW);
        assert_ne!(counted.waiting_since.map(|t| t.0.to_string()), Some(word));
    }

    #[test]
    fn a_slow_trickle_never_waits_and_a_large_target_has_a_larger_limit() {
        let mut counted = Deletions::default();
        let window = i64::try_from(limits::DELETION_WINDOW.as_secs()).expect("small");
        for n in 0..200 {
            assert_eq!(
                went(&mut counted, 1, n * window / limits::DELETIONS_PER_WINDOW, asked(0)),
                1,
                "{n}: {counted:?}"
            );
        }
        let mut counted = Deletions::default();
        let large = Asked { references: 5000, ..asked(0) };
        assert_eq!(went(&mut counted, 3000, 0, large), 500);
    }
}
