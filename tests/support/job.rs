//! Attempts in this process: a job for an image, its run, and a reader of what it left that shares no code with the
//! writer but the record's parser and the codec.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tidemark::{
    model::{
        AttemptId, BlockSize, Compression, JobSpec, Outcome, Report, ReportKey, StoreLocation, Task, VerifyDepth,
        job::{BackupTask, Deadlines, JOB_VERSION, Limits, Mode, Owner, S3Location, SnapshotRef, Source},
    },
    store::{
        codec,
        credentials::CredentialSource,
        directory::Directory,
        guard::Timing,
        layout::VolumeLayout,
        objects::{Objects, Range},
        record::Record,
        s3::S3,
    },
    worker::{Attempt, attempt},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{ACCESS_KEYS, S3Server};

/// Longhorn's clock, but for the two seconds of settling.
pub fn quick() -> Timing {
    Timing { settle: Duration::from_millis(20), ..Timing::default() }
}

/// A job for an image below a new Backup uid; change its fields as the test needs.
pub fn job(image: &Path, uid: &str, attempt: u64) -> JobSpec {
    let task = BackupTask {
        compression: Compression::Lz4,
        block_size: BlockSize::Mi2,
        source: Source { path: image.to_owned(), root: None, bytes: None, point: None },
        mode: Mode::Incremental,
        verify: VerifyDepth::None,
        snapshot: SnapshotRef { name: format!("snap-{uid}"), created: now() },
        owner: Owner {
            cluster: "test".into(),
            namespace: "shop".into(),
            backup: uid.into(),
            shared_with_clusters: false,
        },
        labels: BTreeMap::new(),
    };
    JobSpec {
        v: JOB_VERSION,
        uid: uid.into(),
        attempt: AttemptId::new(attempt, [attempt as u8; 10]),
        attempt_number: attempt as u32,
        store: StoreLocation::Directory { path: PathBuf::from("/nowhere") },
        volume: "pvc-test".parse().expect("a volume name"),
        task: Task::Backup(task),
        limits: Limits { concurrency: None, max_bytes_per_second: None },
        deadlines: Deadlines { stall_seconds: 60, total: now() + jiff::SignedDuration::from_hours(1) },
        report_key: ReportKey::new([7; 32]),
        pod: "test-pod".into(),
    }
}

/// The same job of a backup, with a change of its task.
pub fn with_task(mut job: JobSpec, change: impl FnOnce(&mut BackupTask)) -> JobSpec {
    match &mut job.task {
        Task::Backup(task) => change(task),
        Task::Restore(_) => panic!("{job:?} is no backup"),
    }
    job
}

pub fn with_mode(job: JobSpec, mode: Mode) -> JobSpec {
    with_task(job, |task| task.mode = mode)
}

pub fn now() -> Timestamp {
    tidemark::telemetry::now()
}

/// One attempt, and every report it made.
pub struct Ran {
    pub last: Report,
    pub reports: Vec<Report>,
}

impl Ran {
    pub fn completed(&self) -> bool {
        matches!(self.last.outcome, Some(Outcome::Completed { .. }))
    }

    pub fn record(&self) -> String {
        match &self.last.outcome {
            Some(Outcome::Completed { backup, .. }) => backup.to_string(),
            other => panic!("not completed: {other:?}, {:?}", self.last.failure),
        }
    }
}

/// Runs an attempt to its end, keeping every report that was seen.
pub async fn run(job: JobSpec, objects: Arc<dyn Objects>) -> Ran {
    run_watched(job, objects, CancellationToken::new(), |_| {}).await
}

/// The same by another clock: Longhorn's own beside a Longhorn that waits as long, or a short one.
pub async fn run_by_clock(job: JobSpec, objects: Arc<dyn Objects>, timing: Timing) -> Report {
    let (sender, _receiver) = watch::channel(attempt::first_report(&job));
    let (scratch_dir, cancel) = (std::env::temp_dir(), CancellationToken::new());
    attempt::run(Attempt { job, objects, scratch_dir, timing, cancel }, sender).await
}

