//! The public part of an endorsement key. Whether it is a genuine TPM's is for its certificate to say, not for this file.
//!
//! Invariant: a value that exists has the form of template L-2, so everything but its point is known.

use beemesh_ids::Digest;

/// `TPMT_PUBLIC` of template L-2 up to the point (TCG EK Credential Profile 2.5, section B.3.4): ECC, SHA-256, fixed to its TPM,
/// restricted decryption, administered by policy, PolicySecret(endorsement), AES-128-CFB, P-256.
const TEMPLATE: [u8; 54] = [
    0x00, 0x23, 0x00, 0x0b, 0x00, 0x03, 0x00, 0xb2, 0x00,
    0x20, // type, name, attributes, size of the policy
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, //
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa, //
    0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10, 0x00, 0x03, 0x00,
    0x10, // symmetric, scheme, curve, kdf
];
const COORDINATE: usize = 32;
/// A `SubjectPublicKeyInfo` of P-256 up to the point: id-ecPublicKey (1.2.840.10045.2.1), prime256v1 (1.2.840.10045.3.1.7), and
/// a bit string of 65 bytes.
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Why bytes are no endorsement key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the public part of an ECC P-256 endorsement key (TCG EK Credential Profile, template L-2)")]
pub struct KeyError;

/// An endorsement key's public part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndorsementKey {
    public: Vec<u8>,
    /// Uncompressed: 4, x, y.
    point: [u8; 1 + 2 * COORDINATE],
}

impl EndorsementKey {
    /// Reads a `TPMT_PUBLIC`.
    ///
    /// # Errors
    /// It has another form.
    pub fn parse(public: &[u8]) -> Result<Self, KeyError> {
        let rest = public.strip_prefix(TEMPLATE.as_slice()).ok_or(KeyError)?;
        let (x, rest) = coordinate(rest)?;
        let (y, rest) = coordinate(rest)?;
        if !rest.is_empty() {
            return Err(KeyError);
        }
        let mut point = [4; 1 + 2 * COORDINATE];
        point[1..=COORDINATE].copy_from_slice(&x);
        point[1 + COORDINATE..].copy_from_slice(&y);
        Ok(Self {
            public: public.to_owned(),
            point,
        })
    }

    /// The `TPMT_PUBLIC`.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// SHA-256 of the `TPMT_PUBLIC`: what a join pack names the machine by, and the digest in the key's TPM name.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.public)
    }

    /// The key as certificates have it: `SubjectPublicKeyInfo` in DER (RFC 5480), the curve by its name, the point uncompressed.
    pub fn subject_public_key_info(&self) -> Vec<u8> {
        [P256.as_slice(), &self.point].concat()
    }

    pub(crate) fn point(&self) -> &[u8] {
        &self.point
    }

    pub(crate) fn x(&self) -> &[u8] {
        &self.point[1..=COORDINATE]
    }
}

/// A `TPM2B_ECC_PARAMETER`; TPMs may leave zeros in front away.
fn coordinate(bytes: &[u8]) -> Result<([u8; COORDINATE], &[u8]), KeyError> {
    let (size, rest) = bytes.split_first_chunk().ok_or(KeyError)?;
    let (value, rest) = rest
        .split_at_checked(usize::from(u16::from_be_bytes(*size)))
        .ok_or(KeyError)?;
    let zeros = COORDINATE.checked_sub(value.len()).ok_or(KeyError)?;
    let mut padded = [0; COORDINATE];
    padded
        .iter_mut()
        .skip(zeros)
        .zip(value)
        .for_each(|(to, from)| *to = *from);
    Ok((padded, rest))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The base point of P-256 (SEC 2, section 2.4.2) in the place of a key.
    pub(crate) fn sample() -> Vec<u8> {
        let x = "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296";
        let y = "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";
        let bytes = |text: &str| -> Vec<u8> {
            (0..32)
                .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
                .collect()
        };
        [
            TEMPLATE.to_vec(),
            crate::sized(&bytes(x)),
            crate::sized(&bytes(y)),
        ]
        .concat()
    }

    #[test]
    fn only_the_one_template_is_read() {
        let good = sample();
        assert_eq!(
            EndorsementKey::parse(&good).map(|key| key.digest()),
            Ok(Digest::of(&good))
        );
        for at in 0..TEMPLATE.len() + 2 {
            let mut other = good.clone();
            other[at] ^= 1;
            assert_eq!(EndorsementKey::parse(&other), Err(KeyError), "byte {at}");
        }
        assert!(EndorsementKey::parse(&good[..good.len() - 1]).is_err());
        assert!(EndorsementKey::parse(&[good, vec![0]].concat()).is_err());
        assert!(EndorsementKey::parse(&[]).is_err());
    }
}
