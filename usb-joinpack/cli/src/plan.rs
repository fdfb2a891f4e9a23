//! What a pack should contain, from flags, from one TOML file and from one CSV file. Reads no key and makes no pack.
//!
//! Invariant: a [`Plan`] names at least one node unless it is for members only, or for machines that ask; what the format bounds, the format checks when the pack is signed.

use crate::ask;
use crate::boxes;
use crate::chance::parse_span;
use crate::failure::{Failure, invalid};
use anyhow::{Context as _, anyhow};
use beemesh_firmware_credential::EndorsementKey;
use beemesh_ids::{Digest, NodeName};
use beemesh_joinpack_format::{
    EndorsementFile, Envelope, NodeEntry, NodeNetwork, Proof, RECEIPT_PAYLOAD_TYPE, Receipt, Refusal,
    ReleaseEntry, limits,
};
use serde::{Deserialize, Serialize};
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

/// A longer plan file is not read.
pub const PLAN_LIMIT: u64 = 1 << 20;

/// A place in a pack.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// As the manifest has it.
    pub entry: NodeEntry,
    /// The endorsement key of its machine, where it is known: the place's one-time key is encrypted to it.
    pub key: Option<EndorsementKey>,
    /// It gets no voucher: its machine asks, and an operator lets it in or not.
    pub approval: bool,
    /// It gets no voucher: its machine writes a request, and `answer` gives it one.
    pub request: bool,
}

impl Place {
    /// Whether its machine has to ask for it.
    pub fn asks(&self) -> bool {
        self.approval || self.request
    }
}

/// What to put into a pack.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// The nodes.
    pub nodes: Vec<Place>,
    /// Members to find the fabric by.
    pub peers: Vec<String>,
    /// Images: name and OCI archive.
    pub images: Vec<(String, PathBuf)>,
    /// Validity in seconds.
    pub expires: i64,
    /// The first node may found the cell alone.
    pub found: bool,
    /// Machines without a place may ask, and an operator lets them in or not.
    pub approval: bool,
    /// Machines without a place may write a request to the stick, for `answer`.
    pub requests: bool,
    /// An empty disk may be taken.
    pub blank_disk: bool,
    /// Members are to take new keys.
    pub rotate_keys: bool,
    /// Cell.
    pub cell: String,
    /// Nodes that the cell will have in the end, if more than are in this pack.
    pub roster_size: Option<u32>,
    /// OS releases that members may have booted.
    pub releases: Vec<ReleaseEntry>,
}

/// The flags of `create` that say what goes into the pack.
#[derive(Debug, Default, PartialEq, clap::Args)]
pub struct PlanArgs {
    /// A node: NAME[,mac=aa:bb:cc:dd:ee:ff][,serial=TEXT][,ek=FILE|sha256:HEX][,address=CIDR][,gateway=IP][,dns=IP][,dhcp]
    /// [,approval][,request];
    /// address and dns may be repeated. With ek=FILE (of `bmctl node ek -o json`, or the receipt of a stick that was in the
    /// machine) only that machine's TPM can use the place; a hash only chooses the machine. With approval, or
    /// request, the machine gets name and network, and asks as with --approval, or --requests
    #[arg(long = "node", value_name = "NODE", value_parser = parse_node)]
    nodes: Vec<Place>,
    /// That many nodes, named node-1 to node-N, for any machine, with DHCP
    #[arg(long = "nodes", value_name = "N", conflicts_with = "nodes")]
    count: Option<u32>,
    /// A member that new nodes can reach
    #[arg(long = "peer", value_name = "IP:PORT")]
    peers: Vec<String>,
    /// An image as OCI archive (a tar file)
    #[arg(long = "image", value_name = "NAME=FILE", value_parser = parse_image)]
    images: Vec<(String, PathBuf)>,
    /// How long the pack can be used [default: 30d]
    #[arg(long, value_name = "SPAN", value_parser = parse_span)]
    expires: Option<i64>,
    /// A pack for members: brings keys, revocations, peers and images, and places for nobody
    #[arg(long, conflicts_with_all = ["nodes", "count", "found"])]
    news: bool,
    /// The first node may found the cell alone
    #[arg(long)]
    found: bool,
    /// A machine for which the pack has no place shows a code and waits until an operator lets it in: `bmctl node approve CODE`
    #[arg(long, conflicts_with = "news")]
    approval: bool,
    /// A machine for which the pack has no place writes a request to the stick: bring it back, and `answer` gives it a place
    /// that is for its TPM alone
    #[arg(long, conflicts_with = "news")]
    requests: bool,
    /// Members that read the stick take a new key; signed with the operator's key
    #[arg(long)]
    rotate_keys: bool,
    /// Nodes may take an empty disk for their state
    #[arg(long)]
    blank_disk: bool,
    /// Cell that the nodes join [default: main]
    #[arg(long, value_name = "NAME")]
    cell: Option<String>,
    /// Nodes that the cell will have in the end, if more than this pack brings
    #[arg(long, value_name = "N")]
    roster_size: Option<u32>,
    /// An OS release that members may have booted: the `release.json` that `image build` wrote beside the image. Members whose
    /// TPM shows that they did are trusted; at most 8
    #[arg(long = "release", value_name = "FILE")]
    releases: Vec<PathBuf>,
    /// Nodes from a CSV file, a row each, by the columns name, mac, serial, ek, address, gateway and dns of its first line; only
    /// those that are used need be there. A row without a name is node-N
    #[arg(long, value_name = "FILE", conflicts_with = "count")]
    csv: Option<PathBuf>,
    /// The same from a TOML file; flags add to its lists and win over its values
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

/// The TOML file.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PlanFile {
    pub(crate) cell: Option<String>,
    pub(crate) expires: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) found: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) approval: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) requests: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) blank_disk: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) rotate_keys: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) peers: Vec<String>,
    pub(crate) nodes: Option<u32>,
    pub(crate) roster_size: Option<u32>,
    /// Files `release.json`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) releases: Vec<PathBuf>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) node: Vec<FileNode>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) image: Vec<FileImage>,
}

