//! The data path without a cluster: the format, the laws of backup, restore, deletion and verification over stores that
//! fail, faults on the wire, Longhorn as the other side, and the command line. Real S3 servers, real processes.
//!
//! One program for all of them: forty programs took minutes to link and gigabytes to keep.

#[path = "../support/mod.rs"]
mod support;

mod backup;
mod cli;
mod cli_failures;
mod cli_sweep;
mod codec_frames;
mod conformance;
mod damage;
mod faults;
mod imports;
mod kept;
mod laws;
mod longhorn;
mod paused;
mod proxy;
mod restore;
mod scale;
mod sessions;
mod soak;
mod surroundings;
mod sweep;
mod sweep_faults;
mod verify;
mod verify_scale;
mod versitygw;
