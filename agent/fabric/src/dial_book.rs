//! Which addresses to dial, and when. No I/O and no clock: the caller brings time and randomness.
//!
//! Bootstrap addresses stay for ever, learned ones until they failed [`GIVE_UP`] times in a row. An address whose peer is
//! connected rests. Bounds: [`LEARNED`] learned addresses, [`DIALS`] dials at a time.

use crate::address::Target;
use libp2p::PeerId;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Longest pause between two attempts.
pub(crate) const MAX_PAUSE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Pause after an address turned out to be our own.
const OWN_PAUSE: Duration = Duration::from_secs(60);
/// Addresses that are not from the configuration.
pub(crate) const LEARNED: usize = 1024;
/// Dials at a time.
pub(crate) const DIALS: usize = 32;
/// Attempts after which a learned address is forgotten: about ten minutes.
const GIVE_UP: u32 = 120;

#[derive(Debug)]
struct Entry {
    permanent: bool,
    /// Who answered there last.
    peer: Option<PeerId>,
    failures: u32,
    attempts: u32,
    next: Instant,
    dialling: bool,
}

/// The addresses.
#[derive(Debug, Default)]
pub(crate) struct DialBook {
    entries: HashMap<Target, Entry>,
}

impl DialBook {
    /// Adds an address. A learned one is not taken when the book is full.
    pub(crate) fn add(&mut self, target: Target, permanent: bool, now: Instant) {
        let learned = self.entries.values().filter(|entry| !entry.permanent).count();
        if let Some(entry) = self.entries.get_mut(&target) {
            entry.permanent |= permanent;
            return;
        }
        if permanent || learned < LEARNED {
            let entry = Entry {
                permanent,
                peer: None,
                failures: 0,
                attempts: 0,
                next: now,
                dialling: false,
            };
            self.entries.insert(target, entry);
        }
    }

    /// What to dial now, each with the number of its attempt. They count as being dialled until they are reported.
    pub(crate) fn start_due(
        &mut self,
        now: Instant,
        connected: impl Fn(&PeerId) -> bool,
    ) -> Vec<(Target, u32)> {
        let free = DIALS.saturating_sub(self.entries.values().filter(|entry| entry.dialling).count());
        let mut due: Vec<_> = self
            .entries
            .iter_mut()
            .filter(|(_, entry)| entry.wants_dial(&connected) && entry.next <= now)
            .collect();
        due.sort_by_key(|(_, entry)| entry.next);
        due.truncate(free);
        due.into_iter()
            .map(|(target, entry)| {
                entry.dialling = true;
                entry.attempts = entry.attempts.wrapping_add(1);
                (*target, entry.attempts.wrapping_sub(1))
            })
            .collect()
    }

    /// When [`DialBook::start_due`] may have something.
    pub(crate) fn next_due(&self, connected: impl Fn(&PeerId) -> bool) -> Option<Instant> {
        self.entries
            .values()
            .filter(|entry| entry.wants_dial(&connected))
            .map(|entry| entry.next)
            .min()
    }

    /// `peer` answered at `target`, be it that this connection lives or another one of it.
    pub(crate) fn answered(&mut self, target: &Target, peer: PeerId, now: Instant) {
        if let Some(entry) = self.entries.get_mut(target) {
            (entry.peer, entry.failures, entry.dialling) = (Some(peer), 0, false);
            entry.next = now + FIRST_PAUSE;
        }
    }

    /// The address is our own.
    pub(crate) fn is_own(&mut self, target: &Target, now: Instant) {
        if let Some(entry) = self.entries.get_mut(target) {
            (entry.failures, entry.dialling) = (0, false);
            entry.next = now + OWN_PAUSE;
        }
    }

    /// Nobody answered, or not a member. `jitter` in 0..1 keeps nodes that failed together from coming back together.
    pub(crate) fn failed(&mut self, target: &Target, now: Instant, jitter: f64) {
        let Some(entry) = self.entries.get_mut(target) else {
            return;
        };
        entry.dialling = false;
        entry.failures = entry.failures.saturating_add(1);
        entry.next = now + pause(entry.failures, jitter);
        if !entry.permanent && entry.failures >= GIVE_UP {
            self.entries.remove(target);
        }
    }

    /// This machine has an address that it had not before: what could not be reached is tried at once, as if for the first
    /// time, and no report of a dial before that is expected any more.
    pub(crate) fn start_over(&mut self, now: Instant) {
        // An address of a connected peer, or of this machine itself, has no failure and rests on.
        let unreached = |entry: &&mut Entry| entry.dialling || entry.failures > 0;
        for entry in self.entries.values_mut().filter(unreached) {
            (entry.failures, entry.attempts, entry.dialling, entry.next) = (0, 0, false, now);
        }
    }

