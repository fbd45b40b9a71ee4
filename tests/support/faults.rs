//! Faults of an S3 server as rules: which requests, and what happens to them. A test sets them while the server runs.
//!
//! ```ignore
//! server.fault(Rule::new(Fault::refuse("AccessDenied")).on(Kind::PutBlock).after(2));
//! server.fault(Rule::new(Fault::ReplyLost).key("/backups/backup_backup-").times(1));
//! server.heal();
//! ```
//!
//! The first rule that matches a request and is not used up decides. A rule counts every request that matches it, so
//! `after(n)` lets exactly n through.

use std::time::Duration;

/// What a request is, for rules and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// PUT of `…/blocks/….blk`
    PutBlock,
    /// PUT of any other object: locks, markers, journal, records, `volume.cfg`.
    PutOther,
    Get,
    Head,
    List,
    /// One object.
    Delete,
    /// POST `?delete`
    DeleteBatch,
    Other,
}

impl Kind {
    pub fn of(method: &str, key: &str, query: &str) -> Self {
        match method {
            "PUT" if key.contains("/blocks/") && key.ends_with(".blk") => Self::PutBlock,
            "PUT" if !key.is_empty() => Self::PutOther,
            "GET" if key.is_empty() && (query.contains("list-type=2") || query.contains("prefix=")) => Self::List,
            "GET" if !key.is_empty() => Self::Get,
            "HEAD" => Self::Head,
            "DELETE" => Self::Delete,
            "POST" if query.split('&').any(|q| q == "delete" || q.starts_with("delete=")) => Self::DeleteBatch,
            _ => Self::Other,
        }
    }
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// Not performed; this status with an S3 error document of this code.
    Answer { status: u16, code: &'static str },
    /// Performed after this time.
    Delay(Duration),
    /// Performed at once, answered after this time: what is stored is not yet acknowledged.
    DelayReply(Duration),
    /// Read, not performed, never answered.
    HangForever,
    /// Waits until `heal`, then is performed as usual: stops an upload at an exact block.
    Hold,
    /// Performed, then the connection is closed without an answer.
    ReplyLost,
    /// The connection is closed before anything is read or performed.
    ResetBefore,
    /// Performed; half of the answer's body, with a Content-Length that fits: broken XML.
    TruncatedBody,
    /// Performed; half of the body arrives, then the connection closes: fewer bytes than Content-Length said.
    BodyCut,
    /// A LIST is answered with the page this prefix was answered with before.
    RepeatedPage,
    /// A LIST is answered with IsTruncated and no token to go on with.
    LoseToken,
    /// Answered 200 without being performed: a store that lies.
    Drop,
    /// A batch delete is answered 200 with this error for each of its keys, and none is deleted.
    KeyErrors { code: &'static str },
}

impl Fault {
    /// A refusal as S3 gives it, `AccessDenied` for example.
    pub fn refuse(code: &'static str) -> Self {
        Self::Answer { status: 403, code }
    }

    /// 503 SlowDown.
    pub fn slow_down() -> Self {
        Self::Answer { status: 503, code: "SlowDown" }
    }

    /// 500 InternalError.
    pub fn internal_error() -> Self {
        Self::Answer { status: 500, code: "InternalError" }
    }
}

/// Which requests a fault strikes.
#[derive(Debug, Clone)]
pub struct Rule {
    fault: Fault,
    kinds: Vec<Kind>,
    key: Option<String>,
    let_through: u64,
    strikes: u64,
    matched: u64,
}

impl Rule {
    /// Every request, always, until the server is healed.
    pub fn new(fault: Fault) -> Self {
        Self { fault, kinds: Vec::new(), key: None, let_through: 0, strikes: u64::MAX, matched: 0 }
    }

    /// Only of this kind; twice: of either.
    pub fn on(mut self, kind: Kind) -> Self {
        self.kinds.push(kind);
        self
    }

    /// Only keys (of a LIST: prefixes) that contain this.
    pub fn key(mut self, part: &str) -> Self {
        self.key = Some(part.to_owned());
        self
    }

    /// The first n that match are let through.
    pub fn after(mut self, n: u64) -> Self {
        self.let_through = n;
        self
    }

    /// Only the nth that matches, counted from 1.
    pub fn nth(self, n: u64) -> Self {
        assert!(n > 0, "requests are counted from 1");
        self.after(n - 1).times(1)
    }

    /// Strikes n times, then no more.
    pub fn times(mut self, n: u64) -> Self {
        self.strikes = n;
        self
    }

    /// The fault, if this request is struck. Counts.
    pub(super) fn strike(&mut self, kind: Kind, key: &str) -> Option<Fault> {
        let kind_fits = self.kinds.is_empty() || self.kinds.contains(&kind);
        let key_fits = self.key.as_ref().is_none_or(|part| key.contains(part.as_str()));
        if !(kind_fits && key_fits) {
            return None;
        }
        self.matched += 1;
        let struck = self.matched > self.let_through && self.matched - self.let_through <= self.strikes;
        struck.then(|| self.fault.clone())
    }
}
