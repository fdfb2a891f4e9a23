//! Leases: copies that stop themselves unless more than a third of the roster keeps renewing them.
//!
//! Who is leased is decided in `holdings.rs`, and stopped there. Invariant: a lease counts from the sending of the round that
//! was answered, never from the answers.

use crate::cell::Cell;
use crate::holdings::majority;
use crate::model::{Command, Millis, Record};
use crate::rendezvous::peer_hash;
use crate::wire::{Message, Renewal, Stage};
use beemesh_ids::PeerId;
use std::collections::BTreeMap;

/// Renewals in one message.
const RENEWALS: usize = 512;
/// The round of renewal that is under way: one for all leased holdings.
#[derive(Default)]
pub(crate) struct Round {
    pub(crate) number: u64,
    pub(crate) sent: Millis,
}

impl Cell {
    /// A round of renewal: of the leases by the supporters, and of those that need none any more by their arbiters.
    pub(crate) fn renew(&mut self) {
        self.round.number += 1;
        self.round.sent = self.now;
        let round = self.round.number;
        let mut leases = Vec::new();
        let mut free: BTreeMap<PeerId, Vec<Renewal>> = BTreeMap::new();
        let mut needless = Vec::new();
        for (key, holding) in &mut self.holdings {
            if holding.stage != Stage::Running || !holding.leased {
                continue;
            }
            holding.acks.clear();
            holding.free_acks.clear();
            let renewal = Renewal {
                key: key.clone(),
                token: holding.token,
                ghosts: holding.ghosts.clone(),
                leased: true,
            };
            if holding.ghosts.is_empty() {
                needless.push(Renewal {
                    leased: false,
                    ..renewal.clone()
                });
            }
            leases.push(renewal);
        }
        for renewal in needless {
            for arbiter in self.arbiters(&renewal.key) {
                free.entry(arbiter).or_default().push(renewal.clone());
            }
        }
        if leases.is_empty() {
            return;
        }
        for peer in self.supporters() {
            for items in leases.chunks(RENEWALS) {
                self.send(
                    &peer,
                    Message::Renew {
                        round,
                        items: items.to_vec(),
                    },
                );
            }
        }
        for (peer, renewals) in free {
            for items in renewals.chunks(RENEWALS) {
                self.send(
                    &peer,
                    Message::Renew {
                        round,
                        items: items.to_vec(),
                    },
                );
            }
        }
    }

    /// Whom this node asks to renew its leases: half as many again as it needs, always the same while they live.
    fn supporters(&self) -> Vec<PeerId> {
        let count = self.third() * 3 / 2 + 1;
        let me = peer_hash(&self.config.me);
        self.roster.top(me, count, |peer| self.membership.is_up(peer))
    }

    /// A member's renewals.
    pub(crate) fn on_renew(&mut self, from: &PeerId, round: u64, items: Vec<Renewal>) {
        let tuning = &self.config.tuning;
        let until = self
            .now
            .after(tuning.fence_ms.saturating_add(tuning.fence_margin_ms));
        let mut renewed = Vec::new();
        for renewal in items.into_iter().take(RENEWALS) {
            if let Some((record, ghosts)) = self.grants.renew(self.now, &renewal, from, until) {
                self.out
                    .extend(record.map(|record| Command::Persist(Record::Grant(record))));
                renewed.push(Renewal { ghosts, ..renewal });
            }
        }
        if !renewed.is_empty() {
            self.send(
                from,
                Message::Renewed {
                    round,
                    items: renewed,
                },
            );
        }
    }

    /// Renewals were recorded.
    pub(crate) fn on_renewed(&mut self, from: &PeerId, round: u64, items: Vec<Renewal>) {
        if round != self.round.number {
            return;
        }
        let valid_until = self.round.sent.after(self.config.tuning.fence_ms);
        let third = self.third();
        for Renewal {
            key,
            token,
            mut ghosts,
            leased,
        } in items.into_iter().take(RENEWALS)
        {
            let arbiters = self.arbiters(&key);
            let Some(holding) = self
                .holdings
                .get_mut(&key)
                .filter(|holding| holding.token == token)
            else {
                continue;
            };
            ghosts.remove(&self.config.me);
            holding.ghosts.extend(ghosts);
            if leased {
                holding.acks.insert(from.clone());
                if holding.acks.len() >= third {
                    holding.valid_until = holding.valid_until.max(valid_until);
                }
            } else if arbiters.contains(from) {
                holding.free_acks.insert(from.clone());
                if holding.ghosts.is_empty() && holding.free_acks.len() >= majority(arbiters.len()) {
                    holding.leased = false;
                    self.status.touch();
                }
            }
        }
    }
}
