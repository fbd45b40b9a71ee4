//! Which ClusterBackupTarget an object uses, and whether it may. Closed if it cannot be told.

use std::{collections::BTreeMap, sync::Arc};

use kube::{Api, ResourceExt, runtime::reflector::ObjectRef};
use tokio::time::Instant;

use super::observe::{Refusal, Seen, Target, TargetSeen};
use crate::{
    api::{
        Cause, ClusterBackupTarget, ConditionType, TargetKind, Truth, common::ChosenTarget, conditions::find,
        target::NamespacesFrom,
    },
    controller::{
        context::{ApiError, Context, LABELS_AGE_MAX, bounded},
        target::resolve_cached,
    },
};

/// Which target an object wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The very object that was chosen.
    Chosen {
        name: String,
        uid: String,
    },
    Named(String),
    /// The one that is marked as the default.
    Default,
    /// It depends on what is not there.
    Unknown(Refusal),
}

/// The target that was chosen, or is to be, for an object of that kind in that namespace.
pub async fn target(wanted: Wanted, namespace: &str, kind: &str, context: &Context) -> Result<TargetSeen, ApiError> {
    let waiting = |missing: String| Ok(Seen::Waiting(Refusal::new(Cause::WaitingForTarget, missing)));
    let (found, chosen) = match wanted {
        Wanted::Unknown(refusal) => return Ok(Seen::Waiting(refusal)),
        Wanted::Chosen { name, uid } => (named(&name, kind, context), Some(uid)),
        Wanted::Named(name) => (named(&name, kind, context), None),
        Wanted::Default => (default_target(kind, context), None),
    };
    let found = match found {
        Ok(found) => found,
        Err(missing) => return waiting(missing),
    };
    let name = found.name_any();
    let uid = found.uid().unwrap_or_default();
    if found.metadata.deletion_timestamp.is_some() && chosen.is_none() {
        return waiting(format!("ClusterBackupTarget {name} is being deleted: name another in a new {kind}"));
    }
    if chosen.is_some_and(|chosen| chosen != uid) {
        return waiting(format!(
            "ClusterBackupTarget {name} is not the one this {kind} chose, but another of the same name: create a new {kind}"
        ));
    }
    let not_allowed = |message| Ok(Seen::Refused(Refusal::new(Cause::TargetNotAllowed, message)));
    match may_use(&found, namespace, context).await? {
        Allowed::Yes => {}
        Allowed::No => {
            return not_allowed(format!(
                "ClusterBackupTarget {name} does not allow namespace {namespace}: an administrator must add it to spec.allowedNamespaces"
            ));
        }
        Allowed::Unclear(problem) => return not_allowed(format!("ClusterBackupTarget {name}: {problem}")),
    }
    Ok(usable(&found, ChosenTarget { kind: TargetKind::ClusterBackupTarget, name, uid }, context))
}

fn named(name: &str, kind: &str, context: &Context) -> Result<Arc<ClusterBackupTarget>, String> {
    context
        .targets
        .get(&ObjectRef::new(name))
        .ok_or_else(|| format!("ClusterBackupTarget {name} does not exist: create it, or name another in a new {kind}"))
}

fn default_target(kind: &str, context: &Context) -> Result<Arc<ClusterBackupTarget>, String> {
    let mut defaults = context.targets.state().into_iter().filter(|t| t.spec.default);
    match (defaults.next(), defaults.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => {
            Err(format!("No ClusterBackupTarget has spec.default: true: mark one, or name one in a new {kind}"))
        }
        (Some(_), Some(_)) => Err(format!(
            "Several ClusterBackupTargets have spec.default: true: leave it true on one, or name one in a new {kind}"
        )),
    }
}

/// Closed if it cannot be told: a selector that does not parse, or a namespace that cannot be read, allows nobody.
async fn may_use(target: &ClusterBackupTarget, namespace: &str, context: &Context) -> Result<Allowed, ApiError> {
    let mut labels = BTreeMap::new();
    if target.spec.allowed_namespaces.from == NamespacesFrom::Selector {
        labels = labels_of(namespace, context).await?;
    }
    Ok(match target.spec.allows(namespace, &labels) {
        Ok(true) => Allowed::Yes,
        Ok(false) => Allowed::No,
        Err(problem) => Allowed::Unclear(problem.to_string()),
    })
}

/// As they were a few seconds ago at most.
async fn labels_of(namespace: &str, context: &Context) -> Result<BTreeMap<String, String>, ApiError> {
    let known = context.memory().labels.get(namespace).cloned();
    if let Some((_, labels)) = known.filter(|(at, _)| at.elapsed() < LABELS_AGE_MAX) {
        return Ok(labels);
    }
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(context.client.clone());
    let labels = bounded(namespaces.get(namespace)).await?.metadata.labels.unwrap_or_default();
    context.memory().labels.insert(namespace.to_owned(), (Instant::now(), labels.clone()));
    Ok(labels)
}

enum Allowed {
    Yes,
    No,
    Unclear(String),
}

/// A target is used once it was looked at, whatever that showed: a worker that is refused says so itself, with its object,
/// and one path of failures and retries is enough.
fn usable(target: &ClusterBackupTarget, chosen: ChosenTarget, context: &Context) -> TargetSeen {
    let waiting = |missing| Seen::Waiting(Refusal::new(Cause::WaitingForTarget, missing));
    let resolved = match resolve_cached(target, context) {
        Ok(resolved) => resolved,
        Err(problem) => return waiting(format!("ClusterBackupTarget {}: {problem}", chosen.name)),
    };
    let is_looked_at = target.status.as_ref().is_some_and(|s| {
        s.last_check_time.is_some() && s.observed_generation == target.metadata.generation.unwrap_or(0)
    });
    if !is_looked_at {
        return waiting(format!("ClusterBackupTarget {} was not looked at yet", chosen.name));
    }
    // A session that opens more than its volume, or none at all, is no reason to hand out the key instead.
    let conditions = target.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let scoped = find(conditions, ConditionType::CredentialsScoped);
    if let Some(not) = scoped.filter(|c| resolved.sts.is_some() && c.status == Truth::False.as_str()) {
        return waiting(format!("ClusterBackupTarget {}: {}", chosen.name, not.message));
    }
    Seen::Usable(Box::new(Target { chosen, resolved, shared_with_clusters: target.spec.shared_with_clusters }))
}
