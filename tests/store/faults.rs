//! Faults on the wire: a real S3 server over HTTP that refuses, breaks, throttles, stalls, loses replies and lies about
//! listings; and a network that loses every packet. Each with its verdict, its count and its time.

use std::time::{Duration, Instant};

use crate::support::{self, Block, Fault, Image, Kind, Rule, S3Server, Wire, busy, job};
use tidemark::model::{
    FailureReason, JobSpec, Outcome,
    limits::{LOCK_REFRESH, SEGMENT_INTERVAL_MIN},
};

const BLOCKS: usize = 16;

fn image(folder: &support::TempDir) -> Image {
    Image::of(&folder.path().join("image"), &(0..BLOCKS as u64).map(Block::Random).collect::<Vec<_>>())
}

fn with_stall(spec: JobSpec, seconds: u64) -> JobSpec {
    let deadlines = tidemark::model::job::Deadlines { stall_seconds: seconds, ..spec.deadlines.clone() };
    JobSpec { deadlines, ..spec }
}

/// What was seen when an attempt failed: its reason, its count and the time it took.
struct Failed {
    reason: FailureReason,
    acknowledged: u64,
    took: Duration,
}

async fn fail(spec: JobSpec, objects: std::sync::Arc<dyn tidemark::store::objects::Objects>) -> Failed {
    let began = Instant::now();
    let ran = job::run(spec, objects).await;
    assert_eq!(ran.last.outcome, Some(Outcome::Failed), "{:?}", ran.last);
    let failure = ran.last.failure.expect("a failure says why");
    assert!(!failure.message.is_empty() && failure.object.is_some(), "{failure:?}");
    Failed {
        reason: failure.reason,
        acknowledged: ran.last.counters.backup().acknowledged_blocks,
        took: began.elapsed(),
    }
}

#[tokio::test]
async fn law_5_total_packet_loss_shows_within_the_stall_deadline_and_law_6_heals_without_sending_again() {
    let server = S3Server::start();
    server.create_bucket("backups");
    let wire = Wire::new(server.address());
    let folder = support::scratch("loss");
    let image = image(&folder);
    let objects = job::s3_at(&wire.endpoint());
    let mut spec = with_stall(job::job(image.path(), "uid", 1), 8);
    // Two at once: eight would share the slow wire so evenly that none arrives long before the stall deadline.
    spec.limits.concurrency = Some(2);
    wire.slow(4 << 20);
    let mut cut_at = None;
    let ran = job::run_watched(spec, objects.clone(), tokio_util::sync::CancellationToken::new(), |report| {
        let present = server.block_objects("backups").len() as u64;
        assert!(report.backup().acknowledged_blocks <= present, "law 2: {present} in the bucket: {report:?}");
        if report.backup().acknowledged_blocks >= 3 && cut_at.is_none() {
            wire.cut();
            cut_at = Some(Instant::now());
        }
    });
    let last = ran.await.last;
    let took = cut_at.expect("the wire was cut").elapsed();
    assert_eq!(last.failure.as_ref().map(|f| f.reason), Some(FailureReason::UploadStalled), "{last:?}");
    assert!(took <= Duration::from_secs(13) + busy(), "stall of 8 s + 5 s: {took:?}");
    assert!(last.failure.is_some_and(|f| f.message.contains("8s")));
    let acknowledged = last.counters.backup().acknowledged_blocks;
    assert!((3..BLOCKS as u64).contains(&acknowledged));

    wire.heal();
    wire.slow(0);
    let second = job::run(job::job(image.path(), "uid", 2), objects.clone()).await;
    assert!(second.completed(), "{:?}", second.last);
    assert_eq!(server.blocks_sent_again(), Vec::<String>::new());
    let progress = second.last.backup();
    assert!(progress.resumed_blocks + progress.reused_blocks >= acknowledged, "{progress:?}");
    assert_eq!(job::compare(&objects, "pvc-test", &second.record(), image.path()).await, None);
}

#[tokio::test]
async fn law_5_a_silent_server_shows_within_the_stall_deadline() {
    let server = S3Server::start();
    let objects = job::s3(&server);
    let folder = support::scratch("silent");
    let image = image(&folder);
    server.fault(Rule::new(Fault::HangForever).on(Kind::PutBlock).after(4));
    let ran = job::run(with_stall(job::job(image.path(), "uid", 1), 8), objects).await;
    let (progress, ended) = (ran.last.backup(), job::now());
    let reason = ran.last.failure.map(|f| f.reason);
    assert_eq!((reason, progress.acknowledged_blocks), (Some(FailureReason::UploadStalled), 4));
    let silence = ended.duration_since(progress.last_acknowledged_time.expect("four were acknowledged"));
    let silence = silence.unsigned_abs();
    assert!(
        silence <= Duration::from_secs(13) + busy(),
        "stall of 8 s + 5 s, from the last acknowledgement: {silence:?}"
    );
}

