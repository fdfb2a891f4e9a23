//! Peer ids: the identity multihash of an Ed25519 public key, as libp2p writes them.

use crate::InvalidId;
use crate::name::text_id;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// identity multihash, 36 bytes: protobuf `PublicKey { type: Ed25519, data: 32 bytes }` (libp2p peer-ids spec).
const PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// The libp2p peer id of an Ed25519 key, in base58 (`12D3KooW…`). The public key can be read back from it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PeerId(String);

impl PeerId {
    /// The peer id of an Ed25519 public key.
    pub fn from_ed25519(public: &[u8; 32]) -> Self {
        let mut bytes = PREFIX.to_vec();
        bytes.extend_from_slice(public);
        Self(bs58::encode(bytes).into_string())
    }

    /// The Ed25519 public key that this id names.
    pub fn to_ed25519(&self) -> [u8; 32] {
        // The constructor checked the form: a value that exists decodes.
        decode(&self.0).unwrap_or([0; 32])
    }

    /// The last eight characters, for people.
    pub fn short(&self) -> &str {
        self.0.get(self.0.len().saturating_sub(8)..).unwrap_or(&self.0)
    }
}

fn decode(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0u8; 38];
    if text.len() > 64 || bs58::decode(text).onto(&mut bytes[..]).ok()? != bytes.len() {
        return None;
    }
    let (prefix, key) = bytes.split_at(PREFIX.len());
    if prefix != PREFIX {
        return None;
    }
    key.try_into().ok()
}

impl FromStr for PeerId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match decode(text) {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(InvalidId::Peer(text.chars().take(80).collect())),
        }
    }
}
text_id!(PeerId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_id_gives_its_key_back() {
        let id = PeerId::from_ed25519(&[7; 32]);
        assert!(id.as_str().starts_with("12D3KooW"), "{id}");
        assert_eq!(
            id.as_str().parse::<PeerId>().map(|id| id.to_ed25519()),
            Ok([7; 32])
        );
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "12D3KooW",
            "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
            &"1".repeat(500),
        ] {
            assert!(text.parse::<PeerId>().is_err(), "{text}");
        }
    }
}
