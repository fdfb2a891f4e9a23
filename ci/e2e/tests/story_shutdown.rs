//! The way down, whatever asks for it and whatever hangs: the power button, Ctrl-Alt-Del, a program that ignores SIGTERM, a
//! disk that does not answer any more, a halt. Within 30 s each time. PID 1 with planted services
//! (`init/pid1/src/planted.rs`), `guest/downward` as the one who is in the way.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_ci_e2e::Binaries;
use beemesh_ci_e2e::guest::tool;
use beemesh_ci_e2e::planted::Planted;
use beemesh_ci_testkit::{Disk, DiskBus, Machine, MachineConfig};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const APPLETS: &[&str] = &["sh", "dd", "grep", "ls", "mount", "mv", "sleep"];
/// The button, and a disk with ext4.
const MODULES: &[&str] = &[
    "drivers/acpi/button.ko",
    "drivers/input/evdev.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
    "crypto/crc32c_generic.ko",
    "lib/libcrc32c.ko",
    "lib/crc16.ko",
    "fs/mbcache.ko",
    "fs/jbd2/jbd2.ko",
    "fs/ext4/ext4.ko",
];
/// What is promised, from the request to the end.
const PROMISED: Duration = Duration::from_secs(30);
/// An emulated machine may be slow to notice that its guest is gone.
const SLACK: Duration = Duration::from_secs(3);

struct House {
    folder: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
}

impl House {
    fn build(name: &str) -> Self {
        let binaries = Binaries::find().unwrap();
        let folder = binaries.target.join("e2e").join(name);
        let planted = Planted {
            judge: &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/downward"),
            applets: APPLETS,
            modules: MODULES,
        };
        let initrd = planted.initrd(&binaries, &folder).unwrap();
        let kernel = binaries.artefact("vmlinuz").unwrap();
        Self {
            folder,
            kernel,
            initrd,
        }
    }

    fn disk(&self) -> PathBuf {
        let image = self.folder.join("disk.img");
        if !image.exists() {
            std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
            tool(
                Command::new("/usr/sbin/mke2fs")
                    .args(["-q", "-t", "ext4"])
                    .arg(&image),
            )
            .unwrap();
        }
        image
    }

    fn disk_is_clean(&self) {
        let header = tool(Command::new("/usr/sbin/dumpe2fs").arg("-h").arg(self.disk())).unwrap();
        assert!(header.contains("Filesystem state:         clean"), "{header}");
        assert!(
            !header.contains("needs_recovery"),
            "it was not unmounted: {header}"
        );
    }

    /// A machine that is ready to be asked to go down.
    fn start(&self, story: &str) -> Machine {
        let line = format!("console=ttyS0 quiet panic=-1 beemesh.planted story={story}");
        let home = self.folder.join(story);
        let config = MachineConfig::direct(story, &home, &self.kernel, Some(&self.initrd), &line);
        let disk = Disk::new("state", &self.disk(), 64, DiskBus::Virtio);
        let machine = Machine::start(config.tpm(None).memory_mib(512).disk(disk)).unwrap();
        says(&machine, &format!("story: ready for {story}"), 60);
        machine
    }
}

fn says(machine: &Machine, text: &str, seconds: u64) -> u64 {
    let line = machine.wait_for(text, Duration::from_secs(seconds)).unwrap();
    line.number
}

/// Waits until it is off; how long that took since `asked`.
fn off(machine: &mut Machine, asked: Instant, story: &str) -> Duration {
    machine.wait_off(PROMISED + SLACK).unwrap();
    println!(
        "measured {story}: down after {:.1} s",
        asked.elapsed().as_secs_f32()
    );
    asked.elapsed()
}

#[test]
fn power_button_ends_everything_in_order_and_nothing_written_is_lost() {
    let house = House::build("shutdown-button");
    let mut machine = house.start("orderly");
    let asked = Instant::now();
    machine.execute("system_powerdown", json!({})).unwrap();
    let order = [
        "beemesh: switching off; please wait",
        "story: asked to stop",
        "beemesh: closing the disks",
        "beemesh: the disks are closed",
        "beemesh: the machine can be unplugged now",
    ];
    let numbers = order.map(|text| says(&machine, text, 30));
    assert!(numbers.is_sorted(), "{numbers:?}");
    assert!(off(&mut machine, asked, "power button") < Duration::from_secs(15));
    house.disk_is_clean();
    let last = tool(
        Command::new("/usr/sbin/debugfs")
            .args(["-R", "cat /last"])
            .arg(house.disk()),
    )
    .unwrap();
    assert_eq!(last.trim(), "last words");
}

