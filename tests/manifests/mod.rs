//! Manifests and statuses, good and bad, each with what must be said about it. Both the client-side check of the CEL
//! rules and the real API server are asked about the same tables.
#![allow(dead_code, reason = "each test file uses its own part")]

use serde_json::{Value, json};

/// Who can refuse it: the schema only on a server, a CEL rule also without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedBy {
    Schema,
    Rule,
}

use RefusedBy::{Rule, Schema};

/// One bad manifest: what is changed in a good one, and a part of the answer.
#[derive(Debug, Clone)]
pub struct Bad {
    pub change: Value,
    pub by: RefusedBy,
    pub message: &'static str,
}

fn bad(change: Value, by: RefusedBy, message: &'static str) -> Bad {
    Bad { change, by, message }
}

/// A Backup that says only what it must.
pub fn backup(name: &str) -> Value {
    json!({
        "apiVersion": "tidemark.dev/v1alpha1",
        "kind": "Backup",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"source": {"persistentVolumeClaim": {"name": "pg-data"}}},
    })
}

/// A target that says only what it must.
pub fn target(name: &str) -> Value {
    json!({
        "apiVersion": "tidemark.dev/v1alpha1",
        "kind": "ClusterBackupTarget",
        "metadata": {"name": name},
        "spec": {
            "s3": {"bucket": "backups", "prefix": "prod/", "region": "eu-central-1"},
            "credentials": {"secretName": "s3-primary"},
            "allowedNamespaces": {"from": "All"},
        },
    })
}

/// The example of the documentation, with every field set.
pub fn full_backup_spec() -> Value {
    json!({
        "source": {"persistentVolumeClaim": {"name": "pg-data", "volumeSnapshotClassName": "ceph-rbd"}},
        "targetRef": {"kind": "ClusterBackupTarget", "name": "s3-primary"},
        "mode": "Incremental",
        "verify": "Sample",
        "deadlines": {"snapshot": "10m", "start": "30m", "stall": "60s", "total": "168h", "keepSnapshot": "24h"},
        "retry": {"limit": 6, "backoff": "30s", "maxBackoff": "15m"},
        "upload": {"concurrency": 8, "maxBytesPerSecond": "200Mi"},
        "cancel": false,
        "retryRequest": "",
        "deletionPolicy": "Retain",
        "expireAfter": "",
    })
}

pub fn full_target_spec() -> Value {
    json!({
        "s3": {
            "bucket": "backups", "prefix": "prod/", "region": "eu-central-1", "endpoint": "", "forcePathStyle": false,
            "caBundle": "", "storageClass": "", "serverSideEncryption": {"algorithm": "", "kmsKeyID": ""},
        },
        "credentials": {"secretName": "s3-primary", "mode": "Static", "roleArn": "", "stsEndpoint": ""},
        "allowedNamespaces": {"from": "Names", "names": ["shop", "erp"]},
        "imports": {"discover": "None", "anyOwnerNamespaces": []},
        "sharedWithClusters": false,
        "default": false,
        "compression": "lz4",
        "blockSize": "2Mi",
        "limits": {"maxConcurrentBackups": 10, "maxConcurrentBackupsPerNamespace": 4, "maxBytesPerSecond": "400Mi"},
        "checkInterval": "5m",
    })
}

/// A Restore that says only what it must.
pub fn restore(name: &str) -> Value {
    json!({
        "apiVersion": "tidemark.dev/v1alpha1",
        "kind": "Restore",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"backupRef": {"name": "pg-data-1"}, "persistentVolumeClaim": {"name": "pg-data"}},
    })
}

pub fn full_restore_spec() -> Value {
    json!({
        "backupRef": {"name": "pg-data-1"},
        "persistentVolumeClaim": {
            "name": "pg-data", "storageClassName": "ceph-rbd", "volumeMode": "Filesystem",
            "accessModes": ["ReadWriteOnce"], "size": "100Gi", "labels": {"app": "pg"},
        },
        "onDamage": "Stop",
        "deadlines": {"start": "30m", "stall": "60s", "total": "168h"},
        "retry": {"limit": 6, "backoff": "30s", "maxBackoff": "15m"},
        "download": {"concurrency": 8, "maxBytesPerSecond": "400Mi"},
        "cancel": false,
        "retryRequest": "",
    })
}

