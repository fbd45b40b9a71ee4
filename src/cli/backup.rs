//! `tidemark backup`: one attempt in this process, shown as it goes, continued by the next after a kill.

use std::{collections::BTreeMap, path::PathBuf};

use indicatif::{HumanBytes, HumanDuration};
use serde_json::json;
use tokio::{sync::watch, time::interval};
use tokio_util::sync::CancellationToken;

use super::{
    CliError, random,
    show::{Look, Show, ShowOptions, TICK},
    state::{BegunFor, Earlier, State},
    target::{Reach, StoreOptions, TargetUrl},
    tell,
};
use crate::{
    api::common::parse_bytes_per_second,
    model::{
        AttemptId, BlockSize, Compression, Failure, FailureReason, JobSpec, Outcome, Report, ReportKey, Retry, Task,
        VerifyDepth, VolumeName,
        job::{BackupTask, Deadlines, JOB_VERSION, Limits, Mode, Owner, SnapshotRef, Source},
        limits,
        progress::{Completion, percent},
    },
    store::{guard::Timing, record::RecordId},
    telemetry,
    worker::{Attempt, attempt},
};

/// The owner of records that no cluster made.
const OWNER: &str = "cli";

/// Back up a file or block device to a target
///
/// Blocks that the volume has in the store already are not sent again, whoever sent them. Every count that is shown was
/// acknowledged by the store.
///
/// A backup that was killed, cancelled or cut off is continued by running the same command again: a small file below
/// $XDG_STATE_HOME/tidemark (~/.local/state/tidemark) remembers which it was, and its journal in the store what is done.
/// The image must not have changed; a block device is read again, but nothing is sent twice. The image should be at
/// rest: take a snapshot of a volume that is in use.
///
/// Prints the URL of the backup, for `tidemark restore`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  tidemark backup disk.img --target /mnt/backups --volume web-1
  tidemark backup /dev/vg0/snap --target s3://bucket@eu-central-1/prefix/ --volume web-1 --label env=prod
  URL=$(tidemark backup disk.img --target s3://bucket@eu-central-1/ --volume web-1 --quiet)")]
pub(super) struct BackupOptions {
    /// The file or block device to back up
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// Where: s3://bucket@region/prefix/, or a directory
    #[arg(long, short, value_name = "URL")]
    target: TargetUrl,
    /// Name of the volume in the target: 2 to 40 lower-case letters, digits, '-', '_', '.'
    #[arg(long, short, value_name = "NAME")]
    volume: VolumeName,
    /// incremental sends what the store does not have; full sends every block again and heals a damaged store
    #[arg(long, value_enum, default_value_t = ModeText::Incremental)]
    mode: ModeText,
    /// Block size of a volume that is new to the target: 2Mi or 16Mi
    #[arg(long, value_name = "SIZE", default_value = "2Mi")]
    block_size: BlockSize,
    /// Compression of a volume that is new to the target: lz4, gzip or none
    #[arg(long, value_name = "METHOD", default_value = "lz4", value_parser = parse_compression)]
    compression: Compression,
    /// Label of the record, such as env=prod; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Uploads at once [default: adaptive, up to 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=limits::CONCURRENCY_MAX as i64))]
    concurrency: Option<u32>,
    /// Send no faster, such as 200Mi
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    max_bytes_per_second: Option<u64>,
    /// Directory for tables that do not fit in memory; up to 0.8 GiB for 8 TiB [default: the system's]
    #[arg(long, value_name = "DIR")]
    scratch_dir: Option<PathBuf>,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    pub(super) show: ShowOptions,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ModeText {
    Incremental,
    Full,
}

fn parse_compression(text: &str) -> Result<Compression, String> {
    match text {
        "" => Err("write lz4, gzip or none".into()),
        some => some.parse(),
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, _)) if key.starts_with("tidemark.dev/") => Err("labels of tidemark.dev/ are Tidemark's own".into()),
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".into()),
    }
}

pub(super) fn parse_rate(text: &str) -> Result<u64, String> {
    let quantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned());
    parse_bytes_per_second(&quantity, "--max-bytes-per-second").map_err(|error| error.message)
}

