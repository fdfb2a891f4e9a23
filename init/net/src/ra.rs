//! DNS servers and search domains from router advertisements (RFC 8106): the kernel takes the addresses and routes of
//! an advertisement itself and leaves these. One task per link; what it knows runs out with the lifetimes.
//!
//! An advertisement counts only if its sender is on the link (RFC 4861, 6.1.2: a link-local source).

use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recvfrom, sendto, setsockopt,
    socket, sockopt,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::Sender;

use crate::dhcp::search_domains;
use crate::plan::Link;
use crate::reconcile::{Report, Task};

/// Servers, and domains, of one link that are remembered; further ones are ignored.
const LIMIT: usize = 16;
/// Labels of one domain.
const LABELS: usize = 64;
/// Where nothing runs out.
const LONG: Duration = Duration::from_secs(3_600);
/// A router solicitation without options.
const SOLICITATION: [u8; 8] = [133, 0, 0, 0, 0, 0, 0, 0];

/// What the routers of a link have said, with the moments at which it runs out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advertised {
    servers: Vec<(IpAddr, u64)>,
    domains: Vec<(String, u64)>,
}

impl Advertised {
    /// Takes an ICMPv6 packet at `now`, in milliseconds; one that is no advertisement changes nothing.
    pub fn take(&mut self, now: u64, packet: &[u8]) {
        if packet.first_chunk() != Some(&[134, 0]) {
            return;
        }
        let mut rest = packet.get(16..).unwrap_or_default();
        while let Some(&[kind, units]) = rest.first_chunk() {
            let length = usize::from(units) * 8;
            let Some(option) = rest.get(..length).filter(|option| option.len() >= 8) else {
                return;
            };
            let lifetime: [u8; 4] = option
                .get(4..8)
                .and_then(|b| b.try_into().ok())
                .unwrap_or_default();
            let until = match u32::from_be_bytes(lifetime) {
                u32::MAX => u64::MAX,
                seconds => now.saturating_add(u64::from(seconds) * 1_000),
            };
            let body = option.get(8..).unwrap_or_default();
            match kind {
                25 => servers(body).for_each(|server| remember(&mut self.servers, server, until)),
                31 => search_domains(domains(body).iter())
                    .into_iter()
                    .for_each(|domain| remember(&mut self.domains, domain, until)),
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
        self.expire(now);
    }

    /// Forgets what has run out.
    pub fn expire(&mut self, now: u64) {
        self.servers.retain(|(_, until)| *until > now);
        self.domains.retain(|(_, until)| *until > now);
    }

    /// When something runs out next.
    #[must_use]
    pub fn due(&self) -> Option<u64> {
        let servers = self.servers.iter().map(|(_, until)| *until);
        let all = servers.chain(self.domains.iter().map(|(_, until)| *until));
        all.filter(|until| *until != u64::MAX).min()
    }

    /// DNS servers.
    pub fn servers(&self) -> Vec<IpAddr> {
        self.servers.iter().map(|(server, _)| *server).collect()
    }

    /// DNS search domains.
    pub fn domains(&self) -> Vec<String> {
        self.domains.iter().map(|(domain, _)| domain.clone()).collect()
    }
}

fn remember<T: PartialEq>(list: &mut Vec<(T, u64)>, value: T, until: u64) {
    if let Some((_, known)) = list.iter_mut().find(|(known, _)| *known == value) {
        *known = until;
    } else if list.len() < LIMIT {
        list.push((value, until));
    }
}

/// Link-local servers are left out: resolv.conf would need the link's name with them.
fn servers(body: &[u8]) -> impl Iterator<Item = IpAddr> {
    let address = |bytes: &[u8]| Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?));
    let usable = |ip: &Ipv6Addr| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local();
    body.chunks_exact(16)
        .filter_map(address)
        .filter(usable)
        .map(IpAddr::V6)
}

/// Domains as DNS writes them (RFC 1035, 3.1), without compression; zeros at the end are padding.
fn domains(body: &[u8]) -> Vec<String> {
    let (mut domains, mut labels, mut rest): (Vec<String>, Vec<String>, &[u8]) =
        (Vec::new(), Vec::new(), body);
    while let Some((length, tail)) = rest.split_first() {
        let Some((label, after)) = tail.split_at_checked(usize::from(*length)) else {
            break;
        };
        match (label.is_empty(), labels.is_empty()) {
            (true, true) => {}
            (true, false) => domains.push(std::mem::take(&mut labels).join(".")),
            (false, _) if labels.len() < LABELS => labels.push(String::from_utf8_lossy(label).into_owned()),
            (false, _) => break,
        }
        rest = after;
    }
    domains
}

