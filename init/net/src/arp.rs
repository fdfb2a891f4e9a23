//! Drives `acd` with a packet socket: one guard per address. No decisions.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;

use crate::acd::{Acd, Act, Arp, Mac};
use crate::plan::Link;

/// Ethertype of ARP.
const ETHERTYPE: u16 = 0x0806;
/// Where nothing is due.
const LONG: Duration = Duration::from_secs(3_600);

/// What becomes of the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may be used.
    Free,
    /// This host has it.
    Conflict(Mac),
}

/// Watches over one address on one link.
pub struct Guard {
    socket: AsyncFd<OwnedFd>,
    acd: Acd,
    start: Instant,
}

impl Guard {
    /// For an address that is `held` already, or is to be probed first. `None` for a link without ARP.
    ///
    /// # Errors
    /// Of the socket.
    pub fn open(link: &Link, address: Ipv4Addr, held: bool) -> std::io::Result<Option<Self>> {
        let Ok(mac) = Mac::try_from(link.address.as_slice()) else {
            return Ok(None);
        };
        // Its replacement is unsafe, for types whose descriptor may change; an `OwnedFd` keeps its own.
        #[expect(
            deprecated,
            reason = "sound for OwnedFd, and unsafe code stands in crates/sys alone"
        )]
        let socket = AsyncFd::new(beemesh_sys::packet_socket(link.index, ETHERTYPE)?)?;
        let acd = if held {
            Acd::holding(mac, address, 0)
        } else {
            Acd::probing(mac, address, 0)
        };
        let start = Instant::now();
        Ok(Some(Self { socket, acd, start }))
    }

    /// The next verdict. May be called again after [`Verdict::Free`]; gives up nothing when it is dropped in between.
    ///
    /// # Errors
    /// Of the socket; the link is gone then.
    pub async fn next(&mut self) -> std::io::Result<Verdict> {
        loop {
            let pause = match self.acd.due() {
                Some(due) => Duration::from_millis(due.saturating_sub(self.now())),
                None => LONG,
            };
            let act = tokio::select! {
                () = tokio::time::sleep(pause) => self.acd.tick(self.now()),
                heard = self.socket.readable() => {
                    let mut ready = heard?;
                    let mut frame = [0; 128];
                    let read = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut frame)?));
                    match read {
                        Ok(length) => {
                            let arp = Arp::parse(frame.get(..length?).unwrap_or_default());
                            let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
                            arp.and_then(|arp| self.acd.heard(now, &arp))
                        }
                        Err(_not_ready) => None,
                    }
                }
            };
            match act {
                // A link that cannot send now has no cable: the RFC's next packet is due soon enough.
                Some(Act::Send(arp)) => drop(nix::unistd::write(self.socket.get_ref(), &arp.frame())),
                Some(Act::Free) => return Ok(Verdict::Free),
                Some(Act::Conflict(mac)) => return Ok(Verdict::Conflict(mac)),
                None => {}
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
