//! `ClusterBackupTarget`: a bucket, who may use it, and how.
//!
//! `s3.bucket` and `s3.prefix` are immutable: existing Backups would otherwise delete from or restore out of another
//! place. Everything else may change. The status carries what the last probe saw.

use k8s_openapi::apimachinery::pkg::{
    api::resource::Quantity,
    apis::meta::v1::{Condition, LabelSelector, Time},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{common::DurationText, course::unobserved};

/// A ClusterBackupTarget is a bucket to which namespaces may back up volumes. Only an administrator makes one.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "tidemark.dev",
    version = "v1alpha1",
    kind = "ClusterBackupTarget",
    cel,
    status = "ClusterBackupTargetStatus",
    derive = "PartialEq",
    shortname = "tmt",
    category = "tidemark",
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name must be at most 63 characters"),
    validation = Rule::new("self.spec.credentials.mode != 'AssumeRole' || (has(self.spec.credentials.roleArn) && self.spec.credentials.roleArn != '') || (has(self.spec.s3.endpoint) && self.spec.s3.endpoint != '')").message("credentials.mode: AssumeRole needs credentials.roleArn on AWS; only a server of its own (s3.endpoint), such as MinIO, may do without"),
    validation = Rule::new("self.spec.credentials.mode != 'AssumeRole' || self.spec.s3.prefix.matches('^[A-Za-z0-9/!_.()=-]*$')").message("with credentials.mode: AssumeRole s3.prefix may have only letters, digits and /!_.()=-: a policy would see a pattern in others"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Can it take backups?"),
    printcolumn(name = "Bucket", type_ = "string", json_path = ".spec.s3.bucket", description = "The bucket"),
    printcolumn(name = "Region", type_ = "string", json_path = ".spec.s3.region", description = "Its region"),
    printcolumn(name = "Default", type_ = "boolean", json_path = ".spec.default", description = "Do Backups without a targetRef go here?"),
    printcolumn(name = "Backups", type_ = "integer", json_path = ".status.backups.total", description = "Backups in the bucket"),
    printcolumn(name = "Checked", type_ = "date", json_path = ".status.lastCheckTime", description = "When it was last probed"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Since this object was made"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".spec.s3.endpoint", priority = 1, description = "The server; empty: AWS"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1, description = "Why it is ready or not")
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterBackupTargetSpec {
    /// The bucket.
    pub s3: S3Spec,
    /// The keys to the bucket.
    pub credentials: CredentialsSpec,
    /// Which namespaces may back up to it. There is no default.
    pub allowed_namespaces: AllowedNamespaces,
    /// What is done about backups that exist only in the bucket.
    #[serde(default)]
    pub imports: Imports,
    /// True: a volume name that another cluster owns is no error.
    #[serde(default)]
    pub shared_with_clusters: bool,
    /// True: Backups without a targetRef go here. With two such targets none is used.
    #[serde(default)]
    pub default: bool,
    /// How blocks are compressed: lz4, gzip or none. Only for volumes new to the store.
    #[serde(default)]
    pub compression: CompressionMethod,
    /// Size of a block: 2Mi or 16Mi. Only for volumes new to the store.
    #[serde(default)]
    pub block_size: BlockSizeText,
    /// How many backups at once, and how fast.
    #[serde(default)]
    pub limits: TargetLimits,
    /// How often the bucket is probed.
    #[serde(default = "check_interval")]
    #[x_kube(validation = Rule::new("!self.matches('^([0-9]{1,6}(h|m|s))+$') || duration(self) >= duration('10s')").message("checkInterval must be at least 10s: each check is a few requests to the bucket"))]
    pub check_interval: DurationText,
}

fn check_interval() -> DurationText {
    DurationText::new("5m")
}

/// A bucket and how to speak to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct S3Spec {
    /// Name of the bucket. Immutable.
    #[schemars(length(min = 3, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9][a-z0-9.-]*[a-z0-9]$')").message("bucket must be a bucket's bare name, e.g. backups: 3 to 63 lower-case letters, digits, dots or hyphens"),
        validation = Rule::new("self == oldSelf").message("bucket is immutable: create a new ClusterBackupTarget")
    )]
    pub bucket: String,
    /// The store lives below <prefix>backupstore/. Empty, or ending with '/'. Immutable.
    #[serde(default)]
    #[schemars(length(max = 512))]
    #[x_kube(
        validation = Rule::new("self == '' || self.endsWith('/')").message("prefix must be empty or end with '/', e.g. prod/"),
        validation = Rule::new("!self.startsWith('/') && !self.contains('//') && !self.split('/').exists(part, part == '.' || part == '..')").message("prefix must be a plain path such as prod/ or teams/shop/: no leading '/', no '//', no '.' or '..'"),
        validation = Rule::new("self == oldSelf").message("prefix is immutable: create a new ClusterBackupTarget")
    )]
    pub prefix: String,
    /// Region of the bucket; for servers without regions, what they sign with (often us-east-1).
    #[schemars(length(min = 1, max = 63))]
    pub region: String,
    /// URL of the server, e.g. https://s3.example.com. Empty: AWS.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new("self == '' || (isURL(self) && url(self).getScheme() in ['http','https'] && url(self).getHost() != '' && !self.contains('@') && !self.contains('?') && !self.contains('#'))").message("endpoint must be a URL with http:// or https:// and no credentials or query, e.g. https://s3.example.com:9000"))]
    pub endpoint: Option<String>,
    /// True: the bucket stands in the path (https://host/bucket), not in the host name. Absent: true if an endpoint is
    /// set, unless the secret says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_path_style: Option<bool>,
    /// Certificates (PEM) to trust besides the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    #[x_kube(validation = Rule::new("self == '' || self.contains('-----BEGIN CERTIFICATE-----')").message("caBundle must be PEM text with -----BEGIN CERTIFICATE----- in it, not base64 of it"))]
    pub ca_bundle: Option<String>,
    /// Storage class of every object. Empty: the bucket's default. Archive classes are refused: they cannot be read
    /// when a restore needs them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("!(self.upperAscii() in ['GLACIER','DEEP_ARCHIVE'])").message("an archive storage class cannot be read at once, so nothing could be restored or deduplicated: write STANDARD, STANDARD_IA or GLACIER_IR, or leave it empty"))]
    pub storage_class: Option<String>,
    /// Encryption by the server, sent with every PUT. Absent: the bucket's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_side_encryption: Option<EncryptionSpec>,
}