/// What counts of a `release.json`.
#[derive(Debug, Deserialize)]
struct ReleaseFile {
    version: String,
    pcr11: Digest,
}

/// A node of the TOML file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FileNode {
    pub(crate) name: NodeName,
    pub(crate) mac: Option<String>,
    pub(crate) serial: Option<String>,
    pub(crate) ek: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) dhcp: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) approval: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) request: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) addresses: Vec<String>,
    pub(crate) gateway: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) dns: Vec<String>,
}

/// An image of the TOML file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileImage {
    pub(crate) name: String,
    pub(crate) archive: PathBuf,
}

/// `NAME[,key=value]…` -> a node.
fn parse_node(text: &str) -> Result<Place, String> {
    let mut parts = text.split(',');
    let name = parts
        .next()
        .unwrap_or_default()
        .parse()
        .map_err(|e: beemesh_ids::InvalidId| e.to_string())?;
    let (mut mac, mut serial, mut ek) = (None, None, None);
    let mut network = NodeNetwork::default();
    let (mut approval, mut request) = (false, false);
    for part in parts {
        match part.split_once('=') {
            None if part == "dhcp" => network.dhcp = true,
            None if part == "approval" => approval = true,
            None if part == "request" => request = true,
            Some(("mac", value)) if mac.is_none() => mac = Some(value.to_ascii_lowercase()),
            Some(("serial", value)) if serial.is_none() => serial = Some(value.to_owned()),
            Some(("ek", value)) if ek.is_none() => ek = Some(read_ek(Path::new(""), value)?),
            Some(("address", value)) => network.addresses.push(value.to_owned()),
            Some(("dns", value)) => network.dns.push(value.to_owned()),
            Some(("gateway", value)) if network.gateway.is_none() => network.gateway = Some(value.to_owned()),
            _ => {
                return Err(format!(
                    "`{part}` is not one of mac=, serial=, ek=, address=, gateway=, dns=, dhcp, approval and request, or given twice"
                ));
            }
        }
    }
    Ok(Place {
        approval,
        request,
        ..place(name, mac, serial, ek, network)
    })
}

/// A node whose network says nothing gets DHCP, and no entry.
pub fn place(
    name: NodeName,
    mac: Option<String>,
    serial: Option<String>,
    ek: Option<(Digest, Option<EndorsementKey>)>,
    network: NodeNetwork,
) -> Place {
    let network = (network != NodeNetwork::default()).then_some(network);
    let (ek, key) = ek.map_or((None, None), |(ek, key)| (Some(ek), key));
    Place {
        entry: NodeEntry {
            name,
            mac,
            serial,
            ek,
            network,
        },
        key,
        approval: false,
        request: false,
    }
}

