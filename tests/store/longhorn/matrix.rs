//! Both ways with Longhorn: every method, block size and kind of store, full and incremental, both sides taking turns on
//! one volume. What one wrote the other restores, and it is compared byte for byte.
//!
//! One chain: four states of a volume, backed up in turn, each an incremental on the other side's backup; then each side
//! deletes its first backup, and what is left is restored once more. `support/longhorn` says which Longhorn is at work.

use std::{path::PathBuf, sync::Arc};

use crate::support::{
    self, Block, Image, Longhorn, Place, S3Server, TempDir, Tidemark, Versitygw,
    image::difference_after_growth,
    longhorn::{Create, age, layout, url_of, walk},
};
use futures::future::join_all;
use tidemark::model::BlockSize;
use tokio::sync::Semaphore;

const VOLUME: &str = "web-1";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Longhorn,
    Ours,
}

impl Side {
    fn other(self) -> Self {
        if self == Self::Longhorn { Self::Ours } else { Self::Longhorn }
    }
}

/// Four states of one volume. It changes, loses blocks to zeros and to holes, gets one back, and grows.
fn states() -> [Vec<Block>; 4] {
    use Block::{Hole, Random, Text, Zero};
    [
        vec![Text(1), Hole, Random(2), Text(1)],
        vec![Text(1), Text(9), Zero, Text(1)],
        vec![Text(5), Text(9), Hole, Random(4)],
        vec![Text(5), Zero, Random(2), Random(4), Text(6)],
    ]
}

/// Blocks of a state whose content the store did not have, zeros aside (a repeated one counts twice): what ours sends.
const NEW_BLOCKS: [u64; 4] = [3, 1, 2, 1];

struct Chain {
    name: String,
    place: Place,
    /// Where the store's objects lie on disk.
    root: PathBuf,
    method: &'static str,
    block_size: BlockSize,
    images: Arc<Vec<Image>>,
    longhorn: Longhorn,
    ours: Tidemark,
    folder: TempDir,
}

impl Chain {
    async fn write(&self, side: Side, state: usize, before: Option<&str>) -> String {
        let image = self.images[state].path();
        if side == Side::Ours {
            let size = self.block_size.to_string();
            let flags = ["--compression", self.method, "--block-size", &size];
            let ended = self.ours.try_backup(VOLUME, image, &flags).await;
            assert_eq!(ended.code, 0, "{}, state {state}: {ended:#?}", self.name);
            let result = ended.result();
            assert_eq!(
                result["progress"]["uploadedBlocks"], NEW_BLOCKS[state],
                "{}, state {state}: {result}",
                self.name
            );
            assert_eq!(result["plan"]["parent"].as_str(), before, "{}, state {state}: {result}", self.name);
            return result["backup"].as_str().expect("a name").into();
        }
        let mut create = Create::new(VOLUME, &format!("backup-state{state}"), image);
        (create.method, create.block_size) = (self.method, self.block_size);
        if let Some(before) = before {
            let seen = self.longhorn.inspect(&self.place, VOLUME, before).await;
            let seen = seen.unwrap_or_else(|e| panic!("{}, state {state}: {e}", self.name));
            let snapshot = seen["backup"]["SnapshotName"].as_str().expect("a snapshot").to_owned();
            create.base = Some((self.images[state - 1].path().to_owned(), snapshot));
        }
        let said = self.longhorn.create(&self.place, &create).await.done(&self.name);
        assert_eq!(said.last()["incremental"], before.is_some(), "{}, state {state}: {said:?}", self.name);
        create.backup
    }

    async fn restores(&self, side: Side, backup: &str, state: usize) {
        let out = self.folder.path().join(format!("restored-{state}"));
        // Longhorn writes into a file as it is.
        let _ = std::fs::remove_file(&out);
        match side {
            Side::Ours => {
                let ended = self.ours.restore(VOLUME, backup, &out).await;
                assert_eq!(ended.code, 0, "{}, state {state}: {ended:#?}", self.name);
            }
            Side::Longhorn => {
                self.longhorn.restore(&self.place, VOLUME, backup, &out).await.done(&self.name);
            }
        }
        let differs = difference_after_growth(self.images[state].path(), &out);
        assert_eq!(differs, None, "{}, state {state} restored by {side:?}", self.name);
        std::fs::remove_file(&out).expect("ours");
    }

    async fn delete(&self, side: Side, backup: &str) {
        match side {
            Side::Longhorn => {
                self.longhorn.delete(&self.place, VOLUME, backup).await.done(&self.name);
            }
            Side::Ours => {
                // We leave blocks alone that were written in the last 20 minutes.
                age(&self.root.join(layout(VOLUME).blocks()), 3600);
                let ended = self.ours.delete(VOLUME, backup).await;
                assert_eq!(ended.code, 0, "{}: {ended:#?}", self.name);
            }
        }
    }

