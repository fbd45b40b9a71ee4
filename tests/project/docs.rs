//! Documents that can be checked are checked: docs/laws.md names every test of a law, and only tests that exist.

use std::{collections::BTreeSet, path::Path};

/// Names that follow `marker` in a text: letters, digits and underscores, beginning with `law_`.
fn names_after(text: &str, marker: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let parts = text.split(marker).skip(1);
    parts
        .map(|rest| rest.chars().take_while(|c| is_part(*c)).collect())
        .filter(|n: &String| n.starts_with("law_"))
        .collect()
}

fn tests_below(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder of this checkout").flatten() {
        let path = entry.path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.extend(names_after(&std::fs::read_to_string(&path).expect("UTF-8"), "fn "));
        }
    }
}

#[test]
fn the_laws_page_names_every_test_of_a_law_and_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/laws.md")).expect("the page is there");
    let mut tests = BTreeSet::new();
    tests_below(&root.join("src"), &mut tests);
    tests_below(&root.join("tests"), &mut tests);
    let named = names_after(&page, "- `");
    let (missing, gone): (Vec<_>, Vec<_>) = (tests.difference(&named).collect(), named.difference(&tests).collect());
    assert!(missing.is_empty() && gone.is_empty(), "docs/laws.md lacks {missing:?} and names {gone:?}, which are gone");
    assert!(named.len() > 30, "only {} tests are named", named.len());
}
