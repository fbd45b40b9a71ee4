//! Verification, healing and usage: what they say, what they cost, and that a store which does not answer proves nothing.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{
    self, Block, Image,
    decorators::{Fate, Judged},
    job,
};
use tidemark::{
    model::{
        AttemptId, BackupName, BlockName, FailureReason, Outcome, Report, Verdict, VerifyDepth, VolumeName, job::Source,
    },
    store::{
        client::Client,
        error::{ErrorKind, StoreError},
        layout::VolumeLayout,
        objects::Objects,
        record::{RecordId, VolumeConfig},
        scratch::Scratch,
        usage,
        verify::{self, Depth, FindingKind, Order, Severity, Share, Verified},
    },
    worker::heal::{self, HealError, HealJob, Healed},
};
use tokio_util::sync::CancellationToken;

const COMMON: [Block; 3] = [Block::Text(1), Block::Random(2), Block::Text(1)];

fn volume() -> VolumeName {
    "pvc-test".parse().expect("valid")
}

fn layout() -> VolumeLayout {
    VolumeLayout::new(&volume())
}

fn record(uid: &str, n: u64) -> BackupName {
    BackupName::of_attempt(uid, &AttemptId::new(n, [n as u8; 10]))
}

fn block_key(block: Block) -> String {
    layout().block(&BlockName::of(&block.bytes(2 << 20)))
}

/// A directory with two backups: `a` of the common blocks and Text(3), `b` of the common blocks and Text(4), Text(5).
struct World {
    folder: support::TempDir,
    objects: Arc<dyn Objects>,
    a: Image,
    b: Image,
}

impl World {
    async fn new() -> Self {
        let folder = support::scratch("verify");
        std::fs::create_dir(folder.path().join("store")).expect("made");
        let objects = job::directory(&folder.path().join("store"));
        let image = |name, own: &[Block]| Image::of(&folder.path().join(name), &[&COMMON, own].concat());
        let (a, b) = (image("a", &[Block::Text(3)]), image("b", &[Block::Text(4), Block::Text(5)]));
        for (image, uid, n) in [(&a, "a", 1), (&b, "b", 2)] {
            let ran = job::run(job::job(image.path(), uid, n), objects.clone()).await;
            assert!(ran.completed(), "{:?}", ran.last);
        }
        Self { folder, objects, a, b }
    }

    /// The same once more, in a store of its own.
    fn again(&self) -> (support::TempDir, Arc<dyn Objects>) {
        let folder = support::scratch("again");
        support::copy_folder(&self.store(), folder.path());
        let objects = job::directory(folder.path());
        (folder, objects)
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn path(&self, key: &str) -> PathBuf {
        self.store().join(key)
    }

    fn flip(&self, block: Block) {
        let path = self.path(&block_key(block));
        let mut bytes = std::fs::read(&path).expect("the object");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).expect("written");
    }

    async fn verify(&self, depth: Depth) -> Verified {
        verify_with(self.objects.clone(), None, depth).await.expect("the store answers")
    }

    async fn heal(&self, objects: Arc<dyn Objects>, uid: &str, n: u64, image: &Path) -> Result<Healed, HealError> {
        let job = HealJob {
            client: client(objects),
            record: RecordId { volume: volume(), backup: record(uid, n) },
            source: Source { path: image.to_owned(), root: None, bytes: None, point: None },
            concurrency: 4,
            scratch: scratch(),
            timing: job::quick(),
            uid: "healer".into(),
            attempt: AttemptId::new(77, [7; 10]),
        };
        heal::heal(&job, &mut |_| {}).await
    }
}

fn scratch() -> Scratch {
    Scratch::new(&std::env::temp_dir())
}

fn client(objects: Arc<dyn Objects>) -> Client {
    Client::new(objects, Duration::from_secs(60), Duration::from_secs(600))
}

async fn verify_with(
    objects: Arc<dyn Objects>,
    backup: Option<BackupName>,
    depth: Depth,
) -> Result<Verified, StoreError> {
    let order = Order { volume: volume(), backup, depth, concurrency: 3 };
    verify::verify(&client(objects), &order, &scratch(), &mut |_| {}).await
}

