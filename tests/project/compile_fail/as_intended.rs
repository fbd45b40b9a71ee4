// The twin that compiles: what the others may not forge comes by the way it should.
use tidemark::store::{guard::Guard, ledger::{How, Ledger}, scratch::Scratch, seal};

pub async fn backup(guard: &Guard, mut ledger: Ledger, facts: seal::Facts, scratch: &Scratch) {
    let name = tidemark::model::BlockName::of(b"block");
    if let Ok(receipt) = guard.put_block(name, bytes::Bytes::new()).await {
        let _ = ledger.acknowledge(0, &receipt, How::Uploaded);
    }
    if let Ok(complete) = ledger.complete() {
        let _ = seal::seal(guard, &complete, facts, scratch, |_| {}).await;
    }
}
