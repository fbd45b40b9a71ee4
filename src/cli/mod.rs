//! The command line: the only reader of flags and environment.
//!
//! * `target`       where the backupstore is: URLs, flags and variables become one location
//! * `environment`  the environment's door
//! * `scratch`      where a command keeps what does not fit in memory
//! * `show`         a bar on a terminal, lines elsewhere, JSON for programs
//! * `cure`         what a person does about each failure
//! * `state`        what a killed `backup` leaves, so that the next one continues
//! * `backup`, `restore`, `list`, `verify`, `heal`, `du`, `delete`, `sweep`, `service`  the commands (`sweeping`: what two
//!   of them share)
//!
//! Results go to stdout, everything else to stderr. Whatever goes wrong is one line that names the object, what was
//! seen and the cure, and an exit code (docs/cli.md); nothing typed at us panics.

mod backup;
mod cure;
mod delete;
mod du;
mod environment;
mod heal;
mod list;
mod restore;
mod scratch;
mod service;
mod show;
mod state;
mod sweep;
mod sweeping;
mod target;
mod verify;

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};

use crate::{
    model::FailureReason,
    store::error::StoreError,
    telemetry::{self, Colours, LogFormat},
};

/// What is shown of the log when nobody asked: what we recovered from. Failures are told as results.
const LOG_FILTER_COMMANDS: &str = "warn,tidemark::worker::tell=off";

const EXAMPLES: &str = "\
EXAMPLES
  Back up a disk image into a directory, look, and restore it:
    tidemark backup disk.img --target /mnt/backups --volume web-1
    tidemark ls /mnt/backups
    tidemark restore 'file:///mnt/backups?backup=backup-0123456789abcdef&volume=web-1' out.img

  The same to S3; what is in the bucket already is not sent again:
    export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…
    tidemark backup /dev/vg0/snap --target s3://bucket@eu-central-1/prefix/ --volume web-1

  To MinIO, Ceph and the like:
    tidemark backup disk.img --target s3://bucket/ --volume web-1 --endpoint https://minio:9000

  Take a Longhorn backup out of its backupstore, without Longhorn:
    tidemark restore 's3://bucket@us-east-1/?backup=backup-0123456789abcdef&volume=pvc-…' out.img

EXIT CODES
   0  done
  64  what was typed, or an environment variable, cannot be used
  65  refused by the store, or what it holds is damaged
  66  the file or device on this side failed or was refused
  67  the store could not be reached, or gave out
  68  the store acknowledged nothing for --stall, or the deadline passed
  69  another backup or a deletion holds the volume
  70  a fault of this program or this machine
  75  cancelled

ENVIRONMENT
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN  credentials
  AWS_ENDPOINTS, AWS_REGION, AWS_CERT, VIRTUAL_HOSTED_STYLE    as in a Longhorn credential secret
  TIDEMARK_LOG                                                 log filter, such as tidemark=debug
  NO_COLOR                                                     log lines without colours on a terminal, too
  SSL_CERT_FILE, SSL_CERT_DIR                                  whom to trust, instead of the system's certificates";

/// Backs up volumes block by block to S3, in Longhorn's backupstore format, with a progress that cannot lie.
#[derive(Debug, Parser)]
#[command(name = "tidemark", version, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    log: LogOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct LogOptions {
    /// Log filter: a level, or target=level pairs
    #[arg(long, global = true, env = "TIDEMARK_LOG", value_name = "FILTER", help_heading = "Log")]
    log: Option<String>,
    /// How log lines look, on stderr
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT", help_heading = "Log")]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    Backup(backup::BackupOptions),
    Restore(restore::RestoreOptions),
    Ls(list::ListOptions),
    Inspect(list::InspectOptions),
    Delete(delete::DeleteOptions),
    Sweep(sweep::SweepOptions),
    Verify(verify::VerifyOptions),
    Heal(heal::HealOptions),
    Du(du::DuOptions),
    /// Watch Backups and ClusterBackupTargets, run workers, and write what the store has confirmed into status
    ///
    /// Example: tidemark operator --kubeconfig ~/.kube/config --workers=process --host-device-root=/dev/vg0
    Operator(Box<crate::controller::OperatorConfig>),
    /// Run one backup attempt from a job file: what the operator starts in a Pod or as a process
    Worker(crate::worker::WorkerOptions),
    /// Print the custom resource definitions, or write them to a directory
    Crds(service::CrdsOptions),
    /// Print the completions of a shell
    ///
    /// Example: tidemark completions bash > /etc/bash_completion.d/tidemark
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// Why a command ended without its result: one line, and the exit code.
#[derive(Debug)]
struct CliError {
    code: u8,
    /// Absent where the message names its own cure.
    reason: Option<FailureReason>,
    message: String,
    object: Option<String>,
    /// What may be done now beside the cure, on a line of its own.
    hint: Option<String>,
}

