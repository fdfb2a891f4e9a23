//! DSSE envelopes (<https://github.com/secure-systems-lab/dsse>, `protocol.md`, v1): signing, bounded parsing, k-of-n.
//!
//! Narrower than DSSE where that removes choices: one JSON text per envelope (compact, members in order, nothing unknown),
//! canonical base64, Ed25519. Knows no document: what the payload means is its caller's business.
//! Invariant: the payload comes out only through a check of its signatures.

use crate::refusal::clean;
use crate::{KeyId, Refusal, RoleKeys, SecretKey, SignError, Signer, limits};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One signature of an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Which key signed.
    pub keyid: KeyId,
    /// Base64 of the 64 bytes.
    pub sig: String,
}

/// A signed document. The payload is reached by [`Envelope::verify`] alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<Signature>,
}

/// What happens to signatures of keys that the role does not know.
#[derive(Clone, Copy, PartialEq)]
enum Strangers {
    /// Not counted (DSSE's rule): a document stays valid when one of its signers has left the role.
    Ignored,
    /// Refused: then no byte of the envelope can change unnoticed.
    Refused,
}

/// DSSE's pre-authentication encoding: what is really signed.
fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

impl Envelope {
    /// Signs `payload` with each of `keys`. Without keys the envelope is unsigned, and verifies nowhere.
    pub fn sign(payload_type: &str, payload: &[u8], keys: &[&SecretKey]) -> Self {
        let message = pae(payload_type, payload);
        let signatures = keys
            .iter()
            .map(|key| Signature {
                keyid: key.public().key_id(),
                sig: STANDARD.encode(key.sign(&message)),
            })
            .collect();
        Self {
            payload: STANDARD.encode(payload),
            payload_type: payload_type.to_owned(),
            signatures,
        }
    }

    /// As [`Envelope::sign`], by keys that may lie on tokens. Each signature is checked before it is taken.
    ///
    /// # Errors
    /// A key did not sign, or not this.
    pub fn sign_by(payload_type: &str, payload: &[u8], keys: &[&dyn Signer]) -> Result<Self, SignError> {
        let message = pae(payload_type, payload);
        let mut envelope = Self::sign(payload_type, payload, &[]);
        for key in keys {
            let (public, signature) = (key.public(), key.sign(&message)?);
            if !public.verify(&message, &signature) {
                return Err(format!("what was signed with key {} does not verify", public.key_id()).into());
            }
            envelope.signatures.push(Signature {
                keyid: public.key_id(),
                sig: STANDARD.encode(signature),
            });
        }
        Ok(envelope)
    }

    /// Reads an envelope of at most `limit` bytes. Refuses any other text than the one that [`Envelope::to_json`] gives.
    pub fn parse(bytes: &[u8], limit: usize) -> Result<Self, Refusal> {
        if bytes.len() > limit {
            return Err(Refusal::TooLarge {
                what: "document",
                limit,
            });
        }
        let envelope: Self = serde_json::from_slice(bytes).map_err(|e| Refusal::malformed("document", e))?;
        envelope.check_form()?;
        if envelope.to_json() != bytes {
            return Err(Refusal::malformed(
                "document",
                "its JSON is not in the one form that the format allows",
            ));
        }
        Ok(envelope)
    }

    /// The one JSON text of this envelope.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings and vectors of strings always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The type that the envelope claims.
    pub fn payload_type(&self) -> &str {
        &self.payload_type
    }

    /// The signatures, unverified.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// The payload, if enough different keys of `role` signed it. Signatures of keys outside the role are not counted;
    /// a wrong signature of a key of the role is [`Refusal::BadSignature`].
    pub fn verify(&self, payload_type: &str, role: &RoleKeys) -> Result<Vec<u8>, Refusal> {
        Ok(self.signers(payload_type, role)?.0)
    }

    /// As [`Envelope::verify`], with the ids of the role's keys that signed, at least as many as its threshold.
    pub(crate) fn signers(
        &self,
        payload_type: &str,
        role: &RoleKeys,
    ) -> Result<(Vec<u8>, BTreeSet<KeyId>), Refusal> {
        self.judge(payload_type, role, Strangers::Ignored)
    }

