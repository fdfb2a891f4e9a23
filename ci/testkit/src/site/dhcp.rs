//! A DHCP server (RFC 2131) for one small site. Pure: datagrams in, datagrams out.
//!
//! Leases never end here and an address is never given to a second card: what a client does when its lease runs out
//! is the client's affair. Invariant: at most [`MAX_LEASES`] cards are known, and the pool is never exceeded.

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use smoltcp::wire::{EthernetAddress, Ipv4Cidr};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

/// How many cards get an address at most.
pub const MAX_LEASES: usize = 256;

/// What the server hands out.
#[derive(Debug, Clone)]
pub struct DhcpPool {
    /// The first address.
    pub first: Ipv4Addr,
    /// How many addresses.
    pub count: u32,
    /// How long a lease is said to last.
    pub lease: Duration,
    /// The default router, if the site is to have one.
    pub router: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Time servers.
    pub ntp: Vec<Ipv4Addr>,
    /// Cards with an address of their own.
    pub fixed: BTreeMap<EthernetAddress, Ipv4Addr>,
}

impl DhcpPool {
    /// A pool of `count` addresses from `first` on, for an hour each, without router or servers.
    #[must_use]
    pub fn new(first: Ipv4Addr, count: u32) -> Self {
        let lease = Duration::from_secs(3600);
        Self {
            first,
            count,
            lease,
            router: None,
            dns: Vec::new(),
            ntp: Vec::new(),
            fixed: BTreeMap::new(),
        }
    }

    /// This card always gets this address.
    #[must_use]
    pub fn fixed(mut self, card: EthernetAddress, address: Ipv4Addr) -> Self {
        self.fixed.insert(card, address);
        self
    }
}

#[derive(Debug)]
pub(super) struct DhcpServer {
    server: Ipv4Cidr,
    pool: DhcpPool,
    leases: BTreeMap<EthernetAddress, Ipv4Addr>,
    /// Addresses that a client found in use.
    declined: BTreeSet<Ipv4Addr>,
}

/// An answer and where it goes (port 68).
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) to: Ipv4Addr,
    pub(super) datagram: Vec<u8>,
}

impl DhcpServer {
    pub(super) fn new(server: Ipv4Cidr, pool: DhcpPool) -> Self {
        Self {
            server,
            pool,
            leases: BTreeMap::new(),
            declined: BTreeSet::new(),
        }
    }

    pub(super) fn leases(&self) -> Vec<(EthernetAddress, Ipv4Addr)> {
        self.leases
            .iter()
            .map(|(card, address)| (*card, *address))
            .collect()
    }

    /// Answers a client's datagram; `None` when there is nothing to say to it.
    pub(super) fn answer(&mut self, datagram: &[u8]) -> Option<Answer> {
        let request = Message::decode(&mut Decoder::new(datagram)).ok()?;
        if request.opcode() != Opcode::BootRequest {
            return None;
        }
        let card = EthernetAddress(request.chaddr().try_into().ok()?);
        let (kind, yours) = match request.opts().msg_type()? {
            MessageType::Discover => (MessageType::Offer, self.address_for(card)?),
            MessageType::Request => self.decide(&request, card)?,
            MessageType::Inform => (MessageType::Ack, Ipv4Addr::UNSPECIFIED),
            MessageType::Decline => {
                if let Some(address) = self.leases.remove(&card)
                    && self.declined.len() < MAX_LEASES
                {
                    self.declined.insert(address);
                }
                return None;
            }
            _ => return None,
        };
        let renewing = !request.ciaddr().is_unspecified() && kind == MessageType::Ack;
        let to = if renewing {
            request.ciaddr()
        } else {
            Ipv4Addr::BROADCAST
        };
        Some(Answer {
            to,
            datagram: self.reply(&request, kind, yours)?,
        })
    }

    /// A request is granted when it asks for what the card would get anyway.
    fn decide(&mut self, request: &Message, card: EthernetAddress) -> Option<(MessageType, Ipv4Addr)> {
        if let Some(DhcpOption::ServerIdentifier(server)) = request.opts().get(OptionCode::ServerIdentifier)
            && *server != self.server.address()
        {
            return None;
        }
        let wanted = match request.opts().get(OptionCode::RequestedIpAddress) {
            Some(DhcpOption::RequestedIpAddress(address)) => *address,
            _ => request.ciaddr(),
        };
        if self.address_for(card) == Some(wanted) {
            Some((MessageType::Ack, wanted))
        } else {
            Some((MessageType::Nak, Ipv4Addr::UNSPECIFIED))
        }
    }

    fn address_for(&mut self, card: EthernetAddress) -> Option<Ipv4Addr> {
        if let Some(address) = self.pool.fixed.get(&card).or_else(|| self.leases.get(&card)) {
            let address = *address;
            if self.leases.len() < MAX_LEASES {
                self.leases.insert(card, address);
            }
            return Some(address);
        }
        if self.leases.len() >= MAX_LEASES {
            return None;
        }
        let first = u32::from(self.pool.first);
        let free = (0..self.pool.count)
            .filter_map(|n| first.checked_add(n))
            .map(Ipv4Addr::from)
            .find(|address| {
                let taken = self
                    .leases
                    .values()
                    .chain(self.pool.fixed.values())
                    .chain(&self.declined);
                *address != self.server.address() && !taken.into_iter().any(|t| t == address)
            })?;
        self.leases.insert(card, free);
        Some(free)
    }

