//! Small HTTP servers and one small client, all on plain HTTP/1.1.
//!
//! * the operator's door: `/healthz` (the event loop answers), `/readyz` (it can do its work), `/metrics`
//! * the worker's door: `GET /report?nonce=N` answers the newest report line. The header `tidemark-mac` carries
//!   HMAC-SHA-256 of `N`, a newline and the line, under the attempt's key: neither a replayed answer nor a stranger who
//!   inherited the address can make it. The request carries no secret.
//! * [`fetch_report`], the operator's side of it
//!
//! What may go wrong is the network's doing and comes back as an error with the address in it; no server here ends
//! because of a client.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::Metrics,
    model::{ReportKey, limits},
};

/// Carries the MAC of nonce and line.
pub const MAC_HEADER: &str = "tidemark-mac";

/// Serves until told to stop; connections that are open then are answered to their end.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Is the operator ready to do its work? Told by the operator, asked by `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// The text says what is missing.
    NotReady(String),
}

struct OperatorDoor {
    metrics: Arc<Metrics>,
    readiness: watch::Receiver<Readiness>,
}

/// `/healthz`, `/readyz` and `/metrics`.
pub fn operator_router(metrics: Arc<Metrics>, readiness: watch::Receiver<Readiness>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .with_state(Arc::new(OperatorDoor { metrics, readiness }))
}

async fn readyz(State(door): State<Arc<OperatorDoor>>) -> Response {
    let readiness = door.readiness.borrow().clone();
    match readiness {
        Readiness::Ready => "ok\n".into_response(),
        Readiness::NotReady(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")).into_response(),
    }
}

async fn metrics_text(State(door): State<Arc<OperatorDoor>>) -> Response {
    let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, open_metrics)], door.metrics.encode()).into_response()
}

struct ReportDoor {
    newest: watch::Receiver<String>,
    key: ReportKey,
}

#[derive(serde::Deserialize)]
struct ReportQuery {
    nonce: String,
}

/// Longer nonces are not answered: nobody needs them, and the MAC's input stays bounded.
const NONCE_BYTES_MAX: usize = 64;

/// The worker's door: whoever holds the sender of `newest` decides what is said.
pub fn report_router(newest: watch::Receiver<String>, key: ReportKey) -> Router {
    Router::new().route("/report", get(report)).with_state(Arc::new(ReportDoor { newest, key }))
}

async fn report(State(door): State<Arc<ReportDoor>>, Query(query): Query<ReportQuery>) -> Response {
    if query.nonce.is_empty() || query.nonce.len() > NONCE_BYTES_MAX {
        return (StatusCode::BAD_REQUEST, "nonce must have 1 to 64 bytes\n").into_response();
    }
    let line = door.newest.borrow().clone();
    if line.is_empty() {
        return (StatusCode::SERVICE_UNAVAILABLE, "no report yet\n").into_response();
    }
    let mac = door.key.mac(nonced(&query.nonce, &line).as_bytes());
    let mut headers = HeaderMap::new();
    headers.insert(MAC_HEADER, HeaderValue::from_str(&mac).expect("hex digits are a header value"));
    (headers, line).into_response()
}

/// What the answer's MAC is made over.
fn nonced(nonce: &str, line: &str) -> String {
    format!("{nonce}\n{line}")
}

/// Why no report came.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("Worker at {0} did not answer within {1:?}")]
    Silent(SocketAddr, Duration),
    #[error("Worker at {address} could not be asked")]
    Unreachable { address: SocketAddr, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("Worker at {0} answered {1}")]
    Refused(SocketAddr, StatusCode),
    /// Somebody else answers at this address, or replays an old answer.
    #[error("Answer from {0} does not carry the MAC of our nonce: it is not from this attempt's worker")]
    NotOurs(SocketAddr),
}

/// How long one question may take: twice the polling interval would already be too late.
pub const FETCH_DEADLINE: Duration = Duration::from_secs(2);

