//! The member task: drives the cell.
//!
//! Owns the pure core and the fabric. Everything that happens becomes an event for the core; its commands are carried
//! out in order, and what takes long is spawned and comes back as an event. A record is on disk before any later
//! command runs: an arbiter that forgets a grant could give it twice. What waits together is taken together: one commit
//! for the records of up to [`BATCH`] events. A disk that takes no records ends the part in the fabric, not the answers to
//! operators: they see the log, and what was known last.

mod answers;
mod attestation;
mod idle;
mod keys;
mod pods;
mod revocation;
mod roots;

use crate::clock;
use crate::identity::{self, KeyRing};
use crate::join::Joined;
use crate::journal::Journal;
use crate::ledger::{Kept, Ledger, LedgerError};
use crate::member_clocks;
use crate::network;
use crate::orders::Orders;
use crate::petitions::{Door, Petitions};
use crate::query::{Query, Site};
use crate::rest::{self, Access};
use crate::start::Options;
use crate::sticks::News;
use crate::store::Store;
use crate::supervisor::{self, Pulse, Supervisor};
use crate::trust::Trust;
use anyhow::{Context as _, Result};
use beemesh_agent_api::view::Assurance;
use beemesh_agent_fabric::{Fabric, FabricConfig, FabricEvent};
use beemesh_agent_identity::rotation::{Leftover, Rotator};
use beemesh_agent_identity::{MembershipAdmission, NodeKey, SharedRoots, server_config};
use beemesh_agent_runtime::{OpenError, Runtime};
use beemesh_agent_sched::{
    Cell, CellConfig, Command, Event, KeyInfo, MemberInfo, Millis, Persisted, Record, RecoveredPod, Tuning,
};
use beemesh_ids::PeerId;
use beemesh_init_api::path;
use beemesh_joinpack_format::{Assurance as Proven, Member, Membership, Source};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

/// Documents of the pods of this boot.
const PODS: &str = "/run/beemesh/pods";
/// The core's clock tick.
const TICK: Duration = Duration::from_millis(100);
/// How often free memory, images and addresses are looked at.
const CAPACITY: Duration = Duration::from_secs(1);
/// How often the reserve of the state volume is looked at.
const RESERVE: Duration = Duration::from_secs(60);
/// A box that may found its cell waits this long for a member before it does.
const FOUND_AFTER: Duration = Duration::from_millis(500);
/// Events that are taken before their records are made durable and their commands carried out.
const BATCH: usize = 64;
/// Results of spawned work that may wait.
const RESULTS: usize = 1024;

/// What the task is made of.
pub struct Part {
    /// Options.
    pub options: Options,
    /// Events and console.
    pub journal: Journal,
    /// Documents.
    pub store: Store,
    /// Node key.
    pub key: KeyRing,
    /// What an interrupted rotation of it has left.
    pub leftover: Leftover,
    /// Runs pods.
    pub runtime: Arc<dyn Runtime>,
    /// What signed records say of the time.
    pub floors: clock::FloorKeeper,
    /// What is revoked.
    pub trust: Trust,
    /// The orders to rotate keys.
    pub orders: Orders,
    /// For REST over streams and TLS.
    pub context: rest::Context,
    /// Where the fabric is published for REST.
    pub site: watch::Sender<Option<Site>>,
    /// Questions of REST handlers.
    pub questions: mpsc::Receiver<Query>,
    /// News from sticks.
    pub arriving: mpsc::Receiver<News>,
    /// Keeps the operators' socket over restarts.
    pub supervisor: Supervisor,
    /// Beats while this task goes on.
    pub pulse: Pulse,
    /// True once the box has joined: what took its time from that may go on now.
    pub up: watch::Sender<bool>,
    /// Why the state volume cannot be written, where that was found out at the start.
    pub unwritable: Option<OpenError>,
}

