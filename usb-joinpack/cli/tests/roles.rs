//! The life of a fabric's keys, by the binary itself: limits, replacements, and what none of them may break.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;

use beemesh_joinpack_format::{Envelope, OperatorContext, Role, RootChain, SecretKey};
use bench::{bench, done, ends, joinpack};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

fn chain(dir: &Path) -> RootChain {
    let text = fs::read(dir.join("fab/root.json")).unwrap();
    let documents: Vec<Envelope> = serde_json::from_slice(&text).unwrap();
    RootChain::bootstrap(&documents).unwrap()
}

fn rows(dir: &Path) -> Vec<Value> {
    let list = done(dir, &["fabric", "role", "list", "fab", "-o", "json"]).json();
    list.as_array().unwrap().clone()
}

fn key_of(dir: &Path, file: &str) -> String {
    let text = fs::read(dir.join("fab").join(file)).unwrap();
    let value: Value = serde_json::from_slice(&text).unwrap();
    value["key_id"].as_str().unwrap().to_owned()
}

fn context(dir: &Path, file: &str) -> OperatorContext {
    OperatorContext::parse(&fs::read(dir.join("fab").join(file)).unwrap()).unwrap()
}

fn pack(dir: &Path, out: &str) -> bench::Run {
    joinpack(
        dir,
        &["create", "--fabric", "fab", "--out", out, "--node", "till-9"],
    )
}

