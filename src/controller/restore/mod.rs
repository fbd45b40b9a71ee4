//! Restore: what is its own. The machine is in `work`.
//!
//! * `place`   the Backup it reads and the device it writes, resolved without touching either
//! * `claim`   what a claim to be filled is made like
//! * `words`   conditions and texts
//! * `status`  the fields of its status that are its own
//!
//! Law 11: only a Backup of the Restore's own namespace is ever looked up, and what is read is what that Backup's status
//! says, which only the operator writes. Nothing of a spec names an object of the bucket.

mod claim;
#[cfg(test)]
mod laws;
pub mod place;
pub mod status;
mod words;

use jiff::Timestamp;
use kube::ResourceExt;

use super::{
    context::Context,
    objects::Objects,
    work::{
        Kind,
        act::Parts,
        filling,
        observe::{Afterwards, Heard, Observed, PlaceSeen, Territory, Wish, Words as Spoken, wish},
        queue::{Entry, Urgency, claim_held, device_held},
        running_entry,
        standing::{Chosen, Standing, Words},
        target::Wanted,
    },
};
use crate::{
    api::{
        Backup, Claim, InvalidField, Restore, RestoreState, TargetKind,
        restore::{OnDamage, Overwrite},
    },
    metrics,
    model::{AttemptId, Report, Task, job, progress::Completion},
};

impl Kind for Restore {
    const METRIC: metrics::Kind = metrics::Kind::Restore;
    const WORDS: Words = words::WORDS;

    fn objects(context: &Context) -> &Objects<Self> {
        &context.restores
    }

    fn wish(&self) -> (Wish, Option<InvalidField>) {
        let spec = &self.spec;
        let afterwards = match spec.persistent_volume_claim {
            Some(_) => Afterwards::BindVolume,
            None => Afterwards::Nothing,
        };
        let spoken = Spoken {
            retry: &spec.retry,
            snapshot: None,
            start: &spec.deadlines.start,
            stall: &spec.deadlines.stall,
            total: &spec.deadlines.total,
            transfer: &spec.download,
            rate_field: "spec.download.maxBytesPerSecond",
            cancel: spec.cancel,
            retry_request: &spec.retry_request,
            urgency: Urgency::Restore,
        };
        let (wish, problem) = wish(&self.metadata, &spoken);
        (Wish { afterwards, ..wish }, problem)
    }

    fn place(&self, context: &Context, territory: &Territory<'_>) -> PlaceSeen {
        match context.exposure {
            None => place::place(self, place::named_backup(self, context).as_deref(), territory),
            Some(_) if self.spec.host_device.is_some() => place::no_host_device(),
            // Nothing more is asked of it: it was over when this term began.
            Some(_) => {
                let backup = place::named_backup(self, context);
                place::filling(self, backup.as_deref()).map_or_else(place::no_host_device, |wanted| wanted.place)
            }
        }
    }

    fn filling(&self, context: &Context) -> Option<filling::Wanted> {
        context.exposure.as_ref()?;
        place::filling(self, place::named_backup(self, context).as_deref())
    }

    fn bound(status: &mut Self::Status) {
        status::bound(status);
    }

    fn wanted_target(&self, context: &Context) -> Wanted {
        if let Some(chosen) = self.status.as_ref().and_then(|s| s.target.as_ref()) {
            return Wanted::Chosen { name: chosen.name.clone(), uid: chosen.uid.clone() };
        }
        let backup = place::named_backup(self, context);
        match backup.as_ref().and_then(|b| b.status.as_ref()?.target.clone()) {
            Some(chosen) => match chosen.kind {
                TargetKind::ClusterBackupTarget => Wanted::Chosen { name: chosen.name, uid: chosen.uid },
            },
            None => Wanted::Unknown(place::missing(self)),
        }
    }

    fn task(&self, _: &Observed, parts: &Parts<'_>, _: &str) -> Option<Task> {
        let place = parts.place;
        let overwrite = match (&self.spec.host_device, &place.filled) {
            // A new volume, or the one that an earlier attempt began to write. What no block covers is made zeros, for
            // nobody promised that a new volume reads as such.
            (_, Some(_)) => Overwrite::Replace,
            (device, None) => device.as_ref().map(|d| d.overwrite).unwrap_or_default(),
        };
        Some(Task::Restore(job::RestoreTask {
            backup: place.record.as_ref()?.backup.clone(),
            device: job::Device {
                path: place.device.path.clone(),
                root: place.device.root.clone(),
                overwrite: match overwrite {
                    Overwrite::Refuse => job::Overwrite::Refuse,
                    Overwrite::Replace => job::Overwrite::Replace,
                },
            },
            on_damage: match self.spec.on_damage {
                OnDamage::Stop => job::OnDamage::Stop,
                OnDamage::Continue => job::OnDamage::Continue,
            },
        }))
    }

    fn choose(status: &mut Self::Status, chosen: &Chosen, begins: Option<(&str, &AttemptId)>) {
        status::choose(status, chosen, begins);
    }

    fn hear(&self, status: &mut Self::Status, heard: &Heard, completion: Completion, now: Timestamp) {
        status::hear(status, heard, completion, now);
    }

    fn domain(&self, standing: &Standing) -> Vec<Claim> {
        words::domain(self, standing)
    }

    fn brought(report: &Report) -> String {
        words::brought(report)
    }
}

/// Its slot, if status shows it as running.
pub fn running(restore: &Restore) -> Option<Entry> {
    let status = restore.status.as_ref()?;
    let (target, volume) = (status.target.as_ref()?, status.volume.as_ref()?);
    if let Some(claim) = &restore.spec.persistent_volume_claim {
        let held = claim_held(&restore.namespace()?, &claim.name);
        return running_entry(restore, &target.name, held);
    }
    let path = volume.path.as_ref()?;
    let node = status.attempt.as_ref()?.node_name.as_deref().unwrap_or_default();
    running_entry(restore, &target.name, device_held(node, path))
}

/// Names of the live Restores of this Backup: whoever wants to remove its data asks this first, and waits.
///
/// One is live from its creation until it is Completed, Cancelled, or in an Error that no retry will leave by itself.
pub fn live_restores(backup: &Backup, restores: &[std::sync::Arc<Restore>]) -> Vec<String> {
    let reads = |restore: &Restore| {
        let is_named = restore.namespace() == backup.namespace() && restore.spec.backup_ref.name == backup.name_any();
        // One that chose another object of that name reads that one's data.
        let chosen = restore.status.as_ref().and_then(|s| s.backup.as_ref());
        is_named && chosen.is_none_or(|chosen| Some(&chosen.uid) == backup.metadata.uid.as_ref())
    };
    restores.iter().filter(|r| reads(r) && is_live(r)).map(|r| r.name_any()).collect()
}

fn is_live(restore: &Restore) -> bool {
    let Some(status) = &restore.status else { return true };
    let is_asked = !restore.spec.retry_request.is_empty()
        && status.observed_retry_request.as_deref() != Some(restore.spec.retry_request.as_str());
    match status.state {
        Some(RestoreState::Completed | RestoreState::Cancelled) => false,
        Some(RestoreState::Error) => status.next_retry_time.is_some() || is_asked,
        Some(RestoreState::Pending | RestoreState::Preparing | RestoreState::InProgress | RestoreState::Flushing)
        | None => true,
    }
}
