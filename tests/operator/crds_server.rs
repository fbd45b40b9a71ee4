//! The CRDs on a real API server: accepted without a warning, bad manifests refused with our words, every column and
//! selectable field resolved on an object with every field set, and laws 3 and 8 held against a writer that breaks them.
//!
//! All tests share one control plane and one set of CRDs; each uses names of its own.

use std::{collections::BTreeMap, time::Duration};

use crate::manifests::{self, merged};
use crate::support::{ControlPlane, eventually};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tidemark::api::{self, Backup, ClusterBackupTarget, Restore};
use tokio::sync::OnceCell;

const MANAGER: &str = "tidemark-test";

/// The control plane with our CRDs established, and a client of this test.
async fn installed() -> (&'static ControlPlane, Client) {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    let plane = ControlPlane::shared().await;
    let client = plane.client().await;
    INSTALLED.get_or_init(|| install(client.clone())).await;
    (plane, client)
}

async fn install(client: Client) {
    let crds: Api<CustomResourceDefinition> = Api::all(client);
    for crd in api::crds() {
        let name = crd.name_any();
        crds.create(&PostParams::default(), &crd).await.unwrap_or_else(|e| panic!("{name} was refused: {e}"));
        let established = || async {
            let crd = crds.get(&name).await.map_err(|e| e.to_string())?;
            let conditions = crd.status.and_then(|status| status.conditions).unwrap_or_default();
            let truth = |kind: &str| conditions.iter().find(|c| c.type_ == kind).map(|c| c.status.clone());
            match (truth("Established").as_deref(), truth("NonStructuralSchema")) {
                (Some("True"), None) => Ok(()),
                _ => Err(format!("{conditions:?}")),
            }
        };
        eventually(&format!("{name} is established"), Duration::from_secs(30), established).await;
    }
}

fn dynamic(client: &Client, manifest: &Value) -> (Api<DynamicObject>, DynamicObject) {
    let object: DynamicObject = serde_json::from_value(manifest.clone()).expect("a manifest is an object");
    let kind = object.types.as_ref().expect("a manifest has a kind").kind.clone();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(api::GROUP, api::VERSION, &kind));
    let api = match object.namespace() {
        Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    (api, object)
}

/// Creates it strictly: an unknown field is an error, as with `kubectl apply`.
async fn create(client: &Client, manifest: &Value) -> Result<Value, String> {
    let (api, object) = dynamic(client, manifest);
    let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    let created = api.create(&params, &object).await.map_err(|e| e.to_string())?;
    Ok(serde_json::to_value(created).expect("an object is JSON"))
}

async fn patch(client: &Client, object: &Value, change: &Value) -> Result<Value, String> {
    let (api, object) = dynamic(client, object);
    let patched = api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(change)).await;
    patched.map(|o| serde_json::to_value(o).expect("an object is JSON")).map_err(|e| e.to_string())
}

/// Replaces the whole status, as it stands, whatever was there.
async fn replace_status(client: &Client, object: &Value, status: &Value) -> Result<Value, String> {
    let (api, read) = dynamic(client, object);
    let mut current = api.get(&read.name_any()).await.map_err(|e| e.to_string())?;
    current.data["status"] = status.clone();
    let written = api.replace_status(&read.name_any(), &PostParams::default(), &current).await;
    written.map(|o| serde_json::to_value(o).expect("an object is JSON")).map_err(|e| e.to_string())
}

