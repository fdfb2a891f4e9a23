//! A chip for tests: signs as a TPM does, whatever it is told to. Knows no registers of its own and protects nothing.

use crate::key::AttestationKey;
use crate::pcr::PcrSet;
use crate::quote::{ALG_SHA256, GENERATED, Quote, ST_ATTEST_QUOTE};
use beemesh_ids::{Digest, DigestHasher};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use std::collections::BTreeMap;

/// A key and nothing else.
pub struct FakeChip(EcdsaKeyPair);

impl FakeChip {
    /// A chip with a key of its own.
    ///
    /// # Panics
    /// Where the system has no randomness.
    #[allow(clippy::expect_used, clippy::new_without_default)]
    pub fn new() -> Self {
        let (random, kind) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(kind, &random).expect("randomness");
        Self(EcdsaKeyPair::from_pkcs8(kind, pkcs8.as_ref(), &random).expect("the key that was made"))
    }

    /// The `TPMT_PUBLIC` of its attestation key.
    pub fn public(&self) -> Vec<u8> {
        let point = self.0.public_key().as_ref();
        let (x, y) = point.get(1..).unwrap_or_default().split_at(32);
        AttestationKey::with_point(x, y)
    }

    /// Signs `attest`, whatever it is.
    ///
    /// # Panics
    /// Where the system has no randomness.
    #[allow(clippy::expect_used)]
    pub fn sign(&self, attest: Vec<u8>, pcrs: BTreeMap<u8, Digest>) -> Quote {
        let signature = self.0.sign(&SystemRandom::new(), &attest).expect("randomness");
        Quote {
            attest,
            signature: signature.as_ref().to_vec(),
            pcrs,
        }
    }

    /// A quote of exactly these values, of a TPM that was started five times and woken twice since.
    pub fn quote(&self, nonce: &[u8], pcrs: &BTreeMap<u8, Digest>) -> Quote {
        let mut values = DigestHasher::default();
        pcrs.values().for_each(|value| values.update(value.as_bytes()));
        let set: PcrSet = pcrs.keys().copied().collect();
        let attest: Vec<u8> = [
            GENERATED.to_be_bytes().as_slice(),
            &ST_ATTEST_QUOTE.to_be_bytes(),
            &sized(b"signer"),
            &sized(nonce),
            &[0; 8],
            &5_u32.to_be_bytes(),
            &2_u32.to_be_bytes(),
            &[1],
            &[9; 8],
            &1_u32.to_be_bytes(),
            &ALG_SHA256.to_be_bytes(),
            &[3],
            &set.bitmap(),
            &sized(values.finish().as_bytes()),
        ]
        .concat();
        self.sign(attest, pcrs.clone())
    }
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    let size = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&size.to_be_bytes(), bytes].concat()
}
