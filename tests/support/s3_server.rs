//! A real S3 server in this process: s3s with its file system behind real HTTP, signatures checked, one directory per
//! bucket. It logs every request, breaks on demand (`faults`), and says what is really on disk.
//!
//! A request goes: log → fault → s3s (signature, then the file system) → log. Faults lie outside s3s, at the HTTP door,
//! where a proxy, a load balancer or a failing server would be.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    net::{SocketAddr, TcpListener as StdListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{Request, Response, body::Frame, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch, task::AbortHandle};

use super::{
    clock,
    faults::{Fault, Kind, Rule},
    s3_backend::{Keys, Paged},
    sts::{self, Sts},
};

type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;
/// No answer: hyper closes the connection.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed without an answer")]
struct Closed;

/// One request, as it came and as it went.
#[derive(Debug, Clone)]
pub struct LoggedRequest {
    pub number: usize,
    pub at: Duration,
    pub kind: Kind,
    pub method: String,
    pub bucket: String,
    /// The key; of a LIST its prefix.
    pub key: String,
    pub query: String,
    pub access_key: String,
    /// Content-Length of the request.
    pub bytes: u64,
    /// What was answered; `None` while it is open, and for ever if the client got no answer.
    pub status: Option<u16>,
    pub fault: Option<Fault>,
}

impl LoggedRequest {
    /// Was it answered with success? Only then may its object be counted.
    pub fn acknowledged(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

/// One object on disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredObject {
    pub key: String,
    pub bytes: u64,
}

/// The server. Dropping it closes it and deletes its directory.
pub struct S3Server {
    address: SocketAddr,
    state: Arc<State>,
    acceptor: AbortHandle,
    directory: TempDir,
}

struct State {
    service: S3Service,
    keys: Keys,
    sts: Sts,
    page: Arc<std::sync::atomic::AtomicI32>,
    shift: std::sync::atomic::AtomicI64,
    log: Mutex<Vec<LoggedRequest>>,
    rules: Mutex<Vec<Rule>>,
    pages: Mutex<HashMap<String, Bytes>>,
    healed: watch::Sender<u64>,
    started: Instant,
}

/// The two access keys every server knows, and their secrets.
pub const ACCESS_KEYS: [(&str, &str); 2] =
    [("TIDEMARKTESTKEY00001", "first-secret-of-the-tests"), ("TIDEMARKTESTKEY00002", "second-secret-of-the-tests")];

impl S3Server {
    /// Listens on a free port of loopback, with no bucket yet.
    pub fn start() -> Self {
        Self::with_room(0)
    }

