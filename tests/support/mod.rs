//! Real parts for integration tests and the demo: a Kubernetes control plane, an S3 server, a wire that can be cut,
//! volume images. Each test file takes it with `mod support;`, the demo with a `#[path]`.
//!
//! * `control_plane`  etcd and kube-apiserver on loopback, `kubectl`; `lent` uses them again
//! * `s3_server`      a real S3 server that logs, and breaks on demand (`faults`, `clock`)
//! * `storage`        volume and snapshot controllers, a provisioner and a driver, played on a real API server
//! * `wire`           a TCP proxy: cut, reset, slow, heal
//! * `proxy`          a forward proxy, and TLS before a server
//! * `job`            jobs for a worker without an operator
//! * `node`           a Job controller, a scheduler and a kubelet, played on a real API server
//! * `operator`       `tidemark operator` with process workers
//! * `image`          volume images from seeds, or with ext4
//! * `longhorn`       Longhorn as the other side of a store; `tidemark` our program beside it
//! * `versitygw`      a real S3 server that others wrote
//! * `repository`     volumes with a past, for deletion; listings that lie
//! * `endless`        a store of millions of blocks, computed
//! * `process`        children that never outlive the test; `confined` one that has only so much memory
//!
//! The servers of this process run on one runtime of their own, so that they answer whatever the test's own thread is
//! doing, and so that everything here but the control plane can be started without `await`.
#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]

mod clock;
pub mod confined;
pub mod control_plane;
pub mod decorators;
pub mod endless;
mod etcd;
pub mod faults;
pub mod iam;
pub mod image;
pub mod job;
pub mod lent;
pub mod longhorn;
pub mod node;
pub mod operator;
pub mod process;
pub mod proxy;
pub mod repository;
mod s3_backend;
pub mod s3_server;
pub mod storage;
pub mod sts;
pub mod tidemark;
pub mod versitygw;
pub mod wire;

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant},
};

pub use self::tidemark::Tidemark;
pub use control_plane::ControlPlane;
pub use faults::{Fault, Kind, Rule};
pub use image::{Block, Image};
pub use lent::Lent;
pub use longhorn::{Longhorn, Place};
pub use operator::{Home, Operator};
pub use process::Process;
pub use s3_server::{ACCESS_KEYS, S3Server};
pub use tempfile::TempDir;
use tokio::runtime::Runtime;
pub use versitygw::Versitygw;
pub use wire::Wire;

/// What a machine that has much else to do may add to a bound on time: two cores, eight tests at once and a compiler. What
/// the bounds are there to catch waits for a whole request's deadline, 30 s or two stall deadlines, or for ever.
/// With TIDEMARK_SOAK=1, where tests run one by one, nothing is added.
pub fn busy() -> Duration {
    Duration::from_secs(if environment("TIDEMARK_SOAK").is_some() { 0 } else { 10 })
}

/// The runtime of the servers and wires.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().expect("this process may start two threads")
    })
}

/// Memory is used for a scratch directory only if it has this much room: a container's /dev/shm often has 64 MB.
const SCRATCH_ROOM: u64 = 2 << 30;

/// A directory that goes when it is dropped, in memory where possible: etcd waits for the disk at every write, and
/// compilers keep the disk busy.
pub fn scratch(purpose: &str) -> TempDir {
    scratch_with_room(purpose, 0)
}

/// The same, for about so many bytes.
pub fn scratch_with_room(purpose: &str, bytes: u64) -> TempDir {
    let memory = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(memory).map_or(0, |s| s.f_bavail * s.f_frsize);
    let base = match room >= SCRATCH_ROOM + bytes && TempDir::new_in(memory).is_ok() {
        true => memory.to_owned(),
        false => std::env::temp_dir(),
    };
    remove_left_behind(&base);
    let prefix = format!("tidemark-{}-{purpose}-", std::process::id());
    let made = tempfile::Builder::new().prefix(&prefix).tempdir_in(&base);
    made.unwrap_or_else(|e| panic!("No scratch directory in {}: {e}", base.display()))
}

/// Copies a folder with everything below it.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the copy's folder can be made");
    for entry in std::fs::read_dir(from).expect("the folder to copy is there").flatten() {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => _ = std::fs::copy(entry.path(), to).expect("there is room for the copy"),
        }
    }
}

/// A test that was killed leaves its directory: whoever comes next removes it.
fn remove_left_behind(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|n| n.strip_prefix("tidemark-")?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Somebody else may be removing it as well.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// The programs that others wrote: `TIDEMARK_PARTS`, as `make test` sets it, or where tools/parts.sh put them.
pub fn parts() -> PathBuf {
    static PARTS: OnceLock<PathBuf> = OnceLock::new();
    PARTS.get_or_init(find_parts).clone()
}

fn find_parts() -> PathBuf {
    let named = environment("TIDEMARK_PARTS").map(PathBuf::from);
    let last = || std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/target/parts")).ok();
    let directory = named.or_else(|| last().map(|text| PathBuf::from(text.trim()))).unwrap_or_default();
    for program in ["etcd", "kube-apiserver", "kubectl", "versitygw"] {
        assert!(
            directory.join(program).exists(),
            "{program} is missing (looked in {directory:?}). `make test` gets it; so does \
             `export TIDEMARK_PARTS=$(tools/parts.sh)`"
        );
    }
    directory
}

/// The tests' door to the environment.
#[expect(clippy::disallowed_methods, reason = "the tests' only door to the environment")]
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What the mutex guards.
pub fn locked<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

/// Asks until the answer is `Ok`, and panics with the last `Err` when the deadline is over.
pub async fn eventually<T, F>(what: &str, deadline: Duration, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let end = Instant::now() + deadline;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(seen) if Instant::now() > end => panic!("{what}: not within {deadline:?}. Last seen: {seen}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
