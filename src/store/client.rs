//! The one way to the store: every request of ours goes through here to be counted, timed, retried and classified.
//!
//! A request ends by its own deadline (time enough for its bytes on the slowest wire we accept), by the patience for
//! one request with its retries, by the stall clock, or by the deadline of the attempt: whichever is first (law 5).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    error::{ErrorKind, StoreError},
    objects::{Answer, Body, Fetched, Meta, Objects, Page, PutCondition, Range, Stored},
    retry::{self, Decision, Tried},
    stall::StallClock,
};
use crate::model::{FailureReason, Requests, limits};

/// Shared by everything that talks to one store for one attempt.
#[derive(Clone)]
pub struct Client {
    objects: Arc<dyn Objects>,
    shared: Arc<Shared>,
}

struct Shared {
    stall: StallClock,
    deadline: Instant,
    was_accepted: AtomicBool,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    put: AtomicU64,
    head: AtomicU64,
    get: AtomicU64,
    list: AtomicU64,
    delete: AtomicU64,
    retried: AtomicU64,
    throttled: AtomicU64,
}

/// A request that can be sent again.
struct Request<'a> {
    action: &'static str,
    key: &'a str,
    /// Bytes that travel, for its deadline.
    len: u64,
}

impl Client {
    /// `stall`: without an acknowledgement while a request is outstanding. `total`: from now, for everything.
    pub fn new(objects: Arc<dyn Objects>, stall: Duration, total: Duration) -> Self {
        let total = total.min(Duration::from_secs(365 * 24 * 3600));
        let shared = Shared {
            stall: StallClock::new(stall),
            deadline: Instant::now() + total,
            was_accepted: AtomicBool::new(false),
            counts: Counts::default(),
        };
        Self { objects, shared: Arc::new(shared) }
    }

    /// Requests sent so far.
    pub fn requests(&self) -> Requests {
        let counts = &self.shared.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Requests {
            put: read(&counts.put),
            head: read(&counts.head),
            get: read(&counts.get),
            list: read(&counts.list),
            delete: read(&counts.delete),
            retried: read(&counts.retried),
            throttled: read(&counts.throttled),
        }
    }

    pub async fn put(&self, key: &str, body: Body, condition: PutCondition) -> Result<Stored, StoreError> {
        let request = Request { action: "PUT", key, len: body.len() };
        self.call(request, || self.objects.put(key, body.clone(), condition)).await
    }

