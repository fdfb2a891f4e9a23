//! What a stick means for this box: join, take news, or nothing.
//!
//! Pure: pack and present state in, decision out; the driver reads, stages and writes. A join becomes real with one
//! atomic write of the [`FabricDocument`]: before it the box is a stranger, after it a member.

use crate::clock::Floor;
use crate::network;
use crate::stick::StickError;
use beemesh_ids::{Digest, NodeName, PeerId};
use beemesh_init_api::NetworkConfig;
use beemesh_joinpack_format::Envelope;
use beemesh_joinpack_format::{
    Assurance, Manifest, Member, Membership, Pack, Refusal, RootChain, Timestamp, Verified,
};
use serde::{Deserialize, Serialize};

/// Name of the document on the state volume.
pub const DOCUMENT: &str = "fabric.json";

/// Everything that makes this box a member. Written whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FabricDocument {
    /// Root documents 1..N.
    pub roots: Vec<Envelope>,
    /// The credential.
    pub membership: Membership,
    /// Serial of the newest pack applied.
    pub serial: String,
    /// Addresses of other members, `ip:port`.
    pub peers: Vec<String>,
    /// This box's network settings.
    pub network: NetworkConfig,
    /// This box may found the cell alone.
    pub found: bool,
    /// The time floor when this was written.
    pub floor: Timestamp,
}

/// The document with its signatures checked again, as at every start.
#[derive(Debug, Clone)]
pub struct Joined {
    /// The document.
    pub document: FabricDocument,
    /// Its root chain.
    pub roots: RootChain,
    /// This box as a member.
    pub member: Member,
}

impl Joined {
    /// Checks a stored document for the key `peer`.
    pub fn check(document: FabricDocument, peer: &PeerId) -> Result<Self, Refusal> {
        let roots = RootChain::bootstrap(&document.roots)?;
        let member = document.membership.verify(&roots, peer)?;
        Ok(Self {
            document,
            roots,
            member,
        })
    }
}

/// What to do with a verified pack.
#[derive(Debug)]
pub struct Plan {
    /// The document to commit.
    pub document: FabricDocument,
    /// Images to stage and import: (name, digest).
    pub images: Vec<(String, Digest)>,
    /// Present state is a member already: only news is taken.
    pub already_member: bool,
}

/// The box as it stands in front of the stick.
pub struct Applicant<'a> {
    /// Peer id of the box.
    pub peer: &'a PeerId,
    /// Where its key lies.
    pub assurance: Assurance,
    /// MAC addresses of its network cards.
    pub macs: &'a [String],
    /// Its time floor.
    pub floor: Floor,
    /// Its system clock.
    pub system: Timestamp,
    /// What it is already.
    pub joined: Option<&'a Joined>,
    /// Vouchers that are known to be redeemed by others: from the stick's receipts, or refused by members.
    pub spent: &'a [String],
}

/// Decides what a verified pack means for the box.
pub fn plan(pack: &Pack<Verified>, applicant: &Applicant<'_>) -> Result<Plan, StickError> {
    let manifest = pack.manifest();
    let entry = network::entry_for(manifest, applicant.macs);
    let mut floor = applicant.floor;
    floor.raise(manifest.issued);
    let membership = match applicant.joined {
        Some(joined) => joined.document.membership.clone(),
        None => redeem(pack, applicant, entry.map(|entry| &entry.name), floor)?,
    };
    // Proves the credential before it is kept: a pack with a bad voucher is refused here and not by the first member.
    membership.verify(pack.roots(), applicant.peer)?;
    let network = match (entry, applicant.joined) {
        (None, Some(joined)) => joined.document.network.clone(),
        (entry, _) => network::config_for(entry),
    };
    let document = FabricDocument {
        roots: pack.roots().envelopes().to_vec(),
        membership,
        serial: manifest.serial.clone(),
        peers: manifest.peers.clone(),
        network,
        found: manifest.found,
        floor: floor.0,
    };
    let images = manifest
        .images
        .iter()
        .map(|image| (image.name.clone(), image.digest))
        .collect();
    Ok(Plan {
        document,
        images,
        already_member: applicant.joined.is_some(),
    })
}

/// Redeems the voucher of the box's own slot; without an own slot the first that no other box has a claim to.
fn redeem(
    pack: &Pack<Verified>,
    applicant: &Applicant<'_>,
    name: Option<&NodeName>,
    floor: Floor,
) -> Result<Membership, StickError> {
    let offers = pack.manifest().vouchers.iter().zip(pack.vouchers());
    let mut unspent = offers.filter(|(_, voucher)| !applicant.spent.contains(&voucher.id));
    let chosen = match name {
        Some(name) => unspent.find(|(_, voucher)| voucher.node == *name),
        None => unspent.find(|(_, voucher)| !reserved(pack.manifest(), &voucher.node)),
    };
    let (offer, voucher) = chosen.ok_or(StickError::NoVoucher)?;
    let now = floor.now_within(applicant.system, voucher.issued, voucher.expires);
    let (key, assurance) = (&offer.one_time_key, applicant.assurance);
    Ok(Membership::redeem(
        &offer.envelope,
        key,
        applicant.peer,
        assurance,
        now,
    )?)
}

/// A slot is reserved when the pack ties its name to a network card.
fn reserved(manifest: &Manifest, name: &NodeName) -> bool {
    manifest
        .nodes
        .iter()
        .any(|entry| entry.name == *name && entry.mac.is_some())
}
