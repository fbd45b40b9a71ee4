//! Heal: exactly the bad blocks of one backup, sent again from a source that still has their bytes.
//!
//! ```text
//! verify (every block read) ▶ nothing bad: done, nothing was written
//!   ▶ guard (lock, marker) ▶ each bad block: read it here, its name fits? ▶ PUT ▶ GET, decode, its name fits ▶ healed
//! ```
//! A block is named after its bytes, so the source proves by the name alone that it still has them, whatever else was
//! written to it. Blocks that are good and records are never touched. What the source does not have stays bad and is told.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use serde::Serialize;

use super::source::{Source, SourceError};
use crate::{
    model::{AttemptId, BackupName, BlockName, BlockSize, Compression, FailureReason, job, job::Mode, limits},
    store::{
        client::Client,
        codec,
        error::{ErrorKind, StoreError},
        guard::{self, Guard, Holder, Timing},
        journal::{AttemptFile, Identity},
        layout::VolumeLayout,
        objects::Range,
        record::{BlockEntry, RecordHead, RecordId},
        record_reader::RecordReader,
        scratch::{NameTable, Placed, Scratch},
        survey,
        verify::{self, Depth, FindingKind, Order, VerifyProgress},
    },
};

/// One heal, as asked for.
pub struct HealJob {
    pub client: Client,
    pub record: RecordId,
    pub source: job::Source,
    pub concurrency: u32,
    pub scratch: Scratch,
    pub timing: Timing,
    /// Names of the lock and the marker come from these; they are drawn at random.
    pub uid: String,
    pub attempt: AttemptId,
}

/// Where a heal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealProgress {
    pub verify: VerifyProgress,
    /// Blocks found bad, by offset.
    pub bad_blocks: u64,
    pub healed_blocks: u64,
    pub unhealed_blocks: u64,
}

/// What was healed, and what was not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Healed {
    pub blocks_read: u64,
    pub bad_blocks: u64,
    pub healed_blocks: u64,
    /// Objects that were sent: a block that stands at several offsets is one.
    pub objects_sent: u64,
    pub unhealed_blocks: u64,
    /// The first of them.
    pub unhealed: Vec<Unhealed>,
}

/// A block that stays bad.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unhealed {
    pub offset: u64,
    pub object: String,
    pub seen: String,
}

#[derive(Debug, thiserror::Error)]
pub enum HealError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("Record {key}: {seen}; heal sends blocks, it does not mend records")]
    Record { key: String, seen: String },
}

impl HealError {
    pub fn reason(&self) -> FailureReason {
        match self {
            HealError::Store(error) => error.reason(),
            HealError::Source(error) => error.reason,
            HealError::Record { .. } => FailureReason::RecordDamaged,
        }
    }
}

/// What the record says, and what of it is bad.
struct Patient {
    layout: VolumeLayout,
    key: String,
    block_size: BlockSize,
    method: Compression,
    bad: crate::store::scratch::Bitmap,
}

/// What became of one block.
enum Outcome {
    Sent,
    /// Somebody healed it meanwhile.
    GoodAlready,
    Not(Unhealed),
}

/// Heals what can be healed. `Ok` also if something could not be: the answer says what.
pub async fn heal(job: &HealJob, tell: &mut (dyn FnMut(HealProgress) + Send)) -> Result<Healed, HealError> {
    let source = Arc::new(Source::open(&job.source)?);
    let layout = VolumeLayout::new(&job.record.volume);
    let key = layout.backup(&job.record.backup);
    let order = Order {
        volume: job.record.volume.clone(),
        backup: Some(job.record.backup.clone()),
        depth: Depth::Full,
        concurrency: job.concurrency,
    };
    let mut progress = HealProgress::default();
    let mut hear = |now| {
        progress.verify = now;
        tell(progress);
    };
    let verified = verify::verify(&job.client, &order, &job.scratch, &mut hear).await?;
    let of_record = |f: &&verify::Finding| {
        matches!(f.kind, FindingKind::RecordMissing | FindingKind::RecordUnreadable | FindingKind::RecordInconsistent)
    };
    if let Some(finding) = verified.findings.listed().find(of_record) {
        return Err(HealError::Record { key, seen: finding.seen.clone() });
    }
    let mut healed = Healed {
        blocks_read: verified.blocks_read,
        bad_blocks: verified.bad.count(),
        healed_blocks: 0,
        objects_sent: 0,
        unhealed_blocks: 0,
        unhealed: Vec::new(),
    };
    progress.bad_blocks = healed.bad_blocks;
    if healed.bad_blocks == 0 {
        return Ok(healed);
    }
    let head = survey::read_head(&job.client, &key).await?.ok_or_else(|| gone(&key))?;
    let damaged = |seen| HealError::Record { key: key.clone(), seen };
    let block_size = head.block_size().map_err(damaged)?;
    let method = head.compression().map_err(damaged)?;
    let patient = Patient { layout, key: key.clone(), block_size, method, bad: verified.bad };
    let guard = stand(job, &patient, &source, &head).await?;
    let treated = treat(job, &patient, (&guard, &source), |now| {
        healed.take(now);
        progress.healed_blocks = healed.healed_blocks;
        progress.unhealed_blocks = healed.unhealed_blocks;
        tell(progress);
    });
    let treated = treated.await;
    let own = patient.layout.attempt(&job.uid, &job.attempt);
    match treated {
        Ok(()) => guard.finish(vec![own]).await,
        Err(error) => {
            // Nothing depends on our marker: no record waits for these blocks.
            let _ = tokio::time::timeout(limits::ORDERLY_END, guard.finish(vec![own])).await;
            return Err(error);
        }
    }
    Ok(healed)
}

