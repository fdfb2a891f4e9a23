//! The vectors of receipts and of the logs beside them: sticks that a member has written to.

use super::*;
use format::{
    Assurance, BootQuote, Membership, Outcome, Part, PartKind, QuoteParts, Receipt, Registers, TimeSource,
};

pub(super) const LOG: &str = "{\"unit\":\"agent\",\"message\":\"reading the join stick\"}\n";

/// The receipt of the machine that took the place `node-2` of the pack.
fn receipt(manifest: &Manifest) -> Receipt {
    let peer = PeerId::from_ed25519(key("machine-1").public().as_bytes());
    let offer = &manifest.vouchers[1];
    let one_time = offer.one_time_key.as_ref().unwrap();
    let membership = Membership::redeem(&offer.envelope, one_time, &peer, Assurance::Tpm, time(FLOOR));
    Receipt {
        node: Some("node-2".parse().unwrap()),
        peer_id: Some(peer),
        fabric: Some(manifest.fabric.clone()),
        membership: Some(membership.unwrap()),
        machine: ReceiptMachine {
            macs: vec!["52:54:00:00:00:02".into()],
            serial: Some("SN 0002".into()),
            ek: Some(EndorsementFile::new(b"stands for a TPMT_PUBLIC", None)),
        },
        boot_id: "d5e4c4fe-0f5e-4b0f-8f0b-6c1d3c9a7e55".into(),
        at: time(FLOOR),
        time_source: TimeSource::Ntp,
        serial: Some(SERIAL.into()),
        pack: Some(Digest::of(b"stands for joinpack.json")),
        outcome: Outcome::Applied,
        parts: vec![Part {
            part: PartKind::Place,
            what: "node-2 in cell shop".into(),
            refused: None,
        }],
        log: None,
        attestation: None,
    }
}

/// A quote in form: no vector has a TPM.
pub(super) fn quote(size: usize, registers: &[u8]) -> BootQuote {
    let parts = QuoteParts {
        ak: b"stands for a TPMT_PUBLIC".to_vec(),
        attest: vec![0x5a; size],
        signature: vec![0xa5; 64],
    };
    let value = |number: &u8| (*number, Digest::of(&[*number]));
    BootQuote::new(&parts, Registers(registers.iter().map(value).collect()))
}

fn signed(receipt: &Receipt) -> Vec<u8> {
    receipt.to_envelope(Some(&key("machine-1"))).unwrap().to_json()
}

pub(super) fn receipts(book: &mut Book) {
    let mut visited = draft("shop", 1);
    visited.manifest.log_key = Some(log_key("log").public());
    let fabric = visited.manifest.fabric.clone();
    let attach = |receipt: &mut Receipt, name: &str| {
        let seed = *Digest::of(b"beemesh test seed: log").as_bytes();
        let key = log_key(name).public();
        receipt.attach_log(LOG.as_bytes(), &fabric, &key, seed).unwrap()
    };
    let mut case = |name, about: &str, expect: &str, receipt: &Receipt, log: Option<Vec<u8>>| {
        let case = book.add(name, about, expect, &visited, visited.joinpack());
        case.files
            .insert(format!("pack/{}", receipt.path()), signed(receipt));
        if let Some(log) = log {
            case.files
                .insert(format!("pack/{}", receipt.log_path().unwrap()), log);
        }
        case.change(|vector| {
            vector.receipt = Some(receipt.path());
            if receipt.attestation.is_some() {
                vector.nonce = Some(receipt.nonce().unwrap());
            }
            if expect == "accepted" && receipt.log.is_some() {
                vector.log = Some(LOG.to_owned());
            }
        });
    };
    let plain = receipt(&visited.manifest);
    case(
        "good-receipt",
        "a member's receipt without a log",
        "accepted",
        &plain,
        None,
    );
    let mut good = plain.clone();
    let file = attach(&mut good, "log");
    let log = || Some(file.clone());
    case(
        "good-log",
        "a member's receipt and the log beside it",
        "accepted",
        &good,
        log(),
    );
    for (name, about, expect, size, registers) in [
        (
            "good-attestation",
            "a member's receipt with a log and a quote",
            "accepted",
            145,
            &[0, 7, 11][..],
        ),
        (
            "attestation-too-long",
            "the quote is longer than one can be",
            "too-large",
            513,
            &[0, 7, 11],
        ),
        (
            "attestation-of-unknown-register",
            "the quote is over a register that no TPM has",
            "malformed",
            145,
            &[0, 7, 24],
        ),
    ] {
        let mut attested = good.clone();
        attested.settle().unwrap();
        attested.attestation = Some(quote(size, registers));
        case(name, about, expect, &attested, log());
    }
    let mut altered = file.clone();
    let last = altered.len() - 1;
    altered[last] ^= 1;
    case(
        "log-altered",
        "one bit of the log was changed",
        "log-altered",
        &good,
        Some(altered),
    );
    let cut = file[..file.len() - 1].to_vec();
    case(
        "log-cut-off",
        "the log lacks its last byte",
        "log-cut-off",
        &good,
        Some(cut),
    );
    case(
        "log-missing",
        "the receipt names a log that is not there",
        "log-missing",
        &good,
        None,
    );
    let mut moved = good.clone();
    moved.at = moved.at.plus_seconds(1);
    case(
        "log-of-another-receipt",
        "a member's receipt that names the log of another of its receipts",
        "log-altered",
        &moved,
        log(),
    );
    let mut foreign = plain.clone();
    let file = attach(&mut foreign, "another");
    case(
        "log-to-another-key",
        "the log is encrypted to a key that its reader does not have",
        "other-log-key",
        &foreign,
        Some(file),
    );
    let hex = log_key("log").public().to_string();
    book.add(
        "log-key-not-hex",
        "the log key is not 64 hexadecimal digits",
        "malformed",
        &visited,
        visited.bent(&hex, &hex[2..]),
    );
}
