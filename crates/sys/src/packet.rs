//! A packet socket for one protocol on one link: whole Ethernet frames are read and written with read(2) and write(2).

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A non-blocking packet socket that sees frames of `ethertype` (e.g. 0x0806 for ARP) which arrive at the link with this
/// index, and sends frames there. Needs CAP_NET_RAW.
///
/// # Errors
/// Of socket(2) and bind(2), e.g. that the link is gone.
pub fn packet_socket(index: u32, ethertype: u16) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // Protocol 0: nothing arrives before the socket is bound to its link.
    // SAFETY: socket takes three numbers and returns a new descriptor or -1.
    let raw = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` was just returned as a new, open descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    let index = i32::try_from(index).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_ll of `length` bytes that outlives the call.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_on_a_link_that_is_not_there_is_refused() {
        // Without the right to open packet sockets the refusal comes earlier; a descriptor never.
        assert!(packet_socket(i32::MAX as u32, 0x0806).is_err());
        assert!(packet_socket(u32::MAX, 0x0806).is_err());
    }
}
