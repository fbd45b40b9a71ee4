//! What a Restore reads and where it writes: a completed Backup of its own namespace, and a host device of the
//! operator's namespace below its roots, or a new claim of the Restore's namespace. Pure, but for one look into the cache of Backups.

use std::sync::Arc;

use kube::{ResourceExt, runtime::reflector::ObjectRef};

use super::claim;
use crate::{
    api::{Backup, BackupState, Cause, Restore},
    controller::{
        claim::objects::populating_name,
        context::Context,
        work::{
            filling::{Filled, Target, Wanted, device},
            observe::{Place, PlaceSeen, Record, Refusal, Seen, Territory},
        },
    },
    model::{BackupName, VolumeName},
};

/// The Backup of that name in the Restore's own namespace: no other is ever looked up.
pub(super) fn named_backup(restore: &Restore, context: &Context) -> Option<Arc<Backup>> {
    let name = &restore.spec.backup_ref.name;
    context.backups.get(&ObjectRef::new(name).within(&restore.namespace().unwrap_or_default()))
}

/// It is not there, or not yet what can be restored.
pub(super) fn missing(restore: &Restore) -> Refusal {
    let (name, namespace) = (&restore.spec.backup_ref.name, restore.namespace().unwrap_or_default());
    let message = format!(
        "Backup {namespace}/{name} does not exist, or did not choose a target yet: a Restore reads only Backups of its own namespace"
    );
    Refusal::new(Cause::WaitingForBackup, message)
}

/// An operator whose workers are Pods has no devices of nodes: a Pod would need a hostPath.
pub(super) fn no_host_device() -> PlaceSeen {
    let message = "spec.hostDevice is written by local workers only, and this operator runs workers as Pods: use persistentVolumeClaim, `tidemark restore` where the device is, or an operator with --workers=process";
    Seen::Refused(Refusal::new(Cause::HostDeviceNotSupported, message))
}

/// Resolves both by their words alone.
pub fn place(restore: &Restore, backup: Option<&Backup>, territory: &Territory<'_>) -> PlaceSeen {
    let Some(device) = &restore.spec.host_device else {
        let message = "spec.persistentVolumeClaim is filled by worker Pods only, and this operator runs workers as local processes: use spec.hostDevice in the operator's namespace, or an operator with --workers=job";
        return Seen::Refused(Refusal::new(Cause::TargetNotSupported, message));
    };
    let namespace = restore.namespace().unwrap_or_default();
    let device = match territory.host_device(&namespace, "spec.hostDevice", &device.path.0, &device.node_name) {
        Ok(device) => device,
        Err(refusal) => return Seen::Refused(refusal),
    };
    match record(restore, backup) {
        Ok((volume, record)) => Seen::Usable(Box::new(Place {
            volume,
            device,
            record: Some(record),
            facts: None,
            exposed: None,
            filled: None,
        })),
        Err(seen) => seen,
    }
}

/// The claim of this Restore; none if it fills something else. What was chosen once stays, whatever the Backup says later.
pub fn filling(restore: &Restore, backup: Option<&Backup>) -> Option<Wanted> {
    let claim = restore.spec.persistent_volume_claim.as_ref()?;
    let status = restore.status.as_ref();
    let chosen = status.and_then(|s| s.volume.as_ref()?.claim.clone());
    let namespace = restore.namespace().unwrap_or_default();
    let target = Target {
        namespace: namespace.clone(),
        name: claim.name.clone(),
        labels: claim.labels.clone(),
        populates: populates(restore),
    };
    let named = format!("Backup {namespace}/{}", restore.spec.backup_ref.name);
    let place = match record(restore, backup) {
        Err(seen) => seen,
        Ok((volume, record)) => {
            let source = backup.and_then(|b| b.status.as_ref()?.source.as_ref());
            let formed = chosen
                .clone()
                .map_or_else(|| claim::form(claim, restore.spec.on_damage, &named, (source, &record)), Ok);
            match formed {
                Err(refusal) => Seen::Refused(refusal),
                Ok(form) => Seen::Usable(Box::new(Place {
                    volume,
                    device: device(),
                    record: Some(record),
                    facts: None,
                    exposed: None,
                    filled: Some(Box::new(Filled { namespace, name: claim.name.clone(), form, prime: None })),
                })),
            }
        }
    };
    Some(Wanted { place, owner: restore.uid().unwrap_or_default(), claim: target, form: chosen })
}

