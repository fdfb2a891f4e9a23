//! Claims about vouchers, memberships, operator contexts and receipts.
#![allow(clippy::unwrap_used)]

mod generator;

use beemesh_ids::{Digest, PeerId};
use beemesh_usb_joinpack_format::{
    Admission, Assurance, Denial, EndorsementFile, Envelope, Membership, OperatorContext, Outcome, Part,
    PartKind, Proof, Receipt, ReceiptMachine, Refusal, RootChain, TimeSource, Timestamp, Voucher, limits,
};
use generator::{EXPIRES, FLOOR, ISSUED, draft, key, time};
use proptest::prelude::*;

fn roots() -> RootChain {
    RootChain::bootstrap(&draft("shop", 1).manifest.roots).unwrap()
}

fn peer(name: &str) -> PeerId {
    PeerId::from_ed25519(key(name).public().as_bytes())
}

fn redeem(at: Timestamp) -> Result<Membership, Refusal> {
    let pack = draft("shop", 1).manifest;
    let voucher = &pack.vouchers[0];
    Membership::redeem(
        &voucher.envelope,
        voucher.one_time_key.as_ref().unwrap(),
        &peer("machine"),
        Assurance::Tpm,
        at,
    )
}

fn code<T>(result: Result<T, Refusal>) -> &'static str {
    result.err().map_or("accepted", |refusal| refusal.code())
}

#[test]
fn redeemed_voucher_makes_a_member_that_stays_one() {
    let membership = redeem(time(FLOOR)).unwrap();
    let bytes = membership.to_bytes();
    assert!(bytes.len() < limits::MEMBERSHIP_LIMIT / 4, "{}", bytes.len());
    let member = Membership::parse(&bytes)
        .unwrap()
        .verify(&roots(), &peer("machine"))
        .unwrap();
    assert_eq!(
        (member.name.as_str(), member.cell.as_str(), member.assurance),
        ("node-1", "shop", Assurance::Tpm)
    );
    assert_eq!(member.redeemed, time(FLOOR));
    assert_eq!(&member.fabric, roots().fabric_id());
}

#[test]
fn voucher_is_redeemed_in_its_time_only() {
    assert_eq!(code(redeem(time(ISSUED))), "accepted");
    assert_eq!(code(redeem(time(EXPIRES))), "accepted");
    assert_eq!(code(redeem(time(ISSUED).plus_seconds(-1))), "not-yet-valid");
    assert_eq!(code(redeem(time(EXPIRES).plus_seconds(1))), "expired");
}

#[test]
fn credential_of_another_machine_is_refused() {
    let membership = redeem(time(FLOOR)).unwrap();
    assert_eq!(
        membership.verify(&roots(), &peer("thief")),
        Err(Refusal::OtherPeer)
    );
}

#[test]
fn credential_of_another_fabric_is_refused() {
    let membership = redeem(time(FLOOR)).unwrap();
    let warehouse = RootChain::bootstrap(&draft("warehouse", 1).manifest.roots).unwrap();
    assert_eq!(
        code(membership.verify(&warehouse, &peer("machine"))),
        "other-fabric"
    );
}

#[test]
fn redemption_without_the_one_time_key_is_refused() {
    let pack = draft("shop", 1).manifest;
    let thief = key("thief");
    let other = Membership::redeem(
        &pack.vouchers[0].envelope,
        &thief,
        &peer("thief"),
        Assurance::Tpm,
        time(FLOOR),
    );
    assert_eq!(code(other), "inconsistent");
    // A redemption of one voucher beside another voucher.
    let first = redeem(time(FLOOR)).unwrap();
    let mixed = Membership {
        voucher: pack.vouchers[1].envelope.clone(),
        redemption: first.redemption,
        rotations: Vec::new(),
    };
    assert_eq!(code(mixed.verify(&roots(), &peer("machine"))), "unknown-key");
}

