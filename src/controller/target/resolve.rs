//! A ClusterBackupTarget and its Secret, as the values a store and a worker take. Pure.
//!
//! The Secret may be a Longhorn one: besides the keys it may say endpoint, certificate and host style. Where spec and
//! Secret both say something the spec wins, and the difference is told.

use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
};
use std::collections::BTreeMap;

use crate::{
    api::{
        ClusterBackupTargetSpec, InvalidField,
        common::parse_bytes_per_second,
        target::{
            AllowedNamespaces, BlockSizeText, CompressionMethod, CredentialsMode, EncryptionAlgorithm, NamespacesFrom,
        },
    },
    model::{
        BlockSize, Compression, Credentials, StoreLocation,
        job::{S3Location, ServerSideEncryption},
    },
};

/// What a target means.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    pub location: S3Location,
    pub credentials: Credentials,
    pub compression: Compression,
    pub block_size: BlockSize,
    /// For all Backups to this target together.
    pub bytes_per_second: Option<u64>,
    /// Where the Secret says something else than the spec, which wins.
    pub overridden: Vec<String>,
}

impl Resolved {
    pub fn location(&self) -> StoreLocation {
        StoreLocation::S3(self.location.clone())
    }
}

/// Why a target means nothing yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    #[error("Secret {namespace}/{name} does not exist: create it with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")]
    SecretMissing { namespace: String, name: String },
    #[error("Secret {namespace}/{name}: {problem}")]
    SecretInvalid { namespace: String, name: String, problem: String },
    #[error("{0}")]
    Field(#[from] InvalidField),
}

const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";
const ENDPOINTS: &str = "AWS_ENDPOINTS";
const CERT: &str = "AWS_CERT";
const VIRTUAL_HOSTED_STYLE: &str = "VIRTUAL_HOSTED_STYLE";

/// Spec and Secret as one. `namespace` is the operator's, where the Secret must be.
pub fn resolve(
    spec: &ClusterBackupTargetSpec,
    secret: Option<&Secret>,
    namespace: &str,
) -> Result<Resolved, Unresolved> {
    if spec.credentials.mode == CredentialsMode::AssumeRole {
        let message = "AssumeRole is not built yet: set mode: Static, and give the key only what this bucket needs";
        return Err(InvalidField::new("spec.credentials.mode", message).into());
    }
    let name = &spec.credentials.secret_name;
    let missing = || Unresolved::SecretMissing { namespace: namespace.into(), name: name.clone() };
    let keys = Keys { namespace, name, data: secret.ok_or_else(missing)?.data.as_ref() };
    let credentials = Credentials {
        access_key_id: keys.required(ACCESS_KEY_ID)?,
        secret_access_key: keys.required(SECRET_ACCESS_KEY)?,
        session_token: keys.optional(SESSION_TOKEN)?,
    };
    let mut overridden = Vec::new();
    let location = location(spec, &keys, &mut overridden)?;
    let bytes_per_second = spec.limits.max_bytes_per_second.as_ref();
    Ok(Resolved {
        location,
        credentials,
        compression: match spec.compression {
            CompressionMethod::Lz4 => Compression::Lz4,
            CompressionMethod::Gzip => Compression::Gzip,
            CompressionMethod::None => Compression::None,
        },
        block_size: match spec.block_size {
            BlockSizeText::Mi2 => BlockSize::Mi2,
            BlockSizeText::Mi16 => BlockSize::Mi16,
        },
        bytes_per_second: bytes_per_second
            .map(|q| parse_bytes_per_second(q, "spec.limits.maxBytesPerSecond"))
            .transpose()?,
        overridden,
    })
}

