//! The second opinion. While a Backup runs, its status is compared with what really lies in the bucket: first the status
//! is read, then the bucket is counted, so a status that is ever ahead is caught (law 2). It knows the volume's bytes and
//! so the name of every block that must be there.

use std::collections::{BTreeMap, BTreeSet};

use kube::Api;
use tidemark::{
    api::{Backup, BackupState, BackupStatus},
    model::BlockName,
};

use super::{
    screen::{Screen, Tone},
    support::{self, Image, S3Server},
};

/// One look at both sides.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    pub state: Option<BackupState>,
    pub reason: String,
    pub attempt: i32,
    pub percent: i32,
    pub total: i64,
    pub acknowledged: i64,
    pub uploaded: i64,
    pub reused: i64,
    pub resumed: i64,
    /// Blocks of this volume that the bucket really holds.
    pub in_bucket: i64,
    pub failure: String,
    pub url: String,
}

/// What the whole demo saw.
#[derive(Debug, Default)]
pub struct Tally {
    pub samples: usize,
}

/// The blocks a volume has now, by offset; zeros are not stored and not counted.
pub struct Blocks {
    names: Vec<BlockName>,
}

impl Blocks {
    pub fn of(image: &Image) -> Self {
        let mut names = Vec::new();
        image.for_each_block(|_, bytes| names.push(BlockName::of(bytes)));
        Self { names }
    }

    pub fn count(&self) -> i64 {
        self.names.len() as i64
    }

    /// How many of them lie in the bucket at this moment.
    fn in_bucket(&self, store: &S3Server, bucket: &str) -> i64 {
        let name = |key: &str| key.rsplit('/').next().unwrap_or_default().trim_end_matches(".blk").to_owned();
        let there: BTreeSet<String> = store.block_objects(bucket).iter().map(|object| name(&object.key)).collect();
        self.names.iter().filter(|name| there.contains(&name.to_string())).count() as i64
    }
}

/// Follows one Backup.
pub struct Watch<'a> {
    pub backups: &'a Api<Backup>,
    pub name: &'a str,
    pub store: &'a S3Server,
    pub bucket: &'a str,
    pub blocks: &'a Blocks,
    pub tally: &'a mut Tally,
    highest: BTreeMap<i32, i64>,
}

impl<'a> Watch<'a> {
    pub fn new(
        backups: &'a Api<Backup>,
        name: &'a str,
        (store, bucket): (&'a S3Server, &'a str),
        blocks: &'a Blocks,
        tally: &'a mut Tally,
    ) -> Self {
        Self { backups, name, store, bucket, blocks, tally, highest: BTreeMap::new() }
    }

    /// Reads the status, then counts the bucket, and holds the laws against both.
    pub async fn look(&mut self) -> Result<View, String> {
        let backup =
            self.backups.get(self.name).await.map_err(|e| format!("Backup {} cannot be read: {e}", self.name))?;
        let mut view = backup.status.map(View::of).unwrap_or_default();
        view.in_bucket = self.blocks.in_bucket(self.store, self.bucket);
        self.tally.samples += 1;
        if view.acknowledged > view.in_bucket {
            return Err(format!(
                "Law 2 broken: the status of {} says {} blocks, the bucket holds {}",
                self.name, view.acknowledged, view.in_bucket
            ));
        }
        let highest = self.highest.entry(view.attempt).or_default();
        if view.acknowledged < *highest {
            return Err(format!("Law 3 broken: {} blocks were acknowledged, now {}", highest, view.acknowledged));
        }
        *highest = view.acknowledged;
        let completed = view.state == Some(BackupState::Completed);
        if (view.percent == 100) != completed {
            return Err(format!("Law 3 broken: {} % in state {:?}", view.percent, view.state));
        }
        Ok(view)
    }

    /// Looks ten times a second and draws the bar until `enough` says so.
    pub async fn until(
        &mut self,
        screen: &mut Screen,
        seconds: u64,
        mut enough: impl FnMut(&View) -> bool,
    ) -> Result<View, String> {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
        loop {
            let view = self.look().await?;
            view.draw(self.name, screen);
            if enough(&view) {
                return Ok(view);
            }
            if std::time::Instant::now() > end {
                return Err(format!("Nothing came of it in {seconds} s. Last seen: {view:#?}"));
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
}

impl View {
    fn of(status: BackupStatus) -> Self {
        let progress = status.progress.unwrap_or_default();
        Self {
            state: status.state,
            reason: status.reason.unwrap_or_default(),
            attempt: status.attempt.map_or(0, |attempt| attempt.number),
            percent: progress.percent,
            total: progress.total_blocks.unwrap_or(0),
            acknowledged: progress.acknowledged_blocks,
            uploaded: progress.uploaded_blocks,
            reused: progress.reused_blocks,
            resumed: progress.resumed_blocks,
            in_bucket: 0,
            failure: status.failure.map(|f| format!("{}: {}", f.reason, f.message)).unwrap_or_default(),
            url: status.store.and_then(|store| store.url).unwrap_or_default(),
        }
    }

    pub fn is(&self, state: BackupState) -> bool {
        self.state == Some(state)
    }

    fn draw(&self, name: &str, screen: &mut Screen) {
        let tone = match self.state {
            Some(BackupState::Completed) => Tone::Good,
            Some(BackupState::Error) => Tone::Bad,
            _ => Tone::Water,
        };
        let state = self.state.map_or_else(|| "new".to_owned(), |state| format!("{state:?}"));
        let reason = if self.reason == state { String::new() } else { format!("/{}", self.reason) };
        let words = match self.total {
            0 => format!("{state}{reason}"),
            total => format!(
                "acknowledged {} of {total} | in the bucket {}  {state}{reason}",
                self.acknowledged, self.in_bucket
            ),
        };
        screen.bar(name, usize::try_from(self.percent).unwrap_or(0), tone, &words);
    }
}

/// Waits for something that is no Backup.
pub async fn wait<T, F: Future<Output = Option<T>>>(
    seconds: u64,
    what: &str,
    mut ask: impl FnMut() -> F,
) -> Result<T, String> {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if std::time::Instant::now() > end {
            return Err(format!("{what}: not within {seconds} s"));
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// The program under test, run as a person would.
pub async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Result<String, String> {
    let mut command = tokio::process::Command::new(support::operator::program());
    command.args(arguments).envs(environment.iter().copied()).kill_on_drop(true);
    let output = command.output().await.map_err(|e| format!("tidemark did not start: {e}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!(
            "tidemark {}: {}\n{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}
