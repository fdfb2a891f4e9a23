//! Who wanted to talk to whom, seen at the switch: the evidence for "nothing leaves the site".
//!
//! It looks only at the layer 3 destination of frames; it drops nothing. Invariant: at most [`MAX_DESTINATIONS`]
//! different destinations are remembered, and what comes after that is counted as outside, never forgotten.

use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol, Ipv4Address, Ipv4Cidr, Ipv4Packet};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

/// How many different destinations are remembered.
pub const MAX_DESTINATIONS: usize = 4096;

/// How many offenders are named.
pub const MAX_NAMED: usize = 10;

/// A destination outside the site that somebody sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outsider {
    /// The network card that sent the first such frame.
    pub source: EthernetAddress,
    /// Where it wanted to go.
    pub destination: IpAddr,
    /// How many frames went there.
    pub frames: u64,
}

/// What one frame's headers say about where it goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Layer3 {
    /// An IP packet to this address.
    To(EthernetAddress, IpAddr),
    /// ARP and other protocols that no router forwards.
    Local,
    /// Shorter than its own headers.
    Malformed,
}

/// Reads the layer 3 destination; sees through one 802.1Q tag.
pub(super) fn layer3(frame: &[u8]) -> Layer3 {
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else {
        return Layer3::Malformed;
    };
    let source = ethernet.src_addr();
    let (protocol, payload) = match (u16::from(ethernet.ethertype()), ethernet.payload()) {
        (0x8100, [_, _, hi, lo, rest @ ..]) => (u16::from_be_bytes([*hi, *lo]), rest),
        (0x8100, _) => return Layer3::Malformed,
        (protocol, payload) => (protocol, payload),
    };
    match EthernetProtocol::from(protocol) {
        EthernetProtocol::Ipv4 => match Ipv4Packet::new_checked(payload) {
            Ok(p) => Layer3::To(source, IpAddr::V4(p.dst_addr())),
            Err(_) => Layer3::Malformed,
        },
        EthernetProtocol::Ipv6 => match ipv6_destination(payload) {
            Some(destination) => Layer3::To(source, IpAddr::V6(destination)),
            None => Layer3::Malformed,
        },
        _ => Layer3::Local,
    }
}

/// The destination in an IPv6 header (RFC 8200, section 3).
fn ipv6_destination(packet: &[u8]) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
    (packet.first()? >> 4 == 6).then(|| Ipv6Addr::from(octets))
}

/// Counts frames by destination, in the order the destinations were first seen.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    seen: BTreeMap<IpAddr, (u64, EthernetAddress, u64)>,
    overflow: u64,
}

impl Destinations {
    pub(super) fn record(&mut self, source: EthernetAddress, destination: IpAddr) {
        let order = self.seen.len() as u64;
        if let Some((_, _, frames)) = self.seen.get_mut(&destination) {
            *frames += 1;
        } else if self.seen.len() < MAX_DESTINATIONS {
            self.seen.insert(destination, (order, source, 1));
        } else {
            self.overflow += 1;
        }
    }

    /// Frames to anywhere outside, and the first offenders by name.
    pub(super) fn outside(&self, site: Ipv4Cidr) -> (u64, Vec<Outsider>) {
        let mut found: Vec<_> = self
            .seen
            .iter()
            .filter(|(destination, _)| is_outside(**destination, site))
            .collect();
        found.sort_by_key(|(_, (order, _, _))| *order);
        let frames = found.iter().map(|(_, (_, _, n))| n).sum::<u64>() + self.overflow;
        let named = found
            .into_iter()
            .take(MAX_NAMED)
            .map(|(destination, (_, source, frames))| Outsider {
                source: *source,
                destination: *destination,
                frames: *frames,
            })
            .collect();
        (frames, named)
    }
}

