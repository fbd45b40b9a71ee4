//! A wire that can be cut: a TCP proxy between a client and a server, so that faults lie outside the product.
//!
//! * `cut`: total packet loss. Bytes go into the void in both directions, new connections are never answered.
//! * `reset`: every connection is closed with RST, now; new ones work.
//! * `slow`: so many bytes per second and direction, shared by all connections.
//! * `heal`: as new. A connection that lost bytes cannot be mended: it is reset now, as a router that forgot it would.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};

/// Small enough that a slow wire is smooth and that a cut comes in the middle of a block.
const CHUNK: usize = 16 * 1024;

#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    state: Arc<State>,
    acceptor: AbortHandle,
}

#[derive(Debug)]
struct State {
    upstream: SocketAddr,
    cut: AtomicBool,
    bytes_per_second: AtomicU64,
    /// Raised to reset: by `Reset::All` every connection, by `Reset::Damaged` those that lost bytes.
    resets: watch::Sender<(u64, Reset)>,
    up: Direction,
    down: Direction,
    connections: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Reset {
    All,
    Damaged,
}

#[derive(Debug, Default)]
struct Direction {
    bytes: AtomicU64,
    free_at: Mutex<Option<Instant>>,
}

impl Wire {
    /// A proxy on loopback to `upstream`.
    pub fn new(upstream: SocketAddr) -> Self {
        let listener = StdListener::bind("127.0.0.1:0").expect("loopback has a free port");
        listener.set_nonblocking(true).expect("a socket just bound can be non-blocking");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = Arc::new(State {
            upstream,
            cut: AtomicBool::new(false),
            bytes_per_second: AtomicU64::new(0),
            resets: watch::Sender::new((0, Reset::Damaged)),
            up: Direction::default(),
            down: Direction::default(),
            connections: AtomicU64::new(0),
        });
        let acceptor = super::runtime().spawn(accept(listener, state.clone())).abort_handle();
        Self { address, state, acceptor }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same, as an S3 endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Total packet loss from now on.
    pub fn cut(&self) {
        self.state.cut.store(true, SeqCst);
    }

    pub fn is_cut(&self) -> bool {
        self.state.cut.load(SeqCst)
    }

    /// Closes every connection with RST; the wire itself stays as it is.
    pub fn reset(&self) {
        self.state.resets.send_modify(|(epoch, which)| (*epoch, *which) = (*epoch + 1, Reset::All));
    }

    /// Whole and fast again.
    pub fn heal(&self) {
        self.slow(0);
        self.state.cut.store(false, SeqCst);
        self.state.resets.send_modify(|(epoch, which)| (*epoch, *which) = (*epoch + 1, Reset::Damaged));
    }

    /// At most so many bytes per second in each direction; 0 is no limit.
    pub fn slow(&self, bytes_per_second: u64) {
        self.state.bytes_per_second.store(bytes_per_second, SeqCst);
    }

    /// Bytes that reached the server, and bytes that reached the client.
    pub fn bytes(&self) -> (u64, u64) {
        (self.state.up.bytes.load(SeqCst), self.state.down.bytes.load(SeqCst))
    }

    /// Connections ever made.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(SeqCst)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.acceptor.abort();
        self.reset();
    }
}

async fn accept(listener: StdListener, state: Arc<State>) {
    let listener = TcpListener::from_std(listener).expect("the listener is non-blocking");
    loop {
        // A connection that ended before it was accepted is no business of ours.
        let Ok((client, _)) = listener.accept().await else { continue };
        state.connections.fetch_add(1, SeqCst);
        tokio::spawn(carry(client, state.clone()));
    }
}

/// One connection, until an end closes it or it is reset.
async fn carry(client: TcpStream, state: Arc<State>) {
    let mut resets = state.resets.subscribe();
    resets.mark_unchanged();
    let damaged = AtomicBool::new(false);
    let mut client = client;
    // While the wire is cut nobody answers, so no server is asked either.
    let mut server = match state.cut.load(SeqCst) {
        true => None,
        false => TcpStream::connect(state.upstream).await.ok(),
    };
    match &mut server {
        None if !state.cut.load(SeqCst) => return, // the server is down: refuse
        None => {
            damaged.store(true, SeqCst);
            reset_asked(&mut resets, &damaged).await;
        }
        Some(server) => {
            let (mut client_read, mut client_write) = client.split();
            let (mut server_read, mut server_write) = server.split();
            let both = async {
                tokio::join!(
                    forward(&mut client_read, &mut server_write, &state, &state.up, &damaged),
                    forward(&mut server_read, &mut client_write, &state, &state.down, &damaged),
                )
            };
            tokio::select! {
                _ = both => return,
                () = reset_asked(&mut resets, &damaged) => {}
            }
        }
    }
    for stream in [Some(&client), server.as_ref()].into_iter().flatten() {
        // A socket that is gone already needs no RST.
        let _ = stream.set_zero_linger();
    }
}

async fn reset_asked(resets: &mut watch::Receiver<(u64, Reset)>, damaged: &AtomicBool) {
    while resets.changed().await.is_ok() {
        let (_, which) = *resets.borrow_and_update();
        if which == Reset::All || damaged.load(SeqCst) {
            return;
        }
    }
}

/// One direction. Once bytes are lost no later byte may pass: TCP never delivers a gap.
async fn forward<R, W>(from: &mut R, to: &mut W, state: &State, direction: &Direction, damaged: &AtomicBool)
where
    R: AsyncReadExt + Unpin,
    W: AsyncWriteExt + Unpin,
{
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = match from.read(&mut buffer).await {
            Ok(length) if length > 0 => length,
            _ if state.cut.load(SeqCst) || damaged.load(SeqCst) => {
                // The end of the connection is lost as well: the other side is told nothing until the wire is healed.
                damaged.store(true, SeqCst);
                return std::future::pending().await;
            }
            _ => break,
        };
        pace(state, direction, length).await;
        if state.cut.load(SeqCst) || damaged.load(SeqCst) {
            damaged.store(true, SeqCst);
            continue;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
        direction.bytes.fetch_add(length as u64, SeqCst);
    }
    // Half-closed: the other direction may still have something to say, but not for ever.
    let _ = timeout(Duration::from_secs(5), to.shutdown()).await;
}

/// Waits until this many bytes may pass; the wire's speed is shared by all connections.
async fn pace(state: &State, direction: &Direction, length: usize) {
    let bytes_per_second = state.bytes_per_second.load(SeqCst);
    if bytes_per_second == 0 {
        return;
    }
    let cost = Duration::from_secs_f64(length as f64 / bytes_per_second as f64);
    let until = {
        let mut free_at = direction.free_at.lock().expect("no holder of this lock panics");
        let start = free_at.map_or_else(Instant::now, |at| at.max(Instant::now()));
        *free_at = Some(start + cost);
        start + cost
    };
    sleep_until(until).await;
}
