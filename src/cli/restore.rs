//! `tidemark restore`: one backup of a target becomes a file or a block device.

use std::{path::PathBuf, sync::Arc};

use indicatif::HumanBytes;
use serde_json::json;
use tokio::{sync::watch, time::interval};
use tokio_util::sync::CancellationToken;

use super::{
    CliError, random, say,
    show::{Look, Show, ShowOptions, TICK},
    target::{Reach, StoreOptions, TargetUrl},
    tell,
};
use crate::{
    model::{AttemptId, FailureReason, job::Limits, limits, progress::Completion},
    restore::{
        self, Damage, Left, Locking, Overwrite, RestoreError, RestoreJob, RestorePhase, RestoreProgress, RestoreSummary,
    },
    telemetry,
};

/// Restore one backup into a file or block device
///
/// OUT is made as a sparse file of the volume's exact size, or must be a block device that is large enough; what the
/// backup does not name becomes zeros. Every block is compared with its checksum before it is written, everything is
/// flushed at the end, and a sample is read back from the disk.
///
/// A restore that was interrupted is continued with --reuse: what OUT holds is read and compared with the backup, and
/// only what differs is fetched. The same brings the restore of an older backup up to date, and repairs a file or device
/// that was damaged. Without OUT, --reuse makes it.
///
/// A block that is missing or damaged is fetched once more; then it names itself and ends the restore. With --keep-going
/// it is listed, left as zeros, and the restore ends in an error all the same.
///
/// Meanwhile a lock in the store keeps backups of the volume from being deleted, by Tidemark and by Longhorn. Longhorn's
/// own backups are restored too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  tidemark restore 's3://bucket@eu-central-1/prefix/?backup=backup-0123456789abcdef&volume=web-1' out.img
  tidemark restore 'file:///mnt/backups?backup=backup-0123456789abcdef&volume=web-1' /dev/vg0/web --force
  tidemark restore 'file:///mnt/backups?backup=backup-0123456789abcdef&volume=web-1' /dev/vg0/web --reuse")]
pub(super) struct RestoreOptions {
    /// The backup, as `tidemark backup` and `tidemark ls` print it (quote it: it holds '&')
    #[arg(value_name = "URL")]
    backup: TargetUrl,
    /// The file to make, or the block device to write
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Replace OUT if it exists, or write to a block device
    #[arg(long, conflicts_with = "reuse")]
    force: bool,
    /// Keep what OUT holds where its checksum is right, and fetch only the rest: continues, updates, repairs
    #[arg(long)]
    reuse: bool,
    /// Restore everything that can be, list what cannot (--json: all of it), and end in an error
    #[arg(long)]
    keep_going: bool,
    /// Do not lock the volume in the store: for credentials that may only read. Nothing should delete backups meanwhile
    #[arg(long)]
    no_lock: bool,
    /// Downloads at once [default: adaptive, up to 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=limits::CONCURRENCY_MAX as i64))]
    concurrency: Option<u32>,
    /// Receive no faster, such as 200Mi
    #[arg(long, value_name = "BYTES", value_parser = super::backup::parse_rate)]
    max_bytes_per_second: Option<u64>,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    pub(super) show: ShowOptions,
}

pub(super) async fn run(options: RestoreOptions) -> Result<(), CliError> {
    let job = job(&options)?;
    let (progress, newest) = watch::channel(RestoreProgress::default());
    let cancel = CancellationToken::new();
    let running = tokio::spawn(restore::run(job, progress, cancel.clone()));
    let mut show = Show::new(options.show);
    let ended = watch_restore(running, newest, &mut show, &cancel).await;
    show.end();
    let summary = ended?.map_err(|error| explain(&options, error))?;
    let kept = match summary.reused_blocks {
        0 => String::new(),
        n => format!(" ({n} of them were there)"),
    };
    let text = format!(
        "Restored {} of volume {} to {}: {} blocks{kept}, a volume of {}; {} fetched, {} blocks read back",
        summary.backup,
        summary.volume,
        options.out.display(),
        summary.blocks,
        HumanBytes(summary.volume_bytes),
        HumanBytes(summary.fetched_bytes),
        summary.read_back_blocks,
    );
    show.result(&text, None, || json!({"event": "completed", "percent": 100, "out": options.out, "restored": summary}));
    Ok(())
}

