//! What is done until a worker can write: `prepare(&Wish, &Observed, &ExposureSettings) -> Decision`, pure and total.
//!
//! ```text
//!  everything that can be refused → what an earlier attempt left goes → claim → bound, or waiting for the worker
//! ```
//!
//! What waiting cannot cure is refused before anything is made. Waiting has no end here: whoever asks has a deadline.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;

use super::{
    Step, Wish,
    objects::{self, is_going, is_its, is_ours},
    observe::Observed,
    prime_name,
    remove::{Removal, remove},
};
use crate::{
    api::{
        Cause,
        common::{AccessMode, VolumeMode},
    },
    controller::snapshot::{
        Refusal,
        drivers::{ExposureSettings, Filesystem},
    },
    model::FailureReason,
};

#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    pub step: Step,
    pub standing: Standing,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    Making(String),
    /// This claim is there, and a worker may be started on it.
    Ready(String),
    Refused(Refusal),
}

/// What is to be done now.
pub fn prepare(wish: &Wish, o: &Observed, settings: &ExposureSettings) -> Decision {
    let refused = |refusal| Decision { step: Step::Nothing, standing: Standing::Refused(refusal) };
    match refusal(wish, o, settings) {
        Some(refusal) => refused(refusal),
        None => making(wish, o).unwrap_or_else(refused),
    }
}

/// Why it cannot be, before anything is made.
pub fn refusal(wish: &Wish, o: &Observed, settings: &ExposureSettings) -> Option<Refusal> {
    let name = format!("PersistentVolumeClaim {}/{}", wish.namespace, wish.name);
    let form = &wish.form;
    let is_bound = |c: &PersistentVolumeClaim| c.spec.as_ref().is_some_and(|s| s.volume_name.is_some());
    let its = o.claim.as_ref().filter(|c| wish.populates.is_some() && is_its(c, wish) && !is_bound(c));
    if its.is_none() && wish.populates.is_some() {
        let message = format!("{name}, which was to be populated, is gone or has a volume already");
        return Some(Refusal::new(FailureReason::TargetRefused, message));
    }
    if its.is_none() && o.claim.is_some() {
        let message = format!(
            "{name} exists, and a Restore fills only a claim that it makes: delete it, or name another in a new Restore"
        );
        return Some(Refusal::new(FailureReason::TargetRefused, message));
    }
    if let Some(answer) = &o.refusal {
        let message = format!("{name} cannot be made: {answer}");
        return Some(Refusal::new(FailureReason::TargetRefused, message));
    }
    let unsupported = |message: String| Some(Refusal::new(Cause::TargetNotSupported, message));
    let named = "spec.persistentVolumeClaim.storageClassName";
    let Some(class) = &o.class else {
        return unsupported(format!(
            "StorageClass {} does not exist: create it, or name another in {named} of a new Restore",
            form.storage_class_name
        ));
    };
    let class_name = class.name_any();
    let parameters = class.parameters.iter().flatten();
    if let Some((key, _)) = parameters.into_iter().find(|(_, value)| value.contains("${pvc.")) {
        return unsupported(format!(
            "StorageClass {class_name} finds what {key} names by the claim, and the volume is made for a claim in namespace {}: name a class without ${{pvc.…}} in {named}",
            wish.operator_namespace
        ));
    }
    if form.volume_mode == VolumeMode::Block {
        return None;
    }
    let driver = &class.provisioner;
    if settings.filesystem(driver) == Filesystem::Directory {
        return unsupported(format!(
            "StorageClass {class_name}: filesystem volumes of driver {driver} are no block devices, so blocks cannot be written to them: set spec.persistentVolumeClaim.volumeMode: Block, or name another class in {named}"
        ));
    }
    let is_shared = |mode: &&AccessMode| **mode == AccessMode::ReadWriteMany;
    form.access_modes.iter().find(is_shared).and_then(|_| {
        unsupported(format!(
            "{name}: a file system on a block device is written by one node at a time: set spec.persistentVolumeClaim.accessModes to [ReadWriteOnce]"
        ))
    })
}

fn making(wish: &Wish, o: &Observed) -> Result<Decision, Refusal> {
    let name = format!("PersistentVolumeClaim {}/{}", wish.operator_namespace, prime_name(&wish.owner));
    let made = |step, text: String| Ok(Decision { step, standing: Standing::Making(text) });
    let lost = |seen: &str| Err(Refusal::new(FailureReason::TargetRefused, format!("{name} {seen}")));
    let is_fresh = o.made.is_none() && o.prime.as_ref().is_none_or(|c| !is_going(&c.metadata));
    if !is_fresh || (o.prime.is_none() && !o.written.is_empty()) {
        // Half of it was handed over, or removed: nobody knows what it holds.
        let text = "What an earlier attempt left is being removed".to_owned();
        return match remove(o, &wish.owner) {
            Removal::Step(step) => made(step, text),
            Removal::Waiting(_) | Removal::Done => made(Step::Nothing, text),
        };
    }
    let Some(prime) = &o.prime else {
        return made(
            Step::CreatePrime(Box::new(objects::prime(wish, o.claim.as_ref()))),
            "The volume is asked for".to_owned(),
        );
    };
    if !is_ours(&prime.metadata, &wish.owner) {
        return lost("is there and is not ours: delete it, the name is reserved");
    }
    let ready = || Decision { step: Step::Nothing, standing: Standing::Ready(prime.name_any()) };
    let waits = o.class.as_ref().and_then(|c| c.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer");
    match prime.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending") {
        "Bound" => match o.written.first().map(|volume| volume.spec.as_ref().and_then(|s| s.csi.as_ref()).is_some()) {
            Some(true) => Ok(ready()),
            Some(false) => lost("is bound to a volume that is not of CSI: name another storage class"),
            None => made(Step::Nothing, format!("{name} is Bound to a volume that is not there (yet)")),
        },
        "Lost" => lost("has lost its volume: set a new spec.retryRequest"),
        // Such a claim is bound when the worker's Pod is scheduled.
        _ if waits => Ok(ready()),
        phase => made(
            Step::Nothing,
            format!("{name} is {phase}: its driver makes a volume of {}; its Events say more", wish.form.size.0),
        ),
    }
}
