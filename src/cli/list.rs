//! `tidemark ls` and `tidemark inspect`: what a target holds. Only reading; one damaged record does not hide the others.

use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::{
    CliError, say,
    target::{Reach, StoreOptions, TargetUrl},
    tell,
};
use crate::{
    model::{FailureReason, VolumeName},
    store::{
        catalogue::{self, Row, time_of},
        error::StoreError,
        layout::VolumeLayout,
        record::{RecordHead, RecordId, label},
        survey,
    },
};

/// List the backups of a target
///
/// Prints one line per backup, oldest first within a volume, with the URL that `tidemark restore` takes. A backup in
/// progress is shown as such; one whose record cannot be read is shown as damaged and makes the exit code 65.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  tidemark ls /mnt/backups
  tidemark ls s3://bucket@eu-central-1/prefix/ --volume web-1 --json")]
pub(super) struct ListOptions {
    /// The target: s3://bucket@region/prefix/, or a directory
    #[arg(value_name = "TARGET")]
    target: TargetUrl,
    /// Only this volume
    #[arg(long, short, value_name = "NAME")]
    volume: Option<VolumeName>,
    /// Print one JSON object per backup
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    store: StoreOptions,
}

/// Show everything a backup's record says
#[derive(Debug, clap::Args)]
pub(super) struct InspectOptions {
    /// The backup, as `tidemark backup` and `tidemark ls` print it (quote it: it holds '&')
    #[arg(value_name = "URL")]
    backup: TargetUrl,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    store: StoreOptions,
}

pub(super) async fn run(options: ListOptions) -> Result<(), CliError> {
    let reach = Reach::new(&options.target, &options.store)?;
    let client = reach.client(&options.store)?;
    let wanted = options.volume.clone().or_else(|| options.target.record.as_ref().map(|r| r.volume.clone()));
    let volumes = match wanted {
        Some(volume) => vec![volume],
        None => catalogue::volumes(&client).await?,
    };
    let mut damaged = 0;
    let mut shown = 0;
    if !options.json {
        say(&table_row(["VOLUME", "TIME", "STATE", "SIZE", "BLOCKS", "URL"]));
    }
    for volume in volumes {
        for row in catalogue::rows(&client, &volume).await? {
            shown += 1;
            damaged += u32::from(row.head.is_err());
            match options.json {
                true => say(&describe(&reach, &row.id, &row.head).to_string()),
                false => say(&table(&reach, &row)),
            }
        }
    }
    if shown == 0 && !options.json {
        tell("No backups. Is it the right prefix? Backups lie below <prefix>/backupstore/");
    }
    match damaged {
        0 => Ok(()),
        n => Err(CliError::new(FailureReason::RecordDamaged, format!("{n} records cannot be read"))),
    }
}

fn state_of(head: &RecordHead) -> &'static str {
    if head.is_in_progress() { "InProgress" } else { "Completed" }
}

fn blocks_of(head: &RecordHead) -> Option<u64> {
    Some(u64::try_from(head.size).ok()? / head.block_size().ok()?.bytes())
}

fn table_row([volume, time, state, size, blocks, url]: [&str; 6]) -> String {
    format!("{volume:<40} {time:<20} {state:<10} {size:>11} {blocks:>9} {url}")
}

fn table(reach: &Reach, row: &Row) -> String {
    let url = reach.url_of(&row.id);
    let volume = row.id.volume.as_str();
    match &row.head {
        Ok(head) => {
            // Longhorn's records do not say the volume's size: what they map is the next best.
            let bytes = head.volume_bytes().or(u64::try_from(head.size).ok());
            let size = bytes.map(|bytes| HumanBytes(bytes).to_string()).unwrap_or_default();
            let blocks = blocks_of(head).map(|n| n.to_string()).unwrap_or_default();
            table_row([volume, time_of(head), state_of(head), &size, &blocks, &url])
        }
        Err(error) => format!("{} {}", table_row([volume, "", "Damaged", "", "", &url]), error.seen),
    }
}

fn describe(reach: &Reach, id: &RecordId, head: &Result<RecordHead, StoreError>) -> Value {
    let (volume, backup, url) = (&id.volume, &id.backup, reach.url_of(id));
    match head {
        Ok(head) => json!({
            "volume": volume, "backup": backup, "url": url, "state": state_of(head),
            "snapshot": head.snapshot_name, "snapshotCreatedAt": head.snapshot_created_at,
            "createdTime": head.created_time, "volumeBytes": head.volume_bytes(), "mappedBytes": head.size,
            "blocks": blocks_of(head), "blockSize": head.block_size().ok(),
            "compression": head.compression().ok(), "isIncremental": head.is_incremental,
            "newlyUploadedBytes": head.newly_uploaded_data_size, "reUploadedBytes": head.re_uploaded_data_size,
            "labels": head.labels, "parameters": head.parameters,
        }),
        Err(error) => json!({"volume": volume, "backup": backup, "url": url, "state": "Damaged", "seen": error.seen}),
    }
}

pub(super) async fn inspect(options: InspectOptions) -> Result<(), CliError> {
    let id = options.backup.backup()?;
    let reach = Reach::new(&options.backup, &options.store)?;
    let client = reach.client(&options.store)?;
    let layout = VolumeLayout::new(&id.volume);
    let key = layout.backup(&id.backup);
    let Some(head) = survey::read_head(&client, &key).await? else {
        let message = format!("Record {key}: it is not there; `tidemark ls` shows the backups of a target");
        return Err(CliError::new(FailureReason::RecordDamaged, message));
    };
    let head = Ok(head);
    let described = describe(&reach, &id, &head);
    match (&head, options.json) {
        (Ok(head), false) => print(head, &described),
        _ => say(&described.to_string()),
    }
    Ok(())
}

fn print(head: &RecordHead, described: &Value) {
    let field = |name: &str, value: &dyn std::fmt::Display| say(&format!("{name:<20} {value}"));
    let text = |key: &str| described[key].as_str().unwrap_or("-").to_owned();
    let bytes = |n: Option<u64>| n.map_or("-".to_owned(), |n| format!("{n} ({})", HumanBytes(n)));
    field("Backup", &head.name);
    field("Volume", &head.volume_name);
    field("State", &state_of(head));
    field("URL", &text("url"));
    field("Snapshot", &head.snapshot_name);
    field("Snapshot time", &head.snapshot_created_at);
    field("Completed", &head.created_time);
    field("Volume size", &bytes(head.volume_bytes()));
    field("Mapped", &bytes(u64::try_from(head.size).ok()));
    field("Blocks", &blocks_of(head).map_or("-".to_owned(), |n| n.to_string()));
    field("Block size", &text("blockSize"));
    field("Compression", &text("compression"));
    field("Kind", if head.is_incremental { &"incremental" } else { &"full" });
    field("Newly stored", &bytes(u64::try_from(head.newly_uploaded_data_size).ok()));
    field("Stored again", &bytes(u64::try_from(head.re_uploaded_data_size).ok()));
    for (key, value) in head.labels.iter().flatten() {
        let name =
            if key.starts_with(label::MARKER.split('/').next().unwrap_or_default()) { "Label (own)" } else { "Label" };
        field(name, &format!("{key}={value}"));
    }
}
