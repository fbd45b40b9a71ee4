//! The S3 backend: the only room that names the SDK (but for its credential types). `kept`: what deletions leave behind.
//!
//! The SDK neither retries nor times out nor adds checksums for us: all three are decided one layer up, where they are
//! counted. Over TLS the payload is not hashed for the signature; over plain HTTP it is.

mod kept;

use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation,
        StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig,
    },
    error::{ProvideErrorMetadata, SdkError},
    operation::put_object::builders::PutObjectFluentBuilder,
    primitives::{ByteStream, DateTime, SdkBody},
    types::{Delete, ObjectIdentifier, ObjectStorageClass, ServerSideEncryption, StorageClass},
};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{Intercept, context::AfterDeserializationInterceptorContextRef},
        orchestrator::{HttpRequest, HttpResponse},
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::config_bag::ConfigBag;
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use jiff::Timestamp;
use md5::{Digest, Md5};

use super::{
    buffers::Pool,
    connect,
    credentials::{CredentialSource, Current},
    error::{ErrorKind, StoreError, innermost},
    objects::{Answer, Body, Entry, Fetched, Kept, Meta, Objects, Page, PutCondition, Range, Stored},
};
use crate::model::{FailureReason, job::S3Location, limits};

/// One bucket and prefix.
#[derive(Debug)]
pub struct S3 {
    client: Client,
    location: S3Location,
    credentials: Current,
    is_tls: bool,
}

