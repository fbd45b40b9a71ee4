//! What an administrator decides about workers' Pods. The chart writes it; `--worker-settings` names the file (YAML or
//! JSON). Unknown fields are refused: a misspelt `tolerations` would otherwise be found out on the day it is needed.

use std::{collections::BTreeMap, path::Path};

use k8s_openapi::{
    api::core::v1::{Affinity, LocalObjectReference, ResourceRequirements, Toleration},
    apimachinery::pkg::api::resource::Quantity,
};
use serde::Deserialize;

use super::RunnerError;
use crate::model::limits;

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WorkerSettings {
    pub image: String,
    pub image_pull_policy: PullPolicy,
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Absent: `default`. No token of it is mounted.
    pub service_account_name: Option<String>,
    pub user: User,
    /// Absent: what the memory law needs.
    pub resources: Option<ResourceRequirements>,
    pub node_selector: BTreeMap<String, String>,
    pub affinity: Option<Affinity>,
    /// Besides the two that shorten the wait for a lost node.
    pub tolerations: Vec<Toleration>,
    pub priority_class_name: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

impl PullPolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            PullPolicy::Always => "Always",
            PullPolicy::IfNotPresent => "IfNotPresent",
            PullPolicy::Never => "Never",
        }
    }
}

/// Who a worker is on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum User {
    /// Uid 0 without a single capability: it owns the device's file, which is all it needs. Pod security `baseline`.
    #[default]
    Root,
    /// Uid 65532, `restricted`: raw devices open only where the node's runtime gives them to the Pod's user
    /// (`device_ownership_from_security_context` of containerd).
    NonRoot,
}

impl WorkerSettings {
    pub fn read(path: &Path) -> Result<Self, RunnerError> {
        let refused = |problem: String| RunnerError::Settings { path: path.to_owned(), problem };
        let text = std::fs::read_to_string(path).map_err(|e| refused(e.to_string()))?;
        Self::parse(&text).map_err(refused)
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        serde_saphyr::from_str(text).map_err(|e| e.to_string())
    }

    pub fn resources(&self) -> ResourceRequirements {
        self.resources.clone().unwrap_or_else(|| {
            let quantity = |bytes: u64| Quantity(bytes.to_string());
            let memory = |bytes| BTreeMap::from([("memory".to_owned(), quantity(bytes))]);
            let mut requests = memory(limits::WORKER_MEMORY_REQUEST_BYTES);
            requests.insert("cpu".to_owned(), Quantity("100m".to_owned()));
            ResourceRequirements {
                requests: Some(requests),
                limits: Some(memory(limits::WORKER_MEMORY_LIMIT_BYTES)),
                ..ResourceRequirements::default()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_the_chart_writes_them_and_a_misspelt_field_is_refused() {
        let text = r#"
image: registry.example/tidemark@sha256:00
imagePullPolicy: Never
user: NonRoot
resources: {limits: {memory: 512Mi}}
nodeSelector: {disk: fast}
tolerations: [{key: backup, operator: Exists}]
"#;
        let settings = WorkerSettings::parse(text).expect("valid");
        assert_eq!((settings.image_pull_policy, settings.user), (PullPolicy::Never, User::NonRoot));
        assert_eq!(settings.tolerations[0].key.as_deref(), Some("backup"));
        assert!(WorkerSettings::parse("toleration: []").is_err());
        assert_eq!(WorkerSettings::parse("{}"), Ok(WorkerSettings::default()));
    }

    #[test]
    fn law_9_the_default_limit_of_memory_holds_the_buffers_twice() {
        let resources = WorkerSettings::default().resources();
        let limit = resources.limits.and_then(|l| l["memory"].0.parse::<usize>().ok()).expect("a limit");
        assert!(limit >= 2 * (2 * limits::BUFFER_BYTES + (32 << 20)));
    }
}
