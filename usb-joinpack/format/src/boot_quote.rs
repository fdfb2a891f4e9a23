//! What a machine's TPM says of its boot, in receipts and requests: a quote, whose nonce is the rest of the document.
//!
//! Verifies nothing: `firmware/measure` does, and `agent/sched` judges. Invariant: a quote in a document is bounded, and base64.

use crate::validate::payload;
use crate::{Refusal, Registers, limits};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use beemesh_ids::Digest;
use serde::{Deserialize, Serialize};

const WHAT: &str = "quote";
/// Longest key, and longest `TPMS_ATTEST`, in bytes.
const PART: usize = 512;
/// Length of a signature in bytes: ECDSA P-256, r and s.
const SIGNATURE: usize = 64;
/// Bytes that a quote takes at most in a file, where the document is in base64 itself, with the document's signature.
pub(crate) const RESERVE: usize = 6 * 1024;

/// A quote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootQuote {
    /// Base64 of the `TPMT_PUBLIC` of the attestation key that signed it.
    pub ak: String,
    /// Base64 of the `TPMS_ATTEST`.
    pub attest: String,
    /// Base64 of the signature: ECDSA P-256 with SHA-256, r and s.
    pub signature: String,
    /// The registers' values, of which `attest` holds the digest.
    pub pcrs: Registers,
}

/// The parts of a quote as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuoteParts {
    /// `TPMT_PUBLIC` of the attestation key.
    pub ak: Vec<u8>,
    /// `TPMS_ATTEST`.
    pub attest: Vec<u8>,
    /// r and s.
    pub signature: Vec<u8>,
}

impl BootQuote {
    /// The quote of these parts.
    pub fn new(parts: &QuoteParts, pcrs: Registers) -> Self {
        Self {
            ak: STANDARD.encode(&parts.ak),
            attest: STANDARD.encode(&parts.attest),
            signature: STANDARD.encode(&parts.signature),
            pcrs,
        }
    }

    /// Its parts. Refuses what is past its bounds.
    pub fn parts(&self) -> Result<QuoteParts, Refusal> {
        let registers = &self.pcrs.0;
        if registers.len() > usize::from(limits::REGISTERS)
            || registers.keys().any(|number| *number >= limits::REGISTERS)
        {
            return Err(Refusal::malformed(WHAT, "it is over registers that no TPM has"));
        }
        Ok(QuoteParts {
            ak: part(&self.ak, PART)?,
            attest: part(&self.attest, PART)?,
            signature: part(&self.signature, SIGNATURE)?,
        })
    }
}

fn part(text: &str, limit: usize) -> Result<Vec<u8>, Refusal> {
    let long = || Refusal::TooLarge { what: WHAT, limit };
    if text.len() > limit.div_ceil(3) * 4 {
        return Err(long());
    }
    let bytes = STANDARD.decode(text).map_err(|e| Refusal::malformed(WHAT, e))?;
    match bytes.len() > limit {
        true => Err(long()),
        false => Ok(bytes),
    }
}

/// The nonce of the quote in `document`, which lacks the quote itself: so the quote was made after everything else in it was known,
/// and for this document alone. `what` tells receipts and requests apart.
pub(crate) fn nonce<T: Serialize>(what: &'static str, document: &T) -> Result<Digest, Refusal> {
    let head = format!("beemesh attestation: {what}\0");
    let content = payload(what, document)?;
    Ok(Digest::of(&[head.as_bytes(), &content].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn parts(size: usize) -> QuoteParts {
        QuoteParts {
            ak: vec![1; size],
            attest: vec![2; size],
            signature: vec![3; SIGNATURE],
        }
    }

    fn registers(numbers: impl IntoIterator<Item = u8>) -> Registers {
        let value = |number| (number, Digest::of(&[number]));
        Registers(numbers.into_iter().map(value).collect::<BTreeMap<_, _>>())
    }

    #[test]
    fn quote_reads_back_and_its_bounds_are_kept() {
        let quote = BootQuote::new(&parts(PART), registers(0..limits::REGISTERS));
        assert_eq!(quote.parts(), Ok(parts(PART)));
        // In base64 twice, as in a file.
        let length = serde_json::to_vec(&quote).unwrap().len().div_ceil(3) * 4;
        assert!(length + 512 < RESERVE, "{length}");
        for bad in [
            BootQuote::new(&parts(PART + 1), registers([0])),
            BootQuote::new(&parts(PART), registers([limits::REGISTERS])),
            BootQuote {
                signature: "§".to_owned(),
                ..quote.clone()
            },
        ] {
            assert!(bad.parts().is_err(), "{bad:?}");
        }
        let nonce = |what| nonce(what, &"the same").unwrap();
        assert_ne!(nonce("receipt"), nonce("request"));
    }
}
