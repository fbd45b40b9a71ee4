//! Longhorn at work beside us: its locks stop us and ours stop it, until they expire; its deletion, begun at any moment of
//! our backup, takes no block that a backup of ours names; and our backup, begun at any moment of its deletion, waits.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use crate::support::{
    self, Block, Fault, Image, Kind, Longhorn, Place, Rule, S3Server, TempDir, Tidemark,
    decorators::{Fate, Judged},
    image::difference_after_growth,
    job,
    longhorn::{Create, age, layout, walk},
};
use futures::future::join_all;
use tidemark::{
    model::{FailureReason, Outcome},
    store::{
        guard::Timing,
        objects::{Objects, Range},
        record::Record,
    },
};
use tokio::sync::Semaphore;

const VOLUME: &str = "pvc-test";
const HELD: i32 = 69;

/// A store that holds Longhorn's backup of one image, and another image that shares blocks with it.
struct World {
    place: Place,
    server: S3Server,
    longhorn: Longhorn,
    ours: Tidemark,
    first: Image,
    second: Image,
    folder: TempDir,
}

impl World {
    async fn new(is_s3: bool) -> Self {
        let folder = support::scratch("beside");
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("store")).expect("a new folder");
        let server = S3Server::start();
        server.create_bucket("backups");
        let place = if is_s3 { Place::S3(server.endpoint()) } else { Place::Directory(path("store")) };
        let first = Image::of(&path("first"), &[1, 2, 3].map(Block::Text));
        let second = Image::of(&path("second"), &[2, 3, 4, 5].map(Block::Text));
        let (longhorn, ours) = (Longhorn::here(), Tidemark::at(&place));
        longhorn.create(&place, &Create::new(VOLUME, "backup-first", first.path())).await.done("create");
        Self { place, server, longhorn, ours, first, second, folder }
    }

    /// The volume's folder on disk, whichever the store.
    fn root(&self) -> PathBuf {
        let base = match &self.place {
            Place::Directory(path) => path.clone(),
            Place::S3(_) => self.server.bucket("backups").join("some/prefix"),
        };
        base.join(layout(VOLUME).root())
    }

    fn blocks(&self) -> usize {
        walk(&self.root().join("blocks")).len()
    }

    /// Makes every lock that lies there as old as this; negative: from the future.
    fn age_locks(&self, seconds: i64) {
        let locks = walk(&self.root().join("locks"));
        assert!(!locks.is_empty(), "a lock stayed behind");
        age(&self.root().join("locks"), seconds);
    }

    /// Old enough for our deletion to take it.
    fn age_blocks(&self) {
        age(&self.root().join("blocks"), 3600);
    }

    async fn restores(&self, backup: &str, image: &Image) {
        let out = self.folder.path().join("out");
        let ended = self.ours.restore(VOLUME, backup, &out).await;
        assert_eq!(ended.code, 0, "{ended:#?}");
        assert_eq!(difference_after_growth(image.path(), &out), None, "{backup}");
    }
}

/// Blocks that a record names and the store does not have. Markers name none.
async fn missing_blocks(objects: &Arc<dyn Objects>) -> Vec<String> {
    let layout = layout(VOLUME);
    let list = async |prefix: String| objects.list(&prefix, None).await.expect("the plain store lists").entries;
    let present: BTreeSet<String> = list(layout.blocks()).await.into_iter().map(|e| e.key).collect();
    let mut missing = Vec::new();
    for entry in list(layout.backups()).await {
        let fetched = objects.get(&entry.key, Range::whole(u64::MAX)).await.expect("the plain store reads");
        let record = Record::parse(&fetched.expect("just listed").bytes).expect("every record parses");
        let keys = record.blocks.iter().map(|b| layout.block(&b.block_checksum));
        missing.extend(keys.filter(|key| !present.contains(key)).map(|key| format!("{} names {key}", entry.key)));
    }
    missing
}