/// A packet to this address would leave the site if there were a router.
fn is_outside(destination: IpAddr, site: Ipv4Cidr) -> bool {
    match destination {
        IpAddr::V4(a) => {
            !(site.contains_addr(&a)
                || a.is_multicast()
                || a.is_broadcast()
                || a.is_link_local()
                || a == Ipv4Address::UNSPECIFIED)
        }
        IpAddr::V6(a) => !(a.is_multicast() || a.is_unicast_link_local() || a.is_unspecified()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: Ipv4Cidr = Ipv4Cidr::new(Ipv4Address::new(10, 77, 0, 0), 24);

    fn ipv4_to(destination: [u8; 4]) -> Vec<u8> {
        let mut f = vec![0xff; 6];
        f.extend([2, 0, 0, 0, 0, 9]);
        f.extend([0x08, 0x00]);
        let mut ip = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 77, 0, 9];
        ip.extend(destination);
        f.extend(ip);
        f
    }

    fn ipv6_to(destination: &str) -> Vec<u8> {
        let mut f = vec![0x33; 6];
        f.extend([2, 0, 0, 0, 0, 9, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 59, 1]);
        f.extend([0; 16]);
        f.extend(destination.parse::<std::net::Ipv6Addr>().unwrap().octets());
        f
    }

    fn outside(frame: &[u8]) -> bool {
        match layer3(frame) {
            Layer3::To(_, destination) => is_outside(destination, SITE),
            other => panic!("not an IP frame: {other:?}"),
        }
    }

    #[test]
    fn only_what_a_router_would_carry_away_is_outside() {
        for inside in [
            [10, 77, 0, 1],
            [10, 77, 0, 255],
            [255, 255, 255, 255],
            [224, 0, 0, 251],
            [169, 254, 3, 4],
        ] {
            assert!(!outside(&ipv4_to(inside)), "{inside:?}");
        }
        for away in [[8, 8, 8, 8], [10, 77, 1, 1], [192, 168, 0, 1]] {
            assert!(outside(&ipv4_to(away)), "{away:?}");
        }
        assert!(!outside(&ipv6_to("ff02::fb")));
        assert!(!outside(&ipv6_to("fe80::1")));
        assert!(outside(&ipv6_to("2001:db8::1")));
        assert!(outside(&ipv6_to("fd00::1")));
    }

    #[test]
    fn a_vlan_tag_hides_nothing() {
        let plain = ipv4_to([8, 8, 8, 8]);
        let mut tagged = plain[..12].to_vec();
        tagged.extend([0x81, 0x00, 0, 5]);
        tagged.extend(&plain[12..]);
        assert!(outside(&tagged));
    }

    #[test]
    fn arp_is_local_and_a_stump_is_malformed() {
        let mut arp = ipv4_to([8, 8, 8, 8]);
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        assert_eq!(layer3(&arp), Layer3::Local);
        assert_eq!(layer3(&arp[..9]), Layer3::Malformed);
        assert_eq!(layer3(&ipv4_to([8, 8, 8, 8])[..20]), Layer3::Malformed);
    }

    #[test]
    fn offenders_are_named_in_order_and_a_flood_of_addresses_is_still_counted() {
        let mut seen = Destinations::default();
        let mac = EthernetAddress([2, 0, 0, 0, 0, 9]);
        seen.record(mac, "9.9.9.9".parse().unwrap());
        seen.record(mac, "10.77.0.4".parse().unwrap());
        seen.record(mac, "1.1.1.1".parse().unwrap());
        seen.record(mac, "9.9.9.9".parse().unwrap());
        let (frames, named) = seen.outside(SITE);
        assert_eq!(frames, 3);
        let names: Vec<_> = named
            .iter()
            .map(|o| (o.destination.to_string(), o.frames))
            .collect();
        assert_eq!(names, [("9.9.9.9".to_owned(), 2), ("1.1.1.1".to_owned(), 1)]);

        for i in 0..(MAX_DESTINATIONS as u32 + 50) {
            seen.record(mac, IpAddr::V4(Ipv4Address::from(0x3000_0000 + i)));
        }
        let (frames, named) = seen.outside(SITE);
        assert_eq!(frames, 3 + MAX_DESTINATIONS as u64 + 50);
        assert_eq!(named.len(), MAX_NAMED);
    }
}
