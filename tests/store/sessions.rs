//! Workers with sessions instead of the target's key: what a session opens, what it does not, and when none is given. The
//! server is the tests' own S3 server with its own STS (`support::sts`), which evaluates the session's policy at each request.

use std::{sync::Arc, time::Duration};

use crate::support::{
    self, ACCESS_KEYS, Fault, Image, Kind, Rule, S3Server, TempDir,
    iam::{Policy, Wish},
    image::difference,
    job,
    sts::Service,
};
use bytes::Bytes;
use tidemark::{
    model::{AttemptId, Credentials, FailureReason, JobSpec, StoreLocation, VolumeName, job::S3Location},
    restore::{self, Locking, RestoreJob},
    store::{
        client::Client,
        credentials::CredentialSource,
        error::{ErrorKind, StoreError},
        layout::VolumeLayout,
        objects::{Body, Objects, PutCondition, Range},
        record::RecordId,
        s3::S3,
        session::{self, Scope, Work},
        sts::{self, Session, Sts},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const ROLE: &str = "arn:aws:iam::123456789012:role/tidemark-worker";

/// A server with STS, and two volumes in its bucket.
struct World {
    server: S3Server,
    location: S3Location,
    folder: TempDir,
}

impl World {
    fn new(purpose: &str) -> Self {
        let server = S3Server::start();
        server.create_bucket("backups");
        let lifetime_max = Duration::from_secs(3600);
        server.sts().serve(Service::Sessions { role: Some(ROLE.into()), lifetime_max });
        let location = job::location(&server.endpoint(), "backups");
        Self { server, location, folder: support::scratch(purpose) }
    }

    fn sts(&self) -> Sts {
        Sts { location: self.location.clone(), endpoint: None, role_arn: Some(ROLE.into()) }
    }

    fn image(&self, name: &str) -> Image {
        let seed = name.bytes().map(u64::from).sum();
        Image::random(&self.folder.path().join(name), 3, seed)
    }

    fn job(&self, volume: &str, attempt: u64) -> JobSpec {
        let image = self.image(volume);
        let mut job = job::job(image.path(), &format!("uid-{volume}"), attempt);
        job.volume = volume.parse().expect("a volume name");
        job.store = StoreLocation::S3(self.location.clone());
        job
    }

    async fn session(&self, scope: &Scope) -> Result<Session, StoreError> {
        sts::assume_role(&self.sts(), &key(0), scope, job::now()).await
    }

    fn open(&self, credentials: CredentialSource) -> Arc<dyn Objects> {
        Arc::new(S3::open(&self.location, credentials).expect("a valid location"))
    }

    /// The store as this attempt's worker sees it.
    async fn opened_for(&self, scope: &Scope) -> Arc<dyn Objects> {
        let session = self.session(scope).await.expect("a session");
        self.open(CredentialSource::Given(session.credentials))
    }

    /// A backup by a session alone; the name of its record.
    async fn back_up(&self, volume: &str, attempt: u64) -> RecordId {
        let job = self.job(volume, attempt);
        let objects = self.opened_for(&scope_of(&job, Work::Backup)).await;
        let ran = job::run(job, objects).await;
        assert!(ran.completed(), "{:#?}", ran.last);
        let (volume, backup) = (volume.parse().expect("valid"), ran.record().parse().expect("valid"));
        RecordId { volume, backup }
    }
}

fn key(which: usize) -> Credentials {
    let (id, secret) = ACCESS_KEYS[which];
    Credentials { access_key_id: id.into(), secret_access_key: secret.into(), session_token: None }
}

fn scope_of(job: &JobSpec, work: Work) -> Scope {
    Scope { volume: job.volume.clone(), uid: job.uid.clone(), attempt: job.attempt.clone(), work }
}

fn is_refused<T: std::fmt::Debug>(what: &str, answer: Result<T, StoreError>) {
    match answer {
        Err(error) if error.kind == ErrorKind::Refused(FailureReason::AccessDenied) => {}
        other => panic!("{what}: {other:?}"),
    }
}

fn put(text: &'static str) -> Body {
    Body::Bytes(Bytes::from_static(text.as_bytes()))
}

#[tokio::test]
async fn law_11_backup_and_restore_need_no_more_than_their_sessions() {
    let world = World::new("sessions-round");
    let record = world.back_up("pvc-a", 1).await;
    // The second one reads what the first left, clears its journals, and takes the volume over.
    world.back_up("pvc-a", 2).await;
    let attempt = AttemptId::new(9, [9; 10]);
    let scope =
        Scope { volume: record.volume.clone(), uid: "restore".into(), attempt: attempt.clone(), work: Work::Restore };
    let client = Client::new(world.opened_for(&scope).await, Duration::from_secs(20), Duration::from_secs(60));
    let out = world.folder.path().join("out");
    let locking = Locking::Shared { attempt: attempt.clone(), timing: job::quick() };
    let restoring = RestoreJob { locking, ..RestoreJob::new(client, record, out.clone(), attempt) };
    let (progress, _newest) = watch::channel(Default::default());
    restore::run(restoring, progress, CancellationToken::new()).await.expect("restored");
    assert_eq!(difference(&world.folder.path().join("pvc-a"), &out), None);
    let requests = world.server.requests();
    let by_key: Vec<_> = requests.iter().filter(|r| r.access_key == ACCESS_KEYS[0].0).collect();
    assert!(by_key.iter().all(|r| r.method == "POST" && r.bucket.is_empty()), "only STS saw the key: {by_key:#?}");
    let left: Vec<_> = world.server.objects("backups").into_iter().map(|o| o.key).collect();
    let is_left = |part: &str| left.iter().any(|key| key.contains(part));
    assert!(!is_left("/locks/") && !is_left("/tidemark/") && !is_left("backup_tidemark-"), "{left:#?}");
    let refused: Vec<_> = requests.iter().filter(|r| r.status == Some(403)).collect();
    assert!(refused.iter().all(|r| matches!(r.kind, Kind::Get | Kind::Head)), "only what is absent: {refused:#?}");
    assert!(!refused.is_empty(), "the server told no session that something is absent");
}

#[tokio::test]
async fn law_11_a_stolen_session_opens_no_other_volume() {
    let world = World::new("sessions-stolen");
    let other = world.back_up("pvc-b", 1).await;
    let before = world.server.objects("backups");
    let job = world.job("pvc-a", 2);
    for work in [Work::Backup, Work::Restore] {
        let stolen = world.opened_for(&scope_of(&job, work)).await;
        let layout = VolumeLayout::new(&other.volume);
        let record = layout.backup(&other.backup);
        is_refused("GET", stolen.get(&record, Range::whole(1 << 20)).await);
        is_refused("HEAD", stolen.head(&record).await);
        is_refused("PUT", stolen.put(&record, put("mine"), PutCondition::Always).await);
        is_refused("PUT elsewhere", stolen.put("backupstore/x", put("mine"), PutCondition::Always).await);
        is_refused("DELETE", stolen.delete(std::slice::from_ref(&record)).await);
        // A batch with one key of its own among them.
        let own = VolumeLayout::new(&job.volume).lock(&job.attempt);
        is_refused("DELETE of several", stolen.delete(&[own, record.clone()]).await);
        for prefix in [layout.root().to_owned(), layout.blocks(), "backupstore/volumes/".into(), String::new()] {
            is_refused(&prefix, stolen.list(&prefix, None).await);
            is_refused(&prefix, stolen.folders(&prefix).await);
        }
        // Names that only begin like its own, and a way out of its folder.
        let own = VolumeLayout::new(&job.volume);
        let neighbour = own.root().trim_end_matches('/').to_owned();
        is_refused("LIST beside", stolen.list(&neighbour, None).await);
        is_refused("GET beside", stolen.get(&format!("{neighbour}2/volume.cfg"), Range::whole(100)).await);
    }
    assert_eq!(world.server.objects("backups"), before, "nothing changed");
}

#[tokio::test]
async fn law_11_a_session_deletes_no_other_backup_and_a_restore_writes_none() {
    let world = World::new("sessions-own");
    let earlier = world.back_up("pvc-a", 1).await;
    let layout = VolumeLayout::new(&earlier.volume);
    let block = world.server.block_objects("backups")[0].key.replace("some/prefix/", "");
    let job = world.job("pvc-a", 2);
    let before = world.server.objects("backups");
    let backing_up = world.opened_for(&scope_of(&job, Work::Backup)).await;
    let restoring = world.opened_for(&scope_of(&job, Work::Restore)).await;
    for key in [layout.backup(&earlier.backup), layout.config(), block, layout.tombstone("another-uid")] {
        is_refused(&key, backing_up.delete(std::slice::from_ref(&key)).await);
        is_refused(&key, restoring.delete(std::slice::from_ref(&key)).await);
        is_refused(&key, restoring.put(&key, put("mine"), PutCondition::Always).await);
    }
    assert_eq!(world.server.objects("backups"), before);
}

/// The policy alone, over many names: of all keys of all of these volumes it allows just its own volume's.
#[test]
fn law_11_no_policy_names_another_volume() {
    let names = ["pvc-a", "pvc-ab", "pvc-a.b", "a-pvc", "host-00000000000000000000000000000000", "vol-1", "vol-10"];
    let volumes: Vec<VolumeName> = names.iter().map(|n| n.parse().expect("a volume name")).collect();
    let attempt = AttemptId::new(5, [5; 10]);
    for prefix in ["", "prod/", "teams/shop/"] {
        for (volume, work) in volumes.iter().flat_map(|v| [(v, Work::Backup), (v, Work::Restore)]) {
            let location = S3Location { prefix: prefix.into(), ..job::location("http://a", "backups") };
            let scope = Scope { volume: volume.clone(), uid: "uid".into(), attempt: attempt.clone(), work };
            let policy = Policy::parse(&session::policy(&location, &scope).expect("short")).expect("well formed");
            for other in &volumes {
                let layout = VolumeLayout::new(other);
                let lock = layout.lock(&attempt);
                let keys =
                    [layout.config(), lock.clone(), layout.blocks() + "00/11/x.blk", layout.root().to_owned() + "a"];
                for (key, action) in keys.iter().flat_map(|key| ACTIONS.map(|action| (key, action))) {
                    let resource = format!("arn:aws:s3:::backups/{prefix}{key}");
                    let is_allowed = policy.allows(Wish { action, resource: &resource, context: &[] });
                    let expected = match (action, work) {
                        _ if other != volume => false,
                        ("s3:GetObject", _) | ("s3:PutObject", Work::Backup) => true,
                        ("s3:PutObject" | "s3:DeleteObject", _) => *key == lock,
                        _ => false,
                    };
                    assert_eq!(is_allowed, expected, "{volume} {work:?}: {action} {resource}");
                }
                let may_list = |prefix: Option<&str>| {
                    let context = prefix.map(|p| ("s3:prefix", p));
                    let resource = "arn:aws:s3:::backups";
                    policy.allows(Wish { action: "s3:ListBucket", resource, context: context.as_slice() })
                };
                let root = format!("{prefix}{}", layout.root());
                assert_eq!(may_list(Some(&root)), other == volume, "{root}");
                assert_eq!(may_list(Some(&format!("{root}locks/"))), other == volume, "{root}");
                assert!(!may_list(None) && !may_list(Some("")) && !may_list(Some(prefix)));
            }
        }
    }
}

const ACTIONS: [&str; 6] = [
    "s3:GetObject",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:DeleteObjectVersion",
    "s3:PutObjectAcl",
    "s3:GetBucketPolicy",
];

#[tokio::test]
async fn law_11_without_a_session_there_is_an_error_and_its_cure() {
    let world = World::new("sessions-refused");
    let scope = scope_of(&world.job("pvc-a", 1), Work::Backup);
    let unknown = Credentials { access_key_id: "AKIANOBODY".into(), ..key(0) };
    let wrong = Credentials { secret_access_key: "wrong".into(), ..key(0) };
    let other_role = Sts { role_arn: Some("arn:aws:iam::1:role/other".into()), ..world.sts() };
    let now = job::now();
    let early = now - jiff::SignedDuration::from_hours(1);
    let refused = FailureReason::SessionRefused;
    for (sts, key, at, reason, cure) in [
        (world.sts(), unknown, now, refused, "the access key is unknown there"),
        (world.sts(), wrong, now, refused, "correct the secret key"),
        (other_role, key(0), now, refused, "that role's trust policy"),
        (world.sts(), key(0), early, FailureReason::ClockSkew, "NTP"),
    ] {
        let error = sts::assume_role(&sts, &key, &scope, at).await.expect_err(cure);
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(cure), "{error}");
    }
    // The same place without STS, a place where nobody answers, and one that does not end.
    world.server.sts().serve(Service::None);
    let error = world.session(&scope).await.expect_err("no STS");
    assert_eq!(error.reason(), refused, "{error}");
    assert!(error.to_string().contains("no STS answers there"), "{error}");
    let nobody = Sts { endpoint: Some("http://127.0.0.1:9".into()), ..world.sts() };
    let error = sts::assume_role(&nobody, &key(0), &scope, now).await.expect_err("nobody");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("check credentials.stsEndpoint"), "{error}");
    world.server.fault(Rule::new(Fault::Answer { status: 503, code: "ServiceUnavailable" }));
    assert_eq!(world.session(&scope).await.expect_err("busy").kind, ErrorKind::Throttled);
}