/// Starts the task; it ends when the handle is dropped. Without IPv6 it ends at once.
pub fn spawn(link: &Link, reports: Sender<(u32, Report)>) -> Task {
    let link = link.clone();
    Task::spawn(async move {
        if let Err(error) = listen(&link, &reports).await {
            println!(
                "network: {}: no DNS servers from router advertisements: {error}",
                link.name
            );
        }
    })
}

async fn listen(link: &Link, reports: &Sender<(u32, Report)>) -> std::io::Result<()> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6)?;
    setsockopt(&fd, sockopt::BindToDevice, &link.name.clone().into())?;
    setsockopt(&fd, sockopt::Ipv6MulticastHops, &255)?;
    // The kernel has asked before this socket was there; who answers now answers both.
    let routers = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2), 0, 0, link.index);
    let _ = sendto(
        fd.as_raw_fd(),
        &SOLICITATION,
        &SockaddrIn6::from(routers),
        MsgFlags::empty(),
    );
    #[expect(
        deprecated,
        reason = "sound for OwnedFd, and unsafe code stands in crates/sys alone"
    )]
    let socket: AsyncFd<OwnedFd> = AsyncFd::new(fd)?;
    let (start, mut known) = (Instant::now(), Advertised::default());
    let now = || u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    loop {
        let before = known.clone();
        let pause = known
            .due()
            .map_or(LONG, |due| Duration::from_millis(due.saturating_sub(now())));
        tokio::select! {
            () = tokio::time::sleep(pause) => known.expire(now()),
            ready = socket.readable() => {
                let mut packet = [0; 1_500];
                let read = ready?.try_io(|fd| Ok(recvfrom::<SockaddrIn6>(fd.as_raw_fd(), &mut packet)?));
                if let Ok(read) = read {
                    let (length, from) = read?;
                    if from.is_some_and(|from| from.ip().is_unicast_link_local()) {
                        known.take(now(), packet.get(..length).unwrap_or_default());
                    }
                }
            }
        }
        let other = known.servers() != before.servers() || known.domains() != before.domains();
        if other
            && reports
                .send((link.index, Report::Advertised(known.clone())))
                .await
                .is_err()
        {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn advertisement(options: &[u8]) -> Vec<u8> {
        [&[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..], options].concat()
    }

    fn server(last: u8, lifetime: u32) -> Vec<u8> {
        let address: Ipv6Addr = format!("fd77::{last}").parse().unwrap();
        [&[25, 3, 0, 0][..], &lifetime.to_be_bytes(), &address.octets()].concat()
    }

    #[test]
    fn servers_and_domains_run_out_with_their_lifetimes() {
        let domain = [
            31, 3, 0, 0, 0, 0, 0, 5, 4, b's', b'h', b'o', b'p', 7, b'e', b'x', b'a', b'm', b'p', b'l', b'e',
            0, 0, 0,
        ];
        let mut known = Advertised::default();
        known.take(
            1_000,
            &advertisement(&[server(1, 10), server(2, u32::MAX), domain.to_vec()].concat()),
        );
        assert_eq!(
            (known.servers().len(), known.domains()),
            (2, vec!["shop.example".to_owned()])
        );
        assert_eq!(known.due(), Some(6_000));
        known.expire(6_000);
        assert_eq!(
            (known.servers().len(), known.domains().len(), known.due()),
            (2, 0, Some(11_000))
        );
        known.take(7_000, &advertisement(&server(1, 0)));
        assert_eq!(
            known.servers(),
            ["fd77::2".parse::<IpAddr>().unwrap()],
            "a lifetime of zero takes it back"
        );
    }

    #[test]
    fn other_messages_and_broken_options_change_nothing() {
        let mut known = Advertised::default();
        known.take(0, &[&[135, 0][..], &advertisement(&server(1, 10))[2..]].concat());
        known.take(0, &advertisement(&[25, 0, 0, 0, 0, 0, 0, 9]));
        known.take(0, &advertisement(&server(1, 10)[..20]));
        assert_eq!(known, Advertised::default());
    }

    proptest! {
        #[test]
        fn invariant_any_packet_is_taken_and_the_memory_is_bounded(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20)) {
            let mut known = Advertised::default();
            for options in packets {
                known.take(1, &advertisement(&options));
                known.take(1, &options);
            }
            prop_assert!(known.servers().len() <= LIMIT && known.domains().len() <= LIMIT);
        }
    }
}
