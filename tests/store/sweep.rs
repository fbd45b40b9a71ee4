//! Deletion and sweeping: only what nobody needs goes, and nothing at all when something is not known (laws 7 and 10).
//!
//! Each test prints the world it saw when it fails: the fault, the calls, what is left.

use std::{path::Path, sync::Arc};

use crate::support::{
    self, S3Server,
    decorators::{Fate, HoldsBack, Judged, REFUSED},
    endless::Endless,
    job,
    repository::{self, HALF_AN_HOUR, Lie, Lying, Past, age, blocks, keys, layout, missing, removed, sweep, swept},
};
use tidemark::{
    model::{AttemptId, BackupName, FailureReason},
    store::{
        error::ErrorKind,
        janitor::{self, Living, Recorded, Wanted},
        objects::{Objects, Range},
        record::VolumeConfig,
        remove::{self, Doomed},
        survey,
        tombstone::{self, Tombstones},
    },
};

async fn config(objects: &Arc<dyn Objects>) -> VolumeConfig {
    let fetched = objects.get(&layout().config(), Range::whole(1 << 20)).await.expect("read").expect("it is there");
    serde_json::from_slice(&fetched.bytes).expect("a config")
}

fn record_path(store: &Path, record: &str) -> std::path::PathBuf {
    store.join(layout().backup(&record.parse().expect("a name")))
}

#[tokio::test]
async fn law_10_a_deleted_backup_takes_only_its_own_blocks_with_it() {
    let past = Past::of(3).await;
    let server = S3Server::start();
    let s3 = job::s3(&server);
    let bucket = server.bucket("backups").join("some/prefix");
    std::fs::create_dir_all(&bucket).expect("made");
    repository::copy(&past.folder.path().join("store"), &bucket);
    let (store, directory) = past.store();
    let mut seen = Vec::new();
    for (objects, files) in [(directory, store.path()), (s3, bucket.as_path())] {
        assert_eq!(blocks(&objects).await.len(), 5, "two that all share, one of each");
        let last = removed(objects.clone(), "uid-2").await.expect("deleted");
        assert_eq!((last.records.len(), last.swept.blocks_deleted), (1, 1), "{last:?}");
        past.check(&objects, &[2], "the newest is gone").await;
        let after = config(&objects).await;
        assert_eq!((after.last_backup_name.as_str(), after.block_count), (past.records[1].as_str(), 4));
        let first = removed(objects.clone(), "uid-0").await.expect("deleted");
        assert_eq!(first.swept.blocks_deleted, 1, "{first:?}");
        past.check(&objects, &[0, 2], "the oldest is gone").await;
        let rest = removed(objects.clone(), "uid-1").await.expect("deleted");
        assert_eq!(rest.swept.blocks_deleted, 3, "{rest:?}");
        assert_eq!(rest.not_collected, None);
        let after = config(&objects).await;
        assert_eq!((after.last_backup_name.as_str(), after.block_count), ("", 0));
        assert!(files.join(layout().config()).exists(), "the volume itself is known still");
        seen.push((keys(&objects, "backupstore/").await, last, first, rest));
    }
    assert_eq!(seen[0], seen[1], "both backends end equal");
    assert_eq!(seen[0].0.len(), 4, "volume.cfg and three tombstones: {:?}", seen[0].0);
}

#[tokio::test]
async fn law_10_young_blocks_and_other_peoples_objects_stay() {
    let past = Past::of(2).await;
    let (store, objects) = past.store();
    let stray = store.path().join(layout().blocks()).join("README");
    std::fs::write(&stray, "not a block").expect("written");
    age(&stray, 0);
    let path = record_path(store.path(), &past.records[0]);
    std::fs::remove_file(path).expect("removed");
    let young = blocks(&objects).await.into_iter().find(|key| key.ends_with(".blk")).expect("a block");
    for key in blocks(&objects).await {
        let file = std::fs::File::options().write(true).open(store.path().join(&key)).expect("a block");
        file.set_modified(tidemark::telemetry::now().into()).expect("young again");
    }
    let nothing = swept(objects.clone()).await.expect("swept");
    assert_eq!((nothing.blocks_deleted, nothing.blocks_young), (0, 1), "{nothing:?} ({young})");
    age(store.path(), HALF_AN_HOUR);
    let plan = sweep(objects.clone()).dry_run(None, job::now(), &repository::progress()).await.expect("planned");
    let summary = plan.summary();
    assert_eq!((summary.blocks_to_delete, summary.strays, summary.records), (1, 1, 1), "{summary:?}");
    assert_eq!(plan.blocks().count(), 1);
    assert_eq!(swept(objects.clone()).await.expect("swept").blocks_deleted, 1);
    assert!(stray.exists());
    past.check(&objects, &[0], "only the orphan went").await;
}

