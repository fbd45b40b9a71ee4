//! Law 1 and 4 as types: programs that would forge a receipt or seal a record early do not compile, each for the reason
//! it should. The twin that follows the rules does compile, so that a broken set-up cannot pass for a law.
//!
//! They are given to `rustc` itself with the library this test was built with: no second build of its dependencies.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

/// File, and the error it must end with (absent: it must compile).
const PROGRAMS: [(&str, Option<&str>); 6] = [
    ("as_intended", None),
    ("forge_receipt", Some("E0624")),
    ("forge_receipt_fields", Some("E0451")),
    ("forge_complete", Some("E0451")),
    ("seal_early", Some("E0308")),
    ("guard_without_lock", Some("E0451")),
];

/// The newest of a crate's libraries beside this test's own program.
fn newest(folder: &Path, start: &str) -> PathBuf {
    let built =
        |entry: &std::fs::DirEntry| entry.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let entries = std::fs::read_dir(folder).expect("the folder of this program");
    let libraries = entries.flatten().filter(|e| {
        let name = e.file_name().into_string().unwrap_or_default();
        name.starts_with(start) && name.ends_with(".rlib")
    });
    let newest = libraries.max_by_key(built).unwrap_or_else(|| panic!("{start}*.rlib in {}", folder.display()));
    newest.path()
}

#[test]
fn law_1_receipts_cannot_be_forged_nor_records_sealed_early() {
    let own = std::env::current_exe().expect("a path");
    let folder = own.parent().expect("a folder");
    let out = tempfile::tempdir().expect("temp");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/project/compile_fail");
    let count = std::fs::read_dir(&sources).expect("sources").count();
    assert_eq!(count, PROGRAMS.len(), "every program of {} is tried", sources.display());
    for (program, expected) in PROGRAMS {
        let source = sources.join(program).with_extension("rs");
        let tried = Command::new("rustc")
            .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "-L"])
            .arg(format!("dependency={}", folder.display()))
            .arg("--extern")
            .arg(format!("tidemark={}", newest(folder, "libtidemark-").display()))
            .arg("--extern")
            .arg(format!("bytes={}", newest(folder, "libbytes-").display()))
            .arg("--out-dir")
            .arg(out.path())
            .arg(&source)
            .output()
            .expect("rustc runs");
        let said = String::from_utf8_lossy(&tried.stderr);
        match expected {
            None => assert!(tried.status.success(), "{program} must compile:\n{said}"),
            Some(code) => {
                let codes: Vec<_> = said.lines().filter(|l| l.starts_with("error[")).collect();
                assert!(
                    !codes.is_empty() && codes.iter().all(|l| l.starts_with(&format!("error[{code}]"))),
                    "{program}:\n{said}"
                );
            }
        }
    }
}
