//! The network that a node should have, what became of it, and the rules that a config must keep.
//!
//! Pure: nothing is opened. A config that passed [`NetworkConfig::check`] can be applied on any machine; whether its
//! cards are there is seen only on the machine. Old documents parse: every later field has a default.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Links that a config may name.
pub const LINKS_LIMIT: usize = 64;
/// Addresses of one link, DNS servers of one link, search domains, and NTP servers of a config.
pub const ADDRESSES_LIMIT: usize = 16;
/// Routes of one link.
pub const ROUTES_LIMIT: usize = 64;
/// Links below one bond or bridge.
pub const MEMBERS_LIMIT: usize = 16;
/// Longest name of a link, in bytes (IFNAMSIZ without its end).
pub const NAME_LIMIT: usize = 15;
/// Smallest packet size that IPv4 allows, in bytes (RFC 791).
pub const MTU_LEAST: u32 = 576;
/// Largest packet size that is accepted, in bytes: jumbo frames.
pub const MTU_MOST: u32 = 9_216;

/// The network that a node should have. Links that no entry names are configured by DHCP where `dhcp_others` is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Settings per link, at most [`LINKS_LIMIT`]. A link that is made stands after the links it is made of.
    #[serde(default)]
    pub links: Vec<LinkConfig>,
    /// Run DHCPv4 on every other Ethernet link.
    #[serde(default = "yes")]
    pub dhcp_others: bool,
    /// NTP servers (IP addresses), asked before those that DHCP names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ntp: Vec<String>,
}

fn yes() -> bool {
    true
}

impl Default for NetworkConfig {
    /// DHCPv4 on every Ethernet link.
    fn default() -> Self {
        Self {
            links: Vec::new(),
            dhcp_others: true,
            ntp: Vec::new(),
        }
    }
}

/// One link: a card, chosen by its MAC address, or one that is made (`vlan`, `bond` or `bridge`) and has a `name`.
///
/// Other entries refer to a card by its MAC address and to a made link by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkConfig {
    /// MAC address of the card, `aa:bb:cc:dd:ee:ff`; empty for a link that is made.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Name of a link that is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Make a VLAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanConfig>,
    /// Make a bond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bond: Option<BondConfig>,
    /// Make a bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<BridgeConfig>,
    /// DHCPv4 instead of static IPv4 addresses.
    #[serde(default)]
    pub dhcp: bool,
    /// DHCPv6 for an address (IA_NA); beside static IPv6 addresses and SLAAC.
    #[serde(default, skip_serializing_if = "is_false")]
    pub dhcp6: bool,
    /// IPv6 addresses and routes from router advertisements; taken where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slaac: Option<bool>,
    /// Static addresses in CIDR notation, e.g. `10.77.0.11/24`.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// IPv4 default gateway.
    #[serde(default)]
    pub gateway: Option<String>,
    /// IPv6 default gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<String>,
    /// Further routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteConfig>,
    /// DNS servers.
    #[serde(default)]
    pub dns: Vec<String>,
    /// DNS search domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Largest packet, in bytes; the card's own where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// A VLAN (IEEE 802.1Q).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VlanConfig {
    /// The link below: MAC address or name.
    pub on: String,
    /// 1..=4094.
    pub id: u16,
}

/// Several links as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BondConfig {
    /// The links below: MAC addresses or names.
    pub members: Vec<String>,
    /// How they share the work.
    #[serde(default)]
    pub mode: BondMode,
}

/// How the links of a bond share the work, by the kernel's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BondMode {
    /// One works, the others wait; the switch needs no settings.
    #[default]
    ActiveBackup,
    /// By a hash of the addresses; the switch needs a static group.
    BalanceXor,
    /// LACP; the switch must speak it.
    #[serde(rename = "802.3ad")]
    Lacp,
}

/// A switch in software.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeConfig {
    /// The links below: MAC addresses or names.
    #[serde(default)]
    pub members: Vec<String>,
    /// Run the spanning tree protocol; a port then forwards nothing for some seconds.
    #[serde(default)]
    pub stp: bool,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Where to, in CIDR notation.
    pub to: String,
    /// By which router; directly on the link where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// Smaller wins; by the order of the links where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
}