pub(super) async fn run(options: BackupOptions) -> Result<(), CliError> {
    if options.target.record.is_some() {
        return Err(CliError::usage("--target names one backup: leave ?backup=…&volume=… out"));
    }
    let reach = Reach::new(&options.target, &options.store)?;
    let objects = reach.objects()?;
    let mut state = State::open(&reach.location, &options.volume)?;
    let (job, snapshot) = job(&options, &reach, &state)?;
    let begun = BegunFor {
        backup_uid: &job.uid,
        attempts: job.attempt_number,
        snapshot: &snapshot.name,
        snapshot_created: snapshot.created,
        image: &options.image,
    };
    if let Err(error) = state.remember(begun) {
        tracing::warn!(%error, "State file cannot be written: a killed backup will be read again from the start");
    }
    let scratch_dir = options.scratch_dir.clone().unwrap_or_else(std::env::temp_dir);
    let cancel = CancellationToken::new();
    let (reports, newest) = watch::channel(attempt::first_report(&job));
    let attempt = Attempt { job, objects, scratch_dir, timing: Timing::default(), cancel: cancel.clone() };
    let running = tokio::spawn(attempt::run(attempt, reports));
    let mut show = Show::new(options.show);
    let started = telemetry::now();
    let last = watch_attempt(running, newest, &mut show, &cancel).await;
    show.end();
    let last = last?;
    match last.outcome.clone() {
        Some(Outcome::Completed { backup, adopted }) => {
            state.forget();
            let url = reach.url_of(&RecordId { volume: options.volume.clone(), backup: backup.clone() });
            let took = telemetry::now().duration_since(started);
            let took = std::time::Duration::try_from(took).unwrap_or_default();
            let summary = summary(&last, backup.as_str(), options.volume.as_str(), took);
            show.result(&summary, Some(&url), || {
                json!({"event": "completed", "volume": options.volume, "backup": backup, "url": url, "percent": 100,
                    "adopted": adopted, "progress": last.backup(), "requests": last.requests, "plan": last.plan})
            });
            Ok(())
        }
        Some(Outcome::Failed | Outcome::Cancelled | Outcome::Restored) | None => Err(explain(&last)),
    }
}

/// What this run is to do: a new backup, or the one that was interrupted; and the point in time it has in any case.
fn job(options: &BackupOptions, reach: &Reach, state: &State) -> Result<(JobSpec, SnapshotRef), CliError> {
    let now = telemetry::now();
    let random: [u8; 58] = random()?;
    let unix_ms = u64::try_from(now.as_millisecond()).unwrap_or_default();
    let attempt = AttemptId::new(unix_ms, random[..10].try_into().expect("ten bytes"));
    let (backup_uid, attempt_number, snapshot) = match state.earlier(&options.image) {
        Earlier::Same(begun) => {
            tell(&format!("Continuing the backup begun at {}", begun.snapshot_created));
            let snapshot = SnapshotRef { name: begun.snapshot, created: begun.snapshot_created };
            (begun.backup_uid, begun.attempts.saturating_add(1), snapshot)
        }
        earlier => {
            if let Earlier::Other(begun) = earlier {
                tell(&format!("The backup begun at {begun} was of another state of the image: beginning anew"));
            }
            let name = format!("{OWNER}-{}", attempt.short());
            (hex::encode(&random[10..26]), 1, SnapshotRef { name, created: now })
        }
    };
    let total = jiff::SignedDuration::try_from(limits::TOTAL_DEFAULT).expect("a week fits");
    let task = BackupTask {
        compression: options.compression,
        block_size: options.block_size,
        source: Source { path: options.image.clone(), root: None, bytes: None, point: None },
        mode: match options.mode {
            ModeText::Incremental => Mode::Incremental,
            ModeText::Full => Mode::Full,
        },
        verify: VerifyDepth::None,
        snapshot: snapshot.clone(),
        owner: Owner { cluster: OWNER.into(), ..Owner::default() },
        labels: options.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
    };
    let job = JobSpec {
        v: JOB_VERSION,
        uid: backup_uid,
        attempt,
        attempt_number,
        store: reach.location.clone(),
        volume: options.volume.clone(),
        task: Task::Backup(task),
        limits: Limits { concurrency: options.concurrency, max_bytes_per_second: options.max_bytes_per_second },
        deadlines: Deadlines { stall_seconds: options.store.stall.as_secs(), total: now + total },
        // Nobody but this process hears the reports.
        report_key: ReportKey::new(random[26..58].try_into().expect("32 bytes")),
        pod: OWNER.into(),
    };
    Ok((job, snapshot))
}