/// Asks a worker for its newest report line and proves that the answer was made for this question.
/// What the line says is believed only after it was accepted.
pub async fn fetch_report(address: SocketAddr, key: &ReportKey) -> Result<String, FetchError> {
    match tokio::time::timeout(FETCH_DEADLINE, fetch(address, key)).await {
        Ok(answer) => answer,
        Err(_) => Err(FetchError::Silent(address, FETCH_DEADLINE)),
    }
}

async fn fetch(address: SocketAddr, key: &ReportKey) -> Result<String, FetchError> {
    let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| FetchError::Unreachable { address, source };
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|e| unreachable(e.into()))?;
    let nonce = hex::encode(random);
    let uri = format!("http://{address}/report?nonce={nonce}").parse().expect("an address and hex digits make a URI");
    // A client of its own for each question: a pooled connection could belong to a worker that is no more.
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = client.get(uri).await.map_err(|e| unreachable(e.into()))?;
    if answer.status() != StatusCode::OK {
        return Err(FetchError::Refused(address, answer.status()));
    }
    let mac = answer.headers().get(MAC_HEADER).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let body = Limited::new(answer.into_body(), limits::REPORT_BYTES_MAX).collect().await.map_err(unreachable)?;
    let line = String::from_utf8(body.to_bytes().to_vec()).map_err(|_| FetchError::NotOurs(address))?;
    match mac {
        Some(mac) if key.verify(nonced(&nonce, &line).as_bytes(), &mac) => Ok(line),
        _ => Err(FetchError::NotOurs(address)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn door(router: Router) -> (SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, router, stop.clone()));
        (address, stop)
    }

    #[tokio::test]
    async fn law_8_only_the_attempts_own_worker_can_answer() {
        let key = ReportKey::new([1; 32]);
        let (say, newest) = watch::channel(String::new());
        let (address, stop) = door(report_router(newest, key.clone())).await;
        assert!(matches!(fetch_report(address, &key).await, Err(FetchError::Refused(..))), "nothing said yet");
        say.send_replace("{\"v\":1}".into());
        assert_eq!(fetch_report(address, &key).await.expect("answered"), "{\"v\":1}");
        let stranger = fetch_report(address, &ReportKey::new([2; 32])).await;
        assert!(matches!(stranger, Err(FetchError::NotOurs(_))), "{stranger:?}");
        stop.cancel();
    }

    #[tokio::test]
    async fn law_8_a_replayed_answer_is_not_believed() {
        let key = ReportKey::new([1; 32]);
        let line = "{\"v\":1}".to_owned();
        let replayed = key.mac(nonced("an older nonce", &line).as_bytes());
        let router = Router::new().route("/report", get(async move || ([(MAC_HEADER, replayed)], line)));
        let (address, stop) = door(router).await;
        assert!(matches!(fetch_report(address, &key).await, Err(FetchError::NotOurs(_))));
        stop.cancel();
    }

    #[tokio::test]
    async fn readiness_says_what_is_missing() {
        let (say, readiness) = watch::channel(Readiness::NotReady("Backups are not listed yet".into()));
        let (address, stop) = door(operator_router(Arc::new(Metrics::new()), readiness)).await;
        let ask = async |path: &str| {
            let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
            let answer = client.get(format!("http://{address}{path}").parse().unwrap()).await.unwrap();
            let status = answer.status();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            (status.as_u16(), String::from_utf8_lossy(&body).into_owned())
        };
        assert_eq!(ask("/readyz").await, (503, "Backups are not listed yet\n".into()));
        say.send_replace(Readiness::Ready);
        assert_eq!(ask("/readyz").await.0, 200);
        assert_eq!(ask("/healthz").await.0, 200);
        let (status, text) = ask("/metrics").await;
        assert_eq!(status, 200);
        assert!(text.ends_with("# EOF\n") && text.contains("tidemark_status_writes_refused_total 0"), "{text}");
        stop.cancel();
    }
}
