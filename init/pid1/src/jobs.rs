//! What runs in short-lived children because it may block, and the kernel's `modprobe`. The exit code is the outcome.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};

use beemesh_init_api::{JOIN_LABEL, STATE_MAPPER, path};
use beemesh_init_core::modules::{PODS, STATE_VOLUME, URGENT, urgency};
use beemesh_init_core::uevent::parse_sysfs;
use beemesh_init_core::volume::{BOOT_SECTOR, ROOT_DIRECTORY_BYTES, parse_boot_sector, parse_root_label};
use beemesh_init_core::{Job, Outcome};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::chain::{Attempt, StepError, words};
use crate::crash;
use crate::loader::{Loader, log};

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
        Job::ColdPlug => vec!["cold-plug".to_owned()],
        Job::ColdPlugRest => vec!["cold-plug-rest".to_owned()],
        Job::LoadModules(modaliases) => std::iter::once("load-modules".to_owned())
            .chain(modaliases.iter().cloned())
            .collect(),
        Job::MountStick(device) => vec!["mount-stick".to_owned(), device.clone()],
        Job::UnmountStick => vec!["unmount-stick".to_owned()],
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
        Some("cold-plug") => cold_plug(true),
        Some("cold-plug-rest") => cold_plug(false),
        Some("load-modules") => load(&arguments.collect::<Vec<_>>()),
        // What the kernel calls for request_module(): `modprobe -q -- NAME`.
        Some("-q") => load(&arguments.filter(|a| !a.starts_with('-')).collect::<Vec<_>>()),
        Some("mount-stick") => arguments
            .next()
            .map_or(Outcome::Failed, |device| report(mount_stick(&device))),
        Some("unmount-stick") => report(unmount_sticks()),
        Some("recover-crash") => crash::recover(),
        Some("close-disks") => close_disks(),
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

fn report(result: Result<bool, StepError>) -> Outcome {
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

fn cold_plug(urgent: bool) -> Outcome {
    if !urgent {
        beemesh_sys::yield_to_others(10);
    }
    let mut requests: Vec<(u8, String)> = modaliases()
        .into_iter()
        .map(|alias| (urgency(&alias), alias))
        .collect();
    let more: &[&str] = if urgent { &STATE_VOLUME } else { &PODS };
    requests.extend(more.iter().map(|module| (urgency(module), (*module).to_owned())));
    requests.retain(|(urgency, _)| (*urgency < URGENT) == urgent);
    load_ordered(requests)
}

/// Two at a time: while one driver waits for its device, the other goes on. The kernel makes a module that is wanted
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
        let other = scope.spawn(work);
        work() + other.join().unwrap_or(0)
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

/// `Ok(true)`: mounted; `Ok(false)`: not a join stick, or there is one already.
fn mount_stick(device: &str) -> Result<bool, StepError> {
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
        file.seek(SeekFrom::Start(fat.root_directory))
            .attempt("read", &node)?;
        let mut directory = Vec::new();
        file.take(ROOT_DIRECTORY_BYTES as u64)
            .read_to_end(&mut directory)
            .attempt("read", &node)?;
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

// The end.

/// Everything to the disks, then the file systems unmounted from the innermost out, then the state volume closed.
fn close_disks() -> Outcome {
    nix::unistd::sync();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let kept = ["/", "/proc", "/sys", "/dev", "/run"];
    for target in table
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|t| !kept.contains(t))
    {
        // Octal escapes stand for blanks; no mount of ours has one.
        if umount2(target, MntFlags::empty()).is_err() {
            let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            let _ = mount(None::<&str>, target, None::<&str>, read_only, None::<&str>);
            let _ = umount2(target, MntFlags::MNT_DETACH);
        }
    }
    nix::unistd::sync();
    if Path::new("/dev/mapper").join(STATE_MAPPER).exists() {
        let _ = Command::new("/usr/sbin/cryptsetup")
            .args(["close", STATE_MAPPER])
            .status();
    }
    Outcome::Done
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
