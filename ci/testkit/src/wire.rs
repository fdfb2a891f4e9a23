//! Ethernet frames over a byte stream, as QEMU's `-netdev stream` speaks it: four bytes of length in network order,
//! then the frame. Both ends of the switch's sockets use this; it knows nothing of ports or addresses.
//!
//! Invariant: never more than [`MAX_FRAME`] bytes of one frame and [`MAX_QUEUED_FRAMES`] outgoing frames are held.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// The longest frame that is accepted, in bytes. A longer one closes the port it came from.
pub const MAX_FRAME: usize = 64 * 1024;

/// How many frames wait for one slow reader before further ones are dropped.
pub const MAX_QUEUED_FRAMES: usize = 2048;

/// Bytes read from one socket in one turn, so that a flood on one port does not starve the others.
const READ_PER_TURN: usize = 512 * 1024;

/// Why a frame stream cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the peer announced a frame of {0} bytes, more than the {MAX_FRAME} that a frame may have")]
    Oversized(usize),
    #[error("the peer closed the connection")]
    Closed,
    #[error("failed to read or write a frame")]
    Io(#[from] io::Error),
}

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub(crate) struct Deframer {
    buffer: Vec<u8>,
    start: usize,
}

impl Deframer {
    /// Takes bytes as they come from the stream.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete frame, or `None` until more bytes come.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Vec<u8>>, WireError> {
        let rest = &self.buffer[self.start..];
        let Some((head, body)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*head) as usize;
        if length > MAX_FRAME {
            return Err(WireError::Oversized(length));
        }
        let Some(frame) = body.get(..length) else {
            return Ok(None);
        };
        let frame = frame.to_vec();
        self.start += 4 + length;
        Ok(Some(frame))
    }
}

/// A non-blocking socket that carries frames in both directions.
#[derive(Debug)]
pub(crate) struct FrameSocket {
    stream: UnixStream,
    deframer: Deframer,
    queue: VecDeque<Vec<u8>>,
    written: usize,
}

impl FrameSocket {
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            deframer: Deframer::default(),
            queue: VecDeque::new(),
            written: 0,
        })
    }

    /// Reads what is there and hands over every complete frame.
    pub(crate) fn receive(&mut self, mut frame: impl FnMut(Vec<u8>)) -> Result<(), WireError> {
        let mut chunk = vec![0u8; 64 * 1024];
        let mut budget = READ_PER_TURN;
        while budget > 0 {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(WireError::Closed),
                Ok(n) => {
                    budget = budget.saturating_sub(n);
                    self.deframer.push(&chunk[..n]);
                    while let Some(f) = self.deframer.next_frame()? {
                        frame(f);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Queues a frame; `false` when the queue is full or the frame too long, and it is not taken.
    pub(crate) fn send(&mut self, frame: &[u8]) -> bool {
        if self.queue.len() >= MAX_QUEUED_FRAMES || frame.len() > MAX_FRAME {
            return false;
        }
        let mut encoded = Vec::with_capacity(4 + frame.len());
        // Checked above: at most MAX_FRAME, so it fits.
        encoded.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        encoded.extend_from_slice(frame);
        self.queue.push_back(encoded);
        true
    }

    /// Writes as much of the queue as the socket takes.
    pub(crate) fn flush(&mut self) -> Result<(), WireError> {
        while let Some(head) = self.queue.front() {
            match self.stream.write(&head[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    if self.written == head.len() {
                        self.queue.pop_front();
                        self.written = 0;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Frames wait for the socket to become writable.
    pub(crate) fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }
}

impl AsFd for FrameSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_chunking() {
        let frames: Vec<Vec<u8>> = (0..20u8).map(|i| vec![i; usize::from(i) * 37]).collect();
        let mut stream = Vec::new();
        for f in &frames {
            stream.extend_from_slice(&(f.len() as u32).to_be_bytes());
            stream.extend_from_slice(f);
        }
        for chunk in [1, 3, 64, 5000] {
            let mut deframer = Deframer::default();
            let mut seen = Vec::new();
            for part in stream.chunks(chunk) {
                deframer.push(part);
                while let Some(f) = deframer.next_frame().unwrap() {
                    seen.push(f);
                }
            }
            assert_eq!(seen, frames, "chunks of {chunk}");
        }
    }

    #[test]
    fn a_frame_of_64_kib_passes_and_one_byte_more_is_refused() {
        let mut deframer = Deframer::default();
        deframer.push(&(MAX_FRAME as u32).to_be_bytes());
        deframer.push(&vec![7; MAX_FRAME]);
        assert_eq!(deframer.next_frame().unwrap().unwrap().len(), MAX_FRAME);
        deframer.push(&(MAX_FRAME as u32 + 1).to_be_bytes());
        assert!(matches!(deframer.next_frame(), Err(WireError::Oversized(n)) if n == MAX_FRAME + 1));
    }

    #[test]
    fn a_reader_that_does_not_read_costs_a_bounded_queue() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut socket = FrameSocket::new(ours).unwrap();
        let taken = (0..MAX_QUEUED_FRAMES + 10)
            .filter(|_| socket.send(&[0; 60]))
            .count();
        assert_eq!(taken, MAX_QUEUED_FRAMES);
        assert!(!socket.send(&vec![0; MAX_FRAME + 1]));
    }
}