/// `sha256:HEX`, or below `base` the file of an endorsement key, or a signed receipt that holds one.
pub fn read_ek(base: &Path, text: &str) -> Result<(Digest, Option<EndorsementKey>), String> {
    if text.starts_with("sha256:") {
        let digest = text.parse().map_err(|e| format!("`{text}`: {e}"))?;
        return Ok((digest, None));
    }
    let path = base.join(text);
    let mut bytes = Vec::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(PLAN_LIMIT + 1).read_to_end(&mut bytes))
        .map_err(|e| format!("failed to read `{}`: {e}", path.display()))?;
    let named = |e: Refusal| format!("`{}`: {e}", path.display());
    // The receipt of a stick that was in the machine says it as well as the machine itself.
    let (file, public) = match Receipt::parse(&bytes) {
        Ok((receipt, Proof::SignedBy(_))) => {
            let file = receipt.machine.ek;
            let file = file
                .ok_or_else(|| format!("`{}` is the receipt of a machine without a TPM", path.display()))?;
            let public = file.public_key().map_err(named)?;
            (file, public)
        }
        Ok((_, Proof::Unsigned)) => {
            return Err(format!("`{}` is a receipt that nobody signed", path.display()));
        }
        Err(refusal) if is_receipt(&bytes) => return Err(named(refusal)),
        Err(_) => EndorsementFile::parse(&bytes).map_err(named)?,
    };
    let key = EndorsementKey::parse(&public).map_err(|e| format!("`{}`: {e}", path.display()))?;
    Ok((file.ek, Some(key)))
}

fn is_receipt(bytes: &[u8]) -> bool {
    Envelope::parse(bytes, limits::RECEIPT_LIMIT)
        .is_ok_and(|envelope| envelope.payload_type() == RECEIPT_PAYLOAD_TYPE)
}

/// The release that a `release.json` is of.
pub fn read_release(path: &Path) -> Result<ReleaseEntry, Failure> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(PLAN_LIMIT + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        invalid!("failed to read `{}`: {error}", path.display());
    }
    match serde_json::from_slice::<ReleaseFile>(&bytes) {
        Ok(ReleaseFile { version, pcr11 }) => Ok(ReleaseEntry { version, pcr11 }),
        Err(error) => invalid!(
            "`{}` is not the `release.json` of an image with its PCR 11: {error}",
            path.display()
        ),
    }
}

pub fn parse_image(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok((name.to_owned(), file.into())),
        _ => Err(format!("`{text}` is not NAME=FILE")),
    }
}

fn numbered(count: u32) -> Result<Vec<Place>, Failure> {
    if count == 0 || count as usize > limits::NODES {
        invalid!("{count} nodes: a pack can bring 1 to {}", limits::NODES);
    }
    (1..=count)
        .map(|n| {
            let name = format!("node-{n}")
                .parse()
                .map_err(|e| Failure::Invalid(anyhow!("{e}")))?;
            Ok(place(name, None, None, None, NodeNetwork::default()))
        })
        .collect()
}

fn read_file(path: &Path) -> Result<PlanFile, Failure> {
    let open = || {
        let mut text = String::new();
        std::fs::File::open(path)?
            .take(PLAN_LIMIT + 1)
            .read_to_string(&mut text)
            .map(|_| text)
    };
    let text = open().map_err(|e| Failure::Invalid(anyhow!("failed to read `{}`: {e}", path.display())))?;
    if text.len() as u64 > PLAN_LIMIT {
        invalid!("`{}` is larger than {PLAN_LIMIT} bytes", path.display());
    }
    toml::from_str(&text).map_err(|e| Failure::Invalid(anyhow!("`{}`: {e}", path.display())))
}

/// What the person at the terminal says, who then sees how to say it at once.
fn asked() -> Result<PlanFile, Failure> {
    let file = ask::plan(&mut std::io::stdin().lock(), &mut std::io::stderr())?;
    let text = toml::to_string(&file).context("failed to write TOML")?;
    eprintln!("\nThe same again, without questions: --from FILE, the file being\n\n{text}");
    Ok(file)
}

