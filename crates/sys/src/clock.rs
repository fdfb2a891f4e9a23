//! The system clock made faster or slower for a while, and the battery-backed clock (RTC).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// What an RTC shows, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RtcTime {
    /// Year, e.g. 2026.
    pub year: i32,
    /// 1..=12.
    pub month: u8,
    /// 1..=31.
    pub day: u8,
    /// 0..=23.
    pub hour: u8,
    /// 0..=59.
    pub minute: u8,
    /// 0..=59.
    pub second: u8,
}

/// Lets the system clock run faster or slower by up to 500 ppm until it has gained `offset_us` microseconds; replaces an
/// adjustment that still runs (adjtimex(2), ADJ_OFFSET_SINGLESHOT). Needs CAP_SYS_TIME.
///
/// # Errors
/// Of adjtimex(2); the offset must be within half a second.
pub fn slew_clock(offset_us: i64) -> io::Result<()> {
    // SAFETY: all bytes zero is a valid timex.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = libc::ADJ_OFFSET_SINGLESHOT;
    timex.offset = offset_us;
    // SAFETY: `timex` is a timex that the call reads and writes.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Layout of `struct rtc_time` (rtc(4)).
#[repr(C)]
#[derive(Default)]
struct RawTime {
    sec: i32,
    min: i32,
    hour: i32,
    mday: i32,
    mon: i32,
    year: i32,
    wday: i32,
    yday: i32,
    isdst: i32,
}

nix::ioctl_read!(rtc_rd_time, b'p', 0x09, RawTime);
nix::ioctl_write_ptr!(rtc_set_time, b'p', 0x0a, RawTime);

/// Reads an opened `/dev/rtc*`.
///
/// # Errors
/// Of the driver, e.g. that the clock has lost its battery; also for a date that does not exist.
pub fn read_rtc(device: &File) -> io::Result<RtcTime> {
    let mut raw = RawTime::default();
    // SAFETY: RTC_RD_TIME writes one `struct rtc_time`, which `RawTime` mirrors.
    unsafe { rtc_rd_time(device.as_raw_fd(), &raw mut raw) }?;
    let small = |value: i32, least: u8, most: u8| {
        let value = u8::try_from(value)
            .ok()
            .filter(|value| (least..=most).contains(value));
        value.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    };
    Ok(RtcTime {
        year: raw.year.saturating_add(1900),
        month: small(raw.mon.saturating_add(1), 1, 12)?,
        day: small(raw.mday, 1, 31)?,
        hour: small(raw.hour, 0, 23)?,
        minute: small(raw.min, 0, 59)?,
        second: small(raw.sec, 0, 59)?,
    })
}

/// Sets an opened `/dev/rtc*`. Needs CAP_SYS_TIME.
///
/// # Errors
/// Of the driver.
pub fn write_rtc(device: &File, time: RtcTime) -> io::Result<()> {
    let raw = RawTime {
        sec: time.second.into(),
        min: time.minute.into(),
        hour: time.hour.into(),
        mday: time.day.into(),
        mon: i32::from(time.month) - 1,
        year: time.year.saturating_sub(1900),
        ..RawTime::default()
    };
    // SAFETY: RTC_SET_TIME reads one `struct rtc_time`, which `RawTime` mirrors.
    unsafe { rtc_set_time(device.as_raw_fd(), &raw const raw) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_is_no_clock_is_refused() {
        let null = File::open("/dev/null").unwrap();
        assert!(read_rtc(&null).is_err());
    }

    #[test]
    fn layout_is_the_kernels() {
        assert_eq!(std::mem::size_of::<RawTime>(), 36);
    }
}
