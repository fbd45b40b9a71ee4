//! The operator, and all that needs a real API server: Backups, Restores, targets, deletion, Jobs, snapshots, the CRDs.

#[path = "../manifests/mod.rs"]
mod manifests;
#[path = "../support/mod.rs"]
mod support;
mod world;

mod catalogue;
mod claim;
mod course;
mod crds_server;
mod deletion;
mod faults;
mod gitops;
mod job;
mod populate;
mod releases;
mod restore;
mod restore_job;
mod runner;
mod scale;
mod sessions;
mod snapshot;
mod storage_selftest;
mod support_selftest;
mod tenants;
