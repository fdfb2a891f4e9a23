//! The decisions: which volume, whether to make one, and what to say. The order is the product's promise:
//!
//! 1. our volume, wherever it is; 2. else a blank built-in disk becomes one; 3. else memory, with a warning.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use beemesh_firmware_tpm::{Kind, Tpm, TpmError};
use beemesh_init_api::{STATE_LABEL, StateStatus, path};

use crate::device::{Device, list, names};
use crate::filesystem::{self, FilesystemError};
use crate::luks::{self, LuksError, NewKey};
use crate::signature::Signature;

/// How long disks (and a TPM that the firmware announces) may take to appear, if nobody says that all drivers are there: more
/// than PID 1 waits for them (`COLD_PLUG_LIMIT_MS` in `init/core`).
const WAIT: Duration = Duration::from_secs(90);
/// How long a TPM that the firmware announces may take once all drivers are there.
const TPM_WAIT: Duration = Duration::from_secs(20);
/// A blank disk is made ours, or the search given up, only when the drivers of the controllers are there and no
/// further built-in disk has appeared for this long: it may carry our volume. Loading the driver of a SATA, SAS, NVMe
/// or virtio controller ends when its disks are there (linux `do_init_module` waits for what probes started).
const SETTLED: Duration = Duration::from_millis(150);
/// The same on a machine with an SD or eMMC controller, which looks for its disk in its own time.
const SETTLED_WITH_MMC: Duration = Duration::from_millis(700);
/// A machine without any disk of use gets this much: giving up means that it forgets everything.
const SETTLED_WITHOUT_DISK: Duration = Duration::from_secs(2);
/// Where those controllers are listed.
const MMC_HOSTS: &str = "/sys/class/mmc_host";
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(25);

const NO_DISK: &str = "no state volume and no blank built-in disk was found";
const BLANK: &str = "put in a blank disk and switch it off and on";
const BACK: &str =
    "make the named cause undone and switch it off and on, or put in a blank disk in place of that one";

