//! The placer: finds a node for each wanted ordinal that nobody holds; and the probed node's side of it.
//!
//! It grants nothing: two placers at once (members differ about who is alive) cost time, never a second copy.
//! Invariants: a placement in flight ends by itself; waits grow, with jitter, to a cap.

use crate::cell::Cell;
use crate::model::{Key, Millis};
use crate::rendezvous::placer_hash;
use crate::wire::{Assign, Decline, Message, Need, Offer, Probe, Stage};
use beemesh_agent_api::WorkloadId;
use beemesh_agent_api::view::ASSURANCE_SELECTOR;
use beemesh_ids::PeerId;
use rand::RngExt;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Most placements in flight at one placer.
pub const MAX_PLACEMENTS: usize = 256;
/// Most reservations on one node.
pub const MAX_RESERVATIONS: usize = 1024;
/// A pod that ran shorter than this and is gone is placed again only after a wait that grows.
const BRIEF_MS: u64 = 30_000;
/// Failures of a workload on this node are forgotten after this long.
const FORGET_MS: u64 = 60_000;

/// Room kept for placers that asked.
#[derive(Default)]
pub(crate) struct Reservations(BTreeMap<Key, (Need, Millis)>);

impl Reservations {
    pub(crate) fn remove(&mut self, key: &Key) {
        self.0.remove(key);
    }

    pub(crate) fn expire(&mut self, now: Millis) {
        self.0.retain(|_, (_, until)| *until > now);
    }

    /// `false` where the table is full.
    fn keep(&mut self, key: Key, need: Need, until: Millis) -> bool {
        if self.0.len() >= MAX_RESERVATIONS && !self.0.contains_key(&key) {
            return false;
        }
        self.0.insert(key, (need, until));
        true
    }
}

/// Pods that were lost here, by workload.
#[derive(Default)]
pub(crate) struct Failures(BTreeMap<WorkloadId, (u32, Millis)>);

impl Failures {
    pub(crate) fn note(&mut self, workload: &WorkloadId, now: Millis) {
        let (count, last) = self.0.entry(workload.clone()).or_default();
        *count = if now.since(*last) > FORGET_MS {
            1
        } else {
            count.saturating_add(1)
        };
        *last = now;
        self.0.retain(|_, (_, last)| now.since(*last) <= FORGET_MS);
    }

    fn count(&self, workload: &WorkloadId, now: Millis) -> u32 {
        self.0
            .get(workload)
            .filter(|(_, last)| now.since(*last) <= FORGET_MS)
            .map_or(0, |(count, _)| *count)
    }
}

struct Placement {
    round: u64,
    change: String,
    /// Who was asked, and how many siblings each should have by what it last said.
    asked: BTreeMap<PeerId, u32>,
    offers: BTreeMap<PeerId, Offer>,
    answers: usize,
    refusal: Option<String>,
    began: Millis,
    since: Millis,
    assigned: Option<(PeerId, Millis)>,
}

#[derive(Default)]
struct Wait {
    failures: u32,
    not_before: Millis,
    reason: Option<String>,
    /// Since when it has been seen running.
    running: Option<Millis>,
    /// Times in a row that it ran only briefly.
    losses: u32,
}

#[derive(Default)]
pub(crate) struct Placer {
    flights: BTreeMap<Key, Placement>,
    waits: BTreeMap<Key, Wait>,
    /// Since when an ordinal has been without a holder.
    missing: BTreeMap<Key, Millis>,
    rounds: u64,
}

impl Placer {
    /// Whether something waits for time to pass.
    pub(crate) fn is_busy(&self) -> bool {
        !self.missing.is_empty() || !self.flights.is_empty()
    }

    /// Pods of `workload` that are assigned to `peer` and not yet seen there.
    fn pending(&self, workload: &WorkloadId, peer: &PeerId) -> u32 {
        let assigned = self.flights.iter().filter(|(key, flight)| {
            key.0 == *workload && flight.assigned.as_ref().is_some_and(|(to, _)| to == peer)
        });
        u32::try_from(assigned.count()).unwrap_or(u32::MAX)
    }
}

