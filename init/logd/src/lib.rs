//! The system log's files: [`RingWriter`] for who writes a ring, [`RingReader`] for who follows one, [`SystemLog`] for who
//! wants all of a machine's log.
//!
//! What the bytes mean is `init/log`'s. Invariants: one writer per ring; a reader takes no lock and may be overtaken by
//! the rotation, which shows as a step in the sequence numbers; nothing here panics (PID 1 writes with it).
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod clock;
mod copy;
mod reader;
mod system;
mod writer;

pub use clock::{Clock, boot_id};
pub use copy::{Copied, Copier, SYNC_AFTER};
pub use reader::{Entry, RingReader};
pub use system::{BootChoice, SystemLog, SystemReader};
pub use writer::{RingError, RingWriter};

use beemesh_init_api::path;
use beemesh_init_log::Limits;

/// Where PID 1 writes what services print.
pub const SERVICES: &str = "services";
/// Where `beemesh-logd` writes what the kernel says.
pub const KERNEL: &str = "kernel";
/// The ring on the state volume.
pub const DISK: &str = "/var/lib/beemesh/log";
/// The rings in RAM.
pub const RAM: &str = path::LOG;

/// Bounds of the ring of services in RAM.
pub const SERVICES_LIMITS: Limits = Limits {
    segment_bytes: 1 << 20,
    total_bytes: 8 << 20,
    segments: 64,
};
/// Bounds of the ring of the kernel in RAM.
pub const KERNEL_LIMITS: Limits = Limits {
    segment_bytes: 1 << 20,
    total_bytes: 4 << 20,
    segments: 64,
};
/// Bounds of the ring on the state volume.
pub const DISK_LIMITS: Limits = Limits {
    segment_bytes: 4 << 20,
    total_bytes: 64 << 20,
    segments: 256,
};
