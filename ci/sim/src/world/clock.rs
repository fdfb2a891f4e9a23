//! The virtual clock: what happens next, and to whom.

use super::{What, World};
use beemesh_agent_api::shim::Phase;
use beemesh_agent_sched::{Event, Millis, PodReport};
use rand::RngExt;

impl World {
    /// Lets `ms` pass.
    pub fn run(&mut self, ms: u64) {
        let until = self.now + ms;
        while let Some(mut entry) = self.queue.first_entry() {
            let at = *entry.key();
            if at > until {
                break;
            }
            self.now = self.now.max(at);
            match entry.get_mut().pop_front() {
                Some((n, life, what)) => self.happen(n, life, what),
                None => drop(entry.remove()),
            }
        }
        self.now = until;
    }

    /// Lets time pass until `done`, at most `ms`; how long it took.
    pub fn run_until(&mut self, ms: u64, mut done: impl FnMut(&Self) -> bool) -> Option<u64> {
        let began = self.now;
        while self.now < began + ms {
            if done(self) {
                return Some(self.now - began);
            }
            self.run(10);
        }
        done(self).then_some(self.now - began)
    }

    pub(super) fn push(&mut self, n: usize, after: u64, what: What) {
        let life = self.nodes[n].life;
        self.enqueue(after, n, life, what);
    }

    fn enqueue(&mut self, after: u64, n: usize, life: u64, what: What) {
        let at = self.queue.entry(self.now + after).or_default();
        at.push_back((n, life, what));
    }

    fn happen(&mut self, n: usize, life: u64, what: What) {
        if self.nodes[n].paused_until > self.now {
            // A paused machine reads its queue later.
            let after = self.nodes[n].paused_until - self.now;
            self.enqueue(after, n, life, what);
            return;
        }
        let of_machine = matches!(what, What::PodRuns(_) | What::PodGone(_));
        if !of_machine && (self.nodes[n].cell.is_none() || self.nodes[n].life != life) {
            return;
        }
        match what {
            What::Tick => {
                self.step(n, Event::Tick);
                self.tick_keys(n);
                let (longest, often) = self.network.hiccup;
                if self.rng.random_range(0..1000) < often {
                    self.nodes[n].paused_until = self.now + self.rng.random_range(1..=longest);
                }
                self.push(n, 100, What::Tick);
            }
            What::Deliver {
                from,
                from_life,
                bytes,
            } => {
                // A connection does not outlive its ends.
                if self.nodes[from].life == from_life
                    && self.reachable(n, from)
                    && self.nodes[n].connected.contains(&from)
                {
                    let from = self.nodes[from].peer.clone();
                    self.step(n, Event::Message { from, bytes });
                }
            }
            What::Connect(other) => {
                let (peer, member) = (self.nodes[other].peer.clone(), self.nodes[other].member.clone());
                if self.reachable(n, other) && !self.nodes[n].refused.contains(&peer) {
                    if self.network.handshake {
                        self.step(
                            n,
                            Event::Member {
                                peer: peer.clone(),
                                member,
                            },
                        );
                    }
                    if !self.nodes[n].refused.contains(&peer) {
                        self.nodes[n].connected.insert(other);
                        self.step(n, Event::Connected { peer });
                    }
                }
            }
            What::Disconnect(other) => {
                if !self.reachable(n, other) && self.nodes[n].connected.remove(&other) {
                    let peer = self.nodes[other].peer.clone();
                    self.step(n, Event::Disconnected { peer });
                }
            }
            What::Verified(change, envelope) => self.step(n, Event::Change { change, envelope }),
            What::Member(peer, member) => self.step(n, Event::Member { peer, member }),
            What::Revocations(envelope) => self.learn_revocations(n, &envelope),
            What::Order(envelope) => self.learn_order(n, &envelope),
            What::Roots(documents) => self.learn_roots(n, documents),
            What::Key(step) => self.key_done(n, step),
            What::Reached(other) => self.reached(n, other),
            What::Attested(peer, round) => {
                let report = self.ask(n, &peer);
                self.step(n, Event::Attested { peer, round, report });
            }
            What::PodRuns(pod_id) => {
                if self.nodes[n].pods.get(&pod_id).is_some_and(|pod| !pod.stopping)
                    && self.nodes[n].cell.is_some()
                {
                    let state = PodReport {
                        phase: Phase::Running,
                        ready: true,
                        start_ms: Some(1),
                        ..PodReport::default()
                    };
                    self.step(n, Event::Pod { pod_id, state });
                }
            }
            What::PodGone(pod_id) => {
                if self.nodes[n].pods.remove(&pod_id).is_some() && self.nodes[n].cell.is_some() {
                    self.step(n, Event::PodGone { pod_id });
                }
            }
        }
    }

    pub(super) fn step(&mut self, n: usize, event: Event) {
        let local = Millis(self.now - self.nodes[n].clock_zero);
        let Some(cell) = self.nodes[n].cell.as_mut() else {
            return;
        };
        let commands = cell.step(local, event);
        self.mix_bytes(&self.now.to_be_bytes());
        self.mix_bytes(&[n.to_be_bytes(), commands.len().to_be_bytes()].concat());
        for command in commands {
            self.execute(n, local, command);
        }
    }

    pub(super) fn mix(&mut self, what: &impl std::fmt::Debug) {
        self.mix_bytes(format!("{what:?}").as_bytes());
    }

    pub(super) fn mix_bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.trace = (self.trace ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