impl Cell {
    // ---- the probed node ----

    /// Answers a probe and reserves.
    pub(crate) fn on_probe(&mut self, from: &PeerId, probe: Probe) {
        let Probe { key, round, need } = probe;
        let offer = self.fits(&need, &key).and_then(|()| {
            let until = self.now.after(self.config.tuning.reserve_ms);
            if !self.recovered {
                return Err("it does not know yet what it holds".to_owned());
            }
            let reserved = self
                .reservations
                .0
                .keys()
                .filter(|other| other.0 == key.0 && **other != key)
                .count();
            if !self.reservations.keep(key.clone(), need.clone(), until) {
                return Err("too many reservations".to_owned());
            }
            let score = self.score(&need, &key);
            Ok(Offer {
                siblings: self.siblings(&key),
                reserved: u32::try_from(reserved).unwrap_or(u32::MAX),
                score,
            })
        });
        self.send(from, Message::Offer { key, round, offer });
    }

    /// Pods of the same workload on this node, but for those that stop.
    pub(crate) fn siblings(&self, key: &Key) -> u32 {
        let same = self.holdings.iter().filter(|(other, holding)| {
            other.0 == key.0 && **other != *key && holding.stage != Stage::Draining
        });
        u32::try_from(same.count()).unwrap_or(u32::MAX)
    }

    /// What is free beside what is held and, but for `key`, reserved: millicores, bytes.
    pub(crate) fn free(&self, key: Option<&Key>) -> (u64, u64) {
        let cpu = self
            .capacity
            .cpu_millis
            .saturating_mul(self.config.tuning.cpu_percent)
            / 100;
        let held = self.holdings.values().map(|holding| &holding.need);
        let reserved = self
            .reservations
            .0
            .iter()
            .filter(|(other, _)| key.is_some_and(|key| key != *other));
        held.chain(reserved.map(|(_, (need, _))| need))
            .fold((cpu, self.capacity.memory_bytes), |(cpu, memory), need| {
                (cpu.saturating_sub(need.cpu), memory.saturating_sub(need.memory))
            })
    }

    /// Whether this node has what a pod needs; if not, why, in words.
    pub(crate) fn fits(&self, need: &Need, key: &Key) -> Result<(), String> {
        let (cpu, memory) = self.free(Some(key));
        unfit(need, &self.capacity.labels, &self.capacity.images, cpu, memory)?;
        let held = self
            .holdings
            .iter()
            .filter(|(other, _)| *other != key)
            .map(|(_, holding)| &holding.need);
        // A reservation does not bar a port, as it may come to nothing; the assignment is checked once more.
        for port in &need.ports {
            if held.clone().any(|other| other.ports.contains(port)) {
                return Err(format!("port {port} is taken"));
            }
        }
        Ok(())
    }

    /// 0 to 1000: fit 50, locality 30, reliability 10, price 10 (no node has a price yet: all get the full share).
    fn score(&self, need: &Need, key: &Key) -> u32 {
        let (cpu, memory) = self.free(Some(key));
        let cpu_all = self
            .capacity
            .cpu_millis
            .saturating_mul(self.config.tuning.cpu_percent)
            / 100;
        let part = |free: u64, need: u64, all: u64| {
            let left = u128::from(free.saturating_sub(need)) * 500;
            left.checked_div(u128::from(all))
                .and_then(|part| u32::try_from(part).ok())
                .unwrap_or(0)
                .min(500)
        };
        let fit = (part(cpu, need.cpu, cpu_all) + part(memory, need.memory, self.capacity.memory_bytes)) / 2;
        let present = need
            .images
            .iter()
            .filter(|image| self.capacity.images.contains(*image))
            .count();
        let locality = u32::try_from(present * 300 / need.images.len().max(1)).unwrap_or(0);
        fit + locality + 100 / (1 + self.failures.count(&key.0, self.now)) + 100
    }

