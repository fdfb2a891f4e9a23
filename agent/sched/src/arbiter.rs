//! The arbiter's side in the cell: who may be alive, who has been heard, what to answer to a claim.
//!
//! The table of promises is `grants.rs`; the safety argument is in `SPEC.md`, "Grants". Invariant: a promise is made durable
//! before it is told.

use crate::cell::Cell;
use crate::grants::Judged;
use crate::membership::Liveness;
use crate::model::{Command, Key, Millis, Record};
use crate::wire::{Claim, Message, Stage};
use beemesh_ids::PeerId;

impl Cell {
    /// Whether a member's copies must be reckoned with: alive, or not yet dead for as long as its grants live.
    pub(crate) fn may_be_alive(&self, peer: &PeerId) -> bool {
        if *peer == self.config.me {
            return true;
        }
        let Some(entry) = self.roster.get(peer) else {
            return false;
        };
        match self.membership.liveness(peer, entry.since) {
            Liveness::Up => true,
            Liveness::Down(since) => self.now.since(since) < self.config.tuning.lease_ms,
            Liveness::Unknown(since) => {
                self.now.since(since.max(self.started)) < self.config.tuning.unknown_ms
            }
        }
    }

    /// Whether every member that may be alive has said what it holds, under the roster that this node has.
    ///
    /// One that is alive but says nothing to this node (no connection, another roster) is waited for only so long.
    pub(crate) fn is_everyone_heard(&mut self) -> bool {
        let patience = self.config.tuning.unknown_ms.saturating_mul(2);
        let waited = self.now.since(self.roster_since.max(self.started));
        if waited >= patience {
            return true;
        }
        // Whoever was missing last is looked at first: in a large cell many others come before it.
        let missing = self.missing.take().filter(|peer| self.is_missing(peer));
        self.missing = missing.or_else(|| {
            let mut members = self.roster.active().map(|(peer, _)| peer);
            members.find(|peer| self.is_missing(peer)).cloned()
        });
        self.missing.is_none()
    }

    /// A member that may be alive and has not said what it holds under this roster.
    fn is_missing(&self, peer: &PeerId) -> bool {
        let view = self.views.get(peer);
        let heard = view.is_some_and(|view| view.is_heard_under(self.roster.digest()));
        !heard && *peer != self.config.me && self.roster.contains(peer) && self.may_be_alive(peer)
    }

    /// A member's new body: adopt its grants, lay its ghosts, settle who of two copies stays.
    pub(crate) fn on_body(&mut self, from: &PeerId) {
        self.scan_late = true;
        let Some(view) = self.views.get(from) else { return };
        let pods = view.body.pods.clone();
        for pod in pods.iter().filter(|pod| pod.stage != Stage::Claiming) {
            if !self.arbiters(&pod.key).contains(&self.config.me) {
                continue;
            }
            let tuning = &self.config.tuning;
            let until = self
                .now
                .after(tuning.fence_ms.saturating_add(tuning.fence_margin_ms));
            let until = pod.leased.then_some(until);
            let adopted = self
                .grants
                .adopt(self.now, &pod.key, from, pod.token, &pod.ghosts, until);
            self.out
                .extend(adopted.map(|record| Command::Persist(Record::Grant(record))));
            if pod.stage == Stage::Running {
                self.judge_copies(&pod.key);
            }
        }
        let holds = |key: &Key| pods.iter().any(|pod| pod.key == *key);
        for record in self.grants.lay_ghost(from, holds) {
            self.out.push(Command::Persist(Record::Grant(record)));
        }
    }

    /// Tells all running copies of an ordinal but the one with the highest token.
    fn judge_copies(&mut self, key: &Key) {
        let mut running: Vec<(u64, PeerId)> = self
            .copies(key)
            .into_iter()
            .filter(|(peer, pod)| pod.stage == Stage::Running && self.membership.is_up(peer))
            .map(|(peer, pod)| (pod.token, peer))
            .collect();
        running.sort_unstable();
        let Some((token, holder)) = running.pop() else {
            return;
        };
        for (_, peer) in running {
            self.send(
                &peer,
                Message::Superseded {
                    key: key.clone(),
                    token,
                    holder: holder.clone(),
                },
            );
        }
    }

    pub(crate) fn on_claim(&mut self, from: &PeerId, claim: Claim) {
        let me = &self.config.me;
        let asked = claim.third || self.arbiters(&claim.key).contains(me);
        let same_roster = claim.roster == self.roster.digest() && asked;
        let running = self.copies(&claim.key).into_iter();
        let running = running.filter(|(peer, pod)| peer != from && pod.stage != Stage::Claiming);
        let running = running.map(|(peer, _)| peer).next();
        let judged = Judged {
            from,
            same_roster,
            settled: self.recovered && self.is_everyone_heard(),
            running,
            leased_until: (claim.third && self.leases_needed()).then(|| {
                self.now.after(
                    self.config
                        .tuning
                        .fence_ms
                        .saturating_add(self.config.tuning.fence_margin_ms),
                )
            }),
        };
        let holder_alive = self
            .grants
            .holder(&claim.key)
            .is_some_and(|holder| self.may_be_alive(holder));
        let verdict = self
            .grants
            .claim(self.now, &claim, &judged, |_| holder_alive)
            .map(|(record, ghosts)| {
                self.out
                    .extend(record.map(|record| Command::Persist(Record::Grant(record))));
                ghosts
            });
        let Claim {
            key,
            token,
            roster,
            third,
        } = claim;
        self.send(
            from,
            Message::Verdict {
                key,
                token,
                roster,
                third,
                verdict,
            },
        );
    }

    /// Once a second: releases and ghosts whose message was lost.
    pub(crate) fn tidy_grants(&mut self) {
        let (views, membership, holdings) = (&self.views, &self.membership, &self.holdings);
        let (me, recovered, now) = (&self.config.me, self.recovered, self.now);
        let denies = |peer: &PeerId, key: &Key| {
            if peer == me {
                return recovered && !holdings.contains_key(key);
            }
            let fresh = views
                .get(peer)
                .filter(|view| view.is_current() && now.since(view.heard) < 3000);
            fresh.is_some_and(|view| membership.is_up(peer) && view.pod(key).is_none())
        };
        // A holder that was heard so long after its grant has started by then or given up. In a large cell its heartbeats
        // are far apart: words from before the grant deny nothing.
        let claim_ms = self.config.tuning.claim_ms.saturating_mul(2);
        let heard = |peer: &PeerId| match peer == me {
            true => now,
            false => views.get(peer).map_or(Millis(0), |view| view.heard),
        };
        let mut records = self
            .grants
            .tidy(|holder, key, granted| heard(holder) >= granted.after(claim_ms) && denies(holder, key));
        for ghost in self.grants.ghosts() {
            records.extend(self.grants.lay_ghost(&ghost, |key| !denies(&ghost, key)));
        }
        let mut laid = Vec::new();
        for (key, holding) in &self.holdings {
            laid.extend(
                holding
                    .ghosts
                    .iter()
                    .filter(|ghost| denies(ghost, key))
                    .map(|ghost| (key.clone(), ghost.clone())),
            );
        }
        for (key, ghost) in laid {
            if let Some(holding) = self.holdings.get_mut(&key) {
                holding.ghosts.remove(&ghost);
                self.status.touch();
            }
        }
        self.out.extend(
            records
                .into_iter()
                .map(|record| Command::Persist(Record::Grant(record))),
        );
    }
}
