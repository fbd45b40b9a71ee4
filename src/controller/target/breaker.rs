//! The breaker: many removals of data in a short time wait for a person.
//!
//! Removals are counted for each namespace on a target, and for the whole target with a limit that no namespace reaches
//! alone: so what one tenant deletes never makes another's wait, and what is deleted everywhere at once does not go by
//! itself either.
//!
//! The counts stand in the target's status and are raised, with the resourceVersion they were decided on, before a removal
//! begins: neither a restart nor a second leader forgets one. They may count a removal twice (a crash between the count
//! and the Backup's status), never not at all.
//!
//! ```text
//! counting ──(limit reached)──→ waiting since T ──(annotation acknowledge-deletions = T)──→ counting anew;
//!    └── window over: from zero        everything deleted until then goes, what is deleted later is counted
//! ```

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    api::{
        ClusterBackupTarget, GROUP, VERSION,
        target::{Deletions, NamespaceDeletions},
    },
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

/// On a target: its words are times at which a breaker opened, for that of a namespace as `namespace/time`. So each lets
/// through what waits now and nothing else.
pub const ACKNOWLEDGE: &str = "tidemark.dev/acknowledge-deletions";

/// An open breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    pub since: Timestamp,
    pub whose: Whose,
}

/// Whose removals are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Those of the Backup's namespace.
    Namespace,
    /// All of the target.
    Target,
}

/// May the data of one Backup be removed now?
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Yes; if there are new counts, they are written first.
    Go(Option<Deletions>),
    /// Not before the annotation has its word; if there are new counts, the breaker has just opened.
    Wait(Opened, Option<Deletions>),
}

/// What the verdict rests on, besides the counts.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The annotation's value.
    pub acknowledged: Option<&'a str>,
    /// The Backup's namespace.
    pub namespace: &'a str,
    /// When the Backup was deleted.
    pub deleted_at: Timestamp,
    /// Backups of its namespace that chose this target.
    pub own_references: i64,
    /// Backups that chose this target.
    pub references: i64,
}

pub fn judge(counted: &Deletions, asked: Asked<'_>, now: Timestamp) -> Verdict {
    let own = counted.of(asked.namespace);
    let is_acknowledged = |time: &Option<Time>| time.as_ref().is_some_and(|t| asked.deleted_at <= t.0);
    if is_acknowledged(&own.acknowledged_time) || is_acknowledged(&counted.acknowledged_time) {
        return Verdict::Go(None);
    }
    for (waiting, whose) in [(&own.waiting_since, Whose::Namespace), (&counted.waiting_since, Whose::Target)] {
        let Some(opened) = waiting.as_ref().map(|since| Opened { since: since.0, whose }) else { continue };
        return match asked.has_word_for(opened) {
            true => Verdict::Go(Some(acknowledged(counted, asked.namespace, whose, now))),
            false => Verdict::Wait(opened, None),
        };
    }
    let (own, all) = (rolled(own, now), rolled(whole(counted), now));
    let is_full = |counted: &NamespaceDeletions, limit: i64| counted.count >= limit;
    if is_full(&own, own_limit(asked.own_references)) {
        let opened = NamespaceDeletions { waiting_since: Some(Time(now)), ..own };
        return Verdict::Wait(Opened { since: now, whose: Whose::Namespace }, Some(counted.with(opened, now)));
    }
    if is_full(&all, target_limit(asked.references)) {
        let next = Deletions { waiting_since: Some(Time(now)), since: all.since, count: all.count, ..counted.clone() };
        return Verdict::Wait(Opened { since: now, whose: Whose::Target }, Some(next));
    }
    let next = Deletions { since: all.since, count: all.count + 1, ..counted.clone() };
    Verdict::Go(Some(next.with(NamespaceDeletions { count: own.count + 1, ..own }, now)))
}

/// A word for the whole target is one for each of its namespaces.
fn acknowledged(counted: &Deletions, namespace: &str, whose: Whose, now: Timestamp) -> Deletions {
    let (since, acknowledged_time) = (Some(Time(now)), Some(Time(now)));
    match whose {
        Whose::Target => Deletions { since, acknowledged_time, ..Deletions::default() },
        Whose::Namespace => {
            let before = counted.of(namespace);
            let own = NamespaceDeletions { since, count: 0, waiting_since: None, acknowledged_time, ..before.clone() };
            // They were meant: the target need not worry about them any more.
            Deletions { count: (counted.count - before.count).max(0), ..counted.with(own, now) }
        }
    }
}

/// The same count, or a new one if its window is over.
fn rolled(counted: NamespaceDeletions, now: Timestamp) -> NamespaceDeletions {
    match counted.since.as_ref().is_none_or(|since| is_over(since, limits::DELETION_WINDOW, now)) {
        true => NamespaceDeletions { since: Some(Time(now)), count: 0, ..counted },
        false => counted,
    }
}

fn whole(counted: &Deletions) -> NamespaceDeletions {
    NamespaceDeletions { since: counted.since.clone(), count: counted.count, ..NamespaceDeletions::default() }
}

