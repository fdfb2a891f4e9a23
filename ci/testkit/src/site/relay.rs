//! One TCP connection between the virtual network (smoltcp) and this machine (a socket): bytes, half-closes and
//! resets in both directions.
//!
//! Invariant: a byte leaves one side's buffer only when the other side took it; a side that stops reading stops the
//! other side's sending and nothing else.

use super::ConnectError;
use nix::poll::PollFlags;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, State};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

/// How long a connection is finished for a local side that is gone altogether.
const LINGER: Duration = Duration::from_secs(10);

/// The local end of a connection.
#[derive(Debug)]
pub(super) enum Local {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Local {
    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Unix(s) => s.set_nonblocking(true),
            Self::Tcp(s) => s.set_nodelay(true).and_then(|()| s.set_nonblocking(true)),
        }
    }

    fn finish_writing(&self) {
        // It fails when the other end is gone, which is as finished as can be.
        let _ = match self {
            Self::Unix(s) => s.shutdown(Shutdown::Write),
            Self::Tcp(s) => s.shutdown(Shutdown::Write),
        };
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.read(buffer),
            Self::Tcp(s) => s.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.write(bytes),
            Self::Tcp(s) => s.write(bytes),
        }
    }
}

impl AsFd for Local {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(s) => s.as_fd(),
            Self::Tcp(s) => s.as_fd(),
        }
    }
}

/// Tells the caller of `connect` how it went.
pub(super) type Outcome = SyncSender<Result<(), ConnectError>>;

#[derive(Debug)]
enum Phase {
    Connecting {
        until: Instant,
        outcome: Option<Outcome>,
    },
    Open,
}

#[derive(Debug)]
pub(super) struct Relay {
    pub(super) socket: SocketHandle,
    pub(super) local: Local,
    phase: Phase,
    /// The local side has said all it will say.
    local_ended: bool,
    /// The local side was told that nothing more comes.
    remote_ended: bool,
    /// The local side takes no more for now.
    local_full: bool,
    /// The local side is gone; until then the rest is finished.
    gone: Option<Instant>,
}

impl Relay {
    /// For a connection that is being made.
    pub(super) fn connecting(
        socket: SocketHandle,
        local: Local,
        until: Instant,
        outcome: Option<Outcome>,
    ) -> Self {
        Self {
            phase: Phase::Connecting { until, outcome },
            ..Self::open(socket, local)
        }
    }

    /// For a connection that exists.
    pub(super) fn open(socket: SocketHandle, local: Local) -> Self {
        let phase = Phase::Open;
        Self {
            socket,
            local,
            phase,
            local_ended: false,
            remote_ended: false,
            local_full: false,
            gone: None,
        }
    }

    /// What to wait for on the local side; `None` while nothing there matters.
    pub(super) fn interest(&self, sockets: &SocketSet<'_>) -> Option<PollFlags> {
        if self.gone.is_some() {
            return None;
        }
        let mut flags = PollFlags::empty();
        if matches!(self.phase, Phase::Open) {
            let socket = sockets.get::<tcp::Socket>(self.socket);
            flags.set(PollFlags::POLLIN, !self.local_ended && socket.can_send());
            flags.set(PollFlags::POLLOUT, self.local_full);
        }
        Some(flags)
    }

    /// Both directions of the local side are closed (POLLHUP): nobody reads what still comes.
    pub(super) fn hang_up(&mut self) {
        self.gone.get_or_insert_with(|| Instant::now() + LINGER);
    }

    /// Moves what can be moved; `true` when the connection is over and its socket may be removed.
    pub(super) fn step(&mut self, sockets: &mut SocketSet<'_>) -> bool {
        let socket = sockets.get_mut::<tcp::Socket>(self.socket);
        if let Phase::Connecting { until, outcome } = &mut self.phase {
            let result = match socket.state() {
                State::SynSent | State::SynReceived if Instant::now() < *until => return false,
                State::SynSent | State::SynReceived => {
                    socket.abort();
                    Err(ConnectError::TimedOut)
                }
                State::Closed => Err(ConnectError::Refused),
                _ => Ok(()),
            };
            // The caller may have given up.
            if let Some(outcome) = outcome.take() {
                let _ = outcome.send(result);
            }
            self.phase = Phase::Open;
        }
        self.send(socket);
        self.receive(socket);
        let given_up = self.gone.is_some_and(|until| Instant::now() >= until);
        if given_up {
            socket.abort();
        }
        // TCP may be over while the local side has not taken all that came.
        let delivered = self.remote_ended || given_up;
        match socket.state() {
            State::TimeWait => delivered,
            // An aborted socket keeps its peer until it has sent the reset.
            State::Closed => delivered && socket.remote_endpoint().is_none(),
            _ => false,
        }
    }

    fn send(&mut self, socket: &mut tcp::Socket<'_>) {
        while !self.local_ended && socket.can_send() {
            let local = &mut self.local;
            let moved = socket.send(|buffer| match local.read(buffer) {
                Ok(n) => (n, Ok(n)),
                Err(e) => (0, Err(e)),
            });
            match moved {
                Ok(Ok(0)) => {
                    self.local_ended = true;
                    socket.close();
                }
                Ok(Ok(_)) => {}
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) if e.kind() == io::ErrorKind::WouldBlock => break,
                Ok(Err(_)) | Err(_) => {
                    self.local_ended = true;
                    socket.abort();
                }
            }
        }
    }

    fn receive(&mut self, socket: &mut tcp::Socket<'_>) {
        self.local_full = false;
        while socket.can_recv() {
            let local = &mut self.local;
            let moved = socket.recv(|bytes| match local.write(bytes) {
                Ok(n) => (n, Ok(n)),
                Err(e) => (0, Err(e)),
            });
            match moved {
                Ok(Ok(n)) if n > 0 => {}
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.local_full = true;
                    return;
                }
                // The local side is closed: the remote one must know that nobody listens.
                _ => {
                    socket.abort();
                    return;
                }
            }
        }
        if !socket.may_recv() && !self.remote_ended {
            self.remote_ended = true;
            self.local.finish_writing();
        }
    }
}
