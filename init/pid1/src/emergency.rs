//! The end of the road: says on every console what happened and what a person can do, waits for the power button,
//! and starts the machine again after a minute. Never returns, never panics, needs nothing that may be missing.

use std::io::Write;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};

use beemesh_init_core::boot::emergency_text;

use crate::console::Console;
use crate::power::PowerButtons;

/// What to do when there is nothing that a person on site can do.
pub const SUPPORT: &str =
    "Switch the machine off and on once; if this text comes again, please read it to your support.";
/// The machine starts again after this time.
const SECONDS: u32 = 60;

/// Enters the emergency.
pub fn enter(what: &str, detail: &str, remedy: &str) -> ! {
    let mut console = Console::open();
    for line in emergency_text(what, detail, remedy, SECONDS) {
        // Before the consoles can be opened there is still what the kernel opened for us.
        if console.is_mute() {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
        console.say(&line);
    }
    let mut buttons = PowerButtons::default();
    buttons.watch_all();
    let end = Instant::now() + Duration::from_secs(SECONDS.into());
    while Instant::now() < end {
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
    go(RebootMode::RB_AUTOBOOT)
}

fn go(how: RebootMode) -> ! {
    loop {
        let _ = reboot(how);
        std::thread::sleep(Duration::from_secs(1));
    }
}
