//! Discovery: records of this cluster that have no Backup object get one, in the namespace they came from.
//!
//! Each record is given an object once. Which ones were, or had their own, stands in a ConfigMap beside the operator: a
//! Backup that a user deletes with `Retain` leaves its record in the bucket and does not come back. Whoever wants it back
//! creates it with `source.existing`, or deletes the ConfigMap to have everything discovered anew. A record whose
//! namespace is missing, on its way out or not allowed is not remembered: it is discovered when that changes.
//!
//! Order: the object first, then the ConfigMap. A crash between them finds the object there, for its name is a function of
//! target, volume and backup.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Write as _,
};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, PostParams},
    runtime::events::{Event, EventType, Recorder},
};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{
    api::{Backup, ClusterBackupTarget},
    controller::{
        context::{ApiError, Context, bounded},
        error_chain,
    },
    model::{VolumeName, limits},
    store::{
        catalogue::{Known, RecordState},
        record::RecordId,
        tombstone::Tombstones,
    },
};

/// On a discovered Backup: the target whose bucket it was found in.
pub const DISCOVERED: &str = "tidemark.dev/discovered";
const RECORDS: &str = "records";
const TARGET_UID: &str = "tidemark.dev/target-uid";

/// What one look needs to know to discover.
pub struct Discovery {
    client: Client,
    recorder: Recorder,
    /// The operator's.
    namespace: String,
    cluster: String,
    target: ClusterBackupTarget,
    /// Uids of all Backups.
    backups: HashSet<String>,
    /// Records of this target that a Backup refers to.
    referred: HashSet<(String, String)>,
}

/// What a look found for discovery.
#[derive(Debug, Default)]
pub struct Found {
    /// Records that were remembered when the look began, and where that was read.
    before: BTreeSet<Hash>,
    version: Option<String>,
    /// Records that have their Backup.
    known: BTreeSet<Hash>,
    /// Those that have none, of namespaces that are open; at most as many as one look makes.
    candidates: Vec<Candidate>,
    /// Namespaces that were asked for.
    open: HashMap<String, bool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    id: RecordId,
    namespace: String,
    /// Name and uid of the Backup that made it.
    object: String,
    uid: String,
    hash: Hash,
}

impl Found {
    /// Is there a record of this volume among those that are to get a Backup?
    pub fn has_candidates_of(&self, volume: &VolumeName) -> bool {
        self.candidates.iter().any(|c| c.id.volume == *volume)
    }

    /// Records of deleted Backups that arrived late are as good as gone.
    pub fn bury(&mut self, volume: &VolumeName, tombstones: &Tombstones) {
        self.candidates.retain(|c| c.id.volume != *volume || !tombstones.has(&c.uid));
    }
}

/// 16 hex digits that stand for one record of a target.
type Hash = String;

fn hash(target: &str, id: &RecordId) -> Hash {
    let parts = [target, id.volume.as_str(), id.backup.as_str()];
    let digest = parts.iter().fold(Sha256::new(), |digest, part| digest.chain_update(part).chain_update([0]));
    hex::encode(&digest.finalize()[..8])
}

/// The object's name: what it was called, and what tells it from every other.
fn name_of(object: &str, hash: &str) -> String {
    let kept: String =
        object.chars().take(40).filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-').collect();
    let kept = kept.trim_matches('-');
    let kept = if kept.is_empty() { "backup" } else { kept };
    format!("{kept}-{hash}")
}

