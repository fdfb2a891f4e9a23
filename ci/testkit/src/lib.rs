//! QEMU machines, a virtual switch and fault plans as Rust types.

mod console;
mod switch;
mod wire;

pub use console::{Console, Line, MAX_LINE, MAX_LINES, MAX_LOG, Mark, Pattern, WaitError};
pub use smoltcp::wire::{EthernetAddress as Mac, Ipv4Cidr};
pub use switch::{
    Counters, MAX_CAPTURE, MAX_DELAYED, MAX_DESTINATIONS, MAX_LEARNED, MAX_NAMED, MAX_PORTS, Outsider, Switch,
};
pub use wire::{MAX_FRAME, MAX_QUEUED_FRAMES};
