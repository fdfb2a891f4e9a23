//! The arbiter: who may hold an ordinal. The safety argument is in `SPEC.md`, "Grants".
//!
//! It starts nothing and asks nobody. Invariant: the token of an ordinal never falls, and no second holder is granted
//! while the first is alive as far as this arbiter knows.

use crate::model::{GrantRecord, Key, Millis};
use crate::wire::{Claim, Refusal, Renewal};
use beemesh_ids::PeerId;
use std::collections::{BTreeMap, BTreeSet};

/// Most ordinals that an arbiter keeps.
pub const MAX_GRANTS: usize = 65_536;

struct Kept {
    record: GrantRecord,
    granted_at: Millis,
    /// Whose lease this vote is bound to, and until when: that copy may run until then, seen or not.
    bound: Option<(PeerId, Millis)>,
}

impl Kept {
    /// Another than `from` has this vote now.
    fn bound_to_other(&self, from: &PeerId, now: Millis) -> Option<&PeerId> {
        self.bound
            .as_ref()
            .filter(|(who, until)| who != from && now < *until)
            .map(|(who, _)| who)
    }

    fn free(&mut self) {
        let holder = self.record.holder.take();
        self.record.leased = false;
        if self.bound.as_ref().map(|(who, _)| who) == holder.as_ref() {
            self.bound = None;
        }
    }
}

#[derive(Default)]
pub(crate) struct Grants {
    kept: BTreeMap<Key, Kept>,
    full: usize,
}

/// What the arbiter must know to judge a claim.
pub(crate) struct Judged<'a> {
    pub(crate) from: &'a PeerId,
    /// The claimant's roster is the arbiter's, and the arbiter is one for this ordinal.
    pub(crate) same_roster: bool,
    /// Every member that may be alive has said what it holds, under this roster.
    pub(crate) settled: bool,
    /// Someone else alive that is seen running it.
    pub(crate) running: Option<PeerId>,
    /// The claimant will fence itself: until then this vote is bound.
    pub(crate) leased_until: Option<Millis>,
}

impl Grants {
    /// `leased_until`: when the last lease that was renewed before the start has run out.
    pub(crate) fn new(records: Vec<GrantRecord>, now: Millis, leased_until: Millis) -> Self {
        let kept = records.into_iter().map(|record| {
            let key = (record.workload.clone(), record.ordinal);
            let bound = record.holder.clone().map(|holder| (holder, leased_until));
            (
                key,
                Kept {
                    record,
                    granted_at: now,
                    bound,
                },
            )
        });
        Self {
            kept: kept.collect(),
            full: MAX_GRANTS,
        }
    }

    #[cfg(test)]
    pub(crate) fn bounded(full: usize) -> Self {
        Self {
            full,
            ..Self::new(Vec::new(), Millis(0), Millis(0))
        }
    }

    pub(crate) fn token(&self, key: &Key) -> u64 {
        self.kept.get(key).map_or(0, |kept| kept.record.token)
    }

    pub(crate) fn holder(&self, key: &Key) -> Option<&PeerId> {
        self.kept.get(key)?.record.holder.as_ref()
    }

