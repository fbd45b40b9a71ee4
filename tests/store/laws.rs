//! The laws of the data path over stores that fail: every crash, every late delivery, every refusal.
//!
//! Each test prints the world it saw when it fails: the fault, the calls, the last report.

use std::{path::Path, sync::Arc, time::Duration};

use crate::support::{
    self, Block, Image,
    decorators::{Fate, HoldsBack, Judged, Late, REFUSED, chaotic, holding_blocks},
    job,
};
use tidemark::{
    model::{FailureReason, JobSpec, Outcome, Report, progress},
    store::{error::ErrorKind, objects::Objects},
};
use tokio_util::sync::CancellationToken;

/// Block objects that are in this store at this instant.
fn blocks_in(store: &Path) -> u64 {
    let mut count = 0;
    let mut folders = vec![store.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ => count += u64::from(entry.path().extension().is_some_and(|e| e == "blk")),
            }
        }
    }
    count
}

/// Law 2 and 3 on one report of a volume whose blocks all differ.
fn check_report(report: &Report, store: &Path, last: &mut u64) {
    let acknowledged = report.backup().acknowledged_blocks;
    // The bucket is counted after the report was made: it can only have grown.
    let present = blocks_in(store);
    assert!(acknowledged <= present, "law 2: {acknowledged} acknowledged, {present} in the bucket: {report:?}");
    assert!(acknowledged >= *last, "law 3: {acknowledged} after {last}");
    let total = report.backup().total_blocks;
    assert!(acknowledged <= total, "{report:?}");
    assert!(progress::percent(acknowledged, total, progress::Completion::Open) <= 99);
    *last = acknowledged;
}

async fn run_checked(job: JobSpec, objects: Arc<dyn Objects>, store: &Path) -> job::Ran {
    let mut last = 0;
    job::run_watched(job, objects, CancellationToken::new(), |report| check_report(report, store, &mut last)).await
}

fn image(folder: &Path, blocks: u64) -> Image {
    let blocks: Vec<_> = (0..blocks).map(Block::Text).collect();
    Image::of(&folder.join(format!("image-{}", blocks.len())), &blocks)
}

async fn keys_in(store: &Arc<dyn Objects>, prefix: &str) -> Vec<String> {
    let page = store.list(prefix, None).await.expect("the plain store lists");
    assert!(page.next.is_none(), "small worlds have one page");
    page.entries.into_iter().map(|e| e.key).collect()
}

fn puts_of_blocks(store: &Judged) -> Vec<String> {
    store.log().into_iter().filter(|c| c.is_block_put()).map(|c| c.key).collect()
}

#[tokio::test]
async fn law_6_crash_at_every_store_call_then_resume_then_compare() {
    let folder = support::scratch("crash");
    let image = image(folder.path(), 5);
    for after in [false, true] {
        for n in 0.. {
            let store = support::scratch("store");
            let plain = job::directory(store.path());
            let crashing = Judged::new(plain.clone(), move |call| match (call.number == n, after) {
                (false, _) => Fate::Perform,
                (true, false) => Fate::CrashBefore,
                (true, true) => Fate::CrashAfter,
            });
            let first = run_checked(job::job(image.path(), "uid", 1), crashing.clone(), store.path());
            let first = tokio::select! { ran = first => Some(ran), () = crashing.crashed() => None };
            let world =
                || format!("crash {} call {n}: {:?}", if after { "after" } else { "before" }, crashing.log().last());
            let present = keys_in(&plain, "backupstore/").await;
            let counting = Judged::new(plain.clone(), |_| Fate::Perform);
            let second = run_checked(job::job(image.path(), "uid", 2), counting.clone(), store.path()).await;
            assert!(second.completed(), "{}: {:?}", world(), second.last);
            assert_eq!(job::compare(&plain, "pvc-test", &second.record(), image.path()).await, None, "{}", world());
            // What the store held when the first attempt was no more is not sent again.
            let again: Vec<_> = puts_of_blocks(&counting).into_iter().filter(|key| present.contains(key)).collect();
            assert_eq!(again, Vec::<String>::new(), "{}", world());
            let records = std::fs::read_dir(record_folder(store.path())).expect("backups/").count();
            assert!(records <= 2, "{}: {records} configs stay", world());
            if first.is_some_and(|ran| ran.completed()) {
                assert!(n > 20, "an attempt makes more than {n} calls");
                break;
            }
        }
    }
}

