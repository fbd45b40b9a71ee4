//! What `Objects` owes its caller (src/store/objects.rs), over every backend: a directory, the tests' own S3 server and
//! versitygw. And what each S3 server lacks, said by a test, so that it shows when a new version changes it.

use std::sync::Arc;

use crate::support::{self, ACCESS_KEYS, Block, Image, S3Server, Versitygw, job, versitygw::sdk};
use aws_sdk_s3::{
    error::ProvideErrorMetadata,
    primitives::ByteStream,
    types::{Delete, ObjectIdentifier},
};
use bytes::Bytes;
use tidemark::{
    model::{Credentials as OurCredentials, StoreLocation},
    store::{
        error::ErrorKind,
        objects::{Body, Objects, PutCondition, Range},
        probe,
    },
};

/// Keys that a careless server or client mangles or sorts wrongly, in the order of their bytes: `.` comes before `/`.
const KEYS: [&str; 7] = [
    "backupstore/volumes/ab/cd/v1.2_3/locks/lock-1.lck",
    "backupstore/volumes/ab/cd/v1/blocks/00/ff/00ff.blk",
    "backupstore/volumes/ab/cd/v1/volume.cfg",
    "plain",
    "with blank and + and & and %41",
    "zz/~tilde",
    "ümläut/日本",
];

fn body(bytes: &[u8]) -> Body {
    Body::Bytes(Bytes::copy_from_slice(bytes))
}

async fn put(objects: &Arc<dyn Objects>, key: &str, bytes: &[u8]) {
    objects.put(key, body(bytes), PutCondition::Always).await.unwrap_or_else(|e| panic!("{key}: {e}"));
}

async fn keys(objects: &Arc<dyn Objects>, prefix: &str) -> Vec<String> {
    let (mut keys, mut token, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = objects.list(prefix, token).await.unwrap_or_else(|e| panic!("{prefix}: {e}"));
        assert!(page.entries.len() <= 1000, "a page of {}", page.entries.len());
        keys.extend(page.entries.into_iter().map(|e| e.key));
        pages += 1;
        assert!(pages <= 10, "a listing of {} keys does not end", keys.len());
        match page.next {
            Some(next) => token = Some(next),
            None => return keys,
        }
    }
}

/// No key stays; a missing one is no error.
async fn delete(what: &str, objects: &Arc<dyn Objects>, keys: &[String]) {
    assert_eq!(objects.delete(keys).await.expect(what), [], "{what}");
}

/// All of it, on an empty store.
async fn conforms(what: &str, objects: Arc<dyn Objects>) {
    // Nothing there is an answer, not an error.
    assert_eq!(objects.head("nothing").await.expect(what), None);
    assert_eq!(objects.get("nothing/below", Range::whole(10)).await.expect(what), None);
    assert_eq!(keys(&objects, "").await, Vec::<String>::new(), "{what}");
    delete(what, &objects, &["nothing".into()]).await;

    // Acknowledged means visible to GET, HEAD and LIST.
    for key in KEYS {
        put(&objects, key, key.as_bytes()).await;
        let fetched = objects.get(key, Range::whole(1000)).await.expect(what).expect(key);
        assert_eq!(fetched.bytes, key.as_bytes(), "{what}");
        let head = objects.head(key).await.expect(what).expect(key);
        assert_eq!(head.size, key.len() as u64, "{what}: {key}");
        assert_eq!((&head.etag, head.modified), (&fetched.meta.etag, fetched.meta.modified), "{what}: {key}");
        assert!(head.etag.is_some() && head.modified.is_some(), "{what}: {key}: {head:?}");
    }
    assert_eq!(keys(&objects, "").await, KEYS, "{what}: ascending by bytes");
    assert_eq!(keys(&objects, "backupstore/volumes/ab/cd/v1/").await, &KEYS[1..3], "{what}");
    assert_eq!(keys(&objects, "backupstore/volumes/ab/cd/v1").await, &KEYS[..3], "{what}: a prefix is no folder");
    assert_eq!(
        objects.folders("backupstore/volumes/ab/cd/").await.expect(what),
        ["backupstore/volumes/ab/cd/v1.2_3/", "backupstore/volumes/ab/cd/v1/"],
        "{what}: folders ascend by bytes"
    );

    // An object replaced is another object.
    let before = objects.head("plain").await.expect(what);
    put(&objects, "plain", b"other").await;
    assert_ne!(objects.head("plain").await.expect(what), before, "{what}");

    ranges(what, &objects).await;
    pages_and_deletions(what, &objects).await;
}

async fn ranges(what: &str, objects: &Arc<dyn Objects>) {
    let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
    put(objects, "ranges", &bytes).await;
    for (offset, len) in [(0, 1), (10, 20), (99_990, 10), (99_990, 1000)] {
        let fetched = objects.get("ranges", Range::part(offset, len)).await.expect(what).expect("there");
        let end = bytes.len().min((offset + len) as usize);
        assert_eq!(fetched.bytes, &bytes[offset as usize..end], "{what}: {len} bytes at {offset}");
        assert_eq!(fetched.meta.size, 100_000, "{what}: the size of the whole");
    }
    let refused = objects.get("ranges", Range::whole(99_999)).await.expect_err("more than was allowed");
    assert_eq!(refused.kind, ErrorKind::Damaged, "{what}: {refused}");
    put(objects, "empty", b"").await;
    assert_eq!(objects.get("empty", Range::whole(10)).await.expect(what).expect("there").bytes, b"".as_slice());
}

