//! Names, parsed at the border: inside, only valid values exist.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha512};

/// A name that does not follow its rule. The text says the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is not valid: {rule}")]
pub struct InvalidName {
    kind: &'static str,
    value: String,
    rule: &'static str,
}

/// The name of a volume in the store, `^[a-z0-9][a-z0-9_.-]{1,}$` and at most 40 characters.
///
/// Longhorn's rule for a name it lists (reference: backupstore `util.ValidateName`, longhorn-manager's lower-case form).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

/// The name of a backup (a record) in the store, by the same characters, at most 63 of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupName(String);

/// The id of one attempt: a ULID, so ids sort by the time they were made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AttemptId(String);

/// The content name of a block: the first 32 bytes of the SHA-512 of its uncompressed bytes.
///
/// A truncation of SHA-512, neither SHA-256 nor SHA-512/256 (Longhorn: `util.GetChecksum`, 64 hex characters).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlockName(pub [u8; 32]);

fn is_store_name(value: &str, length_max: usize) -> bool {
    let bytes = value.as_bytes();
    (2..=length_max).contains(&bytes.len())
        && (bytes[0].is_ascii_lowercase() || bytes[0].is_ascii_digit())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
}

macro_rules! name {
    ($type:ident, $kind:literal, $valid:expr, $rule:literal) => {
        impl FromStr for $type {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                let valid: fn(&str) -> bool = $valid;
                match valid(value) {
                    true => Ok(Self(value.to_owned())),
                    false => Err(InvalidName { kind: $kind, value: value.chars().take(80).collect(), rule: $rule }),
                }
            }
        }
        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                value.parse()
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }
        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    VolumeName,
    "Volume name",
    |v| is_store_name(v, 40),
    "2 to 40 lower-case letters, digits, '-', '_' or '.', beginning with a letter or digit"
);
name!(
    BackupName,
    "Backup name",
    |v| is_store_name(v, 63),
    "2 to 63 lower-case letters, digits, '-', '_' or '.', beginning with a letter or digit"
);
name!(
    AttemptId,
    "Attempt id",
    |v| v.len() == 26 && v.bytes().all(|b| CROCKFORD.contains(&b)),
    "a ULID: 26 characters of Crockford's base 32"
);

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

impl AttemptId {
    /// The ULID of a moment (milliseconds since 1970) and 80 random bits.
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        let mut value = u128::from(unix_ms) << 80;
        for (i, byte) in random.into_iter().enumerate() {
            value |= u128::from(byte) << (8 * (9 - i));
        }
        let text = (0..26).rev().map(|i| char::from(CROCKFORD[((value >> (5 * i)) & 31) as usize])).collect();
        Self(text)
    }

    /// 16 hex digits that stand for this attempt in the names of its lock and marker.
    pub fn short(&self) -> String {
        hex::encode(&Sha512::digest(self.0.as_bytes())[..8])
    }
}

impl BackupName {
    /// The record of one attempt: `backup-` + 16 hex of SHA-512(Backup uid ‖ attempt id), so no two attempts share a key.
    pub fn of_attempt(backup_uid: &str, attempt: &AttemptId) -> Self {
        let digest = Sha512::new().chain_update(backup_uid).chain_update(attempt.as_str()).finalize();
        Self(format!("backup-{}", hex::encode(&digest[..8])))
    }

    /// How the names of markers begin.
    pub const MARKER: &str = "tidemark-";

    /// The marker of one attempt: a different key from its record, for a marker that arrives late must not replace it.
    pub fn of_marker(attempt: &AttemptId) -> Self {
        Self(format!("{}{}", Self::MARKER, attempt.short()))
    }
}

impl VolumeName {
    /// The stored name of a `hostDevice`: `host-` + 32 hex of SHA-256(node, NUL, name).
    pub fn of_host_device(node: &str, name: &str) -> Self {
        let digest = sha2::Sha256::new().chain_update(node).chain_update([0]).chain_update(name).finalize();
        Self(format!("host-{}", hex::encode(&digest[..16])))
    }

