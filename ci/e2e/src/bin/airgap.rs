//! Seven days without a network: three boxes that join from sticks, a site that is switched off each night, keys that are
//! rotated by wire and by stick, a box that is installed anew, workloads that go on, and no frame that leaves the site.
//!
//! The days are simulated by the boxes' hardware clocks. Every figure in `target/airgap/report.json` was measured in the run
//! that wrote it.

use anyhow::{Context, Result, ensure};
use beemesh_ci_e2e::airgap::{Airgap, NODES, Plan};
use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Plays a week of a site that no network reaches, and writes target/airgap/report.json")]
struct Cli {
    /// Days to play
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(4..=31))]
    days: u16,
}

fn main() -> ExitCode {
    match week(Cli::parse().days) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("airgap: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn week(days: u16) -> Result<()> {
    let plan = Plan::of(days);
    let mut site = Airgap::open(&plan)?;
    let played = play(&mut site, &plan, days);
    if played.is_err() {
        site.keep_logs();
    }
    played
}

fn play(site: &mut Airgap, plan: &Plan, days: u16) -> Result<()> {
    site.join()?;
    site.deploy()?;
    for day in 1..=days {
        site.night(day, plan.is_power_cut(day))?;
        if day == plan.rotate_by_wire {
            site.rotate_by_wire()?;
        }
        if day == plan.rotate_by_stick {
            site.rotate_by_stick()?;
        }
        if day == plan.reinstall {
            site.reinstall(NODES)?;
        }
    }
    let report = site.report(days)?;
    let path = site.folder().join("report.json");
    let text = serde_json::to_vec_pretty(&report)?;
    std::fs::write(&path, text).with_context(|| format!("failed to write `{}`", path.display()))?;
    site.finish(&path);
    println!("{}", serde_json::to_string_pretty(&report)?);
    ensure!(
        report.frames_outside == 0,
        "frames left the site: {}",
        report.outsiders
    );
    Ok(())
}
