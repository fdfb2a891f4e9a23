//! Addresses as people and packs write them, and as libp2p wants them. No name resolution.

use libp2p::multiaddr::{Multiaddr, Protocol};
use std::net::{IpAddr, SocketAddr};

/// The transport that an address asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Via {
    /// Either: every port of the fabric is open for both.
    Any,
    Tcp,
    Quic,
}

/// Something to dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) socket: SocketAddr,
    pub(crate) via: Via,
}

impl Target {
    /// `ip:port`, or a multiaddr of which anything after the port's protocol (such as `/p2p/…`) is left out.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() > 256 {
            return None;
        }
        let target = match text.parse::<SocketAddr>() {
            Ok(socket) => Self {
                socket,
                via: Via::Any,
            },
            Err(_) => Self::from_multiaddr(&text.parse().ok()?)?,
        };
        let ip = target.socket.ip();
        let reachable = target.socket.port() != 0 && !ip.is_unspecified() && !ip.is_multicast();
        reachable.then_some(target)
    }

    pub(crate) fn from_multiaddr(address: &Multiaddr) -> Option<Self> {
        let mut parts = address.iter();
        let ip: IpAddr = match parts.next()? {
            Protocol::Ip4(ip) => ip.into(),
            Protocol::Ip6(ip) => ip.into(),
            _ => return None,
        };
        let (port, via) = match (parts.next()?, parts.next()) {
            (Protocol::Tcp(port), _) => (port, Via::Tcp),
            (Protocol::Udp(port), Some(Protocol::QuicV1)) => (port, Via::Quic),
            _ => return None,
        };
        Some(Self {
            socket: SocketAddr::new(ip, port),
            via,
        })
    }

    /// The multiaddr of the `attempt`th try: where both transports are possible they take turns, TCP first.
    pub(crate) fn multiaddr(&self, attempt: u32) -> Multiaddr {
        let tcp = match self.via {
            Via::Tcp => true,
            Via::Quic => false,
            Via::Any => attempt.is_multiple_of(2),
        };
        if tcp {
            tcp_address(self.socket)
        } else {
            quic_address(self.socket)
        }
    }
}

pub(crate) fn tcp_address(socket: SocketAddr) -> Multiaddr {
    Multiaddr::from(socket.ip()).with(Protocol::Tcp(socket.port()))
}

pub(crate) fn quic_address(socket: SocketAddr) -> Multiaddr {
    Multiaddr::from(socket.ip())
        .with(Protocol::Udp(socket.port()))
        .with(Protocol::QuicV1)
}

/// Whether `ip` means something to another machine: loopback is only of use among nodes of the same machine, link-local
/// IPv6 needs a scope that text does not carry.
pub(crate) fn is_shareable(ip: IpAddr, with: IpAddr) -> bool {
    let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    !link_local && (!ip.is_loopback() || with.is_loopback())
}

/// Whether a machine that listens at this TCP address may reach others by it: not loopback, and not link-local, which a pod's
/// network has too. TCP stands for both transports, so that each address counts once.
pub(crate) fn is_way_out(address: &Multiaddr) -> bool {
    let target = Target::from_multiaddr(address).filter(|target| target.via == Via::Tcp);
    target.is_some_and(|target| match target.socket.ip() {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_that_others_can_be_reached_from_is_a_way_out() {
        for (text, expected) in [
            ("/ip4/10.0.0.1/tcp/7400", true),
            ("/ip4/10.0.0.1/udp/7400/quic-v1", false),
            ("/ip4/127.0.0.1/tcp/7400", false),
            ("/ip4/169.254.64.1/tcp/7400", false),
            ("/ip6/fd00::1/tcp/7400", true),
            ("/ip6/fe80::1/tcp/7400", false),
            ("/ip6/::1/tcp/7400", false),
        ] {
            assert_eq!(is_way_out(&text.parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn addresses_are_read_in_both_forms() {
        let any = Target::parse("192.0.2.1:7400").unwrap();
        assert_eq!(
            (any.via, any.multiaddr(0).to_string()),
            (Via::Any, "/ip4/192.0.2.1/tcp/7400".to_owned())
        );
        assert_eq!(any.multiaddr(1).to_string(), "/ip4/192.0.2.1/udp/7400/quic-v1");
        let quic = Target::parse("/ip6/2001:db8::1/udp/7400/quic-v1").unwrap();
        assert_eq!(quic.multiaddr(0).to_string(), "/ip6/2001:db8::1/udp/7400/quic-v1");
        let peer = "/ip4/192.0.2.1/tcp/7400/p2p/12D3KooWGRUQo9yaJtpc8HsCBqUaGHfPLZQWvYZzLWnpE8ELa8Qe";
        assert_eq!(Target::parse(peer).map(|target| target.via), Some(Via::Tcp));
        for none in [
            "",
            "host:7400",
            "192.0.2.1",
            "192.0.2.1:0",
            "0.0.0.0:7400",
            "/ip4/192.0.2.1/udp/53",
            "224.0.0.1:5",
        ] {
            assert_eq!(Target::parse(none), None, "{none}");
        }
    }

    #[test]
    fn loopback_is_shared_on_the_same_machine_only() {
        let (local, remote): (IpAddr, IpAddr) = ("127.0.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap());
        assert!(is_shareable(local, local) && is_shareable(remote, remote) && !is_shareable(local, remote));
        assert!(!is_shareable("fe80::1".parse().unwrap(), remote));
    }
}
