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
/// A backup's or restore's lock of less than this age stops a deletion: 150 s and twice the margin above.
pub const BACKUP_LOCK_AGE: Duration = Duration::from_secs(210);

// --- Sessions by STS.
/// How long a worker's session is asked to live: the most that every role allows unless it says otherwise.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(3600);
/// A session is replaced when this part of its life is over: a kubelet shows a changed Secret within 2 min, and what is
/// left is for an STS that is away.
pub const SESSION_RENEWED_AFTER: u32 = 2;
/// One question to STS: a store's answer has 30 s, and here an object of the cluster waits.
pub const SESSION_DEADLINE: Duration = Duration::from_secs(10);
/// Session policies longer than this are refused by AWS (API reference of AssumeRole: 2,048 characters).
pub const SESSION_POLICY_BYTES_MAX: usize = 2048;
/// An answer of STS: three credentials of at most 2 KB, and its own words.
pub const SESSION_ANSWER_BYTES_MAX: usize = 64 * 1024;

// --- Deletion.
/// What is younger may still be somebody's, or a delayed request's: signatures are valid for 15 min, a lock for 150 s
/// after it; together 17.5 min, rounded up.
pub const YOUNG: Duration = Duration::from_secs(20 * 60);
/// A dead attempt's marker and journal are kept so long while its Backup may be tried again.
pub const MARKER_TTL: Duration = Duration::from_secs(24 * 3600);
/// A tombstone stays so long: no request is delayed for a day.
pub const TOMBSTONE_TTL: Duration = Duration::from_secs(24 * 3600);
/// A temporary file in a directory is a dead writer's after so long: a block of 16 MiB takes 256 s on the slowest wire we
/// accept, a record of 450 MB two hours.
pub const UNFINISHED_TTL: Duration = Duration::from_secs(24 * 3600);
/// A batch of deletions begins only with at least this much lease left: a request has 30 s, twice.
pub const LEASE_TO_DELETE: Duration = Duration::from_secs(60);
const _: () = assert!(LEASE_TO_DELETE.as_secs() < LEASE.as_secs() - LOCK_REFRESH.as_secs(), "every batch would wait");
/// Single DELETEs at once, where the store has no batches.
pub const DELETE_CONCURRENCY: usize = 16;
/// A key that a batch could not delete is sent again so often, if it may help.
pub const DELETE_RETRIES: u32 = 3;
/// Keys that could not be deleted are told by name up to this many.
pub const NOT_DELETED_TOLD: usize = 10;

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
/// Damaged blocks a report and a status name: 10 of about 220 bytes leave room for the rest of the line.
pub const DAMAGED_LISTED_MAX: usize = 10;
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

/// What a bucket keeps of what is deleted is asked by two small requests of a store that just answered eight; the whole probe
/// has 20 s.
pub const KEPT_DEADLINE: Duration = Duration::from_secs(5);