    /// The stored name of a PersistentVolume: its own if it is `pvc-<uuid>`, which no other has; else what fits of it and
    /// 16 hex of SHA-256(cluster uid ‖ volume uid).
    pub fn of_persistent_volume(name: &str, cluster: &str, uid: &str) -> Self {
        let is_uuid = |text: &str| {
            let parts: Vec<usize> = text.split('-').map(str::len).collect();
            parts == [8, 4, 4, 4, 12] && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'))
        };
        if name.strip_prefix("pvc-").is_some_and(is_uuid) {
            return Self(name.to_owned());
        }
        let fit = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-';
        let fitting: String = name.chars().filter(fit).skip_while(|c| *c == '-').take(23).collect();
        let digest = sha2::Sha256::new().chain_update(cluster).chain_update(uid).finalize();
        let word = if fitting.is_empty() { "pv" } else { &fitting };
        Self(format!("{word}-{}", hex::encode(&digest[..8])))
    }

    /// The four hex digits that shard volumes into folders: the start of the SHA-512 of the name.
    pub fn shard(&self) -> String {
        hex::encode(&Sha512::digest(self.0.as_bytes())[..2])
    }
}

impl BlockName {
    /// The name of a block's uncompressed bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let digest = Sha512::digest(bytes);
        let mut name = [0; 32];
        name.copy_from_slice(&digest[..32]);
        Self(name)
    }
}

impl fmt::Display for BlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for BlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BlockName {
    type Err = InvalidName;
    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName {
            kind: "Block name",
            value: value.chars().take(80).collect(),
            rule: "64 lower-case hex digits",
        };
        if value.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(invalid());
        }
        let mut name = [0; 32];
        hex::decode_to_slice(value, &mut name).map_err(|_| invalid())?;
        Ok(Self(name))
    }
}

impl TryFrom<String> for BlockName {
    type Error = InvalidName;
    fn try_from(value: String) -> Result<Self, InvalidName> {
        value.parse()
    }
}

impl From<BlockName> for String {
    fn from(name: BlockName) -> String {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_its_own_name_or_one_that_nobody_else_gets() {
        let name = |name, cluster| VolumeName::of_persistent_volume(name, cluster, "uid").to_string();
        let dynamic = "pvc-0b5c2a3e-1111-2222-3333-444455556666";
        assert_eq!(name(dynamic, "a"), dynamic);
        for strange in ["mysql-pv", "PVC-X", "-.-", "a.very.long.name-of-a-static-volume", &dynamic[..39]] {
            let (one, other) = (name(strange, "a"), name(strange, "b"));
            assert!(one != other && one.len() <= 40 && one.parse::<VolumeName>().is_ok(), "{strange}: {one}");
            assert!(!one.contains('.') && !one.contains('_'), "{one}");
        }
    }

    #[test]
    fn a_volume_name_shards_as_longhorn_shards_it() {
        let name: VolumeName = "pvc-demo".parse().expect("valid");
        assert_eq!(name.shard(), "0586", "reference 1.1: pvc-demo -> 05/86");
    }

    #[test]
    fn the_zero_block_has_longhorns_name() {
        let name = BlockName::of(&vec![0; 2 * 1024 * 1024]).to_string();
        assert_eq!(name, "731859029215873fdac1c9f2f8bd25a334abf0f3a9e1b057cf2cacc2826d86b0", "reference 1.13");
    }

    #[test]
    fn bad_names_are_refused_with_their_rule() {
        for bad in ["", "v", "-a", "Abc", "a/b", "a b", "ä1", &"a".repeat(41)] {
            let error = bad.parse::<VolumeName>().expect_err(bad).to_string();
            assert!(error.contains("2 to 40 lower-case letters"), "{error}");
        }
        assert!("AB".repeat(32).parse::<BlockName>().is_err(), "Longhorn writes lower case only");
    }

    #[test]
    fn attempt_ids_are_ulids_that_sort_by_time() {
        let early = AttemptId::new(1, [255; 10]);
        let late = AttemptId::new(2, [0; 10]);
        assert!(early < late);
        assert_eq!(late.as_str().parse::<AttemptId>(), Ok(late));
        assert_eq!(
            AttemptId::new(1_469_918_176_385, [0; 10]).as_str(),
            "01ARYZ6S410000000000000000",
            "ULID spec example"
        );
    }
}
