//! The credential secret of a target, in Longhorn's keys, and what is true where spec and secret both speak.
//!
//! A Longhorn secret works unchanged. Every complaint about a secret is collected before it is refused, so that a
//! person mends it once. Where both say the same setting, spec wins and a note tells; a value of the secret is never
//! printed, only its key.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;

use super::{
    common::{InvalidField, non_empty},
    target::{EncryptionAlgorithm, EncryptionSpec, S3Spec},
};
use crate::model::{
    BackupName, Credentials, VolumeName,
    job::{Proxy, S3Location, ServerSideEncryption},
};

pub const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
pub const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
pub const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";
pub const ENDPOINTS: &str = "AWS_ENDPOINTS";
pub const CERT: &str = "AWS_CERT";
pub const VIRTUAL_HOSTED_STYLE: &str = "VIRTUAL_HOSTED_STYLE";
pub const IAM_ROLE_ARN: &str = "AWS_IAM_ROLE_ARN";

pub const HTTP_PROXY: &str = "HTTP_PROXY";
pub const HTTPS_PROXY: &str = "HTTPS_PROXY";
pub const NO_PROXY: &str = "NO_PROXY";

/// Keys Longhorn acts on and we do not: leaving them out in silence would look like a network fault.
const IGNORED: [&str; 1] = ["AWS_SIGN_ACCEPT_ENCODING"];

/// What a credential secret says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SecretSettings {
    pub credentials: Credentials,
    pub endpoint: Option<String>,
    pub ca_bundle: Option<String>,
    pub virtual_hosted_style: Option<bool>,
    pub role_arn: Option<String>,
    /// For stores that are reached by HTTP, and for those by HTTPS.
    pub http_proxy: Option<Proxy>,
    pub https_proxy: Option<Proxy>,
    /// Keys that are there and have no effect.
    pub ignored: Vec<&'static str>,
}

/// A secret that cannot be used: every complaint, each naming its key and the cure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", complaints.join("; "))]
pub struct InvalidSecret {
    pub complaints: Vec<String>,
}

impl SecretSettings {
    /// Reads the `data` of a Secret.
    pub fn parse(data: &BTreeMap<String, ByteString>) -> Result<Self, InvalidSecret> {
        let mut reader = Reader { data, complaints: Vec::new() };
        let access_key_id = reader.required(ACCESS_KEY_ID);
        let secret_access_key = reader.required(SECRET_ACCESS_KEY);
        let session_token = reader.value(SESSION_TOKEN);
        let endpoint = reader.value(ENDPOINTS).filter(|value| reader.is_url(ENDPOINTS, value));
        let ca_bundle = reader.certificate(CERT);
        let virtual_hosted_style = reader.boolean(VIRTUAL_HOSTED_STYLE);
        let role_arn = reader.value(IAM_ROLE_ARN);
        let http_proxy = reader.proxy(HTTP_PROXY);
        let https_proxy = reader.proxy(HTTPS_PROXY);
        let ignored =
            IGNORED.into_iter().filter(|key| data.get(*key).is_some_and(|value| !value.0.is_empty())).collect();
        match reader.complaints {
            complaints if complaints.is_empty() => Ok(Self {
                credentials: Credentials { access_key_id, secret_access_key, session_token },
                endpoint,
                ca_bundle,
                virtual_hosted_style,
                role_arn,
                http_proxy,
                https_proxy,
                ignored,
            }),
            complaints => Err(InvalidSecret { complaints }),
        }
    }
}

struct Reader<'a> {
    data: &'a BTreeMap<String, ByteString>,
    complaints: Vec<String>,
}