/// What is wrong with a network config, for the person who wrote it: the field, its value, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {problem}")]
pub struct InvalidConfig {
    /// Where, e.g. `links[0].addresses[1]`.
    pub field: String,
    /// What. Part of the sentence, so it is no source.
    pub problem: Problem,
}

/// What can be wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No address in CIDR notation.
    #[error("`{0}` is not an address with its prefix: expected something like `10.0.0.5/24` or `fd00::5/64`")]
    Cidr(String),
    /// No address.
    #[error("`{0}` is not an ip address: expected something like `10.0.0.1`")]
    Address(String),
    /// No address of the right family.
    #[error("`{0}` is not an ipv{1} address: write the router's address on this link")]
    Family(String, u8),
    /// Nobody could reach it.
    #[error("`{0}` lies in none of the link's networks: add an address of its network to `addresses`")]
    Unreachable(IpAddr),
    /// No MAC address.
    #[error("`{0}` is not a mac address: expected `aa:bb:cc:dd:ee:ff`")]
    Mac(String),
    /// No name.
    #[error(
        "`{0}` is not a name for a link: use 1 to 15 of a-z, 0-9, `-`, `_` and `.`, and begin with a letter"
    )]
    Name(String),
    /// Twice the same.
    #[error("`{0}` is named twice: keep one of them")]
    Twice(String),
    /// Neither a card nor made.
    #[error("it names no link: give the card's `mac`, or `name` with one of `vlan`, `bond` and `bridge`")]
    NoLink,
    /// A card and made, or made in two ways.
    #[error("it is more than one link: keep one of `mac`, `vlan`, `bond` and `bridge`")]
    SeveralKinds,
    /// A card with a name.
    #[error("`{0}` names a card: cards are named by their `mac` alone")]
    NamedCard(String),
    /// Both DHCPv4 and IPv4 addresses, or nothing at all.
    #[error("`{0}` needs either `dhcp` or `addresses` (or `dhcp6`, or `\"slaac\": true`)")]
    Choice(String),
    /// A member has settings of its own.
    #[error("`{0}` is part of `{1}`: give its addresses to `{1}`")]
    MemberWithSettings(String, String),
    /// Not listed, or later.
    #[error("`{0}` names no link that stands before it: name a card by its mac, or list `{0}` first")]
    Unknown(String),
    /// Nothing below.
    #[error("it has no members: name at least one link by its mac address")]
    NoMembers,
    /// A number out of its range.
    #[error("{value} is out of range: {least} to {most} are possible")]
    Range {
        /// The number.
        value: u32,
        /// Smallest.
        least: u32,
        /// Largest.
        most: u32,
    },
    /// No domain.
    #[error("`{0}` is not a domain name: expected something like `shop.example`")]
    Domain(String),
    /// Too many entries.
    #[error("{0} entries: at most {1} are possible")]
    TooMany(usize, usize),
}

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

impl Cidr {
    /// Reads CIDR notation; any address may stand there.
    ///
    /// # Errors
    /// [`Problem::Cidr`].
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let invalid = || Problem::Cidr(text.chars().take(80).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let digits = prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if prefix > most || !digits {
            return Err(invalid());
        }
        Ok(Self { address, prefix })
    }

    /// Reads an address that a host can have.
    ///
    /// # Errors
    /// [`Problem::Cidr`], also for an unspecified, multicast or broadcast address.
    pub fn parse_host(text: &str) -> Result<Self, Problem> {
        let cidr = Self::parse(text)?;
        let broadcast = matches!(cidr.address, IpAddr::V4(v4) if v4.is_broadcast());
        if cidr.address.is_unspecified() || cidr.address.is_multicast() || broadcast {
            return Err(Problem::Cidr(text.to_owned()));
        }
        Ok(cidr)
    }

