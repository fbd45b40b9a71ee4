//! The way to the store, and to whoever gives out sessions for it: TLS with the target's certificates, and its proxy.

use aws_smithy_http_client::{Connector, proxy::ProxyConfig, tls};
use aws_smithy_runtime_api::client::{http::SharedHttpClient, runtime_components::RuntimeComponents};

use super::{
    error::{ErrorKind, StoreError},
    trust::Trust,
};
use crate::model::{FailureReason, job::S3Location};

const PROVIDER: tls::Provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc);

/// What the SDK is given was looked at before: it panics on certificates that it cannot read, and where there are none.
fn tls_context(location: &S3Location) -> Result<tls::TlsContext, StoreError> {
    let trust = Trust::of(location)?;
    let mut roots = tls::TrustStore::empty().with_native_roots(trust.is_system_trusted);
    if let Some(pem) = trust.bundle {
        roots = roots.with_pem_certificate(pem.as_bytes());
    }
    tls::TlsContext::builder().with_trust_store(roots).build().map_err(|error| {
        StoreError::new(ErrorKind::Unavailable, "OPEN", &location.bucket, format!("TLS cannot be set up: {error}"))
    })
}

/// Straight to the store, or by the target's proxy: never by one that only the environment names.
pub(super) fn http_client(location: &S3Location) -> Result<SharedHttpClient, StoreError> {
    let context = tls_context(location)?;
    let builder = aws_smithy_http_client::Builder::new();
    let Some(by) = proxy(location)? else {
        return Ok(builder.tls_provider(PROVIDER).tls_context(context).build_https());
    };
    Ok(builder.build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().proxy_config(by.clone());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.tls_provider(PROVIDER).tls_context(context.clone()).build()
    }))
}

/// The same way, for one request that is no S3 request; its deadline is the caller's.
pub(super) fn connector(location: &S3Location) -> Result<Connector, StoreError> {
    let context = tls_context(location)?;
    let mut connector = Connector::builder();
    if let Some(by) = proxy(location)? {
        connector = connector.proxy_config(by);
    }
    Ok(connector.tls_provider(PROVIDER).tls_context(context).build())
}

fn proxy(location: &S3Location) -> Result<Option<ProxyConfig>, StoreError> {
    let Some(proxy) = &location.proxy else { return Ok(None) };
    let by = ProxyConfig::all(proxy.url.as_str()).map_err(|_| {
        // Without the cause: it may quote the URL, and with it a password.
        let seen = "the proxy's URL cannot be used; correct HTTPS_PROXY or HTTP_PROXY";
        StoreError::new(ErrorKind::Refused(FailureReason::AccessDenied), "OPEN", &location.bucket, seen)
    })?;
    Ok(Some(by.no_proxy(proxy.except.clone().unwrap_or_default())))
}