    /// The same, where there is room for about so many bytes.
    pub fn with_room(bytes: u64) -> Self {
        let directory = super::scratch_with_room("s3", bytes);
        let page = Arc::new(std::sync::atomic::AtomicI32::new(1000));
        let keys = Keys::of(&ACCESS_KEYS);
        let files = s3s_fs::FileSystem::new(directory.path()).expect("the directory was just made");
        let mut builder = S3ServiceBuilder::new(Paged { files, page: page.clone() });
        builder.set_auth(keys.clone());
        let listener = StdListener::bind("127.0.0.1:0").expect("loopback has a free port");
        listener.set_nonblocking(true).expect("a socket just bound can be non-blocking");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = Arc::new(State {
            service: builder.build(),
            sts: Sts::new(keys.clone()),
            keys,
            page,
            shift: 0.into(),
            log: Mutex::default(),
            rules: Mutex::default(),
            pages: Mutex::default(),
            healed: watch::Sender::new(0),
            started: Instant::now(),
        });
        let acceptor = super::runtime().spawn(accept(listener, state.clone())).abort_handle();
        Self { address, state, acceptor, directory }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn create_bucket(&self, bucket: &str) {
        std::fs::create_dir_all(self.bucket(bucket)).expect("the server's directory is writable");
    }

    /// Where a bucket's objects lie: what a test damages by hand.
    pub fn bucket(&self, bucket: &str) -> PathBuf {
        self.directory.path().join(bucket)
    }

    /// Who gives out sessions for this server: none, until told to.
    pub fn sts(&self) -> &Sts {
        &self.state.sts
    }

    /// From now on this access key is unknown.
    pub fn revoke(&self, access_key: &str) {
        self.state.keys.revoke(access_key);
    }

    /// At most so many keys per LIST page.
    pub fn page_size(&self, keys: i32) {
        self.state.page.store(keys, std::sync::atomic::Ordering::SeqCst);
    }

    /// The server's clock is so many seconds ahead of this machine's; negative: behind it.
    pub fn shift_clock(&self, seconds: i64) {
        self.state.shift.store(seconds, std::sync::atomic::Ordering::SeqCst);
    }

    /// One more rule; earlier ones come first.
    pub fn fault(&self, rule: Rule) {
        held(&self.state.rules).push(rule);
    }

    /// No rules any more; held requests go on.
    pub fn heal(&self) {
        held(&self.state.rules).clear();
        self.state.healed.send_modify(|epoch| *epoch += 1);
    }

    /// The same, but from this moment on this rule counts: no request slips through between the two.
    pub fn heal_into(&self, rule: Rule) {
        *held(&self.state.rules) = vec![rule];
        self.state.healed.send_modify(|epoch| *epoch += 1);
    }

    /// Every request so far, in the order they came.
    pub fn requests(&self) -> Vec<LoggedRequest> {
        held(&self.state.log).clone()
    }

    /// How many requests of each kind came.
    pub fn counts(&self) -> BTreeMap<Kind, usize> {
        let mut counts = BTreeMap::new();
        for request in held(&self.state.log).iter() {
            *counts.entry(request.kind).or_default() += 1;
        }
        counts
    }

    /// Forgets the log: what follows is counted from zero. Requests that are open are forgotten too.
    pub fn forget_requests(&self) {
        held(&self.state.log).clear();
    }

    /// Keys of blocks that were sent again after a PUT of them had been acknowledged: law 6 wants none.
    pub fn blocks_sent_again(&self) -> Vec<String> {
        let mut acknowledged = std::collections::HashSet::new();
        let mut again = Vec::new();
        for request in held(&self.state.log).iter().filter(|r| r.kind == Kind::PutBlock) {
            if acknowledged.contains(&request.key) {
                again.push(request.key.clone());
            } else if request.acknowledged() {
                acknowledged.insert(request.key.clone());
            }
        }
        again
    }

    /// What is really on disk, by key.
    pub fn objects(&self, bucket: &str) -> Vec<StoredObject> {
        let root = self.bucket(bucket);
        let mut objects = Vec::new();
        collect(&root, &root, &mut objects);
        objects.sort();
        objects
    }

    /// The block objects that are really on disk.
    pub fn block_objects(&self, bucket: &str) -> Vec<StoredObject> {
        let is_block = |o: &StoredObject| o.key.contains("/blocks/") && o.key.ends_with(".blk");
        self.objects(bucket).into_iter().filter(is_block).collect()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

/// The holder of a lock here only reads or pushes, so it never panics.
fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().expect("no holder of this lock panics")
}

fn collect(root: &Path, directory: &Path, objects: &mut Vec<StoredObject>) {
    // Objects and directories may go while we look.
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let path = entry.path();
        if metadata.is_dir() {
            collect(root, &path, objects);
        } else if let Ok(key) = path.strip_prefix(root) {
            objects.push(StoredObject { key: key.to_string_lossy().into_owned(), bytes: metadata.len() });
        }
    }
}

async fn accept(listener: StdListener, state: Arc<State>) {
    let listener = TcpListener::from_std(listener).expect("the listener is non-blocking");
    // Connections end with this task, so a dropped server is really gone.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        // Small answers at once: without it each request costs 40 ms.
        let _ = stream.set_nodelay(true);
        let state = state.clone();
        connections.spawn(async move {
            let serve = service_fn(move |request| answer(request, state.clone()));
            // A connection that breaks is what these tests are about.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serve).await;
        });
    }
}

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Body>, Closed> {
    let mut entry = describe(&request);
    let fault = held(&state.rules).iter_mut().find_map(|rule| rule.strike(entry.kind, &entry.key));
    entry.fault.clone_from(&fault);
    let number = {
        let mut log = held(&state.log);
        entry.number = log.len();
        entry.at = state.started.elapsed();
        log.push(entry.clone());
        entry.number
    };
    let result = match fault {
        None => perform(request, &entry, &state).await,
        Some(fault) => strike(fault, request, &entry, &state).await,
    };
    if let Ok(response) = &result
        && let Some(logged) = held(&state.log).get_mut(number)
        && logged.key == entry.key
    {
        logged.status = Some(response.status().as_u16());
    }
    result
}

fn describe(request: &Request<Incoming>) -> LoggedRequest {
    let path = super::percent_decoded(request.uri().path().trim_start_matches('/'));
    let (bucket, key) = path.split_once('/').unwrap_or((path.as_str(), ""));
    let query = request.uri().query().unwrap_or_default();
    let kind = Kind::of(request.method().as_str(), key, query);
    let key = match kind {
        Kind::List => {
            query.split('&').find_map(|q| q.strip_prefix("prefix=")).map(super::percent_decoded).unwrap_or_default()
        }
        _ => key.to_owned(),
    };
    let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let access_key = header("authorization").split_once("Credential=").map_or("", |(_, rest)| rest);
    LoggedRequest {
        number: 0,
        at: Duration::ZERO,
        kind,
        method: request.method().to_string(),
        bucket: bucket.to_owned(),
        key,
        query: query.to_owned(),
        access_key: access_key.split('/').next().unwrap_or_default().to_owned(),
        bytes: header("content-length").parse().unwrap_or(0),
        status: None,
        fault: None,
    }
}

/// As a sound server does.
async fn perform(request: Request<Incoming>, entry: &LoggedRequest, state: &State) -> Result<Response<Body>, Closed> {
    let is_form = entry.method == "POST" && entry.bucket.is_empty() && state.sts.is_there();
    let is_session = state.sts.is_session(&entry.access_key);
    let mut response = match is_form || is_session {
        true => match sts::perform(request, entry, (&state.sts, &state.service)).await.ok_or(Closed)? {
            Ok(response) => response,
            Err((status, text)) => return Ok(document(status, text, entry)),
        },
        false => state.service.call(request.map(s3s::Body::from)).await.map_err(|_| Closed)?,
    };
    let shift = state.shift.load(std::sync::atomic::Ordering::SeqCst);
    if entry.kind != Kind::List {
        clock::shift_header(response.headers_mut(), shift);
        return Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()));
    }
    let (parts, body) = response.into_parts();
    let page = body.collect().await.map_err(|_| Closed)?.to_bytes();
    let page = if shift == 0 { page } else { clock::shift_page(&String::from_utf8_lossy(&page), shift).into() };
    held(&state.pages).insert(entry.key.clone(), page.clone());
    Ok(Response::from_parts(parts, whole(page)))
}