impl S3 {
    pub fn open(location: &S3Location, credentials: CredentialSource) -> Result<Self, StoreError> {
        let credentials = Current::open(credentials)?;
        let config = configure(location, &credentials)?;
        let is_tls = location.endpoint.as_deref().is_none_or(|e| e.starts_with("https://"));
        Ok(Self { client: Client::from_conf(config), location: location.clone(), credentials, is_tls })
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.location.prefix)
    }

    fn put_request(&self, key: &str, condition: PutCondition) -> PutObjectFluentBuilder {
        let sse = self.location.server_side_encryption.as_ref();
        let mut request = self.client.put_object().bucket(&self.location.bucket).key(self.key(key));
        request = request.set_storage_class(self.location.storage_class.as_deref().map(StorageClass::from));
        request = request.set_server_side_encryption(sse.map(|s| ServerSideEncryption::from(s.algorithm.as_str())));
        request = request.set_ssekms_key_id(sse.and_then(|s| s.kms_key_id.clone()));
        match condition {
            PutCondition::IfAbsent if self.location.conditional_writes => request.if_none_match("*"),
            PutCondition::IfAbsent | PutCondition::Always => request,
        }
    }

    async fn send_put(&self, key: &str, body: Body, condition: PutCondition) -> Result<Stored, StoreError> {
        let request = self.put_request(key, condition).content_length(i64::try_from(body.len()).unwrap_or(i64::MAX));
        let request = request.body(stream(body).map_err(|e| StoreError::new(ErrorKind::Unavailable, "PUT", key, e))?);
        let request = request.customize();
        let request = if self.is_tls { request.disable_payload_signing() } else { request };
        let reply = request.send().await.map_err(|error| classify("PUT", key, &error))?;
        Ok(Stored { etag: reply.e_tag })
    }

    async fn send_get(&self, key: &str, range: Range, pool: Option<&Pool>) -> Result<Option<Fetched>, StoreError> {
        let request = self.client.get_object().bucket(&self.location.bucket).key(self.key(key));
        let wanted = match (range.offset, range.len) {
            (0, None) => None,
            (offset, None) => Some(format!("bytes={offset}-")),
            (offset, Some(len)) => Some(format!("bytes={offset}-{}", offset + len.max(1) - 1)),
        };
        let reply = match request.set_range(wanted).send().await {
            Ok(reply) => reply,
            Err(error) if is_code(&error, &["NoSuchKey"]) => return Ok(None),
            Err(error) if status(&error) == Some(416) => return self.beyond_the_end(key, range, &error).await,
            Err(error) if status(&error) == Some(403) && self.is_absent(key).await => return Ok(None),
            Err(error) => return Err(classify("GET", key, &error)),
        };
        let whole = reply.content_range().and_then(|r| r.rsplit('/').next()).and_then(|n| n.parse().ok());
        let len = u64::try_from(reply.content_length.unwrap_or_default()).unwrap_or_default();
        if len > range.bytes_max {
            let seen = format!("it is {len} bytes, at most {} are read", range.bytes_max);
            return Err(StoreError::new(ErrorKind::Damaged, "GET", key, seen));
        }
        let meta = Meta {
            size: whole.unwrap_or(len),
            etag: reply.e_tag.clone(),
            modified: reply.last_modified.as_ref().and_then(timestamp),
        };
        let bytes = collect(key, reply.body, len, pool).await?;
        Ok(Some(Fetched { bytes, meta }))
    }

    /// 416: the range begins behind the object's end, so there is nothing to read. An empty object answers every range so.
    async fn beyond_the_end<E>(
        &self,
        key: &str,
        range: Range,
        error: &SdkError<E, HttpResponse>,
    ) -> Result<Option<Fetched>, StoreError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        match self.send_head(key).await? {
            Some(meta) if meta.size <= range.offset => Ok(Some(Fetched { bytes: Bytes::new(), meta })),
            None => Ok(None),
            Some(_) => Err(classify("GET", key, error)),
        }
    }

    async fn send_head(&self, key: &str) -> Result<Option<Meta>, StoreError> {
        let request = self.client.head_object().bucket(&self.location.bucket).key(self.key(key));
        match request.send().await {
            Ok(reply) => Ok(Some(Meta {
                size: u64::try_from(reply.content_length.unwrap_or_default()).unwrap_or_default(),
                etag: reply.e_tag,
                modified: reply.last_modified.as_ref().and_then(timestamp),
            })),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) if status(&error) == Some(403) && self.is_absent(key).await => Ok(None),
            Err(error) => Err(classify("HEAD", key, &error)),
        }
    }

    /// A session may list one folder, and S3 answers 403 for what is not there to whom it would not show the whole bucket:
    /// only a listing can tell that from a refusal. One that fails, or is not whole, tells nothing: the 403 stays.
    async fn is_absent(&self, key: &str) -> bool {
        if !self.credentials.is_session() {
            return false;
        }
        let page = self.send_list(key, None).await;
        page.is_ok_and(|page| page.entries.first().is_none_or(|first| first.key != key))
    }

    async fn send_list(&self, prefix: &str, token: Option<String>) -> Result<Page, StoreError> {
        let request = self.client.list_objects_v2().bucket(&self.location.bucket).prefix(self.key(prefix));
        let request = request.max_keys(limits::LIST_PAGE).set_continuation_token(token.clone());
        let request = request.customize().interceptor(WholeDocument("</ListBucketResult>"));
        let reply = request.send().await.map_err(|error| classify("LIST", prefix, &error))?;
        let refuse = |seen: &str| Err(StoreError::new(ErrorKind::Unavailable, "LIST", prefix, seen));
        let next = reply.next_continuation_token.clone();
        match (reply.is_truncated.unwrap_or_default(), &next) {
            (true, None) => return refuse("the answer is truncated and has no token to go on with"),
            (true, Some(_)) if next == token => return refuse("the server answered with the token it was sent"),
            _ => {}
        }
        let mut entries = Vec::with_capacity(reply.contents().len());
        for object in reply.contents() {
            let Some(key) = object.key().and_then(|k| k.strip_prefix(&self.location.prefix)) else {
                return refuse("the answer names an object outside the prefix that was asked for");
            };
            if !key.starts_with(prefix) {
                return refuse("the answer names an object outside the prefix that was asked for");
            }
            let Some(size) = object.size().and_then(|s| u64::try_from(s).ok()) else {
                return refuse("the answer names an object without its size");
            };
            entries.push(Entry {
                key: key.to_owned(),
                meta: Meta { size, etag: object.e_tag.clone(), modified: object.last_modified().and_then(timestamp) },
                is_archived: matches!(
                    object.storage_class(),
                    Some(ObjectStorageClass::Glacier | ObjectStorageClass::DeepArchive)
                ),
            });
        }
        Ok(Page { entries, next: next.filter(|_| reply.is_truncated.unwrap_or_default()) })
    }

    async fn send_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let refuse = |seen: &str| StoreError::new(ErrorKind::Unavailable, "LIST", prefix, seen);
        let (mut folders, mut token): (Vec<String>, Option<String>) = (Vec::new(), None);
        loop {
            let request = self.client.list_objects_v2().bucket(&self.location.bucket).prefix(self.key(prefix));
            let request = request.delimiter("/").set_continuation_token(token.clone());
            let request = request.customize().interceptor(WholeDocument("</ListBucketResult>"));
            let reply = request.send().await.map_err(|error| classify("LIST", prefix, &error))?;
            for folder in reply.common_prefixes().iter().filter_map(|p| p.prefix()) {
                let folder = folder.strip_prefix(&self.location.prefix).filter(|f| f.starts_with(prefix));
                folders.push(folder.ok_or_else(|| refuse("the answer names a folder outside the prefix"))?.to_owned());
            }
            match (reply.is_truncated.unwrap_or_default(), reply.next_continuation_token) {
                (false, _) => return Ok(folders),
                (true, None) => return Err(refuse("the answer is truncated and has no token to go on with")),
                (true, next) if next == token => {
                    return Err(refuse("the server answered with the token it was sent"));
                }
                (true, next) => token = next,
            }
        }
    }

    async fn send_delete(&self, keys: &[String]) -> Result<Vec<StoreError>, StoreError> {
        match keys {
            [_, _, ..] if self.location.batch_delete => self.send_batch_delete(keys).await,
            _ => {
                for key in keys {
                    let request = self.client.delete_object().bucket(&self.location.bucket).key(self.key(key));
                    request.send().await.map_err(|error| classify("DELETE", key, &error))?;
                }
                Ok(Vec::new())
            }
        }
    }

    async fn send_batch_delete(&self, keys: &[String]) -> Result<Vec<StoreError>, StoreError> {
        let first = keys.first().map_or("", String::as_str);
        let invalid = |e: &dyn std::fmt::Display| StoreError::new(ErrorKind::Unavailable, "DELETE", first, e);
        let mut names = Vec::with_capacity(keys.len());
        for key in keys {
            names.push(ObjectIdentifier::builder().key(self.key(key)).build().map_err(|e| invalid(&e))?);
        }
        let batch = Delete::builder().set_objects(Some(names)).quiet(true).build().map_err(|e| invalid(&e))?;
        let request = self.client.delete_objects().bucket(&self.location.bucket).delete(batch);
        let request = request.customize().interceptor(WholeDocument("DeleteResult>")).mutate_request(add_content_md5);
        let reply = request.send().await.map_err(|error| classify("DELETE", first, &error))?;
        let stays = reply.errors().iter().map(|error| {
            let code = error.code().unwrap_or_default();
            let (kind, cure) = classify_code(None, code);
            let kind = if code == "AccessDenied" { ErrorKind::Refused(FailureReason::AccessDenied) } else { kind };
            let key = error.key().unwrap_or(first);
            let key = key.strip_prefix(&self.location.prefix).unwrap_or(key);
            let seen = format!("it stays: {code}: {}{cure}", error.message().unwrap_or_default());
            StoreError::new(kind, "DELETE", key, seen)
        });
        Ok(stays.collect())
    }

    async fn send_list_page_size(&self, prefix: &str) -> Result<i32, StoreError> {
        let request = self.client.list_objects_v2().bucket(&self.location.bucket).prefix(self.key(prefix));
        let request = request.max_keys(limits::LIST_PAGE);
        let request = request.customize().interceptor(WholeDocument("</ListBucketResult>"));
        let reply = request.send().await.map_err(|error| classify("LIST", prefix, &error))?;
        // A server that does not repeat the number has taken ours.
        Ok(reply.max_keys.filter(|keys| (1..=limits::LIST_PAGE).contains(keys)).unwrap_or(limits::LIST_PAGE))
    }
}

