//! keys roots: what is shown, saved and sent; a chain that is not genuine is none of it.

use crate::node::{Answer, Node};
use crate::run::{Fabric, Ran, bmctl};
use beemesh_agent_api::roots::{KeyState, RoleKeyView, RootsTaken, RootsView};
use beemesh_joinpack_format::{Envelope, Grant, OperatorContext, Role, RootChain};
use std::collections::BTreeSet;

/// A node that follows `chain`, and says that it takes what it is sent.
fn node(chain: &RootChain, documents: Vec<Envelope>) -> Node {
    let keys = chain.current().keys.keys().cloned();
    let scope: BTreeSet<Grant> = ["nodes", "workloads:shop/till-*"]
        .map(|grant| grant.parse().unwrap())
        .into();
    let view = RootsView {
        fabric: chain.fabric_id().clone(),
        version: chain.version(),
        issued: chain.current().issued,
        past: chain.past(),
        keys: keys
            .map(|key| RoleKeyView {
                role: Role::Operator,
                threshold: 1,
                key,
                expires: Some(chain.past()),
                scope: Some(scope.iter().cloned().collect()),
                state: KeyState::Valid,
            })
            .collect(),
        documents,
    };
    let version = chain.version();
    Node::start(move |seen| match seen.method.as_str() {
        "POST" => Answer::json(200, &RootsTaken { version, news: true }),
        _ => Answer::json(200, &view),
    })
}

fn run(node: &Node, args: &[&str]) -> Ran {
    bmctl(&[&["--socket", node.socket()], args].concat())
}

/// The fabric's chain with one more root document, and that alone.
fn longer(fabric: &Fabric) -> (RootChain, Envelope) {
    let mut next = fabric.chain().current().clone();
    next.version += 1;
    next.issued = next.issued.plus_seconds(1);
    let signed = next.sign(&[&fabric.key]).unwrap();
    (
        fabric.chain().extend(std::slice::from_ref(&signed)).unwrap(),
        signed,
    )
}

#[test]
fn roots_are_shown_and_saved_only_where_they_are_genuine() {
    let fabric = Fabric::new();
    let (chain, _) = longer(&fabric);
    let good = node(&chain, chain.envelopes().to_vec());
    let shown = run(&good, &["keys", "roots", "show"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    for word in [
        "operator",
        "nodes,workloads:shop/till-*",
        "valid",
        chain.fabric_id().as_str(),
    ] {
        assert!(
            shown.stdout.contains(word),
            "`{word}` is missing: {}",
            shown.stdout
        );
    }
    let context = fabric.context();
    let saved = || {
        let text = std::fs::read(&context).unwrap();
        OperatorContext::parse(&text).unwrap().chain().unwrap().version()
    };
    let before = saved();
    let save = ["--context", &context, "keys", "roots", "show", "--save"];
    let ran = run(&good, &save);
    assert_eq!((ran.code, saved()), (0, chain.version()), "{ran:?}");
    assert!(saved() > before);
    // A node that lies: nothing is shown and nothing saved.
    let mut forged = chain.current().clone();
    forged.version += 1;
    let forged = forged
        .sign(&[&beemesh_joinpack_format::SecretKey::from_bytes([99; 32])])
        .unwrap();
    let bad = node(&chain, [chain.envelopes(), &[forged]].concat());
    let ran = run(&bad, &save);
    assert_eq!((ran.code, saved()), (3, chain.version()), "{ran:?}");
    assert!(
        ran.stderr.contains("not genuine") && ran.stdout.is_empty(),
        "{ran:?}"
    );
}

#[test]
fn file_is_checked_before_it_is_sent_and_no_operator_is_needed() {
    let fabric = Fabric::new();
    let (chain, alone) = longer(&fabric);
    let listening = node(&chain, chain.envelopes().to_vec());
    let file = |name: &str, documents: &[Envelope]| {
        let path = fabric.write(name, &serde_json::to_vec(documents).unwrap());
        path.to_str().unwrap().to_owned()
    };
    let good = file("root.json", chain.envelopes());
    let dry = run(&listening, &["keys", "roots", "push", &good, "--dry-run"]);
    assert_eq!((dry.code, listening.seen().len()), (0, 0), "{dry:?}");
    let sent = run(&listening, &["keys", "roots", "push", &good]);
    assert_eq!(sent.code, 0, "{sent:?}");
    let seen = listening.seen();
    assert_eq!(seen[0].line(), "POST /v1/roots");
    let documents: Vec<Envelope> = serde_json::from_slice(&seen[0].body).unwrap();
    assert_eq!(documents, chain.envelopes());
    // Without the first nobody can tell whose it is.
    for bad in [
        file("alone.json", &[alone]),
        fabric.write("x.json", b"{").to_str().unwrap().to_owned(),
        fabric.path("none.json"),
    ] {
        let ran = run(&listening, &["keys", "roots", "push", &bad]);
        assert_eq!((ran.code, listening.seen().len()), (2, 1), "{ran:?}");
    }
}
