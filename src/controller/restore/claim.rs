//! What a claim is made like: by the spec, and where that says nothing as the Backup recorded it. Pure.
//!
//! Nothing is guessed: what neither says is asked for, by the field that would say it. A volume that held no file system is
//! not made one, for whoever mounts it next might format it.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::{
    api::{
        Cause,
        backup_status::ObservedSource,
        common::{VolumeMode, parse_bytes},
        restore::{ClaimToFill, OnDamage},
        restore_status::ChosenClaim,
    },
    controller::work::observe::{Record, Refusal},
};

/// The form of the claim, or which field of the spec is to say more. `named` is the Backup.
pub(super) fn form(
    claim: &ClaimToFill,
    on_damage: OnDamage,
    named: &str,
    (source, record): (Option<&ObservedSource>, &Record),
) -> Result<ChosenClaim, Refusal> {
    let refused = |message: String| Refusal::new(Cause::TargetNotSupported, message);
    let unsaid = |what: &str, field: &str| {
        refused(format!(
            "{named} does not record the {what} of its volume: set spec.persistentVolumeClaim.{field} in a new Restore"
        ))
    };
    if on_damage == OnDamage::Continue {
        let message = "spec.onDamage: Continue is served for hostDevice only, for a claim would be given a volume with holes: use Stop, or `tidemark restore --keep-going`";
        return Err(refused(message.to_owned()));
    }
    let recorded = |text: Option<&String>| text.filter(|text| !text.is_empty()).cloned();
    let class = claim.storage_class_name.clone().or(recorded(source.and_then(|s| s.storage_class_name.as_ref())));
    let was = source.and_then(|s| s.volume_mode.as_deref()).map(|word| VolumeMode::of(Some(word)));
    let volume_mode = claim.volume_mode.or(was).ok_or_else(|| unsaid("volume mode", "volumeMode"))?;
    if (volume_mode, was) == (VolumeMode::Filesystem, Some(VolumeMode::Block)) {
        return Err(refused(format!(
            "{named} is of a volume with volumeMode: Block, and what it holds need not be a file system: set spec.persistentVolumeClaim.volumeMode: Block"
        )));
    }
    let access_modes = match (claim.access_modes.as_slice(), source.map(|s| s.access_modes.as_slice())) {
        ([], None | Some([])) => return Err(unsaid("access modes", "accessModes")),
        ([], Some(recorded)) => recorded.to_vec(),
        (wanted, _) => wanted.to_vec(),
    };
    let fs_type = recorded(source.and_then(|s| s.fs_type.as_ref())).filter(|_| volume_mode == VolumeMode::Filesystem);
    Ok(ChosenClaim {
        storage_class_name: class.ok_or_else(|| unsaid("storage class", "storageClassName"))?,
        volume_mode,
        access_modes,
        size: size(claim, record.bytes, named)?,
        fs_type,
    })
}

/// As large as the volume was, or as the spec wants it if that is not smaller.
fn size(claim: &ClaimToFill, recorded: Option<i64>, named: &str) -> Result<Quantity, Refusal> {
    let field = "spec.persistentVolumeClaim.size";
    let recorded = recorded.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
    let Some(wanted) = &claim.size else {
        let unknown = || {
            let message = format!("{named} does not record the size of its volume: set {field} in a new Restore");
            Refusal::new(Cause::TargetNotSupported, message)
        };
        return recorded.map(|bytes| Quantity(bytes.to_string())).ok_or_else(unknown);
    };
    let bytes = parse_bytes(&wanted.0).ok_or_else(|| {
        let message = format!("{field}: {:?} is not a whole number of bytes: write it as 100Gi", wanted.0);
        Refusal::new(Cause::InvalidSpec, message)
    })?;
    match recorded {
        Some(needed) if bytes < needed => {
            let message = format!(
                "{field}: {} is smaller than the volume of {named}, which has {needed} bytes: write at least that in a new Restore, or leave it out",
                wanted.0
            );
            Err(Refusal::new(Cause::TargetNotSupported, message))
        }
        Some(_) | None => Ok(wanted.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::AttemptId;

    fn formed(claim: Value, source: Value, bytes: Option<i64>) -> Result<ChosenClaim, (Cause, String)> {
        let mut named = json!({"name": "pg"});
        named.as_object_mut().expect("an object").extend(claim.as_object().cloned().expect("an object"));
        let claim: ClaimToFill = serde_json::from_value(named).expect("valid");
        let source: ObservedSource = serde_json::from_value(source).expect("valid");
        let backup = crate::model::BackupName::of_marker(&AttemptId::new(1, [0; 10]));
        let record = Record { name: "b".into(), uid: "u".into(), backup, url: None, snapshot_time: None, bytes };
        form(&claim, OnDamage::Stop, "Backup shop/b", (Some(&source), &record)).map_err(|refusal| {
            let cause = Cause::ALL.iter().find(|c| c.as_str() == refusal.reason.as_str());
            (*cause.expect("a cause"), refusal.message)
        })
    }

    #[test]
    fn law_5_what_neither_spec_nor_backup_says_is_asked_for_by_its_field() {
        let full = || json!({"storageClassName": "fast", "volumeMode": "Filesystem", "accessModes": ["ReadWriteOnce"], "fsType": "xfs"});
        let taken = formed(json!({}), full(), Some(7)).expect("as recorded");
        assert_eq!((taken.storage_class_name.as_str(), taken.size.0.as_str()), ("fast", "7"));
        assert_eq!((taken.volume_mode, taken.fs_type.as_deref()), (VolumeMode::Filesystem, Some("xfs")));
        let other = json!({"storageClassName": "slow", "volumeMode": "Block", "size": "1Ki"});
        let taken = formed(other, full(), Some(7)).expect("as wanted");
        assert_eq!((taken.storage_class_name.as_str(), taken.size.0.as_str()), ("slow", "1Ki"));
        assert_eq!((taken.volume_mode, taken.fs_type), (VolumeMode::Block, None));
        let without = |key: &str| {
            let mut source = full();
            source.as_object_mut().expect("an object").remove(key);
            source
        };
        let block = json!({"storageClassName": "fast", "volumeMode": "Block", "accessModes": ["ReadWriteOnce"]});
        for (claim, source, bytes, cure) in [
            (json!({}), without("storageClassName"), Some(7), "set spec.persistentVolumeClaim.storageClassName"),
            (json!({}), without("volumeMode"), Some(7), "set spec.persistentVolumeClaim.volumeMode"),
            (json!({}), without("accessModes"), Some(7), "set spec.persistentVolumeClaim.accessModes"),
            (json!({}), full(), None, "set spec.persistentVolumeClaim.size"),
            (json!({"size": "6"}), full(), Some(7), "has 7 bytes"),
            (json!({"volumeMode": "Filesystem"}), block, Some(7), "volumeMode: Block"),
        ] {
            let (cause, message) = formed(claim, source, bytes).expect_err(cure);
            assert!(cause == Cause::TargetNotSupported && message.contains(cure), "{cause}: {message}");
            assert!(message.contains("Backup shop/b"), "{message}");
        }
        assert_eq!(formed(json!({"size": "1m"}), full(), Some(7)).map_err(|e| e.0), Err(Cause::InvalidSpec));
    }
}