#[tokio::test]
async fn a_whole_volume_has_no_findings_and_every_block_is_read_once() {
    let world = World::new().await;
    let seen = world.verify(Depth::Full).await;
    assert!(seen.findings.is_empty(), "{seen:#?}");
    // Nine places; Text(1) stands twice in each.
    assert_eq!((seen.records, seen.blocks_named, seen.blocks_present, seen.blocks_read), (2, 9, 5, 5), "{seen:#?}");
    let one = verify_with(world.objects.clone(), Some(record("a", 1)), Depth::Full).await.expect("answers");
    assert_eq!((one.records, one.blocks_named, one.blocks_read), (1, 4, 3), "{one:#?}");
    let gone = verify_with(world.objects.clone(), Some(record("x", 9)), Depth::Listing).await.expect("answers");
    assert_eq!(gone.findings.count(FindingKind::RecordMissing), 1, "{gone:#?}");
}

#[tokio::test]
async fn a_sample_reads_what_it_says_and_the_same_seed_reads_the_same() {
    let world = World::new().await;
    let sample = |seed| Depth::Sample { share: Share::Blocks(2), seed };
    let read = async |seed| {
        let judged = Judged::new(world.objects.clone(), |_| Fate::Perform);
        let seen = verify_with(judged.clone(), None, sample(seed)).await.expect("answers");
        assert_eq!(seen.blocks_read, 2, "{seen:#?}");
        let mut keys: Vec<String> =
            judged.log().into_iter().filter(|c| c.action == "GET" && c.key.ends_with(".blk")).map(|c| c.key).collect();
        keys.sort();
        keys
    };
    let first = read(1).await;
    assert_eq!(first, read(1).await);
    let mut others = Vec::new();
    for seed in 2..12 {
        others.push(read(seed).await);
    }
    assert!(others.iter().any(|other| *other != first), "every seed reads the same: {others:?}");
}

#[tokio::test]
async fn law_7_a_verification_that_could_not_be_done_is_an_error_and_no_finding() {
    let world = World::new().await;
    for n in 0.. {
        let failing = Judged::new(world.objects.clone(), move |call| match call.number == n {
            true => Fate::Fail(ErrorKind::Stalled),
            false => Fate::Perform,
        });
        match verify_with(failing.clone(), None, Depth::Full).await {
            Err(error) => assert_eq!(error.kind, ErrorKind::Stalled, "call {n}: {error}"),
            Ok(seen) => {
                let calls = failing.log().len() as u64;
                assert!(calls <= n, "call {n} failed and was not missed: {seen:#?}");
                assert!(n > 10, "only {n} calls");
                break;
            }
        }
    }
}

/// Deletes backup `b` as a sweep does: record, volume.cfg, then the blocks that no record names.
fn delete_b(store: &Path) {
    std::fs::remove_file(store.join(layout().backup(&record("b", 2)))).expect("the record");
    let path = store.join(layout().config());
    let mut config: VolumeConfig = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("ours");
    config.last_backup_name = record("a", 1).to_string();
    std::fs::write(path, config.encode()).expect("written");
    for block in [Block::Text(4), Block::Text(5)] {
        std::fs::remove_file(store.join(block_key(block))).expect("the block");
    }
}

#[tokio::test]
async fn law_7_a_backup_that_is_deleted_while_it_is_verified_is_no_damage() {
    let mut told_apart = 0;
    let world = World::new().await;
    for n in 0.. {
        let (folder, objects) = world.again();
        let (store, once) = (folder.path().to_owned(), Mutex::new(false));
        let deleting = Judged::new(objects, move |call| {
            if call.number == n && !std::mem::replace(&mut *once.lock().expect("no holder panics"), true) {
                delete_b(&store);
            }
            Fate::Perform
        });
        let seen = verify_with(deleting.clone(), None, Depth::Full).await.expect("the store answers");
        assert!(seen.findings.is_empty(), "deleted before call {n}: {seen:#?}\n{:?}", deleting.log());
        told_apart += seen.deleted_meanwhile;
        if deleting.log().len() as u64 <= n {
            assert!(told_apart > 2 && n > 10, "{told_apart} of {n}");
            break;
        }
    }
}

