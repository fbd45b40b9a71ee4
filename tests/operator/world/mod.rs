//! What the operator's tests share: a control plane, a store, a home for workers, and a sampler that watches every Backup
//! all through a test. It reads status *first* and counts objects *after*: acknowledged ≤ objects at every sample, and the
//! count never falls within an attempt. At a test's end no status write may have been refused by a rule of the CRD.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod bucket;
pub mod shop;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use super::support::{
    ACCESS_KEYS, Fault, Image, Kind, Lent, Rule, S3Server,
    operator::{Home, NAMESPACE, Operator},
};
use futures::StreamExt;
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    core::object::HasStatus,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use serde_json::json;
use tidemark::api::{Backup, BackupState, BackupStatus, Restore, RestoreState, RestoreStatus};

pub const BUCKET: &str = "backups";
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Everything a test needs, and a sampler that watches it.
pub struct World {
    pub plane: Lent,
    pub s3: Arc<S3Server>,
    pub home: Arc<Home>,
    pub client: Client,
    pub sampler: Sampler,
}

pub struct Sampler {
    stop: Arc<AtomicBool>,
    samples: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Option<String>>,
}

impl World {
    pub async fn new() -> Self {
        let plane = Lent::borrow().await;
        let s3 = Arc::new(S3Server::start());
        s3.create_bucket(BUCKET);
        let client = plane.client().await;
        plane.apply(&tidemark::api::crds_yaml()).await;
        plane.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=120s"]).await;
        plane.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}")).await;
        let sampler = Sampler::start(client.clone(), s3.clone());
        let world = Self { plane, s3, home: Home::new(), client, sampler };
        world.secret(0).await;
        world.target("s3-primary", json!({})).await;
        world
    }

    pub async fn secret(&self, key: usize) {
        let (id, secret) = ACCESS_KEYS[key];
        self.plane
            .apply(&format!(
                "apiVersion: v1\nkind: Secret\nmetadata: {{name: s3, namespace: {NAMESPACE}}}\nstringData: {{AWS_ACCESS_KEY_ID: {id}, AWS_SECRET_ACCESS_KEY: {secret}}}\n"
            ))
            .await;
    }

    pub async fn target(&self, name: &str, more: serde_json::Value) {
        let mut spec = json!({
            "s3": {"bucket": BUCKET, "region": "us-east-1", "endpoint": self.s3.endpoint()},
            "credentials": {"secretName": "s3"},
            "allowedNamespaces": {"from": "All"},
        });
        merge(&mut spec, more);
        let target = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "ClusterBackupTarget", "metadata": {"name": name}, "spec": spec});
        self.plane.apply(&target.to_string()).await;
    }

    /// An image of this many random blocks, and its path.
    pub fn image(&self, name: &str, blocks: usize, seed: u64) -> Image {
        Image::random(&self.home.volumes().join(name), blocks, seed)
    }

    /// A Backup of that image.
    pub async fn backup(&self, name: &str, image: &str, more: serde_json::Value) {
        let path = self.home.volumes().join(image);
        let mut spec = json!({
            "source": {"hostDevice": {"path": path, "nodeName": "local", "name": image}},
            "targetRef": {"kind": "ClusterBackupTarget", "name": "s3-primary"},
            "retry": {"limit": 6, "backoff": "1s", "maxBackoff": "2s"},
        });
        merge(&mut spec, more);
        let backup = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Backup", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec});
        self.plane.apply(&backup.to_string()).await;
    }

    pub fn backups(&self) -> Api<Backup> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub async fn patch(&self, name: &str, spec: serde_json::Value) {
        let patch = json!({"spec": spec});
        let params = PatchParams::default();
        self.backups().patch(name, &params, &Patch::Merge(&patch)).await.expect("the API server takes the verb");
    }

    /// A Restore of that Backup to a file of the operator's volumes; `more` goes over it.
    pub async fn restore(&self, name: &str, backup: &str, file: &str, more: serde_json::Value) {
        let path = self.home.volumes().join(file);
        let mut spec = json!({
            "backupRef": {"name": backup},
            "hostDevice": {"path": path, "nodeName": "local"},
            "retry": {"limit": 6, "backoff": "1s", "maxBackoff": "2s"},
        });
        merge(&mut spec, more);
        let restore = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Restore", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec});
        self.plane.apply(&restore.to_string()).await;
    }

    pub fn restores(&self) -> Api<Restore> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub async fn patch_restore(&self, name: &str, spec: serde_json::Value) {
        let patch = json!({"spec": spec});
        let params = PatchParams::default();
        self.restores().patch(name, &params, &Patch::Merge(&patch)).await.expect("the API server takes the verb");
    }

    /// Waits until a Backup's status is as wanted.
    pub async fn until(
        &self,
        operator: &Operator,
        name: &str,
        what: &str,
        wanted: impl Fn(&BackupStatus) -> bool,
    ) -> BackupStatus {
        until(self.backups(), operator, (name, what), wanted).await
    }

    pub async fn completed(&self, operator: &Operator, name: &str) -> BackupStatus {
        self.until(operator, name, "Completed", |s| s.state == Some(BackupState::Completed)).await
    }

    /// Waits until a Restore's status is as wanted.
    pub async fn until_restore(
        &self,
        operator: &Operator,
        name: &str,
        what: &str,
        wanted: impl Fn(&RestoreStatus) -> bool,
    ) -> RestoreStatus {
        until(self.restores(), operator, (name, what), wanted).await
    }

    pub async fn restored(&self, operator: &Operator, name: &str) -> RestoreStatus {
        self.until_restore(operator, name, "Completed", |s| s.state == Some(RestoreState::Completed)).await
    }

    /// From here on the test itself damages the bucket: what is counted there says nothing any more.
    pub fn watch_no_more(&self) {
        self.sampler.stop.store(true, SeqCst);
    }

    /// The laws held at every sample, no rule had to hold them for us, and a restart lost nothing.
    pub async fn end(self, operators: &[&Operator]) {
        for operator in operators {
            let refused = metric(operator, "tidemark_status_writes_refused_total").await;
            assert_eq!(refused, Some(0.0), "status writes refused\n{}", operator.tail());
        }
        self.sampler.stop.store(true, SeqCst);
        let broken = self.sampler.task.await.expect("the sampler does not panic");
        assert_eq!(broken, None);
        let samples = self.sampler.samples.load(SeqCst);
        assert!(samples > 0, "nothing was sampled");
        println!("{samples} samples: acknowledged was never more than what is in the bucket");
    }
}

