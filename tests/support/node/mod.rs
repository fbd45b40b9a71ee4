//! What a cluster does for a Job, played by the test on a real API server: the Job controller (one Pod per Job, its end
//! counted), the garbage collector (foreground deletion) and the kubelet (mounts, a process, status, the last word). Pods
//! are real worker processes on loopback addresses of their own. It is as strict as the real thing where we know how that
//! is: a Pod is made once, gets a node when its claims are bound and says until then why not, its status is written before
//! and after, a deleted Pod gets SIGTERM and goes when it has ended. A Pod without an owner is a user's: it runs, does
//! nothing, and holds its claims.
//!
//! Not played: choosing a node, images, security contexts, mounts of a claim's filesystem, logs (the API server would ask a
//! kubelet for them).

mod claims;

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    time::Duration,
};

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, Secret},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    Lent, Process, locked,
    operator::program,
    storage::{Storage, Volumes},
};

/// The one there is.
pub const NODE: &str = "test-node";

/// How much of a cluster is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plays {
    /// Job controller, collector and kubelet.
    Everything,
    /// Pods are made and collected, and the test itself writes what becomes of them.
    NoKubelet,
    /// Jobs stay as they are.
    Nothing,
}

/// Ends with the test, and its Pods with it.
pub struct Node {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    client: Client,
    namespace: String,
    plays: Plays,
    directory: TempDir,
    /// Processes by Pod uid.
    running: Mutex<HashMap<String, Running>>,
    /// Which file is which claim's device: what a test says, and what the storage has.
    devices: Mutex<HashMap<String, PathBuf>>,
    volumes: Mutex<Option<Volumes>>,
    address: AtomicU8,
    created: Mutex<Vec<String>>,
}

struct Running {
    process: Process,
    room: PathBuf,
    told_to_end: bool,
}

impl Node {
    pub fn start(plane: &Lent, client: Client, namespace: &str, plays: Plays) -> Self {
        let shared = Arc::new(Shared {
            client,
            namespace: namespace.to_owned(),
            plays,
            directory: super::scratch("node"),
            running: Mutex::default(),
            devices: Mutex::default(),
            volumes: Mutex::default(),
            address: AtomicU8::new(1),
            created: Mutex::default(),
        });
        let (playing, plane) = (shared.clone(), plane.clone());
        let task = tokio::spawn(async move {
            // It may write there for as long as it plays.
            let _plane = plane;
            loop {
                if let Err(error) = playing.round().await {
                    // Another actor was faster: the next round sees it.
                    eprintln!("node: {error}");
                }
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        });
        Self { shared, task }
    }

    /// This claim's device is that file.
    pub fn device(&self, claim: &str, file: &Path) {
        locked(&self.shared.devices).insert(claim.to_owned(), file.to_owned());
    }

    /// From now on claims' devices are this storage's volumes, but for those that a test gave.
    pub fn uses(&self, storage: &Storage) {
        *locked(&self.shared.volumes) = Some(storage.volumes());
    }

    /// What this Pod's device paths are here.
    pub async fn devices_of(&self, pod: &Pod) -> BTreeMap<String, PathBuf> {
        self.shared.devices_of(pod).await.expect("the API server answers")
    }

    /// `kill -9` of every worker that runs. How many there were.
    pub fn kill_workers(&self) -> usize {
        let mut running = locked(&self.shared.running);
        running.values_mut().for_each(|r| r.process.kill());
        running.len()
    }

    /// Names of the Pods that were made, ever.
    pub fn created(&self) -> Vec<String> {
        locked(&self.shared.created).clone()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
        locked(&self.shared.running).clear();
    }
}

impl Shared {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn round(&self) -> kube::Result<()> {
        if self.plays == Plays::Nothing {
            return Ok(());
        }
        let pods = self.api::<Pod>().list(&ListParams::default()).await?.items;
        let jobs = self.api::<Job>().list(&ListParams::default()).await?.items;
        let has_owner =
            |pod: &Pod| pod.owner_references().iter().any(|o| jobs.iter().any(|j| j.uid().as_ref() == Some(&o.uid)));
        for pod in pods.iter().filter(|pod| !pod.owner_references().is_empty() && !has_owner(pod)) {
            self.orphan(pod).await?;
        }
        for job in jobs {
            let uid = job.uid().unwrap_or_default();
            let owned = |p: &&Pod| p.owner_references().iter().any(|o| o.uid == uid);
            self.control(&job, &pods.iter().filter(owned).collect::<Vec<_>>()).await?;
        }
        if self.plays == Plays::Everything {
            for pod in &pods {
                self.keep(pod).await?;
            }
        }
        Ok(())
    }

