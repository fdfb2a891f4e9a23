//! The one task that owns the swarm: swarm events in, fabric events out, dials when they are due.
//!
//! It never waits for the caller while it holds something a peer needs: when the caller does not fetch events, it stops
//! taking frames and streams, and the connections push back. Commands are always taken.

use crate::{
    FabricConfig, FabricError, FabricEvent, FabricStream, MAX_CONNECTIONS, MAX_PENDING, PEER_QUEUE,
    PEER_QUEUE_BYTES, SILENCE,
    address::{Target, is_shareable, is_way_out, quic_address, tcp_address},
    claims::Claims,
    dial_book::DialBook,
    frame::{Frame, LaneError, MAX_ADDRESSES},
    gate::{Gate, GateError, Turned},
    hello::{Hello, HelloError},
    lanes::{self, LANE, Opener, Taken},
    transport,
};
use beemesh_ids::PeerId as NodeId;
use futures::{AsyncWriteExt as _, StreamExt as _};
use libp2p::{
    Multiaddr, PeerId, Stream, Swarm,
    connection_limits::{self, ConnectionLimits},
    core::ConnectedPoint,
    identity::Keypair,
    mdns,
    swarm::{ConnectionId, NetworkBehaviour, SwarmEvent, behaviour::toggle::Toggle, dial_opts::DialOpts},
};
use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
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
/// Peers that mDNS may remember. Anybody on the link can invent more; then it starts anew.
const DISCOVERED: usize = 2048;

/// What the caller asks for.
pub(crate) enum Command {
    Dial(Target),
    Disconnect(NodeId),
}

/// What the tasks of a connection tell.
enum Told {
    Frame(ConnectionId, PeerId, Frame),
    Ended(ConnectionId, PeerId, LaneError),
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

/// The present connection of a peer.
struct Connection {
    id: ConnectionId,
    node: NodeId,
    link: Link,
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

pub(crate) fn start(mut config: FabricConfig, addresses: &[IpAddr]) -> Result<Started, FabricError> {
    let transport_error = |what: String| FabricError::Transport { what };
    let key = Keypair::ed25519_from_bytes(&mut config.secret)
        .map_err(|error| transport_error(error.to_string()))?;
    config.secret.zeroize();
    let own = key.public().to_peer_id();
    let own_node: NodeId = own
        .to_base58()
        .parse()
        .map_err(|_| transport_error("not an Ed25519 key".to_owned()))?;

    let port = match config.listen_port {
        0 => free_port(addresses)?,
        port => port,
    };
    let claims = Claims::new(own);
    let (turned_sender, turned) = mpsc::channel(COMMANDS);
    let gate = Gate {
        admission: config.admission,
        hello: Arc::new(Hello {
            port,
            credential: config.credential,
        }),
        claims: claims.clone(),
        turned: turned_sender,
    };
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
    let mut swarm = Swarm::new(transport::build(&key, gate)?, net, own, swarm_config);
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
        book,
        links: links.clone(),
        connections: HashMap::new(),
        dials: HashMap::new(),
        pending: VecDeque::new(),
        told_sender,
        mdns: config.mdns,
    };
    tokio::spawn(driver.run(events, command_receiver, told, turned));
    Ok((own_node, links, commands, event_receiver))
}

/// A port that is free for TCP and UDP at this moment.
fn free_port(addresses: &[IpAddr]) -> Result<u16, FabricError> {
    let ip = addresses
        .first()
        .copied()
        .unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into());
    let fail = |error: std::io::Error| FabricError::Listen {
        address: format!("{ip}:0"),
        what: error.to_string(),
    };
    let mut last = None;
    for _ in 0..16 {
        let tcp = TcpListener::bind((ip, 0)).map_err(fail)?;
        let port = tcp.local_addr().map_err(fail)?.port();
        match UdpSocket::bind((ip, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = Some(error),
        }
    }
    Err(fail(last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into())))
}

fn listen(swarm: &mut Swarm<Net>, addresses: &[IpAddr], port: u16) -> Result<(), FabricError> {
    for ip in addresses {
        let socket = SocketAddr::new(*ip, port);
        for address in [tcp_address(socket), quic_address(socket)] {
            match swarm.listen_on(address.clone()) {
                Ok(_) => {}
                Err(error) if ip.is_ipv6() => tracing::info!(%address, %error, "does not listen"),
                Err(error) => {
                    return Err(FabricError::Listen {
                        address: address.to_string(),
                        what: error.to_string(),
                    });
                }
            }
        }
    }
    Ok(())
}

fn start_mdns(own: PeerId) -> Option<mdns::tokio::Behaviour> {
    let config = mdns::Config {
        ttl: Duration::from_secs(120),
        query_interval: Duration::from_secs(30),
        ..mdns::Config::default()
    };
    mdns::tokio::Behaviour::new(config, own)
        .inspect_err(|error| tracing::warn!(%error, "does not look for members by mdns"))
        .ok()
}

