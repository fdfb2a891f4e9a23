//! node show and node accept: what is shown, signed and sent, and what is not accepted.

use crate::node::{Answer, Node};
use crate::run::{Fabric, Ran, bmctl};
use beemesh_agent_api::boot::{BootView, BootsView};
use beemesh_ids::{Digest, PeerId};
use beemesh_joinpack_format::{Acceptance, Acceptances, Envelope, Registers, Source, Timestamp, limits};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(&[n; 32])
}

fn registers(first: &str) -> BTreeMap<u8, Digest> {
    let all = [0, 1, 2, 3, 4, 5, 6, 7, 11, 12];
    let mut registers: BTreeMap<u8, Digest> = all.map(|pcr| (pcr, Digest::of(&[pcr]))).into();
    registers.insert(0, Digest::of(first.as_bytes()));
    registers
}

fn boot(name: &str, n: u8, assurance: &str) -> BootView {
    let shown = match assurance {
        "low" => BTreeMap::new(),
        "trusted" => registers("old"),
        _ => registers("new"),
    };
    BootView {
        name: name.parse().unwrap(),
        node: peer(n),
        assurance: assurance.parse().unwrap(),
        release: Some("0.2.0".into()),
        shown,
        recorded: registers("old"),
        accepted: None,
    }
}

/// A node that keeps what it is sent as a node does.
fn node(fabric: &Fabric) -> Node {
    let nodes: Vec<BootView> = [
        boot("till-1", 1, "changed: PCR 0"),
        boot("till-2", 2, "changed: PCR 0,11"),
        boot("till-3", 3, "trusted"),
        boot("till-4", 4, "low"),
        boot("till-5", 5, "changed: PCR 0"),
    ]
    .into();
    let (held, roots) = (Arc::new(Mutex::new(Acceptances::default())), fabric.chain());
    Node::start(move |seen| match (seen.method.as_str(), seen.target.as_str()) {
        ("POST", "/v1/boots") => {
            let envelope = Envelope::parse(&seen.body, 1 << 20).unwrap();
            assert_eq!(
                held.lock().unwrap().take(&envelope, &roots, Source::Person),
                Ok(true)
            );
            Answer::json(202, &json!({"accepted": true}))
        }
        (_, "/v1/boots") => Answer::json(
            200,
            &BootsView {
                nodes: nodes.clone(),
                acceptances: held.lock().unwrap().envelopes().cloned().collect(),
            },
        ),
        _ => Answer::json(404, &json!({"error": "nothing"})),
    })
}

fn run(fabric: &Fabric, node: &Node, args: &[&str]) -> Ran {
    let context = fabric.context();
    bmctl(&[&["--socket", node.socket(), "--context", &context], args].concat())
}

fn sent(fabric: &Fabric, node: &Node) -> Vec<Acceptance> {
    let posts = node
        .seen()
        .into_iter()
        .filter(|seen| seen.line() == "POST /v1/boots");
    let envelopes = posts.map(|seen| Envelope::parse(&seen.body, 1 << 20).unwrap());
    envelopes
        .map(|envelope| fabric.chain().accept(&envelope, Source::Person).unwrap())
        .collect()
}