async fn strike(
    fault: Fault,
    request: Request<Incoming>,
    entry: &LoggedRequest,
    state: &State,
) -> Result<Response<Body>, Closed> {
    match fault {
        Fault::Answer { status, code } => {
            swallow(request).await;
            Ok(error_document(status, code, entry))
        }
        Fault::Delay(time) => {
            tokio::time::sleep(time).await;
            perform(request, entry, state).await
        }
        Fault::DelayReply(time) => {
            let answer = perform(request, entry, state).await;
            tokio::time::sleep(time).await;
            answer
        }
        Fault::HangForever => {
            swallow(request).await;
            std::future::pending().await
        }
        Fault::Hold => {
            // `heal` moves the epoch; the sender lives as long as this state.
            let _ = state.healed.subscribe().changed().await;
            perform(request, entry, state).await
        }
        Fault::ReplyLost => {
            perform(request, entry, state).await?;
            Err(Closed)
        }
        Fault::ResetBefore => Err(Closed),
        Fault::Drop => {
            swallow(request).await;
            Ok(Response::builder()
                .header("etag", "\"0123456789abcdef0123456789abcdef\"")
                .body(whole(Bytes::new()))
                .expect("a plain answer is valid"))
        }
        Fault::KeyErrors { code } => {
            let body = request.into_body().collect().await.map_err(|_| Closed)?.to_bytes();
            Ok(Response::new(whole(key_errors(&String::from_utf8_lossy(&body), code).into())))
        }
        Fault::TruncatedBody | Fault::BodyCut | Fault::RepeatedPage | Fault::LoseToken => {
            let before = held(&state.pages).get(&entry.key).cloned();
            let (mut parts, body) = perform(request, entry, state).await?.into_parts();
            let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
            if fault == Fault::BodyCut {
                parts.headers.insert("content-length", body.len().into());
                return Ok(Response::from_parts(parts, broken(body.slice(..body.len() / 2))));
            }
            let body = match fault {
                Fault::TruncatedBody => body.slice(..body.len() / 2),
                Fault::RepeatedPage => before.unwrap_or(body),
                _ => without_token(&body),
            };
            parts.headers.insert("content-length", body.len().into());
            Ok(Response::from_parts(parts, whole(body)))
        }
    }
}

fn error_document(status: u16, code: &str, entry: &LoggedRequest) -> Response<Body> {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>The test server was told to answer {code}</Message><Key>{}</Key><RequestId>{}</RequestId></Error>",
        entry.key, entry.number
    );
    document(status, text, entry)
}

fn document(status: u16, text: String, entry: &LoggedRequest) -> Response<Body> {
    let body = if entry.method == "HEAD" { Bytes::new() } else { text.into() };
    let answer = Response::builder().status(status).header("content-type", "application/xml");
    answer.body(whole(body)).expect("a status and a type make a valid answer")
}

/// A `DeleteResult` in which every key of the request failed.
fn key_errors(request: &str, code: &str) -> String {
    let keys = request.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
    let error = |key| format!("<Error><Key>{key}</Key><Code>{code}</Code><Message>told to</Message></Error>");
    let errors: String = keys.map(error).collect();
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DeleteResult>{errors}</DeleteResult>")
}

/// Reads the body to its end: the client has sent everything and waits.
async fn swallow(request: Request<Incoming>) {
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// These bytes, then the connection breaks.
fn broken(bytes: Bytes) -> Body {
    let sent = futures::stream::once(async move { Ok(Frame::data(bytes)) });
    let end = futures::stream::once(async {
        // The first half must have left before the connection is closed.
        tokio::task::yield_now().await;
        Err(Box::from("the test server was told to break off"))
    });
    StreamBody::new(futures::StreamExt::chain(sent, end)).boxed_unsync()
}

fn without_token(page: &Bytes) -> Bytes {
    let text =
        String::from_utf8_lossy(page).replace("<IsTruncated>false</IsTruncated>", "<IsTruncated>true</IsTruncated>");
    let (open, close) = ("<NextContinuationToken>", "</NextContinuationToken>");
    match (text.find(open), text.find(close)) {
        (Some(start), Some(end)) => format!("{}{}", &text[..start], &text[end + close.len()..]).into(),
        _ => text.into(),
    }
}
