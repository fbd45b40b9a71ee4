//! Where the backupstore is: a URL as Longhorn writes it or a plain directory, completed by flags and variables.
//!
//! `s3://bucket@region/prefix/`, `s3://bucket/prefix/`, `file:///dir`, `/dir`, `dir`; one backup adds
//! `?backup=NAME&volume=NAME`. A flag wins over the URL's silence and over a variable; a flag that contradicts the URL
//! is refused. Nothing is sent from here.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{CliError, environment};
use crate::{
    api::common::DurationText,
    model::{
        Credentials, StoreLocation,
        job::{Proxy, S3Location},
        limits,
    },
    store::{self, client::Client, credentials::CredentialSource, objects::Objects, record::RecordId},
};

/// The region of stores that have none, when an endpoint is given.
const REGION_ELSEWHERE: &str = "us-east-1";

/// Flags that say how to reach a store.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Store")]
pub(super) struct StoreOptions {
    /// URL of an S3 server that is not AWS, such as https://minio:9000
    #[arg(long, value_name = "URL", env = "AWS_ENDPOINTS")]
    pub endpoint: Option<String>,
    /// Region, if the target's URL does not name it [env: AWS_REGION, AWS_DEFAULT_REGION]
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,
    /// PEM file of certificates to trust beside the system's [env: AWS_CERT, the PEM text itself]
    #[arg(long, value_name = "FILE")]
    pub ca_bundle: Option<PathBuf>,
    /// Give up when the store acknowledges nothing for so long while a request is outstanding
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_stall)]
    pub stall: Duration,
}

/// The shortest stall: below it a slow answer is taken for none.
const STALL_MIN: Duration = Duration::from_secs(1);

fn parse_stall(text: &str) -> Result<Duration, String> {
    let stall = DurationText::new(text).parse("--stall").map_err(|_| "write it as 90s, 10m or 1h30m".to_owned())?;
    match stall >= STALL_MIN {
        true => Ok(stall),
        false => Err("it must be 1s at least".into()),
    }
}

/// A target or one backup in it, as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TargetUrl {
    place: Place,
    pub(super) record: Option<RecordId>,
}

impl TargetUrl {
    /// The backup that it must name.
    pub(super) fn backup(&self) -> Result<RecordId, CliError> {
        self.record.clone().ok_or_else(|| {
            CliError::usage(
                "The URL names a target, not a backup: add ?backup=NAME&volume=NAME (`tidemark ls TARGET` prints them)",
            )
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    S3 { bucket: String, region: Option<String>, prefix: String },
    Directory(PathBuf),
}

impl std::str::FromStr for TargetUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("s3://") {
            let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
            return Ok(Self { place: parse_s3(rest)?, record: parse_query(query)? });
        }
        if let Some(rest) = text.strip_prefix("file://") {
            let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
            if !path.starts_with('/') {
                return Err("a file URL has three slashes and an absolute path: file:///mnt/backups".into());
            }
            return Ok(Self { place: Place::Directory(percent_decode(path)?.into()), record: parse_query(query)? });
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(format!(
                "{scheme}:// is not supported; write s3://bucket@region/prefix/, file:///dir, or a directory (mount NFS \
                 and CIFS shares and name their directory)"
            ));
        }
        // A directory's name may hold a question mark: only a real backup query is one.
        let (path, query) = match text.rsplit_once('?') {
            Some((path, query)) if query.contains("backup=") || query.contains("volume=") => (path, query),
            _ => (text, ""),
        };
        if path.is_empty() {
            return Err("the target is empty; write s3://bucket@region/prefix/ or a directory".into());
        }
        Ok(Self { place: Place::Directory(path.into()), record: parse_query(query)? })
    }
}

fn parse_s3(rest: &str) -> Result<Place, String> {
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (bucket, region) = match host.split_once('@') {
        Some((bucket, region)) => (bucket, Some(region)),
        None => (host, None),
    };
    let is_bucket = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_');
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(is_bucket) {
        return Err(format!(
            "bucket {bucket:?} is not 3 to 63 lower-case letters, digits, '-' and '.'; write s3://bucket@region/prefix/"
        ));
    }
    if let Some(region) = region
        && !is_region(region)
    {
        return Err(format!(
            "region {region:?} is not letters, digits and '-'; write s3://bucket@eu-central-1/prefix/"
        ));
    }
    // Longhorn joins with path-clean semantics: empty and `.` parts vanish.
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(format!("prefix {path:?} holds '..'; write the prefix itself"));
    }
    let prefix = parts.iter().map(|part| format!("{part}/")).collect();
    Ok(Place::S3 { bucket: bucket.to_owned(), region: region.map(str::to_owned), prefix })
}

