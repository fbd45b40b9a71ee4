//! What needs real minutes: sources and limits so slow that nothing is acknowledged for long, which is no error (law 5
//! counts only while a request is outstanding). Slow sources are loop devices that the kernel throttles (the block
//! controller of cgroup v1, so root is needed). `make soak` runs them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use crate::support::{self, ACCESS_KEYS, Block, Image, S3Server, image::difference};
use serde_json::Value;

const BLOCK: usize = 2 * 1024 * 1024;
const MIB: u64 = 1 << 20;

/// A file as a block device that is read no faster than this.
struct SlowDevice {
    path: PathBuf,
    group: PathBuf,
}

impl SlowDevice {
    fn new(file: &Path, bytes_per_second: u64) -> Self {
        let made = Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(file).output();
        let made = made.expect("losetup is there");
        assert!(made.status.success(), "loop devices need root: {}", String::from_utf8_lossy(&made.stderr));
        let path = PathBuf::from(String::from_utf8(made.stdout).expect("UTF-8").trim());
        let name = path.file_name().and_then(|n| n.to_str()).expect("a loop device has a name");
        let group = PathBuf::from(format!("/sys/fs/cgroup/blkio/tidemark-soak-{}-{name}", std::process::id()));
        let device = Self { path: path.clone(), group };
        let number = fs::read_to_string(format!("/sys/block/{name}/dev")).expect("its number");
        fs::create_dir(&device.group).expect("the block controller of cgroup v1, and root");
        let limit = format!("{} {bytes_per_second}", number.trim());
        fs::write(device.group.join("blkio.throttle.read_bps_device"), limit).expect("throttled");
        device
    }

    /// The same program, held to the device's rate.
    fn throttle(&self, program: &Command) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.group.join("cgroup.procs"));
        command.arg(program.get_program()).args(program.get_args());
        for (key, value) in program.get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        command
    }
}

impl Drop for SlowDevice {
    fn drop(&mut self) {
        // Whoever runs soak tests by hand sees what is left by `losetup --list`.
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
        let _ = fs::remove_dir(&self.group);
    }
}

/// `tidemark` with the keys of the server.
fn tidemark(server: &S3Server, home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    let (id, secret) = ACCESS_KEYS[0];
    command.args(arguments).env("XDG_STATE_HOME", home).env("TMPDIR", home);
    command.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret).env("AWS_ENDPOINTS", server.endpoint());
    command
}

fn backup(server: &S3Server, home: &Path, source: &Path, more: &[&str]) -> Command {
    let source = source.to_str().expect("UTF-8");
    let fixed =
        ["backup", source, "--target", "s3://backups@us-east-1/", "--volume", "web-1", "--stall", "5s", "--json"];
    tidemark(server, home, &[&fixed, more].concat())
}

/// Runs it to its end: the last event and the seconds it took.
fn completed(mut command: Command) -> (Value, Duration) {
    let began = Instant::now();
    let Output { status, stdout, stderr } = command.output().expect("it starts");
    let (said, log) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{status}: {said}\n{log}");
    let last = serde_json::from_str(said.lines().last().expect("an event")).expect("JSON");
    (last, began.elapsed())
}

fn restored_equals(server: &S3Server, home: &Path, done: &Value, image: &Path) {
    let out = home.join("restored");
    let url = done["url"].as_str().expect("a URL");
    completed(tidemark(server, home, &["restore", url, out.to_str().expect("UTF-8"), "--json"]));
    assert_eq!(difference(image, &out), None);
}

#[test]
#[ignore = "half a minute, root: make soak"]
fn soak_a_slow_source_is_no_stall() {
    let server = S3Server::start();
    server.create_bucket("backups");
    let home = support::scratch("slow-source");
    // 24 MiB at 1 MiB/s: a block each 2 s, read ahead of a store that waits for nothing.
    let blocks: Vec<_> = (0..12).map(Block::Random).collect();
    let image = Image::of(&home.path().join("image"), &blocks);
    let device = SlowDevice::new(image.path(), MIB);
    let (done, took) = completed(device.throttle(&backup(&server, home.path(), &device.path, &[])));
    assert!(took >= Duration::from_secs(20), "the source was slow: {took:?}");
    println!("24 MiB from a source of 1 MiB/s, stall 5 s: completed in {took:.1?}");
    restored_equals(&server, home.path(), &done, image.path());
}

#[test]
#[ignore = "ten minutes, root: make soak"]
fn soak_ten_minutes_of_zeros_are_no_stall() {
    let server = S3Server::start();
    server.create_bucket("backups");
    let home = support::scratch("zeros");
    let path = home.path().join("image");
    // 1216 MiB of written zeros at 2 MiB/s, with one block of data at each end.
    let image = Image::of(&path, &[Block::Random(1)]);
    let zeros = vec![0; BLOCK];
    (1..608_u64).for_each(|i| image.write_at(i * BLOCK as u64, &zeros));
    image.write_at(607 * BLOCK as u64, &[7; BLOCK]);
    let device = SlowDevice::new(&path, 2 * MIB);
    let (done, took) = completed(device.throttle(&backup(&server, home.path(), &device.path, &[])));
    assert!(took >= Duration::from_secs(590), "the zeros were slow: {took:?}");
    println!("Ten minutes of zeros, stall 5 s: completed in {took:.1?}: {done}");
    restored_equals(&server, home.path(), &done, &path);
}

#[test]
#[ignore = "most of a minute: make soak"]
fn soak_a_limit_of_one_mib_per_second_is_no_stall_and_is_kept() {
    let server = S3Server::start();
    server.create_bucket("backups");
    let home = support::scratch("limit");
    let blocks: Vec<_> = (0..20).map(Block::Random).collect();
    let image = Image::of(&home.path().join("image"), &blocks);
    let limit = ["--max-bytes-per-second", "1Mi"];
    let (done, took) = completed(backup(&server, home.path(), image.path(), &limit));
    // 40 MiB; the first block leaves at once.
    assert!((Duration::from_secs(38)..Duration::from_secs(60)).contains(&took), "{took:?}");
    println!("40 MiB at 1 MiB/s, stall 5 s: completed in {took:.1?}");
    restored_equals(&server, home.path(), &done, image.path());
}
