//! The repository on object storage.

pub mod client;
pub mod codec;
pub mod credentials;
pub mod directory;
pub mod error;
pub mod layout;
pub mod ledger;
pub mod objects;
pub mod record;
pub mod retry;
pub mod s3;
pub mod scratch;
pub mod stall;
