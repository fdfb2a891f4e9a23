//! Drives a fuzz target for a time: `cargo run --release -p beemesh-ci-fuzz -- joinpack --seconds 60`.
//!
//! An input that breaks the target is written to `target/fuzz/<target>-<digest>`; `--replay FILE` feeds it again.

use anyhow::{Context as _, Result, bail};
use beemesh_ci_fuzz::{Target, corpus, mutate::Mutator};
use beemesh_ids::Digest;
use clap::{Parser, ValueEnum as _};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Feeds a parser with mutated test vectors.
#[derive(Parser)]
struct Options {
    /// What to fuzz
    target: Target,
    /// For how long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where the mutations begin [default: by the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Feed this file alone
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(path) = &options.replay {
        let input = std::fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))?;
        options.target.run(&input);
        return Ok(());
    }
    let by_clock = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    };
    let seed = options.seed.unwrap_or_else(by_clock);
    let mut mutator = Mutator::new(corpus(options.target)?, seed);
    let (start, mut inputs) = (Instant::now(), 0u64);
    while start.elapsed() < Duration::from_secs(options.seconds) {
        let input = mutator.next_input();
        inputs += 1;
        if std::panic::catch_unwind(|| options.target.run(&input)).is_err() {
            let name = options
                .target
                .to_possible_value()
                .map_or_else(String::new, |v| v.get_name().to_owned());
            let path = PathBuf::from(format!("target/fuzz/{name}-{}", Digest::of(&input).hex()));
            std::fs::create_dir_all("target/fuzz")?;
            std::fs::write(&path, &input)?;
            bail!("input {inputs} of seed {seed} breaks it: `{}`", path.display());
        }
    }
    println!(
        "{inputs} inputs in {} s, seed {seed}: none breaks it",
        start.elapsed().as_secs()
    );
    Ok(())
}