    /// Whether `other` lies in this network.
    #[must_use]
    pub fn contains(&self, other: &IpAddr) -> bool {
        let shared = |own: u128, other: u128, width: u32| {
            let host = width.saturating_sub(u32::from(self.prefix));
            own.checked_shr(host).unwrap_or(0) == other.checked_shr(host).unwrap_or(0)
        };
        match (self.address, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                shared(u32::from(own).into(), u32::from(*other).into(), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => shared(own.into(), (*other).into(), 128),
            _ => false,
        }
    }
}

impl NetworkConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`InvalidConfig`] for the first thing that is wrong.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        at("links", limit(self.links.len(), LINKS_LIMIT))?;
        at("ntp", limit(self.ntp.len(), ADDRESSES_LIMIT))?;
        for (index, server) in self.ntp.iter().enumerate() {
            at(&format!("ntp[{index}]"), address(server).map(drop))?;
        }
        let mut known: Vec<String> = Vec::new();
        let mut member_of: Vec<(String, String)> = Vec::new();
        let mut parents: Vec<String> = Vec::new();
        for (index, link) in self.links.iter().enumerate() {
            let field = |name: &str| format!("links[{index}]{name}");
            let id = link.identity().map_err(|problem| wrong(&field(""), problem))?;
            at(&field(""), once(&known, &id))?;
            link.check_made(&known, &mut member_of, &mut parents)
                .map_err(|(name, problem)| wrong(&field(name), problem))?;
            known.push(id);
        }
        for (index, link) in self.links.iter().enumerate() {
            let field = |name: &str| format!("links[{index}]{name}");
            let id = link.identity().map_err(|problem| wrong(&field(""), problem))?;
            let controller = member_of.iter().find(|(member, _)| *member == id);
            match controller {
                Some((_, controller)) if link.has_settings() => {
                    let problem = Problem::MemberWithSettings(id, controller.clone());
                    return Err(wrong(&field(""), problem));
                }
                Some(_) => at(&field(".mtu"), link.check_mtu())?,
                None => link
                    .check_settings(&id, parents.contains(&id))
                    .map_err(|(name, problem)| wrong(&field(&name), problem))?,
            }
        }
        Ok(())
    }
}

type Within<N> = Result<(), (N, Problem)>;

impl LinkConfig {
    /// What other entries call it: MAC address in lower case, or name.
    ///
    /// # Errors
    /// It names no link, or more than one.
    pub fn identity(&self) -> Result<String, Problem> {
        let kinds = [
            !self.mac.is_empty(),
            self.vlan.is_some(),
            self.bond.is_some(),
            self.bridge.is_some(),
        ];
        match kinds.iter().filter(|kind| **kind).count() {
            0 => return Err(Problem::NoLink),
            1 => {}
            _ => return Err(Problem::SeveralKinds),
        }
        let name = self.name.clone();
        if self.mac.is_empty() {
            let name = name.ok_or(Problem::NoLink)?;
            return if is_link_name(&name) {
                Ok(name)
            } else {
                Err(Problem::Name(name))
            };
        }
        if let Some(name) = name {
            return Err(Problem::NamedCard(name));
        }
        let mac = self.mac.to_ascii_lowercase();
        if is_mac(&mac) {
            Ok(mac)
        } else {
            Err(Problem::Mac(self.mac.clone()))
        }
    }

    /// Anything but an MTU, which a member may have.
    fn has_settings(&self) -> bool {
        self.dhcp
            || self.dhcp6
            || self.slaac == Some(true)
            || !self.addresses.is_empty()
            || self.gateway.is_some()
            || self.gateway6.is_some()
            || !self.routes.is_empty()
            || !self.dns.is_empty()
            || !self.search.is_empty()
    }

