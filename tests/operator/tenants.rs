//! Who may do what in a cluster, asked of a real API server as each of them: a tenant who may edit, one who may view, and
//! the identity of a worker's Pod. The roles are the chart's own files.

use serde_json::json;

use crate::{support::operator::NAMESPACE, world::World};

/// A role of the chart, and this user in it, in namespace shop only.
async fn bind(world: &World, role: &str, user: &str) {
    let path = format!("{}/charts/tidemark/files/rbac/{role}.yaml", env!("CARGO_MANIFEST_DIR"));
    let rules = std::fs::read_to_string(path).expect("the chart is there");
    world
        .plane
        .apply(&format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: 'tidemark:{role}'}}\nrules:\n{rules}\n---\n\
             apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {{name: '{user}-{role}', namespace: shop}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'tidemark:{role}'}}\n\
             subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: {user}}}]\n"
        ))
        .await;
}

fn backup(namespace: &str, name: &str) -> String {
    json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Backup", "metadata": {"name": name, "namespace": namespace},
        "spec": {"source": {"persistentVolumeClaim": {"name": "pg"}}, "targetRef": {"name": "s3-primary"}}})
    .to_string()
}

fn restore(namespace: &str, backup: serde_json::Value) -> String {
    json!({"apiVersion": "tidemark.dev/v1alpha1", "kind": "Restore", "metadata": {"name": "back", "namespace": namespace},
        "spec": {"backupRef": backup, "persistentVolumeClaim": {"name": "new"}}})
    .to_string()
}

/// `kubectl` as this user: it worked, or the server's refusal.
async fn as_user(world: &World, user: &str, arguments: &[&str], stdin: &str) -> Result<String, String> {
    world.plane.try_kubectl(&[&["--as", user], arguments].concat(), stdin).await
}

#[track_caller]
fn refused(answer: Result<String, String>, why: &str) {
    let said = answer.expect_err("it must be refused");
    assert!(said.contains(why), "refused, but not for {why:?}: {said}");
}

