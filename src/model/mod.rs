//! What is true without any computer: names, block arithmetic, limits, and the two messages between the
//! planes. Nothing here awaits, reads a clock or does I/O.
//!
//! * `ids`      names of volumes, backups, attempts and blocks, parsed once
//! * `block`    block size, compression, ordinals
//! * `limits`   every bound of the product, with the arithmetic behind it
//! * `progress` the counters of an attempt and the percentage that may be shown
//! * `restore`  the same for a restore
//! * `failure`  why an attempt ended, what may be done about it, its exit code
//! * `job`      `JobSpec`, the one message down: operator → worker
//! * `report`   `Report`, the one line up: worker → operator, numbered and keyed
//! * `verification`  what is looked at once more after a backup is complete, and what became of it

pub mod block;
pub mod failure;
pub mod ids;
pub mod job;
pub mod limits;
pub mod progress;
pub mod report;
pub mod restore;
pub mod verification;

pub use block::{BlockSize, Compression};
pub use failure::{Failure, FailureReason, NOT_PERMITTED, Retry};
pub use ids::{AttemptId, BackupName, BlockName, VolumeName};
pub use job::{Credentials, JobSpec, StoreLocation, Task};
pub use progress::{Counters, Phase, Progress, Requests};
pub use report::{DamageReason, Damaged, Outcome, Report, ReportKey};
pub use restore::{RestorePhase, RestoreProgress};
pub use verification::{Verdict, Verification, VerifyDepth};
