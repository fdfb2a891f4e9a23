//! When the machine's watchdog is given a sign of life. Pure; holds no device.
//!
//! The device starts the machine again when it hears nothing for [`TIMEOUT_S`]. The first one that opens is held for
//! good: a chip of the board where there is one, and otherwise, [`SOFTWARE_AFTER_MS`] after all drivers were loaded, the
//! kernel's own timer ([`SOFTWARE`]), which needs a kernel that still counts.
//!
//! Invariants (tested here and in `machine_tests`): a sign of life is given only by the event loop, only while every vital
//! service is well or within its grace, and, from the request for a shutdown on, never again: a way down that hangs
//! ends in a reset. It is never disarmed: the device is not closed, and no `V` is written to it.

use std::collections::BTreeSet;

use crate::machine::Command;

/// How long the device waits for a sign of life, in seconds. Longer than the way down takes (30 s).
pub const TIMEOUT_S: u32 = 60;
/// The module of the kernel's own timer.
pub const SOFTWARE: &str = "softdog";
/// How long a chip may take to appear after the drivers of all devices were loaded, in milliseconds: a driver of a bus may
/// have announced it only then.
pub(crate) const SOFTWARE_AFTER_MS: u64 = 10_000;
/// Signs of life are at most so far apart, in milliseconds, and at most a quarter of the device's time.
const INTERVAL_MOST_MS: u64 = 15_000;
/// A device that wants them faster gets them no faster than this, in milliseconds.
const INTERVAL_LEAST_MS: u64 = 250;
/// Devices that are tried; more are ignored.
const DEVICES_LIMIT: usize = 8;

/// The watchdog of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Watchdog {
    tried: BTreeSet<String>,
    opening: bool,
    held: Option<Held>,
    /// When the kernel's own timer is asked for; none before all drivers that the devices ask for are loaded.
    software_at_ms: Option<u64>,
    software_asked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    interval_ms: u64,
    next_ms: u64,
}

impl Watchdog {
    /// A device (its name below `/dev`) is there.
    pub(crate) fn appeared(&mut self, device: &str) -> Option<Command> {
        let numbered = device.strip_prefix("watchdog").is_some_and(|number| {
            !number.is_empty() && number.len() <= 3 && number.bytes().all(|b| b.is_ascii_digit())
        });
        let free = self.held.is_none() && !self.opening && self.tried.len() < DEVICES_LIMIT;
        if !numbered || !free || !self.tried.insert(device.to_owned()) {
            return None;
        }
        self.opening = true;
        Some(Command::OpenWatchdog(device.to_owned()))
    }

    /// The device was opened and waits so long.
    pub(crate) fn opened(&mut self, now_ms: u64, timeout_ms: u64) {
        self.opening = false;
        let interval_ms = (timeout_ms / 4).clamp(INTERVAL_LEAST_MS, INTERVAL_MOST_MS);
        self.held = Some(Held {
            interval_ms,
            next_ms: now_ms.saturating_add(interval_ms),
        });
    }

    /// The device could not be opened.
    pub(crate) fn refused(&mut self) {
        self.opening = false;
    }

    /// The drivers of all devices were loaded.
    pub(crate) fn drivers_loaded(&mut self, now_ms: u64) {
        self.software_at_ms = Some(now_ms.saturating_add(SOFTWARE_AFTER_MS));
    }

    /// `true`, once: there is no device, so the kernel's own timer is wanted.
    pub(crate) fn wants_software(&mut self, now_ms: u64) -> bool {
        let due = self.software_at_ms.is_some_and(|at_ms| at_ms <= now_ms);
        let wanted = due && self.held.is_none() && !self.opening && !self.software_asked;
        self.software_asked |= wanted;
        wanted
    }

    /// A sign of life, if one is due.
    pub(crate) fn pet(&mut self, now_ms: u64) -> Option<Command> {
        let held = self.held.as_mut().filter(|held| held.next_ms <= now_ms)?;
        held.next_ms = now_ms.saturating_add(held.interval_ms);
        Some(Command::PetWatchdog)
    }

    /// The last sign of life before the way down.
    pub(crate) fn last_pet(&self) -> Option<Command> {
        self.held.map(|_| Command::PetWatchdog)
    }

    /// When [`Self::pet`] or [`Self::wants_software`] has something to do.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        let software = self
            .software_at_ms
            .filter(|_| !self.software_asked && !self.opening);
        self.held.map(|held| held.next_ms).or(software)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_device_that_opens_is_held_and_the_kernels_timer_not_asked_for() {
        let mut dog = Watchdog::default();
        assert_eq!(dog.appeared("watchdog"), None, "the old name of the first");
        let open = |name: &str| Some(Command::OpenWatchdog(name.to_owned()));
        assert_eq!(dog.appeared("watchdog0"), open("watchdog0"));
        assert_eq!(dog.appeared("watchdog1"), None, "one at a time");
        dog.opened(0, 60_000);
        dog.drivers_loaded(0);
        assert!(!dog.wants_software(SOFTWARE_AFTER_MS));
        assert_eq!(dog.appeared("watchdog2"), None);
    }

    #[test]
    fn kernels_timer_is_asked_for_once_when_no_device_opens() {
        let mut dog = Watchdog::default();
        assert!(!dog.wants_software(u64::MAX), "drivers may still come");
        assert!(dog.appeared("watchdog0").is_some());
        dog.drivers_loaded(5);
        let due = 5 + SOFTWARE_AFTER_MS;
        assert!(!dog.wants_software(due), "it is being opened");
        assert_eq!(dog.deadline_ms(), None);
        dog.refused();
        assert_eq!(dog.deadline_ms(), Some(due));
        assert!(!dog.wants_software(due - 1), "a chip may still appear");
        assert!(dog.wants_software(due) && !dog.wants_software(due));
        assert_eq!(dog.deadline_ms(), None);
        assert_eq!(dog.appeared("watchdog0"), None, "it refused");
        assert!(dog.appeared("watchdog1").is_some());
    }

    #[test]
    fn signs_of_life_come_four_times_in_the_devices_time() {
        let mut dog = Watchdog::default();
        dog.opened(0, 8_000);
        assert_eq!((dog.pet(1_999), dog.deadline_ms()), (None, Some(2_000)));
        assert_eq!(dog.pet(2_000), Some(Command::PetWatchdog));
        assert_eq!(dog.deadline_ms(), Some(4_000));
        dog.opened(0, u64::from(TIMEOUT_S) * 1_000);
        assert_eq!(dog.deadline_ms(), Some(15_000));
    }

    #[test]
    fn devices_that_are_tried_are_bounded() {
        let mut dog = Watchdog::default();
        let tried = (0..100).filter(|number| {
            let tried = dog.appeared(&format!("watchdog{number}")).is_some();
            dog.refused();
            tried
        });
        assert_eq!(tried.count(), DEVICES_LIMIT);
    }
}
