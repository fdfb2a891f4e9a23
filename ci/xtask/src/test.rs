//! `cargo xtask test`: every check and every test, counted. The last line is `N passed, N failed`.
//!
//! A step that fails does not stop the next ones, unless they need what it builds. A test runner that ran nothing
//! counts as a failure: silence is not success.

use crate::check::CHECKS;
use crate::{build, run, setup};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    failures: Vec<String>,
    times: Vec<(String, u64)>,
}

impl Tally {
    fn one(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> bool {
        let start = Instant::now();
        let result = work();
        self.times.push((name.to_owned(), start.elapsed().as_secs()));
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                self.failed += 1;
                self.failures.push(format!("{name}: {error:#}"));
            }
        }
        self.failures.last().is_none_or(|last| !last.starts_with(name))
    }

    /// Runs a cargo test line and adds up its `test result:` lines.
    fn cargo_tests(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let start = Instant::now();
        eprintln!("xtask: {name}");
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start cargo")?;
        let output = child.stdout.take().context("no output")?;
        let (mut passed, mut failed) = (0, 0);
        for line in BufReader::new(output).lines() {
            let line = line?;
            println!("{line}");
            if let Some(counts) = line.trim().strip_prefix("test result: ") {
                passed += count(counts, "passed");
                failed += count(counts, "failed");
            }
        }
        let status = child.wait()?;
        self.times.push((name.to_owned(), start.elapsed().as_secs()));
        if failed == 0 && (!status.success() || passed == 0) {
            failed = 1;
        }
        self.passed += passed;
        self.failed += failed;
        if failed > 0 {
            self.failures.push(format!("{name}: {failed} failed ({status})"));
        }
        Ok(())
    }
}

/// The number before `word` in a `test result:` line, e.g. `ok. 3 passed; 0 failed; …`.
fn count(counts: &str, word: &str) -> u64 {
    let mut words = counts
        .split([' ', ';'])
        .filter(|word| !word.is_empty())
        .peekable();
    while let Some(this) = words.next() {
        if words.peek() == Some(&word) {
            return this.parse().unwrap_or(0);
        }
    }
    0
}

/// `cargo xtask test`.
pub fn test(only: Option<&str>) -> Result<ExitCode> {
    if let Some(code) = setup::ensure()? {
        return Ok(code);
    }
    let wanted = |name: &str| only.is_none_or(|only| name.contains(only));
    let mut tally = Tally::default();
    for (name, check) in CHECKS {
        if wanted(name) {
            tally.one(name, check);
        }
    }
    if wanted("unit") {
        let line = ["test", "--release", "--workspace", "--no-fail-fast"];
        tally.cargo_tests("unit, property and namespace tests", &mut run::cargo(&line))?;
    }
    if wanted("guest") || wanted("stories") {
        let built = tally.one("build", build::binaries)
            && tally.one("planted", build::planted)
            && tally.one("image", build::image);
        if built {
            let line = [
                "test",
                "--release",
                "--workspace",
                "--no-fail-fast",
                "--test",
                "story_*",
            ];
            let mut stories = run::cargo(&line);
            stories.args(["--", "--test-threads=1", "--nocapture"]);
            tally.cargo_tests("stories", &mut stories)?;
        }
    }
    for (name, seconds) in &tally.times {
        println!("{seconds:>6} s  {name}");
    }
    for failure in &tally.failures {
        println!("FAILED {failure}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_of_a_runner_is_counted() {
        let line = "FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!((count(line, "passed"), count(line, "failed")), (12, 3));
    }

    #[test]
    fn a_failure_is_counted_and_named() {
        let mut tally = Tally::default();
        assert!(tally.one("good", || Ok(())));
        assert!(!tally.one("bad", || anyhow::bail!("broken")));
        assert_eq!((tally.passed, tally.failed, tally.failures.len()), (1, 1, 1));
    }
}
