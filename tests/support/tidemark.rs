//! Our own program beside another on one place: run as a person runs it, without waiting for it in this thread.

use std::{path::Path, process::Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use super::{
    longhorn::{Place, url_of},
    operator::program,
};

/// `tidemark` with a home of its own.
pub struct Tidemark {
    home: TempDir,
    place: Place,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The last line of a `--json` command.
    pub fn result(&self) -> Value {
        let last = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

impl Tidemark {
    pub fn at(place: &Place) -> Self {
        Self { home: super::scratch("tidemark"), place: place.clone() }
    }

    /// Ready to run, with nothing of this process's environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).current_dir(self.home.path()).env_clear().envs(self.place.variables());
        command.env("XDG_STATE_HOME", self.home.path()).env("TMPDIR", self.home.path());
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    pub async fn run(&self, arguments: &[&str]) -> Ended {
        let output = self.command(arguments).output().await.expect("the binary starts");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        assert!(!stderr.contains("panicked"), "{arguments:?} panicked: {stderr}");
        Ended { code: output.status.code().unwrap_or(-1), stdout, stderr }
    }

    /// Backs an image up; more flags may be given.
    pub async fn try_backup(&self, volume: &str, image: &Path, flags: &[&str]) -> Ended {
        let (image, target) = (image.display().to_string(), self.place.target());
        let arguments = ["backup", &image, "--target", &target, "--volume", volume, "--json"];
        self.run(&[&arguments, flags].concat()).await
    }

    /// The name of the backup that was made.
    pub async fn backup(&self, volume: &str, image: &Path, flags: &[&str]) -> String {
        let ended = self.try_backup(volume, image, flags).await;
        assert_eq!(ended.code, 0, "{ended:#?}");
        ended.result()["backup"].as_str().expect("a name").to_owned()
    }

    pub async fn restore(&self, volume: &str, backup: &str, out: &Path) -> Ended {
        let url = url_of(&self.place.target(), volume, backup);
        self.run(&["restore", &url, &out.display().to_string(), "--force", "--json"]).await
    }

    pub async fn delete(&self, volume: &str, backup: &str) -> Ended {
        let url = url_of(&self.place.target(), volume, backup);
        self.run(&["delete", &url, "--yes", "--json"]).await
    }
}
