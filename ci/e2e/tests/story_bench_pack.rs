//! The bench of packs, in small: what it reports, and that `joinpack verify` needs no more memory than is promised.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_ci_e2e::bench::pack::{MEMORY_KIB, Reader, Report};
use std::fs;
use std::process::Command;

#[test]
fn verification_of_a_pack_takes_less_memory_than_the_pack() {
    let folder = tempfile::tempdir_in(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target")).unwrap();
    let json = folder.path().join("report.json");
    // Larger than the promised memory: whoever holds the blobs in it is found out.
    let output = Command::new(env!("CARGO_BIN_EXE_bench-pack"))
        .args(["--mib", "96", "--runs", "3", "--folder"])
        .arg(folder.path())
        .arg("--json")
        .arg(&json)
        .output()
        .unwrap();
    let (said, complaint) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{complaint}");
    let report: Report = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert!(report.bytes > 96 << 20, "{}", report.bytes);
    for reader in Reader::ALL {
        let series = report
            .series
            .iter()
            .find(|series| series.reader == reader)
            .unwrap();
        assert_eq!(series.runs.len(), 3);
        assert!(series.mb_per_s.median > 0.0 && series.peak_kib > 0, "{series:?}");
        if reader == Reader::Joinpack {
            assert!(series.peak_kib <= MEMORY_KIB, "{} KiB", series.peak_kib);
        }
    }
    assert!(report.within_memory && report.to_cat > 0.0 && report.to_sha256sum > 0.0);
    for word in ["cat", "joinpack verify", "sha256sum", "at most 64 MiB: yes"] {
        assert!(said.contains(word), "no `{word}` in {said}");
    }
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(left, [json], "the pack is removed again");
}

#[test]
fn pack_that_finds_no_room_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bench-pack"))
        .args(["--mib", "1048576", "--folder"])
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("MiB free") && said.contains("--folder"), "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
