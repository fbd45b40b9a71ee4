//! The repository on object storage: Longhorn's backupstore format, and the order of requests that keeps it true.
//!
//! The commit protocol in one sentence: blocks first, record last, and what no record names is not in the repository.
//!
//! * `objects`   the boundary: six verbs; `s3` and `directory` behind it, `client` before it (retries, deadlines, counts)
//! * `layout`, `record`, `codec`  keys, configs and block objects, byte for byte Longhorn's; `record_reader` a
//!   record to its last byte, as a stream
//! * `guard`     lock, lease and marker: nothing is sent without it (`lock`, `lease`, `hold`)
//! * `listing`   one LIST under the guard instead of a HEAD per block
//! * `ledger`    receipts, and the proof that nothing is open
//! * `journal`   what a later attempt need not read again
//! * `seal`      the record, written once and read back; `adopt` for one that an earlier attempt sealed unheard
//! * `catalogue` what a target holds, with few requests
//! * `survey`    `volume.cfg` and the record to build on; `probe` what a bucket can do
//! * `verify`    is what is there what it says? `inventory` everything below a volume's folder, listed without a
//!   guard; `usage` what each backup takes
//! * `deletion`  the lock that excludes backups and restores; `sweep` what no record names, `remove` one backup under it
//! * `janitor`   what the dead left, and when it may go; `tombstone` what was deleted and may still arrive
//! * `retry`, `stall`  when to send again, when to give up; `concurrency`, `pace`  how many at once, how fast
//! * `trust`     whose word counts for the store's certificate; `connect` the way there
//! * `session`   what a worker may do on one volume, as a policy; `sts` who is asked for such a session
//! * `buffers`   memory that is paid for once; `scratch` tables too large for it

pub mod adopt;
pub mod buffers;
pub mod catalogue;
pub mod client;
pub mod codec;
pub mod concurrency;
mod connect;
pub mod credentials;
pub mod deletion;
pub mod directory;
pub mod error;
pub mod guard;
mod hold;
pub mod inventory;
pub mod janitor;
pub mod journal;
pub mod layout;
pub mod lease;
pub mod ledger;
pub mod listing;
pub mod lock;
pub mod objects;
pub mod pace;
pub mod probe;
pub mod record;
pub mod record_reader;
pub mod remove;
pub mod retry;
pub mod s3;
pub mod scratch;
pub mod seal;
pub mod session;
pub mod stall;
pub mod sts;
pub mod survey;
pub mod sweep;
pub mod tombstone;
mod trust;
pub mod usage;
pub mod verify;

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
