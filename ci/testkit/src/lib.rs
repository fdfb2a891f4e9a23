//! QEMU machines, a virtual switch and fault plans as Rust types.

mod accel;
mod console;
mod firmware;
mod machine;
mod probe;
mod process;
mod qmp;
mod switch;
mod tpm;
mod wire;

pub use accel::{Accel, Choice, PROBE};
pub use console::{Console, Line, MAX_LINE, MAX_LINES, MAX_LOG, Mark, Pattern, WaitError};
pub use firmware::Firmware;
pub use machine::{Boot, Disk, DiskBus, Machine, MachineConfig, Nic, NicModel, Stick};
pub use qmp::{Event, MAX_EVENTS, Qmp, QmpError};
pub use smoltcp::wire::{EthernetAddress as Mac, Ipv4Cidr};
pub use switch::{
    Counters, MAX_CAPTURE, MAX_DELAYED, MAX_DESTINATIONS, MAX_LEARNED, MAX_NAMED, MAX_PORTS, Outsider, Switch,
};
pub use wire::{MAX_FRAME, MAX_QUEUED_FRAMES};