    fn reply(&self, request: &Message, kind: MessageType, yours: Ipv4Addr) -> Option<Vec<u8>> {
        let server = self.server.address();
        let mut message = Message::default();
        message
            .set_opcode(Opcode::BootReply)
            .set_xid(request.xid())
            .set_flags(Flags::new(0).set_broadcast())
            .set_ciaddr(request.ciaddr())
            .set_yiaddr(yours)
            .set_siaddr(server)
            .set_giaddr(request.giaddr())
            .set_chaddr(request.chaddr());
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(server));
        if kind != MessageType::Nak {
            if !yours.is_unspecified() {
                let seconds = u32::try_from(self.pool.lease.as_secs()).unwrap_or(u32::MAX);
                options.insert(DhcpOption::AddressLeaseTime(seconds));
            }
            options.insert(DhcpOption::SubnetMask(self.server.netmask()));
            if let Some(router) = self.pool.router {
                options.insert(DhcpOption::Router(vec![router]));
            }
            if !self.pool.dns.is_empty() {
                options.insert(DhcpOption::DomainNameServer(self.pool.dns.clone()));
            }
            if !self.pool.ntp.is_empty() {
                options.insert(DhcpOption::NtpServers(self.pool.ntp.clone()));
            }
        }
        message.to_vec().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    fn server(count: u32) -> DhcpServer {
        DhcpServer::new(
            Ipv4Cidr::new(SERVER, 24),
            DhcpPool::new(Ipv4Addr::new(10, 77, 0, 100), count),
        )
    }

    fn ask(server: &mut DhcpServer, card: u8, kind: MessageType, wanted: Option<[u8; 4]>) -> Option<Message> {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut m = Message::new_with_id(7, none, none, none, none, &[2, 0, 0, 0, 0, card]);
        m.opts_mut().insert(DhcpOption::MessageType(kind));
        if let Some(wanted) = wanted {
            m.opts_mut().insert(DhcpOption::RequestedIpAddress(wanted.into()));
        }
        let answer = server.answer(&m.to_vec().unwrap())?;
        assert_eq!(answer.to, Ipv4Addr::BROADCAST);
        Some(Message::decode(&mut Decoder::new(&answer.datagram)).unwrap())
    }

    #[test]
    fn a_card_keeps_its_address_and_others_get_others() {
        let mut s = server(10);
        let first = ask(&mut s, 1, MessageType::Discover, None).unwrap().yiaddr();
        assert_eq!(first, Ipv4Addr::new(10, 77, 0, 100));
        assert_eq!(
            ask(&mut s, 2, MessageType::Discover, None).unwrap().yiaddr(),
            Ipv4Addr::new(10, 77, 0, 101)
        );
        let ack = ask(&mut s, 1, MessageType::Request, Some(first.octets())).unwrap();
        assert!(ack.opts().has_msg_type(MessageType::Ack));
        assert_eq!((ack.yiaddr(), ack.xid()), (first, 7));
    }

    #[test]
    fn a_request_for_another_address_is_refused() {
        let mut s = server(10);
        let nak = ask(&mut s, 1, MessageType::Request, Some([10, 77, 0, 50])).unwrap();
        assert!(nak.opts().has_msg_type(MessageType::Nak));
        assert!(nak.opts().get(OptionCode::AddressLeaseTime).is_none());
    }

    #[test]
    fn an_empty_pool_is_silent_and_a_fixed_address_is_not_in_it() {
        let mut s = server(2);
        s.pool = s
            .pool
            .fixed(EthernetAddress([2, 0, 0, 0, 0, 9]), Ipv4Addr::new(10, 77, 0, 100));
        assert_eq!(
            ask(&mut s, 1, MessageType::Discover, None)
                .unwrap()
                .yiaddr()
                .octets()[3],
            101
        );
        assert!(ask(&mut s, 2, MessageType::Discover, None).is_none());
        assert_eq!(
            ask(&mut s, 9, MessageType::Discover, None)
                .unwrap()
                .yiaddr()
                .octets()[3],
            100
        );
    }

    #[test]
    fn an_address_that_was_declined_is_not_offered_again() {
        let mut s = server(2);
        ask(&mut s, 1, MessageType::Discover, None).unwrap();
        assert!(ask(&mut s, 1, MessageType::Decline, None).is_none());
        assert_eq!(
            ask(&mut s, 1, MessageType::Discover, None)
                .unwrap()
                .yiaddr()
                .octets()[3],
            101
        );
    }

    #[test]
    fn noise_and_other_servers_business_are_ignored() {
        let mut s = server(2);
        assert!(s.answer(&[1, 2, 3]).is_none());
        assert!(s.answer(&[0xff; 300]).is_none());
        let none = Ipv4Addr::UNSPECIFIED;
        let mut m = Message::new_with_id(7, none, none, none, none, &[2, 0, 0, 0, 0, 1]);
        m.opts_mut().insert(DhcpOption::MessageType(MessageType::Request));
        m.opts_mut()
            .insert(DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 77, 0, 2)));
        assert!(s.answer(&m.to_vec().unwrap()).is_none());
    }
}