fn record_folder(store: &Path) -> std::path::PathBuf {
    let volume: tidemark::model::VolumeName = "pvc-test".parse().expect("a name");
    store.join(tidemark::store::layout::VolumeLayout::new(&volume).backups())
}

/// Delivers a late PUT just before the n-th call of the attempt that comes after.
fn delivering(plain: Arc<dyn Objects>, late: Late, n: u64) -> Arc<Judged> {
    let inner = plain.clone();
    Judged::new(plain, move |call| {
        if call.number == n {
            let (inner, late) = (inner.clone(), late.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
                // A conditional PUT may be refused now: that is its point.
                let _ = runtime.block_on(inner.put(&late.key, late.body, late.condition));
            })
            .join()
            .expect("delivered");
        }
        Fate::Perform
    })
}

#[tokio::test]
async fn law_8_every_put_of_attempt_1_delivered_at_every_point_of_attempt_2() {
    let folder = support::scratch("late");
    let image = image(folder.path(), 3);
    let mut worlds = 0;
    for nth in 0.. {
        let mut was_held = false;
        // A step of 3 visits every third point of attempt 2, shifted by the PUT: `make soak` visits them all.
        let step = support::environment("TIDEMARK_SOAK").map_or(3, |_| 1);
        for at in ((nth % step)..60).step_by(usize::try_from(step).expect("small")) {
            let store = support::scratch("store");
            let plain = job::directory(store.path());
            let holding = HoldsBack::new(plain.clone(), nth);
            let first = job::run(job::job(image.path(), "uid", 1), holding.clone());
            tokio::select! { _ = first => {}, () = holding.crashed() => {} }
            let Some(late) = holding.held() else { break };
            was_held = true;
            worlds += 1;
            let world = format!("PUT {nth} ({}) delivered at call {at}", late.key);
            let delivering = delivering(plain.clone(), late.clone(), at);
            let second = job::run(job::job(image.path(), "uid", 2), delivering.clone()).await;
            let has_ended_first = delivering.log().len() as u64 <= at;
            if has_ended_first {
                let _ = plain.put(&late.key, late.body, late.condition).await;
            }
            assert!(second.completed(), "{world}: {:?}", second.last);
            for record in std::fs::read_dir(record_folder(store.path())).expect("backups/").flatten() {
                let name = record.file_name().into_string().expect("UTF-8");
                let name = name.trim_start_matches("backup_").trim_end_matches(".cfg").to_owned();
                if name.starts_with("backup-") {
                    assert_eq!(job::compare(&plain, "pvc-test", &name, image.path()).await, None, "{world}: {name}");
                }
            }
            if has_ended_first {
                break;
            }
        }
        if !was_held {
            assert!(worlds > 50, "only {worlds} worlds were seen");
            return;
        }
    }
}

