//! The operator's way, by the binary itself: a fabric, a pack, receipts; and every bad pack refused with its word.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;

use beemesh_joinpack_format::{
    Outcome, Pack, Part, PartKind, Receipt, ReceiptMachine, SecretKey, TimeSource, Timestamp,
};
use bench::{BINARY, bench, done, ends, joinpack};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

#[test]
fn pack_says_what_the_operator_asked_for() {
    let dir = bench();
    let view = done(dir.path(), &["inspect", "pack", "-o", "json"]).json();
    assert_eq!(view["fabric_name"], "shop");
    assert_eq!(view["cell"], "floor");
    assert_eq!(view["nodes"][0]["mac"], "52:54:00:aa:00:01");
    assert_eq!(view["nodes"][0]["network"]["addresses"][0], "10.0.0.5/24");
    assert_eq!(view["nodes"][1]["name"], "till-2");
    assert_eq!(view["images"][0]["name"], "web");
    assert_eq!(
        view["images"][0]["size"],
        fs::metadata(dir.path().join("web.tar")).unwrap().len()
    );
    assert_eq!(
        (&view["found"], &view["blank_disk"]),
        (&Value::Bool(true), &Value::Bool(true))
    );
    let seconds = |key: &str| Timestamp::parse(view[key].as_str().unwrap()).unwrap().0;
    assert_eq!(seconds("expires") - seconds("issued"), 30 * 86_400);
    let words = done(dir.path(), &["inspect", "pack"]).out;
    for word in [
        "shop",
        "till-1",
        "10.0.0.5/24",
        "any machine",
        "10.0.0.5:7946",
        "found the cell alone",
    ] {
        assert!(words.contains(word), "{word} is missing in {words}");
    }
    assert!(
        done(dir.path(), &["inspect", "pack", "-o", "yaml"])
            .out
            .contains("cell: floor")
    );
}

#[test]
fn hundred_boxes_come_from_one_csv_file() {
    let dir = bench();
    let mut text = "name,serial,address,gateway\n".to_owned();
    for n in 1..=100 {
        text += &format!("till-{n},SN{n},10.0.0.{n}/24,10.0.0.254\n");
    }
    fs::write(dir.path().join("boxes.csv"), &text).unwrap();
    let create = |file: &str| {
        let line = [
            "create",
            "--fabric",
            "fab",
            "--out",
            "hundred",
            "--csv",
            file,
            "--expires",
            "1d",
        ];
        joinpack(dir.path(), &line)
    };
    fs::write(dir.path().join("bad.csv"), text + "till-7,SN7,,\n").unwrap();
    let run = create("bad.csv");
    assert_eq!(run.code, 2, "{}", run.err);
    assert!(
        run.err
            .contains("line 102, field `name`: `till-7` is in line 8 already"),
        "{}",
        run.err
    );
    assert!(!dir.path().join("hundred").exists());
    let run = create("boxes.csv");
    assert_eq!(run.code, 0, "{}", run.err);
    let view = done(dir.path(), &["inspect", "hundred", "-o", "json"]).json();
    assert_eq!(view["nodes"].as_array().unwrap().len(), 100);
    assert_eq!(view["nodes"][99]["name"], "till-100");
    assert_eq!(view["nodes"][99]["network"]["addresses"][0], "10.0.0.100/24");
}

#[test]
fn no_secret_is_shown() {
    let dir = bench();
    let text = fs::read(dir.path().join("pack/joinpack.json")).unwrap();
    let pack = Pack::parse(&text)
        .unwrap()
        .verify(None, Timestamp::EPOCH, None)
        .unwrap();
    for form in ["table", "json", "yaml"] {
        for command in ["inspect", "verify"] {
            let run = done(dir.path(), &[command, "pack", "-o", form]);
            for voucher in &pack.manifest().vouchers {
                let secret: String = serde_json::to_value(&voucher.one_time_key)
                    .unwrap()
                    .as_str()
                    .unwrap()
                    .to_owned();
                assert!(!run.out.contains(&secret));
            }
        }
    }
}

