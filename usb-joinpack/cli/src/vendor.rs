//! The makers of TPMs that the operator trusts, and whether an endorsement key is proven to be one of theirs. `SPEC.md`,
//! section "Requests", step 4.
//!
//! Parses no signature and no path by hand: webpki validates (RFC 5280, section 6), x509-parser finds where certificates begin and end,
//! and their names. Invariant: what [`Vendors::prove`] accepts is a certificate for this very key, good at the time asked, with a path
//! to a root of the operator's folder.

use crate::failure::{Failure, invalid};
use anyhow::{Context as _, anyhow};
use beemesh_firmware_credential::EndorsementKey;
use beemesh_joinpack_format::Timestamp;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime, pem::PemObject as _};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;
use webpki::{EndEntityCert, Error, KeyUsage};

/// tcg-kp-EKCertificate, 2.23.133.8.1 (TCG EK Credential Profile 2.5, section 3.2.16), as DER has it.
const EK_CERTIFICATE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
/// Certificates that are read from one folder, and bytes of one file.
const MOST: usize = 1024;
const FILE: u64 = 1 << 20;
/// Certificates that are read from what a TPM holds.
const LINKS: usize = 16;

/// Why an endorsement key is not proven to be a maker's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// Nobody said whose TPMs are trusted.
    #[error("no vendor roots were given: nothing says that a genuine TPM asks, it may be a program")]
    NoRoots,
    /// The TPM has none for this key.
    #[error(
        "the machine shows no certificate of its TPM's maker: nothing says that a genuine TPM asks, it may be a program"
    )]
    NoCertificate,
    /// It is no certificate.
    #[error("what the machine shows as its TPM's certificate is none")]
    Unreadable,
    /// It is about another key.
    #[error("the machine shows a certificate of another TPM than the one that asks")]
    OtherKey,
    /// It was made for something else.
    #[error("the certificate is not one for a TPM's endorsement key")]
    OtherPurpose,
    /// Or one above it.
    #[error("the certificate, or one above it, has expired by this computer's clock")]
    Expired,
    /// Or one above it.
    #[error("the certificate, or one above it, is not valid yet by this computer's clock")]
    NotYetValid,
    /// No path to a root.
    #[error("the certificate leads to none of the vendor roots ({0})")]
    NoPath(String),
}

/// The operator's folder of certificates.
#[derive(Default)]
pub struct Vendors {
    roots: Vec<CertificateDer<'static>>,
    links: Vec<CertificateDer<'static>>,
}

impl Vendors {
    /// Reads all files of `folder` that are named like certificates (`.pem`, `.crt`, `.cer`, `.der`), in PEM or DER.
    pub fn load(folder: &Path) -> Result<Self, Failure> {
        let mut vendors = Self::default();
        let entries = fs::read_dir(folder).map_err(|e| {
            Failure::Invalid(anyhow!(
                "failed to read the vendor roots in `{}`: {e}",
                folder.display()
            ))
        })?;
        for entry in entries {
            let path = entry
                .with_context(|| format!("failed to read `{}`", folder.display()))?
                .path();
            let extension = path.extension().map(|text| text.to_ascii_lowercase());
            let named = extension.as_deref().and_then(|text| text.to_str());
            if !matches!(named, Some("pem" | "crt" | "cer" | "der")) {
                continue;
            }
            for certificate in read(&path)? {
                let Some((whole, names)) =
                    first(&certificate).filter(|(whole, _)| whole.len() == certificate.len())
                else {
                    invalid!("`{}` holds something that is no certificate", path.display());
                };
                let list = match names.own_issuer {
                    true => &mut vendors.roots,
                    false => &mut vendors.links,
                };
                list.push(CertificateDer::from(whole.to_vec()));
            }
            if vendors.roots.len() + vendors.links.len() > MOST {
                invalid!("`{}` holds more than {MOST} certificates", folder.display());
            }
        }
        match vendors.roots.is_empty() {
            true => invalid!(
                "`{}` holds no root certificate (.pem, .crt, .cer or .der): fetch those of your machines' TPM makers",
                folder.display()
            ),
            false => Ok(vendors),
        }
    }

