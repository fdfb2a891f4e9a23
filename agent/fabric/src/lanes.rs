//! The swarm behaviour: opens and takes substreams on established connections and keeps those connections alive.
//! It knows two protocols, and gives away raw streams; what runs on them is not its business.
//!
//! Streams that are taken faster than the driver fetches them are dropped (at most [`WAITING`] per connection wait).

use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{Endpoint, transport::PortUse, upgrade::UpgradeInfo},
    core::{InboundUpgrade, OutboundUpgrade},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        derive_prelude::{ConnectionClosed, DialFailure, ListenFailure},
        handler::{ConnectionEvent, FullyNegotiatedInbound},
    },
};
use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};
use tokio::sync::{mpsc, oneshot};

/// Messages, signs of life and addresses: one stream in each direction per connection.
pub(crate) const LANE: StreamProtocol = StreamProtocol::new("/beemesh/lane/1");
/// Streams of the caller.
pub(crate) const STREAM: StreamProtocol = StreamProtocol::new("/beemesh/stream/1");

/// Taken streams that wait for the driver, per connection.
const WAITING: usize = 64;
/// Streams that are being opened, per connection.
const OPENING: usize = 16;

/// A wish for a stream. Dropped without an answer when the peer does not take it.
#[derive(Debug)]
struct Wish {
    protocol: StreamProtocol,
    reply: oneshot::Sender<Stream>,
}

/// Opens streams on one connection.
#[derive(Debug, Clone)]
pub(crate) struct Opener(mpsc::Sender<Wish>);

impl Opener {
    /// `None`: the connection is gone or the peer refuses. Waits as long as the peer takes; the caller bounds it.
    pub(crate) async fn open(&self, protocol: StreamProtocol) -> Option<Stream> {
        let (reply, stream) = oneshot::channel();
        self.0.send(Wish { protocol, reply }).await.ok()?;
        stream.await.ok()
    }
}

/// A stream that a peer opened.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) connection: ConnectionId,
    pub(crate) stream: Stream,
    pub(crate) protocol: StreamProtocol,
}

#[derive(Default)]
pub(crate) struct Behaviour {
    openers: HashMap<ConnectionId, Opener>,
    taken: VecDeque<Taken>,
}

impl Behaviour {
    /// The opener of an established connection, once.
    pub(crate) fn take_opener(&mut self, connection: ConnectionId) -> Option<Opener> {
        self.openers.remove(&connection)
    }

    fn handler(&mut self, connection: ConnectionId) -> Handler {
        let (sender, wishes) = mpsc::channel(OPENING);
        self.openers.insert(connection, Opener(sender));
        Handler {
            wishes,
            taken: VecDeque::new(),
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Taken;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(connection))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(connection))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        // A connection that another behaviour denied never becomes established: its opener must not stay.
        let (FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. })
        | FromSwarm::DialFailure(DialFailure { connection_id, .. })
        | FromSwarm::ListenFailure(ListenFailure { connection_id, .. })) = event
        else {
            return;
        };
        self.openers.remove(&connection_id);
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        connection: ConnectionId,
        (stream, protocol): THandlerOutEvent<Self>,
    ) {
        self.taken.push_back(Taken {
            connection,
            stream,
            protocol,
        });
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Taken, THandlerInEvent<Self>>> {
        match self.taken.pop_front() {
            Some(taken) => Poll::Ready(ToSwarm::GenerateEvent(taken)),
            None => Poll::Pending,
        }
    }
}

/// One per connection.
pub(crate) struct Handler {
    wishes: mpsc::Receiver<Wish>,
    taken: VecDeque<(Stream, StreamProtocol)>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = (Stream, StreamProtocol);
    type InboundProtocol = Accept;
    type OutboundProtocol = Open;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Accept> {
        SubstreamProtocol::new(Accept, ())
    }

    /// As long as somebody may open streams; then the swarm ends it with its last stream.
    fn connection_keep_alive(&self) -> bool {
        !self.wishes.is_closed()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Open, (), Self::ToBehaviour>> {
        if let Some(taken) = self.taken.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(taken));
        }
        match self.wishes.poll_recv(cx) {
            Poll::Ready(Some(wish)) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(Open(wish), ()).with_timeout(crate::SILENCE),
            }),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, never: Infallible) {
        match never {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Accept, Open>) {
        if let ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: taken, .. }) = event
            && self.taken.len() < WAITING
        {
            self.taken.push_back(taken);
        }
    }
}

/// Takes streams of both protocols.
pub(crate) struct Accept;

impl UpgradeInfo for Accept {
    type Info = StreamProtocol;
    type InfoIter = [StreamProtocol; 2];
    fn protocol_info(&self) -> Self::InfoIter {
        [LANE, STREAM]
    }
}

impl InboundUpgrade<Stream> for Accept {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;
    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

/// Opens a stream and hands it to whoever wished for it.
pub(crate) struct Open(Wish);

impl UpgradeInfo for Open {
    type Info = StreamProtocol;
    type InfoIter = [StreamProtocol; 1];
    fn protocol_info(&self) -> Self::InfoIter {
        [self.0.protocol.clone()]
    }
}

impl OutboundUpgrade<Stream> for Open {
    type Output = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;
    fn upgrade_outbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        // Whoever wished may have given up: then the stream closes again.
        let _ = self.0.reply.send(stream);
        ready(Ok(()))
    }
}
