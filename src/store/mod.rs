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
pub mod record;
pub mod retry;
pub mod s3;
pub mod scratch;
pub mod seal;
pub mod stall;
pub mod survey;
