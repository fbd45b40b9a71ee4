//! Records cut, joined, spoilt and changed, in parts of every size.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use super::*;
use crate::{
    model::BlockName,
    store::{
        directory::Directory,
        objects::{Answer, Body, Fetched, Objects, Page, PutCondition, Stored},
    },
};

const RECORD: &str = include_str!("../testdata/backup_backup-demo1.cfg");

type Whole = (RecordHead, Vec<BlockEntry>);

async fn read_all(reader: RecordReader) -> Result<Whole, StoreError> {
    let (mut reader, mut all) = (reader.begin().await?, Vec::new());
    while let Some(entry) = reader.next().await? {
        all.push(entry);
    }
    Ok((reader.head, all))
}

/// Reads it as one that was listed, and as one that was not: with the same answer.
async fn read(text: &str, part_bytes: u64) -> Result<Whole, StoreError> {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("record"), text).expect("written");
    let objects = Arc::new(Directory::open(folder.path()).expect("a folder"));
    let client = Client::new(objects, Duration::from_secs(5), Duration::from_secs(5));
    let size = text.len() as u64;
    let listed = read_all(RecordReader::new(client.clone(), "record", Some(size), part_bytes)).await;
    let unlisted = read_all(RecordReader::new(client, "record", None, part_bytes)).await;
    assert_eq!(listed, unlisted, "parts of {part_bytes}");
    listed
}

fn whole() -> Whole {
    let record = Record::parse(RECORD.as_bytes()).expect("Longhorn's own");
    (record.head, record.blocks)
}

#[tokio::test]
async fn a_record_is_read_the_same_in_parts_of_any_size() {
    for part_bytes in [1, 2, 7, 109, 110, 500, 1 << 20] {
        assert_eq!(read(RECORD, part_bytes).await, Ok(whole()), "parts of {part_bytes}");
    }
}

#[tokio::test]
async fn other_spellings_of_small_records_are_read() {
    let spaced = RECORD.replace("\"Blocks\":[", "\"Blocks\" : [");
    assert_eq!(read(&spaced, 1 << 20).await.expect("JSON").1.len(), 11);
    for empty in [r#"{"Name":"b1"}"#, r#"{"Name":"b1","Blocks":null}"#, r#"{"Name":"b1","Blocks":[]}"#] {
        assert_eq!(read(empty, 3).await.expect(empty).1, [], "{empty}");
    }
}

#[tokio::test]
async fn law_7_a_record_that_was_cut_anywhere_is_no_record() {
    for cut in 0..RECORD.len() - 1 {
        let seen = read(&RECORD[..cut], 64).await;
        assert!(seen.is_err_and(|e| e.kind == ErrorKind::Damaged), "cut at {cut}");
    }
}

#[tokio::test]
async fn law_7_a_record_that_was_joined_or_disordered_is_no_record() {
    let list = "\"Blocks\":[";
    let at = RECORD.find(list).expect("it has blocks");
    let (before, after) = RECORD.split_at(at);
    for (what, text) in [
        ("out of order", RECORD.replace("\"Offset\":2097152,", "\"Offset\":65011712,")),
        ("not aligned", RECORD.replace("\"Offset\":2097152,", "\"Offset\":2097153,")),
        ("between two", RECORD.replace("},{", "}x{")),
        ("no comma", RECORD.replace("},{", "}{")),
        ("0x2c stands between two", RECORD.replacen("},{", "},,{", 1)),
        ("0x5d stands between two", RECORD.replace("}],", "},],")),
        ("0x2c stands between two", RECORD.replace("[{", "[,{")),
        ("no backup config", RECORD.replacen("},{", "}],{", 1)),
        ("no backup config", RECORD.replacen("},{", "}]}{", 1)),
        ("trailing", format!("{RECORD}{RECORD}")),
        ("EOF", format!("{before}\"Odd\":{{{list}]}},{after}")),
        ("duplicate field", format!("{before}{list}],{after}")),
        ("stand behind", RECORD.replace("\"SingleFile\"", "\"Labels\":{\"late\":\"\"},\"SingleFile\"")),
        ("short hash", RECORD.replace("8353b7391f5f", "")),
    ] {
        assert_ne!(text, RECORD, "{what}");
        for part_bytes in [64, 1 << 20] {
            let error = read(&text, part_bytes).await.err().unwrap_or_else(|| panic!("{what} was taken"));
            // What is said first depends on where the parts end.
            let is_said = what == "short hash" || what == "stand behind" || error.to_string().contains(what);
            assert!(is_said, "{what}: {error}");
        }
    }
}

#[tokio::test]
async fn law_7_another_record_in_its_place_is_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("record"), RECORD).expect("written");
    let objects = Arc::new(Directory::open(folder.path()).expect("a folder"));
    let listed = objects.list("record", None).await.expect("listed").entries.remove(0);
    let client = Client::new(objects, Duration::from_secs(5), Duration::from_secs(5));
    let opened = RecordReader::open(client.clone(), "record", BlockSize::Mi16).await;
    assert!(opened.err().expect("2 MiB").to_string().contains("another size"));
    std::fs::write(folder.path().join("record"), format!("{RECORD} ")).expect("written");
    let opened = RecordReader::open_listed(client.clone(), &listed).await;
    assert!(opened.err().expect("longer").to_string().contains("replaced"));
    let archived = Entry { is_archived: true, ..listed };
    let opened = RecordReader::open_listed(client, &archived).await;
    assert!(opened.err().expect("archived").to_string().contains("archive class"));
}