    /// Creates an object that only this attempt writes. If it is there already, it must hold the very same bytes: then
    /// an earlier send of ours arrived and its reply was lost.
    pub async fn create(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        match self.put(key, Body::Bytes(bytes.clone()), PutCondition::IfAbsent).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind == ErrorKind::Precondition => {
                let found = self.get(key, Range::whole(limits::SMALL_OBJECT_BYTES_MAX)).await?;
                if found.is_some_and(|f| f.bytes == bytes) { Ok(()) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    pub async fn get(&self, key: &str, range: Range) -> Result<Option<Fetched>, StoreError> {
        let request = Request { action: "GET", key, len: range.len.unwrap_or(limits::SMALL_OBJECT_BYTES_MAX) };
        self.call(request, || self.objects.get(key, range)).await
    }

    pub async fn head(&self, key: &str) -> Result<Option<Meta>, StoreError> {
        self.call(Request { action: "HEAD", key, len: 0 }, || self.objects.head(key)).await
    }

    pub async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<Page, StoreError> {
        self.call(Request { action: "LIST", key: prefix, len: 0 }, || self.objects.list(prefix, token.clone())).await
    }

    /// Every entry of a listing that is small by nature (locks, backups, journals).
    pub async fn list(&self, prefix: &str) -> Result<Vec<super::objects::Entry>, StoreError> {
        let mut all = Vec::new();
        self.walk(prefix, |entry| {
            all.push(entry);
            Ok(())
        })
        .await?;
        Ok(all)
    }

    /// Every entry of a listing of any length, one by one. Keys must ascend strictly, or a page was repeated or lost.
    pub async fn walk(
        &self,
        prefix: &str,
        mut each: impl FnMut(super::objects::Entry) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let (mut token, mut last) = (None, String::new());
        loop {
            let page = self.list_page(prefix, token).await?;
            for entry in page.entries {
                if entry.key <= last {
                    let seen = format!("key {} does not ascend: a page was repeated or is out of order", entry.key);
                    return Err(StoreError::new(ErrorKind::Unavailable, "LIST", prefix, seen));
                }
                last.clone_from(&entry.key);
                each(entry)?;
            }
            match page.next {
                Some(next) => token = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// The folders directly below a prefix that ends with `/`.
    pub async fn folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.call(Request { action: "LIST", key: prefix, len: 0 }, || self.objects.folders(prefix)).await
    }

    pub async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        for batch in keys.chunks(limits::LIST_PAGE as usize) {
            let key = batch.first().map_or("", String::as_str);
            self.call(Request { action: "DELETE", key, len: 0 }, || self.objects.delete(batch)).await?;
        }
        Ok(())
    }

    /// One PUT without retries and without touching the stall clock: the lock's refresher has a clock of its own.
    pub async fn put_within(&self, key: &str, body: Body, deadline: Duration) -> Result<Stored, StoreError> {
        self.count("PUT");
        match timeout(deadline, self.objects.put(key, body, PutCondition::Always)).await {
            Ok(answer) => answer,
            Err(_) => {
                Err(StoreError::new(ErrorKind::Unavailable, "PUT", key, format!("no answer within {deadline:?}")))
            }
        }
    }

    async fn call<'a, T>(&'a self, request: Request<'a>, send: impl Fn() -> Answer<'a, T>) -> Result<T, StoreError> {
        let _outstanding = self.shared.stall.begin();
        let ends = async { timeout_at(self.shared.deadline, self.shared.stall.stalled()).await };
        let failed = tokio::select! {
            biased;
            answer = self.retry(&request, send) => return answer,
            ended = ends => ended,
        };
        let (kind, seen) = match failed {
            Ok(()) => {
                let after = self.shared.stall.after();
                (
                    ErrorKind::Stalled,
                    format!("the store acknowledged nothing for {after:?} while this request was outstanding"),
                )
            }
            Err(_) => (ErrorKind::Deadline, "the deadline of this backup passed".to_owned()),
        };
        Err(StoreError::new(kind, request.action, request.key, seen))
    }

    async fn retry<'a, T>(&'a self, request: &Request<'a>, send: impl Fn() -> Answer<'a, T>) -> Result<T, StoreError> {
        let first_sent = Instant::now();
        let (mut times, mut refusals) = (0, 0);
        loop {
            times += 1;
            let error = match self.send_once(request, &send).await {
                Ok(answer) => {
                    self.shared.stall.succeeded();
                    self.shared.was_accepted.store(true, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            match error.kind {
                ErrorKind::Throttled => _ = self.shared.counts.throttled.fetch_add(1, Ordering::Relaxed),
                ErrorKind::Expired | ErrorKind::Refused(FailureReason::AccessDenied) => {
                    let is_changed = self.objects.refresh_credentials().await.unwrap_or(false);
                    refusals = if is_changed { 0 } else { refusals + 1 };
                    if is_changed {
                        self.shared.counts.retried.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                }
                _ => {}
            }
            let tried = Tried {
                times,
                refusals,
                elapsed: first_sent.elapsed(),
                was_accepted: self.shared.was_accepted.load(Ordering::Relaxed),
                jitter: jitter(),
            };
            match retry::decide(error.kind, tried, self.shared.stall.after() * 2) {
                Decision::Again(wait) => {
                    tracing::debug!(%error, times, ?wait, "Request failed, sending it again");
                    self.shared.counts.retried.fetch_add(1, Ordering::Relaxed);
                    sleep(wait).await;
                }
                Decision::GiveUp => return Err(error),
            }
        }
    }

    async fn send_once<'a, T>(
        &'a self,
        request: &Request<'a>,
        send: impl Fn() -> Answer<'a, T>,
    ) -> Result<T, StoreError> {
        self.count(request.action);
        let for_bytes = Duration::from_secs(request.len / limits::WIRE_BYTES_PER_SECOND_MIN);
        let deadline = limits::REQUEST_DEADLINE_MIN.max(for_bytes);
        match timeout(deadline, send()).await {
            Ok(answer) => answer,
            Err(_) => {
                let seen = format!("no answer within {deadline:?}");
                Err(StoreError::new(ErrorKind::Unavailable, request.action, request.key, seen))
            }
        }
    }

    fn count(&self, action: &str) {
        let counts = &self.shared.counts;
        let counter = match action {
            "PUT" => &counts.put,
            "HEAD" => &counts.head,
            "GET" => &counts.get,
            "LIST" => &counts.list,
            _ => &counts.delete,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn jitter() -> f64 {
    let mut random = [0; 4];
    // Without randomness the retries are only less spread.
    let _ = getrandom::fill(&mut random);
    f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX)
}
