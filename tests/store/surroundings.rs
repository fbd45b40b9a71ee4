//! What surrounds the program and is not its own: a system without certificates, a log that nobody sees in colour.

use std::process::{Command, Stdio};

use crate::support::{self, ACCESS_KEYS, S3Server};

/// How a command ended whose system trusts nobody: its exit code and what it said.
fn strangers_only(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    let folder = support::scratch("surroundings");
    let nothing = folder.path().join("no-certificates.pem");
    std::fs::write(&nothing, "").expect("ours");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.args(arguments).env_clear().current_dir(folder.path()).stdin(Stdio::null());
    command.env("SSL_CERT_FILE", &nothing).env("SSL_CERT_DIR", folder.path()).env("TMPDIR", folder.path());
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEYS[0].0).env("AWS_SECRET_ACCESS_KEY", ACCESS_KEYS[0].1);
    let output = command.envs(variables.iter().copied()).output().expect("the binary starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    (output.status.code().unwrap_or(-1), said)
}

#[test]
fn where_nobody_is_trusted_a_store_with_tls_is_refused_with_the_cure() {
    let to = |endpoint| ["ls", "s3://backups@us-east-1/", "--stall", "2s", "--endpoint", endpoint];
    let (code, said) = strangers_only(&to("https://127.0.0.1:1"), &[]);
    assert_eq!(code, 67, "{said}");
    for words in ["StoreUnavailable", "backups", "ca-certificates", "SSL_CERT_FILE", "caBundle"] {
        assert!(said.contains(words), "{words} is not in: {said}");
    }
    // With an authority of its own the store is asked: here nobody answers.
    let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("one valid name").cert.pem();
    let (code, said) = strangers_only(&to("https://127.0.0.1:1"), &[("AWS_CERT", &own)]);
    assert!(code == 68 && said.contains("LIST"), "{code}: {said}");
    // A bundle that cannot be read is no reason to panic either.
    let cut = own.get(..own.len() / 2).expect("ASCII");
    let (code, said) = strangers_only(&to("https://127.0.0.1:1"), &[("AWS_CERT", cut)]);
    assert!(code == 65 && said.contains("caBundle"), "{code}: {said}");
}

#[test]
fn a_store_without_tls_needs_nobodys_trust() {
    let server = S3Server::start();
    server.create_bucket("backups");
    let (code, said) = strangers_only(&["ls", "s3://backups@us-east-1/", "--endpoint", &server.endpoint()], &[]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_log_that_is_no_terminal_has_no_colours() {
    // A filter that does not parse is warned of, and that is a log line.
    let (code, said) = strangers_only(&["crds"], &[("TIDEMARK_LOG", "tidemark=shouting")]);
    assert!(code == 0 && said.contains("WARN") && said.contains("Log filter does not parse"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said:?}");
}
