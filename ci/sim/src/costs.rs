//! What signatures and connections cost on this machine: the shipped code, timed. Real time and real sockets on 127.0.0.1.
//!
//! The worlds do not use it: they count what is written there ([`crate::world`]), the same on every machine. Shows how far that is
//! from what was measured.

use crate::Authority;
use crate::world::{HANDSHAKE_US, VERIFY_US};
use beemesh_agent_fabric::{Credentials, Fabric, FabricConfig, FabricEvent};
use beemesh_agent_identity::MembershipAdmission;
use beemesh_ids::PeerId;
use beemesh_joinpack_format::{Member, Membership, Rotation, SecretKey};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Verifications that are timed one by one.
const TIMES: usize = 2000;
/// Members that a node with a new key connects to in one round.
const MEMBERS: usize = 16;
/// Rounds by each transport.
const ROUNDS: usize = 3;
/// Before and after a change of the key, so that nothing else is counted, and nothing that belongs to it is left out.
const REST: Duration = Duration::from_millis(1500);
/// A round takes no longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A cost.
#[derive(Debug, Clone)]
pub struct Cost {
    /// Of what.
    pub what: &'static str,
    /// Median, in microseconds.
    pub median_us: f64,
    /// Least and greatest.
    pub range_us: (f64, f64),
    /// What the worlds count for it.
    pub counted_us: Option<u64>,
}

impl Cost {
    fn of(what: &'static str, counted_us: Option<u64>, mut all: Vec<f64>) -> Self {
        all.sort_by(f64::total_cmp);
        let at = |n: usize| all.get(n).copied().unwrap_or_default();
        Self {
            what,
            median_us: at(all.len() / 2),
            range_us: (at(0), at(all.len().saturating_sub(1))),
            counted_us,
        }
    }
}

/// A node that has rotated its key once.
struct Rotated {
    first: SecretKey,
    second: SecretKey,
    before: Membership,
    after: Membership,
}

fn peer(key: &SecretKey) -> PeerId {
    PeerId::from_ed25519(key.public().as_bytes())
}

fn rotated(authority: &mut Authority, number: u8) -> Rotated {
    let [first, second] = [1, 101].map(|from| SecretKey::from_bytes([from + number; 32]));
    let before = authority.admit(usize::from(number), &peer(&first));
    let member = before.verify(&authority.roots, &peer(&first)).unwrap();
    let order = authority.order();
    let mut standing = beemesh_joinpack_format::Standing::default();
    standing
        .take(&order, &authority.roots, beemesh_joinpack_format::Source::Member)
        .unwrap();
    let order = standing.keys.newest_for(&peer(&first)).unwrap().to_owned();
    let fabric = authority.roots.fabric_id();
    let rotation = member.keys.next(fabric, peer(&second), order, authority.now());
    let mut after = before.clone();
    after
        .rotations
        .push(rotation.unwrap().sign(&first, &second).unwrap());
    Rotated {
        first,
        second,
        before,
        after,
    }
}

/// Times what is verified and what is connected.
///
/// # Panics
/// What should hold does not, or no connection comes about in 20 s.
pub fn measure() -> Vec<Cost> {
    let mut authority = Authority::default();
    let node = rotated(&mut authority, 0);
    let bytes = node.after.to_bytes();
    let key = peer(&node.second);
    let rotation = &node.after.rotations[0];
    let mut costs = vec![
        timed("proof of one rotation verified (2 signatures)", None, || {
            Rotation::verify(rotation).unwrap();
        }),
        timed(
            "membership with it read and verified (4 signatures)",
            Some(VERIFY_US),
            || {
                let membership = Membership::parse(&bytes).unwrap();
                membership.verify(&authority.roots, &key).unwrap();
            },
        ),
    ];
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    for (what, transport) in [
        ("connection by tcp with a new key, each end", "tcp"),
        ("connection by quic with a new key, each end", "quic"),
    ] {
        let round = |_| runtime.block_on(connections(transport));
        let all = (0..ROUNDS).map(round).collect();
        costs.push(Cost::of(what, Some(HANDSHAKE_US), all));
    }
    costs
}

