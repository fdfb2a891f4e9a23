//! Key orders: an operator says which nodes are to take a new key. Desired state, not a command.
//!
//! Reads no clock: an order is as new as its id ([`crate::Order`]).

use crate::validate::{ascending, check_ulid, parse_payload, payload};
use crate::{
    Act, Deed, Envelope, Order, Orders, Refusal, Role, RootChain, SecretKey, Source, Timestamp, limits,
};
use beemesh_ids::{FabricId, PeerId};
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
    /// Node ids, ascending, 1 to [`limits::MEMBERS`]; without them, all nodes.
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
            Some(nodes) if nodes.len() > limits::MEMBERS => Err(Refusal::LimitExceeded {
                what: "nodes in one key order",
                limit: limits::MEMBERS,
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

impl Order for KeyOrder {
    const MANY: &'static str = "key orders that each name another node";

    fn id(&self) -> &str {
        &self.id
    }

    fn names(&self, node: &PeerId) -> bool {
        self.names(node)
    }

    fn nodes(&self) -> Option<impl Iterator<Item = &PeerId>> {
        self.nodes.as_ref().map(|nodes| nodes.iter())
    }
}

/// The key orders that still say something.
pub type KeyOrders = Orders<KeyOrder>;
