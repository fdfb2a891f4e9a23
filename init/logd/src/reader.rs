//! Reads a ring, oldest record first, and follows what is added.
//!
//! Bound: it holds at most one record and one piece of a file. A file that cannot be read is passed over.

use beemesh_init_log::{HEADER_LEN, Header, RECORD_LIMIT, Record, scan, segment_name, segment_number};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes read at once.
const PIECE: usize = 128 << 10;

/// A record and its boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The boot's id.
    pub boot: [u8; 16],
    /// The record.
    pub record: Record,
}

/// Follows one ring.
pub struct RingReader {
    directory: PathBuf,
    boot: Option<[u8; 16]>,
    /// The segment that was begun last.
    number: u64,
    open: Option<Segment>,
}

struct Segment {
    header: Header,
    file: File,
    /// What was read from the file and not taken yet, and its place.
    bytes: Vec<u8>,
    offset: u64,
}

impl RingReader {
    /// A reader from the oldest record on; of one boot's records only where `boot` says so.
    #[must_use]
    pub fn new(directory: &Path, boot: Option<[u8; 16]>) -> Self {
        Self {
            directory: directory.to_owned(),
            boot,
            number: 0,
            open: None,
        }
    }

    /// The boots that the ring has records of, oldest first.
    #[must_use]
    pub fn boots(directory: &Path) -> Vec<[u8; 16]> {
        let mut boots = Vec::new();
        for number in numbers_after(directory, 0) {
            if let Some((header, _)) = open(directory, number)
                && boots.last() != Some(&header.boot)
            {
                boots.push(header.boot);
            }
        }
        boots
    }

    /// The next record; `None`: there is none yet.
    pub fn next_entry(&mut self) -> Option<Entry> {
        loop {
            if self.open.is_none() && !self.open_next() {
                return None;
            }
            let segment = self.open.as_mut()?;
            if let Some(record) = segment.take(false) {
                return Some(segment.entry(record));
            }
            if segment.fill() {
                continue;
            }
            // Its writer has left it once there is another; what it wrote before that is there by now.
            if numbers_after(&self.directory, self.number).is_empty() {
                return None;
            }
            if segment.fill() {
                continue;
            }
            match segment.take(true) {
                Some(record) => return Some(segment.entry(record)),
                None => self.open = None,
            }
        }
    }

    fn open_next(&mut self) -> bool {
        let numbers = numbers_after(&self.directory, self.number);
        let newest = numbers.last().copied();
        for number in numbers {
            match open(&self.directory, number) {
                Some((header, _)) if self.boot.is_some_and(|boot| boot != header.boot) => {}
                Some((header, file)) => {
                    self.open = Some(Segment {
                        header,
                        file,
                        bytes: Vec::new(),
                        offset: HEADER_LEN as u64,
                    });
                    self.number = number;
                    return true;
                }
                // Its header is being written.
                None if Some(number) == newest => return false,
                None => {}
            }
            self.number = number;
        }
        false
    }
}

impl Segment {
    fn entry(&self, record: Record) -> Entry {
        Entry {
            boot: self.header.boot,
            record,
        }
    }

    fn take(&mut self, last: bool) -> Option<Record> {
        let found = scan(&self.header, &self.bytes, self.offset, last);
        self.bytes.drain(..found.consumed.min(self.bytes.len()));
        self.offset = self.offset.saturating_add(found.consumed as u64);
        found.record
    }

    /// `true`: more bytes were there.
    fn fill(&mut self) -> bool {
        if self.bytes.len() > RECORD_LIMIT {
            return false;
        }
        let mut piece = (&self.file).take(PIECE as u64);
        piece.read_to_end(&mut self.bytes).is_ok_and(|count| count > 0)
    }
}

fn open(directory: &Path, number: u64) -> Option<(Header, File)> {
    let mut file = File::open(directory.join(segment_name(number))).ok()?;
    let mut bytes = [0; HEADER_LEN];
    file.read_exact(&mut bytes).ok()?;
    Header::decode(&bytes).map(|header| (header, file))
}

fn numbers_after(directory: &Path, after: u64) -> Vec<u64> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().to_str().and_then(segment_number));
    let mut numbers: Vec<u64> = names.filter(|number| *number > after).collect();
    numbers.sort_unstable();
    numbers
}