fn is_region(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// `backup=…&volume=…` in any order; other options of a Longhorn URL are not ours.
fn parse_query(query: &str) -> Result<Option<RecordId>, String> {
    let value = |key: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(k, _)| *k == key).map(|(_, value)| value)
    };
    match (value("volume"), value("backup")) {
        (None, None) => Ok(None),
        (Some(volume), Some(backup)) => {
            let volume = volume.parse().map_err(|e: crate::model::ids::InvalidName| e.to_string())?;
            let backup = backup.parse().map_err(|e: crate::model::ids::InvalidName| e.to_string())?;
            Ok(Some(RecordId { volume, backup }))
        }
        _ => Err("the URL of a backup names both: ?backup=NAME&volume=NAME".into()),
    }
}

fn percent_decode(path: &str) -> Result<String, String> {
    let bad = || format!("{path:?} has a '%' that is not followed by two hex digits");
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, after @ ..] = rest {
        (bytes, rest) = match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                let mut byte = [0];
                hex::decode_to_slice([*high, *low], &mut byte).map_err(|_| bad())?;
                bytes.push(byte[0]);
                (bytes, after)
            }
            (b'%', _) => return Err(bad()),
            (other, after) => {
                bytes.push(*other);
                (bytes, after)
            }
        };
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

/// A store that can be opened, and how its backups are written down.
pub(super) struct Reach {
    pub(super) location: StoreLocation,
    pub(super) credentials: CredentialSource,
    url: TargetUrl,
}

impl Reach {
    /// Completes a target with flags and this process's environment.
    pub(super) fn new(url: &TargetUrl, options: &StoreOptions) -> Result<Self, CliError> {
        Self::with(url, options, &environment::read)
    }

    fn with(url: &TargetUrl, options: &StoreOptions, env: &Lookup) -> Result<Self, CliError> {
        let (location, credentials) = match &url.place {
            Place::Directory(path) => {
                let path =
                    std::path::absolute(path).map_err(|e| CliError::usage(format!("{}: {e}", path.display())))?;
                (StoreLocation::Directory { path }, CredentialSource::None)
            }
            Place::S3 { bucket, region, prefix } => {
                let location = S3Location { bucket: bucket.clone(), prefix: prefix.clone(), ..S3Location::default() };
                let location = complete(location, region.as_deref(), options, env)?;
                (StoreLocation::S3(location), CredentialSource::Given(credentials(env)?))
            }
        };
        Ok(Self { location, credentials, url: url.clone() })
    }

    pub(super) fn objects(&self) -> Result<Arc<dyn Objects>, CliError> {
        Ok(store::open(&self.location, self.credentials.clone())?)
    }

    /// For commands that only read.
    pub(super) fn client(&self, options: &StoreOptions) -> Result<Client, CliError> {
        Ok(Client::new(self.objects()?, options.stall, limits::TOTAL_DEFAULT))
    }

