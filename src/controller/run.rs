//! The operator's life: serve → campaign → lead → lose or give back → campaign again.
//!
//! Everything that acts lives inside one future, [`lead`]. When the lease is lost that future is dropped: no reconcile
//! goes on, and what a packet already sent may still do, the resourceVersion of each write refuses. On SIGTERM `/readyz`
//! turns first, then reconciles that run are let finish, then the lease is given back. Workers are left running in every
//! case; whoever leads next finds them.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, future, stream};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api, Client, Config, ResourceExt,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        Config as ControllerConfig, Predicate, WatchStreamExt, applier,
        events::{Recorder, Reporter},
        predicates,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher,
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    backup::{
        self,
        queue::{Entry, Queue, TargetLimits},
    },
    census::census,
    config::{OperatorConfig, Workers},
    context::{API_DEADLINE, Context, Memory, bounded},
    error_chain,
    lease::{Election, Leadership, Lost},
    runner::{Runner, process::ProcessRunner},
    target::{self, Targets, errands::Errands, probe::Prober},
};
use crate::{
    api::{Backup, BackupState, ClusterBackupTarget},
    http::{Readiness, operator_router, serve},
    metrics::Metrics,
    telemetry::now,
};

/// Name of the Lease in the operator's namespace.
pub const LEASE: &str = "tidemark-operator";
/// Name of the operator in Events.
const REPORTER: &str = "tidemark.dev/operator";
/// Reconciles at once, per kind: each is a few requests to the API server.
const CONCURRENT_RECONCILES: u16 = 32;
/// Reconciles that run when the operator is told to stop have this long to finish.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    #[error("Kubernetes configuration cannot be used: {0}")]
    Kubeconfig(String),
    #[error("Operator cannot listen on {address}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("--host-device-root {path:?} cannot be used: name an existing directory")]
    Root { path: PathBuf, source: std::io::Error },
    #[error("Worker program is not known: set --worker-program")]
    Program(#[source] std::io::Error),
    #[error(transparent)]
    Runner(#[from] super::runner::RunnerError),
    #[error("File {path:?} cannot be written")]
    AddressFile { path: PathBuf, source: std::io::Error },
    #[error("Signals cannot be received")]
    Signals(#[source] std::io::Error),
    #[error("No random numbers: {0}")]
    Random(getrandom::Error),
}

/// What is the same for every term of leadership.
struct Operator {
    config: OperatorConfig,
    identity: String,
    roots: Vec<PathBuf>,
    client: Client,
    runner: Arc<dyn Runner>,
    prober: Prober,
    metrics: Arc<Metrics>,
    readiness: watch::Sender<Readiness>,
}

/// Runs the operator until SIGTERM or SIGINT.
pub async fn run(config: OperatorConfig) -> Result<(), OperatorError> {
    run_with_prober(config, target::probe::prober()).await
}

/// The same, with another look at buckets.
pub async fn run_with_prober(config: OperatorConfig, prober: Prober) -> Result<(), OperatorError> {
    let stop = stop_on_signals()?;
    run_until(config, prober, Arc::new(Metrics::new()), stop).await
}

/// Runs the operator until told to stop. The caller keeps the metrics.
pub async fn run_until(
    config: OperatorConfig,
    prober: Prober,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), OperatorError> {
    let (readiness, ready) = watch::channel(Readiness::NotReady("The operator is starting".into()));
    let listener = listen(&config).await?;
    let serving = CancellationToken::new();
    let server = tokio::spawn(serve(listener, operator_router(metrics.clone(), ready), serving.clone()));
    let operator = open(config, prober, metrics, readiness).await?;
    operator.live(&stop).await;
    serving.cancel();
    if let Ok(Err(error)) = server.await {
        tracing::warn!(%error, "HTTP server ended badly");
    }
    Ok(())
}

async fn listen(config: &OperatorConfig) -> Result<TcpListener, OperatorError> {
    let address = config.http_listen;
    let failed = |source| OperatorError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let served = listener.local_addr().map_err(failed)?;
    tracing::info!(%served, "Serving /healthz, /readyz and /metrics");
    if let Some(path) = &config.http_address_file {
        let new = path.with_extension("new");
        std::fs::write(&new, format!("{served}\n"))
            .and_then(|()| std::fs::rename(&new, path))
            .map_err(|source| OperatorError::AddressFile { path: path.clone(), source })?;
    }
    Ok(listener)
}

async fn open(
    config: OperatorConfig,
    prober: Prober,
    metrics: Arc<Metrics>,
    readiness: watch::Sender<Readiness>,
) -> Result<Operator, OperatorError> {
    let root = |path: &PathBuf| {
        let failed = |source| OperatorError::Root { path: path.clone(), source };
        std::fs::canonicalize(path).map_err(failed)
    };
    let roots = config.host_device_roots.iter().map(root).collect::<Result<Vec<_>, _>>()?;
    let program = match &config.worker_program {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(OperatorError::Program)?,
    };
    let runner: Arc<dyn Runner> = match config.workers {
        Workers::Process => {
            Arc::new(ProcessRunner::open(&config.state_dir, program, config.worker_environment.clone())?)
        }
    };
    let identity = match &config.identity {
        Some(identity) => identity.clone(),
        None => random_identity()?,
    };
    let client = client(&config).await?;
    Ok(Operator { config, identity, roots, client, runner, prober, metrics, readiness })
}

/// Host and a random number: a restarted operator is another candidate.
fn random_identity() -> Result<String, OperatorError> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(OperatorError::Random)?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(format!("{host}-{}", hex::encode(random)))
}

async fn client(config: &OperatorConfig) -> Result<Client, OperatorError> {
    let unusable = |error: &dyn std::error::Error| OperatorError::Kubeconfig(error_chain(error));
    let mut cluster = match &config.kubeconfig {
        None => Config::infer().await.map_err(|e| unusable(&e))?,
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|e| unusable(&e))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(|e| unusable(&e))?
        }
    };
    cluster.connect_timeout = Some(Duration::from_secs(5));
    cluster.write_timeout = Some(API_DEADLINE);
    Client::try_from(cluster).map_err(|e| unusable(&e))
}

