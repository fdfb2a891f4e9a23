//! network and time: what is shown, what is signed and sent, and what is refused before anything is sent.

use crate::node::{Answer, Node};
use crate::run::{Fabric, Ran, bmctl};
use beemesh_agent_api::network::{
    NETWORK_PAYLOAD_TYPE, NetworkAction, NetworkChange, NetworkView, TimeView, TrialView,
};
use beemesh_init_api::time::{PeersHeard, RtcState, TimeSource};
use beemesh_init_api::{LinkStatus, NetworkConfig, NetworkStatus, TimeStatus};
use beemesh_joinpack_format::{Envelope, Role};
use serde_json::json;

const LAN: &str = "\
links:
- {mac: '52:54:00:00:00:01', addresses: [10.0.0.5/24], gateway: 10.0.0.1}
- {name: lan7, vlan: {on: '52:54:00:00:00:01', id: 7}, dhcp: true}
ntp: [10.0.0.3]
";

fn view(trial: Option<&str>) -> NetworkView {
    let card = LinkStatus {
        name: "eth0".into(),
        mac: "52:54:00:00:00:01".into(),
        addresses: vec!["10.0.0.5/24".into(), "fe80::1/64".into()],
        source: "static".into(),
        kind: "card".into(),
        carrier: true,
        mtu: 1500,
        ..LinkStatus::default()
    };
    let gone = LinkStatus {
        mac: "52:54:00:00:00:09".into(),
        source: "static".into(),
        kind: "card".into(),
        error: Some("no such card".into()),
        ..LinkStatus::default()
    };
    NetworkView {
        node: Some("till".parse().unwrap()),
        status: NetworkStatus {
            links: vec![card, gone],
            dns: vec!["10.0.0.2".into()],
            trial: trial.map(str::to_owned),
            ..NetworkStatus::default()
        },
        confirmed: NetworkConfig::default(),
        trial: trial.map(|id| TrialView {
            id: id.to_owned(),
            remaining_ms: 41_200,
            config: NetworkConfig::default(),
        }),
    }
}

fn node(trial: Option<&'static str>) -> Node {
    Node::start(move |seen| match seen.method.as_str() {
        "POST" => Answer::json(202, &json!({"accepted": true})),
        _ => Answer::json(200, &view(trial)),
    })
}

fn network(fabric: &Fabric, node: &Node, args: &[&str]) -> Ran {
    let context = fabric.context();
    bmctl(
        &[
            &["--socket", node.socket(), "--context", &context, "network"],
            args,
        ]
        .concat(),
    )
}

/// The change in a request's body, as a node would read it.
fn verified(fabric: &Fabric, body: &[u8]) -> NetworkChange {
    let envelope = Envelope::parse(body, 1 << 20).unwrap();
    let payload = envelope
        .verify_all(NETWORK_PAYLOAD_TYPE, &fabric.chain().role(Role::Operator))
        .unwrap();
    let change: NetworkChange = serde_json::from_slice(&payload).unwrap();
    assert_eq!(
        (&change.fabric, change.node.as_str()),
        (fabric.chain().fabric_id(), "till")
    );
    assert!(change.id.parse::<ulid::Ulid>().is_ok(), "{}", change.id);
    change
}

#[test]
fn network_is_a_table_of_links_and_the_servers_below() {
    let fabric = Fabric::new();
    let ran = network(&fabric, &node(Some("01J")), &["show"]);
    let expected = "\
LINK   KIND   MAC                 ADDRESSES                SOURCE   MTU    STATE
eth0   card   52:54:00:00:00:01   10.0.0.5/24,fe80::1/64   static   1500   ok
-      card   52:54:00:00:00:09   -                        static   -      no such card
dns: 10.0.0.2
search: -
ntp: -
trial: 01J, taken back in 42s unless it is confirmed
";
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (0, expected, "")
    );
    let json = network(&fabric, &node(None), &["show", "-o", "json"]).stdout;
    assert_eq!(serde_json::from_str::<NetworkView>(&json).unwrap(), view(None));
}

