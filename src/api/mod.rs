//! What users write: the kinds, their rules, and how what they wrote becomes the model's values.
//!
//! * `common`     what the kinds share: references, durations, rates, and the error that names a field
//! * `conditions` condition types and reasons as closed lists, and the arithmetic of `lastTransitionTime`
//! * `backup`     `Backup`, one volume at one point in time; its status in `backup_status`, with the laws' rules
//! * `restore`    `Restore`, a Backup that becomes a volume again; its status in `restore_status`
//! * `course`     what every status with attempts has, declared once
//! * `target`     `ClusterBackupTarget`, a bucket and who may use it
//! * `parse`      from what users wrote to the model's values, with errors that name the field and the cure
//! * `secret`     the credential secret in Longhorn's keys, and spec over secret
//! * `crds`       the CRDs, finished for a real API server
//! * `reference`  the documentation page of the kinds, written from the same schema
//!
//! The API server holds what CEL can see (one-of, immutability, the status laws); what it cannot see becomes a
//! condition elsewhere. Nothing here talks to a server or reads a clock.

pub mod backup;
pub mod backup_status;
pub mod common;
pub mod conditions;
pub mod course;
pub mod crds;
pub mod parse;
pub mod reference;
pub mod restore;
pub mod restore_status;
pub mod secret;
pub mod target;

pub use backup::{Backup, BackupSpec, BackupState, BackupStatus};
pub use common::{GROUP, InvalidField, TargetKind, TargetRef, VERSION};
pub use conditions::{Cause, Claim, ConditionType, Reason, Truth};
pub use course::{Course, Stage, State, Status};
pub use crds::{crd_files, crds, crds_yaml};
pub use restore::{Restore, RestoreSpec, RestoreState, RestoreStatus};
pub use secret::{InvalidSecret, ResolvedLocation, SecretSettings};
pub use target::{ClusterBackupTarget, ClusterBackupTargetSpec, ClusterBackupTargetStatus};
