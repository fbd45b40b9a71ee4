//! Who runs workers. One protocol, and here the interface between it and whatever starts programs.
//!
//! * `process`   local child processes
//! * `job`       Kubernetes Jobs: one Job, one Pod per attempt
//! * `manifest`  what a Job and its two Secrets look like
//! * `settings`  what an administrator decides about workers' Pods
//! * `trouble`   why a worker does not run, told from Job, Pods and Events
//!
//! A runner knows nothing of Backups, Restores, states or policies, and does not care what a job's task is. It starts at most one worker per attempt, finds it again after
//! the operator was restarted, and hands over what the worker said on the two carriers that need no network. Every verb
//! may be repeated at any time: starting what was started means adopting it.

pub mod job;
pub mod manifest;
pub mod process;
pub mod settings;
pub mod trouble;

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::NodeSelector;

use self::trouble::Trouble;
use super::context::ApiError;
use crate::model::{AttemptId, Credentials, JobSpec, ReportKey, job::Deadlines};

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

/// As much of a job as is needed to judge its worker's reports: another version's job is read as well, so that an upgrade
/// finds the workers that run.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Envelope {
    pub attempt: AttemptId,
    pub pod: String,
    pub report_key: ReportKey,
    pub deadlines: Deadlines,
}

/// What one run of a worker was given: enough to judge its reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub attempt: AttemptId,
    pub pod: String,
    pub key: ReportKey,
    /// Where it runs, if that has a name.
    pub host: Option<Host>,
}

/// The Pod that runs a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub pod_name: String,
    pub node_name: Option<String>,
}

/// What a worker needs besides its job: things that the cluster gives to it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Volume {
    /// The volume, given to the worker as a raw block device.
    pub claim: Option<Claim>,
    /// The nodes from which the volume can be reached; absent: all.
    pub nodes: Option<NodeSelector>,
    /// How large the volume is: the room for tables follows from it. Absent: as large as a volume may be.
    pub bytes: Option<u64>,
}

/// A PersistentVolumeClaim of the operator's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub name: String,
    /// Where the worker sees the device.
    pub device: PathBuf,
    pub access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// What there is of an attempt's worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Worker {
    /// Nothing was started, or what was prepared was never started: `start` may be called.
    Absent,
    /// It runs, or it may begin to at any moment. Without an address it has not opened its door yet; the trouble says why it
    /// does not run.
    Alive { run: Run, address: Option<SocketAddr>, trouble: Option<Trouble> },
    /// It runs no more and never will again. The exit code is unknown if nobody is left who saw it; the trouble is what was
    /// done to it.
    Ended { run: Run, exit_code: Option<i32>, trouble: Option<Trouble> },
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
    #[error("{what} {object} failed")]
    Cluster { what: &'static str, object: String, source: ApiError },
    #[error("Worker settings {path:?} do not parse: {problem}")]
    Settings { path: PathBuf, problem: String },
    #[error("Workers as local processes cannot use claim {0}: start the operator with --workers=job")]
    NoClaims(String),
}

/// Starts, finds, hears and ends workers.
pub trait Runner: Send + Sync {
    /// Starts the worker of this job unless one was started for the attempt before, which is then adopted with the job it
    /// was given.
    fn start<'a>(
        &'a self,
        job: &'a JobSpec,
        keys: &'a Credentials,
        volume: &'a Volume,
    ) -> BoxFuture<'a, Result<(), RunnerError>>;

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
