//! The one task that owns the swarm: swarm events in, fabric events out, dials when they are due.
//!
//! It never waits for the caller while it holds something a peer needs: when the caller does not fetch events, it stops
//! taking frames and streams, and the connections push back. Commands are always taken.
//!
//! A node has one present connection. One that a connection by a newer key has replaced is *retiring*: it is used for nothing
//! new, and lives until its queue is written and its streams have ended.

mod listening;
mod retiring;

use listening::{free_port, listen, start_mdns};

use crate::{
    Admission, Credentials, FabricConfig, FabricError, FabricEvent, FabricStream, MAX_CONNECTIONS,
    MAX_PENDING, PEER_QUEUE, PEER_QUEUE_BYTES, SILENCE,
    address::{Target, is_shareable, is_way_out},
    claims::{Claims, Passed},
    dial_book::DialBook,
    frame::{Frame, LaneError, MAX_ADDRESSES},
    gate::{Gate, GateError, Turned},
    hello::{Hello, HelloError},
    lanes::{self, LANE, Opener, Taken},
    switch::{Lever, Switch},
    transport,
};
use beemesh_ids::PeerId as NodeId;
use futures::{AsyncWriteExt as _, StreamExt as _};
use libp2p::{
    Multiaddr, PeerId, Stream, Swarm, Transport as _,
    connection_limits::{self, ConnectionLimits},
    core::{ConnectedPoint, muxing::StreamMuxerBox, transport::Boxed},
    identity::Keypair,
    mdns,
    swarm::{ConnectionId, NetworkBehaviour, SwarmEvent, behaviour::toggle::Toggle, dial_opts::DialOpts},
};
use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use zeroize::Zeroize as _;

/// Events that wait for the caller, in the channel and before it. Each may hold one message.
const EVENTS: usize = 64;
/// Frames that wait for the driver.
const INBOX: usize = 32;
/// Commands and reports that wait for the driver.
const COMMANDS: usize = 256;
/// A member that has nothing to say shows this often that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// How often it is asked whether connections may go on.
const REVIEW: Duration = Duration::from_secs(5);
/// A connection that was replaced is used for so long after: the other side may not know of the new one yet.
const RETIRE: Duration = Duration::from_secs(3);
/// Peers that mDNS may remember. Anybody on the link can invent more; then it starts anew.
const DISCOVERED: usize = 2048;

/// What the caller asks for.
pub(crate) enum Command {
    Dial(Target),
    Disconnect(NodeId),
    ChangeKey(Box<Credentials>, oneshot::Sender<Result<(), FabricError>>),
    EndOld,
}

/// What the tasks of a connection tell.
enum Told {
    Frame(ConnectionId, NodeId, Frame),
    Ended(ConnectionId, NodeId, LaneError),
}

/// The way to one connected peer.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) opener: Opener,
    queue: mpsc::Sender<Frame>,
    queued: Arc<AtomicUsize>,
}

impl Link {
    /// Whether there was room.
    pub(crate) fn queue_message(&self, bytes: Vec<u8>) -> bool {
        self.queue_frame(Frame::Message(bytes))
    }

    fn queue_frame(&self, frame: Frame) -> bool {
        let size = frame.size();
        if self.queued.fetch_add(size, Ordering::AcqRel) + size > PEER_QUEUE_BYTES
            || self.queue.try_send(frame).is_err()
        {
            self.queued.fetch_sub(size, Ordering::AcqRel);
            return false;
        }
        true
    }
}

/// The ways to all connected peers.
#[derive(Default)]
pub(crate) struct Links(Mutex<HashMap<NodeId, Link>>);

impl Links {
    pub(crate) fn get(&self, peer: &NodeId) -> Option<Link> {
        self.lock().get(peer).cloned()
    }