impl Objects for S3 {
    fn put<'a>(&'a self, key: &'a str, body: Body, condition: PutCondition) -> Answer<'a, Stored> {
        Box::pin(async move { self.send_put(key, body, condition).await })
    }
    fn get<'a>(&'a self, key: &'a str, range: Range) -> Answer<'a, Option<Fetched>> {
        Box::pin(self.send_get(key, range, None))
    }
    fn get_into<'a>(&'a self, key: &'a str, range: Range, pool: &'a Pool) -> Answer<'a, Option<Fetched>> {
        Box::pin(self.send_get(key, range, Some(pool)))
    }
    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Meta>> {
        Box::pin(self.send_head(key))
    }
    fn list<'a>(&'a self, prefix: &'a str, token: Option<String>) -> Answer<'a, Page> {
        Box::pin(self.send_list(prefix, token))
    }
    fn folders<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<String>> {
        Box::pin(self.send_folders(prefix))
    }
    fn delete<'a>(&'a self, keys: &'a [String]) -> Answer<'a, Vec<StoreError>> {
        Box::pin(self.send_delete(keys))
    }
    fn delete_keys_max(&self) -> usize {
        if self.location.batch_delete { limits::LIST_PAGE as usize } else { 1 }
    }
    fn list_page_size<'a>(&'a self, prefix: &'a str) -> Answer<'a, i32> {
        Box::pin(self.send_list_page_size(prefix))
    }
    fn kept(&self) -> BoxFuture<'_, Kept> {
        Box::pin(self.send_kept())
    }
    fn refresh_credentials(&self) -> Answer<'_, bool> {
        Box::pin(std::future::ready(self.credentials.refresh()))
    }
}

