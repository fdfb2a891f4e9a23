//! Plays the scenarios for many seeds, prints a table and writes JSON: `cargo xtask sim --nodes 1000 --seeds 3`.
//!
//! Ends with 1 where a promise was missed or an invariant did not hold, and says the command that plays that seed again.

use anyhow::{Context as _, Result, bail};
use beemesh_ci_sim::scenario::{Outcome, Scenario};
use beemesh_ci_sim::{Delays, costs};
use clap::Parser;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// Plays cells of the shipped scheduler under one virtual clock.
#[derive(Parser)]
struct Options {
    /// Nodes of the cell
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(4..=1000))]
    nodes: u16,
    /// How many seeds
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One scenario alone: revocation, rotation, change, placement, partition, half, faults
    #[arg(long, value_parser = scenario)]
    only: Option<Scenario>,
    /// Play nothing: time the verification of signatures and the connections of nodes on this machine
    #[arg(long)]
    costs: bool,
    /// Write every outcome to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn scenario(name: &str) -> Result<Scenario, String> {
    Scenario::of(name).ok_or_else(|| {
        let names: Vec<&str> = Scenario::ALL.iter().map(|scenario| scenario.name()).collect();
        format!("there is no scenario `{name}`, there are {}", names.join(", "))
    })
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.costs {
        show_costs();
        return Ok(());
    }
    let nodes = usize::from(options.nodes);
    let (mut outcomes, mut broken) = (Vec::new(), 0);
    println!(
        "{:<11}{:>5}{:>8}{:>10}{:>8}{:>8}{:>7}  trace",
        "scenario", "nodes", "seed", "median ms", "p99", "max", "real s"
    );
    for scenario in Scenario::ALL {
        if options.only.is_some_and(|only| only != scenario) {
            continue;
        }
        for seed in options.seed..options.seed.saturating_add(options.seeds) {
            let start = Instant::now();
            let again = format!(
                "cargo xtask sim --only {} --nodes {nodes} --seeds 1 --seed {seed}",
                scenario.name()
            );
            let Ok(outcome) = std::panic::catch_unwind(|| scenario.play(nodes, seed)) else {
                broken += 1;
                println!("BROKEN: {again}");
                continue;
            };
            show(&outcome, start.elapsed().as_secs_f64());
            if let Some(missed) = &outcome.missed {
                broken += 1;
                println!("MISSED: {missed}: {again}");
            }
            outcomes.push(outcome);
        }
    }
    if let Some(path) = &options.json {
        let json = serde_json::to_vec_pretty(&outcomes)?;
        std::fs::write(path, json).with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    if broken > 0 {
        bail!("{broken} runs missed a promise or broke an invariant");
    }
    Ok(())
}

fn show_costs() {
    println!(
        "{:<54}{:>10}{:>10}{:>10}{:>10}",
        "microseconds", "median", "least", "greatest", "counted"
    );
    for cost in costs::measure() {
        let (least, greatest) = cost.range_us;
        let counted = cost
            .counted_us
            .map_or_else(|| "-".to_owned(), |us| us.to_string());
        println!(
            "{:<54}{:>10.0}{least:>10.0}{greatest:>10.0}{counted:>10}",
            cost.what, cost.median_us
        );
    }
}

fn show(outcome: &Outcome, real_s: f64) {
    let Delays { median, p99, max, .. } = outcome.delays;
    println!(
        "{:<11}{:>5}{:>8}{median:>10}{p99:>8}{max:>8}{real_s:>7.1}  {}",
        outcome.scenario.name(),
        outcome.nodes,
        outcome.seed,
        outcome.trace
    );
    let figures: &BTreeMap<&str, f64> = &outcome.figures;
    for (name, value) in figures {
        println!("{:<16}{name}: {value}", "");
    }
}