#[test]
fn operator_with_a_scope_gets_a_context_and_all_contexts_follow_the_new_chain() {
    let dir = bench();
    let dir = dir.path();
    let line = [
        "fabric",
        "role",
        "add",
        "fab",
        "--role",
        "operator",
        "--scope",
        "workloads:shop/till-*,network",
        "--expires",
        "2099-01-01",
    ];
    let dry = done(dir, &[&line[..], &["--dry-run", "-o", "json"]].concat()).json();
    assert_eq!(
        (dry["result"].as_str(), chain(dir).version()),
        (Some("would-sign"), 1)
    );
    let view = done(dir, &[&line[..], &["-o", "json"]].concat()).json();
    assert_eq!(
        (view["result"].as_str(), view["version"].as_u64()),
        (Some("signed"), Some(2))
    );
    assert_eq!(view["file"], "fab/operator-2.json");
    for file in ["operator.json", "operator-2.json"] {
        assert_eq!(context(dir, file).chain().unwrap().version(), 2, "{file}");
        let mode = fs::metadata(dir.join("fab").join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let id = context(dir, "operator-2.json").key.public().key_id();
    let limits = chain(dir).current().limits_of(Role::Operator, &id);
    let scope: Vec<String> = limits.scope.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(scope, ["network", "workloads:shop/till-*"]);
    assert_eq!(limits.expires.unwrap().to_string(), "2099-01-01T00:00:00Z");
    let words = done(dir, &["fabric", "role", "list", "fab"]).out;
    assert!(
        words.contains("network,workloads:shop/till-*") && words.contains("2099-01-01"),
        "{words}"
    );
    assert_eq!(pack(dir, "next").code, 0);
    let seen = done(dir, &["inspect", "next", "-o", "json"]).json();
    assert_eq!(seen["root_version"], 2, "packs carry the chain");
}

#[test]
fn lost_root_key_of_three_is_replaced_by_the_others() {
    let dir = bench();
    let dir = dir.path();
    let lost = key_of(dir, "keys/root-1.json");
    fs::remove_file(dir.join("fab/keys/root-1.json")).unwrap();
    done(dir, &["fabric", "role", "replace", "fab", &lost[..16]]);
    let roots = chain(dir).role(Role::Root);
    assert_eq!(
        (chain(dir).version(), roots.keys().count(), roots.threshold()),
        (2, 3, 2)
    );
    assert!(roots.keys().all(|(id, _)| id.as_str() != lost));
    // The new one counts: with one of the old it makes the next.
    fs::remove_file(dir.join("fab/keys/root-2.json")).unwrap();
    done(dir, &["fabric", "role", "add", "fab", "--role", "release"]);
    assert_eq!(chain(dir).version(), 3);
    // Two of three lost are too many, and nothing changes.
    fs::remove_file(dir.join("fab/keys/root-3.json")).unwrap();
    let before = fs::read(dir.join("fab/root.json")).unwrap();
    ends(
        dir,
        &["fabric", "role", "add", "fab", "--role", "release"],
        2,
        "1 of 2 root keys are here",
    );
    assert_eq!(fs::read(dir.join("fab/root.json")).unwrap(), before);
}

#[test]
fn root_keys_are_brought_from_elsewhere_for_the_moment_of_signing() {
    let dir = bench();
    let dir = dir.path();
    fs::create_dir(dir.join("safe")).unwrap();
    for n in 1..=3 {
        fs::rename(
            dir.join(format!("fab/keys/root-{n}.json")),
            dir.join(format!("safe/root-{n}.json")),
        )
        .unwrap();
    }
    let add = ["fabric", "role", "add", "fab", "--role", "recovery"];
    ends(dir, &add, 2, "0 of 2 root keys are here");
    let one = [&add[..], &["--key", "safe/root-3.json"]].concat();
    ends(dir, &one, 2, "1 of 2 root keys are here");
    // The same one twice is one.
    ends(
        dir,
        &[&one[..], &["--key", "safe/root-3.json"]].concat(),
        2,
        "1 of 2 root keys are here",
    );
    done(dir, &[&one[..], &["--key", "safe/root-1.json"]].concat());
    assert_eq!(chain(dir).version(), 2);
    fs::set_permissions(dir.join("safe/root-1.json"), fs::Permissions::from_mode(0o644)).unwrap();
    ends(
        dir,
        &[&one[..], &["--key", "safe/root-1.json"]].concat(),
        3,
        "can be read by other users",
    );
}

#[test]
fn lost_key_of_every_other_role_is_repaired_by_the_root_keys_alone() {
    for (role, file) in [
        ("enrolment", "keys/enrolment.json"),
        ("recovery", "keys/recovery.json"),
        ("release", "keys/release.json"),
        ("operator", "operator.json"),
    ] {
        let dir = bench();
        let dir = dir.path();
        let lost = match role {
            "operator" => context(dir, file).key.public().key_id().as_str().to_owned(),
            _ => key_of(dir, file),
        };
        fs::remove_file(dir.join("fab").join(file)).unwrap();
        ends(
            dir,
            &["fabric", "role", "retire", "fab", &lost],
            2,
            "0 key(s) would be left",
        );
        done(dir, &["fabric", "role", "replace", "fab", &lost]);
        let states: Vec<(String, String)> = rows(dir)
            .iter()
            .filter(|row| row["role"] == role)
            .map(|row| {
                (
                    row["key"].as_str().unwrap().to_owned(),
                    row["state"].as_str().unwrap().to_owned(),
                )
            })
            .collect();
        assert_eq!(states.len(), 2, "{role}: {states:?}");
        assert!(
            states.contains(&(lost.clone(), "expired".to_owned())),
            "{role}: {states:?}"
        );
        assert_eq!(
            states.iter().filter(|(_, state)| state == "valid").count(),
            1,
            "{role}"
        );
        // And everything goes on.
        assert_eq!(pack(dir, "next").code, 0, "{role}");
        let old = dir.join("fab/root.json").display().to_string();
        done(dir, &["verify", "next", "--roots", &old]);
        let line = [
            "revoke",
            "--fabric",
            "fab",
            "--voucher",
            "01KDVKFD000000000000000009",
        ];
        done(dir, &line);
    }
}

#[test]
fn what_is_revoked_stays_so_when_the_key_that_signed_it_goes() {
    let dir = bench();
    let dir = dir.path();
    done(
        dir,
        &[
            "revoke",
            "--fabric",
            "fab",
            "--voucher",
            "01KDVKFD000000000000000009",
        ],
    );
    let stranger = context(dir, "operator.json").key.public().key_id();
    done(dir, &["fabric", "role", "add", "fab", "--role", "operator"]);
    done(dir, &["revoke", "--fabric", "fab", "--key", stranger.as_str()]);
    for role in ["enrolment", "recovery"] {
        let old = key_of(dir, &format!("keys/{role}.json"));
        done(dir, &["fabric", "role", "add", "fab", "--role", role]);
        done(dir, &["fabric", "role", "remove", "fab", &old]);
        fs::remove_file(dir.join(format!("fab/keys/{role}.json"))).unwrap();
    }
    let run = pack(dir, "next");
    assert_eq!(run.code, 0, "{}", run.err);
    let seen = done(dir, &["inspect", "next", "-o", "json"]).json();
    assert_eq!(seen["revocations"]["vouchers"][0], "01KDVKFD000000000000000009");
    assert_eq!(seen["revocations"]["keys"][0], stranger.as_str());
}

#[test]
fn wrong_wishes_are_refused_in_words_and_change_nothing() {
    let dir = bench();
    let dir = dir.path();
    let before = fs::read(dir.join("fab/root.json")).unwrap();
    let root = key_of(dir, "keys/root-1.json");
    let public = hex_of(SecretKey::from_bytes([5; 32]));
    for (arguments, word) in [
        (
            vec!["add", "fab", "--role", "root", "--expires", "2099-01-01"],
            "root keys do not expire",
        ),
        (
            vec!["add", "fab", "--role", "enrolment", "--scope", "nodes"],
            "only operators' keys have a scope",
        ),
        (
            vec!["add", "fab", "--role", "operator", "--scope", "moon"],
            "`moon` is none of",
        ),
        (
            vec!["add", "fab", "--role", "operator", "--scope", "workloads:shop/*"],
            "stands alone",
        ),
        (
            vec!["add", "fab", "--role", "operator", "--expires", "tomorrow"],
            "expected a day like",
        ),
        (vec!["add", "fab", "--role", "baker"], "expected root, enrolment"),
        (
            vec!["add", "fab", "--role", "operator", "--public", "12"],
            "expected 64 lower-case",
        ),
        (vec!["retire", "fab", &root], "root keys do not expire"),
        (vec!["remove", "fab", "1234"], "too short"),
        (vec!["remove", "fab", "0123456789abcdef"], "no role has a key"),
        (
            vec!["threshold", "fab", "--role", "operator", "2"],
            "1 key(s) would be left",
        ),
        (vec!["threshold", "fab", "--role", "root", "0"], "demands 0"),
    ] {
        let line = [&["fabric", "role"][..], &arguments].concat();
        ends(dir, &line, 2, word);
    }
    assert_eq!(fs::read(dir.join("fab/root.json")).unwrap(), before);
    // A key that its holder keeps: no secret is written.
    let view = done(
        dir,
        &[
            "fabric", "role", "add", "fab", "--role", "operator", "--public", &public, "--scope", "look",
            "-o", "json",
        ],
    )
    .json();
    assert!(view["file"].is_null() && !dir.join("fab/operator-2.json").exists());
    let look = rows(dir).into_iter().find(|row| row["scope"].is_array()).unwrap();
    assert_eq!(look["scope"].as_array().unwrap().len(), 0);
}

fn hex_of(key: SecretKey) -> String {
    String::from(key.public())
}