fn gone(key: &str) -> HealError {
    HealError::Record { key: key.to_owned(), seen: "it was there a moment ago and is gone".into() }
}

/// The guard of an attempt that will write no record: lock and marker keep collectors away while blocks are sent.
async fn stand(job: &HealJob, patient: &Patient, source: &Source, head: &RecordHead) -> Result<Guard, HealError> {
    let holder = Holder {
        layout: patient.layout.clone(),
        volume: job.record.volume.clone(),
        backup_uid: job.uid.clone(),
        attempt: job.attempt.clone(),
        timing: job.timing,
    };
    let identity = Identity {
        format: 1,
        backup_uid: job.uid.clone(),
        volume: job.record.volume.clone(),
        volume_bytes: head.volume_bytes().unwrap_or_else(|| source.bytes()),
        block_size: patient.block_size,
        compression: patient.method,
        mode: Mode::Full,
        source: source.identity().clone(),
    };
    let file = AttemptFile { identity, record: BackupName::of_attempt(&job.uid, &job.attempt) };
    let file = Bytes::from(serde_json::to_vec(&file).expect("an attempt has string keys only"));
    let locked = guard::lock(&job.client, holder).await?;
    match locked.stand(file, patient.method).await {
        Ok(guard) => Ok(guard),
        Err((locked, error)) => {
            locked.release().await;
            Err(error.into())
        }
    }
}

/// Walks the record and treats its bad blocks, a few at once.
async fn treat(
    job: &HealJob,
    patient: &Patient,
    (guard, source): (&Guard, &Arc<Source>),
    mut tell: impl FnMut(Outcome),
) -> Result<(), HealError> {
    // A block here is its raw bytes, its object, and the object read back: half of the buffers are enough at once.
    let at_once = (job.concurrency as usize).clamp(1, limits::buffers(patient.block_size) / 2);
    let failed = |error| StoreError::new(ErrorKind::Refused(FailureReason::ScratchFailed), "SCRATCH", "names", error);
    let mut known = NameTable::create(&job.scratch, patient.bad.count()).map_err(failed)?;
    let mut entries = RecordReader::open(job.client.clone(), &patient.key, patient.block_size).await?;
    let mut is_at_end = false;
    while !is_at_end {
        let mut batch: Vec<BlockEntry> = Vec::with_capacity(at_once);
        while batch.len() < at_once {
            let Some(entry) = entries.next().await? else {
                is_at_end = true;
                break;
            };
            let ordinal = u32::try_from(entry.offset / patient.block_size.bytes()).unwrap_or(u32::MAX);
            if !patient.bad.contains(ordinal) {
                continue;
            }
            if known.find(&entry.block_checksum).map_err(failed)?.is_some() {
                // The same bytes stand at an earlier offset, and were sent from there.
                tell(Outcome::GoodAlready);
            } else if batch.iter().all(|earlier| earlier.block_checksum != entry.block_checksum) {
                batch.push(entry);
            } else {
                // Looked at again once its twin was treated.
                finish_batch(patient, (guard, source), &mut batch, (&mut known, &mut tell)).await?;
                batch.push(entry);
            }
        }
        finish_batch(patient, (guard, source), &mut batch, (&mut known, &mut tell)).await?;
    }
    Ok(())
}