fn job(options: &RestoreOptions) -> Result<RestoreJob, CliError> {
    let record = options.backup.backup()?;
    let client = Reach::new(&options.backup, &options.store)?.client(&options.store)?;
    let now = u64::try_from(telemetry::now().as_millisecond()).unwrap_or_default();
    let random: [u8; 58] = random()?;
    let attempt = AttemptId::new(now, random[..10].try_into().expect("ten bytes"));
    let mut job = RestoreJob::new(client, record, options.out.clone(), attempt);
    job.overwrite = match (options.force, options.reuse) {
        (true, _) => Overwrite::Replace,
        (_, true) => Overwrite::Reuse,
        _ => Overwrite::Refuse,
    };
    if options.keep_going {
        job.damage = Damage::KeepGoing;
    }
    if options.no_lock {
        job.locking = Locking::Without;
    }
    if options.show.json {
        job.on_hole = Some(Arc::new(|hole| say(&json!({"event": "lost", "block": hole}).to_string())));
    }
    job.limits = Limits { concurrency: options.concurrency, max_bytes_per_second: options.max_bytes_per_second };
    Ok(job)
}

type Ended = Result<RestoreSummary, RestoreError>;

async fn watch_restore(
    mut running: tokio::task::JoinHandle<Ended>,
    newest: watch::Receiver<RestoreProgress>,
    show: &mut Show,
    cancel: &CancellationToken,
) -> Result<Ended, CliError> {
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
                    let mut error =
                        CliError::new(FailureReason::Cancelled, "Cancelled at once: do not use OUT");
                    error.hint = Some(AGAIN.into());
                    return Err(error);
                }
                show.end();
                tell("Cancelling: releasing the lock. Once more to end at once");
                cancel.cancel();
            }
            _ = tick.tick() => {
                let progress = *newest.borrow();
                show.update(&look(&progress), || {
                    let percent = progress.percent(Completion::Open);
                    json!({"event": "progress", "percent": percent, "progress": progress})
                });
            }
        }
    }
}

fn look(progress: &RestoreProgress) -> Look<'static> {
    let phase = match progress.phase {
        RestorePhase::Planning => "Planning",
        RestorePhase::Writing => "Restoring",
        RestorePhase::Syncing => "Syncing",
        RestorePhase::ReadingBack => "Reading back",
        RestorePhase::Ended => "Ended",
    };
    let mut note = String::new();
    if progress.reused_blocks > 0 {
        note += &format!(", {} were there", progress.reused_blocks);
    }
    if progress.failed_blocks > 0 {
        note += &format!(", {} blocks lost", progress.failed_blocks);
    }
    Look {
        phase,
        verb: "restored",
        done_blocks: progress.restored_blocks(),
        total_blocks: progress.total_blocks,
        done_bytes: progress.restored_bytes,
        note,
    }
}

const AGAIN: &str =
    "Run the same command with --reuse (instead of --force) to continue: what OUT holds by then is not fetched again.";

fn explain(options: &RestoreOptions, error: RestoreError) -> CliError {
    if let RestoreError::Holes { count, first } = &error {
        for hole in first {
            tell(&format!("Lost: block at offset {}, object {}: {}", hole.offset, hole.key, hole.seen));
        }
        if *count > first.len() as u64 {
            let more = count - first.len() as u64;
            tell(&format!("Lost: {more} more; --json lists all"));
        }
    }
    let reason = error.reason();
    let hint = match &error {
        RestoreError::Block { .. } if !options.keep_going => Some(
            "To restore what is left use --keep-going. To heal the store: `tidemark heal` with an image that still has these \
             bytes, or a backup with --mode full.",
        ),
        RestoreError::Block { .. } | RestoreError::Holes { .. } => {
            Some("To heal the volume in the store back it up with --mode full; then --reuse fetches what is missing.")
        }
        _ if reason == FailureReason::LockHeld => Some("When the deletion is over, run the same command again."),
        _ if matches!(error.left(), Some(Left::Partial { .. })) => Some(AGAIN),
        _ => None,
    };
    CliError {
        code: error.exit_code(),
        reason: Some(reason),
        message: format!("{reason}: {error}"),
        object: error.object(),
        hint: hint.map(str::to_owned),
    }
}