async fn a_tenant_edits_its_own_and_nothing_else(world: &World) {
    let tenant = "tenant";
    let create = ["create", "-f", "-"];
    as_user(world, tenant, &create, &backup("shop", "own")).await.expect("its own");
    as_user(
        world,
        tenant,
        &["patch", "tmb", "own", "-n", "shop", "--type=merge", "-p", r#"{"spec":{"cancel":true}}"#],
        "",
    )
    .await
    .expect("a verb of its own");
    as_user(world, tenant, &create, &restore("shop", json!({"name": "own"}))).await.expect("its own");
    refused(as_user(world, tenant, &create, &backup("erp", "foreign")).await, "forbidden");
    refused(as_user(world, tenant, &create, &backup(NAMESPACE, "host")).await, "forbidden");
    refused(as_user(world, tenant, &["get", "tmb", "-n", "erp"], "").await, "forbidden");
    refused(as_user(world, tenant, &["get", "tmb", "-A"], "").await, "forbidden");
    // No field leads to another namespace: what the schema does not know is refused.
    let elsewhere = restore("shop", json!({"name": "theirs", "namespace": "erp"}));
    refused(as_user(world, tenant, &create, &elsewhere).await, "unknown field");
    // A Restore reads what the status of its Backup names: that is the operator's to write.
    let forged = r#"{"status":{"state":"Completed","store":{"volume":"pvc-erp","backup":"backup-1"}}}"#;
    for verb in ["patch", "apply"] {
        let answer = match verb {
            "patch" => {
                let patch = ["patch", "tmb", "own", "-n", "shop", "--subresource=status", "--type=merge", "-p", forged];
                as_user(world, tenant, &patch, "").await
            }
            _ => {
                let apply = ["apply", "--server-side", "--force-conflicts", "--subresource=status", "-f", "-"];
                let mut object: serde_json::Value = serde_json::from_str(&backup("shop", "own")).expect("ours");
                object["status"] = serde_json::from_str::<serde_json::Value>(forged).expect("ours")["status"].clone();
                as_user(world, tenant, &apply, &object.to_string()).await
            }
        };
        refused(answer, "forbidden");
    }
    // Said with the object itself it is not even heard.
    let mut object: serde_json::Value = serde_json::from_str(&backup("shop", "forged")).expect("ours");
    object["status"] = serde_json::from_str::<serde_json::Value>(forged).expect("ours")["status"].clone();
    as_user(world, tenant, &create, &object.to_string()).await.expect("the spec is fine");
    let status = world.plane.kubectl(&["get", "tmb", "forged", "-n", "shop", "-o", "jsonpath={.status}"]).await;
    assert_eq!(status, r#"{"observedGeneration":-1}"#, "what the server put there by default");
}

async fn credentials_and_targets_are_the_administrators(world: &World) {
    for user in ["tenant", "viewer"] {
        refused(as_user(world, user, &["get", "secret", "s3", "-n", NAMESPACE], "").await, "forbidden");
        refused(as_user(world, user, &["get", "tmt"], "").await, "forbidden");
        let everybody = r#"{"spec":{"allowedNamespaces":{"from":"All"}}}"#;
        let patch = ["patch", "tmt", "s3-primary", "--type=merge", "-p", everybody];
        refused(as_user(world, user, &patch, "").await, "forbidden");
        refused(as_user(world, user, &["delete", "tmt", "s3-primary"], "").await, "forbidden");
        refused(as_user(world, user, &["get", "jobs,pods", "-n", NAMESPACE], "").await, "forbidden");
    }
    as_user(world, "viewer", &["get", "tmb,tmr", "-n", "shop"], "").await.expect("a viewer looks");
    refused(as_user(world, "viewer", &["create", "-f", "-"], &backup("shop", "x")).await, "forbidden");
    refused(as_user(world, "viewer", &["delete", "tmb", "own", "-n", "shop"], "").await, "forbidden");
}

/// What a stolen worker can do in the cluster, had it a token: what everybody may, which is to ask who one is.
async fn a_workers_identity_may_do_nothing(world: &World) {
    let user = format!("system:serviceaccount:{NAMESPACE}:default");
    let groups = [
        "--as-group=system:serviceaccounts",
        &format!("--as-group=system:serviceaccounts:{NAMESPACE}"),
        "--as-group=system:authenticated",
    ];
    let list = [&["--as", &user][..], &groups, &["auth", "can-i", "--list", "--no-headers", "-n", NAMESPACE]].concat();
    let may = world.plane.try_kubectl(&list, "").await.expect("answered");
    let resources: Vec<_> = may.lines().filter(|line| !line.trim_start().starts_with('[')).collect();
    let harmless = ["selfsubjectreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews"];
    for line in &resources {
        assert!(harmless.iter().any(|name| line.starts_with(name)), "a worker may {line}");
    }
    assert!(!resources.is_empty(), "the list was read: {may}");
    for (verb, what) in
        [("get", "secrets"), ("list", "tmb"), ("patch", "tmb/status"), ("create", "pods"), ("get", "tmt")]
    {
        let ask = [&["--as", &user][..], &groups, &["auth", "can-i", verb, what, "-n", NAMESPACE, "-q"]].concat();
        // kubectl answers "no" by its exit code.
        assert!(world.plane.try_kubectl(&ask, "").await.is_err(), "a worker may {verb} {what}");
    }
}

#[tokio::test]
async fn law_11_a_tenant_reads_and_writes_its_own_and_a_worker_nothing() {
    let world = World::new().await;
    for namespace in ["shop", "erp"] {
        world.plane.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}")).await;
    }
    bind(&world, "view", "viewer").await;
    bind(&world, "view", "tenant").await;
    bind(&world, "edit", "tenant").await;
    world.plane.apply(&backup("erp", "theirs")).await;
    a_tenant_edits_its_own_and_nothing_else(&world).await;
    credentials_and_targets_are_the_administrators(&world).await;
    a_workers_identity_may_do_nothing(&world).await;
    world.end(&[]).await;
}
