//! The clocks the agent reads, and the time floor.
//!
//! Whether a document has expired is judged by the floor, never by the RTC: a box whose clock says 1970 or 2099 must
//! join all the same. The floor is the greatest time that something trusted has vouched for, and it only rises.

use beemesh_joinpack_format::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch by the system clock; 0 before it.
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Milliseconds since the machine started, by CLOCK_BOOTTIME.
pub fn boot_ms() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    now.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The time floor: what is certainly past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor(pub Timestamp);

impl Floor {
    /// The floor of a box that knows only when its image was built, and what an earlier boot had learned.
    pub fn new(built: Timestamp, persisted: Option<Timestamp>) -> Self {
        Self(persisted.map_or(built, |persisted| built.max(persisted)))
    }

    /// Raises the floor to a time that a trusted signature vouches for. Returns whether it rose.
    pub fn raise(&mut self, seen: Timestamp) -> bool {
        let rises = seen > self.0;
        self.0 = self.0.max(seen);
        rises
    }

    /// The best guess of now that lies between `earliest` and `latest`: the system clock where it is plausible.
    pub fn now_within(&self, system: Timestamp, earliest: Timestamp, latest: Timestamp) -> Timestamp {
        system.max(self.0).max(earliest).min(latest)
    }
}

/// The system clock as a timestamp.
pub fn system_now() -> Timestamp {
    Timestamp(i64::try_from(unix_ms() / 1000).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_only_rises() {
        let mut floor = Floor::new(Timestamp(100), Some(Timestamp(50)));
        assert!(!floor.raise(Timestamp(99)));
        assert!(floor.raise(Timestamp(200)));
        assert_eq!(floor, Floor(Timestamp(200)));
    }

    #[test]
    fn a_clock_of_1970_or_2099_is_brought_between_the_bounds() {
        let floor = Floor(Timestamp(1_000));
        for system in [0, 4_102_444_800] {
            let now = floor.now_within(Timestamp(system), Timestamp(900), Timestamp(2_000));
            assert!((1_000..=2_000).contains(&now.0), "{now:?}");
        }
    }
}
