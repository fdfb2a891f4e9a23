//! The report as a plot: four small panels of bars, with the spread of the boots. Pure: SVG text.
//!
//! Invariant: every bar's length is its value on the panel's own scale, which begins at zero.

use super::report::{Kind, Report, Series};
use super::statistics::Summary;

const WIDTH: f64 = 960.0;
/// Where bars begin and how long the longest is.
const LEFT: f64 = 230.0;
const LONGEST: f64 = 590.0;
const BAR: f64 = 20.0;
const STEP: f64 = 26.0;
const PANEL_GAP: f64 = 46.0;
const TOP: f64 = 62.0;

struct Panel {
    title: &'static str,
    unit: &'static str,
    digits: usize,
    kinds: &'static [Kind],
    value: fn(&Series) -> Summary,
}

const THREE: &[Kind] = &[Kind::Bare, Kind::Beemesh, Kind::Debian];

const PANELS: [Panel; 4] = [
    Panel {
        title: "Kernel start to ready",
        unit: "s",
        digits: 2,
        kinds: &Kind::ALL,
        value: |s| s.figures.ready_s,
    },
    Panel {
        title: "Memory in use at ready",
        unit: "MiB",
        digits: 0,
        kinds: THREE,
        value: |s| s.figures.used_mib,
    },
    Panel {
        title: "Memory of PID 1",
        unit: "MiB",
        digits: 1,
        kinds: THREE,
        value: |s| s.figures.pid1_rss_mib,
    },
    Panel {
        title: "Kernel and system on disk",
        unit: "MB",
        digits: 0,
        kinds: THREE,
        value: |s| exact(s.image_bytes as f64 / 1e6),
    },
];

fn exact(value: f64) -> Summary {
    Summary {
        median: value,
        lowest: value,
        highest: value,
    }
}

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Bare => "#9aa0a6",
        Kind::Beemesh => "#c98a00",
        Kind::BeemeshFirst => "#e6c26a",
        Kind::Debian => "#a8324a",
    }
}

/// The plot.
#[must_use]
pub fn svg(report: &Report) -> String {
    let mut body = String::new();
    let mut y = TOP;
    for panel in &PANELS {
        y = draw(&mut body, panel, report, y);
    }
    let height = y + 4.0;
    let what = format!(
        "Median of {} boots each, thin lines from lowest to highest. {}, {}.",
        report.boots(),
        report.date,
        report.machine
    );
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\" font-size=\"14\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"20\" y=\"28\" font-weight=\"bold\" font-size=\"17\">From the kernel's start to ready: same kernel, \
         same virtual machine</text>\n\
         <text x=\"20\" y=\"48\" fill=\"#555\" font-size=\"12\">{}</text>\n{body}</svg>\n",
        escaped(&what)
    )
}

/// Draws a panel at `y`; returns where the next one begins.
fn draw(body: &mut String, panel: &Panel, report: &Report, y: f64) -> f64 {
    let rows: Vec<(&Series, Summary)> = panel
        .kinds
        .iter()
        .filter_map(|kind| report.series(*kind))
        .map(|series| (series, (panel.value)(series)))
        .collect();
    let most = rows
        .iter()
        .map(|(_, value)| value.highest)
        .fold(f64::MIN_POSITIVE, f64::max);
    let at = |value: f64| LEFT + LONGEST * value / most;
    body.push_str(&format!(
        "<text x=\"20\" y=\"{:.1}\" font-weight=\"bold\">{}, {}</text>\n",
        y + 22.0,
        panel.title,
        panel.unit
    ));
    let mut y = y + 34.0;
    for (series, value) in &rows {
        let middle = y + BAR / 2.0;
        body.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            LEFT - 10.0,
            middle + 5.0,
            escaped(series.kind.title())
        ));
        body.push_str(&format!(
            "<rect x=\"{LEFT:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR:.1}\" fill=\"{}\"/>\n",
            at(value.median) - LEFT,
            colour(series.kind)
        ));
        if value.lowest < value.highest {
            body.push_str(&format!(
                "<path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"#222\" stroke-width=\"1.5\"/>\n",
                at(value.lowest),
                at(value.highest)
            ));
        }
        body.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" font-weight=\"bold\">{:.*}</text>\n",
            at(value.highest) + 8.0,
            middle + 5.0,
            panel.digits,
            value.median
        ));
        y += STEP;
    }
    y + PANEL_GAP - STEP
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    /// The widths of the bars of a colour, in the order of the panels.
    fn widths(svg: &str, kind: Kind) -> Vec<f64> {
        let bars = svg.lines().filter(|line| line.contains(colour(kind)));
        bars.map(|line| {
            let (_, rest) = line.split_once("width=\"").unwrap();
            rest.split_once('"').unwrap().0.parse().unwrap()
        })
        .collect()
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let svg = svg(&report());
        let (bare, debian) = (widths(&svg, Kind::Bare), widths(&svg, Kind::Debian));
        assert_eq!((bare.len(), debian.len()), (4, 4));
        assert!(
            (debian[0] / bare[0] - 12.02 / 1.52).abs() < 0.05,
            "{bare:?} {debian:?}"
        );
        assert!((debian[2] / bare[2] - 12.0).abs() < 0.1, "{bare:?} {debian:?}");
        assert!(debian.iter().all(|width| *width <= LONGEST));
        assert_eq!(widths(&svg, Kind::BeemeshFirst).len(), 1);
    }

    #[test]
    fn text_is_escaped() {
        let mut report = report();
        report.machine = "a <b> & c".into();
        assert!(svg(&report).contains("a &lt;b&gt; &amp; c"));
    }
}