#[tokio::test]
async fn heal_sends_exactly_the_bad_blocks_and_reads_them_back() {
    let world = World::new().await;
    world.flip(Block::Text(1));
    std::fs::remove_file(world.path(&block_key(Block::Text(4)))).expect("removed");
    std::fs::write(world.path(&block_key(Block::Text(5))), "").expect("emptied");
    let before = world.verify(Depth::Full).await;
    assert_eq!(before.findings.of_severity(Severity::Damage), 6, "{before:#?}");
    // Places: Text(1) twice in each backup, and the two of b.
    let judged = Judged::new(world.objects.clone(), |_| Fate::Perform);
    let healed = world.heal(judged.clone(), "b", 2, world.b.path()).await.expect("healed");
    assert_eq!((healed.bad_blocks, healed.healed_blocks, healed.objects_sent), (4, 4, 3), "{healed:?}");
    let mut sent: Vec<String> = judged.log().into_iter().filter(|c| c.is_block_put()).map(|c| c.key).collect();
    sent.sort();
    let mut bad = [Block::Text(1), Block::Text(4), Block::Text(5)].map(block_key);
    bad.sort();
    assert_eq!(sent, bad);
    assert!(!judged.log().iter().any(|c| c.is_record_put() || c.key == layout().config() && c.action == "PUT"));
    let after = world.verify(Depth::Full).await;
    assert!(after.findings.is_empty() && after.in_progress == 0, "no marker stays behind: {after:#?}");
    assert!(!world.path(&layout().locks()).exists(), "no lock stays behind");
    for (uid, n, image) in [("a", 1, &world.a), ("b", 2, &world.b)] {
        let record = record(uid, n).to_string();
        assert_eq!(job::compare(&world.objects, "pvc-test", &record, image.path()).await, None);
    }
    let again = world.heal(world.objects.clone(), "b", 2, world.b.path()).await.expect("nothing to do");
    assert_eq!((again.bad_blocks, again.objects_sent), (0, 0));
}

#[tokio::test]
async fn law_7_heal_takes_no_other_bytes_for_the_blocks() {
    let world = World::new().await;
    world.flip(Block::Text(4));
    world.flip(Block::Text(5));
    world.b.write(3, Block::Text(99));
    let healed = world.heal(world.objects.clone(), "b", 2, world.b.path()).await.expect("as far as it goes");
    assert_eq!((healed.healed_blocks, healed.unhealed_blocks), (1, 1), "{healed:?}");
    let left = &healed.unhealed[0];
    assert_eq!((left.offset, &left.object), (3 << 21, &block_key(Block::Text(4))));
    assert!(left.seen.contains("holds other bytes at offset 6291456 by now"), "{left:?}");
    let after = world.verify(Depth::Full).await;
    assert_eq!(after.findings.count(FindingKind::BlockCorrupt), 1, "{after:#?}");
    // A record that cannot be read to its end says nothing about its blocks.
    std::fs::write(world.path(&layout().backup(&record("b", 2))), "{").expect("written");
    let error = world.heal(world.objects.clone(), "b", 2, world.b.path()).await.expect_err("refused").to_string();
    assert!(error.contains("does not mend records"), "{error}");
}

#[tokio::test]
async fn a_heal_that_the_store_cuts_off_leaves_the_rest_for_the_next() {
    let world = World::new().await;
    world.flip(Block::Text(4));
    world.flip(Block::Text(5));
    for n in 0.. {
        let (_folder, objects) = world.again();
        let crashing = Judged::new(objects.clone(), move |call| match call.number == n {
            true => Fate::CrashAfter,
            false => Fate::Perform,
        });
        let first = tokio::select! {
            healed = world.heal(crashing.clone(), "b", 2, world.b.path()) => Some(healed),
            () = crashing.crashed() => None,
        };
        world.heal(objects.clone(), "b", 2, world.b.path()).await.expect("the second one");
        let after = verify_with(objects, None, Depth::Full).await.expect("answers");
        assert_eq!(after.findings.of_severity(Severity::Damage), 0, "crash after call {n}: {after:#?}");
        if first.is_some() {
            assert!(n > 20, "a heal makes more than {n} calls");
            break;
        }
    }
}