/// Spoils one byte of the n-th answer of a real store.
struct SpoilsOne {
    store: Directory,
    nth: usize,
    gets: AtomicUsize,
}

impl Objects for SpoilsOne {
    fn get<'a>(&'a self, key: &'a str, range: Range) -> Answer<'a, Option<Fetched>> {
        let is_spoilt = self.gets.fetch_add(1, SeqCst) == self.nth;
        Box::pin(async move {
            let mut fetched = self.store.get(key, range).await?;
            if let (true, Some(fetched)) = (is_spoilt, &mut fetched) {
                let mut bytes = fetched.bytes.to_vec();
                let middle = bytes.len() / 2;
                bytes[middle] = b']';
                fetched.bytes = bytes.into();
            }
            Ok(fetched)
        })
    }
    fn put<'a>(&'a self, key: &'a str, body: Body, condition: PutCondition) -> Answer<'a, Stored> {
        self.store.put(key, body, condition)
    }
    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Meta>> {
        self.store.head(key)
    }
    fn list<'a>(&'a self, prefix: &'a str, token: Option<String>) -> Answer<'a, Page> {
        self.store.list(prefix, token)
    }
    fn delete<'a>(&'a self, keys: &'a [String]) -> Answer<'a, Vec<StoreError>> {
        self.store.delete(keys)
    }
}

#[tokio::test]
async fn a_part_that_was_spoilt_on_the_wire_is_read_once_more() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("record"), RECORD).expect("written");
    // What stands before the blocks fills the first two parts: there a byte may change the words and leave the form.
    for nth in 2..RECORD.len() / 300 {
        let store = Directory::open(folder.path()).expect("a folder");
        let spoils = Arc::new(SpoilsOne { store, nth, gets: 0.into() });
        let client = Client::new(spoils, Duration::from_secs(5), Duration::from_secs(5));
        let all = read_all(RecordReader::new(client, "record", None, 300)).await.expect("asked for again").1;
        assert_eq!(all, whole().1, "part {nth} was spoilt");
    }
}

/// A record of ours: the checksum stands in a label.
fn checked() -> String {
    let (head, blocks) = whole();
    let write = |digits: &str| {
        let (mut head, mut out) = (head.clone(), Vec::new());
        head.set_checksum(digits);
        head.write_to(blocks.iter().copied().map(Ok), &mut out).expect("a Vec");
        out
    };
    let sum = aws_lc_rs::digest::digest(&SHA256, &write(&"0".repeat(64)));
    String::from_utf8(write(&hex::encode(sum.as_ref()))).expect("JSON")
}

#[tokio::test]
async fn law_7_a_record_that_carries_its_checksum_is_believed_only_whole() {
    let (text, blocks) = (checked(), whole().1);
    for part_bytes in [7, 500, 1 << 20] {
        assert_eq!(read(&text, part_bytes).await.map(|read| read.1), Ok(blocks.clone()), "parts of {part_bytes}");
    }
    for (what, changed) in [
        ("a time", text.replace("\"CreatedTime\":\"2026", "\"CreatedTime\":\"2025")),
        ("a digit of a block", text.replacen("\"BlockChecksum\":\"0", "\"BlockChecksum\":\"1", 1)),
        ("what follows the blocks", text.replace("\"FilePath\":\"\"", "\"FilePath\":\"x\"")),
        ("its length", format!("{text} ")),
    ] {
        if changed != text {
            let error = read(&changed, 64).await.expect_err(what).to_string();
            assert!(
                error.contains("were changed since it was written") || error.contains("no backup config"),
                "{what}: {error}"
            );
        }
    }
}

#[test]
fn the_exact_form_is_read_as_the_parser_reads_it() {
    let name = BlockName([0xa5; 32]);
    for (text, is_exact) in [
        (format!("{{\"Offset\":0,\"BlockChecksum\":\"{name}\"}}"), true),
        (format!("{{\"Offset\":2097152,\"BlockChecksum\":\"{name}\"}}"), true),
        (format!("{{\"Offset\": 5,\"BlockChecksum\":\"{name}\"}}"), false),
        (format!("{{\"Offset\":007,\"BlockChecksum\":\"{name}\"}}"), false),
        (format!("{{\"Offset\":+7,\"BlockChecksum\":\"{name}\"}}"), false),
        (format!("{{\"Offset\":99999999999999999999,\"BlockChecksum\":\"{name}\"}}"), false),
        (format!("{{\"BlockChecksum\":\"{name}\",\"Offset\":7}}"), false),
        ("{\"Offset\":7,\"BlockChecksum\":\"a5\"}".to_owned(), false),
    ] {
        let exact = parse_exact(text.as_bytes());
        assert_eq!(exact.is_some(), is_exact, "{text}");
        let parsed = serde_json::from_str::<BlockEntry>(&text).ok();
        assert!(exact.is_none() || exact == parsed, "{text}: {exact:?} and {parsed:?}");
    }
}
