//! Packs for one machine's TPM, and revocations, by the binary itself.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;

use beemesh_joinpack_format::{
    Assurance, EndorsementFile, Membership, Outcome, Pack, Receipt, ReceiptMachine, SecretKey, TimeSource,
    Timestamp,
};
use bench::{bench, done, ends};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// The public part of an endorsement key (template L-2) whose point is the base point of P-256.
fn endorsement_key() -> Vec<u8> {
    let hex = "0023000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa\
        00060080004300100003001000206b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
        00204fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";
    hex::decode(hex.replace(' ', "")).unwrap()
}

fn write_key(path: &Path) -> EndorsementFile {
    let file = EndorsementFile::new(&endorsement_key(), None);
    fs::write(path, serde_json::to_vec(&file).unwrap()).unwrap();
    file
}

fn payload(pack: &Path) -> Value {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let envelope: Value = serde_json::from_slice(&fs::read(pack.join("joinpack.json")).unwrap()).unwrap();
    serde_json::from_slice(&STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap()).unwrap()
}

#[test]
fn key_of_a_place_for_one_tpm_is_on_the_stick_sealed_only() {
    let dir = bench();
    let file = write_key(&dir.path().join("till-1.ek"));
    let create = |out: &str, nodes: &[&str]| {
        let nodes: Vec<&str> = nodes.iter().flat_map(|node| ["--node", node]).collect();
        done(
            dir.path(),
            &[
                &["create", "--fabric", "fab", "--out", out, "-o", "json"],
                &nodes[..],
            ]
            .concat(),
        )
    };
    let view = create("sealed", &["till-1,ek=till-1.ek", "till-2"]).json();
    assert_eq!((&view["vouchers"], &view["targeted"]), (&2.into(), &1.into()));
    assert_eq!(view["nodes"][0]["ek"], file.ek.to_string());
    let pack = payload(&dir.path().join("sealed"));
    let (sealed, plain) = (&pack["vouchers"][0], &pack["vouchers"][1]);
    assert!(sealed["sealed_key"]["credential"].is_string() && sealed.get("one_time_key").is_none());
    assert!(plain["one_time_key"].is_string() && plain.get("sealed_key").is_none());
    assert!(
        done(dir.path(), &["inspect", "sealed"])
            .out
            .contains("1 of them for one machine's TPM only")
    );
    done(dir.path(), &["verify", "sealed"]);

    // A hash chooses the machine, but nothing can be encrypted to a hash.
    let view = create("chosen", &[&format!("till-1,ek={}", file.ek)]).json();
    assert_eq!(
        (&view["targeted"], &view["nodes"][0]["ek"]),
        (&0.into(), &file.ek.to_string().into())
    );

    let mut other = file.clone();
    other.ek = beemesh_ids::Digest::of(b"another");
    fs::write(dir.path().join("other.ek"), serde_json::to_vec(&other).unwrap()).unwrap();
    let bad = ["create", "--fabric", "fab", "--out", "bad", "--node"];
    for (node, word) in [
        ("till-1,ek=other.ek", "wrong content"),
        ("till-1,ek=none.ek", "none.ek"),
        ("till-1,ek=web.tar", "web.tar"),
    ] {
        ends(dir.path(), &[&bad[..], &[node]].concat(), 2, word);
    }
}

/// The receipt of a machine that became `till-1` by the pack `pack`.
fn receipt_of(pack: &Path, key: &SecretKey, ek: &EndorsementFile) -> Receipt {
    let bytes = fs::read(pack.join("joinpack.json")).unwrap();
    let pack = Pack::parse(&bytes).unwrap();
    let pack = pack.verify(None, Timestamp::EPOCH, None).unwrap();
    let offer = &pack.manifest().vouchers[0];
    let peer = beemesh_ids::PeerId::from_ed25519(key.public().as_bytes());
    let one_time = offer.one_time_key.as_ref().unwrap();
    let now = pack.manifest().issued;
    Receipt {
        node: Some("till-1".parse().unwrap()),
        fabric: Some(pack.roots().fabric_id().clone()),
        membership: Some(Membership::redeem(&offer.envelope, one_time, &peer, Assurance::Tpm, now).unwrap()),
        peer_id: Some(peer),
        machine: ReceiptMachine {
            macs: vec!["52:54:00:00:00:01".into()],
            serial: Some("SN 1".into()),
            ek: Some(ek.clone()),
        },
        boot_id: "boot".into(),
        at: now,
        time_source: TimeSource::Ntp,
        serial: Some(pack.manifest().serial.clone()),
        pack: Some(beemesh_ids::Digest::of(&bytes)),
        outcome: Outcome::Applied,
        parts: Vec::new(),
        log: None,
        attestation: None,
    }
}

