//! The vectors themselves: each defect put into an otherwise correct pack.

use super::*;

mod limits;
mod places;
mod requests;
mod visits;

/// Collects the cases.
struct Book(Vec<Case>);

impl Book {
    fn add(
        &mut self,
        name: &'static str,
        about: &str,
        expect: &str,
        draft: &Draft,
        joinpack: Vec<u8>,
    ) -> &mut Case {
        let vector = Vector {
            about: about.to_owned(),
            expect: expect.to_owned(),
            floor: time(FLOOR),
            last_serial: None,
            trusted: false,
            pad_to: None,
            machine: None,
            request: None,
            receipt: None,
            log: None,
            nonce: None,
        };
        let mut files: BTreeMap<_, _> = draft
            .blobs
            .iter()
            .map(|(path, content)| (format!("pack/{path}"), content.clone()))
            .collect();
        files.insert("pack/joinpack.json".to_owned(), joinpack);
        files.insert("vector.json".to_owned(), json(&vector));
        self.0.push(Case { name, files });
        self.0.last_mut().unwrap()
    }
}

fn json(vector: &Vector) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(vector).unwrap();
    text.push(b'\n');
    text
}

impl Case {
    fn change(&mut self, change: impl FnOnce(&mut Vector)) -> &mut Self {
        let mut vector: Vector = serde_json::from_slice(&self.files["vector.json"]).unwrap();
        change(&mut vector);
        self.files.insert("vector.json".to_owned(), json(&vector));
        self
    }

    fn trust(&mut self, roots: &[Envelope]) {
        self.change(|vector| vector.trusted = true);
        self.files
            .insert("roots.json".to_owned(), serde_json::to_vec(roots).unwrap());
    }

    fn at(&mut self, floor: &str) {
        self.change(|vector| vector.floor = time(floor));
    }

    fn applied(&mut self, serial: &str) {
        self.change(|vector| vector.last_serial = Some(serial.to_owned()));
    }
}

/// Every vector.
pub fn cases() -> Vec<Case> {
    let mut book = Book(Vec::new());
    accepted(&mut book);
    signatures(&mut book);
    time_and_trust(&mut book);
    roots(&mut book);
    media(&mut book);
    form(&mut book);
    limits::limits_of_keys(&mut book);
    places::machines(&mut book);
    places::targets(&mut book);
    places::approvals(&mut book);
    places::revocations(&mut book);
    requests::requests(&mut book);
    visits::receipts(&mut book);
    places::orders(&mut book);
    places::releases(&mut book);
    book.0
}

fn rotated() -> (Draft, Vec<Envelope>) {
    let mut draft = draft("shop", 1);
    let first = root("shop", 1);
    let second = sign_root(&second_root(&first), &["root-1", "root-2"]);
    draft.manifest.roots.push(second);
    draft.signers = vec!["enrolment-3"];
    let fabric = draft.manifest.fabric.clone();
    draft.manifest.vouchers = vec![
        voucher(&fabric, "node-1", "01KDVKFD000000000000000001", &["enrolment-3"]),
        voucher(&fabric, "node-2", "01KDVKFD000000000000000002", &["enrolment-3"]),
    ];
    let roots = draft.manifest.roots.clone();
    (draft, roots)
}

fn accepted(book: &mut Book) {
    let good = draft("shop", 1);
    book.add(
        "good",
        "a correct pack, no fabric trusted yet",
        "accepted",
        &good,
        good.joinpack(),
    );
    book.add(
        "good-trusted",
        "a correct pack of the fabric trusted already",
        "accepted",
        &good,
        good.joinpack(),
    )
    .trust(&good.manifest.roots);
    book.add(
        "good-last-second",
        "a correct pack in its last second",
        "accepted",
        &good,
        good.joinpack(),
    )
    .at(EXPIRES);
    book.add(
        "good-again",
        "the pack applied last is put in again",
        "accepted",
        &good,
        good.joinpack(),
    )
    .applied(SERIAL);
    let two = draft("shop", 2);
    book.add(
        "good-two-signatures",
        "two of two enrolment keys signed",
        "accepted",
        &two,
        two.joinpack(),
    );
    let (rotated, _) = rotated();
    book.add(
        "good-rotated",
        "root 2 replaced the enrolment key, the node knows root 1",
        "accepted",
        &rotated,
        rotated.joinpack(),
    )
    .trust(&good.manifest.roots);
}