#[tokio::test]
async fn law_1_a_refused_put_is_never_counted_and_ends_in_error_with_the_right_count() {
    let folder = support::scratch("refused");
    let folder = folder.path();
    let sizes = [1, 2, 15, 16, 17, 18, 19, 20, 40];
    let worlds =
        sizes.iter().flat_map(|&blocks| [Some(0), Some(blocks / 2), Some(blocks - 1), None].map(|r| (blocks, r)));
    let images: std::collections::BTreeMap<u64, Image> = sizes.iter().map(|&n| (n, image(folder, n))).collect();
    let runs = worlds.map(|(blocks, refused)| {
        let path = images[&blocks].path().to_owned();
        async move {
            let store = support::scratch("store");
            let block_puts = std::sync::Mutex::new(Vec::<String>::new());
            let objects = Judged::new(job::directory(store.path()), move |call| {
                if call.is_record_put() {
                    return if refused.is_none() { Fate::Fail(REFUSED) } else { Fate::Perform };
                }
                if !call.is_block_put() {
                    return Fate::Perform;
                }
                let mut seen = block_puts.lock().expect("no holder panics");
                let nth = seen.iter().position(|key| *key == call.key).unwrap_or_else(|| {
                    seen.push(call.key.clone());
                    seen.len() - 1
                });
                if refused == Some(nth as u64) { Fate::Fail(REFUSED) } else { Fate::Perform }
            });
            let ran = run_checked(job::job(&path, "uid", 1), objects.clone(), store.path()).await;
            let world = format!("{blocks} blocks, refused: {refused:?}, {:?}", ran.last);
            // Not those that are there: one that was under way when the attempt ended may arrive without an answer.
            let answered = objects.answered().iter().filter(|call| call.is_block_put()).count() as u64;
            assert_eq!(ran.last.outcome, Some(Outcome::Failed), "{world}");
            let failure = ran.last.failure.clone().expect("an error says why");
            assert_eq!(failure.reason, FailureReason::AccessDenied, "{world}");
            assert_eq!(ran.last.backup().acknowledged_blocks, answered, "{world}");
            assert_eq!(ran.last.backup().failed_blocks, u64::from(refused.is_some()), "{world}");
            assert!(failure.object.is_some_and(|o| o.contains("pvc-test")), "{world}");
            if refused.is_none() {
                assert_eq!(ran.last.backup().acknowledged_blocks, blocks, "{world}");
            }
            assert!(ran.reports.iter().all(|r| !matches!(r.outcome, Some(Outcome::Completed { .. }))), "{world}");
        }
    });
    futures::future::join_all(runs).await;
}

