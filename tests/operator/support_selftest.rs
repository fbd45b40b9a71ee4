//! The tests' own parts, tested: if one of these fails, believe no other test.

use std::{net::SocketAddr, path::Path, time::Duration};

use crate::support::{self, ACCESS_KEYS, Block, ControlPlane, Fault, Image, Kind, Rule, S3Server, Wire};
use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Credentials, Region, retry::RetryConfig, timeout::TimeoutConfig},
    error::ProvideErrorMetadata,
    primitives::ByteStream,
};

const BLOCK_KEY: &str = "backupstore/volumes/ab/cd/v1/blocks/01/23/0123.blk";

/// One attempt, two seconds: every fault is seen as it is.
fn client(address: SocketAddr, key: usize) -> Client {
    client_within(Duration::from_secs(2), address, key)
}

/// One that waits so long for an answer.
fn client_within(patience: Duration, address: SocketAddr, key: usize) -> Client {
    let (id, secret) = ACCESS_KEYS[key];
    let timeouts = TimeoutConfig::builder().operation_timeout(patience).build();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new(id, secret, None, None, "test"))
        .endpoint_url(format!("http://{address}"))
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .build();
    Client::from_conf(config)
}

async fn put(client: &Client, key: &str) -> Result<(), String> {
    let body = ByteStream::from(vec![7; 100_000]);
    let sent = client.put_object().bucket("backups").key(key).body(body).send().await;
    sent.map(drop).map_err(|e| e.code().map_or_else(|| format!("{e:?}"), str::to_owned))
}

fn server() -> S3Server {
    let server = S3Server::start();
    server.create_bucket("backups");
    server
}

#[tokio::test]
async fn the_server_stores_lists_and_logs_what_it_did() {
    let server = server();
    let client = client(server.address(), 0);
    put(&client, BLOCK_KEY).await.expect("a sound server stores");
    put(&client, "backupstore/volumes/ab/cd/v1/volume.cfg").await.expect("a sound server stores");
    let read = client.get_object().bucket("backups").key(BLOCK_KEY).send().await.expect("it is there");
    assert_eq!(read.body.collect().await.expect("whole").into_bytes().len(), 100_000);
    let page = client.list_objects_v2().bucket("backups").prefix("backupstore/").send().await.expect("a page");
    let keys: Vec<&str> = page.contents().iter().filter_map(|o| o.key()).collect();
    assert_eq!(keys, [BLOCK_KEY, "backupstore/volumes/ab/cd/v1/volume.cfg"]);
    assert_eq!(server.objects("backups").len(), 2);
    assert_eq!(
        server.block_objects("backups"),
        [support::s3_server::StoredObject { key: BLOCK_KEY.into(), bytes: 100_000 }]
    );
    let counts: Vec<(Kind, usize)> = server.counts().into_iter().collect();
    assert_eq!(counts, [(Kind::PutBlock, 1), (Kind::PutOther, 1), (Kind::Get, 1), (Kind::List, 1)]);
    let listed = server.requests().pop().expect("four requests");
    assert_eq!(
        (listed.key.as_str(), listed.access_key.as_str(), listed.status),
        ("backupstore/", ACCESS_KEYS[0].0, Some(200))
    );
}

#[tokio::test]
async fn the_server_checks_signatures_and_forgets_revoked_keys() {
    let server = server();
    let (first, second) = (client(server.address(), 0), client(server.address(), 1));
    put(&first, "k").await.expect("the first key is known");
    server.revoke(ACCESS_KEYS[0].0);
    assert_eq!(put(&first, "k").await.expect_err("revoked"), "InvalidAccessKeyId");
    put(&second, "k").await.expect("the second key is known");
    let wrong = Credentials::new(ACCESS_KEYS[1].0, "not the secret", None, None, "test");
    let wrong = Client::from_conf(second.config().to_builder().credentials_provider(wrong).build());
    assert_eq!(put(&wrong, "k").await.expect_err("a wrong secret"), "SignatureDoesNotMatch");
}

#[tokio::test]
async fn conditional_writes_are_answered_412() {
    let server = server();
    let client = client(server.address(), 0);
    put(&client, "once").await.expect("the first is stored");
    let body = ByteStream::from_static(b"second");
    let again = client.put_object().bucket("backups").key("once").if_none_match("*").body(body).send().await;
    assert_eq!(again.expect_err("the second is refused").code(), Some("PreconditionFailed"));
}