/// Why there is no state volume on a disk.
#[derive(Debug, thiserror::Error)]
enum VolumeError {
    #[error(transparent)]
    Luks(#[from] LuksError),
    #[error(transparent)]
    Filesystem(#[from] FilesystemError),
}

/// Mounts a state volume at `target`, whatever it takes. `tpm` is asked for once the disks are there.
pub fn provide(tpm: &dyn Fn() -> Box<dyn Tpm>, target: &Path) -> StateStatus {
    if filesystem::is_mounted(target) {
        let message = "the state volume is mounted already".to_owned();
        return StateStatus {
            device: Some(target.display().to_string()),
            encrypted: false,
            message,
        };
    }
    let started = Instant::now();
    wait_for_tpm(started + WAIT);
    let tpm: Arc<dyn Tpm> = Arc::from(tpm());
    let found = wait_for_disks(started + WAIT, &tpm);
    let mut failures = Vec::new();
    for device in found
        .devices
        .iter()
        .filter(|d| matches!(d.signature, Signature::Luks(_) | Signature::Ext4))
    {
        match mount_existing(device, tpm.as_ref(), target) {
            Ok(status) => return status,
            Err(error) => failures.push(explain(device, &error)),
        }
    }
    // A volume that does not open is left for whoever can open it; another disk is not taken in its place, since
    // the node would come up as a stranger.
    if failures.is_empty()
        && let Some(device) = best_blank(&found.devices)
    {
        match make(&device, found.new_key, target) {
            Ok(status) => return status,
            Err(error) => failures.push(explain(&device, &error)),
        }
    }
    let why = if failures.is_empty() {
        NO_DISK.to_owned()
    } else {
        failures.join("; ")
    };
    let message = match filesystem::mount_memory(target) {
        Ok(()) => {
            let remedy = if failures.is_empty() { BLANK } else { BACK };
            format!(
                "{why}: this machine forgets everything when it is switched off. What you can do: {remedy}"
            )
        }
        Err(error) => format!("{why}; and no memory volume: {}", chain(&error)),
    };
    StateStatus {
        device: None,
        encrypted: false,
        message,
    }
}

struct Found {
    devices: Vec<Device>,
    /// Under way since the first blank disk was seen; `None` on a machine without a TPM.
    new_key: Option<Result<NewKey, LuksError>>,
}

/// Until our volume is there, or all drivers are and nothing has appeared for a while, or the time is up.
fn wait_for_disks(until: Instant, tpm: &Arc<dyn Tpm>) -> Found {
    let (mut known, mut devices) = (names(), list());
    let mut quiet_since = Instant::now();
    let mut all_drivers = false;
    let mut new_key = None;
    // Looking for it reads megabytes: only when something has changed.
    let mut blank = best_blank(&devices).is_some();
    loop {
        let ours = devices
            .iter()
            .any(|d| matches!(d.signature, Signature::Luks(_) | Signature::Ext4));
        let quiet = match blank {
            true => quiet_time(Path::new(MMC_HOSTS)),
            false => SETTLED_WITHOUT_DISK,
        };
        let settled = all_drivers && quiet_since.elapsed() >= quiet;
        if !ours && new_key.is_none() && tpm.kind() == Kind::Device && blank {
            new_key = Some(NewKey::make(Arc::clone(tpm)));
        }
        if ours || settled || Instant::now() >= until {
            return Found { devices, new_key };
        }
        std::thread::sleep(PAUSE);
        let now = names();
        let drivers = Path::new(path::SETTLED).exists();
        if now != known || drivers != all_drivers {
            let before = built_in(&devices);
            (known, devices) = (now, list());
            blank = best_blank(&devices).is_some();
            if drivers != all_drivers || built_in(&devices) != before {
                quiet_since = Instant::now();
            }
            all_drivers = drivers;
        }
    }
}

/// Sticks come and go without a bearing on where the state volume is made.
fn built_in(devices: &[Device]) -> usize {
    devices.iter().filter(|device| device.built_in).count()
}

fn quiet_time(mmc_hosts: &Path) -> Duration {
    let slow = std::fs::read_dir(mmc_hosts).is_ok_and(|mut hosts| hosts.next().is_some());
    if slow { SETTLED_WITH_MMC } else { SETTLED }
}

/// The firmware says by an ACPI table that there is a TPM; its driver may still be at work.
fn wait_for_tpm(until: Instant) {
    let announced = Path::new("/sys/firmware/acpi/tables/TPM2").exists();
    let mut until = until;
    let mut all_drivers = false;
    while announced && Instant::now() < until && !Path::new(beemesh_firmware_tpm::DEVICE).exists() {
        if !all_drivers && Path::new(path::SETTLED).exists() {
            all_drivers = true;
            until = until.min(Instant::now() + TPM_WAIT);
        }
        std::thread::sleep(PAUSE);
    }
}

/// The largest; of equals the first by name.
fn best_blank(devices: &[Device]) -> Option<Device> {
    let mut best: Option<&Device> = None;
    for device in devices
        .iter()
        .filter(|d| matches!(d.signature, Signature::Zeros | Signature::Unfinished))
    {
        if best.is_none_or(|b| device.size > b.size) && device.is_usable() {
            best = Some(device);
        }
    }
    best.cloned()
}

fn mount_existing(device: &Device, tpm: &dyn Tpm, target: &Path) -> Result<StateStatus, VolumeError> {
    let encrypted = matches!(device.signature, Signature::Luks(_));
    let node = match device.signature {
        Signature::Luks(header_bytes) => luks::open(&device.node, header_bytes, tpm)?,
        _ => device.node.clone(),
    };
    let mounted = filesystem::check(&node).and_then(|()| filesystem::mount_ext4(&node, target));
    if let (Err(_), true) = (&mounted, encrypted) {
        let _ = luks::close();
    }
    mounted?;
    let how = if encrypted {
        "encrypted, opened by this machine's TPM"
    } else {
        "not encrypted"
    };
    Ok(status(
        &device.node,
        encrypted,
        format!("state volume on {}: {how}", device.node.display()),
    ))
}

fn make(
    device: &Device,
    new_key: Option<Result<NewKey, LuksError>>,
    target: &Path,
) -> Result<StateStatus, VolumeError> {
    let encrypted = new_key.is_some();
    let node = match new_key {
        Some(new_key) => {
            let fill = |node: &Path| filesystem::make(node, STATE_LABEL).map_err(VolumeError::from);
            luks::format(&device.node, new_key?, fill)?
        }
        None => {
            filesystem::make(&device.node, STATE_LABEL)?;
            device.node.clone()
        }
    };
    filesystem::mount_ext4(&node, target)?;
    let name = device.node.display();
    let message = if encrypted {
        format!("the blank disk {name} is now this machine's state volume, encrypted with a key in its TPM")
    } else {
        format!(
            "the blank disk {name} is now this machine's state volume, not encrypted: this machine has no TPM"
        )
    };
    Ok(status(&device.node, encrypted, message))
}

fn status(device: &Path, encrypted: bool, message: String) -> StateStatus {
    StateStatus {
        device: Some(device.display().to_string()),
        encrypted,
        message,
    }
}

/// A sentence that can be read out on the phone.
fn explain(device: &Device, error: &VolumeError) -> String {
    let name = device.node.display();
    match error {
        VolumeError::Luks(LuksError::Tpm(TpmError::Foreign | TpmError::OtherKind { .. })) => {
            format!(
                "the state volume on {name} belongs to another machine, or the TPM was cleared; it is left untouched"
            )
        }
        VolumeError::Luks(LuksError::Tpm(TpmError::StateChanged)) => format!(
            "the state volume on {name} stays locked because the Secure Boot settings of this machine were changed"
        ),
        VolumeError::Filesystem(FilesystemError::Damaged(_)) => {
            format!("the state volume on {name} is damaged and needs a repair by hand; it is left untouched")
        }
        other => format!("the state volume on {name} cannot be used: {}", chain(other)),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        let node = std::path::PathBuf::from("/dev/vda");
        Device {
            node,
            size: 1 << 30,
            built_in: true,
            may_be_formatted: true,
            signature: Signature::Unfinished,
        }
    }

    #[test]
    fn largest_usable_disk_is_taken_and_of_equals_the_first() {
        let small = Device {
            size: 1 << 29,
            ..device()
        };
        let twin = Device {
            node: "/dev/vdb".into(),
            ..device()
        };
        let stick = Device {
            size: 1 << 40,
            built_in: false,
            ..device()
        };
        let foreign = Device {
            size: 1 << 41,
            signature: Signature::Foreign,
            ..device()
        };
        assert_eq!(
            best_blank(&[small, device(), twin, stick, foreign]),
            Some(device())
        );
    }

    #[test]
    fn controller_that_looks_for_its_disk_in_its_own_time_gets_more_of_it() {
        let hosts = tempfile::tempdir().unwrap();
        assert_eq!(quiet_time(hosts.path()), SETTLED);
        assert_eq!(quiet_time(&hosts.path().join("missing")), SETTLED);
        std::fs::create_dir(hosts.path().join("mmc0")).unwrap();
        assert_eq!(quiet_time(hosts.path()), SETTLED_WITH_MMC);
    }

    #[test]
    fn disk_of_another_machine_is_explained_and_said_to_be_untouched() {
        let text = explain(&device(), &VolumeError::Luks(LuksError::Tpm(TpmError::Foreign)));
        assert!(
            text.contains("/dev/vda belongs to another machine") && text.contains("untouched"),
            "{text}"
        );
    }
}
