//! The house, checked: arrows between rooms, files that explain themselves, nothing too long, no promise without a
//! number. The checker is a function of paths and texts, so that each rule is also shown to fail.

use std::{collections::BTreeMap, fs, path::Path};

const LINES_MAX: usize = 500;

/// Which rooms a room may call, besides itself. A room that is not here may call nothing: name it.
const ARROWS: [(&str, &[&str]); 12] = [
    ("main", &["*"]),
    ("cli", &["*"]),
    ("controller", &["api", "model", "telemetry", "metrics", "http"]),
    ("dashboard", &["api", "model", "telemetry", "metrics", "http"]),
    ("worker", &["restore", "store", "model", "telemetry", "metrics", "http"]),
    ("restore", &["store", "model", "telemetry", "metrics", "http"]),
    ("api", &["model", "telemetry"]),
    ("store", &["model", "telemetry", "metrics"]),
    ("http", &["model", "telemetry", "metrics"]),
    ("metrics", &["model", "telemetry"]),
    ("telemetry", &["model"]),
    ("model", &[]),
];

/// The one room of the controller that talks to the bucket: reachability, catalogue, janitor.
const MAY_SEE_STORE: &str = "src/controller/target";

/// Whose words these are, and where they may be spoken.
const WORDS: [(&str, &[&str]); 2] =
    [("kube::", &["src/api", "src/controller", "src/cli", "src/dashboard"]), ("aws_sdk_s3::", &["src/store/s3"])];

type Files = BTreeMap<String, String>;

#[test]
fn the_house_is_tidy() {
    let mut files = Files::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for directory in ["src", "tests", "examples"] {
        collect(root, &root.join(directory), &mut files);
    }
    assert!(files.len() > 10, "the checker found only {:?}", files.keys());
    let complaints = check(&files);
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn each_rule_can_fail() {
    let long = format!("//! Long.\n{}", "\n".repeat(LINES_MAX));
    let promise = concat!("//! Promise.\n// TO", "DO: later\n");
    let cases: [(&str, &str, &str); 16] = [
        ("src/model/a.rs", "//! A.\nuse crate::store::Key;\n", "may not call store"),
        (
            "src/store/a.rs",
            "//! A.\nuse crate::{\n    model::BlockSize,\n    worker::Plan,\n};\n",
            "may not call worker",
        ),
        ("src/store/a.rs", "//! A.\nfn f() { crate::api::x() }\n", "may not call api"),
        ("src/store/a.rs", "//! A.\nuse super::super::controller::Step;\n", "may not call controller"),
        ("src/controller/backup/a.rs", "//! A.\nuse crate::store::Guard;\n", "may not call store"),
        ("src/worker/a.rs", "//! A.\nuse kube::Client;\n", "may not say kube::"),
        ("src/worker/a.rs", "//! A.\nuse aws_sdk_s3::Client;\n", "may not say aws_sdk_s3"),
        ("src/attic/a.rs", "//! A.\nuse crate::model::Phase;\n", "no room attic"),
        ("src/model/a.rs", "use std::fmt;\n", "does not begin with //!"),
        ("src/model/a.rs", &long, "501 lines"),
        ("src/model/a.rs", promise, "names no issue"),
        ("src/model/a.rs", concat!("//! A.\n// FIX", "ME\n"), "may not stay"),
        ("src/model/a.rs", concat!("//! A.\n#[all", "ow(dead_code)]\nfn f() {}\n"), "gives no reason"),
        ("src/model/a.rs", concat!("//! A.\nfn f() { x.unw", "rap() }\n"), "say why it holds"),
        ("src/model/a.rs", concat!("//! A.\nfn f() { x.exp", "ect(\"\") }\n"), "say why it holds"),
        ("src/model/lost.rs", "//! Lost.\n", "declared by no mod"),
    ];
    for (path, text, expected) in cases {
        let mut files = sound();
        files.insert(path.to_owned(), text.to_owned());
        let complaints = check(&files);
        assert_eq!(complaints.len(), 1, "{path}: {text:.80}\n{complaints:#?}");
        assert!(complaints[0].contains(expected), "{path}: expected {expected:?}, got {complaints:?}");
    }
}

#[test]
fn a_sound_house_has_no_complaints() {
    assert_eq!(check(&sound()), Vec::<String>::new());
}

/// A small house in which every file of the cases above is declared.
fn sound() -> Files {
    let rooms = ["model", "store", "worker", "controller", "attic"];
    let mut files = Files::new();
    let declare = |names: &[&str]| names.iter().map(|name| format!("pub mod {name};\n")).collect::<String>();
    files.insert("src/lib.rs".into(), format!("//! House.\n{}", declare(&rooms)));
    for room in rooms {
        files.insert(format!("src/{room}/mod.rs"), "//! Room.\nmod a;\nmod backup;\nmod target;\n".into());
        files.insert(format!("src/{room}/a.rs"), "//! A.\nuse crate::model::a;\n".into());
    }
    for room in ["backup", "target"] {
        files.insert(format!("src/controller/{room}/mod.rs"), "//! Room.\nmod a;\n".into());
    }
    files.insert("src/attic/a.rs".into(), "//! Calls nobody.\n".into());
    files.insert("src/controller/target/a.rs".into(), "//! A.\nuse crate::store::Guard;\nuse kube::Client;\n".into());
    files
}

/// Every complaint about these files, by path.
fn check(files: &Files) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in files {
        let found = [habits(path, text), arrows(path, text), words(path, text), orphan(path, files)].concat();
        complaints.extend(found.into_iter().map(|complaint| format!("{path}: {complaint}")));
    }
    complaints
}

