//! Who leads: one Lease of `coordination.k8s.io/v1`, taken, renewed and given back.
//!
//! The other's clock is never trusted: a lease is free when it has no holder, or when *we* saw it unchanged for its whole
//! duration by our own monotonic clock. Every write names the resourceVersion it was decided on, so of two who reach for
//! it one gets a conflict.
//!
//! Arithmetic: a holder counts its time from when it *sent* its last successful renewal and stops acting 10 s after that;
//! another waits 15 s after it *saw* that renewal, which is later. So there are 5 s in which nobody acts, and none in
//! which two do, as long as no clock runs half as fast again as another. What a packet sent before that moment may still
//! do, the resourceVersion of each status write refuses.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{Instant, sleep, timeout};

use crate::telemetry::now;

/// The four durations of an election.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long others wait after the last renewal they saw.
    pub duration: Duration,
    /// How long a holder acts after it sent its last successful renewal.
    pub renew_deadline: Duration,
    /// How often a holder renews.
    pub renew_interval: Duration,
    /// How often others look.
    pub look_interval: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            renew_interval: Duration::from_secs(5),
            look_interval: Duration::from_secs(2),
        }
    }
}

/// No request about the lease may take longer.
const REQUEST_DEADLINE: Duration = Duration::from_secs(3);

/// A candidate for one lease.
pub struct Election {
    leases: Api<Lease>,
    name: String,
    identity: String,
    timing: Timing,
}

/// The lease is ours: when it was last renewed, and in which version.
#[derive(Debug)]
pub struct Leadership {
    lease: Lease,
    /// When the last successful renewal was sent.
    renewed: Instant,
}

/// Why we no longer lead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    #[error("Lease was not renewed for {0:?}: {1}")]
    NotRenewed(Duration, String),
    #[error("Lease was taken by {0:?}")]
    Taken(String),
}

#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("API server did not answer within {0:?}")]
    Silent(Duration),
}

/// What somebody else's lease allows us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    Free,
    Held,
}

/// A lease is free if nobody holds it, if we do (under an identity that is new with each process), or if it has not
/// changed for its duration while we watched.
fn judge(spec: Option<&LeaseSpec>, identity: &str, unchanged_for: Duration, fallback: Duration) -> Claim {
    let holder = spec.and_then(|s| s.holder_identity.as_deref()).unwrap_or("");
    let duration = spec
        .and_then(|s| s.lease_duration_seconds)
        .and_then(|s| u64::try_from(s).ok())
        .map_or(fallback, Duration::from_secs);
    if holder.is_empty() || holder == identity || unchanged_for >= duration { Claim::Free } else { Claim::Held }
}

