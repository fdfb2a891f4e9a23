//! The step between the encrypted connection and the swarm: nobody passes who is not admitted.
//!
//! Runs on the first substream of a fresh connection, the same for both transports. The dialer opens it, the listener
//! takes it; no other substream exists before it is through. A refused peer is told why, and the connection is dropped.

use crate::{
    Admission, Admitted as Member, CREDENTIAL_TIMEOUT, Denial,
    address::Target,
    claims::{Claim, Claims, Passed},
    hello::{First, Hello, HelloError, Verdict},
};
use beemesh_ids::PeerId as NodeId;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{
    Multiaddr, PeerId,
    core::{
        ConnectedPoint, StreamMuxer,
        muxing::{StreamMuxerBox, StreamMuxerEvent, StreamMuxerExt, SubstreamBox},
    },
};
use std::{
    future::{Future, poll_fn},
    io,
    net::{IpAddr, Ipv4Addr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// How long a refusal may take to reach the other side.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a connection did not pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GateError {
    #[error("not admitted: {0}")]
    Refused(String),
    #[error("the other side does not admit this node: {0}")]
    RefusedByPeer(String),
    #[error("the other side does not admit this node: {0}")]
    TakenByRival(String, Vec<u8>),
    #[error("there is a connection to this peer already")]
    Duplicate,
    #[error("this is an address of this node")]
    Myself,
    #[error("no credential within {} s", CREDENTIAL_TIMEOUT.as_secs())]
    Silent,
    #[error("the peer's key is not an Ed25519 key")]
    KeyType,
    #[error("the connection failed before a credential was shown")]
    Broken(#[source] io::Error),
    #[error("it asked to be let in")]
    Petition,
    #[error("{0}")]
    Hello(#[from] HelloError),
}

/// What the gate tells the driver about a connection that did not pass.
#[derive(Debug)]
pub(crate) struct Turned {
    pub(crate) peer: PeerId,
    pub(crate) address: Multiaddr,
    pub(crate) dialled: bool,
    pub(crate) error: GateError,
}

/// What every connection has to pass.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) admission: Arc<dyn Admission>,
    pub(crate) hello: Arc<Hello>,
    /// Generation of the key that this node shows.
    pub(crate) generation: u32,
    pub(crate) claims: Arc<Claims>,
    pub(crate) turned: mpsc::Sender<Turned>,
}

/// An exchange that ends without admission, and what the other side is told about it.
struct Stop {
    error: GateError,
    tell: Option<Verdict>,
}

impl Stop {
    fn silently(error: GateError) -> Self {
        Self { error, tell: None }
    }

    fn duplicate() -> Self {
        Self {
            error: GateError::Duplicate,
            tell: Some(Verdict::Duplicate),
        }
    }
}

impl From<HelloError> for Stop {
    fn from(error: HelloError) -> Self {
        let tell = match &error {
            HelloError::Io(_) => None,
            other => Some(Verdict::Refused(other.to_string())),
        };
        Self {
            error: error.into(),
            tell,
        }
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::silently(GateError::Hello(HelloError::Io(error)))
    }
}

impl Gate {
    /// Lets the connection pass or not. Only a connection that both sides admitted comes out.
    pub(crate) async fn pass(
        self,
        (peer, mut muxer): (PeerId, StreamMuxerBox),
        point: ConnectedPoint,
    ) -> Result<(PeerId, StreamMuxerBox), io::Error> {
        let dialled = point.is_dialer();
        let address = match &point {
            ConnectedPoint::Dialer { address, .. } => address,
            ConnectedPoint::Listener { send_back_addr, .. } => send_back_addr,
        };
        let source = source(address);
        let exchange = self.exchange(peer, &mut muxer, dialled, source);
        let exchange = tokio::time::timeout(CREDENTIAL_TIMEOUT, exchange);
        let error = match exchange.await {
            Ok(Ok(claim)) => return Ok((peer, StreamMuxerBox::new(Admitted { muxer, _claim: claim }))),
            Ok(Err(error)) => error,
            Err(_) => GateError::Silent,
        };
        let text = error.to_string();
        // Bounded: a crowd of strangers loses reports, it does not take memory.
        let _ = self.turned.try_send(Turned {
            peer,
            address: address.clone(),
            dialled,
            error,
        });
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }

    async fn exchange(
        &self,
        peer: PeerId,
        muxer: &mut StreamMuxerBox,
        dialled: bool,
        source: IpAddr,
    ) -> Result<Claim, GateError> {
        if self.claims.is_own_key(&peer) {
            return Err(GateError::Myself);
        }
        let node: NodeId = peer.to_base58().parse().map_err(|_| GateError::KeyType)?;
        if dialled && self.claims.is_claimed(&peer, self.generation) {
            return Err(GateError::Duplicate);
        }
        let mut io = first_substream(muxer, dialled).await.map_err(GateError::Broken)?;
        let talk = async {
            let result = if dialled {
                self.as_dialer(peer, &node, &mut io).await
            } else {
                self.as_listener(peer, &node, &mut io, source).await
            };
            match result {
                Ok(claim) => {
                    let _ = io.close().await;
                    Ok(claim)
                }
                Err(stop) => {
                    if let Some(verdict) = &stop.tell {
                        let _ = tokio::time::timeout(LAST_WORDS, last_words(verdict, &mut io)).await;
                    }
                    Err(stop.error)
                }
            }
        };
        drive(muxer, talk).await.map_err(GateError::Broken)?
    }

    async fn as_dialer(&self, peer: PeerId, node: &NodeId, io: &mut SubstreamBox) -> Result<Claim, Stop> {
        self.hello.write(io).await?;
        heed(Verdict::read(io).await?)?;
        let hello = Hello::read(io).await?;
        let member = self.judge(node, &hello)?;
        let passed = Passed::new(member, self.generation, hello);
        let claim = self
            .claims
            .claim(peer, passed, true, Instant::now())
            .ok_or_else(Stop::duplicate)?;
        Verdict::Admitted.write(io).await?;
        Ok(claim)
    }

    async fn as_listener(
        &self,
        peer: PeerId,
        node: &NodeId,
        io: &mut SubstreamBox,
        source: IpAddr,
    ) -> Result<Claim, Stop> {
        let hello = match First::read(io).await? {
            First::Hello(hello) => hello,
            // Answered, and then the connection ends: a petition is no way in.
            First::Petition(petition) => {
                let answer = self.admission.petition(node, source, &petition);
                return Err(Stop {
                    error: GateError::Petition,
                    tell: Some(Verdict::Answer(answer)),
                });
            }
        };
        let member = self.judge(node, &hello)?;
        let chooses = self.claims.chooses(&member.node);
        let passed = Passed::new(member, self.generation, hello);
        let claim = |passed| {
            self.claims
                .claim(peer, passed, false, Instant::now())
                .ok_or_else(Stop::duplicate)
        };
        // The side that chooses does so before it says yes; the other one follows after it heard the yes.
        if chooses {
            let claimed = claim(passed)?;
            self.say_yes(io).await?;
            Ok(claimed)
        } else {
            self.say_yes(io).await?;
            claim(passed)
        }
    }

    /// The listener's yes, and the dialer's answer to it.
    async fn say_yes(&self, io: &mut SubstreamBox) -> Result<(), Stop> {
        Verdict::Admitted.write(io).await?;
        self.hello.write(io).await?;
        heed(Verdict::read(io).await?)
    }

    fn judge(&self, key: &NodeId, hello: &Hello) -> Result<Member, Stop> {
        self.admission
            .admit(key, &hello.credential)
            .map_err(|Denial { reason, rival }| Stop {
                tell: Some(match rival {
                    Some(rival) => Verdict::Taken(reason.clone(), rival),
                    None => Verdict::Refused(reason.clone()),
                }),
                error: GateError::Refused(reason),
            })
    }
}

fn heed(verdict: Verdict) -> Result<(), Stop> {
    match verdict {
        Verdict::Admitted => Ok(()),
        Verdict::Refused(reason) => Err(Stop::silently(GateError::RefusedByPeer(reason))),
        Verdict::Duplicate => Err(Stop::silently(GateError::Duplicate)),
        Verdict::Taken(reason, rival) => Err(Stop::silently(GateError::TakenByRival(reason, rival))),
        Verdict::Answer(_) => Err(HelloError::Malformed.into()),
    }
}

/// The address that a connection came from; one for all where it is none.
fn source(address: &Multiaddr) -> IpAddr {
    Target::from_multiaddr(address).map_or(Ipv4Addr::UNSPECIFIED.into(), |target| target.socket.ip())
}

/// Says no and waits until the other side has heard it, which it shows by closing.
async fn last_words(verdict: &Verdict, io: &mut SubstreamBox) -> io::Result<()> {
    verdict.write(io).await?;
    io.close().await?;
    futures::io::copy(
        io.take(2 * crate::MAX_CREDENTIAL as u64),
        &mut futures::io::sink(),
    )
    .await?;
    Ok(())
}

pub(crate) async fn first_substream(muxer: &mut StreamMuxerBox, dialled: bool) -> io::Result<SubstreamBox> {
    poll_fn(|cx| {
        let found = if dialled {
            muxer.poll_outbound_unpin(cx)
        } else {
            muxer.poll_inbound_unpin(cx)
        };
        match found {
            Poll::Ready(found) => Poll::Ready(found),
            Poll::Pending => make_progress(muxer, cx),
        }
    })
    .await
}

/// Runs `work` while the connection below it makes progress.
pub(crate) async fn drive<T>(muxer: &mut StreamMuxerBox, work: impl Future<Output = T>) -> io::Result<T> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Poll::Ready(value) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        let broken = make_progress(muxer, cx);
        if broken.is_ready() {
            // The last words of the other side may have come with the end of the connection.
            if let Poll::Ready(value) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
        }
        broken
    })
    .await
}

fn make_progress<T>(muxer: &mut StreamMuxerBox, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
    loop {
        match muxer.poll_unpin(cx) {
            Poll::Ready(Ok(StreamMuxerEvent::AddressChange(_))) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// A connection that passed. Its claim ends with it.
struct Admitted {
    muxer: StreamMuxerBox,
    _claim: Claim,
}

impl StreamMuxer for Admitted {
    type Substream = SubstreamBox;
    type Error = io::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<SubstreamBox>> {
        self.muxer.poll_inbound_unpin(cx)
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<SubstreamBox>> {
        self.muxer.poll_outbound_unpin(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.muxer.poll_close_unpin(cx)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        self.muxer.poll_unpin(cx)
    }
}
