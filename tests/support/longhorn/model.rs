//! The model of Longhorn: its requests in their order, and a reader that refuses whatever Longhorn would not read, or
//! would read wrongly. Written from our own notes on Longhorn's behaviour (docs/longhorn.md), not from its code.
//!
//! Where Longhorn fails open (a listing that fails, a lock that cannot be read) the model fails: its faults are tested
//! with the library. What it shares with the product is the way to the store and the codec, no more.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Value, json};
use tidemark::{
    model::{BlockName, Compression},
    store::{
        codec,
        objects::{Body, Entry, Objects, PutCondition, Range},
    },
};

use super::{super::Image, Create, Place, Said, layout};

type Outcome<T> = Result<T, String>;

/// Longhorn's constants (docs/longhorn.md).
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_VALID_SECONDS: i64 = 150;

/// One volume in a store.
struct Store {
    objects: Arc<dyn Objects>,
    volume: String,
}

impl Store {
    fn new(place: &Place, volume: &str) -> Self {
        Self { objects: place.objects(), volume: volume.into() }
    }

    fn backup_key(&self, backup: &str) -> String {
        layout(&self.volume).backup(&backup.parse().expect("a backup name"))
    }

    fn block_key(&self, name: &str) -> Outcome<String> {
        Ok(layout(&self.volume).block(&name.parse().map_err(|e| format!("{e}"))?))
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) -> Outcome<()> {
        let put = self.objects.put(key, Body::Bytes(Bytes::from(bytes)), PutCondition::Always).await;
        put.map(drop).map_err(|e| e.to_string())
    }

    async fn delete(&self, key: &str) -> Outcome<()> {
        let stay = self.objects.delete(&[key.to_owned()]).await.map_err(|e| e.to_string())?;
        stay.first().map_or(Ok(()), |error| Err(error.to_string()))
    }

    async fn get(&self, key: &str) -> Outcome<Bytes> {
        let fetched = self.objects.get(key, Range::whole(u64::MAX)).await.map_err(|e| e.to_string())?;
        Ok(fetched.ok_or_else(|| format!("{key} is not there"))?.bytes)
    }

    async fn list(&self, prefix: &str) -> Outcome<Vec<Entry>> {
        let (mut entries, mut token) = (Vec::new(), None);
        loop {
            let page = self.objects.list(prefix, token).await.map_err(|e| e.to_string())?;
            entries.extend(page.entries);
            match page.next {
                Some(next) => token = Some(next),
                None => return Ok(entries),
            }
        }
    }

    async fn backups(&self) -> Outcome<Vec<String>> {
        let entries = self.list(&layout(&self.volume).backups()).await?;
        let name =
            |e: &Entry| Some(e.key.rsplit('/').next()?.strip_prefix("backup_")?.strip_suffix(".cfg")?.to_owned());
        Ok(entries.iter().filter_map(name).collect())
    }

    async fn volume_config(&self) -> Outcome<Value> {
        let config = parse(&self.get(&layout(&self.volume).config()).await?)?;
        for field in ["BackingImageName", "BackingImageChecksum", "CompressionMethod", "StorageClassName", "DataEngine"]
        {
            twice(&config, field)?;
        }
        number(&config, "BlockCount")?;
        let size = number(&config, "Size")?;
        match config["Name"] == self.volume.as_str() && size > 0 {
            true => Ok(config),
            false => Err(format!("volume.cfg has Name {} and Size {size}", config["Name"])),
        }
    }

    async fn save_volume(&self, config: &Value) -> Outcome<()> {
        self.put(&layout(&self.volume).config(), config.to_string().into_bytes()).await
    }

    /// A backup config, checked field by field.
    async fn backup(&self, backup: &str) -> Outcome<Backup> {
        let config = parse(&self.get(&self.backup_key(backup)).await?)?;
        let wrong = |what: &str| Err(format!("config of {backup}: {what}: {config:.300}"));
        for field in ["Size", "NewlyUploadedDataSize", "ReUploadedDataSize"] {
            number(&config, field)?;
        }
        if config["Name"] != backup
            || config["VolumeName"] != self.volume.as_str()
            || !config["IsIncremental"].is_boolean()
        {
            return wrong("Name, VolumeName or IsIncremental");
        }
        let block_size = match config["Parameters"]["backup-block-size"].as_str() {
            None | Some("") => 2_097_152,
            Some(text) => text.parse::<u64>().map_err(|e| format!("{text}: {e}"))?,
        };
        let mut blocks = BTreeMap::new();
        let mut last = None;
        for block in config["Blocks"].as_array().into_iter().flatten() {
            let (offset, name) = (block["Offset"].as_u64(), block["BlockChecksum"].as_str());
            let (Some(offset), Some(name)) = (offset, name) else { return wrong("a block") };
            if offset % block_size != 0 || last.is_some_and(|last| last >= offset) {
                return wrong("blocks are not sorted, aligned and each named once");
            }
            last = Some(offset);
            blocks.insert(offset, name.to_owned());
        }
        if number(&config, "Size")? != i64::try_from(blocks.len() as u64 * block_size).expect("small") {
            return wrong("Size is not blocks times block size");
        }
        let method = config["CompressionMethod"].as_str().unwrap_or("gzip").to_owned();
        Ok(Backup { method, block_size, blocks, config })
    }
}

