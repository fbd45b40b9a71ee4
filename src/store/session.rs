//! What a worker may do in the bucket, as a session policy: one volume's folder, and in it no more than its task needs.
//!
//! | action | backup | restore |
//! |---|---|---|
//! | `s3:ListBucket` | prefixes within the volume's folder | the same |
//! | `s3:GetObject` | the volume's folder | the same |
//! | `s3:PutObject` | the volume's folder | its own lock |
//! | `s3:DeleteObject` | its own lock, journals of its Backup, its record, markers | its own lock |
//!
//! Nothing a worker touches lies elsewhere: the probe and the catalogue, which do, are the operator's, with the target's own
//! key. With KMS the session also needs the key, by way of S3 only. A policy only takes away: what the role does not
//! have, no session has.
//!
//! Pure. What may go wrong: a name in which IAM would see a pattern, and a policy longer than STS takes.

use serde_json::{Value, json};

use super::{
    error::{ErrorKind, StoreError},
    layout::VolumeLayout,
};
use crate::model::{AttemptId, BackupName, FailureReason, VolumeName, job::S3Location, limits};

/// One attempt, as far as its rights depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    pub volume: VolumeName,
    /// Uid of the Backup or Restore.
    pub uid: String,
    pub attempt: AttemptId,
    pub work: Work,
}

/// What the attempt does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Backup,
    Restore,
}

/// The session policy of one attempt, as STS takes it.
pub fn policy(location: &S3Location, scope: &Scope) -> Result<String, StoreError> {
    let layout = VolumeLayout::new(&scope.volume);
    let arn = |key: &str| format!("arn:{}:s3:::{}/{}{key}", partition(location), location.bucket, location.prefix);
    let folder = format!("{}*", layout.root());
    if let Some(odd) = [&location.bucket, &location.prefix, &scope.uid].into_iter().find(|name| !is_plain(name)) {
        let seen = format!(
            "{odd:?} has characters in which a policy would see a pattern, and so more than one volume: only letters, \
             digits and /!-_.()= can be used with mode AssumeRole"
        );
        return Err(refused(&scope.volume, seen));
    }
    let mut statements = vec![
        json!({
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": format!("arn:{}:s3:::{}", partition(location), location.bucket),
            "Condition": {"StringLike": {"s3:prefix": format!("{}{folder}", location.prefix)}},
        }),
        allow("s3:GetObject", json!(arn(&folder))),
    ];
    let lock = arn(&layout.lock(&scope.attempt));
    match scope.work {
        Work::Restore => statements.push(allow(["s3:PutObject", "s3:DeleteObject"], json!(lock))),
        Work::Backup => {
            let journals = format!("{}*", layout.journals(&scope.uid));
            let markers = format!("{}backup_{}*", layout.backups(), BackupName::MARKER);
            let record = layout.backup(&BackupName::of_attempt(&scope.uid, &scope.attempt));
            statements.push(allow("s3:PutObject", json!(arn(&folder))));
            statements.push(allow("s3:DeleteObject", json!([lock, arn(&journals), arn(&markers), arn(&record)])));
        }
    }
    statements.extend(by_kms(location));
    let text = json!({"Version": "2012-10-17", "Statement": statements}).to_string();
    match text.len() {
        ..=limits::SESSION_POLICY_BYTES_MAX => Ok(text),
        bytes => {
            let seen = format!(
                "its session policy would have {bytes} bytes, STS takes {}: give the target a shorter spec.s3.prefix",
                limits::SESSION_POLICY_BYTES_MAX
            );
            Err(refused(&scope.volume, seen))
        }
    }
}

fn allow(action: impl Into<Value>, resource: Value) -> Value {
    let action: Value = action.into();
    json!({"Effect": "Allow", "Action": action, "Resource": resource})
}

/// Objects may be encrypted with a key of KMS because the target says so, or because the bucket does, which we are not told.
/// Only AWS has KMS: elsewhere a server might refuse words that it does not know.
fn by_kms(location: &S3Location) -> Option<Value> {
    is_aws(location).then(|| {
        json!({
            "Effect": "Allow",
            "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
            "Resource": "*",
            "Condition": {"StringLike": {"kms:ViaService": "s3.*.amazonaws.com*"}},
        })
    })
}

/// Is this AWS's own S3?
pub(super) fn is_aws(location: &S3Location) -> bool {
    location.endpoint.as_deref().is_none_or(|endpoint| {
        let host = endpoint.split("://").last().unwrap_or_default().split(['/', ':']).next().unwrap_or_default();
        host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn")
    })
}

/// The part of AWS a region lies in: it is written into every name of a resource. Other servers know only `aws`.
fn partition(location: &S3Location) -> &'static str {
    match location.region.as_str() {
        _ if !is_aws(location) => "aws",
        region if region.starts_with("cn-") => "aws-cn",
        region if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}

/// No character by which IAM means more than itself: `*`, `?`, and `$`, which begins a variable. A volume's name has none.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b"/!-_.()=".contains(&b))
}

fn refused(volume: &VolumeName, seen: String) -> StoreError {
    StoreError::new(
        ErrorKind::Refused(FailureReason::SessionRefused),
        "AssumeRole",
        format!("for volume {volume}"),
        seen,
    )
}

#[cfg(test)]
mod tests;
