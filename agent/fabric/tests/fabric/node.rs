//! Nodes for the tests: started on 127.0.0.1, with one expectation per event.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use beemesh_agent_fabric::{
    Admission, Admitted, Credentials, Denial, Fabric, FabricConfig, FabricEvent, FabricStream,
};
use beemesh_ids::PeerId;
use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A credential is the word "member" and the peer's id; or "rotated", the node id, the generation and the peer's id.
#[derive(Default)]
struct Members {
    all: bool,
    /// Keys that do not count any more.
    superseded: Mutex<HashSet<PeerId>>,
    banned: Mutex<HashSet<PeerId>>,
    /// Whom somebody else came before, and that one's credential.
    rival: Mutex<Option<(PeerId, Vec<u8>)>>,
}

impl Admission for Members {
    fn admit(&self, peer: &PeerId, credential: &[u8]) -> Result<Admitted, Denial> {
        if let Some((second, rival)) = &*self.rival.lock().unwrap()
            && second == peer
        {
            return Err(Denial {
                reason: "the voucher is taken".to_owned(),
                rival: Some(rival.clone()),
            });
        }
        if self.banned.lock().unwrap().contains(peer) {
            return Err(format!("`{peer}` is banned").into());
        }
        let text = String::from_utf8_lossy(credential);
        let words: Vec<_> = text.split(' ').collect();
        if let ["rotated", node, generation, key] = words[..]
            && key == peer.as_str()
        {
            return Ok(Admitted {
                node: node.parse().unwrap(),
                generation: generation.parse().unwrap(),
            });
        }
        match self.all || credential == format!("member {peer}").as_bytes() {
            true => Ok(Admitted::by_first_key(peer)),
            false => Err(format!("not a member: `{peer}`").into()),
        }
    }

    fn still_admits(&self, _: &PeerId, peer: &PeerId) -> bool {
        !self.superseded.lock().unwrap().contains(peer)
    }

    fn petition(&self, peer: &PeerId, source: IpAddr, petition: &[u8]) -> Vec<u8> {
        [format!("{peer} at {source} asks: ").as_bytes(), petition].concat()
    }
}

pub fn member(seed: u8) -> Vec<u8> {
    format!("member {}", peer_of(seed)).into_bytes()
}

/// What the node of key `first` shows with the key `seed`.
pub fn rotated(first: u8, generation: u32, seed: u8) -> Credentials {
    Credentials {
        secret: [seed; 32],
        generation,
        credential: format!("rotated {} {generation} {}", peer_of(first), peer_of(seed)).into_bytes(),
    }
}

pub fn peer_of(seed: u8) -> PeerId {
    let key = libp2p::identity::Keypair::ed25519_from_bytes([seed; 32]).unwrap();
    key.public().to_peer_id().to_base58().parse().unwrap()
}

pub fn config(seed: u8, credential: Vec<u8>) -> FabricConfig {
    FabricConfig {
        credentials: Credentials {
            secret: [seed; 32],
            generation: 0,
            credential,
        },
        node: None,
        admission: Arc::new(Members::default()),
        listen_port: 0,
        bootstrap: vec![],
        mdns: false,
    }
}

pub struct Node {
    pub fabric: Fabric,
    pub events: mpsc::Receiver<FabricEvent>,
    /// Connections to others that were made before the one that was waited for: the mesh grows in any order.
    early: Vec<(PeerId, String, Vec<u8>)>,
    pub port: u16,
    id: PeerId,
    members: Arc<Members>,
}

impl Node {
    pub fn member(seed: u8) -> Self {
        Self::with_credential(seed, member(seed))
    }

    pub fn with_credential(seed: u8, credential: Vec<u8>) -> Self {
        Self::start(config(seed, credential), Members::default())
    }

    pub fn open_to_all(seed: u8) -> Self {
        Self::start(
            config(seed, vec![]),
            Members {
                all: true,
                ..Members::default()
            },
        )
    }

    pub fn bootstrapped(seed: u8, others: &[&Node]) -> Self {
        let mut config = config(seed, member(seed));
        config.bootstrap = others.iter().map(|node| node.socket().to_string()).collect();
        Self::start(config, Members::default())
    }

    fn start(mut config: FabricConfig, members: Members) -> Self {
        let members = Arc::new(members);
        config.admission = members.clone();
        for _ in 0..20 {
            let port = {
                let tcp = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                tcp.local_addr().unwrap().port()
            };
            let config = FabricConfig {
                credentials: Credentials {
                    secret: config.credentials.secret,
                    generation: config.credentials.generation,
                    credential: config.credentials.credential.clone(),
                },
                node: config.node.clone(),
                admission: config.admission.clone(),
                listen_port: port,
                bootstrap: config.bootstrap.clone(),
                mdns: config.mdns,
            };
            if let Ok((fabric, events)) = Fabric::start_on(config, &[Ipv4Addr::LOCALHOST.into()]) {
                return Self {
                    id: fabric.peer_id().clone(),
                    fabric,
                    events,
                    early: Vec::new(),
                    port,
                    members,
                };
            }
        }
        panic!("no free port in 20 attempts");
    }

    pub fn id(&self) -> &PeerId {
        &self.id
    }

