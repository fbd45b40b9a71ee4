//! Workers as Kubernetes Jobs: one Job, one Pod per attempt, in the operator's namespace (see `manifest`).
//!
//! Order when starting: the Secret with the job, the one with the keys, a note on the first that a Job was asked for, the
//! Job. A crash before the note leaves something that is started later; after it, a Job is never created again: a Pod that
//! ran once must not run a second time under the same attempt. So an attempt whose Job somebody deleted has ended, and one
//! that was noted and never made has ended too, at the price of an attempt that sent nothing.
//!
//! Looking costs no request while a Pod runs: Pods are watched. Everything else (a beginning, an end, anything missing) is
//! read live, for "not there" in a cache proves nothing. Stopping deletes the Job with foreground propagation: the Job is
//! there until its Pod is not. Removing deletes Job, keys and job, in this order; the last one is the attempt's memory.
//!
//! What may go wrong: the API server is away (an error, decided again later), the Secret was deleted under a running Pod
//! (it is not believed any more and ended after its silence), the Job is refused (noted with the answer, an end).

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Event, Pod, Secret},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams},
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher,
    },
};
use serde_json::json;
use tokio::task::JoinHandle;

use super::{
    AttemptRef, Envelope, Host, Run, Runner, RunnerError, Volume, Worker,
    manifest::{self, ASKED, ATTEMPT_ID, ATTEMPT_LABEL, CONTAINER, JOB_FILE, REFUSED, REPORT_PORT, WORKERS},
    settings::WorkerSettings,
    trouble::{Seen, Stage, Trouble, cure, has_ended, is_owned, judge, needs_events, phase, terminated},
};
use crate::{
    controller::{
        FIELD_MANAGER,
        context::{ApiError, bounded},
        error_chain,
    },
    model::{Credentials, FailureReason, JobSpec, ReportKey, report::LOG_WORD},
    telemetry::now,
};

/// Lines of a log's end in which a report is looked for; each has at most 4 KB.
const LOG_TAIL_LINES: i64 = 40;
/// Lines of a crashed worker's log that go into a message.
const LAST_LINES: usize = 5;
/// Events of one object that are read: a Pod that fails to start repeats a few.
const EVENTS_MAX: u32 = 500;

/// Starts one Job for each attempt.
pub struct JobRunner {
    client: Client,
    namespace: String,
    settings: WorkerSettings,
    /// Workers' Pods, as the watch has them.
    pods: Store<Pod>,
    /// What is known of attempts: their Secrets never change.
    runs: Mutex<HashMap<AttemptRef, Run>>,
    watch: JoinHandle<()>,
}

