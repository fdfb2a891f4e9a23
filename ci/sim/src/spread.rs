//! How long something takes to be everywhere.
//!
//! It does not know what spreads: a closure says whether a node has it.

use crate::traffic::Traffic;
use crate::world::{Node, World};
use serde::Serialize;

/// How often the nodes are looked at, in virtual milliseconds.
const LOOK_MS: u64 = 2;

/// Virtual milliseconds, of many.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Delays {
    /// How many.
    pub count: usize,
    /// Half took no longer.
    pub median: u64,
    /// Of a hundred, 99 took no longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

impl Delays {
    /// Of these.
    pub fn of(mut all: Vec<u64>) -> Self {
        all.sort_unstable();
        let at = |per_cent: usize| {
            let rank = (all.len() * per_cent).div_ceil(100).saturating_sub(1);
            all.get(rank).copied().unwrap_or_default()
        };
        Self {
            count: all.len(),
            median: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}

/// How something spread.
#[derive(Debug, Clone)]
pub struct Spread {
    /// When each node that got it had it, in milliseconds from the start.
    pub reached: Vec<u64>,
    /// Nodes that did not get it in time.
    pub missing: usize,
    /// What was said meanwhile.
    pub traffic: Traffic,
}

impl World {
    /// Does something, then lets time pass until all nodes that `concerns` have it, as `knows` tells, at most `limit_ms`.
    pub fn spread(
        &mut self,
        limit_ms: u64,
        act: impl FnOnce(&mut Self),
        concerns: impl Fn(&Self, usize) -> bool,
        knows: impl Fn(&Node) -> bool,
    ) -> Spread {
        let (began, before) = (self.now, self.traffic.clone());
        act(self);
        let mut waiting: Vec<usize> = (0..self.nodes.len()).filter(|n| concerns(self, *n)).collect();
        let mut reached = Vec::new();
        loop {
            let now = self.now - began;
            waiting.retain(|n| {
                let knows = knows(&self.nodes[*n]);
                reached.extend(knows.then_some(now));
                !knows
            });
            if waiting.is_empty() || now >= limit_ms {
                return Spread {
                    reached,
                    missing: waiting.len(),
                    traffic: self.traffic.since(&before),
                };
            }
            self.run(LOOK_MS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_of_what_was_measured() {
        let delays = Delays::of((1..=200).rev().collect());
        assert_eq!(
            (delays.count, delays.median, delays.p99, delays.max),
            (200, 100, 198, 200)
        );
        assert_eq!(Delays::of(vec![]).max, 0);
    }
}