    pub fn socket(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn dial(&self, other: &Node, transport: &str) {
        let address = match transport {
            "tcp" => format!("/ip4/127.0.0.1/tcp/{}", other.port),
            _ => format!("/ip4/127.0.0.1/udp/{}/quic-v1", other.port),
        };
        self.fabric.dial(&address).unwrap();
    }

    pub fn ban(&self, peer: &PeerId) {
        self.members.banned.lock().unwrap().insert(peer.clone());
    }

    /// The key of `seed` does not count any more.
    pub fn supersede(&self, seed: u8) {
        self.members.superseded.lock().unwrap().insert(peer_of(seed));
    }

    /// The next event must be word of so many members that are left to an older key.
    pub async fn left(&mut self) -> usize {
        match self.event("word of who is left").await {
            FabricEvent::Left { members } => members,
            event => panic!("expected word of who is left, got {event:?}"),
        }
    }

    /// Refuses `peer` because of somebody who showed `rival`.
    pub fn prefer(&self, peer: &PeerId, rival: Vec<u8>) {
        *self.members.rival.lock().unwrap() = Some((peer.clone(), rival));
    }

    /// The next event must be the refusal by `other`, with proof that somebody came first.
    pub async fn taken(&mut self, other: &Node) -> Vec<u8> {
        match self.event("a refusal").await {
            FabricEvent::Refused {
                peer,
                rival: Some(rival),
                ..
            } if peer.as_ref() == Some(&other.id) => rival,
            event => panic!("expected a refusal with proof, got {event:?}"),
        }
    }

    /// As when the machine is switched off, except for what the system still sends for a closed socket.
    pub fn stop(&mut self) {
        let (_, closed) = mpsc::channel(1);
        self.events = closed;
    }

    /// The next event that is not about an address.
    async fn event(&mut self, expected: &str) -> FabricEvent {
        loop {
            let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
            match event
                .unwrap_or_else(|_| panic!("waited in vain for {expected}"))
                .expect("the fabric stopped")
            {
                FabricEvent::Listening { .. } => {}
                event => return event,
            }
        }
    }

    /// A connection to `other` must come next, or have come before; connections to others are kept for their turn.
    pub async fn connected(&mut self, other: &Node) -> (String, Vec<u8>) {
        if let Some(index) = self.early.iter().position(|(peer, ..)| *peer == other.id) {
            let (_, address, credential) = self.early.remove(index);
            return (address, credential);
        }
        loop {
            match self.event("a connection").await {
                FabricEvent::Connected {
                    peer,
                    credential,
                    address,
                } if peer == other.id => return (address, credential),
                FabricEvent::Connected {
                    peer,
                    credential,
                    address,
                } => self.early.push((peer, address, credential)),
                event => panic!("expected a connection, got {event:?}"),
            }
        }
    }

    /// The next event must be the end of the connection to `other`.
    pub async fn disconnected(&mut self, other: &Node) {
        match self.event("the end of a connection").await {
            FabricEvent::Disconnected { peer } if peer == other.id => {}
            event => panic!("expected the end of a connection, got {event:?}"),
        }
    }

    /// The next event must be a message of `other`.
    pub async fn message(&mut self, other: &Node) -> Vec<u8> {
        match self.event("a message").await {
            FabricEvent::Message { from, bytes } if from == other.id => bytes,
            event => panic!("expected a message, got {event:?}"),
        }
    }

    /// The next event must be a stream of `other`.
    pub async fn stream(&mut self, other: &Node) -> FabricStream {
        match self.event("a stream").await {
            FabricEvent::Stream { from, stream } if from == other.id => stream,
            event => panic!("expected a stream, got {event:?}"),
        }
    }

    /// The next event must be the refusal of `other`.
    pub async fn refused(&mut self, other: &Node) -> String {
        match self.event("a refusal").await {
            FabricEvent::Refused { peer, reason, .. } if peer.as_ref() == Some(&other.id) => reason,
            event => panic!("expected a refusal, got {event:?}"),
        }
    }

    /// The next event must be the refusal of somebody.
    pub async fn refusal(&mut self) -> String {
        match self.event("a refusal").await {
            FabricEvent::Refused { reason, .. } => reason,
            event => panic!("expected a refusal, got {event:?}"),
        }
    }
}

/// A cable: forwards TCP until it is frozen, then keeps the sockets and forwards nothing.
pub struct Proxy {
    pub port: u16,
    frozen: Arc<AtomicBool>,
}

impl Proxy {
    pub async fn to(node: &Node) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (target, frozen) = (node.socket(), Arc::new(AtomicBool::new(false)));
        let flag = frozen.clone();
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let Ok(to) = TcpStream::connect(target).await else {
                    continue;
                };
                let (from_read, from_write) = from.into_split();
                let (to_read, to_write) = to.into_split();
                tokio::spawn(forward(from_read, to_write, flag.clone()));
                tokio::spawn(forward(to_read, from_write, flag.clone()));
            }
        });
        Self { port, frozen }
    }

    pub fn freeze(&self) {
        self.frozen.store(true, Ordering::Relaxed);
    }
}

async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    frozen: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 65536];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        while frozen.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
