//! `tidemark ls` and `tidemark inspect`: what a target holds. Only reading; one damaged record does not hide the others.

use futures::{StreamExt, stream};
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
        client::Client,
        error::{ErrorKind, StoreError},
        layout::{VOLUMES, VolumeLayout, backup_of_key},
        record::{RecordHead, RecordId, label},
        survey,
    },
};

/// Requests at once.
const CONCURRENCY: usize = 16;

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

/// One record, as far as it could be read.
struct Row {
    id: RecordId,
    head: Result<RecordHead, StoreError>,
}

pub(super) async fn run(options: ListOptions) -> Result<(), CliError> {
    let reach = Reach::new(&options.target, &options.store)?;
    let client = reach.client(&options.store)?;
    let wanted = options.volume.clone().or_else(|| options.target.record.as_ref().map(|r| r.volume.clone()));
    let volumes = match wanted {
        Some(volume) => vec![volume],
        None => volumes(&client).await?,
    };
    let mut damaged = 0;
    let mut shown = 0;
    if !options.json {
        say(&table_row(["VOLUME", "TIME", "STATE", "SIZE", "BLOCKS", "URL"]));
    }
    for volume in volumes {
        for row in rows(&client, &volume).await? {
            shown += 1;
            damaged += u32::from(row.head.is_err());
            match options.json {
                true => say(&describe(&reach, &row).to_string()),
                false => say(&table(&reach, &row)),
            }
        }
    }
    if shown == 0 && !options.json {
        tell("No backups. Is it the right prefix? Backups lie below <prefix>/backupstore/");
    }
    match damaged {
        0 => Ok(()),
        n => Err(CliError::new(FailureReason::RecordDamaged.exit_code(), format!("{n} records cannot be read"))),
    }
}

/// Folders are asked for, not keys: a target may hold millions of blocks.
pub(super) async fn volumes(client: &Client) -> Result<Vec<VolumeName>, CliError> {
    let mut folders = vec![VOLUMES.to_owned()];
    for _ in ["first two digits", "next two", "volume"] {
        let below = stream::iter(folders).map(|folder| async move { client.folders(&folder).await });
        let mut next = Vec::new();
        let mut below = below.buffered(CONCURRENCY);
        while let Some(found) = below.next().await {
            next.extend(found?);
        }
        folders = next;
    }
    let name = |folder: &String| folder.trim_end_matches('/').rsplit('/').next().and_then(|name| name.parse().ok());
    let mut volumes: Vec<VolumeName> = folders.iter().filter_map(name).collect();
    volumes.sort();
    Ok(volumes)
}

async fn rows(client: &Client, volume: &VolumeName) -> Result<Vec<Row>, CliError> {
    let layout = VolumeLayout::new(volume);
    let entries = client.list(&layout.backups()).await?;
    let names = entries.iter().filter_map(|entry| backup_of_key(&entry.key));
    let ids: Vec<RecordId> = names.map(|backup| RecordId { volume: volume.clone(), backup }).collect();
    let read = stream::iter(ids).map(|id| read(client, &layout, id));
    let rows: Vec<Result<Option<Row>, StoreError>> = read.buffered(CONCURRENCY).collect().await;
    // A record that was deleted since the listing is no row; one that is damaged is; a store that fails is an error.
    let mut rows: Vec<Row> = rows.into_iter().filter_map(Result::transpose).collect::<Result<_, _>>()?;
    rows.sort_by_key(|row| row.head.as_ref().map(time_of).unwrap_or_default().to_owned());
    Ok(rows)
}

async fn read(client: &Client, layout: &VolumeLayout, id: RecordId) -> Result<Option<Row>, StoreError> {
    match survey::read_head(client, &layout.backup(&id.backup)).await {
        Ok(Some(head)) => Ok(Some(Row { id, head: Ok(head) })),
        Ok(None) => Ok(None),
        Err(error) if error.kind == ErrorKind::Damaged => Ok(Some(Row { id, head: Err(error) })),
        Err(error) => Err(error),
    }
}

fn time_of(head: &RecordHead) -> &str {
    if head.snapshot_created_at.is_empty() { &head.created_time } else { &head.snapshot_created_at }
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

fn describe(reach: &Reach, row: &Row) -> Value {
    let (volume, backup, url) = (&row.id.volume, &row.id.backup, reach.url_of(&row.id));
    match &row.head {
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
    let Some(id) = options.backup.record.clone() else {
        return Err(CliError::usage(
            "The URL names a target, not a backup: add ?backup=NAME&volume=NAME (`tidemark ls TARGET` prints them)",
        ));
    };
    let reach = Reach::new(&options.backup, &options.store)?;
    let client = reach.client(&options.store)?;
    let layout = VolumeLayout::new(&id.volume);
    let key = layout.backup(&id.backup);
    let Some(head) = survey::read_head(&client, &key).await? else {
        let message = format!("Record {key}: it is not there; `tidemark ls` shows the backups of a target");
        return Err(CliError::new(FailureReason::RecordDamaged.exit_code(), message));
    };
    let row = Row { id, head: Ok(head) };
    let described = describe(&reach, &row);
    match (&row.head, options.json) {
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
