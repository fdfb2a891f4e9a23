//! The vectors of keys that expire and of keys with a scope.

use super::*;
use format::{Grant, KeyLimits};

/// Before the floor of the vectors, after everything in their packs was made.
const RETIRED: &str = "2026-01-10T00:00:00Z";

fn limits(expires: Option<&str>, scope: Option<&[&str]>) -> KeyLimits {
    KeyLimits {
        expires: expires.map(time),
        scope: scope.map(|scope| {
            scope
                .iter()
                .map(|grant| grant.parse::<Grant>().unwrap())
                .collect()
        }),
    }
}

/// Root 2, in which these keys of these roles are limited.
fn limited(all: &[(Role, &str, KeyLimits)]) -> Root {
    let mut root = root("shop", 1);
    root.version = 2;
    for (role, name, limits) in all {
        let spec = root.roles.get_mut(role).unwrap();
        spec.limits.insert(key(name).public().key_id(), limits.clone());
    }
    root
}

/// The good pack under a root 2, signed as it is written, whether a reader takes it or not.
fn under(payload: &str) -> Draft {
    let mut draft = draft("shop", 1);
    let keys = [key("root-1"), key("root-2")];
    let signed = Envelope::sign(
        format::ROOT_PAYLOAD_TYPE,
        payload.as_bytes(),
        &[&keys[0], &keys[1]],
    );
    draft.manifest.roots.push(signed);
    draft
}

fn text(root: &Root) -> String {
    serde_json::to_string(root).unwrap()
}

pub(super) fn limits_of_keys(book: &mut Book) {
    let operator = limits(
        None,
        Some(&[
            "keys",
            "network",
            "nodes",
            "workloads:shop",
            "workloads:shop/till-*",
        ]),
    );
    let good = limited(&[
        (Role::Operator, "operator", operator.clone()),
        (Role::Enrolment, "enrolment-1", limits(Some(FLOOR), None)),
    ]);
    let with = under(&text(&good));
    book.add(
        "good-with-limits",
        "root 2 gives the operator a scope, and the enrolment key a time that ends just now",
        "accepted",
        &with,
        with.joinpack(),
    );

    let retired = limited(&[(Role::Enrolment, "enrolment-1", limits(Some(RETIRED), None))]);
    let with = under(&text(&retired));
    book.add(
        "signer-expired",
        "root 2 let the enrolment key expire before the time floor",
        "key-expired",
        &with,
        with.joinpack(),
    );
    let with = under(&text(&retired));
    book.add(
        "signer-expired-by-own-date",
        "the floor is old, but the pack was made after its key expired",
        "key-expired",
        &with,
        {
            let mut late = with.clone();
            late.manifest.issued = time(FLOOR);
            late.joinpack()
        },
    )
    .at(ISSUED);
    let mut with = under(&text(&retired));
    with.signers = vec!["enrolment-2"];
    book.add(
        "voucher-of-expired-key",
        "another enrolment key signed the pack, the expired one its vouchers",
        "key-expired",
        &with,
        with.joinpack(),
    );

    let mut with = under(&text(&limited(&[(
        Role::Operator,
        "operator",
        limits(None, Some(&["workloads"])),
    )])));
    let fabric = with.manifest.fabric.clone();
    with.manifest.revocations = vec![sign_snapshot(&snapshot(&fabric), &["operator"])];
    book.add(
        "revocation-out-of-scope",
        "an operator who may only change workloads revokes a node",
        "out-of-scope",
        &with,
        with.joinpack(),
    );
    let mut with = under(&text(&limited(&[(
        Role::Operator,
        "operator",
        limits(Some(RETIRED), None),
    )])));
    with.manifest.revocations = vec![sign_snapshot(&snapshot(&fabric), &["operator"])];
    book.add(
        "good-revocation-of-expired-key",
        "an operator whose key expired revoked a node before that",
        "accepted",
        &with,
        with.joinpack(),
    );

    malformed(book, &text(&good));
}

fn malformed(book: &mut Book, good: &str) {
    let operator = key("operator").public().key_id();
    for (name, about, from, to) in [
        (
            "limits-scope-unordered",
            "the parts of a scope are not in order",
            "\"keys\",\"network\"",
            "\"network\",\"keys\"",
        ),
        (
            "limits-scope-unknown",
            "a scope names what there is not",
            "\"network\"",
            "\"moon\"",
        ),
        (
            "limits-scope-star-alone",
            "a prefix of a scope is empty",
            "workloads:shop/till-*",
            "workloads:shop/*",
        ),
        (
            "limits-unknown-field",
            "the limits of a key have a member that the format lacks",
            "\"scope\":[",
            "\"colour\":1,\"scope\":[",
        ),
    ] {
        let with = under(&replaced(good, from, to));
        book.add(name, about, "malformed", &with, with.joinpack());
    }
    let stranger = key("recovery").public().key_id();
    let with = under(&replaced(
        good,
        &format!("\"limits\":{{\"{}\"", operator.as_str()),
        &format!("\"limits\":{{\"{}\"", stranger.as_str()),
    ));
    book.add(
        "limits-of-no-key",
        "a role limits a key that it does not have",
        "malformed",
        &with,
        with.joinpack(),
    );
    for (name, about, role, of, limits) in [
        (
            "limits-of-root-key",
            "a root key expires",
            Role::Root,
            "root-1",
            limits(Some(EXPIRES), None),
        ),
        (
            "limits-scope-of-enrolment",
            "an enrolment key has a scope",
            Role::Enrolment,
            "enrolment-1",
            limits(None, Some(&["nodes"])),
        ),
        (
            "limits-empty",
            "an entry limits nothing",
            Role::Operator,
            "operator",
            KeyLimits::default(),
        ),
    ] {
        let with = under(&text(&limited(&[(role, of, limits)])));
        book.add(name, about, "malformed", &with, with.joinpack());
    }
    let most = (0..=format::limits::SCOPE).map(|n| format!("workloads:shop/a{n:02}*"));
    let many: BTreeSet<Grant> = most.map(|grant| grant.parse().unwrap()).collect();
    let limits = KeyLimits {
        expires: None,
        scope: Some(many),
    };
    let with = under(&text(&limited(&[(Role::Operator, "operator", limits)])));
    book.add(
        "limits-scope-too-long",
        "a scope has one part too many",
        "limit-exceeded",
        &with,
        with.joinpack(),
    );
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "`{from}` is not in the root document");
    text.replacen(from, to, 1)
}
