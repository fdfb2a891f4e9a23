//! What runs in short-lived children because it may block, and the kernel's `modprobe`. The exit code is the outcome.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use beemesh_init_api::{JOIN_LABEL, path};
use beemesh_init_core::modules::{DISKS, PODS, STATE_VOLUME, URGENT, is_disk_controller, urgency};
use beemesh_init_core::spec::Calls;
use beemesh_init_core::uevent::parse_sysfs;
use beemesh_init_core::volume::{BOOT_SECTOR, ROOT_DIRECTORY_BYTES, parse_boot_sector, parse_root_label};
use beemesh_init_core::{Job, LEAST_DISKS_MS, Outcome};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::chain::{Attempt, StepError, words};
use crate::closing::close_disks;
use crate::crash;
use crate::links::link_devices;
use crate::loader::{Loader, log};
use crate::sandbox::{ConfineError, confine};

/// Exit code of [`Outcome::Nothing`].
const NOTHING: u8 = 3;
/// Sticks that may be mounted over one another.
const STICKS_STACKED: usize = 256;
/// FAT, and the character sets that Debian's kernel uses for it.
const STICK_MODULES: [&str; 3] = ["vfat", "nls_cp437", "nls_ascii"];
/// Devices whose modalias a cold plug reads.
const DEVICES_LIMIT: usize = 16_384;

/// The arguments that make this program carry out `job`.
pub fn arguments(job: &Job) -> Vec<String> {
    match job {
        Job::ColdPlugDisks => vec!["cold-plug-disks".to_owned()],
        Job::ColdPlug => vec!["cold-plug".to_owned()],
        Job::ColdPlugRest => vec!["cold-plug-rest".to_owned()],
        Job::LoadModules(modaliases) => std::iter::once("load-modules".to_owned())
            .chain(modaliases.iter().cloned())
            .collect(),
        Job::MountStick(device) => vec!["mount-stick".to_owned(), device.clone()],
        Job::UnmountStick => vec!["unmount-stick".to_owned()],
        Job::LinkDevices { there, gone } => {
            let gone = gone.iter().map(|device| format!("-{device}"));
            let there = there.iter().map(|device| format!("+{device}"));
            let verb = std::iter::once("link-devices".to_owned());
            verb.chain(gone).chain(there).collect()
        }
        Job::RecoverCrash => vec!["recover-crash".to_owned()],
    }
}

/// Unmounts every stick that was mounted over another.
fn unmount_sticks() -> Result<bool, StepError> {
    umount2(path::STICK, MntFlags::MNT_DETACH).attempt("unmount", path::STICK)?;
    // A bound, since each call must make it fewer.
    for _ in 0..STICKS_STACKED {
        if umount2(path::STICK, MntFlags::MNT_DETACH).is_err() {
            break;
        }
    }
    Ok(true)
}

/// Reads the outcome from an exit code.
pub fn outcome(code: Option<i32>) -> Outcome {
    match code {
        Some(0) => Outcome::Done,
        Some(code) if code == i32::from(NOTHING) => Outcome::Nothing,
        _ => Outcome::Failed,
    }
}

/// The program as a child.
pub fn main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let outcome = match arguments.next().as_deref() {
        Some("cold-plug-disks") => cold_plug(Devices::Disks),
        Some("cold-plug") => cold_plug(Devices::Urgent),
        Some("cold-plug-rest") => cold_plug(Devices::Rest),
        Some("load-modules") => load(&arguments.collect::<Vec<_>>()),
        // What the kernel calls for request_module(): `modprobe -q -- NAME`.
        Some("-q") => load(&arguments.filter(|a| !a.starts_with('-')).collect::<Vec<_>>()),
        Some("mount-stick") => arguments
            .next()
            .map_or(Outcome::Failed, |device| report(mount_stick(&device))),
        Some("unmount-stick") => report(unmount_sticks()),
        Some("link-devices") => link_devices(&arguments.collect::<Vec<_>>()),
        Some("close-disks") => {
            let ms = arguments.next().and_then(|text| text.parse().ok());
            close_disks(Duration::from_millis(ms.unwrap_or(LEAST_DISKS_MS)))
        }
        Some("recover-crash") => crash::recover(),
        _ => {
            eprintln!("beemesh-init is the first program of a Beemesh system; the kernel starts it");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Outcome::Done => ExitCode::SUCCESS,
        Outcome::Nothing => ExitCode::from(NOTHING),
        Outcome::Failed => ExitCode::FAILURE,
    }
}

fn report<E: std::error::Error + 'static>(result: Result<bool, E>) -> Outcome {
    match result {
        Ok(true) => Outcome::Done,
        Ok(false) => Outcome::Nothing,
        Err(error) => {
            eprintln!("{}", words(&error));
            Outcome::Failed
        }
    }
}

// Modules.

fn load(requests: &[String]) -> Outcome {
    load_ordered(
        requests
            .iter()
            .map(|request| (urgency(request), request.clone()))
            .collect(),
    )
}

/// Which devices a cold plug looks after.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Devices {
    Disks,
    Urgent,
    Rest,
}

