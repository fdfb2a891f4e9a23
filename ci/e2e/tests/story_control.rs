//! `org.beemesh.Init1` on the product's kernel: PID 1 starts the program behind it when somebody connects, and Debian's own
//! busctl, inside the guest, lists, stops, starts, watches, and switches the machine off. PID 1 with planted services
//! (`init/pid1/src/planted.rs`), `guest/asker` as the one who asks.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_ci_e2e::planted::Planted;
use beemesh_ci_e2e::{Binaries, guest};
use beemesh_ci_testkit::{Machine, MachineConfig};
use std::path::Path;
use std::time::Duration;

const APPLETS: &[&str] = &["sh", "cat", "cut", "grep", "kill", "pidof", "sleep", "stat", "tr"];
/// What the program may use (`init/core/src/spec.rs`).
const MEMORY_BYTES: u64 = 16 << 20;

#[test]
fn busctl_in_the_guest_lists_stops_starts_watches_and_switches_off() {
    let binaries = Binaries::find().unwrap();
    let folder = binaries.target.join("e2e/control");
    let planted = Planted {
        judge: &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/asker"),
        applets: APPLETS,
        modules: &[],
    };
    let control = binaries
        .target
        .join("x86_64-unknown-linux-gnu/release/beemesh-control");
    let initrd = planted.initrd_with(&binaries, &folder, |root| {
        std::fs::copy(&control, root.join("usr/lib/beemesh/beemesh-control"))?;
        guest::copy_program(Path::new("/usr/bin/busctl"), root)
    });
    let kernel = binaries.artefact("vmlinuz").unwrap();
    let line = "console=ttyS0 quiet panic=-1 beemesh.planted";
    let home = folder.join("machine");
    let config = MachineConfig::direct("control", &home, &kernel, Some(&initrd.unwrap()), line);
    let mut machine = Machine::start(config.tpm(None).memory_mib(512)).unwrap();
    let heard = |pattern: &str| {
        let pattern = regex::Regex::new(&format!("story: {pattern}")).unwrap();
        let line = machine
            .wait_for(pattern.clone(), Duration::from_secs(90))
            .unwrap();
        println!("measured {}", line.text.trim_start_matches("beemesh: story: "));
        let captures = pattern.captures(&line.text).unwrap();
        captures
            .get(1)
            .map_or_else(String::new, |found| found.as_str().to_owned())
    };

    // Nothing runs before somebody connects, and only root can.
    heard("before:  runs, socket 600 0, folder 700 0");
    heard(r#"state s "running""#);
    // The console hands out lines while they are still being written.
    let phases = heard(r"phases (a\(st\) 9 .*) end");
    let words: Vec<&str> = phases.split_whitespace().skip(2).collect();
    let names: Vec<&str> = words
        .iter()
        .step_by(2)
        .map(|word| word.trim_matches('"'))
        .collect();
    assert_eq!(names.first(), Some(&"MountApi"));
    assert_eq!(names.last(), Some(&"OpenDevices"));
    let times: Vec<u64> = words
        .iter()
        .skip(1)
        .step_by(2)
        .map(|word| word.parse().unwrap())
        .collect();
    assert!(times.len() == 9 && times.is_sorted(), "{times:?}");
    heard(r#"door o "/org/beemesh/Init1/service/door""#);
    let memory: u64 = heard(r"memory t (\d+) of t 67108864").parse().unwrap();
    assert!(memory > 0);
    heard("stop$");
    heard("stopped, processes: 0");
    heard("start$");
    heard("ready again as another process, restarts t 1");
    heard("signals STRING stopping STRING stopped STRING starting STRING running STRING ready");
    heard("refused .*there is no service `nobody`");
    let used: u64 = heard(r"control uses t (\d+) bytes").parse().unwrap();
    assert!((1..MEMORY_BYTES).contains(&used), "{used}");
    machine
        .wait_for("beemesh: switching off; please wait", Duration::from_secs(30))
        .unwrap();
    machine.wait_off(Duration::from_secs(30)).unwrap();
}
