//! A maker of TPMs with a root and a certificate between, and TPMs that are keys of this process.
#![allow(clippy::unwrap_used, dead_code)]

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use std::fs;
use std::path::Path;

/// tcg-kp-EKCertificate.
pub const EK_PURPOSE: [u64; 5] = [2, 23, 133, 8, 1];
/// `TPMT_PUBLIC` of template L-2 up to the point.
const TEMPLATE: &str = "0023000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa\
    00060080004300100003001000";

/// A TPM as far as it is seen from outside.
pub struct Chip {
    pub key: KeyPair,
}

impl Chip {
    pub fn new() -> Self {
        Self {
            key: KeyPair::generate().unwrap(),
        }
    }

    /// Its endorsement key.
    pub fn public(&self) -> Vec<u8> {
        let template: Vec<u8> = (0..TEMPLATE.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&TEMPLATE[at..at + 2], 16).unwrap())
            .collect();
        let point = self.key.public_key_raw();
        // The last byte of the template is the first of the size of x.
        [&template[..], &[0x20], &point[1..33], &[0, 0x20], &point[33..]].concat()
    }
}

/// A maker.
pub struct Maker {
    pub root: Vec<u8>,
    pub link: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2100, 1, 1));
    params
}

impl Maker {
    pub fn new(name: &str) -> Self {
        let (root_key, link_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let root = authority(&format!("{name} root"));
        let root_der = root.self_signed(&root_key).unwrap().der().to_vec();
        let link = authority(&format!("{name} link"));
        let by = Issuer::new(root, root_key);
        let link_der = link.signed_by(&link_key, &by).unwrap().der().to_vec();
        Self {
            root: root_der,
            link: link_der,
            issuer: Issuer::new(link, link_key),
        }
    }

    /// A certificate for a TPM's endorsement key as makers make them: no subject but a directory name, which is critical.
    pub fn certify(&self, chip: &Chip, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(EK_PURPOSE.to_vec())];
        params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
        (params.not_before, params.not_after) = (date_time_ymd(2021, 1, 1), date_time_ymd(2099, 1, 1));
        // subjectAltName: [4] { RDNSequence { { { 2.23.133.2.1, UTF8String "id:00001014" } } } }
        let attribute = [
            &[0x06, 5, 0x67, 0x81, 0x05, 0x02, 0x01, 0x0c, 11][..],
            b"id:00001014",
        ]
        .concat();
        let wrap = |tag: u8, content: Vec<u8>| [&[tag, content.len() as u8][..], &content].concat();
        let name = wrap(0x30, wrap(0x31, wrap(0x30, attribute)));
        let mut alternative =
            CustomExtension::from_oid_content(&[2, 5, 29, 17], wrap(0x30, wrap(0xa4, name)));
        alternative.set_criticality(true);
        params.custom_extensions = vec![alternative];
        change(&mut params);
        params.signed_by(&chip.key, &self.issuer).unwrap().der().to_vec()
    }

    /// Writes the root, as DER, and perhaps what lies between, as PEM, to a folder of vendor roots.
    pub fn save(&self, folder: &Path, with_link: bool) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("root.cer"), &self.root).unwrap();
        fs::write(folder.join("README.txt"), "not a certificate").unwrap();
        if with_link {
            use base64::{Engine as _, engine::general_purpose::STANDARD};
            let text = STANDARD.encode(&self.link);
            let lines: Vec<_> = text
                .as_bytes()
                .chunks(64)
                .map(|line| std::str::from_utf8(line).unwrap())
                .collect();
            let pem = format!(
                "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
                lines.join("\n")
            );
            fs::write(folder.join("link.pem"), pem).unwrap();
        }
    }
}
