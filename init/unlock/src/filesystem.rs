//! ext4 and tmpfs: make, check, mount.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};

use crate::luks::{LuksError, run};

/// Why a file system is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum FilesystemError {
    /// mkfs or fsck.
    #[error(transparent)]
    Tool(#[from] LuksError),
    /// e2fsck found what it does not repair by itself.
    #[error("the file system on `{0}` is damaged beyond automatic repair")]
    Damaged(PathBuf),
    /// mount(2).
    #[error("failed to mount `{0}`")]
    Mount(PathBuf, #[source] std::io::Error),
}

/// Makes an ext4 that is ready at once: the kernel fills in tables later.
///
/// # Errors
/// [`FilesystemError::Tool`].
pub fn make(device: &Path, label: &str) -> Result<(), FilesystemError> {
    let mut command = Command::new("mkfs.ext4");
    command.args([
        "-q",
        "-F",
        "-m",
        "0",
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
        "-L",
        label,
    ]);
    command.arg(device);
    Ok(run("mkfs.ext4", command)?)
}

/// Repairs what can be repaired without asking. Source: e2fsck(8), exit codes 0 (clean), 1 (repaired), 2 (repaired,
/// reboot: only for a mounted root).
///
/// # Errors
/// [`FilesystemError::Damaged`] for everything else.
pub fn check(device: &Path) -> Result<(), FilesystemError> {
    let output = Command::new("e2fsck").arg("-p").arg(device).output();
    let output = output.map_err(|e| LuksError::Run("e2fsck", e))?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    match output.status.code() {
        Some(0..=2) => Ok(()),
        _ => Err(FilesystemError::Damaged(device.to_owned())),
    }
}

/// Mounts an ext4 at `target`.
///
/// # Errors
/// [`FilesystemError::Mount`].
pub fn mount_ext4(device: &Path, target: &Path) -> Result<(), FilesystemError> {
    // Container images hold programs that run as their owner: neither `noexec` nor `nosuid`.
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    mounted(
        mount(
            Some(device),
            target,
            Some("ext4"),
            flags,
            Some("errors=remount-ro"),
        ),
        target,
    )
}

/// Mounts memory at `target`: at most half of the machine's.
///
/// # Errors
/// [`FilesystemError::Mount`].
pub fn mount_memory(target: &Path) -> Result<(), FilesystemError> {
    mounted(
        mount(
            Some("tmpfs"),
            target,
            Some("tmpfs"),
            MsFlags::MS_NODEV,
            Some("mode=0700,size=50%"),
        ),
        target,
    )
}

fn mounted(result: nix::Result<()>, target: &Path) -> Result<(), FilesystemError> {
    result.map_err(|e| FilesystemError::Mount(target.to_owned(), e.into()))?;
    let _ = fs::set_permissions(target, fs::Permissions::from_mode(0o700));
    Ok(())
}

/// Something is mounted at `target` already.
#[must_use]
pub fn is_mounted(target: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
    target
        .parent()
        .is_some_and(|above| device(target).is_some() && device(target) != device(above))
}
