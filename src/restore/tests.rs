//! Restores from repositories made by hand, whole and damaged, into files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::*;
use crate::{
    model::{AttemptId, BlockName, BlockSize, Compression},
    store::{
        client::Client,
        codec,
        directory::Directory,
        guard::Timing,
        layout::VolumeLayout,
        record::{BlockEntry, PARAMETER_BLOCK_SIZE, RecordHead, RecordId, VolumeConfig, label, rfc3339},
    },
};

const BLOCK: usize = BlockSize::Mi2.len();

/// A repository with one backup, and what its volume holds.
struct World {
    folder: tempfile::TempDir,
    volume: Vec<u8>,
    entries: Vec<BlockEntry>,
    layout: VolumeLayout,
}

fn id() -> RecordId {
    RecordId { volume: "pvc-demo".parse().expect("valid"), backup: "backup-1".parse().expect("valid") }
}

/// Six blocks: text, a hole, noise, the text again, an allocated block of zeros, and a last one cut after 700 bytes.
fn volume() -> Vec<u8> {
    static VOLUME: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    VOLUME.get_or_init(make_volume).clone()
}

fn make_volume() -> Vec<u8> {
    let text: Vec<u8> = (0..BLOCK).map(|i| b"tide mark "[i % 10]).collect();
    let noise: Vec<u8> = (0..BLOCK / 32).flat_map(|i| BlockName::of(&i.to_le_bytes()).0).collect();
    [&text[..], &vec![0; BLOCK], &noise, &text, &vec![0; BLOCK], &noise[100..800]].concat()
}

impl World {
    fn new(method: Compression, with_label: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut world = Self { folder, volume: volume(), entries: vec![], layout: VolumeLayout::new(&id().volume) };
        for (i, block) in world.volume.clone().chunks(BLOCK).enumerate() {
            if i == 1 {
                continue;
            }
            let mut whole = block.to_vec();
            whole.resize(BLOCK, 0);
            let name = BlockName::of(&whole);
            world.entries.push(BlockEntry { offset: (i * BLOCK) as u64, block_checksum: name });
            let mut object = Vec::new();
            codec::encode(method, &whole, &mut object);
            world.write(&world.layout.block(&name), &object);
        }
        let bytes = world.volume.len().to_string();
        let labels = with_label.then(|| BTreeMap::from([(label::VOLUME_BYTES.to_owned(), bytes)]));
        let head = RecordHead {
            name: "backup-1".into(),
            created_time: "2026-11-23T05:47:02Z".into(),
            size: (world.entries.len() * BLOCK) as i64,
            compression_method: method.to_string(),
            parameters: Some(BTreeMap::from([(PARAMETER_BLOCK_SIZE.to_owned(), BLOCK.to_string())])),
            labels,
            ..RecordHead::default()
        };
        world.write_record(&head);
        world
    }

    fn write_record(&self, head: &RecordHead) {
        let mut record = Vec::new();
        head.write_to(self.entries.iter().copied().map(Ok), &mut record).expect("a Vec");
        self.write(&self.layout.backup(&id().backup), &record);
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.path().join(key)
    }

    fn write(&self, key: &str, bytes: &[u8]) {
        let path = self.path(key);
        std::fs::create_dir_all(path.parent().expect("keys have folders")).expect("made");
        std::fs::write(path, bytes).expect("written");
    }

    fn out(&self) -> PathBuf {
        self.path("out.img")
    }

    fn job(&self, damage: Damage) -> RestoreJob {
        let objects = Directory::open(self.folder.path()).expect("a folder");
        let client = Client::new(Arc::new(objects), Duration::from_secs(20), Duration::from_secs(60));
        let attempt = AttemptId::new(1, [7; 10]);
        let timing = Timing { settle: Duration::from_millis(5), ..Timing::default() };
        let locking = Locking::Shared { attempt: attempt.clone(), timing };
        RestoreJob { damage, locking, ..RestoreJob::new(client, id(), self.out(), attempt) }
    }

