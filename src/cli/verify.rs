//! `tidemark verify`: is what a target holds what its records say? Only reading.

use indicatif::HumanBytes;
use serde_json::json;
use tokio::{sync::watch, time::interval};

use super::{
    CliError, random, say,
    scratch::ScratchOptions,
    show::{Look, Show, ShowOptions, TICK},
    target::{Reach, StoreOptions, TargetUrl},
};
use crate::{
    model::{BackupName, FailureReason, VolumeName, limits},
    store::{
        catalogue,
        client::Client,
        error::StoreError,
        scratch::Scratch,
        verify::{self, Depth, Finding, Order, Severity, Share, Verified, VerifyPhase, VerifyProgress},
    },
};

/// Verify what a target holds: records, and the blocks they name
///
/// Reads every record and compares each block it names with a listing of the store: is it there, and of a size that can
/// be? With --sample some blocks are read, decoded and compared with their names too, with --full all of them. A URL of
/// one backup verifies that backup alone; a target, every volume with its locks, markers and journals.
///
/// A listing cannot see a flipped bit: only --full finds every damage that a restore would.
///
/// Prints one line per damaged object, with the backups that need it and the cure, and ends with code 65 if there is one.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  tidemark verify /mnt/backups
  tidemark verify s3://bucket@eu-central-1/prefix/ --volume web-1 --sample 5%
  tidemark verify 'file:///mnt/backups?backup=backup-0123456789abcdef&volume=web-1' --full")]
pub(super) struct VerifyOptions {
    /// A target, or one backup of it as `tidemark ls` prints it (quote it: it holds '&')
    #[arg(value_name = "URL")]
    url: TargetUrl,
    /// Only this volume
    #[arg(long, short, value_name = "NAME")]
    volume: Option<VolumeName>,
    /// Read so many of each volume's blocks: a percentage such as 5%, or a number
    #[arg(long, value_name = "SHARE", conflicts_with = "full")]
    sample: Option<Share>,
    /// Which sample: the same seed reads the same blocks again [default: random, printed]
    #[arg(long, value_name = "N", requires = "sample")]
    seed: Option<u64>,
    /// Read every block
    #[arg(long)]
    full: bool,
    /// Downloads at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=limits::CONCURRENCY_MAX as i64))]
    concurrency: u32,
    #[command(flatten)]
    scratch: ScratchOptions,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    pub(super) show: ShowOptions,
}

/// What was found in all volumes.
#[derive(Default)]
struct Sum {
    volumes: u64,
    records: u64,
    blocks_named: u64,
    blocks_read: u64,
    bytes_read: u64,
    severities: [u64; 3],
}

pub(super) async fn run(options: VerifyOptions) -> Result<(), CliError> {
    let reach = Reach::new(&options.url, &options.store)?;
    let client = reach.client(&options.store)?;
    let depth = depth(&options)?;
    let volumes = volumes(&options, &client).await?;
    let scratch = options.scratch.open();
    let mut show = Show::new(options.show);
    let mut sum = Sum::default();
    for (volume, backup) in volumes {
        let order = Order { volume, backup, depth, concurrency: options.concurrency };
        let verified = watched(&client, order, &scratch, &mut show).await?;
        show.end();
        tell_findings(&options, &verified);
        sum.add(&verified);
    }
    let text = sum.text(depth);
    show.result(&text, None, || {
        json!({"event": "verified", "volumes": sum.volumes, "records": sum.records, "blocksNamed": sum.blocks_named,
            "blocksRead": sum.blocks_read, "bytesRead": sum.bytes_read, "damaged": sum.of(Severity::Damage),
            "obstacles": sum.of(Severity::Obstacle), "notices": sum.of(Severity::Notice), "seed": seed_of(depth)})
    });
    match sum.of(Severity::Damage) + sum.of(Severity::Obstacle) {
        0 => Ok(()),
        n => {
            let reason = FailureReason::RecordDamaged;
            let message = format!("{n} findings that need you: each names its object and its cure");
            Err(CliError::new(reason, message))
        }
    }
}

fn depth(options: &VerifyOptions) -> Result<Depth, CliError> {
    let Some(share) = options.sample else {
        return Ok(if options.full { Depth::Full } else { Depth::Listing });
    };
    let random = random()?;
    Ok(Depth::Sample { share, seed: options.seed.unwrap_or_else(|| u64::from(u32::from_le_bytes(random))) })
}

fn seed_of(depth: Depth) -> Option<u64> {
    match depth {
        Depth::Sample { seed, .. } => Some(seed),
        Depth::Listing | Depth::Full => None,
    }
}

