//! Backup: what is its own. The machine is in `work`.
//!
//! * `place`   its source, resolved without touching a device
//! * `words`   conditions and texts
//! * `status`  the fields of its status that are its own
//! * `upkeep`  what needs no worker: imports, the removal of data, the end of its time

#[cfg(test)]
mod laws;
pub mod place;
pub mod status;
pub mod upkeep;
mod words;

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use kube::runtime::controller::Action;

use super::{
    context::Context,
    objects::Objects,
    snapshot::expose::Taken,
    work::{
        Kind, ReconcileError,
        act::Parts,
        observe::{Heard, Observed, PlaceSeen, Territory, Wish, Words as Spoken, wish},
        queue::{Entry, Urgency, volume_held},
        running_entry,
        standing::{Chosen, Standing, Words},
        target::Wanted,
        volume,
    },
};
use crate::{
    api::{Backup, Claim, InvalidField},
    metrics,
    model::{AttemptId, Report, Task, job, progress::Completion},
};

impl Kind for Backup {
    const METRIC: metrics::Kind = metrics::Kind::Backup;
    const WORDS: Words = words::WORDS;

    fn objects(context: &Context) -> &Objects<Self> {
        &context.backups
    }

    fn wish(&self) -> (Wish, Option<InvalidField>) {
        let spec = &self.spec;
        let spoken = Spoken {
            retry: &spec.retry,
            snapshot: Some(&spec.deadlines.snapshot),
            start: &spec.deadlines.start,
            stall: &spec.deadlines.stall,
            total: &spec.deadlines.total,
            transfer: &spec.upload,
            rate_field: "spec.upload.maxBytesPerSecond",
            cancel: spec.cancel,
            retry_request: &spec.retry_request,
            urgency: Urgency::Backup,
        };
        let (wish, problem) = wish(&self.metadata, &spoken);
        (
            Wish { holds: upkeep::holds(self), look_again: upkeep::expiry(self), verify: spec.verify.into(), ..wish },
            problem,
        )
    }

    fn upkeep<'a>(
        object: &'a Arc<Self>,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Option<Action>, ReconcileError>> {
        upkeep::pass(object, context).boxed()
    }

    fn place(&self, context: &Context, territory: &Territory<'_>) -> PlaceSeen {
        match context.exposure {
            None => place::place(self, territory),
            // A Pod would need a hostPath, which pod security `baseline` forbids.
            Some(_) => place::no_host_device(),
        }
    }

    fn volume(&self, context: &Context) -> Option<volume::Wanted> {
        context.exposure.as_ref()?;
        place::volume(self, &context.namespace)
    }

    fn taken(status: &mut Self::Status, taken: &Taken) {
        status::taken(status, taken);
    }

    fn wanted_target(&self, _: &Context) -> Wanted {
        let chosen = self.status.as_ref().and_then(|s| s.target.as_ref());
        match (chosen, &self.spec.target_ref) {
            (Some(chosen), _) => Wanted::Chosen { name: chosen.name.clone(), uid: chosen.uid.clone() },
            (None, Some(named)) => Wanted::Named(named.name.clone()),
            (None, None) => Wanted::Default,
        }
    }

    fn task(&self, o: &Observed, parts: &Parts<'_>, cluster: &str) -> Option<Task> {
        let Parts { place, target, .. } = parts;
        Some(Task::Backup(job::BackupTask {
            compression: target.resolved.compression,
            block_size: target.resolved.block_size,
            source: job::Source {
                path: place.device.path.clone(),
                root: Some(place.device.root.clone()),
                // What is exposed may be larger than what was snapshotted.
                bytes: place.exposed.as_ref().map(|e| e.taken.bytes),
                point: place.exposed.as_ref().map(|e| job::PointInTime {
                    driver: e.taken.driver.clone(),
                    handle: e.taken.handle.clone(),
                    created: e.taken.created,
                }),
            },
            mode: self.spec.mode.into(),
            verify: self.spec.verify.into(),
            // The same for every attempt: whether the device changed between them the worker finds out itself.
            snapshot: match &place.exposed {
                Some(exposed) => job::SnapshotRef {
                    name: place::point_in_time(&exposed.taken.handle),
                    created: exposed.taken.created,
                },
                None => job::SnapshotRef {
                    name: format!("tm-{}", o.wish.uid),
                    created: o.status.start_time.as_ref().map_or(o.wish.created, |t| t.0),
                },
            },
            owner: job::Owner {
                cluster: cluster.to_owned(),
                namespace: o.wish.namespace.clone(),
                backup: o.wish.name.clone(),
                shared_with_clusters: target.shared_with_clusters,
            },
            labels: self.metadata.labels.clone().unwrap_or_default(),
        }))
    }

    fn choose(status: &mut Self::Status, chosen: &Chosen, begins: Option<(&str, &AttemptId)>) {
        status::choose(status, chosen, begins);
    }

    fn hear(&self, status: &mut Self::Status, heard: &Heard, completion: Completion, now: Timestamp) {
        status::hear(status, self.spec.mode, heard, (completion, now));
    }

    fn domain(&self, standing: &Standing) -> Vec<Claim> {
        words::domain(self, standing)
    }

    fn released(&self) -> Option<Claim> {
        words::released(self)
    }

    fn brought(report: &Report) -> String {
        words::brought(report)
    }
}

/// Its slot, if status shows it as running.
pub fn running(backup: &Backup) -> Option<Entry> {
    let status = backup.status.as_ref()?;
    let (target, store) = (status.target.as_ref()?, status.store.as_ref()?);
    running_entry(backup, &target.name, volume_held(&target.name, &store.volume))
}
