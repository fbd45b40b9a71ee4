//! Workers with sessions by STS: they hold nothing else, a stolen one opens one volume, one that ends is followed by the
//! next, and without one no worker starts. The tests' own S3 server is STS too, and judges each request of a session.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use crate::support::{
    ACCESS_KEYS, Kind, eventually,
    image::difference,
    job::{credentials, location},
    operator::{NAMESPACE, Operator},
    sts::Service,
};
use crate::world::{BUCKET, PATIENCE, World, acknowledged, bucket, hold_after};
use bytes::Bytes;
use serde_json::json;
use tidemark::{
    api::{BackupState, ClusterBackupTargetStatus},
    model::{Credentials, FailureReason, job::S3Location},
    store::{
        credentials::CredentialSource,
        error::{ErrorKind, StoreError},
        objects::{Body, Objects, PutCondition, Range},
        s3::S3,
    },
};

const ROLE: &str = "arn:aws:iam::123456789012:role/tidemark-worker";
const ELSEWHERE: &str = "backupstore/volumes/aa/bb/pvc-other/volume.cfg";

/// STS gives sessions of this length, and the target asks for them.
async fn with_sessions(world: &World, lifetime_max: Duration) {
    world.s3.sts().serve(Service::Sessions { role: Some(ROLE.into()), lifetime_max });
    world
        .target("s3-primary", json!({"credentials": {"secretName": "s3", "mode": "AssumeRole", "roleArn": ROLE}}))
        .await;
}

fn condition<'a>(status: &'a ClusterBackupTargetStatus, kind: &str) -> (&'a str, &'a str, &'a str) {
    let found = status.conditions.iter().find(|c| c.type_ == kind);
    found.map_or(("", "", ""), |c| (&c.status, &c.reason, &c.message))
}

/// Every byte a worker was given: its files, its arguments, its environment.
fn given(pid: u32, folder: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => bytes.extend(std::fs::read(path).unwrap_or_default()),
            }
        }
    }
    for file in ["environ", "cmdline"] {
        bytes.extend(std::fs::read(format!("/proc/{pid}/{file}")).expect("it runs"));
    }
    bytes
}

/// The session in a worker's folder.
fn session_in(folder: &Path) -> Credentials {
    let read = |name: &str| std::fs::read_to_string(folder.join("credentials").join(name)).unwrap_or_default();
    let token = read("AWS_SESSION_TOKEN");
    Credentials {
        access_key_id: read("AWS_ACCESS_KEY_ID"),
        secret_access_key: read("AWS_SECRET_ACCESS_KEY"),
        session_token: Some(token),
    }
}

fn open(world: &World, credentials: CredentialSource) -> Arc<dyn Objects> {
    let location = S3Location { prefix: String::new(), ..location(&world.s3.endpoint(), BUCKET) };
    Arc::new(S3::open(&location, credentials).expect("a valid location"))
}

fn is_refused<T: std::fmt::Debug>(what: &str, answer: Result<T, StoreError>) {
    match answer {
        Err(error) if error.kind == ErrorKind::Refused(FailureReason::AccessDenied) => {}
        other => panic!("{what}: {other:?}"),
    }
}

#[tokio::test]
async fn law_11_workers_hold_sessions_of_one_volume_and_never_the_key() {
    let world = World::new().await;
    let lifetime = Duration::from_secs(10);
    with_sessions(&world, lifetime).await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    let image = world.image("a.img", 12, 7);
    let body = || Body::Bytes(Bytes::from_static(b"{}"));
    let own = open(&world, credentials(0));
    own.put(ELSEWHERE, body(), PutCondition::Always).await.expect("the target's key may");
    hold_after(&world.s3, 3);
    world.backup("a", "a.img", json!({})).await;
    world.until(&operator, "a", "at 3 blocks", |s| acknowledged(s) == 3).await;
    let (pid, folder) = world.home.workers().pop().expect("a worker");
    let first = session_in(&folder);
    let has = |bytes: &[u8], word: &str| bytes.windows(word.len()).any(|window| window == word.as_bytes());
    let bytes = given(pid, &folder);
    assert!(has(&bytes, &first.access_key_id) && first.access_key_id.starts_with("ASIA"), "it has its session");
    assert!(!has(&bytes, ACCESS_KEYS[0].0) && !has(&bytes, ACCESS_KEYS[0].1), "and not the key");

    // Half a life later it has the next one; the first ends while no block moves.
    eventually("the next session", PATIENCE, || async {
        let now = session_in(&folder);
        if now == first || now.access_key_id.is_empty() { Err(operator.tail()) } else { Ok(()) }
    })
    .await;
    let stolen = open(&world, CredentialSource::Given(session_in(&folder)));
    is_refused("GET", stolen.get(ELSEWHERE, Range::whole(100)).await);
    is_refused("PUT", stolen.put(ELSEWHERE, body(), PutCondition::Always).await);
    is_refused("DELETE", stolen.delete(&[ELSEWHERE.to_owned()]).await);
    is_refused("LIST", stolen.list("backupstore/volumes/", None).await);
    world.s3.sts().expire_but(&session_in(&folder).access_key_id);
    world.s3.heal();
    let status = world.completed(&operator, "a").await;
    assert_eq!(status.attempt.map(|a| a.number), Some(1), "no attempt was lost");

    world.restore("r", "a", "out.img", json!({})).await;
    world.restored(&operator, "r").await;
    assert_eq!(difference(image.path(), &world.home.volumes().join("out.img")), None);
    for request in world.s3.requests() {
        let of_worker = request.key.contains("/blocks/") && matches!(request.kind, Kind::PutBlock | Kind::Get);
        assert!(!of_worker || request.access_key.starts_with("ASIA"), "{request:#?}");
    }
    let sessions: Vec<HashMap<String, String>> = world.s3.sts().given().into_iter().map(|(_, form)| form).collect();
    assert!(sessions.iter().all(|form| form["DurationSeconds"] == "3600" && form["RoleArn"] == ROLE), "{sessions:#?}");
    let target = bucket::target_status(&world, "s3-primary").await;
    assert_eq!(condition(&target, "CredentialsScoped").1, "SessionPerVolume", "{target:#?}");
    world.end(&[&operator]).await;
}

