//! What must hold after every command, whatever happened before.

use crate::world::Node;
use beemesh_agent_sched::{GrantRecord, Key, wire::MAX_MESSAGE};
use beemesh_ids::PeerId;
use std::collections::{BTreeMap, BTreeSet};

/// Checked at every message, promise and start; panics where one does not hold.
#[derive(Default)]
pub struct Invariants {
    /// A machine was killed or the network was cut: from here on up to three copies may run.
    pub failed: bool,
    /// Most copies of one ordinal that were ever seen at once.
    pub most_copies: usize,
    /// Largest message.
    pub largest: usize,
    /// Who ever made durable which promise.
    granted: BTreeMap<(Key, u64, PeerId), BTreeSet<usize>>,
}

impl Invariants {
    pub(crate) fn message(&mut self, bytes: &[u8]) {
        self.largest = self.largest.max(bytes.len());
        assert!(bytes.len() <= MAX_MESSAGE, "message of {} bytes", bytes.len());
    }

    pub(crate) fn promised(&mut self, n: usize, record: &GrantRecord) {
        if let Some(holder) = &record.holder {
            let promise = (
                (record.workload.clone(), record.ordinal),
                record.token,
                holder.clone(),
            );
            self.granted.entry(promise).or_default().insert(n);
        }
    }

    pub(crate) fn started(&mut self, nodes: &[Node], n: usize, key: &Key, token: u64, now: u64) {
        let copies: Vec<(usize, u64)> = nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.powered)
            .flat_map(|(n, node)| node.pods.values().map(move |pod| (n, pod)))
            .filter(|(_, pod)| pod.key == *key)
            // `SPEC.md`, "Not guaranteed": a leased copy needs its agent to stop it in time.
            .filter(|(n, pod)| {
                let away =
                    nodes[*n].cell.is_none() || nodes[*n].paused_until > now || pod.uncounted_until > now;
                !(pod.stamp.leased && away)
            })
            .map(|(n, pod)| (n, pod.stamp.token))
            .collect();
        self.most_copies = self.most_copies.max(copies.len());
        let bound = if self.failed { 3 } else { 1 };
        assert!(
            copies.len() <= bound,
            "at {now}: copies of {key:?} on (node, token) {copies:?}"
        );
        let cell = nodes[n].cell.as_ref().expect("a cell started it");
        let roster = cell.members().count();
        let arbiters = roster.min(5);
        // A promise may have been overwritten since by what a holder of a higher token said.
        let promise = (key.clone(), token, nodes[n].peer.clone());
        let granted = self.granted.get(&promise).map_or(0, BTreeSet::len);
        assert!(
            granted > arbiters / 2 || granted > roster / 3,
            "at {now}: {key:?} started with {granted} grants of {arbiters} arbiters and {roster} members"
        );
        assert!(
            self.failed || granted > arbiters / 2,
            "at {now}: {key:?} started with {granted} of {arbiters} arbiters"
        );
    }
}
