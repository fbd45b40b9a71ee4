//! `tidemark du`: what the backups of a target take, and what deleting each would free. Only reading.

use indicatif::HumanBytes;
use serde_json::json;

use super::{
    CliError, say,
    scratch::ScratchOptions,
    target::{Reach, StoreOptions, TargetUrl},
    tell,
};
use crate::{
    model::{FailureReason, VolumeName},
    store::{
        catalogue,
        usage::{self, Usage},
    },
};

/// Show how much the backups of a target take
///
/// For each volume: its backups, the bytes they stand for, the bytes of their objects, and what belongs to each alone:
/// deleting that backup would free it. Blocks that no record names are shown apart; a later backup may still use them.
/// Reads every record and lists every block; no block is read.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  tidemark du /mnt/backups
  tidemark du s3://bucket@eu-central-1/prefix/ --volume web-1 --json")]
pub(super) struct DuOptions {
    /// The target: s3://bucket@region/prefix/, or a directory
    #[arg(value_name = "TARGET")]
    target: TargetUrl,
    /// Only this volume
    #[arg(long, short, value_name = "NAME")]
    volume: Option<VolumeName>,
    /// Print one JSON object per volume
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    scratch: ScratchOptions,
    #[command(flatten)]
    store: StoreOptions,
}

pub(super) async fn run(options: DuOptions) -> Result<(), CliError> {
    let reach = Reach::new(&options.target, &options.store)?;
    let client = reach.client(&options.store)?;
    let wanted = options.volume.clone().or_else(|| options.target.record.as_ref().map(|r| r.volume.clone()));
    let volumes = match wanted {
        Some(volume) => vec![volume],
        None => catalogue::volumes(&client).await?,
    };
    let scratch = options.scratch.open();
    if !options.json {
        say(&row(["VOLUME", "BACKUP", "TIME", "LOGICAL", "STORED", "UNIQUE"]));
    }
    let mut unreadable = 0;
    for volume in volumes {
        let usage = usage::usage(&client, &volume, &scratch).await?;
        unreadable += usage.unreadable.len();
        match options.json {
            true => say(&json!(usage).to_string()),
            false => show(&usage),
        }
    }
    match unreadable {
        0 => Ok(()),
        n => {
            let reason = FailureReason::RecordDamaged;
            let message = format!("{n} records cannot be read: `tidemark verify` says what to do");
            Err(CliError::new(reason, message))
        }
    }
}

fn row([volume, backup, time, logical, stored, unique]: [&str; 6]) -> String {
    format!("{volume:<40} {backup:<24} {time:<20} {logical:>11} {stored:>11} {unique:>11}")
}

fn show(usage: &Usage) {
    let bytes = |n: u64| HumanBytes(n).to_string();
    let volume = usage.volume.as_str();
    for backup in &usage.backups {
        let sizes = [backup.logical_bytes, backup.stored_bytes, backup.unique_bytes].map(bytes);
        let [logical, stored, unique] = &sizes;
        say(&row([volume, backup.backup.as_str(), &backup.snapshot_created_at, logical, stored, unique]));
        if backup.missing_blocks > 0 {
            tell(&format!("{}: {} of its blocks are not in the store", backup.backup, backup.missing_blocks));
        }
    }
    for unreadable in &usage.unreadable {
        tell(&format!("{}: {}", unreadable.object, unreadable.seen));
    }
    let logical: u64 = usage.backups.iter().map(|b| b.logical_bytes).sum();
    say(&row([volume, "(all)", "", &bytes(logical), &bytes(usage.stored_bytes), ""]));
    match usage.unreferenced_bytes {
        Some(0) => {}
        Some(n) => say(&row([volume, "(no record names)", "", "", &bytes(n), &bytes(n)])),
        None => tell(&format!("{volume}: what no record names is not known while a record cannot be read")),
    }
}