#[test]
fn show_says_which_register_changed_from_what_to_what() {
    let fabric = Fabric::new();
    let node = node(&fabric);
    let ran = run(&fabric, &node, &["node", "show", "till-1"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let digest = Registers(registers("new")).digest().to_string();
    let hex = |text: &str| Digest::of(text.as_bytes()).to_string().replace("sha256:", "");
    let changed: Vec<&str> = ran
        .stdout
        .lines()
        .filter(|line| line.contains(" changed "))
        .collect();
    let [line] = changed.as_slice() else {
        panic!("{}", ran.stdout)
    };
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words, ["0", "changed", &hex("old"), &hex("new")]);
    for text in ["changed: PCR 0", "0.2.0", &digest] {
        assert!(ran.stdout.contains(text), "{text}: {}", ran.stdout);
    }
    let ran = run(&fabric, &node, &["node", "show", "till-1", "-o", "json"]);
    let view: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(view["digest"], digest);
    assert_eq!(view["changes"][0]["pcr"], 0);
}

#[test]
fn accept_signs_exactly_the_registers_that_are_shown() {
    let fabric = Fabric::new();
    let node = node(&fabric);
    let digest = Registers(registers("new")).digest().to_string();
    let ran = run(
        &fabric,
        &node,
        &[
            "node",
            "accept",
            "till-1",
            "--reason",
            "firmware 2.1",
            "--digest",
            &digest,
        ],
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains(&digest), "{}", ran.stdout);
    let sent = sent(&fabric, &node);
    let [acceptance] = sent.as_slice() else {
        panic!("{sent:?}")
    };
    assert_eq!(
        acceptance.nodes,
        BTreeMap::from([(peer(1), Registers(registers("new")))])
    );
    assert_eq!(acceptance.reason.as_deref(), Some("firmware 2.1"));
}

#[test]
fn second_acceptance_holds_the_first_so_that_one_is_kept() {
    let fabric = Fabric::new();
    let node = node(&fabric);
    assert_eq!(run(&fabric, &node, &["node", "accept", "till-1"]).code, 0);
    assert_eq!(run(&fabric, &node, &["node", "accept", peer(5).as_str()]).code, 0);
    let sent = sent(&fabric, &node);
    let named: Vec<usize> = sent.iter().map(|acceptance| acceptance.nodes.len()).collect();
    assert_eq!(named, [1, 2]);
    let both = [peer(1), peer(5)].map(|peer| (peer, Registers(registers("new"))));
    assert_eq!(sent[1].nodes, BTreeMap::from(both));
}

/// A node that says that more was accepted than an operator signed, and one whose acceptance is full.
#[test]
fn what_nobody_signed_and_what_does_not_fit_is_not_taken_along() {
    let fabric = Fabric::new();
    let other = Fabric::of_seed(8);
    let accept = |fabric: &Fabric, id: &str, nodes: std::ops::Range<u8>| {
        let acceptance = Acceptance {
            fabric: fabric.chain().fabric_id().clone(),
            id: id.to_owned(),
            issued: Timestamp(1),
            reason: None,
            nodes: nodes.map(|n| (peer(n), Registers(registers("any")))).collect(),
        };
        acceptance.sign(&[&fabric.key]).unwrap()
    };
    let full = 100 + u8::try_from(limits::ACCEPTED).unwrap();
    let acceptances = vec![
        accept(&other, "01KDVKFD000000000000000001", 90..92),
        accept(&fabric, "01KDVKFD000000000000000002", 100..full),
        accept(&fabric, "01KDVKFD000000000000000003", 80..82),
    ];
    let node = Node::start(move |seen| match seen.method.as_str() {
        "POST" => Answer::json(202, &json!({"accepted": true})),
        _ => Answer::json(
            200,
            &BootsView {
                nodes: vec![boot("till-1", 1, "changed: PCR 0")],
                acceptances: acceptances.clone(),
            },
        ),
    });
    let ran = run(&fabric, &node, &["node", "accept", "till-1"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let named: Vec<PeerId> = sent(&fabric, &node)[0].nodes.keys().cloned().collect();
    let mut expected = vec![peer(1), peer(80), peer(81)];
    expected.sort();
    assert_eq!(named, expected);
}

#[test]
fn what_cannot_be_accepted_mistakes_and_dry_runs_send_nothing() {
    let fabric = Fabric::new();
    let node = node(&fabric);
    let refused = |args: &[&str], word: &str| {
        let ran = run(&fabric, &node, &[&["node", "accept"], args].concat());
        assert_ne!(ran.code, 0, "{ran:?}");
        assert!(ran.stderr.contains(word), "{word}: {}", ran.stderr);
    };
    refused(&["till-2"], "no join pack names as a release");
    refused(&["till-3"], "no register has changed");
    refused(&["till-4"], "its assurance is `low`");
    refused(&["till-9"], "no member has this name");
    refused(&["till-1", "--reason", "a\nb"], "control character");
    refused(
        &[
            "till-1",
            "--digest",
            &Digest::of(b"what was shown before").to_string(),
        ],
        "now, not",
    );
    let ran = run(
        &fabric,
        &node,
        &["node", "accept", "till-1", "--dry-run", "-o", "json"],
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let signed: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let envelope: Envelope = serde_json::from_value(signed["envelope"].clone()).unwrap();
    let acceptance: Acceptance = fabric.chain().accept(&envelope, Source::Person).unwrap();
    assert_eq!(serde_json::to_value(&acceptance).unwrap(), signed["acceptance"]);
    assert_eq!(sent(&fabric, &node), []);
}
