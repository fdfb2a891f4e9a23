//! The box's own log for the stick: the newest of what `bmctl logs --system -o json` would show, for its operator's eyes alone.

use crate::rest;
use beemesh_ids::FabricId;
use beemesh_init_logd::{BootChoice, Entry, SystemLog};
use beemesh_joinpack_format::{LogKey, Manifest, limits};
use std::collections::VecDeque;

/// Bytes that a record is at least, beside its line, once it is written as JSON.
const FRAME: usize = 100;

/// Who may read the log.
#[derive(Debug, Clone)]
pub(super) struct LogReader {
    /// The fabric whose operator it is.
    pub(super) fabric: FabricId,
    /// The key to encrypt it to.
    pub(super) key: LogKey,
}

impl LogReader {
    /// Whom a pack names, which was verified; `None` where it names nobody.
    pub(super) fn of(manifest: &Manifest) -> Option<Self> {
        Some(Self {
            fabric: manifest.fabric.clone(),
            key: manifest.log_key?,
        })
    }
}

/// The newest records as JSON lines, the oldest first: of the boot that runs, and where there is room of the one before. At
/// most [`limits::LOG`] bytes; no line is cut.
pub(super) fn newest(log: &SystemLog) -> Vec<u8> {
    let mut room = limits::LOG;
    let mut lines = VecDeque::new();
    for boot in [BootChoice::Before(0), BootChoice::Before(1)] {
        // Nobody reads all of the boot before for a few lines.
        if room < limits::LOG / 2 {
            break;
        }
        if !take(tail(log, boot, room), &mut room, &mut lines) {
            break;
        }
    }
    lines.into_iter().flatten().collect()
}

/// Puts as many records as there is room for before those that are there; whether all of them had room.
fn take(mut records: VecDeque<Entry>, room: &mut usize, lines: &mut VecDeque<Vec<u8>>) -> bool {
    while let Some(entry) = records.pop_back() {
        let Ok(mut line) = serde_json::to_vec(&rest::record_view(entry)) else {
            continue;
        };
        line.push(b'\n');
        let Some(left) = room.checked_sub(line.len()) else {
            return false;
        };
        *room = left;
        lines.push_front(line);
    }
    true
}

/// The last records of a boot: no fewer than go into `room` bytes, and hardly more.
fn tail(log: &SystemLog, boot: BootChoice, room: usize) -> VecDeque<Entry> {
    let mut records: VecDeque<Entry> = VecDeque::new();
    let mut bytes = 0;
    let size = |entry: &Entry| entry.record.message.len() + FRAME;
    let mut reader = log.read(boot);
    while let Some(entry) = reader.as_mut().and_then(|reader| reader.next_entry()) {
        bytes += size(&entry);
        records.push_back(entry);
        while records.front().is_some_and(|first| bytes - size(first) > room) {
            bytes -= records.pop_front().as_ref().map_or(0, size);
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_agent_api::view::RecordView;
    use beemesh_init_log::{Flags, Limits, Record, Stream};
    use beemesh_init_logd::{RingWriter, SERVICES};
    use std::path::Path;

    const LIMITS: Limits = Limits {
        segment_bytes: 1 << 20,
        total_bytes: 8 << 20,
        segments: 64,
    };

    fn write(ring: &Path, boot: [u8; 16], messages: impl Iterator<Item = String>) {
        let mut ring = RingWriter::open(ring, LIMITS, boot).unwrap();
        for (seq, message) in messages.enumerate() {
            let seq = seq as u64 + 1;
            let record = Record {
                stream: Stream::Services,
                seq,
                realtime_us: seq,
                monotonic_us: seq,
                priority: 6,
                flags: Flags::default(),
                unit: "agent".into(),
                fields: Vec::new(),
                message: message.into_bytes(),
            };
            ring.append(&record).unwrap();
        }
    }

    fn messages(log: &[u8]) -> Vec<String> {
        let lines = log.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let views = lines.map(|line| serde_json::from_slice::<RecordView>(line).unwrap());
        views.map(|view| view.message).collect()
    }

    #[test]
    fn boot_before_is_there_where_this_one_leaves_room() {
        let root = tempfile::tempdir().unwrap();
        let (disk, ram) = (root.path().join("disk"), root.path().join("ram"));
        std::fs::create_dir(&ram).unwrap();
        write(&disk, [1; 16], ["before".to_owned()].into_iter());
        write(
            &ram.join(SERVICES),
            [2; 16],
            ["one", "two"].map(str::to_owned).into_iter(),
        );
        let log = newest(&SystemLog::of_boot(&disk, &ram, [2; 16]));
        assert_eq!(messages(&log), ["before", "one", "two"]);
        let none = root.path().join("none");
        assert!(newest(&SystemLog::of_boot(&none, &none, [2; 16])).is_empty());
    }

    #[test]
    fn newest_lines_are_there_whole_and_the_bound_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let many = (0..4000).map(|n| format!("line {n} {}", "x\"".repeat(60)));
        write(&root.path().join(SERVICES), [2; 16], many);
        let log = newest(&SystemLog::of_boot(
            &root.path().join("disk"),
            root.path(),
            [2; 16],
        ));
        let messages = messages(&log);
        assert!(messages.last().unwrap().starts_with("line 3999 "));
        // Not one more would have fitted.
        assert!(
            log.len() <= limits::LOG && log.len() > limits::LOG - 1024,
            "{}",
            log.len()
        );
        assert!(messages.len() > 100 && messages.is_sorted_by_key(|line| line.len() > 10_000));
    }
}
