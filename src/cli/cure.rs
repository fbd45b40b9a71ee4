//! What a person at a terminal does about each failure. The message before it names the object and what was seen.

use crate::model::FailureReason;

/// One sentence, without its full stop.
pub(super) const fn cure(reason: FailureReason) -> &'static str {
    use FailureReason::*;
    match reason {
        UploadFailed | StoreUnavailable => {
            "see that the store is up, that endpoint and bucket are right, and that it has room; then run it again"
        }
        UploadStalled | DownloadStalled => {
            "check the endpoint and the network between; a store that is only slow needs a longer --stall"
        }
        Throttled => "run it later, or with --max-bytes-per-second or a smaller --concurrency",
        AccessDenied => {
            "allow this key to list, read, write and delete below the prefix, or export another key; a directory: run as \
             somebody who may"
        }
        BucketMissing => "correct the bucket or directory in the URL, or create it first",
        WrongRegion => "write the bucket's own region: s3://bucket@REGION/…, or --region",
        ClockSkew => "set the clocks of this machine and of the store by NTP",
        SessionRefused => "let this key assume the role, and give the role the bucket and prefix",
        SessionExpired => "export a session that is still good, or an access key; then run it again",
        LockHeld => {
            "wait until what holds the volume has ended; a lock that nobody refreshes counts no more after 210 s"
        }
        GuardLost => {
            "run it again: somebody deleted from this volume meanwhile, or the store did not answer for too long"
        }
        Superseded => "nothing: a newer run of the same backup has taken over",
        SourceReadFailed => "check the disk that holds the image; then run it again",
        SourceStalled => "check the device or network mount that holds the image: a read did not come back",
        SourceChanged => "back up a snapshot, or stop what writes to the image; then run it again",
        SourceNotFound => "correct the path of the image, or attach its device",
        SourceRefused => "name a regular file or a block device that this user can read",
        SnapshotLost | SnapshotNotReady => "take a new snapshot and back that up",
        TargetRefused => "name a new file, or a file or device that is not in use and large enough",
        TargetWriteFailed => "make room on the disk, or check it; then go on with --reuse",
        TargetStalled => "check the device or network mount that is written to; then go on with --reuse",
        BlockDamaged => "`tidemark verify` lists what is bad, `tidemark heal` sends it again from an image that has it",
        VolumeNameInUse => "use another --volume or another prefix",
        BlockSizeMismatch => "use the volume's own block size, which `tidemark inspect` shows, or another --volume",
        VolumeConfigMissing => "put a copy of volume.cfg back, or use another --volume",
        RecordMismatch => "run it again; if it stays so the store does not keep what it acknowledges",
        RecordDamaged => "`tidemark ls` shows what is there; put a copy of the object back, or take a new backup",
        BadJobSpec => "`tidemark --help` shows what can be typed",
        ScratchFailed => "make room, or name another directory by --scratch-dir",
        OutOfMemory => "give the program more memory: 192 MiB are enough for any volume",
        DeadlineExceeded => "run it again: it goes on where it was",
        Cancelled => "run it again when it suits: it goes on where it was",
        WorkerCrashed | WorkerNotHeard | WorkerNotStarted | WorkerNotCreated | Bug => {
            "run it again; if it comes back, report it with what --log debug shows"
        }
        // Said of Pods only.
        Unschedulable | ImageMissing | VolumeNotAttached | Evicted | Preempted | NodeLost | PodDeleted => {
            "`kubectl describe` of the worker's Pod and node says more"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law_5_every_failure_names_a_cure() {
        for reason in FailureReason::ALL {
            let cure = cure(*reason);
            assert!(cure.len() > 20 && !cure.ends_with('.') && !cure.contains('\n'), "{reason}: {cure:?}");
            assert!(cure.starts_with(|c: char| c.is_lowercase() || c == '`'), "it follows a colon: {reason}: {cure:?}");
        }
        assert!(FailureReason::ALL.len() > 40);
    }
}
