//! Longhorn as the other side of a store: it writes and restores, lists, deletes and locks beside us.
//!
//! Two hands do it. The **library**: a program around Longhorn's own Go library, named by `TIDEMARK_LONGHORN`; its verbs
//! are in docs/longhorn.md. The registries our builds may use do not serve that library, so nothing here gets it. The
//! **model** (`model`): our own words for what Longhorn does, request by request, and stricter than it: whatever Longhorn
//! would not read, or would read wrongly, is an error. It runs everywhere. Every test that takes `Longhorn::here()` was run
//! with both; a test of Longhorn's own faults needs the library and says so when it is not there.

mod model;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::Value;
use tidemark::{
    model::BlockSize,
    store::{layout::VolumeLayout, objects::Objects},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use super::{ACCESS_KEYS, job};

/// Where a backupstore lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Directory(PathBuf),
    /// The bucket `backups` below `some/prefix/` of this endpoint.
    S3(String),
}

impl Place {
    /// As our command line is told.
    pub fn target(&self) -> String {
        match self {
            Self::Directory(path) => format!("file://{}", path.display()),
            Self::S3(_) => "s3://backups@us-east-1/some/prefix/".into(),
        }
    }

    /// As Longhorn is told.
    pub fn longhorn(&self) -> String {
        match self {
            Self::Directory(path) => format!("vfs://{}", path.display()),
            Self::S3(_) => self.target(),
        }
    }

    pub fn objects(&self) -> Arc<dyn Objects> {
        match self {
            Self::Directory(path) => job::directory(path),
            Self::S3(endpoint) => job::s3_at(endpoint),
        }
    }

    /// What both read from the environment.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let (id, secret) = ACCESS_KEYS[0];
        match self {
            Self::Directory(_) => Vec::new(),
            Self::S3(endpoint) => vec![
                ("AWS_ACCESS_KEY_ID", id.into()),
                ("AWS_SECRET_ACCESS_KEY", secret.into()),
                ("AWS_ENDPOINTS", endpoint.clone()),
            ],
        }
    }
}

/// One backup in a place.
pub fn url_of(target: &str, volume: &str, backup: &str) -> String {
    format!("{target}?backup={backup}&volume={volume}")
}

pub fn layout(volume: &str) -> VolumeLayout {
    VolumeLayout::new(&volume.parse().expect("a volume name"))
}

/// Every file below a folder.
pub fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => files.extend(walk(&path)),
            path => files.push(path),
        }
    }
    files
}

/// Makes every file below a folder so old by its store's clock; negative: from the future.
pub fn age(folder: &Path, seconds: i64) {
    let age = Duration::from_secs(seconds.unsigned_abs());
    let now = SystemTime::from(tidemark::telemetry::now());
    let time = if seconds < 0 { now + age } else { now - age };
    for path in walk(folder) {
        let file = std::fs::File::options().write(true).open(&path).expect("the object is there");
        file.set_modified(time).expect("a file's time can be set");
    }
}

/// A backup that Longhorn is to make.
#[derive(Debug, Clone)]
pub struct Create {
    pub volume: String,
    pub backup: String,
    pub snapshot: String,
    pub image: PathBuf,
    /// The image and the name of a snapshot that the volume still has: what an incremental compares with.
    pub base: Option<(PathBuf, String)>,
    pub method: &'static str,
    pub block_size: BlockSize,
    pub workers: u32,
}

impl Create {
    pub fn new(volume: &str, backup: &str, image: &Path) -> Self {
        Self {
            volume: volume.into(),
            backup: backup.into(),
            snapshot: format!("snap-{backup}"),
            image: image.to_owned(),
            base: None,
            method: "lz4",
            block_size: BlockSize::Mi2,
            workers: 2,
        }
    }
}

/// What Longhorn said, one JSON object after the other, and whether it ended well.
#[derive(Debug, Clone)]
pub struct Said {
    pub ok: bool,
    pub lines: Vec<Value>,
}

impl Said {
    pub fn last(&self) -> &Value {
        self.lines.last().unwrap_or(&Value::Null)
    }

    /// The error of the last line; empty if there is none.
    pub fn error(&self) -> &str {
        self.last()["error"].as_str().unwrap_or_default()
    }

    pub fn done(self, what: &str) -> Self {
        assert!(self.ok, "Longhorn's {what} failed: {:#?}", self.lines);
        self
    }

    /// The highest progress before the last line.
    pub fn progress_max(&self) -> i64 {
        let told = self.lines.iter().filter(|line| line["event"] == "progress");
        told.filter_map(|line| line["progress"].as_i64()).filter(|p| *p != 100).max().unwrap_or_default()
    }
}

/// Longhorn's hand.
#[derive(Debug, Clone)]
pub struct Longhorn {
    library: Option<PathBuf>,
}

/// A lock that Longhorn holds. Dropped without `release` it stays behind, as when its process is killed.
pub struct Held {
    /// Its output is kept open: it says a last word.
    child: Option<(Child, Lines<BufReader<ChildStdout>>)>,
    model: Option<model::Lock>,
}

impl Longhorn {
    /// The library if this machine has it, else the model.
    pub fn here() -> Self {
        Self { library: super::environment("TIDEMARK_LONGHORN").map(PathBuf::from) }
    }

