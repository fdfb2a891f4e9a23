//! Which link gets what: pure. No socket, no file.
//!
//! Invariant: a link gets at most one plan, and the same config and links always give the same plans.

use std::net::IpAddr;

pub use beemesh_init_api::network::Cidr;
use beemesh_init_api::network::{BondMode, InvalidConfig};
use beemesh_init_api::{LinkConfig, NetworkConfig};

/// A route on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where to; prefix 0: the default route.
    pub to: Cidr,
    /// By whom; `None`: directly on the link.
    pub via: Option<IpAddr>,
    /// Smaller wins; `None`: by the order of the links.
    pub metric: Option<u32>,
}

/// What one link shall have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkPlan {
    /// Part of this made link, and then nothing else but an MTU.
    pub member_of: Option<String>,
    /// Fixed addresses.
    pub addresses: Vec<Cidr>,
    /// Fixed routes, default routes among them.
    pub routes: Vec<Route>,
    /// DNS servers; they come before those of a lease.
    pub dns: Vec<IpAddr>,
    /// DNS search domains.
    pub search: Vec<String>,
    /// Largest packet, in bytes.
    pub mtu: Option<u32>,
    /// Ask a DHCPv4 server.
    pub dhcp: bool,
    /// Ask a DHCPv6 server.
    pub dhcp6: bool,
    /// Take router advertisements.
    pub slaac: bool,
}

/// A link that is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Interface name.
    pub name: String,
    /// What it is.
    pub kind: MadeKind,
}

/// What a made link is. Members are in the members' plans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MadeKind {
    /// IEEE 802.1Q.
    Vlan {
        /// The link below: MAC address or name.
        on: String,
        /// VLAN id.
        id: u16,
    },
    /// Several as one.
    Bond(BondMode),
    /// A switch.
    Bridge {
        /// Spanning tree.
        stp: bool,
    },
}

impl Made {
    /// One word for it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self.kind {
            MadeKind::Vlan { .. } => "vlan",
            MadeKind::Bond(_) => "bond",
            MadeKind::Bridge { .. } => "bridge",
        }
    }

    /// What is written on the link itself, so that a later run knows whether it is still the one that is wanted.
    #[must_use]
    pub fn mark(&self) -> String {
        match &self.kind {
            MadeKind::Vlan { on, id } => format!("beemesh vlan {id} on {on}"),
            MadeKind::Bond(mode) => format!("beemesh bond {mode:?}"),
            MadeKind::Bridge { stp } => format!("beemesh bridge stp={stp}"),
        }
    }
}

/// A link as the kernel shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// MAC address that the hardware came with; empty for links without.
    pub mac: Vec<u8>,
    /// MAC address in use; a bond gives all its members the same.
    pub address: Vec<u8>,
    /// The kernel's loopback.
    pub loopback: bool,
    /// Made by a program (veth, bridge, ...), not hardware.
    pub is_virtual: bool,
    /// [`Made::mark`] of a link that was made here; empty where the making was interrupted.
    pub mark: Option<String>,
    /// The bond or bridge that it is part of.
    pub controller: Option<u32>,
    /// Switched on.
    pub up: bool,
    /// Has a cable and someone at its other end.
    pub carrier: bool,
    /// Largest packet, in bytes.
    pub mtu: u32,
}

impl Link {
    /// `aa:bb:cc:dd:ee:ff`.
    #[must_use]
    pub fn mac_text(&self) -> String {
        mac_text(&self.mac)
    }

    /// What a config calls it: its name where it was made here, else its MAC address. `None`: not ours.
    #[must_use]
    pub fn id(&self, with_virtual: bool) -> Option<String> {
        if self.mark.is_some() {
            return Some(self.name.clone());
        }
        // A bridge may carry the MAC of the hardware below it: the MAC means the hardware.
        let ours = self.mac.len() == 6 && (!self.is_virtual || with_virtual);
        ours.then(|| self.mac_text())
    }
}

