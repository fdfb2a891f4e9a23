//! The libp2p network of a fabric: QUIC and TCP transports that only members pass, ordered messages, and streams.
//!
//! The only crate that names libp2p. It finds members (bootstrap addresses, mDNS, addresses that members pass on), keeps
//! one connection to each of them and says when one is gone. It does not know what a credential means (that is
//! [`Admission`]) nor what a message says. A node that takes a new key goes on with it without an end of anything: its
//! connections are made anew beside the old ones, and whoever has both uses the newer.
//!
//! A peer is named by its node id, which its key may not be any more: [`Admission`] says whose a key is.
//!
//! Invariant: no connection reaches the swarm, and so no event but [`FabricEvent::Refused`] reaches the caller, before
//! both sides have shown a credential for the key of the handshake and have admitted each other. Who has none may ask one
//! question ([`petition`]) and hears one answer, on a connection that ends with it.

mod address;
mod claims;
mod dial_book;
mod driver;
mod frame;
mod gate;
mod hello;
mod lanes;
mod petition;
mod stream;
mod switch;
mod transport;

pub use petition::{PetitionError, petition};
pub use stream::FabricStream;

use beemesh_ids::PeerId;
use driver::{Command, Links};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

/// Longest message, in bytes.
pub const MAX_MESSAGE: usize = 1024 * 1024;
/// Longest credential, in bytes.
pub const MAX_CREDENTIAL: usize = 40 * 1024;
/// Longest petition of somebody who is no member, in bytes.
pub const MAX_PETITION: usize = 1024;
/// Longest answer to a petition, in bytes.
pub const MAX_ANSWER: usize = 16 * 1024;
/// Messages that wait for one peer before further ones are dropped.
pub const PEER_QUEUE: usize = 256;
/// Bytes of messages that wait for one peer before further ones are dropped.
pub const PEER_QUEUE_BYTES: usize = 8 * 1024 * 1024;
/// Connections at a time.
pub const MAX_CONNECTIONS: u32 = 1024;
/// Incoming connections at a time that have not passed the handshake.
pub const MAX_PENDING: u32 = 64;
/// A peer that is silent for this long is disconnected. Members send a sign of life every second.
pub const SILENCE: Duration = Duration::from_secs(5);
/// How long a peer may take to show its credential.
pub const CREDENTIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a peer is not a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// A sentence. It is also told to the peer, cut at 200 bytes.
    pub reason: String,
    /// The credential of the peer that redeemed the same voucher before, if that is why: told to the peer as proof.
    pub rival: Option<Vec<u8>>,
}

impl From<String> for Denial {
    fn from(reason: String) -> Self {
        Self { reason, rival: None }
    }
}

/// Who a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Its node id.
    pub node: PeerId,
    /// Generation of the key that it has shown: 0 for the one that its node id is from.
    pub generation: u32,
}

impl Admitted {
    /// A node that has its first key.
    pub fn by_first_key(node: &PeerId) -> Self {
        Self {
            node: node.clone(),
            generation: 0,
        }
    }
}

/// Decides who is a member.
pub trait Admission: Send + Sync {
    /// `Ok` when `credential` makes `peer` a member. `peer` is the key that the handshake proved, `credential` is untrusted.
    ///
    /// # Errors
    /// Why not.
    fn admit(&self, peer: &PeerId, credential: &[u8]) -> Result<Admitted, Denial>;

    /// Whether a connection of `node` that was made with the key `peer` may go on. Asked every few seconds.
    fn still_admits(&self, node: &PeerId, peer: &PeerId) -> bool {
        let _ = (node, peer);
        true
    }

    /// What somebody hears who has no credential and asks to get one, at most [`MAX_ANSWER`] bytes. `peer` is proven by the
    /// handshake, `source` is where it is, `petition` (at most [`MAX_PETITION`] bytes) is untrusted. The connection ends with
    /// the answer. Must not wait for anything; unless it is overridden nobody hears anything.
    fn petition(&self, peer: &PeerId, source: IpAddr, petition: &[u8]) -> Vec<u8> {
        let _ = (peer, source, petition);
        Vec::new()
    }
}

impl Admission for beemesh_agent_identity::MembershipAdmission {
    fn admit(&self, peer: &PeerId, credential: &[u8]) -> Result<Admitted, Denial> {
        let judged = self.judge(peer, credential).map_err(|refusal| Denial {
            reason: refusal.to_string(),
            rival: self.rival(&refusal),
        })?;
        Ok(Admitted {
            generation: judged.keys.shown(),
            node: judged.peer_id,
        })
    }

    fn still_admits(&self, node: &PeerId, peer: &PeerId) -> bool {
        self.still_accepts(node, peer)
    }
}