#[tokio::test]
async fn law_7_one_record_that_cannot_be_read_and_no_block_goes() {
    let past = Past::of(3).await;
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("cut", |path| {
            let bytes = std::fs::read(path).expect("read");
            std::fs::write(path, &bytes[..bytes.len() / 2]).expect("written");
        }),
        ("last byte lost", |path| {
            let bytes = std::fs::read(path).expect("read");
            std::fs::write(path, &bytes[..bytes.len() - 1]).expect("written");
        }),
        ("empty", |path| std::fs::write(path, "").expect("written")),
        ("another object", |path| std::fs::write(path, "{}").expect("written")),
        ("one name flipped", |path| {
            let text = std::fs::read_to_string(path).expect("read");
            std::fs::write(path, text.replacen("\"BlockChecksum\":\"", "\"BlockChecksum\":\"x", 1)).expect("written");
        }),
        ("under another's name", |path| {
            let text = std::fs::read_to_string(path).expect("read");
            std::fs::write(path, text.replace("\"Name\":\"backup-", "\"Name\":\"backup-0")).expect("written");
        }),
    ];
    for (what, damage) in damages {
        let (store, objects) = past.store();
        let before = blocks(&objects).await;
        damage(&record_path(store.path(), &past.records[1]));
        age(store.path(), HALF_AN_HOUR);
        let error = swept(objects.clone()).await.expect_err(what);
        assert_eq!(error.kind, ErrorKind::Damaged, "{what}: {error}");
        assert!(error.key.contains(&past.records[1]) && error.seen.contains("restore the object"), "{what}: {error}");
        let gone = removed(objects.clone(), "uid-0").await.expect("the record itself goes");
        assert_eq!(gone.records.len(), 1, "{what}");
        assert!(gone.not_collected.as_ref().is_some_and(|e| e.kind == ErrorKind::Damaged), "{what}: {gone:?}");
        assert_eq!(blocks(&objects).await, before, "{what}");
        // The cure the message names: by its name, whatever it holds.
        let named = Doomed::Record(past.records[1].parse().expect("a name"));
        let cured = remove::remove(&sweep(objects.clone()), &named, &repository::progress()).await.expect("deleted");
        assert_eq!((cured.records.len(), cured.not_collected, cured.swept.blocks_deleted), (1, None, 2), "{what}");
        past.check(&objects, &[0, 1], what).await;
    }
}

#[tokio::test]
async fn law_7_a_get_that_fails_deletes_nothing() {
    let past = Past::of(2).await;
    let (_store, objects) = past.store();
    let before = keys(&objects, "backupstore/").await;
    for what in ["/backups/", "volume.cfg"] {
        let failing = Judged::new(objects.clone(), move |call| {
            let strikes = call.action == "GET" && call.key.contains(what);
            if strikes { Fate::Fail(REFUSED) } else { Fate::Perform }
        });
        let error = removed(failing.clone(), "uid-0").await.expect_err("nothing is known");
        assert_eq!(error.reason(), FailureReason::AccessDenied, "{error}");
        let error = swept(failing).await.expect_err("nothing is known");
        assert_eq!(error.reason(), FailureReason::AccessDenied, "{error}");
        assert_eq!(keys(&objects, "backupstore/").await, before, "{what}");
    }
}

