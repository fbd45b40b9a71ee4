//! `tidemark delete` and `tidemark sweep`, as a person or a script uses them.

use std::process::{Command, Stdio};

use crate::support::{
    self, ACCESS_KEYS, Block, Image, S3Server, TempDir,
    repository::{self, HALF_AN_HOUR, age},
};
use serde_json::Value;

struct World {
    folder: TempDir,
    variables: Vec<(&'static str, String)>,
    target: String,
}

struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl World {
    fn new(purpose: &str, server: Option<&S3Server>) -> Self {
        let folder = support::scratch(purpose);
        std::fs::create_dir(folder.path().join("store")).expect("made");
        let (id, secret) = ACCESS_KEYS[0];
        let variables = server.map_or(vec![], |server| {
            server.create_bucket("backups");
            let keys = [("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)];
            let keys = keys.map(|(k, v)| (k, v.to_owned()));
            keys.into_iter().chain([("AWS_ENDPOINTS", server.endpoint())]).collect()
        });
        let target = if server.is_some() { "s3://backups@us-east-1/some/prefix/" } else { "store" };
        Self { folder, variables, target: target.into() }
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
        command.args(arguments).current_dir(self.folder.path()).env_clear().stdin(Stdio::null());
        command.env("XDG_STATE_HOME", self.folder.path().join("state")).env("TMPDIR", self.folder.path());
        let output = command.envs(self.variables.iter().map(|(k, v)| (k, v))).output().expect("the binary starts");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let code = output.status.code().unwrap_or(-1);
        let ended = Ended { code, stdout: text(output.stdout), stderr: text(output.stderr) };
        println!("tidemark {arguments:?} ended {code}\n{}{}", ended.stdout, ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{arguments:?} panicked");
        ended
    }

    /// Backs up these blocks and answers with the URL.
    fn backup(&self, blocks: &[Block]) -> String {
        Image::of(&self.folder.path().join("image"), blocks);
        let ended = self.run(&["backup", "image", "-t", &self.target, "-v", "web-1", "-q"]);
        assert_eq!(ended.code, 0);
        ended.stdout.trim().to_owned()
    }

    fn listed(&self) -> usize {
        self.run(&["ls", &self.target, "--json"]).stdout.lines().count()
    }
}

fn last_json(ended: &Ended) -> Value {
    serde_json::from_str(ended.stdout.lines().last().expect("a line")).expect("JSON")
}

#[test]
fn law_10_deletion_asks_and_deletes_exactly_what_was_named() {
    let server = S3Server::start();
    for server in [None, Some(&server)] {
        let world = World::new("cli-delete", server);
        let first = world.backup(&[Block::Text(1), Block::Text(2)]);
        let second = world.backup(&[Block::Text(1), Block::Text(3)]);
        let store = server.map_or(world.folder.path().join("store"), |server| server.bucket("backups"));
        age(&store, HALF_AN_HOUR);
        let unasked = world.run(&["delete", &first]);
        assert_eq!(unasked.code, 64);
        assert!(unasked.stderr.contains("--yes"), "{}", unasked.stderr);
        let planned = last_json(&world.run(&["delete", &first, "--dry-run", "--json"]));
        assert_eq!(
            (&planned["event"], &planned["plan"]["blocksToDelete"]),
            (&"planned".into(), &1.into()),
            "{planned}"
        );
        assert_eq!(world.listed(), 2, "nothing was deleted yet");
        let deleted = world.run(&["delete", &first, "--yes", "--json"]);
        assert_eq!(deleted.code, 0);
        let deleted = last_json(&deleted);
        assert_eq!(deleted["removed"]["swept"]["blocksDeleted"], 1, "{deleted}");
        assert_eq!(world.listed(), 1);
        assert_eq!(world.run(&["restore", &second, "out", "--force"]).code, 0, "the other is whole");
        let again = world.run(&["delete", &first, "--yes"]);
        assert_eq!(again.code, 65);
        assert!(again.stderr.contains("it is not there") && again.stderr.contains("tidemark sweep"));
        let swept = world.run(&["sweep", &world.target, "--json"]);
        assert_eq!((swept.code, &last_json(&swept)["swept"]["blocksDeleted"]), (0, &0.into()));
    }
}

#[test]
fn refusals_name_the_object_and_the_cure() {
    let world = World::new("cli-refuse", None);
    let url = world.backup(&[Block::Text(1)]);
    let store = world.folder.path().join("store");
    let layout = tidemark::store::layout::VolumeLayout::new(&"web-1".parse().expect("a name"));
    let record = |name: &str| store.join(layout.backup(&name.parse().expect("a name")));
    for wrong in [&["delete", "store", "--yes"][..], &["delete", "--yes"], &["sweep"]] {
        assert_eq!(world.run(wrong).code, 64, "{wrong:?}");
    }
    // Longhorn's own: only when somebody insists.
    let text = r#"{"Name":"backup-theirs","VolumeName":"web-1","CreatedTime":"2026-11-23T05:47:02Z","CompressionMethod":"lz4"}"#;
    std::fs::write(record("backup-theirs"), text).expect("written");
    let theirs = "store?backup=backup-theirs&volume=web-1";
    let refused = world.run(&["delete", theirs, "--yes"]);
    assert!(refused.code == 65 && refused.stderr.contains("--foreign"), "{}", refused.stderr);
    // A record that cannot be read holds every block, and says how to go on.
    std::fs::write(record("backup-theirs"), "{").expect("written");
    let held = world.run(&["sweep", "store"]);
    assert!(held.code == 65 && held.stderr.contains("backup_backup-theirs.cfg"), "{}", held.stderr);
    assert_eq!(world.run(&["sweep", "store", "--dry-run"]).code, 0, "a plan may be refused and printed");
    assert_eq!(world.run(&["delete", theirs, "--yes"]).code, 65);
    assert_eq!(world.run(&["delete", theirs, "--yes", "--foreign"]).code, 0);
    // A backup that runs holds the volume.
    let lock = r#"{"Name":"lock-0123456789abcdef","Type":1,"Acquired":true}"#;
    let locks = store.join(layout.locks());
    std::fs::create_dir_all(&locks).expect("made");
    std::fs::write(locks.join("lock-0123456789abcdef.lck"), lock).expect("written");
    for held in [&["sweep", "store"][..], &["delete", &url, "--yes"]] {
        let held = world.run(held);
        assert_eq!(held.code, 69);
        assert!(held.stderr.contains("lock-0123456789abcdef.lck"), "{}", held.stderr);
    }
    age(&store, HALF_AN_HOUR);
    assert_eq!(world.run(&["delete", &url, "--yes"]).code, 0, "its holder is dead");
    assert_eq!(world.listed(), 0);
    let _ = repository::volume();
}