impl Reader<'_> {
    fn complain(&mut self, complaint: String) {
        self.complaints.push(complaint);
    }

    /// The text under a key; an empty one counts as absent.
    fn text(&mut self, key: &str) -> Option<String> {
        let bytes = &self.data.get(key)?.0;
        match std::str::from_utf8(bytes) {
            Ok("") => None,
            Ok(text) => Some(text.to_owned()),
            Err(_) => {
                self.complain(format!("{key} is not UTF-8 text: encode the plain value once, in base64"));
                None
            }
        }
    }

    /// A one-line value. Blanks around it are refused as Longhorn refuses them: the store would answer a wrong signature.
    fn value(&mut self, key: &str) -> Option<String> {
        let text = self.text(key)?;
        if text.trim() != text || text.contains(['\n', '\r']) {
            self.complain(format!(
                "{key} has a blank or newline at its start or end, or in it: write it again without (printf, not echo)"
            ));
            return None;
        }
        Some(text)
    }

    fn required(&mut self, key: &str) -> String {
        let complaints_before = self.complaints.len();
        match self.value(key) {
            Some(value) => value,
            None => {
                if self.complaints.len() == complaints_before {
                    self.complain(format!("{key} is missing: add it to the secret"));
                }
                String::new()
            }
        }
    }

    fn is_url(&mut self, key: &str, value: &str) -> bool {
        let complaint = match is_http_url(value) {
            true => return true,
            false if value.contains(',') => format!("{key} names several URLs: write one"),
            false => format!("{key} is not a URL: write it as https://s3.example.com"),
        };
        self.complain(complaint);
        false
    }

    /// Its value is never told: it may hold a password.
    fn proxy(&mut self, key: &str) -> Option<Proxy> {
        let value = self.value(key)?;
        let except = self.value(NO_PROXY);
        let proxy = Proxy::parse(&value, except);
        if proxy.is_none() {
            self.complain(format!("{key} is not a proxy's URL: write it as http://proxy.example.com:3128"));
        }
        proxy
    }

    /// PEM ends with a newline by nature, so blanks around it are no fault.
    fn certificate(&mut self, key: &str) -> Option<String> {
        let text = self.text(key)?;
        if text.contains(PEM_HEADER) {
            return Some(text);
        }
        self.complain(format!("{key} is not a PEM certificate: it has no line {PEM_HEADER}"));
        None
    }

    fn boolean(&mut self, key: &str) -> Option<bool> {
        match self.value(key)?.as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => {
                self.complain(format!("{key} is neither true nor false: write one of them"));
                None
            }
        }
    }
}

const PEM_HEADER: &str = "-----BEGIN CERTIFICATE-----";

/// A scheme we speak and a host after it; no credentials, which would be written into logs.
fn is_http_url(value: &str) -> bool {
    let rest = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://"));
    let host = rest.and_then(|rest| rest.split('/').next()).unwrap_or("");
    !host.is_empty() && !value.contains(|c: char| c.is_whitespace() || matches!(c, ',' | '@' | '?' | '#'))
}

/// Where the store is, and what a person should know about how that was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedLocation {
    pub location: S3Location,
    /// Settings of the secret that have no effect, each as a sentence for a condition.
    pub notes: Vec<String>,
}

impl S3Spec {
    /// Spec over secret: what the spec says is used, and what the secret says otherwise is told.
    ///
    /// `conditional_writes` is what the target's probe found (false before it ran).
    pub fn resolve(&self, secret: &SecretSettings, conditional_writes: bool) -> Result<ResolvedLocation, InvalidField> {
        let mut notes: Vec<String> =
            secret.ignored.iter().map(|key| format!("{key} in the secret has no effect: leave it out")).collect();
        let mut overridden = |key: &str, field: &str| {
            notes.push(format!("{key} in the secret has no effect: spec.s3.{field} says otherwise and wins"));
        };

        let spec_endpoint = non_empty(self.endpoint.as_ref());
        if is_overridden(spec_endpoint.as_deref().map(no_slash), secret.endpoint.as_deref().map(no_slash)) {
            overridden(ENDPOINTS, "endpoint");
        }
        let spec_bundle = non_empty(self.ca_bundle.as_ref());
        if is_overridden(spec_bundle.as_deref().map(str::trim), secret.ca_bundle.as_deref().map(str::trim)) {
            overridden(CERT, "caBundle");
        }
        let secret_path_style = secret.virtual_hosted_style.map(|virtual_hosted| !virtual_hosted);
        if is_overridden(self.force_path_style, secret_path_style) {
            overridden(VIRTUAL_HOSTED_STYLE, "forcePathStyle");
        }

        let endpoint = spec_endpoint.or_else(|| secret.endpoint.clone());
        let force_path_style = self.force_path_style.or(secret_path_style).unwrap_or(endpoint.is_some());
        let proxy = match Proxy::is_for_https(endpoint.as_deref()) {
            true => secret.https_proxy.clone(),
            false => secret.http_proxy.clone(),
        };
        let location = S3Location {
            bucket: self.parse_bucket()?,
            prefix: self.parse_prefix()?,
            region: self.parse_region()?,
            endpoint: endpoint.map(|url| parse_endpoint(&url)).transpose()?,
            force_path_style,
            ca_bundle: spec_bundle.or_else(|| secret.ca_bundle.clone()),
            proxy: proxy.map(Box::new),
            storage_class: self.parse_storage_class()?,
            server_side_encryption: self.server_side_encryption.as_ref().map_or(Ok(None), EncryptionSpec::parse)?,
            conditional_writes,
            batch_delete: false,
        };
        Ok(ResolvedLocation { location, notes })
    }

