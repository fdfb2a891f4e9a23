//! The virtual machine of the bench, and one boot on it.
//!
//! Invariant: systems differ in initrd, command line, and the content of disk and TPM; in nothing else.

use super::debian::Debian;
use super::host;
use super::images::{Product, file_size, write_bare};
use super::record::{PATTERN, Record};
use super::report::{Boot, Kind};
use crate::Binaries;
use anyhow::{Context, Result, bail};
use beemesh_ci_testkit::{Accel, Disk, DiskBus, Machine, MachineConfig};
use regex::Regex;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// RAM of the machine, MiB.
pub const MEMORY_MIB: u32 = 1024;
/// Its processors.
pub const PROCESSORS: u8 = 2;
const DISK_MIB: u64 = 2048;
/// How long a system may take to be ready.
const LIMIT: Duration = Duration::from_secs(300);
/// How often the power button is pressed after a first boot, and how long each time is waited for.
const PRESSES: u32 = 8;
const DOWN: Duration = Duration::from_secs(15);

/// Something to boot.
#[derive(Debug, Clone)]
pub struct System {
    /// Which.
    pub kind: Kind,
    /// Kernel, initrd and root file system, bytes.
    pub image_bytes: u64,
    initrd: PathBuf,
    append: String,
    /// What the disk holds at power on; `None` is a blank one.
    disk: Option<PathBuf>,
    /// The folder of the TPM's state at power on; `None` is a new one.
    tpm: Option<PathBuf>,
}

/// Where systems are booted.
pub struct Rig {
    /// The built product.
    pub product: Product,
    folder: PathBuf,
    accel: Accel,
}

impl Rig {
    /// A rig with the built image, working in `target/bench`.
    ///
    /// # Errors
    /// When there is no built image.
    pub fn open(binaries: &Binaries, name: &str) -> Result<Self> {
        let product = Product::find(binaries)?;
        let folder = binaries.target.join("bench").join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
        let accel = Accel::choose(&product.kernel, &binaries.target.join("e2e/accel.json"))?.accel;
        Ok(Self {
            product,
            folder,
            accel,
        })
    }

    /// The machine in words.
    #[must_use]
    pub fn words(&self) -> String {
        let accel = match self.accel {
            Accel::Tcg => "software emulation (QEMU TCG)",
            Accel::Kvm => "KVM",
        };
        format!("{PROCESSORS} vCPU, {MEMORY_MIB} MiB, {accel}")
    }

    /// The bare system. Booted once, unmeasured: that manufactures the TPM that others begin with.
    ///
    /// # Errors
    /// When it cannot be made or does not boot.
    pub fn bare(&self) -> Result<System> {
        let initrd = self.folder.join("bare.cpio");
        write_bare(&initrd)?;
        let mut system = System {
            kind: Kind::Bare,
            image_bytes: file_size(&self.product.kernel)? + file_size(&initrd)?,
            initrd,
            append: self.product.command_line.clone(),
            disk: None,
            tpm: None,
        };
        let kept = self.first_boot(&system, "bare", |machine| machine.kill())?;
        system.tpm = Some(kept.join("tpm"));
        Ok(system)
    }

    /// The product as it comes: blank disk, and the TPM of `bare`, in which nothing is sealed.
    #[must_use]
    pub fn beemesh_first(&self, bare: &System) -> System {
        System {
            kind: Kind::BeemeshFirst,
            image_bytes: self.product.image_bytes,
            initrd: self.product.initrd.clone(),
            append: format!("{} beemesh.bench", self.product.command_line),
            disk: None,
            tpm: bare.tpm.clone(),
        }
    }

    /// The product after its first boot.
    ///
    /// # Errors
    /// When it does not boot or go down.
    pub fn beemesh(&self, first: &System) -> Result<System> {
        let kept = self.first_boot(first, "beemesh", power_off)?;
        Ok(System {
            kind: Kind::Beemesh,
            disk: Some(kept.join("disk.img")),
            tpm: Some(kept.join("tpm")),
            ..first.clone()
        })
    }

