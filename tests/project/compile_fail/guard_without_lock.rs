// A guard comes from a lock that stands, not from its parts.
use tidemark::store::{guard::{Guard, Locked}, objects::Meta};

pub fn forge(locked: Locked, marker: Meta) -> Guard {
    Guard { locked, marker_key: String::new(), marker }
}
