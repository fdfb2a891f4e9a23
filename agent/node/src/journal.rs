//! What happened on this node: a bounded ring of events, live subscribers, and lines on the box's console.

use beemesh_agent_api::view::EventView;
use beemesh_ids::NodeName;
use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;

/// Events kept; the oldest goes first.
pub const EVENTS_KEPT: usize = 1024;
/// Events a slow subscriber may lag behind before it is told that it missed some.
const SUBSCRIBER_LAG: usize = 256;
/// Longest console line, in bytes (init's bound).
const CONSOLE_LINE: usize = 400;

struct Ring {
    node: Option<NodeName>,
    next: u64,
    events: VecDeque<EventView>,
}

/// Cheap to clone; all clones share one ring.
#[derive(Clone)]
pub struct Journal {
    ring: Arc<Mutex<Ring>>,
    live: broadcast::Sender<EventView>,
    console: PathBuf,
}

impl Journal {
    /// An empty journal whose important lines also go to the FIFO `console`, where there is one.
    pub fn new(console: PathBuf) -> Self {
        let ring = Ring {
            node: None,
            next: 1,
            events: VecDeque::new(),
        };
        Self {
            ring: Arc::new(Mutex::new(ring)),
            live: broadcast::channel(SUBSCRIBER_LAG).0,
            console,
        }
    }

    /// Events from now on carry this name.
    pub fn set_node(&self, node: NodeName) {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).node = Some(node);
    }

    /// Records an event.
    pub fn emit(&self, reason: &str, object: &str, message: &str) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(node) = ring.node.clone().or_else(|| "unnamed".parse().ok()) else {
            return;
        };
        let event = EventView {
            seq: ring.next,
            at_ms: crate::clock::unix_ms(),
            node,
            reason: reason.to_owned(),
            object: object.to_owned(),
            message: message.to_owned(),
        };
        ring.next += 1;
        ring.events.push_back(event.clone());
        while ring.events.len() > EVENTS_KEPT {
            ring.events.pop_front();
        }
        tracing::info!(reason, object, "{message}");
        let _ = self.live.send(event);
    }

    /// Records an event and shows its sentence on every console of the box.
    pub fn announce(&self, reason: &str, object: &str, message: &str) {
        self.emit(reason, object, message);
        self.console(message);
    }

    /// Shows a sentence on every console of the box. Never blocks: without a reader the line is dropped.
    pub fn console(&self, message: &str) {
        let mut line: String = message
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let mut end = line.len().min(CONSOLE_LINE - 1);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line.push('\n');
        let fifo = std::fs::OpenOptions::new()
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&self.console);
        if let Ok(mut fifo) = fifo {
            let _ = fifo.write_all(line.as_bytes());
        }
    }

    /// The kept events and a subscription that continues them without a gap.
    pub fn subscribe(&self) -> (Vec<EventView>, broadcast::Receiver<EventView>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        (ring.events.iter().cloned().collect(), self.live.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_newest_and_a_subscriber_misses_nothing() {
        let journal = Journal::new("/nonexistent/console".into());
        for number in 0..EVENTS_KEPT + 10 {
            journal.announce("Test", "node/x", &format!("event {number}"));
        }
        let (kept, mut live) = journal.subscribe();
        assert_eq!(kept.len(), EVENTS_KEPT);
        let last = kept.last().map(|event| event.seq).unwrap();
        journal.emit("Test", "node/x", "next");
        assert_eq!(live.try_recv().map(|event| event.seq).unwrap(), last + 1);
    }

    #[test]
    fn a_console_line_is_one_bounded_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        std::fs::write(&path, b"").unwrap();
        Journal::new(path.clone()).console(&format!("a\nb{}", "é".repeat(500)));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("a b") && text.ends_with('\n') && text.len() <= CONSOLE_LINE);
    }
}
