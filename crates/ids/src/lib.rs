//! Identifiers that every stage shares.
//!
//! Each type validates once, where it is made, and is opaque afterwards: a value that exists is well formed.
//! Nothing here knows what the identifier names.

mod digest;
mod name;
mod peer;

pub use digest::{Digest, DigestHasher};
pub use name::{FabricId, NodeName};
pub use peer::PeerId;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Not `sha256:` and 64 lower-case hexadecimal digits.
    #[error("`{0}` is not a digest: expected `sha256:` and 64 lower-case hexadecimal digits")]
    Digest(String),
    /// Not a fabric id.
    #[error("`{0}` is not a fabric id: expected 64 lower-case hexadecimal digits")]
    Fabric(String),
    /// Not a DNS label (RFC 1123).
    #[error(
        "`{0}` is not a node name: expected 1 to 63 of a-z, 0-9 and `-`, not starting or ending with `-`"
    )]
    NodeName(String),
    /// Not the base58 text of an Ed25519 libp2p peer id.
    #[error("`{0}` is not an Ed25519 peer id")]
    Peer(String),
}
