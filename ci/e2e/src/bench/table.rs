//! The report as Markdown, and its place in the README. Pure.
//!
//! Invariant: only what stands between the two marks of the README is replaced.

use super::report::{Kind, Report, Series};
use super::statistics::Summary;

/// Where the table begins in the README.
pub const BEGIN: &str =
    "<!-- written by `cargo xtask bench boot --docs` from doc/bench-boot.json, not edited by hand -->";
/// Where it ends.
pub const END: &str = "<!-- end of what `cargo xtask bench boot --docs` writes -->";

/// Table, promises, and how it was measured.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let columns: Vec<&Series> = [Kind::Bare, Kind::Beemesh, Kind::Debian]
        .into_iter()
        .filter_map(|kind| report.series(kind))
        .collect();
    let mut text = String::new();
    let mut row = |name: &str, cell: &dyn Fn(&Series) -> String| {
        let cells: Vec<String> = columns.iter().map(|series| cell(series)).collect();
        text.push_str(&format!("| {name} | {} |\n", cells.join(" | ")));
    };
    row("", &|s| s.kind.title().to_owned());
    row("---", &|_| "---:".to_owned());
    row("ready means", &|s| s.kind.ready().to_owned());
    row("kernel start to ready, s", &|s| spread(s.figures.ready_s, 2));
    if let Some(first) = report.series(Kind::BeemeshFirst) {
        row("the same, first boot on a blank disk, s", &|s| match s.kind {
            Kind::Beemesh => spread(first.figures.ready_s, 2),
            _ => String::new(),
        });
    }
    row("power on to ready, s", &|s| spread(s.figures.power_on_s, 2));
    row("memory in use at ready, MiB", &|s| spread(s.figures.used_mib, 0));
    row("processes at ready", &|s| spread(s.figures.processes, 0));
    row("memory of PID 1, MiB", &|s| spread(s.figures.pid1_rss_mib, 1));
    row("kernel and system on disk, MB", &|s| {
        format!("{:.0}", s.image_bytes as f64 / 1e6)
    });
    text.push_str("\n| promised | at most | measured | |\n| --- | ---: | ---: | --- |\n");
    for target in &report.targets {
        let verdict = if target.reached { "reached" } else { "**missed**" };
        text.push_str(&format!(
            "| {} | {:.2} | {:.2} | {verdict} |\n",
            target.what, target.at_most, target.measured
        ));
    }
    text.push_str(&format!(
        "\nMedian (lowest to highest) of {} boots each, alternating, on {}: {}. Kernel {} for all, loaded by QEMU \
         without firmware, with a TPM, one virtio disk and no network card.\n",
        report.boots(),
        report.date,
        report.machine,
        report.kernel
    ));
    text
}

fn spread(summary: Summary, digits: usize) -> String {
    let Summary {
        median,
        lowest,
        highest,
    } = summary;
    let [median, lowest, highest] = [median, lowest, highest].map(|value| format!("{value:.digits$}"));
    match lowest == highest {
        true => median,
        false => format!("{median} ({lowest} to {highest})"),
    }
}

/// The README with this table between its marks; `None` when the marks are not there.
#[must_use]
pub fn place(readme: &str, table: &str) -> Option<String> {
    let (before, rest) = readme.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn each_row_has_a_cell_for_each_system_and_misses_are_said() {
        let text = markdown(&report());
        let wide: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
        assert!(wide.iter().all(|line| line.matches('|').count() == 5), "{text}");
        assert!(
            text.contains("| kernel start to ready, s | 1.52 (1.50 to 1.54) | 2.02 (2.00 to 2.04) | 12.02"),
            "{text}"
        );
        assert!(text.contains("| memory at ready, as a part of Debian's | 0.50 | 0.53 | **missed** |"));
        assert!(text.contains("of 5 boots each"));
    }

    #[test]
    fn only_what_is_between_the_marks_changes_and_twice_is_as_once() {
        let readme = format!("a\n{BEGIN}\nold\n{END}\nz\n");
        let once = place(&readme, "new\n").unwrap();
        assert_eq!(once, format!("a\n{BEGIN}\n\nnew\n\n{END}\nz\n"));
        assert_eq!(place(&once, "new\n").unwrap(), once);
        assert_eq!(place("no marks", "new"), None);
        assert_eq!(place(&format!("{END} {BEGIN}"), "new"), None);
    }
}
