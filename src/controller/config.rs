//! What the operator is told when it is started.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use super::lease::Timing;

/// Flags of `tidemark operator`.
#[derive(Debug, Clone, clap::Args)]
pub struct OperatorConfig {
    /// Kubeconfig file. Absent: $KUBECONFIG, ~/.kube/config, or the Pod's own service account
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The operator's own namespace: targets' Secrets, the Lease and Backups of host devices are there
    #[arg(long, default_value = "tidemark-system", env = "TIDEMARK_NAMESPACE")]
    pub namespace: String,

    /// Who runs workers
    #[arg(long, value_enum, default_value_t = Workers::Process)]
    pub workers: Workers,

    /// Directory for what each local worker is given and says; it holds keys and is created with mode 0700
    #[arg(long, value_name = "DIR", default_value = "/var/lib/tidemark")]
    pub state_dir: PathBuf,

    /// Directory below which Backups of the operator's namespace may read devices and files; may be given several times
    #[arg(long = "host-device-root", value_name = "DIR")]
    pub host_device_roots: Vec<PathBuf>,

    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub http_listen: SocketAddr,

    /// Writes the address that is really served to this file: of use with port 0
    #[arg(long, value_name = "FILE")]
    pub http_address_file: Option<PathBuf>,

    /// Backups that run at once, at most
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub max_concurrent_backups: u16,

    /// Act only while holding the Lease; set to false only where nobody else can run
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_elect: bool,

    /// Name in the Lease and in Events. Absent: the host's name and a random number
    #[arg(long)]
    pub identity: Option<String>,

    /// Program that is started as `PROGRAM worker …`. Absent: this one
    #[arg(long, value_name = "FILE")]
    pub worker_program: Option<PathBuf>,

    /// Image of worker Pods, the operator's own as a rule; needed with --workers=job
    #[arg(long, value_name = "IMAGE", required_if_eq("workers", "job"))]
    pub worker_image: Option<String>,

    /// What worker Pods look like: a YAML file with resources, tolerations, nodeSelector and so on
    #[arg(long, value_name = "FILE")]
    pub worker_settings: Option<PathBuf>,

    /// How snapshots are exposed to worker Pods: a YAML file, by CSI driver
    #[arg(long, value_name = "FILE")]
    pub exposure_settings: Option<PathBuf>,

    /// Environment of workers, which is empty otherwise: set by the command line from a closed list of its own variables
    #[arg(skip)]
    pub worker_environment: Vec<(OsString, OsString)>,

    /// How long leadership lasts and how often it is renewed
    #[arg(skip)]
    pub lease_timing: Timing,
}

/// Who runs workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Workers {
    /// Child processes of this machine
    #[default]
    Process,
    /// Kubernetes Jobs in the operator's namespace
    Job,
}
