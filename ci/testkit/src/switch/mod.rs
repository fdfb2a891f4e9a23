//! A virtual Ethernet switch over unix sockets, with faults that a test can turn on while it runs.
//!
//! One thread polls all ports. Each port is a unix socket that QEMU (`-netdev stream`) or a
//! [`SiteHost`](crate::SiteHost) connects to. Needs no root. Invariant: nothing connects the switch to the outside,
//! and every queue has a bound; what does not fit is dropped and counted.

mod forwarding;
mod leaks;
mod pcap;
mod ports;

pub use forwarding::{Counters, MAX_LEARNED};
pub use leaks::{MAX_DESTINATIONS, MAX_NAMED, Outsider};
pub use pcap::MAX_CAPTURE;
pub use ports::MAX_DELAYED;

use anyhow::{Context, Result, bail};
use forwarding::Forwarding;
use pcap::Capture;
use smoltcp::wire::Ipv4Cidr;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How many ports a switch has at most.
pub const MAX_PORTS: usize = 128;

/// What the thread and the owner share.
#[derive(Debug, Default)]
struct Control {
    forwarding: Forwarding,
    delay: Duration,
    capture: Option<Capture>,
    /// Ports the thread has not taken over yet: port number and listener.
    new_ports: Vec<(usize, UnixListener)>,
    stop: bool,
}

/// The switch. Dropping it closes every port.
#[derive(Debug)]
pub struct Switch {
    control: Arc<Mutex<Control>>,
    wake: UnixStream,
    folder: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Starts a switch without ports.
    ///
    /// # Errors
    /// When no socket, temporary folder or thread can be made.
    pub fn start() -> Result<Self> {
        // Not under `target`: a unix socket's path has at most 107 bytes.
        let folder = tempfile::Builder::new()
            .prefix("bmsw-")
            .tempdir_in("/tmp")
            .context("failed to make a folder for the switch's sockets")?;
        let (wake, waker) = UnixStream::pair().context("failed to make the switch's wake-up socket")?;
        wake.set_nonblocking(true)
            .context("failed to set up the switch's wake-up socket")?;
        let control = Arc::new(Mutex::new(Control::default()));
        let shared = Arc::clone(&control);
        let thread = std::thread::Builder::new()
            .name("switch".to_owned())
            .spawn(move || ports::run(&shared, waker))
            .context("failed to start the switch's thread")?;
        Ok(Self {
            control,
            wake,
            folder,
            thread: Some(thread),
        })
    }

    /// The unix socket of the port `name`, which is made on first use. Whoever connects is plugged in; a later
    /// connection takes the place of an earlier one.
    ///
    /// # Errors
    /// When the name has other characters than `a-z`, `0-9` and `-`, there are [`MAX_PORTS`] already, or the socket
    /// cannot be made.
    pub fn port(&self, name: &str) -> Result<PathBuf> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if name.is_empty() || name.len() > 32 || !name.bytes().all(plain) {
            bail!("`{name}` is no port name: use 1 to 32 of `a-z`, `0-9` and `-`");
        }
        let path = self.folder.path().join(name);
        let mut control = self.lock();
        if control.forwarding.find(name).is_none() {
            if control.forwarding.names().count() >= MAX_PORTS {
                bail!("the switch has {MAX_PORTS} ports already, so `{name}` has no place");
            }
            let listener = UnixListener::bind(&path)
                .with_context(|| format!("failed to make the port `{}`", path.display()))?;
            listener
                .set_nonblocking(true)
                .with_context(|| format!("failed to set up the port `{name}`"))?;
            let number = control.forwarding.port(name);
            control.new_ports.push((number, listener));
            drop(control);
            self.wake();
        }
        Ok(path)
    }

    /// Pulls the cable of a port. The card behind it still sees a link: what it sends is lost.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn cut(&self, name: &str) -> Result<()> {
        self.set_cut(name, true)
    }

    /// Puts the cable of a port back. Partitions stay.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn mend(&self, name: &str) -> Result<()> {
        self.set_cut(name, false)
    }

    /// Separates the groups from each other, in place of any earlier partition. A port that no group names still
    /// reaches all of them.
    ///
    /// # Errors
    /// When a named port does not exist, or is in two groups.
    pub fn partition(&self, groups: &[&[&str]]) -> Result<()> {
        let mut control = self.lock();
        let mut numbers: Vec<Vec<usize>> = Vec::new();
        for group in groups {
            let mut members = Vec::new();
            for name in *group {
                let number = find(&control.forwarding, name)?;
                if numbers.iter().flatten().chain(&members).any(|n| *n == number) {
                    bail!("the port `{name}` is named twice in the partition");
                }
                members.push(number);
            }
            numbers.push(members);
        }
        control.forwarding.set_groups(&numbers);
        Ok(())
    }

    /// Ends every cut and partition. Delay and loss stay.
    pub fn heal(&self) {
        self.lock().forwarding.heal();
    }

    /// Holds every frame back this long from now on.
    pub fn delay(&self, delay: Duration) {
        self.lock().delay = delay;
        self.wake();
    }

    /// Loses frames with this probability (0 to 1; 0 ends it), the same ones for the same seed and order of frames.
    pub fn drop_frames(&self, probability: f64, seed: u64) {
        self.lock().forwarding.set_loss(probability, seed);
    }

    /// Writes every received frame to a pcap file from now on, before any fault takes it.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn record(&self, path: &Path) -> Result<()> {
        let capture = Capture::create(path, MAX_CAPTURE)?;
        self.lock().capture = Some(capture);
        Ok(())
    }

    /// Ends the recording and returns how many frames did not fit into it.
    ///
    /// # Errors
    /// When the rest of the file cannot be written.
    pub fn stop_recording(&self) -> Result<u64> {
        let capture = self.lock().capture.take();
        capture.map_or(Ok(0), Capture::finish)
    }

    /// What the switch did so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.lock().forwarding.counters
    }

    /// How many frames went to an address that is neither in the site's prefix nor multicast, broadcast or
    /// link-local: what a router would have carried out of the site. Frames that a fault took count as well.
    #[must_use]
    pub fn frames_outside(&self, site: Ipv4Cidr) -> u64 {
        self.lock().forwarding.destinations.outside(site).0
    }

    /// Who sent outside, and where to: the first [`MAX_NAMED`], in the order they appeared.
    #[must_use]
    pub fn outsiders(&self, site: Ipv4Cidr) -> Vec<Outsider> {
        self.lock().forwarding.destinations.outside(site).1
    }

    fn set_cut(&self, name: &str, cut: bool) -> Result<()> {
        let mut control = self.lock();
        let number = find(&control.forwarding, name)?;
        control.forwarding.set_cut(number, cut);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        lock(&self.control)
    }

    fn wake(&self) {
        // A full socket means that the thread is about to wake up anyway.
        let _ = (&self.wake).write(&[1]);
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.lock().stop = true;
        self.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the switch's thread had ended with a panic");
        }
    }
}

fn lock(control: &Mutex<Control>) -> MutexGuard<'_, Control> {
    control.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find(forwarding: &Forwarding, name: &str) -> Result<usize> {
    forwarding.find(name).with_context(|| {
        let known: Vec<&str> = forwarding.names().collect();
        format!("the switch has no port `{name}`, only: {}", known.join(", "))
    })
}
