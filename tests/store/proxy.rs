//! A store behind a forward proxy: tunnelled where it speaks TLS (HTTP/1.1 only, as some stores do), forwarded where it does
//! not; not at all where NO_PROXY says so; and a proxy that wants a password says so at once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tidemark::{
    model::{
        FailureReason, Outcome,
        job::{Proxy, S3Location},
    },
    store::{objects::Objects, s3::S3},
};

use crate::support::{
    Image, S3Server, busy, job,
    proxy::{ForwardProxy, TlsFront},
    scratch,
};

/// `me:hush`, as the header has it.
const AUTHORIZATION: &str = "Basic bWU6aHVzaA==";

fn through(url: &str, except: Option<&str>, location: S3Location) -> Arc<dyn Objects> {
    let proxy = Proxy::parse(url, except.map(str::to_owned)).expect("a URL");
    let location = S3Location { proxy: Some(Box::new(proxy)), ..location };
    Arc::new(S3::open(&location, job::credentials(0)).expect("a valid location"))
}

/// A backup and its comparison with the image, all by this way.
async fn completes(objects: &Arc<dyn Objects>, uid: &str) {
    let folder = scratch("proxy");
    let path = folder.path().join("image");
    drop(Image::random(&path, 6, 1));
    let spec = job::job(&path, uid, 1);
    let volume = spec.volume.to_string();
    let ran = job::run(spec, objects.clone()).await;
    let Some(Outcome::Completed { backup, .. }) = &ran.last.outcome else { panic!("{:#?}", ran.last) };
    assert_eq!(job::compare(objects, &volume, backup.as_str(), &path).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_behind_a_proxy_is_reached_by_it_whatever_it_speaks() {
    let server = S3Server::start();
    server.create_bucket("backups");
    let (front, proxy) = (TlsFront::start(server.address()), ForwardProxy::start(Some(AUTHORIZATION)));
    let plain = || job::location(&server.endpoint(), "backups");
    let tls =
        || S3Location { ca_bundle: Some(front.certificate.clone()), ..job::location(&front.endpoint(), "backups") };

    completes(&through(&proxy.url(Some("me:hush")), None, plain()), "forwarded").await;
    let asked = proxy.asked();
    assert!(!asked.is_empty() && asked.iter().all(|line| line.contains(" http://127.0.0.1:")), "{asked:?}");

    completes(&through(&proxy.url(Some("me:hush")), None, tls()), "tunnelled").await;
    let tunnelled = proxy.asked().split_off(asked.len());
    let tunnel = format!("CONNECT {}", front.endpoint().trim_start_matches("https://"));
    assert!(!tunnelled.is_empty() && tunnelled.iter().all(|line| line.starts_with(&tunnel)), "{tunnelled:?}");

    let before = proxy.asked();
    for (uid, location) in [("direct", plain()), ("direct-tls", tls())] {
        completes(&through(&proxy.url(Some("me:hush")), Some("s3.internal,127.0.0.0/8"), location), uid).await;
    }
    assert_eq!(proxy.asked(), before, "NO_PROXY names the store");
}

#[tokio::test(flavor = "multi_thread")]
async fn law_5_a_proxy_that_refuses_shows_at_once_and_its_password_never() {
    let server = S3Server::start();
    server.create_bucket("backups");
    let (front, proxy) = (TlsFront::start(server.address()), ForwardProxy::start(Some(AUTHORIZATION)));
    let plain = job::location(&server.endpoint(), "backups");
    let tls = S3Location { ca_bundle: Some(front.certificate.clone()), ..job::location(&front.endpoint(), "backups") };
    let folder = scratch("refused");
    let path = folder.path().join("image");
    drop(Image::random(&path, 2, 1));
    for (name, location) in [("plain", plain), ("tls", tls)] {
        let began = Instant::now();
        let objects = through(&proxy.url(Some("me:wrong-word")), None, location);
        let ran = job::run(job::job(&path, "uid", 1), objects).await;
        let failure = ran.last.failure.expect("a failure says why");
        assert_eq!(failure.reason, FailureReason::AccessDenied, "{name}: {failure:?}");
        assert!(failure.message.contains("the proxy wants a user and password"), "{name}: {failure:?}");
        assert!(!failure.message.contains("wrong-word"), "{name}: {failure:?}");
        assert!(began.elapsed() < Duration::from_secs(5) + busy(), "{name}: {:?}", began.elapsed());
    }
    assert_eq!(proxy.asked(), Vec::<String>::new());
}
