//! The lasting names of a block device below `/dev/disk`, from what the kernel and its superblock say. Pure.
//!
//! The names are udev's, so that what people wrote down for other systems holds here (systemd `udev-builtin-path_id.c`,
//! `60-persistent-storage.rules`). Invariant: a name is one folder and one file, of characters that need no quoting: what a
//! disk says about itself cannot lead out of `/dev/disk`.

use crate::superblock::Superblock;

/// Longest name, in bytes; a longer one is none.
const NAME_LIMIT: usize = 200;

/// What is known of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Described {
    /// Its place in sysfs, links followed, e.g. `/sys/devices/pci0000:00/0000:00:05.0/virtio2/block/vda`.
    pub place: String,
    /// `PARTNAME`.
    pub partname: Option<String>,
    /// `PARTUUID`, where the kernel says it.
    pub partuuid: Option<String>,
    /// The number of the partition.
    pub partition: Option<u32>,
    /// The disk's serial number, where the kernel says it (virtio, NVMe).
    pub serial: Option<String>,
    /// The disk's model (NVMe).
    pub model: Option<String>,
    /// The disk's name in the world (`naa.…`, `eui.…`, `nvme.…`), where the kernel says it.
    pub wwid: Option<String>,
    /// The number of its ATA port.
    pub ata_port: Option<u32>,
    /// The number of its NVMe namespace.
    pub namespace: Option<u32>,
    /// The lowest number among the SCSI hosts of the same adapter.
    pub first_host: Option<u32>,
    /// What lies on it.
    pub superblock: Option<Superblock>,
}

impl Described {
    /// Its names, as `by-uuid/…`, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let superblock = self.superblock.as_ref();
        let part = self
            .partition
            .map_or_else(String::new, |number| format!("-part{number}"));
        let with_part = |name: String| format!("{name}{part}");
        let mut names: Vec<String> = [
            ("by-partlabel", self.partname.clone()),
            ("by-partuuid", self.partuuid.clone()),
            ("by-uuid", superblock.and_then(|s| s.uuid.clone())),
            ("by-label", superblock.and_then(|s| s.label.clone())),
            ("by-path", self.path().map(with_part)),
        ]
        .into_iter()
        .filter_map(|(folder, name)| Some((folder, name?)))
        .chain(self.ids().into_iter().map(|id| ("by-id", with_part(id))))
        .filter_map(|(folder, name)| Some(format!("{folder}/{}", encoded(&name)?)))
        .collect();
        names.sort();
        names.dedup();
        names
    }

    fn ids(&self) -> Vec<String> {
        let mut ids = Vec::new();
        let (serial, model) = (self.serial.as_deref(), self.model.as_deref());
        if self.place.contains("/virtio") {
            ids.extend(serial.map(|serial| format!("virtio-{}", joined(serial))));
        } else if self.place.contains("/nvme/") {
            let both = model.zip(serial);
            ids.extend(both.map(|(model, serial)| format!("nvme-{}_{}", joined(model), joined(serial))));
            ids.extend(self.wwid.as_deref().map(|wwid| format!("nvme-{}", joined(wwid))));
        } else if let Some(number) = self.wwid.as_deref().and_then(|wwid| wwid.strip_prefix("naa.")) {
            ids.push(format!("wwn-0x{number}"));
        }
        ids
    }

    /// Where it is plugged in: the PCI function, then what hangs on it.
    fn path(&self) -> Option<String> {
        let (mut pci, mut usb, mut scsi, mut ata, mut nvme) = (None, None, None, false, false);
        for part in self.place.split('/') {
            if is_pci(part) {
                pci = Some(part);
            } else if let Some(port) = usb_interface(part) {
                usb = Some(port);
            } else if is_numbered(part, "ata") {
                ata = true;
            } else if is_numbered(part, "nvme") {
                nvme = true;
            } else if let Some(address) = scsi_address(part) {
                scsi = Some(address);
            }
        }
        let mut path = format!("pci-{}", pci?);
        if let Some(port) = usb {
            path.push_str(&format!("-usb-0:{port}"));
        }
        if ata {
            path.push_str(&format!("-ata-{}", self.ata_port?));
        } else if nvme {
            path.push_str(&format!("-nvme-{}", self.namespace?));
        } else if let Some([host, bus, target, unit]) = scsi {
            let host = host.checked_sub(self.first_host?)?;
            path.push_str(&format!("-scsi-{host}:{bus}:{target}:{unit}"));
        }
        Some(path)
    }
}

/// `0000:00:1f.2`.
fn is_pci(part: &str) -> bool {
    let hex = |text: &str, digits: usize| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    let mut pieces = part.split(':');
    let (Some(domain), Some(bus), Some(rest), None) =
        (pieces.next(), pieces.next(), pieces.next(), pieces.next())
    else {
        return false;
    };
    let device = rest.split_once('.');
    hex(domain, 4)
        && hex(bus, 2)
        && device.is_some_and(|(device, function)| hex(device, 2) && hex(function, 1))
}

