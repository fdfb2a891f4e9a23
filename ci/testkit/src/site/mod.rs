//! A computer on the switch with an IP address of its own, inside the test process: the operator's laptop, a DHCP
//! server that comes late, or a stranger who knocks at an agent's port.
//!
//! It needs no root and touches no interface of this machine; [`SiteHost::forward`] alone listens, on loopback.
//! Invariant: everything a host opened is closed when it is dropped.

mod device;
mod dhcp;
mod echo;
mod http;
mod relay;
mod stack;
#[cfg(test)]
mod tests;

pub use dhcp::{DhcpPool, MAX_LEASES};
pub use http::{HttpError, HttpReply, MAX_BODY};
pub use stack::MAX_CONNECTIONS;

use crate::switch::Switch;
use crate::wire::FrameSocket;
use anyhow::{Context, Result, anyhow, bail};
use device::Cable;
use smoltcp::iface::{Config, Interface};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Cidr};
use stack::{BACKLOG, Command, Stack};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The peer answered with a reset, or the address cannot be a peer's.
    #[error("the connection was refused")]
    Refused,
    /// The peer did not answer.
    #[error("the connection was not answered in time")]
    TimedOut,
    /// All [`MAX_CONNECTIONS`] are in use.
    #[error("the host has {MAX_CONNECTIONS} connections already")]
    TooMany,
    /// The switch was dropped.
    #[error("the host is no longer plugged into its switch")]
    Unplugged,
}

/// A host; dropping it unplugs it.
#[derive(Debug)]
pub struct SiteHost {
    address: Ipv4Cidr,
    card: EthernetAddress,
    commands: SyncSender<Command>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl SiteHost {
    /// Plugs a host with this address and prefix into the switch's port `port`. Its card's address is made from the
    /// IP address.
    ///
    /// # Errors
    /// When the address is none for a host, or the switch refuses the port.
    pub fn plug(switch: &Switch, port: &str, address: Ipv4Cidr) -> Result<Self> {
        let ip = address.address();
        if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() {
            bail!("`{ip}` is no address for a host");
        }
        let [a, b, c, d] = ip.octets();
        let card = EthernetAddress([0x02, 0xbe, a, b, c, d]);
        let path = switch.port(port)?;
        let plug = UnixStream::connect(&path)
            .with_context(|| format!("failed to plug into `{}`", path.display()))?;
        let plug = FrameSocket::new(plug).context("failed to set up the cable")?;
        let mut cable = Cable::default();
        let mut config = Config::new(HardwareAddress::Ethernet(card));
        config.random_seed =
            getrandom::u64().map_err(|e| anyhow!("the system gives no random numbers: {e}"))?;
        let seed = (config.random_seed & 0xffff) as u16;
        let mut interface = Interface::new(config, &mut cable, smoltcp::time::Instant::ZERO);
        // One address fits: the list is empty.
        interface.update_ip_addrs(|list| {
            let _ = list.push(IpCidr::Ipv4(address));
        });
        let (wake, waker) = UnixStream::pair().context("failed to make the host's wake-up socket")?;
        for end in [&wake, &waker] {
            end.set_nonblocking(true)
                .context("failed to set up the host's wake-up socket")?;
        }
        let (commands, inbox) = sync_channel(64);
        let stack = Stack::new(address, interface, cable, plug, seed);
        let thread = std::thread::Builder::new()
            .name(format!("host {port}"))
            .spawn(move || stack.run(&inbox, waker))
            .context("failed to start the host's thread")?;
        Ok(Self {
            address,
            card,
            commands,
            wake,
            thread: Some(thread),
        })
    }

    /// Its address and prefix.
    #[must_use]
    pub fn address(&self) -> Ipv4Cidr {
        self.address
    }

    /// Its network card.
    #[must_use]
    pub fn card(&self) -> EthernetAddress {
        self.card
    }

    /// Opens a TCP connection.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect(&self, ip: Ipv4Addr, port: u16, timeout: Duration) -> Result<SiteStream, ConnectError> {
        let (ours, local) = UnixStream::pair().map_err(|_| ConnectError::TooMany)?;
        let (outcome, answer) = sync_channel(1);
        let until = Instant::now() + timeout;
        self.tell(Command::Connect {
            to: (ip, port),
            local,
            until,
            outcome,
        })?;
        // The stack keeps the time; the second is for a busy machine.
        match answer.recv_timeout(timeout + Duration::from_secs(1)) {
            Ok(result) => result.map(|()| SiteStream(ours)),
            Err(RecvTimeoutError::Timeout) => Err(ConnectError::TimedOut),
            Err(RecvTimeoutError::Disconnected) => Err(ConnectError::Unplugged),
        }
    }

