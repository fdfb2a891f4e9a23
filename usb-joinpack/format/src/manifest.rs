//! The manifest: what a join pack says. Its form, its bounds, and whether its parts fit each other.
//!
//! Says nothing about signatures or time (`pack` does). Invariant: [`Manifest::check`] passes for whatever is signed and
//! for whatever [`crate::Pack`] shows.

use crate::refusal::clean;
use crate::release_list::check_releases;
use crate::validate::{
    check_cidr, check_escape, check_image_name, check_ip, check_label, check_mac, check_peer, check_serial,
    check_ulid, distinct, payload,
};
use crate::{Act, Deed, Envelope, LogKey, Refusal, Role, SecretKey, Timestamp, limits};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use beemesh_ids::{Digest, FabricId, NodeName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// DSSE payload type of a [`Manifest`]: the pack's own.
pub const MANIFEST_PAYLOAD_TYPE: &str = "application/vnd.beemesh.joinpack.v1+json";
pub(crate) const FORMAT: u32 = 1;
const WHAT: &str = "join pack";

/// What a join pack says: the payload of `joinpack.json`, signed by the role [`crate::Role::Enrolment`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// Always 1.
    pub format: u32,
    /// The fabric.
    pub fabric: FabricId,
    /// A ULID; of two packs of a fabric the one with the greater serial is newer.
    pub serial: String,
    /// When it was made: a floor for the clock of whoever applies it.
    pub issued: Timestamp,
    /// Not applied after this.
    pub expires: Timestamp,
    /// Root documents 1..N, at most [`limits::ROOTS`].
    pub roots: Vec<Envelope>,
    /// Cell that the nodes join, a DNS label.
    pub cell: String,
    /// Nodes that the cell will have, 1 to [`limits::MEMBERS`]; more than one pack may bring them.
    pub roster_size: u32,
    /// The nodes, at most [`limits::NODES`].
    pub nodes: Vec<NodeEntry>,
    /// Members to find the fabric by, each `IP:PORT`, at most [`limits::PEERS`].
    pub peers: Vec<String>,
    /// Vouchers, one for each node, at most [`limits::VOUCHERS`].
    pub vouchers: Vec<PackVoucher>,
    /// Images, at most [`limits::IMAGES`].
    pub images: Vec<ImageEntry>,
    /// Every blob of the pack with its size in bytes, at most [`limits::BLOBS`].
    pub blobs: BTreeMap<Digest, u64>,
    /// The first node may found the cell alone.
    pub found: bool,
    /// What may be done with the machine's disks.
    pub state: StatePolicy,
    /// Revocation snapshots, at most [`limits::SNAPSHOTS`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revocations: Vec<Envelope>,
    /// Standing orders, at most [`limits::ORDERS`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub orders: Vec<Envelope>,
    /// A machine without a voucher in the pack may ask the peers, and an operator lets it in or not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub approval: bool,
    /// A machine without a voucher in the pack may write a [`crate::Request`] to the stick, which its maker answers.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub requests: bool,
    /// OS releases that members may have booted, at most [`limits::RELEASES`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub releases: Vec<ReleaseEntry>,
    /// The key to which boxes encrypt the log that they leave beside a receipt; without one they leave none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_key: Option<LogKey>,
}

/// An OS release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseEntry {
    /// Version, 1 to [`limits::VERSION`] of `A-Za-z0-9.-~^`.
    pub version: String,
    /// What its unified kernel image leaves in register 11 of a TPM (SHA-256 bank).
    pub pcr11: Digest,
}

/// A node of the roster. What it names of `mac`, `serial` and `ek` must all be the machine's; an entry that names none of
/// them is for any machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    /// Name, as in its voucher.
    pub name: NodeName,
    /// MAC address of the machine's card, lower case `aa:bb:cc:dd:ee:ff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The machine's serial number (SMBIOS 3.7, type 1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The endorsement key of the machine's TPM: the SHA-256 of its `TPMT_PUBLIC`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ek: Option<Digest>,
    /// Network settings; without them DHCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NodeNetwork>,
}