impl Part {
    /// Waits for a membership, then drives the cell for good.
    pub async fn run(mut self, joined: Option<Joined>) -> Result<()> {
        let unwritable = self
            .unwritable
            .take()
            .map(|error| LedgerError::Unwritable(Box::new(error)));
        let joined = match (joined, &unwritable) {
            (Some(joined), _) => joined,
            (None, Some(error)) => return self.idle_as_stranger(error).await,
            (None, None) => self.wait_for_membership().await?,
        };
        self.journal.set_node(joined.member.name.clone());
        let judged_by = self.trust.judging(&joined);
        let roots = Arc::new(RwLock::new(judged_by.clone()));
        let (ledger, mut persisted, failed) = self.open_records(unwritable)?;
        if self.trust.keeper().keepsake().is_all_there_is() && persisted.boot == 0 {
            // The counter of its lives is lost with its memory: the clock stands above it, and where it does not, members say so.
            persisted.boot = u64::try_from(clock::system_now().0).unwrap_or_default();
        }
        let (cell, journal) = (joined.member.cell.clone(), self.journal.clone());
        let petitions = Petitions::new(joined.member.fabric.clone(), cell, journal);
        let admission = self.admission(&joined, &roots, &persisted);
        let door = Door {
            membership: admission.clone(),
            petitions: petitions.clone(),
        };
        let (fabric, network) = self.start_fabric(&joined, door)?;
        let site = Site {
            name: joined.member.name.clone(),
            roots: judged_by,
            fabric: fabric.clone(),
        };
        self.site.send_replace(Some(site));
        let acceptor = self.serve_operators(&joined, &roots)?;
        tokio::spawn(member_clocks::follow(
            fabric.clone(),
            self.context.networks.clone(),
            self.options.run_path(path::PEER_TIME),
        ));
        let (results, done) = mpsc::channel(RESULTS);
        let start = Instant::now();
        let credential = joined.document.membership.to_bytes();
        let config = CellConfig {
            me: joined.member.peer_id.clone(),
            member: member_info(joined.member.clone(), credential),
            seed: seed()?,
            tuning: Tuning::default(),
        };
        let me = &joined.member;
        let accepted = persisted.members.keys().any(|peer| *peer != me.peer_id);
        let cell = Cell::new(config, persisted, Millis(0));
        let (rotator, left) = Rotator::new(self.leftover);
        let (rotation_done, rotated) = mpsc::channel(RESULTS);
        let driver = Driver {
            part: self,
            admission,
            acceptor,
            rotator,
            rotation_done,
            next_key: None,
            turn: None,
            used_up: false,
            cell,
            ledger,
            fabric,
            roots,
            joined,
            petitions,
            start,
            results,
            due: Vec::new(),
            waited: BTreeMap::new(),
            joined_after: None,
            announced: false,
            accepted,
            admits: true,
            quarantined: false,
            rivals: BTreeSet::new(),
            failed,
        };
        driver.run(network, done, rotated, left).await
    }

    /// The records; and why they cannot be written, where that is so: then they are only looked at.
    fn open_records(
        &self,
        unwritable: Option<LedgerError>,
    ) -> Result<(Ledger, Persisted, Option<LedgerError>)> {
        let (state, run) = (self.store.path(""), self.options.run_path(PODS));
        let open = || {
            let ledger = Ledger::open(&state, &run, &self.journal)?;
            let persisted = ledger.load(&self.journal)?;
            Ok((ledger, persisted))
        };
        let error = match unwritable.map_or_else(open, Err) {
            Ok((ledger, persisted)) => return Ok((ledger, persisted, None)),
            Err(error) => error,
        };
        let ledger = Ledger::open_read_only(&state, &run, &self.journal)?;
        let persisted = ledger.load(&self.journal)?;
        Ok((ledger, persisted, Some(error)))
    }

    async fn wait_for_membership(&mut self) -> Result<Joined> {
        let mut beat = tokio::time::interval(supervisor::BEAT);
        loop {
            tokio::select! {
                _ = beat.tick() => self.pulse.beat(),
                news = self.arriving.recv() => return news.context("the stick task ended"),
                // Dropping a question tells the asker that the box is not a member yet.
                question = self.questions.recv() => drop(question),
            }
        }
    }

