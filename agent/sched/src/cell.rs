//! The cell: takes an event, lets its parts act, gives back commands.
//!
//! Here is only what ties the parts together: dispatch, heartbeats, anti-entropy, the arbiter's view of who is alive.
//! Invariant: same configuration, same events, same times: same commands. A step ends.

use crate::attestation::Attestations;
use crate::desired::{ChangeRefused, Desired};
use crate::gossip::{self, ANNOUNCES, FAN_OUT, Pace, ROUND};
use crate::grants::Grants;
use crate::holdings::Holding;
use crate::leases::Round;
use crate::membership::{Membership, SwimEffect};
use crate::model::{Capacity, CellConfig, Command, Event, Key, MemberInfo, Millis, Persisted, Record};
use crate::placement::{Failures, Placer, Reservations};
use crate::roster::{Added, Roster};
use crate::sync::MAX_LIST;
use crate::views::{Heard, Views};
use crate::wire::{Claim, Heartbeat, Message, StatusBody};
use beemesh_agent_api::{Change, WorkloadId};
use beemesh_ids::PeerId;
use rand::{RngExt as _, SeedableRng, rngs::SmallRng};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Messages that one step may send to itself; beyond it they are dropped and counted.
const MAX_LOOPBACK: usize = 100_000;

/// When and whether to speak.
#[derive(Default)]
pub(crate) struct StatusClock {
    dirty: bool,
    /// All must hear a heartbeat, with or without a body.
    greet: bool,
    version: u64,
    seq: u64,
    last: Millis,
    /// When a body was last sent to all.
    spoken: Millis,
}

impl StatusClock {
    /// What this node holds or has differs: say so at the end of the step.
    pub(crate) fn touch(&mut self) {
        self.dirty = true;
    }

    /// The roster differs: nothing is granted anywhere until all have heard from this node under the new one.
    pub(crate) fn greet(&mut self) {
        self.greet = true;
    }
}

/// One node's part in the scheduling of its cell. See `SPEC.md`.
pub struct Cell {
    pub(crate) config: CellConfig,
    pub(crate) now: Millis,
    pub(crate) started: Millis,
    pub(crate) out: Vec<Command>,
    loopback: VecDeque<Message>,
    pub(crate) rng: SmallRng,
    pub(crate) roster: Roster,
    pub(crate) membership: Membership,
    pub(crate) views: Views,
    pub(crate) connected: BTreeSet<PeerId>,
    pub(crate) capacity: Capacity,
    pub(crate) recovered: bool,
    pub(crate) desired: Desired,
    pub(crate) grants: Grants,
    pub(crate) holdings: BTreeMap<Key, Holding>,
    pub(crate) round: Round,
    pub(crate) placer: Placer,
    pub(crate) reservations: Reservations,
    pub(crate) failures: Failures,
    pub(crate) status: StatusClock,
    pub(crate) scan_due: bool,
    /// The next tick is early enough.
    pub(crate) scan_late: bool,
    pub(crate) roster_since: Millis,
    /// A member that was not heard under this roster when it was last looked for.
    pub(crate) missing: Option<PeerId>,
    maintained: Millis,
    announced: Millis,
    /// SWIM introductions that this tick still allows.
    announces: usize,
    /// Whom the last round of heartbeats ended with.
    round_end: PeerId,
    pub(crate) ages: BTreeMap<String, Millis>,
    pub(crate) pace: Pace,
    boot_kept: u64,
    dropped: u64,
    pub(crate) revocation_digest: u64,
    pub(crate) snapshots: Vec<Vec<u8>>,
    pub(crate) root_documents: Vec<Vec<u8>>,
    /// When a member's later key was learned last.
    pub(crate) key_learned: Option<Millis>,
    pub(crate) order_digest: u64,
    pub(crate) orders: Vec<Vec<u8>>,
    pub(crate) attestations: Attestations,
}

