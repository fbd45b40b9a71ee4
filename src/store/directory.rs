//! The directory backend: NFS mounts, air-gapped nodes, tests.
//!
//! Acknowledged means durable: temporary file, `fdatasync`, rename, `fsync` of the folder. Longhorn removes up to ten
//! empty parents when it deletes, so making the folder and renaming into it is tried again when it vanished between.
//! Temporary files are `<final>.tmp.<digits>`, as Longhorn's, which every reader ignores; ours lie apart within the volume, so
//! that no listing of blocks, configs or locks shows them and the janitor finds all of them in one place.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use jiff::Timestamp;

use super::{
    buffers::Pool,
    error::{ErrorKind, StoreError},
    layout::{UNFINISHED, unfinished_of_key},
    objects::{Answer, Body, Entry, Fetched, Meta, Objects, Page, PutCondition, Range, Stored},
};
use crate::model::{FailureReason, limits};

/// How often a PUT is tried again when Longhorn removed its folder meanwhile.
const VANISHED_FOLDER_RETRIES: u32 = 10;

/// Objects as files below one directory.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Opens an existing directory.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let seen = match fs::metadata(root) {
            Ok(meta) if meta.is_dir() => return Ok(Self { root: root.to_owned() }),
            Ok(_) => "it is no directory".to_owned(),
            Err(error) => format!("{error}; create the directory or mount it first"),
        };
        Err(StoreError::new(ErrorKind::Refused(FailureReason::BucketMissing), "OPEN", root.display(), seen))
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn put_file(&self, key: &str, body: &Body, condition: PutCondition) -> io::Result<Option<Stored>> {
        let mut retries = 0;
        loop {
            match self.put_once(key, body, condition) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && retries < VANISHED_FOLDER_RETRIES => {
                    retries += 1
                }
                answer => return answer,
            }
        }
    }

    fn put_once(&self, key: &str, body: &Body, condition: PutCondition) -> io::Result<Option<Stored>> {
        // Whoever else writes to this directory, on this machine or another, draws another number.
        let mut unique = [0; 8];
        getrandom::fill(&mut unique).map_err(io::Error::other)?;
        let temporary = self.path(&unfinished_of_key(key, u64::from_ne_bytes(unique)));
        let path = self.path(key);
        let folder = path.parent().unwrap_or(&self.root);
        for folder in [temporary.parent(), Some(folder)].into_iter().flatten() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let written = write_durably(&temporary, body).and_then(|()| {
            if condition == PutCondition::IfAbsent {
                fs::hard_link(&temporary, &path)?;
                fs::remove_file(&temporary)
            } else {
                fs::rename(&temporary, &path)
            }
        });
        if let Err(error) = written {
            // Best effort: a leftover is ignored by every reader, and cleared in its time.
            let _ = fs::remove_file(&temporary);
            return if error.kind() == io::ErrorKind::AlreadyExists { Ok(None) } else { Err(error) };
        }
        File::open(folder)?.sync_all()?;
        Ok(Some(Stored { etag: Some(etag(&fs::metadata(&path)?)) }))
    }

    fn get_file(&self, key: &str, range: Range, pool: Option<&Pool>) -> io::Result<Option<Fetched>> {
        let mut file = match File::open(self.path(key)) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let meta = file.metadata()?;
        let len = meta.len().saturating_sub(range.offset).min(range.len.unwrap_or(u64::MAX));
        if len > range.bytes_max {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it is {len} bytes, at most {} are read", range.bytes_max),
            ));
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        file.seek(SeekFrom::Start(range.offset))?;
        let bytes = match pool.and_then(|pool| pool.try_take_for(len)) {
            Some(mut buffer) => {
                file.read_exact(&mut buffer.bytes_mut()[..len])?;
                buffer.into_bytes(len)
            }
            None => {
                let mut bytes = vec![0; len];
                file.read_exact(&mut bytes)?;
                Bytes::from(bytes)
            }
        };
        Ok(Some(Fetched { bytes, meta: to_meta(&meta) }))
    }

    /// The next keys after `after` below `prefix`, in byte order, without reading folders that lie wholly before it.
    fn page(&self, prefix: &str, after: Option<&str>) -> io::Result<Page> {
        let mut walk = Walk { root: &self.root, prefix, after, entries: Vec::new() };
        let folder = prefix.rfind('/').map_or("", |at| &prefix[..=at]);
        walk.folder(folder)?;
        let mut entries = walk.entries;
        let is_more = entries.len() > limits::LIST_PAGE as usize;
        entries.truncate(limits::LIST_PAGE as usize);
        let next = entries.last().filter(|_| is_more).map(|e| e.key.clone());
        Ok(Page { entries, next })
    }

    fn folders_below(&self, prefix: &str) -> io::Result<Vec<String>> {
        let children = match fs::read_dir(self.root.join(prefix)) {
            Ok(children) => children,
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut folders = Vec::new();
        for child in children {
            let child = child?;
            if let (true, Ok(name)) = (child.file_type()?.is_dir(), child.file_name().into_string()) {
                folders.push(format!("{prefix}{name}/"));
            }
        }
        folders.sort_unstable();
        Ok(folders)
    }

    /// Those that stay, each with its reason.
    fn delete_files(&self, keys: &[String]) -> Vec<StoreError> {
        let mut stay = Vec::new();
        for key in keys {
            let path = self.path(key);
            match fs::remove_file(&path) {
                Err(error) if !is_absent(&error) => stay.push(classify("DELETE", key, &error)),
                _ => self.prune(&path),
            }
        }
        stay
    }

    /// Removes empty parents up to `backupstore`, as Longhorn does; a folder that is not empty ends it.
    fn prune(&self, path: &Path) {
        let parents = path.ancestors().skip(1).take(10);
        for folder in
            parents.take_while(|f| f.starts_with(&self.root) && !f.ends_with("backupstore") && *f != self.root)
        {
            if fs::remove_dir(folder).is_err() && !remove_with_unfinished(folder) {
                return;
            }
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        key: &str,
        work: impl FnOnce(&Directory) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let own = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&own)).await;
        match done {
            Ok(result) => result.map_err(|error| classify(action, key, &error)),
            Err(error) => Err(StoreError::new(ErrorKind::Unavailable, action, key, error)),
        }
    }
}

