//! Blocks up: from a source to a sealed record. Knows volumes and the store, never Kubernetes.

pub mod attempt;
pub mod buffers;
pub mod compute;
pub mod concurrency;
pub mod pace;
pub mod pipeline;
pub mod resume;
pub mod source;
