//! A target that Backups refer to stays until they are gone: its finalizer stands while there are any, and a condition
//! says how many there are and what to do. Deleting a target never touches its bucket.
//!
//! Where the CRDs or the operator's own namespace are on their way out, everything is: then nothing is held back.

use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::ground;
use crate::{
    api::{Cause, Claim, ClusterBackupTarget, ConditionType, Truth},
    controller::{
        FIELD_MANAGER,
        context::{ApiError, Context, bounded},
    },
};

/// Keeps a target while Backups refer to it.
pub const FINALIZER: &str = "tidemark.dev/references";

/// Backups that chose the target of this uid: all of them, or those of one namespace.
pub fn count(uid: &str, namespace: Option<&str>, context: &Context) -> i64 {
    let is_ours = |b: &std::sync::Arc<crate::api::Backup>| {
        if namespace.is_some_and(|namespace| b.metadata.namespace.as_deref() != Some(namespace)) {
            return false;
        }
        let backup = context.backups.freshest(b.clone());
        backup.status.as_ref().and_then(|s| s.target.as_ref()).is_some_and(|t| t.uid == uid)
    };
    i64::try_from(context.backups.state().iter().filter(|b| is_ours(b)).count()).unwrap_or(i64::MAX)
}

/// What is done about the finalizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    Add,
    Remove,
    Keep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetLife {
    Wanted,
    Deleting,
}

/// Pure. `is_leaving`: the CRDs or the operator's namespace are on their way out.
pub fn decide(life: TargetLife, references: i64, has_finalizer: bool, is_leaving: bool) -> Hold {
    let is_held = references > 0 && !(life == TargetLife::Deleting && is_leaving);
    match (is_held, has_finalizer) {
        (true, false) if life == TargetLife::Wanted => Hold::Add,
        (false, true) => Hold::Remove,
        // A finalizer cannot be added to an object that is being deleted.
        _ => Hold::Keep,
    }
}

/// Brings the finalizer up to date. True: it was changed, and that brings us here again.
pub async fn hold(target: &ClusterBackupTarget, references: i64, context: &Context) -> Result<bool, ApiError> {
    let has_finalizer = target.finalizers().iter().any(|f| f == FINALIZER);
    let life = match target.metadata.deletion_timestamp {
        Some(_) => TargetLife::Deleting,
        None => TargetLife::Wanted,
    };
    let is_leaving =
        life == TargetLife::Deleting && references > 0 && has_finalizer && ground::read_own(context).await?.is_some();
    let mut finalizers: Vec<&str> =
        target.finalizers().iter().map(String::as_str).filter(|f| *f != FINALIZER).collect();
    match decide(life, references, has_finalizer, is_leaving) {
        Hold::Keep => return Ok(false),
        Hold::Remove => {}
        Hold::Add => finalizers.push(FINALIZER),
    }
    let patch = json!({"metadata": {"resourceVersion": target.resource_version(), "finalizers": finalizers}});
    let api: Api<ClusterBackupTarget> = Api::all(context.client.clone());
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match bounded(api.patch(&target.name_any(), &params, &Patch::Merge(&patch))).await {
        Ok(_) => Ok(true),
        // Changed meanwhile, or gone: that change brings us here again.
        Err(ApiError::Api(kube::Error::Api(answer))) if answer.is_conflict() || answer.is_not_found() => Ok(true),
        Err(error) => Err(error),
    }
}

/// The conditions of a target that is being deleted and still referred to.
pub fn claims(name: &str, references: i64) -> Vec<Claim> {
    let text = format!(
        "{references} Backups refer to ClusterBackupTarget {name}, which is being deleted: it goes when they are gone. Deleting them keeps their data in the bucket, whatever their deletionPolicy says. `kubectl get backups.tidemark.dev -A` shows them"
    );
    let claim = |kind, truth| Claim::new(kind, truth, Cause::StillReferenced, text.clone());
    vec![claim(ConditionType::Ready, Truth::False), claim(ConditionType::Reconciling, Truth::True)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law_10_a_target_is_held_while_it_is_referred_to_and_nothing_is_stuck() {
        use {Hold::*, TargetLife::*};
        for (life, references, has_finalizer, is_leaving, expected) in [
            (Wanted, 0, false, false, Keep),
            (Wanted, 3, false, false, Add),
            (Wanted, 3, true, false, Keep),
            (Wanted, 0, true, false, Remove),
            (Deleting, 3, true, false, Keep),
            (Deleting, 0, true, false, Remove),
            (Deleting, 3, true, true, Remove),
            (Deleting, 3, false, false, Keep),
        ] {
            let decided = decide(life, references, has_finalizer, is_leaving);
            assert_eq!(decided, expected, "{life:?} {references} {has_finalizer} {is_leaving}");
        }
    }
}