    /// The name of the maker's root that `certificate` leads to. `chain` is what the TPM holds above it, one certificate after the other.
    pub fn prove(
        &self,
        key: &EndorsementKey,
        certificate: Option<&[u8]>,
        chain: &[u8],
        at: Timestamp,
    ) -> Result<String, Unproven> {
        let certificate = certificate.ok_or(Unproven::NoCertificate)?;
        // What a TPM stores may be followed by filling.
        let (whole, _) = first(certificate).ok_or(Unproven::Unreadable)?;
        let whole = CertificateDer::from(whole);
        let leaf = EndEntityCert::try_from(&whole).map_err(|_| Unproven::Unreadable)?;
        if leaf.subject_public_key_info().as_ref() != key.subject_public_key_info() {
            return Err(Unproven::OtherKey);
        }
        let roots: Vec<TrustAnchor<'_>> = self
            .roots
            .iter()
            .filter_map(|root| webpki::anchor_from_trusted_cert(root).ok())
            .collect();
        let links: Vec<_> = split(chain)
            .into_iter()
            .chain(self.links.iter().cloned())
            .collect();
        let since = Duration::from_secs(u64::try_from(at.0).unwrap_or(0));
        let path = leaf
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &roots,
                &links,
                UnixTime::since_unix_epoch(since),
                KeyUsage::required_if_present(EK_CERTIFICATE),
                None,
                None,
            )
            .map_err(|error| match error {
                Error::CertExpired { .. } => Unproven::Expired,
                Error::CertNotValidYet { .. } => Unproven::NotYetValid,
                Error::RequiredEkuNotFoundContext(_) => Unproven::OtherPurpose,
                other => Unproven::NoPath(format!("{other:?}").chars().take(160).collect()),
            })?;
        let subject = path.anchor().subject.as_ref().to_vec();
        let root = self.roots.iter().find_map(|root| {
            let (_, names) = first(root)?;
            names.subject_der.ends_with(&subject).then_some(names.subject)
        });
        Ok(root.unwrap_or_default())
    }
}

/// Whose a certificate is.
struct Names {
    /// For people.
    subject: String,
    /// It is by itself: a root.
    own_issuer: bool,
    subject_der: Vec<u8>,
}

/// The certificate that `bytes` begin with.
fn first(bytes: &[u8]) -> Option<(&[u8], Names)> {
    let (rest, read) = x509_parser::parse_x509_certificate(bytes).ok()?;
    let whole = bytes.get(..bytes.len().checked_sub(rest.len())?)?;
    let subject = read.subject().to_string();
    let names = Names {
        subject: subject.chars().filter(|c| !c.is_control()).take(160).collect(),
        own_issuer: read.subject().as_raw() == read.issuer().as_raw(),
        subject_der: read.subject().as_raw().to_vec(),
    };
    Some((whole, names))
}

/// The certificates that lie one after the other; what follows the last is filling.
fn split(mut bytes: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut found = Vec::new();
    while let Some((whole, _)) = first(bytes).filter(|_| found.len() < LINKS) {
        found.push(CertificateDer::from(whole.to_vec()));
        bytes = bytes.get(whole.len()..).unwrap_or_default();
    }
    found
}

fn read(path: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE + 1).read_to_end(&mut bytes))
        .with_context(|| format!("failed to read `{}`", path.display()))?;
    if bytes.len() as u64 > FILE {
        invalid!("`{}` is larger than {FILE} bytes", path.display());
    }
    if !bytes.windows(11).any(|window| window == b"-----BEGIN ") {
        return Ok(vec![bytes]);
    }
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(certificates) => Ok(certificates
            .into_iter()
            .map(|der| der.as_ref().to_vec())
            .collect()),
        Err(error) => invalid!("`{}` is no PEM file: {error}", path.display()),
    }
}

#[cfg(test)]
#[path = "vendor_tests.rs"]
mod tests;