/// Network settings of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeNetwork {
    /// DHCPv4 instead of, or besides, static addresses.
    #[serde(default)]
    pub dhcp: bool,
    /// Static addresses in CIDR notation.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Default gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// DNS servers.
    #[serde(default)]
    pub dns: Vec<String>,
}

/// A voucher with its secret, in the clear or sealed: exactly one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackVoucher {
    /// The voucher as it was signed.
    pub envelope: Envelope,
    /// The one-time key: whoever has the stick may redeem the voucher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_key: Option<SecretKey>,
    /// The one-time key, encrypted to a TPM: only that machine may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_key: Option<SealedKey>,
}

/// A one-time key's seed as the credential of `TPM2_MakeCredential` (TPM 2.0 Library, part 1, "Credential Protection").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedKey {
    /// The endorsement key it is encrypted to: the SHA-256 of its `TPMT_PUBLIC`.
    pub ek: Digest,
    /// Base64 of the content of a `TPM2B_ID_OBJECT`.
    pub credential: String,
    /// Base64 of the content of a `TPM2B_ENCRYPTED_SECRET`.
    pub secret: String,
}

/// An image: an OCI archive (a tar of an OCI image layout) that is one blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageEntry {
    /// Name by which manifests use it.
    pub name: String,
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes, as in [`Manifest::blobs`].
    pub size: u64,
}

/// What may be done with the machine's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatePolicy {
    /// An empty disk may be taken for the state volume.
    pub blank_disk: bool,
}

/// The manifest as JSON has it, before names of blobs are checked: a name that climbs is told apart from a mere typo.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    format: u32,
    fabric: FabricId,
    serial: String,
    issued: Timestamp,
    expires: Timestamp,
    roots: Vec<Envelope>,
    cell: String,
    roster_size: u32,
    nodes: Vec<NodeEntry>,
    peers: Vec<String>,
    vouchers: Vec<PackVoucher>,
    images: Vec<WireImage>,
    #[serde(deserialize_with = "pairs")]
    blobs: Vec<(String, u64)>,
    found: bool,
    state: StatePolicy,
    #[serde(default)]
    revocations: Vec<Envelope>,
    #[serde(default)]
    orders: Vec<Envelope>,
    #[serde(default)]
    approval: bool,
    #[serde(default)]
    requests: bool,
    #[serde(default)]
    releases: Vec<ReleaseEntry>,
    #[serde(default)]
    log_key: Option<LogKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireImage {
    name: String,
    digest: String,
    size: u64,
}

/// A JSON object as pairs, so that a name given twice is seen.
fn pairs<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, u64)>, D::Error> {
    struct Pairs;
    impl<'de> serde::de::Visitor<'de> for Pairs {
        type Value = Vec<(String, u64)>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object of digests and sizes")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut pairs = Vec::new();
            while let Some(pair) = map.next_entry()? {
                pairs.push(pair);
            }
            Ok(pairs)
        }
    }
    deserializer.deserialize_map(Pairs)
}

/// The form that every format version shares.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

impl Deed for Manifest {
    const PAYLOAD_TYPE: &'static str = MANIFEST_PAYLOAD_TYPE;
    const WHAT: &'static str = WHAT;
    const ROLES: &'static [Role] = &[Role::Enrolment];

    fn read(payload: &[u8]) -> Result<Self, Refusal> {
        Self::parse(payload)
    }

    fn act(&self) -> Act<'_> {
        Act::Enrol
    }

    fn at(&self) -> Timestamp {
        self.issued
    }

    fn fabric(&self) -> &FabricId {
        &self.fabric
    }
}

