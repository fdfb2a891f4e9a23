//! What a machine is made of. Plain data; it starts nothing and touches no file.

use crate::accel::Accel;
use crate::firmware::Firmware;
use crate::switch::Switch;
use anyhow::Result;
use smoltcp::wire::EthernetAddress;
use std::path::{Path, PathBuf};

/// How a machine gets to its kernel.
#[derive(Debug, Clone)]
pub enum Boot {
    /// By UEFI firmware, from the device with the lowest boot index. The variables are kept in the machine's folder.
    Uefi(Firmware),
    /// QEMU loads the kernel itself: no firmware, no boot loader, a few seconds less.
    Direct {
        /// The kernel image.
        kernel: PathBuf,
        /// The initial RAM filesystem.
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        append: String,
    },
}

/// A USB stick.
#[derive(Debug, Clone)]
pub struct Stick {
    /// Its name in the machine: `a-z`, `0-9`, `-`.
    pub id: String,
    /// The image file; what the machine writes goes there.
    pub image: PathBuf,
    /// Its place in the firmware's boot order; `None` is never booted from.
    pub boot_index: Option<u32>,
    /// Reads and writes are slowed down to this many bytes per second.
    pub bytes_per_second: Option<u64>,
    /// The stick's write-protect switch.
    pub read_only: bool,
}

impl Stick {
    /// A stick that the firmware boots from first.
    #[must_use]
    pub fn bootable(id: &str, image: &Path) -> Self {
        Self {
            boot_index: Some(0),
            ..Self::data(id, image)
        }
    }

    /// A stick with data only.
    #[must_use]
    pub fn data(id: &str, image: &Path) -> Self {
        Self {
            id: id.to_owned(),
            image: image.to_owned(),
            boot_index: None,
            bytes_per_second: None,
            read_only: false,
        }
    }

    /// Makes it slow, so that a test can pull it out in the middle of reading.
    #[must_use]
    pub fn slow(mut self, bytes_per_second: u64) -> Self {
        self.bytes_per_second = Some(bytes_per_second.max(1));
        self
    }
}

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskBus {
    /// A virtio block device (`/dev/vda`).
    Virtio,
    /// A disk on the board's AHCI controller (`/dev/sda`); at most six.
    Sata,
    /// An NVMe device (`/dev/nvme0n1`).
    Nvme,
}

/// A disk; its file is made, sparse, when it does not exist.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Its name and serial number: `a-z`, `0-9`, `-`, at most 20 characters.
    pub id: String,
    /// The raw image.
    pub image: PathBuf,
    /// The size in bytes for a new file.
    pub bytes: u64,
    /// How it is attached.
    pub bus: DiskBus,
    /// Its place in the firmware's boot order; `None` is never booted from.
    pub boot_index: Option<u32>,
}

impl Disk {
    /// A data disk of `mebibytes`.
    #[must_use]
    pub fn new(id: &str, image: &Path, mebibytes: u64, bus: DiskBus) -> Self {
        Self {
            id: id.to_owned(),
            image: image.to_owned(),
            bytes: mebibytes << 20,
            bus,
            boot_index: None,
        }
    }
}

/// What kind of network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicModel {
    /// virtio-net.
    Virtio,
    /// Intel 82574L, as in many real machines.
    E1000e,
}

/// A network card on a port of a switch.
#[derive(Debug, Clone)]
pub struct Nic {
    /// The socket of the switch's port.
    pub socket: PathBuf,
    /// The card's address.
    pub mac: EthernetAddress,
    /// The kind of card.
    pub model: NicModel,
}

impl Nic {
    /// A virtio card on the switch's port `port`.
    ///
    /// # Errors
    /// When the switch refuses the port.
    pub fn virtio(switch: &Switch, port: &str, mac: EthernetAddress) -> Result<Self> {
        Ok(Self {
            socket: switch.port(port)?,
            mac,
            model: NicModel::Virtio,
        })
    }

    /// An e1000e card on the switch's port `port`.
    ///
    /// # Errors
    /// When the switch refuses the port.
    pub fn e1000e(switch: &Switch, port: &str, mac: EthernetAddress) -> Result<Self> {
        Ok(Self {
            model: NicModel::E1000e,
            ..Self::virtio(switch, port, mac)?
        })
    }
}

/// Everything about a machine. Two configurations that differ in [`MachineConfig::tpm`] alone are the same disk in
/// another machine.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// The machine's name, in messages and file names.
    pub name: String,
    /// Holds what the machine keeps over power cycles (firmware variables) and its logs.
    pub folder: PathBuf,
    /// How it boots.
    pub boot: Boot,
    /// The folder of its TPM's state; `None` is a machine without a TPM.
    pub tpm: Option<PathBuf>,
    /// What executes it.
    pub accel: Accel,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u8,
    /// USB sticks that are in from the start.
    pub sticks: Vec<Stick>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// Network cards; their QEMU names are `nic0`, `nic1`, ….
    pub nics: Vec<Nic>,
    /// What the hardware clock says at power-on, such as `1970-01-01T00:00:00`; `None` is the present time (UTC).
    pub clock: Option<String>,
    /// Further QEMU arguments.
    pub extra: Vec<String>,
}

impl MachineConfig {
    /// A machine with the distribution's UEFI firmware, a TPM in `folder/tpm`, two CPUs, 1 GiB, software emulation,
    /// and nothing plugged in.
    ///
    /// # Errors
    /// When the package `ovmf` is not installed.
    pub fn uefi(name: &str, folder: &Path) -> Result<Self> {
        Ok(Self::new(name, folder, Boot::Uefi(Firmware::find()?)))
    }

    /// The same, with the kernel loaded by QEMU.
    #[must_use]
    pub fn direct(name: &str, folder: &Path, kernel: &Path, initrd: Option<&Path>, append: &str) -> Self {
        let boot = Boot::Direct {
            kernel: kernel.to_owned(),
            initrd: initrd.map(Path::to_owned),
            append: append.to_owned(),
        };
        Self::new(name, folder, boot)
    }

    fn new(name: &str, folder: &Path, boot: Boot) -> Self {
        Self {
            name: name.to_owned(),
            folder: folder.to_owned(),
            boot,
            tpm: Some(folder.join("tpm")),
            accel: Accel::Tcg,
            memory_mib: 1024,
            cpus: 2,
            sticks: Vec::new(),
            disks: Vec::new(),
            nics: Vec::new(),
            clock: None,
            extra: Vec::new(),
        }
    }

    /// With this stick.
    #[must_use]
    pub fn stick(mut self, stick: Stick) -> Self {
        self.sticks.push(stick);
        self
    }

    /// With this disk.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// With this network card.
    #[must_use]
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nics.push(nic);
        self
    }

    /// With the TPM whose state is in this folder, such as another machine's; `None` takes the TPM out.
    #[must_use]
    pub fn tpm(mut self, folder: Option<&Path>) -> Self {
        self.tpm = folder.map(Path::to_owned);
        self
    }

    /// Executed by this.
    #[must_use]
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = accel;
        self
    }

    /// With this much RAM.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }
}
