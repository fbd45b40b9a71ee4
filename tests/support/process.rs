//! Child processes that never outlive the test: each in a process group of its own, killed when its owner is dropped,
//! and by the kernel (`PR_SET_PDEATHSIG`) if the test itself is killed. Output goes to a log file that a panic quotes.
//!
//! The kernel sends that signal when the *thread* that forked ends, not the process. So every child is forked by one
//! thread that lives as long as the test binary does.

use std::{
    fs::File,
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        mpsc::{Sender, channel},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, set_parent_process_death_signal};

type Fork = (Command, Sender<io::Result<Child>>);

/// A running program and where it writes.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; stdout and stderr are appended to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let open = || File::options().create(true).append(true).open(log);
        let out = open().unwrap_or_else(|e| panic!("Log {} of {name} cannot be opened: {e}", log.display()));
        let errors = out.try_clone().expect("a file just opened can be cloned");
        command.stdin(Stdio::null()).stdout(out).stderr(errors);
        let child = fork(command).unwrap_or_else(|e| panic!("{name} did not start: {e}"));
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap_or_else(|e| panic!("{} cannot be waited for: {e}", self.name))
    }

    /// Sends a signal to the process alone, not to its children.
    pub fn signal(&self, signal: Signal) {
        // It may have ended by itself: that is what the caller wanted.
        let _ = kill_process(self.as_pid(), signal);
    }

    /// `kill -9`, to its whole group, and reaps it.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            let _ = kill_process_group(self.as_pid(), Signal::KILL);
            let _ = self.child.wait();
        }
    }

    /// `kill -9` to this process alone: its children go on (a crash of the operator leaves its workers running).
    pub fn kill_alone(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
    }

    /// SIGTERM, then waits; after `patience` kills. The status it ended with.
    pub fn terminate(&mut self, patience: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            if Instant::now() > deadline {
                self.kill();
                return ExitStatus::from_raw(Signal::KILL.as_raw());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// All it wrote.
    pub fn output(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last lines it wrote, for a panic.
    pub fn tail(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        let shown = lines[lines.len().saturating_sub(25)..].join("\n  ");
        format!("--- the last lines of {} ({}):\n  {shown}\n---", self.name, self.log.display())
    }

    fn as_pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed()).expect("the pid of a child is not 0")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        // What it started in its own group goes too, even if it ended before its children did.
        let _ = kill_process_group(self.as_pid(), Signal::KILL);
    }
}

/// Forks in the thread that never ends.
fn fork(command: Command) -> io::Result<Child> {
    static FORKS: OnceLock<Sender<Fork>> = OnceLock::new();
    let forks = FORKS.get_or_init(|| {
        let (sender, receiver) = channel::<Fork>();
        std::thread::spawn(move || {
            for (mut command, reply) in receiver {
                // The asker waits for the reply; if it is gone, the child is dropped with the message.
                let _ = reply.send(die_with_parent(&mut command).spawn());
            }
        });
        sender
    });
    let (reply, answer) = channel();
    forks.send((command, reply)).expect("the forking thread never ends");
    answer.recv().expect("the forking thread answers everything")
}

/// The child leads its own group and gets SIGKILL when this process ends, however it ends.
fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    command.process_group(0);
    let before_exec = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        match std::os::unix::process::parent_id() == parent {
            true => Ok(()),
            false => Err(io::Error::other("the test ended before its child began")),
        }
    };
    #[expect(unsafe_code, reason = "between fork and exec only prctl and getppid are called: both async-signal-safe")]
    unsafe {
        command.pre_exec(before_exec)
    }
}