#[test]
fn forged_redemption_time_outside_the_voucher_is_refused() {
    // The holder signs a redemption past the expiry by itself: `redeem` would not.
    let pack = draft("shop", 1).manifest;
    let voucher = &pack.vouchers[0];
    let text = serde_json::json!({
        "fabric": pack.fabric, "voucher": "01KDVKFD000000000000000001", "peer_id": peer("machine"),
        "assurance": "tpm", "redeemed": "2026-03-01T00:00:00Z",
    });
    let redemption = Envelope::sign(
        beemesh_usb_joinpack_format::REDEMPTION_PAYLOAD_TYPE,
        text.to_string().as_bytes(),
        &[voucher.one_time_key.as_ref().unwrap()],
    );
    let membership = Membership {
        voucher: voucher.envelope.clone(),
        redemption,
        rotations: Vec::new(),
    };
    assert_eq!(code(membership.verify(&roots(), &peer("machine"))), "expired");
}

#[test]
fn voucher_of_a_stranger_makes_no_member() {
    let pack = draft("shop", 1).manifest;
    let voucher = generator::voucher(
        &pack.fabric,
        "node-1",
        "01KDVKFD000000000000000001",
        &["stranger"],
    );
    let membership = Membership::redeem(
        &voucher.envelope,
        voucher.one_time_key.as_ref().unwrap(),
        &peer("machine"),
        Assurance::Low,
        time(FLOOR),
    )
    .unwrap();
    assert_eq!(code(membership.verify(&roots(), &peer("machine"))), "unknown-key");
}

fn approved(machine: &str) -> Voucher {
    Voucher {
        fabric: roots().fabric_id().clone(),
        id: "01KDVKFD000000000000000007".to_owned(),
        node: "till-9".parse().unwrap(),
        cell: "shop".to_owned(),
        issued: time(ISSUED),
        expires: time(EXPIRES),
        key: key(machine).public(),
        admission: Admission::Approved,
        ek: None,
    }
}

/// What the machine makes of a voucher that `signer` signed, when `shown_by` shows it.
fn redeem_own(voucher: &Voucher, signer: &str, machine: &str, shown_by: &str) -> &'static str {
    let envelope = voucher.sign(&[&key(signer)]).unwrap();
    let membership = Membership::redeem(
        &envelope,
        &key(machine),
        &peer(shown_by),
        Assurance::Tpm,
        time(FLOOR),
    );
    code(membership.and_then(|membership| membership.verify(&roots(), &peer(shown_by))))
}

#[test]
fn operator_approves_the_key_of_one_machine_and_nothing_else() {
    let voucher = approved("machine");
    assert_eq!(redeem_own(&voucher, "operator", "machine", "machine"), "accepted");
    assert_eq!(redeem_own(&voucher, "operator", "machine", "thief"), "other-peer");
    assert_eq!(redeem_own(&voucher, "operator", "thief", "thief"), "inconsistent");
    for other in ["enrolment-1", "release", "recovery", "root-1", "stranger"] {
        assert_eq!(redeem_own(&voucher, other, "machine", "machine"), "unknown-key");
    }
    // An operator signs no voucher of another kind: whoever has the one-time key would be in.
    let policy = Voucher {
        admission: Admission::Policy,
        ..voucher
    };
    assert_eq!(
        redeem_own(&policy, "operator", "machine", "machine"),
        "unknown-key"
    );
    assert_eq!(
        redeem_own(&policy, "enrolment-1", "machine", "machine"),
        "accepted"
    );
}

#[test]
fn revoked_operator_approves_nobody_new() {
    let envelope = approved("machine").sign(&[&key("operator")]).unwrap();
    let membership = Membership::redeem(
        &envelope,
        &key("machine"),
        &peer("machine"),
        Assurance::Tpm,
        time(FLOOR),
    )
    .unwrap();
    let without = roots().without([&key("operator").public().key_id()]);
    assert_ne!(code(membership.verify(&without, &peer("machine"))), "accepted");
    assert_eq!(
        code(membership.verify_known(&without, &peer("machine"))),
        "accepted"
    );
}

