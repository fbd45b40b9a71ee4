//! Workers as local child processes: development, tests, the demo, one machine without a kubelet.
//!
//! Everything about an attempt lies in one directory, `<state-dir>/<uid>-<attempt number>/`:
//!
//! | file | what |
//! |---|---|
//! | `job.json` (0600) | the `JobSpec`, report key included: a restarted operator reads the key from here |
//! | `credentials` → `credentials.N/` | the keys, one file each; replaced by turning the link, as a kubelet does |
//! | `pid` | pid, start time and boot of the process: a pid used again is never taken for ours |
//! | `address` | where the worker's door is, written by the worker |
//! | `log` | its stdout and stderr; report lines among others |
//! | `last-word` | its newest report line, rewritten by the worker |
//! | `exit` | its exit code, if it was our child |
//! | `stop` | when it was first asked to end |
//!
//! Order when starting: the directory is filled under another name and renamed, then the process is started, then `pid`
//! is written. A crash between the last two leaves a process without a `pid` file: before anything is started, `/proc` is
//! searched for a process that was given this job file. A directory with a `pid` file is never started again.
//!
//! A worker gets its own process group, so that a Ctrl-C meant for the operator does not end it, and an empty
//! environment but for what the operator was told to pass on.

use std::{
    ffi::OsString,
    fs, io,
    io::{Read, Seek, SeekFrom, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use futures::{FutureExt, future::BoxFuture};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{AttemptRef, Envelope, Run, Runner, RunnerError, Volume, Worker};
use crate::model::{Credentials, JobSpec, limits, report::LOG_WORD};

/// After SIGTERM a worker has this long to journal and release its lock; then it is killed. 30 s are the worker's own
/// promise, 5 s are for the machine.
pub const STOP_GRACE: Duration = Duration::from_secs(35);
/// As much of the log's end as is searched for a report line: 16 of the longest.
const LOG_TAIL_BYTES: u64 = 16 * limits::REPORT_BYTES_MAX as u64;
/// Lines of a crashed worker's log that go into a message.
const LAST_LINES: usize = 5;

/// Starts `program worker …` for each attempt.
#[derive(Clone)]
pub struct ProcessRunner {
    state_dir: PathBuf,
    program: PathBuf,
    environment: Vec<(OsString, OsString)>,
}

impl ProcessRunner {
    /// Creates the state directory (0700) if it is not there.
    pub fn open(
        state_dir: &Path,
        program: PathBuf,
        environment: Vec<(OsString, OsString)>,
    ) -> Result<Self, RunnerError> {
        let files = |what| move |source| RunnerError::Files { what, path: state_dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(files("Creating directory"))?;
        let state_dir = fs::canonicalize(state_dir).map_err(files("Resolving directory"))?;
        Ok(Self { state_dir, program, environment })
    }

    fn room(&self, attempt: &AttemptRef) -> Room {
        Room { dir: self.state_dir.join(attempt.to_string()), attempt: attempt.clone() }
    }

    /// Runs file work off the event loop.
    fn blocking<T: Send + 'static>(
        work: impl FnOnce() -> Result<T, RunnerError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, RunnerError>> {
        async { tokio::task::spawn_blocking(work).await.unwrap_or(Err(RunnerError::Interrupted)) }.boxed()
    }
}

impl Runner for ProcessRunner {
    fn start<'a>(
        &'a self,
        job: &'a JobSpec,
        keys: &'a Credentials,
        volume: &'a Volume,
    ) -> BoxFuture<'a, Result<(), RunnerError>> {
        async {
            if let Some(claim) = &volume.claim {
                return Err(RunnerError::NoClaims(claim.name.clone()));
            }
            let attempt = AttemptRef::new(&job.uid, job.attempt_number)
                .map_err(|e| RunnerError::JobUnreadable { path: self.state_dir.clone(), problem: e.to_string() })?;
            let room = self.room(&attempt);
            let (job, keys) = (job.clone(), keys.clone());
            let prepared = room.clone();
            let is_new = Self::blocking(move || prepared.prepare(&job, &keys)).await?;
            if is_new { self.spawn(room).await } else { Ok(()) }
        }
        .boxed()
    }

    fn look<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<Worker, RunnerError>> {
        let room = self.room(attempt);
        Self::blocking(move || room.look())
    }

    fn log_line<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<Option<String>, RunnerError>> {
        let room = self.room(attempt);
        Self::blocking(move || {
            let tail = room.log_tail()?;
            let report = |line: &str| line.strip_prefix(LOG_WORD).map(|rest| rest.trim().to_owned());
            // The last line may be half written: one that does not end like a report is not one.
            Ok(tail.lines().rev().filter_map(report).find(|line| line.ends_with('}')))
        })
    }

    fn last_word<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<Option<String>, RunnerError>> {
        let room = self.room(attempt);
        Self::blocking(move || Ok(room.read("last-word")?.filter(|line| !line.trim().is_empty())))
    }

    fn last_lines<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<String, RunnerError>> {
        let room = self.room(attempt);
        Self::blocking(move || {
            let tail = room.log_tail()?;
            let mut lines: Vec<&str> =
                tail.lines().rev().filter(|l| !l.starts_with(LOG_WORD)).take(LAST_LINES).collect();
            lines.reverse();
            Ok(lines.join("\n"))
        })
    }

    fn stop<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<(), RunnerError>> {
        let room = self.room(attempt);
        Self::blocking(move || room.stop())
    }

    fn offer_credentials<'a>(
        &'a self,
        attempt: &'a AttemptRef,
        keys: &'a Credentials,
    ) -> BoxFuture<'a, Result<(), RunnerError>> {
        let (room, keys) = (self.room(attempt), keys.clone());
        Self::blocking(move || if room.dir.exists() { room.write_credentials(&room.dir, &keys) } else { Ok(()) })
    }

    fn remove<'a>(&'a self, attempt: &'a AttemptRef) -> BoxFuture<'a, Result<(), RunnerError>> {
        let room = self.room(attempt);
        Self::blocking(move || match fs::remove_dir_all(&room.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(room.failed("Removing directory", &room.dir)(e)),
            _ => Ok(()),
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<AttemptRef>, RunnerError>> {
        let state_dir = self.state_dir.clone();
        Self::blocking(move || {
            let failed = |source| RunnerError::Files { what: "Listing directory", path: state_dir.clone(), source };
            let entries = fs::read_dir(&state_dir).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
            // What does not parse as an attempt is not ours, or was never finished under its final name.
            Ok(entries.iter().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
        })
    }
}

impl ProcessRunner {
    /// Starts the process and notes who it is. The task that waits for it writes its exit code down.
    async fn spawn(&self, room: Room) -> Result<(), RunnerError> {
        let log = room.dir.join("log");
        let open = || fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&log);
        let not_started = |source| RunnerError::NotStarted { program: self.program.clone(), source };
        let mut command = tokio::process::Command::new(&self.program);
        command
            .arg("worker")
            .arg("--job")
            .arg(room.dir.join("job.json"))
            .arg("--credentials")
            .arg(room.dir.join("credentials"))
            .args(["--listen", "127.0.0.1:0", "--address-file"])
            .arg(room.dir.join("address"))
            .arg("--last-word")
            .arg(room.dir.join("last-word"))
            .arg("--scratch-dir")
            .arg(room.dir.join("scratch"))
            .env_clear()
            .envs(self.environment.iter().cloned())
            .current_dir("/")
            .process_group(0)
            .kill_on_drop(false)
            .stdin(Stdio::null())
            .stdout(open().map_err(not_started)?)
            .stderr(open().map_err(not_started)?);
        let mut child = command.spawn().map_err(not_started)?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
        let noted = room.clone();
        Self::blocking(move || noted.note_pid(pid)).await?;
        tracing::info!(attempt = %room.attempt, pid, "Worker started");
        tokio::spawn(async move {
            let code = match child.wait().await {
                Ok(status) => exit_code(status),
                Err(error) => return tracing::warn!(attempt = %room.attempt, %error, "Worker could not be waited for"),
            };
            tracing::debug!(attempt = %room.attempt, code, "Worker ended");
            // Without the file its exit code is unknown, which is a case of its own already.
            drop(Self::blocking(move || room.write("exit", &format!("{code}\n"))).await);
        });
        Ok(())
    }
}

/// As a shell says it: a signal is 128 and its number.
fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// One attempt's directory.
#[derive(Clone)]
struct Room {
    dir: PathBuf,
    attempt: AttemptRef,
}

impl Room {
    fn failed<'a>(&self, what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> RunnerError + 'a {
        move |source| RunnerError::Files { what, path: path.to_owned(), source }
    }

    /// Makes the directory complete before it has its name. True: a process must be started for it.
    fn prepare(&self, job: &JobSpec, keys: &Credentials) -> Result<bool, RunnerError> {
        if !self.dir.exists() {
            let new = self.dir.with_extension("new");
            if new.exists() {
                fs::remove_dir_all(&new).map_err(self.failed("Removing directory", &new))?;
            }
            let scratch = new.join("scratch");
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&scratch)
                .map_err(self.failed("Creating directory", &scratch))?;
            let text = serde_json::to_vec(job).expect("a job has no map with non-string keys");
            write_private(&new.join("job.json"), &text).map_err(self.failed("Writing", &new))?;
            self.write_credentials(&new, keys)?;
            fs::rename(&new, &self.dir).map_err(self.failed("Renaming directory", &new))?;
        }
        if self.read("pid")?.is_some() {
            return Ok(false);
        }
        match self.find_process() {
            Some(pid) => self.note_pid(pid).map(|()| false),
            None => Ok(true),
        }
    }

    /// A process that was given this job file, started by an operator that died before it could note the pid.
    fn find_process(&self) -> Option<i32> {
        let job = self.dir.join("job.json");
        let job = job.as_os_str().as_encoded_bytes();
        fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let words = fs::read(entry.path().join("cmdline")).ok()?;
            words.split(|b| *b == 0).any(|word| word == job).then_some(pid)
        })
    }

    /// The first file says who the process is. A process that ended already has a start time still, until we wait for it.
    fn note_pid(&self, pid: i32) -> Result<(), RunnerError> {
        let started = process_stat(pid).map_or(0, |stat| stat.started);
        self.write("pid", &format!("{pid} {started} {}\n", boot_id()))
    }

    fn look(&self) -> Result<Worker, RunnerError> {
        let Some(process) = self.process()? else { return Ok(Worker::Absent) };
        let path = self.dir.join("job.json");
        let unreadable = |problem: String| RunnerError::JobUnreadable { path: path.clone(), problem };
        let text = self.read("job.json")?.ok_or_else(|| unreadable("it is missing".into()))?;
        let job: Envelope = serde_json::from_str(&text).map_err(|e| unreadable(e.to_string()))?;
        let run = Run { attempt: job.attempt, pod: job.pod, key: job.report_key, host: None };
        if process.is_alive() {
            let address = self.read("address")?.and_then(|text| text.trim().parse::<SocketAddr>().ok());
            return Ok(Worker::Alive { run, address, trouble: None });
        }
        let exit_code = self.read("exit")?.and_then(|text| text.trim().parse().ok());
        Ok(Worker::Ended { run, exit_code, trouble: None })
    }

    /// SIGTERM, and after its grace SIGKILL.
    fn stop(&self) -> Result<(), RunnerError> {
        let Some(process) = self.process()? else { return Ok(()) };
        let asked = fs::metadata(self.dir.join("stop")).and_then(|m| m.modified()).ok();
        let signal = match asked {
            None => Signal::TERM,
            Some(at) if file_age(at) < STOP_GRACE => return Ok(()),
            Some(_) => Signal::KILL,
        };
        process.signal(signal).map_err(|source| RunnerError::NotSignalled { attempt: self.attempt.clone(), source })?;
        tracing::info!(attempt = %self.attempt, pid = process.pid, ?signal, "Worker was asked to end");
        if asked.is_none() { self.write("stop", "") } else { Ok(()) }
    }

    fn process(&self) -> Result<Option<Process>, RunnerError> {
        let Some(text) = self.read("pid")? else { return Ok(None) };
        let mut words = text.split_whitespace();
        let pid = words.next().and_then(|w| w.parse().ok()).unwrap_or(0);
        let started = words.next().and_then(|w| w.parse().ok()).unwrap_or(0);
        Ok(Some(Process { pid, started, same_boot: words.next() == Some(boot_id().as_str()) }))
    }

    /// The keys go into a new directory and the link is turned to it in one step, so that a worker reads either all the
    /// old ones or all the new ones.
    fn write_credentials(&self, dir: &Path, keys: &Credentials) -> Result<(), RunnerError> {
        let link = dir.join("credentials");
        let old = fs::read_link(&link).ok();
        if old.is_some() && read_credentials(&link) == *keys {
            return Ok(());
        }
        let number = old.as_ref().and_then(|o| o.extension()?.to_str()?.parse::<u32>().ok()).unwrap_or(0) + 1;
        let name = format!("credentials.{number}");
        let new = dir.join(&name);
        let write = || -> io::Result<()> {
            if new.exists() {
                fs::remove_dir_all(&new)?;
            }
            fs::DirBuilder::new().mode(0o700).create(&new)?;
            write_private(&new.join("AWS_ACCESS_KEY_ID"), keys.access_key_id.as_bytes())?;
            write_private(&new.join("AWS_SECRET_ACCESS_KEY"), keys.secret_access_key.as_bytes())?;
            if let Some(token) = &keys.session_token {
                write_private(&new.join("AWS_SESSION_TOKEN"), token.as_bytes())?;
            }
            let turned = dir.join("credentials.turned");
            match fs::remove_file(&turned) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            std::os::unix::fs::symlink(&name, &turned)?;
            fs::rename(&turned, &link)?;
            old.map_or(Ok(()), |old| fs::remove_dir_all(dir.join(old)))
        };
        write().map_err(self.failed("Writing credentials below", &new))
    }

    fn read(&self, name: &str) -> Result<Option<String>, RunnerError> {
        let path = self.dir.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.failed("Reading", &path)(e)),
        }
    }

    /// Replaced in one step: a reader sees the old text or the new one.
    fn write(&self, name: &str, text: &str) -> Result<(), RunnerError> {
        let path = self.dir.join(name);
        let new = self.dir.join(format!("{name}.new"));
        write_private(&new, text.as_bytes())
            .and_then(|()| fs::rename(&new, &path))
            .map_err(self.failed("Writing", &path))
    }

    fn log_tail(&self) -> Result<String, RunnerError> {
        let path = self.dir.join("log");
        let read = || -> io::Result<String> {
            let mut file = match fs::File::open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
                other => other?,
            };
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().map_err(self.failed("Reading", &path))
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

fn read_credentials(dir: &Path) -> Credentials {
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
    Credentials {
        access_key_id: read("AWS_ACCESS_KEY_ID").unwrap_or_default(),
        secret_access_key: read("AWS_SECRET_ACCESS_KEY").unwrap_or_default(),
        session_token: read("AWS_SESSION_TOKEN"),
    }
}

/// Age of a file by the clock that stamped it.
#[expect(clippy::disallowed_methods, reason = "compared with a file's time, never with a decision's `now`")]
fn file_age(modified: SystemTime) -> Duration {
    SystemTime::now().duration_since(modified).unwrap_or_default()
}

/// Start times are counted from a boot: the same pid and start time after another boot is another process.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// A process as it was noted when it was started.
struct Process {
    pid: i32,
    started: u64,
    same_boot: bool,
}

struct ProcessStat {
    state: char,
    started: u64,
}

/// State and start time of a process: fields 3 and 22 of `/proc/<pid>/stat`, counted after the name, which may itself
/// contain spaces and brackets.
fn process_stat(pid: i32) -> Option<ProcessStat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some(ProcessStat { state, started: fields.nth(18)?.parse().ok()? })
}

impl Process {
    /// A zombie does not run: whoever started it has not waited for it yet.
    fn is_alive(&self) -> bool {
        self.same_boot
            && process_stat(self.pid).is_some_and(|s| s.started == self.started && !matches!(s.state, 'Z' | 'X' | 'x'))
    }

    /// The pid is pinned by a file descriptor first and then compared, so that nobody else is ever signalled.
    fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let pinned = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            other => other?,
        };
        if !self.is_alive() {
            return Ok(());
        }
        match pidfd_send_signal(&pinned, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => Ok(other?),
        }
    }
}