    /// The connection to `peer` is gone: its addresses are tried again, at once but not at the same moment.
    pub(crate) fn lost(&mut self, peer: &PeerId, now: Instant, jitter: f64) {
        for entry in self
            .entries
            .values_mut()
            .filter(|entry| entry.peer.as_ref() == Some(peer))
        {
            entry.failures = 0;
            entry.next = now + pause(1, jitter);
        }
    }
}

impl Entry {
    fn wants_dial(&self, connected: &impl Fn(&PeerId) -> bool) -> bool {
        !self.dialling && !self.peer.as_ref().is_some_and(connected)
    }
}

/// Exponential from a quarter of a second to [`MAX_PAUSE`], of which the jitter takes up to a half.
fn pause(failures: u32, jitter: f64) -> Duration {
    let full = FIRST_PAUSE
        .saturating_mul(1 << failures.saturating_sub(1).min(10))
        .min(MAX_PAUSE);
    full.mul_f64(1.0 - 0.5 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(port: u16) -> Target {
        Target::parse(&format!("127.0.0.1:{port}")).unwrap()
    }

    proptest! {
        #[test]
        fn a_pause_is_jittered_and_never_over_the_cap(failures in 0u32.., jitter in -1.0..2.0f64) {
            let pause = pause(failures, jitter);
            prop_assert!(pause >= FIRST_PAUSE / 2 && pause <= MAX_PAUSE);
        }
    }

    #[test]
    fn pauses_grow() {
        assert!(pause(1, 0.5) < pause(2, 0.5) && pause(4, 0.5) < pause(5, 0.5));
        assert_eq!(pause(40, 0.0), MAX_PAUSE);
    }

    #[test]
    fn a_bootstrap_address_is_dialled_for_ever_and_a_learned_one_is_forgotten() {
        let mut book = DialBook::default();
        let mut now = Instant::now();
        book.add(target(1), true, now);
        book.add(target(2), false, now);
        for _ in 0..GIVE_UP {
            let due = book.start_due(now, |_| false);
            assert_eq!(due.len(), 2);
            for (target, _) in due {
                book.failed(&target, now, 0.5);
            }
            now += MAX_PAUSE;
        }
        let due = book.start_due(now, |_| false);
        assert_eq!(
            due.iter().map(|(target, _)| *target).collect::<Vec<_>>(),
            vec![target(1)]
        );
    }

    #[test]
    fn the_address_of_a_connected_peer_rests_until_it_is_lost() {
        let mut book = DialBook::default();
        let now = Instant::now();
        let peer = PeerId::random();
        book.add(target(1), true, now);
        assert_eq!(book.start_due(now, |_| false).len(), 1);
        assert_eq!(book.start_due(now, |_| false).len(), 0, "it is being dialled");
        book.answered(&target(1), peer, now);
        assert_eq!(book.start_due(now + MAX_PAUSE, |other| *other == peer).len(), 0);
        assert_eq!(book.next_due(|other| *other == peer), None);
        book.lost(&peer, now + MAX_PAUSE, 0.0);
        assert_eq!(book.start_due(now + 2 * MAX_PAUSE, |_| false).len(), 1);
    }

    #[test]
    fn a_new_address_of_this_machine_ends_all_pauses_and_what_hangs() {
        let mut book = DialBook::default();
        let now = Instant::now();
        let (refused, hanging, connected, own) = (target(1), target(2), target(3), target(4));
        for target in [refused, hanging, connected, own] {
            book.add(target, true, now);
        }
        assert_eq!(book.start_due(now, |_| false).len(), 4);
        let peer = PeerId::random();
        for _ in 0..10 {
            book.failed(&refused, now, 0.0);
        }
        book.answered(&connected, peer, now);
        book.is_own(&own, now);
        let is_peer = |other: &PeerId| *other == peer;
        assert_eq!(book.start_due(now + FIRST_PAUSE, is_peer), vec![]);
        book.start_over(now + FIRST_PAUSE);
        let mut due = book.start_due(now + FIRST_PAUSE, is_peer);
        due.sort_by_key(|(target, _)| target.socket);
        assert_eq!(due, vec![(refused, 0), (hanging, 0)]);
        book.failed(&refused, now + FIRST_PAUSE, 0.0);
        assert_eq!(book.next_due(is_peer), Some(now + 2 * FIRST_PAUSE));
    }

    #[test]
    fn the_book_takes_no_more_learned_addresses_than_it_has_room_for_and_bootstrap_always() {
        let mut book = DialBook::default();
        let now = Instant::now();
        for port in 1..=(LEARNED as u16 + 10) {
            book.add(target(port), false, now);
        }
        book.add(target(60000), true, now);
        assert_eq!(book.entries.len(), LEARNED + 1);
        assert_eq!(book.start_due(now, |_| false).len(), DIALS);
        assert_eq!(book.start_due(now, |_| false).len(), 0);
    }
}
