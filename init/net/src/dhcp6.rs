//! One task per link that asks a DHCPv6 server for an address (IA_NA), keeps it, reports each change.
//!
//! Routes are the routers' business (RFC 8415 knows none), so a lease is one /128.

use std::net::IpAddr;
use std::time::Duration;

use mozim::{DhcpV6Client, DhcpV6Config, DhcpV6Lease, DhcpV6Mode, DhcpV6State};
use tokio::sync::mpsc::Sender;

use crate::dhcp::{Lease, search_domains};
use crate::kernel::Kernel;
use crate::plan::{Cidr, Link};
use crate::reconcile::{Report, Task};

/// How long one search for a server takes.
const ATTEMPT: Duration = Duration::from_secs(15);
/// The pause after an error.
const PAUSE: Duration = Duration::from_secs(2);
/// How often the link's own address is looked for.
const LOOK: Duration = Duration::from_millis(250);
/// Servers of one kind that count.
const SERVERS_LIMIT: usize = 16;

/// Starts the task; it ends when the handle is dropped.
pub fn spawn(link: &Link, kernel: Kernel, reports: Sender<(u32, Report)>) -> Task {
    let link = link.clone();
    Task::spawn(async move {
        loop {
            let Err(words) = keep_lease(&link, &kernel, &reports).await;
            if reports.send((link.index, Report::Without6(words))).await.is_err() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
}

async fn keep_lease(
    link: &Link,
    kernel: &Kernel,
    reports: &Sender<(u32, Report)>,
) -> Result<std::convert::Infallible, String> {
    let words = |error: mozim::DhcpError| error.to_string();
    let local = loop {
        if let Some(local) = kernel
            .link_local(link.index)
            .await
            .map_err(|error| error.to_string())?
        {
            break local;
        }
        tokio::time::sleep(LOOK).await;
    };
    let mut config = DhcpV6Config::new(&link.name, DhcpV6Mode::NonTemporaryAddresses);
    config
        .set_iface_index(link.index)
        .set_link_local_ip(local)
        .set_duid_by_iface_mac(&link.address);
    let mut client = DhcpV6Client::init(config, None).await.map_err(words)?;
    let search = async {
        loop {
            if let DhcpV6State::Done(lease) = client.run().await? {
                return Ok::<_, mozim::DhcpError>(lease);
            }
        }
    };
    let mut lease = match tokio::time::timeout(ATTEMPT, search).await {
        Ok(lease) => lease.map_err(words)?,
        Err(_) => return Err("no DHCPv6 server answers".to_owned()),
    };
    loop {
        let read = read_lease(&lease).ok_or("the DHCPv6 server's answer makes no sense")?;
        let sent = reports.send((link.index, Report::Leased6(read))).await;
        sent.map_err(|_| "ended".to_owned())?;
        lease = loop {
            match client.run().await.map_err(words)? {
                DhcpV6State::Done(renewed) => break renewed,
                DhcpV6State::Solicit | DhcpV6State::Request => {
                    return Err("the DHCPv6 lease has run out or was taken back".to_owned());
                }
                _ => {}
            }
        };
    }
}

/// `None`: an address that no host can have.
fn read_lease(lease: &DhcpV6Lease) -> Option<Lease> {
    let ip = lease.address;
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || ip.is_unicast_link_local() {
        return None;
    }
    let dns = lease
        .dns_srvs
        .iter()
        .take(SERVERS_LIMIT)
        .map(|ip| IpAddr::V6(*ip))
        .collect();
    // Names of NTP servers are left out: nothing here asks DNS before there is a time.
    let ntp = lease
        .ntp_srvs
        .iter()
        .filter_map(|text| text.parse().ok())
        .take(SERVERS_LIMIT)
        .collect();
    Some(Lease {
        address: Cidr {
            address: ip.into(),
            prefix: 128,
        },
        routes: Vec::new(),
        dns,
        search: search_domains(lease.domain_list.iter()),
        ntp,
        mtu: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_is_one_address_with_servers_by_number() {
        let mut raw = DhcpV6Lease::default();
        assert!(read_lease(&raw).is_none());
        raw.address = "fd77::50".parse().unwrap();
        raw.dns_srvs = vec!["fd77::53".parse().unwrap()];
        raw.ntp_srvs = vec!["fd77::123".into(), "ntp.example".into()];
        let lease = read_lease(&raw).unwrap();
        assert_eq!(lease.address.to_string(), "fd77::50/128");
        assert_eq!((lease.dns.len(), lease.ntp.len()), (1, 1));
    }
}