    async fn run(&self, first: Side) {
        let mut backups: Vec<(Side, String)> = Vec::new();
        let mut side = first;
        for state in 0..states().len() {
            let before = backups.last().map(|(_, name)| name.as_str());
            let name = self.write(side, state, before).await;
            self.restores(side.other(), &name, state).await;
            backups.push((side, name));
            side = side.other();
        }
        let mut listed = self.longhorn.list(&self.place, VOLUME).await.expect(&self.name);
        listed.sort();
        let mut expected: Vec<String> = backups.iter().map(|(_, name)| name.clone()).collect();
        expected.sort();
        assert_eq!(listed, expected, "{}: Longhorn lists all four", self.name);
        for (_, name) in &backups {
            let seen = self.longhorn.inspect(&self.place, VOLUME, name).await;
            assert!(seen.is_ok(), "{}: Longhorn inspects {name}: {seen:?}", self.name);
            let url = url_of(&self.place.target(), VOLUME, name);
            let ours = self.ours.run(&["inspect", &url, "--json"]).await;
            assert_eq!(ours.code, 0, "{}: {ours:?}", self.name);
        }
        // Each deletion takes the one block that no other backup names: see `states`.
        let blocks = || walk(&self.root.join(layout(VOLUME).blocks())).len();
        let before = blocks();
        self.delete(backups[1].0, &backups[1].1).await;
        assert_eq!(blocks(), before, "{}: what state 1 names, state 0 or 2 names too", self.name);
        self.delete(backups[0].0, &backups[0].1).await;
        assert_eq!(blocks(), before - 1, "{}: Text(1) is in no other state", self.name);
        let left = backups.iter().enumerate().skip(2);
        for (state, (side, name)) in left {
            self.restores(side.other(), name, state).await;
        }
        // Longhorn may delete ours, too.
        let (ours, theirs) = if first == Side::Ours { (2, 3) } else { (3, 2) };
        self.longhorn.delete(&self.place, VOLUME, &backups[ours].1).await.done(&self.name);
        self.restores(Side::Ours, &backups[theirs].1, theirs).await;
    }
}

/// Every chain of one method at the same time: each mostly waits for locks to settle.
async fn matrix(method: &'static str) {
    let folder = support::scratch("states");
    let images = |size: BlockSize| {
        let image = |(i, blocks): (usize, Vec<Block>)| {
            let path = folder.path().join(format!("{size}-{i}"));
            Image::with_block_size(&path, size.len(), &blocks)
        };
        Arc::new(states().into_iter().enumerate().map(image).collect::<Vec<_>>())
    };
    let sizes = [(BlockSize::Mi2, images(BlockSize::Mi2)), (BlockSize::Mi16, images(BlockSize::Mi16))];
    let at_once = Semaphore::new(6);
    let mut chains = Vec::new();
    for (size, images) in &sizes {
        for first in [Side::Longhorn, Side::Ours] {
            for is_s3 in [true, false] {
                // Large blocks take time: there each store has one order only.
                if *size == BlockSize::Mi16 && is_s3 == (first == Side::Ours) {
                    continue;
                }
                let (at_once, images) = (&at_once, images.clone());
                chains.push(async move {
                    let _permit = at_once.acquire().await.expect("never closed");
                    let server = S3Server::start();
                    server.create_bucket("backups");
                    let folder = support::scratch("chain");
                    let place = match is_s3 {
                        true => Place::S3(server.endpoint()),
                        false => Place::Directory(folder.path().join("store")),
                    };
                    std::fs::create_dir(folder.path().join("store")).expect("a new folder");
                    let root = match is_s3 {
                        true => server.bucket("backups").join("some/prefix"),
                        false => folder.path().join("store"),
                    };
                    let name = format!("{method}, {size}, {first:?} first, {place:?}");
                    let (ours, longhorn) = (Tidemark::at(&place), Longhorn::here());
                    let chain = Chain { name, place, root, method, block_size: *size, images, longhorn, ours, folder };
                    chain.run(first).await;
                });
            }
        }
    }
    join_all(chains).await;
}

/// Over an S3 server that neither side wrote.
#[tokio::test(flavor = "multi_thread")]
async fn both_sides_take_turns_over_versitygw() {
    let states_folder = support::scratch("states");
    let image = |(i, blocks): (usize, Vec<Block>)| Image::of(&states_folder.path().join(i.to_string()), &blocks);
    let images = Arc::new(states().into_iter().enumerate().map(image).collect::<Vec<_>>());
    let chains = [("lz4", Side::Longhorn), ("gzip", Side::Ours), ("none", Side::Longhorn)].map(|(method, first)| {
        let images = images.clone();
        async move {
            let server = Versitygw::start();
            let (place, root) = (Place::S3(server.endpoint()), server.bucket().join("some/prefix"));
            let name = format!("{method}, {first:?} first, versitygw");
            let (ours, longhorn, folder) = (Tidemark::at(&place), Longhorn::here(), support::scratch("chain"));
            let block_size = BlockSize::Mi2;
            let chain = Chain { name, place, root, method, block_size, images, longhorn, ours, folder };
            chain.run(first).await;
        }
    });
    join_all(chains).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_take_turns_with_lz4() {
    matrix("lz4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_take_turns_with_gzip() {
    matrix("gzip").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_take_turns_without_compression() {
    matrix("none").await;
}