    /// What `restore` takes for one backup.
    pub(super) fn url_of(&self, record: &RecordId) -> String {
        let (volume, backup) = (&record.volume, &record.backup);
        match (&self.location, &self.url.place) {
            (StoreLocation::S3(s3), _) => {
                format!("s3://{}@{}/{}?backup={backup}&volume={volume}", s3.bucket, s3.region, s3.prefix)
            }
            (StoreLocation::Directory { path }, _) => {
                let escaped = path.display().to_string().replace('%', "%25").replace('?', "%3F").replace(' ', "%20");
                format!("file://{escaped}?backup={backup}&volume={volume}")
            }
        }
    }
}

type Lookup = dyn Fn(&str) -> Option<String>;

fn complete(
    location: S3Location,
    url_region: Option<&str>,
    options: &StoreOptions,
    env: &Lookup,
) -> Result<S3Location, CliError> {
    let endpoint = options.endpoint.as_deref().filter(|e| !e.is_empty()).map(parse_endpoint).transpose()?;
    if let (Some(url), Some(flag)) = (url_region, options.region.as_deref())
        && url != flag
    {
        return Err(CliError::usage(format!(
            "The target's URL says region {url}, --region says {flag}: leave one out"
        )));
    }
    let asked = url_region.map(str::to_owned).or_else(|| options.region.clone());
    let region = asked.or_else(|| env("AWS_REGION")).or_else(|| env("AWS_DEFAULT_REGION"));
    let region = match (region, &endpoint) {
        (Some(region), _) if is_region(&region) => region,
        (Some(region), _) => return Err(CliError::usage(format!("Region {region:?} is not letters, digits and '-'"))),
        (None, Some(_)) => REGION_ELSEWHERE.to_owned(),
        (None, None) => {
            let message = format!(
                "The region of bucket {} is not known: write s3://{}@REGION/…, or set --region or AWS_REGION",
                location.bucket, location.bucket
            );
            return Err(CliError::usage(message));
        }
    };
    let force_path_style = match env("VIRTUAL_HOSTED_STYLE").as_deref() {
        None => endpoint.is_some(),
        Some("true") => false,
        Some("false") => true,
        Some(other) => {
            return Err(CliError::usage(format!(
                "VIRTUAL_HOSTED_STYLE is {other:?}: set it to true or false, or unset it"
            )));
        }
    };
    let ca_bundle = match &options.ca_bundle {
        Some(file) => Some(std::fs::read_to_string(file).map_err(|error| {
            CliError::usage(format!("--ca-bundle {}: {error}; name a file of PEM certificates", file.display()))
        })?),
        None => env("AWS_CERT"),
    };
    if ca_bundle.as_ref().is_some_and(|pem| !pem.contains("-----BEGIN CERTIFICATE-----")) {
        let source = if options.ca_bundle.is_some() { "--ca-bundle" } else { "AWS_CERT" };
        return Err(CliError::usage(format!("{source} holds no PEM certificate (-----BEGIN CERTIFICATE-----)")));
    }
    let proxy = proxy(endpoint.as_deref(), env)?.map(Box::new);
    Ok(S3Location { region, endpoint, force_path_style, ca_bundle, proxy, ..location })
}

/// As other programs have it: HTTPS_PROXY or HTTP_PROXY by the endpoint's scheme, in capitals or not.
fn proxy(endpoint: Option<&str>, env: &Lookup) -> Result<Option<Proxy>, CliError> {
    let either = |name: &str| env(name).or_else(|| env(&name.to_ascii_lowercase()));
    let name = if Proxy::is_for_https(endpoint) { "HTTPS_PROXY" } else { "HTTP_PROXY" };
    let Some(url) = either(name) else { return Ok(None) };
    match Proxy::parse(&url, either("NO_PROXY")) {
        Some(proxy) => Ok(Some(proxy)),
        None => Err(CliError::usage(format!("{name} is no proxy's URL: write it as http://proxy.example.com:3128"))),
    }
}

