//! What time the members have: readings of their clocks in, the median out. Pure.
//!
//! A reading is not a difference to this machine's clock but the time at which this machine started, by the member's clock:
//! so nothing that sets the own clock spoils it. Knows neither what a member answered with nor what is done with the
//! result. Invariants (tested below): no result without two members; wrong clocks that are fewer than half of the votes
//! do not move it out of the range of the right ones; what is remembered is bounded by the members that are connected.

use crate::Millis;
use beemesh_ids::PeerId;
use std::collections::BTreeMap;

/// Members asked in one round.
pub const ROUND: usize = 8;
/// A reading is used for this long, in milliseconds.
pub const READING_AGE: u64 = 600_000;
/// A reading that may be further off than this is of no use, in microseconds.
pub const ERROR_MOST_US: u64 = 1_000_000;
/// Other members whose clocks must be known.
pub const MEMBERS_LEAST: usize = 2;
/// Two votes alone must be this close, in microseconds: of more, the median outvotes one that is wrong.
pub const AGREE_US: u64 = 60_000_000;

/// A member's clock, read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// When this machine started, by the member's clock: microseconds since the Unix epoch.
    pub origin_us: i64,
    /// How far that may be off: half of the round trip.
    pub error_us: u64,
}

/// What the members' clocks say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Median {
    /// When this machine started, in microseconds since the Unix epoch.
    pub origin_us: i64,
    /// How far the readings that it is from may be off.
    pub error_us: u64,
    /// Members that have voted, this node not among them.
    pub members: usize,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    asked: Millis,
    reading: Option<(Millis, Reading)>,
}

/// The clocks of the members that are connected.
#[derive(Debug, Clone, Default)]
pub struct MemberClocks {
    known: BTreeMap<PeerId, Known>,
}

impl MemberClocks {
    /// Whom to ask now: those that were not asked for longest, at most [`ROUND`]. Who is not `connected` is forgotten.
    pub fn ask(&mut self, now: Millis, connected: &[PeerId]) -> Vec<PeerId> {
        self.known.retain(|peer, _| connected.contains(peer));
        let asked = |peer: &PeerId| self.known.get(peer).map(|known| known.asked);
        let mut due: Vec<PeerId> = connected.to_vec();
        due.sort_by_key(asked);
        due.truncate(ROUND);
        for peer in &due {
            let reading = self.known.get(peer).and_then(|known| known.reading);
            self.known.insert(peer.clone(), Known { asked: now, reading });
        }
        due
    }

    /// What a member that was asked has answered; `None`: nothing, or that its clock is only a guess.
    pub fn heard(&mut self, now: Millis, peer: &PeerId, reading: Option<Reading>) {
        if let Some(known) = self.known.get_mut(peer) {
            known.reading = reading
                .filter(|reading| reading.error_us <= ERROR_MOST_US)
                .map(|reading| (now, reading));
        }
    }

