//! A small client of QEMU's monitor protocol (QMP): JSON objects, one per line, over a unix socket.
//!
//! It knows the framing, not the commands. Invariant: a line has at most [`MAX_LINE`] bytes and at most
//! [`MAX_EVENTS`] events are kept.

use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest message that is accepted from QEMU, in bytes.
pub const MAX_LINE: u64 = 4 * 1024 * 1024;

/// How many events are kept; older ones are forgotten.
pub const MAX_EVENTS: usize = 1024;

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU refused it.
    #[error("qemu refused `{command}`: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        reason: String,
    },
    /// There was no answer in time.
    #[error("qemu gave no answer to `{command}` within {timeout:?}")]
    TimedOut {
        /// The command, or the event that was awaited.
        command: String,
        /// How long.
        timeout: Duration,
    },
    /// QEMU is gone.
    #[error("qemu's monitor is closed")]
    Closed,
    /// What came is no QMP.
    #[error("qemu's monitor said something that is no greeting: `{0}`")]
    NoGreeting(String),
    /// The socket failed.
    #[error("failed to talk to qemu's monitor")]
    Io(#[from] io::Error),
}

/// Something that happened in the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// QEMU's name for it, such as `SHUTDOWN`.
    pub name: String,
    /// Its data, or null.
    pub data: Value,
    /// Its number since the connection was made, from 0.
    pub number: u64,
}

#[derive(Debug, Default)]
struct Events {
    kept: VecDeque<Event>,
    next: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Board {
    events: Mutex<Events>,
    changed: Condvar,
}

#[derive(Debug)]
struct Session {
    stream: UnixStream,
    replies: Receiver<Value>,
    next_id: u64,
}

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    session: Mutex<Session>,
    board: Arc<Board>,
}

