//! What a deletion costs each side in requests, counted by the server; and Longhorn's incremental restore of our backups.

use std::{os::unix::fs::MetadataExt, path::Path};

use crate::support::{
    self, Block, Image, Longhorn, Place, S3Server, Tidemark,
    image::{BLOCK, difference},
    longhorn::{Create, age, layout},
};

const VOLUME: &str = "pvc-test";

/// Two backups that share half of their blocks; the first is deleted by its maker. The requests by kind, and in all.
async fn deletion(blocks: u64, is_ours: bool) -> (String, usize) {
    let (server, folder) = (S3Server::with_room(blocks * 200_000), support::scratch("requests"));
    server.create_bucket("backups");
    let place = Place::S3(server.endpoint());
    let (ours, longhorn) = (Tidemark::at(&place), Longhorn::here());
    let mut made = Vec::new();
    for first in [0, blocks / 2] {
        let texts: Vec<_> = (first..first + blocks).map(Block::Text).collect();
        let image = Image::of(&folder.path().join(format!("image-{first}")), &texts);
        if is_ours {
            made.push(ours.backup(VOLUME, image.path(), &[]).await);
        } else {
            let create = Create { workers: 8, ..Create::new(VOLUME, &format!("backup-l{first}"), image.path()) };
            longhorn.create(&place, &create).await.done("create");
            made.push(create.backup);
        }
    }
    age(&server.bucket("backups").join("some/prefix").join(layout(VOLUME).blocks()), 3600);
    server.forget_requests();
    if is_ours {
        let ended = ours.delete(VOLUME, &made[0]).await;
        assert_eq!(ended.code, 0, "{ended:#?}");
    } else {
        longhorn.delete(&place, VOLUME, &made[0]).await.done("delete");
    }
    let (counts, all) = (server.counts(), server.requests().len());
    let left = server.block_objects("backups").len() as u64;
    assert_eq!(left, blocks, "half of the first backup's blocks go: {counts:?}");
    (format!("{counts:?}"), all)
}

/// Ours is bounded always; Longhorn's is counted where its library is: our model of it sends fewer.
async fn compare_deletions(blocks: u64) {
    let (ours, our_count) = deletion(blocks, true).await;
    println!("deletion, {blocks} blocks, {} going: ours {our_count} {ours}", blocks / 2);
    // The sweep's 20, one GET for the record that stays, and what the command asks before: the probe's four and a head.
    assert!(our_count <= 26, "{our_count} {ours}");
    if Longhorn::library("deletion requests").is_none() {
        return;
    }
    let (theirs, their_count) = deletion(blocks, false).await;
    println!("deletion, {blocks} blocks, {} going: Longhorn {their_count} {theirs}", blocks / 2);
    println!("ratio: Longhorn sends {:.1} times as many", their_count as f64 / our_count as f64);
    assert!(their_count > our_count, "{their_count} and {our_count}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_costs_a_bounded_number_of_requests_and_fewer_than_longhorns() {
    compare_deletions(40).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "most of a minute: make soak"]
async fn soak_a_deletion_of_2000_blocks_beside_longhorns() {
    compare_deletions(200).await;
    compare_deletions(2000).await;
}

/// Longhorn restores our second backup on top of the first: what it writes is what changed, and what it leaves out is what
/// did not.
#[tokio::test]
async fn longhorn_restores_our_incremental_backup_incrementally() {
    let Some(longhorn) = Longhorn::library("incremental restore") else { return };
    use Block::{Hole, Random, Text};
    let (server, folder) = (S3Server::start(), support::scratch("incremental"));
    server.create_bucket("backups");
    let place = Place::S3(server.endpoint());
    let ours = Tidemark::at(&place);
    let before = Image::of(&folder.path().join("before"), &[Text(1), Text(2), Random(3), Hole, Text(5), Random(6)]);
    let after = Image::of(&folder.path().join("after"), &[Text(1), Text(9), Random(3), Text(4), Hole, Random(6)]);
    let first = ours.backup(VOLUME, before.path(), &[]).await;
    let second = ours.backup(VOLUME, after.path(), &[]).await;
    let (base, delta) = (folder.path().join("base"), folder.path().join("delta"));
    longhorn.restore(&place, VOLUME, &first, &base).await.done("restore");
    assert_eq!(difference(before.path(), &base), None);
    longhorn.restore_onto(&place, VOLUME, (&first, &second), &delta).await.done("incremental restore");
    let bytes = |path: &Path| std::fs::read(path).expect("it is there");
    let (base, written, expected) = (bytes(&base), bytes(&delta), bytes(after.path()));
    for block in 0..6 {
        let range = block * BLOCK..(block + 1) * BLOCK;
        let is_changed = base[range.clone()] != expected[range.clone()];
        let wanted = if is_changed { &expected[range.clone()] } else { &vec![0; BLOCK][..] };
        assert!(written[range] == *wanted, "block {block}, changed: {is_changed}");
    }
    let allocated = std::fs::metadata(&delta).expect("it is there").blocks() * 512;
    assert_eq!(allocated, 3 * BLOCK as u64, "blocks 1, 3 and the zeros of 4, and nothing else");
}