/// What a new Restore may not say.
pub fn bad_restores() -> Vec<Bad> {
    let spec = |part: Value| json!({"spec": part});
    let device = |part: Value| spec(merged(json!({"persistentVolumeClaim": null}), &json!({"hostDevice": part})));
    let one_of = "set exactly one of persistentVolumeClaim, hostDevice";
    vec![
        bad(json!({"metadata": {"name": "x".repeat(64)}}), Rule, "metadata.name must be at most 63 characters"),
        bad(spec(json!({"persistentVolumeClaim": null})), Rule, one_of),
        bad(spec(json!({"hostDevice": {"path": "/dev/x", "nodeName": "n"}})), Rule, one_of),
        bad(spec(json!({"backupRef": {"name": ""}})), Schema, "spec.backupRef.name"),
        bad(device(json!({"path": "dev/x", "nodeName": "n"})), Rule, "path must be absolute"),
        bad(device(json!({"path": "/dev/../etc/x", "nodeName": "n"})), Rule, "path must not contain '..'"),
        bad(
            device(json!({"path": "/dev/x", "nodeName": "n", "overwrite": "Always"})),
            Schema,
            "supported values: \"Refuse\", \"Replace\"",
        ),
        bad(spec(json!({"onDamage": "Ignore"})), Schema, "supported values: \"Stop\", \"Continue\""),
        bad(
            spec(json!({"persistentVolumeClaim": {"accessModes": ["Often"]}})),
            Schema,
            "supported values: \"ReadWriteOnce\"",
        ),
        bad(spec(json!({"persistentVolumeClaim": {"size": "large"}})), Rule, "not a quantity: write bytes as 100Gi"),
        bad(spec(json!({"deadlines": {"stall": "4s"}})), Rule, "stall must be at least 5s and less than total"),
        bad(spec(json!({"download": {"maxBytesPerSecond": "1Ki"}})), Rule, "at least 64Ki bytes per second"),
    ]
}

/// What an existing Restore (the full example) may not be changed to.
pub fn bad_restore_updates() -> Vec<Bad> {
    let spec = |part: Value| json!({"spec": part});
    let anew = |field: &str| format!("{field}: create a new Restore").leak() as &'static str;
    vec![
        bad(spec(json!({"backupRef": {"name": "other"}})), Rule, anew("backupRef is immutable")),
        bad(
            spec(json!({"persistentVolumeClaim": {"size": "200Gi"}})),
            Rule,
            anew("persistentVolumeClaim is immutable"),
        ),
        bad(
            spec(json!({"persistentVolumeClaim": null, "hostDevice": {"path": "/dev/x", "nodeName": "n"}})),
            Rule,
            anew("hostDevice is immutable"),
        ),
        bad(spec(json!({"onDamage": "Continue"})), Rule, anew("onDamage is immutable")),
        bad(spec(json!({"deadlines": {"stall": "2m"}})), Rule, anew("deadlines are immutable")),
        bad(spec(json!({"retry": {"limit": 7}})), Rule, "retry is immutable: create a new Restore"),
    ]
}

/// What it may be changed to, one after another.
pub fn good_restore_updates() -> Vec<Value> {
    let spec = |part: Value| json!({"spec": part});
    vec![
        spec(json!({"download": {"concurrency": 32, "maxBytesPerSecond": 65_536}})),
        spec(json!({"download": null})),
        spec(json!({"retryRequest": "2026-10-01T10:00:00Z"})),
        spec(json!({"cancel": true})),
    ]
}