#[tokio::test(flavor = "multi_thread")]
async fn law_7_longhorns_deletion_lock_stops_our_backup_until_it_is_released() {
    join_all([true, false].map(async |is_s3| {
        let world = World::new(is_s3).await;
        let held = world.longhorn.lock(&world.place, VOLUME, 2).await.expect("nobody else is there");
        let refused = world.ours.try_backup(VOLUME, world.second.path(), &[]).await;
        assert_eq!(refused.code, HELD, "{refused:#?}");
        assert!(refused.stderr.contains("LockHeld") && refused.stderr.contains("/locks/lock-"), "{refused:#?}");
        assert_eq!(walk(&world.root().join("backups")).len(), 1, "no marker, no record");
        held.release().await;
        let backup = world.ours.backup(VOLUME, world.second.path(), &[]).await;
        world.restores(&backup, &world.second).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_backup_stops_longhorns_deletion_until_it_ends_and_shares_with_its_backups() {
    let world = World::new(true).await;
    world.server.fault(Rule::new(Fault::Hold).on(Kind::PutBlock));
    let ours = async {
        let backup = world.ours.backup(VOLUME, world.second.path(), &[]).await;
        world.restores(&backup, &world.second).await;
    };
    let theirs = async {
        wait_for_held(&world.server).await;
        let refused = world.longhorn.delete(&world.place, VOLUME, "backup-first").await;
        assert!(!refused.ok && refused.error().contains("failed to acquire lock"), "{refused:?}");
        // Backups and restores share their lock.
        let out = world.folder.path().join("theirs");
        world.longhorn.restore(&world.place, VOLUME, "backup-first", &out).await.done("restore");
        assert_eq!(difference_after_growth(world.first.path(), &out), None);
        world.server.heal();
    };
    tokio::join!(ours, theirs);
    world.longhorn.delete(&world.place, VOLUME, "backup-first").await.done("delete");
    assert_eq!(missing_blocks(&world.place.objects()).await, Vec::<String>::new());
}

async fn wait_for_held(server: &S3Server) {
    support::eventually("a request is held", Duration::from_secs(60), async || {
        let held = server.requests().into_iter().any(|r| r.fault == Some(Fault::Hold));
        held.then_some(()).ok_or_else(|| format!("{:?}", server.counts()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn longhorns_dead_locks_hold_us_for_180_s_of_server_time_and_no_longer() {
    join_all([true, false].map(async |is_s3| {
        let world = World::new(is_s3).await;
        // Not released: its process is gone, its lock stays.
        drop(world.longhorn.lock(&world.place, VOLUME, 2).await.expect("nobody else is there"));
        for (age, expected) in [(100, HELD), (-500, HELD), (200, 0)] {
            world.age_locks(age);
            let ended = world.ours.try_backup(VOLUME, world.second.path(), &[]).await;
            assert_eq!(ended.code, expected, "a lock {age} s old: {ended:#?}");
        }
        assert_eq!(missing_blocks(&world.place.objects()).await, Vec::<String>::new());
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn law_6_our_dead_lock_holds_longhorn_for_150_s_and_our_marker_keeps_the_blocks_after_that() {
    let world = World::new(true).await;
    world.server.fault(Rule::new(Fault::Hold).on(Kind::PutBlock).after(1));
    let (image, target) = (world.second.path().display().to_string(), world.place.target());
    let arguments = ["backup", &image, "--target", &target, "--volume", VOLUME, "--json"];
    let mut killed = world.ours.command(&arguments).stdout(std::process::Stdio::null()).spawn().expect("it starts");
    wait_for_held(&world.server).await;
    killed.kill().await.expect("it runs");
    world.server.heal();
    world.age_locks(100);
    let refused = world.longhorn.delete(&world.place, VOLUME, "backup-first").await;
    assert!(!refused.ok && refused.error().contains("failed to acquire lock"), "100 s old: {refused:?}");
    world.age_locks(200);
    let before = world.blocks();
    world.longhorn.delete(&world.place, VOLUME, "backup-first").await.done("delete");
    assert_eq!(world.blocks(), before, "beside a marker Longhorn sweeps nothing");
    // The same command goes on: what was sent before is not sent again.
    let backup = world.ours.backup(VOLUME, world.second.path(), &[]).await;
    world.restores(&backup, &world.second).await;
    assert_eq!(missing_blocks(&world.place.objects()).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn law_7_longhorns_deletion_begun_at_any_call_of_our_backup_takes_no_block_of_ours() {
    let at_once = Semaphore::new(12);
    let (calls, at_once) = (44, &at_once);
    let worlds = (0..calls).step_by(step()).map(async |n| {
        let _permit = at_once.acquire().await.expect("never closed");
        deletion_begun_at(n).await
    });
    let was_reached: Vec<bool> = join_all(worlds).await;
    let reached = was_reached.iter().filter(|reached| **reached).count();
    assert!((25 / step()..was_reached.len()).contains(&reached), "not every call was visited: {was_reached:?}");
}

/// Every third world, or every one: `make soak`.
fn step() -> usize {
    support::environment("TIDEMARK_SOAK").map_or(3, |_| 1)
}

/// One world: at the n-th call of our attempt Longhorn begins to delete its backup. `false`: there was no such call.
async fn deletion_begun_at(n: u64) -> bool {
    let world = World::new(false).await;
    let plain = world.place.objects();
    let (begin, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let judged = Judged::new(plain.clone(), move |call| {
        if call.number == n {
            // Nobody listens once the attempt is over.
            let _ = begin.send(call.clone());
        }
        Fate::Perform
    });
    let theirs = async {
        let call = begun.recv().await?;
        Some((call, world.longhorn.delete(&world.place, VOLUME, "backup-first").await))
    };
    let ours = job::run_by_clock(job::job(world.second.path(), "uid", 1), judged, Timing::default());
    let (last, deleted) = tokio::join!(ours, theirs);
    let Some((call, deleted)) = deleted else { return false };
    let seen = format!("begun at call {n}, {call:?}: {deleted:?}, then {:?}", last.failure);
    assert_eq!(missing_blocks(&plain).await, Vec::<String>::new(), "{seen}");
    if last.outcome == Some(Outcome::Failed) {
        let reason = last.failure.map(|f| f.reason);
        assert!(matches!(reason, Some(FailureReason::LockHeld | FailureReason::GuardLost)), "{seen}");
    }
    // Whatever happened, the same backup succeeds now.
    let ran = job::run(job::job(world.second.path(), "uid", 2), plain.clone()).await;
    assert!(ran.completed(), "{seen}: {:?}", ran.last);
    assert_eq!(job::compare(&plain, VOLUME, &ran.record(), world.second.path()).await, None, "{seen}");
    assert_eq!(missing_blocks(&plain).await, Vec::<String>::new(), "{seen}");
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn law_7_our_backup_begun_at_any_request_of_longhorns_deletion_waits_or_is_whole() {
    let at_once = Semaphore::new(12);
    let at_once = &at_once;
    let worlds = (0..40).step_by(step()).map(async |n| {
        let _permit = at_once.acquire().await.expect("never closed");
        backup_begun_at(n).await
    });
    let refused: Vec<Option<bool>> = join_all(worlds).await;
    let (reached, held) = (refused.iter().flatten().count(), refused.iter().flatten().filter(|held| **held).count());
    assert!((8 / step()..refused.len()).contains(&reached), "{reached} requests were visited: {refused:?}");
    assert!(held >= 5 / step(), "only {held} of {reached} found the deletion's lock: {refused:?}");
}

/// One world: Longhorn's deletion stops at its n-th request while we begin. `Some(true)`: we were refused. `None`: it made
/// no such request.
async fn backup_begun_at(n: u64) -> Option<bool> {
    let world = World::new(true).await;
    let kept = Create { base: Some((world.first.path().into(), "snap-backup-first".into())), ..second(&world) };
    world.longhorn.create(&world.place, &kept).await.done("create");
    world.server.forget_requests();
    world.server.fault(Rule::new(Fault::Hold).after(n).times(1));
    let deletion = world.longhorn.delete(&world.place, VOLUME, "backup-first");
    tokio::pin!(deletion);
    let said = tokio::select! {
        said = &mut deletion => Err(said),
        () = wait_for_held(&world.server) => Ok(()),
    };
    if let Err(said) = said {
        said.done("delete");
        return None;
    }
    let begun = world.ours.try_backup(VOLUME, world.second.path(), &[]).await;
    let seen = format!("begun at request {n} of the deletion: {begun:?}");
    assert!(matches!(begun.code, 0 | HELD), "{seen}");
    world.server.heal();
    let deleted = deletion.await;
    let plain = world.place.objects();
    assert_eq!(missing_blocks(&plain).await, Vec::<String>::new(), "{seen}, {deleted:?}");
    let backup = world.ours.backup(VOLUME, world.second.path(), &[]).await;
    world.restores(&backup, &world.second).await;
    world.restores("backup-second", &world.second).await;
    Some(begun.code == HELD)
}

fn second(world: &World) -> Create {
    Create::new(VOLUME, "backup-second", world.second.path())
}

#[tokio::test(flavor = "multi_thread")]
async fn law_7_our_deletion_waits_for_longhorns_backups_and_restores_and_holds_them_off() {
    let world = World::new(true).await;
    let backup = world.ours.backup(VOLUME, world.second.path(), &[]).await;
    let held = world.longhorn.lock(&world.place, VOLUME, 1).await.expect("nobody else is there");
    let refused = world.ours.delete(VOLUME, &backup).await;
    assert!(refused.code == HELD && refused.stderr.contains("/locks/lock-"), "{refused:#?}");
    world.restores(&backup, &world.second).await;
    // Its process is gone and its lock stays: for 210 s we believe it, longer than Longhorn does. (A busy machine takes
    // its time between the two lines.)
    drop(held);
    world.age_locks(155);
    let ended = world.ours.delete(VOLUME, &backup).await;
    assert_eq!(ended.code, HELD, "a lock 155 s old: {ended:#?}");
    world.age_locks(250);
    world.age_blocks();
    // It lists blocks under its lock.
    world.server.fault(Rule::new(Fault::Hold).on(Kind::List).key("/blocks/").times(1));
    let ours = world.ours.delete(VOLUME, &backup);
    let theirs = async {
        wait_for_held(&world.server).await;
        let refused = world.longhorn.create(&world.place, &second(&world)).await;
        assert!(!refused.ok && refused.error().contains("failed to acquire lock"), "{refused:?}");
        world.server.heal();
    };
    let (ended, ()) = tokio::join!(ours, theirs);
    assert_eq!(ended.code, 0, "{ended:#?}");
    assert_eq!(world.blocks(), 3, "those of Longhorn's backup");
    world.restores("backup-first", &world.first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn law_7_our_deletion_begun_at_any_request_of_longhorns_backup_takes_no_block_of_it() {
    let at_once = Semaphore::new(12);
    let at_once = &at_once;
    let worlds = (0..48).step_by(step()).map(async |n| {
        let _permit = at_once.acquire().await.expect("never closed");
        our_deletion_begun_at(n).await
    });
    let codes: Vec<Option<i32>> = join_all(worlds).await;
    let reached = codes.iter().flatten().count();
    assert!((15 / step()..codes.len()).contains(&reached), "not every request was visited: {codes:?}");
    assert!(codes.contains(&Some(HELD)), "none found the backup's lock: {codes:?}");
}

/// One world: Longhorn backs up what our backup has already, and stops at its n-th request while we delete ours. The exit
/// code of our deletion; `None`: it made no such request.
async fn our_deletion_begun_at(n: u64) -> Option<i32> {
    let world = World::new(true).await;
    let ours = world.ours.backup(VOLUME, world.second.path(), &[]).await;
    world.age_blocks();
    world.server.forget_requests();
    world.server.fault(Rule::new(Fault::Hold).after(n).times(1));
    let create = second(&world);
    let creation = world.longhorn.create(&world.place, &create);
    tokio::pin!(creation);
    let said = tokio::select! {
        said = &mut creation => Err(said),
        () = wait_for_held(&world.server) => Ok(()),
    };
    if let Err(said) = said {
        said.done("create");
        return None;
    }
    let deleted = world.ours.delete(VOLUME, &ours).await;
    let seen = format!("begun at request {n} of the backup: {deleted:?}");
    assert!(matches!(deleted.code, 0 | HELD), "{seen}");
    world.server.heal();
    let created = creation.await;
    assert_eq!(missing_blocks(&world.place.objects()).await, Vec::<String>::new(), "{seen}, {created:?}");
    if created.ok {
        world.restores("backup-second", &world.second).await;
    }
    world.restores("backup-first", &world.first).await;
    Some(deleted.code)
}
