//! Real machines: QEMU, OVMF and swtpm as this system has them. No kernel is needed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_ci_testkit::{
    DhcpPool, Disk, DiskBus, Ipv4Cidr, Mac, Machine, MachineConfig, Nic, QmpError, SiteHost, Stick,
    StickImage, Switch,
};
use serde_json::json;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

/// OVMF needs some seconds under emulation, and more when other tests run.
const BOOT: Duration = Duration::from_secs(120);

/// A machine whose CPUs do not start: devices and monitor work at once.
fn frozen(name: &str, folder: &Path) -> MachineConfig {
    let mut config = MachineConfig::uefi(name, folder).unwrap().memory_mib(256);
    config.extra.push("-S".to_owned());
    config
}

fn alive(id: u32) -> bool {
    Path::new(&format!("/proc/{id}")).exists()
}

#[test]
fn a_dropped_machine_leaves_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::start(frozen("n1", dir.path())).unwrap();
    let ids = machine.process_ids();
    assert_eq!(ids.len(), 2, "qemu and swtpm");
    assert!(ids.iter().all(|id| alive(*id)));
    drop(machine);
    assert!(!ids.iter().any(|id| alive(*id)));
}

#[test]
fn every_kind_of_device_is_accepted_by_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start().unwrap();
    let place = |name: &str| dir.path().join(name);
    let mut config = frozen("n1", dir.path())
        .disk(Disk::new("state", &place("a.img"), 8192, DiskBus::Virtio))
        .disk(Disk::new("sata", &place("b.img"), 64, DiskBus::Sata))
        .disk(Disk::new("nvme", &place("c.img"), 64, DiskBus::Nvme))
        .nic(Nic::virtio(&switch, "n1", Mac([0x52, 0x54, 0, 0, 0, 1])).unwrap())
        .nic(Nic::e1000e(&switch, "n1-second", Mac([0x52, 0x54, 0, 0, 0, 2])).unwrap());
    config.clock = Some("1970-01-01T00:00:00".to_owned());
    let machine = Machine::start(config).unwrap();
    use std::os::unix::fs::MetadataExt;
    let state = std::fs::metadata(place("a.img")).unwrap();
    assert_eq!(state.len(), 8 << 30);
    assert!(state.blocks() * 512 < 1 << 20, "the file is sparse");
    machine.set_link(0, false).unwrap();
    machine.set_link(1, true).unwrap();
    assert!(machine.set_link(2, false).is_err());
    let clock = machine
        .execute("qom-get", json!({"path": "/machine", "property": "rtc-time"}))
        .unwrap();
    assert_eq!(
        (clock["tm_year"].as_i64(), clock["tm_mon"].as_i64()),
        (Some(70), Some(0))
    );
    let refused = machine.execute("no-such-command", json!({})).unwrap_err();
    assert!(
        matches!(refused.downcast_ref(), Some(QmpError::Refused { .. })),
        "{refused:#}"
    );
}

#[test]
fn a_stick_goes_in_and_out_and_in_again() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("stick.img");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let mut machine = Machine::start(frozen("n1", dir.path())).unwrap();
    for stick in [
        Stick::data("join", &image),
        Stick::data("join", &image).slow(1 << 20),
    ] {
        machine.plug(stick.clone()).unwrap();
        assert!(machine.plug(stick.clone()).is_err(), "the same stick twice");
        assert_eq!(machine.stick_reads("join").unwrap(), 0);
        assert_eq!(machine.unplug("join").unwrap().image, image);
        assert!(machine.unplug("join").is_err());
    }
}

#[test]
fn a_machine_that_cannot_be_built_says_what_qemu_said() {
    let dir = tempfile::tempdir().unwrap();
    let config = frozen("n1", dir.path()).stick(Stick::data("os", &dir.path().join("missing.img")));
    let error = format!("{:#}", Machine::start(config).unwrap_err());
    assert!(
        error.contains("the machine `n1`") && error.contains("missing.img"),
        "{error}"
    );
}

#[test]
fn one_tpm_does_not_serve_two_machines_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let tpm = dir.path().join("tpm");
    let mut first = Machine::start(frozen("n1", &dir.path().join("n1")).tpm(Some(&tpm))).unwrap();
    let second = || Machine::start(frozen("n2", &dir.path().join("n2")).tpm(Some(&tpm)));
    assert!(second().is_err());
    first.kill().unwrap();
    second().unwrap();
}