/// What a new Backup may not say.
pub fn bad_backups() -> Vec<Bad> {
    let source = |source: Value| json!({"spec": {"source": source}});
    let device = |path: &str| {
        source(json!({"persistentVolumeClaim": null, "hostDevice": {"path": path, "nodeName": "n", "name": "pg"}}))
    };
    let spec = |part: Value| json!({"spec": part});
    let one_of = "set exactly one of persistentVolumeClaim, volumeSnapshot, existing, hostDevice";
    let duration = "write a duration as 90s, 10m, 24h or 1h30m";
    let rate = "at least 64Ki bytes per second";
    vec![
        bad(json!({"metadata": {"name": "x".repeat(64)}}), Rule, "metadata.name must be at most 63 characters"),
        bad(source(json!({"persistentVolumeClaim": null})), Rule, one_of),
        bad(source(json!({"volumeSnapshot": {"name": "s"}})), Rule, one_of),
        bad(source(json!({"existing": {"volume": "pvc-1", "backup": "backup-1"}})), Rule, one_of),
        bad(source(json!({"persistentVolumeClaim": {"name": ""}})), Schema, "spec.source.persistentVolumeClaim.name"),
        bad(
            source(json!({"persistentVolumeClaim": null, "existing": {"volume": "PVC", "backup": "b1"}})),
            Rule,
            "volume must be the volume's name in the store",
        ),
        bad(device("dev/vg0/snap"), Rule, "path must be absolute, e.g. /dev/vg0/snap"),
        bad(device("/dev/../etc/shadow"), Rule, "path must not contain '..'"),
        bad(spec(json!({"mode": "Differential"})), Schema, "supported values: \"Incremental\", \"Full\""),
        bad(
            spec(json!({"targetRef": {"kind": "BackupTarget", "name": "t"}})),
            Schema,
            "supported values: \"ClusterBackupTarget\"",
        ),
        bad(spec(json!({"targetRef": {"name": ""}})), Schema, "spec.targetRef.name"),
        bad(spec(json!({"deadlines": {"stall": "1d"}})), Rule, duration),
        bad(spec(json!({"deadlines": {"snapshot": "10"}})), Rule, duration),
        bad(spec(json!({"deadlines": {"total": ""}})), Rule, duration),
        bad(spec(json!({"deadlines": {"stall": "4s"}})), Rule, "stall must be at least 5s and less than total"),
        bad(spec(json!({"deadlines": {"total": "1m"}})), Rule, "stall must be at least 5s and less than total"),
        bad(spec(json!({"retry": {"backoff": "20m"}})), Rule, "backoff must not be longer than maxBackoff"),
        bad(spec(json!({"retry": {"limit": -1}})), Schema, "spec.retry.limit"),
        bad(spec(json!({"upload": {"concurrency": 0}})), Schema, "spec.upload.concurrency"),
        bad(spec(json!({"upload": {"concurrency": 33}})), Schema, "should be less than or equal to 32"),
        bad(spec(json!({"upload": {"maxBytesPerSecond": "63Ki"}})), Rule, rate),
        bad(spec(json!({"upload": {"maxBytesPerSecond": 65_535}})), Rule, rate),
        bad(
            spec(json!({"upload": {"maxBytesPerSecond": "fast"}})),
            Rule,
            "not a quantity: write bytes per second as 200Mi or 50M",
        ),
        bad(spec(json!({"deletionPolicy": "Orphan"})), Schema, "supported values: \"Retain\", \"Delete\""),
        bad(spec(json!({"expireAfter": "30d"})), Rule, "write a duration as 90s, 10m, 24h or 1h30m, or leave it empty"),
        bad(spec(json!({"cancel": "yes"})), Schema, "spec.cancel"),
    ]
}

