//! What a visit leaves on a stick, read at home by the binary itself: the logs beside the receipts, and what the boxes booted.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;

use beemesh_agent_sched::attestation::QUOTED;
use beemesh_firmware_measure::fake::FakeChip;
use beemesh_ids::Digest;
use beemesh_joinpack_format::{
    Assurance, BootQuote, EndorsementFile, LogKey, Membership, Outcome, Pack, QuoteParts, Receipt,
    ReceiptMachine, Registers, SecretKey, TimeSource, Timestamp, Verified,
};
use bench::{bench, done, ends, joinpack};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

const LOG: &[u8] = b"{\"message\":\"reading the join stick\"}\n";

fn pack_in(folder: &Path) -> Pack<Verified> {
    let bytes = fs::read(folder.join("joinpack.json")).unwrap();
    Pack::parse(&bytes)
        .unwrap()
        .verify(None, Timestamp::EPOCH, None)
        .unwrap()
}

fn node(n: u8) -> SecretKey {
    SecretKey::from_bytes([n; 32])
}

/// The receipt of a machine with key `n` that took the place `till-<n>` of the pack in `folder`.
fn receipt(folder: &Path, n: u8) -> Receipt {
    let pack = pack_in(folder);
    let peer = beemesh_ids::PeerId::from_ed25519(node(n).public().as_bytes());
    let offer = &pack.manifest().vouchers[usize::from(n) - 1];
    let (one_time, now) = (offer.one_time_key.as_ref().unwrap(), pack.manifest().issued);
    let membership = Membership::redeem(&offer.envelope, one_time, &peer, Assurance::Tpm, now);
    Receipt {
        node: Some(format!("till-{n}").parse().unwrap()),
        fabric: Some(pack.roots().fabric_id().clone()),
        membership: Some(membership.unwrap()),
        peer_id: Some(peer),
        machine: ReceiptMachine::default(),
        boot_id: "d5e4c4fe-0f5e-4b0f-8f0b-6c1d3c9a7e55".into(),
        at: Timestamp::parse("2026-01-02T03:04:05Z").unwrap(),
        time_source: TimeSource::Ntp,
        serial: Some(pack.manifest().serial.clone()),
        pack: Some(Digest::of(b"joinpack.json")),
        outcome: Outcome::Applied,
        parts: Vec::new(),
        log: None,
        attestation: None,
    }
}

fn put(folder: &Path, path: &str, content: &[u8]) {
    let path = folder.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn leave(folder: &Path, n: u8, receipt: &Receipt) {
    let envelope = receipt.to_envelope(Some(&node(n))).unwrap();
    put(folder, &receipt.path(), &envelope.to_json());
}

/// Leaves a receipt with a log, and returns the path of the log.
fn leave_log(folder: &Path, n: u8, key: LogKey) -> String {
    let fabric = pack_in(folder).roots().fabric_id().clone();
    let mut receipt = receipt(folder, n);
    let file = receipt.attach_log(LOG, &fabric, &key, [n; 32]).unwrap();
    let path = receipt.log_path().unwrap();
    put(folder, &path, &file);
    leave(folder, n, &receipt);
    path
}

/// Two places, and a machine in each, which left a log.
fn visited() -> (tempfile::TempDir, [String; 2]) {
    let dir = bench();
    let folder = dir.path().join("pack");
    let key = pack_in(&folder).manifest().log_key.unwrap();
    let logs = [1, 2].map(|n| leave_log(&folder, n, key));
    (dir, logs)
}

const SHOW: [&str; 5] = ["receipts", "pack", "--fabric", "fab", "--logs"];

#[test]
fn logs_come_out_in_the_clear_for_the_operator_alone() {
    let (dir, _) = visited();
    let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("fab/log.json"), 0o600);
    let key = done(dir.path(), &["inspect", "pack", "-o", "json"]).json()["log_key"].clone();
    let shown = done(dir.path(), &["inspect", "pack"]).out;
    assert!(shown.contains(key.as_str().unwrap()), "{shown}");
    let secret = fs::read_to_string(dir.path().join("fab/log.json")).unwrap();
    let secret: Value = serde_json::from_str(&secret).unwrap();
    assert_eq!(secret["public"], key);
    assert!(!shown.contains(secret["secret"].as_str().unwrap()));

    let views = done(dir.path(), &[&SHOW[..], &["out", "-o", "json"]].concat()).json();
    for (node, name) in [
        ("till-1", "out/till-1-20260102T030405Z.log"),
        ("till-2", "out/till-2-20260102T030405Z.log"),
    ] {
        let mut all = views.as_array().unwrap().iter();
        let log = &all.find(|view| view["node"] == node).unwrap()["log"];
        assert_eq!((&log["saved"], &log["key"]), (&name.into(), &key));
        assert_eq!(
            (fs::read(dir.path().join(name)).unwrap().as_slice(), mode(name)),
            (LOG, 0o600)
        );
    }
    // The same again is the same; another file is not overwritten.
    let words = done(dir.path(), &[&SHOW[..], &["out"]].concat()).out;
    assert!(
        words.contains("log in `out/till-1-20260102T030405Z.log`"),
        "{words}"
    );
    fs::write(dir.path().join("out/till-1-20260102T030405Z.log"), "mine").unwrap();
    ends(
        dir.path(),
        &[&SHOW[..], &["out"]].concat(),
        2,
        "holds something else",
    );
    // Without a wish for it, and without the key, it is only said that it is there.
    let words = done(dir.path(), &["receipts", "pack"]).out;
    assert!(words.contains("log of "), "{words}");
    assert_eq!(
        joinpack(dir.path(), &["receipts", "pack", "--logs", "out"]).code,
        2
    );
}