    /// The library, or a word that a test of its faults was left out.
    pub fn library(test: &str) -> Option<Self> {
        let here = Self::here();
        if here.library.is_none() {
            println!("{test}: Longhorn's half is left out, TIDEMARK_LONGHORN names no program (docs/longhorn.md)");
        }
        here.library.is_some().then_some(here)
    }

    pub async fn create(&self, place: &Place, create: &Create) -> Said {
        let Some(program) = &self.library else { return model::create(place, create).await };
        let block_size = create.block_size.bytes().to_string();
        let (image, workers) = (create.image.display().to_string(), create.workers.to_string());
        let mut arguments: Vec<&str> = vec!["create", "-target"];
        let target = place.longhorn();
        arguments.extend([target.as_str(), "-volume", &create.volume, "-backup", &create.backup]);
        arguments.extend(["-snapshot", &create.snapshot, "-image", &image, "-method", create.method]);
        arguments.extend(["-block-size", &block_size, "-workers", &workers]);
        let base = create.base.as_ref().map(|(image, snapshot)| (image.display().to_string(), snapshot));
        if let Some((image, snapshot)) = &base {
            arguments.extend(["-previous", image, "-previous-snapshot", snapshot]);
        }
        run(program, place, &arguments).await
    }

    pub async fn restore(&self, place: &Place, volume: &str, backup: &str, out: &Path) -> Said {
        let Some(program) = &self.library else { return model::restore(place, volume, backup, out).await };
        let (url, out) = (url_of(&place.longhorn(), volume, backup), out.display().to_string());
        run(program, place, &["restore", "-url", &url, "-out", &out]).await
    }

    /// What changed from one backup to the other, into a new file: what Longhorn lays on top of the earlier state. Only the
    /// library knows how.
    pub async fn restore_onto(&self, place: &Place, volume: &str, backups: (&str, &str), out: &Path) -> Said {
        let program = self.library.as_ref().expect("asked for by `Longhorn::library`");
        let (url, out) = (url_of(&place.longhorn(), volume, backups.1), out.display().to_string());
        run(program, place, &["restore", "-url", &url, "-out", &out, "-last", backups.0]).await
    }

    /// Names of the volume's backups, and no complaint about any of them.
    pub async fn list(&self, place: &Place, volume: &str) -> Result<Vec<String>, String> {
        let Some(program) = &self.library else { return model::list(place, volume).await };
        let said = run(program, place, &["list", "-target", &place.longhorn(), "-volume", volume]).await;
        let listed = &said.last()["volumes"][volume];
        if !said.ok || listed["Messages"].as_object().is_some_and(|m| !m.is_empty()) {
            return Err(format!("{:?}", said.lines));
        }
        Ok(listed["Backups"].as_object().map(|b| b.keys().cloned().collect()).unwrap_or_default())
    }

    /// What Longhorn reads in the backup's config and the volume's.
    pub async fn inspect(&self, place: &Place, volume: &str, backup: &str) -> Result<Value, String> {
        let Some(program) = &self.library else { return model::inspect(place, volume, backup).await };
        let said = run(program, place, &["inspect", "-url", &url_of(&place.longhorn(), volume, backup)]).await;
        let (last, none) = (said.last(), |v: &Value| v.as_object().is_none_or(serde_json::Map::is_empty));
        match said.ok && none(&last["backup"]["Messages"]) && none(&last["volume"]["Messages"]) {
            true => Ok(last.clone()),
            false => Err(format!("{:?}", said.lines)),
        }
    }

    pub async fn delete(&self, place: &Place, volume: &str, backup: &str) -> Said {
        let Some(program) = &self.library else { return model::delete(place, volume, backup).await };
        run(program, place, &["delete", "-url", &url_of(&place.longhorn(), volume, backup)]).await
    }

    /// Takes the volume's lock (1: backup or restore, 2: deletion) and holds it.
    pub async fn lock(&self, place: &Place, volume: &str, kind: i64) -> Result<Held, String> {
        let Some(program) = &self.library else {
            let lock = model::Lock::acquire(place.objects(), volume, kind).await?;
            return Ok(Held { child: None, model: Some(lock) });
        };
        let kind = kind.to_string();
        let arguments = ["lock", "-target", &place.longhorn(), "-volume", volume, "-type", &kind];
        let mut child = command(program, place, &arguments).stdin(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it was asked for")).lines();
        let first = lines.next_line().await.expect("it can be read").unwrap_or_default();
        match first.contains("\"locked\"") {
            true => Ok(Held { child: Some((child, lines)), model: None }),
            false => Err(first),
        }
    }
}

impl Held {
    /// Gives the lock back.
    pub async fn release(self) {
        if let Some((mut child, _lines)) = self.child {
            let mut input = child.stdin.take().expect("it was asked for");
            input.write_all(b"\n").await.expect("it waits for this line");
            assert!(child.wait().await.expect("it ends").success(), "Longhorn could not release its lock");
        }
        if let Some(lock) = self.model {
            lock.release().await.expect("the lock is removed");
        }
    }
}

fn command(program: &Path, place: &Place, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(place.variables()).env("AWS_REGION", "us-east-1");
    // In a directory it lists with `ls`.
    command.envs(super::environment("PATH").map(|path| ("PATH", path)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

async fn run(program: &Path, place: &Place, arguments: &[&str]) -> Said {
    let output = command(program, place, arguments).output().await.expect("TIDEMARK_LONGHORN names a program");
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect();
    Said { ok: output.status.success(), lines }
}
