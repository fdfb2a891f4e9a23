//! The machine's clocks and its boot id.

use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// A reading of both clocks, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Since the Unix epoch.
    pub realtime_us: u64,
    /// CLOCK_MONOTONIC.
    pub monotonic_us: u64,
}

impl Clock {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let read = |clock| {
            let time = clock_gettime(clock).map(Duration::from).unwrap_or_default();
            u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
        };
        Self {
            realtime_us: read(ClockId::CLOCK_REALTIME),
            monotonic_us: read(ClockId::CLOCK_MONOTONIC),
        }
    }

    /// What the wall clock shows more than CLOCK_MONOTONIC, in microseconds.
    #[must_use]
    pub fn offset_us(self) -> u64 {
        self.realtime_us.saturating_sub(self.monotonic_us)
    }
}

/// This boot's id; zeros where the kernel does not tell.
#[must_use]
pub fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(32).collect();
    u128::from_str_radix(&digits, 16)
        .unwrap_or_default()
        .to_be_bytes()
}
