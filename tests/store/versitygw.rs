//! The network's faults once more, before an S3 server that is not ours (versitygw): what `tests/store/faults.rs` shows with the
//! embedded server's own faults is shown here with a wire that is cut, reset and silent.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::support::{
    self, Block, Image, TempDir, Versitygw, Wire, busy, job,
    longhorn::{layout, walk},
};
use tidemark::{
    model::{
        FailureReason, JobSpec, Report,
        job::{Deadlines, Limits},
    },
    store::{credentials::CredentialSource, objects::Objects, s3::S3},
};
use tokio_util::sync::CancellationToken;

const BLOCKS: u64 = 12;
const STALL_SECONDS: u64 = 5;

/// A server behind a wire, and an image that it does not hold.
struct World {
    server: Versitygw,
    wire: Wire,
    image: Image,
    _folder: TempDir,
}

impl World {
    fn new() -> Self {
        let (server, folder) = (Versitygw::start(), support::scratch("versitygw-wire"));
        let address: SocketAddr = server.endpoint().trim_start_matches("http://").parse().expect("an address");
        let image = Image::of(&folder.path().join("image"), &(0..BLOCKS).map(Block::Random).collect::<Vec<_>>());
        Self { server, wire: Wire::new(address), image, _folder: folder }
    }

    fn objects(&self) -> std::sync::Arc<dyn Objects> {
        job::s3_at(&self.wire.endpoint())
    }

    fn job(&self, attempt: u64) -> JobSpec {
        let spec = job::job(self.image.path(), "uid", attempt);
        let deadlines = Deadlines { stall_seconds: STALL_SECONDS, ..spec.deadlines.clone() };
        // Two at once: eight would share a slow wire so evenly that none arrives long before the stall deadline.
        let limits = Limits { concurrency: Some(2), ..spec.limits.clone() };
        JobSpec { deadlines, limits, ..spec }
    }

    /// Block objects, whole ones: it writes beside and renames.
    fn present(&self) -> u64 {
        let blocks = self.server.bucket().join("some/prefix").join(layout("pvc-test").blocks());
        walk(&blocks).iter().filter(|path| path.extension().is_some_and(|e| e == "blk")).count() as u64
    }

    /// Runs an attempt; law 2 is looked at with every report, and then `act` acts.
    async fn run(&self, attempt: u64, mut act: impl FnMut(&Report)) -> job::Ran {
        job::run_watched(self.job(attempt), self.objects(), CancellationToken::new(), |report| {
            let present = self.present();
            assert!(report.backup().acknowledged_blocks <= present, "law 2: {present} in the bucket: {report:?}");
            act(report);
        })
        .await
    }

    async fn is_whole(&self, ran: &job::Ran) {
        let backup = ran.record();
        assert_eq!(job::compare(&self.objects(), "pvc-test", &backup, self.image.path()).await, None);
    }
}

#[tokio::test]
async fn law_5_packet_loss_before_versitygw_shows_in_time_and_law_6_heals() {
    let world = World::new();
    world.wire.slow(4 << 20);
    let mut cut_at = None;
    let ran = world.run(1, |report| {
        if report.backup().acknowledged_blocks >= 3 && cut_at.is_none() {
            world.wire.cut();
            cut_at = Some(Instant::now());
        }
    });
    let last = ran.await.last;
    let took = cut_at.expect("the wire was cut").elapsed();
    assert_eq!(last.failure.as_ref().map(|f| f.reason), Some(FailureReason::UploadStalled), "{last:?}");
    assert!(took <= Duration::from_secs(2 * STALL_SECONDS) + busy(), "{took:?}");
    let acknowledged = last.backup().acknowledged_blocks;
    world.wire.heal();
    let second = world.run(2, |_| {}).await;
    assert!(second.completed(), "{:?}", second.last);
    let progress = second.last.backup();
    assert!(progress.resumed_blocks + progress.reused_blocks >= acknowledged, "{progress:?}");
    assert_eq!(progress.uploaded_blocks + progress.resumed_blocks + progress.reused_blocks, BLOCKS, "{progress:?}");
    world.is_whole(&second).await;
}

#[tokio::test]
async fn law_6_connections_to_versitygw_that_are_reset_cost_a_retry_and_no_block() {
    let world = World::new();
    world.wire.slow(8 << 20);
    let mut resets = 0;
    let ran = world.run(1, |report| {
        // At the second, fourth and sixth block.
        if report.backup().acknowledged_blocks >= 2 * (resets + 1) && resets < 3 {
            world.wire.reset();
            resets += 1;
        }
    });
    let ran = ran.await;
    assert!(ran.completed(), "{:?}", ran.last);
    assert_eq!((resets, ran.last.backup().uploaded_blocks), (3, BLOCKS), "{:?}", ran.last);
    assert!(ran.last.requests.retried > 0, "{:?}", ran.last.requests);
    world.is_whole(&ran).await;
}

#[tokio::test]
async fn law_5_a_wire_to_versitygw_that_is_silent_from_the_start_shows_in_time() {
    let world = World::new();
    world.wire.cut();
    let began = Instant::now();
    let ran = world.run(1, |_| {}).await;
    let took = began.elapsed();
    let reason = ran.last.failure.as_ref().map(|f| f.reason);
    assert!(matches!(reason, Some(FailureReason::UploadStalled | FailureReason::StoreUnavailable)), "{:?}", ran.last);
    assert!(took <= Duration::from_secs(2 * STALL_SECONDS) + busy(), "{took:?}");
    assert_eq!((ran.last.backup().acknowledged_blocks, world.present()), (0, 0));
}

#[tokio::test]
async fn law_5_what_versitygw_refuses_shows_within_five_seconds() {
    let world = World::new();
    let elsewhere = job::location(&world.wire.endpoint(), "no-such-bucket");
    let right = job::credentials(0);
    let (place, wrong) = (job::location(&world.wire.endpoint(), "backups"), job::credentials(1));
    let open = |location, credentials: CredentialSource| S3::open(&location, credentials).expect("a valid location");
    for (objects, reasons) in [
        (open(elsewhere, right), vec![FailureReason::BucketMissing]),
        (open(place, wrong), vec![FailureReason::AccessDenied]),
    ] {
        let began = Instant::now();
        let ran = job::run(world.job(1), std::sync::Arc::new(objects)).await;
        let reason = ran.last.failure.as_ref().map(|f| f.reason);
        assert!(reason.is_some_and(|reason| reasons.contains(&reason)), "{:?}", ran.last);
        assert!(began.elapsed() <= Duration::from_secs(5) + busy(), "{:?}", began.elapsed());
    }
}