#[tokio::test]
async fn faults_before_the_store_leave_nothing_in_it() {
    let server = server();
    let client = client(server.address(), 0);
    let cases = [
        (Fault::refuse("AccessDenied"), "AccessDenied"),
        (Fault::slow_down(), "SlowDown"),
        (Fault::internal_error(), "InternalError"),
        (Fault::ResetBefore, "DispatchFailure"),
        (Fault::HangForever, "TimeoutError"),
    ];
    for (fault, expected) in cases {
        server.fault(Rule::new(fault.clone()).on(Kind::PutBlock));
        let error = put(&client, BLOCK_KEY).await.expect_err("the fault strikes");
        assert!(error.contains(expected), "{fault:?}: expected {expected}, saw {error}");
        put(&client, "other").await.expect("the rule is for blocks only");
        server.heal();
        assert_eq!(server.block_objects("backups"), [], "{fault:?} stored something");
    }
    put(&client, BLOCK_KEY).await.expect("healed");
}

#[tokio::test]
async fn a_lost_reply_leaves_the_object_and_no_acknowledgement() {
    let server = server();
    let client = client(server.address(), 0);
    server.fault(Rule::new(Fault::ReplyLost).key("0123.blk").times(1));
    put(&client, BLOCK_KEY).await.expect_err("no answer");
    assert_eq!(server.block_objects("backups").len(), 1, "it was stored");
    assert_eq!(server.requests()[0].status, None, "and not acknowledged");
    put(&client, BLOCK_KEY).await.expect("one strike only");
    assert_eq!(server.blocks_sent_again(), Vec::<String>::new(), "the first was never acknowledged");
    put(&client, BLOCK_KEY).await.expect("a third time");
    assert_eq!(server.blocks_sent_again(), [BLOCK_KEY], "this one had been acknowledged");
}

#[tokio::test]
async fn a_store_that_lies_says_200_and_stores_nothing() {
    let server = server();
    server.fault(Rule::new(Fault::Drop));
    put(&client(server.address(), 0), BLOCK_KEY).await.expect("it says so");
    assert_eq!(server.objects("backups"), []);
}

#[tokio::test]
async fn only_the_nth_request_is_struck() {
    let server = server();
    let client = client(server.address(), 0);
    server.fault(Rule::new(Fault::slow_down()).on(Kind::PutOther).nth(3));
    let mut results = Vec::new();
    for i in 0..5 {
        results.push(put(&client, &format!("key-{i}")).await.is_ok());
    }
    assert_eq!(results, [true, true, false, true, true]);
}

#[tokio::test]
async fn a_held_request_waits_for_healing_and_is_then_stored() {
    let server = server();
    server.fault(Rule::new(Fault::Hold).on(Kind::PutBlock));
    let client = client(server.address(), 0);
    let sent = tokio::spawn(async move { put(&client, BLOCK_KEY).await });
    support::eventually("the request comes", Duration::from_secs(60), async || match server.requests().len() {
        1 => Ok(()),
        n => Err(format!("{n} requests")),
    })
    .await;
    assert_eq!(server.objects("backups"), []);
    server.heal();
    sent.await.expect("no panic").expect("stored");
    assert_eq!(server.objects("backups").len(), 1);
}

#[tokio::test]
async fn listings_break_as_told() {
    let server = server();
    let client = client(server.address(), 0);
    for i in 0..5 {
        put(&client, &format!("k{i}")).await.expect("stored");
    }
    server.page_size(2);
    let list = |token: Option<String>| {
        let request = client.list_objects_v2().bucket("backups").prefix("k").set_continuation_token(token);
        async move { request.send().await }
    };
    let keys = |page: &aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output| {
        page.contents().iter().filter_map(|o| o.key()).collect::<Vec<_>>().join(" ")
    };
    let first = list(None).await.expect("a page");
    let token = first.next_continuation_token().map(str::to_owned);
    assert_eq!((keys(&first).as_str(), token.is_some()), ("k0 k1", true));
    server.fault(Rule::new(Fault::RepeatedPage).on(Kind::List).times(1));
    assert_eq!(keys(&list(token.clone()).await.expect("a page")), "k0 k1", "the page before, again");
    assert_eq!(keys(&list(token.clone()).await.expect("a page")), "k2 k3");
    server.fault(Rule::new(Fault::LoseToken).on(Kind::List).times(1));
    let lost = list(None).await.expect("a page");
    assert_eq!((lost.is_truncated(), lost.next_continuation_token()), (Some(true), None));
    server.fault(Rule::new(Fault::TruncatedBody).on(Kind::List).times(1));
    // The SDK takes half a document for a whole one: only its own KeyCount tells. Whoever lists must compare.
    let half = list(None).await.expect("the SDK sees nothing wrong");
    assert_eq!((half.key_count(), half.contents().len()), (Some(2), 0));
    server.fault(Rule::new(Fault::BodyCut).on(Kind::List).times(1));
    list(None).await.expect_err("half a body");
}

