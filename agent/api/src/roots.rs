//! The chain of root documents as an operator sees it on a node. How they are signed is `usb-joinpack/SPEC.md`, section 3.

use beemesh_ids::FabricId;
use beemesh_joinpack_format::{Envelope, Grant, KeyId, Role, Timestamp};
use serde::{Deserialize, Serialize};

/// What the answering node follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootsView {
    /// The fabric.
    pub fabric: FabricId,
    /// How many root documents there are.
    pub version: u32,
    /// When the newest was made.
    pub issued: Timestamp,
    /// What is certainly past, by which it judges whether a key has expired.
    pub past: Timestamp,
    /// The keys that the newest one names, by role.
    pub keys: Vec<RoleKeyView>,
    /// The signed documents, 1 to N: whoever makes the next one verifies these.
    pub documents: Vec<Envelope>,
}

/// A key in a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleKeyView {
    /// The role.
    pub role: Role,
    /// How many of the role's keys must sign.
    pub threshold: u32,
    /// The key.
    pub key: KeyId,
    /// Until when it signs; `None` for good.
    pub expires: Option<Timestamp>,
    /// What an operator's key may do; `None` everything.
    pub scope: Option<Vec<Grant>>,
    /// Whether it signs now.
    pub state: KeyState,
}

/// Whether a key signs now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// It does.
    Valid,
    /// Its time is over.
    Expired,
    /// Recovery revoked it.
    Revoked,
}

/// What became of root documents that somebody brought: they prove themselves, so anybody may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootsTaken {
    /// The root document that the node follows now.
    pub version: u32,
    /// Whether that is a newer one than before.
    pub news: bool,
}