fn is_over(since: &Time, window: Duration, now: Timestamp) -> bool {
    now >= later(since.0, window)
}

fn own_limit(references: i64) -> i64 {
    limits::DELETIONS_PER_WINDOW.max(references / limits::DELETIONS_SHARE)
}

fn target_limit(references: i64) -> i64 {
    limits::DELETIONS_OF_TARGET_PER_WINDOW.max(references / limits::DELETIONS_OF_TARGET_SHARE)
}

impl Asked<'_> {
    fn has_word_for(&self, opened: Opened) -> bool {
        let words = self.acknowledged.unwrap_or_default().split([',', ' ']);
        let is_it = |word: &str| {
            let time = match opened.whose {
                Whose::Namespace => word.strip_prefix(self.namespace).and_then(|rest| rest.strip_prefix('/')),
                Whose::Target => Some(word),
            };
            time.and_then(|time| time.parse().ok()) == Some(opened.since)
        };
        words.map(str::trim).any(is_it)
    }
}

impl Deletions {
    /// Those of a namespace; none were counted if it is not there.
    fn of(&self, namespace: &str) -> NamespaceDeletions {
        let found = self.namespaces.iter().find(|n| n.namespace == namespace).cloned();
        found.unwrap_or_else(|| NamespaceDeletions { namespace: namespace.to_owned(), ..NamespaceDeletions::default() })
    }

    /// With new counts of one namespace, and without those that say nothing any more. Beyond the most that are kept a
    /// namespace counts for the target alone.
    fn with(&self, own: NamespaceDeletions, now: Timestamp) -> Self {
        let says_something = |n: &&NamespaceDeletions| {
            let counts = |time: &Option<Time>, window| time.as_ref().is_some_and(|t| !is_over(t, window, now));
            n.waiting_since.is_some()
                || counts(&n.since, limits::DELETION_WINDOW)
                || counts(&n.acknowledged_time, limits::DELETIONS_ACKNOWLEDGED)
        };
        let others = self.namespaces.iter().filter(|n| n.namespace != own.namespace).filter(says_something);
        let mut namespaces: Vec<_> = others.cloned().collect();
        if namespaces.len() < limits::DELETION_NAMESPACES_MAX {
            namespaces.push(own);
        }
        Self { namespaces, ..self.clone() }
    }
}

/// How a person lets them go.
pub fn how_to_acknowledge(target: &str, namespace: &str, opened: Opened) -> String {
    let since = opened.since;
    let (what, word) = match opened.whose {
        Whose::Namespace => (
            format!("More Backups of namespace {namespace} on ClusterBackupTarget {target}"),
            format!("{namespace}/{since}"),
        ),
        Whose::Target => (format!("More Backups of ClusterBackupTarget {target}"), since.to_string()),
    };
    format!(
        "{what} were deleted in a short time than go by themselves, so their data waits. If that was meant: kubectl annotate clusterbackuptarget {target} --overwrite {ACKNOWLEDGE}={word}. If not: set deletionPolicy: Retain on them, and their data stays"
    )
}

/// The answer, after the counts were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Go,
    Wait(Opened),
    /// Somebody else wrote meanwhile: ask again.
    AskAgain,
}

/// Who asks: the Backup's namespace, how many there are of it on this target, and when it was deleted.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    pub namespace: &'a str,
    pub references: i64,
    pub deleted_at: Timestamp,
}

impl<'a> Asked<'a> {
    pub fn of(asker: Asker<'a>, target: &'a ClusterBackupTarget) -> Self {
        Self {
            acknowledged: target.annotations().get(ACKNOWLEDGE).map(String::as_str),
            namespace: asker.namespace,
            deleted_at: asker.deleted_at,
            own_references: asker.references,
            references: target.status.as_ref().and_then(|s| s.references).unwrap_or(0),
        }
    }
}

/// Judges by the live target and writes the counts. `target` was read a moment ago.
pub async fn ask(context: &Context, target: &ClusterBackupTarget, asker: Asker<'_>) -> Result<Answer, ApiError> {
    let status = target.status.clone().unwrap_or_default();
    let now = whole_seconds(telemetry::now());
    let counted = status.deletions.clone().unwrap_or_default();
    let (answer, counted, opened) = match judge(&counted, Asked::of(asker, target), now) {
        Verdict::Go(None) => return Ok(Answer::Go),
        Verdict::Wait(opened, None) => return Ok(Answer::Wait(opened)),
        Verdict::Go(Some(counted)) => (Answer::Go, counted, None),
        Verdict::Wait(opened, Some(counted)) => (Answer::Wait(opened), counted, Some(opened)),
    };
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
    if let Some(opened) = opened {
        let text = how_to_acknowledge(&target.name_any(), asker.namespace, opened);
        tracing::warn!(
            target = %target.name_any(),
            namespace = asker.namespace,
            whose = ?opened.whose,
            "Many deletions wait for an acknowledgement"
        );
        let note = Note { severity: Severity::Warning, reason: "WaitingForAcknowledgement".into(), text };
        context.publish(target, note, "Delete".into());
    }
    Ok(answer)
}

#[cfg(test)]
mod tests;
