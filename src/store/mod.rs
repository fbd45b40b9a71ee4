//! The repository on object storage.

pub mod error;
pub mod layout;
pub mod objects;
pub mod record;