impl Drop for JobRunner {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl JobRunner {
    /// Begins to watch workers' Pods in this namespace. To be called on a runtime.
    pub fn open(client: Client, namespace: &str, settings: WorkerSettings) -> Self {
        let (pods, writer) = reflector::store();
        let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let seen = watcher(api, watcher::Config::default().labels(WORKERS)).default_backoff().reflect(writer);
        let watch = tokio::spawn(seen.for_each(async |seen| {
            if let Err(error) = seen {
                tracing::warn!(error = %error_chain(&error), "Workers' Pods are not watched, trying again");
            }
        }));
        Self { client, namespace: namespace.to_owned(), settings, pods, runs: Mutex::default(), watch }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<AttemptRef, Run>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn create(&self, attempt: &AttemptRef, spec: &Envelope, volume: &Volume) -> Result<(), RunnerError> {
        let job = manifest::job(attempt, spec, volume, &self.settings, now());
        match bounded(self.api::<Job>().create(&PostParams::default(), &job)).await {
            Ok(_) => {
                tracing::info!(%attempt, "Worker's Job created");
                Ok(())
            }
            Err(error) if is_status(&error, |s| s.is_already_exists()) => Ok(()),
            Err(error) => match refusal(&error) {
                // It was answered: nothing was made and nothing will be.
                Some(answer) => self.annotate(attempt, None, json!({REFUSED: answer})).await.map(drop),
                None => Err(failed("Creating Job", manifest::job_name(attempt))(error)),
            },
        }
    }

    /// Notes something on the attempt's Secret. False: somebody changed it since that version.
    async fn annotate(
        &self,
        attempt: &AttemptRef,
        version: Option<String>,
        notes: serde_json::Value,
    ) -> Result<bool, RunnerError> {
        let name = manifest::job_name(attempt);
        let patch = json!({"metadata": {"resourceVersion": version, "annotations": notes}});
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        match bounded(self.api::<Secret>().patch_metadata(&name, &params, &Patch::Merge(&patch))).await {
            Ok(_) => Ok(true),
            Err(error) if is_status(&error, |s| s.is_conflict() || s.is_not_found()) => Ok(false),
            Err(error) => Err(failed("Noting on Secret", name)(error)),
        }
    }

    async fn write_keys(&self, attempt: &AttemptRef, keys: &Credentials) -> Result<(), RunnerError> {
        let mut secret = manifest::keys_secret(attempt, keys);
        // What is applied replaces what we applied before: a token that is no more goes. Encoded, for `stringData` is
        // merged into `data` and owns nothing.
        let data = secret.string_data.take().into_iter().flatten();
        secret.data = Some(data.map(|(key, value)| (key, k8s_openapi::ByteString(value.into_bytes()))).collect());
        let name = manifest::keys_name(attempt);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let applied = bounded(self.api::<Secret>().patch(&name, &params, &Patch::Apply(&secret))).await;
        applied.map(drop).map_err(failed("Writing Secret", name))
    }

    /// A worker that the watch shows running needs no question.
    fn glance(&self, attempt: &AttemptRef) -> Option<Worker> {
        let run = self.runs().get(attempt).cloned()?;
        let pod = self.pods.find(|pod| pod.metadata.uid.as_deref() == Some(run.pod.as_str()))?;
        let is_quiet = phase(&pod) == "Running"
            && pod.metadata.deletion_timestamp.is_none()
            && !pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "DisruptionTarget");
        is_quiet.then(|| Worker::Alive { run, address: address(&pod), trouble: None })
    }

    async fn look_live(&self, attempt: &AttemptRef) -> Result<Worker, RunnerError> {
        let name = manifest::job_name(attempt);
        let secret =
            bounded(self.api::<Secret>().get_opt(&name)).await.map_err(failed("Reading Secret", name.clone()))?;
        let job = bounded(self.api::<Job>().get_opt(&name)).await.map_err(failed("Reading Job", name.clone()))?;
        let Some(job) = job else {
            return Ok(match secret.filter(|s| s.annotations().contains_key(ASKED)) {
                None => Worker::Absent,
                Some(secret) => Worker::Ended { run: run_of(&secret)?, exit_code: None, trouble: Some(gone(&secret)) },
            });
        };
        let mut run = match &secret {
            Some(secret) => run_of(secret)?,
            None => self.runs().get(attempt).cloned().map_or_else(|| run_without_secret(&job), Ok)?,
        };
        let pods = self.pods_of(&job).await?;
        let (mut events, time) = (Vec::new(), now());
        if needs_events(&judge(Seen { job: &job, pods: &pods, events: &[], now: time })) {
            events = self.events_of(&job, &pods).await?;
        }
        let found = judge(Seen { job: &job, pods: &pods, events: &events, now: time });
        // A Pod that is not known by its uid cannot be believed.
        run.pod = found.pod.and_then(|pod| pod.uid()).unwrap_or_default();
        run.host = found.pod.map(|pod| Host {
            pod_name: pod.name_any(),
            node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        });
        if found.pod.is_some() {
            self.runs().insert(attempt.clone(), run.clone());
        }
        let trouble = found.trouble;
        Ok(match found.stage {
            Stage::Waiting => Worker::Alive { run, address: None, trouble },
            Stage::Running => Worker::Alive { run, address: found.pod.and_then(address), trouble },
            Stage::Ended { exit_code } => Worker::Ended { run, exit_code, trouble },
        })
    }

