//! `docs/resources.md`: the reference of the kinds, written from the very schema that the API server holds.
//!
//! In this order for each kind: what it is, how to print it, its fields (spec, then status) with type, default, bounds
//! and description, and every rule with the message that a bad manifest is answered with.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion, JSONSchemaProps, JSONSchemaPropsOrArray,
};

use super::crds;

const HEAD: &str = "\
# Resources

<!-- Generated from the types in src/api: change their comments there and run `make generate`. -->

Sizes in status are bytes, rates are bytes per second, times are RFC 3339, durations are strings such as `90s`, `10m`,
`24h` or `1h30m`. A field without a default that is not marked *required* may be left out. `kubectl explain` tells the
same about each field. Other products have kinds of the same names: write `kubectl get tmb` or
`kubectl get backups.tidemark.dev`.
";

/// The whole page.
pub fn markdown() -> String {
    let kinds: Vec<String> = crds().iter().map(kind).collect();
    format!("{HEAD}{}", kinds.concat())
}

fn kind(crd: &CustomResourceDefinition) -> String {
    let names = &crd.spec.names;
    let version = crd.spec.versions.first().expect("one version is served");
    let schema = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref());
    let schema = schema.expect("every version has a schema");
    let mut page = format!("\n## {}\n\n{}\n\n", names.kind, text(schema.description.as_ref()));
    let short = names.short_names.iter().flatten().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let scope = crd.spec.scope.to_lowercase();
    writeln!(
        page,
        "`apiVersion: {}/{}`, `kind: {}`, {scope}, short name {short}.\n",
        crd.spec.group, version.name, names.kind
    )
    .expect("a String takes everything");
    page += &columns(version);
    for part in ["spec", "status"] {
        let schema = schema.properties.as_ref().and_then(|properties| properties.get(part)).expect("spec and status");
        writeln!(page, "\n### {} {part}\n\n| field | type | what it says |\n|---|---|---|", names.kind)
            .expect("a String takes everything");
        fields(part, schema, &mut page);
    }
    page += "\n### Rules\n\nThe API server refuses a manifest or a status that breaks one of these.\n\n";
    rules("", schema, &mut page);
    page
}

fn columns(version: &CustomResourceDefinitionVersion) -> String {
    let columns = version.additional_printer_columns.iter().flatten();
    let (wide, narrow): (Vec<_>, Vec<_>) = columns.partition(|column| column.priority.unwrap_or(0) > 0);
    let list = |columns: &[&_]| {
        columns.iter().map(|c: &&Column| format!("`{}`", c.name.to_uppercase())).collect::<Vec<_>>().join(" ")
    };
    let mut line = format!("Columns: {}; with `-o wide` also {}.\n", list(&narrow), list(&wide));
    let selectable: Vec<String> = version
        .selectable_fields
        .iter()
        .flatten()
        .map(|field| format!("`{}`", field.json_path.trim_start_matches('.')))
        .collect();
    if !selectable.is_empty() {
        writeln!(line, "Selectable with `--field-selector`: {}.", selectable.join(", "))
            .expect("a String takes everything");
    }
    line
}

type Column = k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceColumnDefinition;

/// One row for each field below `schema`, depth first, required ones marked.
fn fields(path: &str, schema: &JSONSchemaProps, page: &mut String) {
    let required = schema.required.as_deref().unwrap_or_default();
    for (name, field) in schema.properties.iter().flatten() {
        let path = format!("{path}.{name}");
        let must = if required.contains(name) { " *required*" } else { "" };
        writeln!(page, "| `{path}` | {}{must} | {} |", kind_of(field), cell(field.description.as_ref()))
            .expect("a String takes everything");
        if is_kubernetes_own(name) {
            continue;
        }
        fields(&path, field, page);
        if let Some(JSONSchemaPropsOrArray::Schema(item)) = &field.items {
            fields(&format!("{path}[]"), item, page);
        }
    }
}

/// Conditions and label selectors are Kubernetes' own and documented there.
fn is_kubernetes_own(name: &str) -> bool {
    matches!(name, "conditions" | "selector")
}

fn kind_of(schema: &JSONSchemaProps) -> String {
    let mut text = match (&schema.enum_, &schema.items, schema.x_kubernetes_int_or_string) {
        (Some(words), ..) => {
            words.iter().map(|word| format!("`{}`", word.0)).collect::<Vec<_>>().join(" or ").replace('"', "")
        }
        (None, Some(JSONSchemaPropsOrArray::Schema(item)), _) => format!("list of {}", kind_of(item)),
        (None, _, Some(true)) => "quantity".to_owned(),
        _ => schema
            .format
            .clone()
            .filter(|format| format == "date-time")
            .map_or_else(|| text(schema.type_.as_ref()), |_| "time".into()),
    };
    text = text.replace("``", "`\"\"`");
    if let Some(default) = schema.default.as_ref().filter(|default| !default.0.is_object()) {
        write!(text, ", default `{}`", default.0.to_string().trim_matches('"')).expect("a String takes everything");
        text = text.replace("default ``", "default `\"\"`");
    }
    match (schema.minimum, schema.maximum) {
        (Some(min), Some(max)) => write!(text, ", {min} to {max}").expect("a String takes everything"),
        (Some(min), None) if min > 0.0 => write!(text, ", at least {min}").expect("a String takes everything"),
        _ => {}
    }
    text
}

/// Every rule with the field it stands on.
fn rules(path: &str, schema: &JSONSchemaProps, page: &mut String) {
    for rule in schema.x_kubernetes_validations.iter().flatten() {
        let at = format!("{path}{}", text(rule.field_path.as_ref()));
        let at = if at.is_empty() { "metadata.name".to_owned() } else { at.trim_start_matches('.').to_owned() };
        writeln!(page, "* `{at}`: {}", text(rule.message.as_ref())).expect("a String takes everything");
    }
    for (name, field) in schema.properties.iter().flatten() {
        rules(&format!("{path}.{name}"), field, page);
    }
}

fn text(text: Option<&String>) -> String {
    text.cloned().unwrap_or_default()
}

/// A description inside a table: one line, no bar and no tag of its own.
fn cell(description: Option<&String>) -> String {
    let words: Vec<String> = text(description).split_whitespace().map(str::to_owned).collect();
    words.join(" ").replace('|', "\\|").replace('<', "&lt;")
}
