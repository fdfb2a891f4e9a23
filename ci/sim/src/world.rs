//! A network of cells under one virtual clock: delays, losses, partitions, kills, restarts with what was persisted.
//!
//! Messages may overtake each other. After every command the invariants of `agent/sched/SPEC.md` are checked.

mod keys;
mod records;
mod view;

use crate::authority::Authority;
use crate::invariants::Invariants;
use crate::manifest::Wish;
use crate::network::Network;
use crate::traffic::Traffic;
use beemesh_agent_api::Change;
use beemesh_agent_api::shim::Phase;
use beemesh_agent_api::view::Assurance;
use beemesh_agent_identity::rotation::Event as Step;
use beemesh_agent_sched::{
    Capacity, Cell, CellConfig, Command, Event, Key, MemberInfo, Millis, Persisted, PodReport, Record,
    RecoveredPod, Stamp, Tuning,
};
use beemesh_firmware_measure::fake::FakeChip;
use beemesh_ids::{Digest, PeerId};
use beemesh_joinpack_format::{RevocationSet, Standing};
pub use keys::Keys;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
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
            node.persisted.members.push(known);
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

    /// Switches a machine on, or starts its agent again.
    pub fn boot(&mut self, n: usize) {
        let seed = self.rng.random();
        let offset = self.rng.random_range(0..500);
        let node = &mut self.nodes[n];
        assert!(node.cell.is_none());
        node.powered = true;
        node.life += 1;
        // A monotonic clock begins anew with each machine; nothing may depend on its value.
        node.clock_zero = self.now.saturating_sub(offset);
        let config = CellConfig {
            me: node.peer.clone(),
            member: node.member.clone(),
            seed,
            tuning: self.tuning.clone(),
        };
        let mut persisted = node.persisted.clone();
        persisted.members.extend(self.founders.iter().cloned());
        node.cell = Some(Cell::new(config, persisted, Millis(offset)));
        for pod in node.pods.values_mut().filter(|pod| pod.stamp.leased) {
            pod.uncounted_until = self.now + self.tuning.fence_ms + 500;
        }
        let (capacity, pods) = (node.capacity.clone(), node.pods.clone());
        let pods = pods.into_iter().map(|(pod_id, pod)| RecoveredPod {
            pod_id,
            workload: pod.key.0,
            ordinal: pod.key.1,
            stamp: pod.stamp,
        });
        let pods: Vec<_> = pods.collect();
        let ids: Vec<String> = pods.iter().map(|pod| pod.pod_id.clone()).collect();
        self.step(n, Event::Capacity(capacity));
        self.step(n, Event::Recovered { pods });
        let news = self.revocation_news(n);
        self.step(n, Event::Revocations(news));
        let orders = self.order_news(n);
        self.step(n, Event::Orders(orders));
        self.resume_keys(n);
        for id in ids {
            self.push(n, 20, What::PodRuns(id));
        }
        let first = self.rng.random_range(1..=100);
        self.push(n, first, What::Tick);
        for other in 0..self.nodes.len() {
            self.link(n, other);
        }
    }

    /// Pulls the plug.
    pub fn kill(&mut self, n: usize) {
        self.invariants.failed = true;
        self.stop_agent(n);
        let node = &mut self.nodes[n];
        node.powered = false;
        node.pods.clear();
    }

    /// Ends the agent; its pods run on.
    pub fn stop_agent(&mut self, n: usize) {
        self.nodes[n].cell = None;
        self.nodes[n].life += 1;
        self.nodes[n].connected.clear();
        for other in 0..self.nodes.len() {
            if self.nodes[other].connected.contains(&n) {
                let after = self.rng.random_range(50..6000);
                self.push(other, after, What::Disconnect(n));
            }
        }
    }

    /// A machine stands still for a while: it reads its queue later.
    pub fn pause(&mut self, n: usize, ms: u64) {
        self.invariants.failed = true;
        self.nodes[n].paused_until = self.now + ms;
    }

    /// Cuts the network: nodes reach only those of the same side.
    pub fn partition(&mut self, sides: &[u32]) {
        self.invariants.failed = true;
        for (node, side) in self.nodes.iter_mut().zip(sides) {
            node.side = *side;
        }
        for a in 0..self.nodes.len() {
            for b in 0..self.nodes.len() {
                if self.nodes[a].side != self.nodes[b].side && self.nodes[a].connected.contains(&b) {
                    let after = self.rng.random_range(1000..10_000);
                    self.push(a, after, What::Disconnect(b));
                }
            }
        }
    }

    /// Puts the network together again.
    pub fn heal(&mut self) {
        for node in &mut self.nodes {
            node.side = 0;
        }
        for a in 0..self.nodes.len() {
            for b in 0..a {
                self.link(a, b);
            }
        }
    }

    fn link(&mut self, a: usize, b: usize) {
        if a != b && self.reachable(a, b) {
            let after = self.rng.random_range(20..300);
            self.push(a, after, What::Connect(b));
            self.push(b, after, What::Connect(a));
        }
    }

    fn reachable(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.nodes[a], &self.nodes[b]);
        a.cell.is_some() && b.cell.is_some() && a.side == b.side
    }

    /// An operator hands a change to node `n`.
    pub fn change(&mut self, n: usize, spec: Wish) {
        self.ulid += 1;
        let change = spec.into_change(self.ulid);
        let envelope = serde_json::to_vec(&change).unwrap();
        self.step(n, Event::Change { change, envelope });
    }

    /// Lets `ms` pass.
    pub fn run(&mut self, ms: u64) {
        let until = self.now + ms;
        while let Some(mut entry) = self.queue.first_entry() {
            let at = *entry.key();
            if at > until {
                break;
            }
            self.now = self.now.max(at);
            match entry.get_mut().pop_front() {
                Some((n, life, what)) => self.happen(n, life, what),
                None => drop(entry.remove()),
            }
        }
        self.now = until;
    }

    /// Lets time pass until `done`, at most `ms`; how long it took.
    pub fn run_until(&mut self, ms: u64, mut done: impl FnMut(&Self) -> bool) -> Option<u64> {
        let began = self.now;
        while self.now < began + ms {
            if done(self) {
                return Some(self.now - began);
            }
            self.run(10);
        }
        done(self).then_some(self.now - began)
    }

    fn push(&mut self, n: usize, after: u64, what: What) {
        let life = self.nodes[n].life;
        self.enqueue(after, n, life, what);
    }

    fn enqueue(&mut self, after: u64, n: usize, life: u64, what: What) {
        let at = self.queue.entry(self.now + after).or_default();
        at.push_back((n, life, what));
    }

    fn happen(&mut self, n: usize, life: u64, what: What) {
        if self.nodes[n].paused_until > self.now {
            // A paused machine reads its queue later.
            let after = self.nodes[n].paused_until - self.now;
            self.enqueue(after, n, life, what);
            return;
        }
        let of_machine = matches!(what, What::PodRuns(_) | What::PodGone(_));
        if !of_machine && (self.nodes[n].cell.is_none() || self.nodes[n].life != life) {
            return;
        }
        match what {
            What::Tick => {
                self.step(n, Event::Tick);
                self.tick_keys(n);
                let (longest, often) = self.network.hiccup;
                if self.rng.random_range(0..1000) < often {
                    self.nodes[n].paused_until = self.now + self.rng.random_range(1..=longest);
                }
                self.push(n, 100, What::Tick);
            }
            What::Deliver {
                from,
                from_life,
                bytes,
            } => {
                // A connection does not outlive its ends.
                if self.nodes[from].life == from_life
                    && self.reachable(n, from)
                    && self.nodes[n].connected.contains(&from)
                {
                    let from = self.nodes[from].peer.clone();
                    self.step(n, Event::Message { from, bytes });
                }
            }
            What::Connect(other) => {
                let (peer, member) = (self.nodes[other].peer.clone(), self.nodes[other].member.clone());
                if self.reachable(n, other) && !self.nodes[n].refused.contains(&peer) {
                    if self.network.handshake {
                        self.step(
                            n,
                            Event::Member {
                                peer: peer.clone(),
                                member,
                            },
                        );
                    }
                    if !self.nodes[n].refused.contains(&peer) {
                        self.nodes[n].connected.insert(other);
                        self.step(n, Event::Connected { peer });
                    }
                }
            }
            What::Disconnect(other) => {
                if !self.reachable(n, other) && self.nodes[n].connected.remove(&other) {
                    let peer = self.nodes[other].peer.clone();
                    self.step(n, Event::Disconnected { peer });
                }
            }
            What::Verified(change, envelope) => self.step(n, Event::Change { change, envelope }),
            What::Member(peer, member) => self.step(n, Event::Member { peer, member }),
            What::Revocations(envelope) => self.learn_revocations(n, &envelope),
            What::Order(envelope) => self.learn_order(n, &envelope),
            What::Roots(documents) => self.learn_roots(n, documents),
            What::Key(step) => self.key_done(n, step),
            What::Reached(other) => self.reached(n, other),
            What::Attested(peer, round) => {
                let report = self.ask(n, &peer);
                self.step(n, Event::Attested { peer, round, report });
            }
            What::PodRuns(pod_id) => {
                if self.nodes[n].pods.get(&pod_id).is_some_and(|pod| !pod.stopping)
                    && self.nodes[n].cell.is_some()
                {
                    let state = PodReport {
                        phase: Phase::Running,
                        ready: true,
                        start_ms: Some(1),
                        ..PodReport::default()
                    };
                    self.step(n, Event::Pod { pod_id, state });
                }
            }
            What::PodGone(pod_id) => {
                if self.nodes[n].pods.remove(&pod_id).is_some() && self.nodes[n].cell.is_some() {
                    self.step(n, Event::PodGone { pod_id });
                }
            }
        }
    }

    fn step(&mut self, n: usize, event: Event) {
        let local = Millis(self.now - self.nodes[n].clock_zero);
        let Some(cell) = self.nodes[n].cell.as_mut() else {
            return;
        };
        let commands = cell.step(local, event);
        self.mix_bytes(&self.now.to_be_bytes());
        self.mix_bytes(&[n.to_be_bytes(), commands.len().to_be_bytes()].concat());
        for command in commands {
            self.execute(n, local, command);
        }
    }

    fn mix(&mut self, what: &impl std::fmt::Debug) {
        self.mix_bytes(format!("{what:?}").as_bytes());
    }

    fn mix_bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.trace = (self.trace ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Milliseconds until a message of so many bytes arrives, once it has been sent.
    fn delay(&mut self, n: usize, bytes: usize) -> u64 {
        let Network {
            min_ms,
            max_ms,
            tail: (longest, slow),
            bandwidth,
            ..
        } = self.network;
        let mut after = self.rng.random_range(min_ms..=max_ms);
        if slow > 0 && self.rng.random_range(0..1000) < slow {
            after = self.rng.random_range(after..=longest.max(after));
        }
        let node = &mut self.nodes[n];
        if let Some(needs) = (bytes as u64 * 1000).checked_div(bandwidth) {
            node.sends_until = node.sends_until.max(self.now * 1000) + needs;
            after += (node.sends_until / 1000).saturating_sub(self.now);
        }
        after
    }

    fn execute(&mut self, n: usize, local: Millis, command: Command) {
        match command {
            Command::Send { to, bytes } => {
                self.traffic.count(n, &bytes);
                self.invariants.message(&bytes);
                self.mix_bytes(&bytes.len().to_be_bytes());
                let to = *self.by_peer.get(&to).expect("sent to nobody");
                if self.rng.random_range(0..1000) < self.network.lost
                    || !self.nodes[n].connected.contains(&to)
                {
                    return;
                }
                let weight = bytes.len() + self.credentials_in(n, &bytes);
                let after = self.delay(n, weight);
                let from_life = self.nodes[n].life;
                self.push(
                    to,
                    after,
                    What::Deliver {
                        from: n,
                        from_life,
                        bytes,
                    },
                );
            }
            Command::VerifyChange { envelope } => {
                let change = serde_json::from_slice(&envelope).expect("only what was signed is handed on");
                self.push(n, 1, What::Verified(change, envelope));
            }
            Command::VerifyMember { peer, credential } => {
                let name = (peer, credential);
                let member = self.credentials.get(&name).expect("no such member").clone();
                let after = match self.with_keys {
                    true => self.busy(n, 0, keys::VERIFY_US),
                    false => 1,
                };
                self.push(n, after, What::Member(name.0, member));
            }
            Command::VerifyRevocations { envelope } => self.push(n, 1, What::Revocations(envelope)),
            Command::VerifyRoots { documents } => self.push(n, 1, What::Roots(documents)),
            Command::VerifyOrder { envelope } => self.push(n, 1, What::Order(envelope)),
            Command::Attest { peer, round, .. } if self.attests => {
                self.push(n, 50, What::Attested(peer, round))
            }
            // Nobody answers: that is asked rarely.
            Command::Attest { .. } => {}
            Command::Quarantine { peer, .. } | Command::Revoked { peer } => {
                self.nodes[n].refused.insert(peer.clone());
                if let Some(other) = self.by_peer.get(&peer) {
                    self.nodes[n].connected.remove(other);
                }
            }
            Command::Start {
                pod_id,
                workload,
                ordinal,
                stamp,
                accepted_at,
                ..
            } => {
                let token = stamp.token;
                let key = (workload, ordinal);
                let after_ms = local.since(accepted_at);
                self.mix(&(&pod_id, &key, token));
                self.starts.push(Started {
                    at: self.now,
                    node: n,
                    key: key.clone(),
                    token,
                    after_ms,
                });
                let pod = SimPod {
                    key: key.clone(),
                    stamp,
                    uncounted_until: 0,
                    stopping: false,
                };
                assert!(
                    self.nodes[n].pods.insert(pod_id.clone(), pod).is_none(),
                    "pod id used twice"
                );
                self.push(n, self.start_ms, What::PodRuns(pod_id));
                let now = self.now;
                self.invariants.started(&self.nodes, n, &key, token, now);
            }
            Command::Stop { pod_id, .. } => {
                if let Some(pod) = self.nodes[n].pods.get_mut(&pod_id)
                    && !std::mem::replace(&mut pod.stopping, true)
                {
                    let after = self.rng.random_range(20..400);
                    self.push(n, after, What::PodGone(pod_id));
                }
            }
            Command::Persist(record) => {
                self.mix(&record);
                if let Record::Grant(grant) = &record {
                    self.invariants.promised(n, grant);
                }
                if let Record::Member(peer, info) = &record
                    && info.key.generation > 0
                    && let Some(of) = self.by_peer.get(peer)
                    && let Some(keys) = &mut self.nodes[n].keys
                {
                    keys.hear(*of, info.key.generation);
                }
                self.nodes[n].persisted.apply(record);
            }
            Command::Emit {
                alarm,
                reason,
                object,
                message,
            } => {
                *self.told.entry(reason).or_default() += 1;
                if alarm && self.alarms.len() < EVENTS {
                    self.alarms.push((n, message.clone()));
                }
                if self.events.len() == EVENTS {
                    self.events.pop_front();
                }
                self.events.push_back((self.now, n, reason, object, message));
            }
        }
    }
}
