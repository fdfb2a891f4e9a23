//! Self-signed Ed25519 certificates (X.509 only as an envelope that TLS understands): made, and taken apart.
//!
//! A node's certificate carries its membership in an extension, as libp2p's TLS does with its keys. Names and dates in
//! certificates are not looked at: trust comes from the membership or the operator's role, and clocks are not trusted.

use beemesh_joinpack_format::{Membership, PublicKey, Signer};
use rcgen::{CertificateParams, CustomExtension, PKCS_ED25519, PublicKeyData, SigningKey};
use rustls::pki_types::CertificateDer;
use x509_parser::{
    asn1_rs::{FromDer as _, OctetString, oid},
    certificate::X509Certificate,
};

/// The extension with the membership, as JSON in an octet string. Below libp2p's arc by analogy and not registered: only
/// this software writes it and reads it, and it is not critical.
const MEMBERSHIP: [u64; 9] = [1, 3, 6, 1, 4, 1, 53594, 7400, 1];
/// Longest certificate that is read: the longest membership and some room.
const LIMIT: usize = 44 * 1024;

/// Signs its own certificate.
struct Subject<'a> {
    signer: &'a dyn Signer,
    public: PublicKey,
}

impl PublicKeyData for Subject<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl SigningKey for Subject<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        // What the token says gets lost here; it says the same where its key signs something else.
        let signature = self.signer.sign(message);
        signature
            .map(|signature| signature.to_vec())
            .map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// What a certificate proves once the handshake has proven its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) key: PublicKey,
    /// Unverified.
    pub(crate) membership: Option<Vec<u8>>,
}

/// Why a certificate shows nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("the certificate is longer than {LIMIT} bytes")]
    TooLong,
    #[error("the certificate is damaged")]
    Malformed,
    #[error("the key of the certificate is not an Ed25519 key")]
    KeyType,
    #[error("the certificate is not signed with its own key")]
    Signature,
}

/// The certificate of a key, wherever that lies.
pub(crate) fn make(
    signer: &dyn Signer,
    membership: Option<&Membership>,
) -> Result<CertificateDer<'static>, rcgen::Error> {
    let subject = Subject {
        signer,
        public: signer.public(),
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "beemesh");
    if let Some(membership) = membership {
        let extension = CustomExtension::from_oid_content(&MEMBERSHIP, octet_string(&membership.to_bytes()));
        params.custom_extensions.push(extension);
    }
    Ok(params.self_signed(&subject)?.der().clone())
}

pub(crate) fn parse(der: &[u8]) -> Result<Shown, CertificateError> {
    if der.len() > LIMIT {
        return Err(CertificateError::TooLong);
    }
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
    if !rest.is_empty() {
        return Err(CertificateError::Malformed);
    }
    // RFC 8410, section 3: id-Ed25519.
    let ed25519 = oid!(1.3.101.112);
    let info = certificate.public_key();
    if info.algorithm.algorithm != ed25519 || certificate.signature_algorithm.algorithm != ed25519 {
        return Err(CertificateError::KeyType);
    }
    let key: [u8; 32] = info
        .subject_public_key
        .data
        .as_ref()
        .try_into()
        .map_err(|_| CertificateError::KeyType)?;
    let key = PublicKey::from_bytes(key);
    if !key.verify(
        certificate.tbs_certificate.as_ref(),
        &certificate.signature_value.data,
    ) {
        return Err(CertificateError::Signature);
    }
    let oid = oid!(1.3.6.1.4.1.53594.7400.1);
    // An extension that comes twice is an error, not a choice.
    let extension = certificate
        .get_extension_unique(&oid)
        .map_err(|_| CertificateError::Malformed)?;
    let membership = match extension {
        None => None,
        Some(extension) => match OctetString::from_der(extension.value) {
            Ok(([], content)) => Some(content.as_ref().to_vec()),
            _ => return Err(CertificateError::Malformed),
        },
    };
    Ok(Shown { key, membership })
}

/// DER (X.690, section 8.1.3.5) with a length of two bytes or less, as a membership has.
fn octet_string(content: &[u8]) -> Vec<u8> {
    let mut der = vec![0x04];
    match content.len() {
        len @ ..0x80 => der.push(len as u8),
        len @ 0x80..0x100 => der.extend([0x81, len as u8]),
        len => {
            der.push(0x82);
            der.extend((len as u16).to_be_bytes());
        }
    }
    der.extend(content);
    der
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_joinpack_format::SecretKey;
    use proptest::prelude::*;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_bytes([seed; 32])
    }

    #[test]
    fn a_certificate_shows_its_key() {
        let made = make(&key(1), None).unwrap();
        assert_eq!(
            parse(&made),
            Ok(Shown {
                key: key(1).public(),
                membership: None
            })
        );
    }

    #[test]
    fn a_certificate_signed_with_another_key_type_or_altered_is_refused() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let other = CertificateParams::default().self_signed(&pair).unwrap();
        assert_eq!(parse(other.der()), Err(CertificateError::KeyType));
        let made = make(&key(1), None).unwrap();
        // The last bytes are the signature.
        let mut altered = made.to_vec();
        let last = altered.len() - 1;
        altered[last] ^= 1;
        assert_eq!(parse(&altered), Err(CertificateError::Signature));
        assert_eq!(parse(&vec![0; LIMIT + 1]), Err(CertificateError::TooLong));
        let mut longer = made.to_vec();
        longer.push(0);
        assert_eq!(parse(&longer), Err(CertificateError::Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_flipped_bit_changes_what_is_shown(at in 0usize..3000) {
            let made = make(&key(1), None).unwrap().to_vec();
            let shown = parse(&made).unwrap();
            let mut altered = made.clone();
            let bit = at % (made.len() * 8);
            altered[bit / 8] ^= 1 << (bit % 8);
            // Some bits of the form around the signed part have no meaning; those may pass.
            prop_assert!(parse(&altered).map_or(true, |altered| altered == shown), "bit {bit}");
        }

        #[test]
        fn octet_strings_are_der(content in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            let der = octet_string(&content);
            let (rest, read) = OctetString::from_der(&der).unwrap();
            prop_assert!(rest.is_empty());
            prop_assert_eq!(read.as_ref(), &content[..]);
        }
    }
}