    /// Judges a claim. `Ok`: the record to make durable (`None`: it is already) and the ghosts to tell.
    pub(crate) fn claim(
        &mut self,
        now: Millis,
        claim: &Claim,
        judged: &Judged<'_>,
        may_be_alive: impl Fn(&PeerId) -> bool,
    ) -> Result<(Option<GrantRecord>, BTreeSet<PeerId>), Refusal> {
        if !judged.same_roster {
            return Err(Refusal::Roster);
        }
        let from = judged.from;
        let mut ghosts = BTreeSet::new();
        let mut repeated = false;
        if let Some(kept) = self.kept.get(&claim.key) {
            let record = &kept.record;
            if let Some(holder) = kept.bound_to_other(from, now) {
                return Err(Refusal::Held {
                    holder: holder.clone(),
                });
            }
            ghosts.clone_from(&record.ghosts);
            match &record.holder {
                Some(holder) if holder == from => repeated = claim.token == record.token,
                Some(holder) if may_be_alive(holder) => {
                    return Err(Refusal::Held {
                        holder: holder.clone(),
                    });
                }
                // Its lease ran out: it has stopped by itself.
                Some(_) if record.leased => {}
                Some(holder) => {
                    ghosts.insert(holder.clone());
                }
                None => {}
            }
        }
        if !judged.settled {
            return Err(Refusal::Unsettled);
        }
        if let Some(holder) = &judged.running {
            return Err(Refusal::Held {
                holder: holder.clone(),
            });
        }
        if let Some(kept) = self.kept.get(&claim.key)
            && !repeated
            && claim.token <= kept.record.token
        {
            return Err(Refusal::Stale {
                token: kept.record.token,
            });
        }
        ghosts.remove(from);
        let (workload, ordinal) = claim.key.clone();
        let leased = judged.leased_until.is_some();
        let (holder, token) = (Some(from.clone()), claim.token);
        let record = GrantRecord {
            workload,
            ordinal,
            token,
            holder,
            ghosts: ghosts.clone(),
            leased,
        };
        let known = self
            .kept
            .get(&claim.key)
            .is_some_and(|kept| kept.record == record);
        if !self.keep(now, record.clone(), judged.leased_until) {
            return Err(Refusal::Full);
        }
        Ok(((!known).then_some(record), ghosts))
    }

    /// Learns from a holder's own word that it holds an ordinal: after a change of the roster, or of the arbiter's disk.
    pub(crate) fn adopt(
        &mut self,
        now: Millis,
        key: &Key,
        from: &PeerId,
        token: u64,
        ghosts: &BTreeSet<PeerId>,
        leased_until: Option<Millis>,
    ) -> Option<GrantRecord> {
        let mut ghosts = ghosts.clone();
        if let Some(Kept { record, .. }) = self.kept.get(key) {
            let other = record.holder.as_ref().filter(|holder| *holder != from);
            let newer = match (token.cmp(&record.token), other) {
                (std::cmp::Ordering::Greater, _) => true,
                (std::cmp::Ordering::Equal, Some(other)) => from > other,
                _ => false,
            };
            if !newer {
                return None;
            }
            ghosts.extend(record.ghosts.iter().cloned());
            ghosts.extend(other.filter(|_| !record.leased).cloned());
        }
        ghosts.remove(from);
        let record = GrantRecord {
            workload: key.0.clone(),
            ordinal: key.1,
            token,
            holder: Some(from.clone()),
            leased: leased_until.is_some(),
            ghosts,
        };
        self.keep(now, record.clone(), None).then_some(record)
    }

    /// Takes a renewal. `Some`: it counts, with the record to make durable where it differs and the ghosts to tell.
    /// A vote that was bound by a lease stays bound for as long, also where the holder asks to be free.
    pub(crate) fn renew(
        &mut self,
        now: Millis,
        renewal: &Renewal,
        from: &PeerId,
        leased_until: Millis,
    ) -> Option<(Option<GrantRecord>, BTreeSet<PeerId>)> {
        let Renewal {
            key,
            token,
            ghosts,
            leased,
        } = renewal;
        if *leased
            && self
                .kept
                .get(key)
                .is_some_and(|kept| kept.bound_to_other(from, now).is_some())
        {
            return None;
        }
        let leased_until = leased.then_some(leased_until);
        let adopted = self.adopt(now, key, from, *token, ghosts, leased_until);
        let kept = self.kept.get_mut(key)?;
        let before = kept.record.clone();
        if kept.record.holder.is_none() && *leased {
            // Others asked for it meanwhile and gave up: nobody stands between the vote and the copy that runs.
            kept.record.holder = Some(from.clone());
        }
        if kept.record.token < *token || kept.record.holder.as_ref() != Some(from) {
            return None;
        }
        kept.record
            .ghosts
            .extend(ghosts.iter().filter(|ghost| *ghost != from).cloned());
        kept.record.leased = *leased || before.leased && !kept.record.ghosts.is_empty();
        kept.bound = leased_until
            .map(|until| (from.clone(), until))
            .or(kept.bound.take());
        let differs = adopted.is_some() || kept.record != before;
        Some((differs.then(|| kept.record.clone()), kept.record.ghosts.clone()))
    }