fn location(
    spec: &ClusterBackupTargetSpec,
    keys: &Keys<'_>,
    overridden: &mut Vec<String>,
) -> Result<S3Location, Unresolved> {
    let s3 = &spec.s3;
    let given = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    let mut either = |field: &str, key: &str, spec: Option<String>, secret: Option<String>| {
        if let (Some(spec), Some(secret)) = (&spec, &secret)
            && spec != secret
        {
            overridden.push(format!("spec.s3.{field} is used, {key} of the Secret says something else"));
        }
        spec.or(secret)
    };
    let endpoint = either("endpoint", ENDPOINTS, given(&s3.endpoint), keys.optional(ENDPOINTS)?);
    let ca_bundle = either("caBundle", CERT, given(&s3.ca_bundle), keys.optional(CERT)?);
    let secret_style = match keys.optional(VIRTUAL_HOSTED_STYLE)?.as_deref() {
        None => None,
        Some("true") => Some(false),
        Some("false") => Some(true),
        Some(_) => return Err(keys.invalid(format!("{VIRTUAL_HOSTED_STYLE} is neither true nor false"))),
    };
    if let (Some(spec), Some(secret)) = (s3.force_path_style, secret_style)
        && spec != secret
    {
        let said = format!("spec.s3.forcePathStyle is used, {VIRTUAL_HOSTED_STYLE} of the Secret says something else");
        overridden.push(said);
    }
    let force_path_style = s3.force_path_style.or(secret_style).unwrap_or(endpoint.is_some());
    let encryption = s3.server_side_encryption.as_ref().and_then(|e| {
        let algorithm = match e.algorithm {
            EncryptionAlgorithm::BucketDefault => return None,
            EncryptionAlgorithm::Aes256 => "AES256",
            EncryptionAlgorithm::AwsKms => "aws:kms",
        };
        let kms_key_id = Some(e.kms_key_id.clone()).filter(|k| !k.is_empty());
        Some(ServerSideEncryption { algorithm: algorithm.into(), kms_key_id })
    });
    Ok(S3Location {
        bucket: s3.bucket.clone(),
        prefix: s3.prefix.clone(),
        region: s3.region.clone(),
        endpoint,
        force_path_style,
        ca_bundle,
        storage_class: given(&s3.storage_class),
        server_side_encryption: encryption,
        conditional_writes: false,
    })
}

/// The keys of one Secret, for messages that name it.
struct Keys<'a> {
    namespace: &'a str,
    name: &'a str,
    data: Option<&'a BTreeMap<String, ByteString>>,
}

impl Keys<'_> {
    fn invalid(&self, problem: String) -> Unresolved {
        Unresolved::SecretInvalid { namespace: self.namespace.into(), name: self.name.into(), problem }
    }

    /// Blanks and newlines around a value are a person's accident and would be signed along; they are named, not cut.
    fn optional(&self, key: &str) -> Result<Option<String>, Unresolved> {
        let Some(ByteString(bytes)) = self.data.and_then(|d| d.get(key)) else { return Ok(None) };
        let text = String::from_utf8(bytes.clone()).map_err(|_| self.invalid(format!("{key} is not text")))?;
        if key != CERT && text.trim() != text {
            return Err(self.invalid(format!("{key} begins or ends with a blank or newline: write it without")));
        }
        Ok(Some(text).filter(|t| !t.is_empty()))
    }

    fn required(&self, key: &str) -> Result<String, Unresolved> {
        self.optional(key)?.ok_or_else(|| self.invalid(format!("key {key} is missing or empty: add it")))
    }
}

/// May this namespace back up to the target? Labels are those of the namespace, needed only for a selector.
pub fn is_allowed(allowed: &AllowedNamespaces, namespace: &str, labels: Option<&BTreeMap<String, String>>) -> bool {
    match allowed.from {
        NamespacesFrom::None => false,
        NamespacesFrom::All => true,
        NamespacesFrom::Names => allowed.names.iter().any(|name| name == namespace),
        NamespacesFrom::Selector => match (&allowed.selector, labels) {
            (Some(selector), Some(labels)) => selects(selector, labels),
            _ => false,
        },
    }
}

/// A label selector as the API server reads it. An operator we do not know selects nothing: closed, not open.
fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    equal && selector.match_expressions.iter().flatten().all(|requirement| meets(requirement, labels))
}

