//! The parts that several kinds share: references, durations, rates, and the error that a value which cannot be used
//! turns into.
//!
//! What a user writes is kept as he wrote it (`DurationText`, `Quantity`) and parsed once, at the border, into the
//! model's types. Parsing may fail although the API server accepted the object (an older CRD, a hand-made object):
//! then the error names the field and the cure.

use std::{borrow::Cow, fmt, time::Duration};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The API group of every kind.
pub const GROUP: &str = "tidemark.dev";
/// The version served and stored.
pub const VERSION: &str = "v1alpha1";

/// A value that cannot be used: which field, what is wrong with it, what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct InvalidField {
    pub field: Cow<'static, str>,
    pub message: String,
}

impl InvalidField {
    pub fn new(field: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// The kinds a `targetRef` may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Default)]
pub enum TargetKind {
    #[default]
    ClusterBackupTarget,
}

impl TargetKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            TargetKind::ClusterBackupTarget => "ClusterBackupTarget",
        }
    }
}

/// Which target a backup goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// Kind of the target; ClusterBackupTarget is the only one served today.
    #[serde(default)]
    pub kind: TargetKind,
    /// Name of the target.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// The target that was chosen, and which object of that name it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChosenTarget {
    /// Kind of the target.
    pub kind: TargetKind,
    /// Name of the target.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Uid of the target: another object of the same name is another target.
    #[schemars(length(max = 128))]
    pub uid: String,
}

/// An absolute path of a device or file of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DevicePath(pub String);

impl JsonSchema for DevicePath {
    fn schema_name() -> Cow<'static, str> {
        "DevicePath".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 2,
            "maxLength": 1024,
            "x-kubernetes-validations": [
                {"rule": "self.startsWith('/')", "message": "path must be absolute, e.g. /dev/vg0/snap"},
                {
                    "rule": "!self.split('/').exists(part, part == '..')",
                    "message": "path must not contain '..': write where the device really is",
                },
            ],
        })
    }
}

/// Filesystem or Block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum VolumeMode {
    Filesystem,
    Block,
}

/// How a claim may be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum AccessMode {
    ReadWriteOnce,
    ReadOnlyMany,
    ReadWriteMany,
    ReadWriteOncePod,
}

impl VolumeMode {
    pub const fn as_str(self) -> &'static str {
        match self {
            VolumeMode::Filesystem => "Filesystem",
            VolumeMode::Block => "Block",
        }
    }

    /// A claim's word for it; one that says nothing is a file system.
    pub fn of(word: Option<&str>) -> Self {
        if word == Some("Block") { VolumeMode::Block } else { VolumeMode::Filesystem }
    }
}

impl AccessMode {
    const ALL: [Self; 4] =
        [AccessMode::ReadWriteOnce, AccessMode::ReadOnlyMany, AccessMode::ReadWriteMany, AccessMode::ReadWriteOncePod];

    pub const fn as_str(self) -> &'static str {
        match self {
            AccessMode::ReadWriteOnce => "ReadWriteOnce",
            AccessMode::ReadOnlyMany => "ReadOnlyMany",
            AccessMode::ReadWriteMany => "ReadWriteMany",
            AccessMode::ReadWriteOncePod => "ReadWriteOncePod",
        }
    }

    /// Absent: a mode that is newer than this program.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == word)
    }
}

/// How fast blocks are moved.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Transfer {
    /// Blocks in flight at once, at most. Absent: begins with 8 and adapts, up to 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32))]
    pub concurrency: Option<i32>,
    /// Bytes per second, at most, such as 200Mi. Absent: no limit but the target's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 32))]
    #[x_kube(
        validation = Rule::new("isQuantity(string(self))").message("not a quantity: write bytes per second as 200Mi or 50M"),
        validation = Rule::new("!isQuantity(string(self)) || quantity(string(self)).compareTo(quantity('64Ki')) >= 0").message("at least 64Ki bytes per second")
    )]
    pub max_bytes_per_second: Option<Quantity>,
}

impl Transfer {
    pub fn is_empty(&self) -> bool {
        *self == Transfer::default()
    }
}

/// Defaults that kinds with deadlines share.
pub(super) fn start_deadline() -> DurationText {
    DurationText::new("30m")
}

pub(super) fn stall_deadline() -> DurationText {
    DurationText::new("60s")
}

pub(super) fn total_deadline() -> DurationText {
    DurationText::new("168h")
}

/// A duration as Go writes it: hours, minutes and seconds, such as `90s`, `10m` or `1h30m`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DurationText(pub String);

