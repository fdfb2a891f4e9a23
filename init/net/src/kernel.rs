//! The kernel's view of the network, through rtnetlink and sysctls. No decisions.
//!
//! What is made here carries a mark that outlives this program: links a group number and an alias, routes a protocol
//! number. So a later run finds what it has to take away, and touches nobody else's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use beemesh_init_api::network::BondMode as WantedMode;
use futures::channel::mpsc::UnboundedReceiver;
use futures::stream::TryStreamExt;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    BondMode, BridgeStpState, InfoBondPort, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{
    Handle, LinkBond, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVlan, MulticastGroup,
    RouteMessageBuilder,
};

use crate::plan::{Cidr, Link, Made, MadeKind, Route};

/// Group number of links that are made here ("bee").
const GROUP: u32 = 0xbee;
/// Protocol number of routes that are made here; not taken in the kernel's rtnetlink.h.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(190);
/// How often a bond looks at its links, in milliseconds.
const MIIMON: u32 = 100;
/// Routes that are looked at on one machine; pods have one each.
const ROUTES_SEEN: usize = 65_536;

/// Links that are looked at; a node with hundreds of pods has as many veth pairs.
const LINKS_LIMIT: usize = 8192;

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}")]
pub struct KernelError {
    action: String,
    #[source]
    source: rtnetlink::Error,
}

/// The kernel's `EEXIST`.
pub const EXISTS: i32 = 17;

impl KernelError {
    /// The kernel's error number, positive, where it has given one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match &self.source {
            rtnetlink::Error::NetlinkError(error) => error.code.map(|code| code.get().saturating_abs()),
            _ => None,
        }
    }
}

