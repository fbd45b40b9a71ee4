//! Stores that Longhorn's own library wrote, read by us. They lie in `data/longhorn`, one per method and block size, made
//! on 2026-11-25 with backupstore ab5179e (2026-08-20) on a directory: a full backup of `state(0)`, then an incremental of
//! `state(1)`, then Longhorn's deletion of a third. The images are made again from the same rule.

use std::{io::Read, path::Path};

use crate::support::{self, Image, Place, TempDir, Tidemark, image::difference, longhorn::layout};
use tidemark::model::BlockSize;

const VOLUME: &str = "pvc-golden";

/// The blocks of one state: a number is a block of text, 0 is a block of written zeros, none is a hole.
fn state(which: usize) -> [Option<u64>; 5] {
    match which {
        0 => [Some(1), None, Some(2), Some(1), Some(0)],
        1 => [Some(1), Some(3), Some(0), Some(1), Some(0)],
        _ => [Some(1), Some(3), Some(4), None, Some(0)],
    }
}

fn block(seed: u64, size: usize) -> Vec<u8> {
    if seed == 0 {
        return vec![0; size];
    }
    let line = format!("block {seed} of the tide, high and low; ");
    line.bytes().cycle().take(size).collect()
}

fn image(path: &Path, which: usize, size: BlockSize) -> Image {
    let image = Image::with_block_size(path, size.len(), &[support::Block::Hole; 5]);
    for (index, seed) in state(which).into_iter().enumerate() {
        if let Some(seed) = seed {
            image.write_at(index as u64 * size.bytes(), &block(seed, size.len()));
        }
    }
    image
}

/// A store, unpacked: gzip around plain tar headers.
fn unpack(name: &str) -> TempDir {
    let folder = support::scratch("golden");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/longhorn").join(name);
    let packed = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut bytes).expect("gzip");
    let text = |field: &[u8]| {
        let end = field.iter().position(|b| matches!(b, 0 | b' ')).unwrap_or(field.len());
        String::from_utf8(field[..end].to_vec()).expect("ASCII")
    };
    let mut rest = bytes.as_slice();
    while rest.len() >= 512 && rest[0] != 0 {
        let (header, after) = rest.split_at(512);
        // ustar: a long name has its folder in the prefix field.
        let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
        let size = usize::from_str_radix(&text(&header[124..136]), 8).expect("octal");
        if header[156] == b'0' {
            let path = folder.path().join(prefix).join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a new folder");
            std::fs::write(path, &after[..size]).expect("room");
        }
        rest = &after[size.next_multiple_of(512)..];
    }
    folder
}

async fn reads(method: &str, size: BlockSize) {
    let name = format!("{method}-{size}");
    let store = unpack(&format!("{name}.tar.gz"));
    let (place, folder) = (Place::Directory(store.path().to_owned()), support::scratch("images"));
    let ours = Tidemark::at(&place);
    let out = folder.path().join("out");
    let restores = async |backup: &str, image: &Image| {
        let ended = ours.restore(VOLUME, backup, &out).await;
        assert_eq!(ended.code, 0, "{name}: {ended:#?}");
        assert_eq!(difference(image.path(), &out), None, "{name}: {backup}");
    };
    let states: Vec<Image> = (0..3).map(|i| image(&folder.path().join(i.to_string()), i, size)).collect();
    restores("backup-state0", &states[0]).await;
    restores("backup-state1", &states[1]).await;
    let listed = ours.run(&["ls", &place.target(), "--json"]).await;
    assert_eq!((listed.code, listed.stdout.lines().count()), (0, 2), "{name}: {listed:#?}");

    // We go on where Longhorn ended: its method, its block size, its blocks.
    let ended = ours.try_backup(VOLUME, states[2].path(), &["--compression", "lz4"]).await;
    assert_eq!(ended.code, 0, "{name}: {ended:#?}");
    let result = ended.result();
    assert_eq!(result["plan"]["parent"], "backup-state1", "{name}: {result}");
    assert_eq!(result["plan"]["compression"], method, "{name}: {result}");
    assert_eq!(result["plan"]["blockSize"], size.to_string(), "{name}: {result}");
    assert_eq!(result["progress"]["uploadedBlocks"], 1, "{name}: {result}");
    restores(result["backup"].as_str().expect("a name"), &states[2]).await;
    restores("backup-state0", &states[0]).await;
    assert!(store.path().join(layout(VOLUME).config()).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn we_read_and_continue_what_longhorns_library_wrote() {
    let stores = ["lz4", "gzip", "none"].map(|method| [(method, BlockSize::Mi2), (method, BlockSize::Mi16)]);
    futures::future::join_all(stores.into_iter().flatten().map(|(method, size)| reads(method, size))).await;
}
