//! The one way to the store: every request of ours goes through here to be counted, timed, retried and classified.
//!
//! A request ends by its own deadline (time enough for its bytes on the slowest wire we accept), by the patience for
//! one request with its retries, by the stall clock, or by the deadline of the attempt: whichever is first (law 5).

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    buffers::Pool,
    error::{ErrorKind, StoreError},
    objects::{Answer, Body, Fetched, Meta, Objects, Page, PutCondition, Range, Stored},
    retry::{self, Decision, Tried},
    stall::StallClock,
};
use crate::model::{FailureReason, Requests, limits, progress::FailedRequests};

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
    ended: ByKind,
    failed: ByKind,
    retried: AtomicU64,
    throttled: AtomicU64,
}

#[derive(Default)]
struct ByKind {
    put: AtomicU64,
    head: AtomicU64,
    get: AtomicU64,
    list: AtomicU64,
    delete: AtomicU64,
}

impl ByKind {
    fn add(&self, action: &str) {
        let counter = match action {
            "PUT" => &self.put,
            "HEAD" => &self.head,
            "GET" => &self.get,
            "LIST" => &self.list,
            _ => &self.delete,
        };
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

/// A request under way. It is counted when it ends, as failed unless it was answered: one that is given up is dropped.
struct Sent<'a> {
    counts: &'a Counts,
    action: &'static str,
    is_answered: bool,
}

impl Sent<'_> {
    fn ended<T>(mut self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        self.is_answered = answer.is_ok();
        answer
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        self.counts.ended.add(self.action);
        if !self.is_answered {
            self.counts.failed.add(self.action);
        }
    }
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

    /// Requests that ended so far. Failures are read first: there are never more of them than requests.
    pub fn requests(&self) -> Requests {
        let Counts { ended, failed, retried, throttled } = &self.shared.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let failed = FailedRequests {
            put: read(&failed.put),
            head: read(&failed.head),
            get: read(&failed.get),
            list: read(&failed.list),
            delete: read(&failed.delete),
        };
        Requests {
            put: read(&ended.put),
            head: read(&ended.head),
            get: read(&ended.get),
            list: read(&ended.list),
            delete: read(&ended.delete),
            retried: read(retried),
            throttled: read(throttled),
            failed,
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

    /// The same into a buffer of the pool, if one is free.
    pub async fn get_into(&self, key: &str, range: Range, pool: &Pool) -> Result<Option<Fetched>, StoreError> {
        let request = Request { action: "GET", key, len: range.len.unwrap_or(range.bytes_max) };
        self.call(request, || self.objects.get_into(key, range, pool)).await
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

    /// Removes these keys; the first that stays is the error.
    pub async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        match self.delete_each(keys).await?.into_iter().next() {
            None => Ok(()),
            Some(stays) => Err(stays),
        }
    }

    /// The same, told key by key: one that stays does not hold up the others. An error is about all of them.
    pub async fn delete_each(&self, keys: &[String]) -> Result<Vec<StoreError>, StoreError> {
        let keys_max = self.objects.delete_keys_max().max(1);
        let at_once = if keys_max == 1 { limits::DELETE_CONCURRENCY } else { 1 };
        let batches: Vec<Vec<String>> = keys.chunks(keys_max).map(<[String]>::to_vec).collect();
        let mut answers = stream::iter(batches).map(|batch| self.delete_batch(batch)).buffered(at_once);
        let mut stay = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(some) => stay.extend(some),
                // A store that refuses one key of many is asked for the others; one that refuses all of them refuses us.
                Err(error) if keys_max == 1 && matches!(error.kind, ErrorKind::Refused(_)) => stay.push(error),
                Err(error) => return Err(error),
            }
        }
        match keys_max == 1 && stay.len() == keys.len() {
            true => stay.into_iter().next().map_or(Ok(Vec::new()), Err),
            false => Ok(stay),
        }
    }

