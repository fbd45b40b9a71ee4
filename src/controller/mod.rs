//! The control plane: turns Backup and Restore resources into workers, and what workers report into status. It never touches a
//! volume's byte.
//!
//! Per kind: observe → decide → status → act. Deciding is pure; everything a user sees comes from a `Standing`.
//!
//! * `config`   what the operator is told when it is started
//! * `run`      its life: serve, campaign, lead, give back
//! * `feed`     the caches, and what changes is reconciled
//! * `lease`    who leads
//! * `rivals`   and that nobody of another release does
//! * `context`  what every reconcile may use
//! * `calls`    what is asked of the API server about storage objects, and may be asked again
//! * `populate` claims that ask for a Restore by their `dataSourceRef`
//! * `objects`  the objects of one kind, and our own last writes
//! * `work`     what Backup and Restore share: the machine of attempts
//! * `backup`   Backup
//! * `restore`  Restore
//! * `target`   ClusterBackupTarget
//! * `runner`   who runs workers
//! * `snapshot` a claim's point in time as a device, and nothing left of it
//! * `claim`    a new claim that a Restore fills, and nothing left of what that takes
//! * `census`   counts, and removes what belongs to nobody
//!
//! What may go wrong: the API server is away (reconciles fail and are repeated; workers go on; the lease runs out and
//! this operator acts no more until it holds it again), the store is away (workers and probes say so), another operator
//! leads (this one waits).

pub mod backup;
mod calls;
pub mod census;
pub mod claim;
pub mod config;
pub mod context;
pub mod feed;
pub mod lease;
pub mod objects;
pub mod populate;
pub mod restore;
pub mod rivals;
pub mod run;
pub mod runner;
pub mod snapshot;
pub mod target;
pub mod time;
pub mod work;

pub use config::OperatorConfig;
pub use run::{OperatorError, run, run_until, run_with_prober};

/// Who we are in server-side apply.
pub const FIELD_MANAGER: &str = "tidemark-operator";

/// An error and all it rests on, on one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}
