//! A network of cells under one virtual clock: delays, losses, partitions, kills, restarts with what was persisted.
//!
//! Messages may overtake each other. After every command the invariants of `agent/sched/SPEC.md` are checked.

mod clock;
mod commands;
mod keys;
mod links;
mod power;
mod records;
mod view;

use crate::authority::Authority;
use crate::invariants::Invariants;
use crate::manifest::Wish;
use crate::network::Network;
use crate::traffic::Traffic;
use beemesh_agent_api::Change;
use beemesh_agent_api::view::Assurance;
use beemesh_agent_identity::rotation::Event as Step;
use beemesh_agent_sched::{Capacity, Cell, Event, Key, MemberInfo, Persisted, Stamp, Tuning};
use beemesh_firmware_measure::fake::FakeChip;
use beemesh_ids::{Digest, PeerId};
use beemesh_joinpack_format::{RevocationSet, Standing};
pub use keys::Keys;
pub(crate) use keys::{HANDSHAKE_US, VERIFY_US};
use rand::{SeedableRng, rngs::SmallRng};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Events for people that are remembered; all are counted.
const EVENTS: usize = 20_000;

/// A pod as the simulated runtime runs it.
#[derive(Debug, Clone)]
pub struct SimPod {
    /// Workload and ordinal.
    pub key: Key,
    /// What came with the start.
    pub stamp: Stamp,
    /// A leased copy is not counted until then: its agent was away, and nobody could fence it.
    pub uncounted_until: u64,
    stopping: bool,
}

/// A machine.
pub struct Node {
    /// Its peer id.
    pub peer: PeerId,
    /// Itself as a member.
    pub member: MemberInfo,
    /// What it has.
    pub capacity: Capacity,
    /// `None`: the agent does not run.
    pub cell: Option<Cell>,
    /// The machine is on: its pods run.
    pub powered: bool,
    /// What is on its disk, but for the founders.
    pub persisted: Persisted,
    /// What runs on it, by pod id.
    pub pods: BTreeMap<String, SimPod>,
    /// Side of the partition.
    pub side: u32,
    life: u64,
    clock_zero: u64,
    /// It stands still until then.
    pub paused_until: u64,
    /// Its link is busy until then, in microseconds.
    sends_until: u64,
    connected: BTreeSet<usize>,
    refused: BTreeSet<PeerId>,
    /// What it knows to be revoked.
    pub revoked: RevocationSet,
    /// The standing orders that it knows.
    pub standing: Standing,
    /// Its chain of root documents: each begins with its number in four digits.
    pub roots: Vec<Vec<u8>>,
    /// Its TPM, and what its registers hold.
    pub tpm: Option<(FakeChip, BTreeMap<u8, Digest>)>,
    /// It does not answer when it is asked what it booted.
    pub silent: bool,
    /// Its keys, in a world of [`World::of_members_with_keys`].
    pub keys: Option<Keys>,
    /// Its processor has work until then, in microseconds.
    works_until: u64,
}

enum What {
    Tick,
    Deliver {
        from: usize,
        from_life: u64,
        bytes: Vec<u8>,
    },
    Connect(usize),
    Disconnect(usize),
    Verified(Change, Vec<u8>),
    Member(PeerId, MemberInfo),
    PodRuns(String),
    PodGone(String),
    Revocations(Vec<u8>),
    Order(Vec<u8>),
    Roots(Vec<Vec<u8>>),
    Attested(PeerId, u64),
    Key(Step),
    Reached(usize),
}

/// A `Start` that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// When, by the world's clock.
    pub at: u64,
    /// Where.
    pub node: usize,
    /// Workload and ordinal.
    pub key: Key,
    /// Token of the grant.
    pub token: u64,
    /// Since the change was accepted or the loss noticed, by the node's own reckoning.
    pub after_ms: u64,
}

/// The world.
pub struct World {
    /// Nodes answer when they are asked what they booted.
    pub attests: bool,
    /// Virtual milliseconds.
    pub now: u64,
    /// The machines.
    pub nodes: Vec<Node>,
    /// The network.
    pub network: Network,
    /// What the cells are configured with.
    pub tuning: Tuning,
    /// All chance but that of the cells.
    pub rng: SmallRng,
    /// Starts that were seen.
    pub starts: Vec<Started>,
    /// (when, node, reason, object, message), the newest.
    pub events: VecDeque<(u64, usize, &'static str, String, String)>,
    /// (node, message) of those that are shown on its console, the first so many.
    pub alarms: Vec<(usize, String)>,
    /// What must hold.
    pub invariants: Invariants,
    /// Milliseconds from `Start` to running.
    pub start_ms: u64,
    /// What was said.
    pub traffic: Traffic,
    /// Who signs.
    pub authority: Authority,
    /// Members that all of these know from before.
    founders: Vec<(PeerId, MemberInfo)>,
    by_peer: HashMap<PeerId, usize>,
    /// What a credential of a member says: each was verified when it was made.
    credentials: HashMap<(PeerId, Vec<u8>), MemberInfo>,
    with_keys: bool,
    /// By millisecond, then in order.
    queue: BTreeMap<u64, VecDeque<(usize, u64, What)>>,
    told: BTreeMap<&'static str, usize>,
    ulid: u64,
    trace: u64,
}

impl World {
    /// A world without machines.
    pub fn new(seed: u64) -> Self {
        Self {
            attests: false,
            now: 1000,
            nodes: Vec::new(),
            network: Network::default(),
            tuning: Tuning::default(),
            rng: SmallRng::seed_from_u64(seed),
            starts: Vec::new(),
            events: VecDeque::new(),
            alarms: Vec::new(),
            invariants: Invariants::default(),
            start_ms: 200,
            traffic: Traffic::default(),
            authority: Authority::default(),
            founders: Vec::new(),
            by_peer: HashMap::new(),
            credentials: HashMap::new(),
            with_keys: false,
            queue: BTreeMap::new(),
            told: BTreeMap::new(),
            ulid: 0,
            trace: 0,
        }
    }

