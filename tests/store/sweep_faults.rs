//! Deletion that is interrupted, deletion beside others at work, and deletion on a real S3 server: what a crash leaves is
//! collected by the next, no record ever names a missing block, and requests are counted.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{
    self, Block, Fault, Image, Kind, Rule, S3Server,
    decorators::{Call, Fate, Judged, chaotic},
    image::Random,
    job,
    repository::{self, HALF_AN_HOUR, Past, age, blocks, keys, layout, missing, removed, sweep, swept},
};
use tidemark::{
    model::{BlockName, Compression, Credentials, StoreLocation, job::S3Location},
    store::{
        error::ErrorKind,
        objects::Objects,
        probe,
        record::{BlockEntry, RecordHead, VolumeConfig, label},
        remove,
        s3::S3,
        sweep::Sweep,
    },
};

fn orphan(past: &Past, store: &Path, which: usize) {
    let record = layout().backup(&past.records[which].parse().expect("a name"));
    std::fs::remove_file(store.join(record)).expect("an orphan is made");
}

#[tokio::test]
async fn law_7_crash_at_every_store_call_of_delete_and_sweep_then_run_again() {
    let past = Past::of(3).await;
    for deletes in [true, false] {
        let (store, objects) = past.store();
        if !deletes {
            orphan(&past, store.path(), 0);
        }
        let run = async |objects: Arc<dyn Objects>| match deletes {
            true => removed(objects, "uid-0").await.map(|r| r.not_collected.is_none()),
            false => swept(objects).await.map(|_| true),
        };
        assert_eq!(run(objects.clone()).await, Ok(true));
        let wanted = keys(&objects, "backupstore/").await;
        for after in [false, true] {
            for n in 0.. {
                let (store, objects) = past.store();
                if !deletes {
                    orphan(&past, store.path(), 0);
                }
                let crashing = Judged::new(objects.clone(), move |call| match (call.number == n, after) {
                    (false, _) => Fate::Perform,
                    (true, false) => Fate::CrashBefore,
                    (true, true) => Fate::CrashAfter,
                });
                let ended = tokio::select! {
                    ended = run(crashing.clone()) => Some(ended),
                    () = crashing.crashed() => None,
                };
                let world = format!("deletes: {deletes}, after: {after}, call {n}: {:?}", crashing.log().last());
                assert_eq!(missing(&objects).await, None, "{world}");
                past.check(&objects, &[0], &world).await;
                // Its lock is of the same kind: nobody has to wait.
                assert_eq!(run(objects.clone()).await, Ok(true), "{world}");
                age(store.path(), HALF_AN_HOUR);
                swept(objects.clone()).await.unwrap_or_else(|error| panic!("{world}: {error}"));
                past.check(&objects, &[0], &world).await;
                assert_eq!(keys(&objects, "backupstore/").await, wanted, "{world}: equal to one that never crashed");
                if ended.is_some() {
                    assert!(n > 10, "a deletion makes more than {n} calls");
                    break;
                }
            }
        }
    }
}

/// Runs something to its end in a thread of its own: for judges, which cannot wait.
fn to_its_end<F: Future + Send + 'static>(work: impl FnOnce() -> F + Send + 'static)
where
    F::Output: Send,
{
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(work());
    };
    std::thread::spawn(run).join().expect("it does not panic");
}

/// A backup whose first block the volume has as an orphan, and whose second is new.
fn image(folder: &Path) -> PathBuf {
    let path = folder.join("image");
    Image::of(&path, &[Block::Text(0), Block::Text(1), Block::Text(500)]);
    path
}

