//! The end of the road: says on every console what happened and what a person can do, waits for the power button,
//! and starts the machine again after a minute. Never returns, never panics, needs nothing that may be missing.
//!
//! Services go on meanwhile: a machine whose PID 1 is here is still reachable over the fabric. The end is a panic of the
//! kernel where something keeps its last messages, so that the next boot can tell the reason.

use std::io::Write;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};

use beemesh_init_core::boot::emergency_text;
use beemesh_init_core::crash::EMERGENCY;

use crate::console::Console;
use crate::power::PowerButtons;
use crate::{crash, watchdog};

/// What to do when there is nothing that a person on site can do.
pub const SUPPORT: &str =
    "Switch the machine off and on once; if this text comes again, please read it to your support.";
/// The machine starts again after this time.
const SECONDS: u32 = 60;

/// Enters the emergency.
pub fn enter(what: &str, detail: &str, remedy: &str) -> ! {
    #[cfg(feature = "planted-faults")]
    let seconds = crate::planted::seconds("beemesh.planted-emergency").unwrap_or(SECONDS);
    #[cfg(not(feature = "planted-faults"))]
    let seconds = SECONDS;
    // A panic's words have lines.
    let detail = &detail.split_whitespace().collect::<Vec<_>>().join(" ");
    let _ = std::fs::write("/dev/kmsg", format!("<3>{EMERGENCY}failed to {what}: {detail}\n"));
    let mut console = Console::open();
    for line in emergency_text(what, detail, remedy, seconds) {
        // Before the consoles can be opened there is still what the kernel opened for us.
        if console.is_mute() {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
        console.say(&line);
    }
    let mut buttons = PowerButtons::default();
    buttons.watch_all();
    let end = Instant::now() + Duration::from_secs(seconds.into());
    while Instant::now() < end {
        let _ = watchdog::pet();
        let mut sources: Vec<PollFd<'_>> = buttons
            .descriptors()
            .map(|(_, fd)| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let woken = poll(&mut sources, PollTimeout::from(500u16));
        drop(sources);
        if woken.is_ok_and(|count| count > 0) && buttons.read_all() {
            go(RebootMode::RB_POWER_OFF);
        } else if woken.is_err() {
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    if crash::is_kept_by_firmware() {
        // Panics the kernel, which starts the machine again; what it kept is told by the next boot.
        let _ = std::fs::write("/proc/sys/kernel/panic", "1");
        let _ = std::fs::write("/proc/sysrq-trigger", "c");
    }
    go(RebootMode::RB_AUTOBOOT)
}

fn go(how: RebootMode) -> ! {
    loop {
        let _ = reboot(how);
        std::thread::sleep(Duration::from_secs(1));
    }
}