/// `aa:bb:cc:dd:ee:ff`.
#[must_use]
pub fn mac_text(mac: &[u8]) -> String {
    let pairs: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}

/// A config that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plans {
    named: Vec<(String, LinkPlan)>,
    made: Vec<Made>,
    others: LinkPlan,
    /// NTP servers of the config.
    pub ntp: Vec<IpAddr>,
}

impl Plans {
    /// Checks a config.
    ///
    /// # Errors
    /// [`InvalidConfig`] for the first thing that is wrong.
    pub fn of(config: &NetworkConfig) -> Result<Self, InvalidConfig> {
        config.check()?;
        let mut plans = Self {
            named: Vec::new(),
            made: Vec::new(),
            others: LinkPlan {
                dhcp: config.dhcp_others,
                slaac: true,
                ..LinkPlan::default()
            },
            ntp: addresses(&config.ntp),
        };
        for link in &config.links {
            let Ok(id) = link.identity() else { continue };
            for member in members(link) {
                // Members that no entry names get their plan here, and lose it below if one does.
                plans.named.push((
                    member,
                    LinkPlan {
                        member_of: Some(id.clone()),
                        ..LinkPlan::default()
                    },
                ));
            }
            plans.made.extend(made(link, &id));
        }
        for link in &config.links {
            let Ok(id) = link.identity() else { continue };
            match plans.named.iter_mut().find(|(known, _)| *known == id) {
                Some((_, member)) => member.mtu = link.mtu,
                None => plans.named.push((id, plan_link(link))),
            }
        }
        Ok(plans)
    }

    /// The plan for a link; `None`: not ours, it is left alone.
    #[must_use]
    pub fn plan(&self, link: &Link, with_virtual: bool) -> Option<LinkPlan> {
        if link.loopback {
            return Some(LinkPlan::default());
        }
        let id = link.id(with_virtual)?;
        match self.named.iter().find(|(named, _)| *named == id) {
            Some((_, plan)) => Some(plan.clone()),
            None => link.mark.is_none().then(|| self.others.clone()),
        }
    }

    /// The links to make, each after those it is made of.
    #[must_use]
    pub fn made(&self) -> &[Made] {
        &self.made
    }

    /// The MACs that are named and that no link has.
    pub fn missing<'a>(&'a self, links: &'a [Link], with_virtual: bool) -> impl Iterator<Item = &'a str> {
        self.named
            .iter()
            .map(|(id, _)| id.as_str())
            .filter(|id| self.made.iter().all(|made| made.name != *id))
            .filter(move |id| {
                links
                    .iter()
                    .all(|link| link.id(with_virtual).as_deref() != Some(*id))
            })
    }
}

fn members(link: &LinkConfig) -> Vec<String> {
    let bond = link.bond.iter().flat_map(|bond| &bond.members);
    let bridge = link.bridge.iter().flat_map(|bridge| &bridge.members);
    bond.chain(bridge).map(|member| lower_mac(member)).collect()
}

/// References are as people wrote them: a MAC may be in capitals, a name may not.
fn lower_mac(reference: &str) -> String {
    if reference.contains(':') {
        reference.to_ascii_lowercase()
    } else {
        reference.to_owned()
    }
}

fn made(link: &LinkConfig, name: &str) -> Option<Made> {
    let vlan = link.vlan.as_ref().map(|vlan| MadeKind::Vlan {
        on: lower_mac(&vlan.on),
        id: vlan.id,
    });
    let bond = link.bond.as_ref().map(|bond| MadeKind::Bond(bond.mode));
    let bridge = link
        .bridge
        .as_ref()
        .map(|bridge| MadeKind::Bridge { stp: bridge.stp });
    let name = name.to_owned();
    vlan.or(bond).or(bridge).map(|kind| Made { name, kind })
}

