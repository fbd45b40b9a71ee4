//! How fast one core names, compresses, decompresses and tests blocks, on a file of yours or on made-up data.
//!
//!     cargo run --release --example codec_speed -- [FILE]
//!
//! Prints GiB/s of uncompressed bytes. Run it on a quiet machine; the ratio between the lines is what counts.

use std::{hint::black_box, time::Instant};

use tidemark::{
    model::{BlockName, Compression},
    store::codec,
};

const BLOCK: usize = 2 * 1024 * 1024;
const BLOCKS: usize = 32;

fn main() {
    let data = match std::env::args().nth(1) {
        Some(path) => read_start(&path),
        None => words(),
    };
    let blocks: Vec<&[u8]> = data.chunks_exact(BLOCK).collect();
    println!("{} blocks of {BLOCK} bytes, {} lanes", blocks.len(), codec::lanes());

    let mut names = vec![BlockName([0; 32]); blocks.len()];
    rate("name, all lanes", &blocks, || codec::name_blocks(black_box(&blocks), &mut names));
    rate("name, one at a time", &blocks, || {
        for (block, name) in blocks.iter().zip(&names) {
            assert_eq!(BlockName::of(black_box(block)), *name);
        }
    });
    for method in [Compression::Lz4, Compression::Gzip] {
        measure_method(method, &blocks);
    }
    let zeros = vec![0; BLOCK];
    rate("zero test on zeros", &blocks, || {
        for _ in &blocks {
            assert!(codec::is_zero(black_box(&zeros)));
        }
    });
    let mut random = vec![0; BLOCK];
    getrandom::fill(&mut random).expect("the system's random source");
    let mut out = vec![0; codec::max_encoded_len(Compression::Lz4, BLOCK)];
    rate("lz4 encode, random bytes", &blocks, || {
        for _ in &blocks {
            assert_eq!(codec::encode_into(Compression::Lz4, black_box(&random), &mut out), 2_097_171);
        }
    });
}

fn measure_method(method: Compression, blocks: &[&[u8]]) {
    let blocks = if method == Compression::Gzip { &blocks[..blocks.len().min(4)] } else { blocks };
    let mut out = vec![0; codec::max_encoded_len(method, BLOCK)];
    let mut stored = 0;
    rate(&format!("{method} encode"), blocks, || {
        stored = blocks.iter().map(|block| codec::encode_into(method, black_box(block), &mut out)).sum();
    });
    println!("{method} ratio {:.3}", stored as f64 / (blocks.len() * BLOCK) as f64);
    let objects: Vec<Vec<u8>> = blocks
        .iter()
        .map(|block| {
            let mut object = Vec::new();
            codec::encode(method, block, &mut object);
            object
        })
        .collect();
    let mut back = vec![0; BLOCK];
    rate(&format!("{method} decode"), blocks, || {
        for object in &objects {
            codec::decode(method, black_box(object), &mut back).expect("what was just encoded");
        }
    });
    assert!(back == blocks[blocks.len() - 1], "{method} gave other bytes back");
}

/// The best of several runs: the others were disturbed.
fn rate(what: &str, blocks: &[&[u8]], mut work: impl FnMut()) {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64());
    }
    let bytes: usize = blocks.iter().map(|b| b.len()).sum();
    println!("{what:<28} {:>8.2} GiB/s", bytes as f64 / best / (1u64 << 30) as f64);
}

fn read_start(path: &str) -> Vec<u8> {
    use std::io::Read;
    let mut data = Vec::new();
    let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{path} cannot be opened: {error}"));
    file.take((BLOCK * BLOCKS) as u64).read_to_end(&mut data).expect("a readable file");
    assert!(data.len() >= BLOCK, "{path} is shorter than one block");
    data
}

/// Text-like bytes: compressible by about half.
fn words() -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let mut data = Vec::with_capacity(BLOCK * BLOCKS + 64);
    while data.len() < BLOCK * BLOCKS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(format!("{:x} {} ", state % 4096, state >> 52).as_bytes());
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(BLOCK * BLOCKS);
    data
}
