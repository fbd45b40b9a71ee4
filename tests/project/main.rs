//! What needs no server at all: the house's rules, documents, generated files, the chart, what may not compile, and the
//! table of a worker's troubles.

#[path = "../manifests/mod.rs"]
mod manifests;

mod chart;
mod compile_fail;
mod crds;
mod docs;
mod tidy;
mod worker_trouble;