fn full_backup_status() -> Value {
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": "m", "observedGeneration": 1,
               "lastTransitionTime": "2026-10-01T10:00:00Z"})
    };
    json!({
        "observedGeneration": 1,
        "observedRetryRequest": "r1",
        "state": "Error",
        "reason": "UploadFailed",
        "target": {"kind": "ClusterBackupTarget", "name": "s3-primary", "uid": "u-1"},
        "source": {"persistentVolumeClaimName": "pg-data", "persistentVolumeClaimUID": "u-2", "persistentVolumeName": "pvc-1",
                   "driver": "rbd.csi.ceph.com", "volumeMode": "Filesystem", "path": "/dev/x", "bytes": 107_374_182_400_i64},
        "snapshot": {"namespace": "default", "name": "tm-1", "creationTime": "2026-10-01T09:00:00Z", "ours": true},
        "store": {"volume": "pvc-1", "backup": "backup-1", "blockSize": 2_097_152, "compression": "lz4",
                  "url": "s3://backups@eu-central-1/prod/?backup=backup-1&volume=pvc-1"},
        "startTime": "2026-10-01T09:00:00Z",
        "completionTime": "2026-10-01T11:00:00Z",
        "queue": {"since": "2026-10-01T08:00:00Z", "limit": "Namespace"},
        "attempt": {"number": 2, "id": "01ARYZ6S410000000000000000", "podName": "tm-1-2", "podUID": "u-3", "nodeName": "n3",
                    "startTime": "2026-10-01T09:30:00Z", "lastHeardTime": "2026-10-01T10:00:00Z", "heardBy": "HTTP"},
        "progress": {"totalBlocks": 51_200, "acknowledgedBlocks": 19_123, "uploadedBlocks": 412, "reusedBlocks": 18_711,
                     "resumedBlocks": 0, "failedBlocks": 1, "inFlightBlocks": 8, "percent": 37,
                     "acknowledgedBytes": 40_103_837_696_i64, "storedBytes": 412_000_000, "bytesPerSecond": 200_000_000,
                     "estimatedCompletionTime": "2026-10-01T12:00:00Z", "lastAcknowledgedTime": "2026-10-01T09:59:59Z"},
        "change": {"mode": "Incremental", "parent": "backup-0", "source": "FullComparison", "fallbackReason": "NoMetadata"},
        "requests": {"put": 412, "head": 0, "get": 3, "list": 2, "delete": 1, "retried": 5, "throttled": 0},
        "failure": {"reason": "UploadFailed", "message": "PUT answered 500", "object": "blocks/aa/bb/x.blk",
                    "time": "2026-10-01T10:00:00Z", "attempt": 2, "retryable": true},
        "consecutiveFailures": 1,
        "nextRetryTime": "2026-10-01T10:00:30Z",
        "conditions": [condition("Ready", "False", "UploadFailed"), condition("Reconciling", "True", "WaitingForRetry"),
                       condition("SnapshotReady", "True", "SnapshotTaken"), condition("DataAcknowledged", "False", "BlocksOutstanding"),
                       condition("RecordCommitted", "False", "NotYet")],
    })
}

fn full_restore_status() -> Value {
    let mut status = full_backup_status();
    for field in ["source", "snapshot", "store", "change"] {
        status.as_object_mut().expect("an object").remove(field);
    }
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": "m", "observedGeneration": 1,
               "lastTransitionTime": "2026-10-01T10:00:00Z"})
    };
    let own = json!({
        "backup": {"name": "pg-data-1", "uid": "u-4", "volume": "pvc-1", "backup": "backup-1",
                   "url": "s3://backups@eu-central-1/prod/?backup=backup-1&volume=pvc-1",
                   "snapshotTime": "2026-10-01T03:00:00Z"},
        "volume": {"path": "/dev/vg0/pg", "bytes": 107_374_182_400_i64, "blockSize": 2_097_152},
        "progress": null,
        "damaged": [{"offset": 2_097_152, "object": "backupstore/x.blk", "reason": "ChecksumMismatch"}],
        "conditions": [condition("Ready", "False", "BlockDamaged"), condition("Stalled", "True", "NotRetryable"),
                       condition("VolumeReady", "True", "NotNeeded"), condition("DataRestored", "False", "BlocksLost"),
                       condition("DataFlushed", "False", "FlushOutstanding"), condition("VolumeBound", "False", "NotYet")],
    });
    let mut status = merged(status, &own);
    status["progress"] = json!({"totalBlocks": 51_200, "restoredBlocks": 19_123, "reusedBlocks": 11, "zeroBlocks": 7,
        "damagedBlocks": 1, "percent": 37, "restoredBytes": 40_103_837_696_i64, "fetchedBytes": 412_000_000,
        "bytesPerSecond": 200_000_000, "estimatedCompletionTime": "2026-10-01T12:00:00Z",
        "lastRestoredTime": "2026-10-01T09:59:59Z"});
    status
}

