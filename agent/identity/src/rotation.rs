//! How a node goes on to a new key: the order of its steps, and what follows when one of them fails or the power does.
//!
//! Pure: events in, commands out; one driver carries them out and reports. It makes no key and reads no clock.
//!
//! | step | what is on the disk after it | interrupted there |
//! |---|---|---|
//! | make | the present key, and beside it the new one, sealed and read back | the new key is removed |
//! | commit | the membership names the new key | goes on with the new key |
//! | move | (nothing: connections) | the start uses the new key |
//! | forget | the new key alone | done |
//!
//! Invariant: the key that the membership on the disk names is on the disk at every moment; the present key's file is not
//! touched before the commit is durable. A commit whose outcome is not known is repeated and never taken back.

use beemesh_ids::PeerId;

/// After the move the old connections are ended at the latest after so many milliseconds: as verifiers hold it.
pub const OLD_MS: u64 = crate::ratchet::OVERLAP_MS;
/// Connections that came over are watched for so long before the old ones are ended, in milliseconds.
const SETTLE_MS: u64 = 3_000;
/// Nodes that hear an order at the same moment begin one after the other: so many milliseconds for each member, up to
/// [`LONGEST_TURN_MS`].
const TURN_MS: u64 = 20;
const LONGEST_TURN_MS: u64 = 10_000;
/// First pause after a step that failed, in milliseconds; it doubles up to [`LONGEST_PAUSE_MS`].
const FIRST_PAUSE_MS: u64 = 10_000;
const LONGEST_PAUSE_MS: u64 = 600_000;

/// What an interrupted rotation has left on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftover {
    /// Nothing.
    None,
    /// A new key that the membership does not name.
    Made,
    /// A new key that the membership names already.
    Committed,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The newest order that the node's key is older than, if there is one.
    Wanted(Option<String>),
    /// The new key is on the disk; or it could not be made.
    Made(bool),
    /// The membership with the new key is on the disk; or nobody knows.
    Committed(bool),
    /// The fabric goes on with the new key; or it cannot, and the node must start again.
    Moved(bool),
    /// So many members are left that are connected by the old key alone.
    Left(usize),
    /// The old key is gone, or the new one that was not used; or it could not be removed.
    Cleared(bool),
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Make a key, seal it, write it beside the present one and read it back.
    Make,
    /// Sign the rotation with both keys, and write the membership with it.
    Commit {
        /// The order that it obeys.
        order: String,
    },
    /// Go on in the fabric with the new key; keep the old connections.
    Move,
    /// End the old connections.
    Close,
    /// Put the new key in the place of the old one.
    Forget,
    /// Remove the new key.
    Discard,
    /// Start the node's program again: it begins with the new key.
    Restart,
}

/// How long a node with this key, in a cell of so many members, waits before it obeys an order that it has heard of, in
/// milliseconds.
pub fn turn(key: &PeerId, members: usize) -> u64 {
    let members = u64::try_from(members).unwrap_or(u64::MAX);
    let window = TURN_MS.saturating_mul(members).clamp(1, LONGEST_TURN_MS);
    // Any spread does: the end of a peer id is as good as a throw.
    let [.., high, low] = key.to_ed25519();
    (u64::from(u16::from_be_bytes([high, low])) * window) >> 16
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Resting,
    Making { order: String },
    Committing { order: String },
    Moving,
    Overlapping { since: u64, left: Option<usize> },
    Clearing { forget: bool },
}

/// The rotation of one node's key.
#[derive(Debug, Clone)]
pub struct Rotator {
    stage: Stage,
    wanted: Option<String>,
    /// Steps that failed in a row.
    failures: u32,
    /// A step that failed is tried again from then on.
    again: Option<u64>,
}

impl Rotator {
    /// Begins with what an earlier run has left, and with what is to be done about it.
    pub fn new(leftover: Leftover) -> (Self, Vec<Command>) {
        let (stage, commands) = match leftover {
            Leftover::None => (Stage::Resting, Vec::new()),
            Leftover::Made => (Stage::Clearing { forget: false }, vec![Command::Discard]),
            Leftover::Committed => (Stage::Clearing { forget: true }, vec![Command::Forget]),
        };
        let rotator = Self {
            stage,
            wanted: None,
            failures: 0,
            again: None,
        };
        (rotator, commands)
    }