/// Shows the attempt until it ends. The first Ctrl-C or SIGTERM ends it in order, a second one at once.
async fn watch_attempt(
    mut running: tokio::task::JoinHandle<Report>,
    newest: watch::Receiver<Report>,
    show: &mut Show,
    cancel: &CancellationToken,
) -> Result<Report, CliError> {
    let mut signals = super::service::Signals::new()?;
    let mut tick = interval(TICK);
    loop {
        tokio::select! {
            biased;
            ended = &mut running => {
                return ended.map_err(|panic| CliError::new(FailureReason::Bug, format!("A bug: {panic}")));
            }
            () = signals.next() => {
                if cancel.is_cancelled() {
                    let mut error = CliError::new(FailureReason::Cancelled, "Cancelled at once");
                    error.hint = Some(AGAIN.into());
                    return Err(error);
                }
                show.end();
                tell("Cancelling: writing the journal and releasing the lock. Once more to end at once");
                cancel.cancel();
            }
            _ = tick.tick() => {
                let report = newest.borrow().clone();
                show.update(&look(&report), || progress_json(&report));
            }
        }
    }
}

const AGAIN: &str = "Run the same command again to continue: what the store acknowledged is not sent again.";

fn look(report: &Report) -> Look<'_> {
    let progress = report.backup();
    let phase = match report.phase {
        crate::model::Phase::Planning => "Planning",
        crate::model::Phase::Uploading => "Uploading",
        crate::model::Phase::WritingRecord => "Writing record",
        crate::model::Phase::ReadingBack => "Reading back",
        crate::model::Phase::Restoring | crate::model::Phase::Flushing => "Restoring",
        crate::model::Phase::Ended => "Ended",
    };
    let retried = report.requests.retried;
    let note = if retried > 0 { format!(", {retried} requests retried") } else { String::new() };
    Look {
        phase,
        verb: "acknowledged",
        done_blocks: progress.acknowledged_blocks,
        total_blocks: progress.total_blocks,
        done_bytes: progress.acknowledged_bytes,
        note,
    }
}

fn progress_json(report: &Report) -> serde_json::Value {
    let progress = report.backup();
    json!({"event": "progress", "time": report.time, "phase": report.phase, "progress": progress,
        "percent": percent(progress.acknowledged_blocks, progress.total_blocks, Completion::Open),
        "requests": report.requests})
}

fn summary(last: &Report, backup: &str, volume: &str, took: std::time::Duration) -> String {
    let p = last.backup();
    format!(
        "Completed {backup} of volume {volume}: {} blocks ({} sent, {} in the store already, {} resumed), {} stored, in {}",
        p.acknowledged_blocks,
        p.uploaded_blocks,
        p.reused_blocks,
        p.resumed_blocks,
        HumanBytes(p.stored_bytes),
        HumanDuration(took),
    )
}

fn explain(last: &Report) -> CliError {
    let p = last.backup();
    let Some(Failure { reason, message, object, .. }) = last.failure.clone() else {
        return CliError::new(FailureReason::Bug, "The attempt ended without a word: a bug");
    };
    let kept = match p.acknowledged_blocks {
        0 => String::new(),
        n => format!("{n} of {} blocks are in the store. ", p.total_blocks),
    };
    let hint = match reason.retry() {
        Retry::Yes | Retry::Free => format!("{kept}{AGAIN}"),
        _ if reason == FailureReason::Cancelled => format!("{kept}{AGAIN}"),
        Retry::Rarely | Retry::Once | Retry::Never => {
            format!("{kept}When the cause is gone, run the same command again.")
        }
    };
    CliError {
        code: reason.exit_code(),
        reason: Some(reason),
        message: if message == reason.as_str() { message } else { format!("{reason}: {message}") },
        object,
        hint: Some(hint),
    }
}