#[test]
fn receipt_proves_a_member_to_its_fabric_alone_and_gives_the_key_for_its_next_pack() {
    let dir = bench();
    let (key, ek) = (
        SecretKey::from_bytes([9; 32]),
        EndorsementFile::new(&endorsement_key(), None),
    );
    done(
        dir.path(),
        &["create", "--fabric", "fab", "--out", "open", "--node", "till-1"],
    );
    let receipt = receipt_of(&dir.path().join("open"), &key, &ek);
    let path = dir.path().join("open").join(receipt.path());
    fs::create_dir(path.parent().unwrap()).unwrap();
    fs::write(&path, receipt.to_envelope(Some(&key)).unwrap().to_json()).unwrap();
    let show = ["receipts", "open", "-o", "json"];
    let proof = |more: &[&str]| done(dir.path(), &[&show[..], more].concat()).json()[0].clone();
    assert_eq!(proof(&[])["proof"], "signed");
    let view = proof(&["--fabric", "fab", "--ek-to", "keys"]);
    assert_eq!(
        (&view["proof"], &view["time_source"]),
        (&"member".into(), &"ntp".into())
    );
    assert_eq!(view["machine"]["ek"], serde_json::to_value(&ek).unwrap());
    done(dir.path(), &["fabric", "init", "stranger", "--name", "stranger"]);
    ends(
        dir.path(),
        &["receipts", "open", "--fabric", "stranger"],
        3,
        "other-fabric",
    );

    let short = receipt.peer_id.as_ref().unwrap().short();
    for (out, file) in [
        ("by-file", format!("keys/{short}.ek")),
        ("by-receipt", path.display().to_string()),
    ] {
        let node = format!("till-2,ek={file}");
        let create = [
            "create", "--fabric", "fab", "--out", out, "--node", &node, "-o", "json",
        ];
        let view = done(dir.path(), &create).json();
        assert_eq!(
            (&view["targeted"], &view["nodes"][0]["ek"]),
            (&1.into(), &ek.ek.to_string().into())
        );
    }
    let node = format!("till-3,ek={}", path.display());
    let create = ["create", "--fabric", "fab", "--out", "bad", "--node", &node];
    fs::write(&path, receipt.to_envelope(None).unwrap().to_json()).unwrap();
    ends(dir.path(), &create, 2, "nobody signed");
    let mut changed = receipt.to_envelope(Some(&key)).unwrap().to_json();
    let middle = changed.len() / 2;
    changed[middle] = if changed[middle] == b'A' { b'B' } else { b'A' };
    fs::write(&path, changed).unwrap();
    ends(dir.path(), &create, 2, &path.display().to_string());
    // A key of another machine in the place of a saved one is noticed, not taken.
    fs::write(dir.path().join(format!("keys/{short}.ek")), "{}").unwrap();
    fs::write(&path, receipt.to_envelope(Some(&key)).unwrap().to_json()).unwrap();
    ends(
        dir.path(),
        &["receipts", "open", "--ek-to", "keys"],
        2,
        "something else",
    );
}

#[test]
fn what_is_revoked_stays_so_and_every_later_pack_says_it() {
    let dir = bench();
    let peers = [1, 2].map(|n| beemesh_ids::PeerId::from_ed25519(&[n; 32]).to_string());
    let revoke = ["revoke", "--fabric", "fab", "-o", "json"];
    let shown = done(
        dir.path(),
        &[&revoke[..], &["--node", &peers[0], "--dry-run"]].concat(),
    )
    .json();
    assert_eq!(shown["result"], "would-revoke");
    assert!(!dir.path().join("fab/revocations.json").exists());
    done(dir.path(), &[&revoke[..], &["--node", &peers[0]]].concat());
    let view = done(
        dir.path(),
        &[
            &revoke[..],
            &["--node", &peers[1], "--voucher", "01KDVKFD000000000000000009"],
        ]
        .concat(),
    )
    .json();
    assert_eq!(
        (
            view["nodes"].as_array().unwrap().len(),
            view["vouchers"].as_array().unwrap().len()
        ),
        (2, 1)
    );
    done(
        dir.path(),
        &["create", "--fabric", "fab", "--out", "news", "--news"],
    );
    let view = done(
        dir.path(),
        &["verify", "news", "--roots", "fab/root.json", "-o", "json"],
    )
    .json();
    assert_eq!(view["revocations"]["nodes"].as_array().unwrap().len(), 2);
    assert_eq!(view["vouchers"], 0);
    ends(dir.path(), &revoke, 2, "--node");
    ends(
        dir.path(),
        &[&revoke[..], &["--voucher", "7"]].concat(),
        2,
        "ULID",
    );
}