struct Walk<'a> {
    root: &'a Path,
    prefix: &'a str,
    after: Option<&'a str>,
    entries: Vec<Entry>,
}

impl Walk<'_> {
    fn is_full(&self) -> bool {
        self.entries.len() > limits::LIST_PAGE as usize
    }

    fn folder(&mut self, folder: &str) -> io::Result<()> {
        let children = match fs::read_dir(self.root.join(folder)) {
            Ok(children) => children,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for child in children {
            let child = child?;
            // A name that is not UTF-8 is none of ours and cannot be a key.
            let Ok(name) = child.file_name().into_string() else { continue };
            let is_folder = child.file_type()?.is_dir();
            names.push(format!("{folder}{name}{}", if is_folder { "/" } else { "" }));
        }
        names.sort_unstable();
        for name in names {
            if self.is_full() {
                return Ok(());
            }
            if name.ends_with('/') {
                let is_past = self.after.is_some_and(|after| name.as_str() <= after && !after.starts_with(&name));
                if !is_past && (name.starts_with(self.prefix) || self.prefix.starts_with(&name)) {
                    self.folder(&name)?;
                }
            } else if name.starts_with(self.prefix) && self.after.is_none_or(|after| name.as_str() > after) {
                self.file(name)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, key: String) -> io::Result<()> {
        match fs::metadata(self.root.join(&key)) {
            Ok(meta) => self.entries.push(Entry { key, meta: to_meta(&meta), is_archived: false }),
            // Removed between the listing of its folder and now: it is truly not there.
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Objects for Directory {
    fn put<'a>(&'a self, key: &'a str, body: Body, condition: PutCondition) -> Answer<'a, Stored> {
        Box::pin(async move {
            let owned = key.to_owned();
            let stored = self.run("PUT", key, move |d| d.put_file(&owned, &body, condition)).await?;
            stored.ok_or_else(|| StoreError::new(ErrorKind::Precondition, "PUT", key, "another object is there"))
        })
    }

    fn get<'a>(&'a self, key: &'a str, range: Range) -> Answer<'a, Option<Fetched>> {
        let owned = key.to_owned();
        Box::pin(self.run("GET", key, move |d| d.get_file(&owned, range, None)))
    }

    fn get_into<'a>(&'a self, key: &'a str, range: Range, pool: &'a Pool) -> Answer<'a, Option<Fetched>> {
        let (owned, pool) = (key.to_owned(), pool.clone());
        Box::pin(self.run("GET", key, move |d| d.get_file(&owned, range, Some(&pool))))
    }

    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Meta>> {
        let owned = key.to_owned();
        Box::pin(self.run("HEAD", key, move |d| match fs::metadata(d.path(&owned)) {
            Ok(meta) => Ok(Some(to_meta(&meta))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }))
    }

    fn list<'a>(&'a self, prefix: &'a str, token: Option<String>) -> Answer<'a, Page> {
        let owned = prefix.to_owned();
        Box::pin(self.run("LIST", prefix, move |d| d.page(&owned, token.as_deref())))
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<String>> {
        let owned = prefix.to_owned();
        Box::pin(self.run("LIST", prefix, move |d| d.folders_below(&owned)))
    }

    fn delete<'a>(&'a self, keys: &'a [String]) -> Answer<'a, Vec<StoreError>> {
        let owned = keys.to_vec();
        let key = keys.first().map_or("", String::as_str);
        Box::pin(self.run("DELETE", key, move |d| Ok(d.delete_files(&owned))))
    }
}

fn write_durably(path: &Path, body: &Body) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    match body {
        Body::Bytes(bytes) => file.write_all(bytes)?,
        Body::File { file: from, len } => {
            let mut buffer = vec![0; 1 << 20];
            let mut offset = 0;
            while offset < *len {
                let n = usize::try_from((*len - offset).min(1 << 20)).unwrap_or(1 << 20);
                from.read_exact_at(&mut buffer[..n], offset)?;
                file.write_all(&buffer[..n])?;
                offset += n as u64;
            }
        }
    }
    file.sync_data()
}

/// A volume, or its `tidemark`, of which only the empty place of temporary files is left. No other folder has one.
fn remove_with_unfinished(folder: &Path) -> bool {
    let place = Path::new(UNFINISHED);
    let place = match folder.file_name() == place.parent().map(Path::as_os_str) {
        true => Path::new(place.file_name().unwrap_or_default()),
        false => place,
    };
    place.ancestors().all(|place| fs::remove_dir(folder.join(place)).is_ok())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn etag(meta: &fs::Metadata) -> String {
    format!("{:x}-{:x}-{:x}.{:x}", meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec())
}

fn to_meta(meta: &fs::Metadata) -> Meta {
    let modified = i32::try_from(meta.mtime_nsec()).ok().and_then(|ns| Timestamp::new(meta.mtime(), ns).ok());
    Meta { size: meta.size(), etag: Some(etag(meta)), modified }
}

fn classify(action: &'static str, key: &str, error: &io::Error) -> StoreError {
    let (kind, cure) = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            (ErrorKind::Refused(FailureReason::AccessDenied), "; give this user the right to write there")
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (ErrorKind::Unavailable, "; free some room"),
        io::ErrorKind::FileTooLarge => (ErrorKind::Damaged, ""),
        _ => (ErrorKind::Unavailable, ""),
    };
    StoreError::new(kind, action, key, format!("{error}{cure}"))
}
