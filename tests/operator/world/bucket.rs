//! What a bucket holds before the operator comes: records of this cluster and of others, made by real attempts; and Backups
//! that import them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt};
use serde_json::json;
use tidemark::{
    api::{Backup, BackupStatus, ClusterBackupTarget, ClusterBackupTargetStatus},
    model::{
        Failure, VolumeName,
        job::{BackupTask, S3Location},
    },
    store::{layout::VolumeLayout, objects::Objects, s3::S3},
};

use super::{
    super::support::{
        Image, eventually,
        job::{credentials, job, location, run, with_task},
        operator::Operator,
    },
    BUCKET, PATIENCE, World, merge,
};

/// The bucket as World's targets see it: without a prefix.
pub fn objects(world: &World) -> Arc<dyn Objects> {
    let location = S3Location { prefix: String::new(), ..location(&world.s3.endpoint(), BUCKET) };
    Arc::new(S3::open(&location, credentials(0)).expect("a valid location"))
}

pub async fn own_cluster(world: &World) -> String {
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    namespaces.get("kube-system").await.expect("every cluster has it").uid().expect("every object has one")
}

/// A backup of two blocks, made from that namespace of that cluster. Its volume and its name.
pub async fn record(world: &World, uid: &str, cluster: &str, namespace: &str) -> (String, String) {
    let seed = uid.bytes().fold(0_u64, |sum, byte| sum * 31 + u64::from(byte));
    let path = world.home.volumes().join(format!("{uid}.img"));
    Image::random(&path, 2, seed);
    let mut job = job(&path, uid, 1);
    job.volume = format!("pvc-{uid}").parse().expect("a volume name");
    let job = with_task(job, |task| {
        (task.owner.cluster, task.owner.namespace) = (cluster.to_owned(), namespace.to_owned());
        // What a user writes on its Backup cannot say whose it is.
        task.labels = [("tidemark.dev/namespace".to_owned(), "erp".to_owned())].into();
    });
    let ran = run(job, objects(world)).await;
    (format!("pvc-{uid}"), ran.record())
}

/// An attempt of another owner on the volume of `uid`: how it failed.
pub async fn overwrite(world: &World, uid: &str, cluster: &str, namespace: &str) -> Option<Failure> {
    let path = world.home.volumes().join(format!("{uid}-other.img"));
    Image::random(&path, 2, 99);
    let mut job = job(&path, "intruder", 2);
    job.volume = format!("pvc-{uid}").parse().expect("a volume name");
    let owner = |task: &mut BackupTask| {
        (task.owner.cluster, task.owner.namespace) = (cluster.to_owned(), namespace.to_owned());
    };
    run(with_task(job, owner), objects(world)).await.last.failure
}

/// A record as Longhorn writes it: nobody's.
pub fn longhorn_record(world: &World) -> (String, String) {
    let volume: VolumeName = "pvc-longhorn".parse().expect("a volume name");
    let name = "backup-longhorn".parse().expect("a backup name");
    let path = world.s3.bucket(BUCKET).join(VolumeLayout::new(&volume).backup(&name));
    std::fs::create_dir_all(path.parent().expect("below backups/")).expect("the server's directory");
    let text = r#"{"Name":"backup-longhorn","VolumeName":"pvc-longhorn","SnapshotName":"s","SnapshotCreatedAt":"2026-10-01T10:00:00Z","CreatedTime":"2026-10-01T10:00:01Z","Size":"0","Labels":{"KubernetesStatus":"{}"},"Parameters":null,"IsIncremental":false,"CompressionMethod":"lz4","NewlyUploadedDataSize":"0","ReUploadedDataSize":"0","ProcessingBlocks":null,"SingleFile":{"FilePath":""}}"#;
    std::fs::write(path, text).expect("the server's directory");
    ("pvc-longhorn".into(), "backup-longhorn".into())
}

pub async fn namespace(world: &World, name: &str) {
    world.plane.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}")).await;
}

/// A Backup that imports this record.
pub async fn import(world: &World, namespace: &str, name: &str, record: &(String, String), more: serde_json::Value) {
    let mut spec = json!({
        "source": {"existing": {"volume": record.0, "backup": record.1}},
        "targetRef": {"name": "s3-primary"},
        "retry": {"limit": 6, "backoff": "1s", "maxBackoff": "2s"},
    });
    merge(&mut spec, more);
    let backup = json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Backup", "metadata": {"name": name, "namespace": namespace}, "spec": spec});
    world.plane.apply(&backup.to_string()).await;
}

pub async fn status_of(world: &World, namespace: &str, name: &str) -> Option<BackupStatus> {
    let api: Api<Backup> = Api::namespaced(world.client.clone(), namespace);
    api.get_opt(name).await.ok()??.status
}

pub async fn until(
    world: &World,
    operator: &Operator,
    (namespace, name): (&str, &str),
    wanted: impl Fn(&BackupStatus) -> bool,
) -> BackupStatus {
    let backups: Api<Backup> = Api::namespaced(world.client.clone(), namespace);
    super::until(backups, operator, (name, "as wanted"), wanted).await
}

pub async fn target_status(world: &World, name: &str) -> ClusterBackupTargetStatus {
    let targets: Api<ClusterBackupTarget> = Api::all(world.client.clone());
    targets.get(name).await.expect("it is there").status.unwrap_or_default()
}

pub async fn until_target(
    world: &World,
    operator: &Operator,
    name: &str,
    wanted: impl Fn(&ClusterBackupTargetStatus) -> bool,
) -> ClusterBackupTargetStatus {
    eventually(name, PATIENCE, || async {
        let status = target_status(world, name).await;
        if wanted(&status) { Ok(status) } else { Err(format!("{status:#?}\n{}", operator.tail())) }
    })
    .await
}

/// Makes everything in the bucket years old: blocks may be collected, and the locks of the dead count no more.
pub fn age(world: &World) {
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    for object in world.s3.objects(BUCKET) {
        let path = world.s3.bucket(BUCKET).join(&object.key);
        let file = std::fs::File::options().write(true).open(&path);
        // It may go while we look.
        if let Ok(file) = file {
            file.set_modified(then).expect("the server's directory is ours");
        }
    }
}
