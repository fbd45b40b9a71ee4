//! STS and what follows from it, for the S3 server of this process: `AssumeRole` by a signed form, and each request of a
//! session judged by that session's policy before the file system sees it. No server with STS that could be had here is as
//! strict: the signature is computed anew from the request's own bytes, the token must be signed and be the session's, a
//! policy is evaluated (`iam`), and an object that is not there is `403` unless a LIST of anything would be allowed, which
//! is how AWS answers under a condition on the prefix.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use aws_lc_rs::{digest, hmac};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming};
use s3s::service::S3Service;
use tidemark::telemetry;

use super::{
    faults::Kind,
    iam::{Policy, Wish},
    s3_backend::Keys,
    s3_server::LoggedRequest,
};

/// The sessions of one server, and whom it gives any.
#[derive(Clone)]
pub struct Sts {
    keys: Keys,
    state: Arc<Mutex<State>>,
}

struct State {
    service: Service,
    sessions: HashMap<String, Issued>,
}

/// How STS answers.
#[derive(Debug, Clone)]
pub enum Service {
    /// There is none: the path is S3's.
    None,
    /// Sessions, for this role only if one is named, and none that live longer than this.
    Sessions { role: Option<String>, lifetime_max: Duration },
    /// Sessions whose policy is not looked at, as some servers do it.
    Unscoped,
    /// This answer, whoever asks.
    Refuses { status: u16, code: &'static str },
}

#[derive(Debug, Clone)]
struct Issued {
    token: String,
    policy: Option<Policy>,
    expires: jiff::Timestamp,
    form: HashMap<String, String>,
}

/// An answer of ours: status, document.
pub type Answer = (u16, String);

impl Sts {
    pub(super) fn new(keys: Keys) -> Self {
        Self { keys, state: Arc::new(Mutex::new(State { service: Service::None, sessions: HashMap::new() })) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    pub fn serve(&self, service: Service) {
        self.state().service = service;
    }

    /// Ends every session that was given out so far, but this one.
    pub fn expire_but(&self, access_key: &str) {
        let now = telemetry::now();
        let mut state = self.state();
        let others = state.sessions.iter_mut().filter(|(key, _)| *key != access_key);
        others.for_each(|(_, session)| session.expires = now);
    }

    /// The forms with which sessions were asked for and given, by access key.
    pub fn given(&self) -> Vec<(String, HashMap<String, String>)> {
        self.state().sessions.iter().map(|(key, issued)| (key.clone(), issued.form.clone())).collect()
    }

    pub fn is_session(&self, access_key: &str) -> bool {
        self.state().sessions.contains_key(access_key)
    }

    /// Is a form posted to the root for us?
    pub(super) fn is_there(&self) -> bool {
        !matches!(self.state().service, Service::None)
    }

    /// `AssumeRole`.
    fn answer(&self, headers: &HeaderMap, host_path: (&str, &str), body: &[u8]) -> Answer {
        let service = self.state().service.clone();
        if let Service::Refuses { status, code } = service {
            return error(status, code, "The test server was told to");
        }
        let signed = Signed { headers, host: host_path.0, path: host_path.1, body };
        if let Err((code, why)) = signed.verify(&self.keys) {
            return error(403, code, &why);
        }
        let form: HashMap<String, String> = String::from_utf8_lossy(body)
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (super::percent_decoded(key), super::percent_decoded(value)))
            .collect();
        let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        if (field("Action"), field("Version")) != ("AssumeRole", "2011-06-15") {
            return error(400, "InvalidAction", "Could not find the operation");
        }
        let (role, lifetime_max) = match service {
            Service::Sessions { role, lifetime_max } => (role, lifetime_max),
            _ => (None, Duration::from_secs(3600)),
        };
        if role.as_deref().is_some_and(|role| role != field("RoleArn")) {
            let why =
                format!("User: test is not authorized to perform: sts:AssumeRole on resource: {}", field("RoleArn"));
            return error(403, "AccessDenied", &why);
        }
        let seconds: u64 = field("DurationSeconds").parse().unwrap_or(0);
        let name = field("RoleSessionName");
        let is_name = (2..=64).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b));
        if !(900..=43200).contains(&seconds) || !is_name || field("Policy").len() > 2048 {
            return error(400, "ValidationError", "1 validation error detected");
        }
        let policy = match Policy::parse(field("Policy")) {
            Ok(policy) => policy,
            Err(why) => return error(400, "MalformedPolicyDocument", &why),
        };
        let policy = (!matches!(self.state().service, Service::Unscoped)).then_some(policy);
        self.issue(policy, Duration::from_secs(seconds).min(lifetime_max), form)
    }

