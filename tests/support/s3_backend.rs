//! What s3s asks of us: the secret of an access key that may be revoked, and the file system with smaller LIST pages.
//! Every S3 operation Tidemark and Longhorn use goes through; the rest answers NotImplemented.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI32, Ordering::SeqCst},
    },
};

use s3s::{
    S3, S3Request, S3Response, S3Result,
    auth::{S3Auth, SecretKey},
    dto::*,
    s3_error,
};
use s3s_fs::FileSystem;

/// Access keys and their secrets.
#[derive(Clone)]
pub(super) struct Keys(Arc<Mutex<HashMap<String, SecretKey>>>);

impl Keys {
    pub(super) fn of(keys: &[(&str, &str)]) -> Self {
        let pairs = keys.iter().map(|(key, secret)| ((*key).to_owned(), SecretKey::from(*secret)));
        Self(Arc::new(Mutex::new(pairs.collect())))
    }

    pub(super) fn add(&self, access_key: &str, secret: &str) {
        let mut keys = self.0.lock().expect("no holder of this lock panics");
        keys.insert(access_key.to_owned(), SecretKey::from(secret));
    }

    pub(super) fn secret(&self, access_key: &str) -> Option<String> {
        let keys = self.0.lock().expect("no holder of this lock panics");
        keys.get(access_key).map(|secret| secret.expose().to_owned())
    }

    pub(super) fn revoke(&self, access_key: &str) {
        self.0.lock().expect("no holder of this lock panics").remove(access_key);
    }
}

#[async_trait::async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let keys = self.0.lock().expect("no holder of this lock panics");
        let unknown = || s3_error!(InvalidAccessKeyId, "The access key does not exist in our records");
        keys.get(access_key).cloned().ok_or_else(unknown)
    }
}

/// The file system; a LIST page holds at most `page` keys. An empty delimiter is none, as S3 has it: Longhorn sends one
/// before each removal, and s3s-fs 0.14 panics at it.
pub(super) struct Paged {
    pub(super) files: FileSystem,
    pub(super) page: Arc<AtomicI32>,
}

macro_rules! pass_on {
    ($($operation:ident: $input:ty => $output:ty,)*) => {
        #[async_trait::async_trait]
        impl S3 for Paged {
            $(async fn $operation(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                self.files.$operation(request).await
            })*

            async fn list_objects_v2(&self, mut request: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
                let asked = request.input.max_keys.unwrap_or(1000);
                request.input.max_keys = Some(asked.min(self.page.load(SeqCst)));
                request.input.delimiter = request.input.delimiter.filter(|d| !d.is_empty());
                self.files.list_objects_v2(request).await
            }

            async fn list_objects(&self, mut request: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
                request.input.delimiter = request.input.delimiter.filter(|d| !d.is_empty());
                self.files.list_objects(request).await
            }
        }
    };
}

pass_on! {
    create_bucket: CreateBucketInput => CreateBucketOutput,
    head_bucket: HeadBucketInput => HeadBucketOutput,
    get_bucket_location: GetBucketLocationInput => GetBucketLocationOutput,
    list_buckets: ListBucketsInput => ListBucketsOutput,
    put_object: PutObjectInput => PutObjectOutput,
    get_object: GetObjectInput => GetObjectOutput,
    head_object: HeadObjectInput => HeadObjectOutput,
    delete_object: DeleteObjectInput => DeleteObjectOutput,
    delete_objects: DeleteObjectsInput => DeleteObjectsOutput,
    create_multipart_upload: CreateMultipartUploadInput => CreateMultipartUploadOutput,
    upload_part: UploadPartInput => UploadPartOutput,
    complete_multipart_upload: CompleteMultipartUploadInput => CompleteMultipartUploadOutput,
    abort_multipart_upload: AbortMultipartUploadInput => AbortMultipartUploadOutput,
}
