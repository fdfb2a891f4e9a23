//! The vectors of places that are tied to a machine, of places for one TPM, of packs by which machines may ask, and of
//! revocations and key orders.

use super::*;

pub(super) fn machine(
    macs: &[&str],
    serial: Option<&str>,
    ek: Option<Digest>,
    place: Option<&str>,
) -> MachineCase {
    MachineCase {
        macs: macs.iter().map(|mac| (*mac).to_owned()).collect(),
        serial: serial.map(str::to_owned),
        ek,
        place: place.map(|name| name.parse().unwrap()),
    }
}

/// A pack with a place for a serial number, one for an endorsement key, and one for both a card and a serial number.
pub(super) fn tied() -> (Draft, Digest) {
    let ek = Digest::of(b"endorsement key");
    let mut draft = draft("shop", 1);
    let network = draft.manifest.nodes[0].network.clone();
    let entry = |name: &str, mac: Option<&str>, serial: Option<&str>, ek| NodeEntry {
        name: name.parse().unwrap(),
        mac: mac.map(str::to_owned),
        serial: serial.map(str::to_owned),
        ek,
        network: network.clone(),
    };
    draft.manifest.nodes = vec![
        entry("node-1", None, Some("SN 0001"), None),
        entry("node-2", None, None, Some(ek)),
        entry("node-3", Some("52:54:00:00:00:03"), Some("SN 0003"), None),
    ];
    draft.manifest.roster_size = 3;
    (draft, ek)
}

pub(super) fn machines(book: &mut Book) {
    let (tied, ek) = tied();
    let mac = "52:54:00:00:00:03";
    for (name, about, expect, of) in [
        (
            "good-by-serial",
            "the machine is known by its serial number",
            "accepted",
            machine(&[], Some("SN 0001"), None, Some("node-1")),
        ),
        (
            "good-by-endorsement-key",
            "the machine is known by its TPM",
            "accepted",
            machine(&[mac], Some("x"), Some(ek), Some("node-2")),
        ),
        (
            "good-by-card-and-serial",
            "the machine is known by its card and its serial number",
            "accepted",
            machine(&[mac], Some("SN 0003"), None, Some("node-3")),
        ),
        (
            "for-another-box",
            "every place is for another machine",
            "other-box",
            machine(
                &["52:54:00:00:00:09"],
                Some("SN 0009"),
                Some(Digest::of(b"x")),
                None,
            ),
        ),
        (
            "for-another-box-with-that-card",
            "the card is right and the serial number is not",
            "other-box",
            machine(&[mac], Some("SN 0009"), None, None),
        ),
    ] {
        book.add(name, about, expect, &tied, tied.joinpack())
            .change(|vector| vector.machine = Some(of));
    }
    let mut bend = |name, about, expect, from: &str, to: &str| {
        book.add(name, about, expect, &tied, tied.bent(from, to));
    };
    bend(
        "serial-number-named-twice",
        "two places for one serial number",
        "duplicate",
        "SN 0003",
        "SN 0001",
    );
    bend(
        "serial-number-too-long",
        "a serial number of 65 characters",
        "malformed",
        "SN 0001",
        &"x".repeat(65),
    );
    bend(
        "serial-number-with-control-character",
        "a serial number that would steer a console",
        "malformed",
        "SN 0001",
        "SN\\u001b[2J",
    );
}

pub(super) fn targets(book: &mut Book) {
    let (mut sealed, ek) = tied();
    let fabric = sealed.manifest.fabric.clone();
    sealed.manifest.vouchers = vec![targeted(&fabric, "node-2", "01KDVKFD000000000000000002", ek)];
    book.add(
        "good-targeted",
        "a voucher whose key is sealed to the TPM of its machine",
        "accepted",
        &sealed,
        sealed.joinpack(),
    )
    .change(|vector| vector.machine = Some(machine(&[], None, Some(ek), Some("node-2"))));
    let mut add = |name, about, expect, change: &dyn Fn(&mut Draft)| {
        let mut draft = sealed.clone();
        change(&mut draft);
        book.add(name, about, expect, &draft, draft.joinpack());
    };
    add(
        "targeted-voucher-in-the-clear",
        "a targeted voucher with its key in the clear",
        "inconsistent",
        &|draft| {
            let voucher = &mut draft.manifest.vouchers[0];
            voucher.sealed_key = None;
            voucher.one_time_key = Some(key("one-time node-2"));
        },
    );
    add(
        "voucher-with-two-keys",
        "a key in the clear beside the sealed one",
        "malformed",
        &|draft| {
            draft.manifest.vouchers[0].one_time_key = Some(key("one-time node-2"));
        },
    );
    add(
        "voucher-without-a-key",
        "neither a key nor a sealed one",
        "malformed",
        &|draft| {
            draft.manifest.vouchers[0].sealed_key = None;
        },
    );
    add(
        "sealed-for-another-tpm",
        "the key is sealed to another TPM than the voucher names",
        "inconsistent",
        &|draft| {
            draft.manifest.vouchers[0].sealed_key.as_mut().unwrap().ek = Digest::of(b"other");
        },
    );
    add(
        "targeted-place-of-another-tpm",
        "the voucher's place is for another TPM",
        "inconsistent",
        &|draft| {
            draft.manifest.nodes[1].ek = Some(Digest::of(b"other"));
        },
    );
    add(
        "sealed-key-too-long",
        "a sealed key of 516 characters",
        "malformed",
        &|draft| {
            draft.manifest.vouchers[0].sealed_key.as_mut().unwrap().secret = "A".repeat(516);
        },
    );
    add(
        "sealed-key-not-base64",
        "a sealed key that is no base64",
        "malformed",
        &|draft| {
            draft.manifest.vouchers[0].sealed_key.as_mut().unwrap().secret = "A".to_owned();
        },
    );
}

