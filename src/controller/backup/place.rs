//! Where a Backup reads: only host devices of the operator's namespace today, below its roots.

use crate::{
    api::{Backup, Cause, backup::BackupSource},
    controller::work::observe::{Place, PlaceSeen, Refusal, Seen, Territory},
    model::VolumeName,
};

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
            Seen::Usable(Box::new(Place { volume, device: found, record: None }))
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
