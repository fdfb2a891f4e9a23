//! The kernel's view of the network, through rtnetlink. No decisions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::channel::mpsc::UnboundedReceiver;
use futures::stream::TryStreamExt;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder};

use crate::plan::{Cidr, Link};

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

fn failed(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> KernelError {
    move |source| KernelError {
        action: action.into(),
        source,
    }
}

/// Changes of links and addresses: read to be woken, the content is looked up anew.
pub type Changes = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// A route by a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: Ipv4Addr,
    /// Its prefix; 0: the default route.
    pub prefix: u8,
    /// By whom; `None`: directly on the link.
    pub gateway: Option<Ipv4Addr>,
    /// Smaller wins.
    pub metric: u32,
}

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

    /// Removes every address that is not in `kept` and that was given by hand or by us; what the kernel made itself
    /// (link-local, router advertisements) stays. Routes go with their addresses.
    pub async fn keep_addresses(&self, index: u32, kept: &[Cidr]) -> Result<(), KernelError> {
        for message in self.address_messages(index).await? {
            let permanent = message.header.flags.contains(AddressHeaderFlags::Permanent);
            let stays = |cidr: Cidr| {
                kept.contains(&cidr)
                    || is_the_kernels(&cidr.address)
                    || (cidr.address.is_ipv6() && !permanent)
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

    /// Adds a route or replaces the one of the same destination and metric.
    pub async fn add_route(&self, link: &Link, route: Route) -> Result<(), KernelError> {
        let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(route.destination, route.prefix)
            .output_interface(link.index)
            .priority(route.metric);
        if let Some(gateway) = route.gateway {
            builder = builder.gateway(gateway);
        }
        let what = format!(
            "add the route to `{}/{}` on `{}`",
            route.destination, route.prefix, link.name
        );
        self.0
            .route()
            .add(builder.build())
            .replace()
            .execute()
            .await
            .map_err(failed(what))
    }

    /// Removes a route; one that is gone already is fine.
    pub async fn remove_route(&self, link: &Link, route: Route) {
        let builder = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(route.destination, route.prefix)
            .output_interface(link.index)
            .priority(route.metric);
        let _ = self.0.route().del(builder.build()).execute().await;
    }
}

fn is_the_kernels(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80 || *v6 == Ipv6Addr::LOCALHOST)
        || *address == IpAddr::V4(Ipv4Addr::LOCALHOST)
}

fn read_link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: Vec::new(),
        loopback: flags.contains(LinkFlags::Loopback),
        is_virtual: false,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac.clone_from(mac),
            LinkAttribute::LinkInfo(info) => {
                link.is_virtual |= info.iter().any(|i| matches!(i, LinkInfo::Kind(_)))
            }
            _ => {}
        }
    }
    link
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