#[tokio::test]
async fn law_7_absent_is_said_only_by_a_listing_of_a_session() {
    let world = World::new("sessions-absent");
    world.back_up("pvc-a", 1).await;
    let job = world.job("pvc-a", 2);
    let objects = world.opened_for(&scope_of(&job, Work::Backup)).await;
    let layout = VolumeLayout::new(&job.volume);
    let absent = layout.backup(&"backup-none".parse().expect("a name"));
    assert_eq!(objects.head(&absent).await, Ok(None));
    assert!(objects.get(&absent, Range::whole(100)).await.expect("absent").is_none());
    // What is there and refused is refused; and a listing that fails says nothing.
    let denied = Fault::Answer { status: 403, code: "AccessDenied" };
    world.server.fault(Rule::new(denied.clone()).on(Kind::Head));
    is_refused("HEAD", objects.head(&layout.config()).await);
    assert_eq!(objects.head(&absent).await, Ok(None));
    world.server.fault(Rule::new(Fault::Answer { status: 500, code: "InternalError" }).on(Kind::List));
    is_refused("HEAD", objects.head(&absent).await);
    // For a key of one's own a 403 is what it says.
    world.server.heal();
    world.server.fault(Rule::new(denied).on(Kind::Head));
    is_refused("HEAD", world.open(CredentialSource::Given(key(0))).head(&absent).await);
}

