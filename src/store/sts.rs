//! Sessions by STS: one signed POST of the operator, with the target's own key, and in the answer a key that lives an hour
//! and opens what its policy says (`session`).
//!
//! What may go wrong, each with its cure in the message: nobody answers; what answers is no STS; the key, the role or the
//! policy is refused; the answer is not whole, or its session has ended already. There is no other way: whoever asks gets a
//! session or an error, never the key that was signed with.

use std::time::SystemTime;

use aws_credential_types::Credentials as SdkCredentials;
use aws_sigv4::{
    http_request::{PayloadChecksumKind, SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use aws_smithy_runtime_api::client::{http::HttpConnector, orchestrator::HttpRequest};
use aws_smithy_types::body::SdkBody;
use http_body_util::{BodyExt, Limited};
use jiff::Timestamp;

use super::{
    connect,
    error::{ErrorKind, StoreError, innermost},
    session::{self, Scope},
};
use crate::model::{Credentials, FailureReason, job::S3Location, limits};

/// Who gives out sessions, and as what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sts {
    /// As the target has it: bucket, region, certificates, proxy.
    pub location: S3Location,
    /// URL of STS; absent: the store's own, or AWS's of the region.
    pub endpoint: Option<String>,
    /// Absent: the server asks for none (MinIO).
    pub role_arn: Option<String>,
}

/// A key that ends by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub credentials: Credentials,
    pub issued: Timestamp,
    pub expires: Timestamp,
}

impl Session {
    /// From here on a worker is to be given another one.
    pub fn renew_at(&self) -> Timestamp {
        let life = self.expires.duration_since(self.issued);
        self.issued + life / i32::try_from(limits::SESSION_RENEWED_AFTER).unwrap_or(1)
    }
}

const ACTION: &str = "AssumeRole";
const API_VERSION: &str = "2011-06-15";

/// Asks for the session of one attempt. `now` signs the request and judges the answer.
pub async fn assume_role(sts: &Sts, key: &Credentials, scope: &Scope, now: Timestamp) -> Result<Session, StoreError> {
    let policy = session::policy(&sts.location, scope)?;
    let endpoint = sts.url();
    let body = sts.form(&policy, scope);
    let request = signed(&endpoint, &sts.location.region, key, body, now)?;
    let location = S3Location { endpoint: Some(endpoint.clone()), ..sts.location.clone() };
    let sent = send(&location, &endpoint, request);
    let (status, answer) = match tokio::time::timeout(limits::SESSION_DEADLINE, sent).await {
        Ok(answer) => answer?,
        Err(_) => return Err(away(&endpoint, &format!("no answer within {:?}", limits::SESSION_DEADLINE))),
    };
    read(&endpoint, status, &answer, now)
}

impl Sts {
    fn url(&self) -> String {
        let location = &self.location;
        match (&self.endpoint, &location.endpoint) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Some(endpoint)) if !session::is_aws(location) => endpoint.clone(),
            (None, _) => {
                let suffix = if location.region.starts_with("cn-") { ".cn" } else { "" };
                format!("https://sts.{}.amazonaws.com{suffix}", location.region)
            }
        }
    }

    fn form(&self, policy: &str, scope: &Scope) -> String {
        let lifetime = limits::SESSION_LIFETIME.as_secs().to_string();
        // What the store's own log will call this worker.
        let name = format!("tidemark-{}", scope.attempt);
        let mut pairs = vec![
            ("Action", ACTION),
            ("Version", API_VERSION),
            ("DurationSeconds", &lifetime),
            ("RoleSessionName", &name),
            ("Policy", policy),
        ];
        pairs.extend(self.role_arn.as_deref().map(|role| ("RoleArn", role)));
        form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
    }
}

/// The request with its signature (version 4, service `sts`). It carries the signature, never the secret.
fn signed(
    endpoint: &str,
    region: &str,
    key: &Credentials,
    body: String,
    now: Timestamp,
) -> Result<HttpRequest, StoreError> {
    let unfit = |problem: &dyn std::fmt::Display| {
        let seen = format!("the request cannot be made: {problem}; correct stsEndpoint and the target's key");
        refused(endpoint, seen)
    };
    let token = key.session_token.clone();
    let identity = SdkCredentials::new(&key.access_key_id, &key.secret_access_key, token, None, "tidemark").into();
    let mut settings = SigningSettings::default();
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    let url = format!("{}/", endpoint.trim_end_matches('/'));
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("sts")
        .time(SystemTime::from(now))
        .settings(settings)
        .build()
        .map_err(|e| unfit(&e))?
        .into();
    let kind = ("content-type", "application/x-www-form-urlencoded; charset=utf-8");
    let signable = SignableRequest::new("POST", &url, [kind].into_iter(), SignableBody::Bytes(body.as_bytes()));
    let (instructions, _) = sign(signable.map_err(|e| unfit(&e))?, &parameters).map_err(|e| unfit(&e))?.into_parts();
    let length = body.len().to_string();
    let mut request = HttpRequest::new(SdkBody::from(body));
    request.set_method("POST").map_err(|e| unfit(&e))?;
    request.set_uri(url).map_err(|e| unfit(&e))?;
    let headers = request.headers_mut();
    headers.insert(kind.0, kind.1);
    headers.insert("content-length", length);
    for (name, value) in instructions.headers() {
        headers.insert(name.to_owned(), value.to_owned());
    }
    Ok(request)
}

