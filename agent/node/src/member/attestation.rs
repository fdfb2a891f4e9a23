//! Asks members, and this node's own TPM, what they booted, as the core commands; takes what operators accept of it.
//!
//! Decides nothing. Invariant: an answer comes back as an event, also where there is none.

use super::Driver;
use super::keys::ORDER_LIMIT;
use crate::attestation::Asking;
use crate::rest::Refused;
use beemesh_agent_api::boot::BootsView;
use beemesh_agent_sched::Event;
use beemesh_agent_sched::attestation::{Release, ReleaseNews};
use beemesh_ids::{Digest, PeerId};
use beemesh_joinpack_format::{Acceptance, Envelope, Membership, Refusal, Source};
use hyper::StatusCode;

impl Driver {
    pub(super) fn attest(&self, peer: PeerId, proven: Option<Digest>, round: u64) {
        // Members' credentials were verified when they came.
        let mut members = self.cell.members();
        let credential = members
            .find(|(known, _)| **known == peer)
            .map(|(_, member)| &member.credential);
        let membership = credential.and_then(|bytes| Membership::parse(bytes).ok());
        let vouched_ek = membership.and_then(|membership| membership.endorsement());
        let (fabric, own) = (self.fabric.clone(), self.part.context.attestor.clone());
        let results = self.results.clone();
        tokio::spawn(async move {
            let asking = Asking {
                fabric: &fabric,
                own: &own,
                peer: &peer,
                proven,
                vouched_ek,
            };
            let report = asking.ask().await.map_err(|error| {
                let words = crate::words(&error);
                tracing::info!(%peer, error = words, "a member was not attested");
                words
            });
            let _ = results.send(Event::Attested { peer, round, report }).await;
        });
    }

    /// What an operator is shown.
    pub(super) fn boots(&self) -> BootsView {
        BootsView {
            nodes: self.cell.boots(),
            acceptances: self.part.orders.acceptances(),
        }
    }

    /// Takes an acceptance from an operator.
    pub(super) fn take_acceptance(&mut self, envelope: &[u8]) -> Result<(), Refused> {
        let refused = |refusal: Refusal| {
            let status = match refusal {
                Refusal::LimitExceeded { .. } => StatusCode::CONFLICT,
                _ => StatusCode::FORBIDDEN,
            };
            Refused::new(status, refusal.to_string())
        };
        let envelope = Envelope::parse(envelope, ORDER_LIMIT).map_err(refused)?;
        // Judged without the keys that are revoked themselves.
        let roots = self.part.trust.judging(&self.joined);
        let acceptance: Acceptance = roots.accept(&envelope, Source::Person).map_err(refused)?;
        let taken = self
            .part
            .orders
            .take(&envelope, &roots, Source::Person)
            .map_err(refused)?;
        if !taken && !self.part.orders.holds(&acceptance.id) {
            let error = "a newer acceptance for these nodes is known: is this machine's clock behind?";
            return Err(Refused::new(StatusCode::CONFLICT, error));
        }
        self.part
            .floors
            .raise_by_record(&acceptance.id, self.joined.document.floor);
        if taken {
            self.say_accepted(&acceptance);
        }
        self.tell_orders();
        self.flush();
        Ok(())
    }

    fn say_accepted(&self, acceptance: &Acceptance) {
        let why = acceptance.reason.as_deref();
        let why = why.map_or_else(String::new, |reason| format!(": {reason}"));
        for (node, registers) in &acceptance.nodes {
            let digest = registers.digest();
            let message = format!("an operator accepts that it boots with the registers {digest}{why}");
            self.part
                .journal
                .emit("BootAccepted", &format!("node/{node}"), &message);
        }
    }

    /// The releases that the newest join pack names, in case that it brought no list of its own.
    pub(super) fn tell_releases(&mut self) {
        let releases = self.joined.document.releases.iter().map(Release::from);
        let news = ReleaseNews {
            id: String::new(),
            releases: releases.collect(),
        };
        self.step(Event::Releases(news));
    }
}
