//! Chooses the network settings of this box from a pack, and reads which addresses it has.

use beemesh_init_api::{LinkConfig, NetworkConfig};
use beemesh_joinpack_format::{Manifest, NodeEntry};
use std::fs;
use std::path::Path;

/// The MAC addresses of this box's network cards, lower case, without loopback and pod links.
pub fn own_macs(sys_class_net: &Path) -> Vec<String> {
    let Ok(links) = fs::read_dir(sys_class_net) else {
        return Vec::new();
    };
    let physical = links.flatten().filter(|link| link.path().join("device").exists());
    let mut macs: Vec<String> = physical
        .filter_map(|link| fs::read_to_string(link.path().join("address")).ok())
        .map(|mac| mac.trim().to_lowercase())
        .collect();
    macs.sort();
    macs
}

/// The pack's entry for this box, chosen by MAC.
pub fn entry_for<'a>(manifest: &'a Manifest, macs: &[String]) -> Option<&'a NodeEntry> {
    let own = |entry: &&NodeEntry| {
        entry
            .mac
            .as_ref()
            .is_some_and(|mac| macs.contains(&mac.to_lowercase()))
    };
    manifest.nodes.iter().find(own)
}

/// The settings of an entry; DHCP on every link where it gives none.
pub fn config_for(entry: Option<&NodeEntry>) -> NetworkConfig {
    let settings = entry.and_then(|entry| Some((entry.mac.as_ref()?, entry.network.as_ref()?)));
    let Some((mac, network)) = settings else {
        return NetworkConfig::default();
    };
    let link = LinkConfig {
        mac: mac.to_lowercase(),
        dhcp: network.dhcp,
        addresses: network.addresses.clone(),
        gateway: network.gateway.clone(),
        dns: network.dns.clone(),
        ..LinkConfig::default()
    };
    NetworkConfig {
        links: vec![link],
        ..NetworkConfig::default()
    }
}

/// The addresses of this box without their prefix lengths, as `beemesh-net` reports them.
pub fn own_addresses(status: &Path) -> Vec<String> {
    let status = fs::read(status)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let status: beemesh_init_api::NetworkStatus = status.unwrap_or_default();
    let addresses = status.links.into_iter().flat_map(|link| link.addresses);
    addresses
        .filter_map(|cidr| Some(cidr.split('/').next()?.to_owned()))
        .collect()
}