/// The texts were checked; what does not parse is not there.
fn addresses(texts: &[String]) -> Vec<IpAddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn plan_link(link: &LinkConfig) -> LinkPlan {
    let default = |text: &Option<String>, to: &str| {
        let via: IpAddr = text.as_ref()?.parse().ok()?;
        let to = Cidr::parse(to).ok()?;
        Some(Route {
            to,
            via: Some(via),
            metric: None,
        })
    };
    // With DHCPv4 the server names the gateway.
    let gateway = if link.dhcp {
        None
    } else {
        default(&link.gateway, "0.0.0.0/0")
    };
    let gateways = gateway.into_iter().chain(default(&link.gateway6, "::/0"));
    let routes = link.routes.iter().filter_map(|route| {
        let via = route.via.as_ref().and_then(|via| via.parse().ok());
        let to = Cidr::parse(&route.to).ok()?;
        Some(Route {
            to: network(to),
            via,
            metric: route.metric,
        })
    });
    LinkPlan {
        member_of: None,
        addresses: link
            .addresses
            .iter()
            .filter_map(|text| Cidr::parse_host(text).ok())
            .collect(),
        routes: gateways.chain(routes).collect(),
        dns: addresses(&link.dns),
        search: link.search.clone(),
        mtu: link.mtu,
        dhcp: link.dhcp,
        dhcp6: link.dhcp6,
        slaac: link.slaac != Some(false),
    }
}

/// Without the host's part, as the kernel wants destinations.
fn network(cidr: Cidr) -> Cidr {
    let prefix = u32::from(cidr.prefix);
    let address = match cidr.address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - prefix.min(32)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - prefix.min(128)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    };
    Cidr { address, ..cidr }
}

/// `servers` without repetitions, in their order.
#[must_use]
pub fn distinct<T: PartialEq + Clone>(values: &[T]) -> Vec<T> {
    let mut seen: Vec<T> = Vec::new();
    for value in values {
        if !seen.contains(value) {
            seen.push(value.clone());
        }
    }
    seen
}