    // ---- the placer ----

    /// A new change: what its ordinals waited for may be over.
    pub(crate) fn placer_forgets(&mut self, workload: &WorkloadId) {
        for (_, wait) in self.placer.waits.iter_mut().filter(|(key, _)| key.0 == *workload) {
            *wait = Wait {
                running: wait.running,
                ..Wait::default()
            };
        }
        self.placer
            .flights
            .retain(|key, flight| key.0 != *workload || flight.assigned.is_some());
    }

    /// Looks at every wanted ordinal: drains what must go, places what is missing.
    pub(crate) fn scan(&mut self) {
        self.reconcile_own();
        let mut missing: Vec<(Key, Millis)> = Vec::new();
        let mut lost: Vec<(Key, bool)> = Vec::new();
        let mut wanted = BTreeSet::new();
        for (workload, entry) in self.desired.iter() {
            let replicas = entry.spec().map_or(0, |spec| spec.replicas);
            let mut placer: Option<(u32, bool)> = None;
            for ordinal in 0..replicas {
                let key = (workload.clone(), ordinal);
                let stage = self.stage_of(&key);
                wanted.insert(key.clone());
                if stage == Some(Stage::Running) {
                    self.placer.flights.remove(&key);
                    let wait = self.placer.waits.entry(key.clone()).or_default();
                    wait.running.get_or_insert(self.now);
                    wait.failures = 0;
                    wait.reason = None;
                }
                if stage.is_some() {
                    self.placer.missing.remove(&key);
                    continue;
                }
                let batch = ordinal / crate::rendezvous::PLACER_BATCH;
                let mine = match placer {
                    Some((known, mine)) if known == batch => mine,
                    _ => {
                        let first = self
                            .roster
                            .first(placer_hash(workload, ordinal), |peer| self.membership.is_up(peer));
                        let mine = first.as_ref() == Some(&self.config.me);
                        placer = Some((batch, mine));
                        mine
                    }
                };
                let ran = self
                    .placer
                    .waits
                    .get_mut(&key)
                    .and_then(|wait| wait.running.take());
                if let Some(began) = ran {
                    lost.push((key.clone(), self.now.since(began) < BRIEF_MS));
                }
                let from = if ran.is_some() {
                    self.now
                } else {
                    entry.accepted_at
                };
                let since = *self.placer.missing.entry(key.clone()).or_insert(from);
                if mine {
                    missing.push((key, since));
                }
            }
        }
        for (key, brief) in lost {
            let wait = self.placer.waits.entry(key.clone()).or_default();
            wait.losses = if brief { wait.losses.saturating_add(1) } else { 0 };
            if wait.losses > 1 {
                self.back_off(&key);
            }
        }
        self.placer.missing.retain(|key, _| wanted.contains(key));
        self.placer.waits.retain(|key, _| wanted.contains(key));
        self.placer.flights.retain(|key, _| wanted.contains(key));
        if missing.is_empty() || !self.recovered || !self.is_everyone_heard() {
            return;
        }
        for (key, since) in missing {
            let waits = self
                .placer
                .waits
                .get(&key)
                .is_some_and(|wait| wait.not_before > self.now);
            if !waits && !self.placer.flights.contains_key(&key) && self.placer.flights.len() < MAX_PLACEMENTS
            {
                self.begin_placement(key, since);
            }
        }
    }

    /// The most advanced stage in which a member that may be alive holds an ordinal.
    fn stage_of(&self, key: &Key) -> Option<Stage> {
        let theirs = self
            .views
            .holders(key)
            .filter(|(peer, _)| self.may_be_alive(peer))
            .map(|(_, pod)| pod.stage);
        let mine = self.holdings.get(key).map(|holding| holding.stage);
        theirs.chain(mine).max_by_key(|stage| *stage == Stage::Running)
    }

