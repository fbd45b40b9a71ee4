//! Tidemark backs up Kubernetes volumes block by block, and its status never says more than the object store has
//! confirmed. A tidemark is the line the water has really reached.
//!
//! Two planes, one direction:
//!
//! ```text
//!  source → plan → hash → dedup → compress → put ──┐
//!                                      (bucket)    │ Receipt
//!  Backup.status ← controller ← report ← ledger ←──┘
//!  and what goes down is one message:  Backup → decide → JobSpec → worker
//! ```
//!
//! The **control plane** turns Backup and Restore resources into workers and their reports into status; it never touches a volume's
//! byte. The **data plane** turns a device into acknowledged blocks; it never talks to Kubernetes. Between them are two
//! messages, `model::JobSpec` down and `model::Report` up, and a report can only be too low, never too high.
//!
//! The rooms, each of which knows only those below it (`tests/project/tidy.rs` holds the arrows):
//!
//! | room | what lives there |
//! |---|---|
//! | `cli` | flags, environment, bars; the wiring |
//! | `controller` | everything that names Kubernetes: observe → decide → act → status |
//! | `worker`, `restore` | blocks up, blocks down; the `worker` command runs either |
//! | `api`, `store` | what users write; the repository on object storage |
//! | `model` | what is true without any computer |
//! | `telemetry`, `metrics`, `http` | leaves that anyone may call |
//!
//! Where to begin: `worker::attempt` for how a backup is made, `store::ledger` for why its count cannot lie,
//! `controller::work::decide` for what the operator does when. `docs/laws.md` has the promises and their tests.

pub mod api;
pub mod cli;
pub mod controller;
pub mod http;
pub mod metrics;
pub mod model;
pub mod restore;
pub mod store;
pub mod telemetry;
pub mod worker;
