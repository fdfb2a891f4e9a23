//! revocations, revoke and node ek: what is shown, signed and sent; the operator signs nothing that only the node says.

use crate::node::{Answer, Node};
use crate::run::{Fabric, Ran, bmctl};
use beemesh_agent_api::revocation::RevocationView;
use beemesh_ids::PeerId;
use beemesh_joinpack_format::{EndorsementFile, Envelope, Revocations, SecretKey, Source, Timestamp};
use serde_json::json;

fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(&[n; 32])
}

/// A node that knows `known` to be revoked, and lies that `lie` is too.
fn node(known: Option<Envelope>, lie: Option<PeerId>) -> Node {
    let view = RevocationView {
        issued: "2026-01-02T03:04:05Z".to_owned(),
        age_s: 8 * 86_400 + 3 * 3_600,
        admits: false,
        nodes: lie.into_iter().collect(),
        vouchers: Vec::new(),
        keys: Vec::new(),
        snapshots: known.into_iter().collect(),
    };
    Node::start(move |seen| match (seen.method.as_str(), seen.target.as_str()) {
        ("POST", _) => Answer::json(202, &json!({"accepted": true})),
        (_, "/v1/revocations") => Answer::json(200, &view),
        (_, "/v1/endorsement") => Answer::json(200, &EndorsementFile::new(b"a key", None)),
        _ => Answer::json(200, &json!([])),
    })
}

fn run(fabric: &Fabric, node: &Node, args: &[&str]) -> Ran {
    let context = fabric.context();
    bmctl(&[&["--socket", node.socket(), "--context", &context], args].concat())
}

fn done(ran: Ran) -> String {
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.stdout
}

fn sent(fabric: &Fabric, node: &Node) -> Vec<Revocations> {
    let posts = node
        .seen()
        .into_iter()
        .filter(|seen| seen.line() == "POST /v1/revocations");
    posts
        .map(|seen| {
            Revocations::verify(
                &Envelope::parse(&seen.body, 1 << 20).unwrap(),
                &fabric.chain(),
                Source::Person,
            )
            .unwrap()
        })
        .collect()
}

#[test]
fn new_snapshot_holds_what_is_signed_already_and_nothing_that_only_the_node_says() {
    let fabric = Fabric::new();
    let mut known = Revocations::none(fabric.chain().fabric_id().clone(), Timestamp(4_000_000_000));
    known.nodes.insert(peer(1));
    let node = node(Some(known.sign(&[&fabric.key]).unwrap()), Some(peer(9)));
    let target = format!("node/{}", peer(2));
    done(run(
        &fabric,
        &node,
        &["revoke", &target, "voucher/01KDVKFD000000000000000009"],
    ));
    let sent = sent(&fabric, &node);
    let [snapshot] = sent.as_slice() else {
        panic!("{sent:?}")
    };
    assert_eq!(
        snapshot
            .nodes
            .iter()
            .cloned()
            .collect::<std::collections::BTreeSet<_>>(),
        [peer(1), peer(2)].into()
    );
    assert_eq!(snapshot.vouchers.len(), 1);
    assert_eq!(
        snapshot.issued,
        Timestamp(4_000_000_001),
        "newer than what is known, whatever this clock says"
    );
}

#[test]
fn mistakes_and_unknown_names_send_nothing() {
    let fabric = Fabric::new();
    let node = node(None, None);
    for (args, code) in [
        (&["revoke", "till"][..], 2),
        (&["revoke", "voucher/7"], 2),
        (&["revoke", "node/nobody"], 1),
        (&["revoke", "--file", "/nonexistent"], 2),
    ] {
        assert_eq!(run(&fabric, &node, args).code, code, "{args:?}");
    }
    let target = format!("node/{}", peer(2));
    let shown = run(&fabric, &node, &["revoke", &target, "--dry-run", "-o", "json"]);
    assert!(shown.stdout.contains(peer(2).as_str()) && shown.stdout.contains("payloadType"));
    assert!(sent(&fabric, &node).is_empty());
}

#[test]
fn snapshots_of_a_file_are_sent_if_this_fabric_signed_them() {
    let fabric = Fabric::new();
    let node = node(None, None);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("revocations.json");
    let mut snapshot = Revocations::none(fabric.chain().fabric_id().clone(), Timestamp(1));
    snapshot.nodes.insert(peer(3));
    let file = path.to_str().unwrap();
    std::fs::write(
        &path,
        serde_json::to_vec(&[snapshot.sign(&[&fabric.key]).unwrap()]).unwrap(),
    )
    .unwrap();
    done(run(&fabric, &node, &["revoke", "--file", file]));
    assert_eq!(sent(&fabric, &node), [snapshot.clone()]);
    let forged = snapshot.sign(&[&SecretKey::from_bytes([77; 32])]).unwrap();
    std::fs::write(&path, serde_json::to_vec(&[forged]).unwrap()).unwrap();
    assert_eq!(run(&fabric, &node, &["revoke", "--file", file]).code, 2);
    assert_eq!(sent(&fabric, &node).len(), 1);
}

#[test]
fn age_and_endorsement_key_are_shown() {
    let fabric = Fabric::new();
    let node = node(None, Some(peer(9)));
    let words = run(&fabric, &node, &["revocations"]).stdout;
    for word in ["8d3h", "no: insert a newer join stick", peer(9).as_str()] {
        assert!(words.contains(word), "{word}: {words}");
    }
    let text = run(&fabric, &node, &["node", "ek", "-o", "json"]).stdout;
    let (file, public) = EndorsementFile::parse(text.as_bytes()).unwrap();
    assert_eq!((file.certificate, public), (None, b"a key".to_vec()));
    assert!(
        run(&fabric, &node, &["nodes", "ek"])
            .stdout
            .contains("none in the TPM")
    );
}
