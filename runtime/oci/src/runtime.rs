//! The OCI runtime's command line: `runc`, or what speaks like it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::{Context as _, bail};
use tokio::process::Command;

/// A runtime that is installed.
#[derive(Clone, Debug)]
pub struct Runtime {
    program: PathBuf,
    /// Where it keeps its own state.
    root: PathBuf,
}

impl Runtime {
    /// The program of this name on the PATH, or at this path.
    ///
    /// # Errors
    /// When it is not there or does not run.
    pub async fn find(program: &Path, root: &Path) -> anyhow::Result<Self> {
        let asked = Command::new(program).arg("--version").stdin(Stdio::null()).output().await;
        let out = asked.with_context(|| {
            format!(
                "the OCI runtime {} cannot be started: install runc (Debian: apt-get install runc), or name another one \
                 with --oci-runtime",
                program.display()
            )
        })?;
        if !out.status.success() {
            bail!("{} --version: {}", program.display(), said(&out));
        }
        Ok(Self { program: program.to_owned(), root: root.to_owned() })
    }

    /// The same one, known already.
    pub fn known(program: PathBuf, root: PathBuf) -> Self {
        Self { program, root }
    }

    /// Its program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Where it keeps its state.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A call that is yet to be completed.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).stdin(Stdio::null());
        command
    }

    /// Carries out a call.
    pub async fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> anyhow::Result<()> {
        let mut command = self.command();
        command.args(args);
        self.complete(command).await
    }

    /// Carries out a call that is complete.
    pub async fn complete(&self, mut command: Command) -> anyhow::Result<()> {
        let out = command.output().await.with_context(|| format!("start {}", self.program.display()))?;
        if !out.status.success() {
            bail!("{}: {}", self.program.display(), said(&out));
        }
        Ok(())
    }

    /// Removes a container and kills what is left of it; one that is not there is fine.
    pub async fn delete(&self, id: &str) -> anyhow::Result<()> {
        match self.run(["delete", "--force", id]).await {
            Err(error) if error.to_string().contains("does not exist") => Ok(()),
            other => other,
        }
    }
}

/// What a runtime says of its failure, without the decoration of its log.
fn said(out: &Output) -> String {
    plain(&String::from_utf8_lossy(&out.stderr))
}

/// The messages of a runtime's log, in either of its formats.
pub fn plain(log: &str) -> String {
    let message = |line: &str| {
        if let Ok(value) = serde_json::from_str::<serde_json::Value>(line) {
            return value["msg"].as_str().map(str::to_owned);
        }
        let text = match line.split_once("msg=\"") {
            Some((_, rest)) => rest.trim_end_matches('"').replace("\\\"", "\""),
            None => line.trim_start_matches("ERRO[0000]").trim().to_owned(),
        };
        (!text.is_empty()).then_some(text)
    };
    let mut words: Vec<String> = log.lines().rev().take(8).filter_map(message).collect();
    words.reverse();
    words.dedup();
    let joined = words.join("; ");
    if joined.is_empty() { "it failed without a word".to_owned() } else { joined }
}
