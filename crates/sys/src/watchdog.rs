//! The time of a watchdog device: how long it waits for a sign of life before it starts the machine again.
//!
//! Source: Linux `Documentation/watchdog/watchdog-api.rst`, `include/uapi/linux/watchdog.h`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

nix::ioctl_readwrite!(wdioc_settimeout, b'W', 6, i32);
nix::ioctl_read!(wdioc_gettimeout, b'W', 7, i32);

/// Asks an opened `/dev/watchdog*` to wait so many seconds; returns how many it waits, which a driver may round, and
/// which stays what it was where the driver cannot do as asked.
///
/// # Errors
/// Of the driver, when it tells no time at all.
pub fn set_watchdog_timeout(device: &File, seconds: u32) -> io::Result<u32> {
    let mut wanted = i32::try_from(seconds).unwrap_or(i32::MAX);
    // SAFETY: WDIOC_SETTIMEOUT reads and writes one int.
    let set = unsafe { wdioc_settimeout(device.as_raw_fd(), &raw mut wanted) };
    if set.is_err() {
        // SAFETY: WDIOC_GETTIMEOUT writes one int.
        unsafe { wdioc_gettimeout(device.as_raw_fd(), &raw mut wanted) }?;
    }
    u32::try_from(wanted).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_is_no_watchdog_is_refused() {
        let null = File::open("/dev/null").unwrap();
        assert!(set_watchdog_timeout(&null, 60).is_err());
    }
}
