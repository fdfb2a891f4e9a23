//! Identifiers from content: no randomness, so that a build can be repeated bit for bit.

use beemesh_ids::Digest;
use uuid::{Builder, Uuid, Variant, Version};

fn derive(seed: &[u8; 32], purpose: &str) -> [u8; 32] {
    let mut text = seed.to_vec();
    text.extend_from_slice(b"beemesh disk identifier\0");
    text.extend_from_slice(purpose.as_bytes());
    *Digest::of(&text).as_bytes()
}

/// A version 8 UUID (RFC 9562, section 5.8).
pub(crate) fn guid(seed: &[u8; 32], purpose: &str) -> Uuid {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(derive(seed, purpose)) {
        *to = from;
    }
    Builder::from_bytes(bytes)
        .with_variant(Variant::RFC4122)
        .with_version(Version::Custom)
        .into_uuid()
}

/// A FAT serial number.
pub(crate) fn volume_id(seed: &[u8; 32], purpose: &str) -> u32 {
    derive(seed, purpose)
        .iter()
        .rev()
        .take(4)
        .fold(0, |id, byte| (id << 8) | u32::from(*byte))
}
