//! PID 1 with a fault: it hangs, it panics, a service that it cannot do without does not come back. Each time the box comes
//! back by itself and says why. And a console that nobody reads holds up nothing. Four boots of one machine with a watchdog
//! chip, without firmware, its last words kept in memory that a reset leaves alone (`guest/watchman` asks for the faults).

#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_ci_e2e::Binaries;
use beemesh_ci_e2e::planted::Planted;
use beemesh_ci_testkit::{Disk, DiskBus, Machine, MachineConfig};
use regex::Regex;
use std::path::Path;
use std::time::{Duration, Instant};

const APPLETS: &[&str] = &[
    "sh", "cat", "cut", "dd", "head", "ip", "mv", "nc", "printf", "sleep", "tr", "yes",
];
const MODULES: &[&str] = &[
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/watchdog/watchdog.ko",
    "drivers/watchdog/i6300esb.ko",
    "lib/reed_solomon/reed_solomon.ko",
    "fs/pstore/ramoops.ko",
];
/// The watchdog waits 6 s and the emergency 3 s, in place of a minute. What the kernel says at its end lies in a MiB at
/// 256 MiB.
const LINE: &str = "console=ttyS0 quiet loglevel=3 panic=1 beemesh.planted beemesh.planted-watchdog=6 \
    beemesh.planted-emergency=3 memmap=1M$0x10000000 ramoops.mem_address=0x10000000 ramoops.mem_size=0x100000 \
    ramoops.record_size=0x10000";

struct Story {
    machine: Machine,
    start: Instant,
}

impl Story {
    /// Waits for a line, in the order of the calls, and tells its numbers.
    fn waits(&self, pattern: &str, seconds: u64) -> Vec<u64> {
        let pattern = Regex::new(pattern).unwrap();
        let line = self
            .machine
            .wait_for(pattern.clone(), Duration::from_secs(seconds))
            .unwrap();
        println!("{:>4} s  {}", self.start.elapsed().as_secs(), line.text);
        let captures = pattern.captures(&line.text).unwrap();
        let numbers = captures.iter().skip(1).flatten();
        numbers.map(|number| number.as_str().parse().unwrap()).collect()
    }

    fn never_said(&self, text: &str) {
        let lines = self.machine.console().lines_after(self.machine.boot_mark());
        assert!(!lines.iter().any(|line| line.text.contains(text)), "{text}");
    }
}

#[test]
fn box_comes_back_from_every_fault_of_pid_1_and_says_why() {
    let binaries = Binaries::find().unwrap();
    let folder = binaries.target.join("e2e/watchdog");
    let planted = Planted {
        judge: &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/watchman"),
        applets: APPLETS,
        modules: MODULES,
    };
    let initrd = planted.initrd(&binaries, &folder).unwrap();
    let kernel = binaries.artefact("vmlinuz").unwrap();
    let home = folder.join("machine");
    let config = MachineConfig::direct("watchdog", &home, &kernel, Some(&initrd), LINE);
    let counter = Disk::new("boots", &home.join("boots.img"), 1, DiskBus::Virtio);
    let mut config = config.tpm(None).memory_mib(512).disk(counter);
    let chip = ["-device", "i6300esb", "-watchdog-action", "reset"];
    config.extra.extend(chip.map(str::to_owned));
    let start = Instant::now();
    let machine = Machine::start(config).unwrap();
    let mut story = Story { machine, start };

    // The chip is held, with the time that was wanted, and nothing is told of a boot after nothing.
    let dog = story.waits(r"story: boot 0: watchdog i6300ESB timer, (\d+) s, nowayout 0", 60);
    assert_eq!(dog, [6]);
    story.never_said("was started again");

    // A megabyte for a console that takes nothing.
    story.waits("story: flood begins", 10);
    story.machine.console().pause(true);
    std::thread::sleep(Duration::from_secs(5));
    story.machine.console().pause(false);
    let flood = story.waits(
        r"story: flood taken in (\d+) s, door started again: yes, after (\d+) s",
        40,
    );
    assert!(flood[1] < 5, "PID 1 waited for the console: {flood:?}");
    let lines = story.machine.console().lines_after(story.machine.boot_mark());
    let shown = lines.iter().filter(|line| line.text.contains("nobody reads"));
    assert!(shown.count() < 10_000, "the console took all of it");

    // PID 1 hangs: only the chip can help.
    story.waits(
        r"beemesh: this machine did not answer and was started again by its watchdog \(i6300ESB timer\)",
        60,
    );
    story.waits("story: boot 1: ", 30);

    // A service that is stopped, not dead.
    let stopped = story.waits(r"story: stopped service started again after (\d+) s", 30);
    assert!(stopped[0] >= 1, "before its watchdog ran out: {stopped:?}");
    story.waits("beemesh: the service `vital` did not answer for 2 s", 5);

    // PID 1 panics: it says so, its kernel keeps it, the next boot tells it.
    story.waits("beemesh: This machine could not start: it failed to go on", 20);
    story.waits(
        r"beemesh: this machine was started again after a fault: failed to go on: its first program has a fault: panicked at .*planted fault",
        60,
    );
    story.waits("story: boot 2: ", 30);

    // A vital service that does not come back takes the machine with it, in order.
    story.waits(
        "beemesh: the service `vital` does not come back: this machine starts again",
        30,
    );
    story.waits("beemesh: starting again now", 30);
    story.waits("story: boot 3: ", 60);
    story.waits("story: done", 10);
    story.machine.wait_off(Duration::from_secs(30)).unwrap();
    println!("measured story of the watchdog: {} s", start.elapsed().as_secs());
}