/// Encryption by the server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.kmsKeyID == '' || self.algorithm == 'aws:kms'").message("kmsKeyID needs algorithm: aws:kms"))]
pub struct EncryptionSpec {
    /// AES256 or aws:kms. Empty: the bucket's default.
    #[serde(default)]
    pub algorithm: EncryptionAlgorithm,
    /// The key, for aws:kms. Empty: the account's default key.
    #[serde(default, rename = "kmsKeyID")]
    #[schemars(length(max = 2048))]
    pub kms_key_id: String,
}

/// How the server encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum EncryptionAlgorithm {
    #[default]
    #[serde(rename = "")]
    BucketDefault,
    #[serde(rename = "AES256")]
    Aes256,
    #[serde(rename = "aws:kms")]
    AwsKms,
}

/// The keys to the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.mode == 'AssumeRole' || ((!has(self.roleArn) || self.roleArn == '') && (!has(self.stsEndpoint) || self.stsEndpoint == ''))").message("roleArn and stsEndpoint go with mode: AssumeRole"))]
pub struct CredentialsSpec {
    /// Name of a Secret in the operator's namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. A Longhorn secret
    /// works unchanged; where spec and secret both say something, spec wins and a condition tells.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
    /// Static: workers hold this key. AssumeRole: workers hold an hour's session for one volume's prefix.
    #[serde(default)]
    pub mode: CredentialsMode,
    /// With mode AssumeRole, the role whose sessions workers hold. Empty: the server asks for none (MinIO).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self == '' || self.matches('^arn:[^ ]+$')").message("roleArn must be the ARN of a role, e.g. arn:aws:iam::123456789012:role/tidemark-worker"))]
    pub role_arn: Option<String>,
    /// With mode AssumeRole, URL of STS. Empty: the server of s3.endpoint, or AWS's of the region.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new("self == '' || (isURL(self) && url(self).getScheme() in ['http','https'] && url(self).getHost() != '' && !self.contains('@') && !self.contains('?') && !self.contains('#'))").message("stsEndpoint must be a URL with http:// or https:// and no credentials or query, e.g. https://sts.example.com"))]
    pub sts_endpoint: Option<String>,
}

/// What a worker holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum CredentialsMode {
    #[default]
    Static,
    AssumeRole,
}

/// Which namespaces may back up to it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.from == 'Names') == (has(self.names) && size(self.names) > 0)").message("names goes with from: Names, and from: Names needs at least one name"),
    validation = Rule::new("(self.from == 'Selector') == has(self.selector)").message("selector goes with from: Selector, and from: Selector needs a selector")
)]
pub struct AllowedNamespaces {
    /// None, All, Names or Selector.
    pub from: NamespacesFrom,
    /// The namespaces, with from: Names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)))]
    pub names: Vec<String>,
    /// Labels of the namespaces, with from: Selector. It trusts whoever may label namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// How namespaces are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum NamespacesFrom {
    #[default]
    None,
    All,
    Names,
    Selector,
}

