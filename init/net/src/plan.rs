//! Which link gets what: pure. No socket, no file.
//!
//! Invariant: a link gets one plan, and the same config and links always give the same plans.

use std::net::{IpAddr, Ipv4Addr};

use beemesh_init_api::{LinkConfig, NetworkConfig};

/// Links that a config may name.
pub const LINKS_LIMIT: usize = 64;
/// Addresses, and DNS servers, of one link.
pub const ADDRESSES_LIMIT: usize = 16;

/// An address and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// 0..=32 or 0..=128.
    pub prefix: u8,
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl std::str::FromStr for Cidr {
    type Err = InvalidConfig;

    fn from_str(text: &str) -> Result<Self, InvalidConfig> {
        let invalid = || InvalidConfig::Address(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if prefix > most || address.is_unspecified() || address.is_multicast() {
            return Err(invalid());
        }
        Ok(Self { address, prefix })
    }
}

/// What is wrong with a network config, for the person who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    /// No address in CIDR notation.
    #[error("`{0}` is not an address with its prefix: expected something like `10.0.0.5/24`")]
    Address(String),
    /// No address.
    #[error("`{0}` is not an ip address")]
    Server(String),
    /// No IPv4 address.
    #[error("the gateway `{0}` is not an ipv4 address")]
    Gateway(String),
    /// Nobody could reach it.
    #[error("the gateway `{0}` lies in none of the link's networks")]
    GatewayUnreachable(Ipv4Addr),
    /// No MAC address.
    #[error("`{0}` is not a mac address: expected `aa:bb:cc:dd:ee:ff`")]
    Mac(String),
    /// Twice the same link.
    #[error("the link `{0}` is named twice")]
    Twice(String),
    /// Both, or none.
    #[error("the link `{0}` needs either `dhcp` or `addresses`")]
    Choice(String),
    /// Too many entries.
    #[error("{0} {1}: at most {2} are possible")]
    TooMany(usize, &'static str, usize),
}

/// What one link shall have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkPlan {
    /// Fixed addresses.
    Static {
        /// The addresses.
        addresses: Vec<Cidr>,
        /// Default gateway.
        gateway: Option<Ipv4Addr>,
        /// DNS servers.
        dns: Vec<IpAddr>,
    },
    /// Ask a DHCP server; these DNS servers come before the server's.
    Dhcp {
        /// DNS servers.
        dns: Vec<IpAddr>,
    },
    /// Up, with the kernel's link-local address only.
    Up,
    /// Not ours.
    LeaveAlone,
}

/// A link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// MAC address; empty for links without.
    pub mac: Vec<u8>,
    /// The kernel's loopback.
    pub loopback: bool,
    /// Made by a program (veth, bridge, ...), not hardware.
    pub is_virtual: bool,
    /// Switched on.
    pub up: bool,
    /// Has a cable and someone at its other end.
    pub carrier: bool,
}

impl Link {
    /// `aa:bb:cc:dd:ee:ff`.
    #[must_use]
    pub fn mac_text(&self) -> String {
        let pairs: Vec<String> = self.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        pairs.join(":")
    }
}

/// A config that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plans {
    named: Vec<(String, LinkPlan)>,
    others: LinkPlan,
}

impl Plans {
    /// Checks a config.
    ///
    /// # Errors
    /// [`InvalidConfig`] for the first thing that is wrong.
    pub fn of(config: &NetworkConfig) -> Result<Self, InvalidConfig> {
        limit(config.links.len(), "links", LINKS_LIMIT)?;
        let mut named: Vec<(String, LinkPlan)> = Vec::new();
        for link in &config.links {
            let mac = link.mac.to_ascii_lowercase();
            if !is_mac(&mac) {
                return Err(InvalidConfig::Mac(link.mac.clone()));
            }
            if named.iter().any(|(known, _)| *known == mac) {
                return Err(InvalidConfig::Twice(mac));
            }
            named.push((mac, plan_link(link)?));
        }
        Ok(Self {
            named,
            others: if config.dhcp_others {
                LinkPlan::Dhcp { dns: Vec::new() }
            } else {
                LinkPlan::Up
            },
        })
    }