impl Cell {
    /// A cell as it was kept, at the time `now`. The first step tells what to make durable.
    pub fn new(config: CellConfig, persisted: Persisted, now: Millis) -> Self {
        let boot = persisted.boot.saturating_add(1);
        let mut rng = SmallRng::seed_from_u64(config.seed);
        let swim_seed = rng.random();
        let membership = Membership::new(config.me.clone(), boot, swim_seed, &config.tuning, now);
        let own = (config.me.clone(), config.member.clone());
        let roster = Roster::of(persisted.members.into_iter().chain([own]), now);
        let mut desired = Desired::default();
        for (change, envelope) in persisted.changes {
            // What this version no longer takes was written by another one: it comes again from the others or not.
            let _ = desired.apply(change, envelope, now);
        }
        let mut attestations = Attestations::new(persisted.baselines, persisted.releases);
        attestations.connected(&config.me, now);
        let lease_ms = config
            .tuning
            .fence_ms
            .saturating_add(config.tuning.fence_margin_ms);
        let mut status = StatusClock::default();
        status.touch();
        let out = vec![
            Command::Persist(Record::Boot(boot)),
            Command::Persist(Record::Member(config.me.clone(), config.member.clone())),
        ];
        Self {
            now,
            started: now,
            out,
            loopback: VecDeque::new(),
            rng,
            roster,
            membership,
            views: Views::default(),
            connected: BTreeSet::new(),
            capacity: Capacity::default(),
            recovered: false,
            desired,
            grants: Grants::new(persisted.grants, now, now.after(lease_ms)),
            holdings: BTreeMap::new(),
            round: Round::default(),
            placer: Placer::default(),
            reservations: Reservations::default(),
            failures: Failures::default(),
            status,
            scan_due: true,
            scan_late: false,
            roster_since: now,
            missing: None,
            maintained: now,
            announced: now,
            announces: ANNOUNCES,
            round_end: config.me.clone(),
            ages: BTreeMap::new(),
            pace: Pace::default(),
            boot_kept: boot,
            dropped: 0,
            revocation_digest: 0,
            snapshots: Vec::new(),
            root_documents: Vec::new(),
            key_learned: None,
            order_digest: 0,
            orders: Vec::new(),
            attestations,
            config,
        }
    }