    /// Takes an event at `now`, in monotonic milliseconds. Events that do not fit the step at hand change nothing.
    pub fn step(&mut self, now: u64, event: Event) -> Vec<Command> {
        match (event, &mut self.stage) {
            (Event::Wanted(order), _) => {
                self.wanted = order;
                self.begin()
            }
            (Event::Made(true), Stage::Making { order }) => {
                // One rotation obeys whatever has come meanwhile.
                let order = self.wanted.take().max(Some(order.clone())).unwrap_or_default();
                self.enter(Stage::Committing { order: order.clone() });
                vec![Command::Commit { order }]
            }
            (Event::Committed(true), Stage::Committing { order }) => {
                let obeyed = order.clone();
                self.wanted.take_if(|wanted| *wanted <= obeyed);
                self.enter(Stage::Moving);
                vec![Command::Move]
            }
            (Event::Moved(true), Stage::Moving) => {
                self.enter(Stage::Overlapping {
                    since: now,
                    left: None,
                });
                Vec::new()
            }
            (Event::Moved(false), Stage::Moving) => vec![Command::Restart],
            (Event::Left(count), Stage::Overlapping { left, .. }) => {
                *left = Some(count);
                self.end(now)
            }
            (Event::Cleared(true), Stage::Clearing { .. }) => {
                self.enter(Stage::Resting);
                self.begin()
            }
            (Event::Made(false), Stage::Making { .. })
            | (Event::Committed(false), Stage::Committing { .. })
            | (Event::Cleared(false), Stage::Clearing { .. }) => {
                let pause = FIRST_PAUSE_MS << self.failures.min(10);
                self.failures = self.failures.saturating_add(1);
                self.again = Some(now.saturating_add(pause.min(LONGEST_PAUSE_MS)));
                Vec::new()
            }
            (Event::Tick, Stage::Overlapping { .. }) => self.end(now),
            (Event::Tick, _) if self.again.is_some_and(|again| now >= again) => {
                self.again = None;
                self.repeat()
            }
            _ => Vec::new(),
        }
    }

    /// Whether a rotation is under way.
    pub fn is_busy(&self) -> bool {
        self.stage != Stage::Resting
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.failures = 0;
        self.again = None;
    }

    fn begin(&mut self) -> Vec<Command> {
        match (&self.stage, self.wanted.take()) {
            (Stage::Resting, Some(order)) => {
                self.enter(Stage::Making { order });
                vec![Command::Make]
            }
            (_, wanted) => {
                self.wanted = wanted;
                Vec::new()
            }
        }
    }

    fn repeat(&mut self) -> Vec<Command> {
        match &self.stage {
            Stage::Making { .. } => vec![Command::Make],
            Stage::Committing { order } => vec![Command::Commit { order: order.clone() }],
            Stage::Clearing { forget: true } => vec![Command::Forget],
            Stage::Clearing { forget: false } => vec![Command::Discard],
            Stage::Resting | Stage::Moving | Stage::Overlapping { .. } => Vec::new(),
        }
    }

