//! The real binary, as a person or a script uses it: what it prints, where, and how it ends.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::support::{
    self, ACCESS_KEYS, Fault, Kind, Process, Rule, S3Server, busy,
    image::{Block, Image, difference},
};
use serde_json::Value;
use tempfile::TempDir;

const BLOCK: u64 = 2 * 1024 * 1024;

/// A home of its own, a directory to back up to, and images.
struct World {
    folder: TempDir,
    variables: Vec<(&'static str, String)>,
}

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl World {
    fn new(purpose: &str) -> Self {
        let folder = support::scratch(purpose);
        std::fs::create_dir(folder.path().join("store")).expect("made");
        Self { folder, variables: Vec::new() }
    }

    /// The same with the keys of a test server.
    fn with_s3(purpose: &str, server: &S3Server) -> Self {
        let mut world = Self::new(purpose);
        let (id, secret) = ACCESS_KEYS[0];
        world.variables = vec![
            ("AWS_ACCESS_KEY_ID", id.into()),
            ("AWS_SECRET_ACCESS_KEY", secret.into()),
            ("AWS_ENDPOINTS", server.endpoint()),
        ];
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn image(&self, blocks: &[Block]) -> PathBuf {
        Image::of(&self.path("image"), blocks);
        self.path("image")
    }

    /// Ready to run, with nothing of this process's environment.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
        command.args(arguments).current_dir(self.folder.path()).env_clear();
        command.env("XDG_STATE_HOME", self.path("state")).env("TMPDIR", self.folder.path());
        command.envs(self.variables.iter().map(|(k, v)| (k, v))).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        let Output { status, stdout, stderr } = self.command(arguments).output().expect("the binary starts");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let ended = Ended { code: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) };
        println!("tidemark {arguments:?} ended {ended:#?}");
        assert!(!ended.stderr.contains("panicked"), "{arguments:?} panicked");
        ended
    }

    /// Runs a command that must succeed.
    fn done(&self, arguments: &[&str]) -> Ended {
        let ended = self.run(arguments);
        assert_eq!(ended.code, 0, "{arguments:?}");
        ended
    }

    fn restored_equals(&self, url: &str, image: &Path) {
        let out = self.path("restored");
        self.done(&["restore", url, "restored", "--force", "--quiet"]);
        assert_eq!(difference(image, &out), None, "{url}");
    }
}

impl Ended {
    fn url(&self) -> &str {
        self.stdout.lines().last().expect("a URL on the last line")
    }

