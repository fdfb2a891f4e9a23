//! The holder: claims an ordinal from its arbiters, starts, renews, drains.
//!
//! It chooses no node (`placement.rs`). Invariants: nothing starts without a majority of the ordinal's arbiters under
//! one roster; where earlier copies may still run, a majority has recorded all of them before; a leased copy stops
//! itself when it loses its majority; an ordinal is released only after its pod is gone.

use crate::cell::Cell;
use crate::grants::MAX_GHOSTS;
use crate::model::{Command, Key, Millis, PodReport, RecoveredPod};
use crate::rendezvous::key_hash;
use crate::wire::{Assign, Claim, Decline, HeldPod, Message, Need, Refusal, Stage};
use beemesh_agent_api::WorkloadSpec;
use beemesh_agent_api::shim::Phase;
use beemesh_ids::PeerId;
use rand::RngExt;
use std::collections::{BTreeMap, BTreeSet};

/// Most pods of one node.
pub const MAX_PODS: usize = 256;
/// A pod that does not stop is told again this long after its grace.
const STOP_AGAIN_MS: u64 = 10_000;

pub(crate) struct Holding {
    pub(crate) pod_id: String,
    pub(crate) token: u64,
    pub(crate) stage: Stage,
    pub(crate) template: u64,
    pub(crate) need: Need,
    pub(crate) report: PodReport,
    ghosts: BTreeSet<PeerId>,
    leased: bool,
    /// A majority knows its ghosts. Not so after a restart of the agent: until then it asks.
    recorded: bool,
    claim: Option<ClaimState>,
    renewal: Renewal,
    grace_seconds: u32,
    stop_again: Millis,
    accepted_at: Millis,
    started_said: bool,
}

/// A claim on its way.
struct ClaimState {
    spec: Box<WorkloadSpec>,
    placer: PeerId,
    round: u64,
    roster: u64,
    arbiters: Vec<PeerId>,
    granted: BTreeMap<PeerId, BTreeSet<PeerId>>,
    refused: BTreeMap<PeerId, Refusal>,
    deadline: Millis,
    ask_again: Millis,
    confirming: bool,
}

/// Rounds of renewal: only where ghosts must be recorded, or the copy is leased.
#[derive(Default)]
struct Renewal {
    round: u64,
    sent: Millis,
    arbiters: Vec<PeerId>,
    acks: BTreeSet<PeerId>,
    leased: bool,
    valid_until: Millis,
}

fn majority(of: usize) -> usize {
    of / 2 + 1
}

impl Holding {
    pub(crate) fn as_held(&self, key: &Key) -> HeldPod {
        HeldPod {
            pod_id: self.pod_id.clone(),
            key: key.clone(),
            token: self.token,
            ghosts: self.ghosts.clone(),
            leased: self.leased,
            stage: self.stage,
            template: self.template,
            report: self.report.clone(),
        }
    }
}

impl Cell {
    /// Takes an assignment, or says why not.
    pub(crate) fn on_assign(&mut self, from: PeerId, assign: Assign) {
        let (key, round) = (assign.key.clone(), assign.round);
        if let Err(reason) = self.take_assignment(&from, assign) {
            self.reservations.remove(&key);
            self.send(&from, Message::Declined { key, round, reason });
        }
    }

