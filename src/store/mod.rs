//! The repository on object storage.

pub mod adopt;
pub mod client;
pub mod codec;
pub mod credentials;
pub mod directory;
pub mod error;
pub mod guard;
pub mod journal;
pub mod layout;
pub mod lease;
pub mod ledger;
pub mod listing;
pub mod lock;
pub mod objects;
pub mod probe;
pub mod record;
pub mod retry;
pub mod s3;
pub mod scratch;
pub mod seal;
pub mod stall;
pub mod survey;

use std::sync::Arc;

use crate::model::StoreLocation;

/// Opens the place where the backupstore is. Nothing is sent yet.
pub fn open(
    location: &StoreLocation,
    credentials: credentials::CredentialSource,
) -> Result<Arc<dyn objects::Objects>, error::StoreError> {
    Ok(match location {
        StoreLocation::S3(location) => Arc::new(s3::S3::open(location, credentials)?),
        StoreLocation::Directory { path } => Arc::new(directory::Directory::open(path)?),
    })
}
