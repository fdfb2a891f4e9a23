//! mount_setattr(2): read-only or not, for one mount or a whole tree of them, in this mount namespace alone.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Makes the mount at `path` (with `recursive`: and all mounts below it) read-only or writable. The file systems
/// themselves, and other mounts of them, stay as they are. Needs Linux 5.12.
///
/// # Errors
/// What mount_setattr(2) says; `EINVAL` when `path` is not a mount point.
pub fn set_read_only(path: &Path, read_only: bool, recursive: bool) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let (set, clear) = if read_only {
        (libc::MOUNT_ATTR_RDONLY, 0)
    } else {
        (0, libc::MOUNT_ATTR_RDONLY)
    };
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the name is NUL-terminated and the structure has the size that is given; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            name.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_mount_point_is_refused() {
        let error = set_read_only(Path::new("/proc/self"), true, false).unwrap_err();
        // Without the right to mount the kernel does not look that far.
        assert!(
            matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)),
            "{error}"
        );
    }
}
