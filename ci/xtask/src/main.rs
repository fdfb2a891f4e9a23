//! `cargo xtask`: the commands of a developer's day.
//!
//! Each is a list of steps that run programs people know (cargo, apt-get, qemu). What a step needs, `setup` installs;
//! nothing here knows how the product works.

mod bench;
mod build;
mod check;
mod layering;
mod run;
mod setup;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Set up, build, check, test and show Beemesh OS"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the Debian packages and cargo tools that building and testing need
    Setup,
    /// Build every binary and the OS image (target/image)
    Build,
    /// Format, lints, licences and layering, without running tests
    Check,
    /// Everything: check, unit and property tests, guests, stories; ends with `N passed, N failed`
    Test {
        /// Only the steps whose name contains this text
        #[arg(long)]
        only: Option<String>,
    },
    /// Boot three machines from a stick, deploy nginx, kill one machine, watch it heal
    Demo {
        /// Machines to boot (2 to 9)
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=9))]
        nodes: u8,
        /// Leave the fabric running and print the bmctl line to use
        #[arg(long)]
        keep: bool,
        /// Fail when a promised speed or size is missed on this machine
        #[arg(long)]
        strict: bool,
    },
    /// Play what takes too long for `test`
    #[command(subcommand)]
    E2e(E2e),
    /// Feed the parsers of strangers' bytes with mutated test vectors
    Fuzz {
        /// For how long, in seconds, for each target
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Play cells of the shipped scheduler under one virtual clock; measure how fast records and pods get about
    Sim {
        /// Nodes of the cell (4 to 1000)
        #[arg(long, default_value_t = 1000)]
        nodes: u16,
        /// How many seeds
        #[arg(long, default_value_t = 1)]
        seeds: u64,
        /// The first seed
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// One scenario alone: revocation, rotation, change, placement, partition, half, faults
        #[arg(long)]
        only: Option<String>,
        /// Play nothing: time the verification of signatures and the connections of nodes on this machine
        #[arg(long)]
        costs: bool,
        /// Write every outcome to this file, from the root of the repository
        #[arg(long, value_name = "FILE")]
        json: Option<String>,
    },
    /// Measure
    #[command(subcommand)]
    Bench(bench::Bench),
}

#[derive(Subcommand)]
enum E2e {
    /// A week of a site that no network reaches: nights, rotation of keys, a box installed anew; target/airgap/report.json
    Airgap {
        /// Days to play
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(4..=31))]
        days: u16,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Setup => setup::setup(),
        Command::Build => build::build(),
        Command::Check => check::check(),
        Command::Test { only } => test::test(only.as_deref()),
        Command::Demo { nodes, keep, strict } => demo(nodes, keep, strict),
        Command::E2e(E2e::Airgap { days }) => airgap(days),
        Command::Fuzz { seconds } => fuzz(seconds),
        Command::Sim {
            nodes,
            seeds,
            seed,
            only,
            costs,
            json,
        } => {
            let [nodes, seeds, seed] = [u64::from(nodes), seeds, seed].map(|number| number.to_string());
            let mut line = vec!["--nodes", &nodes, "--seeds", &seeds, "--seed", &seed];
            line.extend(only.iter().flat_map(|only| ["--only", only]));
            line.extend(costs.then_some("--costs"));
            line.extend(json.iter().flat_map(|file| ["--json", file]));
            sim(&line)
        }
        Command::Bench(what) => bench::bench(what),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn fuzz(seconds: u64) -> Result<ExitCode> {
    for target in ["joinpack", "manifest", "documents"] {
        let seconds = seconds.to_string();
        let line = [
            "run",
            "--release",
            "--package",
            "beemesh-ci-fuzz",
            "--",
            target,
            "--seconds",
            &seconds,
        ];
        run::step(&format!("fuzz {target}"), &mut run::cargo(&line))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn sim(options: &[&str]) -> Result<ExitCode> {
    let mut line = vec!["run", "--release", "--package", "beemesh-ci-sim", "--"];
    line.extend(options);
    run::step("sim", &mut run::cargo(&line))?;
    Ok(ExitCode::SUCCESS)
}

fn airgap(days: u16) -> Result<ExitCode> {
    let code = build::build()?;
    if code != ExitCode::SUCCESS {
        return Ok(code);
    }
    let mut airgap = run::command("target/release/airgap");
    run::step("airgap", airgap.args(["--days", &days.to_string()]))?;
    Ok(ExitCode::SUCCESS)
}

fn demo(nodes: u8, keep: bool, strict: bool) -> Result<ExitCode> {
    let code = build::build()?;
    if code != ExitCode::SUCCESS {
        return Ok(code);
    }
    let mut arguments = vec!["--nodes".to_owned(), nodes.to_string()];
    if keep {
        arguments.push("--keep".to_owned());
    }
    if strict {
        arguments.push("--strict".to_owned());
    }
    run::step("demo", run::command("target/release/demo").args(arguments))?;
    Ok(ExitCode::SUCCESS)
}