#[test]
fn revoked_key_signs_no_more_packs_and_root_and_last_recovery_keys_are_kept() {
    let dir = bench();
    let id = |name: &str| {
        let file: Value =
            serde_json::from_slice(&fs::read(dir.path().join(format!("fab/keys/{name}.json"))).unwrap())
                .unwrap();
        file["key_id"].as_str().unwrap().to_owned()
    };
    let revoke = ["revoke", "--fabric", "fab", "--key"];
    ends(
        dir.path(),
        &[&revoke[..], &[&id("root-1")]].concat(),
        2,
        "root key",
    );
    ends(
        dir.path(),
        &[&revoke[..], &[&id("recovery")]].concat(),
        2,
        "no recovery key",
    );
    ends(
        dir.path(),
        &[&revoke[..], &[&"0".repeat(64)]].concat(),
        2,
        "none of this fabric",
    );
    done(dir.path(), &[&revoke[..], &[&id("enrolment")]].concat());
    ends(
        dir.path(),
        &["create", "--fabric", "fab", "--out", "p2", "--nodes", "1"],
        2,
        "nobody revoked",
    );
}

#[test]
fn place_by_approval_has_name_and_network_and_no_voucher() {
    let dir = bench();
    let line = "create --fabric fab --out asking --peer 10.0.0.1:7400 --node till-1 \
                --node till-9,mac=52:54:00:00:00:09,address=10.0.0.9/24,approval -o json";
    let line: Vec<&str> = line.split_whitespace().collect();
    let view = done(dir.path(), &line).json();
    assert_eq!((&view["vouchers"], &view["approval"]), (&1.into(), &true.into()));
    let pack = payload(&dir.path().join("asking"));
    assert_eq!(pack["nodes"][1]["name"], "till-9");
    assert_eq!(pack["approval"], true);
    let shown = done(dir.path(), &["inspect", "asking"]).out;
    assert!(shown.contains("show a code and wait"), "{shown}");
    done(dir.path(), &["verify", "asking"]);
    // Nobody needs a place: whoever has the stick may ask.
    let line = "create --fabric fab --out open --peer 10.0.0.1:7400 --approval";
    done(dir.path(), &line.split_whitespace().collect::<Vec<_>>());
    let open = payload(&dir.path().join("open"));
    assert!(open["vouchers"].as_array().unwrap().is_empty() && open["approval"] == true);
}

#[test]
fn releases_come_from_flags_and_from_the_file_and_are_signed_into_the_pack() {
    let dir = bench();
    let release = |name: &str, version: &str, digit: &str| {
        let pcr11 = format!("sha256:{}", digit.repeat(64));
        let text =
            format!(r#"{{"version": "{version}", "build_id": "x", "pcr11": "{pcr11}", "artefacts": []}}"#);
        std::fs::write(dir.path().join(name), text).unwrap();
        pcr11
    };
    let (old, new) = (
        release("old.json", "0.1.0", "a"),
        release("new.json", "0.2.0", "b"),
    );
    std::fs::write(
        dir.path().join("plan.toml"),
        "nodes = 1\nreleases = [\"old.json\"]\n",
    )
    .unwrap();
    let line = "create --fabric fab --out released --from plan.toml --release new.json";
    done(dir.path(), &line.split_whitespace().collect::<Vec<_>>());
    let pack = payload(&dir.path().join("released"));
    let expected =
        serde_json::json!([{"version": "0.1.0", "pcr11": old}, {"version": "0.2.0", "pcr11": new}]);
    assert_eq!(pack["releases"], expected);
    // The same as a list that goes from member to member, as new as the pack.
    let [list] = pack["orders"].as_array().unwrap().as_slice() else {
        panic!("{}", pack["orders"])
    };
    let list = list["payload"].as_str().unwrap();
    let list = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, list).unwrap();
    let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
    assert_eq!((&list["releases"], &list["id"]), (&expected, &pack["serial"]));
    let shown = done(dir.path(), &["inspect", "released"]).out;
    assert!(shown.contains(&format!("0.2.0, PCR 11 {new}")), "{shown}");
    // A file that is none, and one of an image that was built before PCR 11 was predicted.
    std::fs::write(dir.path().join("bad.json"), r#"{"version": "0.1.0"}"#).unwrap();
    for (name, word) in [
        ("bad.json", "`pcr11`"),
        ("absent.json", "failed to read `absent.json`"),
    ] {
        let line = [
            "create",
            "--fabric",
            "fab",
            "--out",
            "p2",
            "--nodes",
            "1",
            "--release",
            name,
        ];
        ends(dir.path(), &line, 2, word);
    }
    let line = "create --fabric fab --out p3 --nodes 1 --release new.json --release new.json";
    ends(
        dir.path(),
        &line.split_whitespace().collect::<Vec<_>>(),
        2,
        "twice",
    );
}
