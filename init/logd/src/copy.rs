//! Carries the rings in RAM to the one on disk.
//!
//! Invariants: each record once and in the order of its stream; what an error kept from the disk is carried as soon as
//! the disk works again, as far as RAM still has it; at most [`SYNC_AFTER`] passes before what was carried is synced,
//! and what has priority `err` or worse is synced at once.

use crate::reader::RingReader;
use crate::system::SystemReader;
use crate::writer::{RingError, RingWriter};
use beemesh_init_log::{ERROR, Limits, Record, Stream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest time from a record to its sync.
pub const SYNC_AFTER: Duration = Duration::from_secs(5);
/// Records carried before other work gets its turn.
const TURN: usize = 4096;

/// How a turn went.
#[derive(Debug, PartialEq, Eq)]
pub enum Copied {
    /// Nothing waits.
    All,
    /// There is more.
    More,
}

/// The newest sequence numbers, per stream.
type Newest = [Option<u64>; 2];

/// The way from RAM to disk.
pub struct Copier {
    ram: PathBuf,
    boot: [u8; 16],
    writer: RingWriter,
    reader: SystemReader,
    /// On disk.
    carried: Newest,
    /// On disk, and a loss of power does not take it away.
    synced: Newest,
    dirty_since: Option<Instant>,
}

impl Copier {
    /// Goes on where the ring on disk ends.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn open(ram: &Path, disk: &Path, limits: Limits, boot: [u8; 16]) -> Result<Self, RingError> {
        let writer = RingWriter::open(disk, limits, boot)?;
        let mut carried = [None; 2];
        let mut there = RingReader::new(disk, Some(boot));
        while let Some(entry) = there.next_entry() {
            note(&mut carried, &entry.record);
        }
        Ok(Self {
            ram: ram.to_owned(),
            boot,
            writer,
            reader: SystemReader::of_ram(ram, boot),
            carried,
            synced: carried,
            dirty_since: None,
        })
    }

    /// Carries what waits, and syncs when it is time.
    ///
    /// # Errors
    /// [`RingError`]: the disk does not take it. The next call begins again with what was not synced.
    pub fn turn(&mut self, now: Instant) -> Result<Copied, RingError> {
        let done = self.carry(now);
        if done.is_err() {
            // After a failed sync the kernel drops what it could not write: RAM is where it still is.
            self.writer.leave();
            self.carried = self.synced;
            self.reader = SystemReader::of_ram(&self.ram, self.boot);
            self.dirty_since = None;
        }
        done
    }

    fn carry(&mut self, now: Instant) -> Result<Copied, RingError> {
        let mut urgent = false;
        let mut left = Copied::More;
        for _ in 0..TURN {
            let Some(mut record) = self.reader.next_entry().map(|entry| entry.record) else {
                left = Copied::All;
                break;
            };
            let missed = newest(self.carried, record.stream).map(|before| (record.seq, before));
            match missed.map(|(seq, before)| seq.checked_sub(before)) {
                Some(None | Some(0)) => continue,
                // RAM has gone on without us: say so where it is missed.
                Some(Some(step)) if step > 1 && record.fields.iter().all(|(name, _)| name != "LOST") => {
                    record.fields.push(("LOST".to_owned(), (step - 1).to_string()));
                }
                _ => {}
            }
            self.writer.append(&record)?;
            note(&mut self.carried, &record);
            urgent |= record.priority <= ERROR;
            self.dirty_since.get_or_insert(now);
        }
        let since = self.dirty_since.map(|since| now.saturating_duration_since(since));
        if urgent || since.is_some_and(|since| since >= SYNC_AFTER) {
            self.sync()?;
        }
        Ok(left)
    }

    /// Syncs now.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn sync(&mut self) -> Result<(), RingError> {
        self.writer.sync()?;
        self.synced = self.carried;
        self.dirty_since = None;
        Ok(())
    }
}

fn newest([services, kernel]: Newest, stream: Stream) -> Option<u64> {
    match stream {
        Stream::Services => services,
        Stream::Kernel => kernel,
    }
}

fn note([services, kernel]: &mut Newest, record: &Record) {
    let newest = match record.stream {
        Stream::Services => services,
        Stream::Kernel => kernel,
    };
    *newest = (*newest).max(Some(record.seq));
}