fn failed(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> KernelError {
    move |source| KernelError {
        action: action.into(),
        source,
    }
}

/// Changes of links and addresses: read to be woken, the content is looked up anew.
pub type Changes = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// The connection.
#[derive(Clone)]
pub struct Kernel(Handle);

impl Kernel {
    /// Opens the connection; changes arrive from now on.
    ///
    /// # Errors
    /// Of the socket.
    pub fn open() -> std::io::Result<(Self, Changes)> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ];
        let (connection, handle, changes) = rtnetlink::new_multicast_connection(&groups)?;
        tokio::spawn(connection);
        Ok((Self(handle), changes))
    }

    /// All links.
    pub async fn links(&self) -> Result<Vec<Link>, KernelError> {
        let mut stream = Box::pin(self.0.link().get().execute());
        let mut links = Vec::new();
        while let Some(message) = stream.try_next().await.map_err(failed("list links"))? {
            if links.len() < LINKS_LIMIT {
                links.push(read_link(&message));
            }
        }
        Ok(links)
    }

    /// The addresses of one link.
    pub async fn addresses(&self, index: u32) -> Result<Vec<Cidr>, KernelError> {
        let messages = self.address_messages(index).await?;
        Ok(messages.iter().filter_map(read_address).collect())
    }

    async fn address_messages(&self, index: u32) -> Result<Vec<AddressMessage>, KernelError> {
        let request = self.0.address().get().set_link_index_filter(index);
        Box::pin(request.execute())
            .try_collect()
            .await
            .map_err(failed("list addresses"))
    }

    /// Switches a link on.
    pub async fn set_up(&self, link: &Link) -> Result<(), KernelError> {
        let message = LinkUnspec::new_with_index(link.index).up().build();
        self.0
            .link()
            .set(message)
            .execute()
            .await
            .map_err(failed(format!("switch `{}` on", link.name)))
    }

    /// Sets the link's largest packet.
    pub async fn set_mtu(&self, link: &Link, mtu: u32) -> Result<(), KernelError> {
        let message = LinkUnspec::new_with_index(link.index).mtu(mtu).build();
        self.0
            .link()
            .set(message)
            .execute()
            .await
            .map_err(failed(format!("set the mtu of `{}`", link.name)))
    }

    /// Adds an address; one that is there stays.
    pub async fn add_address(&self, link: &Link, cidr: Cidr) -> Result<(), KernelError> {
        let request = self
            .0
            .address()
            .add(link.index, cidr.address, cidr.prefix)
            .replace();
        request
            .execute()
            .await
            .map_err(failed(format!("give `{}` the address `{cidr}`", link.name)))
    }

    /// The link-local IPv6 address of a link, once the kernel has seen that nobody else has it.
    pub async fn link_local(&self, index: u32) -> Result<Option<Ipv6Addr>, KernelError> {
        let messages = self.address_messages(index).await?;
        let ready = |message: &&AddressMessage| !flags(message).contains(AddressHeaderFlags::Tentative);
        let local = |message: &AddressMessage| match read_address(message)?.address {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(v6),
            _ => None,
        };
        Ok(messages.iter().filter(ready).find_map(local))
    }

    /// The addresses of one link with what is to be known of them.
    pub async fn addresses_seen(&self, index: u32) -> Result<Vec<Seen>, KernelError> {
        let messages = self.address_messages(index).await?;
        let seen = |message: &AddressMessage| {
            Some(Seen {
                cidr: read_address(message)?,
                duplicate: flags(message).contains(AddressHeaderFlags::Dadfailed),
                permanent: flags(message).contains(AddressHeaderFlags::Permanent),
            })
        };
        Ok(messages.iter().filter_map(seen).collect())
    }

    /// Removes every address that is not in `kept` and that was given by hand or by us; the kernel's link-local ones
    /// stay, and those of router advertisements where `advertised`. Routes go with their addresses.
    pub async fn keep_addresses(
        &self,
        index: u32,
        kept: &[Cidr],
        advertised: bool,
    ) -> Result<(), KernelError> {
        for message in self.address_messages(index).await? {
            let permanent = flags(&message).contains(AddressHeaderFlags::Permanent);
            let stays = |cidr: Cidr| {
                kept.contains(&cidr)
                    || is_the_kernels(&cidr.address)
                    || (advertised && cidr.address.is_ipv6() && !permanent)
            };
            let ours = read_address(&message).is_some_and(stays);
            if !ours {
                self.0
                    .address()
                    .del(message)
                    .execute()
                    .await
                    .map_err(failed("remove an address"))?;
            }
        }
        Ok(())
    }

    /// Makes a link; `below` is the index of the link that a VLAN is on.
    pub async fn make(&self, made: &Made, below: Option<u32>) -> Result<(), KernelError> {
        let name = made.name.as_str();
        let message = match &made.kind {
            MadeKind::Vlan { id, .. } => LinkVlan::new(name, below.unwrap_or_default(), *id)
                .link_group(GROUP)
                .build(),
            MadeKind::Bond(mode) => LinkBond::new(name)
                .mode(match mode {
                    WantedMode::ActiveBackup => BondMode::ActiveBackup,
                    WantedMode::BalanceXor => BondMode::BalanceXor,
                    WantedMode::Lacp => BondMode::Ieee8023Ad,
                })
                .miimon(MIIMON)
                .link_group(GROUP)
                .build(),
            MadeKind::Bridge { stp } => {
                let state = if *stp {
                    BridgeStpState::KernelStp
                } else {
                    BridgeStpState::Disabled
                };
                LinkMessageBuilder::<LinkBridge>::new(name)
                    .stp_state(state)
                    .link_group(GROUP)
                    .build()
            }
        };
        let request = self.0.link().add(message);
        request
            .execute()
            .await
            .map_err(failed(format!("make the {} `{name}`", made.word())))?;
        let mark = LinkUnspec::new_with_name(name).alias(made.mark()).build();
        let request = self.0.link().set(mark);
        request.execute().await.map_err(failed(format!("mark `{name}`")))
    }

    /// Takes a link away that was made here.
    pub async fn unmake(&self, link: &Link) -> Result<(), KernelError> {
        let request = self.0.link().del(link.index);
        request
            .execute()
            .await
            .map_err(failed(format!("take `{}` away", link.name)))
    }

    /// Makes a link part of a bond or bridge, or of none. A bond takes only links that are switched off, and switches
    /// them on itself.
    pub async fn set_controller(
        &self,
        link: &Link,
        controller: Option<u32>,
        off: bool,
    ) -> Result<(), KernelError> {
        let index = link.index;
        if off && link.up {
            let down = LinkUnspec::new_with_index(index).down().build();
            let request = self.0.link().set(down);
            request
                .execute()
                .await
                .map_err(failed(format!("switch `{}` off", link.name)))?;
        }
        let builder = LinkUnspec::new_with_index(index);
        let message = match controller {
            Some(controller) => builder.controller(controller).build(),
            None => builder.nocontroller().build(),
        };
        let what = if controller.is_some() { "join" } else { "leave" };
        let request = self.0.link().set(message);
        request
            .execute()
            .await
            .map_err(failed(format!("let `{}` {what} its bond or bridge", link.name)))
    }

    /// Brings the routes that were made here on `link` to `wanted`; others stay. Those without a router come first: the
    /// others may lead through them.
    pub async fn keep_routes(&self, link: &Link, wanted: &[Route]) -> Result<(), KernelError> {
        for v6 in [false, true] {
            let family = |address: &IpAddr| address.is_ipv6() == v6;
            let wanted: Vec<Route> = wanted.iter().copied().filter(|r| family(&r.to.address)).collect();
            let there = self.routes(link.index, v6).await?;
            for (route, message) in &there {
                if !wanted.contains(route) {
                    // A link that lost its carrier or address has lost the route meanwhile: that is what was wanted.
                    let _ = self.0.route().del(message.clone()).execute().await;
                }
            }
            let missing = |route: &&Route| there.iter().all(|(known, _)| known != *route);
            let missing: Vec<&Route> = wanted.iter().filter(missing).collect();
            let (direct, by_router): (Vec<&Route>, Vec<&Route>) =
                missing.into_iter().partition(|r| r.via.is_none());
            for route in direct.into_iter().chain(by_router) {
                let what = format!("add the route to `{}` on `{}`", route.to, link.name);
                let Some(message) = route_message(link.index, route) else {
                    continue;
                };
                let request = self.0.route().add(message).replace();
                request.execute().await.map_err(failed(what))?;
            }
        }
        Ok(())
    }

    async fn routes(&self, index: u32, v6: bool) -> Result<Vec<(Route, RouteMessage)>, KernelError> {
        let request = match v6 {
            false => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            true => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let mut stream = Box::pin(self.0.route().get(request).execute());
        let (mut routes, mut seen) = (Vec::new(), 0);
        while let Some(message) = stream.try_next().await.map_err(failed("list routes"))? {
            seen += 1;
            if seen <= ROUTES_SEEN && message.header.protocol == PROTOCOL {
                routes.extend(read_route(&message, index, v6).map(|route| (route, message)));
            }
        }
        Ok(routes)
    }
}

