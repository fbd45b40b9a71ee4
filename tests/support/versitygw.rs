//! versitygw, an S3 server that others wrote (tools/parts.sh builds it): a second opinion on what S3 is.

use std::{net::TcpStream, path::PathBuf, process::Command, time::Duration};

use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation, retry::RetryConfig},
    types::{BucketVersioningStatus, VersioningConfiguration},
};
use tempfile::TempDir;

use super::{ACCESS_KEYS, Process, control_plane::free_port};

/// A port can be taken between our choosing it and its binding it.
const STARTS: usize = 3;
/// It answers within a second; with compilers beside it, later.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// Does the server know versions of objects?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Versions {
    Unknown,
    Kept,
}

/// The server. Dropping it ends it and deletes its directory.
pub struct Versitygw {
    directory: TempDir,
    port: u16,
    _process: Process,
}

impl Versitygw {
    /// One server with an empty bucket `backups`, for the first of the tests' access keys.
    pub fn start() -> Self {
        Self::start_with(Versions::Unknown)
    }

    /// The same, and buckets may be versioned and have Object Lock.
    pub fn start_versioned() -> Self {
        Self::start_with(Versions::Kept)
    }

    fn start_with(versions: Versions) -> Self {
        let directory = super::scratch("versitygw");
        for folder in ["objects/backups", "metadata", "accounts", "versions"] {
            std::fs::create_dir_all(directory.path().join(folder)).expect("a new directory is writable");
        }
        for _ in 0..STARTS {
            let port = free_port();
            let mut process =
                Process::start("versitygw", command(&directory, port, versions), &directory.path().join("log"));
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

    /// One more bucket, which keeps versions.
    pub async fn create_versioned(&self, bucket: &str) {
        let client = sdk(&self.endpoint());
        client.create_bucket().bucket(bucket).send().await.expect("made");
        let enabled = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        let put = client.put_bucket_versioning().bucket(bucket).versioning_configuration(enabled);
        put.send().await.expect("it knows versions");
    }

    /// Where the bucket's objects lie: what a test damages by hand.
    pub fn bucket(&self) -> PathBuf {
        self.directory.path().join("objects/backups")
    }
}

/// The bare SDK, for what we never ask of a server.
pub fn sdk(endpoint: &str) -> Client {
    let (id, secret) = ACCESS_KEYS[0];
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new(id, secret, None, None, "test"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .retry_config(RetryConfig::disabled());
    Client::from_conf(config.build())
}

fn command(directory: &TempDir, port: u16, versions: Versions) -> Command {
    let (id, secret) = ACCESS_KEYS[0];
    let mut command = Command::new(super::parts().join("versitygw"));
    command.env_clear().current_dir(directory.path());
    command.args(["--port", &format!("127.0.0.1:{port}"), "--access", id, "--secret", secret, "--keep-alive"]);
    // Beside the objects, because not every file system keeps extended attributes. It changes into their folder.
    let folder = |name: &str| directory.path().join(name).display().to_string();
    command.args(["--quiet", "--iam-dir", &folder("accounts"), "posix", "--sidecar", &folder("metadata")]);
    if versions == Versions::Kept {
        command.args(["--versioning-dir", &folder("versions")]);
    }
    command.arg(folder("objects"));
    command
}
