//! What deletion tests need: volumes with a past, files that are made older, the one invariant that must always hold, and
//! listings that lie.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tidemark::{
    model::VolumeName,
    store::{
        client::Client,
        error::{ErrorKind, StoreError},
        janitor::{Living, Wanted},
        layout::VolumeLayout,
        objects::{Answer, Body, Fetched, Meta, Objects, Page, PutCondition, Range, Stored},
        record::Record,
        remove::{self, Doomed, Removed},
        scratch::Scratch,
        sweep::{Sweep, SweepProgress, Swept},
    },
};
use tokio_util::sync::CancellationToken;

use super::{Block, Image, TempDir, job};

/// Older than everything that is young, younger than everything that expires by the day.
pub const HALF_AN_HOUR: u64 = 1800;

pub fn volume() -> VolumeName {
    "pvc-test".parse().expect("a name")
}

pub fn layout() -> VolumeLayout {
    VolumeLayout::new(&volume())
}

/// A sweep of a caller who knows that nobody else is alive.
pub fn sweep(objects: Arc<dyn Objects>) -> Sweep {
    Sweep {
        client: Client::new(objects, Duration::from_secs(20), Duration::from_secs(600)),
        volume: volume(),
        living: Living { wanted: Wanted::Only(BTreeSet::new()), ..Living::default() },
        scratch: Scratch::new(&std::env::temp_dir()),
        timing: job::quick(),
        cancel: CancellationToken::new(),
    }
}

pub async fn swept(objects: Arc<dyn Objects>) -> Result<Swept, StoreError> {
    sweep(objects).run(&progress()).await
}

pub async fn removed(objects: Arc<dyn Objects>, uid: &str) -> Result<Removed, StoreError> {
    remove::remove(&sweep(objects), &Doomed::Backup(uid.into()), &progress()).await
}

pub fn progress() -> tokio::sync::watch::Sender<SweepProgress> {
    tokio::sync::watch::channel(SweepProgress::default()).0
}

/// Makes every file below a folder so much older.
pub fn age(folder: &Path, seconds: u64) {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
                continue;
            }
            let older = |file: std::fs::File| {
                let modified = file.metadata()?.modified()? - Duration::from_secs(seconds);
                file.set_modified(modified)
            };
            // Somebody may be deleting it.
            let _ = std::fs::File::options().write(true).open(entry.path()).and_then(older);
        }
    }
}

/// Copies a store and makes it old.
pub fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a store").flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            std::fs::create_dir_all(&target).expect("made");
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("copied");
        }
    }
    age(to, HALF_AN_HOUR);
}

/// A store with a volume of these backups, each of which changed some blocks of the one before.
pub struct Past {
    pub folder: TempDir,
    pub images: Vec<PathBuf>,
    pub records: Vec<String>,
}

impl Past {
    /// `uid-0` has blocks 0, 1, 2; each later one replaces block 0 by one of its own.
    pub async fn of(backups: usize) -> Self {
        let folder = super::scratch("past");
        let store = folder.path().join("store");
        std::fs::create_dir(&store).expect("made");
        let (mut images, mut records) = (Vec::new(), Vec::new());
        for i in 0..backups {
            let path = folder.path().join(format!("image-{i}"));
            let first = if i == 0 { Block::Text(0) } else { Block::Text(100 + i as u64) };
            Image::of(&path, &[first, Block::Text(1), Block::Text(2)]);
            let created = job::now() + jiff::SignedDuration::from_secs(i as i64);
            let spec = job::job(&path, &format!("uid-{i}"), 1 + i as u64);
            let spec = job::with_task(spec, |task| task.snapshot.created = created);
            let ran = job::run(spec, job::directory(&store)).await;
            records.push(ran.record());
            images.push(path);
        }
        Self { folder, images, records }
    }

    /// A copy of the store, half an hour old, and the way to it.
    pub fn store(&self) -> (TempDir, Arc<dyn Objects>) {
        let store = super::scratch("store");
        copy(&self.folder.path().join("store"), store.path());
        let objects = job::directory(store.path());
        (store, objects)
    }