fn stop_on_signals() -> Result<CancellationToken, OperatorError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(OperatorError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(OperatorError::Signals)?;
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        told.cancel();
    });
    Ok(stop)
}

impl Operator {
    /// Terms of leadership, until told to stop.
    async fn live(&self, stop: &CancellationToken) {
        if !self.config.leader_elect {
            self.readiness.send_replace(Readiness::Ready);
            self.lead(stop).await;
            return;
        }
        let election =
            Election::new(self.client.clone(), &self.config.namespace, LEASE, &self.identity, self.config.lease_timing);
        while !stop.is_cancelled() {
            // A standby is ready: it does its work, which is to wait.
            self.readiness.send_replace(Readiness::Ready);
            let leadership = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                leadership = election.acquire() => leadership,
            };
            tracing::info!(identity = %self.identity, "This operator leads");
            self.term(&election, leadership, stop).await;
        }
        self.readiness.send_replace(Readiness::NotReady("The operator is stopping".into()));
    }

    /// One term: ends when the lease is lost or when told to stop.
    async fn term(&self, election: &Election, mut leadership: Leadership, stop: &CancellationToken) {
        self.metrics.set_leading(true);
        let lost: Option<Lost> = tokio::select! {
            biased;
            // Dropping the other future ends every reconcile at once.
            lost = election.keep(&mut leadership) => Some(lost),
            () = self.lead(stop) => None,
        };
        self.metrics.set_leading(false);
        match lost {
            Some(lost) => {
                tracing::warn!(identity = %self.identity, %lost, "Leadership is lost, this operator acts no more")
            }
            None => {
                election.release(leadership).await;
                tracing::info!(identity = %self.identity, "Leadership is given back");
            }
        }
    }

    /// Everything that acts. Ends when told to stop, after the reconciles that run.
    async fn lead(&self, stop: &CancellationToken) {
        let Some(cluster) = self.cluster(stop).await else { return };
        let (poke_backups, poked) = mpsc::channel(1024);
        let (poke_targets, poked_targets) = mpsc::channel(1024);
        let (backups, backup_writer) = reflector::store();
        let (targets, target_writer) = reflector::store();
        let (secrets, secret_writer) = reflector::store();
        let reporter =
            Reporter { controller: REPORTER.into(), instance: Some(self.identity.chars().take(128).collect()) };
        let context = Arc::new(Context {
            client: self.client.clone(),
            runner: self.runner.clone(),
            prober: self.prober.clone(),
            metrics: self.metrics.clone(),
            recorder: Recorder::new(self.client.clone(), reporter),
            backups,
            targets,
            secrets,
            namespace: self.config.namespace.clone(),
            host_device_roots: self.roots.clone(),
            cluster,
            queue: Mutex::new(Queue::new(usize::from(self.config.max_concurrent_backups), [])),
            memory: Mutex::new(Memory::default()),
            poke_backups,
            poke_targets,
            errands: Errands::default(),
            lookups: Arc::default(),
            removals: Arc::default(),
            scratch_dir: self.config.state_dir.clone(),
        });
        let watches = Watches { backup_writer, target_writer, secret_writer, poked, poked_targets };
        let acting = act(context, watches, stop);
        tokio::pin!(acting);
        tokio::select! {
            () = &mut acting => return,
            () = stop.cancelled() => {}
        }
        self.readiness.send_replace(Readiness::NotReady("The operator is stopping".into()));
        // Reconciles that run are let finish; each one is bounded by its requests' deadlines.
        if tokio::time::timeout(SHUTDOWN_GRACE, acting).await.is_err() {
            tracing::warn!("Reconciles did not end in time and are dropped");
        }
    }

    /// Uid of the namespace kube-system, the cluster's identity in records; none if told to stop before.
    async fn cluster(&self, stop: &CancellationToken) -> Option<String> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return None,
                answer = bounded(namespaces.get("kube-system")) => answer,
            };
            match asked.map(|namespace| namespace.uid()) {
                Ok(Some(uid)) => return Some(uid),
                Ok(None) => tracing::warn!("Namespace kube-system has no uid"),
                Err(error) => {
                    tracing::warn!(error = %error_chain(&error), "Namespace kube-system could not be read, trying again");
                }
            }
            sleep(Duration::from_secs(2)).await;
        }
    }
}

