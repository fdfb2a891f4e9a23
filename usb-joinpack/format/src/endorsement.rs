//! The file that says which TPM a machine has: made by `bmctl node ek -o json`, part of receipts, read by `joinpack create`.
//!
//! Signed by nobody: whoever makes a pack decides whether it came from the machine that is meant. The form of the key is
//! `firmware/credential`'s business.

use crate::Refusal;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use beemesh_ids::Digest;
use serde::{Deserialize, Serialize};

/// Longest file, in bytes.
const LIMIT: usize = 64 * 1024;
const WHAT: &str = "endorsement key";

/// A TPM's endorsement key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndorsementFile {
    /// SHA-256 of the `TPMT_PUBLIC`: names the machine in a pack.
    pub ek: Digest,
    /// Base64 of the `TPMT_PUBLIC`: secrets for the machine are encrypted to it.
    pub public: String,
    /// Base64 of the TPM maker's certificate (X.509, DER), where the TPM holds one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

impl EndorsementFile {
    /// The file of a key.
    pub fn new(public: &[u8], certificate: Option<&[u8]>) -> Self {
        Self {
            ek: Digest::of(public),
            public: STANDARD.encode(public),
            certificate: certificate.map(|bytes| STANDARD.encode(bytes)),
        }
    }

    /// Reads a file, and gives the `TPMT_PUBLIC` beside it. Refuses one whose digest is another key's.
    pub fn parse(bytes: &[u8]) -> Result<(Self, Vec<u8>), Refusal> {
        if bytes.len() > LIMIT {
            return Err(Refusal::TooLarge {
                what: WHAT,
                limit: LIMIT,
            });
        }
        let file: Self = serde_json::from_slice(bytes).map_err(|e| Refusal::malformed(WHAT, e))?;
        let public = file.public_key()?;
        Ok((file, public))
    }

    /// The `TPMT_PUBLIC`. Refused where its digest is another one.
    pub fn public_key(&self) -> Result<Vec<u8>, Refusal> {
        let public = STANDARD
            .decode(&self.public)
            .map_err(|e| Refusal::malformed(WHAT, e))?;
        if Digest::of(&public) != self.ek {
            return Err(Refusal::WrongDigest {
                expected: self.ek,
                found: Digest::of(&public),
            });
        }
        Ok(public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_reads_back_and_a_changed_key_is_noticed() {
        let file = EndorsementFile::new(b"a key", Some(b"a certificate"));
        let text = serde_json::to_string(&file).unwrap();
        assert_eq!(
            EndorsementFile::parse(text.as_bytes()),
            Ok((file.clone(), b"a key".to_vec()))
        );
        let changed = text.replace(&file.public, &STANDARD.encode(b"another"));
        assert_eq!(
            EndorsementFile::parse(changed.as_bytes()).map_err(|r| r.code()),
            Err("wrong-digest")
        );
        assert!(EndorsementFile::parse(&vec![b' '; LIMIT + 1]).is_err());
    }
}