/// What a new target may not say.
pub fn bad_targets() -> Vec<Bad> {
    let s3 = |part: Value| json!({"spec": {"s3": part}});
    let allowed = |part: Value| json!({"spec": {"allowedNamespaces": part}});
    let spec = |part: Value| json!({"spec": part});
    let path = "prefix must be a plain path such as prod/";
    let endpoint = "endpoint must be a URL with http:// or https://";
    let names = "names goes with from: Names";
    let role = "arn:aws:iam::123456789012:role/tidemark-worker";
    let session = |mut part: Value| {
        part["mode"] = part.get("mode").cloned().unwrap_or(json!("AssumeRole"));
        spec(json!({"credentials": part}))
    };
    let selector = "selector goes with from: Selector";
    vec![
        bad(json!({"metadata": {"name": "x".repeat(64)}}), Rule, "metadata.name must be at most 63 characters"),
        bad(s3(json!({"bucket": "s3://backups"})), Rule, "bucket must be a bucket's bare name"),
        bad(s3(json!({"bucket": "Backups"})), Rule, "bucket must be a bucket's bare name"),
        bad(s3(json!({"bucket": "ab"})), Schema, "spec.s3.bucket"),
        bad(s3(json!({"prefix": "prod"})), Rule, "prefix must be empty or end with '/', e.g. prod/"),
        bad(s3(json!({"prefix": "/prod/"})), Rule, path),
        bad(s3(json!({"prefix": "a//b/"})), Rule, path),
        bad(s3(json!({"prefix": "a/../b/"})), Rule, path),
        bad(s3(json!({"region": null})), Schema, "spec.s3.region"),
        bad(s3(json!({"endpoint": "minio:9000"})), Rule, endpoint),
        bad(s3(json!({"endpoint": "ftp://minio"})), Rule, endpoint),
        bad(s3(json!({"endpoint": "https://key:secret@minio"})), Rule, endpoint),
        bad(s3(json!({"caBundle": "TUlJ"})), Rule, "caBundle must be PEM text"),
        bad(s3(json!({"storageClass": "DEEP_ARCHIVE"})), Rule, "an archive storage class cannot be read at once"),
        bad(s3(json!({"storageClass": "glacier"})), Rule, "an archive storage class cannot be read at once"),
        bad(
            s3(json!({"serverSideEncryption": {"algorithm": "rot13"}})),
            Schema,
            "supported values: \"\", \"AES256\", \"aws:kms\"",
        ),
        bad(
            s3(json!({"serverSideEncryption": {"algorithm": "AES256", "kmsKeyID": "k"}})),
            Rule,
            "kmsKeyID needs algorithm: aws:kms",
        ),
        bad(spec(json!({"credentials": {"secretName": ""}})), Schema, "spec.credentials.secretName"),
        bad(session(json!({})), Rule, "AssumeRole needs credentials.roleArn on AWS"),
        bad(session(json!({"roleArn": "tidemark"})), Rule, "roleArn must be the ARN of a role"),
        bad(session(json!({"roleArn": role, "stsEndpoint": "sts"})), Rule, "stsEndpoint must be a URL with http"),
        bad(
            spec(json!({"credentials": {"mode": "AssumeRole", "roleArn": role}, "s3": {"prefix": "a*/"}})),
            Rule,
            "a policy would see a pattern",
        ),
        bad(
            session(json!({"mode": "Static", "roleArn": role})),
            Rule,
            "roleArn and stsEndpoint go with mode: AssumeRole",
        ),
        bad(spec(json!({"allowedNamespaces": null})), Schema, "spec.allowedNamespaces"),
        bad(
            allowed(json!({"from": "Everybody"})),
            Schema,
            "supported values: \"None\", \"All\", \"Names\", \"Selector\"",
        ),
        bad(allowed(json!({"from": "Names"})), Rule, names),
        bad(allowed(json!({"from": "Names", "names": []})), Rule, names),
        bad(allowed(json!({"from": "All", "names": ["shop"]})), Rule, names),
        bad(allowed(json!({"from": "Selector"})), Rule, selector),
        bad(allowed(json!({"from": "None", "selector": {"matchLabels": {"a": "b"}}})), Rule, selector),
        bad(spec(json!({"compression": "zstd"})), Schema, "supported values: \"lz4\", \"gzip\", \"none\""),
        bad(spec(json!({"blockSize": "4Mi"})), Schema, "supported values: \"2Mi\", \"16Mi\""),
        bad(spec(json!({"limits": {"maxConcurrentBackups": 0}})), Schema, "spec.limits.maxConcurrentBackups"),
        bad(spec(json!({"limits": {"maxBytesPerSecond": "1"}})), Rule, "at least 64Ki bytes per second"),
        bad(spec(json!({"checkInterval": "5s"})), Rule, "checkInterval must be at least 10s"),
        bad(spec(json!({"checkInterval": "5 minutes"})), Rule, "write a duration as 90s, 10m, 24h or 1h30m"),
    ]
}

/// What an existing Backup (the full example) may not be changed to.
pub fn bad_backup_updates() -> Vec<Bad> {
    let spec = |part: Value| json!({"spec": part});
    vec![
        bad(
            spec(json!({"source": {"persistentVolumeClaim": {"name": "other"}}})),
            Rule,
            "source is immutable: create a new Backup",
        ),
        bad(
            spec(json!({"source": {"persistentVolumeClaim": null, "volumeSnapshot": {"name": "s"}}})),
            Rule,
            "source is immutable: create a new Backup",
        ),
        bad(spec(json!({"mode": "Full"})), Rule, "mode is immutable: create a new Backup"),
        bad(spec(json!({"targetRef": null})), Rule, "targetRef is immutable: create a new Backup"),
        bad(spec(json!({"targetRef": {"name": "s3-second"}})), Rule, "targetRef is immutable: create a new Backup"),
        bad(spec(json!({"deadlines": {"stall": "2m"}})), Rule, "deadlines are immutable: create a new Backup"),
        bad(spec(json!({"retry": {"limit": 7}})), Rule, "retry is immutable: create a new Backup"),
    ]
}