    fn begin_placement(&mut self, key: Key, since: Millis) {
        let Some(entry) = self.desired.get(&key.0) else {
            return;
        };
        let (need, change) = (entry.need.clone(), entry.change.id.clone());
        let mut feasible: Vec<(u32, u64, PeerId)> = Vec::new();
        let mut refusal = None;
        let members: Vec<PeerId> = self.roster.active().map(|(peer, _)| peer.clone()).collect();
        for peer in members {
            let seen = if peer == self.config.me {
                self.fits(&need, &key)
                    .and_then(|()| self.assured(&peer, need.assurance()))
                    .map(|()| self.siblings(&key))
            } else {
                self.fits_there(&peer, &need, &key)
            };
            match seen {
                Ok(siblings) => {
                    let siblings = siblings.saturating_add(self.placer.pending(&key.0, &peer));
                    feasible.push((siblings, self.rng.random(), peer));
                }
                Err(why) => refusal = Some(format!("`{}`: {why}", self.roster.name(&peer))),
            }
        }
        feasible.sort_unstable();
        feasible.truncate(self.config.tuning.probes);
        self.placer.rounds += 1;
        let placement = Placement {
            round: self.placer.rounds,
            change,
            asked: feasible
                .into_iter()
                .map(|(siblings, _, peer)| (peer, siblings))
                .collect(),
            offers: BTreeMap::new(),
            answers: 0,
            refusal,
            began: self.now,
            since,
            assigned: None,
        };
        let round = placement.round;
        let asked: Vec<PeerId> = placement.asked.keys().cloned().collect();
        self.placer.flights.insert(key.clone(), placement);
        if asked.is_empty() {
            return self.fail_placement(&key, None);
        }
        for peer in asked {
            self.send(
                &peer,
                Message::Probe(Probe {
                    key: key.clone(),
                    round,
                    need: need.clone(),
                }),
            );
        }
    }

    /// Whether a member's last words leave room for a pod; its siblings there.
    fn fits_there(&self, peer: &PeerId, need: &Need, key: &Key) -> Result<u32, String> {
        let view = self
            .views
            .get(peer)
            .filter(|_| self.membership.is_up(peer) && self.connected.contains(peer));
        let view = view.filter(|view| view.recovered).ok_or("it does not answer")?;
        let body = &view.body;
        unfit(
            need,
            &body.capacity.labels,
            &body.capacity.images,
            body.free_cpu,
            body.free_memory,
        )?;
        if let Some(port) = need.ports.iter().find(|port| body.ports.contains(port)) {
            return Err(format!("port {port} is taken"));
        }
        self.assured(peer, need.assurance())?;
        let same = body
            .pods
            .iter()
            .filter(|pod| pod.key.0 == key.0 && pod.stage != Stage::Draining);
        Ok(u32::try_from(same.count()).unwrap_or(u32::MAX))
    }

    /// A probed node's answer.
    pub(crate) fn on_offer(&mut self, from: PeerId, key: Key, round: u64, offer: Result<Offer, String>) {
        let name = self.roster.name(&from);
        let Some(flight) = self.placer.flights.get_mut(&key) else {
            return;
        };
        if flight.round != round || !flight.asked.contains_key(&from) || flight.offers.contains_key(&from) {
            return;
        }
        flight.answers += 1;
        match offer {
            Ok(offer) => {
                flight.offers.insert(from, offer);
            }
            Err(why) => {
                flight.asked.remove(&from);
                flight.answers -= 1;
                flight.refusal = Some(format!("`{name}`: {}", why.chars().take(200).collect::<String>()));
            }
        }
        self.decide(&key);
    }

