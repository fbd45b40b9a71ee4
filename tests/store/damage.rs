//! The damage matrix: {delete, truncate, flip a bit, swap two, empty} × {block, record, volume.cfg, lock, journal, marker},
//! on a directory and behind a real S3 server. After each: a verification names it (or the table says why it cannot),
//! a restore is right or complains precisely, and the next backup repairs, refuses with the cure, or does without.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::support::{self, Block, Image, S3Server, decorators::holding_blocks, image::difference, job};
use futures::{StreamExt, stream};
use tidemark::{
    model::{AttemptId, BackupName, BlockName, JobSpec, VolumeName, job::Mode},
    restore::{self, Locking, RestoreJob, RestoreProgress},
    store::{
        client::Client,
        layout::VolumeLayout,
        objects::Objects,
        record::RecordId,
        scratch::Scratch,
        verify::{self, Depth, FindingKind, FindingKind::*, Order, Severity, Verified},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Object {
    Block,
    Record,
    Config,
    Lock,
    Journal,
    Marker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Delete,
    Truncate,
    Flip,
    Swap,
    Empty,
}

/// What shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shows {
    /// A listing and the small objects do.
    Listing(FindingKind),
    /// Only reading the blocks does.
    Reading(FindingKind),
    /// Nothing does, and nothing needs to: it costs reading at most.
    Nothing,
}

/// What the next backup of the volume does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Completes, and can be restored.
    Right,
    /// The same, and every older backup is whole again.
    Heals,
    /// Does not begin; the words name the cure.
    Refuses(&'static str),
    /// Completes and names what only reading shows to be bad: mode Full heals it, and every older backup.
    OnlyFullHeals,
}

/// The table. What it says is what docs/cli.md says.
fn expected(object: Object, damage: Damage) -> (Shows, Next) {
    use Damage::*;
    use Shows::*;
    match (object, damage) {
        (Object::Block, Delete) => (Listing(BlockMissing), Next::Heals),
        (Object::Block, Empty) => (Listing(BlockSizeImplausible), Next::Heals),
        (Object::Block, Truncate | Flip | Swap) => (Reading(BlockCorrupt), Next::OnlyFullHeals),
        (Object::Record, Delete) => (Listing(RecordMissing), Next::Right),
        (Object::Record, Swap) => (Listing(RecordInconsistent), Next::Right),
        (Object::Record, Truncate | Flip | Empty) => (Listing(RecordUnreadable), Next::Right),
        (Object::Config, Delete) => (Listing(VolumeConfigMissing), Next::Refuses("Restore the object")),
        (Object::Config, Truncate | Flip | Swap | Empty) => {
            (Listing(VolumeConfigDamaged), Next::Refuses("put a copy of the object back"))
        }
        (Object::Lock, Delete) => (Nothing, Next::Right),
        (Object::Lock, Swap) => (Listing(LockUnreadable), Next::Right),
        (Object::Lock, Truncate | Flip | Empty) => (Listing(LockUnreadable), Next::Refuses("delete the object if no")),
        // The last segment: only the one who wrote it knew of it.
        (Object::Journal, Delete) => (Nothing, Next::Right),
        (Object::Journal, Truncate | Flip | Swap | Empty) => (Listing(JournalDamaged), Next::Right),
        (Object::Marker, Delete) => (Listing(MarkerMissing), Next::Right),
        (Object::Marker, Truncate | Flip | Swap | Empty) => (Listing(MarkerDamaged), Next::Right),
    }
}

const OBJECTS: [Object; 6] =
    [Object::Block, Object::Record, Object::Config, Object::Lock, Object::Journal, Object::Marker];
const DAMAGES: [Damage; 5] = [Damage::Delete, Damage::Truncate, Damage::Flip, Damage::Swap, Damage::Empty];

fn volume() -> VolumeName {
    "pvc-test".parse().expect("valid")
}

fn layout() -> VolumeLayout {
    VolumeLayout::new(&volume())
}

fn attempt(n: u64) -> AttemptId {
    AttemptId::new(n, [n as u8; 10])
}

/// Two complete backups, two that were cut off, two foreign locks, and a second volume.
struct Template {
    folder: support::TempDir,
    a: Image,
    b: Image,
    cut: [Image; 2],
}

const COMMON: Block = Block::Text(1);

impl Template {
    async fn new() -> Self {
        let folder = support::scratch("damage");
        let store = folder.path().join("store");
        std::fs::create_dir(&store).expect("made");
        let image = |name: &str, blocks: &[Block]| Image::of(&folder.path().join(name), blocks);
        let a = image("a", &[COMMON, Block::Random(2), Block::Hole, Block::Text(3)]);
        let b = image("b", &[COMMON, Block::Random(2), Block::Hole, Block::Text(4)]);
        let cut = [10, 20].map(|n| image(&format!("cut{n}"), &(n..n + 6).map(Block::Text).collect::<Vec<_>>()));
        let objects = job::directory(&store);
        for (image, uid, n) in [(&a, "a", 1), (&b, "b", 2)] {
            let ran = job::run(job::job(image.path(), uid, n), objects.clone()).await;
            assert!(ran.completed(), "{:?}", ran.last);
        }
        let other = JobSpec { volume: "pvc-other".parse().expect("valid"), ..job::job(a.path(), "o", 3) };
        assert!(job::run(other, objects.clone()).await.completed());
        for (image, uid, n) in [(&cut[0], "c", 4), (&cut[1], "d", 5)] {
            cut_off(job::job(image.path(), uid, n), objects.clone()).await;
        }
        for name in ["lock-aaaaaaaaaaaaaaaa", "lock-bbbbbbbbbbbbbbbb"] {
            let path = store.join(layout().locks()).join(format!("{name}.lck"));
            std::fs::create_dir_all(path.parent().expect("in a folder")).expect("made");
            std::fs::write(path, format!(r#"{{"Name":"{name}","Type":1,"Acquired":true}}"#)).expect("written");
        }
        Self { folder, a, b, cut }
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// The key of the object to damage, and of another of its kind.
    fn keys(&self, object: Object) -> (String, String) {
        let layout = layout();
        let block = |block: Block| layout.block(&BlockName::of(&block.bytes(2 << 20)));
        let record = |uid, n| layout.backup(&BackupName::of_attempt(uid, &attempt(n)));
        let marker = |n| layout.backup(&BackupName::of_marker(&attempt(n)));
        let other = VolumeLayout::new(&"pvc-other".parse().expect("valid"));
        match object {
            Object::Block => (block(COMMON), block(Block::Text(4))),
            Object::Record => (record("b", 2), record("a", 1)),
            Object::Config => (layout.config(), other.config()),
            Object::Lock => {
                let key = |name: &str| format!("{}{name}.lck", layout.locks());
                (key("lock-aaaaaaaaaaaaaaaa"), key("lock-bbbbbbbbbbbbbbbb"))
            }
            Object::Journal => (layout.segment("c", &attempt(4), 0), layout.segment("d", &attempt(5), 0)),
            Object::Marker => (marker(4), marker(5)),
        }
    }
}

/// An attempt that is cancelled when two blocks are acknowledged and all others on their way: it leaves a marker and a
/// journal.
async fn cut_off(spec: JobSpec, objects: Arc<dyn Objects>) {
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let held = holding_blocks(objects, 2, CancellationToken::new());
    let ran = job::run_watched(spec, held, cancel, move |report| {
        if report.backup().acknowledged_blocks == 2 {
            stop.cancel();
        }
    });
    let last = ran.await.last;
    assert_eq!(last.backup().acknowledged_blocks, 2, "{last:?}");
}

/// A store that was made from the template and may be damaged.
struct World<'a> {
    template: &'a Template,
    root: PathBuf,
    objects: Arc<dyn Objects>,
}

impl World<'_> {
    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn damage(&self, damage: Damage, (key, other): (&str, &str)) {
        let path = self.path(key);
        let mut bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{key}: {e}"));
        match damage {
            Damage::Delete => return std::fs::remove_file(path).expect("removed"),
            Damage::Truncate => bytes.truncate(bytes.len() / 2),
            // The first byte of small objects, for it breaks them surely; of a block one in the middle.
            Damage::Flip => {
                let at = if bytes.len() > 100_000 { bytes.len() / 2 } else { 0 };
                bytes[at] ^= 4;
            }
            Damage::Swap => {
                let others = std::fs::read(self.path(other)).unwrap_or_else(|e| panic!("{other}: {e}"));
                std::fs::write(self.path(other), &bytes).expect("written");
                bytes = others;
            }
            Damage::Empty => bytes.clear(),
        }
        std::fs::write(path, bytes).expect("written");
    }

    fn client(&self) -> Client {
        Client::new(self.objects.clone(), Duration::from_secs(300), Duration::from_secs(600))
    }

    async fn verify(&self, depth: Depth) -> Verified {
        let order = Order { volume: volume(), backup: None, depth, concurrency: 4 };
        let scratch = Scratch::new(&std::env::temp_dir());
        verify::verify(&self.client(), &order, &scratch, &mut |_| {}).await.expect("the store answers")
    }

    /// Restores one of the two complete backups: `Err` with what was said.
    async fn restore(&self, uid: &str, n: u64) -> Result<(), String> {
        self.restore_with(uid, n, Locking::Without).await
    }

    async fn restore_with(&self, uid: &str, n: u64, locking: Locking) -> Result<(), String> {
        let folder = support::scratch("damage-restored");
        let out = folder.path().join("restored");
        let record = RecordId { volume: volume(), backup: BackupName::of_attempt(uid, &attempt(n)) };
        let job = RestoreJob { locking, ..RestoreJob::new(self.client(), record, out.clone(), attempt(60 + n)) };
        let (progress, _) = watch::channel(RestoreProgress::default());
        restore::run(job, progress, CancellationToken::new()).await.map_err(|error| error.to_string())?;
        let image = if uid == "a" { &self.template.a } else { &self.template.b };
        assert_eq!(difference(image.path(), &out), None, "a restore that says nothing is right: {uid}");
        Ok(())
    }

    async fn backup(&self, image: &Image, uid: &str, n: u64, mode: Mode) -> job::Ran {
        job::run(job::with_mode(job::job(image.path(), uid, n), mode), self.objects.clone()).await
    }

    async fn whole(&self, ran: &job::Ran, image: &Image) -> Option<String> {
        assert!(ran.completed(), "{:?}", ran.last.failure);
        job::compare(&self.objects, "pvc-test", &ran.record(), image.path()).await
    }
}

fn names(verified: &Verified, kind: FindingKind, key: &str) -> bool {
    verified.findings.listed().any(|finding| finding.kind == kind && finding.object == key)
}

async fn check(world: &World<'_>, object: Object, damage: Damage) {
    let (key, other) = world.template.keys(object);
    let (shows, next) = expected(object, damage);
    world.damage(damage, (&key, &other));
    let (listing, full) = (world.verify(Depth::Listing).await, world.verify(Depth::Full).await);
    let what = format!("{object:?} {damage:?}: {listing:#?}\n{full:#?}");
    match shows {
        Shows::Listing(kind) => assert!(names(&listing, kind, &key) && names(&full, kind, &key), "{what}"),
        Shows::Reading(kind) => {
            assert!(!listing.findings.is_damaged() && names(&full, kind, &key), "{what}");
            let is_both = damage != Damage::Swap || names(&full, kind, &other);
            assert!(is_both, "the other one: {what}");
        }
        Shows::Nothing => assert!(listing.findings.is_empty() && full.findings.is_empty(), "{what}"),
    }
    check_restores(world, object, (damage, &key, &other)).await;
    check_next(world, (object, damage, next)).await;
}

async fn check_restores(world: &World<'_>, object: Object, (damage, key, other): (Damage, &str, &str)) {
    for (uid, n) in [("a", 1), ("b", 2)] {
        let restored = world.restore(uid, n).await;
        let what = format!("{object:?} {damage:?}, restore of {uid}: {restored:?}");
        match object {
            Object::Block => {
                let said = restored.expect_err(&what);
                // Of two damaged blocks either may be met first.
                let is_precise = (said.contains(key) && said.contains("offset 0"))
                    || (damage == Damage::Swap && said.contains(other) && said.contains("offset 6291456"));
                assert!(is_precise, "{what}");
            }
            Object::Record if uid == "b" || damage == Damage::Swap => {
                let said = restored.expect_err(&what);
                let own = layout().backup(&BackupName::of_attempt(uid, &attempt(n)));
                assert!(said.contains(&own), "{what}");
            }
            _ => restored.expect(&what),
        }
    }
    // A restore that takes the volume's lock does not begin while another cannot be read.
    if object == Object::Lock && matches!(damage, Damage::Truncate | Damage::Flip | Damage::Empty) {
        let locking = Locking::Shared { attempt: attempt(70), timing: job::quick() };
        let said = world.restore_with("a", 1, locking).await.expect_err("held");
        assert!(said.contains(key) && said.contains("delete the object if no"), "{said}");
    }
}

async fn check_next(world: &World<'_>, (object, damage, next): (Object, Damage, Next)) {
    let image = &world.template.b;
    let ran = world.backup(image, "next", 9, Mode::Incremental).await;
    let what = format!("{object:?} {damage:?}, the next backup: {:?}", ran.last);
    match next {
        Next::Right | Next::Heals => {
            assert_eq!(world.whole(&ran, image).await, None, "{what}");
            let after = world.verify(Depth::Full).await;
            let own = layout().backup(&ran.record().parse().expect("valid"));
            assert!(!after.findings.listed().any(|f| f.object == own), "{after:#?}");
            if next == Next::Heals {
                assert_eq!(after.findings.of_severity(Severity::Damage), 0, "{after:#?}");
                world.restore("a", 1).await.expect("healed");
                world.restore("b", 2).await.expect("healed");
            }
        }
        Next::Refuses(cure) => {
            let failure = ran.last.failure.clone().expect(&what);
            let (key, _) = world.template.keys(object);
            assert!(failure.message.contains(cure) && failure.message.contains(&key), "{what}");
        }
        Next::OnlyFullHeals => {
            assert!(world.whole(&ran, image).await.is_some(), "{what}");
            let full = world.verify(Depth::Full).await;
            let needs = |f: &verify::Finding| f.places.iter().any(|place| place.backup.as_str() == ran.record());
            assert!(full.findings.listed().any(needs), "{full:#?}");
            // The oldest backup's own block is gone from the volume: its image heals it.
            for (image, uid, n) in [(image, "full-b", 10), (&world.template.a, "full-a", 11)] {
                let healed = world.backup(image, uid, n, Mode::Full).await;
                assert_eq!(world.whole(&healed, image).await, None, "{what}");
            }
            let after = world.verify(Depth::Full).await;
            assert_eq!(after.findings.of_severity(Severity::Damage), 0, "{after:#?}");
            world.restore("a", 1).await.expect("healed");
            world.restore("b", 2).await.expect("healed");
        }
    }
    // The attempts that were cut off go on, whatever became of their journals and markers.
    if matches!(object, Object::Journal | Object::Marker) {
        for (image, uid, n) in [(&world.template.cut[0], "c", 12), (&world.template.cut[1], "d", 13)] {
            let ran = world.backup(image, uid, n, Mode::Incremental).await;
            assert_eq!(world.whole(&ran, image).await, None, "{object:?} {damage:?}: attempt 2 of {uid}");
        }
    }
}

/// Every damage, each to a copy of the template's store; some at once, for a backup waits most of its time.
async fn check_all<P>(place: impl Fn() -> P, objects: impl Fn(&P) -> (PathBuf, Arc<dyn Objects>)) {
    let template = Template::new().await;
    let cells = OBJECTS.into_iter().flat_map(|object| DAMAGES.into_iter().map(move |damage| (object, damage)));
    let check_one = async |(object, damage)| {
        let place = place();
        let (root, objects) = objects(&place);
        support::copy_folder(&template.store(), &root);
        check(&World { template: &template, root, objects }, object, damage).await;
    };
    stream::iter(cells).for_each_concurrent(4, check_one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn law_7_every_damage_in_a_directory_is_named_and_nothing_is_built_on_it() {
    check_all(|| support::scratch("damaged"), |store| (store.path().to_owned(), job::directory(store.path()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn law_7_every_damage_behind_s3_is_named_and_nothing_is_built_on_it() {
    check_all(S3Server::start, |server| (server.bucket("backups").join("some/prefix"), job::s3(server))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn law_7_a_bit_flipped_anywhere_in_a_record_is_noticed() {
    let template = Template::new().await;
    let store = support::scratch("flipped");
    support::copy_folder(&template.store(), store.path());
    let world = World { template: &template, root: store.path().to_owned(), objects: job::directory(store.path()) };
    let (key, _) = template.keys(Object::Record);
    let whole = std::fs::read(world.path(&key)).expect("the record");
    let label = b"tidemark.dev/record-sha256";
    let label_at = whole.windows(label.len()).position(|w| w == label).expect("ours has one");
    // A step of 3 visits every third byte; TIDEMARK_SOAK=1 visits them all.
    let step = support::environment("TIDEMARK_SOAK").map_or(3, |_| 1);
    let mut silent = 0;
    for at in (0..whole.len()).step_by(step) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        std::fs::write(world.path(&key), &flipped).expect("written");
        let seen = world.verify(Depth::Listing).await;
        if seen.findings.listed().any(|finding| finding.object == key) {
            continue;
        }
        // Only the name of the label that holds the checksum may be lost: everything else is as it was.
        silent += 1;
        let is_name = (label_at..label_at + label.len()).contains(&at);
        assert!(is_name, "byte {at} of {}: {seen:#?}\n{}", whole.len(), String::from_utf8_lossy(&flipped));
        world.restore("b", 2).await.expect("nothing else was touched");
    }
    println!("{silent} of {} flips are silent and harmless", whole.len().div_ceil(step));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn law_7_a_bit_flipped_anywhere_in_volume_cfg_is_noticed_or_does_no_harm() {
    let template = Template::new().await;
    let (key, _) = template.keys(Object::Config);
    let whole = std::fs::read(template.store().join(&key)).expect("the config");
    let mut silent = 0;
    // A step of 9 visits every ninth byte; TIDEMARK_SOAK=1 visits them all.
    let step = support::environment("TIDEMARK_SOAK").map_or(9, |_| 1);
    for at in (0..whole.len()).step_by(step) {
        let store = support::scratch("flipped");
        support::copy_folder(&template.store(), store.path());
        let world = World { template: &template, root: store.path().to_owned(), objects: job::directory(store.path()) };
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        std::fs::write(world.path(&key), &flipped).expect("written");
        let seen = world.verify(Depth::Listing).await;
        if seen.findings.is_damaged() {
            continue;
        }
        silent += 1;
        let what = format!("byte {at}: {}", String::from_utf8_lossy(&flipped));
        world.restore("b", 2).await.expect(&what);
        let ran = world.backup(&template.b, "next", 9, Mode::Incremental).await;
        assert_eq!(world.whole(&ran, &template.b).await, None, "{what}");
    }
    println!("{silent} of {} flips are silent and harmless", whole.len().div_ceil(step));
}
