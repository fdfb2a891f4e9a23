//! PID 1 among services that misbehave: killed a hundred times, forking without end, eating all memory, hanging, leaving
//! ten thousand orphans, flooding it with device events. One boot, without firmware; the product's kernel and modules,
//! PID 1 built with the feature `planted-faults` (its services: `init/pid1/src/planted.rs`), and `guest/judge` as the
//! service that sets off the faults.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_ci_e2e::Binaries;
use beemesh_ci_e2e::planted::Planted;
use beemesh_ci_testkit::{Machine, MachineConfig};
use regex::Regex;
use std::path::Path;
use std::time::{Duration, Instant};

/// What PID 1 may keep in memory (requirement P8).
const RSS_KIB: u64 = 4_096;
const APPLETS: &[&str] = &[
    "sh", "cat", "cut", "grep", "head", "ip", "kill", "mv", "nc", "sleep", "touch", "tr",
];

struct Story {
    machine: Machine,
}

impl Story {
    /// The numbers in the line that the judge says about this fault.
    fn facts(&self, pattern: &str, seconds: u64) -> Vec<u64> {
        let pattern = Regex::new(&format!("story: {pattern}")).unwrap();
        let line = self
            .machine
            .wait_for(pattern.clone(), Duration::from_secs(seconds))
            .unwrap();
        println!("measured {}", line.text.trim_start_matches("beemesh: story: "));
        let captures = pattern.captures(&line.text).unwrap();
        captures
            .iter()
            .skip(1)
            .flatten()
            .map(|number| number.as_str().parse().unwrap())
            .collect()
    }

    fn says(&self, line: &str) {
        let waited = self.machine.wait_for(line, Duration::from_secs(5));
        waited.unwrap();
    }
}

#[test]
fn pid_1_outlives_services_that_misbehave() {
    let binaries = Binaries::find().unwrap();
    let folder = binaries.target.join("e2e/init");
    let planted = Planted {
        judge: &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/judge"),
        applets: APPLETS,
        modules: &[],
    };
    let initrd = planted.initrd(&binaries, &folder).unwrap();
    let kernel = binaries.artefact("vmlinuz").unwrap();
    let line = "console=ttyS0 quiet panic=-1 beemesh.planted";
    let config = MachineConfig::direct("init", &folder.join("machine"), &kernel, Some(&initrd), line);
    let start = Instant::now();
    let machine = Machine::start(config.tpm(None).memory_mib(512)).unwrap();
    let mut story = Story { machine };

    story.facts(r"rss at start (\d+) KiB", 60);

    // Every caller was answered, by the one socket, from inside the sandbox.
    let door = story.facts(
        r"door (\d+) kills in (\d+) s, answered by socket:\[\d+\] sandboxed=true",
        120,
    );
    assert_eq!(door[0], 100);

    let forks = story.facts(r"forks (\d+) of (\d+) processes, refused (\d+)", 30);
    assert!(forks[0] <= forks[1] && forks[2] > 0, "{forks:?}");
    assert_eq!(story.facts(r"forks started again, (\d+) process", 30), [1]);

    let eats = story.facts(r"eats oom_kill (\d+)", 30);
    assert!(eats[0] > 0);
    story.says("beemesh: the service `eats` was ended because it used more than 64 MiB; it is started again");

    story.facts(r"hangs started again after (\d+) s", 30);
    story.says(
        "beemesh: the service `hangs` did not answer for 2 s (its watchdog) (its last words: about to hang); it is started again",
    );

    let orphans = story.facts(
        r"orphans (\d+) processes in (\d+) s, zombies left: none, rss (\d+) KiB",
        120,
    );
    assert!(orphans[0] >= 10_000, "{orphans:?}");
    assert!(orphans[2] <= RSS_KIB, "PID 1 holds {} KiB", orphans[2]);

    let storm = story.facts(
        r"storm (\d+) events, then socket:\[\d+\] sandboxed=true, rss (\d+) KiB",
        90,
    );
    assert!(storm[0] >= 20_000 && storm[1] <= RSS_KIB, "{storm:?}");

    // What a stranger said to its socket did not count, and no more descriptors are kept than its spec allows.
    let door = story.facts(
        r"services name:door,state:ready,pid:\d+,restarts:(\d+),status:open,descriptors:door,extra,descriptors_refused:(\d+)",
        10,
    );
    assert!(door[0] > 100 && door[1] == 2, "{door:?}");
    story.facts("done", 10);
    // Going down in order is the last thing that all this must not have broken.
    story.machine.wait_off(Duration::from_secs(30)).unwrap();
    println!("measured story of init: {} s", start.elapsed().as_secs());
}
