//! The CRDs without a server: what is checked in is what the types say, every field explains itself, and the CEL rules
//! answer as they should. `tests/operator/crds_server.rs` asks a real API server the same questions.

use std::path::{Path, PathBuf};

use crate::manifests::{self, Bad, RefusedBy, merged};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{JSONSchemaProps, JSONSchemaPropsOrArray};
use serde_json::{Value, json};
use tidemark::api::{self, Backup, ClusterBackupTarget, Restore};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// For people with kubectl, and for the chart, which cannot reach outside its own directory.
const CRD_FOLDERS: [&str; 2] = ["crds", "charts/tidemark/files/crds"];

/// Every generated file: where it is and what must be in it.
fn generated() -> Vec<(PathBuf, String)> {
    let crds = api::crd_files()
        .into_iter()
        .flat_map(|(name, content)| CRD_FOLDERS.map(|folder| (root().join(folder).join(&name), content.clone())));
    crds.chain([(root().join("docs/resources.md"), api::reference::markdown())]).collect()
}

#[test]
fn generated_files_are_current() {
    for (path, content) in generated() {
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == content, "{} is not what src/api says: run `make generate`", path.display());
    }
    for entry in CRD_FOLDERS.iter().flat_map(|folder| std::fs::read_dir(root().join(folder)).expect("it is checked in"))
    {
        let path = entry.expect("readable").path();
        assert!(generated().iter().any(|(wanted, _)| *wanted == path), "{} is of no kind we have", path.display());
    }
}

/// `make generate`.
#[test]
#[ignore = "writes crds/ and docs/resources.md"]
fn generate() {
    for (path, content) in generated() {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).expect("can make the directory");
        std::fs::write(&path, content).expect("can write the file");
    }
}