    async fn pods_of(&self, job: &Job) -> Result<Vec<Pod>, RunnerError> {
        let name = job.name_any();
        let attempt = job.labels().get(ATTEMPT_LABEL).cloned().unwrap_or_default();
        let wanted = ListParams::default().labels(&format!("{ATTEMPT_LABEL}={attempt}"));
        let found = bounded(self.api::<Pod>().list(&wanted)).await.map_err(failed("Listing Pods of Job", name))?;
        Ok(found.items.into_iter().filter(|pod| is_owned(&pod.metadata, job)).collect())
    }

    /// Events of the Job, and of its Pods: by name if there is one, else of every Pod whose name begins as it would.
    async fn events_of(&self, job: &Job, pods: &[Pod]) -> Result<Vec<Event>, RunnerError> {
        let name = job.name_any();
        let mut wanted = vec![format!("involvedObject.kind=Job,involvedObject.name={name}")];
        wanted.extend(pods.iter().map(|p| format!("involvedObject.kind=Pod,involvedObject.name={}", p.name_any())));
        let is_over = job.status.as_ref().is_some_and(|s| s.conditions.iter().flatten().next().is_some());
        if pods.is_empty() && is_over {
            wanted.push("involvedObject.kind=Pod".to_owned());
        }
        let mut events = Vec::new();
        for fields in wanted {
            let params = ListParams::default().fields(&fields).limit(EVENTS_MAX);
            let page = bounded(self.api::<Event>().list(&params)).await;
            events.extend(page.map_err(failed("Listing Events of Job", name.clone()))?.items);
        }
        events.retain(|e| e.involved_object.name.as_deref().is_some_and(|n| n.starts_with(&name)));
        Ok(events)
    }

    /// The attempt's Pod: the one that was judged last, or the newest.
    async fn pod(&self, attempt: &AttemptRef) -> Result<Option<Pod>, RunnerError> {
        let known = self.runs().get(attempt).map(|run| run.pod.clone());
        let wanted = ListParams::default().labels(&format!("{ATTEMPT_LABEL}={attempt}"));
        let found = bounded(self.api::<Pod>().list(&wanted)).await;
        let mut pods = found.map_err(failed("Listing Pods of attempt", attempt.to_string()))?.items;
        pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0));
        let at = pods.iter().position(|pod| pod.uid() == known).or(pods.len().checked_sub(1));
        Ok(at.map(|at| pods.swap_remove(at)))
    }

    /// The end of the worker's log; empty if it has none yet.
    async fn log_tail(&self, attempt: &AttemptRef) -> Result<String, RunnerError> {
        let Some(pod) = self.pod(attempt).await? else { return Ok(String::new()) };
        if phase(&pod) == "Pending" || (has_ended(&pod) && terminated(&pod).is_none()) {
            return Ok(String::new());
        }
        let name = pod.name_any();
        let params =
            LogParams { container: Some(CONTAINER.into()), tail_lines: Some(LOG_TAIL_LINES), ..LogParams::default() };
        bounded(self.api::<Pod>().logs(&name, &params)).await.map_err(failed("Reading the log of Pod", name))
    }

    async fn delete<K>(&self, what: &'static str, name: String, params: &DeleteParams) -> Result<(), RunnerError>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        match bounded(self.api::<K>().delete(&name, params)).await {
            Ok(_) => Ok(()),
            Err(error) if is_status(&error, |s| s.is_not_found()) => Ok(()),
            Err(error) => Err(failed(what, name)(error)),
        }
    }
}

