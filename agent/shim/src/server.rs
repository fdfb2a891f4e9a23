//! The connections to the agent: JSON lines over unix sockets, read and written without ever blocking.
//!
//! It knows no pod. Invariants: at most [`CONNECTIONS`] peers; a line longer than [`LINE_MOST`] or a peer that does not
//! read [`BACKLOG_MOST`] bytes ends that connection and nothing else.

use beemesh_agent_api::shim::{Reply, Request};
use nix::poll::PollFlags;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Most connections at a time; the next one is closed at once.
pub const CONNECTIONS: usize = 16;
/// Longest request in bytes.
pub const LINE_MOST: usize = 64 * 1024;
/// Most unread output of a peer in bytes.
pub const BACKLOG_MOST: usize = 1024 * 1024;

/// Binds the socket with mode 0600, replacing a leftover of a shim that is gone.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// One peer.
pub struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    closed: bool,
}

impl Connection {
    /// Takes over an accepted stream.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            closed: false,
        })
    }

    /// The stream, for polling.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// What to poll for.
    pub fn interest(&self) -> PollFlags {
        if self.output.is_empty() {
            PollFlags::POLLIN
        } else {
            PollFlags::POLLIN | PollFlags::POLLOUT
        }
    }

    /// It has ended and can be dropped.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Reads what is there and gives the requests that it completes; an unreadable one is answered with `Failed`.
    pub fn receive(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.closed = true;
                    break;
                }
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.closed = true;
                    break;
                }
            }
            self.lines(&mut requests);
            if self.input.len() > LINE_MOST {
                self.closed = true;
                break;
            }
        }
        requests
    }

    fn lines(&mut self, requests: &mut Vec<Request>) {
        while let Some(end) = self.input.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(request) => requests.push(request),
                Err(err) => self.send(&Reply::Failed {
                    reason: format!("the request is not understood: {err}"),
                }),
            }
        }
    }

    /// Queues a reply and writes what the peer takes now.
    pub fn send(&mut self, reply: &Reply) {
        if self.closed {
            return;
        }
        if let Ok(mut line) = serde_json::to_vec(reply) {
            line.push(b'\n');
            self.output.extend_from_slice(&line);
        }
        self.flush();
        if self.output.len() > BACKLOG_MOST {
            self.closed = true;
        }
    }

    /// Writes what the peer takes now.
    pub fn flush(&mut self) {
        while !self.output.is_empty() && !self.closed {
            match self.stream.write(&self.output) {
                Ok(0) => self.closed = true,
                Ok(count) => drop(self.output.drain(..count)),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.closed = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, Connection) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, Connection::new(theirs).unwrap())
    }

    #[test]
    fn requests_arrive_whole_however_they_are_cut() {
        let (mut peer, mut connection) = pair();
        peer.write_all(b"{\"op\":\"sta").unwrap();
        assert!(connection.receive().is_empty());
        peer.write_all(b"rt\"}\n{\"op\":\"stop\",\"grace_seconds\":3}\n")
            .unwrap();
        assert_eq!(
            connection.receive(),
            [
                Request::Start,
                Request::Stop {
                    grace_seconds: Some(3)
                }
            ]
        );
        assert!(!connection.is_closed());
    }

    #[test]
    fn nonsense_is_answered_and_does_not_end_the_connection() {
        let (mut peer, mut connection) = pair();
        peer.write_all(b"hello\n{\"op\":\"status\"}\n").unwrap();
        assert_eq!(connection.receive(), [Request::Status]);
        let mut answer = [0; 512];
        let count = peer.read(&mut answer).unwrap();
        assert!(String::from_utf8_lossy(&answer[..count]).contains("\"reply\":\"failed\""));
        assert!(!connection.is_closed());
    }

    #[test]
    fn an_endless_line_ends_the_connection() {
        let (mut peer, mut connection) = pair();
        peer.set_nonblocking(true).unwrap();
        for _ in 0..64 {
            let _ = peer.write(&[b'x'; 4096]);
            connection.receive();
        }
        assert!(connection.is_closed());
    }

    #[test]
    fn a_peer_that_does_not_read_is_dropped() {
        let (_peer, mut connection) = pair();
        let reply = Reply::Failed {
            reason: "y".repeat(10_000),
        };
        for _ in 0..400 {
            connection.send(&reply);
        }
        assert!(connection.is_closed());
        assert!(connection.output.len() <= BACKLOG_MOST + 11_000);
    }
}