#[test]
fn denial_is_an_operators_of_this_fabric() {
    let denial = Denial {
        fabric: roots().fabric_id().clone(),
        peer_id: peer("machine"),
        issued: time(ISSUED),
    };
    let verified =
        |signer: &str, roots: &RootChain| Denial::verify(&denial.sign(&[&key(signer)]).unwrap(), roots);
    assert_eq!(verified("operator", &roots()), Ok(denial.clone()));
    assert_eq!(code(verified("enrolment-1", &roots())), "unknown-key");
    let elsewhere = Denial {
        fabric: draft("warehouse", 1).manifest.fabric,
        ..denial.clone()
    };
    let envelope = elsewhere.sign(&[&key("operator")]).unwrap();
    assert_eq!(code(Denial::verify(&envelope, &roots())), "other-fabric");
}

#[test]
fn oversized_credential_is_refused() {
    assert_eq!(
        code(Membership::parse(&vec![b' '; limits::MEMBERSHIP_LIMIT + 1])),
        "too-large"
    );
}

#[test]
fn operator_context_needs_the_operators_key() {
    let roots = draft("shop", 1).manifest.roots;
    let context = |name: &str| OperatorContext {
        version: 1,
        roots: roots.clone(),
        key: key(name),
    };
    let text = serde_json::to_vec(&context("operator")).unwrap();
    let read = OperatorContext::parse(&text).unwrap();
    assert_eq!(read, context("operator"));
    assert_eq!(read.chain().map(|chain| chain.version()), Ok(1));
    assert_eq!(code(context("enrolment-1").chain()), "unknown-key");
}

fn receipt(outcome: Outcome) -> Receipt {
    Receipt {
        node: Some("node-1".parse().unwrap()),
        peer_id: Some(peer("machine")),
        fabric: Some(roots().fabric_id().clone()),
        membership: Some(redeem(time(FLOOR)).unwrap()),
        machine: ReceiptMachine {
            macs: vec!["52:54:00:00:00:01".into()],
            serial: Some("SN 1".into()),
            ek: Some(EndorsementFile::new(b"a key", Some(b"a certificate"))),
        },
        boot_id: "0b8c1e36-9d6c-4a55-9f0c-6a0b6f2f4b1e".into(),
        at: time(FLOOR),
        time_source: TimeSource::Rtc,
        serial: Some(generator::SERIAL.into()),
        pack: Some(Digest::of(b"joinpack.json")),
        outcome,
        parts: vec![Part {
            part: PartKind::Network,
            what: "dhcp".into(),
            refused: Some("no such card".into()),
        }],
        log: None,
        attestation: None,
    }
}

#[test]
fn receipt_proves_who_wrote_it() {
    let refused = Outcome::Refused {
        code: "expired".into(),
        message: "the join pack expired".into(),
    };
    for receipt in [receipt(Outcome::Applied), receipt(refused)] {
        let signed = receipt.to_envelope(Some(&key("machine"))).unwrap().to_json();
        assert_eq!(
            Receipt::parse(&signed),
            Ok((receipt.clone(), Proof::SignedBy(peer("machine"))))
        );
        let unsigned = receipt.to_envelope(None).unwrap().to_json();
        assert_eq!(Receipt::parse(&unsigned), Ok((receipt.clone(), Proof::Unsigned)));
        let forged = receipt.to_envelope(Some(&key("thief"))).unwrap().to_json();
        assert_eq!(code(Receipt::parse(&forged)), "unknown-key");
    }
}

/// The signed receipt after `change`.
fn signed(change: impl FnOnce(&mut Receipt)) -> Vec<u8> {
    let mut receipt = receipt(Outcome::Applied);
    change(&mut receipt);
    receipt.to_envelope(Some(&key("machine"))).unwrap().to_json()
}