impl Runner for JobRunner {
    fn start<'a>(
        &'a self,
        job: &'a JobSpec,
        keys: &'a Credentials,
        volume: &'a Volume,
    ) -> BoxFuture<'a, Result<(), RunnerError>> {
        async {
            let unfit = |problem: String| RunnerError::JobUnreadable { path: PathBuf::from(JOB_FILE), problem };
            let attempt = AttemptRef::new(&job.uid, job.attempt_number).map_err(|e| unfit(e.to_string()))?;
            let name = manifest::job_name(&attempt);
            let secrets = self.api::<Secret>();
            let made = bounded(secrets.create(&PostParams::default(), &manifest::job_secret(&attempt, job))).await;
            let secret = match made {
                Ok(secret) => secret,
                Err(error) if is_status(&error, |s| s.is_already_exists()) => {
                    bounded(secrets.get(&name)).await.map_err(failed("Reading Secret", name))?
                }
                Err(error) => return Err(failed("Creating Secret", name)(error)),
            };
            if secret.annotations().contains_key(ASKED) {
                return Ok(());
            }
            self.write_keys(&attempt, keys).await?;
            let noted = json!({ASKED: now().to_string()});
            match self.annotate(&attempt, secret.resource_version(), noted).await? {
                // The job that was prepared counts, not the one that was brought: its key is the one in the Secret.
                true => self.create(&attempt, &job_of(&secret)?, volume).await,
                false => Ok(()),
            }
        }
        .boxed()
    }

    fn look<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<Worker, RunnerError>> {
        async {
            match self.glance(attempt) {
                Some(worker) => Ok(worker),
                None => self.look_live(attempt).await,
            }
        }
        .boxed()
    }

    fn log_line<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<Option<String>, RunnerError>> {
        async {
            let tail = self.log_tail(attempt).await?;
            let report = |line: &str| line.strip_prefix(LOG_WORD).map(|rest| rest.trim().to_owned());
            Ok(tail.lines().rev().filter_map(report).find(|line| line.ends_with('}')))
        }
        .boxed()
    }

    fn last_word<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<Option<String>, RunnerError>> {
        async {
            let pod = self.pod(attempt).await?;
            let said = pod.as_ref().and_then(|pod| terminated(pod)?.message.clone());
            Ok(said.filter(|line| !line.trim().is_empty()))
        }
        .boxed()
    }

    fn last_lines<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<String, RunnerError>> {
        async {
            let tail = match self.log_tail(attempt).await {
                Ok(tail) => tail,
                // A node that is gone has no log to give, and its absence is no reason to stop.
                Err(error) => return Ok(format!("(its log cannot be read: {})", error_chain(&error))),
            };
            let mut lines: Vec<&str> =
                tail.lines().rev().filter(|l| !l.starts_with(LOG_WORD)).take(LAST_LINES).collect();
            lines.reverse();
            Ok(lines.join("\n"))
        }
        .boxed()
    }

    fn stop<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<(), RunnerError>> {
        // The Pod has its grace to end; then its node kills it.
        self.delete::<Job>("Stopping Job", manifest::job_name(attempt), &FOREGROUND).boxed()
    }

    fn offer_credentials<'a>(
        &'a self,
        attempt: &'a AttemptRef,
        keys: &'a Credentials,
    ) -> BoxFuture<'a, Result<(), RunnerError>> {
        async {
            // Applying makes what is missing: nothing is made for an attempt that was removed.
            let name = manifest::keys_name(attempt);
            let there = bounded(self.api::<Secret>().get_opt(&name)).await.map_err(failed("Reading Secret", name))?;
            if there.is_some() { self.write_keys(attempt, keys).await } else { Ok(()) }
        }
        .boxed()
    }

    fn remove<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<(), RunnerError>> {
        async {
            let name = manifest::job_name(attempt);
            self.delete::<Job>("Removing Job", name.clone(), &DeleteParams::background()).await?;
            let plain = DeleteParams::default();
            self.delete::<Secret>("Removing Secret", manifest::keys_name(attempt), &plain).await?;
            self.delete::<Secret>("Removing Secret", name, &plain).await?;
            self.runs().remove(attempt);
            Ok(())
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<AttemptRef>, RunnerError>> {
        async {
            let wanted = ListParams::default().labels(WORKERS);
            let listing = |what| failed(what, format!("workers in {}", self.namespace));
            let secrets =
                bounded(self.api::<Secret>().list_metadata(&wanted)).await.map_err(listing("Listing Secrets of"))?;
            let jobs = bounded(self.api::<Job>().list_metadata(&wanted)).await.map_err(listing("Listing Jobs of"))?;
            let metas = secrets.items.into_iter().map(|o| o.metadata).chain(jobs.items.into_iter().map(|o| o.metadata));
            let mut attempts: Vec<AttemptRef> = metas.filter_map(|meta| manifest::attempt_of(&meta)).collect();
            attempts.sort();
            attempts.dedup();
            Ok(attempts)
        }
        .boxed()
    }
}

/// The Job stays until its Pod is gone.
static FOREGROUND: DeleteParams = DeleteParams {
    dry_run: false,
    grace_period_seconds: None,
    propagation_policy: Some(kube::api::PropagationPolicy::Foreground),
    preconditions: None,
};

fn failed(what: &'static str, object: String) -> impl FnOnce(ApiError) -> RunnerError {
    move |source| RunnerError::Cluster { what, object, source }
}

fn is_status(error: &ApiError, wanted: impl Fn(&kube::core::Status) -> bool) -> bool {
    matches!(error, ApiError::Api(kube::Error::Api(status)) if wanted(status))
}

/// The answer of an API server that will not make this object, now or later: quota, policy, an invalid field.
fn refusal(error: &ApiError) -> Option<String> {
    let ApiError::Api(kube::Error::Api(status)) = error else { return None };
    let is_final = (400..500).contains(&status.code) && !matches!(status.code, 401 | 408 | 409 | 429);
    is_final.then(|| status.message.chars().take(800).collect())
}

fn address(pod: &Pod) -> Option<SocketAddr> {
    let ip: IpAddr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    Some(SocketAddr::new(ip, REPORT_PORT))
}

fn job_of(secret: &Secret) -> Result<Envelope, RunnerError> {
    let unreadable =
        |problem: String| RunnerError::JobUnreadable { path: PathBuf::from(secret.name_any()).join(JOB_FILE), problem };
    let text = secret.data.as_ref().and_then(|data| data.get(JOB_FILE));
    let text = text.ok_or_else(|| unreadable("it is missing".to_owned()))?;
    serde_json::from_slice(&text.0).map_err(|e| unreadable(e.to_string()))
}

fn run_of(secret: &Secret) -> Result<Run, RunnerError> {
    let job = job_of(secret)?;
    Ok(Run { attempt: job.attempt, pod: String::new(), key: job.report_key, host: None })
}

/// The Secret with the key is gone and the Job is not: nothing it says can be believed any more. A key that nobody has
/// keeps it silent until it is ended for that.
fn run_without_secret(job: &Job) -> Result<Run, RunnerError> {
    let name = job.name_any();
    let unreadable = |problem: String| RunnerError::JobUnreadable { path: PathBuf::from(&name), problem };
    let id = job.annotations().get(ATTEMPT_ID).and_then(|id| id.parse().ok());
    let attempt = id.ok_or_else(|| unreadable(format!("its Secret is gone, and it has no {ATTEMPT_ID}")))?;
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|e| unreadable(e.to_string()))?;
    Ok(Run { attempt, pod: String::new(), key: ReportKey::new(key), host: None })
}

/// A Job was asked for and is not there.
fn gone(secret: &Secret) -> Trouble {
    let (reason, seen) = match secret.annotations().get(REFUSED) {
        Some(answer) => (FailureReason::WorkerNotCreated, format!("it was refused: {answer}")),
        None => (FailureReason::PodDeleted, "it is gone, with its Pod, or was never made".to_owned()),
    };
    Trouble { reason, message: format!("Job {}: {seen}; {}", secret.name_any(), cure(reason)) }
}
