//! keys status and keys rotate: what is shown, signed and sent, and what the end of the wait says.

use crate::node::{Answer, Node};
use crate::run::{Fabric, Ran, bmctl};
use beemesh_agent_api::keys::{KeysView, NodeKeyView};
use beemesh_agent_api::view::NodeStatus;
use beemesh_ids::PeerId;
use beemesh_joinpack_format::{Envelope, KeyOrder, Source};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(&[n; 32])
}

fn key(name: &str, n: u8, as_of: &str) -> NodeKeyView {
    NodeKeyView {
        name: name.parse().unwrap(),
        node: peer(n),
        key: peer(n + 100),
        generation: 1,
        since: "2026-01-02T03:04:05Z".to_owned(),
        as_of: as_of.to_owned(),
        order: None,
        used_up: false,
        status: NodeStatus::Ready,
    }
}

/// A node whose members obey each order, but for those named in `off`.
fn node(off: &'static [&'static str], fabric: &Fabric) -> Node {
    let old = "01KDVKFD000000000000000001";
    let nodes = vec![
        key("till-1", 1, old),
        key("till-2", 2, old),
        key("till-3", 3, old),
    ];
    let (nodes, roots) = (Arc::new(Mutex::new(nodes)), fabric.chain());
    Node::start(move |seen| match (seen.method.as_str(), seen.target.as_str()) {
        ("POST", "/v1/keys") => {
            let envelope = Envelope::parse(&seen.body, 1 << 20).unwrap();
            let order = KeyOrder::verify(&envelope, &roots, Source::Person).unwrap();
            for node in nodes
                .lock()
                .unwrap()
                .iter_mut()
                .filter(|node| order.names(&node.node))
            {
                if off.contains(&node.name.as_str()) {
                    node.order = Some(order.id.clone());
                    node.status = NodeStatus::Down;
                } else {
                    node.as_of = order.id.clone();
                    node.generation += 1;
                }
            }
            Answer::json(202, &json!({"accepted": true}))
        }
        (_, "/v1/keys") => Answer::json(
            200,
            &KeysView {
                nodes: nodes.lock().unwrap().clone(),
                orders: Vec::new(),
            },
        ),
        _ => Answer::json(404, &json!({"error": "nothing"})),
    })
}

fn run(fabric: &Fabric, node: &Node, args: &[&str]) -> Ran {
    let context = fabric.context();
    bmctl(&[&["--socket", node.socket(), "--context", &context], args].concat())
}

fn sent(fabric: &Fabric, node: &Node) -> Vec<KeyOrder> {
    let posts = node
        .seen()
        .into_iter()
        .filter(|seen| seen.line() == "POST /v1/keys");
    let orders = posts.map(|seen| Envelope::parse(&seen.body, 1 << 20).unwrap());
    orders
        .map(|envelope| KeyOrder::verify(&envelope, &fabric.chain(), Source::Person).unwrap())
        .collect()
}

#[test]
fn status_shows_both_ids_and_what_is_outstanding() {
    let fabric = Fabric::new();
    let node = node(&[], &fabric);
    let ran = run(&fabric, &node, &["keys", "status"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for text in [
        "till-1",
        "2026-01-02T03:04:05Z",
        "done",
        peer(1).as_str(),
        peer(101).as_str(),
    ] {
        assert!(ran.stdout.contains(text), "{text}: {}", ran.stdout);
    }
    let ran = run(&fabric, &node, &["keys", "status", "-o", "json"]);
    let view: KeysView = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(view.nodes.len(), 3);
}

#[test]
fn order_names_nodes_by_their_ids_whatever_they_were_called() {
    let fabric = Fabric::new();
    let node = node(&[], &fabric);
    let by_key = peer(102).to_string();
    let ran = run(&fabric, &node, &["keys", "rotate", "till-1", &by_key]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let sent = sent(&fabric, &node);
    let [order] = sent.as_slice() else {
        panic!("{sent:?}")
    };
    assert_eq!(order.nodes, Some(BTreeSet::from([peer(1), peer(2)])));
    assert!(ran.stdout.contains(&order.id), "{}", ran.stdout);
}

#[test]
fn wait_ends_when_all_have_rotated() {
    let fabric = Fabric::new();
    let node = node(&[], &fabric);
    let ran = run(
        &fabric,
        &node,
        &["keys", "rotate", "--all", "--wait", "-o", "json"],
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let outcome: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(outcome["rotated"].as_array().unwrap().len(), 3);
    assert_eq!(outcome["old"].as_array().unwrap().len(), 0);
    assert_eq!(sent(&fabric, &node)[0].nodes, None);
}

#[test]
fn wait_that_ends_by_time_names_who_is_still_old() {
    let fabric = Fabric::new();
    let node = node(&["till-2"], &fabric);
    let ran = run(
        &fabric,
        &node,
        &["keys", "rotate", "--all", "--wait", "--timeout", "1s"],
    );
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stderr.contains("2 of 3 keys rotated"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("1 keys are old: till-2 (Down)"),
        "{}",
        ran.stderr
    );
    assert!(ran.stdout.contains("2 done, 1 old"), "{}", ran.stdout);
}

#[test]
fn mistakes_and_dry_runs_send_nothing() {
    let fabric = Fabric::new();
    let node = node(&[], &fabric);
    assert_eq!(run(&fabric, &node, &["keys", "rotate", "till-9"]).code, 1);
    assert_eq!(run(&fabric, &node, &["keys", "rotate"]).code, 2);
    let ran = run(
        &fabric,
        &node,
        &["keys", "rotate", "till-1", "--dry-run", "-o", "json"],
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let signed: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let envelope: Envelope = serde_json::from_value(signed["envelope"].clone()).unwrap();
    assert!(KeyOrder::verify(&envelope, &fabric.chain(), Source::Person).is_ok());
    assert_eq!(sent(&fabric, &node), []);
}
