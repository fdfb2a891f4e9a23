//! What the member task does about revocations, and about another machine with the same voucher.
//!
//! Decides nothing: `agent/identity` judges, `join` says who gives way, the cell cuts off. Invariant: nobody is told that a
//! revocation was taken before it is on disk.

use super::Driver;
use crate::clock;
use crate::join::{Joined, gives_way, next_voucher};
use crate::query::Site;
use crate::rest::Refused;
use beemesh_agent_sched::Event;
use beemesh_ids::PeerId;
use beemesh_joinpack_format::{Envelope, Membership, Refusal, Source, limits};
use hyper::StatusCode;
use std::sync::PoisonError;

/// Machines with a copied stick that are told of one by one. Who copies more often is refused all the same.
pub(super) const RIVALS: usize = 64;

impl Driver {
    /// Takes a snapshot that a member handed on.
    pub(super) fn verify_revocations(&mut self, envelope: &[u8]) -> Option<Event> {
        let taken = Envelope::parse(envelope, limits::REVOCATION_LIMIT).and_then(|envelope| {
            self.part
                .trust
                .take(&envelope, &self.joined.roots, Source::Member)
        });
        match taken {
            Ok(true) => Some(self.revocations_changed()),
            Ok(false) => None,
            Err(refusal) => {
                tracing::warn!(%refusal, "a revocation snapshot from a member was refused");
                None
            }
        }
    }

    /// From now on everybody is judged by what is revoked now.
    pub(super) fn revocations_changed(&mut self) -> Event {
        let roots = self.part.trust.judging(&self.joined);
        *self.roots.write().unwrap_or_else(PoisonError::into_inner) = roots.clone();
        let site = Site {
            name: self.joined.member.name.clone(),
            roots,
            fabric: self.fabric.clone(),
        };
        self.part.site.send_replace(Some(site));
        Event::Revocations(self.part.trust.news(&self.joined.roots))
    }

    pub(super) fn tell_revocations(&mut self) {
        let news = self.revocations_changed();
        self.step(news);
    }

    pub(super) fn take_revocations(&mut self, envelope: &[u8]) -> Result<(), Refused> {
        let refused = |refusal: Refusal| Refused::new(StatusCode::FORBIDDEN, refusal.to_string());
        let envelope = Envelope::parse(envelope, limits::REVOCATION_LIMIT).map_err(refused)?;
        // Judged without the keys that are revoked themselves.
        let roots = self.part.trust.judging(&self.joined);
        if self
            .part
            .trust
            .take(&envelope, &roots, Source::Person)
            .map_err(refused)?
        {
            self.tell_revocations();
            self.flush();
        }
        Ok(())
    }

    /// Says once when newcomers are not let in any more, and once when they are again.
    pub(super) fn look_at_admissions(&mut self) {
        self.part.trust.note();
        let admits = self.part.trust.admits();
        if admits == std::mem::replace(&mut self.admits, admits) {
            return;
        }
        let message = match admits {
            true => "this node has word of revocations again and admits newcomers",
            false => {
                "this node has had no word of revocations for seven days: it goes on with its work, and admits nobody by a \
                 voucher as old: insert a newer join stick"
            }
        };
        self.part.journal.announce("Admissions", "node/self", message);
    }

    pub(super) fn cut_off(&self, peer: &PeerId) {
        if *peer == self.joined.member.peer_id {
            let message = "this box was revoked: no member talks to it any more; ask your operator";
            self.part.journal.console(message);
        }
        if let Err(error) = self.fabric.disconnect(peer) {
            tracing::warn!(%peer, %error, "failed to disconnect");
        }
    }

    /// Another machine redeemed this box's voucher, says somebody with the other's credential. Goes on to the next voucher of
    /// the pack by starting anew with it; the peer id stays.
    pub(super) fn taken_by_rival(&mut self, told_by: &PeerId, rival: &[u8]) {
        let rival = Membership::parse(rival).and_then(|membership| membership.subject(&self.joined.roots));
        let Ok(rival) = rival else { return };
        let own = &self.joined.member;
        // Who is in already hears of a rival from members: strangers with a copied stick must not drive it out.
        if !self.accepted && gives_way(own, &rival, told_by) {
            return self.give_way(&rival.peer_id);
        }
        let copied = rival.voucher_id == own.voucher_id && rival.peer_id != own.peer_id;
        if copied && self.rivals.len() < RIVALS && self.rivals.insert(rival.peer_id.clone()) {
            let (rival, voucher) = (&rival.peer_id, &own.voucher_id);
            let message = format!(
                "{rival} used voucher {voucher}, which this box had redeemed before: a stick was copied, {rival} stays out"
            );
            let object = format!("node/{rival}");
            self.part.journal.announce("Quarantined", &object, &message);
        }
    }

    pub(super) fn give_way(&mut self, first: &PeerId) {
        let member = &self.joined.member;
        let (name, voucher) = (member.name.clone(), member.voucher_id.clone());
        let object = format!("node/{name}");
        let floor = clock::Floor(self.part.floors.floor());
        let key = self.part.key.now();
        let (assurance, now) = (key.assurance(), clock::system_now());
        let next = next_voucher(&self.joined, assurance, floor, now);
        let next = next.and_then(|document| Joined::check(document, &key.peer_id()).ok());
        let Some(next) = next else {
            if !std::mem::replace(&mut self.quarantined, true) {
                let message = format!(
                    "{first} redeemed voucher {voucher} before this box, and the join pack has no other: this box stays out; \
                     insert a newer join stick with a place for it"
                );
                self.part.journal.announce("Quarantined", &object, &message);
                self.joined.document.lost = true;
                if let Err(error) = self.part.trust.keeper().commit(self.joined.clone()) {
                    let message = format!("the lost place cannot be noted: {}", crate::words(&error));
                    self.part.journal.announce("StateVolumeFailed", &object, &message);
                }
            }
            return;
        };
        if let Err(error) = self.part.trust.keeper().commit(next.clone()) {
            let message = format!("the next voucher cannot be kept: {}", crate::words(&error));
            return self.part.journal.announce("StateVolumeFailed", &object, &message);
        }
        let message = format!(
            "{first} redeemed voucher {voucher} before this box, which goes on to the next one and is {} from now on",
            next.member.name
        );
        self.part.journal.announce("NextVoucher", &object, &message);
        // Key, connections and cell hold the old credential; the supervisor starts the agent again with the new one.
        std::process::exit(1);
    }
}