/// A backup config, read.
struct Backup {
    config: Value,
    method: String,
    block_size: u64,
    blocks: BTreeMap<u64, String>,
}

impl Backup {
    fn is_in_progress(&self) -> bool {
        self.config["CreatedTime"].as_str().is_none_or(str::is_empty)
    }
}

fn parse(bytes: &[u8]) -> Outcome<Value> {
    serde_json::from_slice(bytes).map_err(|e| format!("no JSON: {e}"))
}

/// Go's `,string` on an integer: a string that holds it, without blanks.
fn number(config: &Value, field: &str) -> Outcome<i64> {
    let text = config[field].as_str().ok_or_else(|| format!("{field} is {}, not a string", config[field]))?;
    text.parse().map_err(|e| format!("{field} is {text:?}: {e}"))
}

/// Go's `,string` on a string: a string that holds a JSON string; null and absence pass.
fn twice(config: &Value, field: &str) -> Outcome<String> {
    match &config[field] {
        Value::Null => Ok(String::new()),
        Value::String(text) => serde_json::from_str(text).map_err(|e| format!("{field} is {text:?}: {e}")),
        other => Err(format!("{field} is {other}")),
    }
}

fn now() -> String {
    tidemark::telemetry::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A lock that is held.
pub(super) struct Lock {
    store: Store,
    key: String,
}

impl Lock {
    /// Write, wait two seconds, judge all, rewrite as acquired; refused at once if another type comes first.
    pub(super) async fn acquire(objects: Arc<dyn Objects>, volume: &str, kind: i64) -> Outcome<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).expect("the system has random numbers");
        let name = format!("lock-{}", random.map(|b| format!("{b:02x}")).concat());
        let lock = Self {
            key: format!("{}{name}.lck", layout(volume).locks()),
            store: Store { objects, volume: volume.into() },
        };
        let body = |acquired: bool| json!({"Name": name, "Type": kind, "Acquired": acquired}).to_string().into_bytes();
        lock.store.put(&lock.key, body(false)).await?;
        tokio::time::sleep(LOCK_WAIT).await;
        match lock.first_before(kind).await {
            Ok(None) => {}
            Ok(Some(other)) => {
                lock.release().await?;
                return Err(format!("failed to acquire lock: {other} comes first, please try again later"));
            }
            Err(error) => {
                lock.release().await?;
                return Err(error);
            }
        }
        lock.store.put(&lock.key, body(true)).await?;
        Ok(lock)
    }

    /// An unexpired lock of another type that sorts before this one: acquired first, then by time, then by name.
    async fn first_before(&self, kind: i64) -> Outcome<Option<String>> {
        let entries = self.store.list(&layout(&self.store.volume).locks()).await?;
        let own = entries.iter().find(|e| e.key == self.key).and_then(|e| e.meta.modified);
        let own = own.ok_or("our own lock is not listed")?;
        for entry in entries.iter().filter(|e| e.key != self.key && e.key.ends_with(".lck")) {
            let other = parse(&self.store.get(&entry.key).await?)?;
            let modified = entry.meta.modified.ok_or("a lock has no time")?;
            let is_expired = tidemark::telemetry::now().duration_since(modified).as_secs() > LOCK_VALID_SECONDS;
            let comes_first = other["Acquired"] == true || (modified, &entry.key) < (own, &self.key);
            if other["Type"] != kind && comes_first && !is_expired {
                return Ok(Some(entry.key.clone()));
            }
        }
        Ok(None)
    }

    pub(super) async fn release(&self) -> Outcome<()> {
        self.store.delete(&self.key).await
    }
}

/// Runs work under a lock and says how it ended.
async fn locked<T>(store: &Store, kind: i64, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let lock = Lock::acquire(store.objects.clone(), &store.volume, kind).await?;
    let done = work.await;
    lock.release().await?;
    done
}

fn said(outcome: Outcome<Value>) -> Said {
    match outcome {
        Ok(line) => Said { ok: true, lines: vec![line] },
        Err(error) => Said { ok: false, lines: vec![json!({"event": "failed", "error": error})] },
    }
}

pub(super) async fn create(place: &Place, create: &Create) -> Said {
    let store = Store::new(place, &create.volume);
    said(locked(&store, 1, back_up(&store, create)).await)
}

