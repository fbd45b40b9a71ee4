//! versitygw, an S3 server that others wrote (tools/parts.sh builds it): a second opinion on what S3 is.

use std::{net::TcpStream, path::PathBuf, process::Command, time::Duration};

use tempfile::TempDir;

use super::{ACCESS_KEYS, Process, control_plane::free_port};

/// A port can be taken between our choosing it and its binding it.
const STARTS: usize = 3;
/// It answers within a second; with compilers beside it, later.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// The server. Dropping it ends it and deletes its directory.
pub struct Versitygw {
    directory: TempDir,
    port: u16,
    _process: Process,
}

impl Versitygw {
    /// One server with an empty bucket `backups`, for the first of the tests' access keys.
    pub fn start() -> Self {
        let directory = super::scratch("versitygw");
        for folder in ["objects/backups", "metadata", "accounts"] {
            std::fs::create_dir_all(directory.path().join(folder)).expect("a new directory is writable");
        }
        for _ in 0..STARTS {
            let port = free_port();
            let mut process = Process::start("versitygw", command(&directory, port), &directory.path().join("log"));
            let end = std::time::Instant::now() + READY_DEADLINE;
            while std::time::Instant::now() < end && process.ended().is_none() {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Self { directory, port, _process: process };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            println!("{}", process.tail());
        }
        panic!("versitygw did not start {STARTS} times: its words are above");
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Where the bucket's objects lie: what a test damages by hand.
    pub fn bucket(&self) -> PathBuf {
        self.directory.path().join("objects/backups")
    }
}

fn command(directory: &TempDir, port: u16) -> Command {
    let (id, secret) = ACCESS_KEYS[0];
    let mut command = Command::new(super::parts().join("versitygw"));
    command.env_clear().current_dir(directory.path());
    command.args(["--port", &format!("127.0.0.1:{port}"), "--access", id, "--secret", secret, "--keep-alive"]);
    // Beside the objects, because not every file system keeps extended attributes. It changes into their folder.
    let folder = |name: &str| directory.path().join(name).display().to_string();
    command.args(["--quiet", "--iam-dir", &folder("accounts"), "posix", "--sidecar", &folder("metadata")]);
    command.arg(folder("objects"));
    command
}
