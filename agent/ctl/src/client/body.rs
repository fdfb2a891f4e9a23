//! Bodies: what is sent to a node, and what comes back, each bounded.
//!
//! Invariant: nothing read from a node is held beyond its bound: [`LIST_LIMIT`], [`LINE_LIMIT`], [`EXEC_LIMIT`].

use super::ClientError;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use serde::de::DeserializeOwned;
use std::{io, marker::PhantomData, pin::Pin, task, time::Duration};
use tokio::sync::mpsc;

/// Longest list that is read, in bytes.
pub const LIST_LIMIT: usize = 16 << 20;
/// Longest line of a stream, in bytes.
pub const LINE_LIMIT: usize = 1 << 20;
/// Longest answer to an exec: two outputs of 8 MiB in base64, and their frame.
pub const EXEC_LIMIT: usize = 24 << 20;
/// Longest error answer; the rest is not read.
pub const ERROR_LIMIT: usize = 64 << 10;
/// Pieces of an upload that wait for the network, each of at most [`UPLOAD_PIECE`] bytes.
const UPLOAD_QUEUE: usize = 4;
const UPLOAD_PIECE: usize = 128 << 10;

/// A request's body.
pub(super) enum Upload {
    /// In memory.
    Whole(Option<Bytes>),
    /// From a reader, in pieces.
    Pieces {
        pieces: mpsc::Receiver<io::Result<Bytes>>,
        length: Option<u64>,
    },
}

impl Upload {
    pub(super) fn empty() -> Self {
        Self::Whole(None)
    }

    /// Reads `reader` to its end on a thread of its own, no more than the queue ahead of the network.
    pub(super) fn from_reader(mut reader: impl io::Read + Send + 'static, length: Option<u64>) -> Self {
        let (sender, pieces) = mpsc::channel(UPLOAD_QUEUE);
        // Not a task of the runtime: a reader that blocks for ever, such as a terminal, must not hold up its end.
        std::thread::spawn(move || {
            loop {
                let mut piece = vec![0; UPLOAD_PIECE];
                let read = match reader.read(&mut piece) {
                    Ok(0) => return,
                    Ok(read) => read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => {
                        // Fails only when nobody sends the body any more.
                        let _ = sender.blocking_send(Err(error));
                        return;
                    }
                };
                piece.truncate(read);
                if sender.blocking_send(Ok(piece.into())).is_err() {
                    return;
                }
            }
        });
        Self::Pieces { pieces, length }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> task::Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Whole(bytes) => task::Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Pieces { pieces, .. } => pieces
                .poll_recv(context)
                .map(|piece| piece.map(|piece| piece.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Pieces {
                length: Some(length), ..
            } => SizeHint::with_exact(*length),
            Self::Pieces { length: None, .. } => SizeHint::default(),
        }
    }
}

/// The whole body, if it is not longer than `limit`.
pub(super) async fn read_whole(
    body: Incoming,
    limit: usize,
    endpoint: &str,
    path: &str,
) -> Result<Bytes, ClientError> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ClientError::TooLarge {
            path: path.to_owned(),
            limit,
        }),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(source) => Err(ClientError::Exchange {
                endpoint: endpoint.to_owned(),
                source: *source,
            }),
            Err(error) => Err(ClientError::Connect {
                endpoint: endpoint.to_owned(),
                source: io::Error::other(error),
            }),
        },
    }
}

/// The first `limit` bytes of a body: enough to say what went wrong.
pub(super) async fn read_start(mut body: Incoming, limit: usize) -> Vec<u8> {
    let mut start = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            start.extend_from_slice(&data[..data.len().min(limit - start.len())]);
        }
        if start.len() >= limit {
            break;
        }
    }
    start
}

/// A stream of JSON documents, one a line.
pub struct Lines<T> {
    body: Incoming,
    buffer: BytesMut,
    searched: usize,
    ended: bool,
    idle: Option<Duration>,
    endpoint: String,
    path: String,
    item: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    pub(super) fn new(body: Incoming, idle: Option<Duration>, endpoint: String, path: String) -> Self {
        let (buffer, item) = (BytesMut::new(), PhantomData);
        Self {
            body,
            buffer,
            searched: 0,
            ended: false,
            idle,
            endpoint,
            path,
            item,
        }
    }

    /// The next document; `None` when the node ended the stream properly.
    ///
    /// # Errors
    /// A broken connection, a line above [`LINE_LIMIT`] or one that is not the expected document; silence beyond the
    /// time-out, unless the stream is followed. Nothing sensible comes after an error.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            let line = match self.take_line()? {
                Some(line) => line,
                None if self.ended && self.buffer.is_empty() => return Ok(None),
                None if self.ended => self.buffer.split(),
                None => {
                    self.fill().await?;
                    continue;
                }
            };
            if line.trim_ascii().is_empty() {
                continue;
            }
            return match serde_json::from_slice(&line) {
                Ok(item) => Ok(Some(item)),
                Err(source) => Err(ClientError::Decode {
                    path: self.path.clone(),
                    source,
                }),
            };
        }
    }

    fn take_line(&mut self) -> Result<Option<BytesMut>, ClientError> {
        let end = self.buffer.iter().skip(self.searched).position(|b| *b == b'\n');
        let length = end.map_or(self.buffer.len(), |end| self.searched + end);
        if length > LINE_LIMIT {
            return Err(ClientError::LineTooLong {
                path: self.path.clone(),
                limit: LINE_LIMIT,
            });
        }
        self.searched = if end.is_some() { 0 } else { length };
        Ok(end.map(|_| self.buffer.split_to(length + 1)))
    }

    async fn fill(&mut self) -> Result<(), ClientError> {
        let frame = match self.idle {
            None => self.body.frame().await,
            Some(after) => tokio::time::timeout(after, self.body.frame())
                .await
                .map_err(|_| ClientError::TimedOut {
                    endpoint: self.endpoint.clone(),
                    after,
                })?,
        };
        match frame {
            None => self.ended = true,
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    self.buffer.extend_from_slice(&data);
                }
            }
            Some(Err(source)) => {
                return Err(ClientError::Exchange {
                    endpoint: self.endpoint.clone(),
                    source,
                });
            }
        }
        Ok(())
    }
}
