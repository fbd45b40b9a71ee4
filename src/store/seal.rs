//! Sealing: the record is written last, once, and read back. What no record names is not in the repository.
//!
//! ```text
//! guard whole (lock, marker, volume.cfg) → PUT record → GET record, equal → marker still ours    ← Completed is true here
//!   → volume.cfg → marker, journals, lock removed
//! ```
//! (store-protocol P3.) Any failure before that arrow ends the attempt without a record that counts.

use std::{
    io::{self, BufWriter, Write},
    os::unix::fs::FileExt,
    sync::Arc,
};

use aws_lc_rs::digest::{Context, SHA256, SHA512};
use bytes::Bytes;

use super::{
    client::Client,
    error::{ErrorKind, StoreError},
    guard::Guard,
    ledger::Complete,
    listing::Listing,
    objects::{Body, PutCondition, Range},
    record::{BlockEntry, RecordHead, VolumeConfig},
    scratch::Scratch,
    survey,
};
use crate::model::{BackupName, BlockSize, Compression, FailureReason, limits};

/// Bytes of one ranged GET while a record is read back.
const READ_BACK_CHUNK: u64 = 8 * 1024 * 1024;

/// Everything the record says beside its blocks.
#[derive(Debug, Clone)]
pub struct Facts {
    pub record: BackupName,
    pub head: RecordHead,
    pub config: VolumeConfig,
    pub block_size: BlockSize,
    pub compression: Compression,
}

/// The record is in the store, equal to what we sent, and the guard was whole after that (law 4).
#[derive(Debug)]
pub struct Sealed {
    pub record: BackupName,
    head: RecordHead,
}

/// A record ready to be sent.
struct Written {
    body: Body,
    sha512: Vec<u8>,
}

/// Where sealing is, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    WritingRecord,
    ReadingBack,
}

/// P3.2 to P3.6.
pub async fn seal(
    guard: &Guard,
    complete: &Complete,
    facts: Facts,
    scratch: &Scratch,
    mut tell: impl FnMut(Step),
) -> Result<Sealed, StoreError> {
    tell(Step::WritingRecord);
    guard.check_whole().await?;
    survey::check_config(guard, &facts.config).await?;
    if guard.is_suspect() {
        check_blocks(guard, complete, &facts, scratch).await?;
    }
    let key = guard.holder().layout.backup(&facts.record);
    let written =
        write(complete, &facts, scratch).map_err(|e| StoreError::new(ErrorKind::Damaged, "SCRATCH", &key, e))?;
    put_record(guard, &key, &written).await?;
    tell(Step::ReadingBack);
    if !read_back(guard.client(), &key, &written).await? {
        put_record(guard, &key, &written).await?;
        if !read_back(guard.client(), &key, &written).await? {
            let seen = "the record was acknowledged twice and is not there";
            return Err(mismatch(&key, seen));
        }
    }
    if let Err(error) = guard.check_marker().await {
        tracing::warn!(%error, "Marker changed while the record was written: looking for every block");
        if let Err(error) = check_blocks(guard, complete, &facts, scratch).await {
            // The record must not be restored from. If this fails too, `verify` and the next sweep find it.
            if let Err(error) = guard.client().delete(std::slice::from_ref(&key)).await {
                tracing::error!(%error, "A record whose blocks are gone stays behind");
            }
            return Err(error);
        }
    }
    Ok(Sealed { record: facts.record, head: facts.head })
}

impl Sealed {
    /// An earlier attempt's record that was verified.
    pub(super) fn adopted(record: BackupName, mut head: RecordHead) -> Self {
        head.clear_checksum();
        Self { record, head }
    }

    /// P3.7 and P3.8. Nothing here can make the backup untrue; what fails is reported and left to the janitor.
    pub async fn finish(self, guard: Guard, new_blocks: u64, journals: Vec<String>) {
        if let Err(error) = survey::record_backup(&guard, &self.head, new_blocks).await {
            tracing::warn!(%error, "volume.cfg does not name this backup: Longhorn will compare with an older one");
        }
        guard.finish(journals).await;
    }
}

