//! Stores that fail, as decorators over a real one: crash at a call, hold a request back and deliver it later, refuse,
//! lose replies. They compose, and the product knows nothing of them.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tidemark::{
    model::FailureReason,
    store::{
        error::{ErrorKind, StoreError},
        objects::{Answer, Body, Fetched, Meta, Objects, Page, PutCondition, Range, Stored},
    },
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::image::Random;

/// One call, as a decorator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub number: u64,
    pub action: &'static str,
    pub key: String,
}

impl Call {
    pub fn is_block_put(&self) -> bool {
        self.action == "PUT" && self.key.contains("/blocks/")
    }

    pub fn is_record_put(&self) -> bool {
        self.action == "PUT" && self.key.contains("/backups/backup_backup-")
    }
}

/// What becomes of a call.
pub enum Fate {
    Perform,
    /// Not performed.
    Fail(ErrorKind),
    /// Performed, then answered like this.
    PerformAndFail(ErrorKind),
    /// Not performed; the process is no more.
    CrashBefore,
    /// Performed; the process is no more.
    CrashAfter,
    Delay(Duration),
    /// Performed when this is cancelled; until then it is on its way.
    Until(CancellationToken),
}

type Judge = dyn Fn(&Call) -> Fate + Send + Sync;

/// A store whose calls a closure judges.
pub struct Judged {
    inner: Arc<dyn Objects>,
    judge: Box<Judge>,
    calls: AtomicU64,
    log: Mutex<Vec<Call>>,
    answered: Mutex<Vec<Call>>,
    crashed: Notify,
}

impl Judged {
    pub fn new(inner: Arc<dyn Objects>, judge: impl Fn(&Call) -> Fate + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            inner,
            judge: Box::new(judge),
            calls: AtomicU64::new(0),
            log: Mutex::default(),
            answered: Mutex::default(),
            crashed: Notify::new(),
        })
    }

    /// The calls whose caller was told that they succeeded: one that was given up before is not among them.
    pub fn answered(&self) -> Vec<Call> {
        self.answered.lock().expect("no holder panics").clone()
    }

    /// Every call so far.
    pub fn log(&self) -> Vec<Call> {
        self.log.lock().expect("no holder panics").clone()
    }

    /// Ends when a call crashed the process.
    pub async fn crashed(&self) {
        self.crashed.notified().await;
    }

    async fn run<T>(&self, action: &'static str, key: &str, perform: Answer<'_, T>) -> Result<T, StoreError> {
        let call = Call { number: self.calls.fetch_add(1, SeqCst), action, key: key.to_owned() };
        let fate = (self.judge)(&call);
        self.log.lock().expect("no holder panics").push(call.clone());
        let error = |kind| StoreError::new(kind, action, key, "a fault of the test");
        let answer = match fate {
            Fate::Perform => perform.await,
            Fate::Fail(kind) => Err(error(kind)),
            Fate::PerformAndFail(kind) => {
                let _ = perform.await;
                Err(error(kind))
            }
            Fate::CrashBefore => {
                self.crashed.notify_one();
                std::future::pending().await
            }
            Fate::CrashAfter => {
                let _ = perform.await;
                self.crashed.notify_one();
                std::future::pending().await
            }
            Fate::Delay(wait) => {
                tokio::time::sleep(wait).await;
                perform.await
            }
            Fate::Until(gate) => {
                gate.cancelled().await;
                perform.await
            }
        };
        if answer.is_ok() {
            self.answered.lock().expect("no holder panics").push(call);
        }
        answer
    }
}

impl Objects for Judged {
    fn put<'a>(&'a self, key: &'a str, body: Body, condition: PutCondition) -> Answer<'a, Stored> {
        Box::pin(self.run("PUT", key, self.inner.put(key, body, condition)))
    }
    fn get<'a>(&'a self, key: &'a str, range: Range) -> Answer<'a, Option<Fetched>> {
        Box::pin(self.run("GET", key, self.inner.get(key, range)))
    }
    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Meta>> {
        Box::pin(self.run("HEAD", key, self.inner.head(key)))
    }
    fn list<'a>(&'a self, prefix: &'a str, token: Option<String>) -> Answer<'a, Page> {
        Box::pin(self.run("LIST", prefix, self.inner.list(prefix, token)))
    }
    fn delete<'a>(&'a self, keys: &'a [String]) -> Answer<'a, Vec<StoreError>> {
        let key = keys.first().map_or("", String::as_str);
        Box::pin(self.run("DELETE", key, self.inner.delete(keys)))
    }
    fn delete_keys_max(&self) -> usize {
        self.inner.delete_keys_max()
    }
}

