//! Where a command keeps what does not fit in memory.

use std::path::PathBuf;

use crate::store::scratch::Scratch;

#[derive(Debug, clap::Args)]
pub(super) struct ScratchOptions {
    /// Directory for tables that do not fit in memory [default: the system's]
    #[arg(long, value_name = "DIR")]
    scratch_dir: Option<PathBuf>,
}

impl ScratchOptions {
    pub(super) fn open(&self) -> Scratch {
        Scratch::new(&self.scratch_dir.clone().unwrap_or_else(std::env::temp_dir))
    }
}