    fn parse_bucket(&self) -> Result<String, InvalidField> {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
        match (3..=63).contains(&self.bucket.len()) && self.bucket.chars().all(is_plain) {
            true => Ok(self.bucket.clone()),
            false => Err(InvalidField::new(
                "spec.s3.bucket",
                "write the bucket's bare name, e.g. backups: 3 to 63 lower-case letters, digits, dots or hyphens",
            )),
        }
    }

    fn parse_prefix(&self) -> Result<String, InvalidField> {
        let prefix = self.prefix.as_str();
        let is_path = !prefix.starts_with('/')
            && !prefix.contains("//")
            && !prefix.split('/').any(|part| matches!(part, "." | ".."));
        match prefix.is_empty() || (prefix.ends_with('/') && is_path) {
            true => Ok(prefix.to_owned()),
            false => Err(InvalidField::new(
                "spec.s3.prefix",
                "leave it empty or write a path that ends with '/', e.g. prod/",
            )),
        }
    }

    fn parse_region(&self) -> Result<String, InvalidField> {
        match self.region.trim() {
            "" => Err(InvalidField::new(
                "spec.s3.region",
                "is empty: write the bucket's region, or us-east-1 for servers without regions",
            )),
            region => Ok(region.to_owned()),
        }
    }

    fn parse_storage_class(&self) -> Result<Option<String>, InvalidField> {
        let class = non_empty(self.storage_class.as_ref());
        match class.as_deref().map(str::to_ascii_uppercase).as_deref() {
            Some("GLACIER" | "DEEP_ARCHIVE") => Err(InvalidField::new(
                "spec.s3.storageClass",
                "an archive class cannot be read at once: write STANDARD, STANDARD_IA or GLACIER_IR, or leave it empty",
            )),
            _ => Ok(class),
        }
    }
}

impl EncryptionSpec {
    fn parse(&self) -> Result<Option<ServerSideEncryption>, InvalidField> {
        let kms_key_id = Some(self.kms_key_id.clone()).filter(|key| !key.is_empty());
        let algorithm = match self.algorithm {
            EncryptionAlgorithm::AwsKms => {
                return Ok(Some(ServerSideEncryption { algorithm: "aws:kms".into(), kms_key_id }));
            }
            EncryptionAlgorithm::Aes256 => Some("AES256"),
            EncryptionAlgorithm::BucketDefault => None,
        };
        if kms_key_id.is_some() {
            return Err(InvalidField::new("spec.s3.serverSideEncryption.kmsKeyID", "needs algorithm: aws:kms"));
        }
        Ok(algorithm.map(|algorithm| ServerSideEncryption { algorithm: algorithm.into(), kms_key_id: None }))
    }
}

/// Both speak, and not with one voice.
fn is_overridden<T: PartialEq>(spec: Option<T>, secret: Option<T>) -> bool {
    matches!((spec, secret), (Some(spec), Some(secret)) if spec != secret)
}

fn no_slash(url: &str) -> &str {
    url.trim_end_matches('/')
}

fn parse_endpoint(url: &str) -> Result<String, InvalidField> {
    match is_http_url(url) {
        true => Ok(no_slash(url).to_owned()),
        false => Err(InvalidField::new(
            "spec.s3.endpoint",
            "write a URL such as https://s3.example.com:9000, without credentials or query",
        )),
    }
}