/// By a watch: it sees every status that is written, also one that stands for the second of a backoff only.
pub async fn until<K>(
    objects: Api<K>,
    operator: &Operator,
    (name, what): (&str, &str),
    wanted: impl Fn(&K::Status) -> bool,
) -> K::Status
where
    K: Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + HasStatus + Send + 'static,
    K::Status: Clone + std::fmt::Debug,
{
    let mut seen = None;
    let told = async {
        let mut shown = std::pin::pin!(watch_object(objects, name).default_backoff());
        while let Some(shown) = shown.next().await {
            // Where it cannot be watched it is asked for again; where it is not, it may come.
            let Ok(Some(object)) = shown else { continue };
            seen = object.status().cloned();
            if let Some(status) = seen.as_ref().filter(|s| wanted(s)) {
                return status.clone();
            }
        }
        unreachable!("a watch has no end")
    };
    let told = tokio::time::timeout(PATIENCE, told).await;
    told.unwrap_or_else(|_| panic!("{name}: not {what} in time. Seen: {seen:#?}\n{}", operator.tail()))
}

pub fn merge(into: &mut serde_json::Value, more: serde_json::Value) {
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        into[key] = value;
    }
}

impl Sampler {
    fn start(client: Client, s3: Arc<S3Server>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let samples = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (stop.clone(), samples.clone());
        let task = tokio::spawn(async move {
            let backups: Api<Backup> = Api::all(client);
            let mut shown = std::collections::HashMap::<(String, String), i64>::new();
            while !stopped.load(SeqCst) {
                // Away while the API server is: then nobody can be told anything wrong either.
                if let Ok(Ok(list)) =
                    tokio::time::timeout(Duration::from_secs(2), backups.list(&Default::default())).await
                {
                    let objects = s3.block_objects(BUCKET);
                    // Told to stop after the statuses were read: what was counted may already be the test's own damage.
                    if stopped.load(SeqCst) {
                        break;
                    }
                    counted.fetch_add(1, SeqCst);
                    for backup in list {
                        let Some(status) = backup.status else { continue };
                        let (Some(progress), Some(store)) = (&status.progress, &status.store) else { continue };
                        let of_volume =
                            objects.iter().filter(|o| o.key.contains(&format!("/{}/", store.volume))).count();
                        let acknowledged = progress.acknowledged_blocks;
                        if usize::try_from(acknowledged).unwrap_or(usize::MAX) > of_volume {
                            return Some(format!("{acknowledged} acknowledged, {of_volume} objects: {status:#?}"));
                        }
                        let attempt = status.attempt.as_ref().map(|a| a.id.clone()).unwrap_or_default();
                        let before = shown.entry((store.volume.clone(), attempt)).or_default();
                        if acknowledged < *before {
                            return Some(format!("{acknowledged} after {before}: {status:#?}"));
                        }
                        *before = acknowledged;
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            None
        });
        Self { stop, samples, task }
    }
}

/// One number of the operator's /metrics.
pub async fn metric(operator: &Operator, name: &str) -> Option<f64> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(operator.http()?).await.ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

pub fn acknowledged(status: &BackupStatus) -> i64 {
    status.progress.as_ref().map_or(0, |p| p.acknowledged_blocks)
}

pub fn restored(status: &RestoreStatus) -> i64 {
    status.progress.as_ref().map_or(0, |p| p.restored_blocks)
}

/// The store gives this many blocks more and then lets every other wait until it is healed.
pub fn hold_downloads_after(s3: &S3Server, blocks: u64) {
    s3.fault(Rule::new(Fault::Hold).on(Kind::Get).key("/blocks/").after(blocks));
}

/// The same after it was healed: what waited goes on, and so many of what comes after it, without a moment in between.
pub fn hold_downloads_again_after(s3: &S3Server, blocks: u64) {
    s3.heal_into(Rule::new(Fault::Hold).on(Kind::Get).key("/blocks/").after(blocks));
}

/// What waited goes on, and so many blocks more, without a moment in between.
pub fn hold_again_after(s3: &S3Server, blocks: u64) {
    s3.heal_into(Rule::new(Fault::Hold).on(Kind::PutBlock).after(blocks));
}

/// The store takes this many blocks more and then lets every other wait until it is healed: an upload stands still at
/// exactly that block.
pub fn hold_after(s3: &S3Server, blocks: u64) {
    s3.fault(Rule::new(Fault::Hold).on(Kind::PutBlock).after(blocks));
}