    fn take_assignment(&mut self, from: &PeerId, assign: Assign) -> Result<(), Decline> {
        let key = assign.key;
        if let Some(holding) = self.holdings.get(&key) {
            // A repeated assignment of a claim on its way is not a second one.
            let same = holding
                .claim
                .as_ref()
                .is_some_and(|claim| (&claim.placer, claim.round) == (from, assign.round));
            return if same { Ok(()) } else { Err(Decline::Busy) };
        }
        if !self.recovered || self.holdings.len() >= MAX_PODS {
            return Err(Decline::Unfit(format!(
                "it holds {} of {MAX_PODS} pods",
                self.holdings.len()
            )));
        }
        let entry = self.desired.get(&key.0).ok_or(Decline::ChangeUnknown)?;
        if entry.change.id < assign.change {
            return Err(Decline::ChangeUnknown);
        }
        let Some(spec) = entry.spec().filter(|spec| key.1 < spec.replicas) else {
            return Err(Decline::Unfit("the ordinal is not wanted any more".into()));
        };
        let (spec, template, need) = (Box::new(spec.clone()), entry.template, entry.need.clone());
        if self.siblings(&key) > assign.siblings {
            return Err(Decline::Unfit("another pod of the workload came first".into()));
        }
        self.fits(&need, &key).map_err(Decline::Unfit)?;
        self.reservations.remove(&key);
        let token = assign.token.max(self.known_token(&key)).saturating_add(1);
        let holding = Holding {
            pod_id: self.new_pod_id(),
            token,
            stage: Stage::Claiming,
            template,
            need,
            report: PodReport::default(),
            ghosts: BTreeSet::new(),
            leased: false,
            recorded: true,
            renewal: Renewal::default(),
            grace_seconds: spec.pod.termination_grace_period_seconds,
            stop_again: self.now,
            accepted_at: self.now.before(assign.age_ms),
            started_said: false,
            claim: Some(ClaimState {
                spec,
                placer: from.clone(),
                round: assign.round,
                roster: 0,
                arbiters: Vec::new(),
                granted: BTreeMap::new(),
                refused: BTreeMap::new(),
                deadline: self.now.after(self.config.tuning.claim_ms),
                ask_again: self.now,
                confirming: false,
            }),
        };
        self.holdings.insert(key.clone(), holding);
        self.status.touch();
        self.begin_claim(&key);
        Ok(())
    }

    fn new_pod_id(&mut self) -> String {
        ulid::Ulid::from_parts(self.now.0, self.rng.random()).to_string()
    }

    /// Asks all arbiters of the roster as it is now; what was granted under another does not count.
    fn begin_claim(&mut self, key: &Key) {
        let roster = self.roster.digest();
        let arbiters = self.arbiters(key);
        let again = self.now.after(100);
        let Some(holding) = self.holdings.get_mut(key) else {
            return;
        };
        let token = holding.token;
        let Some(claim) = holding.claim.as_mut() else {
            return;
        };
        claim.roster = roster;
        claim.arbiters.clone_from(&arbiters);
        claim.granted.clear();
        claim.refused.clear();
        claim.confirming = false;
        claim.ask_again = again;
        for arbiter in arbiters {
            self.send(
                &arbiter,
                Message::Claim(Claim {
                    key: key.clone(),
                    token,
                    roster,
                }),
            );
        }
    }

    /// The roster differs: claims on their way start over under the new one.
    pub(crate) fn restart_claims(&mut self) {
        let claiming: Vec<Key> = self
            .holdings
            .iter()
            .filter(|(_, h)| h.claim.is_some())
            .map(|(key, _)| key.clone())
            .collect();
        for key in claiming {
            self.begin_claim(&key);
        }
    }

    /// An arbiter's answer.
    pub(crate) fn on_verdict(
        &mut self,
        from: PeerId,
        key: Key,
        token: u64,
        roster: u64,
        verdict: Result<BTreeSet<PeerId>, Refusal>,
    ) {
        let now = self.now;
        let Some(holding) = self
            .holdings
            .get_mut(&key)
            .filter(|holding| holding.token == token)
        else {
            return;
        };
        let Some(claim) = holding
            .claim
            .as_mut()
            .filter(|claim| claim.roster == roster && !claim.confirming)
        else {
            return;
        };
        if !claim.arbiters.contains(&from) {
            return;
        }
        match verdict {
            Ok(ghosts) => {
                claim.refused.remove(&from);
                claim.granted.insert(from, ghosts);
                if claim.granted.len() >= majority(claim.arbiters.len()) {
                    self.granted(&key);
                }
            }
            Err(Refusal::Stale { token: last }) => {
                // Above everything that was granted before: ask all again.
                holding.token = holding.token.max(last).saturating_add(1);
                if claim.deadline > now {
                    self.begin_claim(&key);
                }
            }
            Err(refusal) => {
                claim.refused.insert(from, refusal);
                let held = |refusal: &&Refusal| matches!(refusal, Refusal::Held { .. } | Refusal::Full);
                let lost = claim.refused.values().filter(held).count();
                if lost + majority(claim.arbiters.len()) > claim.arbiters.len() {
                    self.give_up(&key);
                }
            }
        }
    }

