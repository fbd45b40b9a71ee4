//! What a worker holds: the target's key, or with `credentials.mode: AssumeRole` a session for its volume. There is no way from
//! the second to the first: without a session no worker is started, and one that runs keeps what it has until that ends.
//!
//! A session is given when a worker starts, and the next one when half of its life is over (or the target's key, role or
//! bucket changed, or a new leader remembers none). STS is asked again 15 s after it gave none.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{lookup::Problem, probe::ProbeFailed, resolve::Resolved};
pub use crate::store::session::Work;
use crate::{
    controller::{context::Context, runner::AttemptRef},
    model::{AttemptId, Credentials, FailureReason, VolumeName},
    store::{
        credentials::CredentialSource,
        error::{ErrorKind, StoreError},
        layout::{BASE, VolumeLayout},
        objects::Objects,
        s3::S3,
        session::Scope,
        sts::{Sts, assume_role},
    },
    telemetry,
};

/// STS that gave no session is asked again after this long.
const ASK_AGAIN: Duration = Duration::from_secs(15);

/// One attempt, for which keys are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub attempt: AttemptRef,
    pub id: AttemptId,
    pub volume: VolumeName,
    /// What it does decides what it may.
    pub work: Work,
}

/// What a worker was given, and what that was made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    wanted: Wanted,
    key: Credentials,
    sts: Option<Sts>,
    /// None: it does not end.
    renew_at: Option<Timestamp>,
}

/// No session was given, and when.
#[derive(Debug, Clone)]
pub struct Withheld {
    at: Instant,
    pub problem: Problem,
}

impl Offer {
    fn is_good(&self, target: &Resolved, now: Timestamp) -> bool {
        let is_of_target = self.key == target.credentials && self.sts == target.sts;
        is_of_target && self.renew_at.is_none_or(|at| now < at)
    }
}

/// Is this attempt's worker to be given other keys now?
pub fn is_due(context: &Context, attempt: &AttemptRef, target: &Resolved, now: Timestamp) -> bool {
    let memory = context.memory();
    let is_good = memory.offered.get(attempt).is_some_and(|offer| offer.is_good(target, now));
    !is_good && !was_just_withheld(memory.withheld.get(attempt))
}

/// Why this attempt has no session.
pub fn withheld(context: &Context, attempt: &AttemptRef) -> Option<Problem> {
    context.memory().withheld.get(attempt).map(|withheld| withheld.problem.clone())
}

fn was_just_withheld(withheld: Option<&Withheld>) -> bool {
    withheld.is_some_and(|withheld| withheld.at.elapsed() < ASK_AGAIN)
}

/// For whom this attempt's worker was given its keys: a source that is gone meanwhile takes no session from it.
pub fn given_to(context: &Context, attempt: &AttemptRef) -> Option<Wanted> {
    context.memory().offered.get(attempt).map(|offer| offer.wanted.clone())
}

/// Keys for this attempt's worker, and what is to be remembered once it has them. None: no session was given, which is
/// remembered with its reason.
pub async fn keys(context: &Context, target: &Resolved, wanted: &Wanted) -> Option<(Credentials, Offer)> {
    let offer =
        |renew_at| Offer { wanted: wanted.clone(), key: target.credentials.clone(), sts: target.sts.clone(), renew_at };
    let Some(sts) = &target.sts else { return Some((target.credentials.clone(), offer(None))) };
    if was_just_withheld(context.memory().withheld.get(&wanted.attempt)) {
        return None;
    }
    let scope = Scope {
        volume: wanted.volume.clone(),
        uid: wanted.attempt.uid().to_owned(),
        attempt: wanted.id.clone(),
        work: wanted.work,
    };
    match assume_role(sts, &target.credentials, &scope, telemetry::now()).await {
        Ok(session) => {
            tracing::info!(attempt = %wanted.attempt, expires = %session.expires, "Worker's session given by STS");
            context.memory().withheld.remove(&wanted.attempt);
            Some((session.credentials.clone(), offer(Some(session.renew_at()))))
        }
        Err(error) => {
            tracing::warn!(attempt = %wanted.attempt, %error, "No session for this worker");
            let withheld = Withheld { at: Instant::now(), problem: Problem::of(&error) };
            context.memory().withheld.insert(wanted.attempt.clone(), withheld);
            None
        }
    }
}

/// Does STS give sessions to this target, do they open what they should, and nothing else? A store that takes a session policy
/// and does not look at it would hand the whole prefix to each worker.
pub async fn prove(target: &Resolved, sts: &Sts) -> Result<(), ProbeFailed> {
    let failed = |error: &StoreError| ProbeFailed { reason: error.reason(), message: error.to_string() };
    let refused = |message: String| ProbeFailed { reason: FailureReason::SessionRefused, message };
    let mut random = [0; 10];
    getrandom::fill(&mut random).map_err(|e| refused(format!("No random numbers: {e}")))?;
    let now = telemetry::now();
    let scope = Scope {
        volume: "tidemark-probe".parse().map_err(|e| refused(format!("{e}")))?,
        uid: "probe".to_owned(),
        attempt: AttemptId::new(u64::try_from(now.as_millisecond()).unwrap_or(0), random),
        work: Work::Restore,
    };
    let session = assume_role(sts, &target.credentials, &scope, now).await.map_err(|e| failed(&e))?;
    let source = CredentialSource::Given(session.credentials);
    let store = S3::open(&target.location, source).map_err(|e| failed(&e))?;
    let own = VolumeLayout::new(&scope.volume).root().to_owned();
    store.list(&own, None).await.map_err(|error| match error.kind {
        ErrorKind::Refused(FailureReason::AccessDenied) => refused(format!(
            "{error}: a session may not even list its volume's folder; let the role (or the key, where there is none) do \
             s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject"
        )),
        _ => failed(&error),
    })?;
    match store.list(BASE, None).await {
        Err(error) if error.kind == ErrorKind::Refused(FailureReason::AccessDenied) => Ok(()),
        Err(error) => Err(failed(&error)),
        Ok(_) => Err(refused(format!(
            "LIST {BASE}: a session for one volume may list all of them: this store does not look at session policies. Use \
             another, or mode: Static with a bucket of its own for whoever must not see the others"
        ))),
    }
}