#[test]
fn ctrl_alt_del_starts_again_although_a_program_ignores_being_asked_to_stop() {
    let house = House::build("shutdown-keys");
    let mut machine = house.start("stubborn");
    let mark = machine.console().mark();
    let asked = Instant::now();
    let keys: Vec<_> = ["ctrl", "alt", "delete"]
        .map(|key| json!({"type": "qcode", "data": key}))
        .to_vec();
    machine.execute("send-key", json!({ "keys": keys })).unwrap();
    says(&machine, "beemesh: starting again; please wait", 10);
    says(&machine, "beemesh: the disks are closed", 30);
    says(&machine, "beemesh: starting again now", 30);
    println!(
        "measured stubborn program: down after {:.1} s",
        asked.elapsed().as_secs_f32()
    );
    assert!(asked.elapsed() < PROMISED);
    let again = machine
        .console()
        .wait_for_after(mark, "story: ready for stubborn", Duration::from_secs(60));
    again.unwrap();
    let asked = Instant::now();
    machine.execute("system_powerdown", json!({})).unwrap();
    assert!(off(&mut machine, asked, "power button, stubborn program") < PROMISED);
}

/// `0`: as fast as it can; `1`: one byte in a second, so that who waits for the disk waits for ever, in the kernel, past any
/// SIGKILL.
fn limit_disk(machine: &mut Machine, bytes_per_second: u64) {
    let mut limits =
        json!({"id": "/machine/peripheral/disk-state/virtio-backend", "bps": bytes_per_second, "iops": 0});
    for name in ["bps_rd", "bps_wr", "iops_rd", "iops_wr"] {
        limits[name] = json!(0);
    }
    machine.execute("block_set_io_throttle", limits).unwrap();
}

/// A machine whose disk hangs while a program writes to it.
fn with_hung_disk(house: &House) -> Machine {
    let mut machine = house.start("disk");
    std::thread::sleep(Duration::from_secs(2));
    limit_disk(&mut machine, 1);
    std::thread::sleep(Duration::from_secs(2));
    machine
}

#[test]
fn disk_that_does_not_answer_any_more_does_not_keep_the_machine_up() {
    let house = House::build("shutdown-disk");
    let mut machine = with_hung_disk(&house);
    let asked = Instant::now();
    machine.execute("system_powerdown", json!({})).unwrap();
    says(&machine, "beemesh: closing the disks", 30);
    says(
        &machine,
        "beemesh: a disk does not answer; going down without it",
        30,
    );
    let took = off(&mut machine, asked, "hung disk");
    assert!(took < PROMISED + SLACK, "{took:?}");
    assert!(took > Duration::from_secs(20), "it was not waited for: {took:?}");
}

#[test]
fn disk_that_answers_late_is_closed_in_order_all_the_same() {
    let house = House::build("shutdown-late");
    let mut machine = with_hung_disk(&house);
    machine.execute("system_powerdown", json!({})).unwrap();
    says(&machine, "beemesh: closing the disks", 30);
    std::thread::sleep(Duration::from_secs(4));
    limit_disk(&mut machine, 0);
    let asked = Instant::now();
    says(&machine, "beemesh: the disks are closed", 30);
    off(&mut machine, asked, "disk that answers again");
    house.disk_is_clean();
}

#[test]
fn halt_ends_everything_and_leaves_the_machine_on() {
    let house = House::build("shutdown-halt");
    let mut machine = house.start("halt");
    says(&machine, "beemesh: stopping for good; please wait", 10);
    says(&machine, "story: asked to stop", 30);
    says(&machine, "beemesh: the disks are closed", 30);
    says(
        &machine,
        "beemesh: stopped; the machine can be switched off now",
        30,
    );
    says(&machine, "reboot: System halted", 10);
    let mark = machine.console().mark();
    std::thread::sleep(Duration::from_secs(5));
    assert!(machine.is_on().unwrap(), "it went off, or started again");
    assert!(machine.console().lines_after(mark).is_empty());
    machine.kill().unwrap();
}