    /// Debian after its first boot; that disk is kept beside the image.
    ///
    /// # Errors
    /// When it does not boot or go down.
    pub fn debian(&self, debian: &Debian, bare: &System) -> Result<System> {
        let provisioned = debian.folder.join("provisioned.img");
        let mut system = System {
            kind: Kind::Debian,
            image_bytes: debian.bytes,
            initrd: debian.initrd.clone(),
            append: format!("{} root=/dev/vda ro", self.product.command_line),
            disk: Some(debian.disk.clone()),
            tpm: bare.tpm.clone(),
        };
        if debian.new || !provisioned.exists() {
            let kept = self.first_boot(&system, "debian", power_off)?;
            fs::rename(kept.join("disk.img"), &provisioned)?;
        }
        system.disk = Some(provisioned);
        Ok(system)
    }

    /// Boots the system, ends it with `end`, and keeps its disk and TPM in the returned folder.
    fn first_boot(
        &self,
        system: &System,
        name: &str,
        end: impl FnOnce(&mut Machine) -> Result<()>,
    ) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        let config = self.machine(system, &folder)?;
        let mut machine = Machine::start(config)?;
        machine.wait_for(Regex::new(PATTERN)?, LIMIT)?;
        end(&mut machine)?;
        Ok(folder)
    }

    /// One measured boot, from fresh copies of disk and TPM; the machine is killed once it is ready.
    ///
    /// # Errors
    /// When it does not become ready, or its line is no record.
    pub fn boot(&self, system: &System) -> Result<Boot> {
        let folder = self.folder.join("boot");
        let config = self.machine(system, &folder)?;
        let busy_before_percent = host::wait_for_quiet()?;
        let (ours, before) = (host::process_ticks(std::process::id()), host::ticks()?);
        let power_on = Instant::now();
        let mut machine = Machine::start(config)?;
        let line = machine.wait_for(Regex::new(PATTERN)?, LIMIT)?;
        let after = host::ticks()?;
        let ids = machine.process_ids();
        let used: u64 = ids.into_iter().map(host::process_ticks).sum();
        let own = host::process_ticks(std::process::id()).saturating_sub(ours);
        machine.kill()?;
        let record =
            Record::parse(&line.text).with_context(|| format!("`{}` is no record", line.text.trim()))?;
        Ok(Boot {
            record,
            power_on_ms: u64::try_from(line.at.duration_since(power_on).as_millis())?,
            busy_before_percent,
            others_percent: host::others_percent(before, after, used + own),
        })
    }

    fn machine(&self, system: &System, folder: &Path) -> Result<MachineConfig> {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
        let (disk, tpm) = (folder.join("disk.img"), folder.join("tpm"));
        if let Some(content) = &system.disk {
            copy(content, &disk)?;
        }
        if let Some(state) = &system.tpm {
            copy(state, &tpm)?;
        }
        let (kernel, initrd) = (&self.product.kernel, Some(system.initrd.as_path()));
        let mut config = MachineConfig::direct("bench", folder, kernel, initrd, &system.append)
            .disk(Disk::new("disk", &disk, DISK_MIB, DiskBus::Virtio))
            .tpm(Some(&tpm))
            .memory_mib(MEMORY_MIB)
            .accel(self.accel);
        config.cpus = PROCESSORS;
        Ok(config)
    }
}

/// Presses the power button until the machine goes down: a system that has just become ready may not listen yet.
fn power_off(machine: &mut Machine) -> Result<()> {
    let mut last = Ok(());
    for _ in 0..PRESSES {
        last = machine.power_off(DOWN).map(drop);
        if last.is_ok() || !machine.is_on()? {
            return Ok(());
        }
    }
    last
}

/// Copies a file or a folder; holes stay holes.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut cp = Command::new("cp");
    let output = cp.args(["-a", "--sparse=always"]).arg(from).arg(to).output()?;
    if !output.status.success() {
        bail!(
            "failed to copy `{}`: {}",
            from.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
