//! What a record must show before it is imported: it is looked up, judged, and then read whole beside a listing.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::support::{
    self, Block, Image,
    decorators::{Fate, Judged},
    job,
};
use tidemark::{
    controller::target::{
        lookup::{self, Looked, Problem, StoredRecord, Wanted},
        soundness::{self, Soundness},
    },
    model::FailureReason,
    store::{client::Client, error::ErrorKind, layout::VolumeLayout, objects::Objects, scratch::Scratch},
};

const BLOCKS: [Block; 4] = [Block::Text(1), Block::Random(2), Block::Text(3), Block::Text(1)];

/// A directory with one backup of four blocks, two of them equal.
struct World {
    folder: support::TempDir,
    objects: Arc<dyn Objects>,
    wanted: Wanted,
}

impl World {
    async fn new() -> Self {
        let folder = support::scratch("imports");
        std::fs::create_dir(folder.path().join("store")).expect("made");
        let objects = job::directory(&folder.path().join("store"));
        let image = Image::of(&folder.path().join("image"), &BLOCKS);
        let ran = job::run(job::job(image.path(), "a", 1), objects.clone()).await;
        assert!(ran.completed(), "{:?}", ran.last);
        let wanted =
            Wanted { volume: "pvc-test".parse().expect("a name"), backup: ran.record().parse().expect("a name") };
        Self { folder, objects, wanted }
    }

    fn record(&self) -> PathBuf {
        let layout = VolumeLayout::new(&self.wanted.volume);
        self.folder.path().join("store").join(layout.backup(&self.wanted.backup))
    }

    /// The files of its blocks.
    fn blocks(&self) -> Vec<PathBuf> {
        let layout = VolumeLayout::new(&self.wanted.volume);
        let block = |b: &Block| layout.block(&tidemark::model::BlockName::of(&b.bytes(2 << 20)));
        BLOCKS[..3].iter().map(|b| self.folder.path().join("store").join(block(b))).collect()
    }

    async fn seen(&self) -> StoredRecord {
        match lookup::read(&client(self.objects.clone()), &self.wanted).await {
            Looked::Found(record) => *record,
            other => panic!("{other:?}"),
        }
    }

    async fn shown(&self, objects: Arc<dyn Objects>, seen: &StoredRecord) -> Soundness {
        soundness::verify(&client(objects), &Scratch::new(self.folder.path()), &self.wanted, seen).await
    }
}

fn client(objects: Arc<dyn Objects>) -> Client {
    Client::new(objects, Duration::from_secs(5), Duration::from_secs(20))
}

fn problem(shown: Soundness) -> Problem {
    match shown {
        Soundness::Failed(problem) => problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn law_4_a_record_is_sound_only_with_all_its_bytes_and_all_its_blocks() {
    use FailureReason::{BlockDamaged, RecordDamaged};
    let world = World::new().await;
    let seen = world.seen().await;
    assert_eq!(world.shown(world.objects.clone(), &seen).await, Soundness::Sound { blocks: 4 });
    // Without volume.cfg Longhorn restores nothing; we do.
    let config = world.record().parent().and_then(|p| p.parent()).expect("the volume's folder").join("volume.cfg");
    std::fs::remove_file(config).expect("ours");
    assert_eq!(world.shown(world.objects.clone(), &seen).await, Soundness::Sound { blocks: 4 });

    let (record, blocks) = (world.record(), world.blocks());
    let text = std::fs::read(&record).expect("there");
    let at = String::from_utf8_lossy(&text).find("\"Blocks\":[").expect("a list of blocks");
    let behind_the_head = [
        ("cut within its blocks", text[..at + 60].to_vec()),
        ("a digit of a block's name", flip(&text, at + 45)),
        ("its last byte gone", text[..text.len() - 1].to_vec()),
    ];
    for (what, bytes) in behind_the_head {
        std::fs::write(&record, bytes).expect("ours");
        let problem = problem(world.shown(world.objects.clone(), &seen).await);
        assert_eq!(problem.reason, RecordDamaged, "{what}: {problem:?}");
        let key = problem.object.as_deref().expect("which object");
        assert!(record.ends_with(key) && problem.message.contains("Cure: put a copy"), "{what}: {problem:?}");
    }
    std::fs::write(&record, &text).expect("ours");

    let whole = std::fs::read(&blocks[1]).expect("there");
    for (what, bytes) in [("gone", None), ("empty", Some(vec![])), ("too long", Some(vec![7; 3 << 20]))] {
        match bytes {
            None => std::fs::remove_file(&blocks[1]).expect("ours"),
            Some(bytes) => std::fs::write(&blocks[1], bytes).expect("ours"),
        }
        let problem = problem(world.shown(world.objects.clone(), &seen).await);
        assert_eq!(problem.reason, BlockDamaged, "{what}: {problem:?}");
        let key = problem.object.as_deref().expect("which object");
        assert!(blocks[1].ends_with(key) && problem.message.contains("Cure: `tidemark heal`"), "{what}: {problem:?}");
    }
    std::fs::write(&blocks[1], whole).expect("ours");
    assert_eq!(world.shown(world.objects.clone(), &seen).await, Soundness::Sound { blocks: 4 });
}

fn flip(text: &[u8], at: usize) -> Vec<u8> {
    let mut text = text.to_vec();
    text[at] = if text[at] == b'0' { b'1' } else { b'0' };
    text
}

#[tokio::test]
async fn law_7_a_store_that_fails_at_any_call_shows_no_record_to_be_sound() {
    let world = World::new().await;
    let seen = world.seen().await;
    let counting = Judged::new(world.objects.clone(), |_| Fate::Perform);
    assert_eq!(world.shown(counting.clone(), &seen).await, Soundness::Sound { blocks: 4 });
    let calls = counting.log();
    assert!(calls.len() <= 8, "one listing, few small requests: {calls:#?}");
    for call in calls {
        // Refused from this call on: no retry comes through.
        let failing = Judged::new(world.objects.clone(), move |now| match now.number >= call.number {
            true => Fate::Fail(ErrorKind::Refused(FailureReason::AccessDenied)),
            false => Fate::Perform,
        });
        let problem = problem(world.shown(failing, &seen).await);
        assert_eq!(problem.reason, FailureReason::AccessDenied, "{call:?}: it proves nothing: {problem:?}");
    }
}

#[tokio::test]
async fn law_4_a_record_that_was_replaced_or_deleted_meanwhile_is_looked_up_anew() {
    let world = World::new().await;
    let seen = world.seen().await;
    let other = StoredRecord { namespace: "another".into(), ..seen.clone() };
    assert_eq!(world.shown(world.objects.clone(), &other).await, Soundness::Changed);
    // It goes after it was walked, before the last look.
    let record = world.record();
    let calls = Judged::new(world.objects.clone(), |_| Fate::Perform);
    world.shown(calls.clone(), &seen).await;
    let key = VolumeLayout::new(&world.wanted.volume).backup(&world.wanted.backup);
    let last = calls.log().iter().rposition(|call| call.key == key).expect("it is looked at last") as u64;
    let going = Judged::new(world.objects.clone(), move |now| {
        if now.number == last {
            std::fs::remove_file(&record).expect("ours");
        }
        Fate::Perform
    });
    assert_eq!(world.shown(going, &seen).await, Soundness::Changed);
}