    /// Takes an ordinal back from its holder.
    pub(crate) fn release(&mut self, key: &Key, from: &PeerId, token: u64) -> Option<GrantRecord> {
        let kept = self.kept.get_mut(key)?;
        if kept.record.token > token || kept.record.holder.as_ref() != Some(from) {
            return None;
        }
        kept.free();
        Some(kept.record.clone())
    }

    /// A member that is alive and knows what it holds does not hold these: it is no ghost of them.
    pub(crate) fn lay_ghost(&mut self, peer: &PeerId, holds: impl Fn(&Key) -> bool) -> Vec<GrantRecord> {
        let mut changed = Vec::new();
        for (key, kept) in &mut self.kept {
            if kept.record.ghosts.contains(peer) && !holds(key) {
                kept.record.ghosts.remove(peer);
                changed.push(kept.record.clone());
            }
        }
        changed
    }

    /// All ghosts of all ordinals.
    pub(crate) fn ghosts(&self) -> BTreeSet<PeerId> {
        self.kept
            .values()
            .flat_map(|kept| &kept.record.ghosts)
            .cloned()
            .collect()
    }

    /// Releases what its holder, alive and heard since the grant, says not to hold; a release may have been lost.
    pub(crate) fn tidy(&mut self, denies: impl Fn(&PeerId, &Key, Millis) -> bool) -> Vec<GrantRecord> {
        let mut changed = Vec::new();
        for (key, kept) in &mut self.kept {
            let denied = kept
                .record
                .holder
                .as_ref()
                .is_some_and(|holder| denies(holder, key, kept.granted_at));
            if denied {
                kept.free();
                changed.push(kept.record.clone());
            }
        }
        changed
    }

    fn keep(&mut self, now: Millis, record: GrantRecord, leased_until: Option<Millis>) -> bool {
        let key = (record.workload.clone(), record.ordinal);
        if self.kept.len() >= self.full && !self.kept.contains_key(&key) {
            // What nobody holds and nobody haunts protects nothing.
            self.kept
                .retain(|_, kept| kept.record.holder.is_some() || !kept.record.ghosts.is_empty());
            if self.kept.len() >= self.full {
                return false;
            }
        }
        // A vote stays bound by a lease, also of an earlier holder.
        let before = self.kept.get(&key).and_then(|kept| kept.bound.clone());
        let bound = record.holder.clone().zip(leased_until).or(before);
        self.kept.insert(
            key,
            Kept {
                record,
                granted_at: now,
                bound,
            },
        );
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_agent_api::{WorkloadId, WorkloadKind};

    fn peer(n: u8) -> PeerId {
        PeerId::from_ed25519(&[n; 32])
    }

    fn key(ordinal: u32) -> Key {
        (
            WorkloadId {
                namespace: "d".into(),
                kind: WorkloadKind::Deployment,
                name: "w".into(),
            },
            ordinal,
        )
    }

    fn judged(from: &PeerId) -> Judged<'_> {
        Judged {
            from,
            same_roster: true,
            settled: true,
            running: None,
            leased_until: None,
        }
    }

    fn claim(
        grants: &mut Grants,
        at: u64,
        n: u8,
        token: u64,
        alive: bool,
    ) -> Result<BTreeSet<PeerId>, Refusal> {
        let claim = Claim {
            key: key(0),
            token,
            roster: 1,
            third: false,
        };
        grants
            .claim(Millis(at), &claim, &judged(&peer(n)), |_| alive)
            .map(|(_, ghosts)| ghosts)
    }

