//! From what users wrote to the model's values: pure functions whose errors name the field and the cure.
//!
//! The API server has refused most of what is refused here. It is refused again because a CRD may be older than this
//! program, and because some of it CEL cannot see. A failure becomes a condition, never a guess.

use std::{collections::BTreeMap, time::Duration};

use kube::core::{Selector, SelectorExt as _};

use super::{
    backup::{
        BackupMode, BackupSource, BackupSpec, BackupVerify, ClaimSource, ExistingSource, HostDeviceSource,
        VolumeSnapshotSource,
    },
    common::{DurationText, InvalidField, parse_bytes_per_second},
    target::{BlockSizeText, ClusterBackupTargetSpec, CompressionMethod, NamespacesFrom},
};
use crate::model::{
    BackupName, BlockSize, Compression, VerifyDepth, VolumeName,
    job::{Limits, Mode},
};

/// The one source that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    PersistentVolumeClaim(&'a ClaimSource),
    VolumeSnapshot(&'a VolumeSnapshotSource),
    Existing(&'a ExistingSource),
    HostDevice(&'a HostDeviceSource),
}

/// `spec.deadlines`, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    pub snapshot: Duration,
    pub start: Duration,
    pub stall: Duration,
    pub total: Duration,
    pub keep_snapshot: Duration,
}

/// `spec.retry`, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// Attempts in a row that acknowledged nothing new; 0: never by itself.
    pub limit: u32,
    pub backoff: Duration,
    pub backoff_max: Duration,
}

/// `spec.limits` of a target, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParsedTargetLimits {
    pub concurrent_backups_max: u32,
    pub concurrent_backups_per_namespace_max: u32,
    pub bytes_per_second_max: Option<u64>,
}

/// The shortest stall deadline: below it a slow answer is taken for none.
pub const STALL_MIN: Duration = Duration::from_secs(5);

impl BackupSource {
    /// The one source that is set.
    pub fn parse(&self) -> Result<Source<'_>, InvalidField> {
        let claim = self.persistent_volume_claim.as_ref().map(Source::PersistentVolumeClaim);
        let snapshot = self.volume_snapshot.as_ref().map(Source::VolumeSnapshot);
        let existing = self.existing.as_ref().map(Source::Existing);
        let device = self.host_device.as_ref().map(Source::HostDevice);
        let mut set = [claim, snapshot, existing, device].into_iter().flatten();
        match (set.next(), set.next()) {
            (Some(source), None) => Ok(source),
            _ => Err(InvalidField::new(
                "spec.source",
                "set exactly one of persistentVolumeClaim, volumeSnapshot, existing, hostDevice",
            )),
        }
    }
}

impl ExistingSource {
    /// The names in the store.
    pub fn parse(&self) -> Result<(VolumeName, BackupName), InvalidField> {
        let invalid = |field, error: crate::model::ids::InvalidName| InvalidField::new(field, error.to_string());
        let volume = self.volume.parse().map_err(|e| invalid("spec.source.existing.volume", e))?;
        let backup = self.backup.parse().map_err(|e| invalid("spec.source.existing.backup", e))?;
        Ok((volume, backup))
    }
}

impl BackupSpec {
    /// Every part parsed: the first field that cannot be used is the error.
    pub fn check(&self) -> Result<(), InvalidField> {
        self.source.parse()?;
        self.parse_deadlines()?;
        self.parse_retry()?;
        self.parse_limits()?;
        self.parse_expire_after()?;
        Ok(())
    }

    pub fn parse_deadlines(&self) -> Result<Deadlines, InvalidField> {
        let texts = &self.deadlines;
        let parsed = Deadlines {
            snapshot: texts.snapshot.parse("spec.deadlines.snapshot")?,
            start: texts.start.parse("spec.deadlines.start")?,
            stall: texts.stall.parse("spec.deadlines.stall")?,
            total: texts.total.parse("spec.deadlines.total")?,
            keep_snapshot: texts.keep_snapshot.parse("spec.deadlines.keepSnapshot")?,
        };
        match parsed.stall >= STALL_MIN && parsed.stall < parsed.total {
            true => Ok(parsed),
            false => Err(InvalidField::new("spec.deadlines.stall", "stall must be at least 5s and less than total")),
        }
    }

    pub fn parse_retry(&self) -> Result<Retries, InvalidField> {
        let limit = u32::try_from(self.retry.limit)
            .map_err(|_| InvalidField::new("spec.retry.limit", "write 0 or more; 0 means never by itself"))?;
        let backoff = self.retry.backoff.parse("spec.retry.backoff")?;
        let backoff_max = self.retry.max_backoff.parse("spec.retry.maxBackoff")?;
        match backoff <= backoff_max {
            true => Ok(Retries { limit, backoff, backoff_max }),
            false => Err(InvalidField::new("spec.retry.backoff", "backoff must not be longer than maxBackoff")),
        }
    }