struct Driver {
    swarm: Swarm<Net>,
    claims: Arc<Claims>,
    book: DialBook,
    links: Arc<Links>,
    connections: HashMap<PeerId, Connection>,
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
        loop {
            self.dial_due();
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
                    None => break,
                },
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
            .next_due(|peer| self.connections.contains_key(peer))
            .map_or(far, |due| due.clamp(soon, far))
    }

    fn dial_due(&mut self) {
        let now = Instant::now();
        for (target, attempt) in self
            .book
            .start_due(now, |peer| self.connections.contains_key(peer))
        {
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
                peer_id,
                connection_id,
                cause,
                ..
            } => {
                let cause = cause.map_or_else(|| "closed".to_owned(), |cause| cause.to_string());
                self.disconnected(peer_id, connection_id, &cause);
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
        let (Some(opener), Some(hello), Ok(node)) = (
            opener,
            self.claims.hello(&peer),
            peer.to_base58().parse::<NodeId>(),
        ) else {
            self.swarm.close_connection(id);
            return;
        };
        if let Some(old) = self.connections.get(&peer).map(|connection| connection.id) {
            // Both sides agreed on the new one (see claims), so the old one is dead on one side at least.
            self.disconnected(peer, old, "replaced");
            self.swarm.close_connection(old);
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
                peer,
            )),
            tokio::spawn(read_lane(lane_receiver, self.told_sender.clone(), id, peer)),
        ];
        self.links.lock().insert(node.clone(), link.clone());
        self.pending.push_back(FabricEvent::Connected {
            peer: node.clone(),
            credential: hello.credential.clone(),
            address: address.to_string(),
        });
        self.introduce(&link, listens);
        self.connections.insert(
            peer,
            Connection {
                id,
                node,
                link,
                listens,
                lane: Some(lane),
                tasks,
            },
        );
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
            if is_shareable(socket.ip(), address.ip()) {
                other.link.queue_frame(Frame::Addresses(vec![socket]));
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

    fn disconnected(&mut self, peer: PeerId, id: ConnectionId, why: &str) {
        if self
            .connections
            .get(&peer)
            .is_none_or(|connection| connection.id != id)
        {
            return;
        }
        let Some(connection) = self.connections.remove(&peer) else {
            return;
        };
        tracing::info!(peer = %connection.node, why, "disconnected");
        self.links.lock().remove(&connection.node);
        self.book.lost(&peer, Instant::now(), rand::random());
        self.pending.push_back(FabricEvent::Disconnected {
            peer: connection.node.clone(),
        });
    }

    fn disconnect(&mut self, node: &NodeId) {
        let found = self
            .connections
            .iter()
            .find(|(_, connection)| connection.node == *node);
        if let Some((peer, id)) = found.map(|(peer, connection)| (*peer, connection.id)) {
            self.end(peer, id, "asked for");
        }
    }

    /// The caller hears of it at once: closing a connection to a dead machine takes its time.
    fn end(&mut self, peer: PeerId, id: ConnectionId, why: &str) {
        self.disconnected(peer, id, why);
        self.swarm.close_connection(id);
    }

    fn on_taken(
        &mut self,
        Taken {
            connection: id,
            stream,
            protocol,
        }: Taken,
    ) {
        let found = self
            .connections
            .iter_mut()
            .find(|(_, connection)| connection.id == id);
        let Some((peer, connection)) = found else { return };
        if protocol != LANE {
            let stream = FabricStream::new(stream);
            self.pending.push_back(FabricEvent::Stream {
                from: connection.node.clone(),
                stream,
            });
        } else if connection
            .lane
            .take()
            .is_none_or(|lane| lane.send(stream).is_err())
        {
            let peer = *peer;
            self.end(peer, id, &LaneError::SecondLane.to_string());
        }
    }

    fn on_told(&mut self, told: Told) {
        match told {
            Told::Ended(id, peer, error) => self.end(peer, id, &error.to_string()),
            Told::Frame(id, peer, frame) => {
                let Some(connection) = self
                    .connections
                    .get(&peer)
                    .filter(|connection| connection.id == id)
                else {
                    return;
                };
                match frame {
                    Frame::Message(bytes) => {
                        self.pending.push_back(FabricEvent::Message {
                            from: connection.node.clone(),
                            bytes,
                        });
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
    peer: PeerId,
) {
    let work = async {
        let mut stream = timeout(SILENCE, opener.open(LANE))
            .await
            .ok()
            .flatten()
            .ok_or(LaneError::NoLane)?;
        loop {
            let frame = match timeout(SIGN_OF_LIFE, frames.recv()).await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(()),
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
        let _ = told.send(Told::Ended(id, peer, error)).await;
    }
}

/// Reads frames as fast as the driver takes them. The time that the driver takes is not the peer's silence.
async fn read_lane(
    lane: oneshot::Receiver<Stream>,
    told: mpsc::Sender<Told>,
    id: ConnectionId,
    peer: PeerId,
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
                    if told.send(Told::Frame(id, peer, frame)).await.is_err() {
                        return LaneError::NoLane;
                    }
                }
                Err(error) => return error,
            }
        }
    };
    let error = work.await;
    let _ = told.send(Told::Ended(id, peer, error)).await;
}
