//! Whose word counts for the store's certificate: the system's authorities (`SSL_CERT_FILE` and `SSL_CERT_DIR` name
//! others) and the target's own `caBundle`.
//!
//! Looked at before the SDK is: it panics on a bundle that it cannot read and, in debug builds, where the system has no
//! authority; in others every server would be a stranger, and the message would name none of this. Without TLS
//! nothing is looked at.

use std::sync::LazyLock;

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::error::{ErrorKind, StoreError};
use crate::model::{
    FailureReason,
    job::{Proxy, S3Location},
};

/// What the system trusts: how many authorities, or what was seen instead. It is read once, as the SDK does.
static SYSTEM: LazyLock<Result<usize, String>> = LazyLock::new(|| {
    let found = rustls_native_certs::load_native_certs();
    let (usable, unusable) = RootCertStore::empty().add_parsable_certificates(found.certs);
    match (usable, found.errors.first()) {
        (0, Some(error)) => Err(error.to_string()),
        (0, None) => Err(format!("{unusable} certificates, of which none is usable")),
        (usable, _) => Ok(usable),
    }
});

/// Who is trusted for one location. At least somebody, if anything there speaks TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trust<'a> {
    pub is_system_trusted: bool,
    /// PEM in which every certificate was read.
    pub bundle: Option<&'a str>,
}

impl<'a> Trust<'a> {
    pub fn of(location: &'a S3Location) -> Result<Self, StoreError> {
        let bundle = location.ca_bundle.as_deref();
        let by_tls = location.proxy.as_ref().is_some_and(|proxy| proxy.url.starts_with("https://"));
        if !by_tls && !Proxy::is_for_https(location.endpoint.as_deref()) {
            return Ok(Self { is_system_trusted: false, bundle: None });
        }
        if let Some(pem) = bundle {
            read(pem).map_err(|problem| {
                let seen = format!("caBundle {problem}; give it whole PEM certificates");
                StoreError::new(ErrorKind::Refused(FailureReason::AccessDenied), "OPEN", &location.bucket, seen)
            })?;
        }
        match (&*SYSTEM, bundle) {
            (Ok(_), _) => Ok(Self { is_system_trusted: true, bundle }),
            (Err(_), Some(_)) => Ok(Self { is_system_trusted: false, bundle }),
            (Err(problem), None) => {
                let seen = format!(
                    "this system trusts no certificate authority ({problem}), so no server can prove who it is: install \
                     its root certificates (ca-certificates, in an image /etc/ssl/certs/ca-certificates.crt), name them \
                     in SSL_CERT_FILE, or give the store's own as caBundle"
                );
                Err(StoreError::new(ErrorKind::Unavailable, "OPEN", &location.bucket, seen))
            }
        }
    }
}

/// How many certificates are in it; one that cannot be read is an error, and so is none.
fn read(pem: &str) -> Result<usize, String> {
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        count += 1;
        let certificate = certificate.map_err(|error| format!("has an unreadable certificate {count}: {error}"))?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate).map_err(|error| format!("has an unusable certificate {count}: {error}"))?;
    }
    if count == 0 { Err("holds no certificate".to_owned()) } else { Ok(count) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(body: &str) -> String {
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    }

    #[test]
    fn a_bundle_is_read_whole_or_refused_with_the_certificate_that_is_wrong() {
        let good = rcgen::generate_simple_self_signed(vec!["store".to_owned()]).expect("one valid name").cert.pem();
        assert_eq!(read(&good), Ok(1));
        assert_eq!(read(&format!("# ours\n{good}{good}")), Ok(2));
        let cut = good.get(..good.len() / 2).expect("ASCII");
        let cases = [
            (String::new(), "holds no certificate"),
            ("nonsense".to_owned(), "holds no certificate"),
            (pem("!"), "certificate 1"),
            (pem("bm9uc2Vuc2U="), "unusable certificate 1"),
            (format!("{good}{cut}"), "certificate 2"),
        ];
        for (text, expected) in cases {
            let problem = read(&text).expect_err(&text);
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }

    #[test]
    fn without_tls_nobody_needs_to_be_trusted_and_nothing_is_read() {
        let location = |endpoint: &str| S3Location {
            endpoint: Some(endpoint.to_owned()),
            ca_bundle: Some(pem("!")),
            ..S3Location::default()
        };
        let plain = location("http://store:9000");
        assert_eq!(Trust::of(&plain), Ok(Trust { is_system_trusted: false, bundle: None }));
        let tls = location("https://store:9000");
        let refused = Trust::of(&tls).expect_err("its bundle is no PEM");
        assert!(refused.seen.contains("caBundle has an unreadable certificate 1"), "{refused}");
        let proxy = Proxy::parse("https://proxy:3128", None).map(Box::new);
        assert!(Trust::of(&S3Location { proxy, ..plain }).is_err(), "the proxy speaks TLS");
    }
}