async fn pages_and_deletions(what: &str, objects: &Arc<dyn Objects>) {
    let many: Vec<String> = (0..1100).map(|i| format!("many/{i:05}")).collect();
    for chunk in many.chunks(16) {
        futures::future::join_all(chunk.iter().map(|key| put(objects, key, b"x"))).await;
    }
    assert_eq!(keys(objects, "many/").await, many, "{what}: more than one page");
    delete(what, objects, &many[..1000]).await;
    assert_eq!(keys(objects, "many/").await, &many[1000..], "{what}");
    // Some are gone already: that is what was wanted.
    delete(what, objects, &many[999..]).await;
    assert_eq!(keys(objects, "many/").await, Vec::<String>::new(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_conforms() {
    let folder = support::scratch("conformance");
    conforms("directory", job::directory(folder.path())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tests_own_server_conforms() {
    let server = S3Server::start();
    conforms("s3s-fs", job::s3(&server)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versitygw_conforms() {
    let server = Versitygw::start();
    conforms("versitygw", job::s3_at(&server.endpoint())).await;
}

/// The main job over a server that others wrote: full, unchanged, and read back.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_to_versitygw_is_whole_and_an_unchanged_one_sends_nothing() {
    let (server, folder) = (Versitygw::start(), support::scratch("versitygw-backup"));
    let objects = job::s3_at(&server.endpoint());
    let blocks = [Block::Random(1), Block::Hole, Block::Text(2), Block::Zero, Block::Random(1), Block::Text(3)];
    let image = Image::of(&folder.path().join("image"), &blocks);
    let first = job::run(job::job(image.path(), "first", 1), objects.clone()).await;
    assert!(first.completed(), "{:?}", first.last);
    assert_eq!(job::compare(&objects, "pvc-test", &first.record(), image.path()).await, None);
    let second = job::run(job::job(image.path(), "second", 1), objects.clone()).await;
    assert_eq!((second.completed(), second.last.counters.backup().uploaded_blocks), (true, 0), "{:?}", second.last);
    assert!(second.last.requests.sum() <= 30, "{:?}", second.last.requests);
}

/// What a server was seen to do beyond what we need of it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// By our own probe: a second create is refused.
    conditional_writes: bool,
    /// An update of an object that is no longer the one meant is refused.
    if_match: bool,
    /// Batch deletion without a checksum of any kind in its header.
    batch_deletes_without_checksum: bool,
    /// Batch deletion as the SDK sends it.
    batch_deletes: bool,
    /// A body that differs from its CRC32 header is refused.
    checks_crc32: bool,
    /// And it is told on HEAD.
    keeps_crc32: bool,
}

async fn look(endpoint: &str) -> Seen {
    let location = StoreLocation::S3(job::location(endpoint, "backups"));
    let (id, secret) = ACCESS_KEYS[0];
    let credentials =
        OurCredentials { access_key_id: id.into(), secret_access_key: secret.into(), session_token: None };
    let probed = probe::probe(&location, &credentials).await.expect("the probe");
    let client = sdk(endpoint);
    let put = |key: &str| client.put_object().bucket("backups").key(key).body(ByteStream::from_static(b"123456789"));
    put("a").send().await.expect("stored");
    let stale = put("a").if_match("\"0123456789abcdef0123456789abcdef\"").send().await;
    // The CRC32 of "123456789" is cbf43926; this is another's.
    let wrong = put("b").checksum_crc32("AAAAAA==").send().await;
    put("c").checksum_crc32("y/Q5Jg==").send().await.expect("stored");
    let head = client.head_object().bucket("backups").key("c").checksum_mode("ENABLED".into()).send().await;
    let batch = |keys: [&str; 2]| {
        let names = keys.map(|key| ObjectIdentifier::builder().key(key).build().expect("a key"));
        let delete = Delete::builder().set_objects(Some(names.into())).build().expect("keys");
        client.delete_objects().bucket("backups").delete(delete)
    };
    let deleted = batch(["a", "c"]).send().await;
    let bare = batch(["x", "y"]).customize().mutate_request(|request| {
        for header in ["x-amz-checksum-crc32", "x-amz-sdk-checksum-algorithm", "content-md5"] {
            request.headers_mut().remove(header);
        }
    });
    Seen {
        conditional_writes: probed.conditional_writes,
        if_match: stale.is_err_and(|e| e.code() == Some("PreconditionFailed")),
        batch_deletes_without_checksum: bare.send().await.is_ok(),
        batch_deletes: deleted.is_ok_and(|reply| reply.errors().is_empty()),
        checks_crc32: wrong.is_err(),
        keeps_crc32: head.is_ok_and(|reply| reply.checksum_crc32() == Some("y/Q5Jg==")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_tests_own_server_does_and_lacks() {
    let server = S3Server::start();
    server.create_bucket("backups");
    let expected = Seen {
        conditional_writes: true,
        if_match: true,
        batch_deletes_without_checksum: true,
        batch_deletes: true,
        checks_crc32: true,
        keeps_crc32: true,
    };
    assert_eq!(look(&server.endpoint()).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_versitygw_does_and_lacks() {
    let server = Versitygw::start();
    let expected = Seen {
        conditional_writes: true,
        if_match: true,
        batch_deletes_without_checksum: false,
        batch_deletes: true,
        checks_crc32: true,
        keeps_crc32: true,
    };
    assert_eq!(look(&server.endpoint()).await, expected);
}