/// One backup, one volume, or all of the target.
async fn volumes(options: &VerifyOptions, client: &Client) -> Result<Vec<(VolumeName, Option<BackupName>)>, CliError> {
    match (&options.url.record, &options.volume) {
        (Some(record), Some(volume)) if record.volume != *volume => Err(CliError::usage(format!(
            "The URL names a backup of volume {}, --volume says {volume}: leave one out",
            record.volume
        ))),
        (Some(record), _) => Ok(vec![(record.volume.clone(), Some(record.backup.clone()))]),
        (None, Some(volume)) => Ok(vec![(volume.clone(), None)]),
        (None, None) => Ok(catalogue::volumes(client).await?.into_iter().map(|volume| (volume, None)).collect()),
    }
}

/// Verifies one volume and shows how far it is. Ctrl-C ends it at once: nothing is written.
async fn watched(client: &Client, order: Order, scratch: &Scratch, show: &mut Show) -> Result<Verified, CliError> {
    let (progress, newest) = watch::channel(VerifyProgress::default());
    let mut tell = |now| _ = progress.send_replace(now);
    let verifying = verify::verify(client, &order, scratch, &mut tell);
    tokio::pin!(verifying);
    let mut signals = super::service::Signals::new()?;
    let mut tick = interval(TICK);
    loop {
        tokio::select! {
            biased;
            verified = &mut verifying => return verified.map_err(failed),
            () = signals.next() => {
                let reason = FailureReason::Cancelled;
                return Err(CliError::new(reason, "Cancelled"));
            }
            _ = tick.tick() => {
                let now = *newest.borrow();
                let volume = &order.volume;
                show.update(&look(&now), || json!({"event": "progress", "volume": volume, "progress": now}));
            }
        }
    }
}

/// A store that did not answer has proved nothing.
fn failed(error: StoreError) -> CliError {
    let hint = "The verification could not be done: this says nothing about what the store holds.";
    CliError { hint: Some(hint.into()), ..CliError::from(error) }
}

fn look(progress: &VerifyProgress) -> Look<'static> {
    let phase = match progress.phase {
        VerifyPhase::Listing => "Listing",
        VerifyPhase::Records => "Reading records",
        VerifyPhase::Blocks => "Reading blocks",
        VerifyPhase::Ended => "Ended",
    };
    let findings = progress.findings;
    Look {
        phase,
        verb: "read",
        done_blocks: progress.blocks_read,
        total_blocks: progress.blocks_to_read,
        done_bytes: progress.bytes_read,
        note: if findings > 0 { format!(", {findings} findings") } else { String::new() },
    }
}

/// Findings are results: they go to stdout.
fn tell_findings(options: &VerifyOptions, verified: &Verified) {
    for finding in verified.findings.listed() {
        match options.show.json {
            true => say(&json_of(verified, finding).to_string()),
            false => {
                let severity = finding.kind.severity().as_str();
                say(&format!("{severity} {finding}. Cure: {}", finding.kind.cure()));
            }
        }
    }
    let (all, listed) = (verified.findings.counts().map(|(_, n)| n).sum::<u64>(), verified.findings.listed().count());
    if listed >= limits::FINDINGS_LISTED_MAX && !options.show.json {
        say(&format!("Volume {}: {all} findings, {listed} objects are listed", verified.volume));
    }
}

fn json_of(verified: &Verified, finding: &Finding) -> serde_json::Value {
    json!({"event": "finding", "volume": verified.volume, "severity": finding.kind.severity(), "kind": finding.kind,
        "object": finding.object, "seen": finding.seen, "places": finding.places, "placesCount": finding.places_count,
        "cure": finding.kind.cure()})
}

impl Sum {
    fn add(&mut self, verified: &Verified) {
        self.volumes += 1;
        self.records += verified.records;
        self.blocks_named += verified.blocks_named;
        self.blocks_read += verified.blocks_read;
        self.bytes_read += verified.bytes_read;
        for (sum, severity) in self.severities.iter_mut().zip([Severity::Damage, Severity::Obstacle, Severity::Notice])
        {
            *sum += verified.findings.of_severity(severity);
        }
    }

    fn of(&self, severity: Severity) -> u64 {
        match severity {
            Severity::Damage => self.severities[0],
            Severity::Obstacle => self.severities[1],
            Severity::Notice => self.severities[2],
        }
    }

    fn text(&self, depth: Depth) -> String {
        let read = match depth {
            Depth::Listing => "no block read".to_owned(),
            Depth::Sample { seed, .. } => {
                format!("{} blocks read ({}), seed {seed}", self.blocks_read, HumanBytes(self.bytes_read))
            }
            Depth::Full => format!("{} blocks read ({}), which is all", self.blocks_read, HumanBytes(self.bytes_read)),
        };
        let found = match (self.of(Severity::Damage), self.of(Severity::Obstacle)) {
            (0, 0) => "nothing is damaged".to_owned(),
            (damaged, obstacles) => format!("{damaged} damaged, {obstacles} in the way"),
        };
        format!(
            "Verified {} volumes, {} records, {} blocks named, {read}: {found}",
            self.volumes, self.records, self.blocks_named
        )
    }
}