    fn issue(&self, policy: Option<Policy>, lifetime: Duration, form: HashMap<String, String>) -> Answer {
        let key = format!("ASIA{}", random().to_uppercase());
        let (secret, token) = (random(), format!("{}/+=={}", random(), random()));
        let lifetime = jiff::SignedDuration::try_from(lifetime).expect("hours");
        let expires = telemetry::now() + lifetime;
        self.keys.add(&key, &secret);
        self.state().sessions.insert(key.clone(), Issued { token: token.clone(), policy, expires, form });
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><AssumedRoleUser><Arn>arn:aws:sts::0:assumed-role/r/s</Arn><AssumedRoleId>A:s</AssumedRoleId></AssumedRoleUser><Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken>{token}</SessionToken><Expiration>{expires}</Expiration></Credentials></AssumeRoleResult><ResponseMetadata><RequestId>0</RequestId></ResponseMetadata></AssumeRoleResponse>\n"
        );
        (200, text)
    }

    /// May this session do this? `None`: it is no session, or it may.
    fn judge(&self, access_key: &str, request: &Asked<'_>) -> Option<Answer> {
        let issued = self.state().sessions.get(access_key).cloned()?;
        let header = |name: &str| request.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let is_signed = header("authorization").contains("x-amz-security-token");
        if header("x-amz-security-token") != issued.token || !is_signed {
            return Some(error(403, "InvalidToken", "The token is not this session's, or was not signed"));
        }
        if telemetry::now() >= issued.expires {
            return Some(error(400, "ExpiredToken", "The provided token has expired."));
        }
        let policy = issued.policy?;
        let refused = request.wishes().into_iter().find(|(action, resource)| {
            let prefix = request.prefix.map(|prefix| ("s3:prefix", prefix));
            !policy.allows(Wish { action, resource, context: prefix.as_slice() })
        });
        refused.map(|(action, resource)| {
            error(403, "AccessDenied", &format!("the session policy does not allow {action} on {resource}"))
        })
    }

    /// Is this session told that an object is not there? Only if it may list, and a GET has no prefix to say what.
    fn may_know(&self, access_key: &str, bucket: &str) -> bool {
        let Some(issued) = self.state().sessions.get(access_key).cloned() else { return true };
        let resource = format!("arn:aws:s3:::{bucket}");
        issued
            .policy
            .is_none_or(|policy| policy.allows(Wish { action: "s3:ListBucket", resource: &resource, context: &[] }))
    }
}

/// A form for STS, or a request of a session, which reaches the service only if the session's policy allows it. `None`: the
/// connection broke.
pub(super) async fn perform(
    request: Request<Incoming>,
    entry: &LoggedRequest,
    (sts, service): (&Sts, &S3Service),
) -> Option<Result<Response<s3s::Body>, Answer>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    if entry.bucket.is_empty() && entry.method == "POST" {
        let host = parts.headers.get("host").and_then(|v| v.to_str().ok()).unwrap_or_default();
        return Some(Err(sts.answer(&parts.headers, (host, parts.uri.path()), &body)));
    }
    let prefix = entry.query.split('&').any(|q| q.starts_with("prefix=")).then_some(entry.key.as_str());
    let text = if entry.kind == Kind::DeleteBatch { String::from_utf8_lossy(&body) } else { "".into() };
    let asked = Asked { entry, prefix, headers: &parts.headers, body: &text };
    if let Some(refused) = sts.judge(&entry.access_key, &asked) {
        return Some(Err(refused));
    }
    let response = service.call(Request::from_parts(parts, s3s::Body::from(body))).await.ok()?;
    let is_missing = response.status().as_u16() == 404 && matches!(entry.kind, Kind::Get | Kind::Head);
    if is_missing && !sts.may_know(&entry.access_key, &entry.bucket) {
        return Some(Err(error(403, "AccessDenied", "Access Denied")));
    }
    Some(Ok(response))
}

/// One S3 request of a session.
struct Asked<'a> {
    entry: &'a LoggedRequest,
    /// Of a LIST, if it has one.
    prefix: Option<&'a str>,
    headers: &'a HeaderMap,
    /// Of a batch.
    body: &'a str,
}

