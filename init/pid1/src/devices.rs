//! Where device events come from: the kernel's netlink socket, and sysfs for what was there before.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use beemesh_init_core::uevent::{MESSAGE_LIMIT, Uevent, parse_message, parse_sysfs};
use nix::errno::Errno;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket,
};

use crate::chain::{Attempt, StepError};

/// The kernel's own events; group 2 would be udev's.
const KERNEL_GROUP: u32 = 1;
/// Room for a storm of events, in bytes. What does not fit is made good by a scan.
const BUFFER_BYTES: usize = 1 << 20;
/// Messages taken before other events get their turn.
const TURN_LIMIT: usize = 256;
/// Devices that a scan reports.
const SCAN_LIMIT: usize = 4096;

/// The socket.
pub struct UeventSocket(OwnedFd);

/// What one reading gave.
pub struct Received {
    /// The events.
    pub events: Vec<Uevent>,
    /// The kernel's buffer ran over: events are missing.
    pub lost: bool,
}

impl UeventSocket {
    /// Opens the socket; from now on nothing is missed unnoticed.
    ///
    /// # Errors
    /// [`StepError`].
    pub fn open() -> Result<Self, StepError> {
        let what = "NETLINK_KOBJECT_UEVENT";
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let fd = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol).attempt("open", what)?;
        let _ = setsockopt(&fd, RcvBufForce, &BUFFER_BYTES);
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP)).attempt("listen to", what)?;
        Ok(Self(fd))
    }

    /// What to wait for.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Takes what is there. Only what the kernel itself sent counts.
    pub fn receive(&self) -> Received {
        let mut received = Received {
            events: Vec::new(),
            lost: false,
        };
        let mut buffer = [0; MESSAGE_LIMIT];
        for _ in 0..TURN_LIMIT {
            match recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), &mut buffer) {
                Ok((count, Some(sender))) if sender.pid() == 0 => {
                    let message = buffer.get(..count).unwrap_or_default();
                    received.events.extend(parse_message(message).ok());
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => received.lost = true,
                Err(_) => break,
            }
        }
        received
    }
}

/// All block and input devices and watchdogs that sysfs shows.
pub fn scan() -> Vec<Uevent> {
    let mut devices = Vec::new();
    for subsystem in ["block", "input", "watchdog"] {
        for entry in fs::read_dir(format!("/sys/class/{subsystem}"))
            .into_iter()
            .flatten()
            .flatten()
        {
            if devices.len() < SCAN_LIMIT {
                let text = fs::read_to_string(entry.path().join("uevent"));
                devices.extend(text.map(|text| parse_sysfs(subsystem, &text)).ok());
            }
        }
    }
    devices
}
