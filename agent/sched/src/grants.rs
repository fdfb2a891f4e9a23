//! The arbiter: who may hold an ordinal. The safety argument is in `SPEC.md`, "Grants".
//!
//! It starts nothing and asks nobody. Invariant: the token of an ordinal never falls, and no second holder is granted
//! while the first is alive as far as this arbiter knows.

use crate::model::{GrantRecord, Key, Millis};
use crate::wire::{Claim, Refusal};
use beemesh_ids::PeerId;
use std::collections::{BTreeMap, BTreeSet};

/// Most ordinals that an arbiter keeps.
pub const MAX_GRANTS: usize = 65_536;
/// Copies beyond the holder's own that may run unseen; a holder after so many fences itself.
pub const MAX_GHOSTS: usize = 2;

struct Kept {
    record: GrantRecord,
    granted_at: Millis,
    renewed_at: Millis,
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
    /// Milliseconds without a renewal after which a leased holder has fenced itself.
    pub(crate) fenced_after_ms: u64,
}

impl Grants {
    pub(crate) fn new(records: Vec<GrantRecord>, now: Millis) -> Self {
        let kept = records.into_iter().map(|record| {
            let key = (record.workload.clone(), record.ordinal);
            (
                key,
                Kept {
                    record,
                    granted_at: now,
                    renewed_at: now,
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
            ..Self::new(Vec::new(), Millis(0))
        }
    }

    pub(crate) fn token(&self, key: &Key) -> u64 {
        self.kept.get(key).map_or(0, |kept| kept.record.token)
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
        let mut leased = false;
        if let Some(Kept {
            record, renewed_at, ..
        }) = self.kept.get(&claim.key)
        {
            ghosts.clone_from(&record.ghosts);
            match &record.holder {
                Some(holder) if holder == from => {
                    if claim.token == record.token {
                        return Ok((None, ghosts));
                    }
                    leased = record.leased;
                }
                Some(holder) if may_be_alive(holder) => {
                    return Err(Refusal::Held {
                        holder: holder.clone(),
                    });
                }
                Some(holder) if record.leased => {
                    if now.since(*renewed_at) < judged.fenced_after_ms {
                        return Err(Refusal::Held {
                            holder: holder.clone(),
                        });
                    }
                }
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
            && claim.token <= kept.record.token
        {
            return Err(Refusal::Stale {
                token: kept.record.token,
            });
        }
        ghosts.remove(from);
        let (workload, ordinal) = claim.key.clone();
        let record = GrantRecord {
            workload,
            ordinal,
            token: claim.token,
            holder: Some(from.clone()),
            leased: leased || ghosts.len() >= MAX_GHOSTS,
            ghosts: ghosts.clone(),
        };
        if !self.keep(now, record.clone()) {
            return Err(Refusal::Full);
        }
        Ok((Some(record), ghosts))
    }

    /// Learns from a holder's own word that it holds an ordinal: after a change of the roster, or of the arbiter's disk.
    pub(crate) fn adopt(
        &mut self,
        now: Millis,
        key: &Key,
        from: &PeerId,
        token: u64,
        ghosts: &BTreeSet<PeerId>,
        leased: bool,
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
            leased: leased || ghosts.len() >= MAX_GHOSTS,
            ghosts,
        };
        self.keep(now, record.clone()).then_some(record)
    }

    /// Takes a renewal. `Some`: it counts, with the record to make durable where it differs and the ghosts to tell.
    pub(crate) fn renew(
        &mut self,
        now: Millis,
        key: &Key,
        from: &PeerId,
        token: u64,
        ghosts: &BTreeSet<PeerId>,
        leased: bool,
    ) -> Option<(Option<GrantRecord>, BTreeSet<PeerId>)> {
        let adopted = self.adopt(now, key, from, token, ghosts, leased);
        let kept = self.kept.get_mut(key)?;
        if kept.record.token != token || kept.record.holder.as_ref() != Some(from) {
            return None;
        }
        kept.renewed_at = now;
        let before = kept.record.clone();
        kept.record.ghosts.extend(ghosts.iter().cloned());
        kept.record.leased = leased || kept.record.ghosts.len() >= MAX_GHOSTS;
        let differs = adopted.is_some() || kept.record != before;
        Some((differs.then(|| kept.record.clone()), kept.record.ghosts.clone()))
    }

    /// Takes an ordinal back from its holder.
    pub(crate) fn release(&mut self, key: &Key, from: &PeerId, token: u64) -> Option<GrantRecord> {
        let kept = self.kept.get_mut(key)?;
        if kept.record.token > token || kept.record.holder.as_ref() != Some(from) {
            return None;
        }
        kept.record.holder = None;
        kept.record.leased = false;
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

    /// Releases what its holder, alive and heard, says not to hold; a release may have been lost.
    pub(crate) fn tidy(
        &mut self,
        granted_before: Millis,
        denies: impl Fn(&PeerId, &Key) -> bool,
    ) -> Vec<GrantRecord> {
        let mut changed = Vec::new();
        for (key, kept) in &mut self.kept {
            let denied = kept
                .record
                .holder
                .as_ref()
                .is_some_and(|holder| denies(holder, key));
            if denied && kept.granted_at <= granted_before {
                kept.record.holder = None;
                kept.record.leased = false;
                changed.push(kept.record.clone());
            }
        }
        changed
    }

    fn keep(&mut self, now: Millis, record: GrantRecord) -> bool {
        let key = (record.workload.clone(), record.ordinal);
        if self.kept.len() >= self.full && !self.kept.contains_key(&key) {
            // What nobody holds and nobody haunts protects nothing.
            self.kept
                .retain(|_, kept| kept.record.holder.is_some() || !kept.record.ghosts.is_empty());
            if self.kept.len() >= self.full {
                return false;
            }
        }
        self.kept.insert(
            key,
            Kept {
                record,
                granted_at: now,
                renewed_at: now,
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
            fenced_after_ms: 13_000,
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
        };
        grants
            .claim(Millis(at), &claim, &judged(&peer(n)), |_| alive)
            .map(|(_, ghosts)| ghosts)
    }

    #[test]
    fn no_second_holder_while_the_first_may_be_alive() {
        let mut grants = Grants::new(vec![], Millis(0));
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
        let mut grants = Grants::new(vec![], Millis(0));
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
    fn the_third_copy_is_leased_and_followed_only_after_its_lease() {
        let mut grants = Grants::new(vec![], Millis(0));
        claim(&mut grants, 0, 1, 1, false).unwrap();
        claim(&mut grants, 0, 2, 2, false).unwrap();
        assert_eq!(
            claim(&mut grants, 1000, 3, 3, false),
            Ok(BTreeSet::from([peer(1), peer(2)]))
        );
        assert_eq!(
            claim(&mut grants, 13_999, 4, 4, false),
            Err(Refusal::Held { holder: peer(3) })
        );
        assert!(
            grants
                .renew(Millis(5000), &key(0), &peer(3), 3, &BTreeSet::new(), true)
                .is_some()
        );
        assert_eq!(
            claim(&mut grants, 17_999, 4, 4, false),
            Err(Refusal::Held { holder: peer(3) })
        );
        assert_eq!(
            claim(&mut grants, 18_000, 4, 4, false),
            Ok(BTreeSet::from([peer(1), peer(2)]))
        );
    }

    #[test]
    fn a_ghost_that_is_seen_without_its_copy_counts_no_more() {
        let mut grants = Grants::new(vec![], Millis(0));
        claim(&mut grants, 0, 1, 1, false).unwrap();
        claim(&mut grants, 0, 2, 2, false).unwrap();
        assert!(grants.lay_ghost(&peer(1), |_| true).is_empty());
        assert_eq!(grants.lay_ghost(&peer(1), |_| false).len(), 1);
        assert_eq!(claim(&mut grants, 0, 3, 3, false), Ok(BTreeSet::from([peer(2)])));
    }

    #[test]
    fn other_rosters_and_unsettled_arbiters_grant_nothing() {
        let mut grants = Grants::new(vec![], Millis(0));
        let claim = Claim {
            key: key(0),
            token: 1,
            roster: 1,
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
        let mut grants = Grants::new(vec![], Millis(0));
        assert!(
            grants
                .adopt(Millis(0), &key(0), &peer(1), 4, &BTreeSet::new(), false)
                .is_some()
        );
        assert!(
            grants
                .adopt(Millis(0), &key(0), &peer(2), 3, &BTreeSet::new(), false)
                .is_none()
        );
        let record = grants
            .adopt(Millis(0), &key(0), &peer(2), 5, &BTreeSet::new(), false)
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
        };
        assert!(
            grants
                .claim(Millis(0), &claim, &judged(&peer(1)), |_| true)
                .is_ok()
        );
        assert_eq!((grants.token(&key(0)), grants.token(&key(1))), (0, 1));
    }
}
