//! What runs on the lane of a connection: frames of a length (u32, big endian, of what follows), a kind (u8) and bytes.
//! Reads no more than the bound of the kind; knows no peer and decides nothing.

use crate::{MAX_MESSAGE, SILENCE};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use std::{io, net::SocketAddr};
use tokio::time::timeout;

/// Addresses in one frame.
pub(crate) const MAX_ADDRESSES: usize = 512;
/// `[ipv6]:port` with a line feed, and some room.
const MAX_ADDRESS_BYTES: usize = 64 * MAX_ADDRESSES;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Nothing to say, but alive.
    Alive,
    /// A message of the caller.
    Message(Vec<u8>),
    /// Where other members listen, or listened.
    Addresses(Vec<SocketAddr>),
}

/// Why a lane ended. Each ends the connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaneError {
    #[error("the peer was silent for {} s", SILENCE.as_secs())]
    Silent,
    #[error("the peer sent a frame of {len} bytes and kind {kind}, which this node does not read")]
    Frame { kind: u8, len: usize },
    #[error("the peer opened a second lane")]
    SecondLane,
    #[error("the peer does not take a lane")]
    NoLane,
    #[error("the connection ended")]
    Io(#[from] io::Error),
}

const ALIVE: u8 = 0;
const MESSAGE: u8 = 1;
const ADDRESSES: u8 = 2;

impl Frame {
    /// Bytes it takes in a queue.
    pub(crate) fn size(&self) -> usize {
        match self {
            Frame::Alive => 0,
            Frame::Message(bytes) => bytes.len(),
            Frame::Addresses(addresses) => addresses.len() * size_of::<SocketAddr>(),
        }
    }

    /// Does not flush.
    pub(crate) async fn write(&self, io: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let lines;
        let (kind, bytes) = match self {
            Frame::Alive => (ALIVE, &[][..]),
            Frame::Message(bytes) => (MESSAGE, &bytes[..]),
            Frame::Addresses(addresses) => {
                lines = addresses
                    .iter()
                    .take(MAX_ADDRESSES)
                    .map(|address| format!("{address}\n"))
                    .collect::<String>();
                (ADDRESSES, lines.as_bytes())
            }
        };
        let mut header = [0, 0, 0, 0, kind];
        let length = (bytes.len() as u32 + 1).to_be_bytes();
        header.iter_mut().zip(length).for_each(|(to, from)| *to = from);
        io.write_all(&header).await?;
        io.write_all(bytes).await
    }

    /// The next frame. The peer may take [`SILENCE`] for each piece of it, but not for nothing.
    pub(crate) async fn read(io: &mut (impl AsyncRead + Unpin)) -> Result<Self, LaneError> {
        let mut header = [0; 5];
        read_exact(io, &mut header).await?;
        let [a, b, c, d, kind] = header;
        let len = (u32::from_be_bytes([a, b, c, d]) as usize).wrapping_sub(1);
        let bound = match kind {
            ALIVE => 0,
            MESSAGE => MAX_MESSAGE,
            ADDRESSES => MAX_ADDRESS_BYTES,
            _ => return Err(LaneError::Frame { kind, len }),
        };
        if len > bound {
            return Err(LaneError::Frame { kind, len });
        }
        let mut bytes = vec![0; len];
        read_exact(io, &mut bytes).await?;
        Ok(match kind {
            MESSAGE => Frame::Message(bytes),
            ADDRESSES => {
                let lines = String::from_utf8_lossy(&bytes);
                // An address that this version does not understand is somebody else's business.
                Frame::Addresses(
                    lines
                        .lines()
                        .take(MAX_ADDRESSES)
                        .filter_map(|line| line.parse().ok())
                        .collect(),
                )
            }
            _ => Frame::Alive,
        })
    }
}

async fn read_exact(io: &mut (impl AsyncRead + Unpin), mut buffer: &mut [u8]) -> Result<(), LaneError> {
    while !buffer.is_empty() {
        let read = timeout(SILENCE, io.read(buffer))
            .await
            .map_err(|_| LaneError::Silent)??;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        buffer = buffer.get_mut(read..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::io::Cursor;
    use proptest::prelude::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
            .block_on(work)
    }

    fn frames() -> impl Strategy<Value = Frame> {
        prop_oneof![
            Just(Frame::Alive),
            proptest::collection::vec(any::<u8>(), 0..5000).prop_map(Frame::Message),
            proptest::collection::vec(any::<SocketAddr>(), 0..MAX_ADDRESSES).prop_map(|mut addresses| {
                // Flow label and scope are no part of the text.
                addresses
                    .iter_mut()
                    .for_each(|address| *address = SocketAddr::new(address.ip(), address.port()));
                Frame::Addresses(addresses)
            }),
        ]
    }

    proptest! {
        #[test]
        fn frames_are_read_in_the_order_of_writing(frames in proptest::collection::vec(frames(), 0..8)) {
            let read = run(async {
                let mut bytes = Vec::new();
                for frame in &frames {
                    frame.write(&mut bytes).await.unwrap();
                }
                let mut io = Cursor::new(bytes);
                let mut read = Vec::new();
                while let Ok(frame) = Frame::read(&mut io).await {
                    read.push(frame);
                }
                read
            });
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn any_bytes_give_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            run(async {
                let mut io = Cursor::new(bytes);
                while Frame::read(&mut io).await.is_ok() {}
            });
        }
    }

    #[test]
    fn a_frame_over_its_bound_is_refused_before_it_is_read() {
        for (kind, len) in [
            (ALIVE, 2),
            (MESSAGE, MAX_MESSAGE + 2),
            (ADDRESSES, MAX_ADDRESS_BYTES + 2),
            (9, 1),
            (MESSAGE, 0),
        ] {
            let mut bytes = (len as u32).to_be_bytes().to_vec();
            bytes.push(kind);
            let error = run(async { Frame::read(&mut Cursor::new(bytes)).await.unwrap_err() });
            assert!(matches!(error, LaneError::Frame { .. }), "{kind} {len}: {error}");
        }
    }

    #[test]
    fn a_peer_that_stops_in_the_middle_of_a_frame_is_silent() {
        struct Stuck;
        impl AsyncRead for Stuck {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                _: &mut [u8],
            ) -> std::task::Poll<io::Result<usize>> {
                std::task::Poll::Pending
            }
        }
        let mut io = Cursor::new(vec![0, 0]).chain(Stuck);
        assert!(matches!(
            run(async { Frame::read(&mut io).await }),
            Err(LaneError::Silent)
        ));
    }
}
