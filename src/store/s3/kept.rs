//! What a bucket keeps of what is deleted: versions, and a retention that Object Lock gives every new object. Two small
//! requests that a key need not be allowed and a server need not know: whatever else is answered, it is not known.

use aws_sdk_s3::{
    error::{ProvideErrorMetadata, SdkError},
    types::{BucketVersioningStatus, DefaultRetention},
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::{S3, innermost, status};
use crate::store::objects::Kept;

impl S3 {
    pub(super) async fn send_kept(&self) -> Kept {
        let versioning = self.client.get_bucket_versioning().bucket(&self.location.bucket).send().await;
        match versioning.map(|reply| reply.status) {
            Err(error) => return Kept::Unknown(words("GetBucketVersioning", &error)),
            // Suspended: what is written from then on has one version, which a deletion removes.
            Ok(None | Some(BucketVersioningStatus::Suspended)) => return Kept::Nothing,
            Ok(Some(BucketVersioningStatus::Enabled)) => {}
            Ok(Some(other)) => return Kept::Unknown(format!("GetBucketVersioning: {other}")),
        }
        // Object Lock is there on versioned buckets only. Without an answer, or a default, versions are what we know of.
        let lock = self.client.get_object_lock_configuration().bucket(&self.location.bucket).send().await;
        let retention = lock.ok().and_then(|reply| reply.object_lock_configuration?.rule?.default_retention);
        retention.map_or(Kept::Versions, |retention| Kept::Locked(retention_words(&retention)))
    }
}

fn retention_words(retention: &DefaultRetention) -> String {
    let time = match (retention.days, retention.years) {
        (Some(days), _) => format!("{days} days"),
        (None, Some(years)) => format!("{years} years"),
        (None, None) => "a time it does not say".to_owned(),
    };
    match &retention.mode {
        Some(mode) => format!("{time}, {mode}"),
        None => time,
    }
}

fn words<E>(action: &str, error: &SdkError<E, HttpResponse>) -> String
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code).unwrap_or_default();
    match status(error) {
        Some(status) => format!("{action}: HTTP {status} {code}").trim_end().to_owned(),
        None => format!("{action}: no answer: {}", innermost(error)),
    }
}
