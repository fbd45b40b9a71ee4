// Nor can one be written down field by field.
use tidemark::{model::BlockName, store::ledger::Receipt, store::scratch::Placed};

pub fn forge() -> Receipt {
    Receipt { placed: Placed { name: BlockName([0; 32]), stored: 1 } }
}
