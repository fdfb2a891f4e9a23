//! One task per link that asks a DHCP server: gets a lease, keeps it, reports each change.
//!
//! The library's own pauses grow to a minute; a server that appears late should be found sooner, so an attempt that
//! takes longer than [`ATTEMPT`] begins anew.

use std::net::Ipv4Addr;
use std::time::Duration;

use mozim::{DhcpV4Client, DhcpV4Config, DhcpV4Lease, DhcpV4State};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;

use crate::kernel::Route;
use crate::plan::{Cidr, Link};

/// How long one search for a server takes: about three questions.
const ATTEMPT: Duration = Duration::from_secs(15);
/// The pause after an error, so that a broken link costs no processor time.
const PAUSE: Duration = Duration::from_secs(2);
/// Routes that a server may hand out; further ones are ignored.
const ROUTES_LIMIT: usize = 64;

/// What a lease means for the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Cidr,
    /// Routes, the default one among them; the metric is set by the receiver.
    pub routes: Vec<Route>,
    /// DNS servers.
    pub dns: Vec<Ipv4Addr>,
    /// Largest packet.
    pub mtu: Option<u16>,
}

/// What a task reports.
#[derive(Debug)]
pub enum Report {
    /// A new lease, or the old one renewed.
    Leased(Lease),
    /// No lease now; in words.
    Without(String),
}

/// Starts the task; it ends when the handle is aborted.
pub fn spawn(link: &Link, reports: Sender<(u32, Report)>) -> JoinHandle<()> {
    let link = link.clone();
    tokio::spawn(async move {
        loop {
            let error = keep_lease(&link, &reports).await;
            if reports.send((link.index, Report::Without(error))).await.is_err() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
}

/// Gets and renews until something goes wrong; says what.
async fn keep_lease(link: &Link, reports: &Sender<(u32, Report)>) -> String {
    let mut config = DhcpV4Config::new(&link.name);
    config.set_iface_index(link.index);
    match config.set_iface_mac_raw(&link.mac) {
        Ok(config) => config.use_mac_as_client_id(),
        Err(e) => return e.to_string(),
    };
    let mut client = match DhcpV4Client::init(config, None).await {
        Ok(client) => client,
        Err(e) => return e.to_string(),
    };
    let search = async {
        loop {
            if let DhcpV4State::Done(lease) = client.run().await? {
                return Ok::<_, mozim::DhcpError>(lease);
            }
        }
    };
    let first = match tokio::time::timeout(ATTEMPT, search).await {
        Ok(Ok(lease)) => lease,
        Ok(Err(e)) => return e.to_string(),
        Err(_) => return "no DHCP server answers".to_owned(),
    };
    let mut lease = Some(first);
    loop {
        if let Some(lease) = lease.take() {
            let Ok(lease) = read_lease(&lease) else {
                return "the DHCP server's answer makes no sense".to_owned();
            };
            if reports.send((link.index, Report::Leased(lease))).await.is_err() {
                return "ended".to_owned();
            }
        }
        // Waits for half of the lease's time, then renews; ends with an error when the lease runs out.
        match client.run().await {
            Ok(DhcpV4State::Done(renewed)) => lease = Some(renewed),
            Ok(DhcpV4State::InitReboot | DhcpV4State::Selecting) => {
                return "the DHCP lease was taken back".to_owned();
            }
            Ok(_) => {}
            Err(e) => return e.to_string(),
        }
    }
}

/// A netmask with a hole, or an address that no host can have.
struct Nonsense;

fn read_lease(lease: &DhcpV4Lease) -> Result<Lease, Nonsense> {
    let mask = u32::from(lease.subnet_mask);
    let prefix = mask.leading_ones();
    if mask.count_ones() != prefix || lease.yiaddr.is_unspecified() || lease.yiaddr.is_multicast() {
        return Err(Nonsense);
    }
    let address = Cidr {
        address: lease.yiaddr.into(),
        prefix: u8::try_from(prefix).map_err(|_| Nonsense)?,
    };
    // RFC 3442: with classless routes, the router option does not count.
    let route = |destination, prefix, gateway: Ipv4Addr| Route {
        destination,
        prefix,
        gateway: Some(gateway).filter(|g| !g.is_unspecified()),
        metric: 0,
    };
    let routes = match &lease.classless_routes {
        Some(routes) => routes
            .iter()
            .filter(|r| r.prefix_length <= 32)
            .take(ROUTES_LIMIT)
            .map(|r| route(r.destination, r.prefix_length, r.router))
            .collect(),
        None => {
            let first = lease.gateways.iter().flatten().next();
            first
                .map(|gateway| route(Ipv4Addr::UNSPECIFIED, 0, *gateway))
                .into_iter()
                .collect()
        }
    };
    let mtu = lease.mtu.filter(|mtu| *mtu >= 576);
    Ok(Lease {
        address,
        routes,
        dns: lease.dns_srvs.clone().unwrap_or_default(),
        mtu,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(mask: [u8; 4]) -> DhcpV4Lease {
        let mut lease = DhcpV4Lease::default();
        lease.yiaddr = Ipv4Addr::new(10, 0, 0, 5);
        lease.subnet_mask = mask.into();
        lease.gateways = Some(vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)]);
        lease
    }

    #[test]
    fn first_router_is_the_default_route() {
        let read = read_lease(&lease([255, 255, 255, 0])).ok().unwrap();
        assert_eq!(read.address.to_string(), "10.0.0.5/24");
        assert_eq!(read.routes.len(), 1);
        assert_eq!(
            (read.routes[0].prefix, read.routes[0].gateway),
            (0, Some(Ipv4Addr::new(10, 0, 0, 1)))
        );
    }

    #[test]
    fn netmask_with_a_hole_is_refused() {
        assert!(read_lease(&lease([255, 0, 255, 0])).is_err());
    }

    #[test]
    fn mtu_below_the_least_of_ipv4_is_ignored() {
        let mut small = lease([255, 255, 255, 0]);
        small.mtu = Some(68);
        assert_eq!(read_lease(&small).ok().unwrap().mtu, None);
    }
}
