//! Removing one backup's data, as an errand: the record and what belongs to it, then the blocks that no other record names.
//!
//! Whether it may be removed at all was decided before, but for one thing that only the bucket knows: a record that was
//! imported goes only if it says itself that this namespace of this cluster made it. It is asked here, at the last moment,
//! whatever status says. A removal that is interrupted at any point is begun again from its start.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kube::{ResourceExt, runtime::reflector::ObjectRef};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    errands::{Desk, ErrandKind, or_if_it_panics},
    lookup::Problem,
    resolve::Resolved,
};
use crate::{
    api::{Backup, BackupState},
    controller::context::Context,
    model::{AttemptId, BackupName, FailureReason, StoreLocation, VolumeName, limits},
    store::{
        client::Client,
        credentials::CredentialSource,
        error::StoreError,
        guard::Timing,
        janitor::{self, Belongings, Living, Recorded, Wanted},
        layout::VolumeLayout,
        record::label,
        remove::{Doomed, remove},
        scratch::Scratch,
        survey::read_head,
        sweep::{Sweep, SweepProgress},
    },
};

/// How a removal ended.
#[derive(Debug, Clone, PartialEq)]
pub enum RemovalEnd {
    /// The data is gone; the text says what went.
    Done(String),
    /// The record was made by somebody else: it stays.
    NotOwned,
    /// A backup or restore of the volume runs, or ended badly a moment ago: later.
    Held(String),
    Failed(Problem),
}

/// What is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doom {
    /// Everything this Backup itself made.
    Own,
    /// The record it imported, if it is this owner's.
    Imported { backup: BackupName, cluster: String, namespace: String },
}

/// One removal, ordered.
pub struct Removal {
    pub uid: String,
    pub volume: VolumeName,
    pub doom: Doom,
}

/// Orders a removal unless one is under way.
pub fn order(context: &Context, backup: &Backup, target: &Resolved, removal: Removal) {
    if !context.removals.begin(&removal.uid) {
        return;
    }
    let location = target.location();
    let exclusive = format!("{location:?} {}", removal.volume);
    let errand = Errand {
        desk: context.removals.clone(),
        poke: context.backups.waker(),
        backup: ObjectRef::from_obj(backup),
        location,
        credentials: CredentialSource::Given(target.credentials.clone()),
        lives: Lives::of(context, Some(&removal.uid)),
        scratch: Scratch::new(&context.scratch_dir),
        removal,
    };
    context.errands.order(ErrandKind::Remove, exclusive, errand.run());
}

/// What this cluster knows of the living. A younger attempt than the cache knows is protected by its age.
#[derive(Debug, Clone, Default)]
pub struct Lives {
    /// Attempts that run, or may still run.
    attempts: BTreeSet<AttemptId>,
    /// Uids of Backups that no attempt goes on with.
    dead: BTreeSet<String>,
    /// The record that a Backup was completed with, by its uid.
    own: BTreeMap<String, BackupName>,
    /// Volume and record of everything that a Backup refers to or asks for.
    referred: BTreeSet<(String, BackupName)>,
}

impl Lives {
    /// As the cache has it; `doomed` is as good as dead.
    pub fn of(context: &Context, doomed: Option<&str>) -> Self {
        let mut lives = Self::default();
        for backup in context.backups.state() {
            let backup = context.backups.freshest(backup);
            let uid = backup.uid().unwrap_or_default();
            if let Some(existing) = &backup.spec.source.existing
                && let Ok((volume, record)) = existing.parse()
            {
                lives.referred.insert((volume.to_string(), record));
            }
            let Some(status) = backup.status.as_ref() else { continue };
            if let Some(store) = &status.store
                && let Some(record) = store.backup.as_ref().and_then(|name| name.parse::<BackupName>().ok())
            {
                lives.referred.insert((store.volume.clone(), record.clone()));
                if status.state == Some(BackupState::Completed) {
                    lives.own.insert(uid.clone(), record);
                }
            }
            if doomed == Some(uid.as_str()) || !may_go_on(status.state, status.next_retry_time.is_some()) {
                lives.dead.insert(uid);
                continue;
            }
            let attempt = status.attempt.as_ref().and_then(|a| a.id.parse::<AttemptId>().ok());
            lives.attempts.extend(attempt);
        }
        lives
    }

    /// For one volume: whoever is not known to be dead may go on. Another cluster's Backups, and the command line's, are not
    /// known here at all.
    pub fn on(&self, belongings: &Belongings) -> Living {
        let folder = belongings.layout.tidemark();
        let journals =
            belongings.tidemark.iter().filter_map(|entry| entry.key.strip_prefix(&folder)?.split('/').next());
        let configs = belongings.heads.values().filter_map(|head| head.label(label::BACKUP_UID));
        let wanted = journals.chain(configs).filter(|uid| !self.dead.contains(*uid)).map(str::to_owned).collect();
        let here = |of: &&(String, BackupName)| of.0 == belongings.layout.volume();
        let referred = self.referred.iter().filter(here).map(|(_, record)| record.clone()).collect();
        let recorded = Recorded { own: self.own.clone(), referred };
        Living { attempts: self.attempts.clone(), wanted: Wanted::Only(wanted), recorded }
    }
}

fn may_go_on(state: Option<BackupState>, has_retry: bool) -> bool {
    use BackupState::*;
    match state {
        Some(Completed | Cancelled | Deleting) => false,
        Some(Error) => has_retry,
        None | Some(Pending | Snapshotting | InProgress | Committing) => true,
    }
}