/// What is done about backups that exist only in the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Imports {
    /// OwnCluster: make Backups for this cluster's records, in the namespaces they came from, if those exist and are
    /// allowed. None: do not.
    pub discover: Discover,
    /// Namespaces that may import a record whoever owned it.
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)))]
    pub any_owner_namespaces: Vec<String>,
}

/// Which records become Backups by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum Discover {
    #[default]
    None,
    OwnCluster,
}

/// How blocks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CompressionMethod {
    #[default]
    Lz4,
    Gzip,
    None,
}

/// Size of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum BlockSizeText {
    #[default]
    #[serde(rename = "2Mi")]
    Mi2,
    #[serde(rename = "16Mi")]
    Mi16,
}

/// How many backups at once, and how fast.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetLimits {
    /// Backups that run at once to this target.
    #[serde(default = "max_concurrent_backups")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_concurrent_backups: i32,
    /// Of these, from one namespace.
    #[serde(default = "max_concurrent_backups_per_namespace")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_concurrent_backups_per_namespace: i32,
    /// Bytes per second of all of them together, such as 400Mi. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 32))]
    #[x_kube(
        validation = Rule::new("isQuantity(string(self))").message("not a quantity: write bytes per second as 400Mi or 50M"),
        validation = Rule::new("!isQuantity(string(self)) || quantity(string(self)).compareTo(quantity('64Ki')) >= 0").message("at least 64Ki bytes per second")
    )]
    pub max_bytes_per_second: Option<Quantity>,
}

impl Default for TargetLimits {
    fn default() -> Self {
        Self {
            max_concurrent_backups: max_concurrent_backups(),
            max_concurrent_backups_per_namespace: max_concurrent_backups_per_namespace(),
            max_bytes_per_second: None,
        }
    }
}

fn max_concurrent_backups() -> i32 {
    10
}

fn max_concurrent_backups_per_namespace() -> i32 {
    4
}

/// What the last probe saw; only the operator writes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterBackupTargetStatus {
    /// The generation of the spec this status is about; -1: not looked at yet.
    #[serde(default = "unobserved")]
    pub observed_generation: i64,
    /// This cluster's identity as it is written into records: the uid of the namespace kube-system.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub cluster: Option<String>,
    /// What the store can do, as the probe found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// When it was last probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_check_time: Option<Time>,
    /// Volumes in the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<i64>,
    /// Backups in the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backups: Option<BackupCounts>,
    /// When volumes and backups were last counted to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_catalogue_time: Option<Time>,
    /// Backup objects that chose this target: they keep it from being deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub references: Option<i64>,
    /// Removals of data from the bucket: too many in a short time wait for a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletions: Option<Deletions>,
    /// Ready, Reachable, CredentialsValid, CredentialsScoped, ClockInStep, DeletionsFree and Catalogued; Reconciling and Stalled only
    /// while True.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

impl Default for ClusterBackupTargetStatus {
    fn default() -> Self {
        Self {
            observed_generation: unobserved(),
            cluster: None,
            capabilities: None,
            last_check_time: None,
            volumes: None,
            backups: None,
            last_catalogue_time: None,
            references: None,
            deletions: None,
            conditions: Vec::new(),
        }
    }
}

/// What the store can do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Capabilities {
    /// A second create of the same key is refused.
    pub conditional_writes: bool,
    /// Many objects are deleted by one request.
    pub batch_delete: bool,
    /// Keys on one page of a listing.
    pub list_page_size: i32,
}

/// Backups in the store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BackupCounts {
    /// All records.
    pub total: i64,
    /// Records of other clusters, of the command line, or of Longhorn.
    pub foreign: i64,
    /// Markers: backups that are being made, or that ended without a record and are kept for a retry.
    pub in_progress: i64,
}

/// Removals of data from the bucket, in all and by namespace. The operator counts them here, so that a restart forgets
/// none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Deletions {
    /// When the current window began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Backups whose data was let go in it.
    pub count: i64,
    /// Since then further ones wait until the annotation tidemark.dev/acknowledge-deletions has this very time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_since: Option<Time>,
    /// Everything deleted up to then was acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged_time: Option<Time>,
    /// The same for each namespace that deleted some lately, or waits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 500))]
    pub namespaces: Vec<NamespaceDeletions>,
}

/// Removals of data by one namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespaceDeletions {
    /// Whose Backups they were.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// When the current window began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Backups whose data was let go in it.
    pub count: i64,
    /// Since then further ones wait until the annotation tidemark.dev/acknowledge-deletions has the namespace, a slash and
    /// this very time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_since: Option<Time>,
    /// Everything deleted up to then was acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged_time: Option<Time>,
}