impl Election {
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, timing: Timing) -> Self {
        Self { leases: Api::namespaced(client, namespace), name: name.into(), identity: identity.into(), timing }
    }

    /// Waits until the lease is ours. Errors are told and tried again: a candidate has nothing better to do.
    pub async fn acquire(&self) -> Leadership {
        // The version we look at, and since when it is the same.
        let mut seen: Option<(String, Instant)> = None;
        loop {
            match self.try_acquire(&mut seen).await {
                Ok(Some(leadership)) => return leadership,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(lease = %self.name, error = %chain(&error), "Lease could not be read or taken");
                }
            }
            sleep(self.timing.look_interval).await;
        }
    }

    async fn try_acquire(&self, seen: &mut Option<(String, Instant)>) -> Result<Option<Leadership>, LeaseError> {
        let renewed = Instant::now();
        let Some(found) = bounded(self.leases.get_opt(&self.name)).await? else {
            let new = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.spec(None)),
            };
            return took(bounded(self.leases.create(&PostParams::default(), &new)).await, renewed);
        };
        let version = found.metadata.resource_version.clone().unwrap_or_default();
        let since = match seen {
            Some((known, since)) if *known == version => *since,
            _ => seen.insert((version, renewed)).1,
        };
        match judge(found.spec.as_ref(), &self.identity, since.elapsed(), self.timing.duration) {
            Claim::Held => Ok(None),
            Claim::Free => {
                let renewed = Instant::now();
                let mut mine = found;
                mine.spec = Some(self.spec(mine.spec.as_ref()));
                took(bounded(self.leases.replace(&self.name, &PostParams::default(), &mine)).await, renewed)
            }
        }
    }

    /// The lease's content with us as its holder.
    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let time = MicroTime(micros(now()));
        let ours = before.and_then(|s| s.holder_identity.as_deref()) == Some(&self.identity);
        let transitions = before.and_then(|s| s.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.timing.duration.as_secs()).unwrap_or(i32::MAX).max(1)),
            acquire_time: match before {
                Some(spec) if ours => spec.acquire_time.clone(),
                _ => Some(time.clone()),
            },
            renew_time: Some(time),
            lease_transitions: Some(if ours || before.is_none() { transitions } else { transitions.saturating_add(1) }),
            ..LeaseSpec::default()
        }
    }

    /// Renews until that fails for too long or somebody else holds the lease. The caller drops everything that acts
    /// the moment this returns.
    pub async fn keep(&self, leadership: &mut Leadership) -> Lost {
        let mut next = self.timing.renew_interval;
        loop {
            let deadline = leadership.renewed + self.timing.renew_deadline;
            sleep(next.min(deadline.saturating_duration_since(Instant::now()))).await;
            let sent = Instant::now();
            let renewed = tokio::time::timeout_at(deadline, self.renew(&leadership.lease)).await;
            let problem = match renewed {
                Ok(Ok(lease)) => {
                    *leadership = Leadership { lease, renewed: sent };
                    next = self.timing.renew_interval;
                    continue;
                }
                Ok(Err(RenewError::Taken(by))) => return Lost::Taken(by),
                Ok(Err(RenewError::Failed(error))) => chain(&error),
                Err(_) => "API server did not answer".to_owned(),
            };
            if Instant::now() >= deadline {
                return Lost::NotRenewed(leadership.renewed.elapsed(), problem);
            }
            tracing::warn!(lease = %self.name, error = %problem, "Lease could not be renewed, trying again");
            next = Duration::from_secs(1).min(self.timing.renew_interval);
        }
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, RenewError> {
        let mut mine = lease.clone();
        mine.spec = Some(self.spec(mine.spec.as_ref()));
        let refused = match bounded(self.leases.replace(&self.name, &PostParams::default(), &mine)).await {
            Ok(renewed) => return Ok(renewed),
            Err(LeaseError::Api(kube::Error::Api(status))) if status.is_conflict() => status,
            Err(other) => return Err(RenewError::Failed(other)),
        };
        // A conflict: our own renewal whose answer was lost, or another holder.
        let found = bounded(self.leases.get(&self.name)).await.map_err(RenewError::Failed)?;
        let holder = found.spec.as_ref().and_then(|s| s.holder_identity.clone()).unwrap_or_default();
        if holder != self.identity {
            return Err(RenewError::Taken(holder));
        }
        tracing::debug!(lease = %self.name, %refused, "Lease was renewed by a request whose answer was lost");
        let mut mine = found;
        mine.spec = Some(self.spec(mine.spec.as_ref()));
        bounded(self.leases.replace(&self.name, &PostParams::default(), &mine)).await.map_err(RenewError::Failed)
    }

    /// Gives the lease back, so that the next leader need not wait. A failure costs the others one lease duration.
    pub async fn release(&self, leadership: Leadership) {
        let mut lease = leadership.lease;
        if let Some(spec) = lease.spec.as_mut() {
            spec.holder_identity = Some(String::new());
            spec.renew_time = Some(MicroTime(micros(now())));
        }
        if let Err(error) = bounded(self.leases.replace(&self.name, &PostParams::default(), &lease)).await {
            tracing::warn!(lease = %self.name, error = %chain(&error), "Lease was not given back, others wait it out");
        }
    }
}

#[derive(Debug)]
enum RenewError {
    Taken(String),
    Failed(LeaseError),
}

/// A lost race for the lease is no error: we look again.
fn took(answer: Result<Lease, LeaseError>, renewed: Instant) -> Result<Option<Leadership>, LeaseError> {
    match answer {
        Ok(lease) => Ok(Some(Leadership { lease, renewed })),
        Err(LeaseError::Api(kube::Error::Api(status))) if status.is_conflict() || status.is_already_exists() => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn bounded<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, LeaseError> {
    match timeout(REQUEST_DEADLINE, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(LeaseError::Silent(REQUEST_DEADLINE)),
    }
}

/// `MicroTime` is written with microseconds; more digits would come back as another value.
fn micros(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

fn chain(error: &dyn std::error::Error) -> String {
    super::error_chain(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(holder: &str) -> LeaseSpec {
        LeaseSpec { holder_identity: Some(holder.into()), lease_duration_seconds: Some(15), ..LeaseSpec::default() }
    }

    #[test]
    fn a_lease_is_taken_only_when_free_ours_or_seen_unchanged_for_its_duration() {
        let fallback = Duration::from_secs(15);
        for seconds in [0, 14, 15, 16] {
            let unchanged = Duration::from_secs(seconds);
            let expected = if seconds >= 15 { Claim::Free } else { Claim::Held };
            assert_eq!(judge(Some(&held("b")), "a", unchanged, fallback), expected, "{seconds} s");
            assert_eq!(judge(Some(&held("a")), "a", unchanged, fallback), Claim::Free);
            assert_eq!(judge(Some(&held("")), "a", unchanged, fallback), Claim::Free);
            assert_eq!(judge(None, "a", unchanged, fallback), Claim::Free);
        }
    }

    #[test]
    fn a_holder_stops_before_another_may_begin() {
        let timing = Timing::default();
        assert!(timing.renew_deadline < timing.duration && timing.renew_interval < timing.renew_deadline);
    }
}
