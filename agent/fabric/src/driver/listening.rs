//! Where the fabric listens, and how it looks for members on the link.

use super::Net;
use crate::{
    FabricError,
    address::{quic_address, tcp_address},
};
use libp2p::{PeerId, Swarm, mdns};
use std::{
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

/// A port that is free for TCP and UDP at this moment.
pub(super) fn free_port(addresses: &[IpAddr]) -> Result<u16, FabricError> {
    let ip = addresses
        .first()
        .copied()
        .unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into());
    let fail = |error: std::io::Error| FabricError::Listen {
        address: format!("{ip}:0"),
        what: error.to_string(),
    };
    let mut last = None;
    for _ in 0..16 {
        let tcp = TcpListener::bind((ip, 0)).map_err(fail)?;
        let port = tcp.local_addr().map_err(fail)?.port();
        match UdpSocket::bind((ip, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = Some(error),
        }
    }
    Err(fail(last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into())))
}

/// Listens on each of `addresses`, by TCP and QUIC; a machine without IPv6 does without.
pub(super) fn listen(swarm: &mut Swarm<Net>, addresses: &[IpAddr], port: u16) -> Result<(), FabricError> {
    for ip in addresses {
        let socket = SocketAddr::new(*ip, port);
        for address in [tcp_address(socket), quic_address(socket)] {
            match swarm.listen_on(address.clone()) {
                Ok(_) => {}
                Err(error) if ip.is_ipv6() => tracing::info!(%address, %error, "does not listen"),
                Err(error) => {
                    return Err(FabricError::Listen {
                        address: address.to_string(),
                        what: error.to_string(),
                    });
                }
            }
        }
    }
    Ok(())
}

/// Looks for members on the link; `None` where that is not possible.
pub(super) fn start_mdns(own: PeerId) -> Option<mdns::tokio::Behaviour> {
    let config = mdns::Config {
        ttl: Duration::from_secs(120),
        query_interval: Duration::from_secs(30),
        ..mdns::Config::default()
    };
    mdns::tokio::Behaviour::new(config, own)
        .inspect_err(|error| tracing::warn!(%error, "does not look for members by mdns"))
        .ok()
}