    #[test]
    fn no_second_holder_while_the_first_may_be_alive() {
        let mut grants = Grants::new(vec![], Millis(0), Millis(0));
        assert_eq!(claim(&mut grants, 0, 1, 1, true), Ok(BTreeSet::new()));
        assert_eq!(claim(&mut grants, 0, 1, 1, true), Ok(BTreeSet::new()));
        assert_eq!(
            claim(&mut grants, 0, 2, 2, true),
            Err(Refusal::Held { holder: peer(1) })
        );
        assert_eq!(claim(&mut grants, 0, 2, 2, false), Ok(BTreeSet::from([peer(1)])));
    }

    #[test]
    fn released_ordinals_are_granted_by_a_higher_token_only() {
        let mut grants = Grants::new(vec![], Millis(0), Millis(0));
        claim(&mut grants, 0, 1, 5, true).unwrap();
        assert_eq!(grants.release(&key(0), &peer(2), 5), None);
        assert!(grants.release(&key(0), &peer(1), 5).is_some());
        assert_eq!(
            claim(&mut grants, 0, 2, 5, true),
            Err(Refusal::Stale { token: 5 })
        );
        assert_eq!(claim(&mut grants, 0, 2, 6, true), Ok(BTreeSet::new()));
    }

    #[test]
    fn a_vote_for_a_leased_holder_is_bound_until_its_lease_has_run_out() {
        let mut grants = Grants::new(vec![], Millis(0), Millis(0));
        let mut ask = |at, n: u8, token| {
            let claim = Claim {
                key: key(0),
                token,
                roster: 1,
                third: true,
            };
            let from = peer(n);
            let judged = Judged {
                leased_until: Some(Millis(at + 13_000)),
                ..judged(&from)
            };
            grants
                .claim(Millis(at), &claim, &judged, |_| false)
                .map(|(record, ghosts)| {
                    assert!(record.is_none_or(|record| record.leased));
                    ghosts
                })
        };
        assert_eq!(ask(0, 1, 1), Ok(BTreeSet::new()));
        assert_eq!(ask(12_999, 2, 2), Err(Refusal::Held { holder: peer(1) }));
        // It has stopped by itself: it is no ghost.
        assert_eq!(ask(13_000, 2, 2), Ok(BTreeSet::new()));
        let renewal = Renewal {
            key: key(0),
            token: 2,
            ghosts: BTreeSet::new(),
            leased: true,
        };
        assert!(
            grants
                .renew(Millis(20_000), &renewal, &peer(2), Millis(33_000))
                .is_some()
        );
        let free = Renewal {
            leased: false,
            ..renewal
        };
        assert!(
            grants
                .renew(Millis(21_000), &free, &peer(2), Millis(34_000))
                .is_some()
        );
        let claim = |grants: &mut Grants, at| claim(grants, at, 3, 3, false);
        assert_eq!(claim(&mut grants, 32_999), Err(Refusal::Held { holder: peer(2) }));
        // It was set free: it may run unseen from now on.
        assert_eq!(claim(&mut grants, 33_000), Ok(BTreeSet::from([peer(2)])));
    }

    #[test]
    fn a_running_copy_renews_also_where_others_asked_for_it_and_gave_up() {
        let mut grants = Grants::new(vec![], Millis(0), Millis(0));
        claim(&mut grants, 0, 2, 5, false).unwrap();
        let renewal = Renewal {
            key: key(0),
            token: 2,
            ghosts: BTreeSet::new(),
            leased: true,
        };
        assert_eq!(grants.renew(Millis(0), &renewal, &peer(1), Millis(13_000)), None);
        grants.release(&key(0), &peer(2), 5);
        assert!(
            grants
                .renew(Millis(0), &renewal, &peer(1), Millis(13_000))
                .is_some()
        );
        assert_eq!(
            claim(&mut grants, 12_999, 3, 6, false),
            Err(Refusal::Held { holder: peer(1) })
        );
    }

