//! What each member last said it has and holds, and what people are shown of it.
//!
//! It decides nothing. Invariant: a body is replaced only by a newer one of the same life or by one of a later life, and
//! only once the sender knows what it holds.

use crate::cell::Cell;
use crate::membership::Liveness;
use crate::model::{Key, Millis, PodReport};
use crate::wire::{Heartbeat, HeldPod, Stage, StatusBody};
use beemesh_agent_api::shim::Phase;
use beemesh_agent_api::view::{NodeStatus, NodeView, PodView};
use beemesh_ids::PeerId;
use std::collections::{BTreeMap, BTreeSet};

/// One member's last words.
#[derive(Default)]
pub(crate) struct View {
    generation: u64,
    seq: u64,
    version: Option<(u64, u64)>,
    pub(crate) newest: u64,
    /// The roster that it had when it held what `body` says.
    pub(crate) roster: u64,
    pub(crate) recovered: bool,
    pub(crate) heard: Millis,
    pub(crate) body: StatusBody,
}

impl View {
    /// The body is the one that the last heartbeat spoke of.
    pub(crate) fn is_current(&self) -> bool {
        self.recovered && self.version == Some((self.generation, self.newest))
    }

    /// All that it held when it first had this roster is known: what it starts since is granted under it.
    pub(crate) fn is_heard_under(&self, roster: u64) -> bool {
        self.is_current() && self.roster == roster
    }

    pub(crate) fn pod(&self, key: &Key) -> Option<&HeldPod> {
        self.body.pods.iter().find(|pod| pod.key == *key)
    }
}

#[derive(Default)]
pub(crate) struct Views {
    of: BTreeMap<PeerId, View>,
    holders: BTreeMap<Key, BTreeSet<PeerId>>,
}

/// What a heartbeat brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It is older than what is known.
    Old,
    /// No news.
    Same,
    /// There is a newer body: ask for it.
    BodyWanted,
    /// A new body.
    Body,
}

impl Views {
    pub(crate) fn get(&self, peer: &PeerId) -> Option<&View> {
        self.of.get(peer)
    }

    /// Members that say they hold an ordinal, in whatever stage.
    pub(crate) fn holders(&self, key: &Key) -> impl Iterator<Item = (&PeerId, &HeldPod)> {
        let peers = self.holders.get(key).into_iter().flatten();
        peers.filter_map(|peer| Some((peer, self.of.get(peer)?.pod(key)?)))
    }

    pub(crate) fn held_keys(&self) -> impl Iterator<Item = &Key> {
        self.holders.keys()
    }

    pub(crate) fn highest_token(&self, key: &Key) -> u64 {
        self.holders(key).map(|(_, pod)| pod.token).max().unwrap_or(0)
    }

    pub(crate) fn hear(&mut self, from: &PeerId, heartbeat: Heartbeat, now: Millis) -> Heard {
        let view = self.of.entry(from.clone()).or_default();
        if (heartbeat.generation, heartbeat.seq) <= (view.generation, view.seq) {
            return Heard::Old;
        }
        view.generation = heartbeat.generation;
        view.seq = heartbeat.seq;
        view.newest = heartbeat.version;
        view.recovered = heartbeat.recovered;
        view.heard = now;
        let version = Some((heartbeat.generation, heartbeat.version));
        let Some(body) = heartbeat.body else {
            if view.version != version {
                return Heard::BodyWanted;
            }
            view.roster = heartbeat.roster;
            return Heard::Same;
        };
        if !heartbeat.recovered {
            // It does not know yet what it holds: what it said in its life before stands. What it has is news.
            view.body.capacity = body.capacity;
            return Heard::Same;
        }
        view.version = version;
        view.roster = heartbeat.roster;
        let gone = std::mem::replace(&mut view.body, body);
        let keys: Vec<Key> = view.body.pods.iter().map(|pod| pod.key.clone()).collect();
        for pod in gone.pods {
            if let Some(peers) = self.holders.get_mut(&pod.key) {
                peers.remove(from);
                if peers.is_empty() {
                    self.holders.remove(&pod.key);
                }
            }
        }
        for key in keys {
            self.holders.entry(key).or_default().insert(from.clone());
        }
        Heard::Body
    }
}

