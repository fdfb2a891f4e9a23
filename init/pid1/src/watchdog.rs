//! The machine's watchdog device, held by the program for good: the event loop gives it signs of life, and so does the
//! emergency while it shows its text.
//!
//! It is opened once and never closed, and `V` is never written: whatever becomes of this program, the device goes on
//! counting. Decides nothing. A write does not wait: the drivers of the product's profile set a register or a timer.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::sync::OnceLock;

use beemesh_init_core::Event;
use beemesh_init_core::watchdog::TIMEOUT_S;

/// `WDIOF_CARDRESET`: the device has started the machine. Source: linux `include/uapi/linux/watchdog.h`.
const CARD_RESET: u32 = 0x20;

static DEVICE: OnceLock<File> = OnceLock::new();

/// Opens a device (its name below `/dev`), which begins to count by that; what became of it.
pub fn open(name: &str) -> Event {
    match try_open(name) {
        Ok(event) => event,
        Err(error) => {
            crate::logs::record(&format!("failed to open the watchdog `{name}`: {error}"));
            Event::WatchdogRefused
        }
    }
}

fn try_open(name: &str) -> io::Result<Event> {
    let about = |what: &str| {
        let text = fs::read_to_string(format!("/sys/class/watchdog/{name}/{what}"));
        text.map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    let fired = about("bootstatus")
        .parse()
        .is_ok_and(|bits: u32| bits & CARD_RESET != 0);
    let device = OpenOptions::new().write(true).open(format!("/dev/{name}"))?;
    #[cfg(feature = "planted-faults")]
    let wanted = crate::planted::seconds("beemesh.planted-watchdog").unwrap_or(TIMEOUT_S);
    #[cfg(not(feature = "planted-faults"))]
    let wanted = TIMEOUT_S;
    let seconds = beemesh_sys::set_watchdog_timeout(&device, wanted)?;
    let identity = about("identity");
    crate::logs::record(&format!("the watchdog is `{identity}`, {seconds} s"));
    let _ = DEVICE.set(device);
    pet()?;
    Ok(Event::WatchdogOpened {
        timeout_ms: u64::from(seconds).saturating_mul(1_000),
        name: identity,
        fired,
    })
}

/// A sign of life, where a device is held.
///
/// # Errors
/// Of the driver.
pub fn pet() -> io::Result<()> {
    match DEVICE.get() {
        Some(mut device) => device.write(b"\0").map(drop),
        None => Ok(()),
    }
}