    #[test]
    fn a_vote_is_bound_to_one_holder_also_where_a_higher_token_shows_up() {
        let mut grants = Grants::new(vec![], Millis(0), Millis(0));
        let renewal = |token| Renewal {
            key: key(0),
            token,
            ghosts: BTreeSet::new(),
            leased: true,
        };
        assert!(
            grants
                .renew(Millis(0), &renewal(1), &peer(1), Millis(13_000))
                .is_some()
        );
        assert!(
            grants
                .adopt(
                    Millis(1),
                    &key(0),
                    &peer(2),
                    7,
                    &BTreeSet::new(),
                    Some(Millis(13_001))
                )
                .is_some()
        );
        assert_eq!(
            grants.renew(Millis(12_999), &renewal(7), &peer(2), Millis(25_999)),
            None
        );
        assert!(
            grants
                .renew(Millis(13_000), &renewal(7), &peer(2), Millis(26_000))
                .is_some()
        );
    }

    #[test]
    fn a_ghost_that_is_seen_without_its_copy_counts_no_more() {
        let mut grants = Grants::new(vec![], Millis(0), Millis(0));
        claim(&mut grants, 0, 1, 1, false).unwrap();
        claim(&mut grants, 0, 2, 2, false).unwrap();
        assert!(grants.lay_ghost(&peer(1), |_| true).is_empty());
        assert_eq!(grants.lay_ghost(&peer(1), |_| false).len(), 1);
        assert_eq!(claim(&mut grants, 0, 3, 3, false), Ok(BTreeSet::from([peer(2)])));
    }

    #[test]
    fn other_rosters_and_unsettled_arbiters_grant_nothing() {
        let mut grants = Grants::new(vec![], Millis(0), Millis(0));
        let claim = Claim {
            key: key(0),
            token: 1,
            roster: 1,
            third: false,
        };
        let me = peer(1);
        let other = Judged {
            same_roster: false,
            ..judged(&me)
        };
        assert_eq!(
            grants.claim(Millis(0), &claim, &other, |_| true),
            Err(Refusal::Roster)
        );
        let unsettled = Judged {
            settled: false,
            ..judged(&me)
        };
        assert_eq!(
            grants.claim(Millis(0), &claim, &unsettled, |_| true),
            Err(Refusal::Unsettled)
        );
        let running = Judged {
            running: Some(peer(9)),
            ..judged(&me)
        };
        assert_eq!(
            grants.claim(Millis(0), &claim, &running, |_| true),
            Err(Refusal::Held { holder: peer(9) })
        );
    }

    #[test]
    fn an_arbiter_adopts_what_a_holder_says_but_never_a_lower_token() {
        let mut grants = Grants::new(vec![], Millis(0), Millis(0));
        assert!(
            grants
                .adopt(Millis(0), &key(0), &peer(1), 4, &BTreeSet::new(), None)
                .is_some()
        );
        assert!(
            grants
                .adopt(Millis(0), &key(0), &peer(2), 3, &BTreeSet::new(), None)
                .is_none()
        );
        let record = grants
            .adopt(Millis(0), &key(0), &peer(2), 5, &BTreeSet::new(), None)
            .unwrap();
        assert_eq!(record.ghosts, BTreeSet::from([peer(1)]));
        assert_eq!(grants.token(&key(0)), 5);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_only_what_nobody_holds() {
        let mut grants = Grants::bounded(2);
        let mut ask = |ordinal, n: u8| {
            let claim = Claim {
                key: key(ordinal),
                token: 1,
                roster: 1,
                third: false,
            };
            grants
                .claim(Millis(0), &claim, &judged(&peer(n)), |_| true)
                .map(|_| ())
        };
        assert_eq!(ask(0, 1), Ok(()));
        assert_eq!(ask(1, 1), Ok(()));
        assert_eq!(ask(2, 1), Err(Refusal::Full));
        grants.release(&key(0), &peer(1), 1);
        let claim = Claim {
            key: key(2),
            token: 1,
            roster: 1,
            third: false,
        };
        assert!(
            grants
                .claim(Millis(0), &claim, &judged(&peer(1)), |_| true)
                .is_ok()
        );
        assert_eq!((grants.token(&key(0)), grants.token(&key(1))), (0, 1));
    }
}
