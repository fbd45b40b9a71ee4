//! Longhorn's advisory lock: its body, its order, and the pure judgement of what a listing of locks allows.
//!
//! Format and rules: github.com/longhorn/backupstore `lock.go`. Type 1 (backup and restore) is shared, type 2 (deletion)
//! excludes it. Order: acquired first, then server time, then name.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::limits;

/// Shared by backups and restores.
pub const TYPE_BACKUP: i64 = 1;
/// Excludes them.
pub const TYPE_DELETE: i64 = 2;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct LockBody {
    pub name: String,
    #[serde(rename = "Type")]
    pub kind: i64,
    pub acquired: bool,
}

impl LockBody {
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a lock has string keys only")
    }
}

/// A lock of another, as listed and read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherLock {
    pub key: String,
    /// Absent: it could not be read. Then it is held (law 7).
    pub body: Option<LockBody>,
    pub modified: Option<Timestamp>,
}

/// What the other locks allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    Free,
    /// A deleter died without removing its lock: go on, and look for missing blocks before sealing.
    Suspect,
    /// The lock that holds the volume, and why it is believed.
    Held {
        key: String,
        why: String,
    },
}

/// Judges the other locks for a deletion: backups and restores exclude it, other deletions do not (as with Longhorn).
pub fn judge_for_deletion(others: &[OtherLock], server_now: Timestamp) -> Judgement {
    for lock in others {
        let held = |why: String| Judgement::Held { key: lock.key.clone(), why };
        let Some(body) = &lock.body else {
            return held("it cannot be read, so it counts as held".into());
        };
        if body.kind == TYPE_DELETE {
            continue;
        }
        let Some(modified) = lock.modified else {
            return held("its age is unknown, so it counts as held".into());
        };
        let age = server_now.duration_since(modified);
        if age < age_of(limits::BACKUP_LOCK_AGE) {
            let left = (age_of(limits::BACKUP_LOCK_AGE) - age).as_secs();
            return held(format!(
                "a backup or restore wrote it {} s ago (server time): try again when it has ended, or, if its program is \
                 dead, in {left} s",
                age.as_secs()
            ));
        }
    }
    Judgement::Free
}

fn age_of(limit: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(limit).unwrap_or(jiff::SignedDuration::MAX)
}

/// Judges the other locks for a backup or restore when `server_now` is the server's time.
pub fn judge(others: &[OtherLock], server_now: Timestamp) -> Judgement {
    let mut judgement = Judgement::Free;
    for lock in others {
        let held = |why: String| Judgement::Held { key: lock.key.clone(), why };
        let Some(body) = &lock.body else {
            let why =
                "it cannot be read, so it counts as held: delete the object if no deletion of this volume is running";
            return held(why.into());
        };
        if body.kind == TYPE_BACKUP {
            continue;
        }
        let Some(modified) = lock.modified else {
            return held("its age is unknown, so it counts as held".into());
        };
        let age = server_now.duration_since(modified);
        if age > age_of(limits::DELETION_LOCK_AGE) {
            judgement = Judgement::Suspect;
            continue;
        }
        let age = age.as_secs();
        return held(format!(
            "a deletion wrote it {age} s ago (server time); it ends by itself within {:?}",
            limits::DELETION_LOCK_AGE
        ));
    }
    judgement
}

/// The server's time now: our own lock's modification time plus what has passed since its PUT was answered.
pub fn server_now(own_modified: Timestamp, since_reply: Duration) -> Timestamp {
    let since = jiff::SignedDuration::try_from(since_reply).unwrap_or(jiff::SignedDuration::ZERO);
    own_modified.checked_add(since).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(kind: i64, age_seconds: i64) -> OtherLock {
        OtherLock {
            key: "locks/lock-a.lck".into(),
            body: Some(LockBody { name: "lock-a".into(), kind, acquired: true }),
            modified: Timestamp::from_second(1_000_000 - age_seconds).ok(),
        }
    }

    fn judged(lock: OtherLock) -> Judgement {
        judge(&[lock], Timestamp::from_second(1_000_000).expect("in range"))
    }

    #[test]
    fn the_body_is_longhorns() {
        let body = LockBody { name: "lock-1acb1ecccc054716".into(), kind: TYPE_DELETE, acquired: true };
        assert_eq!(body.encode(), br#"{"Name":"lock-1acb1ecccc054716","Type":2,"Acquired":true}"#, "reference 1.9");
    }

    #[test]
    fn backups_share_and_deletions_exclude() {
        assert_eq!(judged(lock(TYPE_BACKUP, 5)), Judgement::Free);
        assert!(matches!(judged(lock(TYPE_DELETE, 5)), Judgement::Held { .. }));
        assert!(matches!(judged(lock(TYPE_DELETE, -500)), Judgement::Held { .. }), "written in the future");
        assert!(matches!(judged(lock(0, 5)), Judgement::Held { .. }), "an unknown type");
        assert_eq!(judged(lock(TYPE_DELETE, 181)), Judgement::Suspect);
    }

    #[test]
    fn a_deletion_waits_for_backups_and_not_for_deletions() {
        let judged = |lock| judge_for_deletion(&[lock], Timestamp::from_second(1_000_000).expect("in range"));
        for (kind, age, is_held) in [
            (TYPE_BACKUP, 5, true),
            (TYPE_BACKUP, 209, true),
            (TYPE_BACKUP, 210, false),
            (TYPE_BACKUP, -500, true),
            (TYPE_DELETE, 5, false),
            (0, 5, true),
        ] {
            let judgement = judged(lock(kind, age));
            assert_eq!(matches!(judgement, Judgement::Held { .. }), is_held, "type {kind}, {age} s: {judgement:?}");
        }
    }

    #[test]
    fn law_7_a_lock_that_cannot_be_read_is_held() {
        let now = Timestamp::from_second(1_000_000).expect("in range");
        for unknown in [OtherLock { body: None, ..lock(2, 5000) }, OtherLock { modified: None, ..lock(1, 5000) }] {
            assert!(matches!(judge_for_deletion(&[unknown], now), Judgement::Held { .. }));
        }
        assert!(matches!(judged(OtherLock { body: None, ..lock(1, 5) }), Judgement::Held { .. }));
        assert!(matches!(judged(OtherLock { modified: None, ..lock(2, 5) }), Judgement::Held { .. }));
    }
}