async fn back_up(store: &Store, create: &Create) -> Outcome<Value> {
    let bytes = Image::open(&create.image).bytes();
    let mut volume = open_volume(store, create, bytes).await?;
    let method = twice(&volume, "CompressionMethod")?;
    let base = match (volume["LastBackupName"].as_str().unwrap_or_default(), &create.base) {
        ("", _) | (_, None) => None,
        (last, Some((image, snapshot))) => {
            let last = store.backup(last).await?;
            (last.config["SnapshotName"] == snapshot.as_str()).then_some((last, image))
        }
    };
    let changed = match &base {
        Some((last, image)) if last.block_size != create.block_size.bytes() => {
            return Err(format!("a base of blocks of {} bytes under {}", last.block_size, image.display()));
        }
        Some((_, image)) => changed_blocks(&create.image, image, create.block_size.len()),
        None => allocated_blocks(&create.image, create.block_size.len()),
    };
    let marker = json!({"Name": create.backup, "VolumeName": create.volume, "SnapshotName": "", "SnapshotCreatedAt": "",
        "CreatedTime": "", "Size": "0", "Labels": null, "Parameters": null, "IsIncremental": false,
        "CompressionMethod": method, "NewlyUploadedDataSize": "0", "ReUploadedDataSize": "0", "ProcessingBlocks": null,
        "SingleFile": {"FilePath": ""}});
    store.put(&store.backup_key(&create.backup), marker.to_string().into_bytes()).await?;
    let mut map = base.as_ref().map(|(last, _)| last.blocks.clone()).unwrap_or_default();
    let (mut new_blocks, mut new_bytes) = (0, 0);
    for (offset, block) in changed {
        let name = BlockName::of(&block).to_string();
        let key = store.block_key(&name)?;
        if store.objects.head(&key).await.map_err(|e| e.to_string())?.is_none() {
            let mut object = Vec::new();
            codec::encode(method.parse::<Compression>()?, &block, &mut object);
            (new_blocks, new_bytes) = (new_blocks + 1, new_bytes + object.len());
            store.put(&key, object).await?;
        }
        map.insert(offset, name);
    }
    let created = now();
    let blocks: Vec<_> = map.iter().map(|(offset, name)| json!({"Offset": offset, "BlockChecksum": name})).collect();
    let mut record = marker;
    record["SnapshotName"] = json!(create.snapshot);
    record["SnapshotCreatedAt"] = json!(created);
    record["CreatedTime"] = json!(created);
    record["Size"] = json!((blocks.len() as u64 * create.block_size.bytes()).to_string());
    record["Parameters"] =
        json!({"backup-block-size": create.block_size.bytes().to_string(), "backup-mode": "incremental"});
    record["IsIncremental"] = json!(base.is_some());
    record["NewlyUploadedDataSize"] = json!(new_bytes.to_string());
    record["Blocks"] = json!(blocks);
    store.put(&store.backup_key(&create.backup), record.to_string().into_bytes()).await?;
    volume["LastBackupName"] = json!(create.backup);
    volume["LastBackupAt"] = json!(created);
    volume["BlockCount"] = json!((number(&volume, "BlockCount")? + new_blocks).to_string());
    volume["Size"] = json!(bytes.to_string());
    store.save_volume(&volume).await?;
    Ok(json!({"event": "ended", "state": "complete", "progress": 100, "incremental": base.is_some()}))
}

/// `volume.cfg`, made if it is not there. What it says of the method counts.
async fn open_volume(store: &Store, create: &Create, bytes: u64) -> Outcome<Value> {
    let config = layout(&store.volume).config();
    if store.objects.head(&config).await.map_err(|e| e.to_string())?.is_none() {
        let twice = |text: &str| format!("\"{text}\"");
        let fresh = json!({"Name": create.volume, "Size": bytes.to_string(), "Labels": {}, "CreatedTime": now(),
            "LastBackupName": "", "LastBackupAt": "", "BlockCount": "0", "BackingImageName": twice(""),
            "BackingImageChecksum": twice(""), "CompressionMethod": twice(create.method), "StorageClassName": twice(""),
            "DataEngine": twice("v1")});
        store.save_volume(&fresh).await?;
    }
    store.volume_config().await
}

/// Longhorn stores what is allocated, zeros included.
fn allocated_blocks(image: &Path, size: usize) -> Vec<(u64, Vec<u8>)> {
    changed_or(image, None, size)
}

fn changed_blocks(image: &Path, base: &Path, size: usize) -> Vec<(u64, Vec<u8>)> {
    changed_or(image, Some(base), size)
}

