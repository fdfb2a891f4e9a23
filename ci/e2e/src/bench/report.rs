//! What one run measured, and how it compares with what was promised. Pure.
//!
//! Invariant: figures and targets are computed from the boots that stand beside them.

use super::record::Record;
use super::statistics::{Summary, summary};
use serde::{Deserialize, Serialize};

/// Which system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// busybox as PID 1 in an initramfs.
    Bare,
    /// The product, provisioned before.
    Beemesh,
    /// The product on a blank disk with a new TPM.
    BeemeshFirst,
    /// Debian 12 with systemd and podman.
    Debian,
}

impl Kind {
    /// All, in the order of a round.
    pub const ALL: [Self; 4] = [Self::Bare, Self::Beemesh, Self::BeemeshFirst, Self::Debian];

    /// For tables and plots.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Bare => "bare busybox",
            Self::Beemesh => "Beemesh OS",
            Self::BeemeshFirst => "Beemesh OS, first boot",
            Self::Debian => "Debian 12, systemd + podman",
        }
    }

    /// What "ready" is.
    #[must_use]
    pub fn ready(self) -> &'static str {
        match self {
            Self::Bare => "first act of PID 1",
            Self::Beemesh | Self::BeemeshFirst => "agent ready",
            Self::Debian => "multi-user.target",
        }
    }
}

/// One boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// What the guest said.
    #[serde(flatten)]
    pub record: Record,
    /// From before QEMU was started to the line, by the host's clock, milliseconds.
    pub power_on_ms: u64,
    /// How busy the machine was with other things just before, percent.
    pub busy_before_percent: u64,
    /// And during the boot.
    pub others_percent: u64,
}

/// Medians and spreads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// From the kernel's start to ready, seconds.
    pub ready_s: Summary,
    /// From power on to ready, seconds.
    pub power_on_s: Summary,
    /// Memory in use at ready, MiB.
    pub used_mib: Summary,
    /// Processes at ready.
    pub processes: Summary,
    /// Memory of PID 1, MiB.
    pub pid1_rss_mib: Summary,
}

impl Figures {
    /// `None` without boots.
    #[must_use]
    pub fn of(boots: &[Boot]) -> Option<Self> {
        let each = |value: fn(&Boot) -> f64| {
            let Summary {
                median,
                lowest,
                highest,
            } = summary(boots.iter().map(value))?;
            Some(Summary {
                median: thousandths(median),
                lowest: thousandths(lowest),
                highest: thousandths(highest),
            })
        };
        Some(Self {
            ready_s: each(|boot| boot.record.uptime_ms as f64 / 1000.0)?,
            power_on_s: each(|boot| boot.power_on_ms as f64 / 1000.0)?,
            used_mib: each(|boot| boot.record.used_kib() as f64 / 1024.0)?,
            processes: each(|boot| boot.record.processes as f64)?,
            pid1_rss_mib: each(|boot| boot.record.pid1_rss_kib as f64 / 1024.0)?,
        })
    }
}

/// As it is written to JSON: more digits were not measured, and would not all survive the reading.
fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// One system and its boots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Which.
    pub kind: Kind,
    /// Kernel, initrd and root file system, bytes.
    pub image_bytes: u64,
    /// In the order of the rounds.
    pub boots: Vec<Boot>,
    /// What they came to.
    pub figures: Figures,
}

/// Whether a promise was kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// What is compared.
    pub what: String,
    /// Measured, to be at most [`Target::at_most`].
    pub measured: f64,
    /// Promised.
    pub at_most: f64,
    /// It was.
    pub reached: bool,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Day of the run, UTC.
    pub date: String,
    /// The virtual machine, in words.
    pub machine: String,
    /// The host, in words.
    pub host: String,
    /// Release of the kernel that all booted.
    pub kernel: String,
    /// Version and build of the product.
    pub product: String,
    /// By system.
    pub series: Vec<Series>,
    /// What was promised.
    pub targets: Vec<Target>,
}

impl Report {
    /// The series of `kind`.
    #[must_use]
    pub fn series(&self, kind: Kind) -> Option<&Series> {
        find(&self.series, kind)
    }