/// `1-1.2:1.0` is interface `1.2:1.0` of its bus.
fn usb_interface(part: &str) -> Option<&str> {
    let (bus, port) = part.split_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let (ports, interface) = port.split_once(':')?;
    (digits(bus) && digits(ports) && digits(interface)).then_some(port)
}

fn is_numbered(part: &str, name: &str) -> bool {
    part.strip_prefix(name)
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// `2:0:0:1`: host, bus, target, unit.
fn scsi_address(part: &str) -> Option<[u32; 4]> {
    let numbers: Vec<u32> = part
        .split(':')
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    numbers.try_into().ok()
}

/// As udev joins words: blanks around go, blanks between become one underscore.
fn joined(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join("_")
}

/// As udev encodes: what is neither a letter, a digit nor one of `#+-.:=@_` is written as `\xHH`. `None`: no name.
fn encoded(name: &str) -> Option<String> {
    let mut written = String::new();
    for c in name.chars() {
        if c.is_alphanumeric() || "#+-.:=@_".contains(c) {
            written.push(c);
        } else {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                written.push_str(&format!("\\x{byte:02x}"));
            }
        }
    }
    let usable = !matches!(written.as_str(), "" | "." | "..") && written.len() <= NAME_LIMIT;
    usable.then_some(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(place: &str) -> Described {
        Described {
            place: place.to_owned(),
            ..Described::default()
        }
    }

    // Places and names as systemd 252's udev gives them on such machines.
    #[test]
    fn path_is_udevs_on_every_bus() {
        let pci = "/sys/devices/pci0000:00";
        let sata = Described {
            ata_port: Some(1),
            partition: Some(3),
            ..at(&format!(
                "{pci}/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda/sda3"
            ))
        };
        assert_eq!(sata.names(), ["by-path/pci-0000:00:1f.2-ata-1-part3"]);
        let usb = Described {
            first_host: Some(6),
            ..at(&format!(
                "{pci}/0000:00:03.0/usb2/2-1/2-1.4/2-1.4:1.0/host6/target6:0:0/6:0:0:1/block/sdb"
            ))
        };
        assert_eq!(
            usb.names(),
            ["by-path/pci-0000:00:03.0-usb-0:1.4:1.0-scsi-0:0:0:1"]
        );
        let virtio = Described {
            serial: Some("state".to_owned()),
            ..at(&format!("{pci}/0000:00:1c.0/0000:01:00.0/virtio2/block/vda"))
        };
        assert_eq!(virtio.names(), ["by-id/virtio-state", "by-path/pci-0000:01:00.0"]);
        let nvme = Described {
            namespace: Some(1),
            model: Some("QEMU NVMe Ctrl    ".to_owned()),
            serial: Some("  d1 ".to_owned()),
            wwid: Some("eui.0025385b".to_owned()),
            ..at(&format!("{pci}/0000:00:05.0/nvme/nvme0/nvme0n1"))
        };
        assert_eq!(
            nvme.names(),
            [
                "by-id/nvme-QEMU_NVMe_Ctrl_d1",
                "by-id/nvme-eui.0025385b",
                "by-path/pci-0000:00:05.0-nvme-1"
            ]
        );
        let sas = Described {
            first_host: Some(1),
            wwid: Some("naa.5000c500a1b2c3d4".to_owned()),
            ..at(&format!("{pci}/0000:03:00.0/host1/target1:2:3/1:2:3:0/block/sdc"))
        };
        assert_eq!(
            sas.names(),
            [
                "by-id/wwn-0x5000c500a1b2c3d4",
                "by-path/pci-0000:03:00.0-scsi-0:2:3:0"
            ]
        );
        assert!(at("/sys/devices/virtual/block/dm-0").names().is_empty());
    }

    #[test]
    fn names_of_a_partition_and_of_what_lies_on_it_are_encoded() {
        let superblock = Superblock {
            kind: "vfat",
            uuid: Some("1A2B-3C4D".to_owned()),
            label: Some("my data/é".to_owned()),
        };
        let device = Described {
            partname: Some("BEEMESHJOIN".to_owned()),
            partuuid: Some("11-22".to_owned()),
            superblock: Some(superblock),
            ..Described::default()
        };
        assert_eq!(
            device.names(),
            [
                "by-label/my\\x20data\\x2fé",
                "by-partlabel/BEEMESHJOIN",
                "by-partuuid/11-22",
                "by-uuid/1A2B-3C4D"
            ]
        );
    }

    proptest! {
        #[test]
        fn invariant_no_name_leads_out_of_its_folder(name in any::<String>(), place in "[/a-z0-9:.-]{0,80}") {
            let device = Described {
                place,
                partname: Some(name.clone()),
                serial: Some(name.clone()),
                wwid: Some(name),
                ..Described::default()
            };
            for name in device.names() {
                let (folder, file) = name.split_once('/').unwrap();
                prop_assert!(folder.starts_with("by-"));
                prop_assert!(!file.contains('/') && !matches!(file, "" | "." | "..") && file.len() <= NAME_LIMIT);
                prop_assert!(file.chars().all(|c| !c.is_control() && !c.is_whitespace()));
            }
        }
    }
}
