//! What a policy allows: IAM's evaluation, as far as our session policies use it. A statement that allows is needed, one that
//! denies wins. Stricter than the real thing: a word that is not known here makes the whole policy malformed.

use serde_json::{Map, Value};

/// A policy document, parsed.
#[derive(Debug, Clone)]
pub struct Policy(Vec<Statement>);

#[derive(Debug, Clone)]
struct Statement {
    allows: bool,
    actions: Vec<String>,
    resources: Vec<String>,
    /// Operator, key, and the values of which one must match.
    conditions: Vec<(String, String, Vec<String>)>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    pub action: &'a str,
    pub resource: &'a str,
    /// The request's own words: a key that is not there fails every condition on it.
    pub context: &'a [(&'a str, &'a str)],
}

impl Policy {
    pub fn parse(text: &str) -> Result<Self, String> {
        let document: Map<String, Value> = serde_json::from_str(text).map_err(|e| e.to_string())?;
        only(&document, &["Version", "Statement"])?;
        if document.get("Version").and_then(Value::as_str) != Some("2012-10-17") {
            return Err("Version must be 2012-10-17".into());
        }
        let statements = document.get("Statement").and_then(Value::as_array).ok_or("Statement must be a list")?;
        statements.iter().map(Statement::parse).collect::<Result<_, _>>().map(Self)
    }

    pub fn allows(&self, wish: Wish<'_>) -> bool {
        let fitting: Vec<&Statement> = self.0.iter().filter(|s| s.fits(wish)).collect();
        fitting.iter().any(|s| s.allows) && fitting.iter().all(|s| s.allows)
    }
}

impl Statement {
    fn parse(value: &Value) -> Result<Self, String> {
        let statement = value.as_object().ok_or("a statement must be an object")?;
        only(statement, &["Effect", "Action", "Resource", "Condition"])?;
        let allows = match statement.get("Effect").and_then(Value::as_str) {
            Some("Allow") => true,
            Some("Deny") => false,
            other => return Err(format!("Effect {other:?}")),
        };
        let list = |key: &str| strings(statement.get(key).ok_or(format!("{key} is missing"))?);
        let (actions, resources) = (list("Action")?, list("Resource")?);
        if let Some(variable) = resources.iter().find(|r| r.contains("${")) {
            return Err(format!("variables are not known here: {variable}"));
        }
        let mut conditions = Vec::new();
        for (operator, keys) in statement.get("Condition").and_then(Value::as_object).into_iter().flatten() {
            if !["StringLike", "StringEquals"].contains(&operator.as_str()) {
                return Err(format!("operator {operator} is not known here"));
            }
            for (key, values) in keys.as_object().ok_or("a condition must be an object")? {
                conditions.push((operator.clone(), key.clone(), strings(values)?));
            }
        }
        Ok(Self { allows, actions, resources, conditions })
    }

    fn fits(&self, wish: Wish<'_>) -> bool {
        let holds = |(operator, key, values): &(String, String, Vec<String>)| {
            let found = wish.context.iter().find(|(name, _)| name == key).map(|(_, value)| *value);
            found.is_some_and(|found| match operator.as_str() {
                "StringEquals" => values.iter().any(|value| value == found),
                _ => values.iter().any(|value| is_like(value, found)),
            })
        };
        self.actions.iter().any(|action| is_like(&action.to_lowercase(), &wish.action.to_lowercase()))
            && self.resources.iter().any(|resource| is_like(resource, wish.resource))
            && self.conditions.iter().all(holds)
    }
}

fn only(object: &Map<String, Value>, known: &[&str]) -> Result<(), String> {
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(odd) => Err(format!("{odd} is not known here")),
        None => Ok(()),
    }
}

fn strings(value: &Value) -> Result<Vec<String>, String> {
    let text = |v: &Value| v.as_str().map(str::to_owned).ok_or_else(|| format!("{v} is no string"));
    match value {
        Value::Array(values) => values.iter().map(text).collect(),
        one => Ok(vec![text(one)?]),
    }
}

/// `*` is any text, `?` one character.
pub fn is_like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    // Where the pattern's beginning so far may end in the text.
    let mut ends = vec![false; text.len() + 1];
    ends[0] = true;
    for p in pattern {
        let mut next = vec![false; text.len() + 1];
        for at in 0..=text.len() {
            next[at] = match p {
                '*' => ends[at] || (at > 0 && next[at - 1]),
                '?' => at > 0 && ends[at - 1],
                plain => at > 0 && ends[at - 1] && text[at - 1] == plain,
            };
        }
        ends = next;
    }
    ends[text.len()]
}
