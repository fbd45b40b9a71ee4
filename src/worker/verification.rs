//! The verification that a Backup asked for, by the worker that made it, after its record was sealed and told.
//!
//! It needs no guard and changes nothing. What it shows becomes a word of the last report; a store that gives out, a
//! deadline or an end by somebody else make it "not done", never "damaged" (law 7).

use super::Attempt;
use crate::{
    model::{BackupName, Verdict, Verification, VerifyDepth, limits},
    store::{
        client::Client,
        error::StoreError,
        scratch::Scratch,
        verify::{self, Depth, Order, Severity, Share, Verified},
    },
};

/// Verifies one sealed record as its job says.
pub(super) async fn run(
    attempt: &Attempt,
    client: &Client,
    scratch: &Scratch,
    (wanted, backup): (VerifyDepth, &BackupName),
) -> Verification {
    let job = &attempt.job;
    let depth = match wanted {
        VerifyDepth::None | VerifyDepth::Listing => Depth::Listing,
        // Every attempt of every Backup reads another sample.
        VerifyDepth::Sample => Depth::Sample { share: Share::Blocks(limits::SAMPLE_BLOCKS), seed: seed(backup) },
        VerifyDepth::Full => Depth::Full,
    };
    let concurrency = job.limits.concurrency.unwrap_or(limits::CONCURRENCY_START);
    let order = Order { volume: job.volume.clone(), backup: Some(backup.clone()), depth, concurrency };
    let mut tell = |progress| tracing::trace!(?progress, "Verification goes on");
    let verified = tokio::select! {
        biased;
        verified = verify::verify(client, &order, scratch, &mut tell) => verified,
        () = attempt.cancel.cancelled() => {
            return Verification::new(Verdict::NotDone, "The verification was ended before it was done");
        }
    };
    judge(verified, depth)
}

/// The first bytes of the record's name, which is a hash.
fn seed(backup: &BackupName) -> u64 {
    backup.as_str().bytes().rev().take(16).fold(0, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)))
}

fn judge(verified: Result<Verified, StoreError>, depth: Depth) -> Verification {
    let verified = match verified {
        Ok(verified) => verified,
        Err(error) => {
            tracing::warn!(%error, "Verification could not be done");
            let message = format!("The verification could not be done, which proves nothing: {error}");
            return Verification::new(Verdict::NotDone, &message);
        }
    };
    let (named, read) = (verified.blocks_named, verified.blocks_read);
    let looked = match depth {
        Depth::Listing => format!("{named} blocks are listed with sizes that can be; none was read"),
        Depth::Sample { seed, .. } => {
            format!("{named} blocks are listed with sizes that can be; {read} of them were read (seed {seed})")
        }
        Depth::Full => format!("{named} blocks are listed, and all of their {read} objects were read"),
    };
    let damage = |f: &&verify::Finding| f.kind.severity() != Severity::Notice;
    match verified.findings.listed().find(damage) {
        None => Verification::new(Verdict::Passed, &format!("The record can be read; {looked}")),
        Some(first) => {
            let count: u64 =
                [Severity::Damage, Severity::Obstacle].map(|s| verified.findings.of_severity(s)).iter().sum();
            tracing::error!(count, %first, "Verification found damage");
            let more =
                if count > 1 { format!(" ({count} findings; `tidemark verify` lists them)") } else { String::new() };
            Verification::new(Verdict::Damaged, &format!("{first}{more}. Cure: {}", first.kind.cure()))
        }
    }
}