/// An address as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The address.
    pub cidr: Cidr,
    /// Another host has it: the kernel does not use it (RFC 4862).
    pub duplicate: bool,
    /// Without an end; addresses of router advertisements have one.
    pub permanent: bool,
}

/// Whether the kernel takes router advertisements on a link. Forwarding for pods must not change that, hence 2. A kernel
/// without IPv6 has no such file, and nothing to switch.
pub fn accept_advertisements(link: &Link, accept: bool) {
    let base = format!("/proc/sys/net/ipv6/conf/{}", link.name);
    let value = if accept { "2" } else { "0" };
    for (name, value) in [("accept_ra", value), ("autoconf", if accept { "1" } else { "0" })] {
        let path = format!("{base}/{name}");
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        if !there.is_empty() && there.trim() != value {
            let _ = std::fs::write(path, value);
        }
    }
}

fn route_message(index: u32, route: &Route) -> Option<RouteMessage> {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(route.to.address, route.to.prefix)
        .ok()?
        .output_interface(index)
        .protocol(PROTOCOL);
    if let Some(metric) = route.metric {
        builder = builder.priority(metric);
    }
    match route.via {
        Some(via) => builder = builder.gateway(via).ok()?,
        None if route.to.address.is_ipv4() => {
            builder = builder.scope(rtnetlink::packet_route::route::RouteScope::Link);
        }
        None => {}
    }
    Some(builder.build())
}

fn read_route(message: &RouteMessage, index: u32, v6: bool) -> Option<Route> {
    let any = match v6 {
        false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let (mut to, mut via, mut metric, mut own) = (any, None, None, false);
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address)?,
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Priority(priority) => metric = Some(*priority),
            RouteAttribute::Oif(oif) => own = *oif == index,
            _ => {}
        }
    }
    let prefix = message.header.destination_prefix_length;
    let to = Cidr { address: to, prefix };
    own.then_some(Route { to, via, metric })
}

fn is_the_kernels(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80 || *v6 == Ipv6Addr::LOCALHOST)
        || *address == IpAddr::V4(Ipv4Addr::LOCALHOST)
}

fn read_link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        loopback: flags.contains(LinkFlags::Loopback),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        ..Link::default()
    };
    let (mut hardware, mut of_bond, mut group, mut alias) = (None, None, 0, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.address.clone_from(mac),
            LinkAttribute::PermAddress(mac) => hardware = Some(mac.clone()),
            LinkAttribute::Controller(controller) => link.controller = Some(*controller).filter(|c| *c != 0),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Group(number) => group = *number,
            LinkAttribute::IfAlias(text) => alias = Some(text.clone()),
            LinkAttribute::LinkInfo(info) => {
                link.is_virtual |= info.iter().any(|i| matches!(i, LinkInfo::Kind(_)));
                of_bond = info.iter().find_map(hardware_address);
            }
            _ => {}
        }
    }
    link.mac = hardware.or(of_bond).unwrap_or_else(|| link.address.clone());
    link.mark = (group == GROUP).then(|| alias.unwrap_or_default());
    link
}

/// The address that a member of a bond had before.
fn hardware_address(info: &LinkInfo) -> Option<Vec<u8>> {
    let LinkInfo::PortData(InfoPortData::BondPort(port)) = info else {
        return None;
    };
    port.iter().find_map(|item| match item {
        InfoBondPort::PermHwaddr(mac) => Some(mac.clone()),
        _ => None,
    })
}

/// The header has room for the first eight flags only; the attribute has all.
fn flags(message: &AddressMessage) -> AddressHeaderFlags {
    message.header.flags
}

fn read_address(message: &AddressMessage) -> Option<Cidr> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => address = Some(*local),
            // With a peer, `Address` is the peer's.
            AddressAttribute::Address(own) if address.is_none() => address = Some(*own),
            _ => {}
        }
    }
    address.map(|address| Cidr {
        address,
        prefix: message.header.prefix_len,
    })
}