#[tokio::test]
async fn law_5_a_session_that_ends_without_another_ends_its_attempt_by_that_name() {
    let world = World::new("sessions-ended");
    let mut job = world.job("pvc-a", 1);
    job.deadlines.stall_seconds = 2;
    let objects = world.opened_for(&scope_of(&job, Work::Backup)).await;
    world.server.fault(Rule::new(Fault::Hold).on(Kind::PutBlock));
    let running = tokio::spawn(job::run(job, objects));
    let ask = || async {
        match world.server.counts().get(&Kind::PutBlock) {
            Some(_) => Ok(()),
            None => Err("no block was sent".to_owned()),
        }
    };
    support::eventually("a block is sent", Duration::from_secs(20), ask).await;
    world.server.sts().expire_but("");
    world.server.heal();
    let last = running.await.expect("an attempt does not panic").last;
    let failure = last.failure.expect("it failed");
    assert_eq!(failure.reason, FailureReason::SessionExpired, "{failure:#?}");
    assert!(failure.message.contains("the session ended, and no other came within 2s"), "{failure:#?}");
    assert!(world.server.block_objects("backups").is_empty());
}

#[tokio::test]
async fn law_6_a_session_that_ended_is_followed_by_the_next_in_the_secret() {
    let world = World::new("sessions-renewed");
    let job = world.job("pvc-a", 1);
    let scope = scope_of(&job, Work::Backup);
    let secret = world.folder.path().join("secret");
    std::fs::create_dir(&secret).expect("ours");
    let write = |session: &Session| {
        let keys = &session.credentials;
        let token = keys.session_token.clone().unwrap_or_default();
        for (name, value) in [
            ("AWS_ACCESS_KEY_ID", &keys.access_key_id),
            ("AWS_SECRET_ACCESS_KEY", &keys.secret_access_key),
            ("AWS_SESSION_TOKEN", &token),
        ] {
            std::fs::write(secret.join(name), value).expect("ours");
        }
    };
    write(&world.session(&scope).await.expect("a session"));
    let next = world.session(&scope).await.expect("a session");
    world.server.fault(Rule::new(Fault::Hold).on(Kind::PutBlock).after(1));
    let objects = world.open(CredentialSource::Mounted(secret.clone()));
    let running = tokio::spawn(job::run(job, objects));
    let seen = async |what: &str, wanted: &dyn Fn() -> bool| {
        let ask = || async { if wanted() { Ok(()) } else { Err(format!("{:#?}", world.server.requests())) } };
        support::eventually(what, Duration::from_secs(20), ask).await;
    };
    seen("a block is there", &|| !world.server.block_objects("backups").is_empty()).await;
    world.server.sts().expire_but(&next.credentials.access_key_id);
    world.server.heal();
    // The store tells the worker that its session ended; then the next one arrives.
    seen("it was told", &|| world.server.requests().iter().any(|r| r.status == Some(400))).await;
    write(&next);
    let ran = running.await.expect("an attempt does not panic");
    assert!(ran.completed(), "{:#?}", ran.last);
}
