//! What nodes learn of the fabric beside workloads: revocations, root documents, releases, and what each other booted.

use super::World;
use beemesh_agent_sched::attestation::{
    Activation, Evidence, Release, ReleaseNews, Report, activation_proof, quote_nonce,
};
use beemesh_agent_sched::{Event, OrderNews, RevocationNews, RootNews};
use beemesh_firmware_measure::AttestationKey;
use beemesh_ids::{Digest, PeerId};
use beemesh_joinpack_format::{Envelope, Source, limits};

impl World {
    /// An operator revokes a node at node `at`.
    pub fn revoke(&mut self, at: usize, revoked: usize) {
        // Nobody waits for a revoked node to have stopped: its copies may overlap with those that replace them.
        self.invariants.failed = true;
        let peer = self.nodes[revoked].peer.clone();
        let snapshot = self.authority.revoke([peer]).to_json();
        self.learn_revocations(at, &snapshot);
    }

    /// An operator accepts, at node `at`, what node `n` has in its registers now.
    pub fn accept(&mut self, at: usize, n: usize) {
        let registers = self.nodes[n].tpm.as_ref().unwrap().1.clone();
        let acceptance = self
            .authority
            .accept(self.nodes[n].peer.clone(), registers)
            .to_json();
        self.learn_order(at, &acceptance);
    }

    pub(super) fn learn_order(&mut self, n: usize, order: &[u8]) {
        let signed = "only what was signed is handed on";
        let envelope = Envelope::parse(order, limits::ROOT_LIMIT).expect(signed);
        let taken = self.nodes[n]
            .standing
            .take(&envelope, &self.authority.roots, Source::Member);
        if taken.expect(signed) {
            let news = self.order_news(n);
            self.step(n, Event::Orders(news));
            self.look_at_orders(n);
        }
    }

    pub(super) fn order_news(&self, n: usize) -> OrderNews {
        OrderNews::of(&self.nodes[n].standing)
    }

    /// A node learns which releases there are.
    pub fn releases(&mut self, n: usize, pcr11: &[Digest]) {
        let release = |pcr11: &Digest| Release {
            version: "1".into(),
            pcr11: *pcr11,
        };
        let news = ReleaseNews {
            id: String::new(),
            releases: pcr11.iter().map(release).collect(),
        };
        self.step(n, Event::Releases(news));
    }

    /// Node `at` is given a pack whose list, the `number`th that was signed, names one release.
    pub fn list_release(&mut self, at: usize, number: usize, version: &str, pcr11: Digest) {
        let list = self.authority.list(number, version, pcr11).to_json();
        self.learn_order(at, &list);
    }

    /// What the TPM of `peer` answers to node `n`.
    pub(super) fn ask(&self, n: usize, peer: &PeerId) -> Result<Report, String> {
        let other = self.nodes.iter().position(|node| node.peer == *peer).unwrap();
        if self.nodes[other].silent || (other != n && !self.reachable(n, other)) {
            return Err("unreachable".into());
        }
        let Some((chip, pcrs)) = &self.nodes[other].tpm else {
            return Ok(Report::NoTpm);
        };
        let (me, ek, ak) = (
            &self.nodes[n].peer,
            Digest::of(peer.as_str().as_bytes()),
            chip.public(),
        );
        let (nonce, secret) = ([1; 32], [2; 32]);
        Ok(Report::Evidence(Box::new(Evidence {
            ek,
            vouched_ek: None,
            nonce,
            quote: chip.quote(quote_nonce(&nonce, me, peer).as_bytes(), pcrs),
            activation: Some(Activation {
                ek,
                ak: AttestationKey::parse(&ak).unwrap().digest(),
                secret,
                proof: activation_proof(&secret, me, peer),
            }),
            ak,
        })))
    }

    pub(super) fn learn_revocations(&mut self, n: usize, snapshot: &[u8]) {
        let envelope =
            Envelope::parse(snapshot, limits::REVOCATION_LIMIT).expect("only what was signed is handed on");
        let taken = self.nodes[n]
            .revoked
            .take(&envelope, &self.authority.roots, Source::Member);
        if taken.expect("only what was signed is handed on") {
            let news = self.revocation_news(n);
            self.step(n, Event::Revocations(news));
        }
    }

    /// Node `n` is handed root documents: what follows its chain makes it longer, as the driver would have it.
    pub fn learn_roots(&mut self, n: usize, documents: Vec<Vec<u8>>) {
        let node = &mut self.nodes[n];
        let before = node.roots.len();
        for document in documents {
            let number: usize = std::str::from_utf8(&document).unwrap()[..4].parse().unwrap();
            if number == node.roots.len() + 1 {
                node.roots.push(document);
            }
        }
        if node.roots.len() > before {
            let documents = node.roots.clone();
            self.step(n, Event::Roots(RootNews { documents }));
        }
    }

    pub(super) fn revocation_news(&self, n: usize) -> RevocationNews {
        RevocationNews::of(&self.nodes[n].revoked, self.authority.roots.fabric_id())
    }
}