async fn finish_batch(
    patient: &Patient,
    (guard, source): (&Guard, &Arc<Source>),
    batch: &mut Vec<BlockEntry>,
    (known, tell): (&mut NameTable, &mut impl FnMut(Outcome)),
) -> Result<(), HealError> {
    let failed = |error| StoreError::new(ErrorKind::Refused(FailureReason::ScratchFailed), "SCRATCH", "names", error);
    let at_once = batch.len().max(1);
    let treated = stream::iter(batch.drain(..)).map(|entry| async move {
        let outcome = treat_one(patient, guard, source, &entry).await;
        (entry, outcome)
    });
    let mut treated = treated.buffer_unordered(at_once);
    while let Some((entry, outcome)) = treated.next().await {
        let outcome = outcome?;
        if !matches!(outcome, Outcome::Not(_)) {
            known.insert(&Placed { name: entry.block_checksum, stored: 1 }).map_err(failed)?;
        }
        tell(outcome);
    }
    Ok(())
}

async fn treat_one(
    patient: &Patient,
    guard: &Guard,
    source: &Arc<Source>,
    entry: &BlockEntry,
) -> Result<Outcome, HealError> {
    let object = patient.layout.block(&entry.block_checksum);
    if look(patient, guard.client(), entry).await?.is_ok() {
        return Ok(Outcome::GoodAlready);
    }
    let not = |seen: String| Ok(Outcome::Not(Unhealed { offset: entry.offset, object: object.clone(), seen }));
    let encoded = match encode(patient, source, entry).await? {
        Ok(encoded) => encoded,
        Err(seen) => return not(seen),
    };
    guard.put_block(entry.block_checksum, encoded).await?;
    match look(patient, guard.client(), entry).await? {
        Ok(()) => Ok(Outcome::Sent),
        Err(seen) => not(format!("it was sent and acknowledged, and read back {seen}")),
    }
}

/// The block's object from the source's bytes, or why they are not the block's.
async fn encode(
    patient: &Patient,
    source: &Arc<Source>,
    entry: &BlockEntry,
) -> Result<Result<Bytes, String>, HealError> {
    let (source, entry, size, method) = (Arc::clone(source), *entry, patient.block_size, patient.method);
    let path = source.path().display().to_string();
    let read = tokio::task::spawn_blocking(move || {
        let ordinal = u32::try_from(entry.offset / size.bytes()).unwrap_or(u32::MAX);
        let mut block = vec![0; size.len()];
        source.read_block(ordinal, &mut block).map_err(|error| (source.path().to_owned(), error))?;
        let mut object = Vec::new();
        let is_it = name_of(&block) == entry.block_checksum;
        if is_it {
            codec::encode(method, &block, &mut object);
        }
        Ok(is_it.then(|| Bytes::from(object)))
    });
    match read.await {
        Ok(Ok(Some(object))) => Ok(Ok(object)),
        Ok(Ok(None)) => Ok(Err(format!("{path} holds other bytes at offset {} by now", entry.offset))),
        Ok(Err((path, error))) => {
            let seen = format!("offset {}: {error}", entry.offset);
            Err(SourceError { reason: FailureReason::SourceReadFailed, path, seen }.into())
        }
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Is the object the block it is named after? `Err` with what was seen.
async fn look(patient: &Patient, client: &Client, entry: &BlockEntry) -> Result<Result<(), String>, HealError> {
    let key = patient.layout.block(&entry.block_checksum);
    let block = patient.block_size.bytes();
    // No plausible object is longer (model::block::is_plausible).
    let fetched = match client.get(&key, Range::whole(block + block / 256 + 64)).await {
        Ok(Some(fetched)) => fetched,
        Ok(None) => return Ok(Err("it is not in the store".into())),
        Err(error) if error.kind == ErrorKind::Damaged => return Ok(Err(error.seen)),
        Err(error) => return Err(error.into()),
    };
    let (name, size, method) = (entry.block_checksum, patient.block_size, patient.method);
    let judged = tokio::task::spawn_blocking(move || {
        let mut block = vec![0; size.len()];
        codec::decode(method, &fetched.bytes, &mut block).map_err(|error| error.to_string())?;
        let seen = name_of(&block);
        if seen == name { Ok(()) } else { Err(format!("its bytes have the checksum {seen}")) }
    });
    Ok(judged.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())))
}

fn name_of(block: &[u8]) -> BlockName {
    let mut names = [BlockName([0; 32])];
    codec::name_blocks(&[block], &mut names);
    names[0]
}

impl Healed {
    fn take(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Sent => {
                self.healed_blocks += 1;
                self.objects_sent += 1;
            }
            Outcome::GoodAlready => self.healed_blocks += 1,
            Outcome::Not(unhealed) => {
                self.unhealed_blocks += 1;
                if self.unhealed.len() < limits::FINDINGS_LISTED_MAX {
                    self.unhealed.push(unhealed);
                }
            }
        }
    }
}
