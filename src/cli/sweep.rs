//! `tidemark sweep`: what no record of a volume needs is deleted.

use serde_json::json;
use tokio::sync::watch;

use super::{
    CliError, say,
    scratch::ScratchOptions,
    show::ShowOptions,
    sweeping::{check_all_deleted, connect, print_plan, sentence, sweep_of, watch_sweep},
    target::{Reach, StoreOptions, TargetUrl},
    tell,
};
use crate::{
    model::VolumeName,
    store::{
        catalogue::volumes,
        janitor::Wanted,
        sweep::{Sweep, SweepProgress},
    },
    telemetry,
};

/// Delete blocks that no record names
///
/// Reads every record of a volume first: one that cannot be read, or another program's backup in progress, and nothing is
/// deleted. Blocks younger than 20 minutes stay. What unfinished backups left is kept for a day, so that they can be
/// continued, and cleared after it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  tidemark sweep /mnt/backups --dry-run
  tidemark sweep s3://bucket@eu-central-1/prefix/ --volume web-1 --json")]
pub(super) struct SweepOptions {
    /// The target: s3://bucket@region/prefix/, or a directory
    #[arg(value_name = "TARGET")]
    target: TargetUrl,
    /// Only this volume
    #[arg(long, short, value_name = "NAME")]
    volume: Option<VolumeName>,
    /// Print what would be deleted, and delete nothing
    #[arg(long)]
    dry_run: bool,
    /// Clear unfinished backups that were not touched for 20 minutes: nobody will continue them
    #[arg(long)]
    abandon_unfinished: bool,
    #[command(flatten)]
    scratch: ScratchOptions,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    pub(super) show: ShowOptions,
}

pub(super) async fn run(options: SweepOptions) -> Result<(), CliError> {
    let reach = Reach::new(&options.target, &options.store)?;
    let client = match options.dry_run {
        true => reach.client(&options.store)?,
        false => connect(&reach, &options.store).await?,
    };
    let named = options.volume.clone().or_else(|| options.target.record.as_ref().map(|record| record.volume.clone()));
    let volumes = match named {
        Some(volume) => vec![volume],
        None => volumes(&client).await?,
    };
    if volumes.is_empty() {
        tell("No volumes. Is it the right prefix? Volumes lie below <prefix>/backupstore/");
    }
    let mut first_error = None;
    for volume in volumes {
        let wanted = if options.abandon_unfinished { Wanted::Only(Default::default()) } else { Wanted::All };
        let sweep = sweep_of(client.clone(), volume.clone(), &options.scratch, wanted);
        let is_cancelled = sweep.cancel.clone();
        // One volume that is held or damaged does not keep the others from being swept.
        if let Err(error) = one(&options, sweep).await {
            if first_error.is_some() {
                tell(&format!("tidemark: Volume {volume}: {}", error.message));
            }
            first_error.get_or_insert(error);
        }
        if is_cancelled.is_cancelled() {
            break;
        }
    }
    first_error.map_or(Ok(()), Err)
}

async fn one(options: &SweepOptions, sweep: Sweep) -> Result<(), CliError> {
    let (progress, newest) = watch::channel(SweepProgress::default());
    let (volume, cancel) = (sweep.volume.clone(), sweep.cancel.clone());
    if options.dry_run {
        let planning = tokio::spawn(async move { sweep.dry_run(None, telemetry::now(), &progress).await });
        let plan = watch_sweep(planning, newest, cancel, options.show).await?;
        return print_plan(&plan, options.show.json);
    }
    let running = tokio::spawn(async move { sweep.run(&progress).await });
    let swept = watch_sweep(running, newest, cancel, options.show).await?;
    match (options.show.json, options.show.quiet) {
        (true, _) => say(&json!({"event": "completed", "volume": volume, "swept": swept}).to_string()),
        (_, true) => {}
        _ => tell(&format!("Volume {volume}: {}", sentence(&swept))),
    }
    check_all_deleted(&swept)
}