    /// As [`Envelope::signers`], for [`Envelope::verify_all`].
    pub(crate) fn signers_all(
        &self,
        payload_type: &str,
        role: &RoleKeys,
    ) -> Result<(Vec<u8>, BTreeSet<KeyId>), Refusal> {
        self.judge(payload_type, role, Strangers::Refused)
    }

    /// Like [`Envelope::verify`], but a signature of a key outside the role is [`Refusal::UnknownKey`]: with
    /// [`Envelope::parse`] this leaves no bit of the text that could change unnoticed.
    pub fn verify_all(&self, payload_type: &str, role: &RoleKeys) -> Result<Vec<u8>, Refusal> {
        Ok(self.signers_all(payload_type, role)?.0)
    }

    /// The payload before any check: only for finding the keys to check it with.
    pub(crate) fn unverified_payload(&self) -> Result<Vec<u8>, Refusal> {
        STANDARD
            .decode(&self.payload)
            .map_err(|e| Refusal::malformed("payload", e))
    }

    pub(crate) fn check_type(&self, payload_type: &str) -> Result<(), Refusal> {
        if self.payload_type == payload_type {
            return Ok(());
        }
        Err(Refusal::WrongType {
            expected: payload_type.to_owned(),
            found: clean(&self.payload_type),
        })
    }

    pub(crate) fn check_form(&self) -> Result<(), Refusal> {
        if self.payload_type.len() > limits::PAYLOAD_TYPE {
            return Err(Refusal::malformed("document", "its type is too long"));
        }
        if self.signatures.len() > limits::SIGNATURES {
            return Err(Refusal::LimitExceeded {
                what: "signatures in one document",
                limit: limits::SIGNATURES,
            });
        }
        Ok(())
    }

    fn judge(
        &self,
        payload_type: &str,
        role: &RoleKeys,
        strangers: Strangers,
    ) -> Result<(Vec<u8>, BTreeSet<KeyId>), Refusal> {
        self.check_type(payload_type)?;
        self.check_form()?;
        let payload = self.unverified_payload()?;
        let message = pae(payload_type, &payload);
        let mut valid = BTreeSet::new();
        let mut stranger = None;
        for signature in &self.signatures {
            let Some(key) = role.key(&signature.keyid) else {
                stranger.get_or_insert(&signature.keyid);
                continue;
            };
            let bytes = STANDARD
                .decode(&signature.sig)
                .map_err(|e| Refusal::malformed("signature", e))?;
            if !key.verify(&message, &bytes) {
                return Err(Refusal::BadSignature {
                    what: name(payload_type),
                    key: signature.keyid.clone(),
                });
            }
            valid.insert(signature.keyid.clone());
        }
        match stranger {
            Some(key) if valid.is_empty() || strangers == Strangers::Refused => Err(Refusal::UnknownKey {
                what: name(payload_type),
                key: key.clone(),
            }),
            _ if valid.is_empty() || valid.len() < role.threshold() => Err(Refusal::ThresholdNotMet {
                what: name(payload_type),
                have: valid.len(),
                need: role.threshold(),
            }),
            _ => Ok((payload, valid)),
        }
    }
}