    fn admission(&self, joined: &Joined, roots: &SharedRoots, persisted: &Persisted) -> MembershipAdmission {
        let admission = MembershipAdmission::new(Arc::clone(roots), joined.member.clone())
            .with_revocations(self.trust.shared(), self.trust.clock());
        let me = &joined.member.peer_id;
        let own = (me, joined.document.membership.to_bytes());
        // Who redeemed which voucher is remembered over restarts: a copied stick stays out. What is remembered of this
        // node itself may be a voucher that it has given way with.
        let others = persisted.members.iter().filter(|(peer, _)| *peer != me);
        let others = others.map(|(peer, member)| (peer, member.credential.clone()));
        for (peer, credential) in std::iter::once(own).chain(others) {
            if let Err(refusal) = admission.recall(peer, &credential) {
                tracing::warn!(%peer, %refusal, "a remembered member is not one any more");
            }
        }
        admission
    }

    fn start_fabric(&self, joined: &Joined, door: Door) -> Result<(Fabric, mpsc::Receiver<FabricEvent>)> {
        let config = FabricConfig {
            credentials: keys::credentials(&self.key.now(), joined),
            node: Some(joined.member.peer_id.clone()),
            admission: Arc::new(door),
            listen_port: self.options.port,
            bootstrap: joined.document.peers.clone(),
            mdns: true,
        };
        Fabric::start(config).context("failed to start the fabric")
    }

    /// Returns the way to exchange the certificate that operators are shown.
    fn serve_operators(&self, joined: &Joined, roots: &SharedRoots) -> Result<watch::Sender<TlsAcceptor>> {
        let config = server_config(&self.key.now(), &joined.document.membership, Arc::clone(roots))
            .context("failed to make the TLS configuration")?;
        let (sender, acceptor) = watch::channel(TlsAcceptor::from(Arc::new(config)));
        let context = self.context.clone();
        match supervisor::listen_tcp(&self.supervisor, "operators", self.options.rest_port) {
            Ok(listener) => drop(tokio::spawn(async move {
                if let Err(error) = rest::serve_tls(listener, acceptor, context).await {
                    tracing::error!("the operators' interface ended: {error:#}");
                }
            })),
            Err(error) => tracing::error!("the operators' interface is closed: {error:#}"),
        }
        self.supervisor
            .status(&format!("member `{}`", joined.member.name));
        Ok(sender)
    }
}

fn seed() -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).context("failed to read randomness")?;
    Ok(u64::from_le_bytes(bytes))
}

struct Driver {
    part: Part,
    /// The decision at the door, shared with the fabric.
    admission: MembershipAdmission,
    /// The certificate that operators are shown.
    acceptor: watch::Sender<TlsAcceptor>,
    /// The rotation of this node's key.
    rotator: Rotator,
    rotation_done: mpsc::Sender<keys::Done>,
    /// The key that comes next: made, and not named by the membership yet.
    next_key: Option<Arc<NodeKey>>,
    /// When this node's turn to obey an order comes, in milliseconds.
    turn: Option<u64>,
    /// It was said that the key can be rotated no more.
    used_up: bool,
    cell: Cell,
    ledger: Ledger,
    fabric: Fabric,
    roots: SharedRoots,
    joined: Joined,
    petitions: Petitions,
    start: Instant,
    results: mpsc::Sender<Event>,
    /// Commands of the core, not carried out yet.
    due: Vec<Command>,
    /// Milliseconds from the accepted change to the call of the runtime, by pod.
    waited: BTreeMap<String, u64>,
    joined_after: Option<u64>,
    announced: bool,
    /// A member has let this box in by its present voucher, now or in an earlier run.
    accepted: bool,
    /// Newcomers are admitted, as it was last said.
    admits: bool,
    /// It was said that no voucher is left for this box.
    quarantined: bool,
    /// Machines that were said to have used this box's voucher after it, at most [`revocation::RIVALS`].
    rivals: BTreeSet<PeerId>,
    /// Why the state volume takes no records: from then on no command is carried out.
    failed: Option<LedgerError>,
}