/// A store that takes so many blocks; every other is on its way until the gate is opened by cancelling it, or for ever. An
/// attempt stands still at exactly that block, however fast or slow the machine is.
pub fn holding_blocks(inner: Arc<dyn Objects>, blocks: u64, gate: CancellationToken) -> Arc<Judged> {
    let sent = AtomicU64::new(0);
    Judged::new(inner, move |call| match call.is_block_put() && sent.fetch_add(1, SeqCst) >= blocks {
        true => Fate::Until(gate.clone()),
        false => Fate::Perform,
    })
}

/// A PUT that left one attempt and has not arrived yet.
#[derive(Clone)]
pub struct Late {
    pub key: String,
    pub body: Body,
    pub condition: PutCondition,
}

/// Keeps the n-th PUT back, as a network may, and crashes the sender then.
pub struct HoldsBack {
    inner: Arc<dyn Objects>,
    nth: u64,
    puts: AtomicU64,
    held: Mutex<Option<Late>>,
    crashed: Notify,
}

impl HoldsBack {
    pub fn new(inner: Arc<dyn Objects>, nth: u64) -> Arc<Self> {
        let (puts, held, crashed) = (AtomicU64::new(0), Mutex::default(), Notify::new());
        Arc::new(Self { inner, nth, puts, held, crashed })
    }

    pub fn held(&self) -> Option<Late> {
        self.held.lock().expect("no holder panics").clone()
    }

    pub async fn crashed(&self) {
        self.crashed.notified().await;
    }
}

impl Objects for HoldsBack {
    fn put<'a>(&'a self, key: &'a str, body: Body, condition: PutCondition) -> Answer<'a, Stored> {
        if self.puts.fetch_add(1, SeqCst) != self.nth {
            return self.inner.put(key, body, condition);
        }
        *self.held.lock().expect("no holder panics") = Some(Late { key: key.to_owned(), body, condition });
        self.crashed.notify_one();
        Box::pin(std::future::pending())
    }
    fn get<'a>(&'a self, key: &'a str, range: Range) -> Answer<'a, Option<Fetched>> {
        self.inner.get(key, range)
    }
    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Meta>> {
        self.inner.head(key)
    }
    fn list<'a>(&'a self, prefix: &'a str, token: Option<String>) -> Answer<'a, Page> {
        self.inner.list(prefix, token)
    }
    fn delete<'a>(&'a self, keys: &'a [String]) -> Answer<'a, Vec<StoreError>> {
        self.inner.delete(keys)
    }
    fn delete_keys_max(&self) -> usize {
        self.inner.delete_keys_max()
    }
}

/// A store that delays, drops, loses replies and throttles, by a seed.
pub fn chaotic(inner: Arc<dyn Objects>, seed: u64) -> Arc<Judged> {
    let random = Mutex::new(Random::new(seed));
    Judged::new(inner, move |_| {
        let mut random = random.lock().expect("no holder panics");
        match random.below(100) {
            0..5 => Fate::Fail(ErrorKind::Unavailable),
            5..10 => Fate::PerformAndFail(ErrorKind::Unavailable),
            10..12 => Fate::Fail(ErrorKind::Throttled),
            12..60 => Fate::Delay(Duration::from_millis(random.below(20))),
            _ => Fate::Perform,
        }
    })
}

/// Answers a deletion well, but for one key, which stays.
pub struct Refusing {
    inner: Arc<dyn Objects>,
    key: String,
}

impl Refusing {
    pub fn new(inner: Arc<dyn Objects>, key: &str) -> Arc<Self> {
        Arc::new(Self { inner, key: key.to_owned() })
    }
}

impl Objects for Refusing {
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
        self.inner.list(prefix, token)
    }
    fn delete<'a>(&'a self, keys: &'a [String]) -> Answer<'a, Vec<StoreError>> {
        Box::pin(async move {
            let (stay, go): (Vec<_>, Vec<_>) = keys.iter().cloned().partition(|key| *key == self.key);
            let mut stays = self.inner.delete(&go).await?;
            stays.extend(stay.iter().map(|key| StoreError::new(REFUSED, "DELETE", key, "a fault of the test")));
            Ok(stays)
        })
    }
}

pub const REFUSED: ErrorKind = ErrorKind::Refused(FailureReason::AccessDenied);