impl PlanArgs {
    /// The plan: the file first, then the flags. A person who gave neither is asked.
    pub fn resolve(self) -> Result<Plan, Failure> {
        let file = match &self.from {
            Some(path) => read_file(path)?,
            None if self == Self::default() && std::io::stdin().is_terminal() => asked()?,
            None => PlanFile::default(),
        };
        let base = self
            .from
            .as_deref()
            .and_then(Path::parent)
            .unwrap_or(Path::new(""));
        let mut nodes = Vec::new();
        for entry in file.node {
            let FileNode {
                name,
                mac,
                serial,
                ek,
                dhcp,
                approval,
                request,
                addresses,
                gateway,
                dns,
            } = entry;
            let ek = match ek.map(|text| read_ek(base, &text)).transpose() {
                Ok(ek) => ek,
                Err(message) => invalid!("node `{name}`: {message}"),
            };
            let mac = mac.map(|mac| mac.to_ascii_lowercase());
            let network = NodeNetwork {
                dhcp,
                addresses,
                gateway,
                dns,
            };
            nodes.push(Place {
                approval,
                request,
                ..place(name, mac, serial, ek, network)
            });
        }
        if let Some(path) = &self.csv {
            nodes.extend(boxes::read(path)?);
        }
        nodes.extend(self.nodes);
        match self.count.or(file.nodes) {
            Some(count) if nodes.is_empty() => nodes = numbered(count)?,
            Some(_) => invalid!("nodes are given by number and by name: choose one"),
            None => {}
        }
        let asking = |place: &&Place| place.asks();
        if let Some(place) = nodes.iter().filter(asking).find(|place| !place.entry.is_tied()) {
            invalid!(
                "node `{}` that asks needs mac=, serial= or ek=: or which machine is it? (--approval and --requests are for any)",
                place.entry.name
            );
        }
        let approval = self.approval || file.approval || nodes.iter().any(|place| place.approval);
        let requests = self.requests || file.requests || nodes.iter().any(|place| place.request);
        if nodes.is_empty() && !self.news && !approval && !requests {
            invalid!(
                "the pack names no node: give --node NAME or --nodes N, --approval or --requests for machines that ask, or \
                 --news for members only"
            );
        }
        let peers = [file.peers, self.peers].concat();
        if approval && peers.is_empty() {
            invalid!("approval needs a member that machines can ask: give --peer IP:PORT");
        }
        let in_file = match file.expires.as_deref().map(parse_span).transpose() {
            Ok(span) => span,
            Err(message) => invalid!("{message}"),
        };
        let mut images: Vec<_> = file
            .image
            .into_iter()
            .map(|i| (i.name, base.join(i.archive)))
            .collect();
        images.extend(self.images);
        let releases = file
            .releases
            .iter()
            .map(|path| base.join(path))
            .chain(self.releases);
        let releases = releases
            .map(|path| read_release(&path))
            .collect::<Result<_, _>>()?;
        Ok(Plan {
            nodes,
            peers,
            images,
            expires: self.expires.or(in_file).unwrap_or(30 * 86_400),
            found: self.found || file.found,
            approval,
            requests,
            blank_disk: self.blank_disk || file.blank_disk,
            rotate_keys: self.rotate_keys || file.rotate_keys,
            cell: self.cell.or(file.cell).unwrap_or_else(|| "main".to_owned()),
            roster_size: self.roster_size.or(file.roster_size),
            releases,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_reads_all_its_settings() {
        let node = parse_node(
            "till-1,mac=52:54:00:AA:00:01,serial=SN 1,address=10.0.0.5/24,gateway=10.0.0.1,dns=10.0.0.1,dns=9.9.9.9",
        )
        .unwrap()
        .entry;
        assert_eq!(node.serial.as_deref(), Some("SN 1"));
        let network = node.network.unwrap();
        assert_eq!(node.mac.as_deref(), Some("52:54:00:aa:00:01"));
        assert_eq!(network.addresses, ["10.0.0.5/24"]);
        assert_eq!(network.dns, ["10.0.0.1", "9.9.9.9"]);
        assert!(!network.dhcp);
        assert_eq!(parse_node("till-2").unwrap().entry.network, None);
    }

    #[test]
    fn misspelt_settings_of_a_node_are_named() {
        for bad in ["till,adress=10.0.0.5/24", "till,mac=1,mac=2", "Till", ""] {
            assert!(parse_node(bad).is_err(), "{bad}");
        }
        assert!(parse_node("till,adress=x").unwrap_err().contains("`adress=x`"));
    }

    #[test]
    fn numbered_nodes_are_bounded() {
        assert_eq!(numbered(2).unwrap()[1].entry.name.as_str(), "node-2");
        assert!(numbered(0).is_err());
        assert!(numbered(513).is_err());
    }
}