fn signatures(book: &mut Book) {
    let good = draft("shop", 1);
    let mut flipped = good.joinpack();
    // The last character of a signature's base64 that carries 6 full bits.
    let at = flipped.len() - 10;
    flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
    book.add(
        "flipped-bit",
        "one character of the signature was changed",
        "bad-signature",
        &good,
        flipped,
    );
    let payload = good.payload().replacen("\"found\":true", "\"found\":false", 1);
    let forged = String::from_utf8(sign_payload(payload.as_bytes(), &good.signers)).unwrap();
    let signature = String::from_utf8(good.joinpack()).unwrap();
    let forged = format!(
        "{}{}",
        forged.split_once(",\"payloadType\"").unwrap().0,
        &signature[signature.find(",\"payloadType\"").unwrap()..]
    );
    book.add(
        "altered-payload",
        "the payload was changed after signing",
        "bad-signature",
        &good,
        forged.into_bytes(),
    );
    let unknown = Draft {
        signers: vec!["stranger"],
        ..good.clone()
    };
    book.add(
        "unknown-signer",
        "signed by a key outside the root document",
        "unknown-key",
        &unknown,
        unknown.joinpack(),
    );
    let wrong_role = Draft {
        signers: vec!["operator"],
        ..good.clone()
    };
    book.add(
        "wrong-role",
        "signed by the operator's key, not an enrolment key",
        "unknown-key",
        &wrong_role,
        wrong_role.joinpack(),
    );
    let also = Draft {
        signers: vec!["enrolment-1", "stranger"],
        ..good.clone()
    };
    book.add(
        "also-unknown-signer",
        "a second signature by a stranger",
        "unknown-key",
        &also,
        also.joinpack(),
    );
    let unsigned = Draft {
        signers: vec![],
        ..good.clone()
    };
    book.add(
        "unsigned",
        "no signature at all",
        "threshold-not-met",
        &unsigned,
        unsigned.joinpack(),
    );
    let one = Draft {
        signers: vec!["enrolment-1"],
        ..draft("shop", 2)
    };
    book.add(
        "threshold-not-met",
        "one of the two necessary keys signed",
        "threshold-not-met",
        &one,
        one.joinpack(),
    );
    let twice = Draft {
        signers: vec!["enrolment-1", "enrolment-1"],
        ..draft("shop", 2)
    };
    book.add(
        "signed-twice-by-one-key",
        "two signatures, but of the same key",
        "threshold-not-met",
        &twice,
        twice.joinpack(),
    );
}

fn time_and_trust(book: &mut Book) {
    let good = draft("shop", 1);
    book.add(
        "expired",
        "one second past its expiry",
        "expired",
        &good,
        good.joinpack(),
    )
    .at("2026-02-01T00:00:01Z");
    book.add(
        "other-fabric",
        "the node belongs to another fabric",
        "other-fabric",
        &good,
        good.joinpack(),
    )
    .trust(&draft("warehouse", 1).manifest.roots);
    book.add(
        "older-than-applied",
        "a newer pack was applied before",
        "older-than-applied",
        &good,
        good.joinpack(),
    )
    .applied(NEWER_SERIAL);
    let mut lying = good.clone();
    lying.manifest.fabric = draft("warehouse", 1).manifest.fabric;
    book.add(
        "other-fabric-inside",
        "names a fabric that is not its roots'",
        "other-fabric",
        &lying,
        lying.joinpack(),
    );
    let mut foreign = good.clone();
    let other = draft("warehouse", 1);
    foreign.manifest.vouchers[0] = voucher(
        &other.manifest.fabric,
        "node-1",
        "01KDVKFD000000000000000001",
        &["enrolment-1"],
    );
    book.add(
        "voucher-of-other-fabric",
        "a voucher names another fabric",
        "other-fabric",
        &foreign,
        foreign.joinpack(),
    );
    let mut key_mismatch = good.clone();
    key_mismatch.manifest.vouchers[0].one_time_key = Some(key("one-time node-2"));
    book.add(
        "voucher-with-wrong-key",
        "the one-time key is another voucher's",
        "inconsistent",
        &key_mismatch,
        key_mismatch.joinpack(),
    );
    let mut forged = good.clone();
    forged.manifest.vouchers[0] = voucher(
        &good.manifest.fabric,
        "node-1",
        "01KDVKFD000000000000000001",
        &["stranger"],
    );
    book.add(
        "voucher-of-stranger",
        "a voucher that a stranger signed",
        "unknown-key",
        &forged,
        forged.joinpack(),
    );
    let mut nobody = good.clone();
    nobody.manifest.vouchers[1] = voucher(
        &good.manifest.fabric,
        "node-9",
        "01KDVKFD000000000000000002",
        &["enrolment-1"],
    );
    book.add(
        "voucher-for-nobody",
        "a voucher for a node that the pack does not name",
        "inconsistent",
        &nobody,
        nobody.joinpack(),
    );
}