/// The SDK's parser takes a document that ends early for a short one: half a listing would be a listing (law 7). An
/// answer counts only if its document is closed.
#[derive(Debug)]
struct WholeDocument(&'static str);

impl Intercept for WholeDocument {
    fn name(&self) -> &'static str {
        "WholeDocument"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        let body = response.body().bytes().unwrap_or_default().trim_ascii_end();
        // An empty element (`<DeleteResult/>`) ends with "/>".
        let is_whole = body.ends_with(self.0.as_bytes()) || body.ends_with(b"/>");
        if !response.status().is_success() || is_whole {
            return Ok(());
        }
        Err(format!("the answer ends after {} bytes without its closing element", body.len()).into())
    }
}

/// The SDK sends a CRC32, which older servers do not know: they demand this.
fn add_content_md5(request: &mut HttpRequest) {
    let digest = request.body().bytes().map(Md5::digest);
    if let Some(digest) = digest {
        request.headers_mut().insert("content-md5", aws_smithy_types::base64::encode(digest));
    }
}

fn configure(location: &S3Location, credentials: &Current) -> Result<aws_sdk_s3::Config, StoreError> {
    let http = connect::http_client(location)?;
    let mut config = aws_sdk_s3::Config::builder();
    config.set_endpoint_url(location.endpoint.clone());
    Ok(config
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(location.region.clone()))
        .force_path_style(location.force_path_style)
        .credentials_provider(credentials.provider())
        .identity_cache(IdentityCache::no_cache())
        .http_client(http)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(limits::CONNECT_DEADLINE).build())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .build())
}

fn stream(body: Body) -> std::io::Result<ByteStream> {
    match body {
        Body::Bytes(bytes) => Ok(ByteStream::new(SdkBody::from(bytes))),
        Body::File { file, len } => Ok(ByteStream::from_body_1_x(super::scratch::FileBody::new(file, len))),
    }
}

