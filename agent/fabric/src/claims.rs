//! Which of several connections between the same two nodes lives. No I/O; the caller brings the time.
//!
//! Of two connections the one by newer keys lives: its rank, the sum of the generations of both keys, is higher, and both
//! sides see the same. Among equals: two nodes often dial each other at the same moment, over two transports. Of each pair the
//! one with the smaller node id chooses, so both sides always agree. It keeps the connection it has, unless the other one
//! dials anew some time later: a node does not dial a peer it is connected to, so the old connection must be dead on its side.

use crate::{Admitted, hello::Hello};
use beemesh_ids::PeerId as NodeId;
use libp2p::PeerId;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// For this long a second connection counts as made at the same moment: longer than a round trip, shorter than the time
/// after which a restarted node would be missed.
const SAME_MOMENT: Duration = Duration::from_secs(3);

/// A connection that has passed, as far as both sides know it.
#[derive(Debug, Clone)]
pub(crate) struct Passed {
    pub(crate) node: NodeId,
    /// Generation of the key that this node has used.
    pub(crate) own_generation: u32,
    /// The same of the other side.
    pub(crate) generation: u32,
    /// What the other side has shown.
    pub(crate) hello: Arc<Hello>,
}

impl Passed {
    pub(crate) fn new(admitted: Admitted, own_generation: u32, hello: Hello) -> Self {
        Self {
            node: admitted.node,
            own_generation,
            generation: admitted.generation,
            hello: Arc::new(hello),
        }
    }

    /// Connections by newer keys have a higher one, on both sides the same.
    pub(crate) fn rank(&self) -> u64 {
        u64::from(self.own_generation) + u64::from(self.generation)
    }
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    made: Instant,
    passed: Passed,
}

#[derive(Debug, Default)]
struct Table {
    /// By the key of the other side.
    entries: HashMap<PeerId, Entry>,
    /// The key by which each node is connected now.
    present: HashMap<NodeId, PeerId>,
    next: u64,
    own_keys: HashSet<PeerId>,
}

/// The connections that have been chosen, one per node.
#[derive(Debug)]
pub(crate) struct Claims {
    own: NodeId,
    table: Mutex<Table>,
}

/// The right of one connection to exist. Dropped with it.
#[derive(Debug)]
pub(crate) struct Claim {
    claims: Arc<Claims>,
    peer: PeerId,
    ticket: u64,
}

impl Claims {
    pub(crate) fn new(own: NodeId) -> Arc<Self> {
        Arc::new(Self {
            own,
            table: Mutex::default(),
        })
    }

    /// The node has this key from now on. One for each rotation of its life: bounded by the chain.
    pub(crate) fn add_own_key(&self, key: PeerId) {
        self.lock().own_keys.insert(key);
    }

    pub(crate) fn is_own_key(&self, key: &PeerId) -> bool {
        self.lock().own_keys.contains(key)
    }

    /// Whether there is a connection between the key `peer` and this node's key of that generation.
    pub(crate) fn is_claimed(&self, peer: &PeerId, own_generation: u32) -> bool {
        let table = self.lock();
        let entry = table.entries.get(peer);
        entry.is_some_and(|entry| entry.passed.own_generation == own_generation)
    }

    /// What is known of the present connection of the key `peer`.
    pub(crate) fn passed(&self, peer: &PeerId) -> Option<Passed> {
        self.lock().entries.get(peer).map(|entry| entry.passed.clone())
    }

    /// Whether this side chooses for the pair.
    pub(crate) fn chooses(&self, node: &NodeId) -> bool {
        self.own.to_ed25519() < node.to_ed25519()
    }

