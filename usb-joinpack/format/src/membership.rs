//! Membership: the credential that a node shows to its peers, made of a voucher and its redemption.
//!
//! Whether a voucher was redeemed twice is for those to see who hear of both. Invariant: a verified [`Member`] holds the
//! key that it has shown only by the caller's own check (the handshake); this module binds voucher, node and keys together.

use crate::validate::{parse_payload, payload};
use crate::{
    Admission, Envelope, NodeKeys, Refusal, RoleKeys, RootChain, Rotation, SecretKey, Source, Timestamp,
    Voucher, limits,
};
use beemesh_ids::{Digest, FabricId, NodeName, PeerId};
use serde::{Deserialize, Serialize};

/// DSSE payload type of a [`Redemption`].
pub const REDEMPTION_PAYLOAD_TYPE: &str = "application/vnd.beemesh.redemption.v1+json";
const WHAT: &str = "redemption";

/// How far a node's key can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Assurance {
    /// The key is sealed in the machine's TPM, says the node.
    Tpm,
    /// The key lies in a file.
    Low,
}

/// A redemption: the payload of an envelope of type [`REDEMPTION_PAYLOAD_TYPE`], signed by the voucher's one-time key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redemption {
    /// The fabric.
    pub fabric: FabricId,
    /// Id of the voucher.
    pub voucher: String,
    /// The node that redeems.
    pub peer_id: PeerId,
    /// How far its key can be believed.
    pub assurance: Assurance,
    /// When, by the node's time floor.
    pub redeemed: Timestamp,
}

/// The credential of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The voucher as the operator signed it.
    pub voucher: Envelope,
    /// The redemption as the one-time key signed it.
    pub redemption: Envelope,
    /// The rotations of the node's key since, without a gap, at most [`limits::ROTATIONS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rotations: Vec<Envelope>,
}

/// What a verified credential says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The fabric.
    pub fabric: FabricId,
    /// Name of the node.
    pub name: NodeName,
    /// Node id: the peer id that redeemed the voucher, whatever key the node has now.
    pub peer_id: PeerId,
    /// Its keys.
    pub keys: NodeKeys,
    /// Id of the voucher it redeemed.
    pub voucher_id: String,
    /// When the voucher was made.
    #[serde(default = "epoch")]
    pub vouched: Timestamp,
    /// Cell of the node.
    pub cell: String,
    /// How far its key can be believed.
    pub assurance: Assurance,
    /// When it redeemed the voucher.
    pub redeemed: Timestamp,
}

/// A roster that was kept before members had this.
fn epoch() -> Timestamp {
    Timestamp::EPOCH
}

impl Membership {
    /// Redeems a voucher for `peer` at `now`. Refuses a key that is not the voucher's, and a voucher out of its time.
    pub fn redeem(
        voucher: &Envelope,
        one_time: &SecretKey,
        peer: &PeerId,
        assurance: Assurance,
        now: Timestamp,
    ) -> Result<Self, Refusal> {
        let document = Voucher::read_unverified(voucher)?;
        document.check_time(now)?;
        if document.key != one_time.public() {
            return Err(Refusal::Inconsistent {
                what: "one-time key",
                value: document.node.to_string(),
            });
        }
        let redemption = Redemption {
            fabric: document.fabric,
            voucher: document.id,
            peer_id: peer.clone(),
            assurance,
            redeemed: now,
        };
        let redemption = Envelope::sign(REDEMPTION_PAYLOAD_TYPE, &payload(WHAT, &redemption)?, &[one_time]);
        Ok(Self {
            voucher: voucher.clone(),
            redemption,
            rotations: Vec::new(),
        })
    }

    /// Who shows this credential, if the fabric of `roots` signed its voucher and the node redeemed it in the voucher's time.
    /// `peer` must be one of the node's keys; whether an older one is still good is for those to judge who remember. The voucher's
    /// expiry is judged by the time of the redemption, that of the key that signed it by the time of the voucher: a member
    /// stays one.
    pub fn verify(&self, roots: &RootChain, peer: &PeerId) -> Result<Member, Refusal> {
        self.verify_redemption(Voucher::verify(&self.voucher, roots, Source::Member)?, peer)
    }

