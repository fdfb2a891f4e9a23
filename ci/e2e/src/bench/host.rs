//! What else this machine does while it measures: a figure that was taken beside a compiler is worth less, and says so.
//!
//! Reads `/proc` only. Invariant: waiting for quiet is bounded.

use anyhow::{Context, Result};
use std::fs;
use std::time::{Duration, Instant};

/// At most this much of the machine's processors may be busy before a boot, percent.
pub const QUIET: u64 = 15;
/// How long quiet is waited for before a boot.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long one look takes.
const LOOK: Duration = Duration::from_secs(1);

/// Clock ticks of all processors since the host's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticks {
    /// In which a processor did something, or another guest of the same host had it.
    pub busy: u64,
    /// All.
    pub total: u64,
}

/// Ticks of this moment.
///
/// # Errors
/// When `/proc/stat` cannot be read.
pub fn ticks() -> Result<Ticks> {
    let text = fs::read_to_string("/proc/stat").context("failed to read `/proc/stat`")?;
    parse_ticks(&text).context("`/proc/stat` has no line for all processors")
}

/// The line `cpu  user nice system idle iowait irq softirq steal …`; what follows is part of `user`. Source: proc(5).
fn parse_ticks(text: &str) -> Option<Ticks> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .take(8)
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    let idle = fields.get(3)? + fields.get(4)?;
    let total = fields.iter().sum();
    Some(Ticks {
        busy: total - idle,
        total,
    })
}

/// Ticks that the process has used, with all its threads; 0 when it is gone.
#[must_use]
pub fn process_ticks(id: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    parse_process_ticks(&text).unwrap_or_default()
}

/// utime and stime, fields 14 and 15; the name in field 2 may hold spaces and brackets. Source: proc(5).
fn parse_process_ticks(text: &str) -> Option<u64> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Percent of the machine that others used between two moments, when `ours` ticks were our own.
#[must_use]
pub fn others_percent(before: Ticks, after: Ticks, ours: u64) -> u64 {
    let total = after.total.saturating_sub(before.total).max(1);
    let busy = after.busy.saturating_sub(before.busy);
    busy.saturating_sub(ours) * 100 / total
}

/// Waits until the machine is quiet, at most [`PATIENCE`]; returns how busy it was in the last look, percent.
///
/// # Errors
/// When `/proc/stat` cannot be read.
pub fn wait_for_quiet() -> Result<u64> {
    let start = Instant::now();
    loop {
        let before = ticks()?;
        std::thread::sleep(LOOK);
        let busy = others_percent(before, ticks()?, 0);
        if busy <= QUIET || start.elapsed() >= PATIENCE {
            return Ok(busy);
        }
    }
}

/// This machine in words: processors and what they are.
#[must_use]
pub fn words() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{count} processors, {model}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stolen_by_other_guests_is_busy_and_waiting_for_a_disk_is_not() {
        let text = "cpu  100 5 20 1000 50 1 2 7 99 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        let ticks = parse_ticks(text).unwrap();
        assert_eq!((ticks.busy, ticks.total), (135, 1185));
        assert_eq!(parse_ticks("cpu0 1 2 3\n"), None);
    }

    #[test]
    fn a_process_with_brackets_in_its_name_is_read() {
        let text = "7 (a) b (c) S 1 1 1 0 -1 4194560 1 2 3 4 40 2 0 0 20 0 1 0 5 6 7";
        assert_eq!(parse_process_ticks(text), Some(42));
    }

    #[test]
    fn our_own_work_is_not_that_of_others() {
        let at = |busy, total| Ticks { busy, total };
        assert_eq!(others_percent(at(0, 0), at(60, 200), 40), 10);
        assert_eq!(others_percent(at(0, 0), at(60, 200), 90), 0);
        assert_eq!(others_percent(at(5, 5), at(5, 5), 0), 0);
    }

    #[test]
    fn this_process_uses_the_machine() {
        let before = ticks().unwrap();
        let mut sum = 0u64;
        while process_ticks(std::process::id()) == 0 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(ticks().unwrap().total >= before.total);
    }
}