#[tokio::test]
async fn law_2_holds_over_a_store_that_delays_drops_and_loses_replies() {
    let folder = support::scratch("chaos");
    let image = image(folder.path(), 24);
    let first_seed = support::environment("TIDEMARK_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let runs = support::environment("TIDEMARK_SOAK").map_or(6, |_| 500);
    for seed in first_seed..first_seed + runs {
        let store = support::scratch("store");
        let plain = job::directory(store.path());
        let mut attempt = 0;
        loop {
            attempt += 1;
            let ran = run_checked(
                job::job(image.path(), "uid", attempt),
                chaotic(plain.clone(), seed + attempt),
                store.path(),
            )
            .await;
            if ran.completed() {
                let differs = job::compare(&plain, "pvc-test", &ran.record(), image.path()).await;
                assert_eq!(differs, None, "TIDEMARK_SEED={seed}");
                break;
            }
            assert!(attempt < 5, "TIDEMARK_SEED={seed}: {:?}", ran.last);
        }
    }
}

#[tokio::test]
async fn law_6_an_attempt_that_ended_in_order_is_resumed_without_reading_again() {
    let folder = support::scratch("resume");
    let image = image(folder.path(), 30);
    let store = support::scratch("store");
    let plain = job::directory(store.path());
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let held = holding_blocks(plain.clone(), 10, CancellationToken::new());
    let first = job::run_watched(job::job(image.path(), "uid", 1), held, cancel, move |report| {
        if report.backup().acknowledged_blocks == 10 {
            stop.cancel();
        }
    });
    let first = first.await.last;
    assert_eq!(first.outcome, Some(Outcome::Cancelled), "{first:?}");
    let acknowledged = first.backup().acknowledged_blocks;
    assert_eq!(acknowledged, 10, "{first:?}");
    let counting = Judged::new(plain.clone(), |_| Fate::Perform);
    let second = job::run(job::job(image.path(), "uid", 2), counting.clone()).await;
    let progress = second.last.backup();
    assert_eq!((progress.resumed_blocks, progress.uploaded_blocks), (acknowledged, 30 - acknowledged), "{progress:?}");
    assert_eq!(progress.read_bytes, (30 - acknowledged) << 21, "resumed blocks are not read: {progress:?}");
    assert_eq!(puts_of_blocks(&counting).len() as u64, 30 - acknowledged);
    assert_eq!(job::compare(&plain, "pvc-test", &second.record(), image.path()).await, None);
    let left: Vec<_> = counting.log().into_iter().filter(|c| c.action == "DELETE").collect();
    assert!(left.iter().any(|c| c.key.contains("/tidemark/")), "the journal is removed: {left:?}");
    assert!(!store.path().join("backupstore/volumes").join("tidemark").exists());
}

#[tokio::test]
async fn law_6_a_new_point_in_time_is_never_mixed_with_the_old() {
    let folder = support::scratch("moved");
    let image = image(folder.path(), 12);
    let store = support::scratch("store");
    let plain = job::directory(store.path());
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let held = holding_blocks(plain.clone(), 4, CancellationToken::new());
    let first = job::run_watched(job::job(image.path(), "uid", 1), held, cancel, move |report| {
        if report.backup().acknowledged_blocks == 4 {
            stop.cancel();
        }
    });
    assert_eq!(first.await.last.backup().acknowledged_blocks, 4);
    for index in [0, 1, 2, 7] {
        image.write(index, Block::Text(1000 + index as u64));
    }
    let second = job::run(job::job(image.path(), "uid", 2), plain.clone()).await;
    assert_eq!(second.last.backup().resumed_blocks, 0, "another identity proves nothing: {:?}", second.last);
    assert_eq!(job::compare(&plain, "pvc-test", &second.record(), image.path()).await, None);
}

#[tokio::test]
async fn law_4_a_source_written_while_it_is_read_is_no_backup() {
    let folder = support::scratch("torn");
    let image = image(folder.path(), 12);
    let store = support::scratch("store");
    let gate = CancellationToken::new();
    let held = holding_blocks(job::directory(store.path()), 3, gate.clone());
    let ran = job::run_watched(job::job(image.path(), "uid", 1), held, CancellationToken::new(), |report| {
        if report.backup().acknowledged_blocks == 3 && !gate.is_cancelled() {
            image.write(0, Block::Text(77));
            gate.cancel();
        }
    });
    let last = ran.await.last;
    assert_eq!(last.failure.expect("an error").reason, FailureReason::SourceChanged);
}

#[tokio::test]
async fn law_8_a_marker_that_vanishes_ends_the_attempt_before_it_seals() {
    let folder = support::scratch("marker");
    let image = image(folder.path(), 12);
    let store = support::scratch("store");
    let path = store.path().to_owned();
    let gate = CancellationToken::new();
    let objects = holding_blocks(job::directory(store.path()), 3, gate.clone());
    let ran = job::run_watched(job::job(image.path(), "uid", 1), objects.clone(), CancellationToken::new(), |report| {
        if report.backup().acknowledged_blocks == 3 && !gate.is_cancelled() {
            std::fs::remove_dir_all(record_folder(&path)).expect("removed");
            gate.cancel();
        }
    });
    let last = ran.await.last;
    assert_eq!(last.failure.expect("an error").reason, FailureReason::GuardLost);
    assert!(objects.log().iter().all(|c| !c.is_record_put()), "no record was sent");
}

#[tokio::test]
async fn law_4_completed_is_told_within_one_stall_deadline_of_becoming_true() {
    let folder = support::scratch("tidying");
    let image = image(folder.path(), 2);
    let store = support::scratch("store");
    let plain = job::directory(store.path());
    // The marker is looked at once more after the record was read back; from then on the store answers nothing.
    let state = std::sync::Arc::new(std::sync::Mutex::new((false, None::<std::time::Instant>)));
    let seen = state.clone();
    let silent = Judged::new(plain.clone(), move |call| {
        let mut seen = seen.lock().expect("no holder panics");
        if seen.1.is_some() {
            return Fate::Delay(Duration::from_secs(3600));
        }
        seen.0 |= call.is_record_put();
        if seen.0 && call.action == "HEAD" {
            seen.1 = Some(std::time::Instant::now());
        }
        Fate::Perform
    });
    let mut spec = job::job(image.path(), "uid", 1);
    spec.deadlines.stall_seconds = 10;
    let ran = job::run(spec, silent).await;
    let took = state.lock().expect("no holder panics").1.expect("the record was sealed").elapsed();
    assert!(ran.completed(), "{:?}", ran.last);
    // Who waits for one more request says so after twenty seconds; between the two is the time of a busy machine.
    assert!(took < Duration::from_secs(19), "told {took:?} after it was true, with a stall deadline of 10 s");
    assert_eq!(job::compare(&plain, "pvc-test", &ran.record(), image.path()).await, None);
}

#[tokio::test]
async fn law_7_a_deletion_holds_the_volume_and_a_dead_one_does_not() {
    let folder = support::scratch("locks");
    let image = image(folder.path(), 2);
    let store = support::scratch("store");
    let plain = job::directory(store.path());
    let volume = "pvc-test".parse().expect("a name");
    let key = format!("{}lock-0000000000000000.lck", tidemark::store::layout::VolumeLayout::new(&volume).locks());
    for (body, age_seconds, is_held) in [
        (r#"{"Name":"lock-0000000000000000","Type":2,"Acquired":true}"#, 10, true),
        ("not json", 10, true),
        (r#"{"Name":"lock-0000000000000000","Type":2,"Acquired":true}"#, 200, false),
        (r#"{"Name":"lock-0000000000000000","Type":1,"Acquired":true}"#, 10, false),
    ] {
        let path = store.path().join(&key);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, body).expect("written");
        let modified = std::time::UNIX_EPOCH + Duration::from_secs(job::now().as_second() as u64 - age_seconds);
        std::fs::File::options().write(true).open(&path).and_then(|f| f.set_modified(modified)).expect("aged");
        let ran =
            job::run(job::job(image.path(), &format!("uid-{age_seconds}-{}", body.len()), 1), plain.clone()).await;
        let reason = ran.last.failure.as_ref().map(|f| f.reason);
        assert_eq!(reason, is_held.then_some(FailureReason::LockHeld), "{body} of {age_seconds} s: {:?}", ran.last);
        assert_eq!(ran.completed(), !is_held);
    }
}

#[tokio::test]
async fn law_7_a_volume_config_that_vanished_is_not_made_anew() {
    let folder = support::scratch("config");
    let image = image(folder.path(), 2);
    let store = support::scratch("store");
    let plain = job::directory(store.path());
    assert!(job::run(job::job(image.path(), "one", 1), plain.clone()).await.completed());
    let config = record_folder(store.path()).with_file_name("volume.cfg");
    std::fs::remove_file(&config).expect("removed");
    let ran = job::run(job::job(image.path(), "two", 1), plain.clone()).await;
    assert_eq!(ran.last.failure.expect("an error").reason, FailureReason::VolumeConfigMissing);
    assert!(!config.exists());
}

#[tokio::test]
async fn law_7_a_store_that_fails_every_list_gets_no_record() {
    let folder = support::scratch("lists");
    let image = image(folder.path(), 2);
    let store = support::scratch("store");
    let failing = Judged::new(job::directory(store.path()), |call| match call.action {
        "LIST" => Fate::Fail(ErrorKind::Unavailable),
        _ => Fate::Perform,
    });
    let mut spec = job::job(image.path(), "uid", 1);
    spec.deadlines.stall_seconds = 2;
    let ran = job::run(spec, failing.clone()).await;
    assert_eq!(ran.last.outcome, Some(Outcome::Failed), "{:?}", ran.last);
    assert!(failing.log().iter().all(|c| !c.is_record_put() && !c.is_block_put()));
}
