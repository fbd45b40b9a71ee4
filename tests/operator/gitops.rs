//! docs/gitops.md is true: every object that a real operator ever showed on a real API server is judged by its own Lua (the
//! interpreter of Argo CD), its own CEL, and kstatus' algorithm; each says what the page's table says of that state.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::{Arc, Mutex},
};

use futures::StreamExt;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use tidemark::api::{BackupState, RestoreState};

use crate::{
    support::{Fault, Kind, Operator, Rule, eventually, locked},
    world::{PATIENCE, World, acknowledged, hold_after, hold_downloads_after},
};

const KINDS: [&str; 3] = ["Backup", "Restore", "ClusterBackupTarget"];

/// Everything that was shown, as it was shown.
#[derive(Clone, Default)]
struct Shown(Arc<Mutex<Vec<(&'static str, Value)>>>);

impl Shown {
    fn watch(&self, client: Client, kind: &'static str) -> tokio::task::JoinHandle<()> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("tidemark.dev", "v1alpha1", kind));
        let resource = ApiResource { plural: format!("{}s", kind.to_lowercase()), ..resource };
        let api: Api<DynamicObject> = Api::all_with(client, &resource);
        let shown = self.clone();
        let seen = watcher(api, watcher::Config::default()).default_backoff().touched_objects();
        tokio::spawn(seen.for_each(move |object| {
            if let Ok(object) = object {
                locked(&shown.0).push((kind, serde_json::to_value(&object).expect("it was JSON")));
            }
            std::future::ready(())
        }))
    }
}

/// What a judge says: of kstatus Current, InProgress, Failed or Terminating.
type Verdict = &'static str;

/// What the page's table says of this state.
fn by_the_table(object: &Value) -> Verdict {
    let status = &object["status"];
    if !object["metadata"]["deletionTimestamp"].is_null() {
        return "Terminating";
    }
    if status["observedGeneration"] != object["metadata"]["generation"] {
        return "InProgress";
    }
    match status["state"].as_str() {
        Some("Completed") => "Current",
        Some("Cancelled") => "Failed",
        Some("Error") if status["nextRetryTime"].is_null() => "Failed",
        Some(_) => "InProgress",
        // A target has no state.
        None => match condition(object, "Ready") {
            Some("True") => "Current",
            _ if condition(object, "Stalled") == Some("True") => "Failed",
            _ => "InProgress",
        },
    }
}

fn condition<'a>(object: &'a Value, wanted: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == wanted)?["status"].as_str()
}

/// kstatus: deletion, generation, Reconciling before Stalled, then Ready; no Ready is Current.
fn kstatus(object: &Value) -> Verdict {
    let generation = &object["status"]["observedGeneration"];
    if !object["metadata"]["deletionTimestamp"].is_null() {
        return "Terminating";
    }
    if !generation.is_null() && *generation != object["metadata"]["generation"] {
        return "InProgress";
    }
    for (wanted, verdict) in [("Reconciling", "InProgress"), ("Stalled", "Failed")] {
        if condition(object, wanted) == Some("True") {
            return verdict;
        }
    }
    match condition(object, "Ready") {
        Some("True") | None => "Current",
        Some(_) => "InProgress",
    }
}

/// The YAML of the page whose kind is this.
fn from_the_page(kind: &str) -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/gitops.md");
    let page = std::fs::read_to_string(path).expect("the page is there");
    let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let parsed = blocks.map(|block| serde_saphyr::from_str::<Value>(block).expect("YAML"));
    parsed.into_iter().find(|object| object["kind"] == kind).expect("the page has it")
}