fn cold_plug(devices: Devices) -> Outcome {
    let (nice, more): (u8, &[&str]) = match devices {
        Devices::Disks => (0, &[]),
        // Disks first, then what lies on them: each waits for the other otherwise.
        Devices::Urgent => (5, &STATE_VOLUME),
        Devices::Rest => (10, &PODS),
    };
    beemesh_sys::yield_to_others(nice);
    let named = more.iter().map(|module| (*module).to_owned());
    let requests = modaliases().into_iter().chain(named).filter_map(|alias| {
        let urgency = urgency(&alias);
        let asked = match devices {
            Devices::Disks => urgency == DISKS,
            Devices::Urgent => urgency < URGENT,
            Devices::Rest => urgency >= URGENT,
        };
        let turn = match devices {
            // A controller looks for its disks in its own time, and the processor is free meanwhile.
            Devices::Disks if is_disk_controller(&alias) => DISKS,
            Devices::Disks => DISKS + 1,
            // Another loader is at work on the disks: what comes last is there already.
            _ if urgency == DISKS => URGENT,
            _ => urgency,
        };
        asked.then_some((turn, alias))
    });
    load_ordered(requests.collect())
}

/// Two at a time: while one driver waits for its device, another goes on. The kernel makes a module that is wanted
/// twice wait for itself.
fn load_ordered(mut requests: Vec<(u8, String)>) -> Outcome {
    let loader = match Loader::open(true) {
        Ok(loader) => loader,
        Err(error) => {
            eprintln!("{}", words(&error));
            return Outcome::Failed;
        }
    };
    requests.sort();
    requests.reverse();
    let queue = Mutex::new(requests);
    let work = || {
        let mut loaded = 0;
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((_, request)) = next else { return loaded };
            match loader.load(&request) {
                Ok(count) => loaded += count,
                Err(errors) => errors.iter().for_each(|error| log(&words(error))),
            }
        }
    };
    let loaded = std::thread::scope(|scope| {
        let others = [scope.spawn(work), scope.spawn(work)];
        work()
            + others
                .map(|other| other.join().unwrap_or(0))
                .iter()
                .sum::<usize>()
    });
    if loaded > 0 {
        Outcome::Done
    } else {
        Outcome::Nothing
    }
}

/// What the devices on all buses, and input devices, are called.
fn modaliases() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let buses = fs::read_dir("/sys/bus")
        .into_iter()
        .flatten()
        .flatten()
        .map(|bus| bus.path().join("devices"));
    for directory in buses.chain(["/sys/class/input".into(), "/sys/class/dmi".into()]) {
        for device in fs::read_dir(directory).into_iter().flatten().flatten() {
            let text = fs::read_to_string(device.path().join("modalias")).unwrap_or_default();
            if !text.trim().is_empty() && found.len() < DEVICES_LIMIT {
                found.insert(text.trim().to_owned());
            }
        }
    }
    found
}

// The stick.

/// Why a stick was not mounted.
#[derive(Debug, thiserror::Error)]
enum StickError {
    #[error(transparent)]
    Step(#[from] StepError),
    #[error(transparent)]
    Confine(#[from] ConfineError),
}

/// `Ok(true)`: mounted; `Ok(false)`: not a join stick. A failure is that of a join stick.
///
/// What is on the device was written by strangers, so before its first byte is read this child keeps only what it takes to
/// load drivers and to mount, and before the kernel reads the file system only what it takes to mount.
fn mount_stick(device: &str) -> Result<bool, StickError> {
    confine(
        &["CAP_SYS_ADMIN", "CAP_SYS_MODULE"],
        &[Calls::Mounts, Calls::Modules],
    )?;
    let node = format!("/dev/{device}");
    // A reader without a card says ENOMEDIUM: nothing to mount is not a failure.
    let Ok(mut file) = File::open(&node) else {
        return Ok(false);
    };
    let mut sector = [0; BOOT_SECTOR];
    if file.read_exact(&mut sector).is_err() {
        return Ok(false);
    }
    let Some(fat) = parse_boot_sector(&sector) else {
        return Ok(false);
    };
    if fat.label != JOIN_LABEL && !is_named_by_partition(device) {
        let mut directory = Vec::new();
        let read = file
            .seek(SeekFrom::Start(fat.root_directory))
            .and_then(|_| file.take(ROOT_DIRECTORY_BYTES as u64).read_to_end(&mut directory));
        if let Err(error) = read {
            // Whose label cannot be read is not known to be a join stick.
            eprintln!("failed to read `{node}`: {error}");
            return Ok(false);
        }
        if parse_root_label(&directory).as_deref() != Some(JOIN_LABEL) {
            return Ok(false);
        }
    }
    let lock = File::open(path::RUN).attempt("open", path::RUN)?;
    let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusive) else {
        return Ok(false);
    };
    // The kernel would ask for each of them by a program of its own, one after the other.
    if let Ok(loader) = Loader::open(true) {
        for module in STICK_MODULES {
            let _ = loader.load(module);
        }
    }
    confine(&["CAP_SYS_ADMIN"], &[Calls::Mounts])?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some(node.as_str()),
        path::STICK,
        Some("vfat"),
        flags,
        None::<&str>,
    )
    .attempt("mount", &node)?;
    Ok(true)
}

fn is_named_by_partition(device: &str) -> bool {
    let text = fs::read_to_string(format!("/sys/class/block/{device}/uevent")).unwrap_or_default();
    parse_sysfs("block", &text).partname.as_deref() == Some(JOIN_LABEL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_say_what_the_job_came_to() {
        assert_eq!(outcome(Some(0)), Outcome::Done);
        assert_eq!(outcome(Some(3)), Outcome::Nothing);
        assert_eq!(outcome(Some(101)), Outcome::Failed);
        assert_eq!(outcome(None), Outcome::Failed);
    }
}