impl Cell {
    /// The members, this node first, then by name.
    pub fn nodes(&self) -> Vec<NodeView> {
        let mut nodes: Vec<NodeView> = Vec::new();
        for (peer, entry) in self.roster.active() {
            let mine = *peer == self.config.me;
            let view = self.views.get(peer);
            let capacity = if mine {
                Some(&self.capacity)
            } else {
                view.map(|view| &view.body.capacity)
            };
            let pods = if mine {
                self.holdings.len()
            } else {
                view.map_or(0, |view| view.body.pods.len())
            };
            let status = match self.membership.liveness(peer, entry.since) {
                _ if mine => NodeStatus::Ready,
                Liveness::Up if !self.membership.is_suspect(peer) => NodeStatus::Ready,
                Liveness::Up => NodeStatus::Suspect,
                Liveness::Unknown(since) if self.now.since(since) < self.config.tuning.unknown_ms => {
                    NodeStatus::Suspect
                }
                Liveness::Unknown(_) | Liveness::Down(_) => NodeStatus::Down,
            };
            nodes.push(NodeView {
                name: entry.info.name.clone(),
                peer_id: peer.clone(),
                key: entry.info.key.peer.clone().unwrap_or_else(|| peer.clone()),
                generation: entry.info.key.generation,
                status,
                assurance: self.assurance_of(peer),
                addresses: capacity
                    .map(|capacity| capacity.addresses.clone())
                    .unwrap_or_default(),
                version: capacity
                    .map(|capacity| capacity.version.clone())
                    .unwrap_or_default(),
                pods: u32::try_from(pods).unwrap_or(u32::MAX),
                joined_after_ms: capacity.and_then(|capacity| capacity.joined_after_ms),
            });
        }
        nodes.sort_by(|a, b| {
            let key = |node: &NodeView| {
                (
                    node.peer_id != self.config.me,
                    node.name.clone(),
                    node.peer_id.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
        nodes
    }

    /// The pods: each wanted ordinal once, by its best copy, and what is still there of unwanted ones.
    pub fn pods(&self) -> Vec<PodView> {
        let mut keys: BTreeSet<Key> = self
            .views
            .held_keys()
            .chain(self.holdings.keys())
            .cloned()
            .collect();
        for (workload, entry) in self.desired.iter() {
            let replicas = entry.spec().map_or(0, |spec| spec.replicas);
            keys.extend((0..replicas).map(|ordinal| (workload.clone(), ordinal)));
        }
        keys.into_iter().filter_map(|key| self.pod_view(&key)).collect()
    }

    fn pod_view(&self, key: &Key) -> Option<PodView> {
        let mine = self
            .holdings
            .get(key)
            .map(|holding| (self.config.me.clone(), holding.as_held(key)));
        let theirs = self
            .views
            .holders(key)
            .map(|(peer, pod)| (peer.clone(), pod.clone()));
        // A copy that answers before one that does not, one that runs before one that stops, then the higher token.
        let best = theirs.chain(mine).max_by_key(|(peer, pod)| {
            (
                self.membership.is_up(peer),
                pod.stage == Stage::Running,
                pod.token,
            )
        });
        let wanted = self.desired.wants(&key.0, key.1);
        let (node, pod_id, mut report) = match best {
            Some((peer, pod)) => {
                let mut report = pod.report;
                if !self.membership.is_up(&peer) {
                    if wanted == Some(false) {
                        return None;
                    }
                    report.ready = false;
                    report.reason = Some(format!("node `{}` does not answer", self.roster.name(&peer)));
                } else if pod.stage == Stage::Claiming {
                    report.reason = Some("waiting for its grant".to_owned());
                }
                let name = self.roster.get(&peer).map(|entry| entry.info.name.clone());
                (name, Some(pod.pod_id), report)
            }
            None => {
                let reason = self.why_unplaced(key);
                (
                    None,
                    None,
                    PodReport {
                        reason: Some(reason),
                        ..PodReport::default()
                    },
                )
            }
        };
        if report.phase != Phase::Running {
            report.ready = false;
        }
        Some(PodView {
            workload: key.0.clone(),
            ordinal: key.1,
            name: key.0.pod_name(key.1),
            pod_id,
            node,
            phase: report.phase,
            ready: report.ready,
            ip: report.ip,
            ports: report.ports,
            containers: report.containers,
            start_ms: report.start_ms,
            reason: report.reason,
        })
    }

    /// Whether, as far as this node sees, every wanted ordinal has one live copy that is ready, and nothing else is held.
    pub fn is_settled(&self) -> bool {
        let mut wanted = 0;
        for (workload, entry) in self.desired.iter() {
            for ordinal in 0..entry.spec().map_or(0, |spec| spec.replicas) {
                let key = (workload.clone(), ordinal);
                let copies = self.copies(&key);
                let [(_, pod)] = copies.as_slice() else {
                    return false;
                };
                if pod.stage != Stage::Running || pod.template != entry.template || !pod.report.ready {
                    return false;
                }
                wanted += 1;
            }
        }
        let mut held: BTreeSet<&Key> = self.holdings.keys().collect();
        held.extend(self.views.held_keys().filter(|key| !self.copies(key).is_empty()));
        held.len() == wanted
    }

    /// The copies of an ordinal on members that may be alive, this node's included.
    pub(crate) fn copies(&self, key: &Key) -> Vec<(PeerId, HeldPod)> {
        let theirs = self
            .views
            .holders(key)
            .filter(|(peer, _)| self.may_be_alive(peer));
        let mine = self
            .holdings
            .get(key)
            .map(|holding| (self.config.me.clone(), holding.as_held(key)));
        theirs
            .map(|(peer, pod)| (peer.clone(), pod.clone()))
            .chain(mine)
            .collect()
    }
}