fn parse_endpoint(url: &str) -> Result<String, CliError> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = rest.unwrap_or_default().trim_end_matches('/');
    let is_plain = host.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '@' | '?' | '#' | ','));
    match !host.is_empty() && is_plain {
        true => Ok(url.trim_end_matches('/').to_owned()),
        false => Err(CliError::usage(format!(
            "Endpoint {url:?} (--endpoint or AWS_ENDPOINTS) is no URL such as https://minio:9000, without credentials"
        ))),
    }
}

/// Both keys or a message that names every missing one.
fn credentials(env: &Lookup) -> Result<Credentials, CliError> {
    let names = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let missing: Vec<&str> = names.into_iter().filter(|name| env(name).is_none()).collect();
    if !missing.is_empty() {
        return Err(CliError::usage(format!(
            "{} {} not set: export the access key of the bucket",
            missing.join(" and "),
            if missing.len() == 1 { "is" } else { "are" }
        )));
    }
    for name in names.into_iter().chain(["AWS_SESSION_TOKEN"]) {
        if env(name).is_some_and(|value| value.trim() != value || value.contains(char::is_whitespace)) {
            return Err(CliError::usage(format!(
                "{name} holds a blank or newline: set it again without (printf, not echo)"
            )));
        }
    }
    Ok(Credentials {
        access_key_id: env(names[0]).unwrap_or_default(),
        secret_access_key: env(names[1]).unwrap_or_default(),
        session_token: env("AWS_SESSION_TOKEN"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> StoreOptions {
        StoreOptions { endpoint: None, region: None, ca_bundle: None, stall: Duration::from_secs(60) }
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "hush")];

    fn reach(url: &str, options: &StoreOptions, more: &[(&'static str, &'static str)]) -> Result<Reach, String> {
        let env: Vec<_> = KEYS.iter().chain(more).copied().collect();
        let lookup = move |name: &str| env.iter().rev().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
        let lookup = move |name: &str| lookup(name).filter(|v| !v.is_empty());
        Reach::with(&url.parse::<TargetUrl>()?, options, &lookup).map_err(|error| error.message)
    }

    fn s3(reach: &Reach) -> &S3Location {
        match &reach.location {
            StoreLocation::S3(s3) => s3,
            StoreLocation::Directory { path } => panic!("a directory: {}", path.display()),
        }
    }

    #[test]
    fn longhorns_urls_are_read() {
        for (url, bucket, region, prefix) in [
            ("s3://backups@eu-central-1/", "backups", "eu-central-1", ""),
            ("s3://backups@eu-central-1", "backups", "eu-central-1", ""),
            ("s3://backups@eu-central-1/a//b/./c", "backups", "eu-central-1", "a/b/c/"),
            ("s3://backups/a/", "backups", "us-west-2", "a/"),
        ] {
            let reach = reach(url, &options(), &[("AWS_REGION", "us-west-2")]).expect(url);
            let s3 = s3(&reach);
            assert_eq!((s3.bucket.as_str(), s3.region.as_str(), s3.prefix.as_str()), (bucket, region, prefix), "{url}");
            assert!(!s3.force_path_style, "AWS itself");
        }
    }

    #[test]
    fn the_url_of_a_backup_is_read_back() {
        for target in ["s3://backups@eu-central-1/a/", "file:///mnt/my%20backups%3F", "/mnt/plain"] {
            let reach = reach(target, &options(), &[]).expect(target);
            let record =
                RecordId { volume: "pvc-1".parse().expect("valid"), backup: "backup-1".parse().expect("valid") };
            let url = reach.url_of(&record);
            let again: TargetUrl = url.parse().expect(&url);
            assert_eq!(again.record, Some(record), "{url}");
            let again = Reach::with(&again, &options(), &|name| KEYS.iter().find(|k| k.0 == name).map(|k| k.1.into()));
            assert_eq!(again.map_err(|e| e.message).expect(&url).location, reach.location, "{url}");
        }
    }

    #[test]
    fn longhorns_variables_complete_a_target() {
        let with_endpoint = StoreOptions { endpoint: Some("http://minio:9000/".into()), ..options() };
        let reach1 = reach("s3://backups/", &with_endpoint, &[]).expect("no region needed");
        let location = s3(&reach1);
        assert_eq!((location.endpoint.as_deref(), location.region.as_str()), (Some("http://minio:9000"), "us-east-1"));
        assert!(location.force_path_style, "with an endpoint");
        let hosted = reach("s3://backups/", &with_endpoint, &[("VIRTUAL_HOSTED_STYLE", "true")]).expect("hosted");
        assert!(!s3(&hosted).force_path_style);
        let pem = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        let trusted = reach("s3://backups@r/", &options(), &[("AWS_CERT", pem)]).expect("PEM");
        assert_eq!(s3(&trusted).ca_bundle.as_deref(), Some(pem));
        let proxies = [("HTTPS_PROXY", "https://p:1"), ("http_proxy", "q:2"), ("no_proxy", "minio")];
        let by = |reach: &Reach| s3(reach).proxy.clone().map(|p| (p.url, p.except));
        let aws = reach("s3://backups@r/", &options(), &proxies).expect("a proxy");
        assert_eq!(by(&aws), Some(("https://p:1".into(), Some("minio".into()))));
        let plain = reach("s3://backups@r/", &with_endpoint, &proxies).expect("a proxy");
        assert_eq!(by(&plain), Some(("http://q:2".into(), Some("minio".into()))));
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_its_cure() {
        let region = StoreOptions { region: Some("eu-west-1".into()), ..options() };
        let endpoint = |url: &str| StoreOptions { endpoint: Some(url.into()), ..options() };
        let missing_file = StoreOptions { ca_bundle: Some("/no/such.pem".into()), ..options() };
        type Case<'a> = (&'a str, StoreOptions, &'a [(&'static str, &'static str)], &'a str);
        let cases: Vec<Case<'_>> = vec![
            ("s3://backups/", options(), &[], "AWS_REGION"),
            ("s3://b/", options(), &[], "3 to 63"),
            ("s3://Backups@r/", options(), &[], "3 to 63"),
            ("s3://backups@@/", options(), &[], "region"),
            ("s3://backups@r/../x", options(), &[], "'..'"),
            ("nfs://host:/x", options(), &[], "mount NFS"),
            ("file://relative", options(), &[], "three slashes"),
            ("file:///a%zz", options(), &[], "two hex digits"),
            ("", options(), &[], "empty"),
            ("/dir?backup=backup-1", options(), &[], "both"),
            ("/dir?backup=backup-1&volume=V", options(), &[], "lower-case"),
            ("s3://backups@us-east-1/", region, &[], "leave one out"),
            ("s3://backups@r/", endpoint("minio:9000"), &[], "https://minio:9000"),
            ("s3://backups@r/", endpoint("https://user:pw@minio"), &[], "without credentials"),
            ("s3://backups@r/", missing_file, &[], "/no/such.pem"),
            ("s3://backups@r/", options(), &[("AWS_CERT", "nonsense")], "no PEM certificate"),
            ("s3://backups@r/", options(), &[("VIRTUAL_HOSTED_STYLE", "yes")], "true or false"),
            ("s3://backups@r/", options(), &[("HTTPS_PROXY", "socks5://p")], "http://proxy.example.com:3128"),
            ("s3://backups@r/", options(), &[("AWS_ACCESS_KEY_ID", "")], "AWS_ACCESS_KEY_ID is not set"),
            ("s3://backups@r/", options(), &[("AWS_SECRET_ACCESS_KEY", "hush\n")], "blank or newline"),
        ];
        for (url, options, env, words) in cases {
            let error = reach(url, &options, env).err().unwrap_or_else(|| panic!("{url} {env:?} was taken"));
            assert!(error.contains(words), "{url} {env:?}: {error}");
        }
    }
}
