//! Attacks by a member with a valid key, against two whole agents on a loopback network of their own: what it hands on that
//! others must not take, whom it vouches for, and how it comes back after it was revoked.
#![allow(clippy::unwrap_used)]

use crate::fixture::{NOW, chain, in_small_volume, key, operator, roots, voucher};
use crate::identity;
use crate::join::{DOCUMENT, FabricDocument};
use crate::journal::Journal;
use crate::start::{Options, run};
use crate::store::Store;
use beemesh_agent_api::record::CHANGE_PAYLOAD_TYPE;
use beemesh_agent_api::{Change, parse_manifests};
use beemesh_agent_fabric::{Admission, Admitted, Credentials, Denial, Fabric, FabricConfig, FabricEvent};
use beemesh_agent_sched::MemberInfo;
use beemesh_agent_sched::wire::{Blob, Message};
use beemesh_ids::PeerId;
use beemesh_init_api::{NetworkConfig, path};
use beemesh_joinpack_format::{
    Admission as Way, Assurance, Envelope, KeyLimits, Membership, Revocations, Role, RootChain, SecretKey,
    Voucher,
};
use clap::Parser as _;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

/// Root 2: the operator of the fixture may change `shop/till-*` and let nodes in, and another may do everything.
fn limited() -> RootChain {
    let mut next = roots().current().clone();
    next.version = 2;
    next.issued = NOW;
    let chief = chief().public();
    next.keys.insert(chief.key_id(), chief);
    let spec = next.roles.get_mut(&Role::Operator).unwrap();
    spec.keyids.push(chief.key_id());
    let scope = ["nodes", "workloads:shop/till-*"].map(|grant| grant.parse().unwrap());
    let limits = KeyLimits {
        expires: None,
        scope: Some(scope.into()),
    };
    spec.limits.insert(operator().public().key_id(), limits);
    roots().extend(&[next.sign(&[&key()]).unwrap()]).unwrap()
}

fn chief() -> SecretKey {
    SecretKey::from_bytes([9; 32])
}

fn longer() -> Envelope {
    let mut next = limited().current().clone();
    (next.version, next.issued) = (3, NOW.plus_seconds(1));
    next.sign(&[&key()]).unwrap()
}

/// A member's credential by the voucher with this number.
fn membership(number: u8, node: &str, peer: &PeerId) -> Membership {
    let offer = voucher(number, node);
    Membership::redeem(
        &offer.envelope,
        offer.one_time_key.as_ref().unwrap(),
        peer,
        Assurance::Low,
        NOW,
    )
    .unwrap()
}

fn change(workload: &str, number: u8, by: &SecretKey) -> (String, Envelope) {
    let (namespace, name) = workload.split_once('/').unwrap();
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  containers: [{{name: c, image: x}}]\n"
    );
    let spec = parse_manifests(&text).unwrap().remove(0);
    let id = format!("01KDVKFD00000000000000{number:04}");
    let change = Change {
        id: id.clone(),
        fabric: roots().fabric_id().clone(),
        workload: spec.id.clone(),
        spec: Some(spec),
    };
    let payload = serde_json::to_vec(&change).unwrap();
    (id, Envelope::sign(CHANGE_PAYLOAD_TYPE, &payload, &[by]))
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// What makes an agent in `folder` the member `node` at its start.
async fn member(folder: &Path, number: u8, node: &str) -> Options {
    let at = |name: &str| folder.join(node).join(name).display().to_string();
    let (port, rest_port) = (free_port().to_string(), free_port().to_string());
    let line = [
        "agent",
        "--state",
        &at("state"),
        "--run",
        &at("run"),
        "--port",
        &port,
        "--rest-port",
        &rest_port,
    ];
    let options = Options::parse_from(line);
    std::fs::create_dir_all(options.run_path(path::AGENT_SOCKET).parent().unwrap()).unwrap();
    let store = Store::open(&options.state.join("agent")).unwrap();
    let journal = Journal::new(options.run_path(path::CONSOLE));
    let (node_key, _) = identity::load(&options.state.join("identity"), None, None, &journal)
        .await
        .unwrap();
    let document = FabricDocument {
        roots: limited().envelopes().to_vec(),
        membership: membership(number, node, &node_key.now().peer_id()),
        serial: "01KDVKFD00000000000000000A".to_owned(),
        peers: Vec::new(),
        network: NetworkConfig::default(),
        found: true,
        floor: NOW,
        spare: Vec::new(),
        lost: false,
        releases: Vec::new(),
        log_key: None,
    };
    store.save(DOCUMENT, &document).unwrap();
    options
}