    /// The outcome and the last progress.
    async fn restore(&self, damage: Damage) -> (Result<RestoreSummary, RestoreError>, RestoreProgress) {
        let (progress, seen) = watch::channel(RestoreProgress::default());
        let outcome = run(self.job(damage), progress, CancellationToken::new()).await;
        (outcome, *seen.borrow())
    }
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("a file")
}

#[tokio::test]
async fn a_restore_is_the_volume_to_the_byte() {
    for method in [Compression::Lz4, Compression::Gzip, Compression::None] {
        let world = World::new(method, true);
        let (outcome, progress) = world.restore(Damage::Stop).await;
        let summary = outcome.expect("a whole repository");
        assert_eq!((summary.blocks, summary.volume_bytes), (5, world.volume.len() as u64), "{method}");
        assert!(read(&world.out()) == world.volume, "{method}");
        assert_eq!((progress.total_blocks, progress.failed_blocks), (5, 0), "{progress:?}");
        assert_eq!(progress.phase, RestorePhase::Ended);
    }
}

#[tokio::test]
async fn longhorns_record_takes_its_size_from_the_volumes_config() {
    let world = World::new(Compression::Lz4, false);
    let error = world.restore(Damage::Stop).await.0.expect_err("nothing says how large it was").to_string();
    assert!(error.contains("volume.cfg: it is not there"), "{error}");
    let size = BlockSize::Mi2.round_up(world.volume.len() as u64);
    let now = jiff::Timestamp::UNIX_EPOCH;
    let config = VolumeConfig::new(&id().volume, size, Compression::Lz4, now);
    assert_eq!(rfc3339(now), "1970-01-01T00:00:00Z");
    world.write(&world.layout.config(), &config.encode());
    world.restore(Damage::Stop).await.0.expect("a whole repository");
    let mut whole = world.volume.clone();
    whole.resize(size as usize, 0);
    assert!(read(&world.out()) == whole);
}

/// What is done to the object of the block of noise, and the words that must be said about it.
type Case = (&'static str, fn(&Path), &'static str);

fn damages() -> [Case; 5] {
    [
        ("missing", |path| std::fs::remove_file(path).expect("removed"), "not in the store"),
        ("empty", |path| std::fs::write(path, "").expect("written"), "ends within the frame's magic"),
        ("cut", |path| truncate(path, 1_000_000), "ends within a piece"),
        ("too long", |path| truncate(path, 3_000_000), "it is 3000000 bytes"),
        (
            "another block's bytes",
            |path| {
                let mut object = Vec::new();
                codec::encode(Compression::Lz4, &vec![9; BLOCK], &mut object);
                std::fs::write(path, object).expect("written");
            },
            "not the one they are stored under",
        ),
    ]
}

fn truncate(path: &Path, bytes: u64) {
    std::fs::File::options().write(true).open(path).expect("open").set_len(bytes).expect("cut");
}

#[tokio::test]
async fn a_damaged_block_names_itself_and_ends_the_restore() {
    for (what, damage, words) in damages() {
        let world = World::new(Compression::Lz4, true);
        let key = world.layout.block(&world.entries[1].block_checksum);
        damage(&world.path(&key));
        let error = world.restore(Damage::Stop).await.0.expect_err(what);
        let text = error.to_string();
        println!("{what}: {text}");
        assert!(text.contains(words) && text.contains(&key) && text.contains("offset 4194304"), "{what}: {text}");
        assert!(text.contains("of 5 blocks in no particular order"), "{what}: {text}");
        assert_eq!(error.exit_code(), 65);
    }
}

#[tokio::test]
async fn keeping_going_restores_the_rest_lists_the_holes_and_still_fails() {
    for (what, damage, words) in damages() {
        let world = World::new(Compression::Lz4, true);
        let key = world.layout.block(&world.entries[1].block_checksum);
        damage(&world.path(&key));
        let (outcome, progress) = world.restore(Damage::KeepGoing).await;
        let Err(RestoreError::Holes { count: 1, first }) = outcome else { panic!("{what}: {outcome:?}") };
        assert_eq!((first[0].offset, &first[0].key), (4_194_304, &key), "{what}");
        assert!(first[0].seen.contains(words), "{what}: {first:?}");
        assert_eq!((progress.restored_blocks(), progress.failed_blocks), (4, 1), "{what}");
        let mut expected = world.volume.clone();
        expected[2 * BLOCK..3 * BLOCK].fill(0);
        assert!(read(&world.out()) == expected, "{what}");
    }
}