    /// A world of `count` nodes that know each other and have been running for a while.
    pub fn settled(seed: u64, count: usize) -> Self {
        let mut world = Self::new(seed);
        for _ in 0..count {
            world.join();
            world.run(300);
        }
        world.run(4000);
        world
    }

    /// A world of `count` nodes that have been members before and are all switched on together; none is yet connected.
    pub fn of_members(seed: u64, count: usize, network: Network) -> Self {
        Self::new(seed).with_members(count, network)
    }

    /// The same, of nodes whose keys and memberships are real ones and can be rotated.
    pub fn of_members_with_keys(seed: u64, count: usize, network: Network) -> Self {
        let mut world = Self::new(seed);
        world.with_keys = true;
        world.with_members(count, network)
    }

    fn with_members(self, count: usize, network: Network) -> Self {
        let mut world = self;
        world.network = network;
        for _ in 0..count {
            let n = world.add(|_| {});
            let node = &world.nodes[n];
            world.founders.push((node.peer.clone(), node.member.clone()));
        }
        (0..count).for_each(|n| world.boot(n));
        world
    }

    /// A digest of all that has happened.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    /// Adds a machine: admitted by a running one of side 0, or the founder.
    pub fn join(&mut self) -> usize {
        self.join_with(|_| {})
    }

    /// Tells a node what it has now.
    pub fn capacity(&mut self, n: usize, capacity: Capacity) {
        self.step(n, Event::Capacity(capacity));
    }

    /// A pod ends by itself.
    pub fn lose(&mut self, n: usize, pod_id: &str) {
        if self.nodes[n].pods.remove(pod_id).is_some() {
            self.step(
                n,
                Event::PodGone {
                    pod_id: pod_id.to_owned(),
                },
            );
        }
    }

    /// The same with another credential.
    pub fn join_with(&mut self, alter: impl FnOnce(&mut MemberInfo)) -> usize {
        let admitter = self
            .nodes
            .iter()
            .position(|node| node.cell.is_some() && node.side == 0);
        let n = self.add(alter);
        if let Some(admitter) = admitter {
            let host = &self.nodes[admitter];
            let known = (host.peer.clone(), host.member.clone());
            let node = &mut self.nodes[n];
            node.persisted.members.insert(known.0, known.1);
            let newcomer = What::Member(node.peer.clone(), node.member.clone());
            self.push(admitter, 1, newcomer);
        }
        self.boot(n);
        n
    }

    /// A machine that is off.
    fn add(&mut self, alter: impl FnOnce(&mut MemberInfo)) -> usize {
        let n = self.nodes.len();
        let mut key = [0; 32];
        // Spread as keys are: neighbours in one order are none in the other.
        key[..8].copy_from_slice(&(n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        let mut peer = PeerId::from_ed25519(&key);
        let mut member = MemberInfo {
            name: format!("node-{n}").parse().unwrap(),
            assurance: Assurance::Tpm,
            voucher_id: if n == 0 {
                String::new()
            } else {
                format!("voucher-{n}")
            },
            redeemed: n as u64,
            credential: format!("credential of {n}").into_bytes(),
            key: beemesh_agent_sched::KeyInfo::default(),
        };
        let mut keys = None;
        if self.with_keys {
            let admitted = self.admit(n);
            (peer, member) = (admitted.0, admitted.1);
            keys = Some(admitted.2);
        }
        alter(&mut member);
        self.by_peer.insert(peer.clone(), n);
        let name = (peer.clone(), member.credential.clone());
        self.credentials.insert(name, member.clone());
        self.nodes.push(Node {
            peer,
            member,
            capacity: Capacity {
                cpu_millis: 4000,
                memory_bytes: 4 << 30,
                images: ["web:1", "web:2"].map(str::to_owned).into(),
                ..Capacity::default()
            },
            cell: None,
            powered: false,
            persisted: Persisted::default(),
            pods: BTreeMap::new(),
            side: 0,
            life: 0,
            clock_zero: 0,
            paused_until: 0,
            sends_until: 0,
            connected: BTreeSet::new(),
            refused: BTreeSet::new(),
            revoked: RevocationSet::default(),
            standing: Standing::default(),
            roots: Vec::new(),
            tpm: None,
            silent: false,
            keys,
            works_until: 0,
        });
        n
    }

    /// An operator hands a change to node `n`.
    pub fn change(&mut self, n: usize, spec: Wish) {
        self.ulid += 1;
        let change = spec.into_change(self.ulid);
        let envelope = serde_json::to_vec(&change).unwrap();
        self.step(n, Event::Change { change, envelope });
    }
}
