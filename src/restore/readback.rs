//! The last look: a sample of the blocks, read from the target after the flush and compared with the record.
//!
//! The sample is drawn while blocks are counted, each with the same chance however many there are (reservoir
//! sampling), so a disk that keeps some blocks wrongly cannot know which ones are looked at.

use super::{
    shared::{Failed, Shared},
    target::ALIGNMENT,
};
use crate::{
    model::{BlockName, FailureReason, limits},
    store::{codec, record::BlockEntry},
};

/// At most `READ_BACK_BLOCKS` of the blocks it was offered.
#[derive(Default)]
pub(super) struct Sample {
    offered: u64,
    kept: Vec<BlockEntry>,
    random: Option<u64>,
}

impl Sample {
    pub(super) fn offer(&mut self, entry: &BlockEntry) {
        self.offered += 1;
        if self.kept.len() < limits::READ_BACK_BLOCKS {
            return self.kept.push(*entry);
        }
        let chosen = (self.next_random() % self.offered) as usize;
        if let Some(place) = self.kept.get_mut(chosen) {
            *place = *entry;
        }
    }

    /// SplitMix64 from a random seed.
    fn next_random(&mut self) -> u64 {
        let state = self.random.get_or_insert_with(|| {
            let mut seed = [0; 8];
            // Without randomness the sample is only foreseeable.
            let _ = getrandom::fill(&mut seed);
            u64::from_le_bytes(seed)
        });
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn take(&mut self) -> Vec<BlockEntry> {
        let mut kept = std::mem::take(&mut self.kept);
        kept.sort_by_key(|entry| entry.offset);
        kept
    }
}

/// Reads the sample back, as many blocks at once as are hashed at once; for a thread that may block.
pub(super) fn read_back(shared: &Shared) -> Result<(), Failed> {
    let sample = shared.state().sample.take();
    shared.target.bypass_cache();
    let size = shared.plan.block_size;
    // Half of the buffers' memory at most, all of which is free by now.
    let batch = codec::lanes().min(limits::buffers(size) / 2).max(1);
    let mut memory: Vec<Vec<u8>> = (0..batch).map(|_| vec![0; size.len() + ALIGNMENT as usize]).collect();
    let failed = |seen: String| Failed::Target(FailureReason::TargetWriteFailed, seen);
    for entries in sample.chunks(batch) {
        let mut blocks: Vec<&[u8]> = Vec::with_capacity(batch);
        for (entry, memory) in entries.iter().zip(&mut memory) {
            if shared.stop.is_cancelled() {
                return Err(Failed::Cancelled);
            }
            let start = memory.as_ptr().align_offset(ALIGNMENT as usize).min(ALIGNMENT as usize);
            let block = &mut memory[start..start + size.len()];
            let read = shared.work.timed(0, || shared.target.read_back(entry.offset, block));
            read.map_err(|error| failed(format!("reading back the block at offset {}: {error}", entry.offset)))?;
            blocks.push(block);
        }
        let mut names = vec![BlockName([0; 32]); blocks.len()];
        codec::name_blocks(&blocks, &mut names);
        if let Some((entry, name)) = entries.iter().zip(&names).find(|(entry, name)| entry.block_checksum != **name) {
            return Err(failed(format!(
                "the block at offset {} was written and flushed, and reads back with the checksum {name} instead of {}: \
                 the disk lost it, or somebody else writes to it",
                entry.offset, entry.block_checksum
            )));
        }
        shared.progress.send_modify(|p| p.read_back_blocks += entries.len() as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_bounded_and_drawn_from_everywhere() {
        let mut sample = Sample::default();
        let entry = |i: u64| BlockEntry { offset: i << 21, block_checksum: BlockName([i as u8; 32]) };
        (0..100_000).for_each(|i| sample.offer(&entry(i)));
        let kept = sample.take();
        assert_eq!(kept.len(), limits::READ_BACK_BLOCKS);
        assert!(kept.windows(2).all(|w| w[0].offset < w[1].offset), "no block twice");
        let late = kept.iter().filter(|e| e.offset >> 21 >= 50_000).count();
        // Chance of a failure of a sound sampler: below 1e-9.
        assert!((8..=56).contains(&late), "{late} of {} are of the second half", kept.len());
    }
}
