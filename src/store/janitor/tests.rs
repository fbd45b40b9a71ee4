//! When the dead may be cleared, age by age.

use super::*;
use crate::store::objects::Meta;

const MINUTE: i64 = 60;
const HOUR: i64 = 3600;

fn now() -> Timestamp {
    Timestamp::from_second(2_000_000_000).expect("in range")
}

/// A volume whose belongings a test puts together.
struct World(Belongings);

impl World {
    fn new() -> Self {
        let layout = VolumeLayout::new(&"pvc-demo".parse().expect("valid"));
        let (backups, heads, incomplete, tidemark, locks) = Default::default();
        Self(Belongings { layout, backups, heads, incomplete, tidemark, locks })
    }

    fn entry(key: String, age: i64) -> Entry {
        let modified = now().checked_sub(SignedDuration::from_secs(age)).ok();
        Entry { key, meta: Meta { size: 9, etag: Some("e".into()), modified }, is_archived: false }
    }

    fn head(uid: &str, attempt: &AttemptId, created: &str) -> RecordHead {
        let labels = [(label::BACKUP_UID, uid), (label::ATTEMPT, attempt.as_str()), (label::MARKER, "true")];
        RecordHead {
            created_time: created.into(),
            labels: Some(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
            ..RecordHead::default()
        }
    }

    fn with_marker(mut self, uid: &str, attempt: &AttemptId, age: i64) -> Self {
        let key = self.0.layout.backup(&BackupName::of_marker(attempt));
        self.0.heads.insert(key.clone(), Self::head(uid, attempt, ""));
        self.0.backups.push(Self::entry(key, age));
        self
    }

    fn with_record(mut self, uid: &str, attempt: &AttemptId, age: i64) -> Self {
        let key = self.0.layout.backup(&BackupName::of_attempt(uid, attempt));
        self.0.heads.insert(key.clone(), Self::head(uid, attempt, "2026-11-23T05:47:02Z"));
        self.0.backups.push(Self::entry(key, age));
        self
    }

    fn with_journal(mut self, uid: &str, attempt: &AttemptId, age: i64) -> Self {
        for key in [self.0.layout.attempt(uid, attempt), self.0.layout.segment(uid, attempt, 0)] {
            self.0.tidemark.push(Self::entry(key, age));
        }
        self
    }

    fn with_tombstone(mut self, uid: &str, age: i64) -> Self {
        self.0.tidemark.push(Self::entry(self.0.layout.tombstone(uid), age));
        self
    }

    fn with_lock(mut self, attempt: &AttemptId, age: i64) -> Self {
        self.0.locks.push(Self::entry(self.0.layout.lock(attempt), age));
        self
    }

    fn with_unfinished(mut self, name: &str, age: i64) -> Self {
        self.0.tidemark.push(Self::entry(format!("{}{name}", self.0.layout.unfinished()), age));
        self
    }

    /// What would go, by kind.
    fn cleared(&self, living: &Living) -> Vec<Remnant> {
        plan(&self.0, living, now()).clear.into_iter().map(|clear| clear.what).collect()
    }
}

fn attempt() -> AttemptId {
    AttemptId::new(7, [7; 10])
}

fn nobody() -> Living {
    Living { wanted: Wanted::Only(BTreeSet::new()), ..Living::default() }
}

fn wanted() -> Living {
    Living { wanted: Wanted::Only(["uid".to_owned()].into()), ..nobody() }
}

use Remnant::{Journal, LateRecord, Lock, Marker, SecondRecord, Tombstone, Unfinished};

#[test]
fn a_marker_goes_when_every_object_of_its_attempt_is_old_and_nobody_wants_it() {
    let old = || World::new().with_marker("uid", &attempt(), 20 * MINUTE).with_journal("uid", &attempt(), 20 * MINUTE);
    assert_eq!(old().cleared(&nobody()), [Marker, Journal], "the marker first");
    assert_eq!(old().cleared(&wanted()), [], "it may be tried again");
    assert_eq!(old().cleared(&Living::default()), [], "who knows");
    let alive = Living { attempts: [attempt()].into(), ..nobody() };
    assert_eq!(old().cleared(&alive), []);
    assert_eq!(old().with_lock(&attempt(), 19 * MINUTE).cleared(&nobody()), [], "its lock is young");
    assert_eq!(old().with_journal("uid", &attempt(), 60).cleared(&nobody()), [], "a segment is young");
    let expired = World::new().with_marker("uid", &attempt(), 24 * HOUR).with_journal("uid", &attempt(), 24 * HOUR);
    assert_eq!(expired.cleared(&wanted()), [Marker, Journal], "markerTTL");
    assert_eq!(expired.cleared(&Living { attempts: [attempt()].into(), ..wanted() }), []);
}

#[test]
fn law_7_what_has_no_age_is_young() {
    let mut world = World::new().with_marker("uid", &attempt(), 48 * HOUR).with_lock(&attempt(), 48 * HOUR);
    world = world.with_tombstone("other", 48 * HOUR);
    for entry in [&mut world.0.backups, &mut world.0.locks, &mut world.0.tidemark].into_iter().flatten() {
        entry.meta.modified = None;
    }
    assert_eq!(world.cleared(&nobody()), []);
    let future = World::new().with_marker("uid", &attempt(), -48 * HOUR).with_lock(&attempt(), -48 * HOUR);
    assert_eq!(future.cleared(&nobody()), [], "written in the future");
}

#[test]
fn another_programs_config_in_progress_is_not_ours_to_judge() {
    let mut world = World::new().with_marker("uid", &attempt(), 48 * HOUR);
    let key = world.0.backups[0].key.replace("tidemark-", "elsewhere-");
    let head = World::head("uid", &attempt(), "");
    world.0.heads.insert(key.clone(), head);
    world.0.backups[0].key = key;
    assert_eq!(world.cleared(&nobody()), [], "a marker under another name");
    let mut world = World::new().with_marker("uid", &attempt(), 48 * HOUR);
    world.0.heads.values_mut().for_each(|head| head.labels = None);
    assert_eq!(world.cleared(&nobody()), [], "without our labels");
}

#[test]
fn law_8_what_arrives_after_a_tombstone_goes_at_once() {
    let world = World::new()
        .with_tombstone("uid", HOUR)
        .with_record("uid", &attempt(), 1)
        .with_marker("uid", &attempt(), 1)
        .with_journal("uid", &attempt(), 1)
        .with_record("other", &attempt(), 1);
    let clearing = plan(&world.0, &wanted(), now());
    let whats: Vec<_> = clearing.clear.iter().map(|clear| clear.what).collect();
    assert_eq!(whats, [LateRecord, Marker, Journal], "{clearing:?}");
    assert!(clearing.needs_sweep() && clearing.has_configs());
    assert_eq!(clearing.clear[0].keys, [world.0.layout.backup(&BackupName::of_attempt("uid", &attempt()))]);
}

#[test]
fn law_8_a_second_record_goes_only_beside_a_whole_one_that_its_backup_calls_its_own() {
    let (stale, own) = (attempt(), AttemptId::new(8, [8; 10]));
    let name = |attempt: &AttemptId| BackupName::of_attempt("uid", attempt);
    let two = |age| World::new().with_record("uid", &stale, age).with_record("uid", &own, HOUR);
    let knows = |record: &AttemptId| Living {
        recorded: Recorded { own: [("uid".to_owned(), name(record))].into(), referred: [name(record)].into() },
        ..nobody()
    };
    let key = two(HOUR).0.layout.backup(&name(&stale));
    let clearing = plan(&two(HOUR).0, &knows(&own), now());
    assert_eq!((clearing.clear[0].what, &clearing.clear[0].keys), (SecondRecord, &vec![key]), "{clearing:?}");
    assert_eq!(clearing.clear.len(), 1);
    assert!(clearing.needs_sweep() && clearing.has_configs());
    assert_eq!(two(HOUR).cleared(&knows(&stale)), [SecondRecord], "whichever it calls its own: the older was adopted");
    assert_eq!(two(HOUR).cleared(&nobody()), [], "of two the bucket does not say which");
    assert_eq!(two(19 * MINUTE).cleared(&knows(&own)), [], "somebody may just have begun to read it");
    assert_eq!(two(HOUR).cleared(&knows(&AttemptId::new(9, [9; 10]))), [], "its own is not there");
    let mut referred = knows(&own);
    referred.recorded.referred.insert(name(&stale));
    assert_eq!(two(HOUR).cleared(&referred), [], "imported by somebody");
    let mut broken = two(HOUR);
    broken.0.incomplete.insert(broken.0.layout.backup(&name(&own)));
    assert_eq!(broken.cleared(&knows(&own)), [], "its own lacks a block, and this one may not");
    let mut unread = two(HOUR);
    unread.0.heads.remove(&unread.0.layout.backup(&name(&own)));
    assert_eq!(unread.cleared(&knows(&own)), [], "its own could not be read");
    let mut marker = World::new().with_record("uid", &stale, HOUR).with_marker("uid", &own, HOUR);
    let in_its_place = marker.0.layout.backup(&name(&own));
    marker.0.heads.insert(in_its_place, World::head("uid", &own, ""));
    assert!(!marker.cleared(&knows(&own)).contains(&SecondRecord), "its own is not complete");
    let others = World::new().with_record("other", &stale, HOUR).with_record("uid", &own, HOUR);
    assert_eq!(others.cleared(&knows(&own)), [], "another Backup's");
}

#[test]
fn a_tombstone_stays_a_day_and_as_long_as_anything_of_its_backup() {
    let day = || World::new().with_tombstone("uid", 24 * HOUR);
    assert_eq!(day().cleared(&nobody()), [Tombstone]);
    assert_eq!(World::new().with_tombstone("uid", 24 * HOUR - 1).cleared(&nobody()), []);
    assert_eq!(day().with_journal("uid", &attempt(), HOUR).cleared(&nobody()), [Journal], "first the rest");
    assert_eq!(day().with_record("uid", &attempt(), HOUR).cleared(&nobody()), [LateRecord]);
    assert_eq!(day().with_record("other", &attempt(), HOUR).cleared(&nobody()), [Tombstone]);
    let mut unread = day().with_record("uid", &attempt(), HOUR);
    unread.0.heads.clear();
    assert_eq!(unread.cleared(&nobody()), [], "a record that was not read may be its Backup's");
}

#[test]
fn a_lock_goes_when_no_request_of_its_holder_can_arrive_any_more() {
    assert_eq!(World::new().with_lock(&attempt(), 20 * MINUTE).cleared(&nobody()), [Lock]);
    assert_eq!(World::new().with_lock(&attempt(), 20 * MINUTE - 1).cleared(&nobody()), []);
    let alive = Living { attempts: [attempt()].into(), ..nobody() };
    assert_eq!(World::new().with_lock(&attempt(), 48 * HOUR).cleared(&alive), []);
}

#[test]
fn a_temporary_file_goes_after_a_day_and_is_nothing_else_meanwhile() {
    let one = |name: &str, age| World::new().with_unfinished(name, age);
    for name in ["volume.cfg.tmp.1", "deleted.tmp.12", "ab.blk.tmp.123", "00000001.jnl.tmp.9", "attempt.json.tmp.9"] {
        assert_eq!(one(name, 24 * HOUR).cleared(&wanted()), [Unfinished], "{name}");
        assert_eq!(one(name, 24 * HOUR - 1).cleared(&nobody()), [], "{name}");
        assert!(Tombstones::of(&one(name, 0).0.layout, &one(name, 0).0.tidemark).is_empty(), "{name}");
    }
    for name in ["volume.cfg", "volume.cfg.tmp.", "volume.cfg.tmp.mine"] {
        assert_eq!(one(name, 1000 * HOUR).cleared(&nobody()), [], "{name} is not ours");
    }
}

#[test]
fn a_journal_that_outlived_its_record_goes() {
    let world = World::new().with_record("uid", &attempt(), HOUR).with_journal("uid", &attempt(), HOUR);
    assert_eq!(world.cleared(&wanted()), [Journal]);
    let world = World::new().with_journal("uid", &attempt(), HOUR);
    assert_eq!(world.cleared(&wanted()), []);
}