    pub(crate) fn peers(&self) -> Vec<NodeId> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Link>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
struct Net {
    limits: connection_limits::Behaviour,
    lanes: lanes::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
}

/// A connection of a node.
struct Connection {
    id: ConnectionId,
    passed: Passed,
    /// The key of the other side.
    peer: PeerId,
    /// Gone once the connection has retired.
    link: Option<Link>,
    /// When it retires.
    retires: Option<Instant>,
    listens: Option<SocketAddr>,
    lane: Option<oneshot::Sender<Stream>>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

type Started = (
    NodeId,
    Arc<Links>,
    mpsc::Sender<Command>,
    mpsc::Receiver<FabricEvent>,
);

/// What every transport of this node is made of, whatever its key.
struct Maker {
    admission: Arc<dyn Admission>,
    claims: Arc<Claims>,
    port: u16,
    turned: mpsc::Sender<Turned>,
}

impl Maker {
    /// A transport by this key, which counts as one of this node's own from now on.
    fn make(
        &self,
        key: &Keypair,
        generation: u32,
        credential: Vec<u8>,
    ) -> Result<Boxed<(PeerId, StreamMuxerBox)>, FabricError> {
        let gate = Gate {
            admission: self.admission.clone(),
            hello: Arc::new(Hello {
                port: self.port,
                credential,
            }),
            generation,
            claims: self.claims.clone(),
            turned: self.turned.clone(),
        };
        let transport = transport::build(key, gate)?;
        self.claims.add_own_key(key.public().to_peer_id());
        Ok(transport)
    }
}

fn keypair(secret: &mut [u8; 32]) -> Result<Keypair, FabricError> {
    let key = Keypair::ed25519_from_bytes(&mut *secret).map_err(|error| FabricError::Transport {
        what: error.to_string(),
    });
    secret.zeroize();
    key
}

fn node_id(key: &PeerId) -> Result<NodeId, FabricError> {
    key.to_base58().parse().map_err(|_| FabricError::Transport {
        what: "not an Ed25519 key".to_owned(),
    })
}

pub(crate) fn start(config: FabricConfig, addresses: &[IpAddr]) -> Result<Started, FabricError> {
    let Credentials {
        mut secret,
        generation,
        credential,
    } = config.credentials;
    let key = keypair(&mut secret)?;
    let own = key.public().to_peer_id();
    let own_node = match config.node {
        Some(node) => node,
        None => node_id(&own)?,
    };

    let port = match config.listen_port {
        0 => free_port(addresses)?,
        port => port,
    };
    let claims = Claims::new(own_node.clone());
    let (turned_sender, turned) = mpsc::channel(COMMANDS);
    let maker = Maker {
        admission: config.admission,
        claims: claims.clone(),
        port,
        turned: turned_sender,
    };
    let lever = Lever::default();
    let transport = Switch::new(maker.make(&key, generation, credential)?, lever.clone()).boxed();
    let limits = ConnectionLimits::default()
        .with_max_pending_incoming(Some(MAX_PENDING))
        .with_max_established(Some(MAX_CONNECTIONS))
        .with_max_established_per_peer(Some(4));
    let net = Net {
        limits: connection_limits::Behaviour::new(limits),
        lanes: lanes::Behaviour::default(),
        mdns: Toggle::from(config.mdns.then(|| start_mdns(own)).flatten()),
    };
    let swarm_config = libp2p::swarm::Config::with_tokio_executor();
    // The swarm knows this node by the key that it had at the start: nobody else ever sees that.
    let mut swarm = Swarm::new(transport, net, own, swarm_config);
    listen(&mut swarm, addresses, port)?;

    let mut book = DialBook::default();
    for text in &config.bootstrap {
        let target = Target::parse(text).ok_or_else(|| FabricError::Address { text: text.clone() })?;
        book.add(target, true, Instant::now());
    }
    let links = Arc::new(Links::default());
    let (commands, command_receiver) = mpsc::channel(COMMANDS);
    let (events, event_receiver) = mpsc::channel(EVENTS);
    let (told_sender, told) = mpsc::channel(INBOX);
    let driver = Driver {
        swarm,
        claims,
        maker,
        lever,
        generation,
        book,
        links: links.clone(),
        connections: HashMap::new(),
        keys: HashMap::new(),
        retiring: HashMap::new(),
        left: None,
        dials: HashMap::new(),
        pending: VecDeque::new(),
        told_sender,
        mdns: config.mdns,
    };
    tokio::spawn(driver.run(events, command_receiver, told, turned));
    Ok((own_node, links, commands, event_receiver))
}

struct Driver {
    swarm: Swarm<Net>,
    claims: Arc<Claims>,
    maker: Maker,
    lever: Lever,
    /// Of the key that this node uses.
    generation: u32,
    book: DialBook,
    links: Arc<Links>,
    /// The present connection of each node.
    connections: HashMap<NodeId, Connection>,
    /// The nodes of those that are by this node's present key, by the key of the other side: nobody dials these.
    keys: HashMap<PeerId, NodeId>,
    /// Connections that were replaced.
    retiring: HashMap<ConnectionId, Connection>,
    /// Members that were last said to be left to an older key of this node; nothing is to be said without one.
    left: Option<usize>,
    dials: HashMap<ConnectionId, Target>,
    pending: VecDeque<FabricEvent>,
    told_sender: mpsc::Sender<Told>,
    mdns: bool,
}

impl Driver {
    async fn run(
        mut self,
        events: mpsc::Sender<FabricEvent>,
        mut commands: mpsc::Receiver<Command>,
        mut told: mpsc::Receiver<Told>,
        mut turned: mpsc::Receiver<Turned>,
    ) {
        let mut review = tokio::time::interval(REVIEW);
        let mut retire = tokio::time::interval(RETIRE / 3);
        loop {
            self.dial_due();
            self.say_left();
            let room = self.pending.len() < EVENTS;
            let due = self.next_due();
            tokio::select! {
                permit = events.reserve(), if !self.pending.is_empty() => match permit {
                    Ok(permit) => if let Some(event) = self.pending.pop_front() { permit.send(event) },
                    Err(_) => break,
                },
                () = events.closed() => break,
                event = self.swarm.select_next_some(), if room => self.on_swarm(event),
                Some(told) = told.recv(), if room => self.on_told(told),
                Some(turned) = turned.recv(), if room => self.on_turned(turned),
                command = commands.recv() => match command {
                    Some(Command::Dial(target)) => self.book.add(target, false, Instant::now()),
                    Some(Command::Disconnect(node)) => self.disconnect(&node),
                    Some(Command::ChangeKey(credentials, reply)) => drop(reply.send(self.change_key(*credentials))),
                    Some(Command::EndOld) => self.end_old(),
                    None => break,
                },
                _ = review.tick() => self.review(),
                _ = retire.tick(), if !self.retiring.is_empty() => self.retire_due(),
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
        self.links.lock().clear();
    }

    fn next_due(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(60);
        // While all slots are taken a report of a dial wakes the loop, so a due time in the past must not spin it.
        let soon = Instant::now() + Duration::from_millis(20);
        self.book
            .next_due(|peer| self.keys.contains_key(peer))
            .map_or(far, |due| due.clamp(soon, far))
    }

    fn dial_due(&mut self) {
        let now = Instant::now();
        for (target, attempt) in self.book.start_due(now, |peer| self.keys.contains_key(peer)) {
            let options = DialOpts::unknown_peer_id()
                .address(target.multiaddr(attempt))
                .allocate_new_port()
                .build();
            let id = options.connection_id();
            match self.swarm.dial(options) {
                Ok(()) => {
                    self.dials.insert(id, target);
                }
                Err(error) => {
                    tracing::debug!(?target, %error, "cannot dial");
                    self.book.failed(&target, now, rand::random());
                }
            }
        }
    }

    fn on_swarm(&mut self, event: SwarmEvent<NetEvent>) {
        match event {
            SwarmEvent::NewListenAddr { address, .. } => {
                if is_way_out(&address) {
                    self.book.start_over(Instant::now());
                    self.dials.clear();
                }
                self.pending.push_back(FabricEvent::Listening {
                    address: address.to_string(),
                });
            }
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                if let Some(target) = self.dials.remove(&connection_id) {
                    self.book.answered(&target, peer_id, Instant::now());
                }
                self.connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed {
                connection_id, cause, ..
            } => {
                let cause = cause.map_or_else(|| "closed".to_owned(), |cause| cause.to_string());
                if let Some(node) = self.node_of(connection_id) {
                    self.disconnected(&node, connection_id, &cause);
                }
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id, error, ..
            } => {
                if let Some(target) = self.dials.remove(&connection_id) {
                    tracing::debug!(?target, %error, "dial failed");
                    self.book.failed(&target, Instant::now(), rand::random());
                }
            }
            SwarmEvent::Behaviour(NetEvent::Lanes(taken)) => self.on_taken(taken),
            SwarmEvent::Behaviour(NetEvent::Mdns(mdns::Event::Discovered(found))) => {
                self.on_discovered(&found)
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listener"),
            SwarmEvent::ListenerClosed {
                addresses, reason, ..
            } => {
                tracing::warn!(?addresses, ?reason, "listener closed");
            }
            _ => {}
        }
    }

    fn connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let opener = self.swarm.behaviour_mut().lanes.take_opener(id);
        let (Some(opener), Some(passed)) = (opener, self.claims.passed(&peer)) else {
            self.swarm.close_connection(id);
            return;
        };
        let (node, hello) = (passed.node.clone(), passed.hello.clone());
        let old = self.connections.get(&node);
        // Made at the same time as a newer one, and late: what the other side says on it is heard, and it goes soon.
        let is_late = old.is_some_and(|old| passed.rank() < old.passed.rank());
        if let Some((old, rank)) = old.map(|old| (old.id, old.passed.rank())) {
            if is_late {
                tracing::debug!(peer = %node, "a connection by an older key comes late");
            } else if passed.rank() > rank {
                // It lives, and what is under way on it goes on.
                if let Some(mut old) = self.connections.remove(&node) {
                    old.retires = Some(Instant::now() + RETIRE);
                    self.keys.remove(&old.peer);
                    self.retiring.insert(old.id, old);
                }
            } else {
                // Both sides agreed on the new one (see claims), so the old one is dead on one side at least.
                self.end(&node, old, "replaced");
            }
        }
        let address = match endpoint {
            ConnectedPoint::Dialer { address, .. } => address,
            ConnectedPoint::Listener { send_back_addr, .. } => send_back_addr,
        };
        let listens =
            Target::from_multiaddr(address).map(|target| SocketAddr::new(target.socket.ip(), hello.port));

        let (queue, frames) = mpsc::channel(PEER_QUEUE);
        let queued = Arc::new(AtomicUsize::new(0));
        let link = Link {
            opener: opener.clone(),
            queue,
            queued: queued.clone(),
        };
        let (lane, lane_receiver) = oneshot::channel();
        let tasks = [
            tokio::spawn(write_lane(
                opener,
                frames,
                queued,
                self.told_sender.clone(),
                id,
                node.clone(),
            )),
            tokio::spawn(read_lane(
                lane_receiver,
                self.told_sender.clone(),
                id,
                node.clone(),
            )),
        ];
        let connection = Connection {
            id,
            passed: passed.clone(),
            peer,
            link: Some(link.clone()),
            retires: is_late.then(|| Instant::now() + RETIRE),
            listens,
            lane: Some(lane),
            tasks,
        };
        if is_late {
            self.retiring.insert(id, connection);
            return;
        }
        self.links.lock().insert(node.clone(), link.clone());
        self.pending.push_back(FabricEvent::Connected {
            peer: node.clone(),
            credential: hello.credential.clone(),
            address: address.to_string(),
        });
        self.introduce(&link, listens);
        if passed.own_generation == self.generation {
            self.keys.insert(peer, node.clone());
        }
        self.connections.insert(node, connection);
        if let Some(socket) = listens {
            self.learn(socket, Some(peer));
        }
    }

    /// Tells a new member where the others are, and the others where it is, so that the mesh closes by itself.
    fn introduce(&self, link: &Link, listens: Option<SocketAddr>) {
        let Some(socket) = listens else { return };
        let mut known = Vec::new();
        for other in self.connections.values() {
            let Some(address) = other.listens else { continue };
            if is_shareable(address.ip(), socket.ip()) && known.len() < MAX_ADDRESSES {
                known.push(address);
            }
            if let Some(link) = other
                .link
                .as_ref()
                .filter(|_| is_shareable(socket.ip(), address.ip()))
            {
                link.queue_frame(Frame::Addresses(vec![socket]));
            }
        }
        if !known.is_empty() {
            link.queue_frame(Frame::Addresses(known));
        }
    }

    fn learn(&mut self, socket: SocketAddr, peer: Option<PeerId>) {
        let now = Instant::now();
        if let Some(target) = Target::parse(&socket.to_string()) {
            self.book.add(target, false, now);
            if let Some(peer) = peer {
                self.book.answered(&target, peer, now);
            }
        }
    }

    fn disconnected(&mut self, node: &NodeId, id: ConnectionId, why: &str) {
        if self.retiring.remove(&id).is_some() {
            tracing::debug!(peer = %node, why, "a connection that was replaced is gone");
            return;
        }
        if self
            .connections
            .get(node)
            .is_none_or(|connection| connection.id != id)
        {
            return;
        }
        let Some(connection) = self.connections.remove(node) else {
            return;
        };
        tracing::info!(peer = %node, why, "disconnected");
        self.keys.remove(&connection.peer);
        self.links.lock().remove(node);
        self.book.lost(&connection.peer, Instant::now(), rand::random());
        self.pending
            .push_back(FabricEvent::Disconnected { peer: node.clone() });
    }

    fn disconnect(&mut self, node: &NodeId) {
        let present = self.connections.get(node).into_iter();
        let retiring = self.retiring.values().filter(|old| old.passed.node == *node);
        let ids: Vec<_> = present.chain(retiring).map(|connection| connection.id).collect();
        for id in ids {
            self.end(node, id, "asked for");
        }
    }

    /// The caller hears of it at once: closing a connection to a dead machine takes its time.
    fn end(&mut self, node: &NodeId, id: ConnectionId, why: &str) {
        self.disconnected(node, id, why);
        self.swarm.close_connection(id);
    }

    /// The node of a connection, present or retiring.
    fn node_of(&self, id: ConnectionId) -> Option<NodeId> {
        let mut all = self.connections.values().chain(self.retiring.values());
        let connection = all.find(|connection| connection.id == id)?;
        Some(connection.passed.node.clone())
    }

    fn on_taken(
        &mut self,
        Taken {
            connection: id,
            stream,
            protocol,
        }: Taken,
    ) {
        let mut all = self.connections.values_mut().chain(self.retiring.values_mut());
        let Some(connection) = all.find(|connection| connection.id == id) else {
            return;
        };
        let node = connection.passed.node.clone();
        if protocol != LANE {
            let stream = FabricStream::new(stream);
            self.pending.push_back(FabricEvent::Stream { from: node, stream });
        } else if connection
            .lane
            .take()
            .is_none_or(|lane| lane.send(stream).is_err())
        {
            self.end(&node, id, &LaneError::SecondLane.to_string());
        }
    }

    fn on_told(&mut self, told: Told) {
        match told {
            // The other side has retired it; its streams may go on.
            Told::Ended(id, _, _) if self.retiring.contains_key(&id) => {}
            Told::Ended(id, node, error) => self.end(&node, id, &error.to_string()),
            Told::Frame(id, node, frame) => {
                let present = self.connections.get(&node);
                let is_present = present.is_some_and(|connection| connection.id == id);
                if !is_present && !self.retiring.contains_key(&id) {
                    return;
                }
                match frame {
                    Frame::Message(bytes) => {
                        self.pending.push_back(FabricEvent::Message { from: node, bytes });
                    }
                    Frame::Addresses(addresses) => {
                        addresses.into_iter().for_each(|socket| self.learn(socket, None))
                    }
                    Frame::Alive => {}
                }
            }
        }
    }

    fn on_turned(
        &mut self,
        Turned {
            peer,
            address,
            dialled,
            error,
        }: Turned,
    ) {
        let now = Instant::now();
        let target = dialled.then(|| self.book_target(&address)).flatten();
        match error {
            GateError::Myself => {
                if let Some(target) = target {
                    self.book.is_own(&target, now);
                }
            }
            GateError::Duplicate => {
                if let Some(target) = target {
                    self.book.answered(&target, peer, now);
                }
            }
            // Nobody was judged: a connection that breaks is no refusal, nor is one that only asked.
            GateError::Broken(_) | GateError::Petition | GateError::Hello(HelloError::Io(_)) => {
                tracing::debug!(%peer, %address, %error, "connection failed in the handshake");
            }
            error => {
                let peer = peer.to_base58().parse().ok();
                let reason = error.to_string();
                let rival = match error {
                    GateError::TakenByRival(_, rival) => Some(rival),
                    _ => None,
                };
                self.pending.push_back(FabricEvent::Refused {
                    peer,
                    address: address.to_string(),
                    reason,
                    rival,
                });
            }
        }
    }

    /// The dial that led to `address`, which then is no failure any more.
    fn book_target(&mut self, address: &Multiaddr) -> Option<Target> {
        let reached = Target::from_multiaddr(address)?;
        let same = |target: &Target| target.socket == reached.socket;
        let id = self
            .dials
            .iter()
            .find(|(_, target)| same(target))
            .map(|(id, _)| *id)?;
        self.dials.remove(&id)
    }

    fn on_discovered(&mut self, found: &[(PeerId, Multiaddr)]) {
        let own = *self.swarm.local_peer_id();
        for target in found
            .iter()
            .filter(|(peer, _)| *peer != own)
            .filter_map(|(_, a)| Target::from_multiaddr(a))
        {
            self.learn(target.socket, None);
        }
        let mdns = &mut self.swarm.behaviour_mut().mdns;
        if self.mdns
            && mdns
                .as_ref()
                .is_some_and(|mdns| mdns.discovered_nodes().len() > DISCOVERED)
        {
            tracing::warn!("mdns names more than {DISCOVERED} peers: it starts anew");
            *mdns = Toggle::from(start_mdns(own));
        }
    }
}

/// Writes what is queued, and a sign of life when nothing is.
async fn write_lane(
    opener: Opener,
    mut frames: mpsc::Receiver<Frame>,
    queued: Arc<AtomicUsize>,
    told: mpsc::Sender<Told>,
    id: ConnectionId,
    node: NodeId,
) {
    let work = async {
        let mut stream = timeout(SILENCE, opener.open(LANE))
            .await
            .ok()
            .flatten()
            .ok_or(LaneError::NoLane)?;
        // What is left to open streams with is the link.
        drop(opener);
        loop {
            let frame = match timeout(SIGN_OF_LIFE, frames.recv()).await {
                Ok(Some(frame)) => frame,
                // The connection has retired: the other side hears the end after all that was queued.
                Ok(None) => {
                    let _ = timeout(SILENCE, stream.close()).await;
                    return Ok(());
                }
                Err(_) => Frame::Alive,
            };
            frame.write(&mut stream).await?;
            queued.fetch_sub(frame.size(), Ordering::AcqRel);
            if frames.is_empty() {
                stream.flush().await?;
            }
        }
    };
    if let Err(error) = work.await {
        let _ = told.send(Told::Ended(id, node, error)).await;
    }
}

/// Reads frames as fast as the driver takes them. The time that the driver takes is not the peer's silence.
async fn read_lane(
    lane: oneshot::Receiver<Stream>,
    told: mpsc::Sender<Told>,
    id: ConnectionId,
    node: NodeId,
) {
    let work = async {
        let Ok(lane) = timeout(SILENCE, lane).await else {
            return LaneError::Silent;
        };
        let Ok(mut stream) = lane else {
            return LaneError::NoLane;
        };
        loop {
            match Frame::read(&mut stream).await {
                Ok(Frame::Alive) => {}
                Ok(frame) => {
                    if told.send(Told::Frame(id, node.clone(), frame)).await.is_err() {
                        return LaneError::NoLane;
                    }
                }
                Err(error) => return error,
            }
        }
    };
    let error = work.await;
    let _ = told.send(Told::Ended(id, node, error)).await;
}
