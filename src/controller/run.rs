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

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config, ResourceExt,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        events::{Recorder, Reporter},
        reflector,
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    config::{OperatorConfig, Workers},
    context::{API_DEADLINE, Context, Memory, bounded},
    error_chain,
    feed::{Feed, WAITING_MAX, Watches, act},
    lease::{Election, Leadership, Lost},
    rivals::Rivals,
    runner::{Runner, job::JobRunner, process::ProcessRunner, settings::WorkerSettings},
    snapshot::drivers::ExposureSettings,
    target::{self, errands::Errands, probe::Prober},
    work::queue::Queue,
};
use crate::{
    http::{Readiness, operator_router, serve},
    metrics::Metrics,
};

/// Name of the Lease in the operator's namespace.
pub const LEASE: &str = "tidemark-operator";
/// Name of the operator in Events.
const REPORTER: &str = "tidemark.dev/operator";
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
    #[error("Exposure settings {path:?} do not parse: {problem}")]
    Exposure { path: PathBuf, problem: String },
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
    exposure: Option<ExposureSettings>,
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
    let client = client(&config).await?;
    let runner: Arc<dyn Runner> = match config.workers {
        Workers::Process => {
            Arc::new(ProcessRunner::open(&config.state_dir, program, config.worker_environment.clone())?)
        }
        Workers::Job => {
            let named = config.worker_settings.as_deref().map(WorkerSettings::read).transpose()?;
            let mut settings = named.unwrap_or_default();
            settings.image = config.worker_image.clone().unwrap_or(settings.image);
            Arc::new(JobRunner::open(client.clone(), &config.namespace, settings))
        }
    };
    let identity = match &config.identity {
        Some(identity) => identity.clone(),
        None => random_identity()?,
    };
    let exposure = exposure(&config)?;
    Ok(Operator { config, identity, roots, exposure, client, runner, prober, metrics, readiness })
}

/// Claims and snapshots are for worker Pods.
fn exposure(config: &OperatorConfig) -> Result<Option<ExposureSettings>, OperatorError> {
    let read = |path: &PathBuf| {
        let refused = |problem| OperatorError::Exposure { path: path.clone(), problem };
        ExposureSettings::read(path).map_err(refused)
    };
    match config.workers {
        Workers::Process => Ok(None),
        Workers::Job => Ok(Some(config.exposure_settings.as_ref().map(read).transpose()?.unwrap_or_default())),
    }
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
        let mut rivals = Rivals::new(self.client.clone(), &self.config.namespace, self.config.lease_timing.duration);
        // A standby is ready: it does its work, which is to wait.
        self.readiness.send_replace(Readiness::Ready);
        while !stop.is_cancelled() {
            let leadership = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                leadership = election.acquire() => leadership,
            };
            if let Err(why) = rivals.look().await {
                // Ours is given back first: two that meet like this must not wait for each other for ever.
                election.release(leadership).await;
                tracing::error!(%why, "This operator does nothing");
                self.readiness.send_replace(Readiness::NotReady(why.to_string()));
                let pause = self.config.lease_timing.look_interval.mul_f64(1.0 + rivals.share());
                tokio::select! { () = sleep(pause) => {}, () = stop.cancelled() => {} }
                continue;
            }
            self.readiness.send_replace(Readiness::Ready);
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
        let (poke_targets, poked_targets) = mpsc::channel(WAITING_MAX);
        let (backups, backup_feed) = Feed::new();
        let (restores, restore_feed) = Feed::new();
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
            restores,
            targets,
            secrets,
            namespace: self.config.namespace.clone(),
            host_device_roots: self.roots.clone(),
            exposure: self.exposure.clone(),
            cluster,
            queue: Mutex::new(Queue::new(usize::from(self.config.max_concurrent_backups), [])),
            memory: Mutex::new(Memory::default()),
            poke_targets,
            errands: Errands::default(),
            lookups: Arc::default(),
            soundness: Arc::default(),
            removals: Arc::default(),
            scratch_dir: self.config.state_dir.clone(),
        });
        let watches = Watches { backup_feed, restore_feed, target_writer, secret_writer, poked_targets };
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
