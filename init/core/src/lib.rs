//! Boot phases, services, shutdown, mount and device plans as pure state machines.
//!
//! Nothing here opens a file, reads a clock or draws a random number: `init/pid1` feeds events and executes commands.
//! Invariant: nothing here can panic (the lints below deny the usual ways), whatever the events and their order.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice
    )
)]

pub mod backoff;
pub mod boot;
pub mod crash;
pub mod ending;
mod links;
pub mod machine;
pub mod modules;
pub mod mounts;
pub mod names;
pub mod notify;
pub mod service;
mod shutdown;
pub mod spec;
mod stick;
pub mod superblock;
pub mod uevent;
pub mod volume;
pub mod watchdog;

pub use machine::{Command, Event, Init, Job, Outcome, Shutdown};
pub use shutdown::LEAST_DISKS_MS;
