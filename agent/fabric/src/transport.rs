//! The two transports, each with the gate behind it. A third transport cannot be added past the gate: there is one
//! function for the swarm, and it ends with it.

use crate::{FabricError, SILENCE, gate::Gate};
use futures::future::Either;
use libp2p::{
    PeerId, Transport as _,
    core::{muxing::StreamMuxerBox, transport::Boxed, upgrade::Version},
    identity::Keypair,
    noise, quic, tcp, yamux,
};
use std::time::Duration;

/// For the TCP connection, the Noise handshake and the start of the multiplexer together.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// For one question to a member, by TCP: the gate is not passed, and nothing but the question's substream is opened.
pub(crate) fn outside(key: &Keypair) -> Result<Boxed<(PeerId, StreamMuxerBox)>, FabricError> {
    let noise = noise::Config::new(key).map_err(|error| FabricError::Transport {
        what: error.to_string(),
    })?;
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        .timeout(HANDSHAKE_TIMEOUT)
        .boxed();
    Ok(tcp)
}

pub(crate) fn build(key: &Keypair, gate: Gate) -> Result<Boxed<(PeerId, StreamMuxerBox)>, FabricError> {
    let tcp = outside(key)?;
    let mut config = quic::Config::new(key);
    config.handshake_timeout = HANDSHAKE_TIMEOUT;
    config.max_idle_timeout = 2 * SILENCE.as_millis() as u32;
    config.keep_alive_interval = SILENCE / 2;
    let quic = quic::tokio::Transport::new(config)
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
    Ok(tcp
        .or_transport(quic)
        .map(|connection, _| match connection {
            Either::Left(connection) | Either::Right(connection) => connection,
        })
        .and_then(move |connection, point| gate.pass(connection, point))
        .boxed())
}
