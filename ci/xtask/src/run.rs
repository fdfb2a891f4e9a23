//! Runs one program as a step, from the root of the repository.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// The root of the repository.
pub fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).map(PathBuf::from).unwrap_or(manifest)
}

/// A command that runs in the root of the repository. A relative `program` with a slash is looked for there.
pub fn command(program: &str) -> Command {
    let mut command = match program.contains('/') {
        true => Command::new(root().join(program)),
        false => Command::new(program),
    };
    command.current_dir(root());
    command
}

/// cargo, as the one that runs us.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = command(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    cargo.args(arguments);
    cargo
}

/// Runs `command` and fails with `name` in the message unless it exits with 0.
pub fn step(name: &str, command: &mut Command) -> Result<()> {
    eprintln!("xtask: {name}");
    let status = command
        .status()
        .with_context(|| format!("failed to start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("step `{name}` failed ({status}): {command:?}");
    }
    Ok(())
}