#[test]
fn the_printed_crds_are_those_that_are_served() {
    let printed = api::crds_yaml();
    let documents: Vec<Value> = printed.split("\n---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect();
    let names: Vec<&str> = documents.iter().filter_map(|crd| crd["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["clusterbackuptargets.tidemark.dev", "backups.tidemark.dev", "restores.tidemark.dev"]);
    for (document, crd) in documents.iter().zip(api::crds()) {
        let read: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition =
            serde_json::from_value(document.clone()).expect("YAML holds a CRD");
        assert_eq!(read, crd, "YAML lost nothing");
    }
}

fn walk(path: &str, schema: &JSONSchemaProps, visit: &mut impl FnMut(&str, &JSONSchemaProps)) {
    visit(path, schema);
    for (name, property) in schema.properties.iter().flatten() {
        walk(&format!("{path}.{name}"), property, visit);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
        walk(&format!("{path}[]"), item, visit);
    }
}

fn schemas() -> Vec<(String, JSONSchemaProps)> {
    let schema =
        |mut crd: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition| {
            let version = crd.spec.versions.remove(0);
            (crd.spec.names.kind, version.schema.and_then(|s| s.open_api_v3_schema).expect("a schema"))
        };
    api::crds().into_iter().map(schema).collect()
}

#[test]
fn every_field_explains_itself_and_has_bounds() {
    for (kind, schema) in schemas() {
        walk(&kind, &schema, &mut |path, field| {
            let is_item = path.ends_with("[]");
            assert!(is_item || field.description.as_ref().is_some_and(|d| !d.is_empty()), "{path} has no description");
            assert!(!field.description.as_deref().unwrap_or("").contains("Auto-generated"), "{path}: {field:?}");
            assert_eq!(field.nullable, None, "{path}: null is not a value");
            let foreign = path.contains("selector") || path.contains("conditions[]");
            let is_text = field.type_.as_deref() == Some("string") && field.enum_.is_none() && field.format.is_none();
            assert!(foreign || !is_text || field.max_length.is_some(), "{path} is a text without maxLength");
            assert!(
                foreign || field.type_.as_deref() != Some("array") || field.max_items.is_some(),
                "{path} is a list without maxItems"
            );
            let format = field.format.as_deref().unwrap_or("int32");
            assert!(["int32", "int64", "date-time"].contains(&format), "{path}: the API server warns of {format}");
            for rule in field.x_kubernetes_validations.iter().flatten() {
                assert!(rule.message.is_some(), "{path}: {} is refused without a word", rule.rule);
            }
        });
    }
}

/// What the rules of a kind say about an object, new or changed; `Err` also when it does not even deserialise.
macro_rules! judge {
    ($name:ident, $kind:ty) => {
        fn $name(new: &Value, old: Option<&Value>) -> Result<(), String> {
            let parse = |value: &Value| serde_json::from_value::<$kind>(value.clone()).map_err(|e| e.to_string());
            let new = parse(new)?;
            let judged = match old {
                None => new.validate_cel(),
                Some(old) => new.validate_cel_update(&parse(old)?),
            };
            judged.map_err(|e| e.to_string())
        }
    };
}
judge!(judge_backup, Backup);
judge!(judge_restore, Restore);
judge!(judge_target, ClusterBackupTarget);

type Judge = fn(&Value, Option<&Value>) -> Result<(), String>;

fn refused(table: Vec<Bad>, good: &Value, judge: Judge, old: Option<&Value>) {
    for bad in table.into_iter().filter(|bad| bad.by == RefusedBy::Rule) {
        let manifest = merged(good.clone(), &bad.change);
        let said = judge(&manifest, old).expect_err(&format!("{} must be refused", bad.change));
        assert!(
            said.contains(bad.message),
            "{}\nmust be refused with: {}\nwas refused with: {said}",
            bad.change,
            bad.message
        );
    }
}

#[test]
fn rules_refuse_bad_manifests_with_what_to_write_instead() {
    refused(manifests::bad_backups(), &manifests::backup("pg"), judge_backup, None);
    refused(manifests::bad_restores(), &manifests::restore("r"), judge_restore, None);
    refused(manifests::bad_targets(), &manifests::target("t"), judge_target, None);
}

#[test]
fn rules_accept_good_manifests() {
    for (name, judged) in [
        ("short backup", judge_backup(&manifests::backup("pg"), None)),
        (
            "full backup",
            judge_backup(&merged(manifests::backup("pg"), &json!({"spec": manifests::full_backup_spec()})), None),
        ),
        ("short restore", judge_restore(&manifests::restore("r"), None)),
        (
            "full restore",
            judge_restore(&merged(manifests::restore("r"), &json!({"spec": manifests::full_restore_spec()})), None),
        ),
        ("short target", judge_target(&manifests::target("t"), None)),
        (
            "full target",
            judge_target(&merged(manifests::target("t"), &json!({"spec": manifests::full_target_spec()})), None),
        ),
    ] {
        assert_eq!(judged, Ok(()), "{name}");
    }
}

#[test]
fn what_is_immutable_stays_and_the_verbs_are_free() {
    let backup = merged(manifests::backup("pg"), &json!({"spec": manifests::full_backup_spec()}));
    let restore = merged(manifests::restore("pg"), &json!({"spec": manifests::full_restore_spec()}));
    let backups =
        (backup, manifests::bad_backup_updates(), manifests::good_backup_updates(), judge_backup as Judge, "Backup");
    let restores = (
        restore,
        manifests::bad_restore_updates(),
        manifests::good_restore_updates(),
        judge_restore as Judge,
        "Restore",
    );
    for (old, bad, good, judge, kind) in [backups, restores] {
        refused(bad, &old, judge, Some(&old));
        let mut last = old;
        for change in good {
            let new = merged(last.clone(), &change);
            assert_eq!(judge(&new, Some(&last)), Ok(()), "{change}");
            last = new;
        }
        let taken_back = merged(last.clone(), &json!({"spec": {"cancel": false}}));
        let said = judge(&taken_back, Some(&last)).expect_err("cancel is one-way");
        assert!(said.contains(&format!("cancel cannot be taken back: create a new {kind}")), "{said}");
    }

    let old = manifests::target("t");
    refused(manifests::bad_target_updates(), &old, judge_target, Some(&old));
    for change in manifests::good_target_updates() {
        assert_eq!(judge_target(&merged(old.clone(), &change), Some(&old)), Ok(()), "{change}");
    }
}

#[test]
fn laws_3_and_8_are_held_by_the_rules_on_status() {
    let tables: [(Vec<manifests::StatusChange>, Value, Judge); 2] = [
        (manifests::status_changes(), manifests::backup("pg"), judge_backup),
        (manifests::restore_status_changes(), manifests::restore("pg"), judge_restore),
    ];
    for (changes, object, judge) in tables {
        // A list that is too long only a server refuses.
        for change in changes.into_iter().filter(|change| change.refusal != Some("status.damaged")) {
            let with = |status: &Value| merged(object.clone(), &json!({"status": status}));
            let judged = judge(&with(&change.new), Some(&with(&change.old)));
            let as_expected = match (&judged, change.refusal) {
                (Ok(()), None) => true,
                (Err(said), Some(refusal)) => said.contains(refusal),
                (Ok(()), Some(_)) | (Err(_), None) => false,
            };
            assert!(
                as_expected,
                "{}\n{}\n→ {}\nexpected {:?}, got {judged:?}",
                change.law, change.old, change.new, change.refusal
            );
        }
    }
}
