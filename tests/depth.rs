//! What lies in tests/operator and tests/store, until those folders are programs of their own: then these modules are named
//! in their main.rs, and this file goes.

#[path = "operator/gitops.rs"]
mod gitops;
#[path = "store/proxy.rs"]
mod proxy;
#[path = "operator/releases.rs"]
mod releases;
#[path = "operator/scale.rs"]
mod scale;
mod support;
#[path = "operator/tenants.rs"]
mod tenants;
mod world;
