//! What the agent and its supervisor say to each other: ready, alive, and sockets that outlive the agent (sd_notify(3),
//! sd_listen_fds(3)).
//!
//! Works without a supervisor too: then nothing is sent and nothing was kept. Invariant: a sign of life is sent only
//! while every part that has a [`Pulse`] beats; a supervisor that waits in vain starts the agent again.

use anyhow::{Context as _, Result};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a part beats, at least.
pub const BEAT: Duration = Duration::from_secs(1);
/// A part that has not beaten for this long is taken to hang.
const PATIENCE: Duration = Duration::from_secs(15);

/// The supervisor, if there is one.
#[derive(Clone)]
pub struct Supervisor {
    socket: Option<Arc<UnixDatagram>>,
    address: Option<PathBuf>,
    kept: Arc<Mutex<Vec<(String, OwnedFd)>>>,
}

impl Supervisor {
    /// The one that started this process; takes over what it has kept.
    pub fn find() -> Self {
        let address = std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from);
        let socket = address
            .is_some()
            .then(UnixDatagram::unbound)
            .and_then(|made| made.inspect_err(|error| tracing::warn!(%error, "no socket")).ok());
        // A supervisor that does not read must not hold up the agent.
        if let Some(socket) = &socket
            && let Err(error) = socket.set_nonblocking(true)
        {
            tracing::warn!(%error, "the supervisor may hold up the agent");
        }
        Self {
            socket: socket.map(Arc::new),
            address,
            kept: Arc::new(Mutex::new(beemesh_sys::take_inherited())),
        }
    }

    /// Whether this process has one.
    pub fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// Takes back a socket that an earlier run of the agent has left with the supervisor.
    pub fn take(&self, name: &str) -> Option<OwnedFd> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| known == name)?;
        Some(kept.swap_remove(at).1)
    }

    /// Leaves a copy of a socket with the supervisor, in place of what it has under this name.
    pub fn keep(&self, name: &str, socket: impl AsFd) {
        self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
        self.say(
            &format!("FDSTORE=1\nFDNAME={name}"),
            &[socket.as_fd().as_raw_fd()],
        );
    }

    /// The agent serves.
    pub fn ready(&self) {
        self.say("READY=1", &[]);
    }

    /// What the agent is doing, for people.
    pub fn status(&self, text: &str) {
        self.say(&format!("STATUS={text}"), &[]);
    }

    /// The agent goes down by itself.
    pub fn stopping(&self) {
        self.say("STOPPING=1", &[]);
    }

    fn say(&self, message: &str, descriptors: &[RawFd]) {
        let (Some(socket), Some(address)) = (&self.socket, &self.address) else {
            return;
        };
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() {
            &[][..]
        } else {
            &rights[..]
        };
        let parts = [IoSlice::new(message.as_bytes())];
        let sent = UnixAddr::new(address).and_then(|address| {
            sendmsg(
                socket.as_raw_fd(),
                &parts,
                control,
                MsgFlags::empty(),
                Some(&address),
            )
        });
        if let Err(error) = sent {
            tracing::warn!(%error, said = message, "failed to tell the supervisor");
        }
    }

    /// Sends signs of life for as long as all of `pulses` beat; never ends.
    pub async fn watch(self, pulses: Vec<Pulse>) -> Result<()> {
        let asked = std::env::var("WATCHDOG_USEC").ok();
        let asked = asked
            .and_then(|text| text.parse().ok())
            .map(Duration::from_micros);
        let every = asked.map_or(BEAT * 5, |limit| limit / 4);
        let mut tick = tokio::time::interval(every.max(Duration::from_millis(10)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tick.tick().await;
            match pulses.iter().find(|pulse| !pulse.beats()) {
                None => self.say("WATCHDOG=1", &[]),
                Some(still) => tracing::error!(part = still.part, "a part of the agent does not answer"),
            }
        }
    }
}

