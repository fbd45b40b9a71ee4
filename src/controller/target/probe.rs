//! One look at a bucket, behind one function, so that the controller names no part of the store but this.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use jiff::SignedDuration;

use crate::{
    model::{Credentials, FailureReason, StoreLocation},
    store::objects::Kept,
};

/// What a bucket showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// A second create of the same key was refused.
    pub conditional_writes: bool,
    /// One request deleted several objects.
    pub batch_delete: bool,
    /// Keys on one page of a listing.
    pub list_page_size: i32,
    /// The store's clock less ours.
    pub clock_skew: SignedDuration,
    /// Does a deletion free what it deletes?
    pub deletions: Deletions,
}

/// What becomes of what is deleted in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deletions {
    Free,
    /// With the cure.
    Versioned(String),
    Locked(String),
    /// What was answered instead.
    NotKnown(String),
}

/// Why it did not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ProbeFailed {
    pub reason: FailureReason,
    /// Names the object and the cure.
    pub message: String,
}

/// Looks at a bucket.
pub type Prober =
    Arc<dyn Fn(StoreLocation, Credentials) -> BoxFuture<'static, Result<Probed, ProbeFailed>> + Send + Sync>;

/// The store's own probe.
pub fn prober() -> Prober {
    Arc::new(|location, credentials| {
        Box::pin(async move {
            let probed = crate::store::probe::probe(&location, &credentials).await;
            probed
                .map(|p| Probed {
                    conditional_writes: p.conditional_writes,
                    batch_delete: p.batch_delete,
                    list_page_size: p.list_page_size,
                    clock_skew: p.clock_skew,
                    deletions: deletions(&p.kept),
                })
                .map_err(|error| ProbeFailed { reason: error.reason(), message: error.to_string() })
        })
    })
}

fn deletions(kept: &Kept) -> Deletions {
    let notice = kept.notice().unwrap_or_default();
    match kept {
        Kept::Nothing => Deletions::Free,
        Kept::Versions => Deletions::Versioned(notice),
        Kept::Locked(_) => Deletions::Locked(notice),
        Kept::Unknown(answered) => Deletions::NotKnown(answered.clone()),
    }
}

/// A probe is a handful of small requests: a store that needs longer is as good as away.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(20);

/// The same, with an end.
pub async fn within_deadline(
    prober: &Prober,
    location: StoreLocation,
    credentials: Credentials,
) -> Result<Probed, ProbeFailed> {
    match tokio::time::timeout(PROBE_DEADLINE, prober(location, credentials)).await {
        Ok(answer) => answer,
        Err(_) => Err(silent()),
    }
}

/// Nobody answered within the deadline.
pub fn silent() -> ProbeFailed {
    ProbeFailed {
        reason: FailureReason::StoreUnavailable,
        message: format!(
            "The bucket did not answer within {} s: check the endpoint and the network between",
            PROBE_DEADLINE.as_secs()
        ),
    }
}