/// Reads a body to its end; an answer of another length than its header says is no answer.
async fn collect(key: &str, mut body: ByteStream, len: u64, pool: Option<&Pool>) -> Result<Bytes, StoreError> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let mut pooled = pool.and_then(|pool| pool.try_take_for(len));
    let mut own = BytesMut::with_capacity(if pooled.is_some() { 0 } else { len });
    let mut done = 0;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| StoreError::new(ErrorKind::Unavailable, "GET", key, e))?;
        if done + chunk.len() > len {
            break;
        }
        match &mut pooled {
            Some(buffer) => buffer.bytes_mut()[done..done + chunk.len()].copy_from_slice(&chunk),
            None => own.extend_from_slice(&chunk),
        }
        done += chunk.len();
    }
    if done != len {
        let seen = format!("the answer ended after {done} of {len} bytes");
        return Err(StoreError::new(ErrorKind::Unavailable, "GET", key, seen));
    }
    Ok(match pooled {
        Some(buffer) => buffer.into_bytes(len),
        None => own.freeze(),
    })
}

fn timestamp(time: &DateTime) -> Option<Timestamp> {
    Timestamp::new(time.secs(), i32::try_from(time.subsec_nanos()).ok()?).ok()
}

fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|r| r.status().as_u16())
}

fn is_code<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>, codes: &[&str]) -> bool {
    error.as_service_error().and_then(ProvideErrorMetadata::code).is_some_and(|code| codes.contains(&code))
}

fn classify<E>(action: &'static str, key: &str, error: &SdkError<E, HttpResponse>) -> StoreError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let status = status(error);
    let service = error.as_service_error();
    let code = service.and_then(ProvideErrorMetadata::code).unwrap_or_default();
    let message = service.and_then(ProvideErrorMetadata::message).unwrap_or_default();
    let (kind, cure) = match status {
        None if innermost(error).contains("proxy authorization required") => classify_code(Some(407), code),
        _ => classify_code(status, code),
    };
    let seen = match (status, code) {
        (Some(status), "") => format!("HTTP {status}{cure}"),
        (Some(status), code) => format!("HTTP {status} {code}: {message}{cure}"),
        (None, _) => format!("no answer: {}{cure}", innermost(error)),
    };
    StoreError::new(kind, action, key, seen)
}

/// What an S3 error code means for us (AWS "Error responses", with the words other servers use).
fn classify_code(status: Option<u16>, code: &str) -> (ErrorKind, &'static str) {
    use FailureReason::{AccessDenied, BucketMissing, ClockSkew, WrongRegion};
    match (code, status) {
        ("SlowDown" | "ServiceUnavailable" | "TooManyRequests" | "RequestLimitExceeded", _) | (_, Some(429 | 503)) => {
            (ErrorKind::Throttled, "")
        }
        ("ExpiredToken" | "InvalidToken" | "TokenRefreshRequired", _) => {
            (ErrorKind::Expired, "; the session ended: renew it in the secret")
        }
        ("NoSuchBucket", _) => (ErrorKind::Refused(BucketMissing), "; create the bucket or correct its name"),
        ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException", _)
        | (_, Some(301 | 307)) => (ErrorKind::Refused(WrongRegion), "; correct the region of the target"),
        ("RequestTimeTooSkewed", _) => (ErrorKind::Refused(ClockSkew), "; set this node's clock"),
        ("InvalidAccessKeyId" | "NotSignedUp", _) => {
            (ErrorKind::Refused(AccessDenied), "; the access key is unknown there: correct the secret")
        }
        ("SignatureDoesNotMatch", _) => {
            (ErrorKind::Refused(AccessDenied), "; the secret key does not fit the access key: correct the secret")
        }
        ("InvalidObjectState", _) => (ErrorKind::Damaged, "; it is in an archive class: bring it back first"),
        (_, Some(407)) => (
            ErrorKind::Refused(AccessDenied),
            "; the proxy wants a user and password: write them into its URL, http://user:password@host:port",
        ),
        ("PreconditionFailed" | "ConditionalRequestConflict", _) | (_, Some(409 | 412)) => {
            (ErrorKind::Precondition, "")
        }
        (_, Some(401 | 403)) => (ErrorKind::Refused(AccessDenied), "; allow this key the request"),
        (_, Some(400 | 404 | 405 | 411 | 413 | 501)) => (ErrorKind::Unavailable, ""),
        _ => (ErrorKind::Unavailable, ""),
    }
}
