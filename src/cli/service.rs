//! Commands for the cluster and the shell, and the signals every long command listens to.

use std::path::PathBuf;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CliError, environment, say, tell};
use crate::{api, controller, model::FailureReason};

/// Variables a worker process inherits; nothing else of our environment reaches it.
const WORKER_VARIABLES: [&str; 4] = ["TIDEMARK_LOG", "RUST_BACKTRACE", "SSL_CERT_FILE", "SSL_CERT_DIR"];

pub(super) async fn operator(mut config: controller::OperatorConfig) -> Result<(), CliError> {
    config.worker_environment =
        WORKER_VARIABLES.iter().filter_map(|name| Some((name.into(), environment::read(name)?.into()))).collect();
    controller::run(config).await.map_err(|error| {
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(source) = cause {
            message = format!("{message}: {source}");
            cause = source.source();
        }
        CliError::cured(FailureReason::Bug, message)
    })
}

#[derive(Debug, clap::Args)]
pub(super) struct CrdsOptions {
    /// Write one file per resource to this directory instead of printing
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn crds(options: &CrdsOptions) -> Result<(), CliError> {
    let Some(folder) = &options.dir else {
        say(api::crds_yaml().trim_end());
        return Ok(());
    };
    let failed = |error: std::io::Error| {
        let message = format!("{}: {error}; name a directory that can be written", folder.display());
        CliError::cured(FailureReason::SourceRefused, message)
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    for (name, content) in api::crd_files() {
        std::fs::write(folder.join(&name), content).map_err(failed)?;
        tell(&format!("Wrote {}", folder.join(name).display()));
    }
    Ok(())
}

/// Ctrl-C and SIGTERM.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| CliError::new(FailureReason::Bug, format!("Signals cannot be received: {error}")))
        };
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
