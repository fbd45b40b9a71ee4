//! What a person at a terminal reads of a failure: once, and what to do about it.

use std::process::{Command, Output, Stdio};

use crate::support::{self, ACCESS_KEYS, Block, Image, S3Server};

#[test]
fn law_5_a_failure_is_told_once_with_what_was_seen_and_the_cure() {
    let folder = support::scratch("cli-failures");
    let server = S3Server::start();
    server.create_bucket("backups");
    std::fs::create_dir(folder.path().join("store")).expect("made");
    Image::of(&folder.path().join("image"), &[Block::Random(1), Block::Text(2)]);
    let (id, secret) = ACCESS_KEYS[0];
    let run = |arguments: &str, endpoint: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
        command.args(arguments.split(' ')).current_dir(folder.path()).env_clear().stdin(Stdio::null());
        command.env("XDG_STATE_HOME", folder.path().join("state")).env("TMPDIR", folder.path());
        command.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret).env("AWS_ENDPOINTS", endpoint);
        let Output { stderr, .. } = command.output().expect("the binary starts");
        String::from_utf8(stderr).expect("UTF-8")
    };
    let s3 = server.endpoint();
    // Nobody listens on port 9 of loopback.
    let nobody = "http://127.0.0.1:9";
    for (arguments, endpoint, seen) in [
        ("backup nowhere -t store -v web-1", s3.as_str(), "SourceNotFound: Source nowhere"),
        ("backup store -t store -v web-1", &s3, "SourceRefused: Source store"),
        ("backup image -t gone -v web-1", &s3, "BucketMissing"),
        ("backup image -t store -v web-1 --scratch-dir gone", &s3, "ScratchFailed: Scratch: Directory gone"),
        ("backup image -t s3://gone@us-east-1/ -v web-1", &s3, "BucketMissing"),
        ("backup image -t s3://backups@us-east-1/ -v web-1 --stall 2s", nobody, "Connection refused"),
        ("ls s3://backups@us-east-1/ --stall 2s", nobody, "Connection refused"),
        ("restore file:///gone?backup=backup-1&volume=web-1 out", &s3, "BucketMissing"),
    ] {
        let stderr = run(arguments, endpoint);
        println!("tidemark {arguments}\n{stderr}");
        let told: Vec<&str> = stderr.lines().filter(|line| line.contains(seen)).collect();
        assert!(told.len() == 1 && told[0].starts_with("tidemark: "), "{arguments}: {seen:?}\n{stderr}");
        assert_eq!(stderr.lines().filter(|line| line.starts_with("Cure: ")).count(), 1, "{arguments}:\n{stderr}");
        assert!(!stderr.contains("ERROR"), "{arguments}:\n{stderr}");
    }
    // Whoever asks for the log gets it.
    let logged = run("--log info backup nowhere -t store -v web-1", &s3);
    assert!(logged.contains("Attempt failed") && logged.contains("tidemark: SourceNotFound"), "{logged}");
    // Nothing was begun, so nothing is continued or begun anew.
    let done = run("backup image -t store -v web-2", &s3);
    assert!(!done.contains("begun at"), "{done}");
}
