//! Revocations on their way through the cell, and what they do to its members.
//!
//! It verifies nothing and knows no signature: snapshots are bytes, and the driver says what they revoke. Invariant: a member
//! that was revoked once never takes part again, whatever arrives later; each list is bounded.

use crate::cell::Cell;
use crate::gossip::FAN_OUT;
use crate::model::{Command, Key, RevocationNews};
use crate::wire::{MAX_MESSAGE, Message};
use beemesh_ids::{FabricId, PeerId};
use beemesh_joinpack_format::{Envelope, RevocationSet};

/// Snapshots that are handed on, at most.
pub const MAX_SNAPSHOTS: usize = 8;
/// Longest snapshot, in bytes: it fits into one message.
pub const MAX_SNAPSHOT: usize = MAX_MESSAGE * 3 / 4;

impl RevocationNews {
    /// What `set` proves in this fabric.
    pub fn of(set: &RevocationSet, fabric: &FabricId) -> Self {
        let union = set.union(fabric);
        let digest = set.digest();
        // 0 says that nothing is known.
        let short = digest.as_bytes().first_chunk().copied().unwrap_or_default();
        Self {
            digest: set.issued().map_or(0, |_| u64::from_be_bytes(short).max(1)),
            snapshots: set.envelopes().map(Envelope::to_json).collect(),
            nodes: union.nodes,
            vouchers: union.vouchers,
        }
    }
}

impl Cell {
    /// The driver knows more than before: whoever is revoked by it is out, and the others hear it.
    pub(crate) fn on_revocations(&mut self, news: RevocationNews) {
        let RevocationNews {
            digest,
            snapshots,
            nodes,
            vouchers,
        } = news;
        let is_news = self.revocation_digest != digest;
        self.revocation_digest = digest;
        self.snapshots = snapshots
            .into_iter()
            .filter(|bytes| bytes.len() <= MAX_SNAPSHOT)
            .take(MAX_SNAPSHOTS)
            .collect();
        // Before the connections of the revoked are cut: they may hear it too.
        if is_news {
            for peer in self.some_connected(FAN_OUT) {
                self.send_snapshots(&peer);
            }
        }
        let out = self.roster.revoke(nodes, vouchers);
        for peer in &out {
            let name = self.roster.name(peer);
            let message = match *peer == self.config.me {
                true => format!("this node, `{name}`, was revoked: no member talks to it any more"),
                false => format!("node `{name}` was revoked: it is cut off, and its pods are placed anew"),
            };
            self.emit("Revoked", format!("node/{name}"), message);
            self.connected.remove(peer);
            self.out.push(Command::Revoked { peer: peer.clone() });
        }
        if out.contains(&self.config.me) {
            let held: Vec<Key> = self.holdings.keys().cloned().collect();
            for key in held {
                self.drain(&key, "this node was revoked", None);
            }
        }
        if !out.is_empty() {
            self.roster_since = self.now;
            self.status.greet();
            self.scan_due = true;
            self.restart_claims();
        }
    }

    /// A member knows other revocations: both tell what they have, and each keeps the union.
    pub(crate) fn on_revocation_digest(&mut self, from: &PeerId, theirs: u64) {
        if theirs != self.revocation_digest && self.may_exchange(from, "revocations") {
            self.send_snapshots(from);
            if self.snapshots.is_empty() {
                self.send(from, Message::RevocationsWanted);
            }
        }
    }

    pub(crate) fn send_snapshots(&mut self, to: &PeerId) {
        for envelope in self.snapshots.clone() {
            self.send(to, Message::Revocations(envelope));
        }
    }

    pub(crate) fn on_snapshot(&mut self, envelope: Vec<u8>) {
        if envelope.len() <= MAX_SNAPSHOT && !self.snapshots.contains(&envelope) {
            self.out.push(Command::VerifyRevocations { envelope });
        }
    }
}