#[tokio::test]
async fn usage_says_what_deleting_a_backup_would_free() {
    let world = World::new().await;
    let stray = Block::Random(50);
    let size = |block| std::fs::metadata(world.path(&block_key(block))).expect("the object").len();
    let of = |blocks: &[Block]| blocks.iter().map(|block| size(*block)).sum::<u64>();
    let all = of(&[Block::Text(1), Block::Random(2), Block::Text(3), Block::Text(4), Block::Text(5)]);
    std::fs::create_dir_all(world.path(&block_key(stray)).parent().expect("a folder")).expect("made");
    std::fs::write(world.path(&block_key(stray)), vec![7; 5000]).expect("written");
    let usage = usage::usage(&client(world.objects.clone()), &volume(), &scratch()).await.expect("answers");
    let named = |uid, n| usage.backups.iter().find(|b| b.backup == record(uid, n)).expect("listed");
    let unique = [("a", 1), ("b", 2)].map(|(uid, n)| (named(uid, n).unique_bytes, named(uid, n).logical_bytes));
    let expected = [(of(&[Block::Text(3)]), 4 << 21), (of(&[Block::Text(4), Block::Text(5)]), 5 << 21)];
    assert_eq!(unique, expected, "{usage:#?}");
    assert_eq!((usage.stored_bytes, usage.unreferenced_bytes), (all + 5000, Some(5000)), "{usage:#?}");
    std::fs::write(world.path(&layout().backup(&record("b", 2))), "{").expect("written");
    let blind = usage::usage(&client(world.objects.clone()), &volume(), &scratch()).await.expect("answers");
    assert_eq!((blind.unreferenced_bytes, blind.unreadable.len()), (None, 1), "law 7: {blind:#?}");
}

#[tokio::test]
async fn law_4_completed_is_told_before_its_verification_whose_verdict_follows() {
    let world = World::new().await;
    let job = |n| job::with_task(job::job(world.b.path(), "v", n), |task| task.verify = VerifyDepth::Full);
    // What a verification asks for first waits until the report before it was seen.
    let gate = CancellationToken::new();
    let held = gate.clone();
    let waiting =
        Judged::new(world.objects.clone(), move |call| match call.action == "LIST" && call.key == layout().root() {
            true => Fate::Until(held.clone()),
            false => Fate::Perform,
        });
    let told = |report: &Report| {
        if report.outcome.is_some() {
            gate.cancel()
        }
    };
    let whole = job::run_watched(job(11), waiting, CancellationToken::new(), told).await;
    let verdict = |ran: &job::Ran| ran.last.verification.clone().expect("a verdict");
    assert!(whole.completed() && verdict(&whole).verdict == Verdict::Passed, "{:?}", whole.last);
    let first = whole.reports.iter().find(|r| r.outcome.is_some()).expect("an outcome");
    assert!(first.verification.as_ref().is_some_and(|v| v.verdict == Verdict::Running), "{first:?}");
    // Reused by its listing, and bad: only reading shows it.
    world.flip(Block::Text(4));
    let damaged = job::run(job(12), world.objects.clone()).await;
    let said = verdict(&damaged);
    assert!(damaged.completed() && said.verdict == Verdict::Damaged, "{:?}", damaged.last);
    assert!(said.message.contains(&block_key(Block::Text(4))) && said.message.contains("offset 6291456"), "{said:?}");
    assert!(said.message.contains("mode Full"), "the cure: {said:?}");
    // A store that gives out after the record has proved nothing.
    let failing =
        Judged::new(world.objects.clone(), |call| match call.action == "LIST" && call.key == layout().root() {
            true => Fate::Fail(ErrorKind::Refused(FailureReason::BucketMissing)),
            false => Fate::Perform,
        });
    let not_done = job::run(job(13), failing).await;
    let said = verdict(&not_done);
    assert!(not_done.completed() && said.verdict == Verdict::NotDone, "{:?}", not_done.last);
    assert!(said.message.contains("proves nothing"), "{said:?}");
    assert!(matches!(not_done.last.outcome, Some(Outcome::Completed { .. })));
}

