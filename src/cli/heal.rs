//! `tidemark heal`: the bad blocks of one backup, sent again from an image that still has them.

use std::path::PathBuf;

use serde_json::json;
use tokio::{sync::watch, time::interval};

use super::{
    CliError, random, say,
    scratch::ScratchOptions,
    show::{Look, Show, ShowOptions, TICK},
    target::{Reach, StoreOptions, TargetUrl},
};
use crate::{
    model::{AttemptId, FailureReason, job::Source, limits},
    store::{guard::Timing, verify::VerifyPhase},
    telemetry,
    worker::heal::{self, HealError, HealJob, HealProgress, Healed},
};

/// Send the bad blocks of one backup again, from a file or device that still has them
///
/// Reads every block of the backup first. A block that is missing or damaged is read from IMAGE at its place; only if its
/// bytes have the very checksum that the backup names is it sent, and then read back. So IMAGE may be the volume as it is
/// today, an older image, or the result of another restore: what it still has is healed, what it has not is listed, and
/// the exit code is 65. Good blocks and records are never touched. Every backup that names a healed block is healed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  tidemark heal disk.img --backup 's3://bucket@eu-central-1/prefix/?backup=backup-0123456789abcdef&volume=web-1'")]
pub(super) struct HealOptions {
    /// The file or block device that may still have the bytes
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// The backup, as `tidemark backup` and `tidemark ls` print it (quote it: it holds '&')
    #[arg(long, short, value_name = "URL")]
    backup: TargetUrl,
    /// Downloads and uploads at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=limits::CONCURRENCY_MAX as i64))]
    concurrency: u32,
    #[command(flatten)]
    scratch: ScratchOptions,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    pub(super) show: ShowOptions,
}

pub(super) async fn run(options: HealOptions) -> Result<(), CliError> {
    let record = options.backup.backup()?;
    let reach = Reach::new(&options.backup, &options.store)?;
    let random: [u8; 26] = random()?;
    let unix_ms = u64::try_from(telemetry::now().as_millisecond()).unwrap_or_default();
    let job = HealJob {
        client: reach.client(&options.store)?,
        record: record.clone(),
        source: Source { path: options.image.clone(), root: None, bytes: None, point: None },
        concurrency: options.concurrency,
        scratch: options.scratch.open(),
        timing: Timing::default(),
        uid: hex::encode(&random[10..]),
        attempt: AttemptId::new(unix_ms, random[..10].try_into().expect("ten bytes")),
    };
    let mut show = Show::new(options.show);
    let healed = watched(&job, &mut show).await;
    show.end();
    let healed = healed?;
    if !options.show.json {
        for left in &healed.unhealed {
            say(&format!("Not healed: block at offset {}, object {}: {}", left.offset, left.object, left.seen));
        }
    }
    show.result(&summary(&healed, record.backup.as_str()), None, || json!({"event": "healed", "healed": healed}));
    match healed.unhealed_blocks {
        0 => Ok(()),
        n => {
            let reason = FailureReason::RecordDamaged;
            let message = format!("{n} blocks could not be healed: this image does not have their bytes");
            let hint = "Another image may: the volume, an older copy of it, or what another backup restores to.";
            let error = CliError::new(reason, message);
            Err(CliError { hint: Some(hint.into()), ..error })
        }
    }
}

async fn watched(job: &HealJob, show: &mut Show) -> Result<Healed, CliError> {
    let (progress, newest) = watch::channel(HealProgress::default());
    let mut tell = |now| _ = progress.send_replace(now);
    let healing = heal::heal(job, &mut tell);
    tokio::pin!(healing);
    let mut signals = super::service::Signals::new()?;
    let mut tick = interval(TICK);
    loop {
        tokio::select! {
            biased;
            healed = &mut healing => return healed.map_err(failed),
            () = signals.next() => {
                let reason = FailureReason::Cancelled;
                let error = CliError::new(reason, "Cancelled: what was healed stays healed");
                let hint = "A lock (for 150 s) and a marker stay behind; the next sweep removes them.";
                return Err(CliError { hint: Some(hint.into()), ..error });
            }
            _ = tick.tick() => {
                let now = *newest.borrow();
                show.update(&look(&now), || json!({"event": "progress", "progress": now}));
            }
        }
    }
}

fn look(progress: &HealProgress) -> Look<'static> {
    let verify = &progress.verify;
    let is_healing = progress.bad_blocks > 0;
    let phase = match verify.phase {
        VerifyPhase::Listing => "Listing",
        VerifyPhase::Records => "Reading record",
        VerifyPhase::Blocks => "Reading blocks",
        VerifyPhase::Ended if is_healing => "Healing",
        VerifyPhase::Ended => "Ended",
    };
    let unhealed = progress.unhealed_blocks;
    let note = if unhealed > 0 { format!(", {unhealed} not in this image") } else { String::new() };
    match is_healing {
        true => Look {
            phase,
            verb: "healed",
            done_blocks: progress.healed_blocks,
            total_blocks: progress.bad_blocks,
            done_bytes: 0,
            note,
        },
        false => Look {
            phase,
            verb: "read",
            done_blocks: verify.blocks_read,
            total_blocks: verify.blocks_to_read,
            done_bytes: verify.bytes_read,
            note: if verify.findings > 0 { format!(", {} bad", verify.findings) } else { String::new() },
        },
    }
}

fn failed(error: HealError) -> CliError {
    let reason = error.reason();
    let object = match &error {
        HealError::Store(error) => error.key.clone(),
        HealError::Source(error) => error.path.display().to_string(),
        HealError::Record { key, .. } => key.clone(),
    };
    let message = format!("{reason}: {error}");
    CliError { object: Some(object), ..CliError::new(reason, message) }
}

fn summary(healed: &Healed, backup: &str) -> String {
    match healed.bad_blocks {
        0 => format!("Nothing to heal in {backup}: all {} blocks are good", healed.blocks_read),
        bad => format!(
            "Healed {} of {bad} bad blocks of {backup} with {} objects, each read back",
            healed.healed_blocks, healed.objects_sent,
        ),
    }
}
