//! A ClusterBackupTarget and its Secret, as the values a store and a worker take. Pure: what each part means, and spec
//! over Secret, the API says; here they become one value or one reason why not.

use k8s_openapi::api::core::v1::Secret;

use crate::{
    api::{ClusterBackupTargetSpec, InvalidField, InvalidSecret, SecretSettings, target::CredentialsMode},
    controller::work::queue::TargetLimits,
    model::{BlockSize, Compression, Credentials, StoreLocation, job::S3Location},
    store::sts::Sts,
};

/// What a target means.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    pub location: S3Location,
    /// The target's own key.
    pub credentials: Credentials,
    /// Who gives workers their sessions; none: they hold the target's key.
    pub sts: Option<Sts>,
    pub compression: Compression,
    pub block_size: BlockSize,
    pub limits: TargetLimits,
    /// For all Backups to this target together.
    pub bytes_per_second: Option<u64>,
    /// What the Secret says without effect.
    pub notes: Vec<String>,
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
    SecretInvalid { namespace: String, name: String, problem: InvalidSecret },
    #[error("{0}")]
    Field(#[from] InvalidField),
}

/// Spec and Secret as one. `namespace` is the operator's, where the Secret must be.
pub fn resolve(
    spec: &ClusterBackupTargetSpec,
    secret: Option<&Secret>,
    namespace: &str,
) -> Result<Resolved, Unresolved> {
    let (namespace, name) = (namespace.to_owned(), spec.credentials.secret_name.clone());
    let Some(secret) = secret else { return Err(Unresolved::SecretMissing { namespace, name }) };
    let data = secret.data.clone().unwrap_or_default();
    let settings =
        SecretSettings::parse(&data).map_err(|problem| Unresolved::SecretInvalid { namespace, name, problem })?;
    let resolved = spec.s3.resolve(&settings, false)?;
    let limits = spec.parse_limits()?;
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let sts = (spec.credentials.mode == CredentialsMode::AssumeRole).then(|| Sts {
        location: resolved.location.clone(),
        endpoint: given(&spec.credentials.sts_endpoint),
        role_arn: given(&spec.credentials.role_arn),
    });
    let slots = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    Ok(Resolved {
        location: resolved.location,
        credentials: settings.credentials,
        sts,
        compression: spec.compression.into(),
        block_size: spec.block_size.into(),
        limits: TargetLimits {
            total: slots(limits.concurrent_backups_max),
            per_namespace: slots(limits.concurrent_backups_per_namespace_max),
        },
        bytes_per_second: limits.bytes_per_second_max,
        notes: resolved.notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use serde_json::json;

    fn spec(mode: &str) -> ClusterBackupTargetSpec {
        serde_json::from_value(json!({
            "s3": {"bucket": "backups", "region": "eu-central-1", "endpoint": "http://a"},
            "credentials": {"secretName": "s3", "mode": mode},
            "allowedNamespaces": {"from": "All"},
        }))
        .expect("a valid spec")
    }

    fn secret(keys: &[(&str, &str)]) -> Secret {
        let data = keys.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect();
        Secret { data: Some(data), ..Secret::default() }
    }

    #[test]
    fn an_unusable_target_is_named_with_its_cure() {
        let half = secret(&[("AWS_ACCESS_KEY_ID", "id")]);
        for (mode, secret, cure) in [
            ("Static", None, "Secret tidemark/s3 does not exist: create it"),
            ("Static", Some(&half), "Secret tidemark/s3: AWS_SECRET_ACCESS_KEY is missing: add it"),
            ("AssumeRole", Some(&half), "Secret tidemark/s3: AWS_SECRET_ACCESS_KEY is missing: add it"),
        ] {
            let error = resolve(&spec(mode), secret, "tidemark").expect_err(cure).to_string();
            assert!(error.contains(cure), "{error}");
        }
    }

    #[test]
    fn law_11_with_assume_role_a_target_has_an_sts_and_without_it_none() {
        let keys = secret(&[("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "key")]);
        let resolved = |spec| resolve(&spec, Some(&keys), "tidemark").expect("usable");
        assert_eq!(resolved(spec("Static")).sts, None);
        let mut with = spec("AssumeRole");
        (with.credentials.role_arn, with.credentials.sts_endpoint) = (Some("arn:r".into()), Some(String::new()));
        let sts = resolved(with).sts.expect("sessions");
        assert_eq!((sts.role_arn.as_deref(), sts.endpoint), (Some("arn:r"), None), "an empty word is none");
        assert_eq!(sts.location.bucket, "backups");
    }

    #[test]
    fn a_longhorn_secret_works_and_the_spec_wins() {
        let keys = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "key"), ("AWS_ENDPOINTS", "http://b")];
        let resolved = resolve(&spec("Static"), Some(&secret(&keys)), "tidemark").expect("usable");
        assert_eq!(resolved.location.endpoint.as_deref(), Some("http://a"));
        assert_eq!(resolved.notes.len(), 1, "{:?}", resolved.notes);
        assert_eq!(resolved.limits, TargetLimits { total: 10, per_namespace: 4 });
    }
}