    /// The Job controller and the collector.
    async fn control(&self, job: &Job, pods: &[&Pod]) -> kube::Result<()> {
        let status = job.status.clone().unwrap_or_default();
        let is_finished = status.conditions.iter().flatten().any(|c| matches!(c.type_.as_str(), "Complete" | "Failed"));
        if job.metadata.deletion_timestamp.is_some() {
            for pod in pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
                self.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await?;
            }
            if self.plays == Plays::NoKubelet {
                self.collect(pods).await?;
            }
            if pods.is_empty() {
                let patch = json!({"metadata": {"finalizers": null}});
                self.api::<Job>().patch(&job.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
            }
            return Ok(());
        }
        if is_finished {
            return Ok(());
        }
        match pods {
            [] if status.active.unwrap_or(0) == 0 => self.make_pod(job).await,
            // It was there and is gone: with a backoffLimit of 0 that is the end.
            [] => self.finish(job, false).await,
            [pod, ..] => match pod.status.as_ref().and_then(|s| s.phase.as_deref()) {
                Some("Succeeded") => self.finish(job, true).await,
                Some("Failed") => self.finish(job, false).await,
                _ => Ok(()),
            },
        }
    }

    /// A Pod whose Job is gone goes too.
    async fn orphan(&self, pod: &Pod) -> kube::Result<()> {
        if pod.metadata.deletion_timestamp.is_none() {
            self.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await?;
        } else if self.plays == Plays::NoKubelet {
            self.collect(&[pod]).await?;
        }
        Ok(())
    }

    /// Where no kubelet is played, a Pod that is being deleted goes.
    async fn collect(&self, pods: &[&Pod]) -> kube::Result<()> {
        for pod in pods {
            self.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await?;
        }
        Ok(())
    }

    async fn make_pod(&self, job: &Job) -> kube::Result<()> {
        let template = &job.spec.as_ref().expect("a Job has a spec").template;
        let name = format!("{}-{:05x}", job.name_any(), locked(&self.created).len());
        let mut pod = Pod {
            metadata: template.metadata.clone().unwrap_or_default(),
            spec: template.spec.clone(),
            ..Pod::default()
        };
        pod.metadata.name = Some(name.clone());
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert("batch.kubernetes.io/job-name".into(), job.name_any());
        pod.metadata.owner_references = Some(vec![job.controller_owner_ref(&()).expect("it was read")]);
        self.api::<Pod>().create(&PostParams::default(), &pod).await?;
        locked(&self.created).push(name);
        let now = tidemark::telemetry::now().to_string();
        self.job_status(job, json!({"active": 1, "startTime": now[..19].to_owned() + "Z"})).await
    }

    async fn finish(&self, job: &Job, is_success: bool) -> kube::Result<()> {
        let now = tidemark::telemetry::now().to_string()[..19].to_owned() + "Z";
        let condition = |kind: &str, reason: &str| json!({"type": kind, "status": "True", "reason": reason, "message": "played", "lastTransitionTime": now});
        let status = match is_success {
            true => json!({"active": 0, "succeeded": 1, "completionTime": now,
                "conditions": [condition("SuccessCriteriaMet", "CompletionsReached"), condition("Complete", "CompletionsReached")]}),
            false => json!({"active": 0, "failed": 1,
                "conditions": [condition("FailureTarget", "BackoffLimitExceeded"), condition("Failed", "BackoffLimitExceeded")]}),
        };
        self.job_status(job, status).await
    }