#[tokio::test]
async fn law_5_a_refusal_shows_within_five_seconds() {
    let server = S3Server::start();
    let folder = support::scratch("refused");
    let image = image(&folder);
    let no_bucket = job::s3_at(&server.endpoint());
    let failed = fail(job::job(image.path(), "uid", 1), no_bucket).await;
    assert_eq!((failed.reason, failed.acknowledged), (FailureReason::BucketMissing, 0));
    assert!(failed.took <= Duration::from_secs(5) + busy(), "{:?}", failed.took);

    server.create_bucket("backups");
    server.revoke(support::ACCESS_KEYS[0].0);
    let failed = fail(job::job(image.path(), "uid", 2), job::s3(&server)).await;
    assert_eq!((failed.reason, failed.acknowledged), (FailureReason::AccessDenied, 0));
    assert!(failed.took <= Duration::from_secs(5) + busy(), "{:?}", failed.took);
}

#[tokio::test]
async fn law_5_a_key_revoked_in_mid_upload_shows_within_five_seconds() {
    let server = S3Server::start();
    let objects = job::s3(&server);
    let folder = support::scratch("revoked");
    let image = image(&folder);
    // The third and later blocks wait for the key to be revoked.
    server.fault(Rule::new(Fault::Hold).on(Kind::PutBlock).after(2));
    let mut revoked_at = None;
    let ran = job::run_watched(
        job::job(image.path(), "uid", 1),
        objects,
        tokio_util::sync::CancellationToken::new(),
        |report| {
            if report.backup().acknowledged_blocks == 2 && revoked_at.is_none() {
                server.revoke(support::ACCESS_KEYS[0].0);
                server.heal();
                revoked_at = Some(Instant::now());
            }
        },
    );
    let last = ran.await.last;
    let took = revoked_at.expect("revoked").elapsed();
    assert_eq!(last.outcome, Some(Outcome::Failed), "a revoked key went on: {last:?}");
    assert_eq!(last.failure.as_ref().map(|f| f.reason), Some(FailureReason::AccessDenied), "{last:?}");
    assert_eq!(last.backup().acknowledged_blocks, 2, "{last:?}");
    assert!(took <= Duration::from_secs(8) + busy(), "5 s and the order of ending: {took:?}");
}

#[tokio::test]
async fn passing_faults_are_healed_within_the_attempt() {
    let cases = [
        ("reset", Rule::new(Fault::ResetBefore).on(Kind::PutBlock).after(2).times(3)),
        ("500", Rule::new(Fault::internal_error()).after(6).times(5)),
        ("throttled", Rule::new(Fault::slow_down()).on(Kind::PutBlock).after(1).times(4)),
        ("reply of a block lost", Rule::new(Fault::ReplyLost).on(Kind::PutBlock).after(1).times(3)),
        ("reply of any other PUT lost", Rule::new(Fault::ReplyLost).on(Kind::PutOther).times(1)),
        ("reply of the marker lost", Rule::new(Fault::ReplyLost).on(Kind::PutOther).key("backup_tidemark-").times(1)),
        ("reply of the record lost", Rule::new(Fault::ReplyLost).on(Kind::PutOther).key("backup_backup-").times(1)),
        ("record not stored", Rule::new(Fault::Drop).on(Kind::PutOther).key("backup_backup-").times(1)),
        ("listing truncated", Rule::new(Fault::TruncatedBody).on(Kind::List).times(2)),
        ("token lost", Rule::new(Fault::LoseToken).on(Kind::List).times(1)),
        ("GET cut", Rule::new(Fault::BodyCut).on(Kind::Get).times(2)),
        ("slow", Rule::new(Fault::Delay(Duration::from_millis(150)))),
    ];
    // They wait most of the time: for a second try, for a lock's age.
    let tried = cases.into_iter().map(|(what, rule)| async move {
        let server = S3Server::start();
        let objects = job::s3(&server);
        let folder = support::scratch("passing");
        let blocks = [0, 1, 2, 3, 4, 5, 6, 7].map(Block::Random);
        let image = Image::of(&folder.path().join("image"), &blocks);
        server.fault(rule);
        let ran = job::run(job::job(image.path(), "uid", 1), objects.clone()).await;
        assert!(ran.completed(), "{what}: {:?}", ran.last);
        assert_eq!(ran.last.backup().acknowledged_blocks, blocks.len() as u64, "{what}");
        server.heal();
        assert_eq!(job::compare(&objects, "pvc-test", &ran.record(), image.path()).await, None, "{what}");
    });
    futures::future::join_all(tried).await;
}