pub(super) fn approvals(book: &mut Book) {
    let (mut asking, _) = tied();
    asking.manifest.approval = true;
    book.add(
        "good-approval",
        "every place is for another machine, and this one may ask",
        "accepted",
        &asking,
        asking.joinpack(),
    )
    .change(|vector| vector.machine = Some(machine(&[], Some("SN 0009"), None, None)));
    let mut unheard = asking.clone();
    unheard.manifest.peers.clear();
    book.add(
        "approval-without-peers",
        "machines may ask, and nobody is named to ask",
        "inconsistent",
        &unheard,
        unheard.joinpack(),
    );
    let own = key("machine");
    let approved = Voucher {
        fabric: asking.manifest.fabric.clone(),
        id: "01KDVKFD000000000000000001".to_owned(),
        node: "node-1".parse().unwrap(),
        cell: "shop".to_owned(),
        issued: time(ISSUED),
        expires: time(EXPIRES),
        key: own.public(),
        admission: Admission::Approved,
        ek: None,
    };
    let mut bent = asking;
    bent.manifest.vouchers[0] = PackVoucher {
        envelope: approved.sign(&[&key("operator")]).unwrap(),
        one_time_key: Some(own),
        sealed_key: None,
    };
    book.add(
        "approved-voucher-in-a-pack",
        "an operator's voucher, which only members hand out",
        "inconsistent",
        &bent,
        bent.joinpack(),
    );
}

pub(super) fn revocations(book: &mut Book) {
    let good = draft("shop", 1);
    let fabric = good.manifest.fabric.clone();
    let with = |envelopes: Vec<Envelope>| {
        let mut draft = good.clone();
        draft.manifest.revocations = envelopes;
        draft
    };
    let mut add = |name, about, expect, draft: Draft| {
        book.add(name, about, expect, &draft, draft.joinpack());
    };
    let plain = snapshot(&fabric);
    add(
        "good-with-revocations",
        "an operator revoked two nodes and a voucher",
        "accepted",
        with(vec![sign_snapshot(&plain, &["operator"])]),
    );
    let mut keys = plain.clone();
    keys.keys.insert(key("operator").public().key_id());
    add(
        "good-with-revoked-key",
        "recovery revoked the operator's key",
        "accepted",
        with(vec![sign_snapshot(&keys, &["recovery"])]),
    );
    add(
        "revocation-of-key-by-operator",
        "an operator revokes a key",
        "unknown-key",
        with(vec![sign_snapshot(&keys, &["operator"])]),
    );
    add(
        "revocation-by-stranger",
        "a stranger revokes nodes",
        "unknown-key",
        with(vec![sign_snapshot(&plain, &["stranger"])]),
    );
    add(
        "revocation-unsigned",
        "nobody signed the revocations",
        "threshold-not-met",
        with(vec![sign_snapshot(&plain, &[])]),
    );
    let mut root = plain.clone();
    root.keys.insert(key("root-1").public().key_id());
    add(
        "revocation-of-root-key",
        "recovery revokes a root key",
        "inconsistent",
        with(vec![sign_snapshot(&root, &["recovery"])]),
    );
    let foreign = snapshot(&draft("warehouse", 1).manifest.fabric);
    add(
        "revocation-of-other-fabric",
        "the revocations are another fabric's",
        "other-fabric",
        with(vec![sign_snapshot(&foreign, &["operator"])]),
    );
    let many = (0..=format::limits::SNAPSHOTS)
        .map(|_| sign_snapshot(&plain, &["operator"]))
        .collect();
    add(
        "too-many-revocation-snapshots",
        "nine revocation snapshots",
        "limit-exceeded",
        with(many),
    );
    let text = serde_json::to_string(&plain).unwrap();
    let operator = key("operator");
    let signed = |text: &str| {
        vec![Envelope::sign(
            format::REVOCATION_PAYLOAD_TYPE,
            text.as_bytes(),
            &[&operator],
        )]
    };
    let ids: Vec<_> = plain.nodes.iter().map(|peer| format!("\"{peer}\"")).collect();
    let swapped = text.replacen(&ids.join(","), &format!("{},{}", ids[1], ids[0]), 1);
    assert_ne!(swapped, text);
    add(
        "revocations-out-of-order",
        "the revoked nodes do not ascend",
        "malformed",
        with(signed(&swapped)),
    );
    let ulids: Vec<_> = (0..=format::limits::REVOKED)
        .map(|n| format!("\"01KDVKFD0000000000000{n:05}\""))
        .collect();
    let crowded = text.replacen("\"01KDVKFD000000000000000009\"", &ulids.join(","), 1);
    add(
        "too-many-revoked-vouchers",
        "4097 revoked vouchers",
        "limit-exceeded",
        with(signed(&crowded)),
    );
    let padded = format!("{text}{}", " ".repeat(format::limits::REVOCATION_PAYLOAD));
    add(
        "revocations-too-long",
        "revocations of more than 512 KiB",
        "too-large",
        with(signed(&padded)),
    );
}

