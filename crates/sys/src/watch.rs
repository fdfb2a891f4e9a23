//! inotify: a descriptor that becomes readable when something in a directory changes. It does not say what: the
//! reader looks for itself, so a lost event costs nothing.

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Why a directory cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("failed to watch `{path}`")]
pub struct WatchError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A non-blocking descriptor, readable after a file was written and closed in `path` or renamed into it. The
/// reader must drain it with read(2).
///
/// # Errors
/// [`WatchError`] when the directory does not exist or the user's inotify limits are reached.
pub fn watch_directory(path: &Path) -> Result<OwnedFd, WatchError> {
    let fail = |source| WatchError {
        path: path.to_owned(),
        source,
    };
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| fail(e.into()))?;
    // SAFETY: inotify_init1 takes flags only and returns a new descriptor or -1.
    let raw = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
    if raw < 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    // SAFETY: `raw` was just returned as a new, open descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let watch =
        unsafe { libc::inotify_add_watch(raw, name.as_ptr(), libc::IN_CLOSE_WRITE | libc::IN_MOVED_TO) };
    if watch < 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rename_into_a_watched_directory_is_seen_and_nothing_before() {
        let dir = std::env::temp_dir().join(format!("beemesh-watch-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("in")).unwrap();
        let fd = watch_directory(&dir.join("in")).unwrap();
        let mut buffer = [0; 512];
        assert_eq!(
            nix::unistd::read(&fd, &mut buffer),
            Err(nix::errno::Errno::EAGAIN)
        );
        std::fs::write(dir.join("x"), "x").unwrap();
        std::fs::rename(dir.join("x"), dir.join("in/x")).unwrap();
        assert!(nix::unistd::read(&fd, &mut buffer).unwrap() > 0);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn missing_directory_is_an_error_that_names_it() {
        let error = watch_directory(Path::new("/nonexistent/dir")).unwrap_err();
        assert!(error.to_string().contains("`/nonexistent/dir`"));
    }
}
