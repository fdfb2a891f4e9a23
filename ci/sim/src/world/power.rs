//! Machines that are switched on and off, and what each takes over from before.

use super::{What, World};
use beemesh_agent_sched::{Cell, CellConfig, Event, Millis, RecoveredPod};
use rand::RngExt;

impl World {
    /// Switches a machine on, or starts its agent again.
    pub fn boot(&mut self, n: usize) {
        let seed = self.rng.random();
        let offset = self.rng.random_range(0..500);
        let node = &mut self.nodes[n];
        assert!(node.cell.is_none());
        node.powered = true;
        node.life += 1;
        // A monotonic clock begins anew with each machine; nothing may depend on its value.
        node.clock_zero = self.now.saturating_sub(offset);
        let config = CellConfig {
            me: node.peer.clone(),
            member: node.member.clone(),
            seed,
            tuning: self.tuning.clone(),
        };
        let mut persisted = node.persisted.clone();
        for (peer, member) in &self.founders {
            let known = persisted.members.entry(peer.clone());
            known.or_insert_with(|| member.clone());
        }
        node.cell = Some(Cell::new(config, persisted, Millis(offset)));
        for pod in node.pods.values_mut().filter(|pod| pod.stamp.leased) {
            pod.uncounted_until = self.now + self.tuning.fence_ms + 500;
        }
        let (capacity, pods) = (node.capacity.clone(), node.pods.clone());
        let pods = pods.into_iter().map(|(pod_id, pod)| RecoveredPod {
            pod_id,
            workload: pod.key.0,
            ordinal: pod.key.1,
            stamp: pod.stamp,
        });
        let pods: Vec<_> = pods.collect();
        let ids: Vec<String> = pods.iter().map(|pod| pod.pod_id.clone()).collect();
        self.step(n, Event::Capacity(capacity));
        self.step(n, Event::Recovered { pods });
        let news = self.revocation_news(n);
        self.step(n, Event::Revocations(news));
        let orders = self.order_news(n);
        self.step(n, Event::Orders(orders));
        self.resume_keys(n);
        for id in ids {
            self.push(n, 20, What::PodRuns(id));
        }
        let first = self.rng.random_range(1..=100);
        self.push(n, first, What::Tick);
        for other in 0..self.nodes.len() {
            self.link(n, other);
        }
    }

    /// Pulls the plug.
    pub fn kill(&mut self, n: usize) {
        self.invariants.failed = true;
        self.stop_agent(n);
        let node = &mut self.nodes[n];
        node.powered = false;
        node.pods.clear();
    }

    /// Ends the agent; its pods run on.
    pub fn stop_agent(&mut self, n: usize) {
        self.nodes[n].cell = None;
        self.nodes[n].life += 1;
        self.nodes[n].connected.clear();
        for other in 0..self.nodes.len() {
            if self.nodes[other].connected.contains(&n) {
                let after = self.rng.random_range(50..6000);
                self.push(other, after, What::Disconnect(n));
            }
        }
    }

    /// A machine stands still for a while: it reads its queue later.
    pub fn pause(&mut self, n: usize, ms: u64) {
        self.invariants.failed = true;
        self.nodes[n].paused_until = self.now + ms;
    }
}
