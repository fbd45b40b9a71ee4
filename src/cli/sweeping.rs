//! What `delete` and `sweep` share: reaching the store with all it can do, a volume's sweep, and its progress.

use std::time::Instant;

use indicatif::HumanBytes;
use serde_json::json;
use tokio::{sync::watch, task::JoinHandle, time::interval};
use tokio_util::sync::CancellationToken;

use super::{
    CliError, say,
    scratch::ScratchOptions,
    service::Signals,
    show::{Look, Show, ShowOptions, TICK},
    target::{Reach, StoreOptions},
    tell,
};
use crate::{
    model::{FailureReason, StoreLocation, VolumeName, job::S3Location, limits},
    store::{
        self,
        client::Client,
        error::StoreError,
        guard::Timing,
        janitor::{Living, Wanted},
        probe,
        sweep::{Plan, Sweep, SweepPhase, SweepProgress, Swept},
    },
};

/// Whoever is done sooner than this saw no bar.
const QUIET: std::time::Duration = std::time::Duration::from_secs(2);

/// A store that will be deleted from: it is asked once what it can do.
pub(super) async fn connect(reach: &Reach, options: &StoreOptions) -> Result<Client, CliError> {
    let location = match &reach.location {
        StoreLocation::S3(s3) => {
            let found = probe::probe(&reach.location, &reach.credentials.read()?).await?;
            if let Some(notice) = found.kept.notice() {
                tell(&notice);
            }
            let (conditional_writes, batch_delete) = (found.conditional_writes, found.batch_delete);
            StoreLocation::S3(S3Location { conditional_writes, batch_delete, ..s3.clone() })
        }
        directory @ StoreLocation::Directory { .. } => directory.clone(),
    };
    let objects = store::open(&location, reach.credentials.clone())?;
    Ok(Client::new(objects, options.stall, limits::TOTAL_DEFAULT))
}

/// `wanted`: whose unfinished backups are kept. Nothing is known of other programs' attempts but what the store shows.
pub(super) fn sweep_of(client: Client, volume: VolumeName, scratch: &ScratchOptions, wanted: Wanted) -> Sweep {
    Sweep {
        client,
        volume,
        living: Living { wanted, ..Living::default() },
        scratch: scratch.open(),
        timing: Timing::default(),
        cancel: CancellationToken::new(),
    }
}

/// Shows a running deletion until it has ended; the first Ctrl-C ends it in order, the second at once.
pub(super) async fn watch_sweep<T>(
    mut running: JoinHandle<Result<T, StoreError>>,
    newest: watch::Receiver<SweepProgress>,
    cancel: CancellationToken,
    options: ShowOptions,
) -> Result<T, CliError> {
    let (mut show, began) = (Show::new(options), Instant::now());
    let (mut signals, mut tick) = (Signals::new()?, interval(TICK));
    let ended = loop {
        tokio::select! {
            biased;
            ended = &mut running => break ended,
            () = signals.next() => {
                if cancel.is_cancelled() {
                    let message = "Cancelled at once: the deletion lock stays for 3 minutes, and then run it again";
                    return Err(CliError::cured(FailureReason::Cancelled, message));
                }
                cancel.cancel();
            }
            _ = tick.tick() => {
                if began.elapsed() >= QUIET {
                    let progress = *newest.borrow();
                    show.update(&look(&progress), || json!({"event": "progress", "progress": progress}));
                }
            }
        }
    };
    show.end();
    let ended = ended.map_err(|panic| CliError::new(FailureReason::Bug, format!("A bug: {panic}")))?;
    Ok(ended?)
}

fn look(progress: &SweepProgress) -> Look<'static> {
    let (phase, done, total, note) = match progress.phase {
        SweepPhase::Locking => ("Locking", 0, 0, String::new()),
        SweepPhase::Listing => ("Listing", 0, 0, format!(": {} blocks", progress.blocks_listed)),
        SweepPhase::Reading => {
            ("Reading", 0, 0, format!(": {} of {} records", progress.records_read, progress.records_total))
        }
        SweepPhase::Removing => ("Removing", 0, 0, String::new()),
        SweepPhase::Deleting => ("Deleting", progress.blocks_deleted, progress.blocks_total, String::new()),
    };
    let done_bytes = progress.bytes_deleted;
    Look { phase, verb: "deleted", done_blocks: done, total_blocks: total, done_bytes, note }
}

/// A plan as people or programs read it; block by block only where they asked for JSON.
pub(super) fn print_plan(plan: &Plan, json: bool) -> Result<(), CliError> {
    let summary = plan.summary();
    if json {
        let blocks: Vec<String> = plan.blocks().map(|b| b.map(|b| b.to_string())).collect::<Result<_, _>>()?;
        say(&json!({"event": "planned", "plan": summary, "blocks": blocks}).to_string());
        return Ok(());
    }
    say(&format!(
        "Volume {}: {} records stay, {} blocks of {} would be deleted ({}), {} are named, {} too young",
        summary.volume,
        summary.records,
        summary.blocks_to_delete,
        summary.blocks_listed,
        HumanBytes(summary.bytes_to_delete),
        summary.blocks_named,
        summary.blocks_young
    ));
    summary.records_doomed.iter().for_each(|key| say(&format!("  delete {key}")));
    for clear in &summary.clear {
        clear.keys.iter().for_each(|key| say(&format!("  clear {key}: {}", clear.why)));
    }
    summary.keep.iter().for_each(|keep| say(&format!("  keep {}: {}", keep.key, keep.why)));
    if let Some(first) = &summary.block_missing_first {
        say(&format!("  {} blocks are named and not there, the first is {first}", summary.blocks_missing));
    }
    summary.refusals.iter().for_each(|refusal| say(&format!("  no block would be deleted: {refusal}")));
    Ok(())
}

/// What a sweep did, as one sentence.
pub(super) fn sentence(swept: &Swept) -> String {
    let young = match swept.blocks_young {
        0 => String::new(),
        n => format!("; {n} more are younger than 20 minutes and wait for the next sweep"),
    };
    format!("{} blocks deleted ({}){young}", swept.blocks_deleted, HumanBytes(swept.bytes_deleted))
}

/// Keys that the store did not delete are an error, however much else went.
pub(super) fn check_all_deleted(swept: &Swept) -> Result<(), CliError> {
    if let Some(seen) = &swept.config_not_written {
        tell(&format!("volume.cfg was not brought up to date: {seen}"));
    }
    if swept.blocks_missing > 0 {
        tell(&format!("{} blocks are named by a record and not in the store", swept.blocks_missing));
    }
    match swept.not_deleted.first() {
        None => Ok(()),
        Some(first) => {
            let message = format!("{} blocks could not be deleted: {first}", swept.blocks_not_deleted);
            Err(CliError::new(FailureReason::StoreUnavailable, message))
        }
    }
}
