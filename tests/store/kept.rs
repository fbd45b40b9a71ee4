//! What a bucket keeps of what is deleted, asked of a server that keeps versions and locks objects; and servers that do not
//! say. Whatever they answer, the probe is no worse for it.

use std::time::{Duration, Instant};

use aws_sdk_s3::{
    Client,
    types::{
        BucketVersioningStatus, DefaultRetention, ObjectLockConfiguration, ObjectLockEnabled, ObjectLockRetentionMode,
        ObjectLockRule, VersioningConfiguration,
    },
};

use crate::support::{self, Block, Fault, Image, Kind, Rule, S3Server, Versitygw, job, versitygw::sdk};
use tidemark::{
    model::{StoreLocation, job::S3Location},
    store::{objects::Kept, probe, s3::S3},
};

fn location(endpoint: &str, bucket: &str) -> StoreLocation {
    StoreLocation::S3(job::location(endpoint, bucket))
}

async fn probed(endpoint: &str, bucket: &str) -> probe::Probe {
    let credentials = job::credentials(0).read().expect("given");
    probe::probe(&location(endpoint, bucket), &credentials).await.expect("the probe")
}

async fn set_versioning(client: &Client, bucket: &str, status: BucketVersioningStatus) {
    let enabled = VersioningConfiguration::builder().status(status).build();
    client.put_bucket_versioning().bucket(bucket).versioning_configuration(enabled).send().await.expect("set");
}

async fn locked(client: &Client, bucket: &str) {
    client.create_bucket().bucket(bucket).object_lock_enabled_for_bucket(true).send().await.expect("made");
    let retention = DefaultRetention::builder().mode(ObjectLockRetentionMode::Governance).days(30).build();
    let rule = ObjectLockRule::builder().default_retention(retention).build();
    let lock = ObjectLockConfiguration::builder().object_lock_enabled(ObjectLockEnabled::Enabled).rule(rule).build();
    client.put_object_lock_configuration().bucket(bucket).object_lock_configuration(lock).send().await.expect("set");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_deletions_leave_behind_is_told_with_the_cure() {
    let server = Versitygw::start_versioned();
    let client = sdk(&server.endpoint());
    assert_eq!(probed(&server.endpoint(), "backups").await.kept, Kept::Nothing);
    server.create_versioned("versions").await;
    let kept = probed(&server.endpoint(), "versions").await.kept;
    assert_eq!(kept, Kept::Versions);
    let notice = kept.notice().expect("a person should know");
    assert!(notice.contains("versioned") && notice.contains("lifecycle rule"), "{notice}");
    set_versioning(&client, "versions", BucketVersioningStatus::Suspended).await;
    assert_eq!(probed(&server.endpoint(), "versions").await.kept, Kept::Nothing);
    set_versioning(&client, "versions", BucketVersioningStatus::Enabled).await;

    locked(&client, "locked").await;
    let found = probed(&server.endpoint(), "locked").await;
    let Kept::Locked(retention) = &found.kept else { panic!("{found:?}") };
    assert!(retention.contains("30 days") && retention.contains("GOVERNANCE"), "{retention}");
    let notice = found.kept.notice().expect("a person should know");
    assert!(notice.contains(retention) && notice.contains("bucket without a default retention"), "{notice}");

    // Both are buckets to back up to all the same.
    let folder = support::scratch("kept");
    let image = Image::of(&folder.path().join("image"), &[Block::Random(1), Block::Text(2)]);
    for bucket in ["versions", "locked"] {
        let place: S3Location = job::location(&server.endpoint(), bucket);
        let objects = std::sync::Arc::new(S3::open(&place, job::credentials(0)).expect("a valid location"));
        let ran = job::run(job::job(image.path(), bucket, 1), objects).await;
        assert!(ran.completed(), "{bucket}: {:?}", ran.last);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_say_what_it_keeps_is_a_store_like_any_other() {
    let server = S3Server::start();
    server.create_bucket("backups");
    let without = probed(&server.endpoint(), "backups").await;
    for fault in [
        Fault::refuse("AccessDenied"),
        Fault::Answer { status: 501, code: "NotImplemented" },
        Fault::internal_error(),
        Fault::ResetBefore,
        Fault::HangForever,
    ] {
        server.fault(Rule::new(fault.clone()).on(Kind::Other));
        let began = Instant::now();
        let found = probed(&server.endpoint(), "backups").await;
        assert!(matches!(found.kept, Kept::Unknown(_)) && found.kept.notice().is_none(), "{fault:?}: {found:?}");
        assert!(began.elapsed() < Duration::from_secs(10), "{fault:?}: {:?}", began.elapsed());
        let same = probe::Probe { kept: without.kept.clone(), clock_skew: without.clock_skew, ..found };
        assert_eq!(same, without, "{fault:?}");
        server.heal();
    }
}
