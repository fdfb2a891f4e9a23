//! Somebody with libp2p and a key of their own, who does not keep to the handshake.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use crate::node::Node;
use futures::AsyncWriteExt;
use libp2p::{
    Transport, core::muxing::StreamMuxerExt, core::upgrade::Version, identity::Keypair, noise, tcp, yamux,
};
use std::{future::poll_fn, pin::pin, task::Poll};
use tokio::task::JoinHandle;

/// Connects with Noise and yamux, opens a substream, says `bytes` on it and waits. The handle ends with the connection.
pub async fn dial_and_say(node: &Node, bytes: &[u8]) -> JoinHandle<()> {
    let key = Keypair::generate_ed25519();
    let mut transport = tcp::tokio::Transport::new(tcp::Config::default())
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(&key).unwrap())
        .multiplex(yamux::Config::default())
        .boxed();
    let options = libp2p::core::transport::DialOpts {
        role: libp2p::core::Endpoint::Dialer,
        port_use: libp2p::core::transport::PortUse::New,
    };
    let address = format!("/ip4/127.0.0.1/tcp/{}", node.port).parse().unwrap();
    let dial = transport.dial(address, options).unwrap();
    let bytes = bytes.to_vec();
    tokio::spawn(async move {
        let (_, mut muxer) = dial.await.unwrap();
        let mut stream = poll_fn(|cx| muxer.poll_outbound_unpin(cx)).await.unwrap();
        let mut say = pin!(async move {
            stream.write_all(&bytes).await.unwrap();
            stream.flush().await.unwrap();
            std::future::pending::<()>().await;
        });
        poll_fn(|cx| {
            let _ = say.as_mut().poll(cx);
            match muxer.poll_unpin(cx) {
                Poll::Ready(Err(_)) => Poll::Ready(()),
                Poll::Ready(Ok(_)) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
    })
}