#[test]
fn keys_are_private_and_never_overwritten() {
    let dir = bench();
    let fab = dir.path().join("fab");
    let mode = |name: &str| fs::metadata(fab.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("keys"), 0o700);
    for name in [
        "operator.json",
        "keys/root-1.json",
        "keys/root-3.json",
        "keys/enrolment.json",
        "keys/recovery.json",
    ] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    let before = fs::read(fab.join("operator.json")).unwrap();
    ends(
        dir.path(),
        &["fabric", "init", "fab", "--name", "other"],
        2,
        "not empty",
    );
    assert_eq!(fs::read(fab.join("operator.json")).unwrap(), before);
    fs::set_permissions(fab.join("keys/enrolment.json"), fs::Permissions::from_mode(0o644)).unwrap();
    ends(
        dir.path(),
        &["create", "--fabric", "fab", "--out", "x", "--nodes", "1"],
        3,
        "chmod 600",
    );
}

#[test]
fn failed_fabric_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    ends(
        dir.path(),
        &["fabric", "init", "fab", "--name", "Not A Label"],
        2,
        "fabric name",
    );
    ends(
        dir.path(),
        &["fabric", "init", "fab", "--name", "shop", "--root-threshold", "4"],
        2,
        "threshold",
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn operator_context_opens_with_the_operators_key() {
    let dir = bench();
    let text = fs::read(dir.path().join("fab/operator.json")).unwrap();
    let context = beemesh_joinpack_format::OperatorContext::parse(&text).unwrap();
    let info: Value = serde_json::from_slice(&fs::read(dir.path().join("fab/fabric.json")).unwrap()).unwrap();
    assert_eq!(context.chain().unwrap().fabric_id().as_str(), info["fabric"]);
}

#[test]
fn plan_file_says_the_same_as_flags() {
    let dir = bench();
    fs::create_dir(dir.path().join("plans")).unwrap();
    fs::rename(dir.path().join("web.tar"), dir.path().join("plans/web.tar")).unwrap();
    let plan = r#"
        cell = "floor"
        expires = "12h"
        found = true
        peers = ["10.0.0.5:7946"]
        roster-size = 5
        [[node]]
        name = "till-1"
        mac = "52:54:00:AA:00:01"
        addresses = ["10.0.0.5/24"]
        gateway = "10.0.0.1"
        [[image]]
        name = "web"
        archive = "web.tar"
    "#;
    fs::write(dir.path().join("plans/floor.toml"), plan).unwrap();
    let args = [
        "create",
        "--fabric",
        "fab",
        "--out",
        "p2",
        "--from",
        "plans/floor.toml",
        "--node",
        "till-2",
        "-o",
        "json",
    ];
    let planned = done(dir.path(), &[&args[..], &["--dry-run"]].concat()).json();
    assert_eq!(planned["result"], "would-create");
    assert!(!dir.path().join("p2").exists());
    let view = done(dir.path(), &args).json();
    assert_eq!(
        (&view["roster_size"], &view["nodes"][1]["name"]),
        (&5.into(), &"till-2".into())
    );
    done(dir.path(), &["verify", "p2"]);
    fs::write(
        dir.path().join("plans/floor.toml"),
        plan.replace("gateway", "gatewey"),
    )
    .unwrap();
    ends(
        dir.path(),
        &[
            "create",
            "--fabric",
            "fab",
            "--out",
            "p3",
            "--from",
            "plans/floor.toml",
        ],
        2,
        "gatewey",
    );
}

#[test]
fn mistakes_of_the_operator_are_named() {
    let dir = bench();
    let create = |args: &[&str], word: &str| {
        let all = [&["create", "--fabric", "fab", "--out", "bad"], args].concat();
        ends(dir.path(), &all, 2, word);
        assert!(!dir.path().join("bad").exists(), "{args:?}");
    };
    create(&[], "names no node");
    create(&["--approval"], "needs a member that machines can ask");
    create(&["--node", "a,approval", "--peer", "10.0.0.1:7400"], "needs mac=");
    create(
        &["--approval", "--news", "--peer", "10.0.0.1:7400"],
        "cannot be used with",
    );
    create(&["--node", "till", "--node", "till"], "`till` twice");
    create(
        &[
            "--node",
            "a,mac=52:54:00:00:00:01",
            "--node",
            "b,mac=52:54:00:00:00:01",
        ],
        "MAC address",
    );
    create(&["--nodes", "513"], "513");
    create(&["--nodes", "1", "--peer", "example.org:1"], "`example.org:1`");
    create(&["--nodes", "1", "--expires", "soon"], "`soon`");
    create(&["--nodes", "1", "--image", "web=missing.tar"], "missing.tar");
    create(&["--nodes", "1", "--image", "../../etc=web.tar"], "../../etc");
    create(&["--node", "a,address=10.0.0.300/24"], "10.0.0.300");
    fs::write(dir.path().join("noise.tar"), [1; 2048]).unwrap();
    create(
        &["--nodes", "1", "--image", "web=noise.tar"],
        "not an OCI archive",
    );
    ends(
        dir.path(),
        &["create", "--fabric", "fab", "--out", "pack", "--nodes", "1"],
        2,
        "holds a pack already",
    );
    ends(
        dir.path(),
        &["write", "pack", "--to", "pack"],
        2,
        "the pack itself",
    );
    ends(
        dir.path(),
        &["write", "pack", "--to", "web.tar"],
        2,
        "not overwritten",
    );
    ends(dir.path(), &["verify", "nowhere"], 2, "nowhere");
    ends(dir.path(), &["verify", "fab"], 2, "joinpack.json");
    assert_eq!(joinpack(dir.path(), &["no-such-command"]).code, 2);
}

#[test]
fn every_bad_vector_is_refused_with_its_word() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vectors");
    let mut seen = 0;
    for entry in fs::read_dir(&vectors).unwrap() {
        let dir = entry.unwrap().path();
        let vector: Value = serde_json::from_slice(&fs::read(dir.join("vector.json")).unwrap()).unwrap();
        let expect = vector["expect"].as_str().unwrap();
        let mut args = vec![
            "verify",
            "pack",
            "-o",
            "json",
            "--at",
            vector["floor"].as_str().unwrap(),
        ];
        if vector["trusted"] == true {
            args.extend(["--roots", "roots.json"]);
        }
        if let Some(serial) = vector["last_serial"].as_str() {
            args.extend(["--applied", serial]);
        }
        let machine = &vector["machine"];
        for mac in machine["macs"].as_array().into_iter().flatten() {
            args.extend(["--mac", mac.as_str().unwrap()]);
        }
        for flag in ["serial", "ek"] {
            if let Some(value) = machine[flag].as_str() {
                args.extend([if flag == "ek" { "--ek" } else { "--serial" }, value]);
            }
        }
        // What `verify` is not asked about: sizes before reading, and requests and receipts beside a pack.
        let beside = ["request", "receipt"].iter().any(|what| vector[what].is_string());
        if vector["pad_to"].is_number() || beside {
            continue;
        }
        seen += 1;
        let run = joinpack(&dir, &args);
        let name = dir.display();
        if expect == "accepted" {
            assert_eq!(
                (run.code, &run.json()["result"]),
                (0, &"accepted".into()),
                "{name}: {}",
                run.err
            );
        } else {
            assert_eq!(
                (run.code, &run.json()["code"]),
                (3, &expect.into()),
                "{name}: {}",
                run.err
            );
            assert!(
                run.err.contains(&format!("refused ({expect}): ")),
                "{name}: {}",
                run.err
            );
        }
    }
    assert!(seen > 40, "only {seen} vectors");
}

