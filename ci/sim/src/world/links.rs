//! Who reaches whom, and how long a message takes.

use super::{What, World};
use crate::network::Network;
use rand::RngExt;

impl World {
    /// Cuts the network: nodes reach only those of the same side.
    pub fn partition(&mut self, sides: &[u32]) {
        self.invariants.failed = true;
        for (node, side) in self.nodes.iter_mut().zip(sides) {
            node.side = *side;
        }
        for a in 0..self.nodes.len() {
            for b in 0..self.nodes.len() {
                if self.nodes[a].side != self.nodes[b].side && self.nodes[a].connected.contains(&b) {
                    let after = self.rng.random_range(1000..10_000);
                    self.push(a, after, What::Disconnect(b));
                }
            }
        }
    }

    /// Puts the network together again.
    pub fn heal(&mut self) {
        for node in &mut self.nodes {
            node.side = 0;
        }
        for a in 0..self.nodes.len() {
            for b in 0..a {
                self.link(a, b);
            }
        }
    }

    pub(super) fn link(&mut self, a: usize, b: usize) {
        if a != b && self.reachable(a, b) {
            let after = self.rng.random_range(20..300);
            self.push(a, after, What::Connect(b));
            self.push(b, after, What::Connect(a));
        }
    }

    pub(super) fn reachable(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.nodes[a], &self.nodes[b]);
        a.cell.is_some() && b.cell.is_some() && a.side == b.side
    }

    /// Milliseconds until a message of so many bytes arrives, once it has been sent.
    pub(super) fn delay(&mut self, n: usize, bytes: usize) -> u64 {
        let Network {
            min_ms,
            max_ms,
            tail: (longest, slow),
            bandwidth,
            ..
        } = self.network;
        let mut after = self.rng.random_range(min_ms..=max_ms);
        if slow > 0 && self.rng.random_range(0..1000) < slow {
            after = self.rng.random_range(after..=longest.max(after));
        }
        let node = &mut self.nodes[n];
        if let Some(needs) = (bytes as u64 * 1000).checked_div(bandwidth) {
            node.sends_until = node.sends_until.max(self.now * 1000) + needs;
            after += (node.sends_until / 1000).saturating_sub(self.now);
        }
        after
    }
}
