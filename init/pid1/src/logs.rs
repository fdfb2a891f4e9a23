//! What services print: a pipe each, cut into records of the ring in RAM (`init/log/SPEC.md`).
//!
//! Who carries them to a disk is `beemesh-logd`: this program writes to memory alone and never waits for it. A record for
//! which memory has no room is counted, and the next one says how many there were. Bound: the ring's, and for each
//! service one line of `MESSAGE_LIMIT` bytes that has not ended.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use beemesh_init_api::path;
use beemesh_init_log::{Limits, Line, Lines, Record, Stream};
use beemesh_init_logd::{Clock, RingWriter, SERVICES, SERVICES_LIMITS, boot_id};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::chain::{Attempt, StepError};

/// The most that is taken before other events get their turn, in bytes.
const TURN_LIMIT: usize = 64 << 10;

/// The machine has one ring of services, and PID 1 one thread: nobody ever waits here.
static RING: Mutex<Option<Ring>> = Mutex::new(None);

struct Ring {
    writer: Option<RingWriter>,
    seq: u64,
    lost: u64,
}

impl Ring {
    fn open(directory: &Path, limits: Limits) -> Self {
        Self {
            writer: RingWriter::open(directory, limits, boot_id()).ok(),
            seq: 0,
            lost: 0,
        }
    }

    fn append(&mut self, unit: &str, line: Line) {
        let now = Clock::now();
        self.seq = self.seq.saturating_add(1);
        let mut record = Record {
            stream: Stream::Services,
            seq: self.seq,
            realtime_us: now.realtime_us,
            monotonic_us: now.monotonic_us,
            priority: line.priority,
            flags: line.flags,
            unit: unit.to_owned(),
            fields: Vec::new(),
            message: line.text,
        };
        if self.lost > 0 {
            record.fields.push(("LOST".to_owned(), self.lost.to_string()));
        }
        let written = self
            .writer
            .as_mut()
            .is_some_and(|writer| writer.append(&record).is_ok());
        self.lost = if written { 0 } else { self.lost.saturating_add(1) };
    }
}

fn append(unit: &str, line: Line) {
    let mut ring = RING.lock().unwrap_or_else(PoisonError::into_inner);
    ring.get_or_insert_with(|| Ring::open(&PathBuf::from(path::LOG).join(SERVICES), SERVICES_LIMITS))
        .append(unit, line);
}

/// A record of what PID 1 itself says.
pub fn record(text: &str) {
    for line in Lines::new().push(format!("{text}\n").as_bytes()) {
        append("init", line);
    }
}

/// One service's output.
pub struct ServiceLog {
    unit: String,
    lines: Lines,
    reader: File,
    writer: OwnedFd,
}

impl ServiceLog {
    /// Opens the pipe.
    ///
    /// # Errors
    /// [`StepError`].
    pub fn create(unit: &str) -> Result<Self, StepError> {
        // Only the reading end may not block; a service that prints faster than we read waits.
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).attempt("make a pipe for", unit)?;
        nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .attempt("set up", unit)?;
        Ok(Self {
            unit: unit.to_owned(),
            lines: Lines::new(),
            reader: File::from(reader),
            writer,
        })
    }

    /// What to wait for.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// The end that a process prints to.
    ///
    /// # Errors
    /// [`StepError`] when there are too many open files.
    pub fn writer(&self) -> Result<OwnedFd, StepError> {
        self.writer.try_clone().attempt("open", &self.unit)
    }

    /// Moves what is there from the pipe to the ring, and returns the lines that became whole.
    pub fn drain(&mut self) -> Vec<u8> {
        self.drain_to(append)
    }

    fn drain_to(&mut self, mut append: impl FnMut(&str, Line)) -> Vec<u8> {
        let mut buffer = vec![0; TURN_LIMIT];
        let count = self.reader.read(&mut buffer).unwrap_or(0);
        let mut shown = Vec::with_capacity(count);
        for line in self.lines.push(buffer.get(..count).unwrap_or_default()) {
            shown.extend(&line.text);
            shown.push(b'\n');
            append(&self.unit, line);
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_init_log::INFO;
    use beemesh_init_logd::RingReader;
    use std::io::Write;

    #[test]
    fn what_a_service_prints_is_in_the_ring_within_its_bound_and_ends_with_the_newest() {
        let dir = std::env::temp_dir().join(format!("beemesh-log-{}", std::process::id()));
        let limits = Limits {
            segment_bytes: 100_000,
            total_bytes: 400_000,
            segments: 8,
        };
        let mut ring = Ring::open(&dir, limits);
        let mut log = ServiceLog::create("x").unwrap();
        let mut writer = File::from(log.writer().unwrap());
        for n in 0..100 {
            writer.write_all(&vec![b'a'; 32 << 10]).unwrap();
            writer.write_all(format!("\n<3>last {n}\n").as_bytes()).unwrap();
            log.drain_to(|unit, line| ring.append(unit, line));
        }
        let sizes = std::fs::read_dir(&dir)
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len());
        assert!(sizes.sum::<u64>() <= 400_000);
        let mut reader = RingReader::new(&dir, None);
        let newest = std::iter::from_fn(|| reader.next_entry()).last().unwrap().record;
        assert_eq!((newest.unit.as_str(), newest.seq), ("x", 200));
        assert_eq!(
            (newest.message.as_slice(), newest.priority),
            (b"last 99".as_slice(), 3)
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_memory_has_no_room_for_is_counted() {
        let dir = std::env::temp_dir().join(format!("beemesh-log-lost-{}", std::process::id()));
        let line = |text: &str| Line {
            priority: INFO,
            flags: beemesh_init_log::Flags::default(),
            text: text.into(),
        };
        let mut ring = Ring::open(&dir, SERVICES_LIMITS);
        std::fs::remove_dir(&dir).unwrap();
        ring.append("x", line("gone"));
        ring.append("x", line("gone too"));
        std::fs::create_dir(&dir).unwrap();
        ring.append("x", line("here"));
        let record = RingReader::new(&dir, None).next_entry().unwrap().record;
        assert_eq!(record.fields, [("LOST".to_owned(), "2".to_owned())]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