    fn granted(&mut self, key: &Key) {
        let me = self.config.me.clone();
        let Some(holding) = self.holdings.get_mut(key) else {
            return;
        };
        let Some(claim) = holding.claim.as_mut() else {
            return;
        };
        let mut ghosts: BTreeSet<PeerId> = claim.granted.values().flatten().cloned().collect();
        ghosts.remove(&me);
        let all_know = claim.granted.values().all(|known| *known == ghosts);
        holding.leased = ghosts.len() >= MAX_GHOSTS;
        holding.ghosts = ghosts;
        if all_know && !holding.leased {
            self.start(key);
        } else {
            claim.confirming = true;
            self.renew(key);
        }
    }

    /// Sends a round of renewal to all arbiters.
    fn renew(&mut self, key: &Key) {
        let arbiters = self.arbiters(key);
        let now = self.now;
        let Some(holding) = self.holdings.get_mut(key) else {
            return;
        };
        let leased = holding.ghosts.len() >= MAX_GHOSTS;
        let renewal = &mut holding.renewal;
        renewal.round += 1;
        renewal.sent = now;
        renewal.arbiters.clone_from(&arbiters);
        renewal.acks.clear();
        renewal.leased = leased;
        let (token, round, ghosts) = (holding.token, renewal.round, holding.ghosts.clone());
        for arbiter in arbiters {
            let ghosts = ghosts.clone();
            self.send(
                &arbiter,
                Message::Renew {
                    key: key.clone(),
                    token,
                    round,
                    ghosts,
                    leased,
                },
            );
        }
    }

    /// An arbiter recorded a renewal.
    pub(crate) fn on_renewed(
        &mut self,
        from: PeerId,
        key: &Key,
        token: u64,
        round: u64,
        mut ghosts: BTreeSet<PeerId>,
    ) {
        let fence_ms = self.config.tuning.fence_ms;
        let Some(holding) = self
            .holdings
            .get_mut(key)
            .filter(|holding| holding.token == token)
        else {
            return;
        };
        let renewal = &mut holding.renewal;
        if renewal.round != round || !renewal.arbiters.contains(&from) {
            return;
        }
        renewal.acks.insert(from);
        ghosts.remove(&self.config.me);
        holding.ghosts.extend(ghosts);
        if renewal.acks.len() < majority(renewal.arbiters.len()) {
            return;
        }
        renewal.valid_until = renewal.sent.after(fence_ms);
        holding.recorded = true;
        holding.leased = renewal.leased || holding.ghosts.len() >= MAX_GHOSTS;
        if holding.claim.as_ref().is_some_and(|claim| claim.confirming) {
            self.start(key);
        }
    }

    fn start(&mut self, key: &Key) {
        let Some(holding) = self.holdings.get_mut(key) else {
            return;
        };
        let Some(claim) = holding.claim.take() else { return };
        holding.stage = Stage::Running;
        let command = Command::Start {
            pod_id: holding.pod_id.clone(),
            workload: key.0.clone(),
            ordinal: key.1,
            token: holding.token,
            template: holding.template,
            spec: claim.spec,
            accepted_at: holding.accepted_at,
        };
        self.out.push(command);
        self.status.touch();
        self.scan_due = true;
    }

    /// Gives a claim up: the arbiters are free again, the placer knows.
    fn give_up(&mut self, key: &Key) {
        let Some(holding) = self.holdings.remove(key) else {
            return;
        };
        self.release(key, holding.token);
        if let Some(claim) = holding.claim {
            let refusal = claim.refused.values().next();
            let reason = match refusal {
                Some(Refusal::Held { holder }) => format!("`{}` holds it", self.roster.name(holder)),
                Some(Refusal::Roster) => "the arbiters know other members".to_owned(),
                Some(Refusal::Unsettled) => "the arbiters do not yet know what all members hold".to_owned(),
                Some(Refusal::Full) => "an arbiter's table is full".to_owned(),
                Some(Refusal::Stale { .. }) | None => {
                    format!(
                        "{} of {} arbiters answered",
                        claim.granted.len(),
                        claim.arbiters.len()
                    )
                }
            };
            let (key, round) = (key.clone(), claim.round);
            self.send(
                &claim.placer,
                Message::Declined {
                    key,
                    round,
                    reason: Decline::NotGranted(reason),
                },
            );
        }
        self.status.touch();
        self.scan_due = true;
    }

    fn release(&mut self, key: &Key, token: u64) {
        for arbiter in self.arbiters(key) {
            self.send(
                &arbiter,
                Message::Release {
                    key: key.clone(),
                    token,
                },
            );
        }
    }