#[test]
fn the_firmware_boots_with_its_tpm_and_says_so_again_after_a_reset_and_a_power_cycle() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("stick.img");
    std::fs::write(&image, vec![0; 4 << 20]).unwrap();
    let config = MachineConfig::uefi("n1", dir.path())
        .unwrap()
        .memory_mib(256)
        .stick(Stick::bootable("os", &image));
    let mut machine = Machine::start(config).unwrap();
    let tpm = dir.path().join("tpm/tpm2-00.permall");
    let made = std::fs::read(&tpm).unwrap();
    // The firmware tries the stick, which holds nothing, and says so on the serial line.
    let line = machine.wait_for("BdsDxe: ", BOOT).unwrap();
    assert!(
        machine.stick_reads("os").unwrap() > 0,
        "the firmware looked at the stick"
    );
    assert_ne!(std::fs::read(&tpm).unwrap(), made, "the firmware used the TPM");

    machine.reset().unwrap();
    let again = machine.wait_for("BdsDxe: ", BOOT).unwrap();
    assert!(again.number > line.number);

    machine.kill().unwrap();
    assert!(!machine.is_on().unwrap());
    assert!(
        machine
            .execute("query-status", json!({}))
            .unwrap_err()
            .to_string()
            .contains("is off")
    );
    machine.power_on().unwrap();
    assert!(machine.power_on().is_err(), "it is on");
    let third = machine.wait_for("BdsDxe: ", BOOT).unwrap();
    assert!(third.number > again.number);
    let log = std::fs::read_to_string(dir.path().join("console.log")).unwrap();
    assert!(log.matches("BdsDxe").count() >= 2);
}

#[test]
fn a_stick_is_pulled_out_in_the_middle_of_reading() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("files");
    std::fs::create_dir_all(folder.join("EFI/BOOT")).unwrap();
    // The firmware reads the whole program before it finds that it is none.
    let mut program = vec![0; 4 << 20];
    program[..2].copy_from_slice(b"MZ");
    std::fs::write(folder.join("EFI/BOOT/BOOTX64.EFI"), program).unwrap();
    let image = StickImage::from_folder(&dir.path().join("stick.img"), 64, &folder).unwrap();
    let stick = Stick::bootable("os", image.path()).slow(200_000);
    let config = MachineConfig::uefi("n1", dir.path())
        .unwrap()
        .memory_mib(256)
        .stick(stick);
    let mut machine = Machine::start(config).unwrap();
    let read = machine.wait_stick_read("os", 300_000, BOOT).unwrap();
    assert!(read < 4 << 20, "{read} bytes are everything");
    machine.unplug("os").unwrap();
    // The file is free again, and the machine lives on.
    assert_eq!(image.files().unwrap(), ["EFI/BOOT/BOOTX64.EFI"]);
    machine.wait_for("BdsDxe: failed to", BOOT).unwrap();
    assert!(machine.is_on().unwrap());
}

#[test]
fn a_machine_s_card_gets_its_address_over_the_switch_and_nothing_leaves_the_site() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start().unwrap();
    let laptop = Ipv4Cidr::new(Ipv4Addr::new(10, 77, 0, 1), 24);
    let host = SiteHost::plug(&switch, "laptop", laptop).unwrap();
    host.dhcp_on(DhcpPool::new(Ipv4Addr::new(10, 77, 0, 50), 10))
        .unwrap();
    let card = Mac([0x52, 0x54, 0, 0, 0, 0x21]);
    let config = MachineConfig::uefi("n1", dir.path())
        .unwrap()
        .tpm(None)
        .memory_mib(256);
    let machine = Machine::start(config.nic(Nic::virtio(&switch, "n1", card).unwrap())).unwrap();
    // Without anything else to boot from, the firmware tries the network.
    let deadline = Instant::now() + BOOT;
    while host.dhcp_leases().unwrap().is_empty() {
        assert!(
            Instant::now() < deadline,
            "no request came; {:?}",
            machine.console().tail(10)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(
        host.dhcp_leases().unwrap(),
        [(card, Ipv4Addr::new(10, 77, 0, 50))]
    );
    assert_eq!(switch.frames_outside(laptop), 0, "{:?}", switch.outsiders(laptop));
}

#[test]
fn a_machine_that_ignores_its_power_button_is_reported_and_one_that_goes_off_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = Machine::start(frozen("n1", dir.path())).unwrap();
    let error = machine.power_off(Duration::from_millis(200)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the machine `n1` is still on after 200ms"),
        "{error}"
    );
    machine.execute("quit", json!({})).unwrap();
    machine.wait_off(Duration::from_secs(30)).unwrap();
    assert!(machine.process_ids().is_empty());
    assert!(!machine.is_on().unwrap());
}