    /// Takes one event at the time `now` (a time before the last one counts as that). What comes back is to be carried
    /// out in its order.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Command> {
        self.now = self.now.max(now);
        let effects = self.membership.run_timers(self.now);
        self.carry_out(effects);
        match event {
            Event::Tick => self.tick(),
            Event::Member { peer, member } => self.on_member(peer, member),
            Event::Connected { peer } => self.on_connected(peer),
            Event::Disconnected { peer } => {
                self.connected.remove(&peer);
                self.attestations.disconnected(&peer);
            }
            Event::Releases(releases) => self.on_releases(releases),
            Event::Attested { peer, round, report } => self.on_attested(peer, round, report),
            Event::Message { from, bytes } => self.on_bytes(from, &bytes),
            Event::Change { change, envelope } => self.on_change(change, envelope),
            Event::Capacity(capacity) => {
                if self.capacity != capacity {
                    self.capacity = capacity;
                    self.status.touch();
                    self.scan_due = true;
                }
            }
            Event::Pod { pod_id, state } => self.on_pod(&pod_id, state),
            Event::PodGone { pod_id } => self.on_pod_gone(&pod_id),
            Event::Recovered { pods } => self.on_recovered(pods),
            Event::Revocations(news) => self.on_revocations(news),
            Event::Roots(news) => self.on_roots(news),
            Event::Orders(news) => self.on_orders(news),
        }
        self.tick_placements();
        self.settle();
        // News at once, but a flood of news a few times a second.
        if (self.status.dirty || self.status.greet) && self.now.since(self.status.spoken) >= self.body_ms() {
            self.speak();
        }
        std::mem::take(&mut self.out)
    }

    /// Whether a change would be taken: for the answer to the operator before [`Event::Change`].
    ///
    /// # Errors
    /// [`ChangeRefused`] says why not.
    pub fn check_change(&self, change: &Change, envelope: &[u8]) -> Result<(), ChangeRefused> {
        self.desired.check(change, envelope)
    }

    /// The changes that are known, deletions included, with their envelopes.
    pub fn changes(&self) -> impl Iterator<Item = (&Change, &[u8])> {
        self.desired
            .iter()
            .map(|(_, entry)| (&entry.change, entry.envelope.as_slice()))
    }

    /// The members' peer ids, quarantined ones left out.
    pub fn members(&self) -> impl Iterator<Item = (&PeerId, &MemberInfo)> {
        self.roster.active().map(|(peer, entry)| (peer, &entry.info))
    }

    /// Messages that were dropped: garbage, strangers', too large, or SWIM's refusals.
    pub fn dropped(&self) -> u64 {
        self.dropped.saturating_add(self.membership.refused)
    }

    // ---- time ----

    fn tick(&mut self) {
        let now = self.now;
        self.tick_holdings();
        self.reservations.expire(now);
        if now.since(self.maintained) >= 1000 {
            self.maintained = now;
            self.tidy_grants();
            self.tick_attestations();
            self.scan_due = true;
            self.pace.forget(now);
        }
        if self.placer.is_busy() || std::mem::take(&mut self.scan_late) {
            self.scan_due = true;
        }
        self.announces = ANNOUNCES;
        if now.since(self.announced) >= 2000 {
            self.announced = now;
            let silent = self.connected.iter().filter(|peer| !self.membership.is_up(peer));
            let mut silent: Vec<PeerId> = silent.cloned().collect();
            // Others each time: one that does not answer must not keep the rest waiting.
            for _ in 0..silent.len().min(ANNOUNCES.saturating_mul(4)) {
                let chosen = self.rng.random_range(0..silent.len());
                let effects = self.membership.announce(now, &silent.swap_remove(chosen));
                self.carry_out(effects);
            }
        }
        // What waits to be said is said to all, at the end of this step or of one soon.
        if !self.status.dirty
            && !self.status.greet
            && now.since(self.status.last) >= self.config.tuning.status_ms
        {
            self.status.last = now;
            for peer in gossip::turn(&self.connected, &self.round_end, ROUND) {
                self.speak_to(&peer, None);
                self.round_end = peer;
            }
        }
    }

    /// Lets the parts act on each other until nothing is left.
    fn settle(&mut self) {
        for _ in 0..MAX_LOOPBACK {
            if let Some(message) = self.loopback.pop_front() {
                let me = self.config.me.clone();
                self.on_message(me, message);
            } else if std::mem::take(&mut self.scan_due) {
                self.scan();
            } else {
                return;
            }
        }
        self.dropped = self.dropped.saturating_add(self.loopback.len() as u64);
        self.loopback.clear();
    }

    // ---- sending ----

    pub(crate) fn send(&mut self, to: &PeerId, message: Message) {
        if *to == self.config.me {
            return self.loopback.push_back(message);
        }
        if !self.connected.contains(to) {
            return;
        }
        match message.encode() {
            Ok(bytes) => self.out.push(Command::Send {
                to: to.clone(),
                bytes,
            }),
            Err(_) => self.dropped = self.dropped.saturating_add(1),
        }
    }

    pub(crate) fn emit(&mut self, reason: &'static str, object: String, message: String) {
        self.out.push(Command::Emit {
            alarm: false,
            reason,
            object,
            message,
        });
    }

    /// As [`Self::emit`], and on the console of this box.
    pub(crate) fn alarm(&mut self, reason: &'static str, object: String, message: String) {
        self.out.push(Command::Emit {
            alarm: true,
            reason,
            object,
            message,
        });
    }

    pub(crate) fn send_envelope(&mut self, to: &PeerId, workload: &WorkloadId) {
        if let Some(entry) = self.desired.get(workload) {
            let message = Message::Envelope {
                id: entry.change.id.clone(),
                age_ms: self.now.since(entry.accepted_at),
                envelope: entry.envelope.clone(),
            };
            self.send(to, message);
        }
    }

    /// A heartbeat to all; with the body where it is new.
    fn speak(&mut self) {
        let with_body = std::mem::take(&mut self.status.dirty);
        self.status.greet = false;
        self.status.last = self.now;
        self.status.spoken = self.now;
        self.status.version += u64::from(with_body);
        let body = with_body.then(|| self.status_body());
        let peers: Vec<PeerId> = self.connected.iter().cloned().collect();
        for peer in peers {
            self.speak_to(&peer, body.clone());
        }
    }

    fn speak_to(&mut self, peer: &PeerId, body: Option<StatusBody>) {
        self.status.seq += 1;
        let heartbeat = Heartbeat {
            generation: self.membership.generation(),
            yours: self.membership.known_generation(peer),
            seq: self.status.seq,
            version: self.status.version,
            roster: self.roster.digest(),
            changes: self.desired.digest(),
            revocations: self.revocation_digest,
            roots: self.root_version(),
            keys: self.roster.key_digest(),
            orders: self.order_digest,
            recovered: self.recovered,
            body,
        };
        self.send(peer, Message::Heartbeat(Box::new(heartbeat)));
    }

    fn status_body(&self) -> StatusBody {
        let (free_cpu, free_memory) = self.free(None);
        StatusBody {
            capacity: self.capacity.clone(),
            free_cpu,
            free_memory,
            ports: self
                .holdings
                .values()
                .flat_map(|holding| holding.need.ports.iter().copied())
                .collect(),
            pods: self
                .holdings
                .iter()
                .map(|(key, holding)| holding.as_held(key))
                .collect(),
        }
    }

    // ---- members ----

    fn on_member(&mut self, peer: PeerId, member: MemberInfo) {
        let name = member.name.clone();
        let assurance = member.assurance;
        match self.roster.add(peer.clone(), member.clone(), self.now) {
            Added::Known => return,
            Added::Rotated => {
                self.key_learned = Some(self.now);
                let message = format!(
                    "node `{name}` has a new key, its {}. since the first",
                    member.key.generation
                );
                self.out.push(Command::Persist(Record::Member(peer, member)));
                return self.emit("KeyRotated", format!("node/{name}"), message);
            }
            Added::Full => {
                let message = format!(
                    "node `{name}` was not taken in: the cell has {} members",
                    crate::roster::MAX_MEMBERS
                );
                return self.emit("CellFull", format!("node/{name}"), message);
            }
            Added::New { quarantined } => {
                self.out
                    .push(Command::Persist(Record::Member(peer.clone(), member.clone())));
                if let Some((second, first)) = quarantined {
                    self.connected.remove(&second);
                    let (late, early) = (self.roster.name(&second), self.roster.name(&first));
                    let message = format!(
                        "node `{late}` redeemed a voucher that `{early}` had redeemed before: it is kept out"
                    );
                    self.emit("VoucherReused", format!("node/{late}"), message);
                    self.out.push(Command::Quarantine {
                        peer: second,
                        voucher_id: member.voucher_id.clone(),
                        first,
                    });
                }
                for other in self.some_connected(FAN_OUT) {
                    self.send(&other, Message::Members(vec![(peer.clone(), member.clone())]));
                }
                if self.roster.contains(&peer) && peer != self.config.me {
                    let known = format!("{assurance:?}").to_lowercase();
                    let message = format!("node `{name}` is a member of the cell (assurance {known})");
                    self.emit("Joined", format!("node/{name}"), message);
                }
            }
        }
        self.roster_since = self.now;
        self.status.greet();
        self.scan_due = true;
        self.restart_claims();
    }

    fn on_connected(&mut self, peer: PeerId) {
        if self.roster.is_quarantined(&peer)
            || peer == self.config.me
            || self.connected.len() >= crate::roster::MAX_MEMBERS
        {
            return;
        }
        self.connected.insert(peer.clone());
        // Whoever answers already needs no introduction: a member that goes over to a new key connects with all of them anew, and
        // each introduction is answered with up to 16 KiB of members. One that was restarted introduces itself.
        let is_new = !self.membership.is_up(&peer);
        if let Some(left) = self.announces.checked_sub(1).filter(|_| is_new) {
            self.announces = left;
            let effects = self.membership.announce(self.now, &peer);
            self.carry_out(effects);
        }
        self.attestations.connected(&peer, self.now);
        let body = self.status_body();
        self.speak_to(&peer, Some(body));
    }

    fn carry_out(&mut self, effects: Vec<SwimEffect>) {
        for effect in effects {
            match effect {
                SwimEffect::Send(peer, data) => self.send(&peer, Message::Swim(data)),
                SwimEffect::Up(peer) => {
                    let name = self.roster.name(&peer);
                    self.emit("NodeUp", format!("node/{name}"), format!("node `{name}` answers"));
                    self.scan_due = true;
                }
                SwimEffect::Down(peer) => {
                    let name = self.roster.name(&peer);
                    let message = format!(
                        "node `{name}` does not answer any more and is declared dead; its pods are placed anew"
                    );
                    self.emit("NodeDown", format!("node/{name}"), message);
                    self.scan_due = true;
                }
            }
        }
        let boot = self.membership.boot();
        if boot > self.boot_kept {
            self.boot_kept = boot;
            self.out.push(Command::Persist(Record::Boot(boot)));
        }
    }

    // ---- messages ----

    fn on_bytes(&mut self, from: PeerId, bytes: &[u8]) {
        if !self.roster.contains(&from) || from == self.config.me {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        match Message::decode(bytes) {
            Ok(message) => self.on_message(from, message),
            Err(_) => self.dropped = self.dropped.saturating_add(1),
        }
    }

    fn on_message(&mut self, from: PeerId, message: Message) {
        match message {
            Message::Swim(data) => {
                let effects = self.membership.receive(self.now, &data);
                self.carry_out(effects);
            }
            Message::Heartbeat(heartbeat) => self.on_heartbeat(&from, *heartbeat),
            Message::StatusWanted => {
                let body = self.status_body();
                self.speak_to(&from, Some(body));
            }
            Message::Roster(peers) => self.on_roster(&from, &peers),
            Message::MembersWanted(peers) => {
                let wanted: BTreeSet<PeerId> = peers.into_iter().take(MAX_LIST).collect();
                self.send_members(&from, &wanted);
            }
            Message::Members(members) => {
                for (peer, info) in members.into_iter().take(MAX_LIST) {
                    let known = self.roster.generation(&peer);
                    if known.is_none_or(|known| known < info.key.generation) {
                        self.out.push(Command::VerifyMember {
                            peer,
                            credential: info.credential,
                        });
                    }
                }
            }
            Message::Changes(theirs) => self.on_changes(&from, theirs),
            Message::ChangesWanted(workloads) => {
                for workload in workloads.into_iter().take(MAX_LIST) {
                    self.send_envelope(&from, &workload);
                }
            }
            Message::Revocations(envelope) => self.on_snapshot(envelope),
            Message::RevocationsWanted => self.send_snapshots(&from),
            Message::Roots(documents) => self.on_root_documents(documents),
            Message::Keys(theirs) => self.on_keys(&from, theirs),
            Message::Order(envelope) => self.on_order(envelope),
            Message::OrdersWanted => self.send_orders(&from),
            Message::Envelope { id, age_ms, envelope } => self.on_envelope(id, age_ms, envelope),
            Message::Probe(probe) => self.on_probe(&from, probe),
            Message::Offer { key, round, offer } => self.on_offer(from, key, round, offer),
            Message::Unreserve { key } => self.reservations.remove(&key),
            Message::Assign(assign) => self.on_assign(from, assign),
            Message::Declined { key, round, reason } => self.on_declined(&from, &key, round, reason),
            Message::Claim(claim) => self.on_claim(&from, claim),
            Message::Verdict {
                key,
                token,
                roster,
                third,
                verdict,
            } => {
                self.on_verdict(
                    from,
                    Claim {
                        key,
                        token,
                        roster,
                        third,
                    },
                    verdict,
                );
            }
            Message::Renew { round, items } => self.on_renew(&from, round, items),
            Message::Renewed { round, items } => self.on_renewed(&from, round, items),
            Message::Release { key, token } => {
                if let Some(record) = self.grants.release(&key, &from, token) {
                    self.out.push(Command::Persist(Record::Grant(record)));
                }
            }
            Message::Superseded { key, token, holder } => {
                let mine = self
                    .holdings
                    .get(&key)
                    .is_some_and(|h| (h.token, &self.config.me) < (token, &holder));
                if mine {
                    let why = format!("node `{}` holds it by a higher token", self.roster.name(&holder));
                    self.drain(&key, &why, None);
                }
            }
        }
    }

    pub(crate) fn send_members(&mut self, to: &PeerId, wanted: &BTreeSet<PeerId>) {
        let known = wanted.iter().filter_map(|peer| self.roster.info(peer));
        let members: Vec<_> = known.map(|(peer, info)| (peer.clone(), info.clone())).collect();
        // A few at a time: credentials are of unknown size, at most 40 KiB.
        for some in members.chunks(16) {
            self.send(to, Message::Members(some.to_vec()));
        }
    }

    fn on_heartbeat(&mut self, from: &PeerId, heartbeat: Heartbeat) {
        if heartbeat.yours > self.membership.generation() {
            let effects = self.membership.outgrow(self.now, heartbeat.yours);
            self.carry_out(effects);
        }
        let (roster, changes) = (heartbeat.roster, heartbeat.changes);
        self.on_root_version(from, heartbeat.roots);
        self.on_revocation_digest(from, heartbeat.revocations);
        self.on_key_digest(from, heartbeat.keys);
        self.on_order_digest(from, heartbeat.orders);
        let was_heard = self
            .views
            .get(from)
            .is_some_and(|view| view.is_heard_under(self.roster.digest()));
        match self.views.hear(from, heartbeat, self.now) {
            Heard::Old => return,
            Heard::Same => {}
            Heard::BodyWanted => {
                if self.may_ask(from, "body", 200) {
                    self.send(from, Message::StatusWanted);
                }
            }
            Heard::Body => self.on_body(from),
        }
        if roster != self.roster.digest() && self.may_exchange(from, "roster") {
            let peers = self.roster.all().map(|(peer, _)| peer.clone()).collect();
            self.send(from, Message::Roster(peers));
        }
        if changes != self.desired.digest() && self.may_exchange(from, "changes") {
            let mine = self
                .desired
                .iter()
                .map(|(workload, entry)| (workload.clone(), entry.change.id.clone()));
            let mine = mine.collect();
            self.send(from, Message::Changes(mine));
        }
        if !was_heard {
            self.scan_due = true;
        }
    }
}