/// The ends of the caches that are fed.
struct Watches {
    backup_writer: Writer<Backup>,
    target_writer: Writer<ClusterBackupTarget>,
    secret_writer: Writer<Secret>,
    poked: mpsc::Receiver<ObjectRef<Backup>>,
    poked_targets: mpsc::Receiver<ObjectRef<ClusterBackupTarget>>,
}

/// Feeds the caches, and once they are full, reconciles what changes.
async fn act(context: Arc<Context>, watches: Watches, stop: &CancellationToken) {
    let Watches { backup_writer, target_writer, secret_writer, poked, poked_targets } = watches;
    let config = || watcher::Config::default();
    let client = || context.client.clone();
    // Our own status writes must not wake us: only generation and finalizers do. Deleting raises the generation.
    let changed = predicates::generation.combine(predicates::finalizers);
    let (again_backup, backup_changes) = mpsc::channel::<ObjectRef<Backup>>(1024);
    let (again_target, target_changes) = mpsc::channel::<ObjectRef<ClusterBackupTarget>>(1024);

    let backup_watch = watcher(Api::<Backup>::all(client()), config())
        .default_backoff()
        .reflect(backup_writer)
        .touched_objects()
        .predicate_filter(changed, Default::default())
        .for_each(async |touched| match touched {
            Ok(backup) => drop(again_backup.send(ObjectRef::from_obj(&backup)).await),
            Err(error) => tracing::warn!(error = %error_chain(&error), "Backups are not watched, trying again"),
        });
    let target_watch = watcher(Api::<ClusterBackupTarget>::all(client()), config())
        .default_backoff()
        .reflect(target_writer)
        .touched_objects()
        .predicate_filter(predicates::generation.combine(predicates::finalizers), Default::default())
        .for_each(async |touched| match touched {
            Ok(target) => drop(again_target.send(ObjectRef::from_obj(&target)).await),
            Err(error) => tracing::warn!(error = %error_chain(&error), "Targets are not watched, trying again"),
        });
    let secret_watch = watcher(Api::<Secret>::namespaced(client(), &context.namespace), config())
        .default_backoff()
        .reflect(secret_writer)
        .touched_objects()
        .for_each(async |touched| match touched {
            Ok(secret) => touch_targets(&context, &secret, &again_target).await,
            Err(error) => tracing::warn!(error = %error_chain(&error), "Secrets are not watched, trying again"),
        });

    let backups =
        reconcile_backups(&context, stream::select(receiver_stream(backup_changes), receiver_stream(poked)), stop);
    let target_changes = stream::select(receiver_stream(target_changes), receiver_stream(poked_targets));
    let targets = reconcile_targets(&context, target_changes, stop);
    let feeding = future::join3(backup_watch, target_watch, secret_watch);
    let working = future::join4(backups, targets, census(&context, stop), context.errands.run(stop));
    tokio::select! {
        _ = feeding => {}
        _ = working => {}
    }
}

