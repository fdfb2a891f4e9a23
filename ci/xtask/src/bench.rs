//! `cargo xtask bench`: measurements that are compared with something, each by a binary of ci/e2e.

use crate::{build, run, setup};
use anyhow::Result;
use clap::Subcommand;
use std::path::PathBuf;
use std::process::ExitCode;

/// What can be measured.
#[derive(Subcommand)]
pub enum Bench {
    /// From the kernel's start to ready: a bare init, Beemesh OS, and Debian with systemd and podman
    Boot {
        /// Boots of each system
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
        boots: u16,
        /// Also write everything that was measured to this file
        #[arg(long)]
        json: Option<PathBuf>,
        /// Fail when a target is missed on this machine
        #[arg(long)]
        strict: bool,
        /// Also write doc/bench-boot.json, doc/bench-boot.svg and the table in the README
        #[arg(long)]
        docs: bool,
    },
    /// `joinpack verify` on a large pack: its speed beside cat and sha256sum, and its memory
    Pack {
        /// Size of the pack's blobs in MiB; as much again is needed while it is made
        #[arg(long, default_value_t = 4096)]
        mib: u64,
        /// Runs of each program
        #[arg(long, default_value_t = 3)]
        runs: u16,
        /// Where the pack is made, and removed again [default: target/bench]
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
        /// Also write everything that was measured to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

/// Builds what is measured, then measures.
pub fn bench(what: Bench) -> Result<ExitCode> {
    match what {
        Bench::Boot {
            boots,
            json,
            strict,
            docs,
        } => boot(boots, json, strict, docs),
        Bench::Pack {
            mib,
            runs,
            folder,
            json,
        } => pack(mib, runs, folder, json),
    }
}

fn pack(mib: u64, runs: u16, folder: Option<PathBuf>, json: Option<PathBuf>) -> Result<ExitCode> {
    if let Some(code) = setup::ensure()? {
        return Ok(code);
    }
    build::binaries()?;
    let mut bench = run::command("target/release/bench-pack");
    bench.args(["--mib", &mib.to_string(), "--runs", &runs.to_string()]);
    for (name, path) in [("--folder", folder), ("--json", json)] {
        if let Some(path) = path {
            bench.arg(name).arg(std::path::absolute(path)?);
        }
    }
    run::step("bench pack", &mut bench)?;
    Ok(ExitCode::SUCCESS)
}

fn boot(boots: u16, json: Option<PathBuf>, strict: bool, docs: bool) -> Result<ExitCode> {
    if let Some(code) = setup::ensure_bench()? {
        return Ok(code);
    }
    let code = build::build()?;
    if code != ExitCode::SUCCESS {
        return Ok(code);
    }
    let mut bench = run::command("target/release/bench-boot");
    bench.args(["--boots", &boots.to_string()]);
    // The bench runs in the root of the repository, its caller may not.
    if let Some(path) = json {
        bench.arg("--json").arg(std::path::absolute(path)?);
    }
    for (name, wanted) in [("--strict", strict), ("--docs", docs)] {
        bench.args(wanted.then_some(name));
    }
    run::step("bench boot", &mut bench)?;
    Ok(ExitCode::SUCCESS)
}
