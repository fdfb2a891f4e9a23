//! The QEMU command line of a [`MachineConfig`]. Pure: strings and JSON only.
//!
//! Invariant: no argument opens a network other than the switch's unix sockets.

use super::config::{Boot, Disk, DiskBus, MachineConfig, Nic, NicModel, Stick};
use crate::accel::Accel;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The sockets of one machine. QEMU connects to `console` and `monitor`, where we listen, so that not a byte is lost.
#[derive(Debug, Clone)]
pub(super) struct Sockets {
    pub(super) console: PathBuf,
    pub(super) monitor: PathBuf,
    pub(super) tpm: PathBuf,
}

/// The arguments for `qemu-system-x86_64`.
pub(super) fn arguments(config: &MachineConfig, vars: &Path, sockets: &Sockets) -> Vec<String> {
    let mut args = Vec::new();
    let mut add = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    add("-name", config.name.clone());
    for flag in ["-nodefaults", "-no-user-config"] {
        add(flag, String::new());
    }
    add("-display", "none".to_owned());
    let smm = matches!(&config.boot, Boot::Uefi(firmware) if firmware.needs_smm());
    add("-machine", format!("q35,smm={}", if smm { "on" } else { "off" }));
    let (accel, cpu) = match config.accel {
        // TCG carries out `rep stosb` byte by byte: without ERMS and FSRM the kernel clears and copies pages in words.
        Accel::Tcg => ("tcg,thread=multi", "max,-erms,-fsrm"),
        Accel::Kvm => ("kvm", "host"),
    };
    add("-accel", accel.to_owned());
    add("-cpu", cpu.to_owned());
    add("-smp", config.cpus.to_string());
    add("-m", config.memory_mib.to_string());
    add(
        "-rtc",
        format!("base={}", config.clock.as_deref().unwrap_or("utc")),
    );
    match &config.boot {
        Boot::Uefi(firmware) => {
            let pflash = |unit: u8, mode: &str, file: &Path| {
                format!("if=pflash,format=raw,unit={unit}{mode},file={}", escaped(file))
            };
            add("-drive", pflash(0, ",readonly=on", &firmware.code));
            add("-drive", pflash(1, "", vars));
            if smm {
                add(
                    "-global",
                    "driver=cfi.pflash01,property=secure,value=on".to_owned(),
                );
                add("-global", "ICH9-LPC.disable_s3=1".to_owned());
            }
        }
        Boot::Direct {
            kernel,
            initrd,
            append,
        } => {
            add("-kernel", kernel.display().to_string());
            if let Some(initrd) = initrd {
                add("-initrd", initrd.display().to_string());
            }
            add("-append", append.clone());
        }
    }
    add(
        "-chardev",
        format!("socket,id=console,server=off,path={}", escaped(&sockets.console)),
    );
    add("-serial", "chardev:console".to_owned());
    add(
        "-chardev",
        format!("socket,id=monitor,server=off,path={}", escaped(&sockets.monitor)),
    );
    add("-mon", "chardev=monitor,mode=control".to_owned());
    if config.tpm.is_some() {
        add(
            "-chardev",
            format!("socket,id=tpm,server=off,path={}", escaped(&sockets.tpm)),
        );
        add("-tpmdev", "emulator,id=tpm0,chardev=tpm".to_owned());
        add("-device", "tpm-crb,tpmdev=tpm0".to_owned());
    }
    add("-device", "qemu-xhci,id=xhci".to_owned());
    for stick in &config.sticks {
        if let Some(limit) = throttle(stick) {
            add("-object", limit.to_string());
        }
        add("-blockdev", stick_drive(stick).to_string());
        add("-device", stick_device(stick).to_string());
    }
    let mut sata = 0;
    for disk in &config.disks {
        add("-blockdev", disk_drive(disk).to_string());
        let driver = match disk.bus {
            DiskBus::Virtio => "virtio-blk-pci",
            DiskBus::Sata => "ide-hd",
            DiskBus::Nvme => "nvme",
        };
        let mut device =
            json!({"driver": driver, "id": format!("disk-{}", disk.id), "drive": disk.id, "serial": disk.id});
        if disk.bus == DiskBus::Sata {
            device["bus"] = json!(format!("ide.{sata}"));
            sata += 1;
        }
        if let Some(index) = disk.boot_index {
            device["bootindex"] = json!(index);
        }
        add("-device", device.to_string());
    }
    for (number, nic) in config.nics.iter().enumerate() {
        add(
            "-netdev",
            format!(
                "stream,id=net{number},server=off,addr.type=unix,addr.path={}",
                escaped(&nic.socket)
            ),
        );
        add("-device", nic_device(number, nic).to_string());
    }
    args.retain(|a| !a.is_empty());
    args.extend(config.extra.iter().cloned());
    args
}

/// The block node of a disk, over one with a name of its own, so that another can be put between them.
fn disk_drive(disk: &Disk) -> Value {
    let mut below = file(&disk.image, false);
    below["node-name"] = json!(disk_file(&disk.id));
    json!({"driver": "raw", "node-name": disk.id, "file": below})
}

/// The node of the image file of disk `id`.
pub(super) fn disk_file(id: &str) -> String {
    format!("file-{id}")
}