/// The claim that owns this Restore, which was made to populate it.
fn populates(restore: &Restore) -> Option<String> {
    let owners = restore.owner_references().iter().filter(|owner| owner.kind == "PersistentVolumeClaim");
    owners.map(|owner| owner.uid.clone()).find(|uid| restore.name_any() == populating_name(uid))
}

/// What the Backup's status says of its record. A Backup that is going, or another of the same name, is refused: its
/// data may be gone, and whose it is nobody has proven.
fn record(restore: &Restore, backup: Option<&Backup>) -> Result<(VolumeName, Record), PlaceSeen> {
    let chosen = restore.status.as_ref().and_then(|s| s.backup.as_ref());
    let named = format!("Backup {}/{}", restore.namespace().unwrap_or_default(), restore.spec.backup_ref.name);
    let refused = |cause, message: String| Err(Seen::Refused(Refusal::new(cause, message)));
    let waiting = |message: String| Err(Seen::Waiting(Refusal::new(Cause::WaitingForBackup, message)));
    let Some(backup) = backup else {
        return match chosen {
            Some(_) => refused(
                Cause::BackupDeleted,
                format!(
                    "{named}, with which this Restore began, was deleted: import its record as a new Backup, and create a new Restore"
                ),
            ),
            None => waiting(format!(
                "{named} does not exist: create it, or name another in a new Restore; Backups of other namespaces are never read"
            )),
        };
    };
    let uid = backup.uid().unwrap_or_default();
    if chosen.is_some_and(|chosen| chosen.uid != uid) {
        let message = format!(
            "{named} is not the one this Restore began with, but another of the same name: create a new Restore"
        );
        return refused(Cause::BackupDeleted, message);
    }
    if backup.metadata.deletion_timestamp.is_some() {
        return refused(Cause::BackupDeleted, format!("{named} is being deleted: name another in a new Restore"));
    }
    let status = backup.status.as_ref();
    match status.and_then(|s| s.state) {
        Some(BackupState::Completed) => {}
        Some(BackupState::Cancelled) => {
            let message = format!("{named} was cancelled and has nothing to restore: name another in a new Restore");
            return refused(Cause::BackupNotCompleted, message);
        }
        Some(BackupState::Deleting) => {
            return refused(Cause::BackupDeleted, format!("{named} is being deleted: name another in a new Restore"));
        }
        state @ (Some(
            BackupState::Pending
            | BackupState::Snapshotting
            | BackupState::InProgress
            | BackupState::Committing
            | BackupState::Error,
        )
        | None) => {
            let state = state.map_or("not looked at yet".to_owned(), |s| format!("{s:?}"));
            return waiting(format!("{named} is not Completed but {state}: the restore begins when it is"));
        }
    }
    let found = status.and_then(|status| {
        let store = status.store.as_ref()?;
        let (volume, backup): (VolumeName, BackupName) =
            (store.volume.parse().ok()?, store.backup.as_ref()?.parse().ok()?);
        let snapshot = status.snapshot.as_ref().and_then(|s| s.creation_time.clone());
        let record = Record {
            name: restore.spec.backup_ref.name.clone(),
            uid,
            backup,
            url: store.url.clone(),
            // A host device is read as it is: its point in time is when work on it began.
            snapshot_time: snapshot.or_else(|| status.start_time.clone()),
            bytes: status.source.as_ref().and_then(|s| s.bytes),
        };
        Some((volume, record))
    });
    found.ok_or_else(|| {
        let message = format!("{named} is Completed but its status names no record: create a new Backup");
        Seen::Refused(Refusal::new(Cause::BackupNotCompleted, message))
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::{Value, json};

    use super::*;

    fn restore(namespace: &str, target: Value, status: Value) -> Restore {
        let mut spec = json!({"backupRef": {"name": "b"}});
        spec.as_object_mut().expect("an object").extend(target.as_object().cloned().expect("an object"));
        let restore = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Restore",
            "metadata": {"name": "r", "namespace": namespace}, "spec": spec, "status": status});
        serde_json::from_value(restore).expect("valid")
    }

    fn device() -> Value {
        json!({"hostDevice": {"path": "/srv/a.img", "nodeName": "n1"}})
    }

    fn backup(uid: &str, status: Value) -> Backup {
        let backup = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Backup",
            "metadata": {"name": "b", "namespace": "tidemark", "uid": uid},
            "spec": {"source": {"persistentVolumeClaim": {"name": "pg"}}}, "status": status});
        serde_json::from_value(backup).expect("valid")
    }

    fn completed() -> Value {
        json!({"observedGeneration": 1, "state": "Completed", "source": {"bytes": 7},
            "store": {"volume": "host-0", "backup": "backup-1", "url": "s3://b@r/?backup=backup-1&volume=host-0"}})
    }

    fn seen(restore: &Restore, backup: Option<&Backup>) -> PlaceSeen {
        let roots = [PathBuf::from("/srv")];
        place(restore, backup, &Territory { namespace: "tidemark", roots: &roots })
    }

    fn refusal(seen: PlaceSeen) -> (bool, &'static str, String) {
        match seen {
            Seen::Waiting(r) => (true, r.reason.as_str(), r.message),
            Seen::Refused(r) => (false, r.reason.as_str(), r.message),
            Seen::Usable(place) => panic!("{place:?} is not to be used"),
        }
    }

    #[test]
    fn law_11_a_restore_reads_what_the_status_of_a_completed_backup_of_its_namespace_says() {
        let new = || restore("tidemark", device(), json!({"observedGeneration": -1}));
        let Seen::Usable(usable) = seen(&new(), Some(&backup("u1", completed()))) else { panic!("it may") };
        let record = usable.record.expect("a record");
        assert_eq!((record.backup.as_str(), usable.volume.as_str(), record.bytes), ("backup-1", "host-0", Some(7)));

        let began = json!({"observedGeneration": 1,
            "backup": {"name": "b", "uid": "u1", "volume": "host-0", "backup": "backup-1"}});
        let began = || restore("tidemark", device(), began.clone());
        let state = |state: &str| backup("u1", json!({"observedGeneration": 1, "state": state}));
        let mut going = backup("u1", completed());
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        let claim = json!({"persistentVolumeClaim": {"name": "pg"}});
        for (restore, backup, expected, cure) in [
            (new(), None, (true, "WaitingForBackup"), "Backups of other namespaces are never read"),
            (new(), Some(state("InProgress")), (true, "WaitingForBackup"), "not Completed but InProgress"),
            (new(), Some(state("Error")), (true, "WaitingForBackup"), "not Completed but Error"),
            (new(), Some(state("Cancelled")), (false, "BackupNotCompleted"), "name another"),
            (new(), Some(state("Completed")), (false, "BackupNotCompleted"), "names no record"),
            (new(), Some(going), (false, "BackupDeleted"), "is being deleted"),
            (began(), None, (false, "BackupDeleted"), "was deleted"),
            (began(), Some(backup("u2", completed())), (false, "BackupDeleted"), "another of the same name"),
            (
                restore("shop", device(), json!({"observedGeneration": -1})),
                Some(backup("u1", completed())),
                (false, "HostDeviceNotAllowed"),
                "only in the operator's own namespace tidemark",
            ),
            (
                restore("tidemark", claim, json!({"observedGeneration": -1})),
                Some(backup("u1", completed())),
                (false, "TargetNotSupported"),
                "use spec.hostDevice",
            ),
        ] {
            let (waits, reason, message) = refusal(seen(&restore, backup.as_ref()));
            assert_eq!((waits, reason), expected, "{message}");
            assert!(message.contains(cure), "{message}");
        }
    }
}
