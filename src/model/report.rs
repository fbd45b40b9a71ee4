//! `Report`: the one line up. Numbered, keyed and cumulative, so that a lost, repeated, reordered, late or forged one
//! moves nothing wrongly: it can only be too low, never too high.

use std::fmt;

use aws_lc_rs::{constant_time, hmac};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    AttemptId, BackupName, BlockSize, Compression, Counters, Failure, Phase, Progress, Requests, Verification, limits,
};

/// The schema version this program writes; it reads this one and the one before.
pub const REPORT_VERSION: u32 = 1;

/// The word before a report on stdout.
pub const LOG_WORD: &str = "tidemark-report";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub v: u32,
    pub attempt: AttemptId,
    pub pod: String,
    pub sequence: u64,
    pub time: Timestamp,
    pub phase: Phase,
    /// On the wire `progress` for a backup, `restored` for a restore.
    #[serde(flatten)]
    pub counters: Counters,
    pub requests: Requests,
    /// Facts of the plan, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// The first blocks that could not be restored, by offset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<Damaged>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Only with `Outcome::Completed`, and only if the job asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
}

/// What the worker found and decided before the first block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    pub volume_bytes: u64,
    pub block_size: BlockSize,
    pub compression: Compression,
    /// The record this one builds on; absent: none was usable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<BackupName>,
}

/// A block that could not be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Damaged {
    pub offset: u64,
    /// Key of the object.
    pub object: String,
    pub reason: DamageReason,
}

/// What is wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DamageReason {
    /// It is not in the store.
    Missing,
    /// It cannot be read, or what it holds cannot be decoded.
    Unreadable,
    /// It holds other bytes than its name says.
    ChecksumMismatch,
}

impl DamageReason {
    /// The word in status.
    pub const fn as_str(self) -> &'static str {
        match self {
            DamageReason::Missing => "Missing",
            DamageReason::Unreadable => "Unreadable",
            DamageReason::ChecksumMismatch => "ChecksumMismatch",
        }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The record was acknowledged, read back and found equal, and the guard was seen whole after that (law 4).
    Completed {
        backup: BackupName,
        adopted: bool,
    },
    /// Every block's checksum held and the device was flushed.
    Restored,
    /// `failure` says why.
    Failed,
    Cancelled,
}

/// 32 bytes that only the operator and the worker of one attempt know.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReportKey([u8; 32]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    #[error("Report is {0} bytes, at most {max} are read", max = limits::REPORT_BYTES_MAX)]
    TooLong(usize),
    #[error("Report does not parse: {0}")]
    Malformed(String),
    #[error("Report was not written with this attempt's key")]
    WrongKey,
    #[error("Report has schema version {0}, this program reads {REPORT_VERSION}")]
    UnknownVersion(u32),
}

impl Report {
    /// One JSON line without its newline: the report with `mac`, HMAC-SHA-256 over the line without it.
    pub fn encode(&self, key: &ReportKey) -> String {
        let mut body = self.body();
        // Damage is listed as far as the line has room: fewer are a report that says too little, never too much.
        let mut shorter = self.clone();
        while body.len() + MAC_BYTES > limits::REPORT_BYTES_MAX && shorter.damaged.pop().is_some() {
            body = shorter.body();
        }
        let mac = key.mac(body.as_bytes());
        let line = format!("{},\"mac\":\"{mac}\"}}", &body[..body.len() - 1]);
        debug_assert!(line.len() <= limits::REPORT_BYTES_MAX, "report of {} bytes", line.len());
        line
    }

    fn body(&self) -> String {
        serde_json::to_string(self).expect("a report has no map with non-string keys")
    }

    /// Reads a line and checks its key. What it says is believed only after attempt, pod and sequence were compared too.
    pub fn decode(line: &str, key: &ReportKey) -> Result<Self, ReportError> {
        let line = line.trim_end();
        if line.len() > limits::REPORT_BYTES_MAX {
            return Err(ReportError::TooLong(line.len()));
        }
        let malformed = |e: &dyn fmt::Display| ReportError::Malformed(e.to_string());
        let (body, mac) = split_mac(line).ok_or_else(|| malformed(&"no mac at its end"))?;
        if !key.verify(body.as_bytes(), mac) {
            return Err(ReportError::WrongKey);
        }
        let report: Report = serde_json::from_str(&body).map_err(|e| malformed(&e))?;
        match report.v {
            REPORT_VERSION => Ok(report),
            other => Err(ReportError::UnknownVersion(other)),
        }
    }

    /// Nothing follows. A backup may be complete while its verification runs.
    pub fn is_final(&self) -> bool {
        self.outcome.is_some() && !self.verification.as_ref().is_some_and(Verification::is_running)
    }

    /// Did it end well?
    pub fn is_fulfilled(&self) -> bool {
        match self.outcome {
            Some(Outcome::Completed { .. } | Outcome::Restored) => true,
            Some(Outcome::Failed | Outcome::Cancelled) | None => false,
        }
    }

    /// A backup's counters; of another task all are zero.
    pub fn backup(&self) -> Progress {
        self.counters.backup()
    }
}

/// `,"mac":"<64 hex>"`.
const MAC_BYTES: usize = 8 + 64 + 1;

/// `{…,"mac":"<hex>"}` → (`{…}`, `<hex>`).
fn split_mac(line: &str) -> Option<(String, &str)> {
    let at = line.rfind(",\"mac\":\"")?;
    let mac = line[at + 8..].strip_suffix("\"}")?;
    Some((format!("{}}}", &line[..at]), mac))
}

