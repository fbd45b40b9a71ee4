//! Two releases in one cluster would both act on every Backup: an operator acts only while no operator of another
//! namespace does.
//!
//! The order makes it safe: each first takes the Lease of its own namespace, then looks for the Leases of the others. Of
//! two that start together the later look sees the earlier Lease, so never do both see nothing. Whoever sees another gives
//! its own back, says whom it saw, and tries again after a pause of random length. A Lease that nobody renewed for its
//! whole duration, as we saw it by our own clock, is a dead one's; an uninstalled release gave its own back.
//!
//! What may go wrong: the Leases cannot be listed. Then nothing is known, and the operator does nothing.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, ResourceExt, api::ListParams};
use tokio::time::Instant;

use super::{
    context::{ApiError, bounded},
    run::LEASE,
};

/// Why this operator may not act.
#[derive(Debug, thiserror::Error)]
pub enum Hindrance {
    #[error(
        "Another Tidemark operator acts in this cluster: Lease {namespace}/{LEASE} is held by {holder:?}, and both would \
         act on every Backup; uninstall the release in namespace {namespace}, or this one"
    )]
    Rival { namespace: String, holder: String },
    #[error(
        "Leases of other namespaces could not be listed, so another Tidemark operator may act in this cluster; allow the \
         operator to list leases.coordination.k8s.io in all namespaces: {0}"
    )]
    Unknown(String),
}

/// The operators of other namespaces.
pub struct Rivals {
    leases: Api<Lease>,
    namespace: String,
    /// Of a lease that does not say how long it lasts.
    fallback: Duration,
    /// The version of each foreign lease, and since when we see it.
    seen: HashMap<String, (String, Instant)>,
}

impl Rivals {
    pub fn new(client: Client, namespace: &str, fallback: Duration) -> Self {
        Self { leases: Api::all(client), namespace: namespace.to_owned(), fallback, seen: HashMap::new() }
    }

    /// Is nobody else there? To be asked while our own lease is held. Read from the store, not from a cache.
    pub async fn look(&mut self) -> Result<(), Hindrance> {
        let named = ListParams::default().fields(&format!("metadata.name={LEASE}"));
        let found = bounded(self.leases.list(&named)).await;
        let found = found.map_err(|error: ApiError| Hindrance::Unknown(super::error_chain(&error)))?;
        self.judge(&found.items, Instant::now())
    }

    fn judge(&mut self, leases: &[Lease], now: Instant) -> Result<(), Hindrance> {
        let foreign = |lease: &&Lease| lease.namespace().as_deref() != Some(self.namespace.as_str());
        let mut seen = HashMap::new();
        let mut hindrance = Ok(());
        for lease in leases.iter().filter(foreign) {
            let (namespace, version) =
                (lease.namespace().unwrap_or_default(), lease.resource_version().unwrap_or_default());
            let since = match self.seen.get(&namespace) {
                Some((known, since)) if *known == version => *since,
                _ => now,
            };
            seen.insert(namespace.clone(), (version, since));
            let spec = lease.spec.as_ref();
            let holder = spec.and_then(|s| s.holder_identity.clone()).unwrap_or_default();
            let lasts = spec.and_then(|s| u64::try_from(s.lease_duration_seconds?).ok());
            let lasts = lasts.map_or(self.fallback, Duration::from_secs);
            if !holder.is_empty() && now.saturating_duration_since(since) < lasts && hindrance.is_ok() {
                hindrance = Err(Hindrance::Rival { namespace, holder });
            }
        }
        self.seen = seen;
        hindrance
    }

    /// Between 0 and 1: two that refuse for each other's sake must not meet again at every try.
    pub fn share(&self) -> f64 {
        let mut byte = [0];
        // Without random numbers the pause is a fixed one.
        if getrandom::fill(&mut byte).is_ok() { f64::from(byte[0]) / 256.0 } else { 0.5 }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lease(namespace: &str, holder: &str, version: u32) -> Lease {
        serde_json::from_value(json!({
            "metadata": {"name": LEASE, "namespace": namespace, "resourceVersion": version.to_string()},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15},
        }))
        .expect("a Lease")
    }

    fn rivals() -> Rivals {
        // Nothing is asked of it here.
        let config = kube::Config::new("http://127.0.0.1:1".parse().expect("an address"));
        Rivals::new(Client::try_from(config).expect("a client"), "a", Duration::from_secs(15))
    }

    #[tokio::test]
    async fn law_8_another_release_is_seen_until_its_lease_was_given_back_or_stood_still() {
        let (mut rivals, start) = (rivals(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(rivals.judge(&[lease("a", "us", 1)], start).is_ok(), "our own is no rival");
        let live = |version| [lease("a", "us", 1), lease("b", "them", version)];
        for (second, version) in [(0, 1), (14, 1), (15, 2), (29, 2)] {
            let said = rivals.judge(&live(version), after(second)).expect_err("it was renewed").to_string();
            assert!(said.contains("b/tidemark-operator") && said.contains("\"them\""), "{second} s: {said}");
        }
        assert!(rivals.judge(&live(2), after(30)).is_ok(), "unchanged for its whole duration");
        assert!(rivals.judge(&live(3), after(31)).is_err(), "it was not dead");
        assert!(rivals.judge(&[lease("b", "", 4)], after(32)).is_ok(), "it was given back");
    }
}
