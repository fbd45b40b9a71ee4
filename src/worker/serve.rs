//! The `worker` command: everything it is told is in two files, everything it tells leaves by the three carriers.
//!
//! It has no way to Kubernetes and no token for one. SIGTERM ends the attempt in order: journal, lock, last word.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::{
    attempt::{self, Attempt},
    reporter::{self, Carriers},
    restoring,
};
use crate::{
    model::{Failure, FailureReason, JobSpec, Outcome, Phase, Report, StoreLocation, Task},
    store::{self, credentials::CredentialSource, guard::Timing},
    telemetry,
};

/// Where a worker finds its job and leaves its words.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkerOptions {
    /// The job: one JSON file, written by the operator.
    #[arg(long, value_name = "FILE", default_value = "/etc/tidemark/job.json")]
    pub job: PathBuf,
    /// A directory with one file per key of the target's secret; read again when the store refuses.
    #[arg(long, value_name = "DIR", default_value = "/etc/tidemark/credentials")]
    pub credentials: PathBuf,
    /// A file with the uid of the Pod this worker runs in, which then binds its reports. Absent: the job's own word does.
    #[arg(long, value_name = "FILE")]
    pub pod_uid_file: Option<PathBuf>,
    /// Where reports are served.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9180")]
    pub listen: SocketAddr,
    /// The address really bound is written here, for a port of 0.
    #[arg(long, value_name = "FILE")]
    pub address_file: Option<PathBuf>,
    /// The newest report is written here every two seconds and at the end.
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log")]
    pub last_word: PathBuf,
    /// For tables that do not fit in memory; up to 0.8 GiB for 8 TiB.
    #[arg(long, value_name = "DIR", default_value = "/tmp")]
    pub scratch_dir: PathBuf,
}

/// Runs one attempt to its end. The answer is the exit code.
pub async fn serve(options: WorkerOptions) -> u8 {
    let job = match read_job(&options) {
        Ok(job) => job,
        Err(seen) => {
            tracing::error!(job = %options.job.display(), %seen, "Job cannot be read");
            return FailureReason::BadJobSpec.exit_code();
        }
    };
    let listener = match listen(&options).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            // The log and the last word still carry reports.
            tracing::warn!(address = %options.listen, %error, "Reports cannot be served");
            None
        }
    };
    let (reports, heard) = watch::channel(attempt::first_report(&job));
    let last_word = Some(options.last_word.clone());
    let carried = tokio::spawn(reporter::carry(heard, Carriers { listener, last_word, key: job.report_key.clone() }));
    let last = run(job, &options, reports).await;
    if let Err(error) = carried.await {
        tracing::error!(%error, "Reports ended early");
    }
    match (last.is_fulfilled(), last.failure) {
        (true, _) => 0,
        (false, Some(failure)) => failure.reason.exit_code(),
        (false, None) => FailureReason::Bug.exit_code(),
    }
}

async fn run(job: JobSpec, options: &WorkerOptions, reports: watch::Sender<Report>) -> Report {
    let credentials = match job.store {
        StoreLocation::S3(_) => CredentialSource::Mounted(options.credentials.clone()),
        StoreLocation::Directory { .. } => CredentialSource::None,
    };
    let opened = attempt::check(&job).and_then(|()| store::open(&job.store, credentials));
    let objects = match opened {
        Ok(objects) => objects,
        Err(error) => {
            reports.send_modify(|report| {
                let (reason, key) = (error.reason(), error.key.clone());
                report.phase = Phase::Ended;
                report.failure = Some(Failure::new(reason, error.to_string(), Some(key), telemetry::now()));
                report.outcome = Some(Outcome::Failed);
            });
            let last = reports.borrow().clone();
            return last;
        }
    };
    let cancel = CancellationToken::new();
    cancel_on_term(&cancel);
    let scratch_dir = options.scratch_dir.clone();
    let attempt = Attempt { job, objects, scratch_dir, timing: Timing::default(), cancel };
    match attempt.job.task {
        Task::Backup(_) => attempt::run(attempt, reports).await,
        Task::Restore(_) => restoring::run(attempt, reports).await,
    }
}

fn cancel_on_term(cancel: &CancellationToken) {
    let cancel = cancel.clone();
    let Ok(mut term) = signal(SignalKind::terminate()) else { return };
    tokio::spawn(async move {
        term.recv().await;
        cancel.cancel();
    });
}

fn read_job(options: &WorkerOptions) -> Result<JobSpec, String> {
    let text = std::fs::read(&options.job).map_err(|e| e.to_string())?;
    let mut job: JobSpec = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    if let Some(file) = &options.pod_uid_file {
        let uid = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        job.pod = uid.trim().to_owned();
    }
    Ok(job)
}

async fn listen(options: &WorkerOptions) -> std::io::Result<TcpListener> {
    let listener = match TcpListener::bind(options.listen).await {
        // A node without IPv6 does not know the address that stands for both families.
        Err(_) if options.listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, options.listen.port())).await?
        }
        bound => bound?,
    };
    if let Some(file) = &options.address_file {
        // Written whole or not at all: the operator may look at any moment.
        let partial = file.with_extension("partial");
        std::fs::write(&partial, format!("{}\n", listener.local_addr()?))?;
        std::fs::rename(&partial, file)?;
    }
    Ok(listener)
}