/// The answer of an agent's socket, head and body.
async fn ask(options: &Options, request: &str, body: &[u8]) -> String {
    let mut stream = loop {
        match tokio::net::UnixStream::connect(options.run_path(path::AGENT_SOCKET)).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let head = format!(
        "{request} HTTP/1.1\r\nhost: local\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn until(options: &Options, request: &str, what: impl Fn(&str) -> bool) {
    loop {
        let answer = ask(options, request, b"").await;
        if what(&answer) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Lets everybody in.
struct Everybody;

impl Admission for Everybody {
    fn admit(&self, peer: &PeerId, _: &[u8]) -> Result<Admitted, Denial> {
        Ok(Admitted::by_first_key(peer))
    }
}

/// Somebody with a key of their own and what they show.
struct Rogue {
    fabric: Fabric,
    events: mpsc::Receiver<FabricEvent>,
}

impl Rogue {
    fn start(secret: &SecretKey, credential: &Membership, to: &[&Options]) -> Self {
        let config = FabricConfig {
            credentials: Credentials {
                secret: secret.to_bytes(),
                generation: 0,
                credential: credential.to_bytes(),
            },
            node: None,
            admission: Arc::new(Everybody),
            listen_port: 0,
            bootstrap: to
                .iter()
                .map(|options| format!("127.0.0.1:{}", options.port))
                .collect(),
            mdns: false,
        };
        let (fabric, events) = Fabric::start(config).unwrap();
        Self { fabric, events }
    }

    /// The members that let it in, once there are so many.
    async fn connected(&mut self, number: usize) -> Vec<PeerId> {
        let mut peers = Vec::new();
        while peers.len() < number {
            if let FabricEvent::Connected { peer, .. } = self.events.recv().await.unwrap() {
                peers.push(peer);
            }
        }
        peers
    }

    /// Why it is not let in.
    async fn refused(&mut self) -> String {
        loop {
            match self.events.recv().await.unwrap() {
                FabricEvent::Refused { reason, .. } => return reason,
                FabricEvent::Connected { .. } => panic!("it was let in"),
                _ => {}
            }
        }
    }

    fn send(&self, to: &[PeerId], message: &Message) {
        for peer in to {
            self.fabric.send(peer, message.encode().unwrap()).unwrap();
        }
    }
}

async fn attacks(folder: &Path) {
    let (one, two) = (member(folder, 1, "one").await, member(folder, 2, "two").await);
    let all = [&one, &two];
    let agents = [tokio::spawn(run(one.clone())), tokio::spawn(run(two.clone()))];
    let secret = SecretKey::from_bytes([66; 32]);
    let me = PeerId::from_ed25519(secret.public().as_bytes());
    let mut rogue = Rogue::start(&secret, &membership(3, "rogue", &me), &all);
    let peers = rogue.connected(2).await;
    for options in all {
        until(options, "GET /v1/nodes", |nodes| nodes.contains("rogue")).await;
    }

    // An operator's key out of its scope: refused by the node that is asked, and by every node that a member hands it to.
    let (id, envelope) = change("shop/printer", 1, &operator());
    let answer = ask(&one, "POST /v1/changes", &envelope.to_json()).await;
    assert!(
        answer.contains("403") && answer.contains("workloads:shop/till-*"),
        "{answer}"
    );
    let chief_id = chief().public().key_id().to_string();
    assert!(answer.contains(&chief_id), "who can help: {answer}");
    let hand_on = |id: String, envelope: &Envelope| Message::Envelope {
        id,
        age_ms: 0,
        envelope: envelope.to_json(),
    };
    rogue.send(&peers, &hand_on(id, &envelope));
    let (id, forged) = change("shop/till-0", 2, &secret);
    rogue.send(&peers, &hand_on(id, &forged));
    // The same way, in scope: so what was sent before was judged when this is there.
    let (id, good) = change("shop/till-1", 3, &operator());
    rogue.send(&peers, &hand_on(id, &good));
    for options in all {
        until(options, "GET /v1/pods", |pods| pods.contains("till-1")).await;
        let pods = ask(options, "GET /v1/pods", b"").await;
        assert!(!pods.contains("printer") && !pods.contains("till-0"), "{pods}");
    }

    // A member that makes vouchers: its friend is a member to nobody, whoever tells of it.
    let friend_secret = SecretKey::from_bytes([67; 32]);
    let friend = PeerId::from_ed25519(friend_secret.public().as_bytes());
    let voucher = Voucher {
        fabric: roots().fabric_id().clone(),
        id: "01KDVKFD000000000000000066".to_owned(),
        node: "friend".parse().unwrap(),
        cell: "shop".to_owned(),
        issued: NOW,
        expires: NOW.plus_seconds(3600),
        key: friend_secret.public(),
        admission: Way::Policy,
        ek: None,
    };
    let invented = voucher.sign(&[&secret]).unwrap();
    let credential = Membership::redeem(&invented, &friend_secret, &friend, Assurance::Low, NOW).unwrap();
    let info = MemberInfo {
        name: "friend".parse().unwrap(),
        assurance: beemesh_agent_api::view::Assurance::Low,
        voucher_id: voucher.id,
        redeemed: 0,
        credential: credential.to_bytes(),
        key: Default::default(),
    };
    rogue.send(&peers, &Message::Members(vec![(friend.clone(), info)]));
    let mut at_the_door = Rogue::start(&friend_secret, &credential, &all);
    let reason = at_the_door.refused().await;
    assert!(reason.contains("does not trust"), "{reason}");

    // Root documents: one that the rogue signed, and a chain without the last: nobody follows.
    let mut coup = limited().current().clone();
    coup.version = 3;
    let coup = coup.sign(&[&secret]).unwrap();
    rogue.send(&peers, &Message::Roots(vec![Blob(coup.to_json())]));
    rogue.send(
        &peers,
        &Message::Roots(vec![Blob(roots().envelopes()[0].to_json())]),
    );
    let pushed = ask(&one, "POST /v1/roots", &serde_json::to_vec(&[coup]).unwrap()).await;
    assert!(pushed.contains("403"), "{pushed}");
    let genuine = serde_json::to_vec(&[longer()]).unwrap();
    let pushed = ask(&one, "POST /v1/roots", &genuine).await;
    assert!(
        pushed.contains("200 OK") && pushed.contains("\"version\":3"),
        "{pushed}"
    );
    // The other hears it from the first, or from the rogue, or not at all: the rogue does not hand it on.
    rogue.send(&peers, &Message::Roots(vec![Blob(longer().to_json())]));
    for options in all {
        until(options, "GET /v1/roots", |roots| roots.contains("\"version\":3")).await;
    }
    let again = ask(
        &one,
        "POST /v1/roots",
        &serde_json::to_vec(chain(1).envelopes()).unwrap(),
    )
    .await;
    assert!(
        again.contains("\"version\":3") && again.contains("\"news\":false"),
        "{again}"
    );

    // Revoked at one node, it is let in by none: not by the one it was not connected to either.
    let mut snapshot = Revocations::none(roots().fabric_id().clone(), NOW.plus_seconds(2));
    snapshot.nodes.insert(me.clone());
    let snapshot = snapshot.sign(&[&operator()]).unwrap();
    let told = ask(&one, "POST /v1/revocations", &snapshot.to_json()).await;
    assert!(told.contains("202"), "{told}");
    for options in all {
        until(options, "GET /v1/revocations", |revoked| {
            revoked.contains(me.as_str())
        })
        .await;
    }
    // An older word takes nothing back.
    let older = Revocations::none(roots().fabric_id().clone(), NOW.plus_seconds(1));
    let replayed = ask(
        &two,
        "POST /v1/revocations",
        &older.sign(&[&operator()]).unwrap().to_json(),
    )
    .await;
    assert!(replayed.contains("202"), "{replayed}");
    drop(rogue);
    for options in all {
        let mut back = Rogue::start(&secret, &membership(3, "rogue", &me), &[options]);
        let reason = back.refused().await;
        assert!(reason.contains("was revoked"), "{reason}");
        let nodes = ask(options, "GET /v1/nodes", b"").await;
        assert!(!nodes.contains("rogue") && !nodes.contains("friend"), "{nodes}");
    }
    for agent in agents {
        assert!(!agent.is_finished());
        agent.abort();
    }
}

#[test]
fn member_with_a_valid_key_gets_nothing_past_the_others() {
    in_small_volume(256 << 20, |volume| {
        let up = std::process::Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap();
        assert!(up.success());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(3)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(90), attacks(volume))
                .await
                .unwrap();
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
    });
}