    /// Fetches a page; the whole answer must be there within `timeout`.
    ///
    /// # Errors
    /// [`HttpError`]; a status such as 404 is not an error.
    pub fn http_get(
        &self,
        ip: Ipv4Addr,
        port: u16,
        path: &str,
        timeout: Duration,
    ) -> Result<HttpReply, HttpError> {
        let deadline = Instant::now() + timeout;
        let mut stream = self.connect(ip, port, timeout)?;
        http::get(&mut stream, &format!("{ip}:{port}"), path, deadline)
    }

    /// Sends one ICMP echo and returns how long the answer took; `None` when none came within `timeout`.
    ///
    /// # Errors
    /// [`ConnectError::Unplugged`].
    pub fn ping(&self, ip: Ipv4Addr, timeout: Duration) -> Result<Option<Duration>, ConnectError> {
        let (answer, came) = sync_channel(1);
        self.tell(Command::Ping {
            to: ip,
            until: Instant::now() + timeout,
            answer,
        })?;
        Ok(came.recv_timeout(timeout).ok())
    }

    /// Listens on a loopback port of this machine and carries every connection to `ip:port` on the site, for tools
    /// that know nothing of the switch. Ends with the host. A connection that the site refuses is closed at once.
    ///
    /// # Errors
    /// When no loopback port can be had, or the host is unplugged.
    pub fn forward(&self, ip: Ipv4Addr, port: u16) -> Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to listen on loopback")?;
        listener
            .set_nonblocking(true)
            .context("failed to set up the loopback port")?;
        let address = listener
            .local_addr()
            .context("failed to read the loopback port")?;
        self.tell(Command::Forward {
            listener,
            to: (ip, port),
        })?;
        Ok(address)
    }

    /// Accepts TCP connections on a port of this host, from machines on the site. At most a few wait to be accepted;
    /// further ones are reset.
    ///
    /// # Errors
    /// [`ConnectError::Unplugged`].
    pub fn listen(&self, port: u16) -> Result<SiteListener, ConnectError> {
        let (accepted, streams) = sync_channel(BACKLOG);
        self.tell(Command::Listen { port, accepted })?;
        Ok(SiteListener(streams))
    }

    /// Starts to answer DHCP, or starts anew with another pool.
    ///
    /// # Errors
    /// [`ConnectError::Unplugged`].
    pub fn dhcp_on(&self, pool: DhcpPool) -> Result<(), ConnectError> {
        self.tell(Command::Dhcp(Some(pool)))
    }

    /// Stops answering DHCP.
    ///
    /// # Errors
    /// [`ConnectError::Unplugged`].
    pub fn dhcp_off(&self) -> Result<(), ConnectError> {
        self.tell(Command::Dhcp(None))
    }

    /// The addresses that DHCP gave out.
    ///
    /// # Errors
    /// [`ConnectError::Unplugged`].
    pub fn dhcp_leases(&self) -> Result<Vec<(EthernetAddress, Ipv4Addr)>, ConnectError> {
        let (answer, leases) = sync_channel(1);
        self.tell(Command::Leases(answer))?;
        leases.recv().map_err(|_| ConnectError::Unplugged)
    }

    fn tell(&self, command: Command) -> Result<(), ConnectError> {
        self.commands.send(command).map_err(|_| ConnectError::Unplugged)?;
        // A full socket means that the thread is about to wake up anyway.
        let _ = (&self.wake).write(&[1]);
        Ok(())
    }
}

impl Drop for SiteHost {
    fn drop(&mut self) {
        let _ = self.tell(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the thread of the host `{}` had ended with a panic", self.address);
        }
    }
}

/// Incoming connections; see [`SiteHost::listen`].
#[derive(Debug)]
pub struct SiteListener(Receiver<UnixStream>);

impl SiteListener {
    /// The next connection.
    ///
    /// # Errors
    /// [`ConnectError::TimedOut`] when none comes, [`ConnectError::Unplugged`] when the host is gone.
    pub fn accept(&self, timeout: Duration) -> Result<SiteStream, ConnectError> {
        match self.0.recv_timeout(timeout) {
            Ok(stream) => Ok(SiteStream(stream)),
            Err(RecvTimeoutError::Timeout) => Err(ConnectError::TimedOut),
            Err(RecvTimeoutError::Disconnected) => Err(ConnectError::Unplugged),
        }
    }
}

/// A TCP connection of a [`SiteHost`]. A connection that breaks reads as its end.
#[derive(Debug)]
pub struct SiteStream(UnixStream);

impl SiteStream {
    /// Limits how long a read may wait; it then fails with [`io::ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// When the timeout is zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.set_read_timeout(timeout)
    }

    /// Says that nothing more will be sent (FIN); reading goes on.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn finish_writing(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }

    /// The socket behind it, for an asynchronous runtime.
    #[must_use]
    pub fn into_inner(self) -> UnixStream {
        self.0
    }
}

impl Read for SiteStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for SiteStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl http::Timed for SiteStream {
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.0.set_read_timeout(Some(timeout))
    }
}
