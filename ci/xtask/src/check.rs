//! What can be said of the code without running it.

use crate::{layering, run, setup};
use anyhow::{Result, bail};
use std::process::ExitCode;

/// One check: its name and what it does.
pub type Check = (&'static str, fn() -> Result<()>);

/// The checks, cheapest first.
pub const CHECKS: &[Check] = &[
    ("format", format),
    ("layering", layering::check),
    ("deny", deny),
    ("advisories", advisories),
    ("clippy", clippy),
];

/// `cargo xtask check`: runs all of them, even when one fails.
pub fn check() -> Result<ExitCode> {
    if let Some(code) = setup::ensure()? {
        return Ok(code);
    }
    let failed: Vec<String> = CHECKS
        .iter()
        .filter_map(|(name, check)| check().err().map(|error| format!("{name}: {error:#}")))
        .collect();
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}

fn format() -> Result<()> {
    run::step("format", &mut run::cargo(&["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    run::step(
        "clippy",
        &mut run::cargo(&[
            "clippy",
            "--release",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]),
    )
}

fn deny() -> Result<()> {
    run::step(
        "deny",
        run::command("cargo-deny").args(["--log-level", "error", "check", "bans", "licenses", "sources"]),
    )
}

/// The advisory database is a git repository outside the package registries: where it cannot be fetched this says so
/// and does not fail, because the code is not at fault.
fn advisories() -> Result<()> {
    let output = run::command("cargo-deny")
        .args(["check", "advisories"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(());
    }
    if text.contains("failed to fetch advisory database") {
        eprintln!("xtask: NOT CHECKED: the advisory database cannot be fetched from here");
        return Ok(());
    }
    bail!("cargo deny check advisories failed:\n{text}");
}
