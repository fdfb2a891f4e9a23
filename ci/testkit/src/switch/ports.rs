//! The switch's thread: it moves frames between sockets as [`Forwarding`](super::forwarding::Forwarding) says.
//!
//! It decides nothing about faults. Invariant: it never blocks but in `poll`, so one stuck machine stops no other.

use super::{Control, lock};
use crate::wire::{FrameSocket, WireError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How many delayed deliveries wait at most.
pub const MAX_DELAYED: usize = 32 * 1024;

struct Port {
    number: usize,
    listener: UnixListener,
    plugged: Option<FrameSocket>,
}

/// A delivery that waits for its time; ordered by time, then by arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Delayed {
    due: Instant,
    order: u64,
    from: usize,
    to: usize,
    frame: Vec<u8>,
}

#[derive(Default)]
struct Wires {
    ports: Vec<Port>,
    delayed: BinaryHeap<Reverse<Delayed>>,
    order: u64,
}

/// Runs until [`Control::stop`] is set.
pub(super) fn run(control: &Mutex<Control>, mut waker: UnixStream) {
    if waker.set_nonblocking(true).is_err() {
        return;
    }
    let mut wires = Wires::default();
    loop {
        let ready = match wires.wait(&waker) {
            Ok(ready) => ready,
            Err(e) => {
                eprintln!("the switch stops: poll failed: {e}");
                return;
            }
        };
        let mut sink = [0; 64];
        while matches!(waker.read(&mut sink), Ok(n) if n > 0) {}
        let mut control = lock(control);
        if control.stop {
            return;
        }
        for index in ready {
            wires.serve(index, &mut control);
        }
        for (number, listener) in control.new_ports.drain(..) {
            wires.ports.push(Port {
                number,
                listener,
                plugged: None,
            });
        }
        wires.deliver_due(&mut control);
        wires.flush(&mut control);
    }
}

impl Wires {
    /// Sleeps until something happens and returns the ports (by index) to look at.
    fn wait(&self, waker: &UnixStream) -> nix::Result<Vec<usize>> {
        let mut fds = vec![PollFd::new(waker.as_fd(), PollFlags::POLLIN)];
        let mut owners = vec![usize::MAX];
        for (index, port) in self.ports.iter().enumerate() {
            fds.push(PollFd::new(port.listener.as_fd(), PollFlags::POLLIN));
            owners.push(index);
            if let Some(socket) = &port.plugged {
                let write = if socket.has_queue() {
                    PollFlags::POLLOUT
                } else {
                    PollFlags::empty()
                };
                fds.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN | write));
                owners.push(index);
            }
        }
        let timeout = match self.delayed.peek() {
            // One millisecond more, so that the delivery is due when poll returns.
            Some(Reverse(d)) => {
                let left = d.due.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e),
        }
        let mut ready: Vec<usize> = fds
            .iter()
            .zip(&owners)
            .filter(|(fd, owner)| **owner != usize::MAX && fd.any().unwrap_or(true))
            .map(|(_, owner)| *owner)
            .collect();
        ready.dedup();
        Ok(ready)
    }

    /// Accepts a new plug and reads what came in on one port.
    fn serve(&mut self, index: usize, control: &mut Control) {
        let Some(port) = self.ports.get_mut(index) else {
            return;
        };
        let from = port.number;
        let mut frames = Vec::new();
        // What the old plug still had in its socket is taken before a new one replaces it.
        if let Some(socket) = &mut port.plugged
            && let Err(e) = socket.receive(|frame| frames.push(frame))
        {
            if let WireError::Oversized(_) = e {
                control.forwarding.counters.oversized += 1;
            }
            port.plugged = None;
            control.forwarding.unplug(from);
        }
        if let Ok((stream, _)) = port.listener.accept()
            && let Ok(socket) = FrameSocket::new(stream)
        {
            port.plugged = Some(socket);
            control.forwarding.unplug(from);
        }
        for frame in frames {
            self.forward(from, frame, control);
        }
    }

    fn forward(&mut self, from: usize, frame: Vec<u8>, control: &mut Control) {
        if let Some(capture) = &mut control.capture {
            capture.record(&frame);
        }
        let targets = control.forwarding.ingress(from, &frame);
        // A frame must not overtake those that were delayed before it.
        let due =
            (!control.delay.is_zero() || !self.delayed.is_empty()).then(|| Instant::now() + control.delay);
        for to in targets {
            match due {
                None => self.hand_over(to, &frame, control),
                Some(_) if self.delayed.len() >= MAX_DELAYED => control.forwarding.counters.overrun += 1,
                Some(due) => {
                    self.order += 1;
                    let (order, frame) = (self.order, frame.clone());
                    self.delayed.push(Reverse(Delayed {
                        due,
                        order,
                        from,
                        to,
                        frame,
                    }));
                }
            }
        }
    }

    fn hand_over(&mut self, to: usize, frame: &[u8], control: &mut Control) {
        let socket = self
            .ports
            .iter_mut()
            .find(|p| p.number == to)
            .and_then(|p| p.plugged.as_mut());
        if socket.is_some_and(|s| s.send(frame)) {
            control.forwarding.counters.forwarded += 1;
        } else {
            control.forwarding.counters.overrun += 1;
        }
    }

    /// Hands over what has waited long enough. A cut that came meanwhile takes the frame on its way.
    fn deliver_due(&mut self, control: &mut Control) {
        let now = Instant::now();
        while self.delayed.peek().is_some_and(|Reverse(d)| d.due <= now) {
            let Some(Reverse(d)) = self.delayed.pop() else {
                return;
            };
            if control.forwarding.reaches(d.from, d.to) {
                self.hand_over(d.to, &d.frame, control);
            } else {
                control.forwarding.counters.blocked += 1;
            }
        }
    }

    fn flush(&mut self, control: &mut Control) {
        for port in &mut self.ports {
            if let Some(socket) = &mut port.plugged
                && socket.flush().is_err()
            {
                port.plugged = None;
                control.forwarding.unplug(port.number);
            }
        }
    }
}