fn timed(what: &'static str, counted_us: Option<u64>, act: impl Fn()) -> Cost {
    let once = |_| {
        let start = Instant::now();
        act();
        start.elapsed().as_secs_f64() * 1e6
    };
    (0..TIMES / 10).map(once).for_each(drop);
    Cost::of(what, counted_us, (0..TIMES).map(once).collect())
}

/// Processor time of all threads of this process, in microseconds.
fn processor_us() -> f64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    Duration::from(time).as_secs_f64() * 1e6
}

/// Processor time that a connection costs each of its ends, in microseconds, when a node goes on to its next key and all members
/// are connected with it: handshake, credentials and their verification; a part of what the change itself costs is in it.
async fn connections(transport: &str) -> f64 {
    let mut authority = Authority::default();
    let nodes: Vec<Rotated> = (0..=MEMBERS as u8).map(|n| rotated(&mut authority, n)).collect();
    let roots = Arc::new(RwLock::new(authority.roots.clone()));
    let start = |node: &Rotated| {
        let key = peer(&node.first);
        let own: Member = node.before.verify(&authority.roots, &key).unwrap();
        listen(
            &node.first,
            &node.before,
            MembershipAdmission::new(Arc::clone(&roots), own),
        )
    };
    let (node, mut events, _) = start(&nodes[0]);
    let mut members: Vec<_> = nodes[1..].iter().map(start).collect();
    for (_, _, port) in &members {
        let address = match transport {
            "tcp" => format!("/ip4/127.0.0.1/tcp/{port}"),
            _ => format!("/ip4/127.0.0.1/udp/{port}/quic-v1"),
        };
        node.dial(&address).unwrap();
    }
    // They tell each other of the others: the mesh is whole before anything is measured.
    let whole = async {
        let is_whole = |fabric: &Fabric| fabric.connected().len() == MEMBERS;
        while !(is_whole(&node) && members.iter().all(|(fabric, ..)| is_whole(fabric))) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let whole = tokio::time::timeout(PATIENCE, whole).await;
    whole.expect("the mesh is not whole after 20 s");
    tokio::time::sleep(2 * REST).await;
    let start = processor_us();
    tokio::time::sleep(REST).await;
    let idle = processor_us() - start;
    while events.try_recv().is_ok() {}
    for (_, events, _) in &mut members {
        while events.try_recv().is_ok() {}
    }
    let start = processor_us();
    let credentials = Credentials {
        secret: nodes[0].second.to_bytes(),
        generation: 1,
        credential: nodes[0].after.to_bytes(),
    };
    node.change_key(credentials).await.unwrap();
    all_connected(node.peer_id(), &mut events, &mut members).await;
    tokio::time::sleep(REST).await;
    // At rest they keep their connections alive: that is not counted.
    (processor_us() - start - idle) / (2 * MEMBERS) as f64
}

type Listening = (Fabric, mpsc::Receiver<FabricEvent>, u16);

fn listen(key: &SecretKey, membership: &Membership, admission: MembershipAdmission) -> Listening {
    let admission = Arc::new(admission);
    let address = IpAddr::from(Ipv4Addr::LOCALHOST);
    for _ in 0..20 {
        let free = std::net::TcpListener::bind((address, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let config = FabricConfig {
            credentials: Credentials {
                secret: key.to_bytes(),
                generation: 0,
                credential: membership.to_bytes(),
            },
            node: None,
            admission: admission.clone(),
            listen_port: port,
            bootstrap: Vec::new(),
            mdns: false,
        };
        if let Ok((fabric, events)) = Fabric::start_on(config, &[address]) {
            return (fabric, events, port);
        }
    }
    panic!("no free port on 127.0.0.1 in 20 attempts");
}

/// Waits until the node has heard of a new connection with each member, and each member of one with the node.
async fn all_connected(node: &PeerId, events: &mut mpsc::Receiver<FabricEvent>, members: &mut [Listening]) {
    let all = async {
        let mut count = 0;
        while count < MEMBERS {
            let event = events.recv().await.expect("the fabric stopped");
            count += usize::from(matches!(event, FabricEvent::Connected { .. }));
        }
        for (_, events, _) in members {
            let is_node = |event| matches!(event, FabricEvent::Connected { peer, .. } if peer == *node);
            while !is_node(events.recv().await.expect("the fabric stopped")) {}
        }
    };
    let waited = tokio::time::timeout(PATIENCE, all).await;
    waited.expect("not all members are connected after 20 s");
}
