//! One task per link that asks a DHCPv4 server: gets a lease, makes sure that nobody else has the address, keeps it,
//! reports each change.
//!
//! The library's own pauses grow to a minute; a server that appears late should be found sooner, so an attempt that
//! takes longer than [`ATTEMPT`] begins anew. The library cannot decline, so that is done here.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use mozim::{DhcpV4Client, DhcpV4Config, DhcpV4Lease, DhcpV4State};
use tokio::sync::mpsc::Sender;

use crate::arp::{Guard, Verdict};
use crate::plan::{Cidr, Link, Route, mac_text};
use crate::reconcile::{Report, Task};

/// How long one search for a server takes: about three questions.
const ATTEMPT: Duration = Duration::from_secs(15);
/// The pause after an error, so that a broken link costs no processor time.
const PAUSE: Duration = Duration::from_secs(2);
/// The pause after a declined address (RFC 2131, 3.1: at least ten seconds).
const DECLINED: Duration = Duration::from_secs(10);
/// Routes that a server may hand out; further ones are ignored.
const ROUTES_LIMIT: usize = 64;
/// Servers and domains of one kind that count.
const SERVERS_LIMIT: usize = 16;

/// What a lease means for the link, of either DHCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Cidr,
    /// Routes, the default one among them.
    pub routes: Vec<Route>,
    /// DNS servers.
    pub dns: Vec<IpAddr>,
    /// DNS search domains.
    pub search: Vec<String>,
    /// NTP servers.
    pub ntp: Vec<IpAddr>,
    /// Largest packet, in bytes.
    pub mtu: Option<u32>,
}

/// Why there is no lease, and how long to wait before the next search.
struct Without {
    words: String,
    pause: Duration,
}

impl<T: ToString> From<T> for Without {
    fn from(words: T) -> Self {
        Self {
            words: words.to_string(),
            pause: PAUSE,
        }
    }
}

/// Starts the task; it ends when the handle is dropped.
pub fn spawn(link: &Link, reports: Sender<(u32, Report)>) -> Task {
    let link = link.clone();
    Task::spawn(async move {
        loop {
            let Err(without) = keep_lease(&link, &reports).await;
            if reports
                .send((link.index, Report::Without(without.words)))
                .await
                .is_err()
            {
                return;
            }
            tokio::time::sleep(without.pause).await;
        }
    })
}

/// Gets and renews until something goes wrong; says what.
async fn keep_lease(
    link: &Link,
    reports: &Sender<(u32, Report)>,
) -> Result<std::convert::Infallible, Without> {
    let mut config = DhcpV4Config::new(&link.name);
    config.set_iface_index(link.index);
    config.set_iface_mac_raw(&link.address)?.use_mac_as_client_id();
    let mut client = DhcpV4Client::init(config, None).await?;
    let search = async {
        loop {
            if let DhcpV4State::Done(lease) = client.run().await? {
                return Ok::<_, mozim::DhcpError>(lease);
            }
        }
    };
    let raw = match tokio::time::timeout(ATTEMPT, search).await {
        Ok(lease) => lease?,
        Err(_) => return Err("no DHCP server answers".into()),
    };
    let nonsense = "the DHCP server's answer makes no sense";
    let lease = read_lease(&raw).ok_or(nonsense)?;
    let address = raw.yiaddr;
    let mut guard = Guard::open(link, address, false)?;
    if let Some(guard) = &mut guard
        && let Verdict::Conflict(mac) = guard.next().await?
    {
        return Err(decline(link, &raw, mac).await);
    }
    report(link, reports, lease).await?;
    loop {
        let conflict = async {
            match &mut guard {
                Some(guard) => guard.next().await,
                None => std::future::pending().await,
            }
        };
        // `run` waits for half of the lease's time, then renews; a lease that runs out begins a new search.
        tokio::select! {
            verdict = conflict => {
                if let Verdict::Conflict(mac) = verdict? {
                    return Err(decline(link, &raw, mac).await);
                }
            }
            state = client.run() => match state? {
                DhcpV4State::Done(renewed) if renewed.yiaddr == address => {
                    report(link, reports, read_lease(&renewed).ok_or(nonsense)?).await?;
                }
                DhcpV4State::Done(_) => return Err("the DHCP server has leased another address".into()),
                DhcpV4State::InitReboot | DhcpV4State::Selecting => {
                    return Err("the DHCP lease has run out or was taken back".into());
                }
                _ => {}
            },
        }
    }
}

async fn report(link: &Link, reports: &Sender<(u32, Report)>, lease: Lease) -> Result<(), Without> {
    let sent = reports.send((link.index, Report::Leased(lease))).await;
    sent.map_err(|_| "ended".into())
}

/// Tells the server that another host has the address (RFC 2131, 4.4.4).
async fn decline(link: &Link, lease: &DhcpV4Lease, other: [u8; 6]) -> Without {
    let sent = send_decline(link, lease).await;
    let mut words = format!(
        "the DHCP server has leased `{}`, which {} has already",
        lease.yiaddr,
        mac_text(&other)
    );
    if let Err(error) = sent {
        words = format!("{words}; failed to decline it: {error}");
    }
    Without {
        words,
        pause: DECLINED,
    }
}

