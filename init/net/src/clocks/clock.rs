//! The clocks that are read and set: those of the machine, or pretended ones for tests.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use beemesh_sys::RtcTime;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use time::{Date, Month, OffsetDateTime, Time};

/// The machine's battery-backed clock.
const RTC: &str = "/dev/rtc0";

/// A system clock and an RTC.
pub trait Clock: Send + Sync {
    /// The system clock, in microseconds since the Unix epoch.
    fn now_us(&self) -> i64;
    /// Sets it.
    fn step(&mut self, to_us: i64) -> io::Result<()>;
    /// Makes it gain so many microseconds, slowly.
    fn slew(&mut self, by_us: i64) -> io::Result<()>;
    /// The RTC, in seconds since the Unix epoch.
    fn read_rtc(&self) -> io::Result<i64>;
    /// Sets the RTC.
    fn write_rtc(&mut self, unix: i64) -> io::Result<()>;
}

/// The machine's.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_us(&self) -> i64 {
        let micros = |since: Duration| i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => micros(since),
            Err(before) => micros(before.duration()).saturating_neg(),
        }
    }

    fn step(&mut self, to_us: i64) -> io::Result<()> {
        let since = Duration::from_micros(u64::try_from(to_us).unwrap_or(0));
        Ok(clock_settime(
            ClockId::CLOCK_REALTIME,
            TimeSpec::from_duration(since),
        )?)
    }

    fn slew(&mut self, by_us: i64) -> io::Result<()> {
        beemesh_sys::slew_clock(by_us)
    }

    fn read_rtc(&self) -> io::Result<i64> {
        unix_of(beemesh_sys::read_rtc(&File::open(RTC)?)?).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn write_rtc(&mut self, unix: i64) -> io::Result<()> {
        let time = rtc_of(unix).ok_or(io::ErrorKind::InvalidInput)?;
        beemesh_sys::write_rtc(&File::open(RTC)?, time)
    }
}

/// Clocks that touch nothing.
pub struct PretendedClock {
    set_us: i64,
    at: Instant,
    rtc: i64,
}

impl PretendedClock {
    /// Both clocks show this, in seconds since the Unix epoch.
    pub fn new(unix: i64) -> Self {
        Self {
            set_us: unix.saturating_mul(1_000_000),
            at: Instant::now(),
            rtc: unix,
        }
    }
}

impl Clock for PretendedClock {
    fn now_us(&self) -> i64 {
        let passed = i64::try_from(self.at.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.set_us.saturating_add(passed)
    }

    fn step(&mut self, to_us: i64) -> io::Result<()> {
        (self.set_us, self.at) = (to_us, Instant::now());
        Ok(())
    }

    fn slew(&mut self, by_us: i64) -> io::Result<()> {
        self.set_us = self.set_us.saturating_add(by_us);
        Ok(())
    }

    fn read_rtc(&self) -> io::Result<i64> {
        Ok(self.rtc)
    }

    fn write_rtc(&mut self, unix: i64) -> io::Result<()> {
        self.rtc = unix;
        Ok(())
    }
}

fn unix_of(rtc: RtcTime) -> Option<i64> {
    let date = Date::from_calendar_date(rtc.year, Month::try_from(rtc.month).ok()?, rtc.day).ok()?;
    let time = Time::from_hms(rtc.hour, rtc.minute, rtc.second).ok()?;
    Some(date.with_time(time).assume_utc().unix_timestamp())
}

fn rtc_of(unix: i64) -> Option<RtcTime> {
    let time = OffsetDateTime::from_unix_timestamp(unix).ok()?;
    let (hour, minute, second) = time.to_hms();
    Some(RtcTime {
        year: time.year(),
        month: time.month().into(),
        day: time.day(),
        hour,
        minute,
        second,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn date_that_does_not_exist_is_no_time() {
        let rtc = rtc_of(0).unwrap();
        assert_eq!((rtc.year, rtc.month, rtc.day), (1970, 1, 1));
        assert_eq!(
            unix_of(RtcTime {
                month: 2,
                day: 30,
                ..rtc
            }),
            None
        );
    }

    proptest! {
        #[test]
        fn time_survives_the_rtc(unix in 0i64..8_000_000_000) {
            prop_assert_eq!(rtc_of(unix).and_then(unix_of), Some(unix));
        }
    }
}
