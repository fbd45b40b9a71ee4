//! What a Backup may ask to be verified after its record is sealed, and what became of it.
//!
//! It never changes what the Backup is: Completed is history. A verification that could not be done proves nothing.

use serde::{Deserialize, Serialize};

use super::failure::printable;

/// How deeply a backup is verified by the worker that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub enum VerifyDepth {
    #[default]
    None,
    /// Every block is listed, with a size that can be.
    Listing,
    /// The same, and `limits::SAMPLE_BLOCKS` blocks are read, decoded and compared with their names.
    Sample,
    /// The same with every block.
    Full,
}

/// What became of a verification, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    pub verdict: Verdict,
    /// What was looked at, or what was seen on which object and the cure; at most 1000 bytes.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    Running,
    Passed,
    Damaged,
    /// The store gave out, or somebody ended it.
    NotDone,
}

impl Verification {
    const MESSAGE_BYTES_MAX: usize = 1000;

    pub fn new(verdict: Verdict, message: &str) -> Self {
        Self { verdict, message: printable(message, Self::MESSAGE_BYTES_MAX) }
    }

    pub fn is_running(&self) -> bool {
        self.verdict == Verdict::Running
    }
}
