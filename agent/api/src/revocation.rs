//! Revocations as an operator sees them on a node. How they are signed is `usb-joinpack/SPEC.md`, section 11.

use beemesh_ids::PeerId;
use beemesh_joinpack_format::Envelope;
use serde::{Deserialize, Serialize};

/// What the answering node knows to be revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationView {
    /// The newest time as of which somebody vouched for it.
    pub issued: String,
    /// Seconds that have certainly passed since then.
    pub age_s: u64,
    /// Young enough to admit newcomers by vouchers as old: at most seven days.
    pub admits: bool,
    /// Nodes.
    pub nodes: Vec<PeerId>,
    /// Vouchers.
    pub vouchers: Vec<String>,
    /// Keys of roles.
    pub keys: Vec<String>,
    /// The signed snapshots: whoever revokes more verifies these and adds to them.
    pub snapshots: Vec<Envelope>,
}