/// The text of resolv.conf(5): at most three servers and six domains count, the first ones named.
#[must_use]
pub fn resolv_conf(servers: &[IpAddr], search: &[String]) -> String {
    let mut text = String::from("# Written by beemesh-net; changes are lost.\n");
    for server in distinct(servers).iter().take(3) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    let domains: Vec<String> = distinct(search).into_iter().take(6).collect();
    if !domains.is_empty() {
        text.push_str(&format!("search {}\n", domains.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plans(links: &str) -> Plans {
        let json = format!(r#"{{"links":[{links}],"dhcp_others":false}}"#);
        Plans::of(&serde_json::from_str(&json).unwrap()).unwrap()
    }

    fn link(mac: u8, is_virtual: bool) -> Link {
        let mac = vec![2, 0, 0, 0, 0, mac];
        Link {
            index: 2,
            name: "eth0".into(),
            address: mac.clone(),
            mac,
            is_virtual,
            up: true,
            carrier: true,
            ..Link::default()
        }
    }

    #[test]
    fn named_link_is_static_and_others_follow_the_switch() {
        let plans = plans(r#"{"mac":"02:00:00:00:00:0A","addresses":["10.0.0.5/24"],"gateway":"10.0.0.1"}"#);
        let plan = plans.plan(&link(10, false), false).unwrap();
        assert_eq!(
            (plan.addresses.len(), plan.routes.len(), plan.dhcp),
            (1, 1, false)
        );
        assert!(!plans.plan(&link(11, false), false).unwrap().dhcp);
        let plans = Plans::of(&NetworkConfig::default()).unwrap();
        assert!(plans.plan(&link(11, false), false).unwrap().dhcp);
    }

    #[test]
    fn links_of_pods_are_left_alone() {
        let plans = Plans::of(&NetworkConfig::default()).unwrap();
        assert_eq!(plans.plan(&link(11, true), false), None);
    }

    #[test]
    fn members_have_nothing_but_their_controller_and_an_mtu() {
        let plans = plans(
            r#"{"mac":"02:00:00:00:00:0b","mtu":9000},
               {"name":"br0","bridge":{"members":["02:00:00:00:00:0A","02:00:00:00:00:0b"]},"dhcp":true}"#,
        );
        let member = |mac| plans.plan(&link(mac, false), false).unwrap();
        assert_eq!(member(10).member_of.as_deref(), Some("br0"));
        assert_eq!(
            (member(11).member_of.as_deref(), member(11).mtu),
            (Some("br0"), Some(9000))
        );
        // The bridge carries the MAC of a member: its name is what counts.
        let bridge = Link {
            name: "br0".into(),
            mark: Some(plans.made()[0].mark()),
            ..link(10, true)
        };
        assert!(plans.plan(&bridge, false).unwrap().dhcp);
    }

    #[test]
    fn made_link_that_is_not_wanted_any_more_has_no_plan() {
        let old = Link {
            name: "br9".into(),
            mark: Some("beemesh bridge stp=false".into()),
            ..link(10, true)
        };
        assert_eq!(
            Plans::of(&NetworkConfig::default()).unwrap().plan(&old, true),
            None
        );
    }

    #[test]
    fn cards_that_are_not_there_are_missing_and_made_links_are_not() {
        let plans = plans(
            r#"{"name":"br0","bridge":{"members":["02:00:00:00:00:0A","02:00:00:00:00:0b"]},"dhcp":true}"#,
        );
        let links = [link(10, false)];
        assert_eq!(
            plans.missing(&links, false).collect::<Vec<_>>(),
            ["02:00:00:00:00:0b"]
        );
    }

    #[test]
    fn route_destinations_lose_their_host_part() {
        let plans = plans(
            r#"{"mac":"02:00:00:00:00:0a","addresses":["10.0.0.5/24","fd00::5/64"],
            "routes":[{"to":"10.9.8.7/16","via":"10.0.0.1"},{"to":"fd09::7/32","via":"fd00::1"},{"to":"0.0.0.0/0","via":"10.0.0.1"}]}"#,
        );
        let plan = plans.plan(&link(10, false), false).unwrap();
        let to: Vec<String> = plan.routes.iter().map(|route| route.to.to_string()).collect();
        assert_eq!(to, ["10.9.0.0/16", "fd09::/32", "0.0.0.0/0"]);
    }

    #[test]
    fn resolv_conf_holds_three_different_servers_and_six_domains_at_most() {
        let servers: Vec<IpAddr> = ["10.0.0.1", "10.0.0.1", "fd00::1", "10.0.0.2", "10.0.0.3"]
            .iter()
            .map(|s| s.parse().unwrap())
            .collect();
        let domains: Vec<String> = (0..9).map(|n| format!("d{}.example", n / 2)).collect();
        let text = resolv_conf(&servers, &domains);
        assert_eq!(text.lines().filter(|l| l.starts_with("nameserver")).count(), 3);
        assert!(text.contains("nameserver fd00::1"));
        assert!(text.contains("search d0.example d1.example d2.example d3.example d4.example\n"));
        assert!(!resolv_conf(&servers, &[]).contains("search"));
    }

    proptest! {
        #[test]
        fn network_of_an_address_holds_it(bits: u128, prefix in 0u8..=128, v4: bool) {
            let address = if v4 { IpAddr::V4(((bits & 0xffff_ffff) as u32).into()) } else { IpAddr::V6(bits.into()) };
            let prefix = if v4 { prefix.min(32) } else { prefix };
            let cidr = Cidr { address, prefix };
            prop_assert!(network(cidr).contains(&address) && cidr.contains(&network(cidr).address));
            prop_assert_eq!(network(network(cidr)), network(cidr));
            prop_assert_eq!(Cidr::parse(&cidr.to_string()), Ok(cidr));
        }
    }
}
