//! Node keys and the orders to rotate them, as an operator sees them. How they are signed is `usb-joinpack/SPEC.md`, section 14.

use crate::view::NodeStatus;
use beemesh_ids::{NodeName, PeerId};
use serde::{Deserialize, Serialize};

/// What the answering node knows of the members' keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysView {
    /// The members, in the order of [`crate::view::path::NODES`].
    pub nodes: Vec<NodeKeyView>,
    /// The orders that still say something, the oldest first.
    pub orders: Vec<OrderView>,
}

/// One member's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeKeyView {
    /// Name.
    pub name: NodeName,
    /// Node id: the peer id of its first key.
    pub node: PeerId,
    /// Peer id of the key that it has now.
    pub key: PeerId,
    /// How many keys it had before.
    pub generation: u32,
    /// When it took the key, as it says.
    pub since: String,
    /// Id of the order, or of the voucher, that the key is as new as.
    pub as_of: String,
    /// Id of the order that is outstanding: the key is older than that.
    pub order: Option<String>,
    /// The node can rotate no more: its chain is full.
    pub used_up: bool,
    /// Liveness.
    pub status: NodeStatus,
}

/// An order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderView {
    /// Id, a ULID.
    pub id: String,
    /// When it was given, by the operator's clock.
    pub issued: String,
    /// Node ids; `None`: all.
    pub nodes: Option<Vec<PeerId>>,
}