    fn json(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// The result of a `--json` command.
    fn result(&self) -> Value {
        self.json().pop().expect("a result")
    }
}

fn blocks() -> [Block; 6] {
    [Block::Text(1), Block::Hole, Block::Random(2), Block::Text(1), Block::Zero, Block::Random(3)]
}

/// Asks until there is an answer.
fn wait<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_backup_to_a_directory_is_listed_inspected_and_restored() {
    let world = World::new("cli-directory");
    let image = world.image(&blocks());
    // Not a multiple of the block size: the true size comes back.
    std::fs::File::options().write(true).open(&image).expect("open").set_len(6 * BLOCK - 1234).expect("cut");
    let backup = ["backup", "image", "--target", "store", "--volume", "web-1", "--label", "env=prod"];
    let ended = world.done(&backup);
    let url = ended.url().to_owned();
    assert_eq!(ended.stdout.lines().count(), 1, "only the URL is for scripts");
    assert!(ended.stderr.contains("Completed backup-"), "{}", ended.stderr);
    assert!(url.starts_with("file:///") && url.ends_with("&volume=web-1"), "{url}");

    let listed = world.done(&["ls", "store"]).stdout;
    assert!(listed.contains(&url) && listed.contains("Completed"), "{listed}");
    let rows = world.done(&["ls", "store", "--volume", "web-1", "--json"]).json();
    assert_eq!((rows.len(), &rows[0]["url"], &rows[0]["blocks"]), (1, &Value::from(url.as_str()), &Value::from(4)));

    let inspected = world.done(&["inspect", &url, "--json"]).result();
    assert_eq!(inspected["volumeBytes"], 6 * BLOCK - 1234, "{inspected}");
    assert_eq!((&inspected["labels"]["env"], &inspected["compression"]), (&"prod".into(), &"lz4".into()));
    assert!(world.done(&["inspect", &url]).stdout.contains("Label                env=prod"));

    world.restored_equals(&url, &image);
}

#[test]
fn an_unchanged_image_is_backed_up_without_sending_a_block() {
    let world = World::new("cli-again");
    let image = world.image(&blocks());
    let backup = ["backup", "image", "-t", "store", "-v", "web-1", "--json"];
    let first = world.done(&backup).result();
    let second = world.done(&backup);
    let result = second.result();
    assert_eq!(first["progress"]["acknowledgedBlocks"], 4, "{first}");
    assert_eq!((&result["progress"]["uploadedBlocks"], &result["progress"]["reusedBlocks"]), (&0.into(), &4.into()));
    assert_ne!(first["url"], result["url"], "a complete backup is not continued");
    for event in second.json().iter().filter(|event| event["event"] == "progress") {
        assert!(event["percent"].as_u64().expect("a number") <= 99, "law 3: {event}");
    }
    world.restored_equals(result["url"].as_str().expect("a URL"), &image);
    assert_eq!(world.done(&["ls", "store", "--json"]).json().len(), 2);
}

/// Backs up eight blocks until five are acknowledged and the rest hang, stops it, and continues it.
fn interrupted(purpose: &str, stop: impl FnOnce(&mut Process)) -> (World, S3Server, Value, BTreeSet<String>) {
    let server = S3Server::start();
    server.create_bucket("backups");
    let world = World::with_s3(purpose, &server);
    let image = world.image(&[1, 2, 3, 4, 5, 6, 7, 8].map(Block::Random));
    // What the dead one sent is never performed: a held request might be, after its end.
    server.fault(Rule::new(Fault::HangForever).on(Kind::PutBlock).after(5));
    let backup = ["backup", "image", "--target", "s3://backups@us-east-1/some/prefix", "--volume", "web-1", "--json"];
    let log = world.path("log");
    let mut running = Process::start("backup", world.command(&backup), &log);
    wait("five acknowledged blocks are shown", || running.output().contains("\"acknowledgedBlocks\":5").then_some(()));
    stop(&mut running);
    let acknowledged: BTreeSet<String> =
        server.requests().into_iter().filter(|r| r.kind == Kind::PutBlock && r.acknowledged()).map(|r| r.key).collect();
    assert_eq!(acknowledged.len(), 5);
    server.heal();
    server.forget_requests();
    let ended = world.done(&backup);
    assert!(ended.stderr.contains("Continuing the backup begun at"), "{}", ended.stderr);
    let again: Vec<String> = server
        .requests()
        .into_iter()
        .filter(|r| r.kind == Kind::PutBlock && acknowledged.contains(&r.key))
        .map(|r| r.key)
        .collect();
    assert!(again.is_empty(), "law 6: sent again: {again:?}");
    let result = ended.result();
    assert_eq!(result["progress"]["acknowledgedBlocks"], 8, "{result}");
    world.restored_equals(result["url"].as_str().expect("a URL"), &image);
    (world, server, result, acknowledged)
}

#[test]
fn law_6_a_killed_backup_is_continued_and_sends_nothing_twice() {
    let (world, _server, result, _) = interrupted("cli-kill", Process::kill);
    assert_eq!(result["progress"]["uploadedBlocks"], 3, "{result}");
    let state: Vec<_> = std::fs::read_dir(world.path("state/tidemark")).expect("a folder").collect();
    assert!(state.is_empty(), "a complete backup leaves no state: {state:?}");
}

#[test]
fn law_6_a_cancelled_backup_journals_and_is_continued_without_reading() {
    let (_, _, result, _) = interrupted("cli-cancel", |running| {
        let status = running.terminate(Duration::from_secs(30));
        assert_eq!(status.code(), Some(75), "{}", running.output());
        assert!(running.output().contains("Run the same command again to continue"), "{}", running.output());
    });
    assert_eq!(result["progress"]["resumedBlocks"], 5, "{result}");
    assert_eq!(result["progress"]["readBytes"], 3 * BLOCK, "what the journal proves is not read: {result}");
}

#[test]
fn law_5_a_store_that_refuses_or_is_gone_says_so_in_time() {
    let server = S3Server::start();
    server.create_bucket("backups");
    let mut world = World::with_s3("cli-refused", &server);
    world.image(&blocks());
    let backup = |bucket: &str| {
        let target = format!("s3://{bucket}@us-east-1/");
        world.run(&["backup", "image", "-t", &target, "-v", "web-1", "--stall", "3s"])
    };
    let missing = backup("nosuchbucket");
    assert_eq!(missing.code, 65);
    assert!(missing.stderr.contains("BucketMissing") && missing.stdout.is_empty());
    server.revoke(ACCESS_KEYS[0].0);
    let begun = Instant::now();
    let refused = backup("backups");
    assert_eq!(refused.code, 65);
    assert!(refused.stderr.contains("AccessDenied"), "{}", refused.stderr);
    assert!(begun.elapsed() < Duration::from_secs(15) + busy(), "{:?}", begun.elapsed());
    drop(server);
    // Nobody listens on port 9 of loopback.
    world.variables[2].1 = "http://127.0.0.1:9".into();
    let gone = world.run(&["ls", "s3://backups@us-east-1/", "--stall", "3s"]);
    assert!(matches!(gone.code, 67 | 68), "{gone:?}");
}

#[test]
fn a_damaged_block_ends_a_restore_and_keep_going_lists_it() {
    let world = World::new("cli-damage");
    let image = world.image(&[Block::Random(1), Block::Random(2), Block::Random(3)]);
    let url = world.done(&["backup", "image", "-t", "store", "-v", "web-1", "-q"]).url().to_owned();
    let block = std::fs::read(&image).expect("read");
    let name = tidemark::model::BlockName::of(&block[BLOCK as usize..2 * BLOCK as usize]).to_string();
    let key = format!("blocks/{}/{}/{name}.blk", &name[..2], &name[2..4]);
    let volume = tidemark::store::layout::VolumeLayout::new(&"web-1".parse().expect("valid"));
    std::fs::remove_file(world.path("store").join(volume.root()).join(&key)).expect("the block is there");

    let ended = world.run(&["restore", &url, "out"]);
    assert_eq!(ended.code, 65);
    for words in [key.as_str(), "not in the store", "do not use it", "--keep-going"] {
        assert!(ended.stderr.contains(words), "{words}: {}", ended.stderr);
    }
    let exists = world.run(&["restore", &url, "out"]);
    assert!(exists.code == 66 && exists.stderr.contains("--force"), "{exists:?}");
    let kept = world.run(&["restore", &url, "out", "--force", "--keep-going", "--json"]);
    assert_eq!((kept.code, &kept.result()["event"]), (65, &"failed".into()));
    assert!(kept.stderr.contains("Lost: block at offset 2097152"), "{}", kept.stderr);
    let lost: Vec<Value> = kept.json().into_iter().filter(|event| event["event"] == "lost").collect();
    assert!(lost.len() == 1 && lost[0]["block"]["offset"] == 2_097_152, "{lost:?}");
    let mut expected = block;
    expected[BLOCK as usize..2 * BLOCK as usize].fill(0);
    assert!(std::fs::read(world.path("out")).expect("read") == expected, "everything else was restored");
    world.done(&["backup", "image", "-t", "store", "-v", "web-1", "--mode", "full"]);
    world.restored_equals(&url, &image);
}

#[test]
fn reuse_continues_updates_and_repairs_and_says_what_was_there() {
    let world = World::new("cli-reuse");
    let image = world.image(&blocks());
    let backup = ["backup", "image", "-t", "store", "-v", "web-1", "-q"];
    let url = world.done(&backup).url().to_owned();
    let first = world.done(&["restore", &url, "out", "--reuse", "--no-lock"]);
    assert!(first.stderr.contains(": 4 blocks, ") && first.stderr.contains("4 blocks read back"), "{}", first.stderr);
    Image::open(&image).write(2, Block::Random(9));
    let newer = world.done(&backup).url().to_owned();
    let second = world.done(&["restore", &newer, "out", "--reuse"]);
    assert!(second.stderr.contains("4 blocks (3 of them were there)"), "{}", second.stderr);
    assert_eq!(difference(&image, &world.path("out")), None);
    let both = world.run(&["restore", &url, "out", "--reuse", "--force"]);
    assert!(both.code == 64 && both.stderr.contains("cannot be used with"), "{both:?}");
}

#[test]
fn one_damaged_record_does_not_hide_the_others() {
    let world = World::new("cli-ls");
    world.image(&blocks());
    let url = world.done(&["backup", "image", "-t", "store", "-v", "web-1", "-q"]).url().to_owned();
    let volume = tidemark::store::layout::VolumeLayout::new(&"web-1".parse().expect("valid"));
    let backups = world.path("store").join(volume.backups());
    std::fs::write(backups.join("backup_backup-bad.cfg"), "{").expect("written");
    std::fs::write(backups.join("backup_backup-open.cfg"), r#"{"Name":"backup-open","CreatedTime":""}"#)
        .expect("written");
    let listed = world.run(&["ls", "store"]);
    assert_eq!(listed.code, 65);
    for words in [url.as_str(), "Damaged", "InProgress"] {
        assert!(listed.stdout.contains(words), "{words}: {}", listed.stdout);
    }
    let empty = world.done(&["ls", "state"]);
    assert!(empty.stderr.contains("No backups"), "{}", empty.stderr);
}

#[test]
fn what_is_typed_wrong_is_answered_with_its_cure() {
    let world = World::new("cli-wrong");
    world.image(&[Block::Text(1)]);
    let backup = ["backup", "image", "--target", "store", "--volume", "web-1"];
    let with = |more: &[&'static str]| [&backup[..], more].concat();
    let record = "file:///nowhere?backup=backup-1&volume=web-1";
    let cases: Vec<(Vec<&str>, i32, &str)> = vec![
        (vec![], 64, "Usage: tidemark"),
        (vec!["bakup"], 64, "backup"),
        (vec!["backup"], 64, "--target"),
        (vec!["backup", "image", "-t", "store", "-v", "V"], 64, "2 to 40 lower-case letters"),
        (vec!["backup", "image", "-t", "nfs://host:/x", "-v", "web-1"], 64, "mount NFS"),
        (vec!["backup", "image", "-t", "s3://backups/", "-v", "web-1"], 64, "AWS_REGION"),
        (vec!["backup", "image", "-t", "s3://backups@us-east-1/", "-v", "web-1"], 64, "AWS_ACCESS_KEY_ID and"),
        (vec!["backup", "image", "-t", record, "-v", "web-1"], 64, "leave ?backup="),
        (vec!["backup", "image", "-t", "nowhere", "-v", "web-1"], 65, "create the directory or mount it"),
        (vec!["backup", "nothing", "-t", "store", "-v", "web-1"], 66, "SourceNotFound"),
        (vec!["backup", ".", "-t", "store", "-v", "web-1"], 66, "Source"),
        (with(&["--block-size", "4Mi"]), 64, "2Mi, 16Mi"),
        (with(&["--compression", "zstd"]), 64, "lz4, gzip, none"),
        (with(&["--mode", "fast"]), 64, "incremental"),
        (with(&["--concurrency", "0"]), 64, "1..=32"),
        (with(&["--max-bytes-per-second", "5"]), 64, "at least 64Ki"),
        (with(&["--max-bytes-per-second", "fast"]), 64, "200Mi"),
        (with(&["--stall", "60"]), 64, "90s, 10m"),
        (with(&["--stall", "0s"]), 64, "at least"),
        (with(&["--label", "env"]), 64, "KEY=VALUE"),
        (with(&["--label", "tidemark.dev/x=y"]), 64, "Tidemark's own"),
        (with(&["--json", "--quiet"]), 64, "cannot be used with"),
        (with(&["--scratch-dir", "/no/such/dir"]), 70, "--scratch-dir"),
        (vec!["restore", "store", "out"], 64, "names a target, not a backup"),
        (vec!["restore", "store?backup=backup-1", "out"], 64, "?backup=NAME&volume=NAME"),
        (vec!["restore", "store?backup=backup-1&volume=web-1", "out"], 65, "tidemark ls"),
        (vec!["restore", record, "out"], 65, "/nowhere"),
        (vec!["inspect", "store"], 64, "names a target, not a backup"),
        (vec!["inspect", "store?backup=backup-1&volume=web-1"], 65, "is not there"),
        (vec!["ls", ""], 64, "empty"),
        (vec!["worker", "--job", "/no/such.json"], 64, "Job cannot be read"),
        (vec!["crds", "--dir", "image/below"], 66, "image/below"),
        (vec!["completions", "cobol"], 64, "bash"),
    ];
    for (arguments, code, words) in cases {
        let ended = world.run(&arguments);
        assert_eq!(ended.code, code, "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(words), "{arguments:?} does not say {words:?}: {}", ended.stderr);
        assert!(!world.path("out").exists(), "{arguments:?} made OUT");
    }
}

#[test]
fn help_teaches_and_what_is_printed_is_complete() {
    let world = World::new("cli-help");
    let help = world.done(&["--help"]).stdout;
    for words in
        ["EXAMPLES", "EXIT CODES", "AWS_ENDPOINTS", "backup", "restore", "ls", "inspect", "operator", "worker", "crds"]
    {
        assert!(help.contains(words), "{words}: {help}");
    }
    assert!(world.done(&["operator", "--help"]).stdout.contains("--host-device-root"));
    for command in ["backup", "restore", "ls"] {
        let help = world.done(&[command, "--help"]).stdout;
        assert!(help.contains("EXAMPLES"), "{command}: {help}");
    }
    assert!(
        world.done(&["restore", "--help"]).stdout.contains("A restore that was interrupted is continued with --reuse")
    );
    assert!(world.done(&["backup", "--help"]).stdout.contains("continued by running the same command again"));
    assert!(world.done(&["--version"]).stdout.starts_with("tidemark "));
    assert!(world.done(&["crds"]).stdout.contains("kind: CustomResourceDefinition"));
    world.done(&["crds", "--dir", "crds"]);
    assert!(std::fs::read_dir(world.path("crds")).expect("made").count() >= 2);
    assert!(world.done(&["completions", "bash"]).stdout.contains("tidemark"));
}

#[test]
fn the_documents_exit_codes_are_the_programs() {
    let document = include_str!("../../docs/cli.md");
    let help = World::new("cli-doc").done(&["--help"]).stdout;
    for code in [64, 65, 66, 67, 68, 69, 70, 75] {
        let told = |line: &&str| line.trim_start().trim_start_matches("| ").starts_with(&code.to_string());
        assert!(document.lines().any(|line| told(&line)), "{code} is not in docs/cli.md");
        assert!(help.lines().any(|line| told(&line)), "{code} is not in --help");
    }
}
