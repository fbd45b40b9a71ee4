//! Every bound of the product in one place, with the arithmetic behind it.

use std::time::Duration;

use super::block::BlockSize;

/// Largest volume: 8 TiB of 2 MiB blocks are 4,194,304 ordinals, which a `u32` holds with room to spare.
pub const VOLUME_BLOCKS_MAX: u64 = 16 * 1024 * 1024;

// --- Longhorn's lock clock (backupstore `lock.go`: valid 150 s, refreshed each 60 s, judged 2 s after writing).
/// Wait between writing one's lock and judging the others.
pub const LOCK_SETTLE: Duration = Duration::from_secs(2);
/// How often we rewrite our lock.
pub const LOCK_REFRESH: Duration = Duration::from_secs(45);
/// Deadline of one refresh.
pub const LOCK_REFRESH_DEADLINE: Duration = Duration::from_secs(20);
/// Our lease after the send time of the last acknowledged lock PUT: 30 s less than the 150 s Longhorn honours.
pub const LEASE: Duration = Duration::from_secs(120);
/// Sealing begins only with at least this much lease left.
pub const LEASE_TO_SEAL: Duration = Duration::from_secs(60);
/// A deletion lock of at most this age (server time) stops us: 150 s + 30 s margin.
pub const DELETION_LOCK_AGE: Duration = Duration::from_secs(180);

// --- Memory: 2 MiB blocks, 24 raw (48 MiB) + 24 bodies (48 MiB) + 32 MiB for the rest = 128 MiB.
/// Bytes of raw blocks, and again of compressed bodies, a worker may hold.
pub const BUFFER_BYTES: usize = 48 * 1024 * 1024;
/// Never fewer buffers than this: one being read, one hashed, one compressed, one sent.
pub const BUFFERS_MIN: usize = 4;

/// Raw buffers (and again bodies) for a block size: 24 of 2 MiB, 4 of 16 MiB.
pub const fn buffers(size: BlockSize) -> usize {
    let fitting = BUFFER_BYTES / size.len();
    if fitting < BUFFERS_MIN { BUFFERS_MIN } else { fitting }
}
const _: () = assert!(buffers(BlockSize::Mi2) == 24 && buffers(BlockSize::Mi16) == 4);

/// Uploads at once to begin with.
pub const CONCURRENCY_START: u32 = 8;
/// And at most.
pub const CONCURRENCY_MAX: u32 = 32;

// --- Deadlines.
/// Connecting to the store.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// The slowest wire we wait for: a request of n bytes has at least n / this many seconds.
pub const WIRE_BYTES_PER_SECOND_MIN: u64 = 64 * 1024;
/// The least any request is given, unless the stall deadline is shorter.
pub const REQUEST_DEADLINE_MIN: Duration = Duration::from_secs(30);
/// No acknowledgement for this long while a request is outstanding: the attempt is stalled.
pub const STALL_DEFAULT: Duration = Duration::from_secs(60);
/// After a failure, each of three steps of an orderly end has this long: uploads under way, the journal, the lock. Together
/// 3 s of the 5 s that law 5 leaves after the stall deadline.
pub const ORDERLY_END: Duration = Duration::from_secs(1);
const _: () = assert!(3 * ORDERLY_END.as_secs() < 5, "an orderly end would break law 5");
/// One read of the source.
pub const SOURCE_DEADLINE: Duration = Duration::from_secs(300);
/// A whole Backup, retries included.
pub const TOTAL_DEFAULT: Duration = Duration::from_secs(168 * 3600);

// --- Retries of one request.
pub const RETRY_BACKOFF_MIN: Duration = Duration::from_millis(100);
pub const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A refusal on a store that accepted us before is tried again this often, within 4 s (sporadic 403 of some stores).
pub const REFUSAL_RETRIES: u32 = 2;
pub const REFUSAL_BACKOFF: Duration = Duration::from_secs(1);

// --- Journal.
/// Entries of one segment: 4096 × 40 B = 160 KiB.
pub const SEGMENT_ENTRIES: usize = 4096;
/// The least time between two segments written by time.
pub const SEGMENT_INTERVAL_MIN: Duration = Duration::from_secs(5);

// --- Reports.
/// One report line, terminated: fits the kubelet's 4096-byte termination message.
pub const REPORT_BYTES_MAX: usize = 4000;
/// A line on stdout, and at each change of phase.
pub const REPORT_LOG_INTERVAL: Duration = Duration::from_secs(15);
/// The last word is rewritten this often.
pub const REPORT_LAST_WORD_INTERVAL: Duration = Duration::from_secs(2);

// --- The store's answers.
/// Keys of one LIST page and of one batch delete (S3's own limit).
pub const LIST_PAGE: i32 = 1000;
/// A small object (lock, marker, `volume.cfg`, `attempt.json`) larger than this is not read.
pub const SMALL_OBJECT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// A record is refused above this: 16 Mi blocks × 115 bytes.
pub const RECORD_BYTES_MAX: u64 = VOLUME_BLOCKS_MAX * 115;
/// Uploads of a record above this many bytes stream from scratch instead of memory.
pub const BODY_IN_MEMORY_MAX: u64 = 8 * 1024 * 1024;

// --- Verification.
/// Findings listed by name; further ones are only counted: 1000 of about 500 bytes are 0.5 MB.
pub const FINDINGS_LISTED_MAX: usize = 1000;
/// Places (backup and offset) listed for one block.
pub const FINDING_PLACES_MAX: usize = 8;
/// Blocks that `verify: Sample` reads: if 1 % of a volume's blocks are bad, all of 300 are good with probability
/// 0.99^300 = 5 %. At most 600 MiB of 2 MiB blocks.
pub const SAMPLE_BLOCKS: u64 = 300;