fn habits(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push("does not begin with //!: what lives here, in what order, what may go wrong".to_owned());
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        found.push(format!("has {lines} lines; split it before {LINES_MAX}"));
    }
    let in_tests = path.starts_with("tests/") || path.starts_with("examples/");
    let product = text.split("#[cfg(test)]").next().unwrap_or_default();
    for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line)) {
        if line.contains(concat!("TO", "DO")) && !line.contains('#') && !line.contains("concat!") {
            found.push(format!("line {number} promises something and names no issue (#7)"));
        }
        if line.contains(concat!("FIX", "ME")) && !line.contains("concat!") {
            found.push(format!("line {number} may not stay on main"));
        }
        let bare = line.trim_start().starts_with(concat!("#[all", "ow("))
            || line.trim_start().starts_with(concat!("#![all", "ow("));
        if bare && !line.contains("reason") && !line.trim_end().ends_with('(') {
            found.push(format!("line {number} allows something and gives no reason: #[expect(…, reason = \"…\")]"));
        }
    }
    if !in_tests {
        for (number, line) in product.lines().enumerate().map(|(i, line)| (i + 1, without_comment(line))) {
            if line.contains(concat!(".unw", "rap()")) || line.contains(concat!(".exp", "ect(\"\")")) {
                found.push(format!("line {number} may panic: use an error, or say why it holds in expect(\"…\")"));
            }
        }
    }
    found
}

fn arrows(path: &str, text: &str) -> Vec<String> {
    let Some(room) = room_of(path) else { return Vec::new() };
    let called = rooms_called(path, text);
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == room) else {
        return called
            .is_empty()
            .then(Vec::new)
            .unwrap_or_else(|| vec![format!("tests/project/tidy.rs knows no room {room}")]);
    };
    let may = |callee: &str| {
        allowed.contains(&"*") || allowed.contains(&callee) || (callee == "store" && path.starts_with(MAY_SEE_STORE))
    };
    let wrong = called.into_iter().filter(|callee| *callee != room && !may(callee));
    wrong.map(|callee| format!("{room} may not call {callee}: arrows point down only")).collect()
}

