//! Blocks up: from a source to a sealed record. Knows volumes and the store, never Kubernetes.
//!
//! * `attempt`     one attempt, top down: read this first
//! * `source`      what is backed up, opened once and identified
//! * `compute`     the threads: read, hash, compress
//! * `pipeline`    the coordinator: where blocks become acknowledged
//! * `buffers`, `concurrency`, `pace`  its bounds
//! * `resume`      what an earlier attempt spares this one
//! * `heal`        bad blocks of a backup, sent again from a source that has them
//! * `reporter`    the three carriers of the report
//! * `verification`  what a Backup asked to be looked at again after it is complete
//! * `serve`       the `worker` command: a job file in, reports and an exit code out

pub mod attempt;
pub mod buffers;
pub mod compute;
pub mod concurrency;
pub mod heal;
pub mod pace;
pub mod pipeline;
pub mod reporter;
pub mod resume;
pub mod serve;
pub mod source;
mod verification;

pub use attempt::Attempt;
pub use serve::{WorkerOptions, serve};