#[tokio::test]
async fn law_7_a_listing_that_repeats_a_page_is_no_listing() {
    let server = S3Server::start();
    let objects = job::s3(&server);
    let folder = support::scratch("pages");
    let image = image(&folder);
    assert!(job::run(job::job(image.path(), "first", 1), objects.clone()).await.completed());
    server.page_size(3);
    server.fault(Rule::new(Fault::RepeatedPage).on(Kind::List).key("/blocks/").after(2));
    let second = job::run(with_stall(job::job(image.path(), "second", 1), 3), objects.clone()).await;
    assert!(second.last.requests.retried >= 1, "the repeated page was noticed and asked for again: {:?}", second.last);
    assert_eq!(second.last.backup().reused_blocks, BLOCKS as u64, "{:?}", second.last);
    server.heal();
    let third = job::run(job::job(image.path(), "third", 1), objects).await;
    assert_eq!(third.last.backup().reused_blocks, BLOCKS as u64, "pages of three keys: {:?}", third.last);
}

#[tokio::test]
async fn law_4_a_store_that_loses_the_record_for_good_gets_no_completed() {
    let server = S3Server::start();
    let objects = job::s3(&server);
    let folder = support::scratch("liar");
    let image = image(&folder);
    server.fault(Rule::new(Fault::Drop).on(Kind::PutOther).key("backup_backup-"));
    let failed = fail(job::job(image.path(), "uid", 1), objects).await;
    assert_eq!((failed.reason, failed.acknowledged), (FailureReason::RecordMismatch, BLOCKS as u64));
}

#[tokio::test]
async fn law_5_a_bandwidth_limit_is_no_stall() {
    let server = S3Server::start();
    let objects = job::s3(&server);
    let folder = support::scratch("limit");
    let image = Image::of(&folder.path().join("image"), &[Block::Random(0), Block::Random(1)]);
    // The second block has to wait for eight seconds, longer than the stall deadline.
    let mut spec = with_stall(job::job(image.path(), "uid", 1), 6);
    spec.limits.max_bytes_per_second = Some(256 << 10);
    let began = Instant::now();
    let ran = job::run(spec, objects).await;
    assert!(ran.completed(), "{:?}", ran.last);
    assert!(began.elapsed() >= Duration::from_millis(7600), "2 MiB at 256 KiB/s: {:?}", began.elapsed());
}

#[tokio::test]
async fn an_unchanged_volume_of_2000_blocks_costs_at_most_30_requests() {
    let server = S3Server::start();
    let objects = job::s3(&server);
    let folder = support::scratch("requests");
    let image = Image::of(&folder.path().join("image"), &[]);
    for index in 0..2000_u64 {
        image.write_at(index << 21, &index.to_le_bytes().map(|b| b | 1));
    }
    image.write_at((2000 << 21) - 1, &[1]);
    let first = job::run(job::job(image.path(), "first", 1), objects.clone()).await;
    assert!(first.completed(), "{:?}", first.last);
    server.forget_requests();
    let began = Instant::now();
    let second = job::run(job::job(image.path(), "second", 1), objects).await;
    let took = began.elapsed();
    assert!(second.completed(), "{:?}", second.last);
    let counts = server.counts();
    assert_eq!(counts.get(&Kind::PutBlock), None, "{counts:?}");
    // What was asked again, because an answer took too long, is none of the plan's.
    let again = usize::try_from(second.last.requests.retried).expect("a few");
    assert!(counts.get(&Kind::Head).is_none_or(|n| *n <= 3 + again), "{again} asked again: {counts:?}");
    let sum: usize = counts.values().sum();
    // Of them three of the lock and one of the journal; how many more of those there are is a matter of time.
    let is_timed = |key: &str| key.contains("/locks/lock-") || key.ends_with(".jnl");
    let timed = server.requests().iter().filter(|r| r.kind == Kind::PutOther && is_timed(&r.key)).count();
    let seconds = took.as_secs();
    let due = 4 + seconds / SEGMENT_INTERVAL_MIN.as_secs() + seconds / LOCK_REFRESH.as_secs();
    assert!(
        sum - timed <= 26 + again && timed as u64 <= due + again as u64,
        "{sum}, {timed} of them timed, {again} asked again, in {took:?}: {counts:?}"
    );
    println!("unchanged incremental of 2000 blocks: {sum} requests, {counts:?}");
}
