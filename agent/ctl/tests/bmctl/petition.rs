//! node pending, approve and deny: what is shown and signed; a code lets in the key that it was made from and no other.

use crate::node::{Answer, Node};
use crate::run::{Fabric, Ran, bmctl};
use beemesh_agent_api::petition::{PetitionState, PetitionView};
use beemesh_agent_api::view::Assurance;
use beemesh_ids::PeerId;
use beemesh_joinpack_format::{Admission, ApprovalCode, Denial, Envelope, Source, Voucher};
use serde_json::json;

fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(&[n; 32])
}

fn code(fabric: &Fabric, n: u8) -> ApprovalCode {
    ApprovalCode::of(fabric.chain().fabric_id(), &peer(n))
}

/// A node that these machines ask, and that says of each that it shows `shown`.
fn node(machines: &[u8], name: Option<&str>, shown: &ApprovalCode) -> Node {
    let view = |n: &u8| PetitionView {
        code: shown.clone(),
        peer_id: peer(*n),
        name: name.map(|name| name.parse().unwrap()),
        assurance: Assurance::Tpm,
        source: [10, 0, 0, *n].into(),
        cell: "shop".to_owned(),
        age_s: 12,
        left_s: 888,
        state: PetitionState::Waiting,
    };
    let views: Vec<PetitionView> = machines.iter().map(view).collect();
    Node::start(move |seen| match seen.method.as_str() {
        "POST" => Answer::json(202, &json!({"accepted": true})),
        _ => Answer::json(200, &views),
    })
}

fn run(fabric: &Fabric, node: &Node, args: &[&str]) -> Ran {
    let context = fabric.context();
    bmctl(&[&["--socket", node.socket(), "--context", &context, "node"], args].concat())
}

fn sent(node: &Node) -> Vec<Envelope> {
    let seen = node.seen();
    let posts = seen.iter().filter(|seen| seen.line() == "POST /v1/petitions");
    posts
        .map(|seen| Envelope::parse(&seen.body, 1 << 16).unwrap())
        .collect()
}

#[test]
fn code_of_the_console_lets_in_its_key_under_the_name_of_the_pack_or_the_given_one() {
    let fabric = Fabric::new();
    let right = code(&fabric, 1);
    for (named, flags, name) in [
        (Some("till-1"), &[][..], "till-1".to_owned()),
        (Some("till-1"), &["--name", "bar"], "bar".to_owned()),
        (
            None,
            &[],
            format!("node-{}", right.to_string()[..5].to_lowercase()),
        ),
    ] {
        let node = node(&[1, 2], named, &right);
        let typed = right.to_string().replace('-', "").to_lowercase();
        let ran = run(&fabric, &node, &[&["approve", &typed], flags].concat());
        assert_eq!(
            (ran.code, ran.stdout),
            (0, format!("{right} is let in as {name}\n"))
        );
        let sent = sent(&node);
        let voucher = Voucher::verify(&sent[0], &fabric.chain(), Source::Person).unwrap();
        assert_eq!((sent.len(), voucher.node.as_str()), (1, name.as_str()));
        assert_eq!(PeerId::from_ed25519(voucher.key.as_bytes()), peer(1));
        assert_eq!(
            (voucher.admission, voucher.cell.as_str()),
            (Admission::Approved, "shop")
        );
        assert_eq!(voucher.expires, voucher.issued.plus_seconds(3600));
    }
}

#[test]
fn wrong_code_a_swapped_key_and_a_code_that_two_show_send_nothing() {
    let fabric = Fabric::new();
    let right = code(&fabric, 1);
    // The node says that machine 2 shows the code of machine 1.
    let swapped = node(&[2], None, &right);
    let nobody = node(&[], None, &right);
    let twice = node(&[1, 1], None, &right);
    let typed = right.to_string();
    for node in [&swapped, &nobody, &twice] {
        for act in ["approve", "deny"] {
            let ran = run(&fabric, node, &[act, &typed]);
            assert_eq!(ran.code, 1, "{ran:?}");
        }
        assert!(sent(node).is_empty());
    }
    let other = node(&[1], None, &right);
    assert_eq!(run(&fabric, &other, &["approve", "00000-00000"]).code, 1);
    assert_eq!(run(&fabric, &other, &["approve", "what"]).code, 2);
    let shown = run(&fabric, &other, &["approve", &typed, "--dry-run", "-o", "json"]);
    assert!(
        shown.code == 0 && shown.stdout.contains("payloadType"),
        "{shown:?}"
    );
    assert!(sent(&other).is_empty());
}

#[test]
fn denial_names_the_machine_and_pending_shows_who_asks() {
    let fabric = Fabric::new();
    let right = code(&fabric, 1);
    let node = node(&[1], Some("till-1"), &right);
    let ran = run(&fabric, &node, &["deny", &right.to_string()]);
    assert_eq!(ran.stdout, format!("{right} is sent away\n"), "{ran:?}");
    let denial = Denial::verify(&sent(&node)[0], &fabric.chain()).unwrap();
    assert_eq!(denial.peer_id, peer(1));
    let shown = run(&fabric, &node, &["pending"]).stdout;
    for part in [
        "CODE",
        &right.to_string(),
        "till-1",
        "tpm",
        "10.0.0.1",
        "12s",
        "888s",
        "waiting",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}