#[tokio::test]
async fn law_7_a_listing_that_fails_or_lies_at_any_call_costs_no_record_a_block() {
    let past = Past::of(3).await;
    for lie in [Lie::Fails, Lie::Empty, Lie::Half, Lie::Beheaded] {
        for deletes in [true, false] {
            for nth in 0.. {
                let (store, objects) = past.store();
                if !deletes {
                    std::fs::remove_file(record_path(store.path(), &past.records[0])).expect("an orphan is made");
                }
                let lying = Lying::new(objects.clone(), move |number, _| (number == nth).then_some(lie));
                let world = format!("LIST {nth} {lie:?}, deletes: {deletes}");
                let ended = match deletes {
                    true => removed(lying.clone(), "uid-0").await.map(|_| ()),
                    false => swept(lying.clone()).await.map(|_| ()),
                };
                assert_eq!(missing(&objects).await, None, "{world}: {ended:?}");
                past.check(&objects, &[0], &world).await;
                let healed = removed(objects.clone(), "uid-0").await.expect("healed");
                assert_eq!(healed.not_collected, None, "{world}");
                assert_eq!(blocks(&objects).await.len(), 4, "{world}: what was left over is collected");
                if lying.lists() <= nth {
                    assert!(nth >= 5, "only {nth} LISTs were made");
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn law_7_a_store_that_lists_no_records_for_good_loses_no_block() {
    let past = Past::of(2).await;
    let (_store, objects) = past.store();
    let before = blocks(&objects).await;
    // Longhorn deletes all twelve blocks of this world and answers 0 (reference H1).
    for lie in [Lie::Fails, Lie::Empty] {
        let lying = Lying::new(objects.clone(), move |_, prefix| prefix.ends_with("/backups/").then_some(lie));
        let error = swept(lying.clone()).await.expect_err("it proves nothing");
        assert!(lie == Lie::Fails || error.seen.contains("is there and is not listed"), "{error}");
        removed(lying, "uid-0").await.expect_err("it proves nothing");
        assert_eq!(blocks(&objects).await, before, "{lie:?}");
        past.check(&objects, &[], "nothing went").await;
    }
}

#[tokio::test]
async fn law_7_a_volume_without_config_and_records_is_a_mount_that_went_away() {
    let past = Past::of(1).await;
    let (store, objects) = past.store();
    let before = blocks(&objects).await;
    std::fs::remove_dir_all(store.path().join(layout().backups())).expect("removed");
    std::fs::remove_file(store.path().join(layout().config())).expect("removed");
    let error = swept(objects.clone()).await.expect_err("it is not believed");
    assert_eq!(error.reason(), FailureReason::VolumeConfigMissing, "{error}");
    assert_eq!(blocks(&objects).await, before);
}

#[tokio::test]
async fn law_7_a_config_in_progress_that_is_not_ours_keeps_every_block() {
    let past = Past::of(2).await;
    let (store, objects) = past.store();
    let before = blocks(&objects).await;
    let foreign = layout().backup(&"backup-longhorns".parse().expect("a name"));
    let text = r#"{"Name":"backup-longhorns","VolumeName":"pvc-test","CreatedTime":"","CompressionMethod":"lz4"}"#;
    std::fs::write(store.path().join(&foreign), text).expect("written");
    age(store.path(), 400 * 24 * 3600);
    let error = swept(objects.clone()).await.expect_err("somebody is at work");
    assert!(error.kind == ErrorKind::LockHeld && error.key == foreign, "{error}");
    let gone = removed(objects.clone(), "uid-0").await.expect("the record goes");
    assert!(gone.not_collected.is_some_and(|e| e.key == foreign));
    assert_eq!(blocks(&objects).await, before);
    let named = Doomed::Record("backup-longhorns".parse().expect("a name"));
    let gone = remove::remove(&sweep(objects.clone()), &named, &repository::progress()).await.expect("by its name");
    assert_eq!((gone.records.len(), gone.swept.blocks_deleted), (1, 1), "{gone:?}");
}

#[tokio::test]
async fn law_10_a_killed_backup_is_protected_until_its_time_is_over() {
    let past = Past::of(1).await;
    let (store, objects) = past.store();
    let folder = support::scratch("killed");
    let image = support::Image::of(&folder.path().join("image"), &[support::Block::Text(7), support::Block::Text(8)]);
    let attempt = AttemptId::new(9, [9; 10]);
    let crashing = Judged::new(objects.clone(), |call| match call.is_record_put() {
        true => Fate::CrashBefore,
        false => Fate::Perform,
    });
    tokio::select! { _ = job::run(job::job(image.path(), "killed", 9), crashing.clone()) => {}, () = crashing.crashed() => {} }
    let with = |attempts: &[&AttemptId], wanted: Wanted| {
        let attempts = attempts.iter().map(|a| (*a).clone()).collect();
        tidemark::store::sweep::Sweep {
            living: Living { attempts, wanted, ..Living::default() },
            ..sweep(objects.clone())
        }
    };
    let nobody = || Wanted::Only(std::collections::BTreeSet::new());
    let refused = swept(objects.clone()).await.expect_err("its lock is young");
    assert_eq!(refused.kind, ErrorKind::LockHeld, "{refused}");
    age(store.path(), 300);
    let refused = swept(objects.clone()).await.expect_err("its marker is young");
    assert!(refused.key.contains("backup_tidemark-"), "{refused}");
    age(store.path(), HALF_AN_HOUR);
    for (what, sweep) in [
        ("alive", with(&[&attempt], nobody())),
        ("wanted", with(&[], Wanted::Only(["killed".to_owned()].into()))),
        ("who knows", with(&[], Wanted::All)),
    ] {
        let refused = sweep.run(&repository::progress()).await.expect_err(what);
        assert!(refused.key.contains("backup_tidemark-"), "{what}: {refused}");
        assert_eq!(blocks(&objects).await.len(), 5, "{what}");
    }
    // The janitor says the same without a lock, and clears the same.
    let client = sweep(objects.clone()).client;
    let seen = janitor::look(&client, &layout()).await.expect("listed");
    let living = Living { wanted: Wanted::All, ..Living::default() };
    assert!(!janitor::plan(&seen, &living, job::now()).has_configs());
    let swept = with(&[], nobody()).run(&repository::progress()).await.expect("nobody wants it");
    assert_eq!(swept.blocks_deleted, 2, "{swept:?}");
    let left = keys(&objects, layout().root()).await;
    let remnants = |key: &&String| ["/tidemark/", "/locks/", "backup_tidemark-"].iter().any(|part| key.contains(part));
    assert_eq!(left.iter().find(remnants), None, "marker, journal and lock went: {left:?}");
    past.check(&objects, &[], "the sealed one stays").await;
}

#[tokio::test]
async fn law_8_a_record_that_arrives_after_its_tombstone_is_neither_built_upon_nor_kept() {
    let past = Past::of(1).await;
    let (store, objects) = past.store();
    let folder = support::scratch("late");
    let image = support::Image::of(&folder.path().join("image"), &[support::Block::Text(7), support::Block::Text(1)]);
    // The record is the last PUT of an attempt but the config's: hold it back, and the process is gone.
    let mut nth = 0;
    let late = loop {
        let holding = HoldsBack::new(objects.clone(), nth);
        tokio::select! { _ = job::run(job::job(image.path(), "late", 5), holding.clone()) => {}, () = holding.crashed() => {} }
        let held = holding.held().expect("the record is sent");
        if held.key.contains("/backup_backup-") {
            break held;
        }
        age(store.path(), HALF_AN_HOUR);
        nth += 1;
    };
    let busy = removed(objects.clone(), "late").await.expect_err("its lock is young");
    assert_eq!(busy.kind, ErrorKind::LockHeld, "{busy}");
    age(store.path(), HALF_AN_HOUR);
    let gone = removed(objects.clone(), "late").await.expect("deleted");
    assert_eq!((gone.records.len(), gone.swept.blocks_deleted), (0, 1), "{gone:?}");
    objects.put(&late.key, late.body, late.condition).await.expect("it arrives");
    assert!(missing(&objects).await.is_some(), "the late record names a block that was collected");

    let client = sweep(objects.clone()).client;
    let tombstones = Tombstones::read(&client, &layout()).await.expect("listed");
    let head = survey::read_head(&client, &late.key).await.expect("read").expect("there");
    assert!(tombstones.covers(&head), "{tombstones:?}");
    // Whoever wrote `volume.cfg` last may have named it there.
    let mut named = config(&objects).await;
    named.last_backup_name.clone_from(&head.name);
    std::fs::write(store.path().join(layout().config()), named.encode()).expect("written");
    let parent = survey::survey(&client, &layout(), &tombstones).await.expect("surveyed").parent;
    assert_eq!(parent.map(|p| p.name.to_string()), Some(past.records[0].clone()), "not built upon");
    assert!(tombstone::covers(&client, &layout(), &head).await.expect("asked"), "nor restored");
    let again = job::run(job::job(image.path(), "late", 6), objects.clone()).await;
    let failure = again.last.failure.expect("a deleted Backup is not made again");
    assert_eq!(failure.reason, FailureReason::Cancelled, "{failure}");

    let collected = swept(objects.clone()).await.expect("swept");
    assert!(objects.head(&late.key).await.expect("asked").is_none(), "{collected:?}");
    assert_eq!(missing(&objects).await, None);
    assert_eq!(config(&objects).await.last_backup_name, past.records[0]);
    assert!(tombstone_exists(store.path(), "late"), "it stays a day");
    age(store.path(), 24 * 3600);
    swept(objects.clone()).await.expect("swept");
    assert!(!tombstone_exists(store.path(), "late"), "and then goes");
}

/// An attempt slept, its successor sealed, and its own record arrives after all: both are whole.
#[tokio::test]
async fn law_8_a_stale_attempts_second_record_goes_alone_and_only_where_it_is_known_to_be_one() {
    let past = Past::of(1).await;
    let (store, objects) = past.store();
    let folder = support::scratch("twice");
    let image = support::Image::of(&folder.path().join("image"), &[support::Block::Text(7), support::Block::Text(1)]);
    let stale = job::run(job::job(image.path(), "twice", 5), objects.clone()).await.record();
    let path = record_path(store.path(), &stale);
    let late = std::fs::read(&path).expect("written");
    std::fs::remove_file(&path).expect("it is not there yet");
    let own = job::run(job::job(image.path(), "twice", 6), objects.clone()).await.record();
    std::fs::write(&path, &late).expect("it arrives");
    age(store.path(), HALF_AN_HOUR);
    let restores = async |record: &str| job::compare(&objects, "pvc-test", record, image.path()).await.is_none();
    assert!(stale != own && restores(&stale).await && restores(&own).await);

    let knowing = |own: &str, referred: &[&str]| {
        let name = |name: &str| name.parse::<BackupName>().expect("a name");
        let own = [("twice".to_owned(), name(own))].into();
        let recorded = Recorded { own, referred: referred.iter().map(|record| name(record)).collect() };
        let plain = sweep(objects.clone());
        tidemark::store::sweep::Sweep { living: Living { recorded, ..plain.living.clone() }, ..plain }
    };
    for (what, sweep) in [
        ("nobody knows which", sweep(objects.clone())),
        ("somebody refers to it", knowing(&own, &[&stale])),
        ("its own is not there", knowing("backup-0123456789abcdef", &[])),
    ] {
        let swept = sweep.run(&repository::progress()).await.expect(what);
        assert_eq!((swept.cleared, swept.blocks_deleted, path.exists()), (0, 0, true), "{what}: {swept:?}");
    }
    let swept = knowing(&own, &[&own]).run(&repository::progress()).await.expect("swept");
    assert_eq!((swept.cleared, swept.blocks_deleted, path.exists()), (1, 0, false), "{swept:?}");
    assert!(restores(&own).await, "alone");
    assert_eq!((config(&objects).await.last_backup_name, missing(&objects).await), (own, None));
    past.check(&objects, &[], "and nothing of another Backup").await;

    // Whoever deletes the Backup deletes both.
    std::fs::write(&path, &late).expect("it arrives once more");
    age(store.path(), HALF_AN_HOUR);
    let gone = removed(objects.clone(), "twice").await.expect("deleted");
    assert_eq!((gone.records.len(), gone.swept.blocks_deleted), (2, 1), "{gone:?}");
    past.check(&objects, &[], "the other Backup").await;
}

fn tombstone_exists(store: &Path, uid: &str) -> bool {
    store.join(layout().tombstone(uid)).exists()
}

#[tokio::test]
async fn law_10_the_temporary_file_of_a_dead_writer_goes_after_a_day_and_nothing_else_that_is_no_block() {
    let past = Past::of(1).await;
    let (store, objects) = past.store();
    let block = store.path().join(&blocks(&objects).await[0]);
    let beside = |ending: &str| std::path::PathBuf::from(format!("{}{ending}", block.display()));
    let (old, fresh, strange) = (beside(".tmp.1230"), beside(".tmp.1231"), beside(".tmp.mine"));
    let apart = store.path().join(layout().unfinished());
    std::fs::create_dir_all(&apart).expect("made");
    let (ours, ours_fresh) = (apart.join("volume.cfg.tmp.1"), apart.join("0a.blk.tmp.2"));
    for (file, hours) in [(&old, 25), (&fresh, 23), (&strange, 1000), (&ours, 25), (&ours_fresh, 23)] {
        std::fs::write(file, "half").expect("written");
        let time = job::now() - jiff::SignedDuration::from_hours(hours);
        std::fs::File::options().write(true).open(file).and_then(|f| f.set_modified(time.into())).expect("aged");
    }
    let swept = swept(objects.clone()).await.expect("swept");
    assert_eq!((swept.unfinished_deleted, swept.unfinished_bytes, swept.blocks_deleted), (1, 4, 0), "{swept:?}");
    assert_eq!(swept.cleared, 1, "{swept:?}");
    assert_eq!([&old, &fresh, &strange].map(|file| file.exists()), [false, true, true]);
    assert_eq!([&ours, &ours_fresh].map(|file| file.exists()), [false, true]);
    past.check(&objects, &[0], "its blocks stay").await;
}

#[tokio::test]
async fn law_7_a_key_that_a_batch_could_not_delete_is_told_and_tried_again_next_time() {
    let past = Past::of(2).await;
    let (store, objects) = past.store();
    std::fs::remove_file(record_path(store.path(), &past.records[0])).expect("an orphan is made");
    std::fs::remove_file(record_path(store.path(), &past.records[1])).expect("orphans are made");
    let stuck = blocks(&objects).await.remove(0);
    let path = store.path().join(&stuck);
    let refusing = support::decorators::Refusing::new(objects.clone(), &stuck);
    let swept_once = swept(refusing).await.expect("the others went");
    assert_eq!((swept_once.blocks_deleted, swept_once.blocks_not_deleted), (3, 1), "{swept_once:?}");
    assert!(swept_once.not_deleted[0].contains(&stuck), "{swept_once:?}");
    assert_eq!(config(&objects).await.block_count, 1, "what stays is counted");
    assert!(path.exists());
    assert_eq!(swept(objects.clone()).await.expect("swept").blocks_deleted, 1);
}

/// Peak resident memory of this process, anonymous and in all, in KiB.
fn peak() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    (field("RssAnon:").expect("Linux says so"), field("VmHWM:").expect("Linux says so"))
}

async fn plan_endless(listed: u64, named: u64, records: u64) -> tidemark::store::sweep::Summary {
    let long_ago = job::now() - jiff::SignedDuration::from_hours(48);
    let objects = Endless::new(layout(), listed, named, records, long_ago);
    let plan = sweep(objects).dry_run(None, job::now(), &repository::progress()).await.expect("planned");
    plan.summary()
}

#[tokio::test]
async fn a_plan_finds_every_orphan_among_many() {
    let summary = plan_endless(30_000, 25_000, 2).await;
    let seen = (summary.blocks_listed, summary.blocks_named, summary.blocks_to_delete, summary.blocks_missing);
    assert_eq!(seen, (30_000, 25_000, 5_000, 0), "{summary:?}");
    assert!(summary.refusals.is_empty(), "{summary:?}");
}

/// Alone: `cargo test --test store -- --ignored soak_a_plan_of_four_million_blocks_stays_small --nocapture`.
#[tokio::test]
#[ignore = "minutes; its memory is that of the whole process"]
async fn soak_a_plan_of_four_million_blocks_stays_small() {
    let began = std::time::Instant::now();
    let summary = plan_endless(5_242_880, 4_194_304, 2).await;
    assert_eq!((summary.blocks_named, summary.blocks_to_delete), (4_194_304, 1_048_576), "{summary:?}");
    let (anonymous, peak) = peak();
    println!("two records of 4 Mi blocks: {peak} KiB at most, {anonymous} KiB anonymous, {:?}", began.elapsed());
    assert!(peak < 128 * 1024, "{peak} KiB");
}