// --- The catalogue: 100,000 records × (16 B key + 8 B pointer, twice for the table's room, + ~200 B of facts) = 25 MiB.
/// Records of one target that are remembered between two looks; those beyond are read again.
pub const CATALOGUE_REMEMBERED_MAX: usize = 100_000;
/// A look takes at most this share of the time: one that takes 30 s is made each 10 minutes.
pub const CATALOGUE_SHARE: u32 = 20;
/// One look through a target ends here: 50,000 volumes × 4 requests × 20 ms, twice.
pub const CATALOGUE_DEADLINE: Duration = Duration::from_secs(2 * 3600);
/// What the dead left is cleared everywhere this often: three LISTs for each volume. Where somebody works or died, with
/// each look.
pub const JANITOR_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// A store that acknowledges nothing for so long ends a look: the next one is minutes away.
pub const CATALOGUE_STALL: Duration = Duration::from_secs(15);
/// Looks through targets at once.
pub const CATALOGUES_AT_ONCE: usize = 2;
/// Records looked up for imports at once: each is one small GET.
pub const LOOKUPS_AT_ONCE: usize = 8;
/// A look-up is at most two small GETs with a retry.
pub const LOOKUP_DEADLINE: Duration = Duration::from_secs(30);
/// Records verified for imports at once. Each holds three parts of a record (12 MiB), their entries (40,000 × 40 B = 2 MiB)
/// and three bitmaps (6 MiB at 16 Mi blocks): 20 MiB; and 36 B of scratch for each listed block.
pub const IMPORTS_VERIFIED_AT_ONCE: usize = 2;
/// One verification: 16 Mi blocks are 16,800 pages of a listing, a second each, and a record of 1.9 GB at 1 MiB/s.
pub const IMPORT_DEADLINE: Duration = Duration::from_secs(6 * 3600);
const _: () = assert!(IMPORT_DEADLINE.as_secs() > VOLUME_BLOCKS_MAX / 1000 + (RECORD_BYTES_MAX >> 20));
/// Scratch of the operator's Pod: each removal and each verification may hold a listing of the largest volume.
pub const OPERATOR_SCRATCH_BYTES: u64 =
    (REMOVALS_AT_ONCE + IMPORTS_VERIFIED_AT_ONCE) as u64 * VOLUME_BLOCKS_MAX * LISTED_BLOCK_BYTES;
/// One listed block in a table of names.
pub const LISTED_BLOCK_BYTES: u64 = 36;
/// Backups that one look discovers: each is one request to the API server.
pub const DISCOVERED_PER_LOOK: usize = 100;
/// Records that discovery remembers for one target: 17 B each in a ConfigMap of at most 1 MiB.
pub const DISCOVERED_REMEMBERED_MAX: usize = 50_000;
const _: () = assert!(DISCOVERED_REMEMBERED_MAX * 17 < 1_000_000, "a ConfigMap holds no more");

// --- Removing data.
/// Removals at once: each holds one page of a listing, one record's entry and bitmaps (see Memory).
pub const REMOVALS_AT_ONCE: usize = 2;
/// One try at a removal ends here; the next goes on where it ended.
pub const REMOVAL_DEADLINE: Duration = Duration::from_secs(6 * 3600);
/// Waits between two tries at a removal: doubled from the first to the last.
pub const REMOVAL_BACKOFF_MIN: Duration = Duration::from_secs(5);
pub const REMOVAL_BACKOFF_MAX: Duration = Duration::from_secs(5 * 60);
/// So many removals of one namespace on one target begin within a window by themselves, or a tenth of its Backups there
/// if that is more: a night's retention of ten or more dailies passes, a namespace deleted by mistake does not.
pub const DELETIONS_PER_WINDOW: i64 = 20;
pub const DELETIONS_SHARE: i64 = 10;
/// And so many of all namespaces together, or a quarter of the target's Backups. Two windows of a namespace touch one of
/// the target: it alone comes to two fifths, or to a fifth of the Backups, and so never makes another wait.
pub const DELETIONS_OF_TARGET_PER_WINDOW: i64 = 100;
pub const DELETIONS_OF_TARGET_SHARE: i64 = 4;
const _: () = assert!(2 * DELETIONS_PER_WINDOW < DELETIONS_OF_TARGET_PER_WINDOW);
const _: () = assert!(2 * DELETIONS_OF_TARGET_SHARE < DELETIONS_SHARE);
pub const DELETION_WINDOW: Duration = Duration::from_secs(3600);
/// A word is remembered so long for what was deleted before it and could not go yet.
pub const DELETIONS_ACKNOWLEDGED: Duration = Duration::from_secs(24 * 3600);
/// Namespaces whose counts stand in a target's status: 250 B each are 0.1 MB of the 1.5 MB an object may have.
pub const DELETION_NAMESPACES_MAX: usize = 500;