    /// Stops a copy; a claim is simply given up.
    pub(crate) fn drain(&mut self, key: &Key, why: &str, grace: Option<u32>) {
        let now = self.now;
        let Some(holding) = self.holdings.get_mut(key) else {
            return;
        };
        match holding.stage {
            Stage::Draining => return,
            Stage::Claiming => return self.give_up(key),
            Stage::Running => {}
        }
        let grace_seconds = grace.unwrap_or(holding.grace_seconds);
        holding.stage = Stage::Draining;
        holding.grace_seconds = grace_seconds;
        holding.report.reason = Some(format!("stopping: {why}"));
        holding.stop_again = now.after(u64::from(grace_seconds) * 1000 + STOP_AGAIN_MS);
        let pod_id = holding.pod_id.clone();
        self.out.push(Command::Stop {
            pod_id,
            grace_seconds,
        });
        let name = key.0.pod_name(key.1);
        self.emit(
            "PodDraining",
            format!("pod/{name}"),
            format!("pod `{name}` is stopped here: {why}"),
        );
        self.status.touch();
    }

    /// The runtime's news of a pod.
    pub(crate) fn on_pod(&mut self, pod_id: &str, mut state: PodReport) {
        let Some((key, holding)) = self
            .holdings
            .iter_mut()
            .find(|(_, holding)| holding.pod_id == pod_id)
        else {
            return;
        };
        let short = |text: &mut Option<String>| {
            if let Some(text) = text
                && text.len() > 400
            {
                *text = text.chars().take(200).collect();
            }
        };
        short(&mut state.reason);
        state
            .containers
            .iter_mut()
            .for_each(|container| short(&mut container.error));
        state
            .containers
            .truncate(beemesh_agent_api::manifest::MAX_CONTAINERS);
        if holding.stage == Stage::Draining {
            state.reason.clone_from(&holding.report.reason);
        }
        if holding.report == state {
            return;
        }
        let runs = state.phase == Phase::Running && state.ready && !holding.started_said;
        let ended = state.phase == Phase::Failed && holding.report.phase != Phase::Failed;
        holding.started_said |= runs;
        holding.report = state;
        let (name, start_ms, reason) = (
            key.0.pod_name(key.1),
            holding.report.start_ms,
            holding.report.reason.clone(),
        );
        if runs {
            let after = start_ms.map_or(String::new(), |ms| {
                format!(", {ms} ms after the change was accepted")
            });
            self.emit(
                "PodStarted",
                format!("pod/{name}"),
                format!("pod `{name}` runs here{after}"),
            );
        } else if ended {
            let why = reason.map_or(String::new(), |reason| format!(": {reason}"));
            self.emit(
                "PodFailed",
                format!("pod/{name}"),
                format!("pod `{name}` ended with a failure{why}"),
            );
        }
        self.status.touch();
        self.scan_due = true;
    }

    /// A pod is gone: its ordinal is free.
    pub(crate) fn on_pod_gone(&mut self, pod_id: &str) {
        let found = self.holdings.iter().find(|(_, holding)| holding.pod_id == pod_id);
        let Some(key) = found.map(|(key, _)| key.clone()) else {
            return;
        };
        let Some(holding) = self.holdings.remove(&key) else {
            return;
        };
        let name = key.0.pod_name(key.1);
        if holding.stage == Stage::Draining {
            self.emit(
                "PodDrained",
                format!("pod/{name}"),
                format!("pod `{name}` has stopped here"),
            );
        } else {
            self.failures.note(&key.0, self.now);
            let why = holding
                .report
                .reason
                .map_or(String::new(), |reason| format!(": {reason}"));
            self.emit(
                "PodLost",
                format!("pod/{name}"),
                format!("pod `{name}` is gone unasked{why}; it is placed anew"),
            );
            self.back_off(&key);
        }
        self.release(&key, holding.token);
        self.status.touch();
        self.scan_due = true;
    }

