//! Random sequences of faults; the invariants are checked after every command (`ci/sim/src/invariants.rs`), and after the last
//! fault the cell must come to rest with exactly what is wanted.

#![allow(clippy::unwrap_used)]

use beemesh_ci_sim::{World, deletion, deployment};
use proptest::prelude::*;

/// One act of the world's malice, or of its operators.
#[derive(Debug, Clone)]
enum Act {
    Kill(usize),
    Boot(usize),
    StopAgent(usize),
    Partition(Vec<u32>),
    Heal,
    Apply(usize, u8, u32),
    Delete(usize, u8),
    Join,
    Lose(u32),
    Pause(usize, u64),
    Run(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => any::<usize>().prop_map(Act::Kill),
        3 => any::<usize>().prop_map(Act::Boot),
        1 => any::<usize>().prop_map(Act::StopAgent),
        2 => proptest::collection::vec(0..3u32, 12).prop_map(Act::Partition),
        2 => Just(Act::Heal),
        2 => (any::<usize>(), 0..3u8, 0..5u32).prop_map(|(n, name, replicas)| Act::Apply(n, name, replicas)),
        1 => (any::<usize>(), 0..3u8).prop_map(|(n, name)| Act::Delete(n, name)),
        1 => Just(Act::Lose(150)),
        1 => Just(Act::Lose(0)),
        1 => (any::<usize>(), 100..5000u64).prop_map(|(n, ms)| Act::Pause(n, ms)),
        8 => (10..20_000u64).prop_map(Act::Run),
    ]
}

fn names() -> [String; 3] {
    [0, 1, 2].map(|n| format!("w{n}"))
}

struct Chaos {
    world: World,
    wanted: [u32; 3],
}

impl Chaos {
    fn alive(&self, n: usize) -> Option<usize> {
        let alive: Vec<usize> = (0..self.world.nodes.len())
            .filter(|n| self.world.nodes[*n].cell.is_some())
            .collect();
        (!alive.is_empty()).then(|| alive[n % alive.len()])
    }

    fn carry_out(&mut self, act: Act) {
        let count = self.world.nodes.len();
        match act {
            Act::Kill(n) => {
                if let Some(n) = self.alive(n) {
                    self.world.kill(n);
                }
            }
            Act::Boot(n) => {
                if self.world.nodes[n % count].cell.is_none() {
                    self.world.boot(n % count);
                }
            }
            Act::StopAgent(n) => {
                if let Some(n) = self.alive(n) {
                    // Its pods run on without their cell: whatever the others start now is a copy more.
                    self.world.invariants.failed = true;
                    self.world.stop_agent(n);
                }
            }
            Act::Partition(sides) => self.world.partition(&sides[..count.min(sides.len())]),
            Act::Heal => self.world.heal(),
            Act::Apply(n, name, replicas) => {
                if let Some(n) = self.alive(n) {
                    self.world
                        .change(n, deployment(&names()[name as usize], replicas));
                    self.wanted[name as usize] = replicas;
                }
            }
            Act::Delete(n, name) => {
                if let Some(n) = self.alive(n) {
                    self.world.change(n, deletion(&names()[name as usize]));
                    self.wanted[name as usize] = 0;
                }
            }
            Act::Join => {
                self.world.join();
            }
            Act::Lose(per_mille) => {
                // The living may be declared dead then.
                self.world.invariants.failed |= per_mille > 0;
                self.world.network.lost = per_mille;
            }
            Act::Pause(n, ms) => self.world.pause(n % count, ms),
            Act::Run(ms) => self.world.run(ms),
        }
    }

    fn comes_to_rest(&mut self) {
        self.world.network.lost = 0;
        self.world.heal();
        for n in 0..self.world.nodes.len() {
            if self.world.nodes[n].cell.is_none() {
                self.world.boot(n);
            }
        }
        let wanted = self.wanted;
        let right = |world: &World| {
            names()
                .iter()
                .zip(wanted)
                .all(|(name, replicas)| world.runs_exactly(&deletion(name).workload, replicas))
        };
        // Right may be by chance while the news of the last fault is still on its way: it must last.
        let mut since = None;
        let began = self.world.now;
        while since.is_none_or(|since| self.world.now < since + 12_000) {
            assert!(
                self.world.now < began + 60_000,
                "no rest: wanted {wanted:?}, {}",
                self.world.describe()
            );
            self.world.run(50);
            since = if right(&self.world) {
                since.or(Some(self.world.now))
            } else {
                None
            };
        }
        let unsettled = self
            .world
            .nodes
            .iter()
            .filter(|node| !node.cell.as_ref().unwrap().is_settled())
            .count();
        assert_eq!(unsettled, 0, "{}", self.world.describe());
    }
}

fn run(seed: u64, nodes: usize, acts: Vec<Act>) -> Chaos {
    let mut chaos = Chaos {
        world: World::settled(seed, nodes),
        wanted: [3, 0, 0],
    };
    chaos.world.change(0, deployment("w0", 3));
    chaos.world.run(2000);
    for act in acts {
        chaos.carry_out(act);
    }
    chaos.comes_to_rest();
    chaos
}

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("BEEMESH_SIM_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default);
    ProptestConfig {
        cases,
        max_shrink_iters: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(60))]

    /// Kills, cuts, restarts, losses, pauses and changes in any order: never more than three copies, and rest after.
    #[test]
    fn whatever_happens_three_copies_at_most_and_rest_in_the_end(
        seed in any::<u64>(),
        nodes in 1..9usize,
        acts in proptest::collection::vec(act(), 1..40),
    ) {
        run(seed, nodes, acts);
    }

    /// Without faults there is one copy, while the roster grows and changes come from everywhere.
    #[test]
    fn without_failures_there_is_one_copy_while_the_cell_grows(
        seed in any::<u64>(),
        acts in proptest::collection::vec(prop_oneof![
            3 => Just(Act::Join),
            2 => (any::<usize>(), 0..3u8, 0..6u32).prop_map(|(n, name, replicas)| Act::Apply(n, name, replicas)),
            1 => (any::<usize>(), 0..3u8).prop_map(|(n, name)| Act::Delete(n, name)),
            4 => (1..3000u64).prop_map(Act::Run),
        ], 1..30),
    ) {
        let chaos = run(seed, 1, acts);
        prop_assert!(chaos.world.invariants.most_copies <= 1);
    }

    /// The same on slow links, where two rosters and two placers are at work at once.
    #[test]
    fn on_slow_links_there_is_one_copy_while_the_cell_grows(
        seed in any::<u64>(),
        slow in 20..170u64,
        acts in proptest::collection::vec(prop_oneof![
            4 => Just(Act::Join),
            3 => (any::<usize>(), 0..3u8, 0..6u32).prop_map(|(n, name, replicas)| Act::Apply(n, name, replicas)),
            4 => (1..400u64).prop_map(Act::Run),
        ], 10..60),
    ) {
        let mut world = World::new(seed);
        world.network.max_ms = slow;
        for _ in 0..3 {
            world.join();
        }
        let mut chaos = Chaos { world, wanted: [0, 0, 0] };
        for act in acts {
            chaos.carry_out(act);
        }
        chaos.comes_to_rest();
        prop_assert!(chaos.world.invariants.most_copies <= 1);
    }

    /// The same acts with the same seed give the same run, to the last message.
    #[test]
    fn runs_are_deterministic(seed in any::<u64>(), acts in proptest::collection::vec(act(), 1..10)) {
        prop_assert_eq!(run(seed, 4, acts.clone()).world.trace(), run(seed, 4, acts).world.trace());
    }
}
