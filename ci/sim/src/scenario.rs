//! What was promised, played on a cell and measured in virtual time.
//!
//! Each scenario is a function of the number of nodes and a seed, and of nothing else. The network is [`Network::site`]. What
//! the invariants of the world forbid ends a scenario with a panic; a promise that is missed stands in [`Outcome::missed`].

use crate::{Delays, Network, Spread, World, deployment, workload};
use rand::RngExt;
use serde::Serialize;
use std::collections::BTreeMap;

/// A revocation reaches all connected nodes within this, in milliseconds.
pub const REVOCATION_MS: u64 = 10_000;
/// 99 of 100 pods: accepted change to the command to start, in milliseconds (requirement P1).
pub const PLACEMENT_MS: u64 = 500;
/// After a partition heals, and after half of the nodes were killed: all is right again within this (P3, P4).
pub const HEAL_MS: u64 = 60_000;
/// Every node of a cell has another key, and every other one knows it, within this.
pub const ROTATION_MS: u64 = 60_000;
/// Switched on to each connected with each, with time to spare.
const SETTLE_MS: u64 = 4000;
/// For how long an idle cell is listened to.
const IDLE_MS: u64 = 1000;

/// What is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scenario {
    /// One of twenty nodes is off; a node is revoked at another; those that were off return.
    Revocation,
    /// One of twenty nodes is off; an order to rotate all keys is given; the power of a few fails meanwhile; the others return.
    Rotation,
    /// A change is handed to a node.
    Change,
    /// Twenty changes of five pods each, handed to different nodes, half a second apart.
    Placement,
    /// The cell falls into two or three parts for half a minute, each of which takes a change.
    Partition,
    /// Half of the nodes are killed at once.
    Half,
    /// Partitions, kills, restarts, pauses and changes by chance, then rest.
    Faults,
}

impl Scenario {
    /// All, in the order in which they are played.
    pub const ALL: [Self; 7] = [
        Self::Revocation,
        Self::Rotation,
        Self::Change,
        Self::Placement,
        Self::Partition,
        Self::Half,
        Self::Faults,
    ];

