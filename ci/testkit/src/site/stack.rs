//! The thread behind a [`SiteHost`](super::SiteHost): it drives smoltcp, the switch's cable, and every local socket
//! from one `poll`.
//!
//! Invariant: at most [`MAX_CONNECTIONS`] connections at once; while they are all in use, forwarded ports do not
//! accept and `connect` is refused.

use super::ConnectError;
use super::device::Cable;
use super::dhcp::{DhcpPool, DhcpServer};
use super::echo::Echo;
use super::relay::{Local, Outcome, Relay};
use crate::wire::FrameSocket;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{EthernetAddress, IpAddress, Ipv4Cidr};
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

/// How many connections a host has at most.
pub const MAX_CONNECTIONS: usize = 32;

/// How many connections may be under way or wait to be accepted on one listening port.
pub(super) const BACKLOG: usize = 16;

/// Buffer of each connection and direction, in bytes.
const BUFFER: usize = 64 * 1024;

/// A connection whose peer is silent for this long is given up.
const SILENCE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(30);

/// How long a forwarded connection may take to be made.
const FORWARD: Duration = Duration::from_secs(10);

/// The longest sleep, so that deadlines are looked at.
const NAP: Duration = Duration::from_millis(200);

/// What the owner asks for.
pub(super) enum Command {
    Connect {
        to: (Ipv4Addr, u16),
        local: UnixStream,
        until: Instant,
        outcome: Outcome,
    },
    Forward {
        listener: TcpListener,
        to: (Ipv4Addr, u16),
    },
    Listen {
        port: u16,
        accepted: SyncSender<UnixStream>,
    },
    Ping {
        to: Ipv4Addr,
        until: Instant,
        answer: SyncSender<Duration>,
    },
    Dhcp(Option<DhcpPool>),
    Leases(SyncSender<Vec<(EthernetAddress, Ipv4Addr)>>),
    Stop,
}

struct Listening {
    port: u16,
    waiting: Vec<SocketHandle>,
    accepted: SyncSender<UnixStream>,
}

pub(super) struct Stack {
    pub(super) address: Ipv4Cidr,
    pub(super) interface: Interface,
    pub(super) cable: Cable,
    pub(super) plug: FrameSocket,
    pub(super) started: Instant,
    sockets: SocketSet<'static>,
    relays: Vec<Relay>,
    forwards: Vec<(TcpListener, (Ipv4Addr, u16))>,
    listening: Vec<Listening>,
    echo: Echo,
    dhcp: Option<(DhcpServer, SocketHandle)>,
    next_port: u16,
}

impl Stack {
    pub(super) fn new(
        address: Ipv4Cidr,
        interface: Interface,
        cable: Cable,
        plug: FrameSocket,
        seed: u16,
    ) -> Self {
        let mut sockets = SocketSet::new(Vec::new());
        let echo = Echo::new(&mut sockets);
        Self {
            address,
            interface,
            cable,
            plug,
            started: Instant::now(),
            sockets,
            relays: Vec::new(),
            forwards: Vec::new(),
            listening: Vec::new(),
            echo,
            dhcp: None,
            // Not always the same, so that a host that comes back does not meet its old connections.
            next_port: 49152 + seed % 16384,
        }
    }

    /// Runs until told to stop or the switch is gone.
    pub(super) fn run(mut self, commands: &Receiver<Command>, mut waker: UnixStream) {
        let mut sink = [0; 64];
        loop {
            while matches!(waker.read(&mut sink), Ok(n) if n > 0) {}
            while let Ok(command) = commands.try_recv() {
                if matches!(command, Command::Stop) {
                    return;
                }
                self.obey(command);
            }
            let cable = &mut self.cable;
            if self.plug.receive(|frame| cable.push(frame)).is_err() {
                return;
            }
            // What the relays move makes segments, and segments make room: twice is enough, the rest comes with
            // the next turn.
            for _ in 0..2 {
                self.interface
                    .poll(self.now(), &mut self.cable, &mut self.sockets);
                self.serve();
            }
            self.interface
                .poll(self.now(), &mut self.cable, &mut self.sockets);
            while let Some(frame) = self.cable.pop() {
                self.plug.send(&frame);
            }
            if self.plug.flush().is_err() || self.sleep(&waker).is_err() {
                return;
            }
        }
    }

    fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(
            i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX),
        )
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Connect {
                to,
                local,
                until,
                outcome,
            } => {
                self.connect(to, Local::Unix(local), until, Some(outcome));
            }
            Command::Forward { listener, to } => self.forwards.push((listener, to)),
            Command::Listen { port, accepted } => {
                let waiting = (0..BACKLOG).filter_map(|_| self.listen(port)).collect();
                self.listening.push(Listening {
                    port,
                    waiting,
                    accepted,
                });
            }
            Command::Ping { to, until, answer } => self.echo.send(&mut self.sockets, to, until, answer),
            Command::Dhcp(pool) => {
                if let Some((_, socket)) = self.dhcp.take() {
                    self.sockets.remove(socket);
                }
                self.dhcp = pool.map(|pool| (DhcpServer::new(self.address, pool), self.dhcp_socket()));
            }
            Command::Leases(answer) => {
                let leases = self
                    .dhcp
                    .as_ref()
                    .map(|(server, _)| server.leases())
                    .unwrap_or_default();
                let _ = answer.send(leases);
            }
            Command::Stop => {}
        }
    }

    fn tcp_socket() -> tcp::Socket<'static> {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_timeout(Some(SILENCE));
        socket.set_keep_alive(Some(SILENCE / 3));
        socket.set_nagle_enabled(false);
        socket
    }

    fn connect(&mut self, to: (Ipv4Addr, u16), local: Local, until: Instant, outcome: Option<Outcome>) {
        let refuse = |why: ConnectError| {
            if let Some(outcome) = &outcome {
                let _ = outcome.send(Err(why));
            }
        };
        if self.relays.len() >= MAX_CONNECTIONS {
            return refuse(ConnectError::TooMany);
        }
        let mut socket = Self::tcp_socket();
        let port = self.next_port;
        self.next_port = if port == u16::MAX { 49152 } else { port + 1 };
        let remote = (IpAddress::Ipv4(to.0), to.1);
        if local.set_nonblocking().is_err() || socket.connect(self.interface.context(), remote, port).is_err()
        {
            return refuse(ConnectError::Refused);
        }
        let socket = self.sockets.add(socket);
        self.relays.push(Relay::connecting(socket, local, until, outcome));
    }

    fn listen(&mut self, port: u16) -> Option<SocketHandle> {
        let mut socket = Self::tcp_socket();
        socket.listen(port).ok()?;
        Some(self.sockets.add(socket))
    }

    fn dhcp_socket(&mut self) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 16 * 1024]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        // It cannot fail: the socket is new and the port is not zero.
        let _ = socket.bind(67);
        self.sockets.add(socket)
    }

    /// Moves bytes, accepts connections, answers DHCP, notes echoes.
    fn serve(&mut self) {
        for index in 0..self.listening.len() {
            self.accept_remote(index);
        }
        while self.relays.len() < MAX_CONNECTIONS
            && let Some((stream, to)) = self
                .forwards
                .iter()
                .find_map(|(l, to)| Some((l.accept().ok()?.0, *to)))
        {
            self.connect(to, Local::Tcp(stream), Instant::now() + FORWARD, None);
        }
        let sockets = &mut self.sockets;
        self.relays.retain_mut(|relay| {
            let over = relay.step(sockets);
            if over {
                sockets.remove(relay.socket);
            }
            !over
        });
        self.echo.collect(&mut self.sockets);
        if let Some((server, socket)) = &mut self.dhcp {
            let socket = self.sockets.get_mut::<udp::Socket>(*socket);
            while let Ok((datagram, _)) = socket.recv() {
                if let Some(answer) = server.answer(datagram) {
                    // A full queue loses the answer; the client asks again.
                    let _ = socket.send_slice(&answer.datagram, (IpAddress::Ipv4(answer.to), 68));
                }
            }
        }
    }

    /// Hands connections that guests made over to whoever listens.
    fn accept_remote(&mut self, index: usize) {
        let Some(listening) = self.listening.get(index) else {
            return;
        };
        let port = listening.port;
        let made: Vec<SocketHandle> = listening
            .waiting
            .iter()
            .copied()
            .filter(|handle| {
                !matches!(
                    self.sockets.get::<tcp::Socket>(*handle).state(),
                    tcp::State::Listen | tcp::State::SynReceived
                )
            })
            .collect();
        for handle in made {
            let fresh = self.listen(port);
            let full = self.relays.len() >= MAX_CONNECTIONS;
            let Some(listening) = self.listening.get_mut(index) else {
                return;
            };
            listening.waiting.retain(|h| *h != handle);
            listening.waiting.extend(fresh);
            let handed_over = UnixStream::pair()
                .ok()
                .filter(|_| !full)
                .and_then(|(ours, theirs)| {
                    ours.set_nonblocking(true).ok()?;
                    listening.accepted.try_send(theirs).ok()?;
                    Some(ours)
                });
            match handed_over {
                Some(ours) => self.relays.push(Relay::open(handle, Local::Unix(ours))),
                // Nobody accepts, or too many: the peer's next segment is answered with a reset.
                None => drop(self.sockets.remove(handle)),
            }
        }
    }

    /// Sleeps until a frame, a local byte, a command or a timer.
    fn sleep(&mut self, waker: &UnixStream) -> nix::Result<()> {
        let timer = self.interface.poll_delay(self.now(), &self.sockets);
        let timer = timer.map_or(NAP, |d| Duration::from_micros(d.total_micros()).min(NAP));
        let write = if self.plug.has_queue() {
            PollFlags::POLLOUT
        } else {
            PollFlags::empty()
        };
        let mut fds = vec![
            PollFd::new(waker.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.plug.as_fd(), PollFlags::POLLIN | write),
        ];
        if self.relays.len() < MAX_CONNECTIONS {
            fds.extend(
                self.forwards
                    .iter()
                    .map(|(l, _)| PollFd::new(l.as_fd(), PollFlags::POLLIN)),
            );
        }
        let first_relay = fds.len();
        let mut polled = Vec::new();
        for (index, relay) in self.relays.iter().enumerate() {
            if let Some(flags) = relay.interest(&self.sockets) {
                fds.push(PollFd::new(relay.local.as_fd(), flags));
                polled.push(index);
            }
        }
        // Rounded up: a timer that is not due yet would make a busy loop.
        let timeout = PollTimeout::try_from(timer.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e),
        }
        let gone: Vec<usize> = fds[first_relay..]
            .iter()
            .zip(polled)
            .filter(|(fd, _)| {
                fd.revents()
                    .is_some_and(|r| r.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
            })
            .map(|(_, index)| index)
            .collect();
        for index in gone {
            if let Some(relay) = self.relays.get_mut(index) {
                relay.hang_up();
            }
        }
        Ok(())
    }
}
