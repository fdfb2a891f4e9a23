//! Every role's key on a PKCS#11 token, by the binary itself and a software token in a folder of its own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;

use beemesh_joinpack_token::softhsm::{PIN, SoftHsm};
use bench::BINARY;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

/// A token with these Ed25519 keys.
struct Token {
    dir: tempfile::TempDir,
    safe: SoftHsm,
}

impl Token {
    fn new(keys: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let safe = SoftHsm::new(dir.path(), keys);
        Self { dir, safe }
    }

    fn joinpack(&self, pin: bool, arguments: &[&str]) -> bench::Run {
        let mut command = self.safe.command(BINARY);
        if pin {
            command.env("BEEMESH_PKCS11_PIN", PIN);
        }
        let run = command.args(arguments).output().unwrap();
        bench::Run {
            code: run.status.code().unwrap(),
            out: String::from_utf8(run.stdout).unwrap(),
            err: String::from_utf8(run.stderr).unwrap(),
        }
    }

    fn done(&self, arguments: &[&str]) -> bench::Run {
        let run = self.joinpack(true, arguments);
        assert_eq!(run.code, 0, "{arguments:?}: {}{}", run.out, run.err);
        run
    }

    fn ends(&self, pin: bool, arguments: &[&str], code: i32, word: &str) {
        let run = self.joinpack(pin, arguments);
        assert_eq!(run.code, code, "{arguments:?}: {}{}", run.out, run.err);
        assert!(
            run.err.contains(word),
            "{arguments:?} does not say `{word}`: {}",
            run.err
        );
    }

    fn rows(&self) -> Vec<Value> {
        self.done(&["fabric", "role", "list", "fab", "-o", "json"])
            .json()
            .as_array()
            .unwrap()
            .clone()
    }
}

fn uri(label: &str) -> String {
    SoftHsm::uri(label)
}

#[test]
fn fabric_lives_with_every_key_but_the_operators_on_a_token() {
    let token = Token::new(&[
        "root-1",
        "root-2",
        "root-3",
        "enrolment",
        "recovery",
        "release",
        "root-4",
        "next",
    ]);
    let given: Vec<String> = ["root-1", "root-2", "root-3", "enrolment", "recovery", "release"]
        .iter()
        .map(|label| format!("{}={}", label.split('-').next().unwrap(), uri(label)))
        .collect();
    let mut init = vec!["fabric", "init", "fab", "--name", "shop"];
    init.extend(given.iter().flat_map(|given| ["--key", given]));
    token.done(&init);
    let keys = fs::read_dir(token.dir.path().join("fab/keys")).unwrap().count();
    assert_eq!(keys, 0, "no secret lies beside the tokens");

    // Enrolment signs a pack, recovery revokes a key.
    let (enrolment, recovery) = (uri("enrolment"), uri("recovery"));
    let create = ["create", "--fabric", "fab", "--out", "pack", "--node", "till-1"];
    token.ends(true, &create, 2, "0 of 1 enrolment keys are here");
    token.done(&[&create[..], &["--key", &enrolment]].concat());
    token.done(&["verify", "pack", "--roots", "fab/root.json"]);

    // Root keys, two of three, replace the third and give a role to another key on the token.
    let of = |row: &Value, role: &str| row["role"] == role && row["state"] == "valid";
    let lost = token.rows().iter().find(|row| of(row, "root")).unwrap()["key"]
        .as_str()
        .unwrap()
        .to_owned();
    let roots: Vec<String> = ["root-1", "root-2", "root-3"].map(uri).into();
    let sign = ["--key", &roots[1], "--key", &roots[2]];
    let fourth = uri("root-4");
    let first = token
        .rows()
        .iter()
        .position(|row| row["key"] == lost.as_str())
        .unwrap();
    assert_eq!(first, 0);
    token.done(
        &[
            &["fabric", "role", "replace", "fab", &lost, "--public", &fourth][..],
            &sign,
        ]
        .concat(),
    );
    let next = uri("next");
    let sign = ["--key", &roots[1], "--key", &fourth];
    token.done(
        &[
            &[
                "fabric",
                "role",
                "add",
                "fab",
                "--role",
                "enrolment",
                "--public",
                &next,
            ][..],
            &sign,
        ]
        .concat(),
    );
    token.done(&[
        "create", "--fabric", "fab", "--out", "second", "--node", "till-2", "--key", &next,
    ]);
    token.done(&["verify", "second", "--roots", "fab/root.json"]);
    let old = token.rows().into_iter().find(|row| of(row, "enrolment")).unwrap()["key"]
        .as_str()
        .unwrap()
        .to_owned();
    token.done(&[
        "revoke",
        "--fabric",
        "fab",
        "--key",
        &old,
        "--sign-with",
        &recovery,
    ]);
}

#[test]
fn pin_comes_from_a_file_or_the_environment_and_never_from_the_command_line() {
    let token = Token::new(&["root-1", "enrolment"]);
    let root = format!("root={}", uri("root-1"));
    let init = |name: &str| {
        [
            "fabric",
            "init",
            name,
            "--name",
            "shop",
            "--root-threshold",
            "1",
            "--key",
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let line = |name: &str, key: &str| [init(name), vec![key.to_owned()]].concat();
    let run = |pin: bool, line: Vec<String>| {
        token.joinpack(pin, &line.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert_eq!(run(true, line("a", &root)).code, 0);
    // Without a terminal and a PIN nothing is asked for and nothing hangs.
    let refused = run(false, line("b", &root));
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("wants a PIN"), "{}", refused.err);
    let pin = token.dir.path().join("pin");
    fs::write(&pin, format!("{PIN}\n")).unwrap();
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o600)).unwrap();
    let from_file = format!("{root}?pin-source=file:{}", pin.display());
    assert_eq!(run(false, line("c", &from_file)).code, 0);
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(run(false, line("d", &from_file)).code, 3);
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&pin, "0000").unwrap();
    let wrong = run(false, line("e", &from_file));
    assert_eq!(wrong.code, 3, "{}", wrong.err);
    assert!(
        wrong.err.contains("PIN of token `safe` is wrong"),
        "{}",
        wrong.err
    );
    let open = format!("{root}?pin-value={PIN}");
    let refused = run(false, line("f", &open));
    assert!(
        refused.code == 2 && refused.err.contains("can be read by other users"),
        "{}",
        refused.err
    );
    for (key, word) in [
        ("root=pkcs11:token=safe;object=nothing", "holds no"),
        ("root=pkcs11:token=other;object=root-1", "no token fits"),
        (
            "root=pkcs11:object=root-1?module-path=/nonexistent.so",
            "failed to use the PKCS#11 library",
        ),
    ] {
        let refused = run(true, line("g", key));
        assert!(
            refused.code != 0 && refused.err.contains(word),
            "{key}: {}",
            refused.err
        );
    }
    assert!(!token.dir.path().join("b").exists() && !token.dir.path().join("g").exists());
}