fn roots(book: &mut Book) {
    let good = draft("shop", 1);
    let first = root("shop", 1);
    let mut weak = good.clone();
    weak.manifest.roots = vec![sign_root(&first, &["root-1"])];
    book.add(
        "root-threshold-not-met",
        "root 1 carries one of two signatures",
        "threshold-not-met",
        &weak,
        weak.joinpack(),
    );
    let mut none = good.clone();
    none.manifest.roots.clear();
    book.add(
        "no-roots",
        "the pack has no root document",
        "root-gap",
        &none,
        none.joinpack(),
    );
    let mut gap = good.clone();
    let mut third = second_root(&first);
    third.version = 3;
    gap.manifest.roots.push(sign_root(&third, &["root-1", "root-2"]));
    book.add(
        "root-gap",
        "root 3 follows root 1",
        "root-gap",
        &gap,
        gap.joinpack(),
    );
    let mut usurped = good.clone();
    let mut coup = second_root(&first);
    for name in ["stranger-1", "stranger-2"] {
        coup.keys.insert(key(name).public().key_id(), key(name).public());
    }
    coup.roles
        .insert(Role::Root, role(&["stranger-1", "stranger-2"], 2));
    usurped
        .manifest
        .roots
        .push(sign_root(&coup, &["stranger-1", "stranger-2"]));
    usurped.signers = vec!["enrolment-3"];
    book.add(
        "root-usurped",
        "root 2 is signed by its own keys only",
        "unknown-key",
        &usurped,
        usurped.joinpack(),
    );
    let (other, _) = rotated();
    let mut conflicting = second_root(&first);
    conflicting.issued = time(FLOOR);
    let trusted = [
        good.manifest.roots[0].clone(),
        sign_root(&conflicting, &["root-1", "root-2"]),
    ];
    book.add(
        "root-conflict",
        "another root 2 is trusted already",
        "root-conflict",
        &other,
        other.joinpack(),
    )
    .trust(&trusted);
    book.add(
        "rotated-out-signer",
        "signed by a key that root 2, known to the node, removed",
        "unknown-key",
        &good,
        good.joinpack(),
    )
    .trust(&rotated().1);
}

fn media(book: &mut Book) {
    let good = draft("shop", 1);
    let path = good.blobs.keys().next().unwrap().clone();
    let mut extra = good.clone();
    extra.blobs.insert(
        format::blob_path(&Digest::of(b"contraband")),
        b"contraband".to_vec(),
    );
    book.add(
        "unlisted-blob",
        "a blob that the manifest does not name",
        "unlisted-blob",
        &extra,
        good.joinpack(),
    );
    let mut stray = good.clone();
    stray.blobs.insert("blobs/readme.txt".into(), b"hello".to_vec());
    book.add(
        "stray-file-among-blobs",
        "a file among the blobs that is no blob",
        "unlisted-blob",
        &stray,
        good.joinpack(),
    );
    let mut missing = good.clone();
    missing.blobs.clear();
    book.add(
        "missing-blob",
        "a blob of the manifest is not there",
        "missing-blob",
        &missing,
        good.joinpack(),
    );
    let mut wrong = good.clone();
    let mut content = IMAGE.to_vec();
    content[3] ^= 1;
    wrong.blobs.insert(path.clone(), content);
    book.add(
        "wrong-digest",
        "one bit of a blob is flipped",
        "wrong-digest",
        &wrong,
        good.joinpack(),
    );
    for (name, about, content) in [
        (
            "blob-too-short",
            "a blob lacks its last byte",
            &IMAGE[..IMAGE.len() - 1],
        ),
        (
            "blob-too-long",
            "a blob has a byte too many",
            &[IMAGE, b"!"].concat(),
        ),
    ] {
        let mut wrong = good.clone();
        wrong.blobs.insert(path.clone(), content.to_vec());
        book.add(name, about, "wrong-size", &wrong, good.joinpack());
    }
}