impl CliError {
    /// What was typed cannot be used.
    fn usage(message: impl Into<String>) -> Self {
        Self::cured(FailureReason::BadJobSpec, message)
    }

    /// One whose message names its own cure.
    fn cured(like: FailureReason, message: impl Into<String>) -> Self {
        Self { reason: None, ..Self::new(like, message) }
    }

    fn new(reason: FailureReason, message: impl Into<String>) -> Self {
        let (code, message) = (reason.exit_code(), message.into());
        Self { code, reason: Some(reason), message, object: None, hint: None }
    }
}

/// So many random bytes.
fn random<const N: usize>() -> Result<[u8; N], CliError> {
    let mut random = [0; N];
    getrandom::fill(&mut random)
        .map_err(|error| CliError::new(FailureReason::Bug, format!("The system has no random numbers: {error}")))?;
    Ok(random)
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        let reason = error.reason();
        let message = format!("{reason}: {error}");
        Self { code: reason.exit_code(), reason: Some(reason), message, object: Some(error.key), hint: None }
    }
}

/// The program. Returns its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors. A reader that went away does not matter.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { FailureReason::BadJobSpec.exit_code() } else { 0 });
        }
    };
    start_log(&cli);
    ExitCode::from(dispatch(cli.command))
}

fn start_log(cli: &Cli) {
    let quiet = match cli.command {
        Command::Worker(_) | Command::Operator(_) => None,
        _ => Some(LOG_FILTER_COMMANDS),
    };
    let colours = Colours::of(std::io::stderr().is_terminal(), environment::read("NO_COLOR").as_deref());
    telemetry::init(cli.log.log_format, cli.log.log.as_deref().or(quiet), colours);
}

fn dispatch(command: Command) -> u8 {
    match command {
        Command::Backup(options) => finish(options.show.json, async_runtime(backup::run(options))),
        Command::Restore(options) => finish(options.show.json, async_runtime(restore::run(options))),
        Command::Ls(options) => finish(options.json, async_runtime(list::run(options))),
        Command::Inspect(options) => finish(options.json, async_runtime(list::inspect(options))),
        Command::Delete(options) => finish(options.show.json, async_runtime(delete::run(options))),
        Command::Sweep(options) => finish(options.show.json, async_runtime(sweep::run(options))),
        Command::Verify(options) => finish(options.show.json, async_runtime(verify::run(options))),
        Command::Du(options) => finish(options.json, async_runtime(du::run(options))),
        Command::Heal(options) => finish(options.show.json, async_runtime(heal::run(options))),
        Command::Worker(options) => match async_runtime(async { Ok(crate::worker::serve(options).await) }) {
            Ok(code) => code,
            Err(error) => finish(false, Err(error)),
        },
        Command::Operator(config) => finish(false, async_runtime(service::operator(*config))),
        Command::Crds(options) => finish(false, service::crds(&options)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tidemark", &mut script);
            say(String::from_utf8_lossy(&script).trim_end());
            0
        }
    }
}

/// Sockets need one thread, two where there is much to do; blocks have threads of their own.
fn async_runtime<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| {
        CliError::new(FailureReason::Bug, format!("The program's threads cannot be started: {error}"))
    })?;
    let ended = runtime.block_on(work);
    // A read of a dead device cannot be cancelled: it must not hold up the end.
    runtime.shutdown_background();
    ended
}

/// The exit code of a command, after its error was told.
fn finish(json: bool, ended: Result<(), CliError>) -> u8 {
    let Err(error) = ended else { return 0 };
    if json {
        let event = serde_json::json!({
            "event": "failed",
            "reason": error.reason.map(FailureReason::as_str),
            "message": error.message,
            "object": error.object,
            "cure": error.reason.map(cure::cure),
            "exitCode": error.code,
        });
        say(&event.to_string());
    }
    tell(&format!("tidemark: {}", error.message));
    // Who cancelled knows why.
    let told = |reason: &FailureReason| *reason != FailureReason::Cancelled || error.hint.is_none();
    if let Some(reason) = error.reason.filter(told) {
        tell(&format!("Cure: {}", cure::cure(reason)));
    }
    if let Some(hint) = error.hint {
        tell(&hint);
    }
    error.code
}

/// A line on stdout. A reader that went away does not stop a backup.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// A line on stderr.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