    /// The plan for a link. A link that the config names by its MAC is configured whatever its kind.
    #[must_use]
    pub fn plan(&self, link: &Link, with_virtual: bool) -> LinkPlan {
        if link.loopback {
            return LinkPlan::Up;
        }
        let mac = link.mac_text();
        match self.named.iter().find(|(named, _)| *named == mac) {
            // A bridge may carry the MAC of the hardware below it: the name means the hardware.
            Some((_, plan)) if !link.is_virtual || with_virtual => plan.clone(),
            _ if link.mac.len() == 6 && (!link.is_virtual || with_virtual) => self.others.clone(),
            _ => LinkPlan::LeaveAlone,
        }
    }

    /// The MACs that are named and that no link has.
    pub fn missing<'a>(&'a self, links: &'a [Link]) -> impl Iterator<Item = &'a str> {
        self.named
            .iter()
            .map(|(mac, _)| mac.as_str())
            .filter(|mac| links.iter().all(|link| link.mac_text() != *mac))
    }
}

fn plan_link(link: &LinkConfig) -> Result<LinkPlan, InvalidConfig> {
    limit(link.addresses.len(), "addresses", ADDRESSES_LIMIT)?;
    limit(link.dns.len(), "dns servers", ADDRESSES_LIMIT)?;
    let server = |text: &String| text.parse().map_err(|_| InvalidConfig::Server(text.clone()));
    let dns: Vec<IpAddr> = link.dns.iter().map(server).collect::<Result<_, _>>()?;
    match (link.dhcp, link.addresses.is_empty()) {
        (true, true) => return Ok(LinkPlan::Dhcp { dns }),
        (false, false) => {}
        _ => return Err(InvalidConfig::Choice(link.mac.clone())),
    }
    let addresses: Vec<Cidr> = link
        .addresses
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let gateway = link
        .gateway
        .as_ref()
        .map(|text| text.parse().map_err(|_| InvalidConfig::Gateway(text.clone())));
    let gateway: Option<Ipv4Addr> = gateway.transpose()?;
    if let Some(gateway) = gateway.filter(|gateway| !addresses.iter().any(|cidr| contains(cidr, *gateway))) {
        return Err(InvalidConfig::GatewayUnreachable(gateway));
    }
    Ok(LinkPlan::Static {
        addresses,
        gateway,
        dns,
    })
}

fn limit(count: usize, what: &'static str, most: usize) -> Result<(), InvalidConfig> {
    if count > most {
        Err(InvalidConfig::TooMany(count, what, most))
    } else {
        Ok(())
    }
}

fn contains(cidr: &Cidr, address: Ipv4Addr) -> bool {
    let IpAddr::V4(own) = cidr.address else {
        return false;
    };
    let mask = u32::MAX.checked_shl(32 - u32::from(cidr.prefix)).unwrap_or(0);
    u32::from(own) & mask == u32::from(address) & mask
}

