//! The figures of this machine as one line, for `cargo xtask bench boot`: printed once the agent is ready, and only
//! with the word `beemesh.bench` on the kernel's command line.
//!
//! Reads `/proc`, which never blocks, and decides nothing. What cannot be read is left out, and the bench refuses the
//! line. Invariant: the fields are those that the shell of the other images of the bench prints.

use std::fs;

/// The word on the kernel's command line.
pub const WORD: &str = "beemesh.bench";
/// Processes that are counted; more than a machine of the bench can have.
const PROCESSES_LIMIT: usize = 65_536;

/// `beemesh-bench: uptime=… end`; seconds since the kernel's start, KiB, and processes without the kernel's threads.
pub fn record() -> String {
    // First of all: what follows takes time.
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut line = "beemesh-bench:".to_owned();
    let values = [
        ("uptime", uptime.split_whitespace().next()),
        ("total_kib", value(&memory, "MemTotal:")),
        ("available_kib", value(&memory, "MemAvailable:")),
        ("pid1_rss_kib", value(&status, "VmRSS:")),
    ];
    for (name, value) in values {
        if let Some(value) = value {
            line.push_str(&format!(" {name}={value}"));
        }
    }
    line.push_str(&format!(" processes={} end", processes()));
    line
}

/// The first word after `name` in a file of `/proc` that has one value in each line.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
}

/// Processes that have memory of their own; the kernel's threads have none.
fn processes() -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        .take(PROCESSES_LIMIT)
        .filter(|name| {
            let pages = fs::read_to_string(format!("/proc/{name}/statm")).unwrap_or_default();
            pages.split_whitespace().next().is_some_and(|pages| pages != "0")
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_behind_a_name_is_found_and_a_longer_name_is_not_it() {
        let text = "VmRSSx:\t  7 kB\nVmRSS:\t    1234 kB\n";
        assert_eq!(value(text, "VmRSS:"), Some("1234"));
        assert_eq!(value(text, "VmHWM:"), None);
    }

    #[test]
    fn the_record_of_this_machine_has_every_field() {
        let line = record();
        for name in [
            "uptime",
            "total_kib",
            "available_kib",
            "pid1_rss_kib",
            "processes",
        ] {
            let value = line
                .split_whitespace()
                .find_map(|word| word.strip_prefix(&format!("{name}=")));
            assert!(
                value.is_some_and(|v| v.parse::<f64>().is_ok_and(|v| v > 0.0)),
                "{name}: {line}"
            );
        }
        assert!(line.ends_with(" end"));
    }
}
