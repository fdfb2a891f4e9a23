//! A container's root file system: an overlay of the image's layers with a writable layer of its own.
//!
//! It knows no image format. Invariants: layers are only ever read; taking a snapshot away leaves nothing mounted and nothing
//! on disk, and names everything that it could not take away.

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why a snapshot could not be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file operation failed.
    #[error("failed to {what} `{path}`")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image has no layer.
    #[error("the image has no layers")]
    Empty,
}

fn io_at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError + use<> {
    let path = path.to_owned();
    move |source| SnapshotError::Io { what, path, source }
}

/// Mounts `layers` (lowest first) at `<bundle>/rootfs`, with the writable layer in `<bundle>/upper`.
pub fn mount_snapshot(bundle: &Path, layers: &[PathBuf]) -> Result<(), SnapshotError> {
    if layers.is_empty() {
        return Err(SnapshotError::Empty);
    }
    let links = bundle.join("lower");
    for dir in [
        &bundle.join("rootfs"),
        &bundle.join("upper"),
        &bundle.join("work"),
        &links,
    ] {
        fs::create_dir_all(dir).map_err(io_at("create", dir))?;
    }
    // mount(2) takes one page of options: short names, so that 128 layers fit.
    let mut names = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let link = links.join(number.to_string());
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(layer, &link).map_err(io_at("create", &link))?;
        names.push(number.to_string());
    }
    names.reverse();
    let options = format!("lowerdir={},upperdir=../upper,workdir=../work", names.join(":"));
    let rootfs = bundle.join("rootfs");
    let target = rootfs.clone();
    // Relative names need a working directory, which a thread can have for itself.
    let mounted = std::thread::spawn(move || -> io::Result<()> {
        unshare(CloneFlags::CLONE_FS)?;
        nix::unistd::chdir(&links)?;
        // No device node of an image is ever a device.
        let flags = MsFlags::MS_NODEV;
        mount(
            Some("overlay"),
            &target,
            Some("overlay"),
            flags,
            Some(options.as_str()),
        )?;
        Ok(())
    });
    mounted
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the mounting thread ended unexpectedly")))
        .map_err(io_at("mount", &rootfs))
}

/// Unmounts and deletes a container's bundle; what failed is appended to `errors`.
pub fn remove_snapshot(bundle: &Path, errors: &mut Vec<SnapshotError>) {
    let rootfs = bundle.join("rootfs");
    match umount2(&rootfs, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // EINVAL: not a mount point, e.g. after a reboot.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => {
            errors.push(io_at("unmount", &rootfs)(errno.into()));
            // Deleting now would reach through the mount.
            return;
        }
    }
    match fs::remove_dir_all(bundle) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => errors.push(io_at("delete", bundle)(err)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_layers_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            mount_snapshot(dir.path(), &[]),
            Err(SnapshotError::Empty)
        ));
    }

    #[test]
    fn removing_what_was_never_mounted_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("c");
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let mut errors = Vec::new();
        remove_snapshot(&bundle, &mut errors);
        remove_snapshot(&bundle, &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        assert!(!bundle.exists());
    }
}