impl Driver {
    async fn run(
        mut self,
        mut network: mpsc::Receiver<FabricEvent>,
        mut done: mpsc::Receiver<Event>,
        mut rotated: mpsc::Receiver<keys::Done>,
        left: Vec<beemesh_agent_identity::rotation::Command>,
    ) -> Result<()> {
        if let Some(error) = self.failed.take() {
            return self.outlast(&error).await;
        }
        let mut pods = self.part.runtime.events();
        let pulse = self.part.pulse.clone();
        pulse.beat_during(self.recover()).await;
        self.tell_revocations();
        self.tell_roots();
        self.resume_rotation(left);
        self.tell_orders();
        self.tell_releases();
        self.flush();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut capacity = tokio::time::interval(CAPACITY);
        // The boot has other things to do.
        let mut reserve = tokio::time::interval_at(tokio::time::Instant::now() + RESERVE, RESERVE);
        let found = tokio::time::sleep(FOUND_AFTER);
        tokio::pin!(found);
        let mut may_found = self.joined.document.found && !self.joined.document.lost;
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    self.part.pulse.beat();
                    self.step(Event::Tick);
                }
                _ = capacity.tick() => {
                    self.look_at_capacity();
                    self.look_at_admissions();
                    self.look_at_orders();
                }
                _ = reserve.tick() => self.look_at_reserve(),
                () = &mut found, if may_found && !self.quarantined => {
                    may_found = false;
                    self.announce_membership("founds its cell, as the join pack says");
                }
                event = network.recv() => self.network(event.context("the fabric ended")?),
                result = done.recv() => self.result(result.context("the results ended")?),
                done = rotated.recv() => self.rotation_done(done.context("the rotation ended")?),
                event = pods.recv() => self.pod(event).await,
                question = self.part.questions.recv() => self.answer(question.context("REST ended")?),
                news = self.part.arriving.recv() => self.news(news.context("the stick task ended")?),
            }
            for _ in 0..BATCH {
                if let Ok(event) = network.try_recv() {
                    self.network(event);
                } else if let Ok(result) = done.try_recv() {
                    self.result(result);
                } else {
                    break;
                }
            }
            self.flush();
            if let Some(error) = self.failed.take() {
                return self.outlast(&error).await;
            }
        }
    }

    fn now(&self) -> Millis {
        Millis(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn result(&mut self, result: Event) {
        match result {
            Event::PodGone { pod_id } => self.pod_gone(pod_id),
            event => self.step(event),
        }
    }

    /// Feeds the core; what it wants verified is fed back at once, its other commands wait for [`Self::flush`].
    fn step(&mut self, event: Event) {
        let mut waiting = std::collections::VecDeque::from([event]);
        while let Some(event) = waiting.pop_front() {
            for command in self.cell.step(self.now(), event) {
                match command {
                    Command::VerifyChange { envelope } => match self.verify_change(&envelope, Source::Member)
                    {
                        Ok(change) => waiting.push_back(Event::Change { change, envelope }),
                        Err(refusal) => tracing::warn!(%refusal, "a change from a member was refused"),
                    },
                    Command::VerifyMember { peer, credential } => {
                        waiting.extend(self.verify_member(&peer, credential));
                    }
                    Command::VerifyRevocations { envelope } => {
                        waiting.extend(self.verify_revocations(&envelope));
                    }
                    Command::VerifyRoots { documents } => waiting.extend(self.verify_roots(&documents)),
                    Command::VerifyOrder { envelope } => waiting.extend(self.verify_order(&envelope)),
                    command => self.due.push(command),
                }
            }
        }
    }

    /// Makes the records durable, then carries out everything else in its order.
    fn flush(&mut self) {
        let due = std::mem::take(&mut self.due);
        if self.failed.is_some() {
            return;
        }
        let (records, rest): (Vec<Command>, Vec<Command>) = due
            .into_iter()
            .partition(|command| matches!(command, Command::Persist(_)));
        let records: Vec<Record> = records
            .into_iter()
            .filter_map(|command| match command {
                Command::Persist(record) => Some(record),
                _ => None,
            })
            .collect();
        if !records.is_empty() {
            // The disk may take its time: the other tasks of this thread go on meanwhile.
            let kept = tokio::task::block_in_place(|| self.ledger.keep(&records));
            match kept {
                Ok(Kept::Kept) => {}
                Ok(Kept::FromReserve) => self.say_full(),
                Err(error) => {
                    self.failed = Some(error);
                    return;
                }
            }
        }
        for command in rest {
            self.carry_out(command);
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Send { to, bytes } => {
                if let Err(error) = self.fabric.send(&to, bytes) {
                    tracing::debug!(%to, %error, "a message was dropped");
                }
            }
            Command::Start {
                pod_id,
                workload,
                ordinal,
                stamp,
                spec,
                accepted_at,
            } => {
                let pod = RecoveredPod {
                    pod_id,
                    workload,
                    ordinal,
                    stamp,
                };
                self.start_pod(pod, *spec, accepted_at);
            }
            Command::Stop {
                pod_id,
                grace_seconds,
            } => self.stop_pod(pod_id, grace_seconds),
            Command::Emit {
                alarm,
                reason,
                object,
                message,
            } => match alarm {
                true => self.part.journal.announce(reason, &object, &message),
                false => self.part.journal.emit(reason, &object, &message),
            },
            Command::Quarantine {
                peer,
                voucher_id,
                first,
            } => self.quarantine(&peer, &voucher_id, &first),
            Command::Revoked { peer } => self.cut_off(&peer),
            Command::Attest { peer, proven, round } => self.attest(peer, proven, round),
            // Taken by `step` and `flush`.
            Command::VerifyChange { .. }
            | Command::VerifyMember { .. }
            | Command::VerifyRevocations { .. }
            | Command::VerifyRoots { .. }
            | Command::VerifyOrder { .. }
            | Command::Persist(_) => {}
        }
    }

    /// The member that a credential proves, for the core; nothing where it proves none.
    fn verify_member(&self, peer: &PeerId, credential: Vec<u8>) -> Option<Event> {
        let roots = self.roots.read().unwrap_or_else(PoisonError::into_inner);
        let known = |member: &Member| {
            let mut members = self.cell.members();
            members.any(|(known, info)| known == peer && info.voucher_id == member.voucher_id)
        };
        let verified = Membership::parse(&credential).and_then(|membership| {
            // A key that was revoked since admits nobody new.
            membership.verify(&roots, peer).or_else(|refusal| {
                let member = membership.verify_known(&roots, peer)?;
                if known(&member) { Ok(member) } else { Err(refusal) }
            })
        });
        match verified {
            Ok(member) if self.part.trust.has(&member) => {
                tracing::warn!(%peer, "a member's credential was refused: it is revoked");
                None
            }
            Ok(member) => match self.admission.learn(&member.keys) {
                Ok(_) => Some(member_event(member, credential)),
                Err(conflict) => {
                    tracing::warn!(%peer, %conflict, "a member's credential was refused");
                    None
                }
            },
            Err(refusal) => {
                tracing::warn!(%peer, %refusal, "a member's credential was refused");
                None
            }
        }
    }

    fn quarantine(&mut self, peer: &PeerId, voucher_id: &str, first: &PeerId) {
        if *peer == self.joined.member.peer_id {
            return self.give_way(first);
        }
        let message = format!(
            "{peer} used voucher {voucher_id}, which {first} had redeemed before: a stick was copied, {peer} stays out"
        );
        self.part
            .journal
            .announce("Quarantined", &format!("node/{peer}"), &message);
        if let Err(error) = self.fabric.disconnect(peer) {
            tracing::warn!(%peer, %error, "failed to disconnect");
        }
    }

    fn network(&mut self, event: FabricEvent) {
        match event {
            FabricEvent::Listening { address } => tracing::info!(address, "listening"),
            FabricEvent::Connected {
                peer,
                credential,
                address,
            } => {
                tracing::info!(%peer, address, "connected");
                self.accepted = true;
                if let Some(event) = self.verify_member(&peer, credential) {
                    self.step(event);
                    self.step(Event::Connected { peer });
                    self.announce_membership("has found the other members");
                }
            }
            FabricEvent::Left { members } => {
                self.rotate(beemesh_agent_identity::rotation::Event::Left(members))
            }
            FabricEvent::Disconnected { peer } => self.step(Event::Disconnected { peer }),
            FabricEvent::Message { from, bytes } => self.step(Event::Message { from, bytes }),
            FabricEvent::Stream { from, stream } => {
                tracing::debug!(%from, "stream");
                let access = Access::Member(from);
                tokio::spawn(rest::serve_connection(stream, access, self.part.context.clone()));
            }
            FabricEvent::Refused {
                peer,
                address,
                reason,
                rival,
            } => {
                if let (Some(peer), Some(rival)) = (&peer, rival) {
                    self.taken_by_rival(peer, &rival);
                }
                let who = peer.map_or_else(|| address.clone(), |peer| format!("{peer} at {address}"));
                self.part
                    .journal
                    .emit("StrangerRefused", "fabric", &format!("{who}: {reason}"));
            }
        }
    }

    fn announce_membership(&mut self, how: &str) {
        if self.announced {
            return;
        }
        self.announced = true;
        let started = std::fs::read_to_string(self.part.options.run_path(path::BOOT_STARTED)).ok();
        let started: Option<u64> = started.and_then(|text| text.trim().parse().ok());
        let after = started.map(|started| clock::boot_ms().saturating_sub(started));
        self.joined_after = after;
        self.look_at_capacity();
        let member = &self.joined.member;
        let message = format!(
            "joined fabric {} as {} ({}, assurance {}, after {} ms): it {how}",
            member.fabric.short(),
            member.name,
            member.peer_id,
            assurance(member.assurance),
            after.map_or_else(|| "?".to_owned(), |after| after.to_string()),
        );
        self.part
            .journal
            .announce("Joined", &format!("node/{}", member.name), &message);
        self.part.up.send_replace(true);
    }

    fn news(&mut self, news: News) {
        for address in &news.document.peers {
            if let Err(error) = self.fabric.dial(address) {
                tracing::warn!(address, %error, "failed to dial");
            }
        }
        self.joined = news;
        self.tell_revocations();
        self.tell_roots();
        self.tell_orders();
        self.tell_releases();
    }

    /// Listing images may wait for an import, so it is done beside the loop.
    fn look_at_capacity(&self) {
        let addresses = network::own_addresses(&self.part.options.run_path(path::NETWORK_STATUS));
        let (images, results) = (self.part.context.images.clone(), self.results.clone());
        let (version, joined_after) = (identity::version(), self.joined_after);
        tokio::task::spawn_blocking(move || {
            let capacity = crate::capacity::look(images.list(), addresses, version, joined_after);
            // A full queue means that a look is waiting already.
            let _ = results.try_send(Event::Capacity(capacity));
        });
    }
}

fn member_event(member: Member, credential: Vec<u8>) -> Event {
    Event::Member {
        peer: member.peer_id.clone(),
        member: member_info(member, credential),
    }
}

fn member_info(member: Member, credential: Vec<u8>) -> MemberInfo {
    MemberInfo {
        name: member.name,
        assurance: match member.assurance {
            Proven::Tpm => Assurance::Tpm,
            Proven::Low => Assurance::Low,
        },
        voucher_id: member.voucher_id,
        redeemed: u64::try_from(member.redeemed.0).unwrap_or(0),
        credential,
        key: KeyInfo {
            peer: (member.keys.generation() > 0).then(|| member.keys.newest().clone()),
            generation: member.keys.generation(),
            as_of: member.keys.as_of().to_owned(),
            since: member.keys.since().0,
        },
    }
}

fn assurance(proven: Proven) -> &'static str {
    match proven {
        Proven::Tpm => "tpm",
        Proven::Low => "low",
    }
}
