//! The system calls that nix does not wrap: the one place with unsafe code.
//!
//! One safe function per call, owned or borrowed descriptors in and out, a SAFETY comment each. No policy.
#![allow(unsafe_code, reason = "this crate exists to hold it")]

mod child;
mod clock;
mod descriptors;
mod disposition;
mod loopdev;
mod mounts;
mod packet;
#[cfg(feature = "planted-faults")]
pub mod planted;
mod watch;
mod watchdog;

pub use child::{inherit_streams_alone, join_before_exec, keep_open_over_exec, yield_to_others};
pub use clock::{RtcTime, read_rtc, slew_clock, write_rtc};
pub use descriptors::{Received, pass_on, receive, take_inherited};
pub use disposition::{DispositionError, reset_signal};
pub use loopdev::{LoopError, attach_read_only};
pub use mounts::set_read_only;
pub use packet::packet_socket;
pub use watch::{WatchError, watch_directory};
pub use watchdog::set_watchdog_timeout;
