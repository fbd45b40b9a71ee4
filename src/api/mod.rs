//! What users write: the kinds, their rules, and how what they wrote becomes the model's values.
//!
//! * `common`     what the kinds share: references, durations, rates, and the error that names a field
//! * `conditions` condition types and reasons as closed lists, and the arithmetic of `lastTransitionTime`
//! * `backup`     `Backup`, one volume at one point in time
//! * `target`     `ClusterBackupTarget`, a bucket and who may use it
//!
//! The API server holds what CEL can see (one-of, immutability, the status laws); what it cannot see becomes a
//! condition elsewhere. Nothing here talks to a server or reads a clock.

pub mod backup;
pub mod common;
pub mod conditions;
pub mod target;

pub use backup::{Backup, BackupSpec, BackupState, BackupStatus};
pub use common::{GROUP, InvalidField, TargetKind, TargetRef, VERSION};
pub use conditions::{Cause, Claim, ConditionType, Reason, Truth};
pub use target::{ClusterBackupTarget, ClusterBackupTargetSpec, ClusterBackupTargetStatus};
