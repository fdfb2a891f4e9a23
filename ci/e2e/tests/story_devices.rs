//! Devices that are there, come and go: each block device has udev's names below `/dev/disk` for as long as it is there, also
//! when it comes in a storm of events; a network card that is plugged in gets its driver. PID 1 with planted services
//! (`init/pid1/src/planted.rs`), `guest/namer` as the one who looks.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_ci_e2e::Binaries;
use beemesh_ci_e2e::guest::tool;
use beemesh_ci_e2e::planted::Planted;
use beemesh_ci_testkit::{Disk, DiskBus, Machine, MachineConfig, Mark, Stick, StickImage};
use regex::Regex;
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const APPLETS: &[&str] = &["sh", "printf", "readlink", "sleep", "touch"];
const MODULES: &[&str] = &[
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "drivers/usb/common/usb-common.ko",
    "drivers/usb/core/usbcore.ko",
    "drivers/usb/host/xhci-hcd.ko",
    "drivers/usb/host/xhci-pci.ko",
    "drivers/scsi/scsi_common.ko",
    "drivers/scsi/scsi_mod.ko",
    "drivers/usb/storage/usb-storage.ko",
    "crypto/crct10dif_common.ko",
    "crypto/crct10dif_generic.ko",
    "lib/crc-t10dif.ko",
    "lib/crc64.ko",
    "crypto/crc64_rocksoft_generic.ko",
    "lib/crc64-rocksoft.ko",
    "block/t10-pi.ko",
    "drivers/scsi/sd_mod.ko",
];

/// What blkid, on the host, says of the file system at `offset`.
fn uuid(image: &Path, offset: u64) -> String {
    let mut blkid = Command::new("/usr/sbin/blkid");
    blkid.args(["--probe", "--output", "value", "--match-tag", "UUID", "--offset"]);
    let text = tool(blkid.arg(offset.to_string()).arg(image)).unwrap();
    text.trim().to_owned()
}

fn heard(machine: &Machine, after: Mark, pattern: &str) {
    let pattern = Regex::new(&format!("story: {pattern}$")).unwrap();
    let line = machine
        .console()
        .wait_for_after(after, pattern, Duration::from_secs(90));
    println!("{}", line.unwrap().text);
}

#[test]
fn names_of_disks_come_and_go_with_them_and_a_plugged_card_gets_its_driver() {
    let binaries = Binaries::find().unwrap();
    let folder = binaries.target.join("e2e/devices");
    let planted = Planted {
        judge: &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/namer"),
        applets: APPLETS,
        modules: MODULES,
    };
    let initrd = planted.initrd(&binaries, &folder).unwrap();
    let kernel = binaries.artefact("vmlinuz").unwrap();
    let disk = folder.join("disk.img");
    std::fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    tool(
        Command::new("/usr/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-L", "my data"])
            .arg(&disk),
    )
    .unwrap();
    std::fs::create_dir(folder.join("stick")).unwrap();
    let image = folder.join("stick.img");
    StickImage::from_folder(&image, 16, &folder.join("stick")).unwrap();
    let line = "console=ttyS0 quiet panic=-1 beemesh.planted story=storm";
    let home = folder.join("machine");
    let config = MachineConfig::direct("devices", &home, &kernel, Some(&initrd), line);
    let mut config = config
        .tpm(None)
        .memory_mib(512)
        .disk(Disk::new("d1", &disk, 64, DiskBus::Virtio));
    let slot = ["-device", "pcie-root-port,id=hot,chassis=1,slot=1"];
    config.extra.extend(slot.map(str::to_owned));
    let mut machine = Machine::start(config).unwrap();

    // A disk that is there from the start.
    let start = machine.boot_mark();
    for name in [
        format!("by-uuid/{}", uuid(&disk, 0)),
        r"by-label/my\\x20data".to_owned(),
        "by-id/virtio-d1".to_owned(),
        r"by-path/pci-0000:00:\w\w\.\w".to_owned(),
    ] {
        heard(&machine, start, &format!(r"there {name}=\.\./\.\./vda"));
    }

    // A stick, and its removal.
    let stick = uuid(&image, 2048 * 512);
    let names = [
        "by-partlabel/BEEMESHJOIN".to_owned(),
        "by-label/BEEMESHJOIN".to_owned(),
        format!("by-uuid/{stick}"),
        r"by-path/pci-0000:00:\w\w\.\w-usb-0:\d:1\.0-scsi-0:0:0:0-part1".to_owned(),
    ];
    let mark = machine.console().mark();
    machine.plug(Stick::data("s1", &image)).unwrap();
    for name in &names {
        heard(&machine, mark, &format!(r"there {name}=\.\./\.\./sd[a-z]1"));
    }
    let mark = machine.console().mark();
    machine.unplug("s1").unwrap();
    for name in &names {
        heard(&machine, mark, &format!(r"gone {name}=\.\./\.\./sd[a-z]1"));
    }

    // A network card in a slot of the board.
    let mark = machine.console().mark();
    let card = json!({"driver": "virtio-net-pci", "id": "card", "bus": "hot", "romfile": ""});
    machine.execute("device_add", card).unwrap();
    heard(&machine, mark, "there net/eth0");

    // The same stick while events come faster than anyone can take them.
    heard(&machine, mark, "storm");
    let mark = machine.console().mark();
    machine.plug(Stick::data("s1", &image)).unwrap();
    for name in &names {
        heard(&machine, mark, &format!(r"there {name}=\.\./\.\./sd[a-z]1"));
    }
    machine.kill().unwrap();
}