    /// As [`Membership::verify`], for a member that the caller knew already: an enrolment key that was revoked since
    /// admits no one new, but those whom it admitted stay.
    pub fn verify_known(&self, roots: &RootChain, peer: &PeerId) -> Result<Member, Refusal> {
        self.verify_redemption(Voucher::verify_known(&self.voucher, roots)?, peer)
    }

    /// Who the credential is about. Whoever shows it need not be that machine: for judging two redemptions of one voucher.
    pub fn subject(&self, roots: &RootChain) -> Result<Member, Refusal> {
        let voucher = Voucher::verify_known(&self.voucher, roots)?;
        let payload = self
            .redemption
            .verify(REDEMPTION_PAYLOAD_TYPE, &RoleKeys::new([voucher.key], 1))?;
        let redemption: Redemption = parse_payload(WHAT, &payload)?;
        self.verify_redemption(voucher, &redemption.peer_id)
    }

    /// What the credential says about `peer`, whoever signed its voucher: for those who know no roots. Only the redemption is
    /// checked.
    pub fn claim(&self, peer: &PeerId) -> Result<Member, Refusal> {
        self.verify_redemption(Voucher::read_unverified(&self.voucher)?, peer)
    }

    fn verify_redemption(&self, voucher: Voucher, peer: &PeerId) -> Result<Member, Refusal> {
        let payload = self
            .redemption
            .verify(REDEMPTION_PAYLOAD_TYPE, &RoleKeys::new([voucher.key], 1))?;
        let redemption: Redemption = parse_payload(WHAT, &payload)?;
        if redemption.fabric != voucher.fabric {
            let expected = voucher.fabric;
            return Err(Refusal::OtherFabric {
                what: WHAT,
                found: redemption.fabric,
                expected,
            });
        }
        if redemption.voucher != voucher.id {
            return Err(Refusal::Inconsistent {
                what: "redemption",
                value: voucher.node.to_string(),
            });
        }
        // The key that an operator approved is the machine's own: nobody else redeems that voucher.
        let approved = voucher.admission == Admission::Approved;
        if approved && PeerId::from_ed25519(voucher.key.as_bytes()) != redemption.peer_id {
            return Err(Refusal::OtherPeer);
        }
        let keys = NodeKeys::first(
            redemption.peer_id.clone(),
            voucher.id.clone(),
            redemption.redeemed,
        );
        let keys = keys.walk(&voucher.fabric, &self.rotations, peer)?;
        voucher.check_time(redemption.redeemed)?;
        Ok(Member {
            fabric: voucher.fabric,
            name: voucher.node,
            peer_id: redemption.peer_id,
            keys,
            voucher_id: voucher.id,
            vouched: voucher.issued,
            cell: voucher.cell,
            assurance: redemption.assurance,
            redeemed: redemption.redeemed,
        })
    }

    /// Peer id of the key that the last rotation names, whoever signed the rest: for the node itself, to find that key by.
    /// `None` for a node that has its first key.
    pub fn rotated_to(&self) -> Option<PeerId> {
        let last = self.rotations.last()?;
        Rotation::verify(last).ok().map(|rotation| rotation.to)
    }

    /// The endorsement key that the voucher is for, where it is for one TPM alone. For a credential that was verified: this
    /// checks nothing.
    pub fn endorsement(&self) -> Option<Digest> {
        Voucher::read_unverified(&self.voucher).ok()?.ek
    }

    /// The credential as it goes over the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings and vectors of strings always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a credential of at most [`limits::MEMBERSHIP_LIMIT`] bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        const WHAT: &str = "membership credential";
        if bytes.len() > limits::MEMBERSHIP_LIMIT {
            return Err(Refusal::TooLarge {
                what: WHAT,
                limit: limits::MEMBERSHIP_LIMIT,
            });
        }
        serde_json::from_slice(bytes).map_err(|e| Refusal::malformed(WHAT, e))
    }
}
