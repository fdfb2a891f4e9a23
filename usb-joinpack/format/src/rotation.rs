//! Rotations of node keys: a node goes on to a new key, and the old one and the new one both say so.
//!
//! A node keeps the peer id that it redeemed its voucher with as its *node id*; the peer ids of its later keys follow from
//! the chain of its rotations. Makes no key, and remembers nothing: which of two chains was seen first is its readers' to
//! know. Invariant: a chain has no gap, no key twice, and obeys ever newer orders.

use crate::validate::{check_ulid, parse_payload, payload};
use crate::{Envelope, PublicKey, Refusal, RoleKeys, SecretKey, Timestamp, limits};
use beemesh_ids::{FabricId, PeerId};
use serde::{Deserialize, Serialize};

/// DSSE payload type of a [`Rotation`].
pub const ROTATION_PAYLOAD_TYPE: &str = "application/vnd.beemesh.rotation.v1+json";
const WHAT: &str = "rotation";

/// One rotation: the payload of an envelope of type [`ROTATION_PAYLOAD_TYPE`], signed by the keys of `from` and of `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// The fabric.
    pub fabric: FabricId,
    /// Node id: the peer id in the redemption.
    pub node: PeerId,
    /// 1, 2, 3, ...: how many rotations the node has made with this one.
    pub generation: u32,
    /// Peer id of the key that goes.
    pub from: PeerId,
    /// Peer id of the key that comes.
    pub to: PeerId,
    /// Id of the newest order that this obeys, a ULID.
    pub order: String,
    /// When, by the node's time floor. For people: nothing is decided by it.
    pub issued: Timestamp,
}

impl Rotation {
    /// Signs the rotation with both keys. Refuses keys that are not those of `from` and `to`.
    pub fn sign(&self, from: &SecretKey, to: &SecretKey) -> Result<Envelope, Refusal> {
        check_ulid("order of a rotation", &self.order)?;
        if [peer(from), peer(to)] != [self.from.clone(), self.to.clone()] || self.from == self.to {
            return Err(self.inconsistent("key"));
        }
        Ok(Envelope::sign(
            ROTATION_PAYLOAD_TYPE,
            &payload(WHAT, self)?,
            &[from, to],
        ))
    }

    /// The rotation in `envelope`, if exactly the two keys that it names signed it.
    pub fn verify(envelope: &Envelope) -> Result<Self, Refusal> {
        envelope.check_type(ROTATION_PAYLOAD_TYPE)?;
        // What it says of itself only chooses the keys that must have signed exactly that.
        let said: Self = parse_payload(WHAT, &envelope.unverified_payload()?)?;
        let keys = [&said.from, &said.to].map(|peer| PublicKey::from_bytes(peer.to_ed25519()));
        envelope.verify_all(ROTATION_PAYLOAD_TYPE, &RoleKeys::new(keys, 2))?;
        check_ulid("order of a rotation", &said.order)?;
        if said.from == said.to {
            return Err(said.inconsistent("key"));
        }
        Ok(said)
    }

    fn inconsistent(&self, what: &'static str) -> Refusal {
        Refusal::Inconsistent {
            what,
            value: format!("rotation {} of {}", self.generation, self.node),
        }
    }
}

fn peer(key: &SecretKey) -> PeerId {
    PeerId::from_ed25519(key.public().as_bytes())
}

/// The keys that a node has had, and the one of them that a peer has shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeKeys {
    /// Peer id of the first key: the node id.
    node: PeerId,
    /// Peer ids of the keys since, in the order of their generations 1, 2, 3, ...
    later: Vec<PeerId>,
    /// Generation of the key that was shown.
    shown: u32,
    /// Id of the voucher.
    voucher: String,
    /// The newest order that was obeyed.
    order: Option<String>,
    /// When the newest key was taken, by the node.
    since: Timestamp,
}

impl NodeKeys {
    /// The keys of a node that has redeemed a voucher and not rotated since.
    pub fn first(node: PeerId, voucher: String, redeemed: Timestamp) -> Self {
        Self {
            node,
            later: Vec::new(),
            shown: 0,
            voucher,
            order: None,
            since: redeemed,
        }
    }

    /// Walks the chain of `rotations` on from the first key. `shown` must be one of the keys.
    pub(crate) fn walk(
        mut self,
        fabric: &FabricId,
        rotations: &[Envelope],
        shown: &PeerId,
    ) -> Result<Self, Refusal> {
        if rotations.len() > limits::ROTATIONS {
            return Err(Refusal::LimitExceeded {
                what: "rotations of one node",
                limit: limits::ROTATIONS,
            });
        }
        for envelope in rotations {
            let rotation = Rotation::verify(envelope)?;
            if rotation.fabric != *fabric {
                return Err(Refusal::OtherFabric {
                    what: WHAT,
                    found: rotation.fabric,
                    expected: fabric.clone(),
                });
            }
            let is_next = rotation.node == self.node
                && rotation.generation == self.generation().saturating_add(1)
                && rotation.from == *self.newest();
            if !is_next {
                return Err(rotation.inconsistent("place in the chain"));
            }
            if self.generation_of(&rotation.to).is_some() {
                return Err(rotation.inconsistent("key, which the node has had before,"));
            }
            if self.order.as_ref().is_some_and(|order| rotation.order <= *order) {
                return Err(rotation.inconsistent("order, which is no newer one,"));
            }
            self.later.push(rotation.to);
            self.order = Some(rotation.order);
            self.since = rotation.issued;
        }
        self.shown = self.generation_of(shown).ok_or(Refusal::OtherPeer)?;
        Ok(self)
    }

    /// The node id.
    pub fn node(&self) -> &PeerId {
        &self.node
    }

    /// Peer id of the newest key.
    pub fn newest(&self) -> &PeerId {
        self.later.last().unwrap_or(&self.node)
    }

    /// Generation of the newest key: 0 for the first one.
    pub fn generation(&self) -> u32 {
        u32::try_from(self.later.len()).unwrap_or(u32::MAX)
    }

    /// Peer ids of all keys, the oldest first.
    pub fn all(&self) -> impl Iterator<Item = &PeerId> {
        std::iter::once(&self.node).chain(&self.later)
    }

    /// Generation of the key with this peer id; `None` for a key that the node never had.
    pub fn generation_of(&self, peer: &PeerId) -> Option<u32> {
        let at = self.all().position(|key| key == peer)?;
        u32::try_from(at).ok()
    }

    /// Generation of the key that was shown.
    pub fn shown(&self) -> u32 {
        self.shown
    }

    /// The id, of an order or of the voucher, that the newest key is as new as: older orders are none to this node.
    pub fn as_of(&self) -> &str {
        match &self.order {
            Some(order) if *order > self.voucher => order,
            _ => &self.voucher,
        }
    }

    /// When the newest key was taken, as the node says.
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// The next rotation, to `to`; `None` where the chain has no room for another one.
    pub fn next(&self, fabric: &FabricId, to: PeerId, order: String, issued: Timestamp) -> Option<Rotation> {
        (self.later.len() < limits::ROTATIONS).then(|| Rotation {
            fabric: fabric.clone(),
            node: self.node.clone(),
            generation: self.generation().saturating_add(1),
            from: self.newest().clone(),
            to,
            order,
            issued,
        })
    }
}
