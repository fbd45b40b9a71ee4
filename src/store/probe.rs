//! A target's probe: is the bucket there, does this key open it, what can it do, and does its clock agree with ours?
//!
//! It writes one small object of a random name beside the volumes, twice, and removes it. A store that refuses the second
//! create honours conditional writes; one that accepts it (Garage 2.5 does, silently) is used without them.

use bytes::Bytes;
use jiff::SignedDuration;

use super::{
    credentials::CredentialSource,
    error::{ErrorKind, StoreError},
    layout::BASE,
    objects::{Body, Objects, PutCondition},
};
use crate::{
    model::{Credentials, StoreLocation},
    telemetry,
};

/// What a bucket showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// A second create of the same key was refused.
    pub conditional_writes: bool,
    /// The store's clock less ours, to the second.
    pub clock_skew: SignedDuration,
}

/// Five small requests, none of them sent again: the caller decides when to look anew.
pub async fn probe(location: &StoreLocation, credentials: &Credentials) -> Result<Probe, StoreError> {
    let location = match location.clone() {
        StoreLocation::S3(s3) => StoreLocation::S3(crate::model::job::S3Location { conditional_writes: true, ..s3 }),
        directory @ StoreLocation::Directory { .. } => directory,
    };
    let objects = super::open(&location, CredentialSource::Given(credentials.clone()))?;
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|e| StoreError::new(ErrorKind::Unavailable, "PROBE", BASE, e))?;
    let key = format!("{BASE}tidemark-probe-{}", hex::encode(random));
    objects.list(&key, None).await?;
    let probed = write_twice(objects.as_ref(), &key).await;
    let removed = objects.delete(std::slice::from_ref(&key)).await;
    let probed = probed?;
    removed?;
    Ok(probed)
}

async fn write_twice(objects: &dyn Objects, key: &str) -> Result<Probe, StoreError> {
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
    let now = telemetry::now();
    let absent = || StoreError::new(ErrorKind::Unavailable, "HEAD", key, "an object just acknowledged is not there");
    let meta = objects.head(key).await?.ok_or_else(absent)?;
    let clock_skew = meta.modified.map_or(SignedDuration::ZERO, |modified| modified.duration_since(now));
    Ok(Probe { conditional_writes, clock_skew: SignedDuration::from_secs(clock_skew.as_secs()) })
}