/// The record, in memory when small, in scratch when not, with its hash. It is written twice: its own checksum stands in
/// its head, before the blocks.
fn write(complete: &Complete, facts: &Facts, scratch: &Scratch) -> io::Result<Written> {
    let size = facts.block_size.bytes();
    let blocks = || {
        complete.blocks().map(|block| {
            block.map(|(ordinal, placed)| BlockEntry { offset: u64::from(ordinal) * size, block_checksum: placed.name })
        })
    };
    let mut head = facts.head.clone();
    head.set_checksum(&String::from_utf8_lossy(&RecordHead::CHECKSUM_BLANK));
    let mut own = Hashing { to: io::sink(), context: Context::new(&SHA256), len: 0 };
    head.write_to(blocks(), &mut own)?;
    head.set_checksum(&hex::encode(own.context.finish().as_ref()));
    let file = scratch.file()?;
    let mut out = Hashing { to: BufWriter::with_capacity(1 << 18, file), context: Context::new(&SHA512), len: 0 };
    head.write_to(blocks(), &mut out)?;
    out.flush()?;
    let (len, sha512) = (out.len, out.context.finish().as_ref().to_vec());
    let file = out.to.into_inner().map_err(io::IntoInnerError::into_error)?;
    if len > limits::BODY_IN_MEMORY_MAX {
        return Ok(Written { body: Body::File { file: Arc::new(file), len }, sha512 });
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Written { body: Body::Bytes(Bytes::from(bytes)), sha512 })
}

struct Hashing<W> {
    to: W,
    context: Context,
    len: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.context.update(&bytes[..n]);
        self.len += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// P3.4: once, only with enough lease left, and not beyond it.
async fn put_record(guard: &Guard, key: &str, written: &Written) -> Result<(), StoreError> {
    guard.check_lease()?;
    if guard.lease_left() < guard.lease_to_seal() {
        let seen =
            format!("only {:?} of the lease are left, sealing needs {:?}", guard.lease_left(), guard.lease_to_seal());
        return Err(StoreError::new(ErrorKind::GuardLost, "PUT", key, seen));
    }
    let sent = guard.client().put(key, written.body.clone(), PutCondition::IfAbsent);
    let answer = tokio::select! {
        biased;
        lost = guard.lost() => return Err(lost),
        answer = sent => answer,
    };
    match answer {
        Ok(_) => Ok(()),
        // An earlier send of ours may have arrived: reading it back decides.
        Err(error) if error.kind == ErrorKind::Precondition => Ok(()),
        Err(error) => Err(error),
    }
}

/// P3.5: `false` if it is not there; an error if it is another.
async fn read_back(client: &Client, key: &str, written: &Written) -> Result<bool, StoreError> {
    let mut context = Context::new(&SHA512);
    let (mut offset, len) = (0, written.body.len());
    while offset < len {
        let part = Range::part(offset, READ_BACK_CHUNK.min(len - offset));
        let Some(fetched) = client.get(key, part).await? else { return Ok(false) };
        if fetched.meta.size != len || fetched.bytes.is_empty() {
            let seen = format!("the record read back is {} bytes, {len} were sent", fetched.meta.size);
            return Err(mismatch(key, seen));
        }
        context.update(&fetched.bytes);
        offset += fetched.bytes.len() as u64;
    }
    if context.finish().as_ref() == written.sha512 {
        return Ok(true);
    }
    Err(mismatch(key, "the record read back differs from what was sent"))
}

fn mismatch(key: &str, seen: impl std::fmt::Display) -> StoreError {
    StoreError::new(ErrorKind::Refused(FailureReason::RecordMismatch), "GET", key, seen)
}

/// P3.3 and P3.6: every block of the map is in a fresh listing.
async fn check_blocks(guard: &Guard, complete: &Complete, facts: &Facts, scratch: &Scratch) -> Result<(), StoreError> {
    let listing = Listing::read(guard, scratch, facts.block_size, facts.compression).await?;
    let wrap = |e: io::Error| StoreError::new(ErrorKind::Damaged, "SCRATCH", "map", e);
    for block in complete.blocks() {
        let (_, placed) = block.map_err(wrap)?;
        if listing.confirm(&placed.name).map_err(wrap)?.is_none() {
            let key = guard.holder().layout.block(&placed.name);
            let seen = "it was acknowledged and is gone: somebody deleted what our marker protects";
            return Err(StoreError::new(ErrorKind::GuardLost, "LIST", key, seen));
        }
    }
    Ok(())
}
