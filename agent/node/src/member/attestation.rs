//! Asks members, and this node's own TPM, what they booted, as the core commands.
//!
//! Decides nothing. Invariant: an answer comes back as an event, also where there is none.

use super::Driver;
use crate::attestation::Asking;
use beemesh_agent_sched::Event;
use beemesh_agent_sched::attestation::Release;
use beemesh_ids::{Digest, PeerId};
use beemesh_joinpack_format::Membership;

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

    /// The releases that the newest join pack names.
    pub(super) fn tell_releases(&mut self) {
        let releases = self.joined.document.releases.iter().map(|release| Release {
            version: release.version.clone(),
            pcr11: release.pcr11,
        });
        let releases = releases.collect();
        self.step(Event::Releases(releases));
    }
}