fn full_target_status() -> Value {
    json!({
        "observedGeneration": 1,
        "cluster": "3f0c",
        "capabilities": {"conditionalWrites": true, "batchDelete": true, "listPageSize": 1000},
        "lastCheckTime": "2026-10-01T10:00:00Z",
        "volumes": 41,
        "backups": {"total": 1290, "foreign": 12, "inProgress": 2},
        "lastCatalogueTime": "2026-10-01T09:58:00Z",
        "references": 17,
        "deletions": {"since": "2026-10-01T09:00:00Z", "count": 20, "waitingSince": "2026-10-01T09:30:00Z",
                      "acknowledgedTime": "2026-10-01T08:00:00Z"},
        "conditions": [{"type": "Ready", "status": "True", "reason": "Available", "message": "", "observedGeneration": 1,
                        "lastTransitionTime": "2026-10-01T10:00:00Z"}],
    })
}

async fn full_objects(client: &Client, name: &str) -> [Value; 3] {
    let backup = merged(manifests::backup(name), &json!({"spec": manifests::full_backup_spec()}));
    let mut spec = manifests::full_target_spec();
    spec["s3"]["endpoint"] = json!("https://s3.example.com");
    let target = merged(manifests::target(name), &json!({"spec": spec}));
    let restore = merged(manifests::restore(name), &json!({"spec": manifests::full_restore_spec()}));
    let mut written = Vec::new();
    let objects = [(backup, full_backup_status()), (target, full_target_status()), (restore, full_restore_status())];
    for (manifest, status) in objects {
        create(client, &manifest).await.expect("a good manifest");
        written.push(replace_status(client, &manifest, &status).await.expect("a good status"));
    }
    <[Value; 3]>::try_from(written).expect("three objects")
}

#[tokio::test]
async fn the_crds_are_applied_without_a_warning() {
    let (plane, client) = installed().await;
    for crd in api::crds() {
        let uri = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}", crd.name_any());
        let query = format!("{uri}?fieldManager={MANAGER}&force=true&dryRun=All");
        let body = serde_json::to_vec(&crd).expect("a CRD is JSON");
        let request = http::Request::patch(query).header("content-type", "application/apply-patch+yaml");
        let answer = client.send(request.body(body.into()).expect("a good request")).await.expect("an answer");
        let warnings: Vec<_> = answer.headers().get_all("warning").iter().collect();
        assert!(answer.status().is_success() && warnings.is_empty(), "{uri}: {} {warnings:?}", answer.status());
    }
    let printed =
        plane.try_kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &api::crds_yaml()).await;
    let printed = printed.expect("`tidemark crds | kubectl apply --server-side -f -` works");
    assert_eq!(printed.lines().count(), 3, "{printed}");
}

