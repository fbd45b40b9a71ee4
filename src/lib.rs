//! Tidemark: backs up Kubernetes volumes block by block, with a progress that cannot lie.

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