#[tokio::test]
async fn a_cut_wire_swallows_and_a_healed_one_carries_again() {
    let server = server();
    let wire = Wire::new(server.address());
    let client = client(wire.address(), 0);
    put(&client, "before").await.expect("the wire is whole");
    wire.cut();
    let error = put(&client, "during").await.expect_err("the wire is cut");
    assert!(error.contains("TimeoutError"), "silence, not a refusal: {error}");
    assert_eq!(server.objects("backups").len(), 1);
    wire.heal();
    let healed = self::client(wire.address(), 0);
    put(&healed, "after").await.expect("healed");
    let keys: Vec<String> = server.objects("backups").into_iter().map(|o| o.key).collect();
    assert_eq!(keys, ["after", "before"]);
    assert!(wire.bytes().0 > 200_000, "{:?}", wire.bytes());
}

#[tokio::test]
async fn a_slow_wire_takes_its_time_and_a_reset_one_breaks() {
    let server = server();
    let wire = Wire::new(server.address());
    let client = client_within(Duration::from_secs(60), wire.address(), 0);
    wire.slow(200_000);
    let start = std::time::Instant::now();
    put(&client, "slow").await.expect("slow is not broken");
    assert!(start.elapsed() > Duration::from_millis(400), "100 kB at 200 kB/s in {:?}", start.elapsed());
    wire.slow(20_000);
    let sent = tokio::spawn(async move { put(&client, "broken").await });
    support::eventually("the upload runs", Duration::from_secs(60), async || match wire.bytes().0 {
        n if n > 110_000 => Ok(()),
        n => Err(format!("{n} bytes")),
    })
    .await;
    wire.reset();
    let error = sent.await.expect("no panic").expect_err("reset in the middle");
    assert!(!error.contains("TimeoutError"), "a reset is seen at once: {error}");
}

#[test]
fn images_come_from_seeds() {
    let scratch = support::scratch("image");
    let blocks = [Block::Random(1), Block::Hole, Block::Zero, Block::Text(2), Block::Random(1)];
    let left = Image::of(&scratch.path().join("left"), &blocks);
    let right = Image::of(&scratch.path().join("right"), &blocks);
    assert_eq!(left.bytes(), 5 * 2 * 1024 * 1024);
    assert_eq!(support::image::difference(left.path(), right.path()), None);
    right.write(3, Block::Text(3));
    let difference = support::image::difference(left.path(), right.path()).expect("one block differs");
    assert!(difference.ends_with("block 3"), "{difference}");
}

#[tokio::test]
async fn the_control_plane_serves_stops_and_serves_again() {
    let plane = ControlPlane::start().await;
    let client = plane.client().await;
    let version = client.apiserver_version().await.expect("it serves");
    println!("kube-apiserver {}.{}", version.major, version.minor);
    plane.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: tests}\n").await;
    let refused =
        plane.try_kubectl(&["apply", "-f", "-"], "apiVersion: v1\nkind: Nonsense\nmetadata: {name: x}\n").await;
    assert!(refused.expect_err("no such kind").contains("Nonsense"));
    plane.stop_api_server();
    let gone = plane.try_kubectl(&["get", "namespace", "tests", "--request-timeout=5s"], "").await;
    assert!(gone.expect_err("nobody listens").contains("refused"));
    plane.start_api_server().await;
    let names = plane.kubectl(&["get", "namespaces", "-o", "name"]).await;
    assert!(names.contains("namespace/tests"), "the data is still there: {names}");
}

/// `kill -9` of a test must leave nothing: a helper run of this very test is killed and its child must go.
#[test]
fn a_killed_test_leaves_no_process() {
    if let Some(note) = support::environment("TIDEMARK_SELFTEST_CHILD") {
        let mut sleeper = std::process::Command::new("sleep");
        sleeper.arg("600");
        let child = support::Process::start("sleep", sleeper, Path::new("/dev/null"));
        std::fs::write(note, child.pid().to_string()).expect("the note can be written");
        std::thread::sleep(Duration::from_secs(600));
        return;
    }
    let scratch = support::scratch("killed");
    let note = scratch.path().join("pid");
    let mut test = std::process::Command::new(std::env::current_exe().expect("this test is a file"));
    test.args(["--exact", "support_selftest::a_killed_test_leaves_no_process"]).env("TIDEMARK_SELFTEST_CHILD", &note);
    test.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut test = test.spawn().expect("this test can be run again");
    let wait = |what: &str, ask: &dyn Fn() -> bool| {
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while !ask() {
            assert!(std::time::Instant::now() < end, "{what}: not within a minute");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let pid = || std::fs::read_to_string(&note).unwrap_or_default();
    wait("the child runs", &|| !pid().is_empty());
    let state = format!("/proc/{}/stat", pid());
    assert!(std::path::Path::new(&state).exists(), "the child {} runs", pid());
    test.kill().expect("the test runs");
    test.wait().expect("the test was killed");
    // Its new parent may not have reaped it yet: a zombie is dead.
    wait("the child ends", &|| std::fs::read_to_string(&state).map_or(true, |text| text.contains(") Z ")));
}