fn words(path: &str, text: &str) -> Vec<String> {
    if !path.starts_with("src/") {
        return Vec::new();
    }
    let spoken = |word: &str| text.lines().map(without_comment).any(|line| has_word(line, word));
    let allowed = |places: &[&str]| places.iter().any(|place| path.starts_with(place));
    let wrong = WORDS.iter().filter(|(word, places)| !allowed(places) && spoken(word));
    wrong.map(|(word, places)| format!("may not say {word}; only {} may", places.join(", "))).collect()
}

/// A file of `src` that no `mod` declares is not compiled, and nobody notices.
fn orphan(path: &str, files: &Files) -> Vec<String> {
    if !path.starts_with("src/") || matches!(path, "src/lib.rs" | "src/main.rs") {
        return Vec::new();
    }
    let own = path.trim_end_matches(".rs").trim_end_matches("/mod");
    let (parent, name) = own.rsplit_once('/').unwrap_or_default();
    let parents = match parent {
        "src" => vec!["src/lib.rs".to_owned(), "src/main.rs".to_owned()],
        _ => vec![format!("{parent}/mod.rs"), format!("{parent}.rs")],
    };
    let declares = |parent: &String| {
        let end = format!("mod {name};");
        files.get(parent).is_some_and(|text| text.lines().any(|line| line.trim_end().ends_with(&end)))
    };
    match parents.iter().any(declares) {
        true => Vec::new(),
        false => vec![format!("is declared by no mod in {}: it is not compiled", parents.join(" or "))],
    }
}

/// The room a file of `src` belongs to; `lib.rs` belongs to none, for it only names them.
fn room_of(path: &str) -> Option<&str> {
    let first = path.strip_prefix("src/")?.split('/').next()?;
    let room = first.trim_end_matches(".rs");
    (room != "lib").then_some(room)
}

/// The rooms named in a file: `crate::room`, `tidemark::room`, `crate::{room, …}`, `super::super::room`.
fn rooms_called(path: &str, text: &str) -> Vec<String> {
    let code: String = text.lines().map(without_comment).collect::<Vec<_>>().join("\n");
    // How many `super::` lead from this file to the crate's root.
    let depth = path.trim_end_matches(".rs").trim_end_matches("/mod").matches('/').count();
    let from_root = "super::".repeat(depth);
    let mut called = Vec::new();
    for prefix in ["crate::", "tidemark::", from_root.as_str()] {
        for (at, _) in code.match_indices(prefix) {
            let longer = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            let after = &code[at + prefix.len()..];
            if !longer && !prefix.is_empty() && !after.starts_with("super") {
                called.extend(first_names(after));
            }
        }
    }
    called.retain(|name| ARROWS.iter().any(|(room, _)| room == name));
    called.sort();
    called.dedup();
    called
}

/// `model::X` → model; `{model::X, store::{Y, Z}}` → model, store.
fn first_names(path: &str) -> Vec<String> {
    let Some(group) = path.strip_prefix('{') else {
        return vec![path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()];
    };
    let (mut names, mut depth, mut name, mut done) = (Vec::new(), 1, String::new(), false);
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => {
                names.push(std::mem::take(&mut name));
                done = false;
            }
            ':' if depth == 1 => done = true,
            c if depth == 1 && !done && !c.is_whitespace() => name.push(c),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names.push(name);
    names
}

/// Does the line hold this word where a word begins?
fn has_word(line: &str, word: &str) -> bool {
    let begins = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| begins(at))
}

fn without_comment(line: &str) -> &str {
    line.find("//").filter(|at| !line[..*at].ends_with(':')).map_or(line, |at| &line[..at])
}

fn collect(root: &Path, directory: &Path, files: &mut Files) {
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.expect("the checkout can be read").path();
        let name = path.strip_prefix(root).expect("we began at the root").display().to_string();
        if path.is_dir() {
            collect(root, &path, files);
        } else if name.ends_with(".rs") && !name.starts_with("tests/project/compile_fail/") {
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name} cannot be read: {e}"));
            files.insert(name, text);
        }
    }
}