/// Flux asks the expressions in this order.
fn by_flux(expressions: &Value, object: &Value) -> Verdict {
    for (name, verdict) in [("inProgress", "InProgress"), ("failed", "Failed"), ("current", "Current")] {
        let text = expressions[name].as_str().expect("an expression");
        let program = cel::Program::compile(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let mut context = cel::Context::default();
        for (name, value) in object.as_object().expect("an object") {
            context.add_variable(name, value).expect("JSON");
        }
        match program.execute(&context) {
            Ok(cel::Value::Bool(true)) => return verdict,
            Ok(cel::Value::Bool(false)) => {}
            other => panic!("{text}\n{other:?}\n{object:#}"),
        }
    }
    "InProgress"
}

/// Every object by the page's Lua, in one run of the interpreter.
fn by_argo(checks: &Value, shown: &[(&'static str, Value)]) -> Vec<String> {
    let mut script = String::new();
    for kind in KINDS {
        let check = checks[format!("resource.customizations.health.tidemark.dev_{kind}")].as_str().expect("a check");
        script += &format!("function {kind}(obj)\n{check}\nend\n");
    }
    for (kind, object) in shown {
        script += &format!(
            "do local hs = {kind}({}) assert(type(hs.message) == 'string') print(hs.status) end\n",
            lua(object)
        );
    }
    let file = crate::support::scratch("lua");
    let path = file.path().join("checks.lua");
    std::fs::write(&path, script).expect("the scratch directory is ours");
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/lua.sh");
    let interpreter = Command::new(tool).output().expect("it starts");
    assert!(interpreter.status.success(), "{}", String::from_utf8_lossy(&interpreter.stderr));
    let interpreter = String::from_utf8(interpreter.stdout).expect("a path");
    let ran = Command::new(interpreter.trim()).arg(&path).output().expect("it starts");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("words").lines().map(str::to_owned).collect()
}

/// JSON as Lua writes it.
fn lua(value: &Value) -> String {
    match value {
        Value::Null => "nil".into(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => {
            let bytes: String = text.bytes().map(|byte| format!("\\{byte:03}")).collect();
            format!("\"{bytes}\"")
        }
        Value::Array(items) => format!("{{{}}}", items.iter().map(lua).collect::<Vec<_>>().join(",")),
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| format!("[{}]={}", lua(&json!(key)), lua(value));
            format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(","))
        }
    }
}

/// Argo CD's word for a verdict. What is being deleted it does not ask the check about.
fn argo_word(verdict: Verdict) -> Option<&'static str> {
    match verdict {
        "Current" => Some("Healthy"),
        "Failed" => Some("Degraded"),
        "InProgress" => Some("Progressing"),
        _ => None,
    }
}

/// Backups and Restores in every state, one after the other, with one worker at a time.
async fn live_through_every_state(world: &World, operator: &Operator) {
    let state = |wanted| move |s: &tidemark::api::BackupStatus| s.state == Some(wanted);
    for image in ["a.img", "b.img"] {
        drop(world.image(image, 6, 1));
    }
    world.target("no-secret", json!({"credentials": {"secretName": "missing"}})).await;
    world.backup("waits", "a.img", json!({"targetRef": {"name": "missing"}})).await;
    world.until(operator, "waits", "waiting", state(BackupState::Pending)).await;
    let outside = json!({"source": {"hostDevice": {"path": "/etc/passwd", "nodeName": "local", "name": "x"}}});
    world.backup("refused", "a.img", outside).await;
    world.until(operator, "refused", "refused", state(BackupState::Error)).await;
    hold_after(&world.s3, 3);
    world.backup("done", "a.img", json!({})).await;
    world.until(operator, "done", "at 3 blocks", |s| acknowledged(s) == 3).await;
    world.backup("queued", "b.img", json!({})).await;
    world.until(operator, "queued", "queued", |s| s.queue.is_some()).await;
    world.patch("queued", json!({"cancel": true})).await;
    world.until(operator, "queued", "cancelled", state(BackupState::Cancelled)).await;
    assert_eq!(world.home.kill_workers(), 1);
    world.until(operator, "done", "failed, with a retry", |s| s.next_retry_time.is_some()).await;
    world.s3.heal_into(Rule::new(Fault::Hold).on(Kind::PutOther).key("/backups/backup_backup-"));
    world.until(operator, "done", "writing its record", state(BackupState::Committing)).await;
    world.s3.heal();
    world.completed(operator, "done").await;
    hold_downloads_after(&world.s3, 2);
    world.restore("waits", "nothing", "w.img", json!({})).await;
    world.restore("back", "done", "back.img", json!({})).await;
    let going = |s: &tidemark::api::RestoreStatus| s.state == Some(RestoreState::InProgress);
    world.until_restore(operator, "back", "going on", going).await;
    world.s3.heal();
    world.restored(operator, "back").await;
    hold_after(&world.s3, 2);
    world.backup("deleted", "b.img", json!({})).await;
    world.until(operator, "deleted", "at 2 blocks", |s| acknowledged(s) == 2).await;
    world
        .plane
        .kubectl(&["delete", "tmb", "deleted", "-n", crate::support::operator::NAMESPACE, "--timeout=60s"])
        .await;
    world.s3.heal();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_state_is_judged_by_kstatus_flux_and_argo_as_the_page_says() {
    let world = World::new().await;
    let shown = Shown::default();
    let watches = KINDS.map(|kind| shown.watch(world.client.clone(), kind));
    let flags = ["--max-concurrent-backups", "1"];
    let operator = Operator::start_in(&world.plane, world.home.clone(), &flags);
    live_through_every_state(&world, &operator).await;
    for (name, wanted) in [("done", "Ready"), ("refused", "Stalled"), ("queued", "Stalled")] {
        let wanted = format!("--for=condition={wanted}");
        let namespace = crate::support::operator::NAMESPACE;
        world.plane.kubectl(&["wait", &format!("tmb/{name}"), "-n", namespace, &wanted, "--timeout=60s"]).await;
    }
    // The last that happens; the watch may be behind.
    let was_deleted = |(kind, object): &(&str, Value)| {
        let metadata = &object["metadata"];
        *kind == "Backup" && metadata["name"] == "deleted" && !metadata["deletionTimestamp"].is_null()
    };
    eventually("the watch saw the end", PATIENCE, || async {
        let shown = locked(&shown.0);
        if shown.iter().any(was_deleted) { Ok(()) } else { Err(format!("{} objects", shown.len())) }
    })
    .await;
    watches.iter().for_each(tokio::task::JoinHandle::abort);
    let shown = std::mem::take(&mut *locked(&shown.0));
    let (flux, argo) = (from_the_page("Kustomization"), from_the_page("ConfigMap"));
    let of_argo = by_argo(&argo["data"], &shown);
    assert_eq!(of_argo.len(), shown.len());
    let mut seen: BTreeMap<(&str, String), BTreeSet<Verdict>> = BTreeMap::new();
    for ((kind, object), argo) in shown.iter().zip(&of_argo) {
        let expected = by_the_table(object);
        let expressions = flux["spec"]["healthCheckExprs"].as_array().expect("a list");
        let expressions = expressions.iter().find(|e| e["kind"] == *kind).expect("every kind has them");
        assert_eq!(kstatus(object), expected, "kstatus: {object:#}");
        if let Some(word) = argo_word(expected) {
            assert_eq!(by_flux(expressions, object), expected, "Flux: {object:#}");
            assert_eq!(argo, word, "Argo CD: {object:#}");
        }
        let state = object["status"]["state"].as_str().unwrap_or("none").to_owned();
        seen.entry((kind, state)).or_default().insert(expected);
    }
    println!("{} objects: {seen:#?}", shown.len());
    let has = |kind, state: &str, verdict| seen.get(&(kind, state.to_owned())).is_some_and(|v| v.contains(verdict));
    for (state, verdict) in [
        ("none", "InProgress"),
        ("Pending", "InProgress"),
        ("Snapshotting", "InProgress"),
        ("InProgress", "InProgress"),
        ("Committing", "InProgress"),
        ("Completed", "Current"),
        ("Error", "InProgress"),
        ("Error", "Failed"),
        ("Cancelled", "Failed"),
        ("Deleting", "Terminating"),
    ] {
        assert!(has("Backup", state, verdict), "no Backup was {state} and {verdict}: {seen:#?}");
    }
    for (state, verdict) in [("Pending", "InProgress"), ("InProgress", "InProgress"), ("Completed", "Current")] {
        assert!(has("Restore", state, verdict), "no Restore was {state} and {verdict}: {seen:#?}");
    }
    for verdict in ["Current", "Failed"] {
        assert!(has("ClusterBackupTarget", "none", verdict), "no target was {verdict}: {seen:#?}");
    }
    world.end(&[&operator]).await;
}
