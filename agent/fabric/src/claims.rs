//! Which of several connections between the same two peers lives. No I/O; the caller brings the time.
//!
//! Two nodes often dial each other at the same moment, over two transports. Of each pair the one with the smaller peer id
//! chooses, so both sides always agree. It keeps the connection it has, unless the other one dials anew some time later:
//! a node does not dial a peer it is connected to, so the old connection must be dead on its side.

use crate::hello::Hello;
use libp2p::PeerId;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// For this long a second connection counts as made at the same moment: longer than a round trip, shorter than the time
/// after which a restarted node would be missed.
const SAME_MOMENT: Duration = Duration::from_secs(3);

#[derive(Debug)]
struct Entry {
    ticket: u64,
    made: Instant,
    hello: Arc<Hello>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<PeerId, Entry>,
    next: u64,
}

/// The connections that have been chosen, one per peer.
#[derive(Debug)]
pub(crate) struct Claims {
    own: PeerId,
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
    pub(crate) fn new(own: PeerId) -> Arc<Self> {
        Arc::new(Self {
            own,
            table: Mutex::default(),
        })
    }

    pub(crate) fn own(&self) -> &PeerId {
        &self.own
    }

    pub(crate) fn is_claimed(&self, peer: &PeerId) -> bool {
        self.lock().entries.contains_key(peer)
    }

    /// What the peer of the present connection showed.
    pub(crate) fn hello(&self, peer: &PeerId) -> Option<Arc<Hello>> {
        self.lock().entries.get(peer).map(|entry| entry.hello.clone())
    }

    /// Whether this side chooses for the pair.
    pub(crate) fn chooses(&self, peer: &PeerId) -> bool {
        self.own.to_bytes() < peer.to_bytes()
    }

    /// Claims the peer for a new connection, dialled by us or by it. `None`: the connection is one too many.
    pub(crate) fn claim(
        self: &Arc<Self>,
        peer: PeerId,
        hello: Hello,
        dialled_by_us: bool,
        now: Instant,
    ) -> Option<Claim> {
        let chooses = self.chooses(&peer);
        let mut table = self.lock();
        if let Some(entry) = table.entries.get(&peer)
            && chooses
            && (dialled_by_us || now.saturating_duration_since(entry.made) < SAME_MOMENT)
        {
            return None;
        }
        table.next += 1;
        let ticket = table.next;
        table.entries.insert(
            peer,
            Entry {
                ticket,
                made: now,
                hello: Arc::new(hello),
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
        if table
            .entries
            .get(&self.peer)
            .is_some_and(|entry| entry.ticket == self.ticket)
        {
            table.entries.remove(&self.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Arc<Claims>, Arc<Claims>) {
        let (a, b) = (PeerId::random(), PeerId::random());
        let (small, large) = if a.to_bytes() < b.to_bytes() {
            (a, b)
        } else {
            (b, a)
        };
        (Claims::new(small), Claims::new(large))
    }

    fn hello() -> Hello {
        Hello {
            port: 1,
            credential: vec![],
        }
    }

    #[test]
    fn exactly_one_side_chooses() {
        let (small, large) = pair();
        assert!(small.chooses(large.own()) && !large.chooses(small.own()));
    }

    #[test]
    fn of_two_connections_at_the_same_moment_the_first_lives_whoever_dialled() {
        let (small, large) = pair();
        let now = Instant::now();
        for (first, second) in [(true, false), (false, true), (true, true), (false, false)] {
            let claim = small.claim(*large.own(), hello(), first, now);
            assert!(claim.is_some());
            assert!(
                small
                    .claim(*large.own(), hello(), second, now + Duration::from_secs(1))
                    .is_none()
            );
        }
    }

    #[test]
    fn a_peer_that_dials_anew_replaces_its_dead_connection() {
        let (small, large) = pair();
        let now = Instant::now();
        let dead = small.claim(*large.own(), hello(), true, now);
        let fresh = small.claim(*large.own(), hello(), false, now + SAME_MOMENT);
        assert!(fresh.is_some());
        drop(dead);
        assert!(
            small.is_claimed(large.own()),
            "the end of the old connection must not free the claim of the new one"
        );
        drop(fresh);
        assert!(!small.is_claimed(large.own()));
    }

    #[test]
    fn the_side_that_does_not_choose_follows() {
        let (small, large) = pair();
        let now = Instant::now();
        let first = large.claim(*small.own(), hello(), true, now);
        let second = large.claim(*small.own(), hello(), false, now);
        assert!(first.is_some() && second.is_some());
    }
}
