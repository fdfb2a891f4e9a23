//! `TPM2_MakeCredential` in software: encrypts a secret so that the TPM with one endorsement key gives it out, and no other
//! (TPM 2.0 Library, part 1, "Credential Protection"; part 3, "TPM2_MakeCredential").
//!
//! A credential is bound to an object: to one that every TPM can load, or to a key that is in that TPM alone.
//! Talks to no TPM: `firmware/tpm` activates what is made here. Knows one kind of key, the ECC P-256 endorsement key of
//! the TCG EK Credential Profile (template L-2), which every TPM 2.0 with P-256 makes from its seed.
//! Invariant: the ephemeral key and everything derived from it live for one call.

mod derive;
mod endorsement;

pub use endorsement::{EndorsementKey, KeyError};

use beemesh_ids::Digest;
use ring::{agreement, rand::SystemRandom};

/// Longest secret, in bytes: a TPM takes no longer credential than the digest of the key's name.
pub const MAX_SECRET: usize = 32;

/// The content of the object that a credential is bound to: everybody can load it into every TPM, so that the name is known
/// beforehand and the endorsement key alone decides. See [`bound_object`].
const OBJECT_DATA: &[u8] = b"beemesh: credential of a targeted voucher";
const OBJECT_SEED: [u8; 32] = [0; 32];

/// A secret for one TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Content of a `TPM2B_ID_OBJECT`.
    pub credential: Vec<u8>,
    /// Content of a `TPM2B_ENCRYPTED_SECRET`: an ephemeral public key.
    pub secret: Vec<u8>,
}

/// Why there is no credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The secret is empty or longer than [`MAX_SECRET`].
    #[error("cannot encrypt a secret of {0} bytes: 1 to {MAX_SECRET} bytes are possible")]
    Length(usize),
    /// The system gave no randomness.
    #[error("failed to make an ephemeral key")]
    Random,
    /// The endorsement key is no point of its curve.
    #[error("the endorsement key is not a key of the curve P-256")]
    Point,
}

/// Encrypts `secret` to the TPM with the endorsement key `ek`, whatever it holds ([`bound_object`]).
///
/// # Errors
/// A secret of another length, a key that is no point, no randomness.
pub fn make(ek: &EndorsementKey, secret: &[u8]) -> Result<Credential, CredentialError> {
    make_for(ek, &bound_object().name, secret)
}

/// Encrypts `secret` to the TPM with the endorsement key `ek`, which gives it out only where the object `name` (a TPM name:
/// algorithm and digest) is loaded in it, too. Whoever knows the secret then proves that both are in one TPM.
///
/// # Errors
/// As [`make`].
pub fn make_for(ek: &EndorsementKey, name: &[u8], secret: &[u8]) -> Result<Credential, CredentialError> {
    if secret.is_empty() || secret.len() > MAX_SECRET {
        return Err(CredentialError::Length(secret.len()));
    }
    let ephemeral = agreement::EphemeralPrivateKey::generate(&agreement::ECDH_P256, &SystemRandom::new())
        .map_err(|_| CredentialError::Random)?;
    let public = ephemeral
        .compute_public_key()
        .map_err(|_| CredentialError::Random)?;
    // An uncompressed point (SEC 1, section 2.3.3): 4, x, y.
    let (x, y) = match public.as_ref().split_first() {
        Some((4, point)) if point.len() == 64 => point.split_at(32),
        _ => return Err(CredentialError::Random),
    };
    let peer = agreement::UnparsedPublicKey::new(&agreement::ECDH_P256, ek.point());
    let seed = agreement::agree_ephemeral(ephemeral, &peer, |z| derive::kdfe(z, "IDENTITY", x, ek.x()))
        .map_err(|_| CredentialError::Point)?;
    let encrypted = derive::encrypt(&seed, name, &sized(secret));
    let integrity = derive::integrity(&seed, &encrypted, name);
    Ok(Credential {
        credential: [sized(&integrity), encrypted].concat(),
        secret: [sized(x), sized(y)].concat(),
    })
}

/// The object that a credential is bound to, as `TPM2_LoadExternal` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundObject {
    /// Its `TPMT_PUBLIC`: a keyed hash, usable with the empty password.
    pub public: Vec<u8>,
    /// `seedValue` of its sensitive part.
    pub seed: [u8; 32],
    /// `bits` of its sensitive part.
    pub data: &'static [u8],
    /// Its name.
    pub name: Vec<u8>,
}

/// The same object everywhere.
pub fn bound_object() -> BoundObject {
    let unique = Digest::of(&[&OBJECT_SEED, OBJECT_DATA].concat());
    let mut public = Vec::new();
    public.extend(0x0008_u16.to_be_bytes()); // TPM_ALG_KEYEDHASH
    public.extend(0x000b_u16.to_be_bytes()); // TPM_ALG_SHA256
    public.extend(0x0000_0440_u32.to_be_bytes()); // userWithAuth, noDA
    public.extend(0_u16.to_be_bytes()); // no policy
    public.extend(0x0010_u16.to_be_bytes()); // TPM_ALG_NULL: data, no key
    public.extend(sized(unique.as_bytes()));
    BoundObject {
        name: name(&public),
        public,
        seed: OBJECT_SEED,
        data: OBJECT_DATA,
    }
}

/// The name of an object with this `TPMT_PUBLIC`: algorithm and digest (part 1, "Names").
fn name(public: &[u8]) -> Vec<u8> {
    [
        &0x000b_u16.to_be_bytes(),
        Digest::of(public).as_bytes().as_slice(),
    ]
    .concat()
}

/// A `TPM2B`: size and bytes. What is put in is shorter than 64 KiB.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let size = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&size.to_be_bytes(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_have_the_sizes_that_a_tpm_expects_and_never_repeat() {
        let ek = EndorsementKey::parse(&endorsement::tests::sample()).unwrap();
        let (one, two) = (make(&ek, &[7; 32]).unwrap(), make(&ek, &[7; 32]).unwrap());
        assert_eq!((one.credential.len(), one.secret.len()), (34 + 34, 68));
        assert!(one.credential != two.credential && one.secret != two.secret);
    }

    #[test]
    fn secrets_of_other_lengths_and_points_off_the_curve_are_refused() {
        let mut bytes = endorsement::tests::sample();
        let ek = EndorsementKey::parse(&bytes).unwrap();
        assert_eq!(make(&ek, &[]), Err(CredentialError::Length(0)));
        assert_eq!(make(&ek, &[0; 33]), Err(CredentialError::Length(33)));
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        let off = EndorsementKey::parse(&bytes).unwrap();
        assert_eq!(make(&off, &[1]), Err(CredentialError::Point));
    }
}