pub(super) fn orders(book: &mut Book) {
    let good = draft("shop", 1);
    let fabric = good.manifest.fabric.clone();
    let with = |envelopes: Vec<Envelope>| {
        let mut draft = good.clone();
        draft.manifest.orders = envelopes;
        draft
    };
    let mut add = |name, about, expect, draft: Draft| {
        book.add(name, about, expect, &draft, draft.joinpack());
    };
    let id = |n: usize| format!("01KDVKFD0000000000000{n:05}");
    let named = key_order(&fabric, &id(1));
    let mut all = key_order(&fabric, &id(2));
    all.nodes = None;
    add(
        "good-with-key-orders",
        "two nodes, and then all, are to rotate their keys",
        "accepted",
        with(vec![
            sign_order(&named, &["operator"]),
            sign_order(&all, &["operator"]),
        ]),
    );
    add(
        "key-order-by-enrolment",
        "an enrolment key signed the key order",
        "unknown-key",
        with(vec![sign_order(&named, &["enrolment-1"])]),
    );
    add(
        "key-order-unsigned",
        "nobody signed the key order",
        "threshold-not-met",
        with(vec![sign_order(&named, &[])]),
    );
    let foreign = key_order(&draft("warehouse", 1).manifest.fabric, &id(1));
    add(
        "key-order-of-other-fabric",
        "the key order is another fabric's",
        "other-fabric",
        with(vec![sign_order(&foreign, &["operator"])]),
    );
    let crowd = |n: usize| {
        let mut order = key_order(&fabric, &id(n));
        let key = *Digest::of(&n.to_be_bytes()).as_bytes();
        order.nodes = Some(std::collections::BTreeSet::from([PeerId::from_ed25519(&key)]));
        sign_order(&order, &["operator"])
    };
    add(
        "too-many-key-orders",
        "33 key orders",
        "limit-exceeded",
        with((0..=format::limits::ORDERS).map(crowd).collect()),
    );
    let text = serde_json::to_string(&named).unwrap();
    let operator = key("operator");
    let signed = |text: &str| {
        vec![Envelope::sign(
            format::KEY_ORDER_PAYLOAD_TYPE,
            text.as_bytes(),
            &[&operator],
        )]
    };
    let nodes: Vec<_> = named.nodes.iter().flatten().collect();
    let ids = format!("\"{}\",\"{}\"", nodes[0], nodes[1]);
    for (name, about, expect, bent) in [
        (
            "key-order-for-nobody",
            "the key order has an empty list of nodes",
            "malformed",
            text.replacen(&ids, "", 1),
        ),
        (
            "key-order-out-of-order",
            "the nodes of the key order do not ascend",
            "malformed",
            text.replacen(&ids, &format!("\"{}\",\"{}\"", nodes[1], nodes[0]), 1),
        ),
        (
            "key-order-with-bad-id",
            "the id of the key order is no ULID",
            "malformed",
            text.replacen(&id(1), "first", 1),
        ),
    ] {
        assert_ne!(bent, text, "{name}");
        add(name, about, expect, with(signed(&bent)));
    }
}

pub(super) fn releases(book: &mut Book) {
    let release = |n: usize| ReleaseEntry {
        version: format!("0.{n}.0~rc1"),
        pcr11: Digest::of(&n.to_be_bytes()),
    };
    let mut known = draft("shop", 1);
    known.manifest.releases = (0..8).map(release).collect();
    book.add(
        "good-releases",
        "eight releases that members may have booted",
        "accepted",
        &known,
        known.joinpack(),
    );
    let mut add = |name, about, expect, change: &dyn Fn(&mut Vec<ReleaseEntry>)| {
        let mut bent = known.clone();
        change(&mut bent.manifest.releases);
        book.add(name, about, expect, &bent, bent.joinpack());
    };
    add("too-many-releases", "nine releases", "limit-exceeded", &|all| {
        all.push(release(8))
    });
    add(
        "release-named-twice",
        "two versions with one image",
        "duplicate",
        &|all| {
            all[7].pcr11 = all[0].pcr11;
        },
    );
    add(
        "release-with-bad-version",
        "a version with a boot counter",
        "malformed",
        &|all| {
            all[0].version = "0.1.0+3".to_owned();
        },
    );
}