/// The real binary: its exit code, standard output and standard error.
fn tidemark(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.args(arguments).current_dir(folder).env_clear().env("TMPDIR", folder).stdin(Stdio::null());
    let ended = command.output().expect("the binary starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let (out, err) = (text(ended.stdout), text(ended.stderr));
    println!("tidemark {arguments:?}: {:?}\n{out}{err}", ended.status);
    assert!(!err.contains("panicked"));
    (ended.status.code().unwrap_or(-1), out, err)
}

#[tokio::test]
async fn the_command_line_names_damage_with_its_cure_heals_it_and_says_what_it_takes() {
    let world = World::new().await;
    let folder = world.folder.path();
    let url = format!("file://{}?backup={}&volume=pvc-test", world.store().display(), record("b", 2));
    let (code, _, told) = tidemark(folder, &["verify", "store", "--full"]);
    assert!(code == 0 && told.contains("nothing is damaged") && told.contains("2 records, 9 blocks named"), "{told}");
    world.flip(Block::Text(4));
    let (code, _, told) = tidemark(folder, &["verify", "store"]);
    assert!(code == 0 && told.contains("no block read"), "a listing cannot see it: {told}");
    let (code, out, told) = tidemark(folder, &["verify", "store", "--sample", "100%", "--seed", "5"]);
    assert!(code == 65 && told.contains("seed 5"), "{told}");
    let line = out.lines().find(|line| line.contains(&block_key(Block::Text(4)))).expect("the object is named");
    for words in ["Damage BlockCorrupt", "at offset 6291456", record("b", 2).as_str(), "Cure: `tidemark heal`"] {
        assert!(line.contains(words), "{words}: {line}");
    }
    let (code, out, _) = tidemark(folder, &["verify", &url, "--full", "--json"]);
    let events: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).expect(l)).collect();
    assert!(code == 65 && events.iter().any(|e| e["event"] == "finding" && e["places"][0]["offset"] == 6_291_456));
    assert!(events.iter().any(|e| e["event"] == "verified" && e["damaged"] == 1), "{events:?}");
    let (code, _, told) = tidemark(folder, &["heal", "a", "--backup", &url]);
    assert!(code == 65 && told.contains("does not have their bytes"), "{told}");
    let (code, _, told) = tidemark(folder, &["heal", "b", "--backup", &url]);
    assert!(code == 0 && told.contains("Healed 1 of 1 bad blocks"), "{told}");
    assert_eq!(tidemark(folder, &["verify", "store", "--full"]).0, 0);
    let (code, out, _) = tidemark(folder, &["du", "store"]);
    assert!(code == 0 && out.contains("UNIQUE") && out.contains(record("a", 1).as_str()), "{out}");
    let cases: [(&[&str], i32, &str); 6] = [
        (&["verify", "store", "--sample", "0%"], 64, "such as 5%"),
        (&["verify", "store", "--sample", "5%", "--full"], 64, "cannot be used with"),
        (&["verify", "nowhere"], 65, "create the directory"),
        (&["verify", &url, "--volume", "other"], 64, "leave one out"),
        (&["heal", "b", "--backup", "store"], 64, "names a target, not a backup"),
        (&["heal", "nothing", "--backup", &url], 66, "SourceNotFound"),
    ];
    for (arguments, code, words) in cases {
        let ended = tidemark(folder, arguments);
        assert!(ended.0 == code && ended.2.contains(words), "{arguments:?}: {ended:?}");
    }
}