// --- Restores: objects and decoded blocks each have `BUFFER_BYTES`.
/// Threads that decode, hash and write: beyond this memory, not cores, is the limit.
pub const RESTORE_THREADS_MAX: usize = 10;
/// Blocks between the record and the target at once, most of them only as entries: 256 × 200 B = 50 KiB.
pub const RESTORE_ORDERS_MAX: usize = 256;
/// Dirty bytes after which a restore flushes, so that neither the page cache nor the last flush grows with the volume.
pub const RESTORE_FLUSH_BYTES: u64 = 256 * 1024 * 1024;
/// The most of a gap that is made zero by one job: at 1 MiB/s within a quarter of `TARGET_DEADLINE`.
pub const RESTORE_ZERO_BYTES: u64 = 64 * 1024 * 1024;
/// A restore waits so long for whoever holds its target: longer than a killed program takes to be gone.
pub const TARGET_HELD: Duration = Duration::from_secs(2);
/// One read, write or flush of a restore's target.
pub const TARGET_DEADLINE: Duration = Duration::from_secs(300);
/// Blocks read back after the flush. A target that keeps each block wrongly with a chance of 5 % is caught with 96 %.
pub const READ_BACK_BLOCKS: usize = 64;

// --- Verification.
/// Findings listed by name; further ones are only counted: 1000 of about 500 bytes are 0.5 MB.
pub const FINDINGS_LISTED_MAX: usize = 1000;
/// Places (backup and offset) listed for one block.
pub const FINDING_PLACES_MAX: usize = 8;
/// Blocks that `verify: Sample` reads: if 1 % of a volume's blocks are bad, all of 300 are good with probability
/// 0.99^300 = 5 %. At most 600 MiB of 2 MiB blocks.
pub const SAMPLE_BLOCKS: u64 = 300;

// --- Workers as Pods.
/// Memory a worker's Pod asks for: 128 MiB of buffers and tables, 64 MiB for the program and its stacks.
pub const WORKER_MEMORY_REQUEST_BYTES: u64 = 192 * 1024 * 1024;
/// And at most: the measured peak (108 MiB backing up, 124 MiB restoring) twice, so that a kill for memory is a bug.
pub const WORKER_MEMORY_LIMIT_BYTES: u64 = 256 * 1024 * 1024;
/// Scratch for tables, per block of the volume, if all of them are new and the store holds 2.5 times as many (30 dailies
/// that change 5 %): uploading takes 90 bytes of listing, 36 of map, 72 of names; sealing 36 of map, 108 of record; the
/// former is 198, and 256 leave room for a store of 4 times as many.
pub const SCRATCH_BYTES_PER_BLOCK: u64 = 256;
/// And besides: bitmaps, heads, directories.
pub const SCRATCH_BYTES_BASE: u64 = 64 * 1024 * 1024;
/// SIGTERM to SIGKILL: 30 s are the worker's own promise, 5 s are for the machine.
pub const WORKER_GRACE: Duration = Duration::from_secs(35);
/// A Job ends its Pod this long after the attempt's own deadline: a dead man's switch for when no operator lives.
pub const JOB_DEADLINE_GRACE: Duration = Duration::from_secs(300);
/// A finished Job that no operator removed goes by itself after a day.
pub const JOB_TTL: Duration = Duration::from_secs(24 * 3600);
/// A Pod is deleted from a node that is not ready or not reachable after this long.
pub const NODE_TOLERATION: Duration = Duration::from_secs(30);
/// A Job without a Pod after this long is given up.
pub const POD_DEADLINE: Duration = Duration::from_secs(60);

/// Room for a worker's tables.
pub const fn scratch_bytes(volume_bytes: Option<u64>) -> u64 {
    let blocks = match volume_bytes {
        Some(bytes) => bytes.div_ceil(BlockSize::Mi2.bytes()),
        // As large as Longhorn's format is used for: 8 TiB.
        None => 4 * 1024 * 1024,
    };
    SCRATCH_BYTES_BASE + blocks * SCRATCH_BYTES_PER_BLOCK
}
const _: () = assert!(scratch_bytes(None) == (1024 + 64) * 1024 * 1024);
