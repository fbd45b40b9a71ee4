//! A test of this program as a process of its own that has only so much memory, watched until it ends: what a cgroup
//! allows (v1, its page cache and its code included), or, where there is none, what the process says of itself.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::Process;

/// What is to be run.
pub struct Confined<'a> {
    /// An ignored test of this program, by its full name.
    pub test: &'a str,
    /// Bytes of memory; none: only watched.
    pub limit: Option<u64>,
    pub patience: Duration,
    /// For the log.
    pub folder: &'a Path,
    /// `TMPDIR` of the process: what it has open there without a name is scratch.
    pub scratch: &'a Path,
}

/// What was seen of it, in bytes.
#[derive(Debug)]
pub struct Seen {
    /// At most at once: all memory that is not code or files.
    pub anonymous: u64,
    /// At most at once, page cache included; 0 without a cgroup.
    pub with_cache: u64,
    /// How often the kernel had to take pages back; 0 without a cgroup.
    pub reclaims: u64,
    /// At most at once, in files without a name below `scratch`.
    pub scratch: u64,
    pub took: Duration,
}

impl Confined<'_> {
    /// Runs it to its end, which must be a good one, and prints what it printed.
    pub fn run(&self, environment: &[(&str, &OsStr)]) -> Seen {
        let group = self.limit.and_then(|limit| Group::new(self.test, limit));
        let procs = group.as_ref().map_or_else(|| PathBuf::from("/dev/null"), |g| g.0.join("cgroup.procs"));
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(procs);
        command.arg(std::env::current_exe().expect("this test is a program"));
        command.args([self.test, "--exact", "--ignored", "--nocapture"]).stdin(Stdio::null());
        command.envs(environment.iter().copied()).env("TMPDIR", self.scratch).env("RUST_BACKTRACE", "0");
        let mut process = Process::start(self.test, command, &self.folder.join("log"));
        let began = Instant::now();
        let mut seen = Seen { anonymous: 0, with_cache: 0, reclaims: 0, scratch: 0, took: Duration::ZERO };
        let status = loop {
            seen.anonymous = seen.anonymous.max(anonymous_bytes(process.pid()));
            seen.scratch = seen.scratch.max(scratch_bytes(process.pid(), self.scratch));
            if let Some(status) = process.ended() {
                break status;
            }
            assert!(began.elapsed() < self.patience, "{seen:?}: {}", process.tail());
            std::thread::sleep(Duration::from_millis(5));
        };
        if let Some(group) = &group {
            seen.with_cache = group.number("memory.max_usage_in_bytes");
            seen.reclaims = group.number("memory.failcnt");
        }
        seen.took = began.elapsed();
        assert!(status.success(), "{status}, {seen:?}: {}", process.tail());
        print!("{}", process.output());
        let (mib, limit) = (|bytes: u64| bytes >> 20, self.limit.unwrap_or(u64::MAX));
        println!(
            "{}: {} MiB anonymous at most, {} MiB with page cache, {} MiB of scratch, {} reclaims, {:.1?}",
            self.test,
            mib(seen.anonymous),
            mib(seen.with_cache),
            mib(seen.scratch),
            seen.reclaims,
            seen.took
        );
        assert!(seen.anonymous > 1 << 20 && seen.anonymous <= limit, "{seen:?}");
        seen
    }
}

/// Anonymous memory of a process now.
pub fn anonymous_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

/// Bytes on the disk of the files without a name that a process has open below a folder.
pub fn scratch_bytes(pid: u32, folder: &Path) -> u64 {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let files = files.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(folder)));
    let sizes = files.filter_map(|fd| std::fs::metadata(fd.path()).ok()).map(|file| (file.ino(), file.blocks() * 512));
    sizes.collect::<BTreeMap<_, _>>().values().sum()
}

/// A memory cgroup (v1) of so many bytes.
struct Group(PathBuf);

impl Group {
    fn new(test: &str, bytes: u64) -> Option<Self> {
        let purpose = test.replace("::", "-");
        let group = Self(format!("/sys/fs/cgroup/memory/tidemark-{purpose}-{}", std::process::id()).into());
        let made = std::fs::create_dir(&group.0);
        let limited = made.and_then(|()| std::fs::write(group.0.join("memory.limit_in_bytes"), bytes.to_string()));
        match limited {
            Ok(()) => Some(group),
            Err(error) => {
                eprintln!("No memory cgroup ({error}): the limit is checked by what the process says of itself");
                None
            }
        }
    }

    fn number(&self, name: &str) -> u64 {
        std::fs::read_to_string(self.0.join(name)).ok().and_then(|t| t.trim().parse().ok()).unwrap_or_default()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It stays if a process of it does; its name says whose it was.
        let _ = std::fs::remove_dir(&self.0);
    }
}