struct Errand {
    desk: Arc<Desk<RemovalEnd>>,
    poke: mpsc::Sender<ObjectRef<Backup>>,
    backup: ObjectRef<Backup>,
    location: StoreLocation,
    credentials: CredentialSource,
    lives: Lives,
    scratch: Scratch,
    removal: Removal,
}

impl Errand {
    async fn run(self) {
        let (desk, poke, backup, uid) =
            (self.desk.clone(), self.poke.clone(), self.backup.clone(), self.removal.uid.clone());
        let ended = or_if_it_panics(self.carry_out(), || RemovalEnd::Failed(Problem::bug("Removing the data"))).await;
        tracing::info!(backup = %backup, outcome = ?ended, "Removal of data ended");
        desk.end(&uid, ended);
        // A full channel loses the hint only: the Backup looks again by itself.
        drop(poke.try_send(backup));
    }

    async fn carry_out(self) -> RemovalEnd {
        let held = FailureReason::LockHeld;
        match self.remove().await {
            Ok(end) => end,
            Err(error) if error.reason() == held => RemovalEnd::Held(error.to_string()),
            Err(error) => RemovalEnd::Failed(Problem::of(&error)),
        }
    }

    async fn remove(self) -> Result<RemovalEnd, StoreError> {
        let objects = crate::store::open(&self.location, self.credentials)?;
        let client = Client::new(objects, limits::STALL_DEFAULT, limits::REMOVAL_DEADLINE);
        let doomed = match &self.removal.doom {
            Doom::Own => Doomed::Backup(self.removal.uid.clone()),
            Doom::Imported { backup, cluster, namespace } => {
                let key = VolumeLayout::new(&self.removal.volume).backup(backup);
                let Some(head) = read_head(&client, &key).await? else {
                    return Ok(RemovalEnd::Done(format!("{backup} was not there any more")));
                };
                let is = |name: &str, wanted: &str| !wanted.is_empty() && head.label(name) == Some(wanted);
                match head.label(label::BACKUP_UID).filter(|uid| !uid.is_empty()) {
                    Some(uid) if is(label::CLUSTER, cluster) && is(label::NAMESPACE, namespace) => {
                        Doomed::Backup(uid.to_owned())
                    }
                    Some(_) | None => return Ok(RemovalEnd::NotOwned),
                }
            }
        };
        let belongings = janitor::look(&client, &VolumeLayout::new(&self.removal.volume)).await?;
        let (progress, _) = watch::channel(SweepProgress::default());
        let sweep = Sweep {
            client,
            volume: self.removal.volume.clone(),
            living: self.lives.on(&belongings),
            scratch: self.scratch,
            timing: Timing::default(),
            // It ends with the leader's future: what a crash leaves, the next try finishes.
            cancel: CancellationToken::new(),
        };
        let removed = remove(&sweep, &doomed, &progress).await?;
        let records = removed.records.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let (blocks, young) = (removed.swept.blocks_deleted, removed.swept.blocks_young);
        let what = if records.is_empty() { "no record".to_owned() } else { records };
        Ok(RemovalEnd::Done(match removed.not_collected {
            None if young > 0 => format!(
                "Removed from the bucket: {what} and {blocks} blocks that no other backup names; {young} more are too young and go with the next sweep"
            ),
            None => format!("Removed from the bucket: {what} and {blocks} blocks that no other backup names"),
            Some(why) => format!("Removed from the bucket: {what}; its blocks stay until the next sweep: {why}"),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::objects::{Entry, Meta};

    #[test]
    fn law_11_only_what_is_known_to_be_dead_is_cleared_early() {
        let layout = VolumeLayout::new(&"pvc-1".parse().expect("a volume name"));
        let attempt = AttemptId::new(1, [1; 10]);
        let meta = Meta { size: 1, etag: None, modified: None };
        let entry = |uid| Entry { key: layout.attempt(uid, &attempt), meta: meta.clone(), is_archived: false };
        let belongings = Belongings {
            layout: layout.clone(),
            backups: Vec::new(),
            heads: BTreeMap::new(),
            incomplete: BTreeSet::new(),
            tidemark: vec![entry("ours-dead"), entry("ours-alive"), entry("another-cluster")],
            locks: Vec::new(),
        };
        let record = BackupName::of_attempt("ours-dead", &attempt);
        let of = |volume: &str| (volume.to_owned(), record.clone());
        let lives = Lives {
            attempts: [attempt.clone()].into(),
            dead: ["ours-dead".to_owned()].into(),
            own: [("ours-dead".to_owned(), record.clone())].into(),
            referred: [of("pvc-1"), of("pvc-2")].into(),
        };
        let wanted = ["another-cluster", "ours-alive"].map(str::to_owned);
        let recorded = Recorded { own: lives.own.clone(), referred: [record].into() };
        let expected = Living { attempts: [attempt].into(), wanted: Wanted::Only(wanted.into()), recorded };
        assert_eq!(lives.on(&belongings), expected);
    }

    #[test]
    fn a_backup_goes_on_until_it_is_done_or_nobody_tries_again() {
        use BackupState::*;
        for state in [None, Some(Pending), Some(Snapshotting), Some(InProgress), Some(Committing)] {
            assert!(may_go_on(state, false), "{state:?}");
        }
        for state in [Completed, Cancelled, Deleting] {
            assert!(!may_go_on(Some(state), true), "{state:?}");
        }
        assert!(may_go_on(Some(Error), true) && !may_go_on(Some(Error), false));
    }
}
