//! The chart without Helm: its CRDs are those of the types, its permissions are files a person can read, and every value has
//! a place in the schema. What Helm makes of it is shown where there is a Helm.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::Value;
use tidemark::{controller::runner::settings::WorkerSettings, model::limits};

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/tidemark")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(chart().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every value has a description by type, and nothing is described that is not there.
#[test]
fn every_value_is_in_the_schema_and_nothing_else() {
    fn compare(path: &str, values: &Value, schema: &Value) {
        let (Value::Object(values), Some(properties)) = (values, schema["properties"].as_object()) else { return };
        assert_eq!(schema["additionalProperties"], false, "{path} takes anything");
        let named: BTreeSet<&String> = properties.keys().filter(|key| *key != "global").collect();
        let given: BTreeSet<&String> = values.keys().collect();
        assert_eq!(named, given, "{path}");
        for (key, value) in values {
            compare(&format!("{path}.{key}"), value, &properties[key]);
        }
    }
    let schema: Value = serde_json::from_str(&read("values.schema.json")).expect("JSON");
    compare("values", &yaml("values.yaml"), &schema);
}

/// What the chart gives to workers is what the operator reads.
#[test]
fn the_workers_values_are_settings_the_operator_takes() {
    let values = yaml("values.yaml");
    let mut settings = values["worker"].clone();
    for (key, value) in settings.clone().as_object().expect("an object") {
        let is_empty = value.as_str() == Some("") || value.as_object().is_some_and(serde_json::Map::is_empty);
        if is_empty {
            settings.as_object_mut().expect("an object").remove(key);
        }
    }
    settings["image"] = values["image"]["repository"].clone();
    settings["imagePullPolicy"] = values["image"]["pullPolicy"].clone();
    let parsed = WorkerSettings::parse(&settings.to_string()).expect("the operator reads it");
    assert_eq!(parsed, WorkerSettings { image: "tidemark".into(), ..WorkerSettings::default() });
}

/// Its scratch has room for as many listings of the largest volume as the operator makes at once: more than its limit in an
/// emptyDir ends the Pod.
#[test]
fn law_9_the_operators_scratch_holds_the_listings_it_makes() {
    let wanted = format!("emptyDir: {{sizeLimit: {}Mi}}", limits::OPERATOR_SCRATCH_BYTES >> 20);
    let deployment = read("templates/deployment.yaml");
    assert!(deployment.contains(&wanted), "templates/deployment.yaml lacks {wanted}");
}

/// Least privilege, as words: no wildcard, nothing that leads to more rights, Secrets and Pods in one namespace only.
#[test]
fn law_11_the_operators_permissions_name_everything_and_lead_to_nothing_more() {
    let rules = |path: &str| -> Vec<PolicyRule> {
        serde_saphyr::from_str(&read(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    let (cluster, namespace) = (rules("files/rbac/cluster.yaml"), rules("files/rbac/namespace.yaml"));
    let leads = ["escalate", "bind", "impersonate", "*"];
    for rule in cluster.iter().chain(&namespace) {
        let words = rule.verbs.iter().chain(rule.resources.iter().flatten()).chain(rule.api_groups.iter().flatten());
        let bad: Vec<_> = words.filter(|word| leads.contains(&word.as_str())).collect();
        assert!(bad.is_empty(), "{rule:?}");
    }
    let wide: BTreeSet<&String> = cluster.iter().flat_map(|rule| rule.resources.iter().flatten()).collect();
    for secret in ["secrets", "pods", "pods/exec", "pods/log", "jobs", "serviceaccounts", "serviceaccounts/token"] {
        assert!(!wide.contains(&secret.to_owned()), "{secret} in every namespace");
    }
}