async fn send_decline(link: &Link, lease: &DhcpV4Lease) -> std::io::Result<()> {
    let mut random = [0; 4];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut random)?;
    let message = decline_message(&link.address, lease.yiaddr, lease.srv_id, random);
    // Port 68 belongs to the client, which has closed its socket meanwhile or shares it.
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.bind_device(Some(link.name.as_bytes()))?;
    socket.set_broadcast(true)?;
    socket.send_to(&message, (Ipv4Addr::BROADCAST, 67)).await?;
    Ok(())
}

/// A DHCPDECLINE (RFC 2131, table 5).
fn decline_message(mac: &[u8], address: Ipv4Addr, server: Ipv4Addr, xid: [u8; 4]) -> Vec<u8> {
    let mac: Vec<u8> = mac.iter().copied().take(6).collect();
    let mut message = vec![0; 236];
    let head = [&[1, 1, 6, 0][..], &xid].concat();
    for (place, byte) in message.iter_mut().zip(head) {
        *place = byte;
    }
    for (place, byte) in message.iter_mut().skip(28).zip(&mac) {
        *place = *byte;
    }
    message.extend([0x63, 0x82, 0x53, 0x63]);
    message.extend([53, 1, 4]);
    message.extend([&[50, 4][..], &address.octets()].concat());
    message.extend([&[54, 4][..], &server.octets()].concat());
    message.extend([&[61, 7, 1][..], &mac].concat());
    message.push(255);
    message
}

/// `None`: a netmask with a hole, or an address that no host can have.
fn read_lease(lease: &DhcpV4Lease) -> Option<Lease> {
    let mask = u32::from(lease.subnet_mask);
    let prefix = mask.leading_ones();
    let ip = lease.yiaddr;
    if mask.count_ones() != prefix || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() {
        return None;
    }
    let prefix = u8::try_from(prefix).ok()?;
    // RFC 3442: with classless routes, the router option does not count.
    let route = |to: Ipv4Addr, prefix, gateway: Ipv4Addr| Route {
        to: Cidr {
            address: to.into(),
            prefix,
        },
        via: Some(gateway.into()).filter(|g: &IpAddr| !g.is_unspecified()),
        metric: None,
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
    let addresses = |list: &Option<Vec<Ipv4Addr>>| {
        let all = list.iter().flatten().take(SERVERS_LIMIT);
        all.map(|ip| IpAddr::V4(*ip))
            .filter(|ip| !ip.is_unspecified())
            .collect()
    };
    Some(Lease {
        address: Cidr {
            address: ip.into(),
            prefix,
        },
        routes,
        dns: addresses(&lease.dns_srvs),
        search: search_domains(lease.domain_search.iter().flatten().chain(&lease.domain_name)),
        ntp: addresses(&lease.ntp_srvs),
        mtu: lease.mtu.map(u32::from).filter(|mtu| *mtu >= 576),
    })
}

/// Domains that can stand in resolv.conf: a server must not write lines of its own there.
pub fn search_domains<'a>(domains: impl Iterator<Item = &'a String>) -> Vec<String> {
    let plain = |domain: &&String| {
        let domain = domain.trim_end_matches('.');
        (1..=253).contains(&domain.len())
            && domain
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    let trimmed = |domain: &String| domain.trim_end_matches('.').to_owned();
    domains.filter(plain).take(SERVERS_LIMIT).map(trimmed).collect()
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
        let read = read_lease(&lease([255, 255, 255, 0])).unwrap();
        assert_eq!(read.address.to_string(), "10.0.0.5/24");
        assert_eq!(read.routes.len(), 1);
        let via: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!((read.routes[0].to.prefix, read.routes[0].via), (0, Some(via)));
    }

    #[test]
    fn netmask_with_a_hole_is_refused() {
        assert!(read_lease(&lease([255, 0, 255, 0])).is_none());
    }

    #[test]
    fn mtu_below_the_least_of_ipv4_is_ignored() {
        let mut small = lease([255, 255, 255, 0]);
        small.mtu = Some(68);
        assert_eq!(read_lease(&small).unwrap().mtu, None);
    }

    #[test]
    fn domain_that_would_write_lines_of_its_own_is_ignored() {
        let mut named = lease([255, 255, 255, 0]);
        named.domain_search = Some(vec![
            "shop.example.".into(),
            "a\nnameserver 1.2.3.4".into(),
            ".".into(),
        ]);
        named.domain_name = Some("till.example".into());
        assert_eq!(
            read_lease(&named).unwrap().search,
            ["shop.example", "till.example"]
        );
    }

    #[test]
    fn decline_names_address_server_and_client() {
        let message = decline_message(
            &[2, 0, 0, 0, 0, 1],
            [10, 0, 0, 5].into(),
            [10, 0, 0, 1].into(),
            [7; 4],
        );
        assert_eq!(message[..8], [1, 1, 6, 0, 7, 7, 7, 7]);
        assert_eq!(message[28..34], [2, 0, 0, 0, 0, 1]);
        let options = [
            99, 130, 83, 99, 53, 1, 4, 50, 4, 10, 0, 0, 5, 54, 4, 10, 0, 0, 1, 61, 7, 1, 2, 0, 0, 0, 0, 1,
            255,
        ];
        assert_eq!(message[236..], options);
    }
}
