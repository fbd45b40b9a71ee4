//! The operator, and all that needs a real API server: Backups, Restores, targets, deletion, Jobs, snapshots, the CRDs.

#[path = "../manifests/mod.rs"]
mod manifests;
#[path = "../support/mod.rs"]
mod support;
mod world;

mod catalogue;
mod course;
mod crds_server;
mod deletion;
mod faults;
mod job;
mod restore;
mod runner;
mod snapshot;
mod support_selftest;