/// What it may be changed to, one after another.
pub fn good_backup_updates() -> Vec<Value> {
    let spec = |part: Value| json!({"spec": part});
    vec![
        spec(json!({"upload": {"concurrency": 32, "maxBytesPerSecond": 65_536}})),
        spec(json!({"upload": null})),
        spec(json!({"retryRequest": "2026-10-01T10:00:00Z"})),
        spec(json!({"deletionPolicy": "Delete"})),
        spec(json!({"deletionPolicy": "Retain", "expireAfter": "720h"})),
        spec(json!({"cancel": true})),
    ]
}

pub fn bad_target_updates() -> Vec<Bad> {
    let s3 = |part: Value| json!({"spec": {"s3": part}});
    vec![
        bad(s3(json!({"bucket": "elsewhere"})), Rule, "bucket is immutable: create a new ClusterBackupTarget"),
        bad(s3(json!({"prefix": "test/"})), Rule, "prefix is immutable: create a new ClusterBackupTarget"),
        bad(s3(json!({"prefix": null})), Rule, "prefix is immutable: create a new ClusterBackupTarget"),
    ]
}

pub fn good_target_updates() -> Vec<Value> {
    vec![
        json!({"spec": {"s3": {"region": "eu-west-1", "endpoint": "https://s3.example.com:9000", "forcePathStyle": true}}}),
        json!({"spec": {"credentials": {"secretName": "rotated"}, "compression": "none", "blockSize": "16Mi"}}),
        json!({"spec": {"allowedNamespaces": {"from": "Selector", "names": null, "selector": {"matchLabels": {"backup": "yes"}}}}}),
        json!({"spec": {"limits": {"maxConcurrentBackups": 1, "maxBytesPerSecond": 65_536}, "checkInterval": "1h"}}),
        json!({"spec": {"s3": {"serverSideEncryption": {"algorithm": "aws:kms", "kmsKeyID": "key"}, "storageClass": "GLACIER_IR"}}}),
    ]
}

/// One change of status: from what to what, and the refusal if it is one.
pub struct StatusChange {
    pub law: &'static str,
    pub old: Value,
    pub new: Value,
    pub refusal: Option<&'static str>,
}

/// The API server's half of laws 3 and 8.
pub fn status_changes() -> Vec<StatusChange> {
    let at = |state: &str, number: i64, acknowledged: i64, percent: i64| {
        json!({
            "observedGeneration": 1, "state": state,
            "attempt": {"number": number, "id": format!("01ARYZ6S41000000000000000{number}")},
            "progress": {"totalBlocks": 100, "acknowledgedBlocks": acknowledged, "percent": percent},
        })
    };
    let change = |law, old: &Value, new: Value, refusal| StatusChange { law, old: old.clone(), new, refusal };
    let planned = |total: Value, acknowledged: i64| json!({"observedGeneration": 1, "progress": {"totalBlocks": total, "acknowledgedBlocks": acknowledged, "percent": 0}});
    let without = |mut status: Value, field: &str| {
        status.as_object_mut().expect("an object").remove(field);
        status
    };
    let none = json!({"observedGeneration": -1});
    let running = at("InProgress", 2, 50, 50);
    let completed = at("Completed", 2, 100, 100);
    let cancelled = at("Cancelled", 2, 50, 50);
    let fallen = Some("progress never falls within an attempt");
    let earlier = Some("an earlier attempt changes nothing");
    let exactly = Some("percent is 100 exactly when Completed");
    let too_many = Some("acknowledgedBlocks must not be more than totalBlocks");
    vec![
        change("a first status", &none, running.clone(), None),
        change("law 3: progress rises", &running, at("InProgress", 2, 51, 51), None),
        change("law 3: progress stays", &running, at("Committing", 2, 50, 50), None),
        change("law 3: progress falls", &running, at("InProgress", 2, 49, 49), fallen),
        change("law 3: progress vanishes", &running, without(running.clone(), "progress"), fallen),
        change("law 3: a new attempt proves less", &running, at("InProgress", 3, 10, 10), None),
        change("law 3: 100 before Completed", &running, at("Committing", 2, 100, 100), exactly),
        change("law 3: Completed below 100", &running, at("Completed", 2, 100, 99), exactly),
        change("law 3: Completed at 100", &running, completed.clone(), None),
        change("law 3: more than there is", &running, at("InProgress", 2, 101, 99), too_many),
        change("law 3: acknowledged before the plan", &none, planned(Value::Null, 1), too_many),
        change("law 3: nothing before the plan", &none, planned(Value::Null, 0), None),
        change("law 8: an earlier attempt", &running, at("InProgress", 1, 60, 60), earlier),
        change("law 8: the attempt vanishes", &running, without(running.clone(), "attempt"), earlier),
        change("law 8: back from Completed", &completed, at("InProgress", 3, 100, 99), Some("Completed is history")),
        change("law 8: from Completed to Error", &completed, at("Error", 2, 100, 99), Some("Completed is history")),
        change(
            "law 8: Completed forgotten",
            &completed,
            without(completed.clone(), "state"),
            Some("Completed is history"),
        ),
        change("law 8: Completed is deleted", &completed, at("Deleting", 2, 100, 100), None),
        change("law 8: back from Cancelled", &cancelled, at("InProgress", 3, 50, 50), Some("Cancelled is history")),
        change(
            "law 8: from Cancelled to Completed",
            &cancelled,
            at("Completed", 2, 100, 100),
            Some("Cancelled is history"),
        ),
        change("law 8: Cancelled is deleted", &cancelled, at("Deleting", 2, 50, 50), None),
    ]
}

