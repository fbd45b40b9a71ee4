//! `tidemark restore`: one backup of a target becomes a file or a block device.

use std::path::PathBuf;

use indicatif::HumanBytes;
use serde_json::json;
use tokio::{sync::watch, time::interval};
use tokio_util::sync::CancellationToken;

use super::{
    CliError,
    show::{Look, Show, ShowOptions, TICK},
    target::{Reach, StoreOptions, TargetUrl},
    tell,
};
use crate::{
    model::{FailureReason, limits},
    restore::{self, Damage, Overwrite, RestoreError, RestoreJob, RestorePhase, RestoreProgress, RestoreSummary},
};

/// Restore one backup into a file or block device
///
/// OUT is made as a sparse file of the volume's exact size, or must be a block device that is large enough; what the
/// backup does not name becomes zeros. Every block is compared with its checksum before it is written. A block that is
/// missing or damaged names itself and ends the restore; with --keep-going it is listed, left as zeros, and the restore
/// ends in an error all the same.
///
/// Longhorn's own backups are restored too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  tidemark restore 's3://bucket@eu-central-1/prefix/?backup=backup-0123456789abcdef&volume=web-1' out.img
  tidemark restore 'file:///mnt/backups?backup=backup-0123456789abcdef&volume=web-1' /dev/vg0/web --force")]
pub(super) struct RestoreOptions {
    /// The backup, as `tidemark backup` and `tidemark ls` print it (quote it: it holds '&')
    #[arg(value_name = "URL")]
    backup: TargetUrl,
    /// The file to make, or the block device to write
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Replace OUT if it exists, or write to a block device
    #[arg(long)]
    force: bool,
    /// Restore everything that can be, list what cannot, and end in an error
    #[arg(long)]
    keep_going: bool,
    /// Downloads at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=limits::CONCURRENCY_MAX as i64))]
    concurrency: u32,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    pub(super) show: ShowOptions,
}

pub(super) async fn run(options: RestoreOptions) -> Result<(), CliError> {
    let Some(record) = options.backup.record.clone() else {
        return Err(CliError::usage(
            "The URL names a target, not a backup: add ?backup=NAME&volume=NAME (`tidemark ls TARGET` prints them)",
        ));
    };
    let reach = Reach::new(&options.backup, &options.store)?;
    let job = RestoreJob {
        client: reach.client(&options.store)?,
        record,
        target: options.out.clone(),
        overwrite: if options.force { Overwrite::Replace } else { Overwrite::Refuse },
        damage: if options.keep_going { Damage::KeepGoing } else { Damage::Stop },
        concurrency: options.concurrency,
    };
    let (progress, newest) = watch::channel(RestoreProgress::default());
    let cancel = CancellationToken::new();
    let running = tokio::spawn(restore::run(job, progress, cancel.clone()));
    let mut show = Show::new(options.show);
    let ended = watch_restore(running, newest, &mut show, &cancel).await;
    show.end();
    let summary = ended?.map_err(|error| explain(&options, error))?;
    let text = format!(
        "Restored {} of volume {} to {}: {} blocks, a volume of {}",
        summary.backup,
        summary.volume,
        options.out.display(),
        summary.blocks,
        HumanBytes(summary.volume_bytes)
    );
    show.result(&text, None, || json!({"event": "completed", "percent": 100, "out": options.out, "restored": summary}));
    Ok(())
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
                return ended.map_err(|panic| CliError::new(FailureReason::Bug.exit_code(), format!("A bug: {panic}")));
            }
            () = signals.next() => {
                if cancel.is_cancelled() {
                    return Err(CliError::new(FailureReason::Cancelled.exit_code(), "Cancelled at once: do not use OUT"));
                }
                cancel.cancel();
            }
            _ = tick.tick() => {
                let progress = *newest.borrow();
                show.update(&look(&progress), || json!({"event": "progress", "progress": progress}));
            }
        }
    }
}

fn look(progress: &RestoreProgress) -> Look<'static> {
    let phase = match progress.phase {
        RestorePhase::Planning => "Planning",
        RestorePhase::Writing => "Restoring",
        RestorePhase::Syncing => "Syncing",
        RestorePhase::Ended => "Ended",
    };
    let failed = progress.failed_blocks;
    Look {
        phase,
        verb: "written",
        done_blocks: progress.written_blocks,
        total_blocks: progress.total_blocks,
        done_bytes: progress.written_bytes,
        note: if failed > 0 { format!(", {failed} blocks lost") } else { String::new() },
    }
}

fn explain(options: &RestoreOptions, error: RestoreError) -> CliError {
    if let RestoreError::Holes { count, first } = &error {
        for hole in first {
            tell(&format!("Lost: block at offset {}, object {}: {}", hole.offset, hole.key, hole.seen));
        }
        if *count > first.len() as u64 {
            tell(&format!("Lost: {} more", count - first.len() as u64));
        }
    }
    let (reason, object) = match &error {
        RestoreError::Store { error, .. } => (Some(error.reason()), Some(error.key.clone())),
        RestoreError::Record { key, .. } => (Some(FailureReason::RecordDamaged), Some(key.clone())),
        RestoreError::Block { hole, .. } => (Some(FailureReason::RecordDamaged), Some(hole.key.clone())),
        RestoreError::Holes { .. } => (Some(FailureReason::RecordDamaged), None),
        RestoreError::Target { path, .. } => (None, Some(path.display().to_string())),
        RestoreError::Cancelled(_) => (Some(FailureReason::Cancelled), None),
    };
    let hint = match &error {
        RestoreError::Block { .. } if !options.keep_going => Some(
            "To restore what is left use --keep-going. To heal the store: `tidemark heal` with an image that still has these \
             bytes, or a backup with --mode full.",
        ),
        _ => None,
    };
    CliError { code: error.exit_code(), reason, message: error.to_string(), object, hint: hint.map(str::to_owned) }
}