impl Asked<'_> {
    /// Actions and resources that must all be allowed. What is not known here is an action that nothing allows.
    fn wishes(&self) -> Vec<(&'static str, String)> {
        let LoggedRequest { kind, bucket, key, query, .. } = self.entry;
        let object = |key: &str| format!("arn:aws:s3:::{bucket}/{key}");
        let is_known = |q: &str| q.is_empty() || q.starts_with("x-id=");
        if self.headers.contains_key("x-amz-copy-source") {
            return vec![("s3:Copy", object(key))];
        }
        match kind {
            Kind::List => vec![("s3:ListBucket", format!("arn:aws:s3:::{bucket}"))],
            Kind::DeleteBatch => {
                let keys = self.body.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
                keys.map(|key| ("s3:DeleteObject", object(key))).collect()
            }
            _ if !query.split('&').all(is_known) => vec![("s3:Other", object(key))],
            Kind::PutBlock | Kind::PutOther => vec![("s3:PutObject", object(key))],
            Kind::Get => vec![("s3:GetObject", object(key))],
            Kind::Head if key.is_empty() => vec![("s3:HeadBucket", object(""))],
            Kind::Head => vec![("s3:GetObject", object(key))],
            Kind::Delete => vec![("s3:DeleteObject", object(key))],
            Kind::Other => vec![("s3:Other", object(key))],
        }
    }
}

/// A request that says that it is signed with version 4 for `sts`.
struct Signed<'a> {
    headers: &'a HeaderMap,
    host: &'a str,
    path: &'a str,
    body: &'a [u8],
}

impl Signed<'_> {
    fn header(&self, name: &str) -> &str {
        match name {
            "host" => self.host,
            name => self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default(),
        }
    }

    /// The signature, computed from what came (AWS "Signature Version 4 signing process").
    fn verify(&self, keys: &Keys) -> Result<(), (&'static str, String)> {
        let incomplete = |what: &str| ("IncompleteSignature", format!("{what}: {}", self.header("authorization")));
        let said = self.header("authorization");
        let said = said.strip_prefix("AWS4-HMAC-SHA256 ").ok_or_else(|| incomplete("no version 4"))?;
        let part = |name: &str| {
            let found = said.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
            found.ok_or_else(|| incomplete(name))
        };
        let (credential, names, signature) = (part("Credential")?, part("SignedHeaders")?, part("Signature")?);
        let words: Vec<&str> = credential.split('/').collect();
        let [access_key, day, region, "sts", "aws4_request"] = words[..] else {
            return Err(("SignatureDoesNotMatch", format!("Credential should be scoped to sts: {credential}")));
        };
        let secret = keys.secret(access_key).ok_or(("InvalidClientTokenId", "The token is invalid".to_owned()))?;
        let time = self.header("x-amz-date");
        let sent = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).map_err(|_| incomplete("x-amz-date"))?;
        let sent = sent.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| incomplete("x-amz-date"))?.timestamp();
        if telemetry::now().duration_since(sent).abs() > jiff::SignedDuration::from_mins(15) || !time.starts_with(day) {
            return Err(("RequestExpired", format!("Signature of {time}")));
        }
        let names: Vec<&str> = names.split(';').collect();
        if !names.contains(&"host") || !names.contains(&"x-amz-date") {
            return Err(incomplete("host and x-amz-date must be signed"));
        }
        let lines: String = names.iter().map(|name| format!("{name}:{}\n", self.header(name).trim())).collect();
        let payload = hexadecimal(digest::digest(&digest::SHA256, self.body).as_ref());
        let request = format!("POST\n{}\n\n{lines}\n{}\n{payload}", self.path, names.join(";"));
        let hashed = hexadecimal(digest::digest(&digest::SHA256, request.as_bytes()).as_ref());
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{day}/{region}/sts/aws4_request\n{hashed}");
        let mut key = format!("AWS4{secret}").into_bytes();
        for word in [day, region, "sts", "aws4_request", &text] {
            key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), word.as_bytes()).as_ref().to_vec();
        }
        match hexadecimal(&key) == signature {
            true => Ok(()),
            false => Err(("SignatureDoesNotMatch", "The signature is not that of this request".to_owned())),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn random() -> String {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the machine has random numbers");
    hexadecimal(&bytes)
}

/// As STS writes it; S3's differs by the wrapping element, and its readers take both.
fn error(status: u16, code: &str, message: &str) -> Answer {
    let message = message.replace('&', "&amp;").replace('<', "&lt;");
    (status, format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>"))
}
