//! The system log as bytes: records, segments, the bounded ring of them (`SPEC.md`); lines of services and of the kernel
//! on the way in, systemd's journal export format on the way out.
//!
//! PURE: it opens no file and reads no clock; files are `init/logd`'s. Invariants: no input makes it panic (PID 1 writes
//! with it); nothing is ever read that was not written; the newest record survives every rotation.
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

pub mod export;
mod kmsg;
mod lines;
mod record;
mod ring;
mod segment;

pub use kmsg::parse_kernel_message;
pub use lines::{Line, Lines};
pub use record::{
    ERROR, FIELDS_LIMIT, Flags, INFO, MESSAGE_LIMIT, NAME_LIMIT, Record, Stream, UNIT_LIMIT, VALUE_LIMIT,
};
pub use ring::{Limits, Placement, Ring, segment_name, segment_number};
pub use segment::{HEADER_LEN, Header, RECORD_LIMIT, Scan, append, scan};