    /// Chooses once enough have answered.
    fn decide(&mut self, key: &Key) {
        let (hedge_ms, timeout_ms) = (self.config.tuning.hedge_ms, self.config.tuning.probe_timeout_ms);
        let claim_ms = self.config.tuning.claim_ms;
        let token = self.known_token(key);
        let Some(flight) = self.placer.flights.get(key) else {
            return;
        };
        if flight.assigned.is_some() {
            return;
        }
        let waited = self.now.since(flight.began);
        let ranked = flight.offers.iter().map(|(peer, offer)| {
            let siblings = offer.siblings.saturating_add(self.placer.pending(&key.0, peer));
            (siblings, Reverse(offer.score), offer.reserved, peer.clone())
        });
        let best = ranked.min();
        let all = flight.answers >= flight.asked.len();
        // The slow are not awaited for a better score, but for a better spread.
        let silent = |peer: &PeerId| !flight.offers.contains_key(peer);
        let spread = flight.asked.iter().filter(|(peer, _)| silent(peer));
        let spread = spread.map(|(peer, siblings)| (*siblings).max(self.placer.pending(&key.0, peer)));
        let better = best
            .as_ref()
            .is_none_or(|best| spread.min().is_some_and(|least| least < best.0));
        let most = flight.answers * 3 >= flight.asked.len() * 2 && waited >= hedge_ms && !better;
        if !all && !most && waited < timeout_ms {
            return;
        }
        let Some((siblings, _, _, chosen)) = best else {
            return self.fail_placement(key, None);
        };
        let until = self.now.after(claim_ms + 500);
        let now = self.now;
        let others: Vec<PeerId> = flight.asked.keys().cloned().collect();
        let Some(flight) = self.placer.flights.get_mut(key) else {
            return;
        };
        flight.assigned = Some((chosen.clone(), until));
        let assign = Assign {
            key: key.clone(),
            round: flight.round,
            change: flight.change.clone(),
            siblings,
            age_ms: now.since(flight.since),
            token,
        };
        let (name, node) = (key.0.pod_name(key.1), self.roster.name(&chosen));
        self.emit(
            "PodPlaced",
            format!("pod/{name}"),
            format!("pod `{name}` was assigned to node `{node}`"),
        );
        self.send(&chosen, Message::Assign(assign));
        for peer in others.into_iter().filter(|peer| *peer != chosen) {
            self.send(&peer, Message::Unreserve { key: key.clone() });
        }
    }

    /// The chosen node did not take it or could not keep it.
    pub(crate) fn on_declined(&mut self, from: &PeerId, key: &Key, round: u64, reason: Decline) {
        let chosen = |flight: &&Placement| {
            flight.round == round && flight.assigned.as_ref().is_some_and(|(to, _)| to == from)
        };
        if self.placer.flights.get(key).filter(chosen).is_none() {
            return;
        }
        let name = self.roster.name(from);
        let (soon, why) = match reason {
            Decline::ChangeUnknown => {
                self.send_envelope(from, &key.0);
                (true, format!("`{name}` had not heard of the change"))
            }
            Decline::Unfit(why) => (true, format!("`{name}`: {why}")),
            Decline::Busy => (false, format!("`{name}` still holds it")),
            Decline::NotGranted(why) => (false, why),
        };
        if soon && self.placer.waits.get(key).is_none_or(|wait| wait.failures < 5) {
            // The answer to another placer's luck is to look again at once, not to wait.
            self.placer.flights.remove(key);
            let jitter = self.rng.random_range(5..25);
            let now = self.now;
            let wait = self.placer.waits.entry(key.clone()).or_default();
            wait.failures += 1;
            wait.not_before = now.after(jitter);
            wait.reason = Some(why);
        } else {
            self.fail_placement(key, Some(why));
        }
    }

