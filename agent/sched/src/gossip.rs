//! How much a node says, and to whom: what each of a thousand members tells each other one costs a million messages.
//!
//! Knows nothing of what is said. Invariants: in a cell of at most [`ROUND`] + 1 members a round reaches all; each member is
//! reached once in a circle of rounds; no moment lets a node exchange more than [`EXCHANGES`] lists of a kind.

use crate::cell::Cell;
use crate::model::Millis;
use beemesh_ids::PeerId;
use rand::RngExt;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

/// Members that one round of heartbeats reaches; in a larger cell they take turns.
pub(crate) const ROUND: usize = 64;
/// Members that a node hands news to when it learns them. Of 1,000 all but 0.03 % (e^-8) hear them so; the rest by a heartbeat.
pub(crate) const FAN_OUT: usize = 8;
/// Lists of one kind that a node exchanges in [`EXCHANGE_MS`]: knowledge doubles with each, and a list may be long.
pub(crate) const EXCHANGES: usize = 4;
/// See [`EXCHANGES`]; and with one peer no list sooner again.
pub(crate) const EXCHANGE_MS: u64 = 300;
/// SWIM introductions in one tick: each is answered with up to 16 KiB of members, and the first few tell of all the others.
pub(crate) const ANNOUNCES: usize = 4;
/// Least time between two bodies to all, in milliseconds; in a large cell a quarter of a millisecond for each member.
const BODY_MS: u64 = 50;

/// What was asked for and exchanged lately.
#[derive(Default)]
pub(crate) struct Pace {
    asked: BTreeMap<(PeerId, &'static str), Millis>,
    exchanged: BTreeMap<&'static str, (Millis, usize)>,
}

impl Pace {
    /// Something may be asked of a peer at most every `ms`.
    pub(crate) fn may_ask(&mut self, now: Millis, peer: &PeerId, what: &'static str, ms: u64) -> bool {
        let last = self.asked.get(&(peer.clone(), what));
        if last.is_some_and(|last| now.since(*last) < ms) {
            return false;
        }
        self.asked.insert((peer.clone(), what), now);
        true
    }

    /// A list may be exchanged with a peer now.
    pub(crate) fn may_exchange(&mut self, now: Millis, peer: &PeerId, what: &'static str) -> bool {
        let (began, count) = self.exchanged.get(what).copied().unwrap_or_default();
        let (began, count) = match now.since(began) < EXCHANGE_MS {
            true => (began, count),
            false => (now, 0),
        };
        if count >= EXCHANGES || !self.may_ask(now, peer, what, EXCHANGE_MS) {
            return false;
        }
        self.exchanged.insert(what, (began, count + 1));
        true
    }

    /// Forgets what is long ago.
    pub(crate) fn forget(&mut self, now: Millis) {
        self.asked.retain(|_, at| now.since(*at) < 10_000);
    }
}

/// The `count` members after `last` in the circle of all.
pub(crate) fn turn(all: &BTreeSet<PeerId>, last: &PeerId, count: usize) -> Vec<PeerId> {
    let after = all.range::<PeerId, _>((Excluded(last), Unbounded));
    let rest = all.range::<PeerId, _>(..=last);
    after.chain(rest).take(count).cloned().collect()
}

impl Cell {
    /// Some of the connected members, by chance: those that hear news from this node.
    pub(crate) fn some_connected(&mut self, count: usize) -> Vec<PeerId> {
        let mut all: Vec<&PeerId> = self.connected.iter().collect();
        let count = count.min(all.len());
        for n in 0..count {
            let chosen = self.rng.random_range(n..all.len());
            all.swap(n, chosen);
        }
        all.into_iter().take(count).cloned().collect()
    }

    /// Asks a peer for something at most every `ms`.
    pub(crate) fn may_ask(&mut self, peer: &PeerId, what: &'static str, ms: u64) -> bool {
        self.pace.may_ask(self.now, peer, what, ms)
    }

    /// Whether a list of a kind may be exchanged with a peer now; with others too, if not too many at a time.
    pub(crate) fn may_exchange(&mut self, peer: &PeerId, what: &'static str) -> bool {
        self.pace.may_exchange(self.now, peer, what)
    }

    /// Least time between two bodies to all.
    pub(crate) fn body_ms(&self) -> u64 {
        BODY_MS.max(self.connected.len() as u64 / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peers(count: u16) -> Vec<PeerId> {
        let key = |n: u16| {
            let mut key = [0; 32];
            key[..2].copy_from_slice(&n.to_be_bytes());
            PeerId::from_ed25519(&key)
        };
        (0..count).map(key).collect()
    }

    proptest! {
        #[test]
        fn invariant_rounds_reach_each_member_once_in_a_circle(members in 1..200u16, count in 1..80usize, first in 0..200u16) {
            let all: BTreeSet<PeerId> = peers(members).into_iter().collect();
            let mut last = peers(200)[usize::from(first)].clone();
            let mut reached: BTreeMap<PeerId, usize> = BTreeMap::new();
            let rounds = all.len().div_ceil(count);
            for _ in 0..rounds {
                let round = turn(&all, &last, count);
                prop_assert_eq!(round.len(), count.min(all.len()));
                last = round.last().unwrap().clone();
                round.into_iter().for_each(|peer| *reached.entry(peer).or_default() += 1);
            }
            prop_assert_eq!(reached.len(), all.len());
            prop_assert!(reached.values().all(|times| *times <= 2));
        }

        #[test]
        fn invariant_no_window_holds_more_exchanges_than_allowed(
            asks in proptest::collection::vec((0..50u64, 0..40u16), 1..300),
        ) {
            let (peers, mut pace, mut now) = (peers(40), Pace::default(), Millis(0));
            let mut taken: Vec<(Millis, u16)> = Vec::new();
            for (after, peer) in asks {
                now = now.after(after);
                if pace.may_exchange(now, &peers[usize::from(peer)], "list") {
                    taken.push((now, peer));
                }
            }
            for (n, (at, peer)) in taken.iter().enumerate() {
                let soon = taken[n + 1..].iter().take_while(|(then, _)| then.since(*at) < EXCHANGE_MS);
                // Two windows may meet within one span.
                prop_assert!(soon.clone().count() < 2 * EXCHANGES);
                prop_assert!(soon.clone().all(|(_, other)| other != peer));
            }
        }
    }

    #[test]
    fn what_was_asked_may_be_asked_again_later_and_of_others() {
        let (peers, mut pace) = (peers(2), Pace::default());
        assert!(pace.may_ask(Millis(0), &peers[0], "body", 200));
        assert!(!pace.may_ask(Millis(199), &peers[0], "body", 200));
        assert!(pace.may_ask(Millis(199), &peers[1], "body", 200));
        assert!(pace.may_ask(Millis(200), &peers[0], "body", 200));
    }
}