fn is_mac(text: &str) -> bool {
    let pairs: Vec<&str> = text.split(':').collect();
    pairs.len() == 6
        && pairs
            .iter()
            .all(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The text of resolv.conf(5): at most three servers count, the first ones named.
#[must_use]
pub fn resolv_conf(servers: &[IpAddr]) -> String {
    let mut text = String::from("# Written by beemesh-net; changes are lost.\n");
    let mut seen: Vec<&IpAddr> = Vec::new();
    for server in servers {
        if !seen.contains(&server) && seen.len() < 3 {
            seen.push(server);
            text.push_str(&format!("nameserver {server}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link_config(json: &str) -> Result<Plans, InvalidConfig> {
        let link = serde_json::from_str(json).unwrap();
        Plans::of(&NetworkConfig {
            links: vec![link],
            dhcp_others: false,
        })
    }

    fn link(mac: u8, is_virtual: bool) -> Link {
        let mac = vec![2, 0, 0, 0, 0, mac];
        Link {
            index: 2,
            name: "eth0".into(),
            mac,
            loopback: false,
            is_virtual,
            up: true,
            carrier: true,
        }
    }

    #[test]
    fn named_link_is_static_and_others_follow_the_switch() {
        let plans =
            link_config(r#"{"mac":"02:00:00:00:00:0A","addresses":["10.0.0.5/24"],"gateway":"10.0.0.1"}"#)
                .unwrap();
        assert!(matches!(
            plans.plan(&link(10, false), false),
            LinkPlan::Static { .. }
        ));
        assert_eq!(plans.plan(&link(11, false), false), LinkPlan::Up);
        let plans = Plans::of(&NetworkConfig::default()).unwrap();
        assert_eq!(
            plans.plan(&link(11, false), false),
            LinkPlan::Dhcp { dns: Vec::new() }
        );
    }

    #[test]
    fn links_of_pods_are_left_alone() {
        let plans = Plans::of(&NetworkConfig::default()).unwrap();
        assert_eq!(plans.plan(&link(11, true), false), LinkPlan::LeaveAlone);
    }

    #[test]
    fn config_errors_name_what_is_wrong() {
        let cases = [
            (r#"{"mac":"02:00","dhcp":true}"#, "`02:00` is not a mac address"),
            (
                r#"{"mac":"02:00:00:00:00:0a"}"#,
                "needs either `dhcp` or `addresses`",
            ),
            (
                r#"{"mac":"02:00:00:00:00:0a","dhcp":true,"addresses":["10.0.0.5/24"]}"#,
                "needs either",
            ),
            (
                r#"{"mac":"02:00:00:00:00:0a","addresses":["10.0.0.5"]}"#,
                "`10.0.0.5` is not an address with its prefix",
            ),
            (
                r#"{"mac":"02:00:00:00:00:0a","addresses":["10.0.0.5/33"]}"#,
                "`10.0.0.5/33`",
            ),
            (
                r#"{"mac":"02:00:00:00:00:0a","addresses":["10.0.0.5/24"],"gateway":"10.0.1.1"}"#,
                "`10.0.1.1` lies in none",
            ),
            (
                r#"{"mac":"02:00:00:00:00:0a","dhcp":true,"dns":["one"]}"#,
                "`one` is not an ip address",
            ),
        ];
        for (json, part) in cases {
            let error = link_config(json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn more_links_than_the_limit_are_refused() {
        let entry = |n: usize| LinkConfig {
            mac: format!("02:00:00:00:00:{n:02x}"),
            dhcp: true,
            addresses: Vec::new(),
            gateway: None,
            dns: Vec::new(),
        };
        let config = NetworkConfig {
            links: (0..=LINKS_LIMIT).map(entry).collect(),
            dhcp_others: true,
        };
        assert_eq!(Plans::of(&config), Err(InvalidConfig::TooMany(65, "links", 64)));
    }

    #[test]
    fn resolv_conf_holds_three_different_servers_at_most() {
        let servers: Vec<IpAddr> = ["10.0.0.1", "10.0.0.1", "fd00::1", "10.0.0.2", "10.0.0.3"]
            .iter()
            .map(|s| s.parse().unwrap())
            .collect();
        let text = resolv_conf(&servers);
        assert_eq!(text.lines().filter(|l| l.starts_with("nameserver")).count(), 3);
        assert!(text.contains("nameserver fd00::1"));
    }

    proptest! {
        #[test]
        fn cidr_survives_its_text(bits: u32, prefix in 0u8..=32) {
            let address = IpAddr::V4(Ipv4Addr::from(bits));
            prop_assume!(!address.is_unspecified() && !address.is_multicast());
            let cidr = Cidr { address, prefix };
            prop_assert_eq!(cidr.to_string().parse::<Cidr>(), Ok(cidr));
            prop_assert!(contains(&cidr, Ipv4Addr::from(bits)));
        }
    }
}