#[test]
fn manifest_of_two_gigabytes_is_refused_without_reading_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("pack")).unwrap();
    let file = File::create(dir.path().join("pack/joinpack.json")).unwrap();
    file.set_len(2 << 30).unwrap();
    // With 256 MiB of address space, reading it whole would fail otherwise than with a refusal.
    let run = Command::new("sh")
        .args(["-c", "ulimit -v 262144; exec \"$0\" verify pack", BINARY])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(3), "{text}");
    assert!(text.contains("too-large"), "{text}");
}

#[test]
fn file_that_is_no_plain_file_is_not_opened() {
    let dir = bench();
    let manifest = dir.path().join("pack/joinpack.json");
    fs::rename(&manifest, dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", &manifest).unwrap();
    ends(dir.path(), &["verify", "pack"], 2, "not a plain file");
}

#[test]
fn receipts_are_listed_and_forged_ones_refused() {
    let dir = bench();
    let key = SecretKey::from_bytes([9; 32]);
    let peer = beemesh_ids::PeerId::from_ed25519(key.public().as_bytes());
    let receipt = |outcome| Receipt {
        node: Some("till-1".parse().unwrap()),
        peer_id: Some(peer.clone()),
        fabric: None,
        membership: None,
        machine: ReceiptMachine::default(),
        boot_id: "boot".into(),
        at: Timestamp(1_767_225_600),
        time_source: TimeSource::Floor,
        serial: None,
        pack: None,
        outcome,
        parts: vec![Part {
            part: PartKind::Network,
            what: "DHCP".into(),
            refused: Some("no such card".into()),
        }],
        log: None,
        attestation: None,
    };
    let folder = dir.path().join("pack/receipts");
    fs::create_dir(&folder).unwrap();
    let refused = receipt(Outcome::Refused {
        code: "expired".into(),
        message: "it \u{1b}[2Jexpired".into(),
    });
    fs::write(
        folder.join("a.json"),
        receipt(Outcome::Applied)
            .to_envelope(Some(&key))
            .unwrap()
            .to_json(),
    )
    .unwrap();
    fs::write(
        folder.join("b.json"),
        refused.to_envelope(None).unwrap().to_json(),
    )
    .unwrap();
    let views = done(dir.path(), &["receipts", "pack", "-o", "json"]).json();
    assert_eq!(
        (&views[0]["result"], &views[0]["signed"]),
        (&"applied".into(), &true.into())
    );
    assert_eq!(
        (&views[1]["code"], &views[1]["signed"]),
        (&"expired".into(), &false.into())
    );
    let words = done(dir.path(), &["receipts", "pack"]).out;
    assert!(!words.contains('\u{1b}'));
    for part in [
        "2026-01-01T00:00:00Z at least",
        "network REFUSED (no such card)",
        "(expired)",
        "unsigned",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
    // Receipts do not spoil the pack, and a new pack does not remove them.
    done(dir.path(), &["verify", "pack"]);
    done(
        dir.path(),
        &["create", "--fabric", "fab", "--out", "next", "--nodes", "1"],
    );
    done(dir.path(), &["write", "next", "--to", "pack"]);
    assert!(folder.join("a.json").exists());
    let thief = SecretKey::from_bytes([8; 32]);
    fs::write(
        folder.join("c.json"),
        receipt(Outcome::Applied)
            .to_envelope(Some(&thief))
            .unwrap()
            .to_json(),
    )
    .unwrap();
    ends(dir.path(), &["receipts", "pack"], 3, "unknown-key");
    ends(
        dir.path(),
        &["receipts", "pack", "--fabric", "none"],
        2,
        "root.json",
    );
}

#[test]
fn newer_pack_has_a_greater_serial() {
    let dir = bench();
    let serial = |pack: &str| {
        done(dir.path(), &["inspect", pack, "-o", "json"]).json()["serial"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    done(
        dir.path(),
        &["create", "--fabric", "fab", "--out", "second", "--nodes", "1"],
    );
    let (first, second) = (serial("pack"), serial("second"));
    assert!(second > first);
    ends(
        dir.path(),
        &["verify", "pack", "--applied", &second],
        3,
        "older-than-applied",
    );
    // Even when the operator's clock went back since.
    fs::write(dir.path().join("fab/last-serial"), "7ZZZZZZZZZZZZZZZZZZZZZZZZY\n").unwrap();
    done(
        dir.path(),
        &["create", "--fabric", "fab", "--out", "third", "--nodes", "1"],
    );
    assert_eq!(serial("third"), "7ZZZZZZZZZZZZZZZZZZZZZZZZZ");
}

#[test]
fn person_at_a_terminal_is_asked_and_the_file_that_is_shown_says_the_same() {
    use std::io::Write as _;
    let dir = bench();
    let terminal = nix::pty::openpty(None, None).unwrap();
    let run = std::process::Command::new(bench::BINARY)
        .args(["create", "--fabric", "fab", "--out", "asked", "-o", "json"])
        .current_dir(dir.path())
        .stdin(terminal.slave)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut person = fs::File::from(terminal.master);
    person
        .write_all(b"2\nyes\n\nyes\nyes\nshop\nweb=web.tar\n\n7d\n")
        .unwrap();
    let output = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let view: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (
            &view["cell"],
            &view["requests"],
            &view["vouchers"],
            &view["images"][0]["name"]
        ),
        (&"shop".into(), &true.into(), &2.into(), &"web".into())
    );
    // What is shown after the questions is a file that makes such a pack.
    let file = said.split("the file being").nth(1).unwrap();
    fs::write(dir.path().join("plan.toml"), file).unwrap();
    let line = "create --fabric fab --out again --from plan.toml -o json";
    let again = done(dir.path(), &line.split_whitespace().collect::<Vec<_>>()).json();
    for part in [
        "cell",
        "requests",
        "vouchers",
        "images",
        "nodes",
        "found",
        "blank_disk",
    ] {
        assert_eq!(again[part], view[part], "{part}");
    }
}
