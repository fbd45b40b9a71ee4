//! Looking up one record in a bucket, for a Backup that imports it: what it says of itself, in the controller's words.

use std::sync::Arc;

use jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;

use super::{
    errands::{Desk, ErrandKind, or_if_it_panics},
    resolve::Resolved,
};
use crate::{
    api::Backup,
    controller::context::Context,
    model::{BackupName, FailureReason, StoreLocation, VolumeName, limits},
    store::{
        client::Client,
        credentials::CredentialSource,
        error::{ErrorKind, StoreError},
        layout::VolumeLayout,
        record::{RecordHead, label},
        survey::read_head,
        tombstone::Tombstones,
        verify::FindingKind,
    },
};

/// What a look-up found.
#[derive(Debug, Clone, PartialEq)]
pub enum Looked {
    Found(Box<StoredRecord>),
    /// The store said that there is no such record.
    Missing,
    /// It is a marker, or a record that Longhorn is still making.
    InProgress,
    Failed(Problem),
}

/// Why the store could not be asked, or did not answer as it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub reason: FailureReason,
    pub message: String,
    pub object: Option<String>,
}

/// What a record says of itself.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StoredRecord {
    pub volume: String,
    pub backup: String,
    /// Who made it; empty: Longhorn.
    pub cluster: String,
    pub namespace: String,
    pub snapshot: String,
    pub snapshot_time: Option<Timestamp>,
    pub completion_time: Option<Timestamp>,
    pub volume_bytes: Option<u64>,
    pub block_size: Option<u64>,
    pub compression: Option<String>,
}

impl StoredRecord {
    fn of(volume: &VolumeName, backup: &BackupName, head: &RecordHead) -> Self {
        let text = |key: &str| head.label(key).unwrap_or_default().to_owned();
        Self {
            volume: volume.to_string(),
            backup: backup.to_string(),
            cluster: text(label::CLUSTER),
            namespace: text(label::NAMESPACE),
            snapshot: head.snapshot_name.clone(),
            snapshot_time: head.snapshot_created_at.parse().ok(),
            completion_time: head.created_time.parse().ok(),
            volume_bytes: head.volume_bytes(),
            block_size: head.block_size().ok().map(|size| size.bytes()),
            compression: head.compression().ok().map(|method| method.as_str().to_owned()),
        }
    }
}

impl Problem {
    pub fn of(error: &StoreError) -> Self {
        Self { reason: error.reason(), message: error.to_string(), object: Some(error.key.clone()) }
    }

    pub fn bug(what: &str) -> Self {
        let message = format!("{what} ended badly; the operator's log says where");
        Self { reason: FailureReason::Bug, message, object: None }
    }
}

/// The record that a Backup names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub volume: VolumeName,
    pub backup: BackupName,
}

/// Orders a look-up unless one is under way.
pub fn order(context: &Context, backup: &Backup, uid: &str, target: &Resolved, wanted: Wanted) {
    if !context.lookups.begin(uid) {
        return;
    }
    let errand = LookUp {
        desk: context.lookups.clone(),
        uid: uid.to_owned(),
        poke: context.backups.waker(),
        backup: ObjectRef::from_obj(backup),
        location: target.location(),
        credentials: CredentialSource::Given(target.credentials.clone()),
        wanted,
    };
    context.errands.order(ErrandKind::LookUp, String::new(), errand.run());
}

struct LookUp {
    desk: Arc<Desk<Looked>>,
    uid: String,
    poke: mpsc::Sender<ObjectRef<Backup>>,
    backup: ObjectRef<Backup>,
    location: StoreLocation,
    credentials: CredentialSource,
    wanted: Wanted,
}

impl LookUp {
    async fn run(self) {
        let Self { desk, uid, poke, backup, location, credentials, wanted } = self;
        let looking = look(&location, credentials, &wanted);
        let looked = or_if_it_panics(looking, || Looked::Failed(Problem::bug("Looking up the record"))).await;
        desk.end(&uid, looked);
        // A full channel loses the hint only: the Backup looks again by itself.
        drop(poke.try_send(backup));
    }
}

async fn look(location: &StoreLocation, credentials: CredentialSource, wanted: &Wanted) -> Looked {
    match crate::store::open(location, credentials) {
        Ok(objects) => read(&Client::new(objects, limits::LOOKUP_DEADLINE / 2, limits::LOOKUP_DEADLINE), wanted).await,
        Err(error) => Looked::Failed(Problem::of(&error)),
    }
}

/// Looks a record up.
pub async fn read(client: &Client, wanted: &Wanted) -> Looked {
    match read_own_head(client, wanted).await {
        Ok(None) => Looked::Missing,
        Ok(Some(head)) if head.is_in_progress() => Looked::InProgress,
        Ok(Some(head)) => Looked::Found(Box::new(StoredRecord::of(&wanted.volume, &wanted.backup, &head))),
        Err(error) => {
            let mut problem = Problem::of(&error);
            if error.kind == ErrorKind::Damaged {
                problem.message = format!("{}. Cure: {}", problem.message, FindingKind::RecordUnreadable.cure());
            }
            Looked::Failed(problem)
        }
    }
}

/// The head, which must be that of this volume: a record copied to another volume's folder is nobody's.
async fn read_own_head(client: &Client, wanted: &Wanted) -> Result<Option<RecordHead>, StoreError> {
    let layout = VolumeLayout::new(&wanted.volume);
    let key = layout.backup(&wanted.backup);
    let Some(head) = read_head(client, &key).await? else { return Ok(None) };
    if head.volume_name != wanted.volume.as_str() {
        let seen = format!("it says that it belongs to volume {:?}", head.volume_name);
        return Err(StoreError::new(ErrorKind::Damaged, "GET", key, seen));
    }
    // A record of a deleted Backup that arrived late is as good as gone.
    let tombstones = Tombstones::read(client, &layout).await?;
    Ok(Some(head).filter(|head| !tombstones.covers(head)))
}
