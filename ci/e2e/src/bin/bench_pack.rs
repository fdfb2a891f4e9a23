//! `cargo xtask bench pack`: measures `joinpack verify` on a large pack.

use anyhow::{Context, Result, bail};
use beemesh_ci_e2e::Binaries;
use beemesh_ci_e2e::bench::pack::{MEMORY_KIB, Run, bench, measured, words};
use clap::Parser;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

#[derive(Parser)]
#[command(
    about = "Makes a large join pack and compares `joinpack verify` with cat and sha256sum: speed and memory"
)]
struct Cli {
    /// Size of the pack's blobs in MiB; as much again is needed while it is made
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    mib: u64,
    /// Runs of each program
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
    /// Where the pack is made, and removed again [default: target/bench]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Also write everything that was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Run this program once and print its time and memory: how the bench runs each
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true)]
    measure: Vec<OsString>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench pack: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    if !cli.measure.is_empty() {
        println!("{}", serde_json::to_string(&measured(&cli.measure)?)?);
        return Ok(());
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let target = target
        .canonicalize()
        .context("there is no target folder: run `cargo xtask bench pack`")?;
    let place = cli.folder.clone().unwrap_or_else(|| target.join("bench"));
    fs::create_dir_all(&place).with_context(|| format!("failed to make `{}`", place.display()))?;
    let folder = tempfile::tempdir_in(&place)
        .with_context(|| format!("failed to make a folder in `{}`", place.display()))?;
    let report = bench(&Binaries { target }, folder.path(), cli.mib, cli.runs, alone)?;
    if let Some(path) = &cli.json {
        fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    println!("{}", words(&report));
    if !report.within_memory {
        bail!("`joinpack verify` took more than {} MiB", MEMORY_KIB / 1024);
    }
    Ok(())
}

/// The kernel counts the memory of all children of a process together: each program gets a parent of its own.
fn alone(line: &[OsString]) -> Result<Run> {
    let output = Command::new(std::env::current_exe().context("who am I?")?)
        .arg("--measure")
        .args(line)
        .output()
        .context("failed to start the bench again")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("it printed no figures")
}