/// Shows that a part of the agent goes on.
#[derive(Clone)]
pub struct Pulse {
    part: &'static str,
    begin: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Pulse {
    /// Beats for the first time now.
    pub fn new(part: &'static str) -> Self {
        Self {
            part,
            begin: Instant::now(),
            last_ms: Arc::default(),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The part goes on.
    pub fn beat(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Beats while `work` takes its time, as long as it gives way to others.
    pub async fn beat_during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(BEAT) => self.beat(),
            }
        }
    }

    fn beats(&self) -> bool {
        let silent = self.now_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed));
        u128::from(silent) < PATIENCE.as_millis()
    }
}

/// A listening TCP socket on `port`: the one that was kept, or a new one, which is then kept.
pub fn listen_tcp(supervisor: &Supervisor, name: &str, port: u16) -> Result<tokio::net::TcpListener> {
    let kept = supervisor.take(name).map(std::net::TcpListener::from);
    let kept = kept.filter(|kept| kept.local_addr().is_ok_and(|address| address.port() == port));
    let listener = match kept {
        Some(kept) => kept,
        None => {
            let made = std::net::TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, port));
            let made = made.with_context(|| format!("failed to listen on port {port}"))?;
            supervisor.keep(name, &made);
            made
        }
    };
    listener.set_nonblocking(true)?;
    Ok(tokio::net::TcpListener::from_std(listener)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supervised(folder: &std::path::Path) -> (Supervisor, UnixDatagram) {
        let address = folder.join("notify");
        let other = UnixDatagram::bind(&address).unwrap();
        let supervisor = Supervisor {
            socket: Some(Arc::new(UnixDatagram::unbound().unwrap())),
            address: Some(address),
            kept: Arc::default(),
        };
        (supervisor, other)
    }

    #[tokio::test]
    async fn sign_of_life_needs_every_part_to_beat() {
        let folder = tempfile::tempdir().unwrap();
        let (supervisor, other) = supervised(folder.path());
        other.set_nonblocking(true).unwrap();
        let (alive, dead) = (Pulse::new("alive"), Pulse::new("dead"));
        let mut long_ago = dead.clone();
        long_ago.begin = Instant::now().checked_sub(PATIENCE * 2).unwrap();
        assert!(alive.beats() && !long_ago.beats());
        let watch = supervisor.clone().watch(vec![alive.clone(), long_ago.clone()]);
        let _ = tokio::time::timeout(Duration::from_millis(50), watch).await;
        let mut buffer = [0; 64];
        assert!(other.recv(&mut buffer).is_err(), "one part is dead");
        long_ago.beat();
        let watch = supervisor.watch(vec![alive, long_ago]);
        let _ = tokio::time::timeout(Duration::from_millis(50), watch).await;
        let count = other.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"WATCHDOG=1");
    }

    #[tokio::test]
    async fn socket_that_was_kept_is_used_again_and_one_of_another_port_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (supervisor, other) = supervised(folder.path());
        let first = listen_tcp(&supervisor, "rest", 0).unwrap();
        let port = first.local_addr().unwrap().port();
        let mut buffer = [0; 64];
        let count = other.recv(&mut buffer).unwrap();
        assert!(buffer[..count].starts_with(b"FDSTOREREMOVE=1\nFDNAME=rest"));
        let mut received = beemesh_sys::receive(&other, &mut buffer).unwrap();
        assert_eq!(&buffer[..received.length], b"FDSTORE=1\nFDNAME=rest");
        drop(first);
        // What the supervisor holds keeps the port; the next run gets exactly that.
        let kept = received.descriptors.pop().unwrap();
        supervisor.kept.lock().unwrap().push(("rest".to_owned(), kept));
        let again = listen_tcp(&supervisor, "rest", port).unwrap();
        assert_eq!(again.local_addr().unwrap().port(), port);
        let kept = OwnedFd::from(again.into_std().unwrap());
        supervisor.kept.lock().unwrap().push(("rest".to_owned(), kept));
        let other_port = listen_tcp(&supervisor, "rest", 0).unwrap();
        assert_ne!(other_port.local_addr().unwrap().port(), port);
    }

    #[test]
    fn without_a_supervisor_nothing_is_sent_and_nothing_was_kept() {
        let alone = Supervisor {
            socket: None,
            address: None,
            kept: Arc::default(),
        };
        alone.ready();
        assert!(alone.take("rest").is_none());
    }
}