/// The same; `watch` sees each report as it is made.
pub async fn run_watched(
    job: JobSpec,
    objects: Arc<dyn Objects>,
    cancel: CancellationToken,
    mut watch: impl FnMut(&Report),
) -> Ran {
    let (sender, mut receiver) = watch::channel(attempt::first_report(&job));
    let scratch_dir = std::env::temp_dir();
    let attempt = Attempt { job, objects, scratch_dir, timing: quick(), cancel };
    let mut running = tokio::spawn(attempt::run(attempt, sender));
    let mut reports = Vec::new();
    loop {
        tokio::select! {
            biased;
            changed = receiver.changed() => {
                if changed.is_err() {
                    break;
                }
                let report = receiver.borrow_and_update().clone();
                watch(&report);
                reports.push(report);
            }
            last = &mut running => {
                let last = last.expect("an attempt does not panic");
                watch(&last);
                reports.push(last.clone());
                return Ran { last, reports };
            }
        }
    }
    let last = running.await.expect("an attempt does not panic");
    Ran { last, reports }
}

pub fn directory(path: &Path) -> Arc<dyn Objects> {
    Arc::new(Directory::open(path).expect("the test's directory"))
}

/// The location of a bucket behind this endpoint.
pub fn location(endpoint: &str, bucket: &str) -> S3Location {
    S3Location {
        bucket: bucket.into(),
        prefix: "some/prefix/".into(),
        region: "us-east-1".into(),
        endpoint: Some(endpoint.into()),
        force_path_style: true,
        conditional_writes: true,
        batch_delete: true,
        ..S3Location::default()
    }
}

pub fn credentials(which: usize) -> CredentialSource {
    let (id, secret) = ACCESS_KEYS[which];
    CredentialSource::Given(tidemark::model::Credentials {
        access_key_id: id.into(),
        secret_access_key: secret.into(),
        session_token: None,
    })
}

/// The server's bucket `backups`, made if need be.
pub fn s3(server: &S3Server) -> Arc<dyn Objects> {
    server.create_bucket("backups");
    s3_at(&server.endpoint())
}

/// A bucket without a prefix, as the operator's tests have it.
pub fn s3_bucket(server: &S3Server, bucket: &str) -> Arc<dyn Objects> {
    let location = S3Location { prefix: String::new(), ..location(&server.endpoint(), bucket) };
    Arc::new(S3::open(&location, credentials(0)).expect("a valid location"))
}

pub fn s3_at(endpoint: &str) -> Arc<dyn Objects> {
    Arc::new(S3::open(&location(endpoint, "backups"), credentials(0)).expect("a valid location"))
}

/// Reads a backup back, block by block, and compares it with the image: `None` if they are equal.
pub async fn compare(objects: &Arc<dyn Objects>, volume: &str, backup: &str, image: &Path) -> Option<String> {
    let layout = VolumeLayout::new(&volume.parse().expect("a volume name"));
    let key = layout.backup(&backup.parse().expect("a backup name"));
    let Ok(Some(fetched)) = objects.get(&key, Range::whole(u64::MAX)).await else {
        return Some(format!("{key} cannot be read"));
    };
    let record = match Record::parse(&fetched.bytes) {
        Ok(record) => record,
        Err(seen) => return Some(format!("{key}: {seen}")),
    };
    let size = record.head.block_size().expect("parsed");
    let method = record.head.compression().expect("parsed");
    let expected = std::fs::read(image).expect("the image");
    let mut restored = vec![0; usize::try_from(size.round_up(expected.len() as u64)).expect("small")];
    for block in &record.blocks {
        let key = layout.block(&block.block_checksum);
        let Ok(Some(object)) = objects.get(&key, Range::whole(u64::MAX)).await else {
            return Some(format!("the record names {key}, which is not there"));
        };
        let start = usize::try_from(block.offset).expect("small");
        let place = &mut restored[start..start + size.len()];
        if let Err(error) = codec::decode(method, &object.bytes, place) {
            return Some(format!("{key}: {error}"));
        }
        if tidemark::model::BlockName::of(place) != block.block_checksum {
            return Some(format!("{key} holds other bytes than its name says"));
        }
    }
    let (restored, expected) = (&restored[..expected.len()], expected.as_slice());
    if restored == expected {
        return None;
    }
    let differs = restored.iter().zip(expected).position(|(a, b)| a != b);
    differs.map(|at| format!("byte {at} differs"))
}