/// At most two groups of six digits fit 16 characters: 2 × 999999h is below CEL's 292 years.
const DURATION_LENGTH_MAX: usize = 16;

impl DurationText {
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The duration; `field` is where it stands, for the error.
    pub fn parse(&self, field: &'static str) -> Result<Duration, InvalidField> {
        parse_duration(&self.0).ok_or_else(|| {
            InvalidField::new(field, format!("{:?} is not a duration: write it as 90s, 10m, 24h or 1h30m", self.0))
        })
    }
}

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "DurationText".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // A rule instead of a pattern: its refusal says what to write, a pattern's only shows the pattern.
        json_schema!({
            "type": "string",
            "maxLength": DURATION_LENGTH_MAX,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^([0-9]{1,6}(h|m|s))+$')",
                "message": "write a duration as 90s, 10m, 24h or 1h30m",
            }],
        })
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    if text.is_empty() || text.len() > DURATION_LENGTH_MAX {
        return None;
    }
    let mut seconds = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|digits| (1..=6).contains(digits))?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = match rest.as_bytes()[digits] {
            b'h' => 3600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[digits + 1..];
    }
    Some(Duration::from_secs(seconds))
}

/// The least rate a limit may set: below it one block takes longer than any sensible deadline.
pub const BYTES_PER_SECOND_MIN: u64 = 64 * 1024;

/// Bytes per second of a Quantity: a whole number with at most one suffix, not below 64Ki.
pub fn parse_bytes_per_second(quantity: &Quantity, field: &'static str) -> Result<u64, InvalidField> {
    let invalid = |what: &str| InvalidField::new(field, format!("{:?} {what}", quantity.0));
    let bytes = parse_bytes(&quantity.0)
        .ok_or_else(|| invalid("is not a whole number of bytes per second: write it as 200Mi or 50M"))?;
    match bytes >= BYTES_PER_SECOND_MIN {
        true => Ok(bytes),
        false => Err(invalid("is too slow to finish anything: write at least 64Ki, or leave it out for no limit")),
    }
}

/// Kubernetes' quantities, as far as they are whole bytes: `1.5Gi` and `1e9` are, `1m` (a thousandth) is not.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let scale: u128 = match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1000_u128.pow(2),
        "G" => 1000_u128.pow(3),
        "T" => 1000_u128.pow(4),
        "P" => 1000_u128.pow(5),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        exponent => 10_u128.checked_pow(exponent.strip_prefix(['e', 'E'])?.parse().ok().filter(|e| *e <= 18)?)?,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let parts = 10_u128.pow(fraction.len() as u32);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    // Rounded up, as Kubernetes does when it needs a whole number.
    let bytes = whole.checked_mul(parts)?.checked_add(fraction)?.checked_mul(scale)?.div_ceil(parts);
    u64::try_from(bytes).ok()
}

/// A count of the model as status writes it: int64, held at its end instead of wrapping into a negative number.
pub fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// An optional text that users may also leave as `""`.
pub(super) fn non_empty(text: Option<&String>) -> Option<String> {
    text.filter(|t| !t.is_empty()).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("24h", 86_400), ("1h30m", 5400), ("1m1s", 61), ("0s", 0)] {
            assert_eq!(DurationText::new(text).parse("f").map(|d| d.as_secs()), Ok(seconds), "{text}");
        }
        for text in ["", "10", "m", "1d", "-1s", "1.5h", "10 m", "1h ", "99999999999999h", "1000000000000000s"] {
            let error = DurationText::new(text).parse("spec.deadlines.stall").expect_err(text).to_string();
            assert!(error.starts_with("spec.deadlines.stall: ") && error.contains("90s, 10m, 24h"), "{error}");
        }
    }

    #[test]
    fn rates_are_read_as_kubernetes_reads_quantities() {
        let mi = 1024 * 1024;
        for (text, bytes) in
            [("200Mi", 200 * mi), ("1.5Gi", 1536 * mi), ("65536", 65_536), ("50M", 50_000_000), ("1e9", 1_000_000_000)]
        {
            assert_eq!(parse_bytes_per_second(&Quantity(text.into()), "f"), Ok(bytes), "{text}");
        }
        for text in ["", "Mi", "200mi", "1m", "-5Mi", "ten", "1e99", "99999999Pi", "1.2.3Mi", "63Ki", "0"] {
            let error =
                parse_bytes_per_second(&Quantity(text.into()), "spec.upload.maxBytesPerSecond").expect_err(text);
            assert!(error.to_string().contains("write"), "{error}");
        }
    }
}
