//! What a record says, checked before anything else is done.

use super::{Left, RestoreError, RestoreJob};
use crate::{
    model::{BlockName, BlockSize, Compression, limits, report},
    store::{layout::VolumeLayout, record::RecordHead, survey, tombstone},
};

pub(super) struct Plan {
    pub(super) record_key: String,
    pub(super) layout: VolumeLayout,
    pub(super) head: RecordHead,
    pub(super) block_size: BlockSize,
    pub(super) compression: Compression,
    pub(super) volume_bytes: u64,
    /// The number of blocks × the block size is in the record: good enough to show, not to rely on.
    pub(super) total_blocks: u64,
    /// The name of a block of zeros, which needs no request.
    pub(super) zeros: BlockName,
}

impl Plan {
    pub(super) async fn read(job: &RestoreJob) -> Result<Self, RestoreError> {
        let layout = VolumeLayout::new(&job.record.volume);
        let key = layout.backup(&job.record.backup);
        let refuse = |seen: String| RestoreError::Record { key: key.clone(), seen };
        let store = |error| RestoreError::Store { error, left: Left::Untouched };
        let head = survey::read_head(&job.client, &key).await.map_err(store)?;
        let head = head.ok_or_else(|| refuse("it is not there; `tidemark ls` shows the backups of a target".into()))?;
        head.check_is(&job.record).map_err(refuse)?;
        if head.is_in_progress() {
            return Err(refuse("it marks a backup in progress or one that never ended, and cannot be restored".into()));
        }
        if tombstone::covers(&job.client, &layout, &head).await.map_err(store)? {
            return Err(refuse("its Backup was deleted and this record arrived late: its blocks may be gone".into()));
        }
        let block_size = head.block_size().map_err(refuse)?;
        let compression = head.compression().map_err(refuse)?;
        let volume_bytes = match head.volume_bytes() {
            Some(bytes) => bytes,
            None => longhorns_size(job, &layout).await?,
        };
        if volume_bytes == 0 || block_size.count(volume_bytes) > limits::VOLUME_BLOCKS_MAX {
            return Err(refuse(format!("a volume of {volume_bytes} bytes cannot be")));
        }
        let total_blocks = u64::try_from(head.size).unwrap_or(0) / block_size.bytes();
        let zeros = BlockName::of(&vec![0; block_size.len()]);
        Ok(Self { record_key: key, layout, head, block_size, compression, volume_bytes, total_blocks, zeros })
    }

    /// What is told of it.
    pub(super) fn facts(&self) -> report::Plan {
        let Self { volume_bytes, block_size, compression, .. } = *self;
        report::Plan { volume_bytes, block_size, compression, parent: None }
    }
}

/// Longhorn's records do not say how large the volume was; its config does.
async fn longhorns_size(job: &RestoreJob, layout: &VolumeLayout) -> Result<u64, RestoreError> {
    let config = survey::read_config(&job.client, layout).await;
    let config = config.map_err(|error| RestoreError::Store { error, left: Left::Untouched })?;
    config.and_then(|config| u64::try_from(config.size).ok()).ok_or_else(|| RestoreError::Record {
        key: layout.config(),
        seen: "it is not there, and the record does not say how large the volume was".into(),
    })
}