/// A Secret that changed makes its targets be looked at at once.
async fn touch_targets(context: &Context, secret: &Secret, again: &mpsc::Sender<ObjectRef<ClusterBackupTarget>>) {
    let name = secret.name_any();
    for target in context.targets.state().iter().filter(|t| t.spec.credentials.secret_name == name) {
        drop(again.send(ObjectRef::from_obj(target.as_ref())).await);
    }
}

/// Waits until every cache was filled once: before that, "not there" means nothing.
pub(super) async fn caches_filled(context: &Context) {
    async fn filled<K>(store: &Store<K>)
    where
        K: kube::runtime::reflector::Lookup + Clone + 'static,
        K::DynamicType: Eq + std::hash::Hash + Clone,
    {
        // The writer lives as long as we do: it cannot be dropped before.
        drop(store.wait_until_ready().await);
    }
    future::join3(filled(&context.backups), filled(&context.targets), filled(&context.secrets)).await;
}

async fn reconcile_backups(
    context: &Arc<Context>,
    changes: impl futures::Stream<Item = ObjectRef<Backup>> + Send,
    stop: &CancellationToken,
) {
    caches_filled(context).await;
    context.queue().begin(context.backups.state().iter().filter_map(|b| running_entry(b)));
    let requests =
        changes.map(Ok::<_, std::convert::Infallible>).map_ok(kube::runtime::controller::ReconcileRequest::from);
    let config = ControllerConfig::default().concurrency(CONCURRENT_RECONCILES);
    let reconcile = |backup, context| Box::pin(backup::reconcile(backup, context));
    applier(
        reconcile,
        backup::after_error,
        context.clone(),
        context.backups.clone(),
        requests.take_until(stop.cancelled()),
        config,
    )
    .for_each(async |_| {})
    .await;
}

async fn reconcile_targets(
    context: &Arc<Context>,
    changes: impl futures::Stream<Item = ObjectRef<ClusterBackupTarget>> + Send,
    stop: &CancellationToken,
) {
    caches_filled(context).await;
    let requests =
        changes.map(Ok::<_, std::convert::Infallible>).map_ok(kube::runtime::controller::ReconcileRequest::from);
    let config = ControllerConfig::default().concurrency(CONCURRENT_RECONCILES);
    let targets = Arc::new(Targets::new(context.clone()));
    let reconcile = |target, targets| Box::pin(target::reconcile(target, targets));
    applier(
        reconcile,
        target::after_error,
        targets,
        context.targets.clone(),
        requests.take_until(stop.cancelled()),
        config,
    )
    .for_each(async |_| {})
    .await;
}

/// A Backup that status shows as running holds a slot from the beginning, whatever the order of the first looks.
fn running_entry(backup: &Backup) -> Option<Entry> {
    let status = backup.status.as_ref()?;
    let runs =
        matches!(status.state, Some(BackupState::Snapshotting | BackupState::InProgress | BackupState::Committing));
    let target = status.target.as_ref().filter(|_| runs)?;
    Some(Entry {
        uid: backup.uid()?,
        namespace: backup.namespace()?,
        target: target.name.clone(),
        volume: status.store.as_ref()?.volume.clone(),
        since: now(),
        // Limits are asked of those that wait; this one runs.
        target_limits: TargetLimits { total: 1, per_namespace: 1 },
    })
}

/// A channel's receiving end as a stream.
fn receiver_stream<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> impl futures::Stream<Item = T> + Send {
    stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|item| (item, receiver)))
}