    /// The median; `own` is this node's clock as a reading, where it is more than a guess, and votes like the others.
    /// All nodes then have the same votes, and come to the same time at once.
    #[must_use]
    pub fn median(&self, now: Millis, own: Option<Reading>) -> Option<Median> {
        let fresh = |known: &Known| {
            known
                .reading
                .filter(|(heard, _)| now.since(*heard) <= READING_AGE)
                .map(|(_, reading)| reading)
        };
        let mut votes: Vec<Reading> = self.known.values().filter_map(fresh).collect();
        let members = votes.len();
        if members < MEMBERS_LEAST {
            return None;
        }
        votes.extend(own);
        votes.sort_by_key(|vote| vote.origin_us);
        let upper = *votes.get(votes.len() / 2)?;
        let lower = *votes.get((votes.len() - 1) / 2)?;
        let apart = upper.origin_us.abs_diff(lower.origin_us);
        if votes.len() == 2 && apart > AGREE_US {
            return None;
        }
        let half = i64::try_from(apart / 2).unwrap_or(i64::MAX);
        Some(Median {
            origin_us: lower.origin_us.saturating_add(half),
            error_us: lower.error_us.max(upper.error_us),
            members,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer(n: u16) -> PeerId {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        PeerId::from_ed25519(&key)
    }

    fn peers(count: usize) -> Vec<PeerId> {
        (0..count).map(|n| peer(n as u16)).collect()
    }

    fn at(origin_us: i64) -> Reading {
        Reading {
            origin_us,
            error_us: 10,
        }
    }

    /// All of them were asked, in as many rounds as it takes, and have answered this.
    fn read(origins: &[i64]) -> MemberClocks {
        let (mut clocks, all) = (MemberClocks::default(), peers(origins.len()));
        for _ in 0..origins.len().div_ceil(ROUND) {
            clocks.ask(Millis(0), &all);
        }
        for (peer, origin) in all.iter().zip(origins) {
            clocks.heard(Millis(0), peer, Some(at(*origin)));
        }
        clocks
    }

    fn origin(clocks: &MemberClocks, own: Option<i64>) -> Option<i64> {
        clocks
            .median(Millis(0), own.map(at))
            .map(|median| median.origin_us)
    }

    #[test]
    fn one_member_is_not_enough_and_two_must_agree() {
        assert_eq!(origin(&read(&[]), Some(5)), None);
        assert_eq!(origin(&read(&[5]), Some(5)), None);
        assert_eq!(origin(&read(&[5, 7]), None), Some(6));
        let apart = AGREE_US as i64;
        assert_eq!(origin(&read(&[5, 5 + apart]), None), Some(5 + apart / 2));
        assert_eq!(origin(&read(&[5, 6 + apart]), None), None);
    }

    #[test]
    fn single_liar_among_three_does_not_move_it() {
        for lie in [i64::MIN, -1, i64::MAX] {
            assert!(
                (100..=110).contains(&origin(&read(&[100, 110, lie]), None).unwrap()),
                "{lie}"
            );
            assert!(
                (100..=110).contains(&origin(&read(&[100, lie]), Some(110)).unwrap()),
                "{lie}"
            );
        }
    }

    #[test]
    fn reading_ages_is_replaced_and_goes_with_its_member() {
        let mut clocks = read(&[1, 2, 3]);
        assert!(clocks.median(Millis(READING_AGE), None).is_some());
        assert_eq!(clocks.median(Millis(READING_AGE + 1), None), None);
        clocks.heard(Millis(5), &peer(0), None);
        assert_eq!(clocks.median(Millis(5), None).unwrap().members, 2);
        clocks.heard(Millis(5), &peer(9), Some(at(7)));
        assert_eq!(
            clocks.median(Millis(5), None).unwrap().members,
            2,
            "nobody asked it"
        );
        let slow = Reading {
            origin_us: 3,
            error_us: ERROR_MOST_US + 1,
        };
        clocks.heard(Millis(5), &peer(2), Some(slow));
        assert_eq!(clocks.median(Millis(5), None), None);
        let mut clocks = read(&[1, 2, 3]);
        clocks.ask(Millis(6), &peers(1));
        assert_eq!(clocks.median(Millis(6), None), None);
    }

    #[test]
    fn all_are_asked_in_turn() {
        let (mut clocks, all) = (MemberClocks::default(), peers(20));
        let rounds: Vec<Vec<PeerId>> = (0..30).map(|n| clocks.ask(Millis(n), &all)).collect();
        assert!(rounds.iter().all(|round| round.len() == ROUND));
        for three in rounds.windows(3) {
            let asked = |peer: &PeerId| three.iter().flatten().any(|asked| asked == peer);
            assert!(all.iter().all(asked), "20 members in three rounds of 8");
        }
        assert_eq!(clocks.known.len(), 20);
    }

    proptest! {
        #[test]
        fn invariant_wrong_clocks_below_half_do_not_leave_the_range_of_the_right_ones(
            right in prop::collection::vec(-2_000_000_000i64..2_000_000_000, 2..40),
            wrong in prop::collection::vec(any::<i64>(), 0..40),
            own in any::<bool>(),
        ) {
            let wrong = &wrong[..wrong.len().min(right.len() - 1)];
            let range = *right.iter().min().unwrap()..=*right.iter().max().unwrap();
            let (mine, others) = right.split_first().unwrap();
            let (mine, others) = if own { (Some(*mine), others) } else { (None, &right[..]) };
            let clocks = read(&[others, wrong].concat());
            match origin(&clocks, mine) {
                Some(origin) => prop_assert!(range.contains(&origin), "{origin} {range:?}"),
                None => prop_assert!(others.len() + wrong.len() <= 2),
            }
        }

        #[test]
        fn invariant_nodes_that_hear_each_other_come_to_the_same_time(
            origins in prop::collection::vec(any::<i64>(), 3..20),
        ) {
            let results = (0..origins.len()).map(|me| {
                let mut others = origins.clone();
                let mine = others.remove(me);
                origin(&read(&others), Some(mine))
            });
            let results: Vec<_> = results.collect();
            prop_assert!(results[0].is_some() && results.iter().all(|result| *result == results[0]));
        }
    }
}
