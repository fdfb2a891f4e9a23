//! `cargo xtask bench boot`: boots the three systems of the bench in turn and reports what they said.

use anyhow::{Context, Result, bail};
use beemesh_ci_e2e::Binaries;
use beemesh_ci_e2e::bench::report::{Figures, Kind, Report, Series, judge};
use beemesh_ci_e2e::bench::rig::{Rig, System};
use beemesh_ci_e2e::bench::{chart, debian, host, table};
use clap::Parser;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    about = "Boots a bare init, Beemesh OS and Debian in turn, and compares time and memory until ready"
)]
struct Cli {
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
    /// Boot nothing: show, and with --docs write, what an earlier run wrote with --json
    #[arg(long)]
    from: Option<PathBuf>,
}

fn main() -> ExitCode {
    match bench(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench boot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(cli: &Cli) -> Result<()> {
    let report = match &cli.from {
        Some(path) => {
            let text = fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("`{}` is no report", path.display()))?
        }
        None => run(cli)?,
    };
    let json = serde_json::to_vec_pretty(&report)?;
    if let Some(path) = &cli.json {
        fs::write(path, &json).with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    if cli.docs {
        write_docs(&json, &report)?;
    }
    println!("\n{}", table::markdown(&report));
    let missed = report.targets.iter().filter(|target| !target.reached).count();
    if cli.strict && missed > 0 {
        bail!("{missed} targets were missed on this machine");
    }
    Ok(())
}

fn run(cli: &Cli) -> Result<Report> {
    let binaries = Binaries::find()?;
    let rig = Rig::open(&binaries, "boot")?;
    eprintln!("machine: {}; host: {}", rig.words(), host::words());
    let systems = prepare(&binaries, &rig)?;
    measure(cli.boots, &rig, &systems)
}

/// All systems, each booted once without being measured.
fn prepare(binaries: &Binaries, rig: &Rig) -> Result<[System; 4]> {
    eprintln!("preparing the bare system");
    let bare = rig.bare()?;
    eprintln!("preparing Beemesh OS: its first boot makes the state volume");
    let first = rig.beemesh_first(&bare);
    let beemesh = rig.beemesh(&first)?;
    eprintln!("preparing Debian: installed once, then kept in target/bench/debian");
    let product = &rig.product;
    let image = debian::prepare(
        &binaries.target.join("bench/debian"),
        &product.kernel,
        &product.kernel_release,
    )?;
    let debian = rig.debian(&image, &bare)?;
    Ok([bare, beemesh, first, debian])
}

fn measure(rounds: u16, rig: &Rig, systems: &[System]) -> Result<Report> {
    let mut boots = vec![Vec::new(); systems.len()];
    for round in 1..=rounds {
        for (system, boots) in systems.iter().zip(&mut boots) {
            let title = system.kind.title();
            let boot = rig
                .boot(system)
                .with_context(|| format!("{title}, boot {round}"))?;
            let record = boot.record;
            eprintln!(
                "[{round}/{rounds}] {title}: {:.2} s, {} MiB, {} processes, PID 1 {} KiB \
                 (others used {} % of the host, {} % before)",
                record.uptime_ms as f64 / 1000.0,
                record.used_kib() / 1024,
                record.processes,
                record.pid1_rss_kib,
                boot.others_percent,
                boot.busy_before_percent
            );
            boots.push(boot);
        }
    }
    let mut series = Vec::new();
    for (system, boots) in systems.iter().zip(boots) {
        let figures = Figures::of(&boots).context("nothing was booted")?;
        series.push(Series {
            kind: system.kind,
            image_bytes: system.image_bytes,
            boots,
            figures,
        });
    }
    let targets = judge(&series);
    Ok(Report {
        date: time::OffsetDateTime::now_utc().date().to_string(),
        machine: rig.words(),
        host: host::words(),
        kernel: rig.product.kernel_release.clone(),
        product: rig.product.version.clone(),
        series,
        targets,
    })
}

fn write_docs(json: &[u8], report: &Report) -> Result<()> {
    for kind in Kind::ALL {
        if report.series(kind).is_none() {
            bail!(
                "`{}` was not measured: the documents stay as they are",
                kind.title()
            );
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let readme = root.join("README.md");
    let text = fs::read_to_string(&readme).context("failed to read the README")?;
    let text =
        table::place(&text, &table::markdown(report)).context("the README has no place for the table")?;
    fs::write(root.join("doc/bench-boot.json"), json)?;
    fs::write(root.join("doc/bench-boot.svg"), chart::svg(report))?;
    fs::write(readme, text).context("failed to write the README")
}
