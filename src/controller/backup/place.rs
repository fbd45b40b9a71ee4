//! Where a Backup reads: local workers, host devices of the operator's namespace below its roots; worker Pods, claims and
//! snapshots of the Backup's own namespace.

use std::time::Duration;

use kube::ResourceExt;
use sha2::{Digest, Sha256};

use crate::{
    api::{Backup, Cause, backup::BackupSource},
    controller::{
        snapshot,
        work::{
            observe::{Place, PlaceSeen, Refusal, Seen, Territory},
            volume::Wanted,
        },
    },
    model::VolumeName,
};

/// A snapshot is kept this long if the field does not parse.
const KEEP_SNAPSHOT: Duration = Duration::from_secs(24 * 3600);

/// The claim or snapshot of this Backup; none if it reads something else.
pub(super) fn volume(backup: &Backup, operator_namespace: &str) -> Option<Wanted> {
    let (source, status) = (&backup.spec.source, backup.status.as_ref());
    let source = match (&source.persistent_volume_claim, &source.volume_snapshot) {
        (Some(claim), _) => snapshot::Source::Claim {
            name: claim.name.clone(),
            class: claim.volume_snapshot_class_name.clone().filter(|class| !class.is_empty()),
        },
        (None, Some(given)) => snapshot::Source::Snapshot { name: given.name.clone() },
        (None, None) => return None,
    };
    let keep = backup.spec.deadlines.keep_snapshot.parse("spec.deadlines.keepSnapshot").unwrap_or(KEEP_SNAPSHOT);
    Some(Wanted {
        wish: snapshot::Wish {
            owner: backup.uid().unwrap_or_default(),
            namespace: backup.namespace().unwrap_or_default(),
            source,
            operator_namespace: operator_namespace.to_owned(),
            taken: status.and_then(|s| s.snapshot.as_ref()?.uid.clone()),
        },
        volume: status.and_then(|s| s.store.as_ref()?.volume.parse().ok()),
        keep,
    })
}

/// The record's name for a point in time: never a name that Longhorn could find in a volume of its own.
pub(super) fn point_in_time(handle: &str) -> String {
    format!("tidemark-{}", hex::encode(&Sha256::digest(handle)[..8]))
}

pub(super) fn no_host_device() -> PlaceSeen {
    let message = "spec.source.hostDevice is read by local workers only, and this operator runs workers as Pods: use persistentVolumeClaim or volumeSnapshot, or an operator with --workers=process";
    Seen::Refused(Refusal::new(Cause::HostDeviceNotSupported, message))
}

/// Resolves the source by its words alone.
pub fn place(backup: &Backup, territory: &Territory<'_>) -> PlaceSeen {
    let source = &backup.spec.source;
    let Some(device) = &source.host_device else { return Seen::Refused(unsupported(source)) };
    let namespace = backup.metadata.namespace.as_deref().unwrap_or_default();
    let found = territory.host_device(namespace, "spec.source.hostDevice", &device.path.0, &device.node_name);
    match found {
        Err(refusal) => Seen::Refused(refusal),
        Ok(found) => {
            // The volume is the one chosen first, whatever the source would be called today.
            let chosen = backup.status.as_ref().and_then(|s| s.store.as_ref()?.volume.parse().ok());
            let volume = chosen.unwrap_or_else(|| VolumeName::of_host_device(&found.node, &device.name));
            Seen::Usable(Box::new(Place {
                volume,
                device: found,
                record: None,
                facts: None,
                exposed: None,
                filled: None,
            }))
        }
    }
}

fn unsupported(source: &BackupSource) -> Refusal {
    let field = if source.persistent_volume_claim.is_some() {
        "persistentVolumeClaim"
    } else if source.volume_snapshot.is_some() {
        "volumeSnapshot"
    } else {
        "existing"
    };
    let message = format!(
        "spec.source.{field} is not served by this version, which runs workers as local processes: use spec.source.hostDevice in the operator's namespace"
    );
    Refusal::new(Cause::SourceNotSupported, message)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    fn backup(source: serde_json::Value) -> Backup {
        let backup = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Backup",
            "metadata": {"name": "b", "namespace": "tidemark"}, "spec": {"source": source}});
        serde_json::from_value(backup).expect("valid")
    }

    #[test]
    fn a_source_is_a_host_device_or_refused_honestly() {
        let roots = [PathBuf::from("/srv")];
        let territory = Territory { namespace: "tidemark", roots: &roots };
        let device = json!({"hostDevice": {"path": "/srv/a", "nodeName": "n1", "name": "pg"}});
        let Seen::Usable(seen) = place(&backup(device), &territory) else { panic!("it is allowed") };
        assert_eq!(seen.volume, VolumeName::of_host_device("n1", "pg"));
        for (source, cure) in [
            (json!({"persistentVolumeClaim": {"name": "pg"}}), "use spec.source.hostDevice"),
            (json!({"volumeSnapshot": {"name": "s"}}), "spec.source.volumeSnapshot is not served"),
        ] {
            let Seen::Refused(refusal) = place(&backup(source), &territory) else { panic!("not built") };
            assert_eq!(refusal.reason, Cause::SourceNotSupported.into());
            assert!(refusal.message.contains(cure), "{}", refusal.message);
        }
    }
}
