//! The vectors of requests: sticks that a machine without a place has written to.

use super::places::{machine, tied};
use super::*;
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// A request of the machine `machine-1` to a pack.
fn request(manifest: &Manifest) -> Request {
    Request {
        fabric: manifest.fabric.clone(),
        serial: manifest.serial.clone(),
        peer_id: PeerId::from_ed25519(key("machine-1").public().as_bytes()),
        machine: ReceiptMachine {
            macs: vec!["52:54:00:00:00:09".into()],
            serial: Some("SN 0009".into()),
            ek: Some(EndorsementFile::new(
                b"stands for a TPMT_PUBLIC",
                Some(b"stands for its certificate"),
            )),
        },
        chain: Some(STANDARD.encode(b"stands for the certificates above it")),
        boot_id: "d5e4c4fe-0f5e-4b0f-8f0b-6c1d3c9a7e55".into(),
        at: time(FLOOR),
        attestation: None,
    }
}

fn sign(text: &str, signers: &[&str]) -> Vec<u8> {
    let keys: Vec<_> = signers.iter().map(|name| key(name)).collect();
    let keys: Vec<_> = keys.iter().collect();
    Envelope::sign(format::REQUEST_PAYLOAD_TYPE, text.as_bytes(), &keys).to_json()
}

pub(super) fn requests(book: &mut Book) {
    let (mut asking, _) = tied();
    asking.manifest.requests = true;
    let stranger = machine(&["52:54:00:00:00:09"], Some("SN 0009"), None, None);
    let case = |book: &mut Book, name, about: &str, expect: &str, content: Vec<u8>| {
        let path = request(&asking.manifest).path();
        let case = book.add(name, about, expect, &asking, asking.joinpack());
        case.files.insert(format!("pack/{path}"), content);
        case.change(|vector| {
            vector.machine = Some(stranger.clone());
            vector.request = Some(path);
        });
    };
    book.add(
        "good-requests",
        "every place is for another machine, and this one may write a request",
        "accepted",
        &asking,
        asking.joinpack(),
    )
    .change(|vector| vector.machine = Some(stranger.clone()));
    let good = request(&asking.manifest);
    let mut attested = good.clone();
    attested.attestation = Some(super::visits::quote(145, &[0, 7, 11]));
    let text = serde_json::to_string(&attested).unwrap();
    let content = sign(&text, &["machine-1"]);
    case(
        book,
        "request-with-attestation",
        "a request with a quote",
        "accepted",
        content,
    );
    let last = book.0.last_mut().unwrap();
    last.change(|vector| vector.nonce = Some(attested.nonce().unwrap()));
    let text = serde_json::to_string(&good).unwrap();
    let own = ["machine-1"];
    case(book, "good-request", "a request", "accepted", sign(&text, &own));
    let mut bend = |name, about, expect, from: &str, to: &str| {
        let bent = text.replacen(from, to, 1);
        assert_ne!(bent, text, "`{from}` is not in the request");
        case(book, name, about, expect, sign(&bent, &own));
    };
    bend(
        "request-of-other-fabric",
        "the request is for another fabric",
        "other-fabric",
        good.fabric.as_str(),
        draft("warehouse", 1).manifest.fabric.as_str(),
    );
    bend(
        "request-of-another-trip",
        "the request was made for another pack",
        "other-trip",
        SERIAL,
        NEWER_SERIAL,
    );
    let ek = good.machine.ek.as_ref().unwrap().ek.to_string();
    let another = Digest::of(b"another").to_string();
    bend(
        "request-with-wrong-key-digest",
        "the digest is another key's",
        "wrong-digest",
        &ek,
        &another,
    );
    let whole = serde_json::to_string(&good.machine.ek).unwrap();
    bend(
        "request-without-endorsement-key",
        "the machine has no TPM",
        "malformed",
        &whole,
        "null",
    );
    bend(
        "request-with-unknown-field",
        "a member that the format does not know",
        "malformed",
        "{",
        "{\"place\":\"till-1\",",
    );
    bend(
        "request-with-bad-mac",
        "a card whose address would steer a console",
        "malformed",
        "52:54:00:00:00:09",
        "52:54\\u001b[2J",
    );
    let macs: Vec<_> = (0..=format::limits::CARDS)
        .map(|n| format!("\"52:54:00:00:01:{n:02x}\""))
        .collect();
    bend(
        "request-with-too-many-cards",
        "33 network cards",
        "limit-exceeded",
        "\"52:54:00:00:00:09\"",
        &macs.join(","),
    );
    let chain = good.chain.clone().unwrap();
    bend(
        "request-with-too-long-chain",
        "more than 16 KiB of certificates",
        "too-large",
        &chain,
        &STANDARD.encode(vec![0x30; format::limits::CHAIN + 3]),
    );
    bend(
        "request-with-chain-not-base64",
        "certificates that are no base64",
        "malformed",
        &chain,
        "A",
    );
    bend(
        "request-with-steering-boot-id",
        "a boot id that would steer a console",
        "malformed",
        "d5e4c4fe-0f5e",
        "\\u001b[2J",
    );
    case(
        book,
        "request-unsigned",
        "nobody signed the request",
        "threshold-not-met",
        sign(&text, &[]),
    );
    case(
        book,
        "request-of-another-machine",
        "another key signed than that of its peer id",
        "unknown-key",
        sign(&text, &["machine-2"]),
    );
    let signed = String::from_utf8(sign(&text, &own)).unwrap();
    let other = STANDARD.encode(text.replacen("SN 0009", "SN 0008", 1));
    let altered = signed.replacen(&STANDARD.encode(&text), &other, 1).into_bytes();
    case(
        book,
        "request-altered",
        "a byte was changed after signing",
        "bad-signature",
        altered,
    );
    let receipt = Envelope::sign(
        format::RECEIPT_PAYLOAD_TYPE,
        text.as_bytes(),
        &[&key("machine-1")],
    );
    case(
        book,
        "request-of-wrong-type",
        "a receipt in the place of a request",
        "wrong-type",
        receipt.to_json(),
    );
    let padded = vec![b' '; format::limits::REQUEST_LIMIT + 1];
    case(book, "request-too-large", "more than 64 KiB", "too-large", padded);
}