    fn check_made(
        &self,
        known: &[String],
        member_of: &mut Vec<(String, String)>,
        parents: &mut Vec<String>,
    ) -> Within<&'static str> {
        let reference = |text: &str| reference(text, known);
        if let Some(vlan) = &self.vlan {
            parents.push(reference(&vlan.on).map_err(|p| (".vlan.on", p))?);
            range(vlan.id.into(), 1, 4094).map_err(|p| (".vlan.id", p))?;
        }
        let bond = self
            .bond
            .as_ref()
            .map(|bond| (&bond.members, ".bond.members", true));
        let bridge = self
            .bridge
            .as_ref()
            .map(|bridge| (&bridge.members, ".bridge.members", false));
        let Some((members, field, needed)) = bond.or(bridge) else {
            return Ok(());
        };
        limit(members.len(), MEMBERS_LIMIT).map_err(|p| (field, p))?;
        if needed && members.is_empty() {
            return Err((field, Problem::NoMembers));
        }
        for member in members {
            let member = reference(member).map_err(|p| (field, p))?;
            if member_of.iter().any(|(other, _)| *other == member) {
                return Err((field, Problem::Twice(member)));
            }
            member_of.push((member, self.name.clone().unwrap_or_default()));
        }
        Ok(())
    }

    fn check_mtu(&self) -> Result<(), Problem> {
        self.mtu.map_or(Ok(()), |mtu| range(mtu, MTU_LEAST, MTU_MOST))
    }

    fn check_settings(&self, id: &str, carries_vlan: bool) -> Within<String> {
        let field = |name: &str| name.to_owned();
        let whole = |problem| (String::new(), problem);
        limit(self.addresses.len(), ADDRESSES_LIMIT).map_err(|p| (field(".addresses"), p))?;
        limit(self.dns.len(), ADDRESSES_LIMIT).map_err(|p| (field(".dns"), p))?;
        limit(self.search.len(), ADDRESSES_LIMIT).map_err(|p| (field(".search"), p))?;
        limit(self.routes.len(), ROUTES_LIMIT).map_err(|p| (field(".routes"), p))?;
        let mut networks: Vec<Cidr> = Vec::new();
        for (index, text) in self.addresses.iter().enumerate() {
            let cidr = Cidr::parse_host(text).map_err(|p| (format!(".addresses[{index}]"), p))?;
            if networks.iter().any(|known| known.address == cidr.address) {
                return Err((format!(".addresses[{index}]"), Problem::Twice(text.clone())));
            }
            networks.push(cidr);
        }
        let fixed4 = networks.iter().any(|cidr| cidr.address.is_ipv4());
        let nothing = networks.is_empty() && !self.dhcp && !self.dhcp6 && self.slaac != Some(true);
        // A bridge may be there for pods alone, and what carries a VLAN for it alone.
        let may_be_bare = carries_vlan || self.bridge.is_some();
        if (self.dhcp && fixed4) || (nothing && !may_be_bare) {
            return Err(whole(Problem::Choice(id.to_owned())));
        }
        for (index, text) in self.dns.iter().enumerate() {
            address(text).map_err(|p| (format!(".dns[{index}]"), p))?;
        }
        for (index, text) in self.search.iter().enumerate() {
            domain(text).map_err(|p| (format!(".search[{index}]"), p))?;
        }
        self.check_gateways(&networks)
            .map_err(|(name, p)| (field(name), p))?;
        for (index, route) in self.routes.iter().enumerate() {
            route
                .check(&networks, self.dhcp, self.slaac != Some(false))
                .map_err(|(name, p)| (format!(".routes[{index}].{name}"), p))?;
        }
        self.check_mtu().map_err(|p| (field(".mtu"), p))
    }

    fn check_gateways(&self, networks: &[Cidr]) -> Within<&'static str> {
        if let Some(text) = &self.gateway {
            let field = ".gateway";
            let gateway: Ipv4Addr = text
                .parse()
                .map_err(|_| (field, Problem::Family(text.clone(), 4)))?;
            // With DHCP the server names the network; older packs carry a gateway beside it, which does not count.
            if !self.dhcp {
                reachable(gateway.into(), networks).map_err(|p| (field, p))?;
            }
        }
        if let Some(text) = &self.gateway6 {
            let field = ".gateway6";
            let gateway: Ipv6Addr = text
                .parse()
                .map_err(|_| (field, Problem::Family(text.clone(), 6)))?;
            reachable(gateway.into(), networks).map_err(|p| (field, p))?;
        }
        Ok(())
    }
}

impl RouteConfig {
    fn check(&self, networks: &[Cidr], leased4: bool, advertised: bool) -> Within<&'static str> {
        let to = Cidr::parse(&self.to).map_err(|p| ("to", p))?;
        if let Some(text) = &self.via {
            let via = address(text).map_err(|p| ("via", p))?;
            if via.is_ipv4() != to.address.is_ipv4() {
                let family = if to.address.is_ipv4() { 4 } else { 6 };
                return Err(("via", Problem::Family(text.clone(), family)));
            }
            // What a server will lease is not known before.
            let unknown = if via.is_ipv4() { leased4 } else { advertised };
            if !unknown {
                reachable(via, networks).map_err(|p| ("via", p))?;
            }
        }
        Ok(())
    }
}

