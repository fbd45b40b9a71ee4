//! Verifying a record before it is imported: read whole, as a stream, and beside a listing of the volume, so that Completed
//! means restorable for an import too (law 4). No block is read; `tidemark verify` does that.
//!
//! It is an errand of the operator and no worker's job: an import has no attempt, and a stream beside a table in scratch is
//! what a removal of data does in the same place. One LIST of the volume and a GET for each 4 MiB of the record.

use std::sync::Arc;

use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;

use super::{
    errands::{Desk, ErrandKind, or_if_it_panics},
    lookup::{self, Looked, Problem, StoredRecord, Wanted},
    resolve::Resolved,
};
use crate::{
    api::Backup,
    controller::context::Context,
    model::{FailureReason, StoreLocation, limits},
    store::{
        client::Client,
        credentials::CredentialSource,
        scratch::Scratch,
        verify::{self, Depth, Finding, FindingKind, Order, Severity, Verified},
    },
};

/// What a verification of one record showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Soundness {
    /// It was read whole, is consistent, and all its blocks are listed with sizes that can be.
    Sound { blocks: u64 },
    /// It is not the record that was looked up any more, or is gone.
    Changed,
    /// It is damaged, or the store gave out, which proves nothing.
    Failed(Problem),
}

/// Orders the verification of a record that was looked up, unless one is under way.
pub fn order(context: &Context, backup: &Backup, uid: &str, target: &Resolved, (wanted, seen): (Wanted, StoredRecord)) {
    if !context.soundness.begin(uid) {
        return;
    }
    let errand = Errand {
        desk: context.soundness.clone(),
        uid: uid.to_owned(),
        poke: context.backups.waker(),
        backup: ObjectRef::from_obj(backup),
        location: target.location(),
        credentials: CredentialSource::Given(target.credentials.clone()),
        scratch: Scratch::new(&context.scratch_dir),
        wanted,
        seen,
    };
    context.errands.order(ErrandKind::Verify, String::new(), errand.run());
}

struct Errand {
    desk: Arc<Desk<Soundness>>,
    uid: String,
    poke: mpsc::Sender<ObjectRef<Backup>>,
    backup: ObjectRef<Backup>,
    location: StoreLocation,
    credentials: CredentialSource,
    scratch: Scratch,
    wanted: Wanted,
    /// What was looked up, and judged to be this namespace's.
    seen: StoredRecord,
}

impl Errand {
    async fn run(self) {
        let (desk, uid, poke, backup) = (self.desk.clone(), self.uid.clone(), self.poke.clone(), self.backup.clone());
        let shown = or_if_it_panics(self.carry_out(), || Soundness::Failed(Problem::bug("Verifying the record"))).await;
        tracing::info!(%backup, ?shown, "Record was verified for an import");
        desk.end(&uid, shown);
        // A full channel loses the hint only: the Backup looks again by itself.
        drop(poke.try_send(backup));
    }

    async fn carry_out(self) -> Soundness {
        match crate::store::open(&self.location, self.credentials) {
            Ok(objects) => {
                let client = Client::new(objects, limits::STALL_DEFAULT, limits::IMPORT_DEADLINE);
                verify(&client, &self.scratch, &self.wanted, &self.seen).await
            }
            Err(error) => Soundness::Failed(Problem::of(&error)),
        }
    }
}

/// Verifies the record that was looked up as `seen`.
pub async fn verify(client: &Client, scratch: &Scratch, wanted: &Wanted, seen: &StoredRecord) -> Soundness {
    let order = Order {
        volume: wanted.volume.clone(),
        backup: Some(wanted.backup.clone()),
        depth: Depth::Listing,
        concurrency: limits::CONCURRENCY_START,
    };
    let verified = match verify::verify(client, &order, scratch, &mut |_| {}).await {
        Ok(verified) => verified,
        Err(error) => return Soundness::Failed(Problem::of(&error)),
    };
    // Looked at last: what was judged, what was verified and what is imported are one and the same.
    match lookup::read(client, wanted).await {
        Looked::Found(now) if *now == *seen => judge(&verified),
        Looked::Found(_) | Looked::Missing | Looked::InProgress => Soundness::Changed,
        Looked::Failed(problem) => Soundness::Failed(problem),
    }
}

/// What stands in the way of other work, such as a missing volume.cfg, does not make a backup unrestorable.
fn judge(verified: &Verified) -> Soundness {
    let Some(first) = verified.findings.listed().find(|found| found.kind.severity() == Severity::Damage) else {
        return match verified.records {
            1 => Soundness::Sound { blocks: verified.blocks_named },
            // Deleted while it was walked, and put back before it was looked at again.
            _ => Soundness::Changed,
        };
    };
    Soundness::Failed(damage(first, verified.findings.of_severity(Severity::Damage)))
}

fn damage(first: &Finding, count: u64) -> Problem {
    use FindingKind::*;
    let reason = match first.kind {
        BlockMissing | BlockSizeImplausible | BlockCorrupt | BlockUnreadable => FailureReason::BlockDamaged,
        RecordMissing | RecordUnreadable | RecordInconsistent | VolumeConfigMissing | VolumeConfigDamaged
        | LockUnreadable | MarkerDamaged | MarkerMissing | JournalDamaged => FailureReason::RecordDamaged,
    };
    let more = if count > 1 { format!(" ({count} findings; `tidemark verify` lists them)") } else { String::new() };
    let message = format!("{first}{more}. Cure: {}", first.kind.cure());
    Problem { reason, message, object: Some(first.object.clone()) }
}