    /// Every backup but these is restorable, byte for byte.
    pub async fn check(&self, objects: &Arc<dyn Objects>, but: &[usize], world: &str) {
        for (i, record) in self.records.iter().enumerate().filter(|(i, _)| !but.contains(i)) {
            let differs = job::compare(objects, "pvc-test", record, &self.images[i]).await;
            assert_eq!(differs, None, "{world}: backup {i}");
        }
    }
}

/// Every key, in order.
pub async fn keys(objects: &Arc<dyn Objects>, prefix: &str) -> Vec<String> {
    let (mut keys, mut token) = (Vec::new(), None);
    loop {
        let page = objects.list(prefix, token).await.expect("the plain store lists");
        keys.extend(page.entries.into_iter().map(|e| e.key));
        match page.next {
            Some(next) => token = Some(next),
            None => return keys,
        }
    }
}

pub async fn blocks(objects: &Arc<dyn Objects>) -> Vec<String> {
    keys(objects, &layout().blocks()).await
}

/// The law: no complete record names a block that is not there. What is wrong, or nothing.
pub async fn missing(objects: &Arc<dyn Objects>) -> Option<String> {
    let present: BTreeSet<String> = blocks(objects).await.into_iter().collect();
    for key in keys(objects, &layout().backups()).await {
        let Some(fetched) = objects.get(&key, Range::whole(u64::MAX)).await.expect("the plain store reads") else {
            continue;
        };
        let Ok(record) = Record::parse(&fetched.bytes) else { return Some(format!("{key} is no record")) };
        if record.head.is_in_progress() {
            continue;
        }
        let gone = record.blocks.iter().map(|b| layout().block(&b.block_checksum)).find(|key| !present.contains(key));
        if let Some(gone) = gone {
            return Some(format!("{key} names {gone}, which is not there"));
        }
    }
    None
}

/// What becomes of a LIST.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    Fails,
    /// Answered well, and nothing is in it.
    Empty,
    /// Answered well, and the second half of it is not there.
    Half,
    /// The same, but the first half.
    Beheaded,
}

/// Which request, by number and key, is lied to.
type Which = Box<dyn Fn(u64, &str) -> Option<Lie> + Send + Sync>;

/// A store whose listings lie: those of which `which` says so, by their number and prefix.
pub struct Lying {
    inner: Arc<dyn Objects>,
    lists: AtomicU64,
    which: Which,
}

impl Lying {
    pub fn new(inner: Arc<dyn Objects>, which: impl Fn(u64, &str) -> Option<Lie> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { inner, lists: AtomicU64::new(0), which: Box::new(which) })
    }

    pub fn lists(&self) -> u64 {
        self.lists.load(SeqCst)
    }
}

impl Objects for Lying {
    fn put<'a>(&'a self, key: &'a str, body: Body, condition: PutCondition) -> Answer<'a, Stored> {
        self.inner.put(key, body, condition)
    }
    fn get<'a>(&'a self, key: &'a str, range: Range) -> Answer<'a, Option<Fetched>> {
        self.inner.get(key, range)
    }
    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Meta>> {
        self.inner.head(key)
    }
    fn list<'a>(&'a self, prefix: &'a str, token: Option<String>) -> Answer<'a, Page> {
        let lie = (self.which)(self.lists.fetch_add(1, SeqCst), prefix);
        Box::pin(async move {
            let mut page = self.inner.list(prefix, token).await?;
            let half = page.entries.len() / 2;
            match lie {
                None => {}
                Some(Lie::Fails) => {
                    return Err(StoreError::new(
                        ErrorKind::Refused(tidemark::model::FailureReason::AccessDenied),
                        "LIST",
                        prefix,
                        "a fault of the test",
                    ));
                }
                Some(Lie::Empty) => page = Page::default(),
                Some(Lie::Half) => page.entries.truncate(half),
                Some(Lie::Beheaded) => drop(page.entries.drain(..page.entries.len() - half)),
            }
            Ok(page)
        })
    }
    fn delete<'a>(&'a self, keys: &'a [String]) -> Answer<'a, Vec<StoreError>> {
        self.inner.delete(keys)
    }
}