    /// As it is named on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Revocation => "revocation",
            Self::Rotation => "rotation",
            Self::Change => "change",
            Self::Placement => "placement",
            Self::Partition => "partition",
            Self::Half => "half",
            Self::Faults => "faults",
        }
    }

    /// The scenario of this name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scenario| scenario.name() == name)
    }

    /// Plays it. Panics where an invariant does not hold.
    pub fn play(self, nodes: usize, seed: u64) -> Outcome {
        match self {
            Self::Revocation => revocation(nodes, seed),
            Self::Rotation => rotation(nodes, seed),
            Self::Change => change(nodes, seed),
            Self::Placement => placement(nodes, seed),
            Self::Partition => partition(nodes, seed),
            Self::Half => half(nodes, seed),
            Self::Faults => faults(nodes, seed),
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// What was played.
    pub scenario: Scenario,
    /// Nodes.
    pub nodes: usize,
    /// Seed.
    pub seed: u64,
    /// What the scenario measures, in virtual milliseconds.
    pub delays: Delays,
    /// What else was counted.
    pub figures: BTreeMap<&'static str, f64>,
    /// The promise that was missed, in words.
    pub missed: Option<String>,
    /// Digest of all that happened: the same for the same seed.
    pub trace: String,
}

impl Outcome {
    fn new(scenario: Scenario, world: &World, seed: u64, delays: Delays, limit_ms: u64) -> Self {
        let missed =
            (delays.max > limit_ms).then(|| format!("{} ms, promised are {limit_ms} ms", delays.max));
        let copies = world.invariants.most_copies as f64;
        Self {
            scenario,
            nodes: world.nodes.len(),
            seed,
            delays,
            figures: BTreeMap::from([("copies at most", copies)]),
            missed,
            trace: format!("{:016x}", world.trace()),
        }
    }

    fn figure(&mut self, name: &'static str, value: f64) {
        self.figures.insert(name, (value * 10.0).round() / 10.0);
    }

    fn of_spread(scenario: Scenario, world: &World, seed: u64, spread: &Spread, limit_ms: u64) -> Self {
        let mut outcome = Self::new(
            scenario,
            world,
            seed,
            Delays::of(spread.reached.clone()),
            limit_ms,
        );
        if spread.missing > 0 {
            outcome.missed = Some(format!(
                "{} nodes have not got it in {limit_ms} ms",
                spread.missing
            ));
        }
        outcome
    }
}

/// A cell that has come to rest, and what an idle node says: messages and bytes a second.
fn settled(nodes: usize, seed: u64, off: usize) -> (World, Vec<usize>, (f64, f64)) {
    let mut world = World::of_members(seed, nodes, Network::site());
    let off = settle(&mut world, off);
    let before = world.traffic.clone();
    world.run(IDLE_MS);
    let said = world.traffic.since(&before);
    let on = (nodes - off.len()) as f64 * IDLE_MS as f64 / 1000.0;
    (world, off, (said.messages as f64 / on, said.bytes as f64 / on))
}

/// Switches `off` of the nodes off, and lets the others come to rest.
fn settle(world: &mut World, off: usize) -> Vec<usize> {
    let off: Vec<usize> = shuffled(world).into_iter().take(off).collect();
    off.iter().for_each(|n| world.kill(*n));
    world.run(SETTLE_MS);
    off
}

/// All nodes in a random order.
fn shuffled(world: &mut World) -> Vec<usize> {
    let mut all: Vec<usize> = (0..world.nodes.len()).collect();
    for n in (1..all.len()).rev() {
        all.swap(n, world.rng.random_range(0..=n));
    }
    all
}

fn is_on(world: &World, n: usize) -> bool {
    world.nodes[n].cell.is_some()
}

fn revocation(nodes: usize, seed: u64) -> Outcome {
    let (mut world, off, idle) = settled(nodes, seed, nodes / 20);
    let on: Vec<usize> = shuffled(&mut world)
        .into_iter()
        .filter(|n| is_on(&world, *n))
        .collect();
    let (told, revoked) = (on[0], on[1]);
    let peer = world.nodes[revoked].peer.clone();
    let concerns = |world: &World, n: usize| n != revoked && is_on(world, n);
    let revoke = |world: &mut World| world.revoke(told, revoked);
    let spread = world.spread(3 * REVOCATION_MS, revoke, concerns, |node| {
        node.revoked.has_node(&peer)
    });
    let returned = world.spread(
        3 * REVOCATION_MS,
        |world| off.iter().for_each(|n| world.boot(*n)),
        |_, n| off.contains(&n),
        |node| node.revoked.has_node(&peer),
    );
    let mut outcome = Outcome::of_spread(Scenario::Revocation, &world, seed, &spread, REVOCATION_MS);
    let (sent, bytes) = spread.traffic.of("Revocations");
    outcome.figure("snapshots per node", sent as f64 / on.len() as f64);
    outcome.figure("bytes of snapshots per node", bytes as f64 / on.len() as f64);
    outcome.figure("idle messages per node and s", idle.0);
    outcome.figure("idle bytes per node and s", idle.1);
    outcome.figure(
        "returned nodes: last after ms",
        Delays::of(returned.reached).max as f64,
    );
    if returned.missing > 0 {
        outcome.missed = Some(format!(
            "{} nodes that returned have not got it",
            returned.missing
        ));
    }
    outcome
}

/// A node is done when its old key is gone and it knows the new key of every node that is on.
fn rotation(nodes: usize, seed: u64) -> Outcome {
    /// The power fails so long after the order, and comes back so long after that.
    const CUT_MS: u64 = 2000;
    const DARK_MS: u64 = 1000;
    let mut world = World::of_members_with_keys(seed, nodes, Network::site());
    let off = settle(&mut world, nodes / 20);
    let on: Vec<usize> = shuffled(&mut world)
        .into_iter()
        .filter(|n| is_on(&world, *n))
        .collect();
    world.change(on[0], deployment("web", 20));
    // As long as it is not known whether those that are off are dead, nothing is placed.
    let started = world.run_until(ROTATION_MS, |world| world.runs_exactly(&workload("web"), 20));
    let pods = world.starts.len();
    let mut cut = Vec::new();
    let order = |world: &mut World| {
        world.order_rotation(on[0]);
        world.run(CUT_MS);
        let rotates = |n: &usize| {
            let node = &world.nodes[*n];
            node.pods.is_empty() && node.keys.as_ref().is_some_and(crate::Keys::is_busy)
        };
        cut = on
            .iter()
            .copied()
            .filter(rotates)
            .take(nodes.div_ceil(200))
            .collect();
        cut.iter().for_each(|n| world.kill(*n));
        world.run(DARK_MS);
        cut.iter().for_each(|n| world.boot(*n));
    };
    let done = |of: usize| {
        move |node: &crate::Node| {
            let done = |keys: &crate::Keys| keys.generation() == 1 && !keys.is_busy() && keys.heard() == of;
            node.keys.as_ref().is_some_and(done)
        }
    };
    let spread = world.spread(2 * ROTATION_MS, order, is_on, done(on.len()));
    let returned = world.spread(
        2 * ROTATION_MS,
        |world| off.iter().for_each(|n| world.boot(*n)),
        is_on,
        done(nodes),
    );
    let mut outcome = Outcome::of_spread(Scenario::Rotation, &world, seed, &spread, ROTATION_MS);
    outcome.figure("power cut in the middle", cut.len() as f64);
    let lists = ["Keys", "Members"].map(|kind| spread.traffic.of(kind));
    outcome.figure("lists of keys per node", lists[0].0 as f64 / on.len() as f64);
    outcome.figure("bytes of them per node", lists[0].1 as f64 / on.len() as f64);
    outcome.figure(
        "messages with credentials per node",
        lists[1].0 as f64 / on.len() as f64,
    );
    let late = Delays::of(returned.reached).max;
    outcome.figure("returned nodes: all done after ms", late as f64);
    if returned.missing > 0 || late > ROTATION_MS {
        let missing = returned.missing;
        outcome.missed = Some(format!(
            "after nodes returned, {missing} nodes were never done and the last after {late} ms"
        ));
    }
    if started.is_none() {
        outcome.missed = Some("the pods did not start".to_owned());
    } else if world.starts.len() != pods {
        outcome.missed = Some(format!("{} pods were started again", world.starts.len() - pods));
    }
    outcome
}

fn change(nodes: usize, seed: u64) -> Outcome {
    let (mut world, ..) = settled(nodes, seed, 0);
    let told = world.rng.random_range(0..nodes);
    let apply = |world: &mut World| world.change(told, deployment("web", 1));
    let knows = |node: &crate::Node| {
        node.cell
            .as_ref()
            .is_some_and(|cell| cell.changes().next().is_some())
    };
    let spread = world.spread(3 * REVOCATION_MS, apply, is_on, knows);
    let mut outcome = Outcome::of_spread(Scenario::Change, &world, seed, &spread, REVOCATION_MS);
    let (sent, bytes) = spread.traffic.of("Envelope");
    outcome.figure("envelopes per node", sent as f64 / nodes as f64);
    outcome.figure("bytes of envelopes per node", bytes as f64 / nodes as f64);
    outcome
}

fn placement(nodes: usize, seed: u64) -> Outcome {
    const CHANGES: usize = 20;
    let (mut world, _, idle) = settled(nodes, seed, 0);
    let (began, before) = (world.now, world.traffic.clone());
    for n in 0..CHANGES {
        let told = world.rng.random_range(0..nodes);
        world.change(told, deployment(&format!("w{n}"), 5));
        world.run(500);
    }
    world.run(3000);
    let said = world.traffic.since(&before);
    let delays = Delays::of(world.starts.iter().map(|start| start.after_ms).collect());
    let (pods, p99) = (delays.count as f64, delays.p99);
    let mut outcome = Outcome::new(Scenario::Placement, &world, seed, delays, u64::MAX);
    let idle = idle.0 * nodes as f64 * (world.now - began) as f64 / 1000.0;
    outcome.figure("messages per pod", (said.messages as f64 - idle).max(0.0) / pods);
    let placing = [
        "Probe",
        "Offer",
        "Unreserve",
        "Assign",
        "Declined",
        "Claim",
        "Verdict",
    ];
    let placing: u64 = placing.iter().map(|kind| said.of(kind).0).sum();
    outcome.figure("of them probes, offers, claims", placing as f64 / pods);
    if p99 > PLACEMENT_MS {
        outcome.missed = Some(format!("p99 {p99} ms, promised are {PLACEMENT_MS} ms"));
    }
    if outcome.delays.count != CHANGES * 5 {
        outcome.missed = Some(format!("{} starts of {} pods", outcome.delays.count, CHANGES * 5));
    }
    outcome
}

/// Whether everything that is wanted runs once and all nodes know the same changes.
fn is_right(world: &World, wanted: &[(String, u32)], changes: usize) -> bool {
    let runs = |(name, replicas): &(String, u32)| world.runs_exactly(&workload(name), *replicas);
    wanted.iter().all(runs)
        && world
            .nodes
            .iter()
            .filter_map(|node| node.cell.as_ref())
            .all(|cell| cell.changes().count() == changes)
}

fn until_right(world: &mut World, wanted: &[(String, u32)], limit_ms: u64) -> Option<u64> {
    let began = world.now;
    while !is_right(world, wanted, wanted.len()) {
        if world.now - began > limit_ms {
            return None;
        }
        world.run(20);
    }
    Some(world.now - began)
}

fn of_recovery(scenario: Scenario, world: &World, seed: u64, took: Option<u64>) -> Outcome {
    let delays = Delays::of(took.into_iter().collect());
    let mut outcome = Outcome::new(scenario, world, seed, delays, HEAL_MS);
    if took.is_none() {
        outcome.missed = Some(format!("all is not right after {HEAL_MS} ms"));
    }
    outcome
}

fn partition(nodes: usize, seed: u64) -> Outcome {
    let (mut world, ..) = settled(nodes, seed, 0);
    let mut wanted: Vec<(String, u32)> = (0..5).map(|n| (format!("w{n}"), 3)).collect();
    for (name, replicas) in &wanted {
        let told = world.rng.random_range(0..nodes);
        world.change(told, deployment(name, *replicas));
    }
    world.run(5000);
    let parts = world.rng.random_range(2..=3);
    let sides: Vec<u32> = (0..nodes).map(|_| world.rng.random_range(0..parts)).collect();
    world.partition(&sides);
    world.run(15_000);
    for side in 0..parts {
        if let Some(told) = sides.iter().position(|other| *other == side) {
            let name = format!("of-side-{side}");
            world.change(told, deployment(&name, 2));
            wanted.push((name, 2));
        }
    }
    world.run(15_000);
    let before = world.traffic.clone();
    world.heal();
    let took = until_right(&mut world, &wanted, HEAL_MS);
    let said = world.traffic.since(&before);
    let mut outcome = of_recovery(Scenario::Partition, &world, seed, took);
    outcome.figure("parts", f64::from(parts));
    outcome.figure(
        "messages per node until right",
        said.messages as f64 / nodes as f64,
    );
    outcome.figure("bytes per node until right", said.bytes as f64 / nodes as f64);
    outcome
}

fn half(nodes: usize, seed: u64) -> Outcome {
    let (mut world, ..) = settled(nodes, seed, 0);
    let replicas = u32::try_from(nodes.min(200)).unwrap_or(200);
    let wanted = [("web".to_owned(), replicas)];
    world.change(0, deployment("web", replicas));
    world.run(6000);
    let killed: Vec<usize> = shuffled(&mut world).into_iter().take(nodes / 2).collect();
    killed.iter().for_each(|n| world.kill(*n));
    let took = until_right(&mut world, &wanted, HEAL_MS);
    of_recovery(Scenario::Half, &world, seed, took)
}

/// In a cell of 4 to `nodes` nodes, at most 40: what large cells do, small ones do in a thousandth of the time.
fn faults(nodes: usize, seed: u64) -> Outcome {
    let mut world = World::new(seed);
    let count = world.rng.random_range(4..=nodes.clamp(5, 40));
    let mut world = World::of_members(seed, count, Network::site());
    world.invariants.failed = true;
    world.run(SETTLE_MS);
    let mut wanted: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..30 {
        let n = world.rng.random_range(0..count);
        match world.rng.random_range(0..10) {
            0..3 => {
                let parts = world.rng.random_range(2..=4);
                let sides: Vec<u32> = (0..count).map(|_| world.rng.random_range(0..parts)).collect();
                world.partition(&sides);
            }
            3..5 => world.heal(),
            5 if is_on(&world, n) => world.kill(n),
            6 if !is_on(&world, n) => world.boot(n),
            7 => {
                let ms = world.rng.random_range(100..5000);
                world.pause(n, ms);
            }
            8..10 if is_on(&world, n) => {
                let (name, replicas) = (world.rng.random_range(0..4), world.rng.random_range(1..6));
                world.change(n, deployment(&format!("w{name}"), replicas));
                wanted.insert(format!("w{name}"), replicas);
            }
            _ => {}
        }
        let ms = world.rng.random_range(100..15_000);
        world.run(ms);
    }
    world.heal();
    for n in 0..count {
        if !is_on(&world, n) {
            world.boot(n);
        }
    }
    let wanted: Vec<(String, u32)> = wanted.into_iter().collect();
    let took = until_right(&mut world, &wanted, HEAL_MS);
    of_recovery(Scenario::Faults, &world, seed, took)
}
