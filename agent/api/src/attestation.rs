//! What members ask each other to learn what they booted: JSON over a stream, answered to members alone.
//!
//! Binary fields are base64, bounded by the body's limit and by who reads them.

use beemesh_ids::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A question of one member to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AttestationQuestion {
    /// For a quote; answered with an [`AttestationAnswer`].
    Quote {
        /// 32 random bytes, in base64.
        nonce: String,
    },
    /// To activate a credential that is made for its endorsement key and the name of its attestation key; answered with an
    /// [`ActivationAnswer`].
    Activate {
        /// Content of the `TPM2B_ID_OBJECT`.
        credential: String,
        /// Content of the `TPM2B_ENCRYPTED_SECRET`.
        secret: String,
    },
}

/// What the TPM of a member says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestationAnswer {
    /// `TPMT_PUBLIC` of the endorsement key.
    pub ek: String,
    /// `TPMT_PUBLIC` of the attestation key.
    pub ak: String,
    /// `TPMS_ATTEST` of the quote.
    pub attest: String,
    /// ECDSA P-256 with SHA-256: r and s, 32 bytes each.
    pub signature: String,
    /// Values of the registers (SHA-256 bank).
    pub pcrs: BTreeMap<u8, Digest>,
}

/// What shows that a credential was activated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationAnswer {
    /// Digest over the secret and both nodes (`agent/sched/SPEC.md`, "Attestation").
    pub proof: Digest,
}