/// The same of a Restore.
pub fn restore_status_changes() -> Vec<StatusChange> {
    let at = |state: &str, number: i64, restored: i64, percent: i64| {
        json!({
            "observedGeneration": 1, "state": state,
            "attempt": {"number": number, "id": format!("01ARYZ6S41000000000000000{number}")},
            "progress": {"totalBlocks": 100, "restoredBlocks": restored, "percent": percent},
        })
    };
    let change = |law, old: &Value, new: Value, refusal| StatusChange { law, old: old.clone(), new, refusal };
    let with = |status: &Value, progress: Value| merged(status.clone(), &json!({"progress": progress}));
    let hole = json!({"offset": 0, "object": "k", "reason": "Missing"});
    let none = json!({"observedGeneration": -1});
    let running = at("InProgress", 2, 50, 50);
    let completed = at("Completed", 2, 100, 100);
    let cancelled = at("Cancelled", 2, 50, 50);
    let fallen = Some("progress never falls within an attempt");
    let exactly = Some("percent is 100 exactly when Completed");
    let too_many = Some("restoredBlocks and damagedBlocks must not be more than totalBlocks");
    vec![
        change("a first status", &none, running.clone(), None),
        change("law 3: progress rises", &running, at("InProgress", 2, 51, 51), None),
        change("law 3: progress falls", &running, at("InProgress", 2, 49, 49), fallen),
        change("law 3: a new attempt proves less", &running, at("InProgress", 3, 10, 10), None),
        change("law 3: 100 before Completed", &running, at("Flushing", 2, 100, 100), exactly),
        change("law 3: Completed below 100", &running, at("Completed", 2, 100, 99), exactly),
        change("law 3: Completed at 100", &running, completed.clone(), None),
        change("law 3: more than there is", &running, with(&running, json!({"damagedBlocks": 51})), too_many),
        change(
            "law 3: more found than restored",
            &running,
            with(&running, json!({"reusedBlocks": 51})),
            Some("reusedBlocks must not be more than restoredBlocks"),
        ),
        change(
            "law 4: Completed with a hole",
            &running,
            with(&completed, json!({"restoredBlocks": 99, "damagedBlocks": 1})),
            Some("a restore with damaged blocks is not Completed"),
        ),
        change(
            "law 8: an earlier attempt",
            &running,
            at("InProgress", 1, 60, 60),
            Some("an earlier attempt changes nothing"),
        ),
        change("law 8: back from Completed", &completed, at("InProgress", 3, 100, 99), Some("Completed is history")),
        change("law 8: back from Cancelled", &cancelled, at("InProgress", 3, 50, 50), Some("Cancelled is history")),
        change(
            "law 9: eleven holes",
            &running,
            merged(running.clone(), &json!({"damaged": vec![hole; 11]})),
            Some("status.damaged"),
        ),
    ]
}

/// RFC 7386: null removes.
pub fn merged(mut onto: Value, change: &Value) -> Value {
    match change.as_object() {
        None => change.clone(),
        Some(fields) => {
            if !onto.is_object() {
                onto = json!({});
            }
            let object = onto.as_object_mut().expect("it was just made one");
            for (key, value) in fields {
                match value {
                    Value::Null => drop(object.remove(key)),
                    value => {
                        let old = object.remove(key).unwrap_or(Value::Null);
                        object.insert(key.clone(), merged(old, value));
                    }
                }
            }
            onto
        }
    }
}
