//! The main job on both backends: full, incremental, unchanged; what it costs and that it restores.

use crate::support::{self, Block, Image, Kind, S3Server, job};
use tidemark::model::job::Mode;

fn blocks() -> Vec<Block> {
    let mut blocks: Vec<Block> = (0..12).map(Block::Random).collect();
    blocks.extend([Block::Hole, Block::Zero, Block::Text(3), Block::Random(0), Block::Random(1), Block::Hole]);
    blocks
}

#[tokio::test]
async fn a_backup_is_restorable_and_an_unchanged_one_sends_nothing() {
    let server = S3Server::start();
    let folder = support::scratch("backup");
    let directory = support::scratch("store");
    let image = Image::of(&folder.path().join("image"), &blocks());
    for objects in [job::directory(directory.path()), job::s3(&server)] {
        let first = job::run(job::job(image.path(), "first", 1), objects.clone()).await;
        assert!(first.completed(), "{:?}", first.last);
        let progress = first.last.backup();
        assert_eq!(
            (progress.total_blocks, progress.acknowledged_blocks, progress.uploaded_blocks, progress.zero_blocks),
            (15, 15, 15, 1),
            "18 blocks, 2 holes, 1 of zeros, 2 repeated: {progress:?}"
        );
        assert_eq!(job::compare(&objects, "pvc-test", &first.record(), image.path()).await, None);

        server.forget_requests();
        let second = job::run(job::job(image.path(), "second", 1), objects.clone()).await;
        assert!(second.completed(), "{:?}", second.last);
        assert_eq!((second.last.backup().uploaded_blocks, second.last.backup().reused_blocks), (0, 15));
        assert!(second.last.requests.sum() <= 30, "{:?}", second.last.requests);
        assert_eq!(server.counts().get(&Kind::PutBlock), None);

        let full = job::run(job::with_mode(job::job(image.path(), "full", 1), Mode::Full), objects.clone()).await;
        assert_eq!((full.last.backup().uploaded_blocks, full.last.backup().reused_blocks), (15, 0), "{:?}", full.last);
        assert_eq!(job::compare(&objects, "pvc-test", &full.record(), image.path()).await, None);
    }
}

#[tokio::test]
async fn an_incremental_sends_what_changed_and_older_backups_stay_whole() {
    let server = S3Server::start();
    let objects = job::s3(&server);
    let folder = support::scratch("incremental");
    let path = folder.path().join("image");
    let image = Image::of(&path, &blocks());
    let first = job::run(job::job(&path, "first", 1), objects.clone()).await;
    let before = folder.path().join("before");
    std::fs::copy(&path, &before).expect("copied");
    image.write(2, Block::Random(100));
    image.write(5, Block::Zero);
    image.write(12, Block::Random(101));
    let second = job::run(job::job(&path, "second", 1), objects.clone()).await;
    assert_eq!(second.last.backup().uploaded_blocks, 2, "{:?}", second.last);
    assert_eq!(job::compare(&objects, "pvc-test", &second.record(), &path).await, None);
    assert_eq!(job::compare(&objects, "pvc-test", &first.record(), &before).await, None);
}
