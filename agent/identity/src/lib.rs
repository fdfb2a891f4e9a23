//! Who a node is, and who the others are: the node key, the roster of members, who asks to become one, TLS between operators and nodes.
//!
//! Documents and their verification are `usb-joinpack/format`'s; this crate keeps the key on this machine and applies
//! what was verified to handshakes. It opens no connection.
//!
//! Invariants: a node key that exists is replaced only by one that the membership on the disk names; a peer counts as a member only after its credential was verified
//! against the root chain of that moment, for the key that the handshake proved.

mod certificate;
mod memory;
mod node_key;
pub mod petition;
mod ratchet;
mod revocation;
mod roster;
pub mod rotation;
mod tls;

pub use memory::{Memory, MemoryError};
pub use node_key::{KeyError, NewKey, NodeKey, SealedKey};
pub use ratchet::{KeyRatchet, KeyRefusal, OVERLAP_MS};
pub use revocation::{ADMISSION_AGE, Moment, RevocationDocument, Revoked, SharedRevocations};
pub use roster::{AdmissionRefusal, Clock, MEMBERS, MembershipAdmission, Quarantine, Roster};
pub use tls::{OperatorKey, TlsError, client_config, member_of, operator_of, server_config};

use beemesh_joinpack_format::RootChain;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// The root chain of a running node: whoever extends it changes what the next handshake is judged by.
pub type SharedRoots = Arc<RwLock<RootChain>>;

/// A chain is replaced as a whole, so a writer that panicked left a good one behind.
fn read(roots: &SharedRoots) -> RwLockReadGuard<'_, RootChain> {
    roots.read().unwrap_or_else(PoisonError::into_inner)
}