/// Status and text of the answer.
async fn send(location: &S3Location, endpoint: &str, request: HttpRequest) -> Result<(u16, String), StoreError> {
    let response = connect::connector(location)?.call(request).await;
    let response = response.map_err(|error| away(endpoint, &innermost(&error)))?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), limits::SESSION_ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| away(endpoint, &format!("the answer broke off: {error}")))?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// What the answer says. Only a whole one counts.
fn read(endpoint: &str, status: u16, answer: &str, now: Timestamp) -> Result<Session, StoreError> {
    let is_session = answer.contains("<AssumeRoleResponse") && answer.trim_end().ends_with("</AssumeRoleResponse>");
    if !(200..300).contains(&status) || !is_session {
        return Err(refusal(endpoint, status, answer));
    }
    let needed = |name: &str| {
        let missing = || away(endpoint, &format!("the answer has no {name}"));
        element(answer, name).filter(|text| !text.is_empty()).ok_or_else(missing)
    };
    let credentials = Credentials {
        access_key_id: needed("AccessKeyId")?,
        secret_access_key: needed("SecretAccessKey")?,
        session_token: Some(needed("SessionToken")?),
    };
    let expiration = needed("Expiration")?;
    let expires: Timestamp =
        expiration.parse().map_err(|_| away(endpoint, &format!("its Expiration {expiration:?} is no time")))?;
    if expires <= now {
        let seen = format!("the session ended at {expires}, and here it is {now}: set both clocks by NTP");
        return Err(StoreError::new(
            ErrorKind::Refused(FailureReason::ClockSkew),
            ACTION,
            format!("at {endpoint}"),
            seen,
        ));
    }
    Ok(Session { credentials, issued: now, expires })
}

/// Why there is no session, and what a person can do.
fn refusal(endpoint: &str, status: u16, answer: &str) -> StoreError {
    let code = element(answer, "Code").unwrap_or_default();
    let message = element(answer, "Message").unwrap_or_default();
    let said = match code.as_str() {
        "" => format!("HTTP {status}, and no answer of an STS"),
        code => format!("HTTP {status} {code}: {}", message.trim_end_matches('.')),
    };
    let other = |kind, seen| StoreError::new(kind, ACTION, format!("at {endpoint}"), seen);
    match (code.as_str(), status) {
        ("Throttling" | "ThrottlingException" | "SlowDown" | "TooManyRequests" | "ServiceUnavailable", _)
        | (_, 429 | 503) => other(ErrorKind::Throttled, said),
        ("RequestTimeTooSkewed" | "RequestExpired", _) => {
            other(ErrorKind::Refused(FailureReason::ClockSkew), format!("{said}; set the clocks by NTP"))
        }
        (code, 500..) if status != 501 && code != "STSNotInitialized" => away(endpoint, &said),
        (code, status) => refused(endpoint, format!("{said}; {}", cure(code, status))),
    }
}

/// Codes are those of AWS's API reference of AssumeRole and of its "Common errors", and what MinIO says besides.
fn cure(code: &str, status: u16) -> &'static str {
    match (code, status) {
        ("AccessDenied" | "AccessDeniedException", _) => {
            "let the target's key call sts:AssumeRole, name a role in credentials.roleArn, and let that role's trust \
             policy name the key's user"
        }
        ("InvalidClientTokenId" | "InvalidAccessKeyId" | "UnrecognizedClientException", _) => {
            "the access key is unknown there: correct the secret, or credentials.stsEndpoint"
        }
        ("SignatureDoesNotMatch" | "IncompleteSignature", _) => {
            "correct the secret key in the secret, and the target's region"
        }
        ("ExpiredToken" | "ExpiredTokenException", _) => "the key in the secret is a session that ended: renew it",
        ("PackedPolicyTooLarge" | "PackedPolicyTooLargeException", _) => {
            "the session policy is too long: give the target a shorter spec.s3.prefix, or its sessions fewer tags"
        }
        ("MalformedPolicyDocument" | "MalformedPolicyDocumentException", _) => {
            "this server does not take our session policy: report it, and set mode: Static until then"
        }
        ("RegionDisabledException", _) => "activate STS in this region, or set credentials.stsEndpoint",
        ("ValidationError" | "InvalidParameterValue" | "InvalidParameterCombination" | "MissingParameter", _) => {
            "correct credentials.roleArn; the role must allow sessions of an hour"
        }
        ("NoSuchEntity" | "NoSuchRole", _) => "correct credentials.roleArn: there is no such role",
        ("NotImplemented" | "MethodNotAllowed" | "InvalidAction" | "NoSuchBucket" | "NoSuchKey" | "", _)
        | ("STSNotInitialized", _)
        | (_, 404 | 405 | 501) => "no STS answers there: set credentials.stsEndpoint to one, or mode: Static",
        _ => "correct credentials.roleArn, credentials.stsEndpoint and the secret",
    }
}

fn refused(endpoint: &str, seen: String) -> StoreError {
    let kind = ErrorKind::Refused(FailureReason::SessionRefused);
    StoreError::new(kind, ACTION, format!("at {endpoint}"), seen)
}

fn away(endpoint: &str, seen: &str) -> StoreError {
    let cure = "no session is given without it: check credentials.stsEndpoint and the network between";
    StoreError::new(ErrorKind::Unavailable, ACTION, format!("at {endpoint}"), format!("{seen}; {cure}"))
}

/// Text of the first element of that name. Enough for an answer whose every element has text only, or others.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let plain = text.trim().replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#34;", "\"");
    Some(plain.replace("&apos;", "'").replace("&#39;", "'").replace("&amp;", "&"))
}

#[cfg(test)]
mod tests;