/// A key of this node, and what it shows with it.
pub struct Credentials {
    /// The Ed25519 seed.
    pub secret: [u8; 32],
    /// How many keys the node has had before.
    pub generation: u32,
    /// What this node shows to others, at most [`MAX_CREDENTIAL`] bytes.
    pub credential: Vec<u8>,
}

/// What a node brings to its fabric.
pub struct FabricConfig {
    /// The node key and the credential.
    pub credentials: Credentials,
    /// Node id; without one, the peer id of the key.
    pub node: Option<PeerId>,
    /// Who is let in.
    pub admission: Arc<dyn Admission>,
    /// TCP and UDP port to listen on; 0 takes a free one.
    pub listen_port: u16,
    /// Members to dial at the start and for ever, each `ip:port`.
    pub bootstrap: Vec<String>,
    /// Whether to look for members by multicast DNS and to be found by it.
    pub mdns: bool,
}

/// What happens in the fabric.
#[derive(Debug)]
pub enum FabricEvent {
    /// This node accepts connections on `address` (a multiaddr).
    Listening {
        /// Such as `/ip4/192.0.2.1/tcp/7400`.
        address: String,
    },
    /// A member is connected. Always before any other event of it; and once more, without an end between, when the connection
    /// goes over to a newer key of it or of this node.
    Connected {
        /// Who.
        peer: PeerId,
        /// The credential that was admitted.
        credential: Vec<u8>,
        /// Where it is (a multiaddr).
        address: String,
    },
    /// After [`Fabric::change_key`]: so many members are left that are connected by the old key alone.
    Left {
        /// How many.
        members: usize,
    },
    /// The connection to a member is gone. No event of it follows before its next `Connected`.
    Disconnected {
        /// Who.
        peer: PeerId,
    },
    /// A member sent a message. Messages of one connection arrive in the order of sending.
    Message {
        /// Who.
        from: PeerId,
        /// At most [`MAX_MESSAGE`] bytes.
        bytes: Vec<u8>,
    },
    /// A member opened a stream.
    Stream {
        /// Who.
        from: PeerId,
        /// Its stream.
        stream: FabricStream,
    },
    /// Somebody was not let in, or did not let us in.
    Refused {
        /// Who, as far as the handshake proved it.
        peer: Option<PeerId>,
        /// Where (a multiaddr).
        address: String,
        /// Why.
        reason: String,
        /// The other side's proof that somebody else redeemed this node's voucher: a credential, unverified, at most
        /// [`MAX_CREDENTIAL`] bytes.
        rival: Option<Vec<u8>>,
    },
}

/// Why the fabric could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// The credential is longer than others would read.
    #[error("the credential has {len} bytes, at most {MAX_CREDENTIAL} are possible")]
    CredentialTooLong {
        /// Its length.
        len: usize,
    },
    /// The key cannot be used for a transport.
    #[error("failed to set up the transport: {what}")]
    Transport {
        /// What the transport says.
        what: String,
    },
    /// Not an address.
    #[error(
        "`{text}` is not an address: expected `ip:port`, or a multiaddr with an ip and a tcp or quic port"
    )]
    Address {
        /// What was given.
        text: String,
    },
    /// The port is taken or not allowed.
    #[error("failed to listen on `{address}`: {what}")]
    Listen {
        /// Where.
        address: String,
        /// What the system says.
        what: String,
    },
    /// No connection to this peer now.
    #[error("`{peer}` is not connected")]
    NotConnected {
        /// Who.
        peer: PeerId,
    },
    /// The message is too long.
    #[error("the message has {len} bytes, at most {MAX_MESSAGE} are possible")]
    MessageTooLong {
        /// Its length.
        len: usize,
    },
    /// The peer does not take messages as fast as they come; this one was dropped.
    #[error("the queue of `{peer}` is full, the message was dropped")]
    QueueFull {
        /// Who.
        peer: PeerId,
    },
    /// The peer did not take the stream.
    #[error("`{peer}` did not accept a stream within {} s", SILENCE.as_secs())]
    StreamRefused {
        /// Who.
        peer: PeerId,
    },
    /// The fabric was stopped, or takes no more requests at the moment.
    #[error("the fabric is stopped or overloaded")]
    Unavailable,
}

fn check_credential(credentials: &Credentials) -> Result<(), FabricError> {
    let len = credentials.credential.len();
    if len > MAX_CREDENTIAL {
        return Err(FabricError::CredentialTooLong { len });
    }
    Ok(())
}

