//! Receipts: what a node writes back to the stick. Where they are stored is the node's business.
//!
//! Signed by the node's own key, which its peer id names, so a receipt proves who wrote it and no more. A node that has no
//! identity yet (or refuses before it makes one) writes an unsigned receipt: for people, not for proof.

use crate::validate::payload;
use crate::{Envelope, PublicKey, Refusal, RoleKeys, SecretKey, Timestamp, limits};
use beemesh_ids::{FabricId, NodeName, PeerId};
use serde::{Deserialize, Serialize};

/// DSSE payload type of a [`Receipt`].
pub const RECEIPT_PAYLOAD_TYPE: &str = "application/vnd.beemesh.receipt.v1+json";
const WHAT: &str = "receipt";

/// What a node did with a pack: the payload of an envelope of type [`RECEIPT_PAYLOAD_TYPE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Name of the node, if it has one.
    pub node: Option<NodeName>,
    /// Peer id of the node, if it has an identity. A signed receipt has one.
    pub peer_id: Option<PeerId>,
    /// Fabric of the node, if it has one.
    pub fabric: Option<FabricId>,
    /// Serial of the pack, if it was verified so far that it can be believed.
    pub serial: Option<String>,
    /// Boot id of the kernel that wrote it (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// When, by the node's clock.
    pub at: Timestamp,
    /// What happened.
    pub outcome: Outcome,
}

/// What became of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// The node follows the pack.
    Applied,
    /// The node did not take the pack.
    Refused {
        /// [`Refusal::code`].
        code: String,
        /// The sentence.
        message: String,
    },
}

/// How far a receipt can be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// The key of this peer id signed it.
    SignedBy(PeerId),
    /// Nobody signed it.
    Unsigned,
}

impl Receipt {
    /// The receipt as a file's content, signed by `key` if there is one.
    pub fn to_envelope(&self, key: Option<&SecretKey>) -> Result<Envelope, Refusal> {
        let keys: Vec<_> = key.into_iter().collect();
        Ok(Envelope::sign(RECEIPT_PAYLOAD_TYPE, &payload(WHAT, self)?, &keys))
    }

    /// Reads a receipt file of at most [`limits::RECEIPT_LIMIT`] bytes and tells who signed it.
    /// A signature that is not the node's own is a refusal.
    pub fn parse(bytes: &[u8]) -> Result<(Self, Proof), Refusal> {
        let envelope = Envelope::parse(bytes, limits::RECEIPT_LIMIT)?;
        envelope.check_type(RECEIPT_PAYLOAD_TYPE)?;
        let read = |payload: &[u8]| serde_json::from_slice(payload).map_err(|e| Refusal::malformed(WHAT, e));
        let receipt: Self = read(&envelope.unverified_payload()?)?;
        if envelope.signatures().is_empty() {
            return Ok((receipt, Proof::Unsigned));
        }
        let Some(peer) = receipt.peer_id.clone() else {
            return Err(Refusal::malformed(WHAT, "it is signed but names no peer id"));
        };
        let key = PublicKey::from_bytes(peer.to_ed25519());
        envelope.verify_all(RECEIPT_PAYLOAD_TYPE, &RoleKeys::new([key], 1))?;
        Ok((receipt, Proof::SignedBy(peer)))
    }

    /// Relative path in the pack: `receipts/<peer>-<serial or seconds>.json`, fit for FAT.
    pub fn path(&self) -> String {
        let peer = self.peer_id.as_ref().map_or("unknown", |peer| peer.short());
        let serial = self
            .serial
            .as_deref()
            .filter(|s| s.len() == 26 && s.bytes().all(|b| b.is_ascii_alphanumeric()));
        let tail = serial.map_or_else(|| self.at.0.to_string(), str::to_owned);
        format!("receipts/{peer}-{tail}.json")
    }
}
