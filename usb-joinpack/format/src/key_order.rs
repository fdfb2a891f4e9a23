//! Key orders: an operator says which nodes are to take a new key. Desired state, not a command.
//!
//! Reads no clock: an order is as new as its id. Invariant: [`KeyOrders`] says the same whatever the order of arrival, and a
//! replay says nothing new.

use crate::validate::{ascending, check_ulid, parse_payload, payload};
use crate::{Act, Deed, Envelope, Refusal, Role, RootChain, SecretKey, Source, Timestamp, limits};
use beemesh_ids::{Digest, DigestHasher, FabricId, PeerId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// DSSE payload type of a [`KeyOrder`].
pub const KEY_ORDER_PAYLOAD_TYPE: &str = "application/vnd.beemesh.key-order.v1+json";
const WHAT: &str = "key order";

/// An order: node keys that are as of an older id are to be rotated. The payload of an envelope of type
/// [`KEY_ORDER_PAYLOAD_TYPE`], signed by the role [`Role::Operator`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyOrder {
    /// The fabric.
    pub fabric: FabricId,
    /// Id of the order, a ULID: the greater one is the newer one, whatever the clocks said.
    pub id: String,
    /// When, by the operator's clock. For people.
    pub issued: Timestamp,
    /// Node ids, ascending, 1 to [`limits::NODES`]; without them, all nodes.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "some_ascending"
    )]
    pub nodes: Option<BTreeSet<PeerId>>,
}

fn some_ascending<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeSet<PeerId>>, D::Error> {
    ascending(deserializer).map(Some)
}

impl KeyOrder {
    /// Signs the order with each of `keys`. Refuses one that no reader would accept.
    pub fn sign(&self, keys: &[&SecretKey]) -> Result<Envelope, Refusal> {
        Ok(Envelope::sign(KEY_ORDER_PAYLOAD_TYPE, &self.to_payload()?, keys))
    }

    /// What is signed. Refuses an order that no reader would accept.
    pub fn to_payload(&self) -> Result<Vec<u8>, Refusal> {
        self.check()?;
        payload(WHAT, self)
    }

    /// The order in `envelope`, if operators of the fabric of `roots` signed it who may.
    pub fn verify(envelope: &Envelope, roots: &RootChain, source: Source) -> Result<Self, Refusal> {
        roots.accept(envelope, source)
    }

    /// Whether it is for this node.
    pub fn names(&self, node: &PeerId) -> bool {
        self.nodes.as_ref().is_none_or(|nodes| nodes.contains(node))
    }

    fn check(&self) -> Result<(), Refusal> {
        check_ulid("key order id", &self.id)?;
        match &self.nodes {
            Some(nodes) if nodes.is_empty() => Err(Refusal::malformed(WHAT, "it names no node")),
            Some(nodes) if nodes.len() > limits::NODES => Err(Refusal::LimitExceeded {
                what: "nodes in one key order",
                limit: limits::NODES,
            }),
            _ => Ok(()),
        }
    }
}

impl Deed for KeyOrder {
    const PAYLOAD_TYPE: &'static str = KEY_ORDER_PAYLOAD_TYPE;
    const WHAT: &'static str = WHAT;
    const ROLES: &'static [Role] = &[Role::Operator];

    fn read(payload: &[u8]) -> Result<Self, Refusal> {
        let order: Self = parse_payload(WHAT, payload)?;
        order.check()?;
        Ok(order)
    }

    fn act(&self) -> Act<'_> {
        Act::RotateKeys
    }

    fn at(&self) -> Timestamp {
        self.issued
    }

    fn fabric(&self) -> &FabricId {
        &self.fabric
    }
}

/// The orders that still say something, with what proves them: at most [`limits::ORDERS`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyOrders {
    /// By ascending id.
    held: Vec<(KeyOrder, Envelope)>,
}

impl KeyOrders {
    /// The orders that `envelopes` prove. What does not verify any more (its signer has left the role) is left out.
    pub fn restore(envelopes: &[Envelope], roots: &RootChain) -> Self {
        let mut orders = Self::default();
        for envelope in envelopes.iter().take(limits::ORDERS) {
            let _ = orders.take(envelope, roots, Source::Member);
        }
        orders
    }

    /// Verifies an order and takes it. Returns whether it says something new: not what is known, nor to nodes of which each
    /// has a newer order. Orders that say nothing any more are dropped.
    pub fn take(&mut self, envelope: &Envelope, roots: &RootChain, source: Source) -> Result<bool, Refusal> {
        let order = KeyOrder::verify(envelope, roots, source)?;
        if self.held.iter().any(|(known, _)| known.id == order.id) || self.is_outdated(&order) {
            return Ok(false);
        }
        let mut orders = self.clone();
        let at = orders.held.partition_point(|(known, _)| known.id < order.id);
        orders.held.insert(at, (order, envelope.clone()));
        let all = orders.clone();
        orders.held.retain(|(order, _)| !all.is_outdated(order));
        if orders.held.len() > limits::ORDERS {
            return Err(Refusal::LimitExceeded {
                what: "key orders that each name another node",
                limit: limits::ORDERS,
            });
        }
        *self = orders;
        Ok(true)
    }

    fn is_outdated(&self, order: &KeyOrder) -> bool {
        let newer = || self.held.iter().filter(|(known, _)| known.id > order.id);
        let is_ordered = |node: &PeerId| newer().any(|(known, _)| known.names(node));
        newer().any(|(known, _)| known.nodes.is_none())
            || order
                .nodes
                .as_ref()
                .is_some_and(|nodes| nodes.iter().all(is_ordered))
    }

    /// Id of the newest order for a node.
    pub fn newest_for(&self, node: &PeerId) -> Option<&str> {
        let mut newest_first = self.held.iter().rev();
        let (order, _) = newest_first.find(|(order, _)| order.names(node))?;
        Some(&order.id)
    }

    /// The orders, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &KeyOrder> {
        self.held.iter().map(|(order, _)| order)
    }

    /// The orders, as they were signed.
    pub fn envelopes(&self) -> impl Iterator<Item = &Envelope> {
        self.held.iter().map(|(_, envelope)| envelope)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The same wherever the same orders are held.
    pub fn digest(&self) -> Digest {
        let mut hasher = DigestHasher::default();
        for order in self.iter() {
            hasher.update(format!("{}\n", order.id).as_bytes());
        }
        hasher.finish()
    }
}