    /// What still runs after a start of the agent.
    pub(crate) fn on_recovered(&mut self, mut pods: Vec<RecoveredPod>) {
        // Two copies of one ordinal on one node cannot be meant: the higher token stays.
        pods.sort_by(|a, b| b.token.cmp(&a.token).then_with(|| a.pod_id.cmp(&b.pod_id)));
        for pod in pods {
            let key = (pod.workload, pod.ordinal);
            let entry = self.desired.get(&key.0);
            let grace_seconds = entry
                .and_then(|e| e.spec())
                .map_or(30, |s| s.pod.termination_grace_period_seconds);
            if self.holdings.contains_key(&key) || self.holdings.len() >= MAX_PODS {
                self.out.push(Command::Stop {
                    pod_id: pod.pod_id,
                    grace_seconds,
                });
                continue;
            }
            let holding = Holding {
                pod_id: pod.pod_id,
                token: pod.token,
                stage: Stage::Running,
                template: pod.template,
                need: entry.map(|entry| entry.need.clone()).unwrap_or_default(),
                report: PodReport::default(),
                ghosts: BTreeSet::new(),
                leased: false,
                recorded: false,
                claim: None,
                renewal: Renewal::default(),
                grace_seconds,
                stop_again: self.now,
                accepted_at: self.now,
                started_said: true,
            };
            self.holdings.insert(key, holding);
        }
        self.recovered = true;
        self.status.touch();
        self.scan_due = true;
    }

    /// What time brings: claims asked again or given up, leases renewed or fenced, stops repeated.
    pub(crate) fn tick_holdings(&mut self) {
        let now = self.now;
        let renew_ms = self.config.tuning.status_ms;
        let mut again = Vec::new();
        for (key, holding) in &mut self.holdings {
            if let Some(claim) = &holding.claim {
                if claim.deadline <= now {
                    again.push((key.clone(), Due::GiveUp));
                } else if claim.ask_again <= now {
                    again.push((key.clone(), Due::Ask));
                }
            } else if holding.stage == Stage::Draining && holding.stop_again <= now {
                holding.stop_again = now.after(u64::from(holding.grace_seconds) * 1000 + STOP_AGAIN_MS);
                let (pod_id, grace_seconds) = (holding.pod_id.clone(), holding.grace_seconds);
                self.out.push(Command::Stop {
                    pod_id,
                    grace_seconds,
                });
            } else if holding.stage == Stage::Running && (holding.leased || !holding.recorded) {
                if holding.leased && holding.renewal.valid_until <= now {
                    again.push((key.clone(), Due::Fence));
                } else if now.since(holding.renewal.sent) >= renew_ms {
                    again.push((key.clone(), Due::Renew));
                }
            }
        }
        for (key, due) in again {
            match due {
                Due::GiveUp => self.give_up(&key),
                Due::Ask => self.ask_silent(&key),
                Due::Renew => self.renew(&key),
                Due::Fence => {
                    let why = "its lease ran out without a majority of its arbiters, and two earlier copies may still run";
                    self.drain(&key, why, Some(0));
                }
            }
        }
    }

    /// Asks the arbiters that have not granted, again: an answer was lost, or they are settled by now.
    fn ask_silent(&mut self, key: &Key) {
        let again = self.now.after(100);
        let Some(holding) = self.holdings.get_mut(key) else {
            return;
        };
        let token = holding.token;
        let Some(claim) = holding.claim.as_mut() else {
            return;
        };
        claim.ask_again = again;
        if claim.confirming {
            return self.renew(key);
        }
        let roster = claim.roster;
        let silent: Vec<PeerId> = claim
            .arbiters
            .iter()
            .filter(|arbiter| !claim.granted.contains_key(arbiter))
            .cloned()
            .collect();
        for arbiter in silent {
            self.send(
                &arbiter,
                Message::Claim(Claim {
                    key: key.clone(),
                    token,
                    roster,
                }),
            );
        }
    }

    /// A member that is alive and knows what it holds: what it does not hold, it does not haunt.
    pub(crate) fn lay_ghost_of_holdings(&mut self, peer: &PeerId, holds: impl Fn(&Key) -> bool) {
        for (key, holding) in &mut self.holdings {
            if holding.ghosts.contains(peer) && !holds(key) {
                holding.ghosts.remove(peer);
                self.status.touch();
            }
        }
    }

    /// The arbiters of an ordinal under the roster as it is now.
    pub(crate) fn arbiters(&self, key: &Key) -> Vec<PeerId> {
        self.roster.arbiters(key_hash(key), self.config.tuning.arbiters)
    }

    /// Highest token of an ordinal that this node has heard of.
    pub(crate) fn known_token(&self, key: &Key) -> u64 {
        self.grants.token(key).max(self.views.highest_token(key))
    }
}

enum Due {
    GiveUp,
    Ask,
    Renew,
    Fence,
}