fn meets(requirement: &LabelSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&requirement.key);
    let listed = |v: &String| requirement.values.iter().flatten().any(|wanted| wanted == v);
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(extra: serde_json::Value) -> ClusterBackupTargetSpec {
        let mut spec = json!({
            "s3": {"bucket": "backups", "region": "eu-central-1"},
            "credentials": {"secretName": "s3"},
            "allowedNamespaces": {"from": "All"},
        });
        for (key, value) in extra.as_object().cloned().unwrap_or_default() {
            spec[key] = value;
        }
        serde_json::from_value(spec).expect("a valid spec")
    }

    fn secret(keys: &[(&str, &str)]) -> Secret {
        let data = keys.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect();
        Secret { data: Some(data), ..Secret::default() }
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "key")];

    #[test]
    fn a_longhorn_secret_works_unchanged() {
        let mut keys = KEYS.to_vec();
        keys.extend([("AWS_ENDPOINTS", "http://minio:9000"), ("VIRTUAL_HOSTED_STYLE", "true"), ("AWS_CERT", "pem\n")]);
        let resolved = resolve(&spec(json!({})), Some(&secret(&keys)), "tidemark").expect("usable");
        assert_eq!(resolved.location.endpoint.as_deref(), Some("http://minio:9000"));
        assert_eq!(resolved.location.ca_bundle.as_deref(), Some("pem\n"));
        assert!(!resolved.location.force_path_style, "virtual hosted style was asked for");
        assert!(resolved.overridden.is_empty());
        let plain = resolve(&spec(json!({})), Some(&secret(&KEYS)), "tidemark").expect("usable");
        assert!(!plain.location.force_path_style, "AWS");
    }

    #[test]
    fn the_spec_wins_over_the_secret_and_says_so() {
        let s3 = json!({"bucket": "backups", "region": "r", "endpoint": "http://a", "forcePathStyle": true});
        let mut keys = KEYS.to_vec();
        keys.extend([("AWS_ENDPOINTS", "http://b"), ("VIRTUAL_HOSTED_STYLE", "true")]);
        let resolved = resolve(&spec(json!({"s3": s3})), Some(&secret(&keys)), "tidemark").expect("usable");
        assert_eq!(resolved.location.endpoint.as_deref(), Some("http://a"));
        assert!(resolved.location.force_path_style);
        assert_eq!(resolved.overridden.len(), 2, "{:?}", resolved.overridden);
    }

    #[test]
    fn an_unusable_secret_is_named_with_its_cure() {
        let missing = resolve(&spec(json!({})), None, "tidemark").expect_err("no secret").to_string();
        assert!(missing.contains("Secret tidemark/s3 does not exist: create it"), "{missing}");
        for (keys, wanted) in [
            (&[("AWS_ACCESS_KEY_ID", "id")][..], "key AWS_SECRET_ACCESS_KEY is missing or empty: add it"),
            (
                &[("AWS_ACCESS_KEY_ID", "id\n"), ("AWS_SECRET_ACCESS_KEY", "k")][..],
                "blank or newline: write it without",
            ),
        ] {
            let error = resolve(&spec(json!({})), Some(&secret(keys)), "tidemark").expect_err("unusable").to_string();
            assert!(error.contains("tidemark/s3") && error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn law_11_a_namespace_that_is_not_named_or_selected_is_not_allowed() {
        let allowed = |from: serde_json::Value| serde_json::from_value::<AllowedNamespaces>(from).expect("valid");
        let labels = BTreeMap::from([("team".to_owned(), "shop".to_owned())]);
        assert!(!is_allowed(&allowed(json!({"from": "None"})), "shop", Some(&labels)));
        assert!(is_allowed(&allowed(json!({"from": "All"})), "shop", None));
        let names = allowed(json!({"from": "Names", "names": ["shop"]}));
        assert!(is_allowed(&names, "shop", None) && !is_allowed(&names, "erp", None));
        let selector = |expression: serde_json::Value| {
            allowed(json!({"from": "Selector", "selector": {"matchExpressions": [expression]}}))
        };
        let select = |expression| is_allowed(&selector(expression), "shop", Some(&labels));
        assert!(select(json!({"key": "team", "operator": "In", "values": ["shop"]})));
        assert!(!select(json!({"key": "team", "operator": "NotIn", "values": ["shop"]})));
        assert!(!select(json!({"key": "team", "operator": "DoesNotExist"})));
        assert!(!select(json!({"key": "team", "operator": "Newer"})), "an unknown operator selects nothing");
        let any = selector(json!({"key": "team", "operator": "Exists"}));
        assert!(!is_allowed(&any, "shop", None), "labels that could not be read select nothing");
    }
}