    /// What the user asked for; the target's share is the operator's to add.
    pub fn parse_limits(&self) -> Result<Limits, InvalidField> {
        let concurrency = match self.upload.concurrency {
            None => None,
            Some(wanted) => Some(u32::try_from(wanted).ok().filter(|n| (1..=32).contains(n)).ok_or_else(|| {
                InvalidField::new("spec.upload.concurrency", "write 1 to 32, or leave it out to let it adapt")
            })?),
        };
        let rate = self.upload.max_bytes_per_second.as_ref();
        let max_bytes_per_second =
            rate.map(|rate| parse_bytes_per_second(rate, "spec.upload.maxBytesPerSecond")).transpose()?;
        Ok(Limits { concurrency, max_bytes_per_second })
    }

    /// After completion; absent: never.
    pub fn parse_expire_after(&self) -> Result<Option<Duration>, InvalidField> {
        match self.expire_after.as_str() {
            "" => Ok(None),
            text => DurationText::new(text).parse("spec.expireAfter").map(Some),
        }
    }
}

impl ClusterBackupTargetSpec {
    pub fn parse_limits(&self) -> Result<ParsedTargetLimits, InvalidField> {
        let positive = |value: i32, field: &'static str| {
            let parsed = u32::try_from(value).ok().filter(|n| *n > 0);
            parsed.ok_or_else(|| InvalidField::new(field, "write a number from 1 to 1000"))
        };
        let limits = &self.limits;
        let rate = limits.max_bytes_per_second.as_ref();
        Ok(ParsedTargetLimits {
            concurrent_backups_max: positive(limits.max_concurrent_backups, "spec.limits.maxConcurrentBackups")?,
            concurrent_backups_per_namespace_max: positive(
                limits.max_concurrent_backups_per_namespace,
                "spec.limits.maxConcurrentBackupsPerNamespace",
            )?,
            bytes_per_second_max: rate
                .map(|rate| parse_bytes_per_second(rate, "spec.limits.maxBytesPerSecond"))
                .transpose()?,
        })
    }

    pub fn parse_check_interval(&self) -> Result<Duration, InvalidField> {
        self.check_interval.parse("spec.checkInterval")
    }

    /// May Backups of this namespace use this target? `labels` are the Namespace object's.
    ///
    /// A selector that cannot be read allows nobody: the error says so, and is never taken for a yes.
    pub fn allows(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Result<bool, InvalidField> {
        let allowed = &self.allowed_namespaces;
        match allowed.from {
            NamespacesFrom::None => Ok(false),
            NamespacesFrom::All => Ok(true),
            NamespacesFrom::Names => Ok(allowed.names.iter().any(|name| name == namespace)),
            NamespacesFrom::Selector => {
                let field = "spec.allowedNamespaces.selector";
                let selector = allowed.selector.clone().ok_or_else(|| {
                    InvalidField::new(
                        field,
                        "from: Selector needs a selector; to allow every namespace write from: All",
                    )
                })?;
                let selector = Selector::try_from(selector)
                    .map_err(|error| InvalidField::new(field, format!("cannot be read: {error}")))?;
                Ok(selector.matches(labels))
            }
        }
    }
}

impl From<BackupVerify> for VerifyDepth {
    fn from(verify: BackupVerify) -> Self {
        match verify {
            BackupVerify::None => VerifyDepth::None,
            BackupVerify::Listing => VerifyDepth::Listing,
            BackupVerify::Sample => VerifyDepth::Sample,
            BackupVerify::Full => VerifyDepth::Full,
        }
    }
}

impl From<BackupMode> for Mode {
    fn from(mode: BackupMode) -> Self {
        match mode {
            BackupMode::Incremental => Mode::Incremental,
            BackupMode::Full => Mode::Full,
        }
    }
}

impl From<Mode> for BackupMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Incremental => BackupMode::Incremental,
            Mode::Full => BackupMode::Full,
        }
    }
}

impl From<CompressionMethod> for Compression {
    fn from(method: CompressionMethod) -> Self {
        match method {
            CompressionMethod::Lz4 => Compression::Lz4,
            CompressionMethod::Gzip => Compression::Gzip,
            CompressionMethod::None => Compression::None,
        }
    }
}

