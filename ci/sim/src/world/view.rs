//! What a test sees of the world. Changes nothing.

use super::World;
use beemesh_agent_api::WorkloadId;
use beemesh_agent_sched::Key;

impl World {
    /// What runs where and what the nodes think, for a failed test.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (n, node) in self.nodes.iter().enumerate() {
            let pods: Vec<_> = node
                .pods
                .values()
                .map(|pod| format!("{:?}#{}", pod.key.0, pod.key.1))
                .collect();
            text += &format!("\nnode {n}: on {}, pods {pods:?}", node.powered);
            if let Some(cell) = &node.cell {
                for pod in cell.pods() {
                    let (name, at, reason) = (pod.name, pod.node, pod.reason);
                    text += &format!(
                        "\n    sees {name} at {at:?} ready {} because {reason:?}",
                        pod.ready
                    );
                }
            }
        }
        for (at, n, reason, _, message) in self.events.iter().rev().take(40).rev() {
            text += &format!("\n{at} node {n}: {reason}: {message}");
        }
        text
    }

    /// Running copies of an ordinal, on all machines that are on.
    pub fn copies(&self, key: &Key) -> usize {
        let on = self.nodes.iter().filter(|node| node.powered);
        on.map(|node| node.pods.values().filter(|pod| pod.key == *key).count())
            .sum()
    }

    /// Whether exactly the ordinals below `replicas` run, one copy each.
    pub fn runs_exactly(&self, workload: &WorkloadId, replicas: u32) -> bool {
        let all = self
            .nodes
            .iter()
            .filter(|node| node.powered)
            .flat_map(|node| node.pods.values());
        let count = all.filter(|pod| pod.key.0 == *workload).count();
        count == replicas as usize
            && (0..replicas).all(|ordinal| self.copies(&(workload.clone(), ordinal)) == 1)
    }

    /// Members that a node is connected with.
    pub fn links(&self, n: usize) -> usize {
        self.nodes[n].connected.len()
    }

    /// Machines that run a copy of an ordinal.
    pub fn holders(&self, key: &Key) -> Vec<usize> {
        let on = self.nodes.iter().enumerate().filter(|(_, node)| node.powered);
        on.filter(|(_, node)| node.pods.values().any(|pod| pod.key == *key))
            .map(|(n, _)| n)
            .collect()
    }

    /// How often people were told something, by anybody.
    pub fn saw(&self, reason: &str) -> usize {
        self.told.get(reason).copied().unwrap_or_default()
    }
}
