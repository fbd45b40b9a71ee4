//! `JobSpec`: the one message down. Everything a worker may know, in one JSON file; credentials are a second one.
//!
//! One envelope for every task: who asks, which attempt, which store and volume, limits, deadlines, and how to report.
//! What is to be done is the `Task`. Whoever starts workers reads the envelope only.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{AttemptId, BackupName, BlockSize, Compression, VerifyDepth, VolumeName, report::ReportKey};

/// The schema version this program writes; a worker refuses any other.
pub const JOB_VERSION: u32 = 2;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobSpec {
    pub v: u32,
    /// Uid of the Backup or Restore; the command line draws one at random.
    pub uid: String,
    pub attempt: AttemptId,
    pub attempt_number: u32,
    pub store: StoreLocation,
    pub volume: VolumeName,
    pub task: Task,
    pub limits: Limits,
    pub deadlines: Deadlines,
    pub report_key: ReportKey,
    /// Who runs the worker: the Pod's uid, or a process runner's own word. It binds reports to one run.
    pub pod: String,
}

/// What is to be done with the volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Task {
    /// Blocks up: from a source to a record.
    Backup(BackupTask),
    /// Blocks down: from a record to a device or file.
    Restore(RestoreTask),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackupTask {
    /// Only for a volume new to the store; otherwise what the store says wins.
    pub compression: Compression,
    /// Only for a volume new to the store; a volume of another block size gets a full record of its own.
    pub block_size: BlockSize,
    pub source: Source,
    pub mode: Mode,
    /// What is verified after the record is sealed.
    #[serde(default)]
    pub verify: VerifyDepth,
    pub snapshot: SnapshotRef,
    pub owner: Owner,
    /// The user's labels, copied into the record; `tidemark.dev/…` ones are ours and win.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestoreTask {
    /// The record that is read.
    pub backup: BackupName,
    pub device: Device,
    pub on_damage: OnDamage,
}

/// What a restore writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// A block device or a regular file.
    pub path: PathBuf,
    /// The path is opened beneath this directory; symlinks that leave it are refused.
    pub root: PathBuf,
    pub overwrite: Overwrite,
}

/// What if the path exists?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum Overwrite {
    /// It must not: a new file appears under its name when it is whole, or never.
    #[default]
    Refuse,
    /// It must, and is written in place: a device that is large enough, or a file.
    Replace,
}

/// What if a block cannot be restored?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum OnDamage {
    #[default]
    Stop,
    /// Restore the rest, list the holes, and end in an error all the same.
    Continue,
}

/// Where the backupstore is. Its credentials are never here; a proxy on the way may have some of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StoreLocation {
    S3(S3Location),
    /// A directory below which `backupstore/` lies: NFS mounts, air-gapped nodes, tests.
    Directory {
        path: PathBuf,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct S3Location {
    pub bucket: String,
    /// Empty, or ending with `/`.
    pub prefix: String,
    pub region: String,
    /// Absent: AWS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    pub force_path_style: bool,
    /// PEM, added to the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Box<Proxy>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_side_encryption: Option<ServerSideEncryption>,
    /// The target's probe saw a second create answered 412.
    pub conditional_writes: bool,
    /// The target's probe saw one request delete several objects.
    pub batch_delete: bool,
}

/// A forward proxy between us and the store.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// May hold a user and a password.
    pub url: String,
    /// Hosts that are reached without it: names, domains and networks, with commas between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub except: Option<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proxy(…)")
    }
}

impl Proxy {
    /// A URL as people write it: `http://proxy:3128`, with a user and password before the host, or without the scheme.
    /// None: it is none.
    pub fn parse(url: &str, except: Option<String>) -> Option<Self> {
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"))?;
        let authority = rest.trim_end_matches('/');
        let host = authority.rsplit('@').next().unwrap_or_default();
        let is_host = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:[]".contains(c));
        let is_plain = authority.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '/' | '?' | '#' | ','));
        (is_host && is_plain).then(|| Self { url: url.trim_end_matches('/').to_owned(), except })
    }

    /// Is this endpoint reached by HTTPS, and so by the proxy for it? Without an endpoint it is AWS.
    pub fn is_for_https(endpoint: Option<&str>) -> bool {
        endpoint.is_none_or(|endpoint| endpoint.starts_with("https://"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerSideEncryption {
    /// `AES256` or `aws:kms`.
    pub algorithm: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms_key_id: Option<String>,
}

/// What is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// A block device or a regular file.
    pub path: PathBuf,
    /// If given, the path is opened beneath this directory and symlinks that leave it are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// The exact length to back up; absent: the device's or file's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The snapshot that is read: the same for every device it is shown as. Absent: the device or file speaks for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<PointInTime>,
}

/// What a driver took once and never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PointInTime {
    pub driver: String,
    pub handle: String,
    pub created: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum Mode {
    /// Blocks that the store has are reused.
    #[default]
    Incremental,
    /// Every block is sent again: heals a damaged store.
    Full,
}

/// The point in time. `name` goes into the record's `SnapshotName` and is never empty: Longhorn would merge over it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotRef {
    pub name: String,
    pub created: Timestamp,
}

/// Whose data it is, as the operator observed it: written into every record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Owner {
    /// Uid of the namespace `kube-system`; of the command line: `cli`.
    pub cluster: String,
    pub namespace: String,
    /// Name of the Backup object.
    pub backup: String,
    /// Another cluster's records under this volume name are no error.
    pub shared_with_clusters: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Blocks in flight at once, at most; absent: adaptive up to 32 for a backup, 8 for a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes_per_second: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deadlines {
    /// Seconds without an answer of the store while a request is outstanding.
    pub stall_seconds: u64,
    /// The attempt ends here, whatever happens.
    pub total: Timestamp,
}

/// Keys of a Longhorn credential secret, read from a directory of files of these names.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: Option<String>,
}

impl Task {
    /// The word in logs and messages.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Task::Backup(_) => "backup",
            Task::Restore(_) => "restore",
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}