    fn end(&mut self, now: u64) -> Vec<Command> {
        let Stage::Overlapping { since, left } = &self.stage else {
            return Vec::new();
        };
        let passed = now.saturating_sub(*since);
        let over = passed >= OLD_MS || (*left == Some(0) && passed >= SETTLE_MS);
        if !over {
            return Vec::new();
        }
        self.enter(Stage::Clearing { forget: true });
        vec![Command::Close, Command::Forget]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A disk and a fabric, as far as a rotation knows them.
    #[derive(Debug, Clone, Default)]
    struct World {
        /// The files: present key, and the one beside it.
        file: u32,
        next: Option<u32>,
        /// The keys that the membership on the disk names, with the orders that they obey.
        chain: Vec<(u32, String)>,
        /// Keys made in all.
        made: u32,
        /// The key that the running program uses.
        runs: u32,
        restarts: u32,
    }

    impl World {
        fn named(&self) -> u32 {
            self.chain.last().map_or(0, |(key, _)| *key)
        }

        fn start(&mut self) -> (Rotator, Vec<Command>) {
            self.runs = self.named();
            let leftover = match self.next {
                None => Leftover::None,
                Some(next) if next == self.named() => Leftover::Committed,
                Some(_) => Leftover::Made,
            };
            Rotator::new(leftover)
        }

        fn invariant(&self) {
            let named = self.named();
            assert!(
                self.file == named || self.next == Some(named),
                "the key that the membership names is lost: {self:?}"
            );
            assert!(
                self.chain
                    .windows(2)
                    .all(|pair| pair[0].0 != pair[1].0 && pair[0].1 < pair[1].1),
                "{self:?}"
            );
        }

        /// Carries out a command. `fails`: it reports a failure; what it did before that is up to `effect`.
        fn carry_out(&mut self, command: &Command, fails: bool, effect: bool) -> Option<Event> {
            let acts = !fails || effect;
            match command {
                Command::Make => {
                    // Whatever lay there goes first; a failure leaves half a key or none, which nobody opens.
                    self.made += 1;
                    self.next = (!fails).then_some(self.made).or(effect.then_some(u32::MAX));
                    Some(Event::Made(!fails))
                }
                Command::Commit { order } => {
                    let key = self.next.unwrap();
                    if acts && self.named() != key {
                        self.chain.push((key, order.clone()));
                    }
                    Some(Event::Committed(!fails))
                }
                Command::Move => {
                    if !fails {
                        self.runs = self.named();
                    }
                    Some(Event::Moved(!fails))
                }
                Command::Close => None,
                Command::Forget => {
                    if acts && let Some(next) = self.next.take() {
                        self.file = next;
                    }
                    Some(Event::Cleared(!fails))
                }
                Command::Discard => {
                    if acts {
                        self.next = None;
                    }
                    Some(Event::Cleared(!fails))
                }
                Command::Restart => None,
            }
        }
    }

    /// Runs until nothing more happens. `fate` says for each command: does it fail, and is the power cut before or after it.
    fn run(world: &mut World, orders: &[String], mut fate: impl FnMut() -> (bool, bool, Option<bool>)) {
        let mut now = 0;
        let (mut rotator, mut commands) = world.start();
        for _ in 0..5_000 {
            now += 1_000;
            let newest = orders
                .last()
                .filter(|order| world.chain.last().is_none_or(|(_, last)| last < *order));
            commands.extend(rotator.step(now, Event::Wanted(newest.cloned())));
            commands.extend(rotator.step(now, Event::Tick));
            commands.extend(rotator.step(now, Event::Left(0)));
            let mut due: std::collections::VecDeque<_> = std::mem::take(&mut commands).into();
            while let Some(command) = due.pop_front() {
                let (fails, effect, cut) = fate();
                let mut restart = command == Command::Restart;
                if cut == Some(false) {
                    restart = true;
                } else {
                    let event = world.carry_out(&command, fails, effect);
                    world.invariant();
                    match event {
                        _ if cut == Some(true) => restart = true,
                        Some(event) => due.extend(rotator.step(now, event)),
                        None => {}
                    }
                }
                if restart {
                    world.restarts += 1;
                    due.clear();
                    let (fresh, first) = world.start();
                    (rotator, due) = (fresh, first.into());
                    world.invariant();
                }
            }
        }
    }

    fn orders(count: usize) -> Vec<String> {
        (1..=count)
            .map(|n| format!("01KDVKFD00000000000000000{n}"))
            .collect()
    }

    #[test]
    fn order_leads_to_a_new_key_and_the_old_one_is_forgotten() {
        let mut world = World::default();
        run(&mut world, &orders(1), || (false, false, None));
        assert_eq!(
            (world.file, world.next, world.named(), world.runs, world.restarts),
            (1, None, 1, 1, 0)
        );
        assert_eq!(world.chain.len(), 1, "one order, one rotation");
    }

    #[test]
    fn node_that_was_away_for_ten_orders_rotates_once() {
        let mut world = World::default();
        run(&mut world, &orders(9), || (false, false, None));
        assert_eq!(world.chain.len(), 1);
        assert_eq!(world.chain[0].1, orders(9)[8]);
    }

    #[test]
    fn old_connections_are_ended_when_all_came_over_or_after_ten_minutes() {
        let (mut rotator, none) = Rotator::new(Leftover::None);
        assert_eq!(none, []);
        let step = |rotator: &mut Rotator, now, event| rotator.step(now, event);
        assert_eq!(
            step(&mut rotator, 0, Event::Wanted(Some("a".into()))),
            [Command::Make]
        );
        assert_eq!(
            step(&mut rotator, 0, Event::Wanted(Some("b".into()))),
            [],
            "one at a time"
        );
        assert_eq!(
            step(&mut rotator, 1, Event::Made(true)),
            [Command::Commit { order: "b".into() }],
            "the newest"
        );
        assert_eq!(step(&mut rotator, 1, Event::Wanted(Some("b".into()))), []);
        assert_eq!(step(&mut rotator, 2, Event::Committed(true)), [Command::Move]);
        assert_eq!(step(&mut rotator, 3, Event::Moved(true)), []);
        assert_eq!(step(&mut rotator, 4, Event::Wanted(Some("c".into()))), []);
        let mut slow = rotator.clone();
        assert_eq!(step(&mut rotator, 10, Event::Left(1)), []);
        assert_eq!(
            step(&mut rotator, 20, Event::Left(0)),
            [],
            "not before it has settled"
        );
        assert_eq!(
            step(&mut rotator, 3 + SETTLE_MS, Event::Tick),
            [Command::Close, Command::Forget]
        );
        assert_eq!(
            step(&mut rotator, 9_000, Event::Cleared(true)),
            [Command::Make],
            "the order that came meanwhile"
        );
        assert_eq!(step(&mut slow, 10, Event::Left(1)), []);
        assert_eq!(step(&mut slow, 11, Event::Wanted(None)), []);
        assert_eq!(step(&mut slow, 2 + OLD_MS, Event::Tick), []);
        assert_eq!(
            step(&mut slow, 3 + OLD_MS, Event::Tick),
            [Command::Close, Command::Forget]
        );
    }

    #[test]
    fn turns_are_spread_over_ten_seconds_at_most() {
        let key = |n: u16| {
            let mut key = [7; 32];
            key[30..].copy_from_slice(&n.to_be_bytes());
            PeerId::from_ed25519(&key)
        };
        assert_eq!(turn(&key(0), 1000), 0);
        assert_eq!(turn(&key(u16::MAX / 2 + 1), 1000), LONGEST_TURN_MS / 2);
        assert_eq!(turn(&key(u16::MAX), 100_000), LONGEST_TURN_MS - 1);
        assert_eq!(turn(&key(u16::MAX), 3), 3 * TURN_MS - 1);
        assert_eq!(turn(&key(u16::MAX), 0), 0);
    }

    #[test]
    fn step_that_fails_is_tried_again_later_and_later() {
        let (mut rotator, _) = Rotator::new(Leftover::None);
        rotator.step(0, Event::Wanted(Some("a".into())));
        let mut now = 0;
        for pause in [10_000, 20_000, 40_000] {
            assert_eq!(rotator.step(now, Event::Made(false)), []);
            assert_eq!(rotator.step(now + pause - 1, Event::Tick), []);
            now += pause;
            assert_eq!(rotator.step(now, Event::Tick), [Command::Make]);
        }
    }

    #[test]
    fn fabric_that_cannot_move_makes_the_program_start_again_with_the_new_key() {
        let mut world = World::default();
        let mut commands = 0;
        run(&mut world, &orders(1), || {
            commands += 1;
            (commands == 3, false, None)
        });
        assert_eq!(
            (world.file, world.next, world.runs, world.restarts),
            (1, None, 1, 1)
        );
    }

    proptest! {
        /// The power is cut before or after any command, or the command fails, with or without its effect.
        #[test]
        fn invariant_interrupted_anywhere_it_finishes_or_takes_itself_back(
            fates in proptest::collection::vec((any::<bool>(), any::<bool>(), proptest::option::of(any::<bool>())), 0..24),
            count in 1usize..4,
        ) {
            let mut world = World::default();
            let mut fates = fates.into_iter();
            run(&mut world, &orders(count), || fates.next().unwrap_or((false, false, None)));
            let last = world.chain.last().cloned();
            prop_assert_eq!(last.map(|(_, order)| order), orders(count).last().cloned());
            prop_assert_eq!((world.file, world.next, world.runs), (world.named(), None, world.named()));
            prop_assert_eq!(world.chain.len(), 1, "one rotation obeys them all");
        }
    }
}
