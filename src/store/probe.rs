//! A target's probe: is the bucket there, does this key open it, what can it do, and does its clock agree with ours?
//!
//! It writes two small objects of random names beside the volumes, one of them twice, and removes both by one request. A
//! store that refuses the second create honours conditional writes; one that accepts it (Garage 2.5 does, silently) is
//! used without them. A store that refuses the batch, or does not do what it answered, gets single deletions.

use bytes::Bytes;
use jiff::SignedDuration;

use super::{
    credentials::CredentialSource,
    error::{ErrorKind, StoreError},
    layout::BASE,
    objects::{Body, Kept, Objects, PutCondition},
};
use crate::{
    model::{Credentials, StoreLocation, job::S3Location, limits},
    telemetry,
};

/// What a bucket showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// A second create of the same key was refused.
    pub conditional_writes: bool,
    /// One request deleted two objects.
    pub batch_delete: bool,
    /// Keys on one page of a listing.
    pub list_page_size: i32,
    /// The store's clock less ours, to the second.
    pub clock_skew: SignedDuration,
    /// What deletions leave behind.
    pub kept: Kept,
}

/// Nine small requests, ten on a versioned bucket, none of them sent again: the caller decides when to look anew.
pub async fn probe(location: &StoreLocation, credentials: &Credentials) -> Result<Probe, StoreError> {
    let location = match location.clone() {
        StoreLocation::S3(s3) => StoreLocation::S3(S3Location { conditional_writes: true, batch_delete: true, ..s3 }),
        directory @ StoreLocation::Directory { .. } => directory,
    };
    let objects = super::open(&location, CredentialSource::Given(credentials.clone()))?;
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|e| StoreError::new(ErrorKind::Unavailable, "PROBE", BASE, e))?;
    let prefix = format!("{BASE}tidemark-probe-{}", hex::encode(random));
    let keys = [format!("{prefix}-1"), format!("{prefix}-2")];
    let list_page_size = objects.list_page_size(&prefix).await?;
    let probed = write_twice(objects.as_ref(), &keys).await;
    let removed = remove(objects.as_ref(), &prefix, &keys).await;
    let (conditional_writes, clock_skew) = probed?;
    let batch_delete = removed?;
    // Last: it is asked of a store that does the rest.
    let silent = |_| Kept::Unknown(format!("no answer within {} s", limits::KEPT_DEADLINE.as_secs()));
    let kept = tokio::time::timeout(limits::KEPT_DEADLINE, objects.kept()).await.unwrap_or_else(silent);
    Ok(Probe { conditional_writes, batch_delete, list_page_size, clock_skew, kept })
}

/// Removes what was written; `true` if one request did it.
async fn remove(objects: &dyn Objects, prefix: &str, keys: &[String]) -> Result<bool, StoreError> {
    let answer = objects.delete(keys).await;
    let is_gone = objects.list(prefix, None).await?.entries.is_empty();
    if matches!(&answer, Ok(stay) if stay.is_empty()) && is_gone {
        return Ok(true);
    }
    for key in keys {
        if let Some(stays) = objects.delete(std::slice::from_ref(key)).await?.into_iter().next() {
            return Err(stays);
        }
    }
    Ok(false)
}

/// Are conditional writes honoured, and how far are the clocks apart?
async fn write_twice(objects: &dyn Objects, keys: &[String; 2]) -> Result<(bool, SignedDuration), StoreError> {
    let [key, second] = keys;
    let body = || Body::Bytes(Bytes::from_static(b"tidemark probe: may be deleted\n"));
    let first = objects.put(key, body(), PutCondition::IfAbsent).await;
    let conditional_writes = match first {
        Ok(_) => match objects.put(key, body(), PutCondition::IfAbsent).await {
            Err(error) if error.kind == ErrorKind::Precondition => true,
            Ok(_) => false,
            Err(error) => return Err(error),
        },
        // Some servers answer 501 to the header.
        Err(error) if error.kind == ErrorKind::Unavailable => {
            objects.put(key, body(), PutCondition::Always).await?;
            false
        }
        Err(error) => return Err(error),
    };
    objects.put(second, body(), PutCondition::Always).await?;
    let now = telemetry::now();
    let absent = || StoreError::new(ErrorKind::Unavailable, "HEAD", key, "an object just acknowledged is not there");
    let meta = objects.head(key).await?.ok_or_else(absent)?;
    let clock_skew = meta.modified.map_or(SignedDuration::ZERO, |modified| modified.duration_since(now));
    Ok((conditional_writes, SignedDuration::from_secs(clock_skew.as_secs())))
}
