//! In the real root, before the event loop: memory file systems, cgroups, links, first files. The phases are listed
//! in `init/core`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use beemesh_init_api::path;
use beemesh_init_core::mounts::{
    CONTROLLERS, DELEGATING_CGROUPS, DIRECTORIES, LINKS, MADE_FOR_MOUNTS, Mount, ROOT, SHARED,
};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::SELF;
use crate::chain::{Attempt, StepError};

/// Seconds from a panic to the new start; 0: never.
const PANIC: &str = "/proc/sys/kernel/panic";
/// Open files that a service may have: soft and hard.
const OPEN_FILES: (u64, u64) = (65_536, 1_048_576);

/// Mounts each; one that is there already is left as it is.
///
/// # Errors
/// [`StepError`] of the first that is needed and fails.
pub fn mount_all(mounts: &[Mount]) -> Result<(), StepError> {
    for m in mounts {
        let mut flags = MsFlags::MS_NOSUID;
        flags.set(MsFlags::MS_NOEXEC, !m.exec);
        flags.set(MsFlags::MS_NODEV, !m.dev);
        match mount(Some(m.source), m.target, Some(m.kind), flags, Some(m.data)) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(_) if !m.needed => {}
            Err(e) => return Err(e).attempt("mount", m.target),
        }
    }
    Ok(())
}

/// The memory file systems. From here on the kernel asks this program for modules.
pub fn mount_system() -> Result<(), StepError> {
    let _ = fs::write("/proc/sys/kernel/modprobe", SELF);
    for directory in MADE_FOR_MOUNTS {
        make_directory(directory)?;
    }
    mount_all(&ROOT)?;
    for target in SHARED {
        let shared = mount(
            None::<&str>,
            target,
            None::<&str>,
            MsFlags::MS_SHARED,
            None::<&str>,
        );
        shared.attempt("share", target)?;
    }
    Ok(())
}

/// Hands the controllers down. A controller that the kernel lacks is no reason not to boot.
pub fn delegate_cgroups() -> Result<(), StepError> {
    for group in DELEGATING_CGROUPS {
        let group = Path::new("/sys/fs/cgroup").join(group);
        make_directory(&group)?;
        for controller in CONTROLLERS {
            let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    Ok(())
}

/// Directories, links, limits, first files.
pub fn prepare(started_ms: u64) -> Result<(), StepError> {
    for directory in DIRECTORIES {
        make_directory(directory)?;
    }
    for (link, target) in LINKS {
        match std::os::unix::fs::symlink(target, link) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            other => other.attempt("link", link)?,
        }
    }
    make_static_nodes();
    let _ = nix::unistd::sethostname("beemesh");
    let _ = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.0, OPEN_FILES.1);
    // A kernel that has had a fault is not to be trusted with disks: it panics, and panics end in a new start.
    let _ = fs::write("/proc/sys/kernel/panic_on_oops", "1");
    if fs::read_to_string(PANIC).is_ok_and(|seconds| seconds.trim() == "0") {
        let _ = fs::write(PANIC, "10");
    }
    // Ctrl-Alt-Del becomes a signal, and the way down is orderly.
    let _ = nix::sys::reboot::set_cad_enabled(false);
    write_atomically(path::BOOT_STARTED, &started_ms.to_string())
}

/// Device nodes of drivers that are loaded when someone opens them (device-mapper, loop, tun): `modules.devname`, as
/// depmod(8) writes it (`module name c10:236`). What is there already, or malformed, is passed over.
fn make_static_nodes() {
    let Ok(kernel) = nix::sys::utsname::uname() else {
        return;
    };
    let index = Path::new("/lib/modules")
        .join(kernel.release())
        .join("modules.devname");
    for line in fs::read_to_string(index).unwrap_or_default().lines() {
        let mut words = line.split_whitespace().skip(1);
        let (Some(name), Some(number)) = (words.next(), words.next()) else {
            continue;
        };
        let kind = if number.starts_with('c') {
            SFlag::S_IFCHR
        } else {
            SFlag::S_IFBLK
        };
        let Some((major, minor)) = number.get(1..).and_then(|n| n.split_once(':')) else {
            continue;
        };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else {
            continue;
        };
        let node = Path::new("/dev").join(name);
        if let Some(directory) = node.parent() {
            let _ = make_directory(directory);
        }
        let _ = mknod(
            &node,
            kind,
            Mode::from_bits_truncate(0o600),
            makedev(major, minor),
        );
    }
}

/// Writes a whole file or nothing: a temporary file, then a rename.
///
/// # Errors
/// [`StepError`].
pub fn write_atomically(path: &str, content: &str) -> Result<(), StepError> {
    let temporary = format!("{path}.new");
    fs::write(&temporary, content).attempt("write", &temporary)?;
    fs::rename(&temporary, path).attempt("write", path)
}

/// The release's version as the image says it.
pub fn release_version() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix("VERSION_ID="));
    value.map_or_else(
        || env!("CARGO_PKG_VERSION").to_owned(),
        |v| v.trim_matches('"').to_owned(),
    )
}

fn make_directory(path: impl AsRef<Path>) -> Result<(), StepError> {
    match fs::create_dir_all(&path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e).attempt("make", path),
        _ => Ok(()),
    }
}