/// The line that Longhorn and `tidemark restore` take for one backup.
pub fn backup_url(location: &S3Location, volume: &VolumeName, backup: &BackupName) -> String {
    let S3Location { bucket, region, prefix, .. } = location;
    format!("s3://{bucket}@{region}/{prefix}?backup={backup}&volume={volume}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(entries: &[(&str, &str)]) -> BTreeMap<String, ByteString> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec()))).collect()
    }

    const KEYS: [(&str, &str); 2] = [(ACCESS_KEY_ID, "AKIA"), (SECRET_ACCESS_KEY, "hush")];

    fn with(more: &[(&str, &str)]) -> BTreeMap<String, ByteString> {
        data(&[&KEYS, more].concat())
    }

    fn spec() -> S3Spec {
        S3Spec { bucket: "backups".into(), prefix: "prod/".into(), region: "eu-central-1".into(), ..S3Spec::default() }
    }

    #[test]
    fn a_longhorn_secret_works_unchanged() {
        let pem = format!("{PEM_HEADER}\nAA==\n-----END CERTIFICATE-----\n");
        let secret = with(&[
            (ENDPOINTS, "https://minio:9000/"),
            (CERT, &pem),
            (VIRTUAL_HOSTED_STYLE, "true"),
            (HTTPS_PROXY, "http://proxy:3128/"),
            (HTTP_PROXY, "other:3128"),
            (NO_PROXY, ".internal,10.0.0.0/8"),
        ]);
        let settings = SecretSettings::parse(&secret).expect("a good secret");
        let resolved = spec().resolve(&settings, true).expect("a good spec");
        let location = S3Location {
            bucket: "backups".into(),
            prefix: "prod/".into(),
            region: "eu-central-1".into(),
            endpoint: Some("https://minio:9000".into()),
            force_path_style: false,
            ca_bundle: Some(pem),
            proxy: Proxy::parse("http://proxy:3128", Some(".internal,10.0.0.0/8".into())).map(Box::new),
            storage_class: None,
            server_side_encryption: None,
            conditional_writes: true,
            batch_delete: false,
        };
        assert_eq!(resolved, ResolvedLocation { location, notes: vec![] });
    }

    #[test]
    fn the_proxy_is_that_of_the_endpoints_scheme_and_its_password_is_never_shown() {
        let secret = with(&[(HTTP_PROXY, "http://me:hush@plain:3128"), (HTTPS_PROXY, "tunnel:3128")]);
        let settings = SecretSettings::parse(&secret).expect("a good secret");
        assert!(!format!("{settings:?}").contains("hush"), "{settings:?}");
        for (endpoint, expected) in [
            (None, "http://tunnel:3128"),
            (Some("https://s3:9000"), "http://tunnel:3128"),
            (Some("http://s3:9000"), "http://me:hush@plain:3128"),
        ] {
            let spec = S3Spec { endpoint: endpoint.map(str::to_owned), ..spec() };
            let location = spec.resolve(&settings, true).expect("good").location;
            assert_eq!(location.proxy.as_ref().map(|p| p.url.as_str()), Some(expected), "{endpoint:?}");
            assert!(!format!("{location:?}").contains("hush"));
        }
        for bad in ["ftp://hush", "http://", "http://hush/b", "http://hush,http://b", "socks5://hush:1"] {
            let error = SecretSettings::parse(&with(&[(HTTPS_PROXY, bad)])).expect_err(bad).to_string();
            assert!(error.starts_with("HTTPS_PROXY is not a proxy's URL") && !error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn path_style_follows_the_endpoint_unless_somebody_says_otherwise() {
        for (endpoint, spec_says, secret_says, expected) in [
            (None, None, None, false),
            (Some("http://s3:9000"), None, None, true),
            (Some("http://s3:9000"), None, Some(true), false),
            (None, None, Some(false), true),
            (Some("http://s3:9000"), Some(false), Some(false), false),
            (None, Some(true), None, true),
        ] {
            let spec = S3Spec { endpoint: endpoint.map(str::to_owned), force_path_style: spec_says, ..spec() };
            let secret = SecretSettings { virtual_hosted_style: secret_says, ..SecretSettings::default() };
            let resolved = spec.resolve(&secret, false).expect("good");
            assert_eq!(resolved.location.force_path_style, expected, "{endpoint:?} {spec_says:?} {secret_says:?}");
        }
    }

    #[test]
    fn spec_wins_over_the_secret_and_every_contradiction_is_told() {
        let secret = SecretSettings {
            endpoint: Some("https://old".into()),
            ca_bundle: Some("a".into()),
            virtual_hosted_style: Some(true),
            ignored: vec!["AWS_SIGN_ACCEPT_ENCODING"],
            ..SecretSettings::default()
        };
        let bundle = Some("b".to_owned());
        let wanted = S3Spec {
            endpoint: Some("https://new".into()),
            ca_bundle: bundle.clone(),
            force_path_style: Some(true),
            ..spec()
        };
        let resolved = wanted.resolve(&secret, false).expect("good");
        assert_eq!(resolved.location.endpoint.as_deref(), Some("https://new"));
        assert_eq!((resolved.location.ca_bundle, resolved.location.force_path_style), (bundle, true));
        let told: Vec<&str> = resolved.notes.iter().map(|note| note.split(' ').next().unwrap_or("")).collect();
        assert_eq!(told, ["AWS_SIGN_ACCEPT_ENCODING", ENDPOINTS, CERT, VIRTUAL_HOSTED_STYLE], "{:?}", resolved.notes);
        let same = S3Spec { endpoint: Some("https://old/".into()), ..spec() };
        let quiet = SecretSettings { ignored: vec![], ..secret };
        assert_eq!(
            same.resolve(&quiet, false).expect("good").notes,
            Vec::<String>::new(),
            "the same is no contradiction"
        );
    }

    #[test]
    fn every_complaint_about_a_secret_names_its_key_and_never_its_value() {
        let bad = data(&[
            (SECRET_ACCESS_KEY, "hush\n"),
            (ENDPOINTS, "minio:9000"),
            (CERT, "TUlJ"),
            (VIRTUAL_HOSTED_STYLE, "yes"),
        ]);
        let error = SecretSettings::parse(&bad).expect_err("a bad secret");
        let keys: Vec<&str> = error.complaints.iter().map(|c| c.split(' ').next().unwrap_or("")).collect();
        assert_eq!(keys, [ACCESS_KEY_ID, SECRET_ACCESS_KEY, ENDPOINTS, CERT, VIRTUAL_HOSTED_STYLE], "{error}");
        for value in ["hush", "minio", "TUlJ", "yes"] {
            assert!(!error.to_string().contains(value), "{error}");
        }
        for blank in [" AKIA", "AKIA ", "\tAKIA", "AK\nIA"] {
            let error =
                SecretSettings::parse(&data(&[(ACCESS_KEY_ID, blank), KEYS[1]])).expect_err("blanks").to_string();
            assert!(error.starts_with("AWS_ACCESS_KEY_ID has a blank or newline"), "{error}");
        }
        let debug = format!("{:?}", SecretSettings::parse(&with(&[])));
        assert!(!debug.contains("hush") && !debug.contains("AKIA"), "{debug}");
    }

    #[test]
    fn a_location_that_cannot_be_used_names_its_field() {
        let some = |text: &str| Some(text.to_owned());
        let kms = EncryptionSpec { kms_key_id: "k".into(), ..EncryptionSpec::default() };
        for (spec, field) in [
            (S3Spec { bucket: "s3://x".into(), ..spec() }, "spec.s3.bucket"),
            (S3Spec { prefix: "prod".into(), ..spec() }, "spec.s3.prefix"),
            (S3Spec { prefix: "/".into(), ..spec() }, "spec.s3.prefix"),
            (S3Spec { prefix: "a/../".into(), ..spec() }, "spec.s3.prefix"),
            (S3Spec { region: " ".into(), ..spec() }, "spec.s3.region"),
            (S3Spec { endpoint: some("https://u:p@s3"), ..spec() }, "spec.s3.endpoint"),
            (S3Spec { storage_class: some("glacier"), ..spec() }, "spec.s3.storageClass"),
            (S3Spec { server_side_encryption: Some(kms), ..spec() }, "spec.s3.serverSideEncryption.kmsKeyID"),
        ] {
            let error = spec.resolve(&SecretSettings::default(), false).expect_err(field);
            assert_eq!(error.field, field, "{error}");
        }
    }
}