fn wrong(field: &str, problem: Problem) -> InvalidConfig {
    InvalidConfig {
        field: field.to_owned(),
        problem,
    }
}

fn at(field: &str, result: Result<(), Problem>) -> Result<(), InvalidConfig> {
    result.map_err(|problem| wrong(field, problem))
}

fn limit(count: usize, most: usize) -> Result<(), Problem> {
    if count > most {
        Err(Problem::TooMany(count, most))
    } else {
        Ok(())
    }
}

fn range(value: u32, least: u32, most: u32) -> Result<(), Problem> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(Problem::Range { value, least, most })
    }
}

fn once(known: &[String], id: &str) -> Result<(), Problem> {
    if known.iter().any(|other| other == id) {
        Err(Problem::Twice(id.to_owned()))
    } else {
        Ok(())
    }
}

fn address(text: &str) -> Result<IpAddr, Problem> {
    let parsed = text.parse().ok().filter(|a: &IpAddr| !a.is_unspecified());
    parsed.ok_or_else(|| Problem::Address(text.chars().take(80).collect()))
}

fn reachable(address: IpAddr, networks: &[Cidr]) -> Result<(), Problem> {
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if link_local || networks.iter().any(|cidr| cidr.contains(&address)) {
        Ok(())
    } else {
        Err(Problem::Unreachable(address))
    }
}

/// A card by its MAC address, whether an entry names it or not, or a made link that stands before.
fn reference(text: &str, known: &[String]) -> Result<String, Problem> {
    let mac = text.to_ascii_lowercase();
    if is_mac(&mac) {
        return Ok(mac);
    }
    if known.iter().any(|other| other == text) {
        return Ok(text.to_owned());
    }
    Err(Problem::Unknown(text.chars().take(80).collect()))
}

fn domain(text: &str) -> Result<(), Problem> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(())
    } else {
        Err(Problem::Domain(text.chars().take(80).collect()))
    }
}

/// `aa:bb:cc:dd:ee:ff`.
#[must_use]
pub fn is_mac(text: &str) -> bool {
    let pairs: Vec<&str> = text.split(':').collect();
    pairs.len() == 6
        && pairs
            .iter()
            .all(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_link_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    text.len() <= NAME_LIMIT
        && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && text.bytes().all(inner)
        && !matches!(text, "lo" | "all" | "default")
}

/// What `beemesh-net` made of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Every link that is looked after, and cards that the config names and the machine does not have.
    pub links: Vec<LinkStatus>,
    /// DNS servers in use, in order.
    #[serde(default)]
    pub dns: Vec<String>,
    /// DNS search domains in use.
    #[serde(default)]
    pub search: Vec<String>,
    /// NTP servers that the config and DHCP name, in order.
    #[serde(default)]
    pub ntp: Vec<String>,
    /// The id of the trial whose config is in use; `None`: the confirmed one is.
    #[serde(default)]
    pub trial: Option<String>,
    /// Why the newest config was not taken; the one before it stays in use.
    #[serde(default)]
    pub refused: Option<String>,
}

/// One link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Interface name.
    pub name: String,
    /// MAC address.
    pub mac: String,
    /// Addresses in CIDR notation.
    pub addresses: Vec<String>,
    /// `static`, `dhcp`, `dhcp6`, `slaac`, several with `+` between them, `link-local`, or `member of <link>`.
    pub source: String,
    /// What went wrong, in words.
    pub error: Option<String>,
    /// `card`, `vlan`, `bond` or `bridge`.
    #[serde(default)]
    pub kind: String,
    /// It has a cable and someone at its other end.
    #[serde(default)]
    pub carrier: bool,
    /// Largest packet, in bytes.
    #[serde(default)]
    pub mtu: u32,
    /// The same before it was changed by a config or a lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu_before: Option<u32>,
}

#[cfg(test)]
mod tests;
