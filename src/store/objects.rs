//! The boundary to object storage: six verbs, two backends (S3, a directory), and any number of decorators.
//!
//! What every implementation owes its caller, and the conformance suite checks:
//! * `put` answers `Ok` only after the object is durable and visible to GET, HEAD and LIST;
//! * HEAD and GET of a missing object are `Ok(None)`; every other doubt is an error;
//! * keys of a listing ascend strictly by bytes, within and across pages, and the last page has no token.

use std::{fs::File, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;

use super::{buffers::Pool, error::StoreError};
use crate::model::limits;

pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Object storage as the protocol needs it. Keys are relative to the location's root and never start with `/`.
pub trait Objects: Send + Sync {
    fn put<'a>(&'a self, key: &'a str, body: Body, condition: PutCondition) -> Answer<'a, Stored>;
    /// The whole object or a range of it; refused above `bytes_max`.
    fn get<'a>(&'a self, key: &'a str, range: Range) -> Answer<'a, Option<Fetched>>;
    /// The same into a buffer of this pool where the backend can and one is free: an allocator that is given megabytes
    /// back by many threads keeps too many of them.
    fn get_into<'a>(&'a self, key: &'a str, range: Range, pool: &'a Pool) -> Answer<'a, Option<Fetched>> {
        let _ = pool;
        self.get(key, range)
    }
    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Meta>>;
    /// One page of the keys that start with `prefix`, after `token`.
    fn list<'a>(&'a self, prefix: &'a str, token: Option<String>) -> Answer<'a, Page>;
    /// The folders directly below `prefix`, which ends with `/`: whole prefixes with their `/`, ascending. Backends
    /// that can be asked for them do better than this reading of every key.
    fn folders<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<String>> {
        Box::pin(async move {
            let (mut folders, mut token): (Vec<String>, _) = (Vec::new(), None);
            loop {
                let page = self.list(prefix, token).await?;
                for entry in &page.entries {
                    let Some(length) = entry.key[prefix.len()..].find('/') else { continue };
                    let folder = &entry.key[..=prefix.len() + length];
                    if folders.last().is_none_or(|last| last != folder) {
                        folders.push(folder.to_owned());
                    }
                }
                match page.next {
                    Some(next) => token = Some(next),
                    None => return Ok(folders),
                }
            }
        })
    }
    /// Removes these keys, at most `delete_keys_max`; a missing one is no error. Answers with those that stay, each with
    /// its reason: a batch may be answered well and still have failed for some of its keys.
    fn delete<'a>(&'a self, keys: &'a [String]) -> Answer<'a, Vec<StoreError>>;
    /// How many keys one `delete` may name: 1 where the store has no batches.
    fn delete_keys_max(&self) -> usize {
        limits::LIST_PAGE as usize
    }
    /// How many keys a page of a listing holds at most, as the store itself says.
    fn list_page_size<'a>(&'a self, prefix: &'a str) -> Answer<'a, i32> {
        Box::pin(async move { self.list(prefix, None).await.map(|_| limits::LIST_PAGE) })
    }
    /// What the store keeps of what is deleted. Where that cannot be asked it is not known.
    fn kept(&self) -> BoxFuture<'_, Kept> {
        Box::pin(std::future::ready(Kept::Nothing))
    }
    /// Read the credentials again. `true` if they changed.
    fn refresh_credentials(&self) -> Answer<'_, bool> {
        Box::pin(std::future::ready(Ok(false)))
    }
}

/// The bytes of a PUT, cheap to clone for a retry.
#[derive(Debug, Clone)]
pub enum Body {
    Bytes(Bytes),
    /// A scratch file from its start, for records too large for memory.
    File {
        file: Arc<File>,
        len: u64,
    },
}

impl Body {
    pub fn len(&self) -> u64 {
        match self {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File { len, .. } => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Sent only where the target's probe saw conditional writes work; elsewhere `IfAbsent` is an ordinary PUT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutCondition {
    Always,
    /// `If-None-Match: *`
    IfAbsent,
}

/// What to read. `bytes_max` bounds memory whatever the server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub offset: u64,
    /// Absent: to the end.
    pub len: Option<u64>,
    pub bytes_max: u64,
}

impl Range {
    pub const fn whole(bytes_max: u64) -> Self {
        Self { offset: 0, len: None, bytes_max }
    }

    pub const fn part(offset: u64, len: u64) -> Self {
        Self { offset, len: Some(len), bytes_max: len }
    }
}

/// What becomes of bytes whose object is deleted or overwritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    Nothing,
    /// They are hidden, and cost as before.
    Versions,
    /// And nobody can remove them before a retention ends: how long, and in which mode.
    Locked(String),
    /// What was answered instead.
    Unknown(String),
}

impl Kept {
    /// What a person should know of it, and the cure.
    pub fn notice(&self) -> Option<String> {
        let lifecycle = "a lifecycle rule of the bucket for this prefix that expires noncurrent versions and delete markers \
                         without versions (Tidemark needs neither)";
        match self {
            Kept::Nothing | Kept::Unknown(_) => None,
            Kept::Versions => Some(format!(
                "The bucket is versioned: what Tidemark deletes is hidden and costs as before. What frees it is {lifecycle}"
            )),
            Kept::Locked(retention) => Some(format!(
                "The bucket has Object Lock with a default retention ({retention}): whatever Tidemark deletes, locks, markers \
                 and journals too, is at best hidden and stays until its retention ends, and some stores refuse to delete \
                 it. What works is a bucket without a default retention; or, at the price of every deleted byte until then, \
                 {lifecycle}"
            )),
        }
    }
}

/// The answer to an acknowledged PUT.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    pub etag: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    pub bytes: Bytes,
    pub meta: Meta,
}

/// An object without its bytes. Two metas that are equal are the same object for our purposes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Bytes of the whole object.
    pub size: u64,
    pub etag: Option<String>,
    /// By the server's clock.
    pub modified: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub meta: Meta,
    /// Glacier and the like: listed, but not readable.
    pub is_archived: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// Absent on the last page.
    pub next: Option<String>,
}
