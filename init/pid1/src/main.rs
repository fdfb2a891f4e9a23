//! PID 1: the driver of `init/core`. Maps events of the kernel to the core's events and the core's commands to system
//! calls; decides nothing.
//!
//! The same program runs again as a short-lived child for whatever may block (`jobs`), and as the kernel's
//! `modprobe`. Invariant: nothing here panics (denied below), and PID 1 itself never waits for a device, a file
//! system, a console or a child.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice
)]

mod bench;
mod cgroup;
mod chain;
mod changes;
mod closing;
mod console;
mod crash;
mod devices;
mod driver;
mod early;
mod emergency;
mod jobs;
mod links;
mod loader;
mod logs;
mod phases;
#[cfg(feature = "planted-faults")]
mod planted;
mod power;
mod sandbox;
mod services;
mod system;
mod watchdog;

use std::process::ExitCode;

/// Where the program lies in the real root.
const SELF: &str = "/usr/lib/beemesh/beemesh-init";
/// Set when the program runs itself again from the real root: milliseconds on CLOCK_BOOTTIME of its first line.
const STARTED_VARIABLE: &str = "BEEMESH_BOOT_STARTED_MS";

fn main() -> ExitCode {
    if std::process::id() != 1 {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        match arguments.split_first() {
            Some((verb, rest)) if verb == "run-service" => return sandbox::run(rest),
            #[cfg(feature = "planted-faults")]
            Some((verb, [name])) if verb == "planted" => planted::run(name),
            _ => {}
        }
        return jobs::main(arguments.into_iter());
    }
    std::panic::set_hook(Box::new(|info| {
        emergency::enter(
            "go on: its first program has a fault",
            &info.to_string(),
            emergency::SUPPORT,
        );
    }));
    let started_ms = std::env::var(STARTED_VARIABLE)
        .ok()
        .and_then(|text| text.parse().ok());
    let failure = match started_ms {
        None => early::run(driver::now_ms()),
        Some(started_ms) => driver::run(started_ms),
    };
    emergency::enter(failure.what, &failure.detail, failure.remedy)
}

/// The services of this machine.
fn specs() -> Vec<beemesh_init_core::service::ServiceSpec> {
    #[cfg(feature = "planted-faults")]
    if planted::is_asked_for() {
        return planted::services();
    }
    beemesh_init_core::service::product_services()
}

/// Why PID 1 cannot go on, in words for the console.
struct Fatal {
    what: &'static str,
    detail: String,
    remedy: &'static str,
}

impl Fatal {
    fn of(phase: beemesh_init_core::boot::Phase, error: &dyn std::error::Error) -> Self {
        Self {
            what: phase.what(),
            detail: chain::words(error),
            remedy: phase.remedy(),
        }
    }
}
