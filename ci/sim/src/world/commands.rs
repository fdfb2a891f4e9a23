//! What cells command, carried out as a driver would: sent, verified, started, kept.

use super::{EVENTS, SimPod, Started, What, World, keys};
use beemesh_agent_sched::{Command, Millis, Record};
use rand::RngExt;

impl World {
    pub(super) fn execute(&mut self, n: usize, local: Millis, command: Command) {
        match command {
            Command::Send { to, bytes } => {
                self.traffic.count(n, &bytes);
                self.invariants.message(&bytes);
                self.mix_bytes(&bytes.len().to_be_bytes());
                let to = *self.by_peer.get(&to).expect("sent to nobody");
                if self.rng.random_range(0..1000) < self.network.lost
                    || !self.nodes[n].connected.contains(&to)
                {
                    return;
                }
                let weight = bytes.len() + self.credentials_in(n, &bytes);
                let after = self.delay(n, weight);
                let from_life = self.nodes[n].life;
                self.push(
                    to,
                    after,
                    What::Deliver {
                        from: n,
                        from_life,
                        bytes,
                    },
                );
            }
            Command::VerifyChange { envelope } => {
                let change = serde_json::from_slice(&envelope).expect("only what was signed is handed on");
                self.push(n, 1, What::Verified(change, envelope));
            }
            Command::VerifyMember { peer, credential } => {
                let name = (peer, credential);
                let member = self.credentials.get(&name).expect("no such member").clone();
                let after = match self.with_keys {
                    true => self.busy(n, 0, keys::VERIFY_US),
                    false => 1,
                };
                self.push(n, after, What::Member(name.0, member));
            }
            Command::VerifyRevocations { envelope } => self.push(n, 1, What::Revocations(envelope)),
            Command::VerifyRoots { documents } => self.push(n, 1, What::Roots(documents)),
            Command::VerifyOrder { envelope } => self.push(n, 1, What::Order(envelope)),
            Command::Attest { peer, round, .. } if self.attests => {
                self.push(n, 50, What::Attested(peer, round))
            }
            // Nobody answers: that is asked rarely.
            Command::Attest { .. } => {}
            Command::Quarantine { peer, .. } | Command::Revoked { peer } => {
                self.nodes[n].refused.insert(peer.clone());
                if let Some(other) = self.by_peer.get(&peer) {
                    self.nodes[n].connected.remove(other);
                }
            }
            Command::Start {
                pod_id,
                workload,
                ordinal,
                stamp,
                accepted_at,
                ..
            } => {
                let token = stamp.token;
                let key = (workload, ordinal);
                let after_ms = local.since(accepted_at);
                self.mix(&(&pod_id, &key, token));
                self.starts.push(Started {
                    at: self.now,
                    node: n,
                    key: key.clone(),
                    token,
                    after_ms,
                });
                let pod = SimPod {
                    key: key.clone(),
                    stamp,
                    uncounted_until: 0,
                    stopping: false,
                };
                assert!(
                    self.nodes[n].pods.insert(pod_id.clone(), pod).is_none(),
                    "pod id used twice"
                );
                self.push(n, self.start_ms, What::PodRuns(pod_id));
                let now = self.now;
                self.invariants.started(&self.nodes, n, &key, token, now);
            }
            Command::Stop { pod_id, .. } => {
                if let Some(pod) = self.nodes[n].pods.get_mut(&pod_id)
                    && !std::mem::replace(&mut pod.stopping, true)
                {
                    let after = self.rng.random_range(20..400);
                    self.push(n, after, What::PodGone(pod_id));
                }
            }
            Command::Persist(record) => {
                self.mix(&record);
                if let Record::Grant(grant) = &record {
                    self.invariants.promised(n, grant);
                }
                if let Record::Member(peer, info) = &record
                    && info.key.generation > 0
                    && let Some(of) = self.by_peer.get(peer)
                    && let Some(keys) = &mut self.nodes[n].keys
                {
                    keys.hear(*of, info.key.generation);
                }
                self.nodes[n].persisted.apply(record);
            }
            Command::Emit {
                alarm,
                reason,
                object,
                message,
            } => {
                *self.told.entry(reason).or_default() += 1;
                if alarm && self.alarms.len() < EVENTS {
                    self.alarms.push((n, message.clone()));
                }
                if self.events.len() == EVENTS {
                    self.events.pop_front();
                }
                self.events.push_back((self.now, n, reason, object, message));
            }
        }
    }
}