/// `application/vnd.beemesh.voucher.v1+json` -> `voucher`: what a person calls it.
fn name(payload_type: &str) -> String {
    let name = payload_type
        .trim_start_matches("application/vnd.beemesh.")
        .split('.')
        .next()
        .unwrap_or_default();
    match name {
        "joinpack" => "join pack".to_owned(),
        "root" => "root document".to_owned(),
        name => clean(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: u8) -> SecretKey {
        SecretKey::from_bytes([n; 32])
    }

    fn role(threshold: u32, keys: &[&SecretKey]) -> RoleKeys {
        RoleKeys::new(keys.iter().map(|key| key.public()), threshold)
    }

    #[test]
    fn pae_matches_the_example_of_the_dsse_protocol() {
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn one_key_that_signs_twice_counts_once() {
        let (a, b) = (key(1), key(2));
        let twice = Envelope::sign("t", b"x", &[&a, &a]);
        let refusal = Refusal::ThresholdNotMet {
            what: "t".into(),
            have: 1,
            need: 2,
        };
        assert_eq!(twice.verify("t", &role(2, &[&a, &b])), Err(refusal));
        assert_eq!(
            Envelope::sign("t", b"x", &[&a, &b]).verify("t", &role(2, &[&a, &b])),
            Ok(b"x".to_vec())
        );
    }

    #[test]
    fn stranger_is_ignored_or_refused_as_asked() {
        let (a, b) = (key(1), key(2));
        let envelope = Envelope::sign("t", b"x", &[&a, &b]);
        assert!(envelope.verify("t", &role(1, &[&a])).is_ok());
        assert_eq!(
            envelope.verify_all("t", &role(1, &[&a])).map_err(|r| r.code()),
            Err("unknown-key")
        );
        assert_eq!(
            envelope.verify("t", &role(1, &[&key(3)])).map_err(|r| r.code()),
            Err("unknown-key")
        );
    }

    #[test]
    fn unsigned_envelope_never_verifies() {
        let envelope = Envelope::sign("t", b"x", &[]);
        for threshold in [0, 1] {
            let refused = envelope
                .verify("t", &role(threshold, &[&key(1)]))
                .map_err(|r| r.code());
            assert_eq!(refused, Err("threshold-not-met"));
        }
    }

    #[test]
    fn signature_for_one_type_is_not_one_for_another() {
        let a = key(1);
        let mut envelope = Envelope::sign("t", b"x", &[&a]);
        assert_eq!(
            envelope.verify("u", &role(1, &[&a])).map_err(|r| r.code()),
            Err("wrong-type")
        );
        envelope.payload_type = "u".into();
        assert_eq!(
            envelope.verify("u", &role(1, &[&a])).map_err(|r| r.code()),
            Err("bad-signature")
        );
    }

    #[test]
    fn other_texts_of_the_same_envelope_are_refused() {
        let text = String::from_utf8(Envelope::sign("t", b"x", &[&key(1)]).to_json()).unwrap();
        assert!(Envelope::parse(text.as_bytes(), 4096).is_ok());
        for other in [
            format!("{text}\n"),
            format!(" {text}"),
            text.replacen(',', ", ", 1),
            text.replacen("\"t\"", "\"\\u0074\"", 1),
            text.replacen('{', "{\"more\":1,", 1),
            text.replacen('{', "{\"payload\":\"\",", 1),
        ] {
            assert_eq!(
                Envelope::parse(other.as_bytes(), 4096).map_err(|r| r.code()),
                Err("malformed"),
                "{other}"
            );
        }
    }

    #[test]
    fn oversized_and_oversigned_envelopes_are_refused() {
        let text = Envelope::sign("t", &[0; 100], &[&key(1)]).to_json();
        assert!(Envelope::parse(&text, text.len()).is_ok());
        assert_eq!(
            Envelope::parse(&text, text.len() - 1).map_err(|r| r.code()),
            Err("too-large")
        );
        let a = key(1);
        let many = Envelope::sign("t", b"x", &[&a; limits::SIGNATURES + 1]);
        assert_eq!(
            Envelope::parse(&many.to_json(), 1 << 20).map_err(|r| r.code()),
            Err("limit-exceeded")
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Envelope::parse(&bytes, 1 << 16);
        }

        #[test]
        fn what_is_signed_reads_back(payload: Vec<u8>, kind in "[a-z/.+]{0,40}", n in 1u8..9, threshold in 1u32..9) {
            let keys: Vec<_> = (1..=n).map(key).collect();
            let all: Vec<_> = keys.iter().collect();
            let envelope = Envelope::sign(&kind, &payload, &all);
            prop_assert_eq!(Envelope::parse(&envelope.to_json(), 1 << 20), Ok(envelope.clone()));
            let verified = envelope.verify(&kind, &role(threshold, &all));
            if threshold <= u32::from(n) {
                prop_assert_eq!(verified, Ok(payload));
            } else {
                prop_assert_eq!(verified.map_err(|r| r.code()), Err("threshold-not-met"));
            }
        }
    }
}