#[test]
fn settings_are_signed_for_the_node_and_sent_with_their_time() {
    let (fabric, node) = (Fabric::new(), node(None));
    let file = fabric.write("lan.yaml", LAN.as_bytes());
    let ran = network(
        &fabric,
        &node,
        &["try", "-f", file.to_str().unwrap(), "--for", "90s"],
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(node.lines(), ["GET /v1/network", "POST /v1/network"]);
    let change = verified(&fabric, &node.seen()[1].body);
    let NetworkAction::Try { config, for_ms } = change.action else {
        panic!("{change:?}");
    };
    assert_eq!((config.links.len(), config.ntp.len(), for_ms), (2, 1, 90_000));
    assert!(
        ran.stdout.contains(&change.id) && ran.stdout.contains("accepted"),
        "{ran:?}"
    );
    assert!(
        ran.stderr.contains("`bmctl network confirm` within 90s"),
        "{ran:?}"
    );
}

#[test]
fn confirmation_names_the_trial_that_runs() {
    let (fabric, running, idle) = (Fabric::new(), node(Some("01J")), node(None));
    let ran = network(&fabric, &running, &["confirm"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let change = verified(&fabric, &running.seen()[1].body);
    assert_eq!(change.action, NetworkAction::Confirm { trial: "01J".into() });
    let ran = network(&fabric, &idle, &["confirm"]);
    assert!(
        ran.code == 1 && ran.stderr.contains("no trial runs\nhint: "),
        "{ran:?}"
    );
    assert_eq!(idle.lines(), ["GET /v1/network"]);
}

#[test]
fn dry_run_shows_the_signed_change_and_sends_nothing() {
    let (fabric, node) = (Fabric::new(), node(None));
    let file = fabric.write("lan.yaml", LAN.as_bytes());
    let ran = network(
        &fabric,
        &node,
        &["try", "-f", file.to_str().unwrap(), "--dry-run", "-o", "json"],
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let shown: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let change = verified(&fabric, shown["envelope"].to_string().as_bytes());
    assert_eq!(serde_json::to_value(change).unwrap(), shown["change"]);
    assert_eq!(node.lines(), ["GET /v1/network"]);
}

#[test]
fn settings_that_make_no_sense_are_invalid_input_with_field_and_value() {
    let (fabric, node) = (Fabric::new(), node(None));
    for (text, part) in [
        (
            LAN.replace("10.0.0.5/24", "10.0.0.5"),
            "`links[0].addresses[0]`: `10.0.0.5` is not an address with its prefix",
        ),
        (
            LAN.replace("id: 7", "id: 5000"),
            "`links[1].vlan.id`: 5000 is out of range: 1 to 4094",
        ),
        (LAN.replace("links:", "linkz:"), "linkz"),
        ("#".repeat((1 << 20) + 1), "larger than 1048576 bytes"),
    ] {
        let file = fabric.write("lan.yaml", text.as_bytes());
        let ran = network(&fabric, &node, &["try", "-f", file.to_str().unwrap()]);
        assert!(ran.code == 2 && ran.stderr.contains(part), "{part}: {ran:?}");
    }
    assert!(node.seen().is_empty());
}

#[test]
fn refusals_of_the_node_are_passed_on_with_their_exit_code() {
    let fabric = Fabric::new();
    let file = fabric.write("lan.yaml", LAN.as_bytes());
    for (status, code) in [(403, 3), (409, 1), (400, 2)] {
        let node = Node::start(move |seen| match seen.method.as_str() {
            "POST" => Answer::error(status, "not so"),
            _ => Answer::json(200, &view(None)),
        });
        let ran = network(&fabric, &node, &["try", "-f", file.to_str().unwrap()]);
        assert!(ran.code == code && ran.stderr.contains("not so"), "{ran:?}");
    }
    let stranger = Node::start(|_| {
        Answer::json(
            200,
            &NetworkView {
                node: None,
                ..view(None)
            },
        )
    });
    let ran = network(&fabric, &stranger, &["try", "-f", file.to_str().unwrap()]);
    assert!(
        ran.code == 1 && ran.stderr.contains("not a member of a fabric yet"),
        "{ran:?}"
    );
}

#[test]
fn time_says_where_it_is_from() {
    let status = TimeStatus {
        source: TimeSource::Ntp,
        reason: "stepped by 86400 s, as the clock was wrong".into(),
        server: Some("10.0.0.3".into()),
        offset_us: Some(-1_234),
        heard_ms: Some(60_000),
        peers: None,
        floor: 1_767_323_045,
        rtc: RtcState::Written,
    };
    let view = TimeView {
        now_ms: 1_767_323_045_678,
        up_ms: 75_000,
        status: Some(status),
    };
    let node = Node::saying(200, &view);
    let ran = bmctl(&["--socket", node.socket(), "time"]);
    let expected = "\
time    2026-01-02T03:04:05.678Z
source  ntp: stepped by 86400 s, as the clock was wrong
server  10.0.0.3, offset -1.234ms, heard 15s ago
floor   2026-01-02T03:04:05.000Z
rtc     written
";
    assert_eq!((ran.code, ran.stdout.as_str()), (0, expected));
    assert_eq!(node.lines(), ["GET /v1/time"]);
    let json = bmctl(&["--socket", node.socket(), "time", "-o", "json"]).stdout;
    assert_eq!(serde_json::from_str::<TimeView>(&json).unwrap(), view);
    let mut followed = view.clone();
    let status = followed.status.as_mut().unwrap();
    status.source = TimeSource::Peers;
    status.peers = Some(PeersHeard {
        members: 4,
        offset_us: 1_500,
        heard_ms: 70_000,
    });
    let following = Node::saying(200, &followed);
    let ran = bmctl(&["--socket", following.socket(), "time"]);
    assert!(ran.stdout.contains("source  peers: "), "{ran:?}");
    let line = "\npeers   4 members, offset +1.500ms, heard 5s ago\n";
    assert!(ran.stdout.contains(line), "{ran:?}");
    let without = Node::saying(200, &TimeView { status: None, ..view });
    let ran = bmctl(&["--socket", without.socket(), "time"]);
    assert!(ran.stdout.contains("source  unknown"), "{ran:?}");
}
