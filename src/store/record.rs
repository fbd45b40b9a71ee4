//! Longhorn's two configs: `volume.cfg` and `backup_<name>.cfg`. Compact JSON without a newline, Go's HTML escaping,
//! integers as strings, and five fields of `volume.cfg` encoded twice (`"\"lz4\""`) because upstream tags string
//! fields with `,string`. Field order is Longhorn's. A reader accepts both spellings, null and absence.
//!
//! Format: github.com/longhorn/backupstore `deltablock.go`, `backupstore.go` (commit ab5179e, 2026-08-20).

use std::collections::BTreeMap;
use std::io::Write;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::model::{BackupName, BlockName, BlockSize, Compression, VolumeName};

/// `Parameters` key that holds the block size in bytes.
pub const PARAMETER_BLOCK_SIZE: &str = "backup-block-size";
/// `Parameters` key that holds `full` or `incremental`.
pub const PARAMETER_MODE: &str = "backup-mode";

/// Labels of ours in records and markers.
pub mod label {
    pub const BACKUP_UID: &str = "tidemark.dev/backup-uid";
    pub const ATTEMPT: &str = "tidemark.dev/attempt";
    /// True size in bytes; `Size` in `volume.cfg` is rounded up to whole blocks.
    pub const VOLUME_BYTES: &str = "tidemark.dev/volume-bytes";
    pub const CLUSTER: &str = "tidemark.dev/cluster";
    pub const NAMESPACE: &str = "tidemark.dev/namespace";
    pub const BACKUP: &str = "tidemark.dev/backup";
    pub const MARKER: &str = "tidemark.dev/marker";
    /// SHA-256 of the record's own bytes, with zeros for these 64 digits.
    pub const RECORD_SHA256: &str = "tidemark.dev/record-sha256";
}

/// `volume.cfg`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeConfig {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Bytes, a multiple of the block size; never lowered.
    #[serde(with = "text_int")]
    pub size: i64,
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(deserialize_with = "nullable")]
    pub created_time: String,
    #[serde(deserialize_with = "nullable")]
    pub last_backup_name: String,
    /// The `SnapshotCreatedAt` of that backup.
    #[serde(deserialize_with = "nullable")]
    pub last_backup_at: String,
    #[serde(with = "text_int")]
    pub block_count: i64,
    #[serde(with = "twice")]
    pub backing_image_name: String,
    #[serde(with = "twice")]
    pub backing_image_checksum: String,
    #[serde(with = "twice")]
    pub compression_method: String,
    #[serde(with = "twice")]
    pub storage_class_name: String,
    #[serde(with = "twice")]
    pub data_engine: String,
}

impl VolumeConfig {
    pub fn new(volume: &VolumeName, size: u64, compression: Compression, now: Timestamp) -> Self {
        Self {
            name: volume.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            labels: Some(BTreeMap::new()),
            created_time: rfc3339(now),
            compression_method: compression.as_str().into(),
            data_engine: "v1".into(),
            ..Self::default()
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        go_json(self)
    }

    pub fn compression(&self) -> Result<Compression, String> {
        self.compression_method.parse()
    }
}

/// All of a `backup_<name>.cfg` but its blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub struct RecordHead {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub volume_name: String,
    /// Never empty in a record of ours: Longhorn would merge a full delta over it.
    #[serde(deserialize_with = "nullable")]
    pub snapshot_name: String,
    #[serde(deserialize_with = "nullable")]
    pub snapshot_created_at: String,
    /// Empty means in progress.
    #[serde(deserialize_with = "nullable")]
    pub created_time: String,
    /// Blocks in the map × block size.
    #[serde(with = "text_int")]
    pub size: i64,
    pub labels: Option<BTreeMap<String, String>>,
    pub parameters: Option<BTreeMap<String, String>>,
    pub is_incremental: bool,
    #[serde(deserialize_with = "nullable")]
    pub compression_method: String,
    #[serde(with = "text_int")]
    pub newly_uploaded_data_size: i64,
    #[serde(with = "text_int")]
    pub re_uploaded_data_size: i64,
    pub processing_blocks: Option<BTreeMap<String, serde_json::Value>>,
}

/// One allocated block of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct BlockEntry {
    /// Bytes from the start of the volume.
    pub offset: u64,
    pub block_checksum: BlockName,
}

/// A whole record in memory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
pub struct Record {
    #[serde(flatten)]
    pub head: RecordHead,
    #[serde(rename = "Blocks", default, deserialize_with = "nullable")]
    pub blocks: Vec<BlockEntry>,
}

impl RecordHead {
    pub fn is_in_progress(&self) -> bool {
        self.created_time.is_empty()
    }