#[tokio::test]
async fn law_11_without_a_session_no_worker_starts() {
    let world = World::new().await;
    with_sessions(&world, Duration::from_secs(3600)).await;
    world.s3.sts().serve(Service::Refuses { status: 403, code: "AccessDenied" });
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.image("a.img", 2, 8);
    world.backup("a", "a.img", json!({})).await;
    let status = world
        .until(&operator, "a", "waiting for sessions", |s| {
            s.conditions.iter().any(|c| c.message.contains("that role's trust policy"))
        })
        .await;
    assert_eq!((status.state, status.reason.as_deref()), (Some(BackupState::Pending), Some("WaitingForTarget")));
    let target = bucket::target_status(&world, "s3-primary").await;
    for kind in ["Ready", "CredentialsScoped"] {
        let (truth, reason, message) = condition(&target, kind);
        assert_eq!((truth, reason), ("False", "SessionRefused"), "{target:#?}");
        assert!(message.contains("HTTP 403 AccessDenied") && message.contains("credentials.roleArn"), "{message}");
    }
    eventually("an Event of the target", PATIENCE, || async {
        let events = world.plane.kubectl(&["get", "events", "-A", "-o", "jsonpath={.items[*].reason}"]).await;
        if events.contains("SessionRefused") { Ok(()) } else { Err(events) }
    })
    .await;

    // A store that gives sessions and does not look at their policy is as bad: they would open everything.
    world.s3.sts().serve(Service::Unscoped);
    let credentials = json!({"secretName": "s3", "mode": "AssumeRole", "roleArn": ROLE});
    let again = |interval: &str| json!({"credentials": credentials, "checkInterval": interval});
    world.target("s3-primary", again("11s")).await;
    let is_seen = |s: &ClusterBackupTargetStatus| condition(s, "Ready").2.contains("does not look at session policies");
    bucket::until_target(&world, &operator, "s3-primary", is_seen).await;
    assert!(world.home.workers().is_empty(), "{}", operator.tail());
    let blocks = world.s3.block_objects(BUCKET);
    assert!(blocks.is_empty(), "nobody worked with the key instead: {blocks:?}");

    let lifetime_max = Duration::from_secs(3600);
    world.s3.sts().serve(Service::Sessions { role: Some(ROLE.into()), lifetime_max });
    world.target("s3-primary", again("12s")).await;
    world.completed(&operator, "a").await;
    world.end(&[&operator]).await;
}

#[tokio::test]
async fn law_6_a_session_that_ends_unrenewed_is_an_error_by_name_and_tried_again() {
    let world = World::new().await;
    with_sessions(&world, Duration::from_secs(3600)).await;
    let operator = Operator::start_in(&world.plane, world.home.clone(), &[]);
    world.image("a.img", 8, 9);
    hold_after(&world.s3, 3);
    world.backup("a", "a.img", json!({"deadlines": {"stall": "10s"}})).await;
    world.until(&operator, "a", "at 3 blocks", |s| acknowledged(s) == 3).await;
    world.s3.sts().expire_but("");
    world.s3.heal();
    let error = world.until(&operator, "a", "in Error", |s| s.state == Some(BackupState::Error)).await;
    let failure = error.failure.expect("it failed");
    assert_eq!((failure.reason.as_str(), failure.retryable), ("SessionExpired", true), "{failure:#?}");
    let status = world.completed(&operator, "a").await;
    assert_eq!(status.attempt.map(|a| a.number), Some(2), "the next attempt has a session of its own");
    assert!(world.s3.blocks_sent_again().is_empty(), "{:?}", world.s3.blocks_sent_again());
    let events = world.plane.kubectl(&["get", "events", "-n", NAMESPACE, "-o", "jsonpath={.items[*].reason}"]).await;
    assert!(events.contains("SessionExpired"), "{events}");
    world.end(&[&operator]).await;
}
