//! What proves a TPM, and what does not.
#![allow(clippy::unwrap_used)]

#[path = "../tests/bench/maker.rs"]
mod maker;

use super::*;
use maker::{Chip, Maker};
use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};

/// 2026-01-02.
const NOW: Timestamp = Timestamp(1_767_323_045);

fn vendors(maker: &Maker, with_link: bool) -> Vendors {
    let folder = tempfile::tempdir().unwrap();
    maker.save(folder.path(), with_link);
    Vendors::load(folder.path()).unwrap()
}

fn key(chip: &Chip) -> EndorsementKey {
    EndorsementKey::parse(&chip.public()).unwrap()
}

#[test]
fn certificate_leads_to_its_makers_root_by_what_the_tpm_or_the_folder_holds_between() {
    let (maker, chip) = (Maker::new("chips"), Chip::new());
    let certificate = maker.certify(&chip, |_| {});
    let prove = |vendors: &Vendors, certificate: &[u8], chain: &[u8]| {
        vendors.prove(&key(&chip), Some(certificate), chain, NOW)
    };
    let (bare, full) = (vendors(&maker, false), vendors(&maker, true));
    assert_eq!(prove(&full, &certificate, &[]), Ok("CN=chips root".to_owned()));
    assert!(prove(&bare, &certificate, &maker.link).is_ok());
    assert!(matches!(
        prove(&bare, &certificate, &[]),
        Err(Unproven::NoPath(_))
    ));
    // Filling after a certificate, as TPMs keep it, and other certificates before it.
    let filled = [&certificate[..], &[0xff; 40]].concat();
    let chain = [&maker.root[..], &maker.link, &[0; 9]].concat();
    assert!(prove(&bare, &filled, &chain).is_ok());
    let other = vendors(&Maker::new("others"), true);
    assert!(matches!(
        prove(&other, &certificate, &maker.link),
        Err(Unproven::NoPath(_))
    ));
}

#[test]
fn certificate_of_another_key_purpose_or_time_proves_nothing() {
    let (maker, chip) = (Maker::new("chips"), Chip::new());
    let vendors = vendors(&maker, true);
    let prove = |certificate: Option<&[u8]>| vendors.prove(&key(&chip), certificate, &[], NOW);
    assert_eq!(prove(None), Err(Unproven::NoCertificate));
    assert_eq!(prove(Some(b"noise")), Err(Unproven::Unreadable));
    let other = maker.certify(&Chip::new(), |_| {});
    assert_eq!(prove(Some(&other)), Err(Unproven::OtherKey));
    let web = maker.certify(&chip, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    assert_eq!(prove(Some(&web)), Err(Unproven::OtherPurpose));
    let any = maker.certify(&chip, |params| params.extended_key_usages.clear());
    assert!(prove(Some(&any)).is_ok(), "older certificates name no purpose");
    let old = maker.certify(&chip, |params| params.not_after = date_time_ymd(2025, 12, 1));
    assert_eq!(prove(Some(&old)), Err(Unproven::Expired));
    let early = maker.certify(&chip, |params| params.not_before = date_time_ymd(2027, 1, 1));
    assert_eq!(prove(Some(&early)), Err(Unproven::NotYetValid));
    let mut altered = maker.certify(&chip, |_| {});
    *altered.last_mut().unwrap() ^= 1;
    assert!(matches!(
        prove(Some(&altered)),
        Err(Unproven::NoPath(_) | Unproven::Unreadable)
    ));
}

#[test]
fn folder_without_a_root_or_with_noise_named_like_a_certificate_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let refused = || Vendors::load(folder.path()).err().unwrap().to_string();
    assert!(refused().contains("no root certificate"));
    std::fs::write(folder.path().join("x.crt"), "noise").unwrap();
    assert!(refused().contains("x.crt"));
    std::fs::write(
        folder.path().join("x.crt"),
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    assert!(refused().contains("x.crt"));
    assert!(Vendors::load(&folder.path().join("none")).is_err());
}