impl Manifest {
    /// Signs the manifest with each of `keys` (of the role [`crate::Role::Enrolment`]). Refuses one that no reader would
    /// accept, so that a bad pack is found where it is made.
    pub fn sign(&self, keys: &[&SecretKey]) -> Result<Envelope, Refusal> {
        Self::check_length(Envelope::sign(MANIFEST_PAYLOAD_TYPE, &self.to_payload()?, keys))
    }

    /// What is signed. Refuses a manifest that no reader would accept.
    pub fn to_payload(&self) -> Result<Vec<u8>, Refusal> {
        self.check()?;
        payload(WHAT, self)
    }

    /// Refuses a signed manifest that no reader would read to its end.
    pub fn check_length(envelope: Envelope) -> Result<Envelope, Refusal> {
        if envelope.to_json().len() > limits::MANIFEST_LIMIT {
            return Err(Refusal::TooLarge {
                what: WHAT,
                limit: limits::MANIFEST_LIMIT,
            });
        }
        Ok(envelope)
    }

    /// Reads a verified payload.
    fn parse(payload: &[u8]) -> Result<Self, Refusal> {
        let fail = |e: serde_json::Error| Refusal::malformed(WHAT, e);
        let version: Versioned = serde_json::from_slice(payload).map_err(fail)?;
        if version.format != FORMAT {
            return Err(Refusal::WrongVersion {
                what: WHAT,
                found: version.format,
                supported: FORMAT,
            });
        }
        let wire: Wire = serde_json::from_slice(payload).map_err(fail)?;
        let mut blobs = BTreeMap::new();
        bound("blobs", wire.blobs.len(), limits::BLOBS)?;
        for (name, size) in wire.blobs {
            if blobs.insert(digest(&name)?, size).is_some() {
                return Err(Refusal::Duplicate {
                    what: "blob",
                    value: clean(&name),
                });
            }
        }
        bound("images", wire.images.len(), limits::IMAGES)?;
        let image = |i: WireImage| {
            Ok(ImageEntry {
                name: i.name,
                digest: digest(&i.digest)?,
                size: i.size,
            })
        };
        let manifest = Self {
            format: wire.format,
            fabric: wire.fabric,
            serial: wire.serial,
            issued: wire.issued,
            expires: wire.expires,
            roots: wire.roots,
            cell: wire.cell,
            roster_size: wire.roster_size,
            nodes: wire.nodes,
            peers: wire.peers,
            vouchers: wire.vouchers,
            images: wire
                .images
                .into_iter()
                .map(image)
                .collect::<Result<_, Refusal>>()?,
            blobs,
            found: wire.found,
            state: wire.state,
            revocations: wire.revocations,
            orders: wire.orders,
            approval: wire.approval,
            requests: wire.requests,
            releases: wire.releases,
            log_key: wire.log_key,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// Every bound and every rule that needs no key: see `SPEC.md`, section "Manifest".
    pub fn check(&self) -> Result<(), Refusal> {
        if self.format != FORMAT {
            return Err(Refusal::WrongVersion {
                what: WHAT,
                found: self.format,
                supported: FORMAT,
            });
        }
        bound("root documents", self.roots.len(), limits::ROOTS)?;
        bound("nodes", self.nodes.len(), limits::NODES)?;
        bound("peers", self.peers.len(), limits::PEERS)?;
        bound("vouchers", self.vouchers.len(), limits::VOUCHERS)?;
        bound("images", self.images.len(), limits::IMAGES)?;
        bound("blobs", self.blobs.len(), limits::BLOBS)?;
        bound("revocation snapshots", self.revocations.len(), limits::SNAPSHOTS)?;
        bound("standing orders", self.orders.len(), limits::ORDERS)?;
        check_releases(&self.releases)?;
        check_ulid("serial", &self.serial)?;
        check_label("cell name", &self.cell)?;
        if self.expires <= self.issued {
            return Err(Refusal::malformed(WHAT, "it expires before it is valid"));
        }
        let size = self.roster_size as usize;
        if size == 0 || size > limits::MEMBERS || size < self.nodes.len() {
            return Err(Refusal::malformed(
                WHAT,
                format_args!("a roster of {size} for {} nodes", self.nodes.len()),
            ));
        }
        self.check_nodes()?;
        distinct("peer", self.peers.iter())?;
        self.peers.iter().try_for_each(|peer| check_peer(peer))?;
        if self.approval && self.peers.is_empty() {
            return Err(Refusal::Inconsistent {
                what: "approval without a peer to ask",
                value: self.cell.clone(),
            });
        }
        self.check_keys()?;
        self.check_images()
    }

    fn check_keys(&self) -> Result<(), Refusal> {
        for voucher in &self.vouchers {
            if voucher.one_time_key.is_some() == voucher.sealed_key.is_some() {
                return Err(Refusal::malformed(
                    "voucher",
                    "it has not exactly one of a one-time key and a sealed one",
                ));
            }
            let sealed = voucher.sealed_key.iter();
            for part in sealed.flat_map(|sealed| [&sealed.credential, &sealed.secret]) {
                if part.is_empty() || part.len() > limits::SEALED || STANDARD.decode(part).is_err() {
                    return Err(Refusal::malformed(
                        "sealed key",
                        format_args!("a part is not base64 of 1 to {} characters", limits::SEALED),
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_nodes(&self) -> Result<(), Refusal> {
        distinct("node", self.nodes.iter().map(|node| &node.name))?;
        distinct(
            "MAC address",
            self.nodes.iter().filter_map(|node| node.mac.as_ref()),
        )?;
        distinct(
            "serial number",
            self.nodes.iter().filter_map(|node| node.serial.as_ref()),
        )?;
        distinct("endorsement key", self.nodes.iter().filter_map(|node| node.ek))?;
        for node in &self.nodes {
            node.mac.iter().try_for_each(|mac| check_mac(mac))?;
            node.serial.iter().try_for_each(|serial| check_serial(serial))?;
            let Some(network) = &node.network else { continue };
            bound(
                "addresses of one node",
                network.addresses.len(),
                limits::ADDRESSES,
            )?;
            bound("DNS servers of one node", network.dns.len(), limits::DNS_SERVERS)?;
            network
                .addresses
                .iter()
                .try_for_each(|address| check_cidr(address))?;
            network
                .dns
                .iter()
                .try_for_each(|server| check_ip("DNS server", server))?;
            network
                .gateway
                .iter()
                .try_for_each(|gateway| check_ip("gateway", gateway))?;
            if !network.dhcp && network.addresses.is_empty() {
                return Err(Refusal::Inconsistent {
                    what: "network without DHCP and addresses",
                    value: node.name.to_string(),
                });
            }
        }
        Ok(())
    }

    fn check_images(&self) -> Result<(), Refusal> {
        distinct("image", self.images.iter().map(|image| &image.name))?;
        if self.blobs.values().any(|size| *size > limits::BLOB_SIZE) {
            return Err(Refusal::malformed(
                "blob",
                format_args!("it is larger than {} bytes", limits::BLOB_SIZE),
            ));
        }
        for image in &self.images {
            check_image_name(&image.name)?;
            if self.blobs.get(&image.digest) != Some(&image.size) {
                return Err(Refusal::Inconsistent {
                    what: "blob of image",
                    value: clean(&image.name),
                });
            }
        }
        Ok(())
    }
}

fn digest(text: &str) -> Result<Digest, Refusal> {
    check_escape(text.strip_prefix("sha256:").unwrap_or(text))?;
    text.parse().map_err(|e| Refusal::malformed("digest", e))
}

fn bound(what: &'static str, count: usize, limit: usize) -> Result<(), Refusal> {
    if count > limit {
        Err(Refusal::LimitExceeded { what, limit })
    } else {
        Ok(())
    }
}
