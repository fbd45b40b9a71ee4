//! `tidemark delete`: one backup goes, and the blocks that no other needs. Nothing goes without a word of confirmation.

use std::io::{IsTerminal, Write};

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
    model::FailureReason,
    store::{
        client::Client,
        error::{ErrorKind, StoreError},
        janitor::Wanted,
        layout::VolumeLayout,
        record::{RecordHead, RecordId, label},
        remove::{self, Doomed},
        survey,
        sweep::SweepProgress,
    },
    telemetry,
};

/// Delete one backup, and the blocks that no other backup needs
///
/// Asks on a terminal; elsewhere it needs --yes. Deletes everything of the backup: its record, and markers and journals of
/// its attempts. An unfinished backup is deleted by the URL that `tidemark ls` prints for it. A backup or restore of the
/// volume that is running holds it: try again when it has ended.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  tidemark delete 'file:///mnt/backups?backup=backup-0123456789abcdef&volume=web-1' --dry-run
  tidemark delete 's3://bucket@eu-central-1/prefix/?backup=backup-0123456789abcdef&volume=web-1' --yes")]
pub(super) struct DeleteOptions {
    /// The backup, as `tidemark backup` and `tidemark ls` print it (quote it: it holds '&')
    #[arg(value_name = "URL")]
    backup: TargetUrl,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Print what would be deleted, and delete nothing
    #[arg(long)]
    dry_run: bool,
    /// Delete exactly this record, although Tidemark did not write it or it cannot be read
    #[arg(long)]
    foreign: bool,
    #[command(flatten)]
    scratch: ScratchOptions,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    pub(super) show: ShowOptions,
}

pub(super) async fn run(options: DeleteOptions) -> Result<(), CliError> {
    let id = options.backup.backup()?;
    let reach = Reach::new(&options.backup, &options.store)?;
    let (doomed, what) = choose(&reach.client(&options.store)?, &id, options.foreign).await?;
    let (progress, newest) = watch::channel(SweepProgress::default());
    if options.dry_run {
        let client = reach.client(&options.store)?;
        let sweep = sweep_of(client, id.volume, &options.scratch, Wanted::All);
        let cancel = sweep.cancel.clone();
        let planning = tokio::spawn(async move { sweep.dry_run(Some(&doomed), telemetry::now(), &progress).await });
        let plan = watch_sweep(planning, newest, cancel, options.show).await?;
        return print_plan(&plan, options.show.json);
    }
    confirm(&options, &what)?;
    let client = connect(&reach, &options.store).await?;
    let sweep = sweep_of(client, id.volume.clone(), &options.scratch, Wanted::All);
    let cancel = sweep.cancel.clone();
    let running = tokio::spawn(async move { remove::remove(&sweep, &doomed, &progress).await });
    let removed = watch_sweep(running, newest, cancel, options.show).await?;
    match (options.show.json, options.show.quiet) {
        (true, _) => say(&json!({"event": "completed", "backup": id.backup, "removed": removed.summary()}).to_string()),
        (_, true) => {}
        _ => tell(&format!("Deleted {what}: {}", sentence(&removed.swept))),
    }
    match removed.not_collected {
        None => check_all_deleted(&removed.swept),
        // Somebody else is at work: the backup is gone, and its blocks go with the next sweep.
        Some(error) if error.kind == ErrorKind::LockHeld => {
            tell(&format!("Its blocks stay until the next sweep: {error}"));
            Ok(())
        }
        Some(error) => {
            let error = CliError::from(error);
            Err(CliError { message: format!("The backup is deleted, but its blocks stay: {}", error.message), ..error })
        }
    }
}

/// What is to go, and how it is called when a person is asked.
async fn choose(client: &Client, id: &RecordId, foreign: bool) -> Result<(Doomed, String), CliError> {
    let key = VolumeLayout::new(&id.volume).backup(&id.backup);
    let name = format!("backup {} of volume {}", id.backup, id.volume);
    let head = match survey::read_head(client, &key).await {
        Ok(Some(head)) => head,
        Ok(None) => {
            let message = format!(
                "Record {key}: it is not there; `tidemark ls` shows the backups of a target. What an interrupted deletion \
                 left is collected by `tidemark sweep TARGET --volume {}`",
                id.volume
            );
            return Err(CliError::cured(FailureReason::RecordDamaged, message));
        }
        Err(error) if error.kind == ErrorKind::Damaged && foreign => {
            return Ok((Doomed::Record(id.backup.clone()), format!("{name}, which cannot be read")));
        }
        Err(error) if error.kind == ErrorKind::Damaged => return Err(unread(error)),
        Err(error) => return Err(error.into()),
    };
    match (head.label(label::BACKUP_UID), foreign) {
        (Some(uid), _) => Ok((Doomed::Backup(uid.to_owned()), format!("{name} ({})", describe(&head)))),
        (None, true) => {
            Ok((Doomed::Record(id.backup.clone()), format!("{name} of another program ({})", describe(&head))))
        }
        (None, false) => {
            let message = format!(
                "Record {key}: Tidemark did not write it, and another program may count on it: delete it there, or add \
                 --foreign to delete exactly this record"
            );
            Err(CliError::cured(FailureReason::VolumeNameInUse, message))
        }
    }
}

fn unread(error: StoreError) -> CliError {
    let cure = "it cannot be said whose it is: restore the object, or add --foreign to delete exactly this record";
    StoreError { seen: format!("{}; {cure}", error.seen), ..error }.into()
}

fn describe(head: &RecordHead) -> String {
    let owner = match (head.label(label::NAMESPACE), head.label(label::BACKUP)) {
        (Some(namespace), Some(backup)) if head.label(label::CLUSTER) != Some("cli") && !namespace.is_empty() => {
            format!(", Backup {namespace}/{backup} in a cluster")
        }
        _ => String::new(),
    };
    match head.is_in_progress() {
        true => format!("unfinished{owner}"),
        false => format!("of {}{owner}", head.snapshot_created_at),
    }
}

fn confirm(options: &DeleteOptions, what: &str) -> Result<(), CliError> {
    if options.yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(CliError::usage(format!("Deleting {what} needs --yes where nobody can be asked")));
    }
    let mut stderr = std::io::stderr().lock();
    // A terminal that does not show the question will not bring the answer.
    let _ = write!(stderr, "Delete {what}? It cannot be brought back. Type yes: ");
    let _ = stderr.flush();
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    match read.is_ok() && answer.trim() == "yes" {
        true => Ok(()),
        false => Err(CliError::cured(FailureReason::Cancelled, "Not confirmed: nothing was deleted")),
    }
}