#[tokio::test]
async fn bad_manifests_are_refused_with_what_to_write_instead() {
    let (_, client) = installed().await;
    let tables = [
        (manifests::bad_backups(), manifests::backup("bad")),
        (manifests::bad_restores(), manifests::restore("bad")),
        (manifests::bad_targets(), manifests::target("bad")),
    ];
    let mut wrong = Vec::new();
    for (table, good) in tables {
        for bad in table {
            match create(&client, &merged(good.clone(), &bad.change)).await {
                Ok(_) => {
                    wrong.push(format!("{} was accepted", bad.change));
                    break;
                }
                Err(said) if said.contains(bad.message) && !said.contains("rule compile error") => {}
                Err(said) => wrong.push(format!("{}\n  expected: {}\n  said: {said}", bad.change, bad.message)),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_refusal_names_its_field_once() {
    let (plane, _) = installed().await;
    let change = json!({"spec": {"deadlines": {"stall": "1d"}}});
    let manifest = merged(manifests::backup("once"), &change).to_string();
    let said = plane.try_kubectl(&["apply", "-f", "-"], &manifest).await.expect_err("a bad duration");
    let expected = "The Backup \"once\" is invalid: spec.deadlines.stall: Invalid value: write a duration as 90s, 10m, 24h or 1h30m";
    assert_eq!(
        said.replace("Invalid value: \"1d\": ", "Invalid value: ")
            .replace("Invalid value: \"string\": ", "Invalid value: "),
        expected
    );
}

#[tokio::test]
async fn a_short_manifest_gets_every_default_and_the_status_of_an_unobserved_object() {
    let (_, client) = installed().await;
    let created = create(&client, &manifests::backup("short")).await.expect("a good manifest");
    assert_eq!(created["status"], json!({"observedGeneration": -1}));
    let expected = json!({
        "source": {"persistentVolumeClaim": {"name": "pg-data"}},
        "mode": "Incremental", "verify": "None",
        "deadlines": {"snapshot": "10m", "start": "30m", "stall": "60s", "total": "168h", "keepSnapshot": "24h"},
        "retry": {"limit": 6, "backoff": "30s", "maxBackoff": "15m"},
        "cancel": false, "retryRequest": "", "deletionPolicy": "Retain", "expireAfter": "",
    });
    assert_eq!(created["spec"], expected);
    let created = create(&client, &manifests::restore("short")).await.expect("a good manifest");
    assert_eq!(created["status"], json!({"observedGeneration": -1}));
    let expected = json!({
        "backupRef": {"name": "pg-data-1"},
        "persistentVolumeClaim": {"name": "pg-data"},
        "onDamage": "Stop",
        "deadlines": {"start": "30m", "stall": "60s", "total": "168h"},
        "retry": {"limit": 6, "backoff": "30s", "maxBackoff": "15m"},
        "cancel": false, "retryRequest": "",
    });
    assert_eq!(created["spec"], expected);
    let created = create(&client, &manifests::target("short")).await.expect("a good manifest");
    assert_eq!(created["status"], json!({"observedGeneration": -1}));
    let expected = json!({
        "s3": {"bucket": "backups", "prefix": "prod/", "region": "eu-central-1"},
        "credentials": {"secretName": "s3-primary", "mode": "Static"},
        "allowedNamespaces": {"from": "All"},
        "imports": {"discover": "None", "anyOwnerNamespaces": []},
        "sharedWithClusters": false, "default": false, "compression": "lz4", "blockSize": "2Mi",
        "limits": {"maxConcurrentBackups": 10, "maxConcurrentBackupsPerNamespace": 4},
        "checkInterval": "5m",
    });
    assert_eq!(created["spec"], expected);
}

#[tokio::test]
async fn nothing_of_a_full_object_is_dropped_and_our_types_read_it_back() {
    let (_, client) = installed().await;
    let [backup, target, restore] = full_objects(&client, "full").await;
    assert_eq!(backup["spec"], manifests::full_backup_spec());
    assert_eq!(backup["status"], full_backup_status());
    assert_eq!(target["status"], full_target_status());
    let read: Backup = serde_json::from_value(backup.clone()).expect("our type reads it");
    assert_eq!(serde_json::to_value(&read.status).expect("JSON"), backup["status"], "no field is unknown to our type");
    assert_eq!(serde_json::to_value(&read.spec).expect("JSON"), backup["spec"]);
    assert_eq!(restore["spec"], manifests::full_restore_spec());
    assert_eq!(restore["status"], full_restore_status());
    let read: Restore = serde_json::from_value(restore.clone()).expect("our type reads it");
    assert_eq!(serde_json::to_value(&read.status).expect("JSON"), restore["status"], "no field is unknown to our type");
    assert_eq!(serde_json::to_value(&read.spec).expect("JSON"), restore["spec"]);
    let read: ClusterBackupTarget = serde_json::from_value(target.clone()).expect("our type reads it");
    assert_eq!(serde_json::to_value(&read.status).expect("JSON"), target["status"]);
    assert_eq!(serde_json::to_value(&read.spec).expect("JSON"), target["spec"]);
}

#[tokio::test]
async fn every_column_shows_something_of_a_full_object() {
    let (_, client) = installed().await;
    full_objects(&client, "columns").await;
    let paths = ["clusterbackuptargets", "namespaces/default/backups", "namespaces/default/restores"];
    for (path, crd) in paths.into_iter().zip(api::crds()) {
        let request = http::Request::get(format!("/apis/{}/{}/{path}/columns", api::GROUP, api::VERSION))
            .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
        let table: Value = client.request(request.body(vec![]).expect("a good request")).await.expect("a table");
        let shown: BTreeMap<&str, &Value> = table["columnDefinitions"]
            .as_array()
            .into_iter()
            .flatten()
            .zip(table["rows"][0]["cells"].as_array().into_iter().flatten())
            .filter_map(|(column, cell)| Some((column["name"].as_str()?, cell)))
            .collect();
        let columns = crd.spec.versions[0].additional_printer_columns.clone().unwrap_or_default();
        assert_eq!(shown.len(), columns.len() + 1, "the columns and the name: {table}");
        for column in columns {
            let cell = shown[column.name.as_str()];
            let is_something =
                !cell.is_null() && !["", "<none>", "<unknown>", "<invalid>"].contains(&cell.as_str().unwrap_or("?"));
            assert!(is_something, "{} ({}) shows {cell}", column.name, column.json_path);
        }
    }
}

#[tokio::test]
async fn kubectl_finds_and_explains_them() {
    let (plane, client) = installed().await;
    full_objects(&client, "kubectl").await;
    for selector in ["status.state=Error", "spec.source.persistentVolumeClaim.name=pg-data"] {
        let found = plane.kubectl(&["get", "tmb", "--field-selector", selector, "-o", "name"]).await;
        assert!(found.contains("backup.tidemark.dev/kubectl"), "{selector}: {found}");
    }
    let other = plane.kubectl(&["get", "tmb", "--field-selector", "status.state=Completed", "-o", "name"]).await;
    assert!(!other.contains("backup.tidemark.dev/kubectl"), "{other}");
    let all = plane.kubectl(&["get", "tidemark", "-A", "-o", "name"]).await;
    for name in
        ["backup.tidemark.dev/kubectl", "clusterbackuptarget.tidemark.dev/kubectl", "restore.tidemark.dev/kubectl"]
    {
        assert!(all.contains(name), "category tidemark lists {name}: {all}");
    }
    let header = plane.kubectl(&["get", "tmb", "kubectl"]).await;
    let words: Vec<&str> = header.lines().next().unwrap_or("").split_whitespace().collect();
    assert_eq!(words, ["NAME", "STATE", "%", "ACKED", "TOTAL", "LAST-ACK", "PVC", "REASON", "AGE"], "{header}");
    for selector in ["status.state=Error", "spec.backupRef.name=pg-data-1", "spec.persistentVolumeClaim.name=pg-data"] {
        let found = plane.kubectl(&["get", "tmr", "--field-selector", selector, "-o", "name"]).await;
        assert!(found.contains("restore.tidemark.dev/kubectl"), "{selector}: {found}");
    }
    let header = plane.kubectl(&["get", "tmr", "kubectl"]).await;
    let words: Vec<&str> = header.lines().next().unwrap_or("").split_whitespace().collect();
    assert_eq!(words, ["NAME", "STATE", "%", "RESTORED", "TOTAL", "PVC", "BACKUP", "REASON", "AGE"], "{header}");
    let explained = plane.kubectl(&["explain", "backups.tidemark.dev.spec.deadlines.stall"]).await;
    let one_line = explained.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(one_line.contains("nothing was acknowledged for this long"), "{explained}");
    let explained = plane.kubectl(&["explain", "tmt"]).await;
    assert!(explained.contains("A ClusterBackupTarget is a bucket"), "{explained}");
}

#[tokio::test]
async fn what_is_immutable_stays_and_the_verbs_are_free() {
    let (_, client) = installed().await;
    let backup = merged(manifests::backup("immutable"), &json!({"spec": manifests::full_backup_spec()}));
    let restore = merged(manifests::restore("immutable"), &json!({"spec": manifests::full_restore_spec()}));
    let target = manifests::target("immutable");
    let tables = [
        (restore, manifests::bad_restore_updates(), manifests::good_restore_updates()),
        (backup, manifests::bad_backup_updates(), manifests::good_backup_updates()),
        (target, manifests::bad_target_updates(), manifests::good_target_updates()),
    ];
    for (object, bad, good) in tables {
        create(&client, &object).await.expect("a good manifest");
        for bad in bad {
            let said = patch(&client, &object, &bad.change).await.expect_err(bad.message);
            assert!(said.contains(bad.message), "{}: {said}", bad.change);
        }
        for change in good {
            patch(&client, &object, &change).await.unwrap_or_else(|said| panic!("{change}: {said}"));
        }
    }
    let taken_back = patch(&client, &manifests::backup("immutable"), &json!({"spec": {"cancel": false}})).await;
    let said = taken_back.expect_err("cancel is one-way");
    assert!(said.contains("cancel cannot be taken back: create a new Backup"), "{said}");
}

#[tokio::test]
async fn laws_3_and_8_are_held_by_the_api_server() {
    let (_, client) = installed().await;
    let of_backups = manifests::status_changes().into_iter().map(|change| (change, manifests::backup("law")));
    let of_restores = manifests::restore_status_changes().into_iter().map(|change| (change, manifests::restore("law")));
    for (i, (change, object)) in of_backups.chain(of_restores).enumerate() {
        let object = merged(object, &json!({"metadata": {"name": format!("law-{i}")}}));
        create(&client, &object).await.expect("a good manifest");
        if change.old["observedGeneration"] != json!(-1) {
            replace_status(&client, &object, &change.old).await.unwrap_or_else(|e| panic!("{}: {e}", change.old));
        }
        let judged = replace_status(&client, &object, &change.new).await;
        let as_expected = match (&judged, change.refusal) {
            (Ok(_), None) => true,
            (Err(said), Some(refusal)) => said.contains(refusal),
            (Ok(_), Some(_)) | (Err(_), None) => false,
        };
        assert!(
            as_expected,
            "{}\n{}\n→ {}\nexpected {:?}, got {judged:?}",
            change.law, change.old, change.new, change.refusal
        );
    }
}

#[tokio::test]
async fn law_8_a_late_status_write_conflicts_even_when_forced() {
    let (_, client) = installed().await;
    let backups: Api<Backup> = Api::default_namespaced(client.clone());
    let created = create(&client, &manifests::backup("late")).await.expect("a good manifest");
    let stale = created["metadata"]["resourceVersion"].clone();
    let write = |version: Value, reason: &str| {
        let status = json!({
            "apiVersion": "tidemark.dev/v1alpha1", "kind": "Backup", "metadata": {"resourceVersion": version},
            "status": {"observedGeneration": 1, "state": "Pending", "reason": reason},
        });
        let backups = backups.clone();
        async move { backups.patch_status("late", &PatchParams::apply(MANAGER).force(), &Patch::Apply(status)).await }
    };
    let first = write(stale.clone(), "Queued").await.expect("decided on what is there");
    let late = write(stale, "WaitingForSource").await.expect_err("decided on what is gone");
    assert!(matches!(&late, kube::Error::Api(status) if status.is_conflict()), "{late:?}");
    let same = write(json!(first.resource_version()), "Queued").await.expect("the same again");
    assert_eq!(same.resource_version(), first.resource_version(), "an identical write is no write");
    assert_eq!(same.status.and_then(|status| status.reason).as_deref(), Some("Queued"));
}
