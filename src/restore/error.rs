//! Why a restore ended without its volume: which object or path, what was seen, and what the target holds now.

use std::{fmt, path::PathBuf};

use serde::Serialize;

use crate::{
    model::{DamageReason, FailureReason},
    store::error::{ErrorKind, StoreError},
};

/// A block that could not be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hole {
    /// Bytes from the start of the volume.
    pub offset: u64,
    pub key: String,
    pub reason: DamageReason,
    /// What was seen.
    pub seen: String,
}

/// Holes listed by name; further ones are only counted.
pub const HOLES_LISTED_MAX: usize = 1000;

/// What the target holds after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Untouched,
    Partial { restored: u64, total: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("{error}. {left}")]
    Store { error: StoreError, left: Left },
    #[error("Record {key}: {seen}")]
    Record { key: String, seen: String },
    #[error("Block at offset {}, object {}: {}. {left}", hole.offset, hole.key, hole.seen)]
    Block { hole: Hole, left: Left },
    #[error("{count} blocks could not be restored. The target holds zeros in their place and everything else")]
    Holes { count: u64, first: Vec<Hole> },
    #[error("{}: {seen}. {left}", path.display())]
    Target { path: PathBuf, reason: FailureReason, seen: String, left: Left },
    #[error("The restore was cancelled. {0}")]
    Cancelled(Left),
    #[error("A bug: {seen}. {left}")]
    Bug { seen: String, left: Left },
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Left::Untouched => f.write_str("The target was not touched"),
            Left::Partial { restored, total } => {
                write!(f, "The target holds {restored} of {total} blocks in no particular order: do not use it")
            }
        }
    }
}

impl RestoreError {
    pub fn reason(&self) -> FailureReason {
        match self {
            RestoreError::Store { error, .. } if error.kind == ErrorKind::Stalled => FailureReason::DownloadStalled,
            RestoreError::Store { error, .. } => error.reason(),
            RestoreError::Record { .. } => FailureReason::RecordDamaged,
            RestoreError::Block { .. } | RestoreError::Holes { .. } => FailureReason::BlockDamaged,
            RestoreError::Target { reason, .. } => *reason,
            RestoreError::Cancelled(_) => FailureReason::Cancelled,
            RestoreError::Bug { .. } => FailureReason::Bug,
        }
    }

    /// The key or path at which it happened.
    pub fn object(&self) -> Option<String> {
        match self {
            RestoreError::Store { error, .. } => Some(error.key.clone()),
            RestoreError::Record { key, .. } => Some(key.clone()),
            RestoreError::Block { hole, .. } => Some(hole.key.clone()),
            RestoreError::Holes { first, .. } => first.first().map(|hole| hole.key.clone()),
            RestoreError::Target { path, .. } => Some(path.display().to_string()),
            RestoreError::Cancelled(_) | RestoreError::Bug { .. } => None,
        }
    }

    /// Was nothing written? Then a retry begins where this one did.
    pub fn left(&self) -> Option<Left> {
        match self {
            RestoreError::Store { left, .. } | RestoreError::Block { left, .. } => Some(*left),
            RestoreError::Target { left, .. } | RestoreError::Bug { left, .. } => Some(*left),
            RestoreError::Cancelled(left) => Some(*left),
            RestoreError::Record { .. } => Some(Left::Untouched),
            RestoreError::Holes { .. } => None,
        }
    }

    /// Documented in docs/cli.md.
    pub fn exit_code(&self) -> u8 {
        self.reason().exit_code()
    }
}
