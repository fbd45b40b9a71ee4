//! What an API server keeps in its etcd, by etcd's JSON gateway: what is there, and everything that a test made deleted at
//! once. The API server hears of it by its own watches, as it hears of every write.

use std::collections::BTreeSet;

use aws_smithy_types::base64;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const ROOT: &str = "/registry/";
/// etcd takes 128 in one transaction.
const DELETED_AT_ONCE: usize = 100;

/// What the API server makes by itself whenever it likes; to delete it would start its controllers.
const OF_THE_SERVER: [&str; 12] = [
    "/registry/apiregistration.k8s.io/",
    "/registry/configmaps/kube-system/",
    "/registry/endpointslices/default/kubernetes",
    "/registry/flowschemas/",
    "/registry/ipaddresses/",
    "/registry/leases/kube-system/",
    "/registry/masterleases/",
    "/registry/prioritylevelconfigurations/",
    "/registry/ranges/",
    "/registry/servicecidrs/",
    "/registry/services/",
    "/registry/validatingadmissionpolicies/",
];

/// Every key of the API server.
pub(super) async fn keys(port: u16) -> std::io::Result<BTreeSet<String>> {
    let end = ROOT.replace("y/", "y0");
    let range = json!({"key": encoded(ROOT), "range_end": encoded(&end), "keys_only": true});
    let found = ask(port, "range", &range).await?;
    let key = |kv: &Value| {
        let bytes = base64::decode(kv["key"].as_str().unwrap_or_default()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(found["kvs"].as_array().into_iter().flatten().map(key).collect())
}

/// Deletes every key but these, those that `stays` names, and the API server's own. How many went.
pub(super) async fn clear(port: u16, kept: &BTreeSet<String>, stays: impl Fn(&str) -> bool) -> std::io::Result<usize> {
    let is_own = |key: &str| OF_THE_SERVER.iter().any(|prefix| key.starts_with(prefix));
    let found = keys(port).await?;
    let gone: Vec<_> = found.iter().filter(|key| !kept.contains(*key) && !is_own(key) && !stays(key)).collect();
    for some in gone.chunks(DELETED_AT_ONCE) {
        let delete = |key: &&String| json!({"request_delete_range": {"key": encoded(key)}});
        ask(port, "txn", &json!({"success": some.iter().map(delete).collect::<Vec<_>>()})).await?;
    }
    Ok(gone.len())
}

fn encoded(text: &str) -> String {
    base64::encode(text.as_bytes())
}

async fn ask(port: u16, what: &str, body: &Value) -> std::io::Result<Value> {
    let body = body.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    // To HTTP/1.0 it answers in one piece, and closes.
    let head = format!("POST /v3/kv/{what} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let error = || std::io::Error::other(format!("etcd: {what}: {answer}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(error)?;
    match head.split(' ').nth(1) {
        Some("200") => serde_json::from_str(body).map_err(|_| error()),
        _ => Err(error()),
    }
}
