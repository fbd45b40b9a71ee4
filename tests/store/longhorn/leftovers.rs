//! What writers that died left in a directory confuses neither side: no listing of Longhorn's shows a file of ours without
//! its name, and those it leaves itself beside the names are nothing to us.

use std::path::PathBuf;

use crate::support::{
    self, Block, Image, Longhorn, Place, Tidemark,
    image::difference,
    longhorn::{Create, age, layout, walk},
};
use tidemark::store::layout::{name_of_unfinished, unfinished_of_key};

const VOLUME: &str = "pvc-test";

#[tokio::test(flavor = "multi_thread")]
async fn temporary_files_of_dead_writers_confuse_neither_side() {
    let (store, folder) = (support::scratch("leftovers"), support::scratch("images"));
    let place = Place::Directory(store.path().to_owned());
    let (ours, longhorn) = (Tidemark::at(&place), Longhorn::here());
    let before = Image::of(&folder.path().join("before"), &[Block::Text(1), Block::Random(2)]);
    let after = Image::of(&folder.path().join("after"), &[Block::Text(1), Block::Random(3)]);
    let first = ours.backup(VOLUME, before.path(), &[]).await;
    let unfinished = |store: &support::TempDir| -> Vec<PathBuf> {
        walk(store.path())
            .into_iter()
            .filter(|path| name_of_unfinished(&path.display().to_string()).is_some())
            .collect()
    };
    assert_eq!(unfinished(&store), [] as [PathBuf; 0], "a backup leaves none");

    // Of every kind of object there is, as if its writer had died; and one of Longhorn's own, beside its name.
    let objects: Vec<String> = walk(store.path())
        .iter()
        .map(|path| path.strip_prefix(store.path()).expect("below").display().to_string())
        .collect();
    let block = objects.iter().find(|key| key.ends_with(".blk")).expect("it has blocks").clone();
    let lock = format!("{}lock-0123456789abcdef.lck", layout(VOLUME).locks());
    let mut left: Vec<PathBuf> =
        objects.iter().chain([&lock]).map(|key| store.path().join(unfinished_of_key(key, 17))).collect();
    left.push(store.path().join(format!("{block}.tmp.18")));
    for path in &left {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, "half").expect("written");
    }

    let create = Create::new(VOLUME, "backup-l1", after.path());
    longhorn.create(&place, &create).await.done("create");
    let mut names = longhorn.list(&place, VOLUME).await.expect("no complaint");
    names.sort();
    let mut expected = [first.clone(), "backup-l1".to_owned()];
    expected.sort();
    assert_eq!(names, expected);
    longhorn.inspect(&place, VOLUME, &first).await.expect("no complaint");
    let out = folder.path().join("out");
    longhorn.restore(&place, VOLUME, &first, &out).await.done("restore");
    assert_eq!(difference(before.path(), &out), None);
    longhorn.delete(&place, VOLUME, "backup-l1").await.done("delete");
    let listed = ours.run(&["ls", &place.target(), "--json"]).await;
    assert_eq!((listed.code, listed.stdout.lines().count()), (0, 1), "{listed:#?}");
    assert_eq!(ours.restore(VOLUME, &first, &out).await.code, 0);
    assert_eq!(difference(before.path(), &out), None);
    assert!(left.iter().all(|path| path.exists()), "nobody took them away: {:?}", unfinished(&store));

    // A day later whoever sweeps does.
    age(store.path(), 25 * 3600);
    let swept = ours.run(&["sweep", &place.target(), "--volume", VOLUME]).await;
    assert_eq!((swept.code, unfinished(&store)), (0, Vec::new()), "{swept:#?}");
    assert_eq!(ours.restore(VOLUME, &first, &out).await.code, 0);
    assert_eq!(difference(before.path(), &out), None);
}
