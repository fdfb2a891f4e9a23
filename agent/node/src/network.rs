//! What this box can be recognised by, its network settings from a pack, and which addresses it has.

use beemesh_init_api::{LinkConfig, NetworkConfig};
use beemesh_joinpack_format::NodeEntry;
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

/// The machine's serial number (SMBIOS, type 1), where the firmware gives one.
pub fn own_serial(dmi: &Path) -> Option<String> {
    let text = fs::read_to_string(dmi.join("product_serial")).ok()?;
    Some(text.trim().to_owned()).filter(|serial| !serial.is_empty())
}

/// The settings of an entry; DHCP on every link where it gives none. Those of an entry without a MAC address are for the
/// card with the lowest one, `first`.
pub fn config_for(entry: Option<&NodeEntry>, first: Option<&String>) -> NetworkConfig {
    let settings = entry.and_then(|entry| Some((entry.mac.as_ref().or(first)?, entry.network.as_ref()?)));
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
