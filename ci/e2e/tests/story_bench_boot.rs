//! The bench of the boot, in small: one round of the bare system and the product, and what the documents show.

use beemesh_ci_e2e::Binaries;
use beemesh_ci_e2e::bench::report::{Figures, Report, judge};
use beemesh_ci_e2e::bench::rig::Rig;
use beemesh_ci_e2e::bench::{chart, table};
use std::fs;
use std::path::Path;

#[test]
fn a_round_of_the_bench_measures_the_bare_system_and_the_product() {
    let binaries = Binaries::find().unwrap();
    let rig = Rig::open(&binaries, "story").unwrap();
    let bare = rig.bare().unwrap();
    let first = rig.beemesh_first(&bare);
    let (limit, ours) = (rig.boot(&bare).unwrap(), rig.boot(&first).unwrap());
    println!("bare {limit:?}\nBeemesh OS {ours:?}");
    assert_eq!(limit.record.processes, 1, "the bare system is PID 1 alone");
    assert!(ours.record.processes >= 3, "PID 1, net and agent: {ours:?}");
    assert!(ours.record.uptime_ms > limit.record.uptime_ms);
    assert!(ours.record.used_kib() > limit.record.used_kib());
    assert_eq!(
        ours.record.total_kib / 1024,
        limit.record.total_kib / 1024,
        "not the same machine"
    );
    // The host sees all of the boot, the guest only what follows the kernel's start.
    assert!(limit.power_on_ms > limit.record.uptime_ms && ours.power_on_ms > ours.record.uptime_ms);
}

#[test]
fn the_documents_show_what_was_measured_and_nothing_else() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let report: Report = serde_json::from_str(&read("doc/bench-boot.json")).unwrap();
    for series in &report.series {
        assert_eq!(
            Figures::of(&series.boots),
            Some(series.figures),
            "{:?}",
            series.kind
        );
    }
    assert_eq!(judge(&report.series), report.targets);
    assert!(
        report.boots() >= 5,
        "{} boots are too few to show a spread",
        report.boots()
    );
    assert_eq!(chart::svg(&report), read("doc/bench-boot.svg"));
    let readme = read("README.md");
    assert_eq!(table::place(&readme, &table::markdown(&report)), Some(readme));
}