#[test]
fn what_is_wrong_with_one_log_is_said_and_hides_no_other() {
    let (dir, [one, _]) = visited();
    let file = dir.path().join("pack").join(&one);
    let good = fs::read(&file).unwrap();
    let mut altered = good.clone();
    altered[60] ^= 1;
    for (code, words, content) in [
        ("log-altered", "altered, damaged or exchanged", Some(altered)),
        ("log-cut-off", "cut off", Some(good[..50].to_vec())),
        ("log-missing", "not on the stick", None),
    ] {
        match content {
            Some(content) => fs::write(&file, content).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let out = format!("out-{code}");
        ends(dir.path(), &[&SHOW[..], &[&out]].concat(), 3, words);
        let run = joinpack(dir.path(), &[&SHOW[..], &[&out, "-o", "json"]].concat());
        let views = run.json();
        let of = |node: &str| {
            let mut all = views.as_array().unwrap().iter();
            all.find(|view| view["node"] == node).unwrap()["log"].clone()
        };
        assert_eq!((run.code, &of("till-1")["code"]), (3, &code.into()), "{views}");
        assert!(
            of("till-1")["saved"].is_null() && of("till-2")["saved"].is_string(),
            "{views}"
        );
        // Who does not ask for logs is told of receipts alone.
        done(dir.path(), &["receipts", "pack", "--fabric", "fab"]);
    }
}

#[test]
fn key_that_was_replaced_still_opens_what_was_encrypted_to_it() {
    let (dir, _) = visited();
    let at = dir.path();
    let view = done(at, &["fabric", "log-key", "fab", "-o", "json"]).json();
    assert_eq!(
        (&view["result"], &view["before"]),
        (&"replaced".into(), &"fab/log-1.json".into())
    );
    done(
        at,
        &["create", "--fabric", "fab", "--out", "next", "--nodes", "1"],
    );
    let next = done(at, &["inspect", "next", "-o", "json"]).json();
    assert_eq!(next["log_key"], view["log_key"]);
    done(at, &[&SHOW[..], &["out"]].concat());
    fs::rename(at.join("fab/log-1.json"), at.join("elsewhere")).unwrap();
    ends(
        at,
        &[&SHOW[..], &["none"]].concat(),
        3,
        "which is not among the `log*.json`",
    );
    // A secret that others can read is not used.
    fs::rename(at.join("elsewhere"), at.join("fab/log-1.json")).unwrap();
    fs::set_permissions(at.join("fab/log-1.json"), fs::Permissions::from_mode(0o644)).unwrap();
    ends(at, &[&SHOW[..], &["none"]].concat(), 3, "chmod 600");
    // A fabric from before there were log keys makes packs without one, until it gets one.
    for file in ["fab/log-1.json", "fab/log.json"] {
        fs::remove_file(at.join(file)).unwrap();
    }
    ends(at, &[&SHOW[..], &["none"]].concat(), 2, "holds no log key");
    done(
        at,
        &["create", "--fabric", "fab", "--out", "without", "--nodes", "1"],
    );
    assert!(done(at, &["inspect", "without", "-o", "json"]).json()["log_key"].is_null());
    let words = done(at, &["fabric", "log-key", "fab"]).out;
    assert!(words.contains("made in `fab/log.json`"), "{words}");
    ends(at, &["fabric", "log-key", "pack"], 2, "root.json");
}

#[test]
fn receipts_of_revoked_nodes_are_marked() {
    let (dir, _) = visited();
    let show = ["receipts", "pack", "--fabric", "fab", "-o", "json"];
    let revoked = || {
        let views = done(dir.path(), &show).json();
        let all = views.as_array().unwrap().iter();
        all.map(|view| {
            assert_eq!(view["proof"], "member");
            (view["node"].as_str().unwrap().to_owned(), view["revoked"] == true)
        })
        .collect::<std::collections::BTreeMap<_, _>>()
    };
    assert!(revoked().values().all(|revoked| !revoked));
    let peer = beemesh_ids::PeerId::from_ed25519(node(1).public().as_bytes()).to_string();
    done(dir.path(), &["revoke", "--fabric", "fab", "--node", &peer]);
    assert_eq!((revoked()["till-1"], revoked()["till-2"]), (true, false));
    let words = done(dir.path(), &show[..4]).out;
    assert!(words.contains("member, REVOKED"), "{words}");
    // Whose voucher is revoked is no member either.
    let voucher = pack_in(&dir.path().join("pack")).vouchers()[1].id.clone();
    done(dir.path(), &["revoke", "--fabric", "fab", "--voucher", &voucher]);
    assert!(revoked()["till-2"]);
}

/// The quote of a machine whose register N holds the digest of N, but for those in `other`.
fn quote(chip: &FakeChip, nonce: &Digest, other: &[u8]) -> BootQuote {
    let value = |pcr: u8| match other.contains(&pcr) {
        true => (pcr, Digest::of(b"other")),
        false => (pcr, Digest::of(&[pcr])),
    };
    let signed = chip.quote(nonce.as_bytes(), &QUOTED.iter().map(value).collect());
    let parts = QuoteParts {
        ak: chip.public(),
        attest: signed.attest,
        signature: signed.signature,
    };
    BootQuote::new(&parts, Registers(signed.pcrs))
}

/// The receipt of the visit `number` of the machine with this chip.
fn attested(folder: &Path, chip: &FakeChip, number: u8, other: &[u8]) -> Receipt {
    let mut receipt = receipt(folder, 1);
    receipt.machine.ek = Some(EndorsementFile::new(b"stands for a TPMT_PUBLIC", None));
    receipt.at = receipt.at.plus_seconds(i64::from(number));
    (receipt.serial, receipt.pack) = (None, Some(Digest::of(&[number])));
    let nonce = receipt.settle().unwrap();
    receipt.attestation = Some(quote(chip, &nonce, other));
    receipt
}

/// What is said of the boots that the receipts on the stick show, in the order of the visits.
fn boots(dir: &Path, more: &[&str]) -> Vec<String> {
    let show = ["receipts", "pack", "--fabric", "fab", "-o", "json"];
    let mut views = done(dir, &[&show[..], more].concat()).json();
    let views = views.as_array_mut().unwrap();
    views.sort_by_key(|view| view["at"].to_string());
    let of = |view: &Value| match view["boot"]["why"].as_str() {
        Some(why) => format!("{}: {why}", view["boot"]["assurance"].as_str().unwrap()),
        None => view["boot"]["assurance"].as_str().unwrap().to_owned(),
    };
    views.iter().map(of).collect()
}

#[test]
fn what_a_box_booted_is_judged_as_members_do() {
    let dir = bench();
    let (at, folder) = (dir.path(), dir.path().join("pack"));
    for (file, image) in [("good.json", Digest::of(&[11])), ("other.json", Digest::of(b"x"))] {
        let text = format!("{{\"version\":\"0.1.0\",\"pcr11\":\"{image}\",\"artefacts\":[]}}");
        fs::write(at.join(file), text).unwrap();
    }
    let chip = FakeChip::new();
    leave(&folder, 1, &attested(&folder, &chip, 1, &[]));
    assert_eq!(boots(at, &[]), ["tpm"]);
    assert_eq!(boots(at, &["--release", "good.json"]), ["trusted"]);
    assert_eq!(boots(at, &["--release", "other.json"]), ["changed: PCR 11"]);
    let both = ["--release", "other.json", "--release", "good.json"];
    assert_eq!(boots(at, &both), ["trusted"]);
    ends(
        at,
        &["receipts", "pack", "--release", "fab/root.json"],
        2,
        "is not the `release.json`",
    );
    // Later visits are compared with the first one.
    leave(&folder, 1, &attested(&folder, &chip, 2, &[7]));
    leave(&folder, 1, &attested(&folder, &FakeChip::new(), 3, &[]));
    let words = "low: its tpm is another one than it had when it was first seen";
    let release = ["--release", "good.json"];
    assert_eq!(boots(at, &release), ["trusted", "changed: PCR 7", words]);
    let table = done(at, &["receipts", "pack", "--release", "good.json"]).out;
    assert!(table.contains("changed: PCR 7"), "{table}");
}

#[test]
fn who_proves_nothing_is_low_and_an_old_receipt_is_read_all_the_same() {
    let dir = bench();
    let (at, folder) = (dir.path(), dir.path().join("pack"));
    let chip = FakeChip::new();
    let good = attested(&folder, &chip, 1, &[]);
    type Change = fn(&mut Receipt);
    let cases: [(Change, &str); 4] = [
        (|receipt| receipt.machine.ek = None, "low: it shows no tpm"),
        (
            |receipt| receipt.attestation = None,
            "low: its tpm says nothing of its boot",
        ),
        // The node's own key signs it, and yet the quote was made for another receipt.
        (|receipt| receipt.parts.clear(), "tpm"),
        (
            |receipt| receipt.boot_id.push('x'),
            "low: the quote's nonce is another one: it is old or for somebody else",
        ),
    ];
    for (change, words) in cases {
        let mut receipt = good.clone();
        change(&mut receipt);
        leave(&folder, 1, &receipt);
        assert_eq!(boots(at, &[]), [words]);
    }
    // Nobody signed it: nobody's boot.
    let envelope = good.to_envelope(None).unwrap();
    put(&folder, &good.path(), &envelope.to_json());
    let view = done(at, &["receipts", "pack", "-o", "json"]).json();
    assert!(
        view[0]["boot"].is_null() && view[0]["proof"] == "unsigned",
        "{view}"
    );
}
