//! Verification: is what the store holds of a volume what its records say?
//!
//! ```text
//! LIST the volume ▶ volume.cfg, locks, markers, journals ▶ every record, streamed, beside the listing
//!   ▶ (Sample, Full) each chosen block once: GET, decode, compare with its name ▶ records again, for what was found bad
//! ```
//! * `finding`  what may be found, how bad it is, what cures it
//! * `small`    volume.cfg, locks, markers, journals
//! * `records`  records: their heads, then their blocks against the listing
//! * `read`     blocks read, decoded and compared, as many at once as buffers allow
//! * `sample`   which blocks are read
//!
//! Only reading; no guard is needed. A LIST, HEAD or GET that failed is an error of the verification and never a finding
//! (law 7). A record with a finding is looked at once more before it is accused: if it is gone, somebody deleted it
//! meanwhile. Memory: bitmaps of the listing's length; names are in scratch, records are streamed.

mod finding;
mod read;
mod records;
mod sample;
mod small;

use std::collections::HashMap;

use serde::Serialize;

pub use finding::{Finding, FindingKind, Findings, Place, Severity};
pub use sample::Share;

use super::{
    client::Client,
    error::StoreError,
    inventory::Inventory,
    layout::VolumeLayout,
    record::VolumeConfig,
    scratch::{Bitmap, Scratch},
};
use crate::model::{BackupName, BlockSize, VolumeName};
use records::Sound;

/// What is verified, and how deeply.
#[derive(Debug, Clone)]
pub struct Order {
    pub volume: VolumeName,
    /// One backup; absent: all of the volume, with its locks, markers and journals.
    pub backup: Option<BackupName>,
    pub depth: Depth,
    /// GETs at once.
    pub concurrency: u32,
}

/// Beyond the records, which are always read whole and compared with the listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// No block is read: presence and size by the listing.
    Listing,
    /// So many blocks are read; the same seed chooses the same again.
    Sample { share: Share, seed: u64 },
    /// Every block that a record names is read.
    Full,
}

/// What was verified of one volume.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verified {
    pub volume: VolumeName,
    /// Complete records that were walked.
    pub records: u64,
    /// Markers: backups in progress, or that never ended.
    pub in_progress: u64,
    /// Records that were deleted while we looked.
    pub deleted_meanwhile: u64,
    /// Blocks that records name, by offset.
    pub blocks_named: u64,
    /// Different blocks among them that the store holds.
    pub blocks_present: u64,
    pub blocks_read: u64,
    pub bytes_read: u64,
    /// Objects that belong to nobody.
    pub strays: u64,
    #[serde(rename = "findings")]
    pub findings: Findings,
    /// Of an order for one backup: the ordinals of blocks that cannot be restored.
    #[serde(skip)]
    pub bad: Bitmap,
}

/// Where a verification is. Counters only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyProgress {
    pub phase: VerifyPhase,
    pub records: u64,
    pub blocks_read: u64,
    /// Blocks that will be read, once known.
    pub blocks_to_read: u64,
    pub bytes_read: u64,
    pub findings: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum VerifyPhase {
    #[default]
    Listing,
    Records,
    Blocks,
    Ended,
}

/// Hears how far it is.
pub type Tell<'a> = &'a mut (dyn FnMut(VerifyProgress) + Send);

/// A verification under way.
struct Check<'a> {
    client: &'a Client,
    order: &'a Order,
    layout: VolumeLayout,
    inventory: Inventory,
    config: Option<VolumeConfig>,
    groups: Vec<Group>,
    done: Verified,
    progress: VerifyProgress,
    tell: Tell<'a>,
}

/// Blocks that are read in the same way. Records of two block sizes may share a volume's folder.
struct Group {
    block_size: BlockSize,
    /// Stored as they are; otherwise lz4 or gzip, which their bytes tell apart.
    is_plain: bool,
    /// By index in the inventory.
    named: Bitmap,
    bad: Bitmap,
    /// What was seen of the first bad ones.
    seen: HashMap<u32, (FindingKind, String)>,
}

/// Verifies one volume. `Err`: it could not be done, which proves nothing about the volume.
pub async fn verify(client: &Client, order: &Order, scratch: &Scratch, tell: Tell<'_>) -> Result<Verified, StoreError> {
    let layout = VolumeLayout::new(&order.volume);
    tell(VerifyProgress::default());
    let inventory = Inventory::read(client, &layout, scratch).await?;
    let done = Verified {
        volume: order.volume.clone(),
        records: 0,
        in_progress: 0,
        deleted_meanwhile: 0,
        blocks_named: 0,
        blocks_present: 0,
        blocks_read: 0,
        bytes_read: 0,
        strays: inventory.strays,
        findings: Findings::default(),
        bad: Bitmap::default(),
    };
    let progress = VerifyProgress { phase: VerifyPhase::Records, ..VerifyProgress::default() };
    let mut check = Check { client, order, layout, inventory, config: None, groups: Vec::new(), done, progress, tell };
    check.check_config().await?;
    let sound = check.heads().await?;
    let sound = check.compare(sound).await?;
    if order.backup.is_none() {
        check.check_locks().await?;
        check.check_journals().await?;
    }
    check.read(sound).await?;
    check.progress.phase = VerifyPhase::Ended;
    check.report();
    Ok(check.done)
}

impl Check<'_> {
    /// Reads the chosen blocks, then walks the records again if any was bad.
    async fn read(&mut self, sound: Vec<Sound>) -> Result<(), StoreError> {
        self.done.blocks_present = self.groups.iter().map(|group| group.named.count()).sum();
        let share = |of: u64| match self.order.depth {
            Depth::Listing => 0,
            Depth::Sample { share, .. } => share.of(of),
            Depth::Full => of,
        };
        let wanted: Vec<u64> = self.groups.iter().map(|group| share(group.named.count())).collect();
        self.progress.blocks_to_read = wanted.iter().sum();
        if self.progress.blocks_to_read == 0 {
            return Ok(());
        }
        self.progress.phase = VerifyPhase::Blocks;
        self.report();
        for (group, wanted) in wanted.into_iter().enumerate() {
            self.read_group(group, wanted).await?;
        }
        if self.groups.iter().all(|group| group.bad.count() == 0) {
            return Ok(());
        }
        for record in &sound {
            self.recall(record).await?;
        }
        Ok(())
    }

    fn report(&mut self) {
        self.progress.records = self.done.records;
        self.progress.blocks_read = self.done.blocks_read;
        self.progress.bytes_read = self.done.bytes_read;
        self.progress.findings = self.done.findings.counts().map(|(_, count)| count).sum();
        (self.tell)(self.progress);
    }

    fn add(&mut self, kind: FindingKind, object: &str, seen: impl std::fmt::Display) {
        self.done.findings.add(kind, object, seen, None);
    }
}
