//! A forward proxy as companies have them, on plain TCP: it tunnels (CONNECT) and forwards (absolute form), may want a user
//! and a password, and notes who was asked for. And TLS before a server that speaks none, HTTP/1.1 only.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

use super::locked;

/// A head is small; whoever sends a larger one is no client of ours.
const HEAD_MAX: usize = 16 * 1024;

#[derive(Debug)]
pub struct ForwardProxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    acceptor: AbortHandle,
}

impl Drop for ForwardProxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

impl ForwardProxy {
    /// `authorization`: what must stand in Proxy-Authorization.
    pub fn start(authorization: Option<&'static str>) -> Self {
        let (listener, address) = listen();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = asked.clone();
        let accepting = async move {
            let listener = TcpListener::from_std(listener).expect("a socket of this runtime");
            while let Ok((client, _)) = listener.accept().await {
                let noted = noted.clone();
                // A connection that breaks is its client's to tell.
                tokio::spawn(async move { drop(serve(client, authorization, &noted).await) });
            }
        };
        Self { address, asked, acceptor: super::runtime().spawn(accepting).abort_handle() }
    }

    /// Its URL; with a user and a password before the host, if given as `user:password`.
    pub fn url(&self, user: Option<&str>) -> String {
        let user = user.map(|user| format!("{user}@")).unwrap_or_default();
        format!("http://{user}{}", self.address)
    }

    /// The first line of every connection that was let through.
    pub fn asked(&self) -> Vec<String> {
        locked(&self.asked).clone()
    }
}

async fn serve(mut client: TcpStream, wanted: Option<&str>, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD_MAX {
        if client.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    let given = lines.filter_map(|line| line.split_once(": "));
    let given =
        given.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization")).map(|(_, value)| value);
    if wanted.is_some() && given != wanted {
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        return client.write_all(refusal.as_bytes()).await;
    }
    let place = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let is_tunnel = first.starts_with("CONNECT ");
    locked(asked).push(first);
    let host = match is_tunnel {
        true => place.as_str(),
        false => place.strip_prefix("http://").unwrap_or_default().split('/').next().unwrap_or_default(),
    };
    let mut server = TcpStream::connect(host).await?;
    match is_tunnel {
        true => client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?,
        // Servers take the absolute form as it is.
        false => server.write_all(&head).await?,
    }
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// TLS on loopback before this server.
#[derive(Debug)]
pub struct TlsFront {
    address: SocketAddr,
    /// Its certificate, which is its own authority.
    pub certificate: String,
    acceptor: AbortHandle,
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

impl TlsFront {
    pub fn start(server: SocketAddr) -> Self {
        let (listener, address) = listen();
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("one valid name");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("the provider has them").with_no_client_auth();
        let mut config = config.with_single_cert(vec![made.cert.der().clone()], key).expect("they belong together");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = TlsAcceptor::from(Arc::new(config));
        let accepting = async move {
            let listener = TcpListener::from_std(listener).expect("a socket of this runtime");
            while let Ok((client, _)) = listener.accept().await {
                let tls = tls.clone();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(server).await?;
                    let mut client = tls.accept(client).await?;
                    copy_bidirectional(&mut client, &mut server).await
                });
            }
        };
        let acceptor = super::runtime().spawn(accepting).abort_handle();
        Self { address, certificate: made.cert.pem(), acceptor }
    }

    pub fn endpoint(&self) -> String {
        format!("https://{}", self.address)
    }
}

fn listen() -> (StdListener, SocketAddr) {
    let listener = StdListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.set_nonblocking(true).expect("a socket just bound can be non-blocking");
    let address = listener.local_addr().expect("a bound socket has an address");
    (listener, address)
}