    /// Claims the node for a new connection, dialled by us or by it. `None`: the connection is one too many.
    pub(crate) fn claim(
        self: &Arc<Self>,
        peer: PeerId,
        passed: Passed,
        dialled_by_us: bool,
        now: Instant,
    ) -> Option<Claim> {
        let chooses = self.chooses(&passed.node);
        let mut table = self.lock();
        let present = table.present.get(&passed.node);
        let mut is_older = false;
        if let Some(entry) = present.and_then(|key| table.entries.get(key)) {
            let recent = now.saturating_duration_since(entry.made) < SAME_MOMENT;
            is_older = passed.rank() < entry.passed.rank();
            let is_newer = passed.rank() > entry.passed.rank();
            // Only the side that chooses refuses: it does so before the other one has followed.
            if chooses && (is_older || (!is_newer && (dialled_by_us || recent))) {
                return None;
            }
        }
        table.next += 1;
        let ticket = table.next;
        if !is_older {
            table.present.insert(passed.node.clone(), peer);
        }
        table.entries.insert(
            peer,
            Entry {
                ticket,
                made: now,
                passed,
            },
        );
        Some(Claim {
            claims: self.clone(),
            peer,
            ticket,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut table = self.claims.lock();
        let entry = table.entries.get(&self.peer);
        if entry.is_none_or(|entry| entry.ticket != self.ticket) {
            return;
        }
        let Some(entry) = table.entries.remove(&self.peer) else {
            return;
        };
        let node = entry.passed.node;
        if table.present.get(&node) == Some(&self.peer) {
            let others = table
                .entries
                .iter()
                .filter(|(_, other)| other.passed.node == node);
            let best = others.max_by_key(|(_, other)| other.passed.rank());
            match best.map(|(key, _)| *key) {
                Some(key) => drop(table.present.insert(node, key)),
                None => drop(table.present.remove(&node)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_ed25519(&[n; 32])
    }

    /// Two nodes and their keys.
    struct Pair {
        small: Arc<Claims>,
        large: Arc<Claims>,
        keys: (PeerId, PeerId),
        now: Instant,
    }

    fn pair() -> Pair {
        Pair {
            small: Claims::new(node(1)),
            large: Claims::new(node(2)),
            keys: (PeerId::random(), PeerId::random()),
            now: Instant::now(),
        }
    }

    fn passed(n: u8, own_generation: u32, generation: u32) -> Passed {
        let admitted = Admitted {
            node: node(n),
            generation,
        };
        let hello = Hello {
            port: 1,
            credential: vec![],
        };
        Passed::new(admitted, own_generation, hello)
    }

    impl Pair {
        fn by_small(&self, dialled: bool, after: Duration) -> Option<Claim> {
            self.small
                .claim(self.keys.1, passed(2, 0, 0), dialled, self.now + after)
        }
    }

    #[test]
    fn exactly_one_side_chooses() {
        let pair = pair();
        assert!(pair.small.chooses(&node(2)) && !pair.large.chooses(&node(1)));
    }

    #[test]
    fn of_two_connections_at_the_same_moment_the_first_lives_whoever_dialled() {
        let pair = pair();
        for (first, second) in [(true, false), (false, true), (true, true), (false, false)] {
            let claim = pair.by_small(first, Duration::ZERO);
            assert!(claim.is_some());
            assert!(pair.by_small(second, Duration::from_secs(1)).is_none());
        }
    }

    #[test]
    fn a_peer_that_dials_anew_replaces_its_dead_connection() {
        let pair = pair();
        let dead = pair.by_small(true, Duration::ZERO);
        let fresh = pair.by_small(false, SAME_MOMENT);
        assert!(fresh.is_some());
        drop(dead);
        assert!(
            pair.small.is_claimed(&pair.keys.1, 0),
            "the end of the old connection must not free the claim of the new one"
        );
        drop(fresh);
        assert!(!pair.small.is_claimed(&pair.keys.1, 0));
    }

    #[test]
    fn the_side_that_does_not_choose_follows() {
        let pair = pair();
        let claim = |dialled| pair.large.claim(pair.keys.0, passed(1, 0, 0), dialled, pair.now);
        let (first, second) = (claim(true), claim(false));
        assert!(first.is_some() && second.is_some());
    }

    #[test]
    fn connection_by_a_newer_key_of_either_side_replaces_the_older_and_never_the_other_way() {
        let pair = pair();
        let newer = PeerId::random();
        for claims in [&pair.small, &pair.large] {
            let other = if Arc::ptr_eq(claims, &pair.small) { 2 } else { 1 };
            let claim =
                |key, own, theirs, dialled| claims.claim(key, passed(other, own, theirs), dialled, pair.now);
            let old = claim(pair.keys.1, 0, 0, true);
            let by_their_new_key = claim(newer, 0, 1, true);
            assert!(old.is_some() && by_their_new_key.is_some());
            let back = claim(PeerId::random(), 0, 0, false);
            assert_eq!(
                back.is_none(),
                claims.chooses(&node(other)),
                "the older connection comes late"
            );
            drop(back);
            assert!(
                !claims.is_claimed(&newer, 1),
                "this node has a newer key than that connection"
            );
            let by_both = claim(newer, 1, 1, true);
            assert!(by_both.is_some() && claims.is_claimed(&newer, 1));
            drop((old, by_their_new_key));
            assert!(
                claims.is_claimed(&newer, 1),
                "the ends of the old ones free nothing"
            );
            drop(by_both);
            assert!(claim(pair.keys.1, 0, 0, false).is_some());
        }
    }

    #[test]
    fn both_sides_give_a_connection_the_same_rank() {
        for (own, theirs) in [(0, 0), (3, 1), (1, 3)] {
            assert_eq!(passed(1, own, theirs).rank(), passed(1, theirs, own).rank());
        }
    }
}