impl Qmp {
    /// Reads QEMU's greeting and enters command mode.
    ///
    /// # Errors
    /// [`QmpError`] when the peer is no QEMU, or says nothing within `timeout`.
    pub fn connect(stream: UnixStream, timeout: Duration) -> Result<Self, QmpError> {
        stream.set_read_timeout(Some(timeout))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let greeting = match read_line(&mut reader) {
            Ok(Some(line)) => line,
            Ok(None) => return Err(QmpError::Closed),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(QmpError::TimedOut {
                    command: "(greeting)".to_owned(),
                    timeout,
                });
            }
            Err(e) => return Err(e.into()),
        };
        if serde_json::from_str::<Value>(&greeting)
            .ok()
            .is_none_or(|v| v.get("QMP").is_none())
        {
            return Err(QmpError::NoGreeting(greeting.chars().take(200).collect()));
        }
        stream.set_read_timeout(None)?;
        let (sender, replies) = sync_channel(16);
        let board = Arc::new(Board::default());
        let shared = Arc::clone(&board);
        std::thread::Builder::new()
            .name("qmp".to_owned())
            .spawn(move || read_all(reader, &sender, &shared))?;
        let qmp = Self {
            session: Mutex::new(Session {
                stream,
                replies,
                next_id: 0,
            }),
            board,
        };
        qmp.execute("qmp_capabilities", json!({}), timeout)?;
        Ok(qmp)
    }

    /// Carries out a command and returns QEMU's answer.
    ///
    /// # Errors
    /// [`QmpError`] when QEMU refuses, is gone, or does not answer within `timeout`.
    pub fn execute(&self, command: &str, arguments: Value, timeout: Duration) -> Result<Value, QmpError> {
        let deadline = Instant::now() + timeout;
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        session.next_id += 1;
        let id = session.next_id;
        let message = json!({ "execute": command, "arguments": arguments, "id": id });
        session
            .stream
            .write_all(format!("{message}\n").as_bytes())
            .map_err(|e| match e.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => QmpError::Closed,
                _ => QmpError::Io(e),
            })?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut reply = match session.replies.recv_timeout(left) {
                Ok(reply) => reply,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(QmpError::TimedOut {
                        command: command.to_owned(),
                        timeout,
                    });
                }
                Err(RecvTimeoutError::Disconnected) => return Err(QmpError::Closed),
            };
            // The answer to an earlier command that nobody waits for any more is passed over.
            if reply["id"] != json!(id) {
                continue;
            }
            if let Some(reason) = reply.pointer("/error/desc").and_then(Value::as_str) {
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    reason: reason.to_owned(),
                });
            }
            return Ok(reply["return"].take());
        }
    }

    /// The number that the next event will have.
    #[must_use]
    pub fn next_event(&self) -> u64 {
        self.lock().next
    }

    /// Waits for an event with this name that `wanted` accepts, among those from number `since` on.
    ///
    /// # Errors
    /// [`QmpError::TimedOut`], or [`QmpError::Closed`] when QEMU ends without it.
    pub fn wait_event(
        &self,
        since: u64,
        name: &str,
        wanted: impl Fn(&Value) -> bool,
        timeout: Duration,
    ) -> Result<Event, QmpError> {
        let deadline = Instant::now() + timeout;
        let mut events = self.lock();
        loop {
            let found = |e: &&Event| e.number >= since && e.name == name && wanted(&e.data);
            if let Some(event) = events.kept.iter().find(found) {
                return Ok(event.clone());
            }
            if events.closed {
                return Err(QmpError::Closed);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(QmpError::TimedOut {
                    command: name.to_owned(),
                    timeout,
                });
            }
            events = self
                .board
                .changed
                .wait_timeout(events, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Events> {
        self.board.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line, or `None` at the end of the stream or when a line is too long.
fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
    let complete = line.ends_with(b"\n");
    Ok(complete.then(|| String::from_utf8_lossy(&line).into_owned()))
}

fn read_all(mut reader: BufReader<UnixStream>, replies: &SyncSender<Value>, board: &Board) {
    while let Ok(Some(line)) = read_line(&mut reader) {
        let Ok(mut message) = serde_json::from_str::<Value>(&line) else {
            break;
        };
        let Some(name) = message.get("event").and_then(Value::as_str).map(str::to_owned) else {
            // Nobody reads when the client is gone; a full channel means answers that nobody waited for.
            if matches!(
                replies.try_send(message),
                Err(std::sync::mpsc::TrySendError::Disconnected(_))
            ) {
                break;
            }
            continue;
        };
        let mut events = board.events.lock().unwrap_or_else(PoisonError::into_inner);
        let number = events.next;
        events.next += 1;
        events.kept.push_back(Event {
            name,
            data: message["data"].take(),
            number,
        });
        if events.kept.len() > MAX_EVENTS {
            events.kept.pop_front();
        }
        drop(events);
        board.changed.notify_all();
    }
    board.events.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    board.changed.notify_all();
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// A peer that greets, accepts the capabilities, then says `lines`.
    fn peer(lines: Vec<String>) -> (UnixStream, std::thread::JoinHandle<()>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            theirs
                .write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n")
                .unwrap();
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            theirs.write_all(b"{\"return\": {}, \"id\": 1}\r\n").unwrap();
            for line in lines {
                if theirs.write_all(line.as_bytes()).is_err() {
                    return;
                }
            }
        });
        (ours, thread)
    }

    #[test]
    fn a_peer_that_is_no_qemu_is_refused() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"SSH-2.0-OpenSSH\r\n").unwrap();
        assert!(matches!(Qmp::connect(ours, SOON), Err(QmpError::NoGreeting(t)) if t.starts_with("SSH")));
        let (ours, _silent) = UnixStream::pair().unwrap();
        let waited = Qmp::connect(ours, Duration::from_millis(30));
        assert!(matches!(waited, Err(QmpError::TimedOut { .. })));
    }

    #[test]
    fn events_are_kept_up_to_the_bound_and_the_end_is_told() {
        let lines = (0..MAX_EVENTS + 5)
            .map(|i| format!("{{\"event\":\"E\",\"data\":{{\"n\":{i}}}}}\n"))
            .collect();
        let (ours, thread) = peer(lines);
        let qmp = Qmp::connect(ours, SOON).unwrap();
        let last = qmp
            .wait_event(0, "E", |d| d["n"] == json!(MAX_EVENTS + 4), SOON)
            .unwrap();
        assert_eq!(last.number as usize, MAX_EVENTS + 4);
        assert_eq!(qmp.lock().kept.len(), MAX_EVENTS);
        thread.join().unwrap();
        assert!(matches!(
            qmp.wait_event(0, "NEVER", |_| true, SOON),
            Err(QmpError::Closed)
        ));
    }

    #[test]
    fn a_message_without_end_closes_the_connection() {
        let endless = "x".repeat(usize::try_from(MAX_LINE).unwrap() + 1);
        let (ours, thread) = peer(vec![endless]);
        let qmp = Qmp::connect(ours, SOON).unwrap();
        assert!(matches!(
            qmp.wait_event(0, "NEVER", |_| true, SOON),
            Err(QmpError::Closed)
        ));
        drop(qmp);
        thread.join().unwrap();
    }
}
