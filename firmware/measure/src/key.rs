//! The attestation key: a key that signs only what its TPM itself says, such as a quote.
//!
//! Invariant: a value that exists has the form of the one template, so whoever proves to hold it in a TPM (by a credential
//! made for its name) proves that nothing but that TPM signs with it.

use crate::reader::Reader;
use beemesh_ids::Digest;

/// `TPMT_PUBLIC` up to the point (TPM 2.0 Library, part 2; attributes of an attestation key as in TCG TPM v2.0 Provisioning
/// Guidance, section 8.1): ECC, SHA-256, fixed to its TPM and made there, usable with the empty password, restricted signing;
/// no policy; ECDSA with SHA-256, P-256.
const TEMPLATE: [u8; 20] = [
    0x00, 0x23, 0x00, 0x0b, // type, name
    0x00, 0x05, 0x04,
    0x72, // restricted, sign, noDA, userWithAuth, sensitiveDataOrigin, fixedParent, fixedTPM
    0x00, 0x00, // policy
    0x00, 0x10, 0x00, 0x18, 0x00, 0x0b, 0x00, 0x03, 0x00, 0x10, // symmetric, scheme, curve, kdf
];
const COORDINATE: usize = 32;

/// Why bytes are no attestation key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the public part of an attestation key (restricted ECDSA P-256 key that never leaves its TPM)")]
pub struct KeyError;

/// An attestation key's public part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestationKey {
    public: Vec<u8>,
    /// Uncompressed: 4, x, y (SEC 1, section 2.3.3).
    point: [u8; 1 + 2 * COORDINATE],
}

impl AttestationKey {
    /// The `TPMT_PUBLIC` that a TPM makes the key from; the same key each time, as a primary key is derived from its seed.
    pub fn template() -> Vec<u8> {
        // The point is empty: two sizes.
        [TEMPLATE.as_slice(), &[0; 4]].concat()
    }

    /// The `TPMT_PUBLIC` of the key with this point.
    #[cfg(any(test, feature = "fake"))]
    pub(crate) fn with_point(x: &[u8], y: &[u8]) -> Vec<u8> {
        let size = [0, 32].as_slice();
        [TEMPLATE.as_slice(), size, x, size, y].concat()
    }

    /// Reads a `TPMT_PUBLIC`.
    ///
    /// # Errors
    /// It has another form.
    pub fn parse(public: &[u8]) -> Result<Self, KeyError> {
        let mut rest = Reader(public.strip_prefix(TEMPLATE.as_slice()).ok_or(KeyError)?);
        let mut point = [4; 1 + 2 * COORDINATE];
        let (_, coordinates) = point.split_at_mut(1);
        for coordinate in coordinates.chunks_exact_mut(COORDINATE) {
            // TPMs may leave zeros in front away.
            let value = rest.sized().map_err(|_| KeyError)?;
            let zeros = COORDINATE.checked_sub(value.len()).ok_or(KeyError)?;
            coordinate.fill(0);
            let bytes = coordinate.iter_mut().skip(zeros).zip(value);
            bytes.for_each(|(to, from)| *to = *from);
        }
        match rest.is_empty() {
            true => Ok(Self {
                public: public.to_owned(),
                point,
            }),
            false => Err(KeyError),
        }
    }

    /// The `TPMT_PUBLIC`.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// Its TPM name: algorithm and digest (part 1, "Names").
    pub fn name(&self) -> Vec<u8> {
        [[0x00, 0x0b].as_slice(), self.digest().as_bytes()].concat()
    }

    /// SHA-256 of the `TPMT_PUBLIC`.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.public)
    }

    pub(crate) fn point(&self) -> &[u8] {
        &self.point
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_template_is_read() {
        let good = AttestationKey::with_point(&[4; 32], &[4; 32]);
        let key = AttestationKey::parse(&good).unwrap();
        assert_eq!(
            (key.point(), key.digest()),
            ([4; 65].as_slice(), Digest::of(&good))
        );
        for at in 0..TEMPLATE.len() + 2 {
            let mut other = good.clone();
            other[at] ^= 1;
            assert_eq!(AttestationKey::parse(&other), Err(KeyError), "byte {at}");
        }
        assert!(AttestationKey::parse(&good[..good.len() - 1]).is_err());
        assert!(AttestationKey::parse(&[good, vec![0]].concat()).is_err());
        assert!(AttestationKey::parse(&[]).is_err());
    }

    #[test]
    fn zeros_in_front_of_a_coordinate_may_be_left_away() {
        let short = [&TEMPLATE[..], &[0, 1, 7], &[0, 2, 8, 9]].concat();
        let key = AttestationKey::parse(&short).unwrap();
        assert_eq!((key.point()[32], &key.point()[63..]), (7, [8, 9].as_slice()));
        assert_eq!(key.public(), short, "the name is over the bytes as they are");
    }
}