impl ReportKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Hex HMAC-SHA-256 of a message under this key.
    pub fn mac(&self, message: &[u8]) -> String {
        hex::encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), message))
    }

    /// Was this hex made with this key over this message? Compared in constant time.
    pub fn verify(&self, message: &[u8], mac: &str) -> bool {
        let expected = self.mac(message);
        constant_time::verify_slices_are_equal(expected.as_bytes(), mac.as_bytes()).is_ok()
    }
}

impl fmt::Debug for ReportKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReportKey(…)")
    }
}

impl TryFrom<String> for ReportKey {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let mut key = [0; 32];
        hex::decode_to_slice(&text, &mut key).map_err(|_| "a report key is 64 hex digits".to_owned())?;
        Ok(Self(key))
    }
}

impl From<ReportKey> for String {
    fn from(key: ReportKey) -> String {
        hex::encode(key.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FailureReason, RestoreProgress, Verdict};

    fn report() -> Report {
        let time = Timestamp::from_second(1_790_000_000).expect("in range");
        Report {
            v: REPORT_VERSION,
            attempt: AttemptId::new(1, [7; 10]),
            pod: "p".into(),
            sequence: 3,
            time,
            phase: Phase::Uploading,
            counters: Counters::Backup(Progress {
                total_blocks: 9,
                acknowledged_blocks: 4,
                last_acknowledged_time: Some(time),
                ..Progress::default()
            }),
            requests: Requests::default(),
            plan: None,
            damaged: vec![],
            failure: Some(Failure::new(FailureReason::UploadFailed, "seen", None, time)),
            outcome: Some(Outcome::Failed),
            verification: None,
        }
    }

    #[test]
    fn a_report_survives_its_line_and_fits_the_carrier() {
        let key = ReportKey::new([1; 32]);
        for worst in ["é\"", "\u{1}", "\\", "𝄞"] {
            let mut report = report();
            let time = report.time;
            let (message, object) = (worst.repeat(4000), worst.repeat(4000));
            report.failure = Some(Failure::new(FailureReason::UploadFailed, message, Some(object), time));
            let line = report.encode(&key);
            assert!(line.len() <= limits::REPORT_BYTES_MAX, "{worst:?}: {} bytes", line.len());
            assert_eq!(Report::decode(&line, &key), Ok(report));
        }
    }

    #[test]
    fn a_report_is_not_final_while_its_verification_runs_and_any_verdict_fits_the_carrier() {
        let key = ReportKey::new([1; 32]);
        let backup = BackupName::of_attempt("uid", &AttemptId::new(1, [7; 10]));
        for verdict in [Verdict::Running, Verdict::Passed, Verdict::Damaged, Verdict::NotDone] {
            let report = Report {
                failure: None,
                outcome: Some(Outcome::Completed { backup: backup.clone(), adopted: false }),
                verification: Some(Verification::new(verdict, &"\"".repeat(4000))),
                ..report()
            };
            assert_eq!(report.is_final(), verdict != Verdict::Running);
            let line = report.encode(&key);
            assert!(line.len() <= limits::REPORT_BYTES_MAX, "{} bytes", line.len());
            assert_eq!(Report::decode(&line, &key), Ok(report));
        }
    }

    #[test]
    fn counters_that_do_not_apply_are_absent_and_damage_is_listed_as_far_as_there_is_room() {
        let key = ReportKey::new([1; 32]);
        let restored = RestoreProgress { total_blocks: u64::MAX, written_blocks: 7, ..RestoreProgress::default() };
        let hole = |n: u64| Damaged {
            offset: u64::MAX - n,
            object: format!("backupstore/volumes/05/86/{}/blocks/aa/bb/{}.blk", "v".repeat(40), "a".repeat(64)),
            reason: DamageReason::ChecksumMismatch,
        };
        let report = Report {
            phase: Phase::Restoring,
            counters: Counters::Restore(restored),
            damaged: (0..10).map(hole).collect(),
            ..report()
        };
        let line = report.encode(&key);
        assert!(line.contains("\"restored\":{") && !line.contains("\"progress\""), "{line}");
        assert_eq!(Report::decode(&line, &key), Ok(report.clone()), "ten fit beside a short failure");
        let long = Failure::new(FailureReason::BlockDamaged, "\"".repeat(1000), Some("k".repeat(400)), report.time);
        let line = Report { failure: Some(long), ..report.clone() }.encode(&key);
        assert!(line.len() <= limits::REPORT_BYTES_MAX, "{} bytes", line.len());
        let read = Report::decode(&line, &key).expect("our own");
        assert!((1..10).contains(&read.damaged.len()) && report.damaged.starts_with(&read.damaged), "{read:?}");
        assert!(!self::report().encode(&key).contains("restored"), "and a backup's line is what it always was");
    }

    #[test]
    fn law_8_a_forged_or_altered_report_is_refused() {
        let key = ReportKey::new([1; 32]);
        let line = report().encode(&key);
        assert_eq!(Report::decode(&line, &ReportKey::new([2; 32])), Err(ReportError::WrongKey));
        let lie = line.replace("\"acknowledgedBlocks\":4", "\"acknowledgedBlocks\":9");
        assert_ne!(lie, line);
        assert_eq!(Report::decode(&lie, &key), Err(ReportError::WrongKey));
        for cut in 0..line.len() {
            if line.is_char_boundary(cut) {
                assert!(Report::decode(&line[..cut], &key).is_err(), "cut at {cut}");
            }
        }
    }
}