impl Discovery {
    pub fn of(context: &Context, target: &ClusterBackupTarget) -> Self {
        let uid = target.uid().unwrap_or_default();
        let backups = context.backups.state();
        let record = |b: &std::sync::Arc<Backup>| {
            let b = context.backups.freshest(b.clone());
            let status = b.status.as_ref();
            let is_here = status.and_then(|s| s.target.as_ref()).is_some_and(|t| t.uid == uid);
            let stored = status.and_then(|s| s.store.as_ref()).filter(|_| is_here);
            let stored = stored.and_then(|s| Some((s.volume.clone(), s.backup.clone()?)));
            // One that is to be imported counts before it is looked up.
            let existing = b.spec.source.existing.as_ref().map(|e| (e.volume.clone(), e.backup.clone()));
            stored.or(existing)
        };
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            namespace: context.namespace.clone(),
            cluster: context.cluster.clone(),
            target: target.clone(),
            backups: backups.iter().filter_map(|b| b.uid()).collect(),
            referred: backups.iter().filter_map(record).collect(),
        }
    }

    /// Reads what is remembered: before the look.
    pub async fn begin(&self) -> Result<Found, ApiError> {
        let (before, version) = self.remembered().await?;
        Ok(Found { before, version, ..Found::default() })
    }

    /// Sorts one record: not ours, known, or without a Backup.
    pub async fn consider(&self, record: &Known, found: &mut Found) -> Result<(), ApiError> {
        let Some(owner) = record.facts.owner.as_ref().filter(|o| *o.cluster == *self.cluster) else { return Ok(()) };
        if record.facts.state != RecordState::Complete || owner.namespace.is_empty() {
            return Ok(());
        }
        let hash = hash(&self.target.name_any(), &record.id);
        let names = (record.id.volume.to_string(), record.id.backup.to_string());
        let has_object = record.facts.backup_uid.as_ref().is_some_and(|uid| self.backups.contains(&**uid));
        if has_object || self.referred.contains(&names) {
            if found.known.len() <= limits::DISCOVERED_REMEMBERED_MAX {
                found.known.insert(hash);
            }
            return Ok(());
        }
        if found.candidates.len() >= limits::DISCOVERED_PER_LOOK || found.before.contains(&hash) {
            return Ok(());
        }
        let namespace = owner.namespace.to_string();
        let is_open = match found.open.get(&namespace) {
            Some(known) => *known,
            None => {
                let is_open = self.is_open(&namespace).await?;
                found.open.insert(namespace.clone(), is_open);
                is_open
            }
        };
        if is_open {
            let text = |text: &Option<Box<str>>| text.as_deref().unwrap_or_default().to_owned();
            let (object, uid) = (text(&record.facts.backup_object), text(&record.facts.backup_uid));
            found.candidates.push(Candidate { id: record.id.clone(), namespace, object, uid, hash });
        }
        Ok(())
    }

    /// Makes the Backups and remembers them. How many were made, or why not.
    pub async fn apply(self, found: Found) -> Result<u64, String> {
        let chain = |error: ApiError| format!("Discovery: {}", error_chain(&error));
        let mut remembered: BTreeSet<Hash> = found.before.union(&found.known).cloned().collect();
        if remembered.len() + found.candidates.len() > limits::DISCOVERED_REMEMBERED_MAX {
            return Err(format!(
                "Discovery remembers no more than {} records of one target and rests: import with spec.source.existing",
                limits::DISCOVERED_REMEMBERED_MAX
            ));
        }
        let mut made = 0;
        for candidate in &found.candidates {
            if self.create(candidate).await.map_err(chain)? {
                remembered.insert(candidate.hash.clone());
                made += 1;
            }
        }
        if remembered != found.before {
            self.remember(&remembered, found.version).await.map_err(chain)?;
        }
        if made > 0 {
            self.tell(made).await;
        }
        Ok(made)
    }

    /// The namespace exists, stays, and the target allows it.
    async fn is_open(&self, namespace: &str) -> Result<bool, ApiError> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let Some(found) = bounded(namespaces.get_opt(namespace)).await? else { return Ok(false) };
        if found.metadata.deletion_timestamp.is_some() {
            return Ok(false);
        }
        let labels = found.metadata.labels.unwrap_or_default();
        Ok(self.target.spec.allows(namespace, &labels).unwrap_or(false))
    }

    /// Creates one; one that is there already is as good. False: the API server does not take it now.
    async fn create(&self, candidate: &Candidate) -> Result<bool, ApiError> {
        let api: Api<Backup> = Api::namespaced(self.client.clone(), &candidate.namespace);
        let manifest = json!({
            "apiVersion": "tidemark.dev/v1alpha1",
            "kind": "Backup",
            "metadata": {
                "name": name_of(&candidate.object, &candidate.hash),
                "namespace": candidate.namespace,
                "annotations": {
                    DISCOVERED: self.target.name_any(),
                    "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
                },
            },
            "spec": {
                "source": {"existing": {"volume": candidate.id.volume, "backup": candidate.id.backup}},
                "targetRef": {"kind": "ClusterBackupTarget", "name": self.target.name_any()},
            },
        });
        let backup: Backup = serde_json::from_value(manifest).expect("a manifest of ours is a Backup");
        match bounded(api.create(&PostParams::default(), &backup)).await {
            Ok(_) => Ok(true),
            Err(ApiError::Api(kube::Error::Api(answer))) if answer.is_already_exists() => Ok(true),
            // A namespace that went since, a quota, a policy: another look may do it.
            Err(ApiError::Api(kube::Error::Api(answer))) if answer.is_forbidden() || answer.is_not_found() => {
                tracing::warn!(
                    namespace = candidate.namespace,
                    reason = answer.message,
                    "Backup could not be made for a record"
                );
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn config_map(&self) -> (Api<ConfigMap>, String) {
        let name = format!("tidemark-discovered-{}", self.target.name_any());
        (Api::namespaced(self.client.clone(), &self.namespace), name)
    }

    /// Hashes of records that had their Backup, and the resourceVersion they were read at.
    async fn remembered(&self) -> Result<(BTreeSet<Hash>, Option<String>), ApiError> {
        let (api, name) = self.config_map();
        let Some(map) = bounded(api.get_opt(&name)).await? else { return Ok((BTreeSet::new(), None)) };
        let version = map.resource_version();
        // Another target of the same name is another target.
        if map.annotations().get(TARGET_UID) != self.target.uid().as_ref() {
            return Ok((BTreeSet::new(), version));
        }
        let text = map.data.unwrap_or_default().remove(RECORDS).unwrap_or_default();
        Ok((text.lines().map(str::to_owned).collect(), version))
    }

    async fn remember(&self, hashes: &BTreeSet<Hash>, version: Option<String>) -> Result<(), ApiError> {
        let (api, name) = self.config_map();
        let mut text = String::new();
        for hash in hashes {
            writeln!(text, "{hash}").expect("a String takes everything");
        }
        let annotations = BTreeMap::from([(TARGET_UID.to_owned(), self.target.uid().unwrap_or_default())]);
        let metadata = ObjectMeta {
            name: Some(name.clone()),
            annotations: Some(annotations),
            owner_references: self.target.owner_ref(&()).map(|owner| vec![owner]),
            resource_version: version.clone(),
            ..ObjectMeta::default()
        };
        let data = Some(BTreeMap::from([(RECORDS.to_owned(), text)]));
        let map = ConfigMap { metadata, data, ..ConfigMap::default() };
        let written = match version {
            None => bounded(api.create(&PostParams::default(), &map)).await,
            Some(_) => bounded(api.replace(&name, &PostParams::default(), &map)).await,
        };
        written.map(|_| ())
    }

    async fn tell(&self, made: u64) {
        let reference = self.target.object_ref(&());
        let event = Event {
            type_: EventType::Normal,
            reason: "BackupsDiscovered".into(),
            note: Some(format!("{made} Backups were made for records of this cluster that had none")),
            action: "Discover".into(),
            secondary: None,
        };
        if let Err(error) = bounded(self.recorder.publish(&event, &reference)).await {
            tracing::debug!(error = %error_chain(&error), "Event was not published");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discovered_backup_has_the_same_fitting_name_whenever_it_is_found() {
        let id = RecordId { volume: "pvc-1".parse().expect("a name"), backup: "backup-1".parse().expect("a name") };
        let hash = hash("s3-primary", &id);
        assert_eq!(hash, super::hash("s3-primary", &id));
        assert_eq!(name_of("nightly-20261001", &hash), format!("nightly-20261001-{hash}"));
        for strange in ["", "---", "Ünï/..", &"x".repeat(200)] {
            let name = name_of(strange, &hash);
            assert!(name.len() <= 63 && name.starts_with(|c: char| c.is_ascii_alphanumeric()), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{name}");
        }
        let other = RecordId { volume: "pvc-2".parse().expect("a name"), ..id };
        assert_ne!(super::hash("s3-primary", &other), hash);
    }
}