impl From<BlockSizeText> for BlockSize {
    fn from(size: BlockSizeText) -> Self {
        match size {
            BlockSizeText::Mi2 => BlockSize::Mi2,
            BlockSizeText::Mi16 => BlockSize::Mi16,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn backup(spec: serde_json::Value) -> BackupSpec {
        serde_json::from_value(spec).expect("deserialises")
    }

    fn target(allowed: serde_json::Value) -> ClusterBackupTargetSpec {
        let s3 = json!({"bucket": "b", "region": "r"});
        let spec = json!({"s3": s3, "credentials": {"secretName": "s"}, "allowedNamespaces": allowed});
        serde_json::from_value(spec).expect("deserialises")
    }

    #[test]
    fn an_empty_backup_means_what_the_documentation_says() {
        let spec = backup(json!({"source": {"persistentVolumeClaim": {"name": "pg"}}}));
        let hours = |n: u64| Duration::from_secs(n * 3600);
        let minutes = |n: u64| Duration::from_secs(n * 60);
        let deadlines = Deadlines {
            snapshot: minutes(10),
            start: minutes(30),
            stall: crate::model::limits::STALL_DEFAULT,
            total: crate::model::limits::TOTAL_DEFAULT,
            keep_snapshot: hours(24),
        };
        assert_eq!(spec.parse_deadlines(), Ok(deadlines));
        let retries = Retries { limit: 6, backoff: Duration::from_secs(30), backoff_max: minutes(15) };
        assert_eq!(spec.parse_retry(), Ok(retries));
        assert_eq!(spec.parse_limits(), Ok(Limits { concurrency: None, max_bytes_per_second: None }));
        assert_eq!(spec.parse_expire_after(), Ok(None));
        assert_eq!(spec.check(), Ok(()));
    }

    #[test]
    fn a_field_that_cannot_be_used_is_named_with_its_cure() {
        let source = json!({"persistentVolumeClaim": {"name": "pg"}});
        for (spec, field, cure) in [
            (json!({"source": {}}), "spec.source: ", "exactly one"),
            (
                json!({"source": {"existing": {"volume": "v1", "backup": "b1"}, "volumeSnapshot": {"name": "s"}}}),
                "spec.source: ",
                "exactly one",
            ),
            (json!({"source": source, "deadlines": {"stall": "1d"}}), "spec.deadlines.stall: ", "90s, 10m, 24h"),
            (json!({"source": source, "deadlines": {"stall": "2s"}}), "spec.deadlines.stall: ", "at least 5s"),
            (json!({"source": source, "deadlines": {"total": "60s"}}), "spec.deadlines.stall: ", "less than total"),
            (json!({"source": source, "retry": {"backoff": "1h"}}), "spec.retry.backoff: ", "maxBackoff"),
            (json!({"source": source, "retry": {"limit": -1}}), "spec.retry.limit: ", "0 means never"),
            (json!({"source": source, "upload": {"concurrency": 33}}), "spec.upload.concurrency: ", "1 to 32"),
            (
                json!({"source": source, "upload": {"maxBytesPerSecond": "1Ki"}}),
                "spec.upload.maxBytesPerSecond: ",
                "at least 64Ki",
            ),
            (json!({"source": source, "expireAfter": "30d"}), "spec.expireAfter: ", "24h"),
        ] {
            let error = backup(spec.clone()).check().expect_err("must be refused").to_string();
            assert!(error.starts_with(field) && error.contains(cure), "{spec}: {error}");
        }
    }

    #[test]
    fn a_rate_may_be_written_as_a_number() {
        let spec = backup(json!({"source": {}, "upload": {"maxBytesPerSecond": 1_048_576}}));
        assert_eq!(spec.parse_limits().map(|l| l.max_bytes_per_second), Ok(Some(1_048_576)));
    }

    #[test]
    fn law_11_a_namespace_is_allowed_only_by_what_the_target_says() {
        let labels: BTreeMap<String, String> = [("team".to_owned(), "shop".to_owned())].into();
        let selector = |wanted: &str| json!({"from": "Selector", "selector": {"matchLabels": {"team": wanted}}});
        for (allowed, expected) in [
            (json!({"from": "None"}), Ok(false)),
            (json!({"from": "All"}), Ok(true)),
            (json!({"from": "Names", "names": ["erp", "shop"]}), Ok(true)),
            (json!({"from": "Names", "names": ["shop2"]}), Ok(false)),
            (selector("shop"), Ok(true)),
            (selector("erp"), Ok(false)),
        ] {
            assert_eq!(target(allowed.clone()).allows("shop", &labels), expected, "{allowed}");
        }
        let unreadable =
            json!({"from": "Selector", "selector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}});
        assert!(target(unreadable).allows("shop", &labels).is_err());
        assert!(target(json!({"from": "Selector"})).allows("shop", &labels).is_err(), "no selector is not: everybody");
    }
}