    async fn job_status(&self, job: &Job, status: Value) -> kube::Result<()> {
        let patch = json!({"metadata": {"resourceVersion": job.resource_version()}, "status": status});
        self.api::<Job>().patch_status(&job.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }

    /// The kubelet: one Pod.
    async fn keep(&self, pod: &Pod) -> kube::Result<()> {
        let uid = pod.uid().unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
        let is_deleting = pod.metadata.deletion_timestamp.is_some();
        if phase == "Succeeded" || phase == "Failed" {
            if is_deleting {
                self.collect(&[pod]).await?;
            }
            return Ok(());
        }
        let is_running = locked(&self.running).contains_key(&uid);
        let has_node = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
        match (is_running, is_deleting) {
            (false, true) => return self.collect(&[pod]).await,
            (false, false) if !has_node => return self.schedule(pod).await,
            (false, false) if pod.owner_references().is_empty() => return self.pause(pod, &phase).await,
            (false, false) => return self.launch(pod, &uid).await,
            (true, _) => {}
        }
        self.refresh(pod, &uid).await?;
        let ended = {
            let mut running = locked(&self.running);
            let Some(this) = running.get_mut(&uid) else { return Ok(()) };
            if is_deleting && !this.told_to_end {
                this.process.signal(Signal::TERM);
                this.told_to_end = true;
            }
            this.process.ended().map(|status| (status, this.room.clone()))
        };
        let Some((status, room)) = ended else { return Ok(()) };
        use std::os::unix::process::ExitStatusExt;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        let message = std::fs::read_to_string(room.join("termination-log")).unwrap_or_default();
        let terminated =
            json!({"exitCode": code, "reason": if code == 0 { "Completed" } else { "Error" }, "message": message});
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        self.pod_status(pod, phase, None, json!({"terminated": terminated})).await?;
        locked(&self.running).remove(&uid);
        Ok(())
    }

    async fn launch(&self, pod: &Pod, uid: &str) -> kube::Result<()> {
        let room = self.directory.path().join(uid);
        let address = self.address(pod);
        if !self.has_claims(pod).await? || !self.mount(pod, &room).await? {
            // A claim or a Secret that is missing keeps a Pod in ContainerCreating.
            return Ok(());
        }
        let container = &pod.spec.as_ref().expect("a Pod has a spec").containers[0];
        let mut command = Command::new(program());
        for argument in container.args.iter().flatten() {
            command.arg(local(argument, container, &room, address));
        }
        command.env_clear().env("TIDEMARK_LOG", "info");
        let process = Process::start("worker", command, &room.join("log"));
        let state = json!({"running": {}});
        locked(&self.running).insert(uid.to_owned(), Running { process, room, told_to_end: false });
        self.pod_status(pod, "Running", Some(address), state).await
    }

    /// An address of loopback for each Pod: another process of tests has others.
    fn address(&self, pod: &Pod) -> Ipv4Addr {
        let given = pod.status.as_ref().and_then(|s| s.pod_ip.as_ref()?.parse().ok());
        let [.., high, low] = std::process::id().to_be_bytes();
        given.unwrap_or_else(|| Ipv4Addr::new(127, high.max(1), low, self.address.fetch_add(1, SeqCst)))
    }

    async fn refresh(&self, pod: &Pod, uid: &str) -> kube::Result<()> {
        let room = self.directory.path().join(uid);
        self.mount(pod, &room).await.map(drop)
    }

    /// Secrets as files, the Pod's uid, and empty directories. False: something is missing.
    async fn mount(&self, pod: &Pod, room: &Path) -> kube::Result<bool> {
        let devices = self.devices_of(pod).await?;
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let path = room.join(&volume.name);
            std::fs::create_dir_all(&path).expect("the scratch directory is ours");
            if let Some(name) = volume.secret.as_ref().and_then(|s| s.secret_name.as_ref()) {
                let Some(secret) = self.api::<Secret>().get_opt(name).await? else { return Ok(false) };
                write_secret(&devices, &secret, &path);
            } else if volume.downward_api.is_some() {
                std::fs::write(path.join("uid"), pod.uid().unwrap_or_default()).expect("ours");
            }
        }
        Ok(true)
    }

    async fn devices_of(&self, pod: &Pod) -> kube::Result<BTreeMap<String, PathBuf>> {
        let spec = pod.spec.as_ref().expect("a Pod has a spec");
        let volumes = locked(&self.volumes).clone();
        let mut devices = BTreeMap::new();
        for device in spec.containers[0].volume_devices.iter().flatten() {
            let volume = spec.volumes.iter().flatten().find(|v| v.name == device.name);
            let Some(claim) = volume.and_then(|v| v.persistent_volume_claim.as_ref()) else { continue };
            let given = locked(&self.devices).get(&claim.claim_name).cloned();
            let file = match (given, &volumes) {
                (None, Some(volumes)) => volumes.file(&self.namespace, &claim.claim_name).await?,
                (given, _) => given,
            };
            devices.extend(file.map(|file| (device.device_path.clone(), file)));
        }
        Ok(devices)
    }

    async fn pod_status(&self, pod: &Pod, phase: &str, address: Option<Ipv4Addr>, state: Value) -> kube::Result<()> {
        let container = json!({"name": "worker", "image": "x", "imageID": "", "ready": phase == "Running",
            "restartCount": 0, "state": state});
        let mut status = json!({"phase": phase, "containerStatuses": [container]});
        if let Some(address) = address {
            status["podIP"] = json!(address);
            status["podIPs"] = json!([{"ip": address}]);
        }
        let patch = json!({"status": status});
        self.api::<Pod>().patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }
}

fn write_secret(devices: &BTreeMap<String, PathBuf>, secret: &Secret, path: &Path) {
    for (key, value) in secret.data.iter().flatten() {
        let mut text = String::from_utf8(value.0.clone()).expect("our Secrets are text");
        // A device of the Pod is a file here.
        for (device, file) in devices {
            text = text.replace(&format!("\"{device}\""), &json!(file).to_string());
            text = text.replace("\"root\":\"/dev\"", &format!("\"root\":{}", json!(file.parent())));
        }
        let new = path.join(format!(".{key}.new"));
        std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path.join(key))).expect("ours");
    }
}

/// An argument as it is on this machine.
fn local(argument: &str, container: &k8s_openapi::api::core::v1::Container, room: &Path, address: Ipv4Addr) -> String {
    if let Some(port) = argument.strip_prefix("[::]:") {
        return format!("{address}:{port}");
    }
    if argument == "/dev/termination-log" {
        return room.join("termination-log").display().to_string();
    }
    let mounts = container.volume_mounts.iter().flatten();
    let inside = mounts.filter_map(|m| Some((m, argument.strip_prefix(m.mount_path.as_str())?)));
    match inside.max_by_key(|(m, _)| m.mount_path.len()) {
        Some((mount, rest)) => format!("{}{rest}", room.join(&mount.name).display()),
        None => argument.to_owned(),
    }
}