    /// Absent, empty or zero means 2 MiB; the value is a Kubernetes quantity.
    pub fn block_size(&self) -> Result<BlockSize, String> {
        let text = self.parameters.as_ref().and_then(|p| p.get(PARAMETER_BLOCK_SIZE)).map_or("", String::as_str);
        match text {
            "" | "0" | "2097152" | "2Mi" => Ok(BlockSize::Mi2),
            "16777216" | "16Mi" => Ok(BlockSize::Mi16),
            other => Err(format!("block size {other:?} is neither 2097152 nor 16777216")),
        }
    }

    pub fn compression(&self) -> Result<Compression, String> {
        self.compression_method.parse()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.as_ref()?.get(key).map(String::as_str)
    }

    /// Is it the config of this name? One that was put in the place of another is not, and must not be restored for it.
    pub fn check_is(&self, id: &RecordId) -> Result<(), String> {
        let is_volume = self.volume_name.is_empty() || self.volume_name == id.volume.as_str();
        match is_volume && self.name == id.backup.as_str() {
            true => Ok(()),
            false => Err(format!(
                "it calls itself backup {:?} of volume {:?}: another object was put in its place",
                self.name, self.volume_name
            )),
        }
    }

    /// What stands for the record's checksum while it is computed.
    pub const CHECKSUM_BLANK: [u8; 64] = [b'0'; 64];

    /// Sets the label with the record's own checksum: 64 hex digits, or the blank.
    pub fn set_checksum(&mut self, digits: &str) {
        self.labels.get_or_insert_default().insert(label::RECORD_SHA256.to_owned(), digits.to_owned());
    }

    /// Takes that label away: it speaks of one record's bytes and of nothing else.
    pub fn clear_checksum(&mut self) {
        self.labels.iter_mut().for_each(|labels| _ = labels.remove(label::RECORD_SHA256));
    }

    /// The volume's true size in bytes, if we wrote this record.
    pub fn volume_bytes(&self) -> Option<u64> {
        self.label(label::VOLUME_BYTES)?.parse().ok()
    }

    /// Writes the record: the head, then each block, in one pass.
    ///
    /// The block entries must ascend by offset; `Size` was set from their count.
    pub fn write_to(
        &self,
        blocks: impl Iterator<Item = std::io::Result<BlockEntry>>,
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        let head = go_json(self);
        out.write_all(&head[..head.len() - 1])?;
        let mut is_first = true;
        for block in blocks {
            let block = block?;
            out.write_all(if is_first { b",\"Blocks\":[" } else { b"," })?;
            write!(out, "{{\"Offset\":{},\"BlockChecksum\":\"{}\"}}", block.offset, block.block_checksum)?;
            is_first = false;
        }
        out.write_all(if is_first { b"" } else { b"]" })?;
        out.write_all(b",\"SingleFile\":{\"FilePath\":\"\"}}")
    }

    /// A record without blocks: a marker.
    pub fn encode_marker(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_to(std::iter::empty(), &mut out).expect("a Vec takes every write");
        out
    }
}

impl Record {
    /// Parses and checks a record: block size known, offsets ascending, aligned and inside the volume.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let record: Record = serde_json::from_slice(bytes).map_err(|e| format!("it is no backup config: {e}"))?;
        let size = record.head.block_size()?.bytes();
        let mut floor = 0;
        for block in &record.blocks {
            if block.offset % size != 0 {
                return Err(format!("block at offset {} is not aligned to {size}", block.offset));
            }
            if block.offset < floor {
                return Err(format!("block at offset {} is out of order", block.offset));
            }
            floor = block.offset + size;
        }
        record.head.compression()?;
        Ok(record)
    }
}

/// Which record: for the names in keys, URLs and messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordId {
    pub volume: VolumeName,
    pub backup: BackupName,
}

/// RFC 3339 in UTC to the second, as Longhorn writes it.
pub fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Go's `encoding/json`: compact, with `<`, `>`, `&`, U+2028 and U+2029 escaped inside strings.
fn go_json(value: &impl Serialize) -> Vec<u8> {
    let text = serde_json::to_string(value).expect("configs have string keys only");
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            _ => out.push(c),
        }
    }
    out.into_bytes()
}

fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Integers as decimal strings (Go's `,string`).
mod text_int {
    use super::*;

    pub fn serialize<S: Serializer>(value: &i64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
        match Option::<String>::deserialize(from)? {
            None => Ok(0),
            Some(text) => text.parse().map_err(|_| D::Error::custom(format!("{text:?} is no integer"))),
        }
    }
}

/// Strings inside strings (Go's `,string` on a string field); the plain spelling is read too.
mod twice {
    use super::*;

    pub fn serialize<S: Serializer>(value: &str, to: S) -> Result<S::Ok, S::Error> {
        let inner = String::from_utf8(go_json(&value)).expect("JSON is UTF-8");
        to.serialize_str(&inner)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
        let outer = Option::<String>::deserialize(from)?.unwrap_or_default();
        match outer.starts_with('"') {
            true => serde_json::from_str(&outer).map_err(D::Error::custom),
            false => Ok(outer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `longhorn.md` 1.13: written by Longhorn's own library.
    const VOLUME_CFG: &str = r#"{"Name":"pvc-demo","Size":"67108864","Labels":{"RecurringJob":"nightly","longhorn.io/volume-access-mode":"rwo"},"CreatedTime":"2026-11-23T06:22:57Z","LastBackupName":"backup-demo2","LastBackupAt":"2026-11-23T06:23:01Z","BlockCount":"12","BackingImageName":"\"\"","BackingImageChecksum":"\"\"","CompressionMethod":"\"lz4\"","StorageClassName":"\"longhorn\"","DataEngine":"\"v1\""}"#;
    const RECORD: &str = include_str!("testdata/backup_backup-demo1.cfg");

    #[test]
    fn volume_cfg_of_longhorn_is_read_and_written_byte_for_byte() {
        let config: VolumeConfig = serde_json::from_str(VOLUME_CFG).expect("Longhorn's own");
        assert_eq!(config.compression(), Ok(Compression::Lz4));
        assert_eq!((config.size, config.block_count), (67_108_864, 12));
        assert_eq!(String::from_utf8(config.encode()).expect("UTF-8"), VOLUME_CFG);
    }

    #[test]
    fn a_record_of_longhorn_is_read_and_written_byte_for_byte() {
        let record = Record::parse(RECORD.as_bytes()).expect("Longhorn's own");
        assert_eq!(record.blocks.len(), 11);
        let mut out = Vec::new();
        record.head.write_to(record.blocks.iter().copied().map(Ok), &mut out).expect("a Vec");
        assert_eq!(String::from_utf8(out).expect("UTF-8"), RECORD);
    }

    #[test]
    fn a_marker_is_byte_for_byte_what_longhorn_leaves_in_progress() {
        let marker = RecordHead {
            name: "b1".into(),
            volume_name: "pvc-f".into(),
            compression_method: "lz4".into(),
            ..RecordHead::default()
        };
        let expected = r#"{"Name":"b1","VolumeName":"pvc-f","SnapshotName":"","SnapshotCreatedAt":"","CreatedTime":"","Size":"0","Labels":null,"Parameters":null,"IsIncremental":false,"CompressionMethod":"lz4","NewlyUploadedDataSize":"0","ReUploadedDataSize":"0","ProcessingBlocks":null,"SingleFile":{"FilePath":""}}"#;
        assert_eq!(String::from_utf8(marker.encode_marker()).expect("UTF-8"), expected, "reference 1.3");
    }

    #[test]
    fn both_spellings_null_and_absence_are_read() {
        for method in [r#""\"lz4\"""#, r#""lz4""#] {
            let text = format!(r#"{{"Name":"v","CompressionMethod":{method},"Labels":null,"Size":null}}"#);
            let config: VolumeConfig = serde_json::from_str(&text).expect(method);
            assert_eq!(config.compression(), Ok(Compression::Lz4));
        }
        let absent: VolumeConfig = serde_json::from_str("{}").expect("all absent");
        assert_eq!(absent.compression(), Ok(Compression::Gzip), "older stores");
    }

    #[test]
    fn html_is_escaped_as_go_escapes_it() {
        let mut config: VolumeConfig = serde_json::from_str(VOLUME_CFG).expect("Longhorn's own");
        config.labels = Some(BTreeMap::from([("k".into(), "a&b<c>".into())]));
        let text = String::from_utf8(config.encode()).expect("UTF-8");
        assert!(text.contains(r#""k":"a\u0026b\u003cc\u003e""#), "{text}");
    }

    #[test]
    fn law_7_a_record_that_breaks_its_format_is_refused() {
        let bad = [
            ("not json", "{"),
            ("number for a string integer", r#"{"Name":"a","Size":5}"#),
            ("unknown block size", r#"{"Parameters":{"backup-block-size":"4096"}}"#),
            (
                "unaligned",
                r#"{"Blocks":[{"Offset":5,"BlockChecksum":"731859029215873fdac1c9f2f8bd25a334abf0f3a9e1b057cf2cacc2826d86b0"}]}"#,
            ),
            ("short checksum", r#"{"Blocks":[{"Offset":0,"BlockChecksum":"7318"}]}"#),
        ];
        for (what, text) in bad {
            assert!(Record::parse(text.as_bytes()).is_err(), "{what}");
        }
        let swapped = RECORD.replace("\"Offset\":2097152,", "\"Offset\":65011712,");
        assert!(Record::parse(swapped.as_bytes()).expect_err("out of order").contains("out of order"));
    }
}
