//! The built command-line tools and the built image.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where `cargo xtask build` put everything.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// The target folder.
    pub target: PathBuf,
}

impl Binaries {
    /// Finds the build; says what to run where there is none.
    pub fn find() -> Result<Self> {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
        let target = target
            .canonicalize()
            .context("there is no target folder: run `cargo xtask build`")?;
        let binaries = Self { target };
        for needed in [binaries.joinpack(), binaries.bmctl(), binaries.release_json()] {
            if !needed.exists() {
                bail!("`{}` is missing: run `cargo xtask build`", needed.display());
            }
        }
        Ok(binaries)
    }

    /// `joinpack`.
    pub fn joinpack(&self) -> PathBuf {
        self.target.join("release/joinpack")
    }

    /// `bmctl`.
    pub fn bmctl(&self) -> PathBuf {
        self.target.join("release/bmctl")
    }

    /// The release manifest of the built image, as a file.
    pub fn release_json(&self) -> PathBuf {
        self.target.join("image/release.json")
    }

    /// The release manifest of the built image.
    pub fn release(&self) -> Result<Value> {
        let path = self.release_json();
        let text = std::fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// An artefact of the release by the end of its name, e.g. `.img`.
    pub fn artefact(&self, end: &str) -> Result<PathBuf> {
        let release = self.release()?;
        let names = release["artefacts"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|entry| entry["name"].as_str());
        let name = names.into_iter().find(|name| name.ends_with(end));
        let name = name.with_context(|| format!("the release has no artefact that ends with `{end}`"))?;
        Ok(self.target.join("image").join(name))
    }

    /// Runs `joinpack`; its output, whatever its exit code.
    pub fn run_joinpack<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Output> {
        Command::new(self.joinpack())
            .args(arguments)
            .output()
            .context("failed to start joinpack")
    }
}

/// Fails with the tool's own words unless it exited with 0; its standard output else.
pub fn expect_success(what: &str, output: &Output) -> Result<String> {
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{what} failed ({}): {}", output.status, error.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `bmctl` with an operator's context, towards one node.
#[derive(Debug, Clone)]
pub struct Ctl {
    bmctl: PathBuf,
    context: PathBuf,
    node: SocketAddr,
}

impl Ctl {
    /// Towards the REST interface that `node` leads to.
    pub fn new(binaries: &Binaries, context: &Path, node: SocketAddr) -> Self {
        Self {
            bmctl: binaries.bmctl(),
            context: context.to_owned(),
            node,
        }
    }

    /// The command line up to the sub-command, for people.
    pub fn line(&self) -> String {
        format!(
            "{} --context {} --node {}",
            self.bmctl.display(),
            self.context.display(),
            self.node
        )
    }

    /// The command with these arguments.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.bmctl);
        command
            .arg("--context")
            .arg(&self.context)
            .arg("--node")
            .arg(self.node.to_string())
            .args(arguments);
        command
    }

    /// Runs it; its output, whatever its exit code.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments).output().context("failed to start bmctl")
    }

    /// Runs it with `-o json` and reads what it prints.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self
            .command(arguments)
            .args(["-o", "json"])
            .output()
            .context("failed to start bmctl")?;
        let text = expect_success(&format!("bmctl {}", arguments.join(" ")), &output)?;
        serde_json::from_str(&text).with_context(|| format!("bmctl {} printed no JSON", arguments.join(" ")))
    }
}
