//! Who runs workers. One protocol, and here the interface between it and whatever starts programs: local child
//! processes today (`process`), Kubernetes Jobs later.
//!
//! A runner knows nothing of Backups, Restores, states or policies, and does not care what a job's task is. It starts at most one worker per attempt, finds it again after
//! the operator was restarted, and hands over what the worker said on the two carriers that need no network. Every verb
//! may be repeated at any time: starting what was started means adopting it.

pub mod process;

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use futures::future::BoxFuture;

use crate::model::{AttemptId, Credentials, JobSpec, ReportKey};

/// One attempt of one object: the name of everything a runner makes for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptRef {
    uid: String,
    number: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not <uid>-<attempt number>")]
pub struct NotAnAttempt(String);

impl AttemptRef {
    /// The uid becomes part of a file's name: only letters, digits and `-`.
    pub fn new(uid: &str, number: u32) -> Result<Self, NotAnAttempt> {
        let is_fit = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        match !uid.is_empty() && uid.len() <= 64 && uid.bytes().all(is_fit) {
            true => Ok(Self { uid: uid.to_owned(), number }),
            false => Err(NotAnAttempt(uid.chars().take(80).collect())),
        }
    }

    pub fn uid(&self) -> &str {
        &self.uid
    }

    pub fn number(&self) -> u32 {
        self.number
    }
}

impl fmt::Display for AttemptRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.uid, self.number)
    }
}

impl FromStr for AttemptRef {
    type Err = NotAnAttempt;
    fn from_str(text: &str) -> Result<Self, NotAnAttempt> {
        let refused = || NotAnAttempt(text.chars().take(80).collect());
        let (uid, number) = text.rsplit_once('-').ok_or_else(refused)?;
        Self::new(uid, number.parse().map_err(|_| refused())?).map_err(|_| refused())
    }
}

/// What one run of a worker was given: enough to judge its reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub attempt: AttemptId,
    pub pod: String,
    pub key: ReportKey,
}

/// What there is of an attempt's worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Worker {
    /// Nothing was started, or what was prepared was never started: `start` may be called.
    Absent,
    /// It runs. Without an address it has not opened its door yet.
    Alive { run: Run, address: Option<SocketAddr> },
    /// It runs no more and never will again. The exit code is unknown if an operator before us started it.
    Ended { run: Run, exit_code: Option<i32> },
}

/// Why a runner could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    #[error("{what} {path:?} failed")]
    Files { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("Worker program {program:?} could not be started")]
    NotStarted { program: PathBuf, source: std::io::Error },
    #[error("Job file {path:?} does not parse: {problem}")]
    JobUnreadable { path: PathBuf, problem: String },
    #[error("Worker of attempt {attempt} could not be signalled")]
    NotSignalled { attempt: AttemptRef, source: std::io::Error },
    #[error("Runner's own task ended early")]
    Interrupted,
}

/// Starts, finds, hears and ends workers.
pub trait Runner: Send + Sync {
    /// Starts the worker of this job unless one was started for the attempt before, which is then adopted with the job it
    /// was given.
    fn start<'a>(&'a self, job: &'a JobSpec, keys: &'a Credentials) -> BoxFuture<'a, Result<(), RunnerError>>;

    /// What there is of this attempt's worker now.
    fn look<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<Worker, RunnerError>>;

    /// The newest report line in the worker's log, if there is one.
    fn log_line<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<Option<String>, RunnerError>>;

    /// The report line the worker left where it survives the worker.
    fn last_word<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<Option<String>, RunnerError>>;

    /// The last few lines of the log that are no reports: what a crashed worker said.
    fn last_lines<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<String, RunnerError>>;

    /// Asks the worker to end, and ends it when it did not within its grace.
    fn stop<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<(), RunnerError>>;

    /// Gives a running worker other keys; it reads them when the store refuses the old ones.
    fn offer_credentials<'a>(
        &'a self,
        attempt: &'a AttemptRef,
        keys: &'a Credentials,
    ) -> BoxFuture<'a, Result<(), RunnerError>>;

    /// Removes everything made for the attempt. Only for one whose worker is `Absent` or `Ended`.
    fn remove<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<(), RunnerError>>;

    /// Every attempt of which there is anything.
    fn list(&self) -> BoxFuture<'_, Result<Vec<AttemptRef>, RunnerError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_found_again_by_their_name_and_nothing_else_is() {
        let attempt = AttemptRef::new("3f0c2d1e-aaaa-bbbb-cccc-000000000001", 12).expect("fit");
        assert_eq!(attempt.to_string().parse(), Ok(attempt));
        for bad in ["", "x", "-1", "a/b-1", "../x-1", "a-b", "a-99999999999"] {
            assert!(bad.parse::<AttemptRef>().is_err(), "{bad:?}");
        }
    }
}