    fn fail_placement(&mut self, key: &Key, why: Option<String>) {
        let Some(flight) = self.placer.flights.remove(key) else {
            return;
        };
        let why = why
            .or(flight.refusal)
            .unwrap_or_else(|| "no node answered".to_owned());
        let name = key.0.pod_name(key.1);
        let said = self.placer.waits.get(key).and_then(|wait| wait.reason.as_ref()) == Some(&why);
        self.back_off(key);
        if let Some(wait) = self.placer.waits.get_mut(key) {
            wait.reason = Some(why.clone());
        }
        if !said {
            self.emit(
                "PodUnplaced",
                format!("pod/{name}"),
                format!("pod `{name}` found no place: {why}"),
            );
        }
    }

    /// The next placement of an ordinal waits: exponentially, with jitter, to a cap.
    pub(crate) fn back_off(&mut self, key: &Key) {
        let (first, cap) = (self.config.tuning.backoff_ms, self.config.tuning.backoff_cap_ms);
        let failures = self
            .placer
            .waits
            .get(key)
            .map_or(0, |wait| wait.failures.saturating_add(wait.losses));
        let longest = first.saturating_mul(1 << failures.min(16)).min(cap).max(2);
        let ms = self.rng.random_range(longest / 2..=longest);
        let not_before = self.now.after(ms);
        let wait = self.placer.waits.entry(key.clone()).or_default();
        wait.failures = wait.failures.saturating_add(1);
        wait.not_before = not_before;
    }

    /// What time brings: slow answers are not awaited, assignments that led to nothing are over.
    pub(crate) fn tick_placements(&mut self) {
        let keys: Vec<Key> = self.placer.flights.keys().cloned().collect();
        for key in keys {
            let Some(flight) = self.placer.flights.get(&key) else {
                continue;
            };
            match &flight.assigned {
                None => self.decide(&key),
                Some((_, until)) if *until <= self.now => {
                    if self.stage_of(&key).is_none() {
                        self.fail_placement(&key, Some("the chosen node did not answer".to_owned()));
                    } else {
                        self.placer.flights.remove(&key);
                    }
                }
                Some(_) => {}
            }
        }
    }

    /// Why an ordinal has no holder, in words.
    pub(crate) fn why_unplaced(&self, key: &Key) -> String {
        if let Some(reason) = self.placer.waits.get(key).and_then(|wait| wait.reason.clone()) {
            return reason;
        }
        let Some(entry) = self.desired.get(&key.0) else {
            return "its workload is unknown".to_owned();
        };
        let mut reasons = Vec::new();
        for (peer, _) in self.roster.active() {
            let seen = if *peer == self.config.me {
                self.fits(&entry.need, key)
                    .and_then(|()| self.assured(peer, entry.need.assurance()))
                    .map(|()| 0)
            } else {
                self.fits_there(peer, &entry.need, key)
            };
            match seen {
                Ok(_) => return "not placed yet".to_owned(),
                Err(why) if reasons.len() < 8 => reasons.push(format!("`{}`: {why}", self.roster.name(peer))),
                Err(_) => {}
            }
        }
        format!("no node fits: {}", reasons.join("; "))
    }
}

fn unfit(
    need: &Need,
    labels: &BTreeMap<String, String>,
    images: &BTreeSet<String>,
    cpu: u64,
    memory: u64,
) -> Result<(), String> {
    if let Some((key, value)) = need
        .selector
        .iter()
        // No label: whoever places the pod judges it by itself.
        .filter(|(key, _)| *key != ASSURANCE_SELECTOR)
        .find(|(key, value)| labels.get(*key) != Some(*value))
    {
        return Err(format!("it has no label `{key}: {value}`"));
    }
    if let Some(image) = need.images.iter().find(|image| !images.contains(*image)) {
        return Err(format!("image `{image}` is not in its store"));
    }
    if need.cpu > cpu {
        return Err(format!("{}m of cpu are free, {}m are needed", cpu, need.cpu));
    }
    if need.memory > memory {
        return Err(format!(
            "{} MiB of memory are free, {} MiB are needed",
            memory >> 20,
            need.memory >> 20
        ));
    }
    Ok(())
}