fn at(n: u64, act: impl Fn() + Send + Sync + 'static) -> impl Fn(&Call) -> Fate + Send + Sync + 'static {
    move |call| {
        if call.number == n {
            act();
        }
        Fate::Perform
    }
}

/// After everybody has ended: nothing is missing, and what is left over goes.
async fn settle(store: &Path, objects: &Arc<dyn Objects>, world: &str) {
    assert_eq!(missing(objects).await, None, "{world}");
    age(store, HALF_AN_HOUR);
    swept(objects.clone()).await.unwrap_or_else(|error| panic!("{world}: {error}"));
    assert_eq!(missing(objects).await, None, "{world}: after the next sweep");
    let plan = sweep(objects.clone()).dry_run(None, job::now(), &repository::progress()).await.expect("planned");
    let summary = plan.summary();
    assert!(summary.blocks_named == summary.blocks_listed && summary.clear.is_empty(), "{world}: {summary:?}");
}

#[tokio::test]
async fn law_7_a_backup_that_begins_at_any_point_of_a_sweep_misses_no_block() {
    let past = Past::of(2).await;
    let folder = support::scratch("beside");
    let image = image(folder.path());
    let mut completed = 0;
    // Waited for inside the call, or begun there and going on beside it.
    for beside in [false, true] {
        for n in 0.. {
            let (store, objects) = past.store();
            orphan(&past, store.path(), 0);
            let ended = Arc::new(Mutex::new(Vec::new()));
            let (plain, path, outcome) = (objects.clone(), image.clone(), ended.clone());
            let threads = Arc::new(Mutex::new(Vec::new()));
            let kept = threads.clone();
            let judged = Judged::new(
                objects.clone(),
                at(n, move || {
                    let (plain, path, outcome) = (plain.clone(), path.clone(), outcome.clone());
                    let backup = move || {
                        to_its_end(move || async move {
                            let ran = job::run(job::job(&path, "beside", 9), plain).await;
                            outcome.lock().expect("no holder panics").push(ran);
                        });
                    };
                    let thread = std::thread::spawn(backup);
                    match beside {
                        true => kept.lock().expect("no holder panics").push(thread),
                        false => thread.join().expect("it does not panic"),
                    }
                }),
            );
            let sweeping = swept(judged.clone()).await;
            let threads: Vec<_> = threads.lock().expect("no holder panics").drain(..).collect();
            for thread in threads {
                tokio::task::spawn_blocking(move || thread.join()).await.expect("joined").expect("it does not panic");
            }
            let world =
                format!("backup at call {n}, beside: {beside}: {:?}: {sweeping:?}", judged.log().get(n as usize));
            let ran = ended.lock().expect("no holder panics").pop();
            let Some(ran) = ran else {
                assert!(n > 8, "a sweep makes more than {n} calls");
                break;
            };
            if ran.completed() {
                completed += 1;
                let differs = job::compare(&objects, "pvc-test", &ran.record(), &image).await;
                assert_eq!(differs, None, "{world}");
            }
            past.check(&objects, &[0], &world).await;
            settle(store.path(), &objects, &world).await;
        }
    }
    assert!(completed > 0, "some of them got the volume");
}

#[tokio::test]
async fn law_7_a_sweep_that_begins_at_any_point_of_a_backup_costs_it_no_block() {
    let past = Past::of(2).await;
    let folder = support::scratch("beside");
    let image = image(folder.path());
    let (mut swept_some, mut lost, mut completed) = (0, 0, 0);
    // As it is; and as if the backup's process had been stopped for half an hour at that point and woken up after it.
    for stopped in [0, HALF_AN_HOUR] {
        for n in 0.. {
            let (store, objects) = past.store();
            orphan(&past, store.path(), 0);
            let results = Arc::new(Mutex::new(Vec::new()));
            let (plain, path, kept) = (objects.clone(), store.path().to_owned(), results.clone());
            let judged = Judged::new(
                objects.clone(),
                at(n, move || {
                    age(&path, stopped);
                    let (plain, kept) = (plain.clone(), kept.clone());
                    to_its_end(move || async move {
                        let result = swept(plain).await;
                        kept.lock().expect("no holder panics").push(result);
                    });
                }),
            );
            let ran = job::run(job::job(&image, "beside", 9), judged.clone()).await;
            let result = results.lock().expect("no holder panics").pop();
            let call = judged.log().get(n as usize).cloned();
            let world = format!("sweep at call {n}, stopped {stopped} s: {call:?}: {result:?}, {:?}", ran.last);
            let Some(result) = result else {
                assert!(n > 20, "an attempt makes more than {n} calls");
                break;
            };
            swept_some += u32::from(result.is_ok_and(|swept| swept.blocks_deleted > 0));
            if ran.completed() {
                completed += 1;
                assert_eq!(job::compare(&objects, "pvc-test", &ran.record(), &image).await, None, "{world}");
            } else {
                lost += 1;
            }
            past.check(&objects, &[0], &world).await;
            settle(store.path(), &objects, &world).await;
        }
    }
    assert!(swept_some > 5 && lost > 5 && completed > 20, "{swept_some} swept, {lost} lost, {completed} completed");
}

#[tokio::test]
async fn law_7_a_deletion_that_was_not_answered_leaves_its_lock_as_a_warning() {
    let past = Past::of(2).await;
    for (what, is_struck) in [("block", true), ("record", true), ("nothing", false)] {
        let (_store, objects) = past.store();
        let failing = Judged::new(objects.clone(), move |call| {
            let part = if what == "block" { "/blocks/" } else { "/backups/" };
            let strikes = is_struck && call.action == "DELETE" && call.key.contains(part);
            if strikes { Fate::PerformAndFail(ErrorKind::Unavailable) } else { Fate::Perform }
        });
        // What is struck is tried for so long; what is not must not be given up because the machine is busy.
        let stall = Duration::from_secs(if is_struck { 1 } else { 60 });
        let client = tidemark::store::client::Client::new(failing, stall, Duration::from_secs(60));
        let sweep = Sweep { client, ..sweep(objects.clone()) };
        let doomed = remove::Doomed::Backup("uid-0".into());
        let ended = remove::remove(&sweep, &doomed, &repository::progress()).await;
        let locks = keys(&objects, &layout().locks()).await;
        assert_eq!(locks.len(), usize::from(is_struck), "{what}: {ended:?}");
        past.check(&objects, &[0], what).await;
    }
}

#[tokio::test]
async fn law_7_holds_over_a_store_in_chaos_with_everybody_at_work() {
    let first_seed = support::environment("TIDEMARK_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let runs = support::environment("TIDEMARK_SOAK").map_or(3, |_| 200);
    let past = Past::of(3).await;
    let folder = support::scratch("chaos");
    let image = image(folder.path());
    for seed in first_seed..first_seed + runs {
        let (store, objects) = past.store();
        let mut random = Random::new(seed);
        for step in 0..12 {
            let world = format!("TIDEMARK_SEED={seed}, step {step}");
            let troubled = chaotic(objects.clone(), random.next());
            let uid = format!("uid-{}", random.below(3));
            let (chosen, number) = (random.below(4), 10 + step);
            let backup = job::run(job::job(&image, &format!("new-{}", random.below(3)), number), troubled.clone());
            match chosen {
                0 => drop(swept(troubled).await),
                1 => drop(removed(troubled, &uid).await),
                // Beside each other; only one of them gets the volume, or none.
                2 => drop(tokio::join!(backup, swept(troubled.clone()))),
                _ => drop(backup.await),
            }
            assert_eq!(missing(&objects).await, None, "{world}");
            if random.below(3) == 0 {
                age(store.path(), HALF_AN_HOUR);
            }
        }
        age(store.path(), HALF_AN_HOUR);
        for uid in ["uid-0", "uid-1", "uid-2", "new-0", "new-1", "new-2"] {
            let gone = removed(objects.clone(), uid).await.unwrap_or_else(|e| panic!("TIDEMARK_SEED={seed}: {e}"));
            assert_eq!(gone.not_collected, None, "TIDEMARK_SEED={seed}");
        }
        assert_eq!(blocks(&objects).await, Vec::<String>::new(), "TIDEMARK_SEED={seed}: everything is collected");
    }
}

fn s3_location(server: &S3Server) -> S3Location {
    server.create_bucket("backups");
    job::location(&server.endpoint(), "backups")
}

fn keys_of_the_server() -> Credentials {
    job::credentials(0).read().expect("given")
}

#[tokio::test]
async fn a_probe_finds_what_a_store_can_do_and_leaves_nothing() {
    let server = S3Server::start();
    let location = StoreLocation::S3(s3_location(&server));
    let found = probe::probe(&location, &keys_of_the_server()).await.expect("it answers");
    assert!(found.batch_delete && found.conditional_writes && found.list_page_size == 1000, "{found:?}");
    server.page_size(7);
    server.fault(Rule::new(Fault::Answer { status: 501, code: "NotImplemented" }).on(Kind::DeleteBatch));
    let found = probe::probe(&location, &keys_of_the_server()).await.expect("it answers");
    assert_eq!((found.batch_delete, found.list_page_size), (false, 7), "{found:?}");
    server.heal();
    server.fault(Rule::new(Fault::Drop).on(Kind::DeleteBatch));
    let found = probe::probe(&location, &keys_of_the_server()).await;
    assert!(found.as_ref().is_ok_and(|f| !f.batch_delete), "an answer without its deed: {found:?}");
    assert_eq!(server.objects("backups"), [], "nothing stays");
}

/// A volume of 2000 blocks, 1500 of which only the first of two backups names, half an hour old. Nobody reads a block to
/// delete it, so their objects are small.
async fn two_thousand(server: &S3Server, objects: &Arc<dyn Objects>) {
    let bucket = server.bucket("backups").join("some/prefix");
    let write = |key: String, bytes: &[u8]| {
        let path = bucket.join(key);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, bytes).expect("written");
    };
    let names: Vec<BlockName> = (0..2000_u64).map(|i| BlockName::of(&i.to_le_bytes())).collect();
    names.iter().for_each(|name| write(layout().block(name), &[7; 9000]));
    for (uid, range) in [("first", 0..2000), ("second", 1500..2000)] {
        let head = RecordHead {
            name: format!("backup-{uid}"),
            volume_name: "pvc-test".into(),
            created_time: "2026-11-23T05:47:02Z".into(),
            snapshot_created_at: "2026-11-23T05:47:02Z".into(),
            labels: Some([(label::BACKUP_UID.to_owned(), uid.to_owned())].into()),
            compression_method: "lz4".into(),
            ..RecordHead::default()
        };
        let entry = |i: usize| BlockEntry { offset: (i as u64) << 21, block_checksum: names[i] };
        let mut bytes = Vec::new();
        head.write_to(range.map(|i| Ok(entry(i))), &mut bytes).expect("a Vec");
        write(layout().backup(&head.name.parse().expect("a name")), &bytes);
    }
    let mut config = VolumeConfig::new(&repository::volume(), 2000 << 21, Compression::Lz4, job::now());
    config.last_backup_name = "backup-first".into();
    write(layout().config(), &config.encode());
    age(&server.bucket("backups"), HALF_AN_HOUR);
    assert_eq!(missing(objects).await, None);
}

#[tokio::test]
async fn deleting_a_backup_of_2000_blocks_costs_at_most_20_requests_and_a_get_per_record() {
    let server = S3Server::start();
    let objects = job::s3(&server);
    two_thousand(&server, &objects).await;
    assert_eq!(server.block_objects("backups").len(), 2000);
    server.forget_requests();
    let gone = removed(objects.clone(), "first").await.expect("deleted");
    assert_eq!((gone.swept.blocks_deleted, gone.swept.blocks_not_deleted), (1500, 0), "{gone:?}");
    let counts = server.counts();
    let sum: usize = counts.values().sum();
    println!("deletion of 1500 of 2000 blocks: {sum} requests, {counts:?}");
    assert!(sum <= 20 + 1, "one record remains: {sum}: {counts:?}");
    assert_eq!(server.block_objects("backups").len(), 500);
    server.forget_requests();
    let gone = removed(objects.clone(), "second").await.expect("deleted");
    assert_eq!(gone.swept.blocks_deleted, 500, "{gone:?}");
    let sum: usize = server.counts().values().sum();
    assert!(sum <= 20, "no record remains: {sum}");
}

#[tokio::test]
async fn a_store_without_batches_is_swept_key_by_key() {
    let past = Past::of(3).await;
    let server = S3Server::start();
    let location = S3Location { batch_delete: false, ..s3_location(&server) };
    let bucket = server.bucket("backups").join("some/prefix");
    std::fs::create_dir_all(&bucket).expect("made");
    repository::copy(&past.folder.path().join("store"), &bucket);
    let objects: Arc<dyn Objects> = Arc::new(S3::open(&location, job::credentials(0)).expect("a valid location"));
    server.fault(Rule::new(Fault::refuse("AccessDenied")).on(Kind::DeleteBatch));
    for uid in ["uid-0", "uid-1"] {
        let gone = removed(objects.clone(), uid).await.expect("deleted");
        assert_eq!((gone.swept.blocks_deleted, gone.not_collected), (1, None));
    }
    past.check(&objects, &[0, 1], "the last").await;
    // One key that is refused is told; the others go.
    let stuck = blocks(&objects).await.remove(0);
    server.fault(Rule::new(Fault::refuse("AccessDenied")).on(Kind::Delete).key(&stuck));
    let gone = removed(objects.clone(), "uid-2").await.expect("deleted");
    assert_eq!((gone.swept.blocks_deleted, gone.swept.blocks_not_deleted), (2, 1), "{gone:?}");
    assert!(gone.swept.not_deleted[0].contains(&stuck), "{gone:?}");
    assert_eq!(blocks(&objects).await, [stuck]);
}

#[tokio::test]
async fn law_7_errors_inside_a_200_reply_count_key_by_key() {
    let past = Past::of(2).await;
    let server = S3Server::start();
    let objects = job::s3(&server);
    let bucket = server.bucket("backups").join("some/prefix");
    std::fs::create_dir_all(&bucket).expect("made");
    repository::copy(&past.folder.path().join("store"), &bucket);
    for which in [0, 1] {
        orphan(&past, &bucket, which);
    }
    // The first answer is an error for every key and passes; then they are refused for good.
    server.fault(Rule::new(Fault::KeyErrors { code: "InternalError" }).on(Kind::DeleteBatch).times(1));
    server.fault(Rule::new(Fault::KeyErrors { code: "AccessDenied" }).on(Kind::DeleteBatch));
    let once = swept(objects.clone()).await.expect("answered");
    assert_eq!((once.blocks_deleted, once.blocks_not_deleted), (0, 4), "{once:?}");
    assert!(once.not_deleted[0].contains("AccessDenied") && once.not_deleted[0].contains("/blocks/"), "{once:?}");
    assert_eq!(blocks(&objects).await.len(), 4);
    server.heal();
    server.fault(Rule::new(Fault::TruncatedBody).on(Kind::DeleteBatch).times(1));
    let again = swept(objects.clone()).await.expect("half an answer is none: it is asked again");
    assert_eq!((again.blocks_deleted, again.blocks_not_deleted), (4, 0), "{again:?}");
}
