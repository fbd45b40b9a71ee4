// Only a ledger without open blocks yields `Complete`.
use tidemark::store::ledger::{Complete, Ledger};

pub fn forge(ledger: Ledger) -> Complete {
    Complete { ledger }
}
