//! Blocks up: from a source to a sealed record. Knows volumes and the store, never Kubernetes. The `worker` command runs
//! the other direction too, which is `restore`'s.
//!
//! * `attempt`     one attempt, top down: read this first
//! * `source`      what is backed up, opened once and identified
//! * `compute`     the threads: read, hash, compress
//! * `pipeline`    the coordinator: where blocks become acknowledged
//! * `resume`      what an earlier attempt spares this one
//! * `heal`        bad blocks of a backup, sent again from a source that has them
//! * `restoring`   one attempt of a restore; `landing` is where it ends
//! * `tell`        how an attempt changes its report
//! * `reporter`    the three carriers of the report
//! * `verification`  what a Backup asked to be looked at again after it is complete
//! * `serve`       the `worker` command: a job file in, reports and an exit code out

pub mod attempt;
pub mod compute;
pub mod heal;
mod landing;
pub mod pipeline;
pub mod reporter;
pub mod restoring;
pub mod resume;
pub mod serve;
pub mod source;
mod tell;
mod verification;

pub use attempt::Attempt;
pub use serve::{WorkerOptions, serve};
