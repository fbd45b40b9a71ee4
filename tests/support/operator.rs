//! The operator as a child process, with process workers. Workers outlive their operator, as Jobs do; they do not
//! outlive the test: when the last owner of their directory goes, they are killed.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{Lent, Process};

/// The operator's own namespace, and the only one with hostDevice.
pub const NAMESPACE: &str = "tidemark-system";

/// One operator process. Several may share a `Home`: a restart, or two at once.
#[derive(Debug)]
pub struct Operator {
    process: Process,
    http: PathBuf,
    pub home: Arc<Home>,
    /// It may write there for as long as it lives.
    _plane: Lent,
}

/// Where operators keep their workers, and where volumes may lie.
#[derive(Debug)]
pub struct Home {
    directory: TempDir,
    operators: AtomicU32,
}

impl Home {
    pub fn new() -> Arc<Self> {
        Self::with_room(0)
    }

    /// The same, where there is room for volumes of about so many bytes.
    pub fn with_room(bytes: u64) -> Arc<Self> {
        let directory = super::scratch_with_room("operator", bytes);
        for name in ["state", "volumes"] {
            fs::create_dir(directory.path().join(name)).expect("the scratch directory is ours");
        }
        Arc::new(Self { directory, operators: AtomicU32::new(0) })
    }

    /// `--state-dir`: one directory per attempt.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// `--host-device-root`: images for `source.hostDevice`.
    pub fn volumes(&self) -> PathBuf {
        self.directory.path().join("volumes")
    }

    pub fn log(&self) -> PathBuf {
        self.directory.path().join("operator.log")
    }

    /// Pids of the workers that run, with their directories.
    pub fn workers(&self) -> Vec<(u32, PathBuf)> {
        let entries = fs::read_dir(self.state()).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some((running(&entry.path())?, entry.path()))).collect()
    }

    /// `kill -9` of every worker that runs. How many there were.
    pub fn kill_workers(&self) -> usize {
        let workers = self.workers();
        for (pid, _) in &workers {
            let pid = Pid::from_raw(pid.cast_signed()).expect("a pid is not 0");
            // It may end by itself at this moment.
            let _ = kill_process(pid, Signal::KILL);
        }
        workers.len()
    }

    /// The end of every worker's log, for a panic.
    pub fn worker_logs(&self) -> String {
        let entries = fs::read_dir(self.state()).into_iter().flatten().flatten();
        let log = |path: PathBuf| {
            let text = fs::read_to_string(path.join("log")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(8)..].join("\n  ");
            format!("--- worker {}:\n  {last}\n", path.display())
        };
        entries.map(|entry| log(entry.path())).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.kill_workers();
    }
}

/// The pid in this attempt's directory, if the process is still the worker that was given its job.
fn running(attempt: &Path) -> Option<u32> {
    let pid: u32 = fs::read_to_string(attempt.join("pid")).ok()?.split_whitespace().next()?.parse().ok()?;
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let job = attempt.join("job.json");
    let ours = words.split(|byte| *byte == 0).any(|word| word == job.as_os_str().as_encoded_bytes());
    ours.then_some(pid)
}

impl Operator {
    /// Starts one with a home of its own.
    pub fn start(plane: &Lent) -> Self {
        Self::start_in(plane, Home::new(), &[])
    }

    /// Starts one in this home, with these flags besides its own.
    pub fn start_in(plane: &Lent, home: Arc<Home>, flags: &[&str]) -> Self {
        Self::start_as(plane, &plane.kubeconfig(), home, &[&["--workers=process"], flags].concat())
    }

    /// Starts one as the user of this kubeconfig; the flags say who runs workers.
    pub fn start_as(plane: &Lent, kubeconfig: &Path, home: Arc<Home>, flags: &[&str]) -> Self {
        let mut command = Command::new(program());
        command.args(["operator", "--http-listen", "127.0.0.1:0"]);
        if !flags.contains(&"--namespace") {
            command.args(["--namespace", NAMESPACE]);
        }
        command.arg("--kubeconfig").arg(kubeconfig);
        command.arg("--state-dir").arg(home.state());
        command.arg("--host-device-root").arg(home.volumes());
        // Two at once each need a file of their own.
        let http = home.directory.path().join(format!("http-{}", home.operators.fetch_add(1, SeqCst)));
        command.arg("--http-address-file").arg(&http).args(flags);
        Self { http, process: Process::start("tidemark operator", command, &home.log()), home, _plane: plane.clone() }
    }

    /// SIGTERM: an orderly end that leaves workers running.
    pub fn terminate(&mut self) -> ExitStatus {
        self.process.terminate(Duration::from_secs(60))
    }

    /// `kill -9` of the operator alone.
    pub fn kill(&mut self) {
        self.process.kill_alone();
    }

    /// To the operator alone, not to its workers.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    pub fn output(&self) -> String {
        self.process.output()
    }

    /// Where it serves /healthz, /readyz and /metrics; `None` until it does.
    pub fn http(&self) -> Option<SocketAddr> {
        fs::read_to_string(&self.http).ok()?.trim().parse().ok()
    }

    /// What it and its workers said last.
    pub fn tail(&self) -> String {
        format!("{}\n{}", self.process.tail(), self.home.worker_logs())
    }
}

/// The program under test: cargo names it to integration tests; an example finds it beside its own directory.
pub fn program() -> PathBuf {
    if let Some(path) = option_env!("CARGO_BIN_EXE_tidemark") {
        return path.into();
    }
    let own = std::env::current_exe().expect("this program is a file");
    let program = own.parent().and_then(Path::parent).expect("examples lie in a directory").join("tidemark");
    assert!(program.exists(), "{} is missing: cargo build --bin tidemark", program.display());
    program
}