fn nic_device(number: usize, nic: &Nic) -> Value {
    let driver = match nic.model {
        NicModel::Virtio => "virtio-net-pci",
        NicModel::E1000e => "e1000e",
    };
    let mac: Vec<String> = nic.mac.as_bytes().iter().map(|b| format!("{b:02x}")).collect();
    json!({
        "driver": driver,
        "id": format!("nic{number}"),
        "netdev": format!("net{number}"),
        "mac": mac.join(":"),
        // No network boot.
        "romfile": "",
    })
}

/// The block node of a stick; also understood by `blockdev-add`.
pub(super) fn stick_drive(stick: &Stick) -> Value {
    let raw =
        json!({"driver": "raw", "read-only": stick.read_only, "file": file(&stick.image, stick.read_only)});
    let mut node = if stick.bytes_per_second.is_some() {
        json!({"driver": "throttle", "throttle-group": limit_name(stick), "file": raw})
    } else {
        raw
    };
    node["node-name"] = json!(stick_node(&stick.id));
    node["read-only"] = json!(stick.read_only);
    node
}

/// The USB device of a stick; also understood by `device_add`.
pub(super) fn stick_device(stick: &Stick) -> Value {
    let mut device = json!({
        "driver": "usb-storage",
        "id": stick_name(&stick.id),
        "bus": "xhci.0",
        "drive": stick_node(&stick.id),
        "removable": true,
    });
    if let Some(index) = stick.boot_index {
        device["bootindex"] = json!(index);
    }
    device
}

/// The speed limit of a slow stick; also understood by `object-add`.
pub(super) fn throttle(stick: &Stick) -> Option<Value> {
    let limit = stick.bytes_per_second?;
    Some(json!({"qom-type": "throttle-group", "id": limit_name(stick), "limits": {"bps-total": limit}}))
}

pub(super) fn stick_name(id: &str) -> String {
    format!("stick-{id}")
}

pub(super) fn stick_node(id: &str) -> String {
    format!("node-{id}")
}

pub(super) fn limit_name(stick: &Stick) -> String {
    format!("limit-{}", stick.id)
}

/// A file that loses nothing when the machine is killed: what the guest wrote is in the host's page cache. Its sync
/// commands are not passed on, because the host does not crash in these tests.
fn file(path: &Path, read_only: bool) -> Value {
    json!({
        "driver": "file",
        "filename": path.display().to_string(),
        "read-only": read_only,
        "cache": {"no-flush": true},
    })
}

/// A comma ends a value in QEMU's options; a doubled one does not.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::Firmware;
    use smoltcp::wire::EthernetAddress;

    fn line(config: &MachineConfig) -> String {
        let sockets = Sockets {
            console: "/s/con".into(),
            monitor: "/s/qmp".into(),
            tpm: "/s/tpm".into(),
        };
        arguments(config, Path::new("/m/vars,1.fd"), &sockets).join(" ")
    }

    fn uefi() -> MachineConfig {
        let firmware = Firmware {
            code: "/f/CODE.fd".into(),
            vars: "/f/VARS.fd".into(),
        };
        let mut config = MachineConfig::direct("n1", Path::new("/m"), Path::new("/k"), None, "");
        config.boot = Boot::Uefi(firmware);
        config
    }

    #[test]
    fn only_the_switch_is_a_network() {
        let mut config = uefi();
        assert!(line(&config).contains("-nodefaults") && !line(&config).contains("-net"));
        let mac = EthernetAddress([0x52, 0x54, 0, 0, 0, 0x0a]);
        config.nics.push(Nic {
            socket: "/s/n1".into(),
            mac,
            model: NicModel::E1000e,
        });
        let text = line(&config);
        assert_eq!(text.matches("-netdev").count(), 1);
        assert!(
            text.contains("stream,id=net0,server=off,addr.type=unix,addr.path=/s/n1"),
            "{text}"
        );
        assert!(text.contains("\"mac\":\"52:54:00:00:00:0a\""), "{text}");
    }

    #[test]
    fn a_comma_in_a_path_does_not_end_the_option() {
        assert!(line(&uefi()).contains("file=/m/vars,,1.fd"));
    }

    #[test]
    fn the_firmware_is_mapped_read_only_and_the_variables_are_not() {
        let text = line(&uefi());
        assert!(text.contains("unit=0,readonly=on,file=/f/CODE.fd"), "{text}");
        assert!(text.contains("unit=1,file="), "{text}");
        assert!(text.contains("smm=off"));
    }

    #[test]
    fn a_machine_without_tpm_has_none() {
        assert!(line(&uefi()).contains("tpm-crb"));
        assert!(!line(&uefi().tpm(None)).contains("tpm"));
    }

    #[test]
    fn each_sata_disk_has_its_own_bus() {
        let disk = |id: &str, bus| Disk::new(id, Path::new("/d"), 1, bus);
        let text = line(
            &uefi()
                .disk(disk("a", DiskBus::Sata))
                .disk(disk("b", DiskBus::Nvme))
                .disk(disk("c", DiskBus::Sata)),
        );
        assert!(
            text.contains("\"bus\":\"ide.0\"") && text.contains("\"bus\":\"ide.1\""),
            "{text}"
        );
        assert!(text.contains("\"driver\":\"nvme\""), "{text}");
    }
}
