//! Ed25519 keys (RFC 8032) and their ids. Makes no key: callers bring 32 bytes of randomness.
//!
//! Verification is the strict kind: no malleable signatures, no keys of small order.

use crate::Refusal;
use beemesh_ids::Digest;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use std::fmt;

pub(crate) fn unhex(what: &'static str, text: &str) -> Result<[u8; 32], Refusal> {
    let fail = || Refusal::malformed(what, "expected 64 lower-case hexadecimal digits");
    let mut bytes = [0; 32];
    if text.len() != 64 || text.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(fail());
    }
    hex::decode_to_slice(text, &mut bytes).map_err(|_| fail())?;
    Ok(bytes)
}

/// The id of a key: SHA-256 of its 32 public bytes, 64 lower-case hexadecimal digits. `Display` shows the first 16.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct KeyId(String);

impl KeyId {
    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.get(..16).unwrap_or(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for KeyId {
    type Error = Refusal;
    fn try_from(text: String) -> Result<Self, Refusal> {
        unhex("key id", &text).map(|_| Self(text))
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.0
    }
}

/// An Ed25519 public key, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key with these 32 bytes. Bytes that are no point of the curve verify nothing.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id of the key.
    pub fn key_id(&self) -> KeyId {
        KeyId(Digest::of(&self.0).hex())
    }

    /// Whether `signature` (64 bytes) is this key's signature over `message` (RFC 8032, strict).
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let (Ok(key), Ok(signature)) = (
            VerifyingKey::from_bytes(&self.0),
            Signature::from_slice(signature),
        ) else {
            return false;
        };
        key.verify_strict(message, &signature).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = Refusal;
    fn try_from(text: String) -> Result<Self, Refusal> {
        unhex("public key", &text).map(Self)
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        hex::encode(key.0)
    }
}

/// An Ed25519 secret key (the 32-byte seed of RFC 8032), erased when dropped. `Debug` shows its public half only.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key of a seed. The caller answers for its randomness.
    pub fn from_bytes(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// The seed. The caller answers for the copy.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs `message`: 64 bytes, deterministic.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

/// Why a key did not sign: what the token that holds it says.
pub type SignError = Box<dyn std::error::Error + Send + Sync>;

/// Something that signs with an Ed25519 key: the key itself, or a token that never gives it out.
pub trait Signer {
    /// The public half.
    fn public(&self) -> PublicKey;
    /// Signs `message`: 64 bytes (RFC 8032).
    ///
    /// # Errors
    /// The token is gone or refuses.
    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError>;
}

impl Signer for SecretKey {
    fn public(&self) -> PublicKey {
        self.public()
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        Ok(self.sign(message))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {:?})", self.public())
    }
}

impl TryFrom<String> for SecretKey {
    type Error = Refusal;
    fn try_from(text: String) -> Result<Self, Refusal> {
        unhex("secret key", &text).map(Self::from_bytes)
    }
}

impl Serialize for SecretKey {
    /// As 64 lower-case hexadecimal digits: only for documents that are meant to hold the secret.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn signature_matches_the_first_vector_of_rfc_8032() {
        let seed = unhex(
            "seed",
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        )
        .unwrap();
        let key = SecretKey::from_bytes(seed);
        assert_eq!(
            format!("{:?}", key.public()),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
        assert_eq!(
            hex::encode(key.sign(b"")),
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        );
    }

    #[test]
    fn secret_is_not_shown() {
        let key = SecretKey::from_bytes([7; 32]);
        assert!(!format!("{key:?}").contains("0707"));
    }

    #[test]
    fn key_of_small_order_verifies_nothing() {
        // The neutral element: with cofactored verification, R = S = 0 would pass for every message.
        let mut neutral = [0u8; 32];
        neutral[0] = 1;
        let mut signature = [0u8; 64];
        signature[0] = 1;
        assert!(!PublicKey::from_bytes(neutral).verify(b"anything", &signature));
    }

    proptest! {
        #[test]
        fn what_is_signed_verifies_and_nothing_else(seed: [u8; 32], message: Vec<u8>, other: Vec<u8>, flip in 0usize..512) {
            let key = SecretKey::from_bytes(seed);
            let mut signature = key.sign(&message);
            prop_assert!(key.public().verify(&message, &signature));
            prop_assert_eq!(key.public().verify(&other, &signature), other == message);
            signature[flip / 8] ^= 1 << (flip % 8);
            prop_assert!(!key.public().verify(&message, &signature));
        }
    }
}