    /// The lowest number of boots that a series has.
    #[must_use]
    pub fn boots(&self) -> usize {
        self.series.iter().map(|s| s.boots.len()).min().unwrap_or(0)
    }
}

fn find(series: &[Series], kind: Kind) -> Option<&Series> {
    series.iter().find(|series| series.kind == kind)
}

/// The promises, judged by medians. A promise whose systems were not measured is left out.
#[must_use]
pub fn judge(series: &[Series]) -> Vec<Target> {
    let figures = |kind| find(series, kind).map(|series| series.figures);
    let target = |what: &str, measured: f64, at_most: f64| Target {
        what: what.to_owned(),
        measured: thousandths(measured),
        at_most,
        reached: measured <= at_most,
    };
    let mut targets = Vec::new();
    let Some(ours) = figures(Kind::Beemesh) else {
        return targets;
    };
    if let Some(bare) = figures(Kind::Bare) {
        let ratio = ours.ready_s.median / bare.ready_s.median;
        targets.push(target(
            "time to ready, as a multiple of the bare init's",
            ratio,
            1.5,
        ));
    }
    if let Some(debian) = figures(Kind::Debian) {
        let ratio = ours.ready_s.median / debian.ready_s.median;
        targets.push(target("time to ready, as a part of Debian's", ratio, 0.25));
        let ratio = ours.used_mib.median / debian.used_mib.median;
        targets.push(target("memory at ready, as a part of Debian's", ratio, 0.5));
    }
    targets.push(target("memory of PID 1, MiB", ours.pid1_rss_mib.highest, 4.0));
    targets
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A series of `count` boots around these values.
    pub(crate) fn series(kind: Kind, uptime_ms: u64, used_kib: u64, pid1_rss_kib: u64, count: u64) -> Series {
        let boot = |n: u64| Boot {
            record: Record {
                uptime_ms: uptime_ms + 10 * n,
                total_kib: 1_000_000,
                available_kib: 1_000_000 - used_kib,
                pid1_rss_kib,
                processes: 3,
            },
            power_on_ms: uptime_ms + 500,
            busy_before_percent: 0,
            others_percent: 1,
        };
        let boots: Vec<Boot> = (0..count).map(boot).collect();
        let figures = Figures::of(&boots).unwrap();
        Series {
            kind,
            image_bytes: 40_000_000,
            boots,
            figures,
        }
    }

    pub(crate) fn report() -> Report {
        let series = vec![
            series(Kind::Bare, 1500, 20_000, 1_024, 5),
            series(Kind::Beemesh, 2000, 100_000, 3_072, 5),
            series(Kind::BeemeshFirst, 5000, 110_000, 3_072, 5),
            series(Kind::Debian, 12_000, 190_000, 12_288, 5),
        ];
        let targets = judge(&series);
        Report {
            date: "2026-01-31".into(),
            machine: "2 vCPU".into(),
            host: "a host".into(),
            kernel: "6.1".into(),
            product: "0.1.0".into(),
            series,
            targets,
        }
    }

    #[test]
    fn promises_are_judged_by_medians_and_each_can_be_missed() {
        let report = report();
        let reached: Vec<bool> = report.targets.iter().map(|target| target.reached).collect();
        assert_eq!(reached, [true, true, false, true], "{:?}", report.targets);
        let slow = [
            series(Kind::Bare, 1500, 1, 1, 3),
            series(Kind::Beemesh, 4000, 50_000, 4_097, 3),
            series(Kind::Debian, 12_000, 190_000, 1, 3),
        ];
        let reached: Vec<bool> = judge(&slow).iter().map(|target| target.reached).collect();
        assert_eq!(reached, [false, false, true, false]);
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        assert!(judge(&[series(Kind::Debian, 1, 1, 1, 1)]).is_empty());
        assert_eq!(judge(&[series(Kind::Beemesh, 1, 1, 1, 1)]).len(), 1);
        assert_eq!(Figures::of(&[]), None);
    }

    #[test]
    fn json_and_back_is_the_same_report() {
        let report = report();
        let text = serde_json::to_string(&report).unwrap();
        assert!(text.contains("\"beemesh-first\"") && text.contains("\"uptime_ms\":2000"));
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
