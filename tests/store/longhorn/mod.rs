//! Longhorn as the other side of a store: what it wrote, what it reads, what it does beside us, and where it fails open.
//! `support/longhorn` says which Longhorn is at work.

mod beside;
mod leftovers;
mod matrix;
mod requests;
mod stores;
mod weaknesses;