fn changed_or(image: &Path, base: Option<&Path>, size: usize) -> Vec<(u64, Vec<u8>)> {
    let open = |path: &Path| std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (file, base) = (open(image), base.map(open));
    let length = file.metadata().expect("an open file").len();
    let mut blocks = Vec::new();
    for offset in (0..length).step_by(size) {
        let read = |file: &std::fs::File| {
            let mut bytes = vec![0; size];
            // The base may be shorter: a volume grows.
            let is_there = offset < file.metadata().expect("an open file").len();
            let read = if is_there { file.read_exact_at(&mut bytes, offset) } else { Ok(()) };
            read.map(|()| bytes).expect("Longhorn's volumes are whole blocks")
        };
        let block = read(&file);
        let is_taken = match &base {
            Some(base) => read(base) != block,
            // Without a base: what is not a hole. A block of zeros is stored if it was written.
            None => {
                rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(offset)).is_ok_and(|at| at < offset + size as u64)
            }
        };
        if is_taken {
            blocks.push((offset, block));
        }
    }
    blocks
}

pub(super) async fn restore(place: &Place, volume: &str, backup: &str, out: &Path) -> Said {
    let store = Store::new(place, volume);
    said(locked(&store, 1, restore_to(&store, backup, out)).await)
}

async fn restore_to(store: &Store, backup: &str, out: &Path) -> Outcome<Value> {
    let size = u64::try_from(number(&store.volume_config().await?, "Size")?).expect("checked");
    let backup = store.backup(backup).await?;
    if size % backup.block_size != 0 {
        return Err(format!("volume size {size} is not a multiple of block size {}", backup.block_size));
    }
    let file = std::fs::File::create(out).map_err(|e| e.to_string())?;
    file.set_len(size).map_err(|e| e.to_string())?;
    for (offset, name) in &backup.blocks {
        let object = store.get(&store.block_key(name)?).await?;
        let mut block = vec![0; usize::try_from(backup.block_size).expect("small")];
        codec::decode(backup.method.parse()?, &object, &mut block).map_err(|e| format!("{name}: {e}"))?;
        if BlockName::of(&block).to_string() != *name {
            return Err(format!("{name} holds other bytes"));
        }
        file.write_all_at(&block, *offset).map_err(|e| e.to_string())?;
    }
    Ok(json!({"event": "ended", "error": ""}))
}

pub(super) async fn list(place: &Place, volume: &str) -> Outcome<Vec<String>> {
    let store = Store::new(place, volume);
    store.volume_config().await?;
    store.backups().await
}

pub(super) async fn inspect(place: &Place, volume: &str, backup: &str) -> Outcome<Value> {
    let store = Store::new(place, volume);
    let volume = store.volume_config().await?;
    let backup = store.backup(backup).await?;
    match backup.is_in_progress() {
        true => Err("the backup is in progress".into()),
        false => Ok(json!({"event": "inspected", "backup": backup.config, "volume": volume})),
    }
}

pub(super) async fn delete(place: &Place, volume: &str, backup: &str) -> Said {
    let store = Store::new(place, volume);
    said(locked(&store, 2, delete_backup(&store, backup)).await)
}

/// The config first, then mark and sweep: nothing is swept beside a backup in progress.
async fn delete_backup(store: &Store, backup: &str) -> Outcome<Value> {
    store.delete(&store.backup_key(backup)).await?;
    let mut volume = store.volume_config().await?;
    let names = store.backups().await?;
    let blocks = store.list(&layout(&store.volume).blocks()).await?;
    let (mut used, mut newest, mut may_sweep) = (BTreeSet::new(), (String::new(), String::new()), true);
    for name in &names {
        let read = store.backup(name).await?;
        may_sweep &= !read.is_in_progress();
        used.extend(read.blocks.into_values());
        let at = read.config["SnapshotCreatedAt"].as_str().unwrap_or_default().to_owned();
        newest = newest.max((at, name.clone()));
    }
    if volume["LastBackupName"] == backup {
        let last = if may_sweep { newest } else { Default::default() };
        volume["LastBackupAt"] = json!(last.0);
        volume["LastBackupName"] = json!(last.1);
        store.save_volume(&volume).await?;
    }
    if !may_sweep || store.backups().await? != names {
        return Ok(json!({"event": "deleted", "swept": 0}));
    }
    let name_of = |key: &str| key.rsplit('/').next().and_then(|f| f.strip_suffix(".blk")).map(str::to_owned);
    let all: Vec<(String, String)> = blocks.into_iter().filter_map(|e| Some((name_of(&e.key)?, e.key))).collect();
    let garbage: Vec<String> =
        all.iter().filter(|(name, _)| !used.contains(name)).map(|(_, key)| key.clone()).collect();
    for key in &garbage {
        store.delete(key).await?;
    }
    volume["BlockCount"] = json!((all.len() - garbage.len()).to_string());
    store.save_volume(&volume).await?;
    Ok(json!({"event": "deleted", "swept": garbage.len()}))
}