/// A handle on the running fabric. Clones are cheap; the fabric stops when the last one, or the event receiver, is gone.
#[derive(Clone)]
pub struct Fabric {
    own: PeerId,
    links: Arc<Links>,
    commands: mpsc::Sender<Command>,
    dropped: Arc<AtomicU64>,
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl Fabric {
    /// Starts the fabric on all addresses of this machine. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// A credential that is too long, an address that is none, an IPv4 port that cannot be listened on.
    pub fn start(config: FabricConfig) -> Result<(Fabric, mpsc::Receiver<FabricEvent>), FabricError> {
        Self::start_on(
            config,
            &[Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        )
    }

    /// As [`Fabric::start`], on these addresses only. IPv6 is best effort: without it a line is logged.
    ///
    /// # Errors
    /// As [`Fabric::start`].
    pub fn start_on(
        config: FabricConfig,
        addresses: &[IpAddr],
    ) -> Result<(Fabric, mpsc::Receiver<FabricEvent>), FabricError> {
        check_credential(&config.credentials)?;
        let dropped = Arc::new(AtomicU64::new(0));
        let (own, links, commands, events) = driver::start(config, addresses)?;
        Ok((
            Fabric {
                own,
                links,
                commands,
                dropped,
            },
            events,
        ))
    }

    /// The node id of this node.
    pub fn peer_id(&self) -> &PeerId {
        &self.own
    }

    /// Goes on with a newer key of this node: it is used for every connection from now on, and all members that can be reached
    /// are dialled with it. The connections of the old key live until there is one of the new key, or
    /// [`Fabric::end_old_connections`].
    ///
    /// # Errors
    /// A credential that is too long; a key that cannot be used; the fabric is stopped.
    pub async fn change_key(&self, credentials: Credentials) -> Result<(), FabricError> {
        check_credential(&credentials)?;
        let (reply, done) = oneshot::channel();
        let command = Command::ChangeKey(Box::new(credentials), reply);
        self.commands
            .send(command)
            .await
            .map_err(|_| FabricError::Unavailable)?;
        done.await.map_err(|_| FabricError::Unavailable)?
    }

    /// Ends what is left of the connections by older keys of this node.
    ///
    /// # Errors
    /// The fabric is stopped.
    pub fn end_old_connections(&self) -> Result<(), FabricError> {
        self.commands
            .try_send(Command::EndOld)
            .map_err(|_| FabricError::Unavailable)
    }

    /// Queues `bytes` for `to`. Delivery is not confirmed; what is queued when the connection dies is lost.
    ///
    /// # Errors
    /// Not connected, too long, or the peer's queue is full ([`PEER_QUEUE`], [`PEER_QUEUE_BYTES`]): the message is dropped
    /// and counted.
    pub fn send(&self, to: &PeerId, bytes: Vec<u8>) -> Result<(), FabricError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(FabricError::MessageTooLong { len: bytes.len() });
        }
        let link = self
            .links
            .get(to)
            .ok_or_else(|| FabricError::NotConnected { peer: to.clone() })?;
        if !link.queue_message(bytes) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return Err(FabricError::QueueFull { peer: to.clone() });
        }
        Ok(())
    }

    /// Messages dropped by [`Fabric::send`] because a queue was full, since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The members that are connected now.
    pub fn connected(&self) -> Vec<PeerId> {
        self.links.peers()
    }

    /// Opens a stream to a connected member. Returns once the member has taken it.
    ///
    /// # Errors
    /// Not connected, or not taken within [`SILENCE`].
    pub async fn open_stream(&self, to: &PeerId) -> Result<FabricStream, FabricError> {
        let link = self
            .links
            .get(to)
            .ok_or_else(|| FabricError::NotConnected { peer: to.clone() })?;
        match tokio::time::timeout(SILENCE, link.opener.open(lanes::STREAM)).await {
            Ok(Some(stream)) => Ok(FabricStream::new(stream)),
            _ => Err(FabricError::StreamRefused { peer: to.clone() }),
        }
    }

    /// Adds an address (`ip:port` or a multiaddr) to those that are dialled until a member answers there.
    ///
    /// # Errors
    /// Not an address; the fabric is stopped.
    pub fn dial(&self, address: &str) -> Result<(), FabricError> {
        let target = address::Target::parse(address).ok_or_else(|| FabricError::Address {
            text: address.to_owned(),
        })?;
        self.commands
            .try_send(Command::Dial(target))
            .map_err(|_| FabricError::Unavailable)
    }

    /// Closes the connection to `peer`, if there is one. It is not a ban: admission decides whether the peer comes back.
    ///
    /// # Errors
    /// The fabric is stopped.
    pub fn disconnect(&self, peer: &PeerId) -> Result<(), FabricError> {
        self.commands
            .try_send(Command::Disconnect(peer.clone()))
            .map_err(|_| FabricError::Unavailable)
    }
}