fn form(book: &mut Book) {
    let good = draft("shop", 1);
    let digest = Digest::of(IMAGE).to_string();
    let mut bend = |name, about, expect, from: &str, to: &str| {
        book.add(name, about, expect, &good, good.bent(from, to));
    };
    bend(
        "path-escapes",
        "an image name climbs out",
        "path-escapes",
        "nginx:1",
        "../../etc/nginx",
    );
    let quoted = format!("{{\"{digest}\":");
    bend(
        "path-escapes-blob",
        "a blob's name climbs out",
        "path-escapes",
        &quoted,
        "{\"sha256:../../../etc/passwd\":",
    );
    bend(
        "path-escapes-image-digest",
        "an image's digest climbs out",
        "path-escapes",
        &digest,
        "sha256:../../joinpack.json",
    );
    bend(
        "blob-named-twice",
        "a blob has two sizes",
        "duplicate",
        &quoted,
        &format!("{quoted}7,\"{digest}\":"),
    );
    bend(
        "image-without-blob",
        "an image has another size than its blob",
        "inconsistent",
        "\"size\":25",
        "\"size\":26",
    );
    bend(
        "unknown-field",
        "a member that format 1 does not have",
        "malformed",
        "\"format\":1",
        "\"format\":1,\"more\":1",
    );
    bend(
        "wrong-version",
        "format 2",
        "wrong-version",
        "\"format\":1",
        "\"format\":2",
    );
    bend(
        "node-named-twice",
        "two nodes of one name",
        "duplicate",
        "{\"name\":\"node-2\"",
        "{\"name\":\"node-1\"",
    );
    bend(
        "bad-mac",
        "a MAC address in upper case",
        "malformed",
        "52:54:00:00:00:01",
        "52:54:00:00:00:AB",
    );
    bend(
        "bad-peer",
        "a peer without a port",
        "malformed",
        "10.77.0.11:7946",
        "10.77.0.11",
    );
    bend("bad-serial", "a serial that is no ULID", "malformed", SERIAL, "7");
    bend(
        "expires-before-issued",
        "an expiry before the issue",
        "malformed",
        EXPIRES,
        "2025-12-01T00:00:00Z",
    );
    let nodes: String = (0..=format::limits::NODES)
        .map(|n| format!("{{\"name\":\"n{n}\"}},"))
        .collect();
    bend(
        "too-many-nodes",
        "513 nodes",
        "limit-exceeded",
        "\"nodes\":[",
        &format!("\"nodes\":[{nodes}"),
    );
    let peers: String = (0..=format::limits::PEERS)
        .map(|n| format!("\"10.77.1.{n}:7946\","))
        .collect();
    bend(
        "too-many-peers",
        "67 peers",
        "limit-exceeded",
        "\"peers\":[",
        &format!("\"peers\":[{peers}"),
    );
    let text = String::from_utf8(good.joinpack()).unwrap();
    book.add(
        "other-json",
        "the same envelope with a space",
        "malformed",
        &good,
        text.replacen(',', ", ", 1).into_bytes(),
    );
    book.add(
        "cut-off",
        "the file ends in the middle",
        "malformed",
        &good,
        text.as_bytes()[..text.len() / 2].to_vec(),
    );
    book.add("empty", "the file is empty", "malformed", &good, Vec::new());
    book.add(
        "oversized",
        "one byte more than 4 MiB",
        "too-large",
        &good,
        good.joinpack(),
    )
    .change(|vector| vector.pad_to = Some(MANIFEST_LIMIT + 1));
    let other = Envelope::sign(
        VOUCHER_PAYLOAD_TYPE,
        good.payload().as_bytes(),
        &[&key("enrolment-1")],
    );
    book.add(
        "wrong-type",
        "signed as a voucher",
        "wrong-type",
        &good,
        other.to_json(),
    );
}
