//! Control planes that are used again: a start costs eight seconds of CPU, and most tests change nothing of it but objects.
//! Each test has one to itself for as long as it, or anybody it started, may write to it; what it made is then deleted
//! beneath the API server (`etcd`), and the next test finds what a new one has, and our CRDs.
//!
//! One that a failing test had, or whose API server is not running, is not lent again. The last ones end with the program.

use std::{
    collections::BTreeSet,
    ops::Deref,
    sync::{Arc, Mutex},
};

use super::{ControlPlane, etcd, locked};

static FREE: Mutex<Vec<(ControlPlane, Kept)>> = Mutex::new(Vec::new());

/// What was there before the first test.
type Kept = BTreeSet<String>;

/// A control plane for one test; the last clone that is dropped gives it back.
#[derive(Clone, Debug)]
pub struct Lent(Arc<Inner>);

#[derive(Debug)]
struct Inner(Option<(ControlPlane, Option<Kept>)>);

impl Lent {
    /// A new one, which ends with its last clone.
    pub async fn for_good() -> Self {
        Self(Arc::new(Inner(Some((ControlPlane::start().await, None)))))
    }

    /// One that is as good as new.
    pub async fn borrow() -> Self {
        loop {
            let free = locked(&FREE).pop();
            let Some((plane, kept)) = free else { break };
            match cleared(&plane, &kept).await {
                Ok(()) => return Self(Arc::new(Inner(Some((plane, Some(kept)))))),
                Err(error) => eprintln!("A control plane is not used again: {error}"),
            }
        }
        let plane = ControlPlane::start().await;
        plane.has_made_its_own().await;
        let kept = etcd::keys(plane.etcd_port()).await.expect("etcd answers");
        Self(Arc::new(Inner(Some((plane, Some(kept))))))
    }
}

async fn cleared(plane: &ControlPlane, kept: &Kept) -> std::io::Result<()> {
    // Our CRDs are what every test wants, and what costs an API server most.
    let stays = |key: &str| key.starts_with("/registry/apiextensions.k8s.io/") && key.ends_with(".tidemark.dev");
    etcd::clear(plane.etcd_port(), kept, stays).await?;
    let missing: Vec<_> = kept.difference(&etcd::keys(plane.etcd_port()).await?).cloned().collect();
    if missing.is_empty() {
        plane.forget_requests()
    } else {
        Err(std::io::Error::other(format!("{missing:?} are gone")))
    }
}

impl Deref for Lent {
    type Target = ControlPlane;

    fn deref(&self) -> &ControlPlane {
        &self.0.0.as_ref().expect("it is there until it is dropped").0
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some((plane, Some(kept))) = self.0.take() else { return };
        if !std::thread::panicking() && plane.is_running() {
            locked(&FREE).push((plane, kept));
        }
    }
}
