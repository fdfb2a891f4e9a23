//! QEMU machines, a virtual Ethernet switch, hosts on it, and sticks, as Rust types: what a story about real machines
//! needs. It knows nothing of the product; the stories do.
//!
//! Needs no root. Invariants: nothing reaches a network outside the process; every process that is started ends with
//! its owner; KVM is used only where a kernel was seen to boot with it.
//!
//! # A story
//!
//! Two machines boot from sticks and join. The cable of one is pulled, its stick is swapped for a damaged one, and in
//! the end nothing has left the site.
//!
//! ```no_run
//! use beemesh_ci_testkit::{Disk, DiskBus, Ipv4Cidr, Mac, Machine, MachineConfig, Nic, SiteHost, Stick, StickImage, Switch};
//! use std::{net::Ipv4Addr, path::Path, time::Duration};
//!
//! # fn main() -> anyhow::Result<()> {
//! let folder = Path::new("target/story");
//! let site = Ipv4Cidr::new(Ipv4Addr::new(10, 77, 0, 0), 24);
//! let minute = Duration::from_secs(60);
//!
//! // A site: a switch, and the operator's laptop on it.
//! let switch = Switch::start()?;
//! let laptop = SiteHost::plug(&switch, "laptop", Ipv4Cidr::new(Ipv4Addr::new(10, 77, 0, 1), 24))?;
//!
//! // Two machines, each with the OS stick, a join stick, a disk and a TPM of its own.
//! let mut machines = Vec::new();
//! for number in 1..=2u8 {
//!     let name = format!("n{number}");
//!     let home = folder.join(&name);
//!     let join = StickImage::from_folder(&folder.join(format!("{name}-join.img")), 64, &folder.join("pack"))?;
//!     let config = MachineConfig::uefi(&name, &home)?
//!         .stick(Stick::bootable("os", &folder.join(format!("{name}-os.img"))))
//!         .stick(Stick::data("join", join.path()))
//!         .disk(Disk::new("state", &home.join("state.img"), 8192, DiskBus::Virtio))
//!         .nic(Nic::virtio(&switch, &name, Mac([0x52, 0x54, 0, 0, 0, number]))?);
//!     machines.push(Machine::start(config)?);
//! }
//! for machine in &machines {
//!     let line = machine.wait_for("joined", minute)?;
//!     println!("{}: {}", machine.name(), line.text);
//! }
//! let page = laptop.http_get(Ipv4Addr::new(10, 77, 0, 11), 8080, "/", minute)?;
//! assert_eq!(page.status, 200);
//!
//! // Somebody trips over a cable, and puts it back.
//! switch.cut("n2")?;
//! assert!(laptop.ping(Ipv4Addr::new(10, 77, 0, 12), Duration::from_secs(1))?.is_none());
//! switch.heal();
//!
//! // A stick with one flipped bit, pulled out while it is being read.
//! let good = StickImage::open(&machines[0].unplug("join")?.image)?;
//! let bad = good.copy_to(&folder.join("bad.img"))?;
//! bad.flip_bit("joinpack.json", 100, 0)?;
//! machines[0].plug(Stick::data("bad", bad.path()).slow(100_000))?;
//! machines[0].wait_stick_read("bad", 50_000, minute)?;
//! machines[0].unplug("bad")?;
//!
//! // The mains fail; disk, firmware variables and TPM are as they were.
//! machines[1].kill()?;
//! machines[1].power_on()?;
//! machines[1].wait_for("joined", minute)?;
//!
//! assert_eq!(switch.frames_outside(site), 0, "{:?}", switch.outsiders(site));
//! # Ok(())
//! # }
//! ```

mod accel;
mod console;
mod firmware;
mod machine;
mod maker;
mod probe;
mod process;
mod qmp;
mod site;
mod stick;
mod switch;
mod tpm;
mod wire;

pub use accel::{Accel, Choice, PROBE};
pub use console::{Console, Line, MAX_LINE, MAX_LINES, MAX_LOG, Mark, Pattern, WaitError};
pub use firmware::Firmware;
pub use machine::{Boot, Disk, DiskBus, Machine, MachineConfig, Nic, NicModel, Stick};
pub use maker::TpmMaker;
pub use qmp::{Event, MAX_EVENTS, Qmp, QmpError};
pub use site::{
    ConnectError, DhcpPool, HttpError, HttpReply, MAX_BODY, MAX_CONNECTIONS, MAX_LEASES, SiteHost,
    SiteListener, SiteStream,
};
pub use smoltcp::wire::{EthernetAddress as Mac, Ipv4Cidr};
pub use stick::StickImage;
pub use switch::{
    Counters, MAX_CAPTURE, MAX_DELAYED, MAX_DESTINATIONS, MAX_LEARNED, MAX_NAMED, MAX_PORTS, Outsider, Switch,
};
pub use wire::{MAX_FRAME, MAX_QUEUED_FRAMES};