#[tokio::test]
async fn what_is_no_finished_backup_is_refused_before_the_target_is_made() {
    let world = World::new(Compression::Lz4, true);
    let key = world.layout.backup(&id().backup);
    let whole = String::from_utf8(read(&world.path(&key))).expect("JSON");
    let cases = [
        ("in progress", whole.replace("2026-11-23T05:47:02Z", ""), "in progress"),
        ("block size", whole.replace("\"2097152\"", "\"4096\""), "neither 2097152 nor 16777216"),
        ("method", whole.replace("\"lz4\"", "\"zstd\""), "not one of lz4, gzip, none"),
        ("not JSON", "hello".into(), "it is no backup config"),
    ];
    for (what, text, words) in cases {
        world.write(&key, text.as_bytes());
        let error = world.restore(Damage::Stop).await.0.expect_err(what).to_string();
        assert!(error.contains(words) && error.contains(&key), "{what}: {error}");
        assert!(!world.out().exists(), "{what}: the target was made");
    }
    std::fs::remove_file(world.path(&key)).expect("removed");
    let error = world.restore(Damage::Stop).await.0.expect_err("gone").to_string();
    assert!(error.contains("tidemark ls"), "{error}");
}

#[tokio::test]
async fn a_block_outside_the_volume_is_refused() {
    let mut world = World::new(Compression::Lz4, true);
    let name = world.entries[0].block_checksum;
    world.entries.push(BlockEntry { offset: 100 * BLOCK as u64, block_checksum: name });
    let key = world.path(&world.layout.backup(&id().backup));
    let head: RecordHead = serde_json::from_slice(&read(&key)).expect("our own");
    world.write_record(&head);
    let error = world.restore(Damage::KeepGoing).await.0.expect_err("outside").to_string();
    assert!(error.contains("outside the volume of"), "{error}");
}

#[tokio::test]
async fn law_4_a_record_that_names_fewer_blocks_than_its_size_says_is_not_complete() {
    let mut world = World::new(Compression::Lz4, true);
    let key = world.path(&world.layout.backup(&id().backup));
    let head: RecordHead = serde_json::from_slice(&read(&key)).expect("our own");
    world.entries.remove(2);
    world.write_record(&head);
    let error = world.restore(Damage::Stop).await.0.expect_err("a block is missing").to_string();
    assert!(error.contains("names 4 blocks, its Size says 5"), "{error}");
    std::fs::remove_file(world.out()).expect("removed");
    world.restore(Damage::KeepGoing).await.0.expect("what it names is restored when told to");
}

#[tokio::test]
async fn law_4_a_block_that_goes_on_behind_the_volumes_end_is_damage() {
    let world = World::new(Compression::Lz4, true);
    let key = world.path(&world.layout.backup(&id().backup));
    let bytes = world.volume.len();
    let shorter = String::from_utf8(read(&key)).expect("JSON").replace(&bytes.to_string(), &(bytes - 1).to_string());
    std::fs::write(&key, shorter).expect("written");
    let error = world.restore(Damage::Stop).await.0.expect_err("a byte would be lost").to_string();
    assert!(error.contains("goes on behind the volume's end"), "{error}");
}

#[tokio::test]
async fn a_cancelled_restore_says_what_the_target_holds() {
    let world = World::new(Compression::Lz4, true);
    let cancel = CancellationToken::new();
    cancel.cancel();
    let (progress, _) = watch::channel(RestoreProgress::default());
    let error = run(world.job(Damage::Stop), progress, cancel).await.expect_err("cancelled");
    assert_eq!(
        (error.to_string().as_str(), error.exit_code()),
        ("The restore was cancelled. The target was not touched", 75)
    );
}
