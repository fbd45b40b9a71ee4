//! What is asked of a restore, and what comes of it.

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Hole;
use crate::{
    model::{AttemptId, job::Limits, report::Plan},
    store::{client::Client, guard::Timing, record::RecordId},
};

/// One restore, as asked for. `new` gives the careful defaults; change its fields.
#[derive(Clone)]
pub struct RestoreJob {
    /// Its stall and total deadlines are those of the restore.
    pub client: Client,
    pub record: RecordId,
    /// A file to make, or a block device.
    pub target: PathBuf,
    /// If given, the target is opened beneath this directory and symlinks that leave it are refused.
    pub root: Option<PathBuf>,
    pub overwrite: Overwrite,
    pub damage: Damage,
    /// Downloads at once (absent: adaptive), and bytes per second.
    pub limits: Limits,
    pub locking: Locking,
    /// Told of every block that is given up, as it happens: only `HOLES_LISTED_MAX` of them are kept.
    pub on_hole: Option<OnHole>,
    /// Told once what the record says of the volume.
    pub on_plan: Option<OnPlan>,
}

pub type OnHole = Arc<dyn Fn(&Hole) + Send + Sync>;
pub type OnPlan = Arc<dyn Fn(Plan) + Send + Sync>;

impl RestoreJob {
    /// Refuses a target that exists, stops at the first damage, takes the volume's lock under the attempt's name.
    pub fn new(client: Client, record: RecordId, target: PathBuf, attempt: AttemptId) -> Self {
        Self {
            client,
            record,
            target,
            root: None,
            overwrite: Overwrite::Refuse,
            damage: Damage::Stop,
            limits: Limits { concurrency: None, max_bytes_per_second: None },
            locking: Locking::Shared { attempt, timing: Timing::default() },
            on_hole: None,
            on_plan: None,
        }
    }
}

/// What if the target exists? A block device always does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Overwrite {
    #[default]
    Refuse,
    /// What it holds is forgotten, unread.
    Replace,
    /// What it holds is read, and kept where its checksum is the record's: continues a restore that was interrupted,
    /// brings an earlier restored state up to date, repairs. A file that is not there is made.
    Reuse,
}

/// What if a block cannot be restored?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Damage {
    /// End at once.
    #[default]
    Stop,
    /// Restore what can be, leave zeros for the rest, list it, and end in an error.
    KeepGoing,
}

/// Is the volume locked in the store for the time of the restore?
#[derive(Debug, Clone)]
pub enum Locking {
    /// By Longhorn's lock of type 1, shared with backups and other restores: no deletion begins meanwhile, and while one
    /// is under way the restore is refused.
    Shared { attempt: AttemptId, timing: Timing },
    /// For credentials that may only read. Blocks that are deleted meanwhile are named as missing.
    Without,
}

/// What was restored, flushed and read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSummary {
    pub volume: String,
    pub backup: String,
    pub snapshot_created_at: String,
    pub volume_bytes: u64,
    /// All blocks, those the target held already included.
    pub blocks: u64,
    pub reused_blocks: u64,
    pub fetched_bytes: u64,
    /// Blocks read from the target again after the flush, and found equal.
    pub read_back_blocks: u64,
}