#[test]
fn member_is_believed_by_its_credential_and_by_the_roots_alone() {
    let good = Receipt::parse(&signed(|_| ())).unwrap().0;
    let member = good.member(&roots()).unwrap().unwrap();
    assert_eq!(
        (Some(member.name), member.peer_id),
        (good.node.clone(), peer("machine"))
    );
    let other = RootChain::bootstrap(&draft("other", 1).manifest.roots).unwrap();
    assert_eq!(code(good.member(&other)), "other-fabric");
    let stranger = Receipt::parse(&signed(|r| r.membership = None)).unwrap().0;
    assert_eq!(stranger.member(&roots()), Ok(None));

    let renamed = signed(|r| r.node = Some("node-9".parse().unwrap()));
    assert_eq!(code(Receipt::parse(&renamed)), "inconsistent");
    let mut borrowed = receipt(Outcome::Applied);
    borrowed.peer_id = Some(peer("thief"));
    let borrowed = borrowed.to_envelope(Some(&key("thief"))).unwrap().to_json();
    assert_eq!(code(Receipt::parse(&borrowed)), "other-peer");
    let exchanged = signed(|r| {
        let ek = r.machine.ek.as_mut().unwrap();
        ek.ek = Digest::of(b"another key");
    });
    assert_eq!(code(Receipt::parse(&exchanged)), "wrong-digest");
}

#[test]
fn receipt_that_would_be_too_long_is_cut_and_keeps_the_key_of_the_machine() {
    let long = signed(|r| {
        r.machine.macs = vec!["52:54:00:00:00:01".into(); 100];
        r.machine.ek = Some(EndorsementFile::new(b"a key", Some(&[7; 50_000])));
        r.outcome = Outcome::Refused {
            code: "expired".into(),
            message: "\u{1b}long ".repeat(9_000),
        };
    });
    assert!(long.len() <= limits::RECEIPT_LIMIT);
    let read = Receipt::parse(&long).unwrap().0;
    let ek = read.machine.ek.unwrap();
    assert_eq!((ek.public_key(), ek.certificate), (Ok(b"a key".to_vec()), None));
    assert!(read.membership.is_some() && read.machine.macs.len() == 32);
    let Outcome::Refused { message, .. } = read.outcome else {
        panic!("applied")
    };
    assert!(message.chars().count() < 200 && !message.contains('\u{1b}'));
}

#[test]
fn receipt_path_is_fit_for_fat() {
    let mut receipt = receipt(Outcome::Applied);
    assert_eq!(
        receipt.path(),
        format!("receipts/{}-{}.json", peer("machine").short(), generator::SERIAL)
    );
    receipt.serial = Some("../../../evil".into());
    receipt.peer_id = None;
    let hex = Digest::of(b"joinpack.json").hex();
    assert_eq!(receipt.path(), format!("receipts/unknown-{}.json", &hex[..26]));
    receipt.pack = None;
    assert_eq!(receipt.path(), "receipts/unknown-none.json");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        prop_assert!(Membership::parse(&bytes).is_err());
        prop_assert!(OperatorContext::parse(&bytes).is_err());
        prop_assert!(Receipt::parse(&bytes).is_err());
    }

    #[test]
    fn changed_credentials_never_make_another_member(at: prop::sample::Index, bit in 0u8..8) {
        let good = redeem(time(FLOOR)).unwrap();
        let member = good.verify(&roots(), &peer("machine")).unwrap();
        let mut bytes = good.to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(other) = Membership::parse(&bytes).and_then(|m| m.verify(&roots(), &peer("machine"))) {
            prop_assert_eq!(other, member);
        }
    }

    #[test]
    fn changed_receipts_are_refused(at: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = receipt(Outcome::Applied).to_envelope(Some(&key("machine"))).unwrap().to_json();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(Receipt::parse(&bytes).is_err());
    }
}