    /// One batch; keys that stay for a passing reason are sent again a few times.
    async fn delete_batch(&self, mut rest: Vec<String>) -> Result<Vec<StoreError>, StoreError> {
        let mut stay = Vec::new();
        for tried in 0.. {
            let key = rest.first().map_or("", String::as_str);
            let failed = self.call(Request { action: "DELETE", key, len: 0 }, || self.objects.delete(&rest)).await?;
            let is_passing = |e: &StoreError| matches!(e.kind, ErrorKind::Unavailable | ErrorKind::Throttled);
            let (again, for_good): (Vec<_>, Vec<_>) = failed.into_iter().partition(is_passing);
            stay.extend(for_good);
            if again.is_empty() || tried == limits::DELETE_RETRIES {
                stay.extend(again);
                break;
            }
            self.shared.counts.retried.fetch_add(1, Ordering::Relaxed);
            rest = again.into_iter().map(|e| e.key).collect();
            sleep(limits::RETRY_BACKOFF_MIN * (5 << tried)).await;
        }
        Ok(stay)
    }

    /// One PUT without retries and without touching the stall clock: the lock's refresher has a clock of its own.
    pub async fn put_within(&self, key: &str, body: Body, deadline: Duration) -> Result<Stored, StoreError> {
        let sent = self.begin("PUT");
        let answer = timeout(deadline, self.objects.put(key, body, PutCondition::Always)).await;
        sent.ended(answer.unwrap_or_else(|_| Err(no_answer("PUT", key, deadline))))
    }

    async fn call<'a, T>(&'a self, request: Request<'a>, send: impl Fn() -> Answer<'a, T>) -> Result<T, StoreError> {
        let _outstanding = self.shared.stall.begin();
        let ends = async { timeout_at(self.shared.deadline, self.shared.stall.stalled()).await };
        let last = Mutex::new(None);
        let failed = tokio::select! {
            biased;
            answer = self.retry(&request, &last, send) => return answer,
            ended = ends => ended,
        };
        let last: Option<StoreError> = last.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (kind, seen) = match failed {
            Ok(()) if last.as_ref().is_some_and(|last| last.kind == ErrorKind::Expired) => {
                let after = self.shared.stall.after();
                (ErrorKind::Expired, format!("the session ended, and no other came within {after:?}"))
            }
            Ok(()) => {
                let after = self.shared.stall.after();
                (
                    ErrorKind::Stalled,
                    format!("the store acknowledged nothing for {after:?} while this request was outstanding"),
                )
            }
            Err(_) => (ErrorKind::Deadline, "the deadline of this attempt passed".to_owned()),
        };
        let seen = match last {
            Some(last) => format!("{seen}; the last answer to it: {}", last.seen),
            None => seen,
        };
        Err(StoreError::new(kind, request.action, request.key, seen))
    }

    /// `last`: what was seen last, for whoever ends this from outside.
    async fn retry<'a, T>(
        &'a self,
        request: &Request<'a>,
        last: &Mutex<Option<StoreError>>,
        send: impl Fn() -> Answer<'a, T>,
    ) -> Result<T, StoreError> {
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
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
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
        let sent = self.begin(request.action);
        let for_bytes = Duration::from_secs(request.len / limits::WIRE_BYTES_PER_SECOND_MIN);
        let deadline = limits::REQUEST_DEADLINE_MIN.max(for_bytes);
        let answer = timeout(deadline, send()).await;
        sent.ended(answer.unwrap_or_else(|_| Err(no_answer(request.action, request.key, deadline))))
    }

    fn begin(&self, action: &'static str) -> Sent<'_> {
        Sent { counts: &self.shared.counts, action, is_answered: false }
    }
}

fn no_answer(action: &'static str, key: &str, deadline: Duration) -> StoreError {
    StoreError::new(ErrorKind::Unavailable, action, key, format!("no answer within {deadline:?}"))
}

fn jitter() -> f64 {
    let mut random = [0; 4];
    // Without randomness the retries are only less spread.
    let _ = getrandom::fill(&mut random);
    f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX)
}
